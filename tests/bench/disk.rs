//! What is read from the disk: of files that were forgotten before, and by a process in all.
//!
//! The batch layer maps segments into memory (Polars does) and asks for the parts that it needs. Of files that nobody had
//! in memory, what is there afterwards has been read, with what the system brings along around it. `read_bytes` of
//! /proc/PID/io is of the process, whatever the file: pages of the program count too, and what was spilled into the folder
//! for temporary files and read again, as far as they were not in memory any more.

use anyhow::{Context as _, ensure};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Has the system forget what it keeps of files in memory.
pub(crate) fn forget(files: &[PathBuf]) -> anyhow::Result<()> {
    for path in files {
        let failed = || format!("{} can't be forgotten", path.display());
        let file = File::open(path).with_context(failed)?;
        // What isn't written yet stays.
        file.sync_all().with_context(failed)?;
        fadvise(&file, 0, None, Advice::DontNeed).with_context(failed)?;
    }
    Ok(())
}

/// How much of files the system has in memory, in MB.
pub(crate) fn held(files: &[PathBuf]) -> anyhow::Result<f64> {
    if files.is_empty() {
        return Ok(0.0);
    }
    let mut fincore = Command::new("fincore");
    fincore.args(["--bytes", "--noheadings", "--raw", "--output", "RES"]).args(files);
    let said = fincore.output().context("fincore (of util-linux) can't be started")?;
    ensure!(said.status.success(), "fincore: {}", String::from_utf8_lossy(&said.stderr));
    let lines = String::from_utf8(said.stdout)?;
    let bytes = lines.split_whitespace().map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(bytes as f64 / 1e6)
}

/// Waits until a process has ended; gives the MB that it has read, of whatever.
pub(crate) async fn read_by(pid: i32) -> f64 {
    let mut read = 0.0;
    while let Ok(bytes) = so_far(pid) {
        read = bytes as f64 / 1e6;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    read
}

fn so_far(pid: i32) -> anyhow::Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let bytes = io.lines().find_map(|line| line.strip_prefix("read_bytes:")).context("no read_bytes")?;
    Ok(bytes.trim().parse()?)
}
