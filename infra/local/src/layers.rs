//! The layers as real, separate processes: whoever links this crate re-executes its own binary as one of them.
//!
//! Invariant: a layer's process gets its arguments and environment from its starter alone and dies with it.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

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
    pub fn start(
        program: &Path,
        name: &'static str,
        arguments: &[String],
        log: &Path,
    ) -> anyhow::Result<Layer> {
        Layer::start_in(program, name, arguments, &[], log)
    }

    /// The same with variables set beside those that it inherits.
    ///
    /// # Errors
    /// When the program can't be started or the log can't be written.
    pub fn start_in(
        program: &Path,
        name: &'static str,
        arguments: &[String],
        environment: &[(String, String)],
        log: &Path,
    ) -> anyhow::Result<Layer> {
        let mut args: Vec<OsString> = vec![name.into()];
        args.extend(arguments.iter().map(OsString::from));
        let program = Program {
            name,
            command: program.to_owned(),
            args,
            environment: environment.to_vec(),
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

    /// Asks it to end, and doesn't wait.
    pub fn signal_stop(&self) {
        self.child.signal(self.program.stop);
    }

    /// Asks it to end, and waits until it has; it is killed if it takes too long. Gives its exit code.
    pub async fn stop(mut self) -> i32 {
        self.signal_stop();
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

/// The names under which this binary is re-executed as a layer.
pub const NAMES: [&str; 4] = ["speed-layer", "batch-layer", "serving-layer", "simulator"];

/// Runs as the layer that the first argument names, on a runtime of its own, until it is done or told to stop by SIGTERM or
/// SIGINT; `None` where the first argument names none.
pub fn run_as(arguments: Vec<OsString>, clock: fn() -> i64) -> Option<anyhow::Result<()>> {
    use clap::Parser as _;
    let name = arguments.get(1)?.to_str().filter(|name| NAMES.contains(name))?.to_owned();
    // The layer sees itself as the program.
    let arguments: Vec<OsString> = arguments.into_iter().skip(1).collect();
    Some(match name.as_str() {
        "speed-layer" => {
            let args = speed_layer::Args::parse_from(arguments);
            speed_layer::start_logging(args.log);
            until_stopped(|shutdown| speed_layer::execute(args, shutdown))
        }
        "batch-layer" => {
            let args = batch_layer::Args::parse_from(arguments);
            batch_layer::start_logging(args.log);
            batch_layer::settle_resources(args.nice);
            until_stopped(|shutdown| batch_layer::execute(args, shutdown))
        }
        "serving-layer" => {
            let args = serving_layer::Args::parse_from(arguments);
            serving_layer::start_logging(args.log);
            until_stopped(|shutdown| serving_layer::execute(args, shutdown))
        }
        _ => {
            let args = simulator::cli::Args::parse_from(arguments);
            simulator::start_logging();
            until_stopped(async |shutdown| {
                let job = tokio::task::spawn_blocking(move || simulator::execute(args, clock, &shutdown));
                job.await.unwrap_or_else(|error| Err(error.into()))
            })
        }
    })
}

#[tokio::main]
async fn until_stopped(
    work: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    work(stop_signal()).await
}

/// A token that is cancelled at the first SIGTERM or SIGINT.
pub fn stop_signal() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        stopped.cancel();
    });
    stop
}
