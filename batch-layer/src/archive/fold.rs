//! What a partition's records become: rows by event day, rejects, and the cuts at which epochs close. Pure: records
//! in, actions out.
//!
//! Every record between two cuts is in exactly one written batch of rows, or one of rejects, or is counted as a tick.
//! The clocks are folds over the log alone, so whoever reads the same records places the same cuts.

use crate::archive::buffer::{Batch, Buffers, Limits};
use crate::archive::manifest::{Gap, LOG_TRUNCATED};
use crate::archive::segment::{RejectedRow, Row};
use shared_model::catalog::Stream;
use shared_model::epoch::{EpochLength, IngestClock, TrustedTime};
use shared_model::event;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use shared_model::time::Millis;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// One record of the log.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its offset.
    pub offset: i64,
    /// The broker's append time; `None` where the batch isn't stamped LogAppendTime: then it moves no clock.
    pub append_time: Option<Millis>,
    /// The producer's own time, from its header.
    pub produced: Option<Millis>,
    /// Whether it carries the tick header.
    pub tick_header: bool,
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// What to do next, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Write a file that belongs to the next seal.
    Write(Batch),
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
    buffers: Buffers,
}

/// What the open slice has beside its rows.
#[derive(Default)]
struct Open {
    ticks: u64,
    gaps: Vec<Gap>,
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
        let (clock, trusted) = (IngestClock(from.clock_from(epochs)), from.trusted.clone());
        let (epoch, fingerprint) = (from.epoch, from.fingerprint);
        let (open, buffers) = (Open::default(), Buffers::new(limits));
        Fold { stream, tp, epochs, limits, from, epoch, clock, trusted, fingerprint, open, buffers }
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
                self.buffers.keep(Row { offset, ingest_time: Some(append_time), produced, event });
            }
            Err(reject) => self.buffers.refuse(RejectedRow {
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
        actions.extend(self.buffers.spill().into_iter().map(Action::Write));
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
        actions.extend(self.buffers.drain().into_iter().map(Action::Write));
        let open = std::mem::take(&mut self.open);
        let from = std::mem::replace(&mut self.from, to.clone());
        actions.push(Action::Seal(Closing { from, to, ticks: open.ticks, gaps: open.gaps }));
    }
}
