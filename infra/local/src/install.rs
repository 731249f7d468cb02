//! Finding the servers on this machine, and installing what is missing.
//!
//! Invariant: nothing is installed without leave, every step is said before it is taken, and an installation
//! neither starts a server nor leaves a setting behind that would change how the machine behaves.

mod apt;
pub(crate) mod cache;
mod find;
mod jars;
mod python;

use std::path::PathBuf;

use anyhow::bail;

pub use find::{BrowserAt, JavaAt, PostgresAt, RedisAt};

use cache::FileLock;
use find::Survey;

/// A server that the caller needs, or what tests need beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// Redis 7 or later, or Valkey.
    Redis,
    /// Postgres.
    Postgres,
    /// Apache Kafka: Java 17 or later, and the broker's jars.
    Kafka,
    /// Chromium or Chrome, and a chromedriver: for tests alone.
    Browser,
    /// Python 3.11 or later, with the packages of `infra/notebook/requirements.txt`: for tests alone.
    Python,
}

/// Whether missing packages may be installed.
#[derive(Clone, Copy)]
pub enum Installing<'a> {
    /// Put this question to someone; go on where the answer is yes.
    Ask(&'a dyn Fn(&str) -> anyhow::Result<bool>),
    /// Go on without asking.
    Yes,
    /// Say what is missing and give up.
    Never,
}

/// What is missing, as a thing that a package manager can bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Redis,
    Postgres,
    Java,
    Maven,
    Browser,
    Python,
}

/// Where the needed servers are. What wasn't asked for is `None`.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Redis or Valkey.
    pub redis: Option<RedisAt>,
    /// Postgres.
    pub postgres: Option<PostgresAt>,
    /// Kafka.
    pub kafka: Option<KafkaAt>,
    /// Chromium or Chrome.
    pub browser: Option<BrowserAt>,
    /// The Python that has the notebook's packages.
    pub python: Option<PathBuf>,
}

/// Where Kafka is.
#[derive(Debug, Clone)]
pub struct KafkaAt {
    /// The Java that runs it.
    pub java: JavaAt,
    /// The folder of its jars.
    pub jars: PathBuf,
}

/// Finds the needed servers; installs what is missing if `policy` and the machine allow it. Blocks, for minutes
/// if it installs; callers in parallel, also in other processes, wait for one another. `say` gets a line for
/// each thing that is found or done.
///
/// # Errors
/// When something is missing and can't be installed here: the message says what to install.
pub fn ensure(which: &[Need], policy: Installing, say: &mut dyn FnMut(&str)) -> anyhow::Result<Found> {
    let cache = cache::locate()?;
    let look = || Survey::of(which, jars::ready(&cache));
    let mut survey = look();
    if !survey.missing.is_empty() {
        leave(&survey.missing, &Machine::look(), policy)?;
        let _one_at_a_time = FileLock::wait(&std::env::temp_dir().join("tidemark-apt.lock"), say)?;
        // Another session may have brought it meanwhile.
        survey = look();
        if !survey.missing.is_empty() {
            apt::install(&survey.missing, say)?;
            survey = look();
        }
        if !survey.missing.is_empty() {
            bail!("apt-get succeeded, but these are still not found: {}", names(&survey.missing));
        }
    }
    for line in survey.lines() {
        say(&line);
    }
    let kafka = match survey.java {
        Some(java) => {
            Some(KafkaAt { jars: jars::ensure(&cache, &java, survey.maven.as_deref(), say)?, java })
        }
        None => None,
    };
    let python = survey.python.as_ref().map(|at| python::ensure(&cache, at, say)).transpose()?;
    Ok(Found { redis: survey.redis, postgres: survey.postgres, kafka, browser: survey.browser, python })
}

/// What matters about this machine for installing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    apt: bool,
    brew: bool,
    root: bool,
    /// The package that brings a Java: the one thing whose name differs among Debian's releases.
    java: &'static str,
}

impl Machine {
    fn look() -> Machine {
        Machine {
            apt: find::on_path("apt-get").is_some() && find::on_path("dpkg").is_some(),
            brew: cfg!(target_os = "macos"),
            root: rustix::process::geteuid().is_root(),
            java: apt::offered(Missing::Java).unwrap_or("default-jre-headless"),
        }
    }
}

/// Leave to install these, or why not.
fn leave(missing: &[Missing], machine: &Machine, policy: Installing) -> anyhow::Result<()> {
    let (names, advice) = (names(missing), advice(missing, machine));
    if matches!(policy, Installing::Never) {
        bail!("{names} not found; {advice}");
    }
    if !machine.apt || !machine.root {
        let why = if machine.apt { "installing needs root" } else { "only apt-get is used to install" };
        bail!("{names} not found, and {why}; {advice}");
    }
    if let Installing::Ask(ask) = policy
        && !ask(&format!("not found: {names}; install with apt-get, without starting any service?"))?
    {
        bail!("nothing was installed; {advice}");
    }
    Ok(())
}

fn names(missing: &[Missing]) -> String {
    let name = |missing: &Missing| match missing {
        Missing::Redis => "redis-server 7 or later (or valkey-server)",
        Missing::Postgres => "postgres with initdb",
        Missing::Java => "java 17 or later",
        Missing::Maven => "mvn",
        Missing::Browser => "chromium (or google-chrome) and a chromedriver of its version",
        Missing::Python => "python 3.11 or later with ensurepip",
    };
    missing.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What a person can type to get what is missing.
fn advice(missing: &[Missing], machine: &Machine) -> String {
    let list =
        |name: &dyn Fn(&Missing) -> &'static str| missing.iter().map(name).collect::<Vec<_>>().join(" ");
    if machine.apt {
        let packages = list(&|missing| match missing {
            Missing::Redis => "redis-server",
            Missing::Postgres => "postgresql",
            Missing::Java => machine.java,
            Missing::Maven => "maven",
            Missing::Browser => "chromium chromium-driver",
            Missing::Python => "python3-venv",
        });
        return format!("as root: apt-get update && apt-get install --no-install-recommends {packages}");
    }
    let formulas = list(&|missing| match missing {
        Missing::Redis => "redis",
        Missing::Postgres => "postgresql@17",
        Missing::Java => "openjdk@17",
        Missing::Maven => "maven",
        Missing::Browser => "chromium chromedriver",
        Missing::Python => "python",
    });
    if machine.brew {
        format!("install with Homebrew: brew install {formulas}")
    } else {
        format!(
            "install with your package manager what Homebrew calls: {formulas}, and have the programs on PATH"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_ROOT: Machine =
        Machine { apt: true, brew: false, root: true, java: "openjdk-21-jre-headless" };
    const DEBIAN_USER: Machine = Machine { root: false, ..DEBIAN_ROOT };
    const MAC: Machine = Machine { apt: false, brew: true, ..DEBIAN_USER };
    const OTHER_ROOT: Machine = Machine { apt: false, ..DEBIAN_ROOT };

    /// What comes of asking for leave, where the one who is asked answers so; and whether they were asked.
    fn check(machine: &Machine, answer: Option<bool>, refusal: Option<&str>) {
        let asked = std::cell::Cell::new(false);
        let ask = |question: &str| {
            asked.set(true);
            assert!(question.contains("redis-server") && question.contains("java"), "{question}");
            Ok(answer.unwrap())
        };
        let policy = if answer.is_some() { Installing::Ask(&ask) } else { Installing::Yes };
        let given = leave(&[Missing::Redis, Missing::Java], machine, policy);
        match refusal {
            None => given.unwrap(),
            Some(refusal) => assert!(given.as_ref().unwrap_err().to_string().contains(refusal), "{given:?}"),
        }
        assert_eq!(asked.get(), answer.is_some() && *machine == DEBIAN_ROOT);
    }

    #[test]
    fn only_root_on_debian_installs_and_only_with_leave() {
        let by_hand =
            "apt-get update && apt-get install --no-install-recommends redis-server openjdk-21-jre-headless";
        check(&DEBIAN_ROOT, None, None);
        check(&DEBIAN_ROOT, Some(true), None);
        check(&DEBIAN_ROOT, Some(false), Some(&format!("nothing was installed; as root: {by_hand}")));
        for answer in [None, Some(true)] {
            check(&DEBIAN_USER, answer, Some(&format!("installing needs root; as root: {by_hand}")));
            check(&MAC, answer, Some("brew install redis openjdk@17"));
            check(&OTHER_ROOT, answer, Some("with your package manager"));
        }
        let never = leave(&[Missing::Redis], &DEBIAN_ROOT, Installing::Never).unwrap_err().to_string();
        assert!(never.contains("redis-server 7 or later (or valkey-server) not found; as root"), "{never}");
        let browser = leave(&[Missing::Browser], &DEBIAN_USER, Installing::Yes).unwrap_err().to_string();
        let by_hand = "apt-get update && apt-get install --no-install-recommends chromium chromium-driver";
        assert!(
            browser.contains("chromedriver of its version not found") && browser.contains(by_hand),
            "{browser}"
        );
    }
}
