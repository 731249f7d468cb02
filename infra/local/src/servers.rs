//! Running servers: what is common to all of them.
//!
//! Invariant: a server is "ready" only when it has answered as the very process that we started (a stranger on
//! the same port doesn't pass), and it keeps port and folder over stop, kill and restart.

pub mod kafka;
pub mod postgres;
pub mod redis;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::time::Instant;

pub use kafka::{Kafka, KafkaOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use redis::{Redis, RedisOptions};

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

/// Asks a server whether it is there.
trait Probe: Send + Sync {
    /// Ok when the process `pid` answers as it should.
    fn answers(&self, pid: i32) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// A server's place: its folder and, while it runs, its process.
#[derive(Debug)]
struct Seat {
    folder: Folder,
    log: PathBuf,
    child: Option<Child>,
    took: Duration,
}

impl Seat {
    fn claim(folder: &Path, log: &str) -> anyhow::Result<Seat> {
        let folder = Folder::claim(folder)?;
        let log = folder.path().join(log);
        Ok(Seat { folder, log, child: None, took: Duration::ZERO })
    }

    /// Starts the program and waits until the probe answers. A process that still runs here is stopped first.
    async fn bring_up(&mut self, program: &Program, probe: &impl Probe) -> Result<(), Failure> {
        self.stop(program).await;
        let started = Instant::now();
        loop {
            let child = Child::spawn(program).map_err(Failure::other)?;
            self.folder.note(child.pid()).map_err(Failure::other)?;
            match wait_until_ready(program, &child, probe, started + PATIENCE).await {
                Ok(()) => {
                    self.took = started.elapsed();
                    tracing::debug!(name = program.name, took = ?self.took, "answers");
                    self.child = Some(child);
                    return Ok(());
                }
                // The killed one's last processes are about to go; nothing tells when they have.
                Err(failure) if failure.refusal == Refusal::OldOneLeaving && started.elapsed() < GRACE => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(failure) => {
                    self.folder.clear_note();
                    return Err(failure);
                }
            }
        }
    }

    async fn stop(&mut self, program: &Program) {
        if let Some(child) = self.child.take() {
            child.stop(program.stop, GRACE).await;
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
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.kill();
    }
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

async fn wait_until_ready(
    program: &Program,
    child: &Child,
    probe: &impl Probe,
    deadline: Instant,
) -> Result<(), Failure> {
    loop {
        let answer = tokio::select! {
            answer = probe.answers(child.pid().as_raw_pid()) => answer,
            () = child.ended() => Err(anyhow::anyhow!("ended")),
        };
        let log = || last_lines(&child.logged(), 15);
        let Program { name, log: path, .. } = program;
        if let Some(status) = child.exited() {
            let error = anyhow::anyhow!("{name} ended at start ({status}), log {}:\n{}", path.display(), log());
            return Err(Failure { refusal: refusal(&child.logged()), error });
        }
        let Err(reason) = answer else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(Failure::other(anyhow::anyhow!(
                "{name} doesn't answer after {PATIENCE:?} ({reason:#}), log {}:\n{}",
                path.display(),
                log()
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Leases ports and starts the server on them; on others, if a stranger was faster. The first one's ports may
/// come from the caller.
async fn on_free_ports<const N: usize>(
    mut start: impl AsyncFnMut([u16; N]) -> Result<(), Failure>,
) -> anyhow::Result<[Lease; N]> {
    let mut attempt = 1;
    loop {
        let mut leases = Vec::with_capacity(N);
        for _ in 0..N {
            leases.push(Lease::take()?);
        }
        let Ok(leases) = <[Lease; N]>::try_from(leases) else { continue };
        match start(leases.each_ref().map(Lease::port)).await {
            Ok(()) => return Ok(leases),
            Err(failure) if failure.refusal == Refusal::PortTaken && attempt < PORT_ATTEMPTS => {
                tracing::info!(attempt, "a port was taken by another program; trying others");
                attempt += 1;
            }
            Err(failure) => return Err(failure.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_from_the_log() {
        for (log, expected) in [
            ("Warning: Could not create server TCP listening socket 127.0.0.1:1: bind: Address already in use", Refusal::PortTaken),
            ("could not bind IPv4 address \"127.0.0.1\": Address already in use", Refusal::PortTaken),
            ("Caused by: java.net.BindException: Address already in use", Refusal::PortTaken),
            ("FATAL:  pre-existing shared memory block (key 1, ID 2) is still in use", Refusal::OldOneLeaving),
            ("FATAL:  something else", Refusal::Other),
        ] {
            assert_eq!(refusal(log), expected, "{log}");
        }
    }
}
