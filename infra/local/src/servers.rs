//! Running servers: what is common to all of them.
//!
//! Invariant: a server is "ready" only when it has answered as the very process that we started (a stranger on
//! the same port doesn't pass), and it keeps port and folder over stop, kill and restart.

pub mod chromedriver;
pub mod kafka;
pub mod postgres;
pub mod redis;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::time::Instant;

pub use chromedriver::Chromedriver;
pub use kafka::{Kafka, KafkaOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use redis::{Redis, RedisCluster, RedisOptions, Tls};

use crate::ports::Lease;
use crate::process::{Child, Folder, Program, last_lines};

/// How long a server may take to answer; ten times what the slowest takes on two busy cores.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a server may take to end politely.
const GRACE: Duration = Duration::from_secs(30);
/// How often new ports are tried when a stranger took one between our look and the server's.
const PORT_ATTEMPTS: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A folder for servers that goes away with its handle, and that also the unprivileged user can enter as whom
/// Postgres runs when we are root. Declare it before the servers, so that it is dropped after them.
///
/// # Errors
/// When the system's folder for temporary files can't be written.
pub fn scratch() -> anyhow::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("tidemark-")
        .permissions(PermissionsExt::from_mode(0o711))
        .tempdir()
        .context("can't make a temporary folder")
}

/// What is particular to one kind of server; it needs `N` ports.
trait Kind<const N: usize>: Send + Sync {
    /// The name, in messages.
    const NAME: &'static str;

    /// Gets the folder ready and says what to start. Called anew for each set of ports.
    fn prepare(&mut self, folder: &Path, ports: [u16; N]) -> anyhow::Result<Program>;

    /// Ok when the process `pid` answers as it should.
    fn answers(&self, ports: [u16; N], pid: i32) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// A server's place: its folder, its ports and, while it runs, its process.
#[derive(Debug)]
struct Seat<K: Kind<N>, const N: usize> {
    // Before the folder: a process must have ended when its folder's lock goes.
    child: Option<Child>,
    folder: Folder,
    kind: K,
    leases: [Lease; N],
    program: Program,
    took: Duration,
}

impl<K: Kind<N>, const N: usize> Seat<K, N> {
    /// Starts the server on free ports; on others, if a stranger was faster to take one.
    async fn start(folder: Folder, mut kind: K) -> anyhow::Result<Seat<K, N>> {
        let leases = lease()?;
        let program = kind.prepare(folder.path(), leases.each_ref().map(Lease::port))?;
        let mut seat = Seat { child: None, folder, kind, leases, program, took: Duration::ZERO };
        let mut attempt = 1;
        loop {
            match seat.bring_up().await {
                Ok(()) => return Ok(seat),
                Err(failure) if failure.refusal == Refusal::PortTaken && attempt < PORT_ATTEMPTS => {
                    tracing::info!(
                        name = K::NAME,
                        attempt,
                        "a port was taken by another program; trying others"
                    );
                    seat.leases = lease()?;
                    seat.program = seat.kind.prepare(seat.folder.path(), seat.ports())?;
                    attempt += 1;
                }
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// Starts it again on the same ports; a process that still runs is stopped first.
    async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await;
        self.bring_up().await.map_err(|failure| failure.error)
    }

    async fn bring_up(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let child = Child::spawn(&self.program).map_err(Failure::other)?;
            self.folder.note(child.pid()).map_err(Failure::other)?;
            match self.wait_until_ready(&child, started + PATIENCE).await {
                Ok(()) => {
                    self.took = started.elapsed();
                    tracing::debug!(name = K::NAME, took = ?self.took, "answers");
                    self.child = Some(child);
                    return Ok(());
                }
                // The killed one's last processes are about to go; nothing tells when they have.
                Err(failure) if failure.refusal == Refusal::OldOneLeaving && started.elapsed() < GRACE => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn wait_until_ready(&self, child: &Child, deadline: Instant) -> Result<(), Failure> {
        loop {
            let answer = tokio::select! {
                answer = self.kind.answers(self.ports(), child.pid().as_raw_pid()) => answer,
                () = child.ended() => Err(anyhow::anyhow!("ended")),
            };
            let failed = if let Some(status) = child.exited() {
                format!("ended at start ({status})")
            } else {
                match answer {
                    Ok(()) => return Ok(()),
                    Err(reason) if Instant::now() >= deadline => {
                        format!("doesn't answer after {PATIENCE:?} ({reason:#})")
                    }
                    Err(_) => {
                        tokio::time::sleep(LOOK_EVERY).await;
                        continue;
                    }
                }
            };
            let log = child.logged();
            let (path, end) = (self.program.log.display(), last_lines(&log, 15));
            let error = anyhow::anyhow!("{} {failed}, log {path}:\n{end}", K::NAME);
            return Err(Failure { refusal: refusal(&log), error });
        }
    }

    async fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            child.stop(self.program.stop, GRACE).await;
            self.folder.clear_note();
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill();
            self.folder.clear_note();
        }
    }

    /// The running process.
    fn pid(&self) -> Option<u32> {
        let child = self.child.as_ref().filter(|child| child.exited().is_none())?;
        u32::try_from(child.pid().as_raw_pid()).ok()
    }

    fn ports(&self) -> [u16; N] {
        self.leases.each_ref().map(Lease::port)
    }

    fn log(&self) -> &Path {
        &self.program.log
    }
}

fn lease<const N: usize>() -> anyhow::Result<[Lease; N]> {
    let leases: Vec<Lease> = (0..N).map(|_| Lease::take()).collect::<anyhow::Result<_>>()?;
    leases.try_into().map_err(|_| anyhow::anyhow!("a lease for each port was asked for"))
}

/// Why a server didn't come up.
#[derive(Debug)]
struct Failure {
    refusal: Refusal,
    error: anyhow::Error,
}

impl Failure {
    fn other(error: anyhow::Error) -> Failure {
        Failure { refusal: Refusal::Other, error }
    }
}

/// What a server's log says about why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Another server listens on its port.
    PortTaken,
    /// Processes of a killed Postgres are still ending.
    OldOneLeaving,
    /// Anything else.
    Other,
}

fn refusal(log: &str) -> Refusal {
    if log.contains("ddress already in use") {
        Refusal::PortTaken
    } else if log.contains("pre-existing shared memory block") {
        Refusal::OldOneLeaving
    } else {
        Refusal::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_from_the_log() {
        for (log, expected) in [
            (
                "Warning: Could not create server TCP listening socket 127.0.0.1:1: bind: Address already in use",
                Refusal::PortTaken,
            ),
            ("could not bind IPv4 address \"127.0.0.1\": Address already in use", Refusal::PortTaken),
            ("Caused by: java.net.BindException: Address already in use", Refusal::PortTaken),
            (
                "FATAL:  pre-existing shared memory block (key 1, ID 2) is still in use",
                Refusal::OldOneLeaving,
            ),
            ("FATAL:  something else", Refusal::Other),
        ] {
            assert_eq!(refusal(log), expected, "{log}");
        }
    }
}
