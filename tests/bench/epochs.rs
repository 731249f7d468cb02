//! Has the tidemark pass what was sent: once the epoch of the newest record is over, a run takes that in.

use anyhow::anyhow;
use shared_model::offsets::TopicPartition;
use std::collections::BTreeMap;
use std::time::Duration;
use tidemark_tests::stack::Stack;

/// The end of each partition's log.
pub(crate) type Ends = BTreeMap<TopicPartition, i64>;

/// Waits until the epoch of the newest record is over, which a run that starts sooner leaves open. Gives the ends that the
/// log had before: ticks come behind them.
pub(crate) async fn over(stack: &Stack) -> anyhow::Result<Ends> {
    let ends = stack.probe.ends()?;
    let (epoch, now) = (stack.catalog.layout.epoch, tidemark_tests::now());
    let over = epoch.boundary(epoch.epoch(now) + 1);
    tokio::time::sleep(Duration::from_millis((over - now) as u64)).await;
    Ok(ends)
}

/// A run of the batch layer, at the priority that it has by default, which moves the tidemark past these ends.
pub(crate) async fn run(stack: &Stack, ends: &Ends) -> anyhow::Result<()> {
    stack.batch(&["run", "--nice", "10"]).await;
    stack.passed(ends).await.map_err(|behind| anyhow!("the tidemark has not passed {behind}"))
}
