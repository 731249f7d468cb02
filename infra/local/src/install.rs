//! Finding the servers on this machine, and installing what is missing.
//!
//! Invariant: nothing is installed without leave, every step is said before it is taken, and an installation
//! neither starts a server nor leaves a setting behind that would change how the machine behaves.

mod apt;
mod cache;
mod find;
mod jars;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, bail};

pub use find::{JavaAt, PostgresAt, RedisAt};

use cache::FileLock;
use find::Survey;

/// A server that the caller needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// Redis 7 or later, or Valkey.
    Redis,
    /// Postgres.
    Postgres,
    /// Apache Kafka: Java 17 or later, and the broker's jars.
    Kafka,
}

/// Whether missing packages may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installing {
    /// Ask at a terminal; without one, go on.
    Ask,
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
    let mut survey = Survey::of(which, jars::ready(&cache));
    if !survey.missing.is_empty() {
        let packages = decide(&survey.missing, &Machine::look(), policy)?;
        if policy == Installing::Ask && std::io::stdin().is_terminal() && !agreed(&packages, say)? {
            bail!("nothing was installed; {}", advice(&survey.missing, &Machine::look()));
        }
        let _one_at_a_time = FileLock::wait(&std::env::temp_dir().join("tidemark-apt.lock"), say)?;
        // Another session may have brought it meanwhile.
        survey = Survey::of(which, jars::ready(&cache));
        if !survey.missing.is_empty() {
            apt::install(&survey.missing, say)?;
            survey = Survey::of(which, jars::ready(&cache));
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
    Ok(Found { redis: survey.redis, postgres: survey.postgres, kafka })
}

/// What matters about this machine for installing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    apt: bool,
    brew: bool,
    root: bool,
}

impl Machine {
    fn look() -> Machine {
        Machine {
            apt: find::on_path("apt-get").is_some() && find::on_path("dpkg").is_some(),
            brew: cfg!(target_os = "macos"),
            root: rustix::process::geteuid().is_root(),
        }
    }
}

/// The things to install, or why not.
fn decide(missing: &[Missing], machine: &Machine, policy: Installing) -> anyhow::Result<String> {
    if policy == Installing::Never {
        bail!("{} not found; {}", names(missing), advice(missing, machine));
    }
    if !machine.apt || !machine.root {
        let why = if machine.apt { "installing needs root" } else { "only apt-get is used to install" };
        bail!("{} not found, and {why}; {}", names(missing), advice(missing, machine));
    }
    Ok(names(missing))
}

fn names(missing: &[Missing]) -> String {
    let name = |missing: &Missing| match missing {
        Missing::Redis => "redis-server (or valkey-server)",
        Missing::Postgres => "postgres with initdb",
        Missing::Java => "java 17 or later",
        Missing::Maven => "mvn",
    };
    missing.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What a person can type to get what is missing.
fn advice(missing: &[Missing], machine: &Machine) -> String {
    let list = |name: fn(&Missing) -> &'static str| missing.iter().map(name).collect::<Vec<_>>().join(" ");
    if machine.apt {
        let packages = list(|missing| match missing {
            Missing::Redis => "redis-server",
            Missing::Postgres => "postgresql",
            Missing::Java => "openjdk-17-jre-headless",
            Missing::Maven => "maven",
        });
        return format!("as root: apt-get update && apt-get install --no-install-recommends {packages}");
    }
    let formulas = list(|missing| match missing {
        Missing::Redis => "redis",
        Missing::Postgres => "postgresql@17",
        Missing::Java => "openjdk@17",
        Missing::Maven => "maven",
    });
    if machine.brew {
        format!("install with Homebrew: brew install {formulas}")
    } else {
        format!(
            "install with your package manager what Homebrew calls: {formulas}, and have the programs on PATH"
        )
    }
}

fn agreed(packages: &str, say: &mut dyn FnMut(&str)) -> anyhow::Result<bool> {
    say(&format!("not found: {packages}; install with apt-get, without starting any service? [Y/n]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("can't read the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes") && answer.ends_with('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_ROOT: Machine = Machine { apt: true, brew: false, root: true };
    const DEBIAN_USER: Machine = Machine { apt: true, brew: false, root: false };
    const MAC: Machine = Machine { apt: false, brew: true, root: false };
    const OTHER_ROOT: Machine = Machine { apt: false, brew: false, root: true };

    #[test]
    fn only_root_on_debian_installs() {
        let missing = [Missing::Redis, Missing::Java];
        assert!(decide(&missing, &DEBIAN_ROOT, Installing::Yes).is_ok());
        assert!(decide(&missing, &DEBIAN_ROOT, Installing::Ask).is_ok());
        for (machine, policy, must_say) in [
            (
                DEBIAN_ROOT,
                Installing::Never,
                "apt-get install --no-install-recommends redis-server openjdk-17-jre-headless",
            ),
            (
                DEBIAN_USER,
                Installing::Yes,
                "installing needs root; as root: apt-get update && apt-get install",
            ),
            (MAC, Installing::Yes, "brew install redis openjdk@17"),
            (OTHER_ROOT, Installing::Ask, "with your package manager"),
        ] {
            let message = decide(&missing, &machine, policy).unwrap_err().to_string();
            assert!(message.contains(must_say), "{message}");
        }
    }
}
