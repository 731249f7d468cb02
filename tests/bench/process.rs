//! What a process tells of itself, read from /proc.

use anyhow::Context as _;

/// The CPU-seconds that processes have taken together: fields 14 and 15 of /proc/PID/stat, in ticks of 10 ms.
pub(crate) fn cpu(pids: impl IntoIterator<Item = i32>) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(')').context("no name")?.1.split_whitespace();
        ticks += fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    }
    Ok(ticks as f64 / 100.0)
}

/// The most memory that a process had so far, in MB.
pub(crate) fn peak_memory(pid: i32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
