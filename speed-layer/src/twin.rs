//! The worker's rounds without Kafka and Redis: the same claim, fold, flush and merge over a map in memory, so that
//! tests can drive one partition through any interleaving of records, writes, crashes and losses.
//!
//! Nothing is decided here: every decision is `flush`'s, `group`'s or `partition`'s, as in the worker.

use crate::counters::Plan;
use crate::decode::{Payload, Record};
use crate::flush::Found;
use crate::group::{Claimed, Expired, Group, Merge, Write};
use crate::partition::{self, Partition, Taken};
use shared_model::catalog::{Catalog, Stream};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use shared_model::time::Millis;
use shared_model::view::{Header, Slice};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A group as Redis would hold it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its header.
    pub header: Header,
    /// Its segments, by slice and number.
    pub segments: BTreeMap<(Slice, u64), Vec<u8>>,
}

/// What became of a record: the name of its outcome, where a test has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Folded into the groups that it belongs to, unless they had it already.
    Counted,
    /// A repeat, a tick, or below all groups.
    Passed,
    /// Refused as invalid.
    Rejected,
}

/// One partition with its worker and its stored groups.
pub struct Twin {
    tp: TopicPartition,
    plan: Arc<Plan>,
    owner: Option<Partition>,
    stored: BTreeMap<usize, Stored>,
    incarnations: u64,
}

impl Twin {
    /// A partition of a stream, with nothing stored and no worker.
    pub fn new(catalog: &Catalog, stream: &Arc<Stream>, tp: &TopicPartition) -> Twin {
        let plan = Arc::new(Plan::new(catalog, stream));
        Twin { tp: tp.clone(), plan, owner: None, stored: BTreeMap::new(), incarnations: 0 }
    }

    /// A worker claims the partition at a tidemark's cut, whatever went before, and reads from the returned offset
    /// on. A group that must be built anew folds panes from `panes` on, an older cut (of the first tidemark, where
    /// `is_first`).
    pub fn claim(&mut self, cut: &Cut, panes: &Cut, is_first: bool, log_start: i64) -> i64 {
        let claimed = (0..self.plan.layout.groups as usize).map(|group| match self.stored.get(&group) {
            None => Claimed { found: Found::Nothing, segments: Vec::new() },
            Some(stored) => {
                let segments = stored.segments.iter().map(|(&(slice, seq), bytes)| (slice, seq, bytes.len()));
                Claimed { found: Found::Group(stored.header.clone()), segments: segments.collect() }
            }
        });
        let panes = partition::pane_start(panes.clone(), is_first, &self.plan.stream, self.plan.layout.pane);
        let incarnations = &mut self.incarnations;
        let random = || {
            *incarnations += 1;
            *incarnations
        };
        let (owner, rebuilt) =
            Partition::start(&self.tp, &self.plan, claimed.collect(), cut, &panes, log_start, random);
        for (group, _) in rebuilt {
            self.stored.remove(&group);
        }
        let from = owner.read_from(log_start);
        self.owner = Some(owner);
        from
    }

    /// The worker takes in the next record; `None` is a tick.
    pub fn take(&mut self, offset: i64, append_time: Millis, value: Option<&[u8]>) -> Outcome {
        let payload = value.map_or(Payload::Tick, |bytes| Payload::Value(Some(bytes)));
        let owner = self.owner.as_mut().expect("claimed");
        match owner.take(&Record { offset, append_time: Some(append_time), payload }) {
            Taken::Counted => Outcome::Counted,
            Taken::Rejected { .. } | Taken::OtherLog => Outcome::Rejected,
            Taken::Below | Taken::Tick | Taken::Repeat => Outcome::Passed,
        }
    }

    /// One round of writes; those of the groups that `reaches` refuses don't reach the store and stay in flight.
    /// Epochs below `floor` are dropped.
    ///
    /// # Errors
    /// Where the store refuses a write (the group was lost meanwhile): the worker has to claim anew.
    pub fn flush(
        &mut self,
        floor: Option<&Cut>,
        reaches: impl Fn(usize) -> bool,
    ) -> Result<(), &'static str> {
        let owner = self.owner.as_mut().expect("claimed");
        let (position, epoch) = (owner.position(), owner.epoch());
        let expired = Expired { panes_below: None, epochs_below: floor.map(|cut| (cut.epoch, cut.offset)) };
        for (number, group) in owner.groups_mut().iter_mut().enumerate() {
            let due = group.has_work(epoch, &expired) || group.is_behind(&position);
            if group.folds_from() > position.to || !due {
                probe(&self.stored, number, group)?;
                continue;
            }
            let merge = merge(&self.plan, group, epoch, &expired, self.stored.get(&number))?;
            let write = group.write(&position, &expired, merge).map_err(|_| "states don't merge")?;
            if reaches(number) {
                apply(&mut self.stored, number, write)?;
                group.confirm();
            }
        }
        Ok(())
    }

    /// Whether the worker's cuts differ from a tidemark's, upon which it claims anew.
    pub fn differs(&self, cut: &Cut) -> bool {
        self.owner.iter().any(|owner| owner.differs(cut).is_some())
    }

    /// The store loses one group, or goes back to an earlier state of it.
    pub fn lose(&mut self, group: usize, earlier: Option<Stored>) {
        match earlier {
            Some(earlier) => self.stored.insert(group, earlier),
            None => self.stored.remove(&group),
        };
    }

    /// A group as stored.
    pub fn group(&self, group: usize) -> Option<&Stored> {
        self.stored.get(&group)
    }
}

/// What the worker would read back and merge; nothing where the store doesn't have it all.
fn merge(
    plan: &Plan,
    group: &Group,
    epoch: i64,
    expired: &Expired,
    stored: Option<&Stored>,
) -> Result<Option<Merge>, &'static str> {
    let (Some((slice, seqs, _)), Some(stored), None) =
        (group.to_merge(epoch, expired), stored, group.in_flight())
    else {
        return Ok(None);
    };
    let read: Option<Vec<Vec<u8>>> =
        seqs.iter().map(|&seq| stored.segments.get(&(slice, seq)).cloned()).collect();
    let merged = read.map(|read| Merge::of(plan, slice, seqs, &read)).transpose();
    merged.map_err(|_| "a stored segment can't be read")
}

/// What a quiet round finds out: whether a group that has nothing to write is still as it was stored.
fn probe(stored: &BTreeMap<usize, Stored>, number: usize, group: &Group) -> Result<(), &'static str> {
    let fence = stored.get(&number).map(|group| group.header.fence());
    if group.is_stored() && fence != Some(group.header().fence()) {
        return Err("FENCE");
    }
    Ok(())
}

/// What the flush function does: checks the fence, recognises a retry, then writes.
fn apply(stored: &mut BTreeMap<usize, Stored>, number: usize, write: &Write) -> Result<(), &'static str> {
    let fence = stored.get(&number).map(|group| group.header.fence()).unwrap_or_default();
    if fence == write.header.fence() {
        return Ok(());
    }
    if fence != write.expected {
        return Err("FENCE");
    }
    let empty = || Stored { header: write.header.clone(), segments: BTreeMap::new() };
    let group = stored.entry(number).or_insert_with(empty);
    group.header = write.header.clone();
    for (slice, bytes) in &write.segments {
        group.segments.insert((*slice, write.header.seq), bytes.clone());
    }
    for delete in &write.deletes {
        group.segments.remove(delete);
    }
    Ok(())
}
