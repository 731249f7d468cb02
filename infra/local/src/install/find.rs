//! Looking for the servers' programs, for a browser and for Python, where systems keep them.
//!
//! Invariant: only looks (asks for a version at most); a program counts as found only if what it says about itself is
//! new enough.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Missing, Need};

/// The oldest Java that runs a Kafka 4 broker.
const OLDEST_JAVA: u32 = 17;
/// The oldest Redis that has what the speed layer needs (functions).
pub(super) const OLDEST_REDIS: u32 = 7;
/// The oldest Python 3 that the notebook's packages are made for.
const OLDEST_PYTHON: u32 = 11;
/// Has a Python tell its version, if it can make environments: Debian's needs a package more for that.
const ITS_VERSION: &str = "-cimport ensurepip, sys; print('Python 3.%d' % sys.version_info[1])";

/// Redis or Valkey.
#[derive(Debug, Clone)]
pub struct RedisAt {
    /// The server program.
    pub server: PathBuf,
    /// Its version, major.
    pub major: u32,
}

/// Postgres.
#[derive(Debug, Clone)]
pub struct PostgresAt {
    /// The folder with `postgres` and `initdb`.
    pub bin: PathBuf,
    /// Its version, major.
    pub major: u32,
}

/// A Java runtime.
#[derive(Debug, Clone)]
pub struct JavaAt {
    /// The `java` program.
    pub java: PathBuf,
    /// Its version, major.
    pub major: u32,
    /// All that it says of its version, down to the build.
    pub version: String,
}

/// A browser, and what drives it.
#[derive(Debug, Clone)]
pub struct BrowserAt {
    /// Chromium or Chrome.
    pub browser: PathBuf,
    /// The `chromedriver` of its version.
    pub driver: PathBuf,
    /// The version of both, major.
    pub major: u32,
}

/// Python 3.
#[derive(Debug, Clone)]
pub(super) struct PythonAt {
    /// The `python3` program.
    pub(super) python: PathBuf,
    /// Of its version 3.11 the 11.
    pub(super) minor: u32,
}

/// What was found for some needs, and what not.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) redis: Option<RedisAt>,
    pub(super) postgres: Option<PostgresAt>,
    pub(super) java: Option<JavaAt>,
    pub(super) maven: Option<PathBuf>,
    pub(super) browser: Option<BrowserAt>,
    pub(super) python: Option<PythonAt>,
    pub(super) missing: Vec<Missing>,
}

impl Survey {
    /// Looks for what is needed; Maven is, only while the jars aren't there.
    pub(super) fn of(which: &[Need], jars_ready: bool) -> Survey {
        let mut survey = Survey::default();
        if which.contains(&Need::Redis) {
            survey.redis = redis();
            survey.note(survey.redis.is_none(), Missing::Redis);
        }
        if which.contains(&Need::Postgres) {
            survey.postgres = postgres();
            survey.note(survey.postgres.is_none(), Missing::Postgres);
        }
        if which.contains(&Need::Kafka) {
            survey.java = java();
            survey.note(survey.java.is_none(), Missing::Java);
            if !jars_ready {
                survey.maven = program("mvn", &[]);
                survey.note(survey.maven.is_none(), Missing::Maven);
            }
        }
        if which.contains(&Need::Browser) {
            survey.browser = browser();
            survey.note(survey.browser.is_none(), Missing::Browser);
        }
        if which.contains(&Need::Python) {
            survey.python = python();
            survey.note(survey.python.is_none(), Missing::Python);
        }
        survey
    }

    fn note(&mut self, is_missing: bool, what: Missing) {
        if is_missing {
            self.missing.push(what);
        }
    }

    /// A line for each thing found.
    pub(super) fn lines(&self) -> Vec<String> {
        let redis = self.redis.as_ref().map(|at| format!("redis {} at {}", at.major, at.server.display()));
        let postgres =
            self.postgres.as_ref().map(|at| format!("postgres {} at {}", at.major, at.bin.display()));
        let java = self.java.as_ref().map(|at| format!("java {} at {}", at.major, at.java.display()));
        let browser =
            self.browser.as_ref().map(|at| format!("chromium {} at {}", at.major, at.browser.display()));
        let python =
            self.python.as_ref().map(|at| format!("python 3.{} at {}", at.minor, at.python.display()));
        [redis, postgres, java, browser, python].into_iter().flatten().collect()
    }
}

fn redis() -> Option<RedisAt> {
    ["redis-server", "valkey-server"].iter().find_map(|name| {
        let server = program(name, &["redis", "valkey"])?;
        let major = major_after(&said(&server, "--version")?, "v=")?;
        (major >= OLDEST_REDIS).then_some(RedisAt { server, major })
    })
}

fn postgres() -> Option<PostgresAt> {
    let path =
        on_path("postgres").and_then(|program| Some(program.canonicalize().ok()?.parent()?.to_owned()));
    let debian =
        children(Path::new("/usr/lib/postgresql"), "").into_iter().map(|version| version.join("bin"));
    let brew = homebrew("postgresql").into_iter().map(|keg| keg.join("bin"));
    let usable = |bin: PathBuf| {
        let whole = bin.join("postgres").is_file() && bin.join("initdb").is_file();
        let major = major_after(&said(&bin.join("postgres"), "--version")?, "(PostgreSQL) ")?;
        whole.then_some(PostgresAt { bin, major })
    };
    // The newest, and of equals the first: the one on PATH.
    path.into_iter().chain(debian).chain(brew).filter_map(usable).first_max_by_key(|at| at.major)
}

fn java() -> Option<JavaAt> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let debian = children(Path::new("/usr/lib/jvm"), "").into_iter().map(|jvm| jvm.join("bin/java"));
    let brew = homebrew("openjdk").into_iter().map(|keg| keg.join("bin/java"));
    home.into_iter().chain(on_path("java")).chain(debian).chain(brew).find_map(|java| {
        let version = said(&java, "-version")?;
        let major = major_after(&version, "version \"")?;
        (major >= OLDEST_JAVA).then_some(JavaAt { java, major, version })
    })
}

/// A driver, and a browser of its version: it refuses others.
fn browser() -> Option<BrowserAt> {
    let driver = program("chromedriver", &[])?;
    let major = major_after(&said(&driver, "--version")?, "ChromeDriver ")?;
    let browser = ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|name| {
        let browser = program(name, &[])?;
        let text = said(&browser, "--version")?;
        let of = ["Chromium ", "Chrome "].iter().find_map(|mark| major_after(&text, mark));
        (of == Some(major)).then_some(browser)
    })?;
    Some(BrowserAt { browser, driver, major })
}

fn python() -> Option<PythonAt> {
    let brew = homebrew("python@3").into_iter().map(|keg| keg.join("bin/python3"));
    on_path("python3").into_iter().chain([PathBuf::from("/usr/bin/python3")]).chain(brew).find_map(|python| {
        let minor = major_after(&said(&python, ITS_VERSION)?, "Python 3.")?;
        (minor >= OLDEST_PYTHON).then_some(PythonAt { python, minor })
    })
}

/// A program on PATH, or in `bin` of a Homebrew formula whose name starts with one of these.
fn program(name: &str, formulas: &[&str]) -> Option<PathBuf> {
    let brew = formulas.iter().flat_map(|formula| homebrew(formula)).map(|keg| keg.join("bin").join(name));
    let usual =
        ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(|folder| Path::new(folder).join(name));
    on_path(name).or_else(|| usual.into_iter().chain(brew).find(|program| program.is_file()))
}

/// A program on PATH.
pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn homebrew(formula: &str) -> Vec<PathBuf> {
    ["/opt/homebrew/opt", "/usr/local/opt"].iter().flat_map(|opt| children(Path::new(opt), formula)).collect()
}

/// The entries of a folder whose names start so, in order; none if it isn't there.
fn children(folder: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
        .collect();
    paths.sort();
    paths
}

/// What a program says when asked for its version, on either stream; nothing where that fails.
fn said(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The number that follows the mark; Java's old `1.8` counts as 1, which is too old in any case.
fn major_after(text: &str, mark: &str) -> Option<u32> {
    let rest = &text[text.find(mark)? + mark.len()..];
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok()
}

trait FirstMax: Iterator + Sized {
    /// Like `max_by_key`, but of equals the first.
    fn first_max_by_key<K: Ord>(self, key: impl Fn(&Self::Item) -> K) -> Option<Self::Item> {
        self.reduce(|best, next| if key(&next) > key(&best) { next } else { best })
    }
}

impl<I: Iterator> FirstMax for I {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, mark, expected) in [
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", "v=", Some(7)),
            ("Valkey server v=8.1.1 sha=0", "v=", Some(8)),
            ("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)", "(PostgreSQL) ", Some(15)),
            ("postgres (PostgreSQL) 18beta1", "(PostgreSQL) ", Some(18)),
            ("openjdk version \"17.0.15\" 2025-04-15", "version \"", Some(17)),
            ("openjdk version \"25\" 2025-09-16", "version \"", Some(25)),
            ("java version \"1.8.0_402\"", "version \"", Some(1)),
            ("The operation couldn't be completed", "version \"", None),
            ("Chromium 140.0.7339.185 built on Debian GNU/Linux 12 (bookworm)", "Chromium ", Some(140)),
            ("Google Chrome 140.0.7339.185", "Chrome ", Some(140)),
            ("ChromeDriver 140.0.7339.185 (8a9b)", "ChromeDriver ", Some(140)),
            ("Python 3.13\n", "Python 3.", Some(13)),
        ] {
            assert_eq!(major_after(text, mark), expected, "{text}");
        }
    }
}
