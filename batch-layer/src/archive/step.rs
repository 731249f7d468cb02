//! One partition's step: reads its log on from its chain's end until every epoch that has ended is closed, or says
//! why that can't be.
//!
//! All that is decided here depends on what the log brings and on the time of the step alone; the log is a trait, so
//! that a test can bring anything.

use crate::archive::Until;
use crate::archive::fold::Record;
use crate::archive::seal::{Chain, Sealer};
use anyhow::Result;
use shared_model::epoch::EpochLength;
use shared_model::tidemark::{Cut, LOG_LOST};
use shared_model::time::Millis;
use std::time::Duration;
use tracing::debug;
use xxhash_rust::xxh3::xxh3_64;

/// How many records below a cut are read again to see whether the log is still the one that was archived.
const LOOK_BACK: i64 = 16;
/// How many ticks one step appends to a partition at most.
const TICKS: u32 = 3;

/// What reading brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrived<M> {
    /// The next record.
    Record(M),
    /// The log no longer has these offsets; reading goes on behind them.
    Gap(i64, i64),
    /// All that the log holds now was read; a later call may bring more.
    End,
    /// The partition can't be read on, for this reason.
    Stuck(String),
}

/// A message of a log.
pub trait Logged {
    /// What the archive needs of it.
    fn record(&self) -> Record<'_>;
}

/// The log of one partition.
pub trait Log {
    /// What it brings.
    type Message: Logged;

    /// The first offset that it has, and one more than its last.
    fn watermarks(&mut self) -> Result<(i64, i64)>;

    /// Goes on reading at an offset; called before the first [`next`](Log::next).
    fn seek(&mut self, offset: i64) -> Result<()>;

    /// Waits for what comes next.
    fn next(&mut self) -> impl Future<Output = Result<Arrived<Self::Message>>>;

    /// Whether ticks may be appended.
    fn takes_ticks(&self) -> bool;

    /// Appends a tick and says when the broker stamped it.
    fn tick(&mut self) -> impl Future<Output = Result<Option<Millis>>>;

    /// Lets some time pass.
    fn wait(&mut self, time: Duration) -> impl Future<Output = ()>;
}

/// Goes on at the end of a sealer's chain. The chain comes back with the reason, where some epoch could not be closed.
pub(crate) async fn read_on(
    log: &mut impl Log,
    mut sealer: Sealer,
    epochs: EpochLength,
    until: Until,
) -> Result<(Chain, Option<String>)> {
    let held = read(log, &mut sealer, epochs, until).await?;
    let chain = sealer.finish();
    debug!(tp = %chain.tp, manifests = chain.sealed.len(), end = chain.end().offset, held, "archived");
    Ok((chain, held))
}

/// Reads until the epoch of the step's time has begun; otherwise says why it hasn't.
async fn read(
    log: &mut impl Log,
    sealer: &mut Sealer,
    epochs: EpochLength,
    until: Until,
) -> Result<Option<String>> {
    let target = epochs.epoch(until.now);
    let start = sealer.chain().end().clone();
    let (low, high) = log.watermarks()?;
    if high < start.offset {
        return Ok(Some(shrunk(start.offset, high)));
    }
    let mut below = LookBack::new(&start, low);
    log.seek(below.from.max(low))?;
    if low > start.offset {
        sealer.gap(start.offset, low);
    }
    let mut ticks = Ticks::default();
    while sealer.epoch() < target {
        match log.next().await? {
            Arrived::Record(message) if message.record().offset < start.offset => {
                below.see(message.record().value);
            }
            Arrived::Record(_) | Arrived::End if below.is_another_log() => {
                return Ok(Some(format!(
                    "{LOG_LOST}: the records below offset {} are not those that were archived; the topic was deleted \
                     and made anew: give the new log a topic name of its own",
                    start.offset
                )));
            }
            Arrived::Record(message) => {
                if let Some(offset) = sealer.record(message.record()).await? {
                    log.seek(offset)?;
                }
            }
            Arrived::Gap(_, to) if to <= start.offset => {}
            Arrived::Gap(from, to) => sealer.gap(from.max(start.offset), to),
            Arrived::End => {
                if let Some(reason) = ticks.next(log, epochs.boundary(target), until.patience).await {
                    return Ok(Some(reason));
                }
            }
            Arrived::Stuck(reason) if ticks.sent > 0 => {
                return Ok(Some(format!("{reason} (a tick was written: an open transaction may hide it)")));
            }
            Arrived::Stuck(reason) => return Ok(Some(reason)),
        }
    }
    Ok(None)
}

/// Why a log that ends below what was archived is not read.
pub(crate) fn shrunk(archived: i64, high: i64) -> String {
    format!(
        "{LOG_LOST}: the log ends at offset {high}, below the archived offset {archived}; the topic was deleted and made \
         anew, or lost records: give the new log a topic name of its own"
    )
}

/// Compares the last value below a cut with the cut's fingerprint.
struct LookBack {
    from: i64,
    expected: Option<u64>,
    found: Option<u64>,
}

impl LookBack {
    fn new(start: &Cut, low: i64) -> LookBack {
        let look = start.fingerprint.is_some() && low < start.offset;
        let from = if look { start.offset - LOOK_BACK } else { start.offset };
        LookBack { from, expected: start.fingerprint, found: None }
    }

    fn see(&mut self, value: Option<&[u8]>) {
        self.found = value.map(xxh3_64).or(self.found);
    }

    /// Only what was seen speaks: behind many ticks nothing may have been.
    fn is_another_log(&self) -> bool {
        self.found.is_some() && self.found != self.expected
    }
}

/// Ticks of one step to one partition.
#[derive(Default)]
struct Ticks {
    sent: u32,
    /// When the broker stamped the last.
    stamped: Option<Millis>,
}

impl Ticks {
    /// Called where the log ends below the boundary: appends a tick that closes the epoch. Returns the reason where
    /// that can't be.
    async fn next(&mut self, log: &mut impl Log, boundary: Millis, patience: Duration) -> Option<String> {
        if !log.takes_ticks() {
            return Some(
                "idle: no record since the last boundary, and ticks are off (--no-ticks)".to_owned(),
            );
        }
        let late = self.stamped.map_or(0, |stamped| boundary - stamped);
        if late > 0 && Duration::from_millis(late.unsigned_abs()) < patience && self.sent < TICKS {
            // The broker's clock is behind this machine's: its own boundary is still to come.
            log.wait(Duration::from_millis(late.unsigned_abs())).await;
        } else if late > 0 {
            return Some(format!("the broker's clock is {late} ms behind this machine's"));
        } else if self.stamped.is_some() {
            return Some(
                "a tick was written and can't be read: an open transaction holds the log's end back"
                    .to_owned(),
            );
        }
        self.sent += 1;
        match log.tick().await {
            Ok(stamped) => {
                self.stamped = stamped.or(Some(boundary));
                None
            }
            Err(error) => Some(format!("idle, and a tick can't be written: {error:#}")),
        }
    }
}
