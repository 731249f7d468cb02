//! One round of writes of a partition, as decisions: which groups write, what they merge, what the answers mean.
//!
//! Pure. A round is over when every write is stored or a refusal ends it; until then the same bytes are sent again, or
//! what a trim has left of them.

use crate::flush::{self, Answer, Next};
use crate::group::{Expired, Group, Merge, Position, Write};
use crate::partition::Partition;
use anyhow::Context as _;
use shared_model::view::Slice;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// How many stored bytes one round may read back to merge, unless it is for one merge alone: in memory they are there several
/// times over, and what is left for later rounds is only merged later.
const MERGE_BYTES: usize = 8 << 20;

/// Stored segments of a group that the round reads back, to write them as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToMerge {
    /// The group.
    pub(crate) group: usize,
    /// The segments' slice.
    pub(crate) slice: Slice,
    /// Their numbers.
    pub(crate) seqs: Vec<u64>,
}

/// A round that is under way.
pub(crate) struct Round {
    position: Position,
    expired: Expired,
    due: Vec<usize>,
    probes: Vec<usize>,
    stored: Vec<(usize, Write)>,
}

impl Round {
    /// Chooses the groups that have something to say, and what is to be read back first. `quiet`: positions of quiet
    /// groups are written too, and the presence of all others is verified.
    pub(crate) fn begin(partition: &mut Partition, expired: Expired, quiet: bool) -> (Round, Vec<ToMerge>) {
        let waits: Vec<bool> = (0..partition.groups().len()).map(|at| partition.waits(at)).collect();
        let (position, open_epoch, groups) = (partition.position(), partition.epoch(), partition.groups());
        // A group that the re-read has not come back to yet is left as it is.
        let is_due = |at: usize| {
            let group: &Group = &groups[at];
            let has_work = waits[at] || group.has_work(open_epoch, &expired);
            group.folds_from() <= position.to && (has_work || quiet && group.is_behind(&position))
        };
        let (due, others): (Vec<usize>, Vec<usize>) = (0..groups.len()).partition(|&at| is_due(at));
        let idle = due.iter().filter(|&&group| groups[group].in_flight().is_none());
        let to_merge = |&group: &usize| Some((group, groups[group].to_merge(open_epoch, &expired)?));
        let mut wanted: Vec<_> = idle.filter_map(to_merge).collect();
        // The first is read back whatever its size. A group that waits gets more segments, until it is the first.
        wanted.sort_by_cached_key(|&(group, _)| Reverse(groups[group].segments().count()));
        let (mut budget, mut merges) = (MERGE_BYTES, Vec::new());
        for (group, (slice, seqs, bytes)) in wanted {
            if bytes <= budget || merges.is_empty() {
                budget = budget.saturating_sub(bytes);
                merges.push(ToMerge { group, slice, seqs });
            }
        }
        let probes = others.into_iter().filter(|&group| quiet && groups[group].is_stored()).collect();
        (Round { position, expired, due, probes, stored: Vec::new() }, merges)
    }

    /// Builds the writes, with the segments that were read back.
    ///
    /// # Errors
    /// Where stored segments can't be read, or don't merge with the cells that wait.
    pub(crate) fn build(
        &self,
        partition: &mut Partition,
        mut merged: BTreeMap<usize, Merge>,
    ) -> anyhow::Result<()> {
        for &group in &self.due {
            let write = partition.write(group, &self.position, &self.expired, merged.remove(&group));
            write.context("a stored segment can't be read or merged")?;
        }
        Ok(())
    }

    /// The groups whose writes are not stored yet.
    pub(crate) fn writes(&self) -> &[usize] {
        &self.due
    }

    /// The groups that are still to be looked at.
    pub(crate) fn probes(&self) -> &[usize] {
        &self.probes
    }

    /// Whether anything is still to be sent.
    pub(crate) fn is_open(&self) -> bool {
        !self.due.is_empty() || !self.probes.is_empty()
    }

    /// What is stored since the last time, each write with its group, and no longer kept here.
    pub(crate) fn take_stored(&mut self) -> Vec<(usize, Write)> {
        std::mem::take(&mut self.stored)
    }

    /// Takes in what was said to the writes and probes, in their order, and decides what to do next.
    pub(crate) fn answered(&mut self, groups: &mut [Group], writes: &[Answer], probes: &[Answer]) -> Next {
        for (&group, _) in self.due.iter().zip(writes).filter(|(_, answer)| **answer == Answer::Stored) {
            self.stored.extend(groups[group].confirm().map(|write| (group, write)));
        }
        let mut open = writes.iter().map(|answer| *answer != Answer::Stored);
        self.due.retain(|_| open.next().unwrap_or(false));
        self.probes.clear();
        // A probe writes nothing: that it wasn't answered is found out by the next.
        let refused = |answer: &&Answer| matches!(answer, Answer::NotOwner | Answer::NotFence);
        flush::next(writes.iter().chain(probes.iter().filter(refused)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Plan;
    use crate::flush::Found;
    use crate::group::Claimed;
    use crate::partition::PaneStart;
    use shared_model::catalog::Catalog;
    use shared_model::offsets::TopicPartition;
    use shared_model::tidemark::Cut;
    use std::sync::Arc;

    const CATALOG: &str = r#"
        [layout]
        groups = 3
        [streams.x]
        topic = "x"
        event_time = { field = "at", unit = "ms" }
        bounds = { from = "1970-01-01", to = "1970-02-01" }
        fields = { at = "int", key = "string" }
        [metrics.a]
        stream = "x"
        by = ["key"]
        aggregate = "count"
        grain = "5m"
    "#;

    /// Which groups merge, where they have segments of such lengths in the epoch that is open.
    fn merging(segments: [&[usize]; 3]) -> Vec<usize> {
        let catalog = Catalog::from_toml(CATALOG).expect("valid");
        let plan = Arc::new(Plan::new(&catalog, &catalog.streams[0]));
        let (tp, cut) = (TopicPartition::new("x", 0), Cut::start(0));
        let panes = PaneStart { cut: cut.clone(), panes_from: None, holes: Vec::new() };
        let header = Group::rebuild(String::new(), 1, &cut, &panes, &plan).header().clone();
        let claimed = segments.iter().map(|lengths| Claimed {
            found: Found::Group(header.clone().into()),
            segments: (1..).zip(*lengths).map(|(seq, &length)| (Slice::Epoch(0), seq, length)).collect(),
        });
        let (mut partition, rebuilt) = Partition::start(&tp, &plan, claimed.collect(), &cut, &panes, 0, || 1);
        assert!(rebuilt.is_empty());
        let (_, merges) = Round::begin(&mut partition, Expired::default(), false);
        merges.into_iter().map(|merge| merge.group).collect()
    }

    #[test]
    fn a_large_merge_waits_for_small_ones_only_until_its_group_has_most_segments() {
        let (few, many, large) = ([100usize; 8], [100usize; 17], [MERGE_BYTES / 15; 16]);
        assert_eq!(merging([&few, &few, &few[1..]]), [0, 1]);
        assert_eq!(merging([&many, &large, &few]), [0, 2]);
        assert_eq!(merging([&few, &large, &few]), [1]);
    }
}
