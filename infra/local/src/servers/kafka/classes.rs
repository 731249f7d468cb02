//! An archive of the classes that a broker loads (Java's application class-data sharing), with which brokers come up in
//! half the time.
//!
//! Invariant: an archive is whole or not there, and is that of one build of Java with one set of jars; without one a
//! broker starts as well, only later.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_64;

use super::{Kafka, KafkaOptions, Node, Seat};
use crate::install::{KafkaAt, cache};
use crate::process::Folder;

/// Where a JVM's classes come from.
#[derive(Debug)]
pub(super) enum Classes {
    /// From the jars alone.
    Jars,
    /// From an archive as far as it has them.
    Archive(PathBuf),
    /// From the jars; at its orderly end it writes what it has loaded to this file.
    Recorded(PathBuf),
}

impl Classes {
    /// What the broker's JVM is told.
    pub(super) fn argument(&self) -> Option<OsString> {
        let (option, path) = match self {
            Classes::Jars => return None,
            Classes::Archive(path) => ("-XX:SharedArchiveFile=", path),
            Classes::Recorded(path) => ("-XX:ArchiveClassesAtExit=", path),
        };
        let mut argument = OsString::from(option);
        argument.push(path);
        Some(argument)
    }

    /// What a tool's JVM is told: what it loads is of no use to brokers.
    pub(super) fn argument_of_tool(&self) -> Option<OsString> {
        self.argument().filter(|_| matches!(self, Classes::Archive(_)))
    }
}

/// The archive beside the jars; the first time, a broker is started and ended to make it.
pub(super) async fn archived(at: &KafkaAt) -> Classes {
    let (at, runtime) = (at.clone(), Handle::current());
    let made = tokio::task::spawn_blocking(move || {
        // The jars' folder is named for what they are.
        let of = format!("{} {}", at.java.version, at.jars.display());
        let folder = at.jars.with_file_name(format!("kafka-classes-{:016x}", xxh3_64(of.as_bytes())));
        let say = &mut |line: &str| tracing::info!("{line}");
        cache::once(&folder, say, |partial, say| {
            say("starting Kafka once to keep its classes in an archive; from then on it starts faster");
            runtime.block_on(record(&at, partial))
        })?;
        anyhow::Ok(folder.join(NAME))
    });
    match made.await.map_err(anyhow::Error::from).flatten() {
        Ok(path) if path.is_file() => Classes::Archive(path),
        // This Java wrote none.
        Ok(_) => Classes::Jars,
        Err(error) => {
            tracing::info!(error = format!("{error:#}"), "no archive of Kafka's classes; it starts without");
            Classes::Jars
        }
    }
}

const NAME: &str = "classes.jsa";

async fn record(at: &KafkaAt, folder: &Path) -> anyhow::Result<()> {
    let (home, archive) = (folder.join("broker"), folder.join(NAME));
    let classes = Classes::Recorded(archive.clone());
    let node = Node {
        at: at.clone(),
        options: KafkaOptions::default(),
        joins: None,
        classes,
        cluster: String::new(),
    };
    let mut kafka = Kafka { seat: Seat::start(Folder::claim(&home)?, node).await? };
    // So that what serves clients is in it, too.
    kafka.create_topic("any", 1, &[]).await?;
    kafka.stop().await;
    drop(kafka);
    if !archive.is_file() {
        tracing::info!(java = %at.java.java.display(), "this Java writes no archive of classes; Kafka starts without");
    }
    std::fs::remove_dir_all(&home).with_context(|| format!("can't remove {}", home.display()))
}
