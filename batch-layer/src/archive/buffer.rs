//! Rows on their way to files: buffered by event day, the largest days written out first when too much is held.
//!
//! Every row that goes in comes out in exactly one batch, and within a batch in the order in which it came.

use crate::archive::segment::{RejectedRow, Row};
use shared_model::time::EventDay;
use std::collections::BTreeMap;

/// How much may be buffered before the largest days are written out.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows and rejects.
    pub rows: usize,
    /// Estimated bytes of them in memory.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { rows: 250_000, bytes: 64 << 20 }
    }
}

/// What becomes one file; never empty.
#[derive(Debug)]
pub(crate) enum Batch {
    /// Valid rows of one event day.
    Rows(EventDay, Vec<Row>),
    /// Rejected ones.
    Rejects(Vec<RejectedRow>),
}

/// Rows that are held.
pub(crate) struct Buffers {
    limits: Limits,
    days: BTreeMap<EventDay, Buffer<Row>>,
    rejects: Buffer<RejectedRow>,
    rows: usize,
    bytes: usize,
}

struct Buffer<T> {
    rows: Vec<T>,
    bytes: usize,
}

impl<T> Default for Buffer<T> {
    fn default() -> Buffer<T> {
        Buffer { rows: Vec::new(), bytes: 0 }
    }
}

impl Buffers {
    /// Holds nothing.
    pub(crate) fn new(limits: Limits) -> Buffers {
        Buffers { limits, days: BTreeMap::new(), rejects: Buffer::default(), rows: 0, bytes: 0 }
    }

    /// Takes in a valid row.
    pub(crate) fn keep(&mut self, row: Row) {
        let bytes = row.size();
        let day = self.days.entry(EventDay::of(row.event.time)).or_default();
        day.rows.push(row);
        day.bytes += bytes;
        self.grow(bytes);
    }

    /// Takes in a rejected row.
    pub(crate) fn refuse(&mut self, row: RejectedRow) {
        let bytes = row.size();
        self.rejects.rows.push(row);
        self.rejects.bytes += bytes;
        self.grow(bytes);
    }

    /// Hands out the largest until half of what is allowed is left, if more than is allowed is held.
    pub(crate) fn spill(&mut self) -> Vec<Batch> {
        let Limits { rows, bytes } = self.limits;
        if self.rows <= rows && self.bytes <= bytes {
            return Vec::new();
        }
        let mut largest: Vec<(usize, Option<EventDay>)> =
            self.days.iter().map(|(day, buffer)| (buffer.bytes, Some(*day))).collect();
        largest.push((self.rejects.bytes, None));
        largest.sort_unstable();
        let mut batches = Vec::new();
        while self.rows > rows / 2 || self.bytes > bytes / 2 {
            match largest.pop() {
                Some((_, Some(day))) => batches.extend(self.take_day(day)),
                Some((_, None)) => batches.extend(self.take_rejects()),
                None => break,
            }
        }
        batches
    }

    /// Hands out everything.
    pub(crate) fn drain(&mut self) -> Vec<Batch> {
        let days: Vec<EventDay> = self.days.keys().copied().collect();
        let mut batches: Vec<Batch> = days.into_iter().filter_map(|day| self.take_day(day)).collect();
        batches.extend(self.take_rejects());
        batches
    }

    fn grow(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes;
    }

    fn take_day(&mut self, day: EventDay) -> Option<Batch> {
        let buffer = self.days.remove(&day)?;
        self.shrink(buffer.rows.len(), buffer.bytes);
        Some(Batch::Rows(day, buffer.rows))
    }

    fn take_rejects(&mut self) -> Option<Batch> {
        let buffer = std::mem::take(&mut self.rejects);
        self.shrink(buffer.rows.len(), buffer.bytes);
        (!buffer.rows.is_empty()).then_some(Batch::Rejects(buffer.rows))
    }

    fn shrink(&mut self, rows: usize, bytes: usize) {
        self.rows -= rows;
        self.bytes -= bytes;
    }
}
