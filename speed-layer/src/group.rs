//! One group in memory: its header as stored, its write on the way, and the index of what is stored.
//!
//! A write follows exactly the stored position (its fence), and is kept until Redis has confirmed it: a retry sends
//! the same bytes, unless a trim was stored in between, which it then follows. Every write has a fence of its own, so that
//! a late copy of one can never be taken for another.

use crate::compaction::{self, Segments};
use crate::counters::Plan;
use crate::flush::Found;
use crate::partition::PaneStart;
use crate::window;
use shared_model::codec::CodecError;
use shared_model::epoch::TrustedTime;
use shared_model::tidemark::Cut;
use shared_model::time::Millis;
use shared_model::view::{self, Forgotten, HEADER_VERSION, Header, Slice};
use std::collections::BTreeMap;

/// What a claim found: the header, and the stored segments with their lengths.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    /// The header, or why there is none.
    pub(crate) found: Found,
    /// Stored segments.
    pub(crate) segments: Vec<(Slice, u64, usize)>,
}

impl Claimed {
    /// Reads what a group's hash holds: header, fence, and the other fields with their lengths.
    pub(crate) fn of(header: Option<&[u8]>, fence: Option<&str>, fields: &[(String, usize)]) -> Claimed {
        let segment = |(field, length): &(String, usize)| {
            view::parse_segment_field(field).map(|(slice, seq)| (slice, seq, *length))
        };
        let segments: Vec<_> = fields.iter().filter_map(segment).collect();
        let found = match (header, fence) {
            (None, None) if segments.is_empty() => Found::Nothing,
            (Some(header), fence) => match Header::from_json(header) {
                Ok(header) if fence == Some(&*header.fence()) => Found::Group(header.into()),
                Ok(_) => Found::Unreadable("its fence is not its header's".into()),
                Err(error) => Found::Unreadable(error.to_string()),
            },
            (None, _) => Found::Unreadable("it has no header".into()),
        };
        Claimed { found, segments }
    }
}

/// Where a partition's fold stands: what a write says of the log below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// The next offset.
    pub(crate) to: i64,
    /// The ingest clock below it.
    pub(crate) clock: Millis,
    /// The trusted event time below it.
    pub(crate) trusted: TrustedTime,
    /// The watermark below it.
    pub(crate) watermark: Option<Millis>,
}

/// What need no longer be kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    /// Panes that start before this.
    pub(crate) panes_below: Option<Millis>,
    /// Epochs below this one, and what is said of offsets below its cut.
    pub(crate) epochs_below: Option<(i64, i64)>,
}

/// One fenced write: the same bytes at every try, until a trim comes between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// The fence that must be stored; empty: none.
    pub(crate) expected: String,
    /// The header after it.
    pub(crate) header: Header,
    /// Segments to store.
    pub(crate) segments: Vec<(Slice, Vec<u8>)>,
    /// Segments to delete.
    pub(crate) deletes: Vec<(Slice, u64)>,
}

/// Segments that were read back, to be merged into one.
pub(crate) struct Merge {
    /// Their slice.
    pub(crate) slice: Slice,
    /// Their numbers.
    pub(crate) seqs: Vec<u64>,
    /// Their bytes.
    pub(crate) stored: Vec<Vec<u8>>,
}

/// One group of one partition.
pub(crate) struct Group {
    /// Its Redis key.
    pub(crate) key: String,
    /// The header as it is stored, or as it would be before the first write.
    header: Header,
    stored: bool,
    segments: BTreeMap<Slice, Segments>,
    /// Cuts that the fold has passed since the last write.
    passed: Vec<(i64, i64)>,
    /// Whether the log had a hole here and no event has come since: what panes lack is not known yet.
    after_gap: bool,
    /// The last number that a write was given, stored or not.
    number: u64,
    in_flight: Option<Write>,
}

impl Group {
    /// Goes on with a group as stored. Metric versions that the plan doesn't know are no longer vouched for.
    ///
    /// The number of the first write leaps by up to 2^40, so that it is none that was given before, even if Redis was
    /// rolled back to before it (but by a chance of one in millions for each rollback): a number stands for the same bytes
    /// for ever, and whoever has read them may keep them.
    pub(crate) fn resume(
        key: String,
        mut header: Header,
        segments: &[(Slice, u64, usize)],
        plan: &Plan,
        random: u64,
    ) -> Group {
        let known: Vec<_> = plan.versions().collect();
        header.metrics.retain(|version, _| known.contains(version));
        let mut group = Group::empty(key, header, true);
        for &(slice, seq, length) in segments {
            group.segments.entry(slice).or_default().insert(seq, length);
        }
        group.number += random >> 24;
        group
    }

    /// Starts a group anew at a tidemark's cut; panes are folded from a cut at or below it.
    pub(crate) fn rebuild(key: String, incarnation: u64, cut: &Cut, panes: &PaneStart, plan: &Plan) -> Group {
        let header = Header {
            v: HEADER_VERSION,
            incarnation,
            to: panes.cut.offset,
            clock: panes.cut.clock_from(plan.layout.epoch),
            trusted: panes.cut.trusted.clone(),
            watermark: None,
            panes_from: panes.panes_from,
            pane_holes: panes.holes.clone(),
            cuts: vec![(cut.epoch, cut.offset)],
            metrics: plan.versions().map(|version| (version, cut.offset)).collect(),
            // Of its own, so that no number is one of another incarnation's either (but by a chance of one in millions).
            seq: incarnation >> 24,
            gaps: Vec::new(),
            forgotten: Vec::new(),
        };
        Group::empty(key, header, false)
    }

    fn empty(key: String, header: Header, stored: bool) -> Group {
        let (segments, number) = (BTreeMap::new(), header.seq);
        Group { key, header, stored, segments, passed: Vec::new(), after_gap: false, number, in_flight: None }
    }

    /// The header as stored.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The segments that are stored, with their lengths.
    pub(crate) fn segments(&self) -> impl Iterator<Item = ((Slice, u64), usize)> {
        let of = |(&slice, segments): (&Slice, &Segments)| {
            segments.iter().map(move |(&seq, &length)| ((slice, seq), length)).collect::<Vec<_>>()
        };
        self.segments.iter().flat_map(of)
    }

    /// Whether Redis has the group.
    pub(crate) fn is_stored(&self) -> bool {
        self.stored
    }

    /// The first offset that the group doesn't hold yet.
    pub(crate) fn folds_from(&self) -> i64 {
        self.header.to
    }

    /// Whether a record at `offset`, which the group doesn't hold yet, belongs to its view cells too, not to panes
    /// alone.
    pub(crate) fn views(&self, offset: i64) -> bool {
        self.views_from() <= offset
    }

    /// The first offset of which this is so.
    pub(crate) fn views_from(&self) -> i64 {
        self.header.cuts.first().map_or(i64::MAX, |&(_, from)| from)
    }

    /// Takes in that `epoch` begins at `offset`.
    pub(crate) fn pass(&mut self, epoch: i64, offset: i64) {
        let newest = self.passed.last().or(self.header.cuts.last()).map_or(i64::MIN, |&(epoch, _)| epoch);
        if offset >= self.folds_from() && self.views(offset) && epoch > newest {
            self.passed.push((epoch, offset));
        }
    }

    /// The cuts, those that wait or are in flight included.
    pub(crate) fn cuts(&self) -> Vec<(i64, i64)> {
        let written = self.in_flight.as_ref().map_or(&self.header, |write| &write.header);
        written.cuts.iter().chain(&self.passed).copied().collect()
    }

    /// Takes in that the log no longer has the offsets up to `to` that the group still needs.
    pub(crate) fn lose(&mut self, to: i64) {
        if self.header.to < to {
            self.header.gaps.push((self.header.to, to));
            self.after_gap = true;
        }
    }

    /// Whether no event has come since a hole in the log.
    pub(crate) fn is_after_gap(&self) -> bool {
        self.after_gap
    }

    /// Takes in that the fold goes on knowing the identities from `known` on alone, of a horizon of so many offsets.
    pub(crate) fn forget_below(&mut self, known: i64, horizon: i64) {
        let (from, until) = (self.header.to.max(known), known + horizon);
        // What was said of the same start of the log says more.
        let said = self.header.forgotten.last().is_some_and(|last| last.known == known);
        if from < until && !said {
            self.header.forgotten.push(Forgotten { known, from, until });
        }
    }

    /// Takes in that an event has come: after a gap, panes are taken to be whole again from it on.
    pub(crate) fn event_came(&mut self, trusted: Option<Millis>, ahead: Millis, pane: Millis) {
        if self.after_gap {
            self.after_gap = false;
            self.header.panes_from =
                trusted.map(|newest| window::pane_after(newest.saturating_add(ahead), pane));
        }
    }

    /// What to read back and merge at the next write: slice, segments, their bytes.
    pub(crate) fn to_merge(&self, open_epoch: i64, expired: &Expired) -> Option<(Slice, Vec<u64>, usize)> {
        let mut kept = self.segments.iter().filter(|(slice, _)| !expired.has(**slice));
        kept.find_map(|(&slice, segments)| {
            let seqs = compaction::choose(slice, segments, open_epoch)?;
            let bytes = seqs.iter().map(|seq| segments[seq]).sum();
            Some((slice, seqs, bytes))
        })
    }

    /// Whether there is something to write, beside a new position and the cells that wait.
    pub(crate) fn has_work(&self, open_epoch: i64, expired: &Expired) -> bool {
        self.in_flight.is_some()
            || !self.passed.is_empty()
            || !self.stored
            || self.segments.keys().any(|&slice| expired.has(slice))
            || self.to_merge(open_epoch, expired).is_some()
    }

    /// Whether the group ends elsewhere than the fold.
    pub(crate) fn is_behind(&self, position: &Position) -> bool {
        self.header.to < position.to || self.header.clock < position.clock
    }

    /// The write that is not confirmed yet.
    pub(crate) fn in_flight(&self) -> Option<&Write> {
        self.in_flight.as_ref()
    }

    /// A number that no write had, so that no other has its fence.
    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Builds the next write, with all cells of the records from the group's end up to `position`. The last one must
    /// be confirmed.
    pub(crate) fn next_write(
        &mut self,
        plan: &Plan,
        position: &Position,
        expired: &Expired,
        mut segments: Vec<(Slice, Vec<u8>)>,
        merge: Option<Merge>,
    ) -> Result<(), CodecError> {
        let expected = if self.stored { self.header.fence() } else { String::new() };
        let mut header = self.header.clone();
        header.seq = self.next_number();
        header.to = position.to.max(header.to);
        header.clock = position.clock;
        header.trusted = position.trusted.clone();
        header.watermark = position.watermark;
        header.cuts.append(&mut self.passed);
        expired.trim(&mut header);
        if self.after_gap {
            header.panes_from = Some(Millis::MAX);
        }
        let mut deletes = self.expired_segments(expired);
        if let Some(merge) = merge {
            deletes.extend(merge.seqs.iter().map(|&seq| (merge.slice, seq)));
            let mut parts: Vec<&[u8]> = merge.stored.iter().map(Vec::as_slice).collect();
            let fresh = segments.extract_if(.., |(slice, _)| *slice == merge.slice).next();
            parts.extend(fresh.iter().map(|(_, cells)| cells.as_slice()));
            let cells = view::merge(&parts, |version| plan.aggregate(version))?;
            // Of metrics that are no more nothing is left.
            if !view::is_empty(&cells) {
                segments.push((merge.slice, cells));
            }
        }
        self.in_flight = Some(Write { expected, header, segments, deletes });
        Ok(())
    }

    /// The stored segments that need no longer be kept.
    fn expired_segments(&self, expired: &Expired) -> Vec<(Slice, u64)> {
        let slices = self.segments.iter().filter(|(slice, _)| expired.has(**slice));
        slices.flat_map(|(&slice, segments)| segments.keys().map(move |&seq| (slice, seq))).collect()
    }

    /// A write that only deletes what has expired; none where nothing has.
    pub(crate) fn trimming(&mut self, expired: &Expired) -> Option<Write> {
        let deletes = self.expired_segments(expired);
        if !self.stored || deletes.is_empty() {
            return None;
        }
        let mut header = self.header.clone();
        header.seq = self.next_number();
        expired.trim(&mut header);
        Some(Write { expected: self.header.fence(), header, segments: Vec::new(), deletes })
    }

    /// Takes in that such a write is stored. The write in flight isn't, nor can it be any more: it follows anew.
    pub(crate) fn trimmed(&mut self, write: Write, expired: &Expired) {
        self.forget(&write.deletes);
        let number = self.next_number();
        if let Some(next) = &mut self.in_flight {
            next.expected = write.header.fence();
            next.header.seq = number;
            next.segments.retain(|(slice, _)| !expired.has(*slice));
            expired.trim(&mut next.header);
        }
        self.header = write.header;
        // The cut from which it now holds the view may be one that the fold has passed already.
        let written = self.in_flight.as_ref().map_or(&self.header, |next| &next.header);
        let newest = written.cuts.last().map_or(i64::MIN, |&(epoch, _)| epoch);
        self.passed.retain(|&(epoch, _)| epoch > newest);
    }

    /// Takes in that segments are deleted.
    fn forget(&mut self, deleted: &[(Slice, u64)]) {
        for (slice, seq) in deleted {
            if let Some(segments) = self.segments.get_mut(slice) {
                segments.remove(seq);
            }
        }
        self.segments.retain(|_, segments| !segments.is_empty());
    }

    /// Takes in that the write in flight is stored, and gives it.
    pub(crate) fn confirm(&mut self) -> Option<Write> {
        let write = self.in_flight.take()?;
        self.forget(&write.deletes);
        for (slice, bytes) in &write.segments {
            self.segments.entry(*slice).or_default().insert(write.header.seq, bytes.len());
        }
        self.header.clone_from(&write.header);
        self.stored = true;
        Some(write)
    }
}

impl Expired {
    /// Whether a slice need no longer be kept.
    pub(crate) fn has(&self, slice: Slice) -> bool {
        match slice {
            Slice::Pane(start) => self.panes_below.is_some_and(|oldest| start < oldest),
            Slice::Epoch(epoch) => self.epochs_below.is_some_and(|(oldest, _)| epoch < oldest),
        }
    }

    /// Lets go of the cuts, and of what is said of offsets, below the oldest epoch, but for the cut at which that epoch begins.
    /// A group that has not come to it holds nothing of the view any more, as one that is built anew from there.
    fn trim(&self, header: &mut Header) {
        header.pane_holes.retain(|&start| !self.has(Slice::Pane(start)));
        let Some((oldest, offset)) = self.epochs_below else { return };
        match header.cuts.iter().position(|&(epoch, _)| epoch >= oldest) {
            Some(first) => drop(header.cuts.drain(..first)),
            None if header.to <= offset => header.cuts = vec![(oldest, offset)],
            None => {}
        }
        header.gaps.retain(|&(_, to)| to > offset);
        header.forgotten.retain(|forgotten| forgotten.until > offset);
    }
}
