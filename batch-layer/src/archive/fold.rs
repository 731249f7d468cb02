//! What a partition's records become: rows by event day, rejects, and the cuts at which epochs close. Pure: records
//! in, actions out.
//!
//! Every record between two cuts is in exactly one written batch of rows, or one of rejects, or is counted as a tick.
//! The clocks are folds over the log alone, so whoever reads the same records places the same cuts.

use crate::archive::manifest::{Gap, LOG_TRUNCATED};
use crate::archive::segment::{RejectedRow, Row};
use shared_model::catalog::Stream;
use shared_model::epoch::{EpochLength, IngestClock, TrustedTime};
use shared_model::event;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use shared_model::time::{EventDay, Millis};
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// One record of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// Its offset.
    pub(crate) offset: i64,
    /// The broker's append time; `None` where the batch isn't stamped LogAppendTime: then it moves no clock.
    pub(crate) append_time: Option<Millis>,
    /// The producer's own time, from its header.
    pub(crate) produced: Option<Millis>,
    /// Whether it carries the tick header.
    pub(crate) tick_header: bool,
    /// Its value.
    pub(crate) value: Option<&'a [u8]>,
}

/// What to do next, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Write rows of one event day, ascending by offset, as a segment that belongs to the next seal.
    Write(EventDay, Vec<Row>),
    /// Write rejects that belong to the next seal.
    Reject(Vec<RejectedRow>),
    /// Seal everything written since the last seal.
    Seal(Closing),
}

/// What a seal says beside the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closing {
    /// Where it begins.
    pub(crate) from: Cut,
    /// Where it ends.
    pub(crate) to: Cut,
    /// Ticks between.
    pub(crate) ticks: u64,
    /// What is missing.
    pub(crate) gaps: Vec<Gap>,
}

/// How much may be buffered of one partition before the largest days are written out.
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

/// The fold over one partition's log, from a cut on.
pub(crate) struct Fold {
    stream: Arc<Stream>,
    tp: TopicPartition,
    epochs: EpochLength,
    limits: Limits,
    /// Where the open slice begins.
    from: Cut,
    epoch: i64,
    clock: IngestClock,
    trusted: TrustedTime,
    fingerprint: Option<u64>,
    open: Open,
}

/// What the open slice holds and has not handed out yet.
#[derive(Default)]
struct Open {
    days: BTreeMap<EventDay, Buffer<Row>>,
    rejects: Buffer<RejectedRow>,
    ticks: u64,
    gaps: Vec<Gap>,
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

impl Fold {
    /// Starts at a cut: the next record must be the first at or above it.
    pub(crate) fn new(
        stream: Arc<Stream>,
        tp: TopicPartition,
        epochs: EpochLength,
        from: Cut,
        limits: Limits,
    ) -> Fold {
        let (clock, trusted) = (IngestClock(from.clock), from.trusted.clone());
        let (epoch, fingerprint) = (from.epoch, from.fingerprint);
        Fold { stream, tp, epochs, limits, from, epoch, clock, trusted, fingerprint, open: Open::default() }
    }

    /// Drops what is open and goes on from another cut of the same log.
    pub(crate) fn resume(&mut self, from: Cut) {
        let (stream, tp) = (self.stream.clone(), self.tp.clone());
        *self = Fold::new(stream, tp, self.epochs, from, self.limits);
    }

    /// The epoch in which the clock stands: that of the cut before any record.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Where the open slice begins, with the epoch of its first record where one was seen.
    pub(crate) fn from(&self) -> &Cut {
        &self.from
    }

    /// Takes in that the log has no records at `[from, to)` any more.
    pub(crate) fn gap(&mut self, from: i64, to: i64) {
        self.open.gaps.push(Gap { from, to, cause: LOG_TRUNCATED.to_owned() });
    }

    /// Takes in the next record.
    pub(crate) fn record(&mut self, record: Record<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        let below = self.clock;
        let append_time = record.append_time.unwrap_or(self.clock.0);
        let epoch = self.epochs.epoch(self.clock.observe(append_time));
        if epoch != self.epoch {
            self.begin(epoch, record.offset, below, &mut actions);
        }
        if record.value.is_none() && record.tick_header {
            self.trusted.observe_tick(self.stream.event_clock(), append_time);
            self.open.ticks += 1;
            return actions;
        }
        let value = record.value;
        match event::decode(&self.stream, &self.tp, record.offset, append_time, value) {
            Ok(event) => {
                self.trusted.observe(self.stream.event_clock(), event.time, append_time);
                let (offset, produced) = (record.offset, record.produced);
                self.open.keep(Row { offset, ingest_time: Some(append_time), produced, event });
            }
            Err(reject) => self.open.refuse(RejectedRow {
                offset: record.offset,
                ingest_time: Some(append_time),
                reason: reject.code(),
                detail: reject.to_string(),
                value: value.map(<[u8]>::to_vec),
            }),
        }
        if let Some(value) = value {
            self.fingerprint = Some(xxh3_64(value));
        }
        self.open.spill(self.limits, &mut actions);
        actions
    }

    /// The record at `offset` is the first of another epoch: closes the open slice, if it holds any offset.
    fn begin(&mut self, epoch: i64, offset: i64, below: IngestClock, actions: &mut Vec<Action>) {
        self.epoch = epoch;
        if offset == self.from.offset {
            // The log's first record: nothing lies between, the slice just turns out to be of this epoch.
            self.from.epoch = epoch;
            return;
        }
        let (trusted, fingerprint) = (self.trusted.clone(), self.fingerprint);
        let to = Cut { epoch, offset, clock: below.0, trusted, fingerprint };
        let mut open = std::mem::take(&mut self.open);
        open.write_all(actions);
        let from = std::mem::replace(&mut self.from, to.clone());
        actions.push(Action::Seal(Closing { from, to, ticks: open.ticks, gaps: open.gaps }));
    }
}

impl Open {
    fn keep(&mut self, row: Row) {
        let bytes = row.size();
        let day = self.days.entry(EventDay::of(row.event.time)).or_default();
        day.rows.push(row);
        day.bytes += bytes;
        self.grow(bytes);
    }

    fn refuse(&mut self, row: RejectedRow) {
        let bytes = row.size();
        self.rejects.rows.push(row);
        self.rejects.bytes += bytes;
        self.grow(bytes);
    }

    fn grow(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes;
    }

    /// Hands out the largest buffers until half of what is allowed is left, once more than is allowed is held.
    fn spill(&mut self, limits: Limits, actions: &mut Vec<Action>) {
        if self.rows <= limits.rows && self.bytes <= limits.bytes {
            return;
        }
        let mut largest: Vec<(usize, EventDay)> = self.days.iter().map(|(day, b)| (b.bytes, *day)).collect();
        largest.sort_unstable();
        if self.rejects.bytes > largest.last().map_or(0, |(bytes, _)| *bytes) {
            self.write_rejects(actions);
        }
        while self.rows > limits.rows / 2 || self.bytes > limits.bytes / 2 {
            match largest.pop() {
                Some((_, day)) => self.write_day(day, actions),
                None => return self.write_rejects(actions),
            }
        }
    }

    fn write_all(&mut self, actions: &mut Vec<Action>) {
        while let Some((&day, _)) = self.days.first_key_value() {
            self.write_day(day, actions);
        }
        self.write_rejects(actions);
    }

    fn write_day(&mut self, day: EventDay, actions: &mut Vec<Action>) {
        if let Some(buffer) = self.days.remove(&day) {
            self.rows -= buffer.rows.len();
            self.bytes -= buffer.bytes;
            actions.push(Action::Write(day, buffer.rows));
        }
    }

    fn write_rejects(&mut self, actions: &mut Vec<Action>) {
        let buffer = std::mem::take(&mut self.rejects);
        if !buffer.rows.is_empty() {
            self.rows -= buffer.rows.len();
            self.bytes -= buffer.bytes;
            actions.push(Action::Reject(buffer.rows));
        }
    }
}
