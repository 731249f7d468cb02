//! A server's folder: its lock, and the note by which the next session recognises a server that was left behind.
//!
//! Invariant: while the lock is held no other session, here or in another process, uses the folder; so a server
//! that the note names and that still runs when we get the lock has lost its owner.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

/// How long a left-behind server may take to stop politely.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);

/// A folder that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, locks it, and stops the server that an earlier session left running in it.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Folder> {
        let here = || path.display();
        std::fs::create_dir_all(path).with_context(|| format!("can't make the folder {}", here()))?;
        let path = path.canonicalize().with_context(|| format!("can't resolve {}", path.display()))?;
        let lock =
            File::create(path.join("lock")).with_context(|| format!("can't write in {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("{} is in use by another session; stop that one or choose another folder", path.display());
        }
        let folder = Folder { path, _lock: lock };
        folder.stop_leftover()?;
        Ok(folder)
    }

    /// The folder, absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes the server that now runs here.
    pub(crate) fn note(&self, pid: Pid) -> anyhow::Result<()> {
        let Some(started) = start_time(pid) else { return Ok(()) };
        let note = self.note_path();
        std::fs::write(&note, format!("{}\n{started}\n", pid.as_raw_pid()))
            .with_context(|| format!("can't write {}", note.display()))
    }

    /// Forgets the server that ran here.
    pub(crate) fn clear_note(&self) {
        let _ = std::fs::remove_file(self.note_path());
    }

    fn note_path(&self) -> PathBuf {
        self.path.join("server.pid")
    }

    fn stop_leftover(&self) -> anyhow::Result<()> {
        let note = match std::fs::read_to_string(self.note_path()) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", self.note_path().display()));
            }
        };
        if let Some((pid, started)) = parse_note(&note)
            && start_time(pid).as_deref() == Some(started)
        {
            tracing::info!(pid = pid.as_raw_pid(), folder = %self.path.display(), "stopping a server left by an earlier session");
            for (signal, patience) in [(Signal::TERM, LEFTOVER_GRACE), (Signal::KILL, LEFTOVER_GRACE)] {
                let _ = kill_process(pid, signal);
                let deadline = Instant::now() + patience;
                while start_time(pid).as_deref() == Some(started) && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            if start_time(pid).as_deref() == Some(started) {
                bail!(
                    "process {} of an earlier session in {} can't be stopped",
                    pid.as_raw_pid(),
                    self.path.display()
                );
            }
        }
        self.clear_note();
        Ok(())
    }
}

fn parse_note(note: &str) -> Option<(Pid, &str)> {
    let (pid, started) = note.split_once('\n')?;
    Some((Pid::from_raw(pid.parse().ok()?)?, started.trim_end()))
}

/// When a living process was started, in the system's own terms; `None` if there is no such process, or if it
/// has ended and only waits to be reaped.
fn start_time(pid: Pid) -> Option<String> {
    if cfg!(target_os = "linux") {
        return parse_stat(&std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?);
    }
    let pid = pid.as_raw_pid().to_string();
    let output = std::process::Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (state, started) = text.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| started.trim().to_owned())
}

/// Start time, in ticks since boot, from `/proc/<pid>/stat`; the command's name may hold anything, also ')'.
fn parse_stat(stat: &str) -> Option<String> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    // Fields 3 (state) and 22 (start time), counted from 1.
    let started = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| started.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let line =
            |state: &str| format!("42 (a) b) {state} 1 42 42 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 777 100 5");
        assert_eq!(parse_stat(&line("S")).as_deref(), Some("777"));
        assert_eq!(parse_stat(&line("Z")), None);
        assert_eq!(parse_stat("42"), None);
    }

    #[test]
    fn a_folder_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::claim(dir.path()).unwrap();
        let refused = Folder::claim(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("in use by another session"), "{refused}");
        drop(first);
        Folder::claim(dir.path()).unwrap();
    }

    #[test]
    fn a_left_behind_server_is_stopped_and_a_stranger_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let folder = Folder::claim(dir.path()).unwrap();
        folder.note(pid).unwrap();
        let note = std::fs::read_to_string(folder.note_path()).unwrap();
        // Same process id, another start time: not the one that was noted.
        std::fs::write(folder.note_path(), format!("{}\n1\n", pid.as_raw_pid())).unwrap();
        folder.stop_leftover().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        std::fs::write(folder.note_path(), note).unwrap();
        folder.stop_leftover().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!folder.note_path().exists());
    }
}
