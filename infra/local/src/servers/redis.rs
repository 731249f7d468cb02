//! A Redis (or Valkey) server on loopback.
//!
//! Invariant: it never evicts (`noeviction`); what it keeps over a restart is only what the append-only file
//! holds, when that is on: there are no snapshots.

mod cluster;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use redis::{ClientTlsConfig, TlsCertificates};
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
    /// Admits clients by TLS alone.
    pub tls: Option<Tls>,
    /// The password of its default user.
    pub password: Option<String>,
    /// More settings, as in redis.conf: name and value. They win over ours.
    pub settings: Vec<(String, String)>,
    /// Variables of the process, beside those that it inherits.
    pub environment: Vec<(String, String)>,
}

/// The certificates of a server, as PEM files. Its certificate is also what we show to it, and what the nodes of a
/// cluster show to one another.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority that signs servers and clients.
    pub ca: PathBuf,
    /// The certificate, of 127.0.0.1.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whether clients must show a certificate too.
    pub clients_too: bool,
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

    /// Its address: `redis://127.0.0.1:port`, `rediss://:password@127.0.0.1:port`.
    pub fn url(&self) -> String {
        self.seat.kind.url(self.port())
    }

    /// A client of it.
    ///
    /// # Errors
    /// When its certificates can't be read.
    pub fn client(&self) -> anyhow::Result<redis::Client> {
        self.seat.kind.client(self.port())
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
    let mut ours: Vec<(&str, OsString)> = vec![
        ("bind", "127.0.0.1".into()),
        ("dir", folder.into()),
        ("save", "".into()),
        ("appendonly", appendonly.into()),
        ("maxmemory-policy", "noeviction".into()),
        ("daemonize", "no".into()),
        ("logfile", "".into()),
    ];
    if let Some(password) = &options.password {
        ours.push(("requirepass", password.into()));
    }
    match &options.tls {
        None => ours.push(("port", port.to_string().into())),
        Some(Tls { ca, cert, key, clients_too }) => ours.extend([
            ("port", "0".into()),
            ("tls-port", port.to_string().into()),
            ("tls-ca-cert-file", ca.into()),
            ("tls-cert-file", cert.into()),
            ("tls-key-file", key.into()),
            ("tls-auth-clients", if *clients_too { "yes" } else { "no" }.into()),
        ]),
    }
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

impl Kindred {
    fn url(&self, port: u16) -> String {
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        let user = self.options.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        format!("{scheme}://{user}127.0.0.1:{port}")
    }

    fn client(&self, port: u16) -> anyhow::Result<redis::Client> {
        let Some(Tls { ca, cert, key, .. }) = &self.options.tls else {
            return Ok(redis::Client::open(self.url(port))?);
        };
        let read =
            |path: &PathBuf| std::fs::read(path).with_context(|| format!("can't read {}", path.display()));
        let client_tls = Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? });
        let certificates = TlsCertificates { client_tls, root_cert: Some(read(ca)?) };
        Ok(redis::Client::build_with_tls(self.url(port), certificates)?)
    }
}

impl Kind<1> for Kindred {
    const NAME: &'static str = "redis";

    fn prepare(&mut self, folder: &Path, [port]: [u16; 1]) -> anyhow::Result<Program> {
        Ok(Program {
            name: Self::NAME,
            command: self.at.server.clone(),
            args: arguments(folder, port, &self.options),
            environment: self.options.environment.clone(),
            user: None,
            log: folder.join("redis.log"),
            stop: Signal::TERM,
            orphaned: "KILL",
        })
    }

    /// When our process answers PING, which it doesn't while it loads.
    async fn answers(&self, [port]: [u16; 1], pid: i32) -> anyhow::Result<()> {
        let mut connection = self.client(port)?.get_multiplexed_async_connection().await?;
        let pong: String = redis::cmd("PING").query_async(&mut connection).await?;
        ensure!(pong == "PONG", "PING was answered with {pong}");
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let ours = format!("process_id:{pid}");
        ensure!(info.lines().any(|line| line.trim_end() == ours), "another redis answers on port {port}");
        Ok(())
    }
}
