//! The layers as real, separate processes: whoever links this crate re-executes its own binary as one of them.
//!
//! Invariant: a layer's process gets its arguments and environment from its starter alone and dies with it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Child, Program};

/// How long a layer may take to flush and end.
const GRACE: Duration = Duration::from_secs(20);

/// A layer's process; killed when dropped.
#[derive(Debug)]
pub struct Layer {
    child: Child,
    program: Program,
}

impl Layer {
    /// Starts `program name arguments...`, its output going to the end of `log`.
    ///
    /// # Errors
    /// When the program can't be started or the log can't be written.
    pub fn start(program: &Path, name: &'static str, arguments: &[String], log: &Path) -> anyhow::Result<Layer> {
        let arguments = std::iter::once(OsString::from(name)).chain(arguments.iter().map(OsString::from));
        let program = Program {
            name,
            command: PathBuf::from(program),
            args: arguments.collect(),
            user: None,
            log: log.to_owned(),
            stop: Signal::TERM,
            orphaned: "KILL",
        };
        Ok(Layer { child: Child::spawn(&program)?, program })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.pid().as_raw_pid()
    }

    /// Its exit code, once it has ended; -1 where a signal ended it.
    pub fn exited(&self) -> Option<i32> {
        self.child.exited().map(|status| status.code().unwrap_or(-1))
    }

    /// Waits until it ends by itself, and gives its exit code.
    pub async fn ended(&self) -> i32 {
        self.child.ended().await;
        self.exited().unwrap_or(-1)
    }

    /// What it has logged, the last 16 kB at most.
    pub fn logged(&self) -> String {
        self.child.logged()
    }

    /// Asks it to end, and waits until it has; it is killed if it takes too long. Gives its exit code.
    pub async fn stop(mut self) -> i32 {
        self.child.signal(self.program.stop);
        if tokio::time::timeout(GRACE, self.child.ended()).await.is_err() {
            tracing::warn!(layer = self.program.name, "didn't stop in time, is killed");
        }
        self.child.kill();
        self.exited().unwrap_or(-1)
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Stops it where it stands (SIGSTOP).
    pub fn freeze(&self) {
        self.child.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.child.signal(Signal::CONT);
    }

    /// Starts it again with the same arguments.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill();
        self.child = Child::spawn(&self.program)?;
        Ok(())
    }
}
