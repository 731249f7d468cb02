//! Takes ownership of a partition: claims its groups in Redis, reads what the log and the tidemark say, and lets the
//! pure decision place each group.
//!
//! From the claim on every write of an earlier owner is refused, so what is read here stays true until we write.

use crate::counters::Plan;
use crate::flush::{self, Answer, Found, Start};
use crate::group::Claimed;
use crate::local_copy::{LocalCopy, PutBack};
use crate::partition::Partition;
use crate::telemetry::PartitionMetrics;
use crate::worker::Shared;
use anyhow::{Context as _, bail};
use futures::future::join_all;
use shared_model::offsets::TopicPartition;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A partition that was claimed, the offset to read from, and how many partitions its topic had then.
pub(crate) type Begun = (Partition, i64, i32);

/// Claims all groups, puts back those that Redis has lost and the local copy has, decides how each starts, and empties
/// those that are built anew. `None`: lost meanwhile.
pub(crate) async fn claim(
    shared: &Shared,
    plan: &Arc<Plan>,
    tp: &TopicPartition,
    token: &str,
    copy: &mut LocalCopy,
) -> anyhow::Result<Option<Begun>> {
    let keys: Vec<String> = (0..plan.layout.groups)
        .map(|group| shared_model::view::group_key(tp, group, plan.layout.groups))
        .collect();
    let claimed = join_all(keys.iter().map(|key| shared.redis.claim(key, token))).await;
    let mut claimed = claimed.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let partitions = shared.log.partitions(vec![tp.topic.clone()]).await?;
    let partitions = partitions.get(&tp.topic).with_context(|| format!("there is no topic {}", tp.topic))?;
    let (log_start, log_end) = shared.log.watermarks(tp).await?;
    let cut = shared.tidemarks.borrow().current().cut(tp);
    let resumes = |found: &Found| flush::start(found, &cut, plan.versions()) == Start::Resume;
    let some_are_lost = claimed.iter().any(|claimed| !resumes(&claimed.found));
    let mut copies = copy.headers(plan.layout.groups, some_are_lost).await;
    if copies.values().any(|header| header.to > log_end) {
        // Of a log that is no more, or whose end isn't told yet.
        copies.clear();
    }
    copies.retain(|group, header| flush::puts_back(header, &claimed[*group].found, &cut, plan.versions()));
    let mut put_back = Vec::new();
    for group in copies.into_keys() {
        match copy.put_back(&shared.redis, &keys[group], token, group).await {
            PutBack::Done(found) => {
                claimed[group] = found;
                put_back.push(group);
            }
            PutBack::Refused(Answer::NotOwner) => return Ok(None),
            // Then it is built anew; in a full Redis that makes room.
            PutBack::Unreadable | PutBack::Refused(Answer::Full(_)) => {
                claimed[group] = Claimed { found: Found::Nothing, segments: Vec::new() };
                break;
            }
            PutBack::Refused(Answer::NoLibrary) => {
                shared.redis.load_library().await?;
                bail!("the function library is loaded anew");
            }
            PutBack::Refused(other) => {
                bail!("cannot put a group of {tp} back from the local copy: {other:?}")
            }
        }
    }
    if !put_back.is_empty() {
        tracing::info!("{tp}: groups {put_back:?}, which redis has lost, are put back from the local copy");
    }
    let panes =
        shared.source.pane_start(tp, &cut, &plan.stream, plan.longest_window, plan.layout.pane, log_start);
    let panes = panes.await.context("cannot read older tidemarks")?;
    let (partition, rebuilt) = Partition::start(tp, plan, claimed, &cut, &panes, log_start, random);
    let position = partition.position();
    if position.to > log_end {
        bail!(
            "the log of {tp} ends at {log_end}, below offset {} that is to be read next: the topic was deleted and \
             made anew, or lost records; empty the views or restore the topic",
            position.to
        );
    }
    let mut reasons: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (group, why) in &rebuilt {
        reasons.entry(why.to_string()).or_default().push(*group);
    }
    for (why, groups) in reasons {
        tracing::info!("{tp}: groups {groups:?} are built anew from offset {}: {why}", cut.offset);
    }
    for group in partition.groups().iter() {
        for (from, to) in group.header().gaps.iter().filter(|&&(_, to)| to == log_start) {
            tracing::error!(
                "{tp}: the log no longer has offsets {from} to {to}, which {} needs: a gap",
                group.key
            );
        }
    }
    let reset = rebuilt.iter().map(|(group, _)| shared.redis.reset(&keys[*group], token));
    for answer in join_all(reset).await {
        match answer {
            Answer::Stored => {}
            Answer::NotOwner => return Ok(None),
            other => bail!("cannot empty a group of {tp} to build it anew: {other:?}"),
        }
    }
    let metrics = PartitionMetrics::new(tp);
    metrics.rebuilt(rebuilt.len() as u64);
    metrics.put_back(put_back.len() as u64);
    if partition.groups().iter().any(|group| group.header().gaps.iter().any(|&(_, to)| to == log_start)) {
        metrics.gap();
    }
    let read_from = partition.read_from(log_start);
    if log_start > 0 && position.to - read_from < plan.stream.dedup_horizon {
        let (back, horizon) = (position.to - read_from, plan.stream.dedup_horizon);
        tracing::warn!(
            "{tp}: the log reaches back {back} offsets, less than the {horizon} in which repeats are recognised"
        );
    }
    tracing::info!("{tp}: reading from {read_from}, folding from {}; the log ends at {log_end}", position.to);
    Ok(Some((partition, read_from, *partitions)))
}

/// A number that no other claim has.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}
