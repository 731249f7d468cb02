//! The sliding windows of one group's published metrics: segments come in, windows move on, and what changes under plain
//! names goes out.
//!
//! Pure. All partitions have a key's cells in groups of one number, so each number's windows are apart from the others',
//! and small enough to stay near the processor while a pass is at them. A segment's cells count from when its pane enters
//! a window until it leaves it; sums take them off again, other states are merged anew where they were touched.
//!
//! Memory: for each key, of as many as were ever live at once, about 70 bytes and what is longer than 22 bytes of it; for
//! each cell in a window 8 bytes (a state that isn't a count: itself); for each set of a top k 400 bytes, and for each item
//! near its top, of which there are 8 k at most, up to 80 bytes and what is longer than 24 bytes of it, twice; and the
//! packed bytes of panes that are still to enter.

use super::changes::Changes;
use super::merged::Merged;
use super::ranked::Ranked;
use super::totals::Counts;
use crate::window;
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::CodecError;
use shared_model::metric::Metric;
use shared_model::time::Millis;
use shared_model::view::{Sections, each_cell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many cells are looked for at once.
const AT_ONCE: usize = 64;

/// A segment of one of the partitions' groups of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentId {
    /// The start of its pane.
    pub(crate) pane: Millis,
    /// The partition, by a number of its own.
    pub(crate) source: u32,
    /// The segment's number.
    pub(crate) seq: u64,
}

/// What a segment has added to a window.
#[derive(Default)]
struct Part {
    cells: Vec<(u32, u32)>,
    /// Those whose counts are larger.
    large: Vec<(u32, u64)>,
}

impl Part {
    /// Makes room for so many cells, which have so many bytes: each has three at least.
    fn make_room(&mut self, count: u64, bytes: usize) {
        self.cells.reserve_exact(usize::try_from(count).unwrap_or(usize::MAX).min(bytes / 3));
    }

    #[inline]
    fn push(&mut self, slot: u32, count: u64) {
        match u32::try_from(count) {
            Ok(count) => self.cells.push((slot, count)),
            Err(_) => self.large.push((slot, count)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        let small = self.cells.iter().map(|&(slot, count)| (slot, u64::from(count)));
        small.chain(self.large.iter().copied())
    }
}

/// Hands on a section's counts, some dozens at once, with their keys; those that are 0 are left out.
fn each_counts<'a>(
    aggregate: &Aggregate,
    count: u64,
    cells: &'a [u8],
    mut each: impl FnMut(&[(&'a [u8], u64)]) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    let mut some = Vec::with_capacity(AT_ONCE);
    each_cell(aggregate, count, cells, |_, key, _, state| {
        if let State::Count(count @ 1..) = state {
            some.push((key, count));
        }
        if some.len() == AT_ONCE {
            each(&some)?;
            some.clear();
        }
        Ok::<(), CodecError>(())
    })?;
    each(&some)
}

enum Kind {
    Counts(Counts),
    Ranked(Ranked),
    Merged(Merged),
}

/// The window of one metric.
struct Window {
    metric: Arc<Metric>,
    width: Millis,
    /// What is in it, by pane.
    parts: BTreeMap<SegmentId, Part>,
    kind: Kind,
}

impl Window {
    fn new(metric: &Arc<Metric>) -> Option<Window> {
        let kind = match metric.aggregate {
            Aggregate::Count => Kind::Counts(Counts::default()),
            Aggregate::TopK { k } => Kind::Ranked(Ranked::new(metric, k)),
            _ => Kind::Merged(Merged::default()),
        };
        let width = metric.window?.width;
        Some(Window { metric: metric.clone(), width, parts: BTreeMap::new(), kind })
    }

    /// Takes in a segment's cells.
    fn enter(&mut self, id: SegmentId, count: u64, cells: &[u8]) -> Result<(), CodecError> {
        let part = self.parts.entry(id).or_default();
        part.make_room(count, cells.len());
        let aggregate = &self.metric.aggregate;
        match &mut self.kind {
            Kind::Counts(counts) => each_counts(aggregate, count, cells, |cells| {
                counts.totals.add(cells, |slot, _, count, _| {
                    part.push(slot, count);
                    Ok(())
                })
            }),
            Kind::Ranked(ranked) => each_counts(aggregate, count, cells, |cells| {
                ranked.add(cells, |slot, count| part.push(slot, count))
            }),
            Kind::Merged(merged) => each_cell(aggregate, count, cells, |_, key, _, state| {
                part.push(merged.add(key, id, state)?, 0);
                Ok::<(), CodecError>(())
            }),
        }
    }

    /// Takes out what a segment has added.
    fn leave(&mut self, id: SegmentId, part: &Part) {
        match &mut self.kind {
            Kind::Counts(counts) => part.iter().for_each(|(slot, count)| counts.totals.take_off(slot, count)),
            Kind::Ranked(ranked) => part.iter().for_each(|(slot, count)| ranked.totals.take_off(slot, count)),
            Kind::Merged(merged) => part.iter().for_each(|(slot, _)| merged.take_out(slot, id)),
        }
    }

    fn is_touched(&self) -> bool {
        match &self.kind {
            Kind::Counts(counts) => counts.totals.is_touched(),
            Kind::Ranked(ranked) => ranked.totals.is_touched(),
            Kind::Merged(merged) => merged.is_touched(),
        }
    }

    fn changes(&mut self, out: &mut Changes) -> Result<(), CodecError> {
        match &mut self.kind {
            Kind::Counts(counts) => counts.changes(&self.metric, out),
            Kind::Ranked(ranked) => ranked.changes(&self.metric, out),
            Kind::Merged(merged) => merged.changes(&self.metric, out),
        }
    }
}

/// The windows of one group number.
pub(crate) struct Sliding {
    pane: Millis,
    /// Where all windows end; before the first pass, before all time.
    end: Millis,
    /// Segments of panes that haven't entered yet.
    ahead: BTreeMap<SegmentId, Vec<u8>>,
    windows: Vec<Window>,
}

impl Sliding {
    /// The windows of some metrics, with nothing in them; those that have none are left out.
    pub(crate) fn new(metrics: &[Arc<Metric>], pane: Millis) -> Sliding {
        let windows = metrics.iter().filter_map(Window::new).collect();
        Sliding { pane, end: Millis::MIN, ahead: BTreeMap::new(), windows }
    }

    /// Takes in a segment that wasn't there.
    ///
    /// # Errors
    /// Where its bytes are none. What is held is then of no use any more, as after every error.
    pub(crate) fn add(&mut self, id: SegmentId, segment: Vec<u8>) -> Result<(), CodecError> {
        if id.pane < self.end {
            return self.enter(id, &segment);
        }
        self.ahead.insert(id, segment);
        Ok(())
    }

    /// Takes out a segment that is there no more.
    pub(crate) fn remove(&mut self, id: SegmentId) {
        self.ahead.remove(&id);
        for window in &mut self.windows {
            if let Some(part) = window.parts.remove(&id) {
                window.leave(id, &part);
            }
        }
    }

    fn enter(&mut self, id: SegmentId, segment: &[u8]) -> Result<(), CodecError> {
        let (mut sections, end) = (Sections::of(segment)?, self.end);
        while let Some((version, count, cells)) = sections.take()? {
            let takes_it =
                |window: &&mut Window| window.metric.version == version && id.pane >= end - window.width;
            self.windows.iter_mut().filter(takes_it).try_for_each(|window| window.enter(id, count, cells))?;
        }
        Ok(())
    }

    /// Moves the windows on to an end that isn't before the last one, and writes what differs from what was written so far.
    ///
    /// # Errors
    /// Where segments aren't what they should be.
    pub(crate) fn advance(&mut self, end: Millis, out: &mut Changes) -> Result<(), CodecError> {
        self.end = end;
        while let Some(first) = self.ahead.first_entry()
            && first.key().pane < end
        {
            let (id, segment) = first.remove_entry();
            self.enter(id, &segment)?;
        }
        for window in &mut self.windows {
            while let Some(first) = window.parts.first_entry()
                && first.key().pane < end - window.width
            {
                let (id, part) = first.remove_entry();
                window.leave(id, &part);
            }
            window.changes(out)?;
        }
        Ok(())
    }

    /// The next end at which something may change.
    pub(crate) fn next(&self) -> Option<Millis> {
        if self.windows.iter().any(Window::is_touched) {
            return Some(self.end + self.pane);
        }
        let enters = self.earliest();
        let leaves = self.windows.iter().filter_map(|window| {
            let (first, _) = window.parts.first_key_value()?;
            Some(first.pane + window.width)
        });
        enters.into_iter().chain(leaves).min().map(|time| window::pane_after(time, self.pane))
    }

    /// The start of the first pane that hasn't entered yet.
    pub(crate) fn earliest(&self) -> Option<Millis> {
        self.ahead.first_key_value().map(|(first, _)| first.pane)
    }
}

#[cfg(test)]
mod tests;
