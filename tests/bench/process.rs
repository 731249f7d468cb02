//! What a process and the machine tell of themselves, read from /proc.

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

/// The machine, in a line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} x{}; {memory}; {}",
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/version").trim()
    )
}
