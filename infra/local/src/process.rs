//! Child processes that never outlive us, and folders that one session owns at a time.
//!
//! Invariant: a child is signalled only while it is surely ours: before it has been reaped, or, for one that an
//! earlier run left behind, when process id and start time both match what that run wrote down.
//!
//! How a child dies with us: when its handle is dropped; on Linux also when this process is killed, by
//! `PR_SET_PDEATHSIG` set through `setpriv` (the kernel ties it to the *thread* that started the child, hence
//! one thread that starts all of them and lives as long as the process); elsewhere the next session stops it.

mod folder;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

pub(crate) use folder::Folder;

/// The unprivileged user that a program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What to start and how to end it.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// For messages.
    pub(crate) name: &'static str,
    pub(crate) command: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Variables beside those that it inherits: unlike arguments, no other user sees them.
    pub(crate) environment: Vec<(String, String)>,
    /// Another user to run as, when we are root.
    pub(crate) user: Option<User>,
    /// Output and errors are appended here.
    pub(crate) log: PathBuf,
    /// The polite signal to end it.
    pub(crate) stop: Signal,
    /// The signal that the kernel sends when we die, as `setpriv` names it.
    pub(crate) orphaned: &'static str,
}

/// A running child process.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    pid: Pid,
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    waiter: Option<JoinHandle<()>>,
    log: PathBuf,
    log_from: u64,
}

impl Child {
    /// Starts the program with no input, its output going to its log, in a process group of its own: Ctrl-C at
    /// the terminal reaches us alone, and we decide in what order things stop.
    pub(crate) fn spawn(program: &Program) -> anyhow::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&program.log)
            .with_context(|| format!("can't open the log {}", program.log.display()))?;
        let log_from = log.metadata()?.len();
        let mut command = guarded(&program.command, program.orphaned);
        command
            .args(&program.args)
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        if let Some(user) = program.user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut child = on_starter_thread(command)
            .with_context(|| format!("can't start {} ({})", program.name, program.command.display()))?;

        let pid = Pid::from_child(&child);
        let reaped = Arc::new(Mutex::new(false));
        let (sender, exit) = watch::channel(None);
        let waiter = std::thread::Builder::new().name(format!("wait-{}", program.name)).spawn({
            let reaped = Arc::clone(&reaped);
            move || {
                // Looked at first, reaped under the lock: while `reaped` is false the pid is still this child's.
                let look = || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
                let _ = rustix::io::retry_on_intr(look);
                let mut reaped = lock(&reaped);
                let status = child.wait().unwrap_or_default();
                *reaped = true;
                sender.send_replace(Some(status));
            }
        })?;
        let log = program.log.clone();
        Ok(Child { name: program.name, pid, reaped, exit, waiter: Some(waiter), log, log_from })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let reaped = lock(&self.reaped);
        if !*reaped && let Err(error) = kill_process(self.pid, signal) {
            tracing::debug!(name = self.name, %error, "signal not delivered");
        }
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) {
        // The sender goes only after it has sent, so an error means "ended" too.
        let _ = self.exit.clone().wait_for(Option::is_some).await;
    }

    /// Ends it politely; after `grace` not so.
    pub(crate) async fn stop(mut self, signal: Signal, grace: Duration) {
        self.signal(signal);
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            tracing::warn!(name = self.name, ?grace, "didn't stop in time, is killed");
        }
        self.kill();
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }

    /// What it has logged since it was started, the last 16 kB at most.
    pub(crate) fn logged(&self) -> String {
        tail(&self.log, self.log_from).unwrap_or_default()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command that the kernel ends with us, where that can be had.
fn guarded(program: &Path, orphaned: &str) -> Command {
    static SETPRIV: LazyLock<bool> = LazyLock::new(|| {
        cfg!(target_os = "linux")
            && Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", "true"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    });
    if !*SETPRIV {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", orphaned, "--"]).arg(program);
    command
}

type Start = (Command, mpsc::Sender<std::io::Result<std::process::Child>>);

/// Starts the command on the one thread that lives until the process ends.
fn on_starter_thread(command: Command) -> anyhow::Result<std::process::Child> {
    static STARTER: LazyLock<std::io::Result<mpsc::Sender<Start>>> = LazyLock::new(|| {
        let (sender, receiver) = mpsc::channel::<Start>();
        std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
            for (mut command, reply) in receiver {
                let _ = reply.send(command.spawn());
            }
        })?;
        Ok(sender)
    });
    let starter = STARTER.as_ref().map_err(|error| anyhow::anyhow!("can't start a thread: {error}"))?;
    let (reply, answer) = mpsc::channel();
    starter.send((command, reply)).context("the starting thread is gone")?;
    Ok(answer.recv().context("the starting thread is gone")??)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tail(log: &Path, from: u64) -> std::io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(16 * 1024))))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a text, for an error message.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Program {
        Program {
            name: "sh",
            command: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            environment: Vec::new(),
            user: None,
            log: dir.join("sh.log"),
            stop: Signal::TERM,
            orphaned: "KILL",
        }
    }

    #[tokio::test]
    async fn output_and_exit_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::spawn(&shell(dir.path(), "echo out; echo err >&2; exit 3")).unwrap();
        child.ended().await;
        assert_eq!(child.exited().and_then(|status| status.code()), Some(3));
        assert_eq!(child.logged(), "out\nerr\n");
        let again = Child::spawn(&shell(dir.path(), "echo again")).unwrap();
        again.ended().await;
        assert_eq!(again.logged(), "again\n", "only what this child logged");
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_polite_signal_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::spawn(&shell(dir.path(), "trap '' TERM; while :; do sleep 0.1; done")).unwrap();
        let pid = child.pid();
        child.stop(Signal::TERM, Duration::from_millis(50)).await;
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn dropping_the_handle_ends_the_child() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::spawn(&shell(dir.path(), "exec sleep 1000")).unwrap();
        let pid = child.pid();
        drop(child);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn last_lines_of_short_and_long_texts() {
        assert_eq!(last_lines("", 2), "");
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a\n", 2), "a");
    }
}
