//! Kafka's jars, resolved once by Maven.
//!
//! Invariant: the name of the jars' folder holds a hash of the pom, so another pom gets another folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use xxhash_rust::xxh3::xxh3_64;

use super::cache;
use super::find::JavaAt;
use crate::process::last_lines;

const POM: &str = include_str!("../../kafka/pom.xml");
/// Named in full, so that Maven need not look up what `dependency:` stands for; the pom says which version.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies";

/// Whether the jars are there.
pub(super) fn ready(cache: &Path) -> bool {
    folder(cache).is_dir()
}

/// The folder of the jars; fetched with Maven if need be.
pub(super) fn ensure(
    cache: &Path,
    java: &JavaAt,
    maven: Option<&Path>,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<PathBuf> {
    let jars = folder(cache);
    cache::once(&jars, say, |partial, say| {
        let maven = maven.context("mvn not found; install maven")?;
        say(&format!("fetching Apache Kafka with {} to {}", maven.display(), jars.display()));
        resolve(partial, java, maven)
    })?;
    Ok(jars)
}

fn folder(cache: &Path) -> PathBuf {
    cache.join(format!("kafka-{:016x}", xxh3_64(POM.as_bytes())))
}

fn resolve(folder: &Path, java: &JavaAt, maven: &Path) -> anyhow::Result<()> {
    let pom = folder.join("pom.xml");
    std::fs::write(&pom, POM).with_context(|| format!("can't write {}", pom.display()))?;
    let mut command = Command::new(maven);
    command
        .args(["-B", "-q", "-Dstyle.color=never", "-f"])
        .arg(&pom)
        .args([PLUGIN, "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", folder.display()))
        .stdin(Stdio::null());
    // Maven looks for java on PATH, where ours need not be.
    if let Some(home) = java.java.canonicalize().ok().as_deref().and_then(Path::parent).and_then(Path::parent)
    {
        command.env("JAVA_HOME", home);
    }
    let output = command.output().with_context(|| format!("can't run {}", maven.display()))?;
    if !output.status.success() {
        // It resets colours even when told to use none.
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).replace("\u{1b}[0m", "");
        bail!("mvn could not fetch Kafka ({}):\n{}", output.status, last_lines(text.trim_end(), 15));
    }
    let broker = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("kafka_2.13-");
    if !std::fs::read_dir(folder)?.filter_map(Result::ok).any(broker) {
        bail!("mvn succeeded, but no Kafka broker is in {}", folder.display());
    }
    Ok(())
}
