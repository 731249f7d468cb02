//! A Redis (or Valkey) server on loopback.
//!
//! Invariant: it never evicts (`noeviction`); what it keeps over a restart is only what the append-only file
//! holds, when that is on: there are no snapshots.

mod cluster;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

pub use cluster::RedisCluster;

use super::{Kind, Seat};
use crate::install::{Found, RedisAt};
use crate::process::{Folder, Program};

/// How Redis is started.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Keeps data over kills and restarts by an append-only file, synced every second.
    pub appendonly: bool,
    /// More settings, as in redis.conf: name and value. They win over ours.
    pub settings: Vec<(String, String)>,
}

/// A running Redis; ended when dropped.
#[derive(Debug)]
pub struct Redis {
    seat: Seat<Kindred, 1>,
}

impl Redis {
    /// Starts a server with its data in `folder` on a free port, and waits until it answers.
    ///
    /// # Errors
    /// When the folder is in use, or the server doesn't come up: with the end of its log.
    pub async fn start(found: &Found, folder: &Path, options: RedisOptions) -> anyhow::Result<Redis> {
        let at = found.redis.clone().context("redis was not asked for when servers were looked for")?;
        let seat = Seat::start(Folder::claim(folder)?, Kindred { at, options }).await?;
        Ok(Redis { seat })
    }

    /// Its address: `redis://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.seat.ports()[0]
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.seat.pid()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        self.seat.log()
    }

    /// How long the last start took until it answered.
    pub fn start_took(&self) -> Duration {
        self.seat.took
    }

    /// Ends it as its operator would.
    pub async fn stop(&mut self) {
        self.seat.stop().await;
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.seat.kill();
    }

    /// Starts it again on the same port and folder; a running one is stopped first.
    ///
    /// # Errors
    /// When it doesn't come up: with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.seat.restart().await
    }
}

fn arguments(folder: &Path, port: u16, options: &RedisOptions) -> Vec<OsString> {
    let appendonly = if options.appendonly { "yes" } else { "no" };
    let ours: [(&str, OsString); 8] = [
        ("port", port.to_string().into()),
        ("bind", "127.0.0.1".into()),
        ("dir", folder.into()),
        ("save", "".into()),
        ("appendonly", appendonly.into()),
        ("maxmemory-policy", "noeviction".into()),
        ("daemonize", "no".into()),
        ("logfile", "".into()),
    ];
    let theirs = options.settings.iter().map(|(name, value)| (name.as_str(), value.into()));
    ours.into_iter()
        .chain(theirs)
        .flat_map(|(name, value)| [OsString::from(format!("--{name}")), value])
        .collect()
}

/// Redis and its kin.
#[derive(Debug)]
struct Kindred {
    at: RedisAt,
    options: RedisOptions,
}

impl Kind<1> for Kindred {
    const NAME: &'static str = "redis";

    fn prepare(&mut self, folder: &Path, [port]: [u16; 1]) -> anyhow::Result<Program> {
        Ok(Program {
            name: Self::NAME,
            command: self.at.server.clone(),
            args: arguments(folder, port, &self.options),
            user: None,
            log: folder.join("redis.log"),
            stop: Signal::TERM,
            orphaned: "KILL",
        })
    }

    /// When our process answers PING, which it doesn't while it loads.
    async fn answers(&self, [port]: [u16; 1], pid: i32) -> anyhow::Result<()> {
        let client = redis::Client::open(("127.0.0.1", port))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let pong: String = redis::cmd("PING").query_async(&mut connection).await?;
        ensure!(pong == "PONG", "PING was answered with {pong}");
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let ours = format!("process_id:{pid}");
        ensure!(info.lines().any(|line| line.trim_end() == ours), "another redis answers on port {port}");
        Ok(())
    }
}
