//! One partition: where its groups start, and the fold of its log into them.
//!
//! Pure: given the claimed groups, the tidemark's cut and the log's records in offset order, what the groups hold is
//! determined. Every group takes in exactly the records from its own end on, however many times the log is re-read.

use crate::counters::Plan;
use crate::decode::{Payload, Record};
use crate::dedup::Dedup;
use crate::deltas::{Deltas, Moment, Place};
use crate::flush::{self, Found, Start, Why};
use crate::group::{Claimed, Expired, Group, Merge, Position, Write};
use crate::window;
use shared_model::catalog::{Bounds, Stream};
use shared_model::codec::CodecError;
use shared_model::epoch::{EventClockRule, IngestClock, TrustedTime};
use shared_model::event::{self, Identity, Reject, Value};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Reach, reach};
use shared_model::time::Millis;
use shared_model::view;
use std::sync::Arc;

/// How many records below the first needed one are read again at least.
const LOOK_BACK: i64 = 16;

/// From where a rebuilt group's panes are folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PaneStart {
    /// The cut to start reading at, at or below the tidemark's.
    pub(crate) cut: Cut,
    /// Panes that start at or after this are whole, but for the holes; `None`: all are.
    pub(crate) panes_from: Option<Millis>,
    /// Starts of panes in which events from the future lie that were read before.
    pub(crate) holes: Vec<Millis>,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It lies below what any group needs: remembered for recognising repeats alone, or seen before.
    Below,
    /// A tick.
    Tick,
    /// A first delivery.
    Counted,
    /// A repeat.
    Repeat,
    /// It can't lie where it does in the log that was folded before: this is another log under the same name.
    OtherLog,
    /// Not countable. `report`: no group had passed it before, so its dead letter may not be written yet.
    Rejected {
        /// Why.
        reject: Reject,
        /// Whether it is to be dead-lettered.
        report: bool,
    },
}

/// The fold of one partition.
pub(crate) struct Partition {
    /// Which one.
    pub(crate) tp: TopicPartition,
    plan: Arc<Plan>,
    groups: Vec<Group>,
    /// The cells that wait, of all groups.
    deltas: Deltas,
    clock: IngestClock,
    trusted: TrustedTime,
    /// The next offset to fold.
    next: i64,
    /// Where the tidemark's cut is and what its last record below looks like, until the fold has come by there.
    fingerprint: Option<(i64, u64)>,
    /// The last value seen below the cut.
    last_value: Option<u64>,
    /// Rejects below are dead-lettered already.
    report_from: i64,
    dedup: Dedup,
    /// Identities of records below are remembered already.
    remembered_to: i64,
    /// Panes that start before this are expired.
    oldest_pane: Option<Millis>,
    /// The offset from which on records are the same to all groups, until one of them changes.
    all_from: Option<i64>,
    /// Whether a group still waits for the first event after a hole in the log.
    after_gap: bool,
}

impl Partition {
    /// Starts at a tidemark's cut with its groups as claimed. `log_start` is the first offset that the log still has;
    /// `random` draws incarnations. Says for each rebuilt group why.
    pub(crate) fn start(
        tp: &TopicPartition,
        plan: &Arc<Plan>,
        claimed: Vec<Claimed>,
        cut: &Cut,
        panes: &PaneStart,
        log_start: i64,
        mut random: impl FnMut() -> u64,
    ) -> (Partition, Vec<(usize, Why)>) {
        let mut rebuilt = Vec::new();
        let mut groups = Vec::with_capacity(claimed.len());
        for (number, claimed) in claimed.into_iter().enumerate() {
            let key = view::group_key(tp, number as u32, plan.layout.groups);
            groups.push(match (flush::start(&claimed.found, cut, plan.versions()), claimed.found) {
                (Start::Resume, Found::Group(header)) => {
                    Group::resume(key, *header, &claimed.segments, plan, random())
                }
                (start, _) => {
                    let why = if let Start::Rebuild(why) = start { why } else { Why::Missing };
                    rebuilt.push((number, why));
                    Group::rebuild(key, random(), cut, panes, plan)
                }
            });
        }
        // Of those that end at one offset, one that was built at a tidemark's boundary there has come by it, another hasn't:
        // the record that comes next must take it there.
        let first = groups.iter().map(Group::header).min_by_key(|header| (header.to, header.clock)).cloned();
        let first = first.expect("a layout has at least one group");
        // One that ends at the tidemark's boundary has come by it, whichever record had reached it.
        groups.iter_mut().for_each(|group| group.pass(cut.epoch, cut.offset));
        let boundary = if first.to >= cut.offset { cut.clock_from(plan.layout.epoch) } else { Millis::MIN };
        let report_from = groups.iter().filter(|group| group.is_stored()).map(Group::folds_from).max();
        groups.iter_mut().for_each(|group| group.lose(log_start));
        // Below the start of a log that nothing was read of yet nothing counts.
        let counted_from = if cut.epoch == 0 { cut.offset } else { 0 };
        if log_start > counted_from {
            groups.iter_mut().for_each(|group| group.forget_below(log_start, plan.stream.dedup_horizon));
        }
        let partition = Partition {
            tp: tp.clone(),
            plan: plan.clone(),
            clock: IngestClock(first.clock.max(boundary)),
            trusted: first.trusted,
            next: first.to.max(log_start),
            fingerprint: cut.fingerprint.map(|fingerprint| (cut.offset, fingerprint)),
            last_value: None,
            report_from: report_from.unwrap_or(cut.offset),
            dedup: Dedup::new(plan.stream.dedup_horizon),
            remembered_to: i64::MIN,
            oldest_pane: None,
            all_from: None,
            after_gap: groups.iter().any(Group::is_after_gap),
            groups,
            deltas: Deltas::default(),
        };
        (partition, rebuilt)
    }

    /// The offset to read from: as far below the first needed one as repeats are recognised, and at least so far that
    /// another log under the same name is noticed.
    pub(crate) fn read_from(&self, log_start: i64) -> i64 {
        (self.next - self.plan.stream.dedup_horizon.max(LOOK_BACK)).max(log_start)
    }

    /// Takes in the record at the next offset that the log has.
    pub(crate) fn take(&mut self, record: &Record<'_>) -> Taken {
        if !self.is_the_log(record) {
            return Taken::OtherLog;
        }
        if record.offset < self.next {
            self.remember(record);
            return Taken::Below;
        }
        let before = self.clock;
        let append_time = record.append_time.map_or(self.clock.0, |time| {
            self.clock.observe(time);
            time
        });
        let epoch = self.epoch();
        // Most are of one batch, and have the time of the one before.
        if self.clock != before && epoch > self.plan.layout.epoch.epoch(before.0) {
            self.groups.iter_mut().for_each(|group| group.pass(epoch, record.offset));
        }
        self.next = record.offset + 1;
        self.remembered_to = self.next;
        let rule = self.plan.stream.event_clock();
        let bytes = match record.payload {
            Payload::Tick => {
                self.trusted.observe_tick(rule, append_time);
                return Taken::Tick;
            }
            Payload::Value(bytes) => bytes,
        };
        match event::decode_values(&self.plan.stream, append_time, bytes) {
            Err(reject) => Taken::Rejected { reject, report: record.offset >= self.report_from },
            Ok((time, values)) => {
                self.trusted.observe(rule, time, append_time);
                if self.after_gap {
                    self.event_came(record.offset);
                }
                if self.is_repeat(&values, record.offset) {
                    return Taken::Repeat;
                }
                self.fold(time, &values, record.offset, epoch);
                Taken::Counted
            }
        }
    }

    /// Whether the log is the one that was folded. No record below the fold's position was appended after the clock that
    /// is stored with it, and the last value below the tidemark's cut has the cut's fingerprint.
    fn is_the_log(&mut self, record: &Record<'_>) -> bool {
        if record.offset < self.next && record.append_time.is_some_and(|time| time > self.clock.0) {
            return false;
        }
        let Some((cut, fingerprint)) = self.fingerprint else { return true };
        if record.offset >= cut {
            self.fingerprint = None;
            return self.last_value.is_none_or(|last| last == fingerprint);
        }
        if let Payload::Value(Some(value)) = record.payload {
            self.last_value = Some(xxhash_rust::xxh3::xxh3_64(value));
        }
        true
    }

    /// A record below the fold's start: only its identity matters.
    fn remember(&mut self, record: &Record<'_>) {
        if record.offset < self.remembered_to {
            return;
        }
        self.remembered_to = record.offset + 1;
        if let Payload::Value(bytes) = record.payload {
            let append_time = record.append_time.unwrap_or(self.clock.0);
            if let Ok((_, values)) = event::decode_values(&self.plan.stream, append_time, bytes) {
                self.is_repeat(&values, record.offset);
            }
        }
    }

    /// Takes in the values of the valid record at an offset, higher than any before, and says whether it is a repeat.
    fn is_repeat(&mut self, values: &[Value], offset: i64) -> bool {
        let Partition { plan, tp, dedup, .. } = self;
        dedup.is_repeat(offset, || Identity::of_record(&plan.stream, tp, offset, values))
    }

    /// Tells the groups that begin below an event that it has come.
    fn event_came(&mut self, offset: i64) {
        let (ahead, pane) = (longest_ahead(&self.plan.stream), self.plan.layout.pane);
        let fresh = self.groups.iter_mut().filter(|group| group.folds_from() <= offset);
        fresh.for_each(|group| group.event_came(self.trusted.newest, ahead, pane));
        self.after_gap = self.groups.iter().any(Group::is_after_gap);
    }

    fn fold(&mut self, time: Millis, values: &[Value], offset: i64, epoch: i64) {
        let Partition { plan, groups, deltas, all_from, .. } = self;
        let (oldest_pane, pane_width) = (self.oldest_pane, plan.layout.pane);
        let all_from = *all_from.get_or_insert_with(|| {
            let from = |group: &Group| group.views_from().max(group.folds_from());
            groups.iter().map(from).max().unwrap_or(0)
        });
        let moment = Moment { step: time.div_euclid(plan.step), epoch, oldest_pane };
        deltas.add(plan, values, (offset >= all_from).then_some(moment), |group, metric| {
            let group = &groups[group];
            let pane = time.div_euclid(pane_width) * pane_width;
            let in_window = oldest_pane.is_none_or(|oldest| pane >= oldest);
            let pane = (metric.window.is_some() && in_window).then_some(pane);
            let view = group.views(offset).then(|| (metric.grain.bucket(time), epoch));
            let counts = offset >= group.folds_from() && (pane.is_some() || view.is_some());
            counts.then_some(Place { view, pane })
        });
    }

    /// Panes that start before `oldest` are no longer folded.
    pub(crate) fn expire_panes(&mut self, oldest: Option<Millis>) {
        self.oldest_pane = self.oldest_pane.max(oldest);
    }

    /// Where the fold stands.
    pub(crate) fn position(&self) -> Position {
        let watermark = self.trusted.newest.map(|newest| newest.saturating_sub(self.plan.stream.lateness));
        Position { to: self.next, clock: self.clock.0, trusted: self.trusted.clone(), watermark }
    }

    /// A group that places a tidemark's boundary elsewhere: that starts above it, has it at another offset, or has
    /// folded records beyond it without seeing it.
    pub(crate) fn differs(&self, cut: &Cut) -> Option<&Group> {
        let to = |group: &Group| group.folds_from().max(self.next);
        self.groups.iter().find(|group| reach(&group.cuts(), to(group), cut) == Reach::Differs)
    }

    /// The epoch in which the fold stands.
    pub(crate) fn epoch(&self) -> i64 {
        self.plan.layout.epoch.epoch(self.clock.0)
    }

    /// The groups.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The groups, to be written and confirmed.
    pub(crate) fn groups_mut(&mut self) -> &mut [Group] {
        self.all_from = None;
        &mut self.groups
    }

    /// The write of a group that is not confirmed yet, or a new one that brings it to `position`, where the fold stands.
    ///
    /// # Errors
    /// Where stored segments can't be read, or don't merge with the cells that wait.
    pub(crate) fn write(
        &mut self,
        group: usize,
        position: &Position,
        expired: &Expired,
        merge: Option<Merge>,
    ) -> Result<&Write, CodecError> {
        if self.groups[group].in_flight().is_none() {
            let cells = self.deltas.take(&self.plan, group, |slice| !expired.has(slice))?;
            self.groups[group].next_write(&self.plan, position, expired, cells, merge)?;
        }
        Ok(self.groups[group].in_flight().expect("built above"))
    }

    /// Whether cells of a group wait.
    pub(crate) fn waits(&mut self, group: usize) -> bool {
        self.deltas.has(&self.plan, group)
    }

    /// Changes and bytes that wait, over all groups.
    pub(crate) fn pending(&self) -> (usize, usize) {
        (self.deltas.len(), self.deltas.bytes())
    }

    /// How many identities are remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.dedup.len()
    }

    /// The lowest position that is stored in all groups.
    pub(crate) fn stored_to(&self) -> i64 {
        self.groups.iter().map(Group::folds_from).min().unwrap_or(self.next)
    }
}

/// How far beyond the newest trusted time the event times of a log may lie without being held as leaps: a live
/// stream's trusted time stops at the append time, and its bounds say how far ahead of that an event may be.
pub(crate) fn longest_ahead(stream: &Stream) -> Millis {
    match (stream.event_clock(), stream.bounds) {
        (EventClockRule::Live, Bounds::Relative { future, .. }) => future,
        _ => 0,
    }
}

/// A cut whose newest trusted event time lies before this is far enough back for all panes of the longest window at a
/// tidemark's cut.
pub(crate) fn panes_before(cut: &Cut, stream: &Stream, longest_window: Millis, pane: Millis) -> Millis {
    let newest = cut.trusted.newest.unwrap_or(Millis::MIN / 2);
    newest - longest_window - longest_ahead(stream) - 2 * pane
}

/// The pane start that an older cut gives. Every event time below it is either not beyond its newest trusted time (and
/// what a live stream allows ahead of it), or one of its held leaps: so it is known which panes the records below
/// touch.
pub(crate) fn pane_start(cut: Cut, is_first: bool, stream: &Stream, pane: Millis) -> PaneStart {
    if is_first {
        return PaneStart { cut, panes_from: None, holes: Vec::new() };
    }
    let touched = |newest: Millis| window::pane_after(newest.saturating_add(longest_ahead(stream)), pane);
    let panes_from = cut.trusted.newest.map(touched);
    let mut holes: Vec<Millis> = cut.trusted.leaps.iter().map(|time| time.div_euclid(pane) * pane).collect();
    holes.dedup();
    holes.retain(|&start| panes_from.is_none_or(|from| start >= from));
    PaneStart { cut, panes_from, holes }
}
