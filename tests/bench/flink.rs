//! Flink beside ours: the peer's job over the same records, into the same Redis, in turn with the runs of a speed worker.
//!
//! What it leaves of its last window is held against the naive count, as ours is: its counts; its lists of the top items are
//! texts of its own. Its seconds and CPU-seconds begin with the first record that it reads, as it tells itself: what it
//! takes to start is left out, while ours have it.

use crate::plain::Window;
use crate::process::cpu;
use crate::{LONGEST, Run};
use anyhow::{Context as _, bail, ensure};
use std::path::Path;
use tidemark_tests::stack::Stack;
use tokio::process::Command;

/// How long before the greatest event time its last window ends at the latest, in ms: so long it waits for late records, and
/// its windows end every 10 seconds.
pub(crate) const BEHIND: i64 = 40_000;

/// Its topic, which has the same records. Ours has ticks too, of which the job's parser makes an error.
pub(crate) const TOPIC: &str = "flink";

/// Empties Redis, and has the job take all records of its topic. `folder` has the compiled job (`jobout`), its libraries
/// (`flink-libs`) and the configuration of its log.
///
/// # Errors
/// Where it fails, with the end of what it says, and where a count isn't the window's.
pub(crate) async fn run(folder: &Path, stack: &Stack, window: &Window) -> anyhow::Result<Run> {
    stack.redis.empty().await;
    let [redis] = stack.redis.masters() else { bail!("Flink's job writes to one Redis, not to a Cluster") };
    let kafka = stack.kafka.pid().context("kafka has ended")? as i32;
    let before = [cpu(stack.redis.pids())?, cpu([kafka])?];
    let checkpoints = tempfile::tempdir()?;
    let (bootstrap, port) = (stack.kafka.bootstrap(), redis.port().to_string());
    let job =
        java(folder, checkpoints.path()).args(["--bootstrap", &bootstrap, "--redis-port", &port]).output();
    let job = tokio::time::timeout(LONGEST, job).await.context("Flink isn't done after half an hour")?;
    let job = job.context("the program `java` doesn't start")?;
    let said = String::from_utf8_lossy(&job.stdout);
    let result = said.lines().find_map(|line| line.strip_prefix("RESULT "));
    let result = result.with_context(|| format!("Flink has no result:\n{}", end(&job.stderr)))?;
    let figure = |name: &str| -> anyhow::Result<f64> {
        let words = result.split_whitespace().filter_map(|word| word.split_once('='));
        let text = words.into_iter().find(|(known, _)| *known == name).map(|(_, text)| text);
        text.and_then(|text| text.parse().ok()).with_context(|| format!("{name} is no figure of: {result}"))
    };
    let end = figure("last_window_end")? as i64;
    ensure!(end == window.end, "Flink's last window ends at {end}, not at {}", window.end);
    window.check_counts(stack).await.context("what Flink published")?;
    Ok(Run {
        seconds: figure("wall_s")?,
        cpu: [figure("flink_cpu_s")?, cpu(stack.redis.pids())? - before[0], cpu([kafka])? - before[1]],
        peak: figure("peak_rss_mb")?,
        dataset: stack.redis.dataset().await as f64,
        writes: figure("sets")? + figure("dels")?,
    })
}

/// The fastest variant of the job, with the memory and collector that it was tuned with.
fn java(folder: &Path, checkpoints: &Path) -> Command {
    let mut java = Command::new("java");
    java.kill_on_drop(true).args(["-Xmx4g", "-XX:+UseParallelGC"]);
    java.arg(format!("-Dlog4j2.configurationFile={}", folder.join("log4j2.properties").display()));
    java.arg("-cp").arg(format!("{0}/jobout:{0}/flink-libs/*", folder.display())).arg("peer.Job");
    java.args(["--topic", TOPIC, "--variant", "bucket", "--slide", "10"]);
    java.arg("--ckpt").arg(checkpoints);
    java
}

/// The last lines of an output.
fn end(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
