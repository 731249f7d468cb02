//! The batch view as the serving layer reads it: one snapshot an answer, in which tidemark, ledger and rows agree.
//!
//! Nothing here writes. A snapshot sees one flip or none of it: pointers and tidemark move in one transaction.

mod memory;
mod postgres;

pub use memory::{MemoryBatchView, MemoryVersion};
pub use postgres::PostgresBatchView;

use crate::merge::{Cell, FoldError};
use crate::query::Column;
use crate::query::buckets::Buckets;
use crate::query::filter::{Condition, Filter};
use futures::future::BoxFuture;
use shared_model::catalog::Stream;
use shared_model::event::Value;
use shared_model::metric::Metric;
use shared_model::offsets::{OffsetRange, TopicPartition};
use shared_model::tidemark::Tidemark;
use shared_model::time::{EventDay, Interval, Millis};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use thiserror::Error;

/// Why the batch view could not be read.
#[derive(Debug, Error)]
pub enum BatchError {
    /// It can't be reached, or refused: the cause, for the log.
    #[error("the batch view can't be read: {0}")]
    Unavailable(String),
    /// A past run's rows are not there to be read; the reason, for the client.
    #[error("{0}")]
    Run(String),
}

/// What all layers agreed on when the first tidemark was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredLayout {
    /// The epoch's length in milliseconds.
    pub epoch_ms: i64,
    /// Groups per partition.
    pub groups: i64,
    /// The pane in milliseconds.
    pub pane_ms: i64,
}

/// Where the batch view stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// The layout.
    pub layout: StoredLayout,
    /// The very first tidemark.
    pub first: Tidemark,
    /// The one in force.
    pub current: Tidemark,
}

/// The tidemark that an answer is given at.
#[derive(Debug, Clone, PartialEq)]
pub struct AtTidemark {
    /// The tidemark.
    pub tidemark: Tidemark,
    /// The run that made it.
    pub run: Option<i64>,
}

/// The versions of one metric that a request reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// For each day, the version to read, and the run that made it.
    pub days: BTreeMap<EventDay, VersionOf>,
    /// Days that the archive has, but this metric's batch view has not.
    pub missing: BTreeSet<EventDay>,
}

/// The version of one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionOf {
    /// What its rows are found by.
    pub version_id: i64,
    /// The run that made it.
    pub run: i64,
    /// The table that holds its rows; `None` where it has none.
    pub table: Option<String>,
    /// Whether new records were merged into it rather than the whole day recomputed.
    pub partial: bool,
    /// A hash of its rows.
    pub hash: String,
}

/// What a request reads of the batch view: the days of a metric.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The metric.
    pub metric: &'a Metric,
    /// The span that has the days.
    pub span: Interval,
    /// Whether rows of one key alone are read, whichever it is.
    pub one_key: bool,
}

/// What is in force, or was at a past run.
#[derive(Debug)]
pub struct Opening {
    /// The tidemark.
    pub at: AtTidemark,
    /// The versions of what is wanted, in its order.
    pub versions: Vec<Versions>,
    /// What the log had lost before it was archived: the batch view lacks it for good.
    pub lost: Vec<Lost>,
}

/// Offsets that never reached the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The partition.
    pub tp: TopicPartition,
    /// The offsets.
    pub range: OffsetRange,
    /// Why.
    pub cause: String,
}

/// What rows are wanted of one metric.
#[derive(Debug)]
pub struct Scan<'a> {
    /// The value column: its metric and how the filters apply to it.
    pub column: &'a Column,
    /// The versions to read, all with rows.
    pub versions: Vec<VersionOf>,
    /// Whether they are a past run's, which may be dropped while they are read.
    pub past: bool,
    /// Buckets that start inside.
    pub span: Interval,
    /// Whether the conditions leave one key.
    pub one_key: bool,
    /// How the answer cuts the span: a view may add up what falls into one bucket, and need not.
    pub buckets: &'a Buckets,
    /// The query's filters, and what must hold of them: a view may leave out rows that they refuse, and need not.
    pub filters: &'a [Filter],
    /// See `filters`.
    pub condition: &'a Condition<usize>,
}

/// A record as a stream's facts keep it: one delivery, of which an event may have several.
#[derive(Debug, Clone)]
pub struct Fact {
    /// One value for each of the stream's fields.
    pub values: Vec<Value>,
    /// Where it was read from; of an import its pseudo-topic.
    pub tp: TopicPartition,
    /// Its offset there.
    pub offset: i64,
    /// Its event time.
    pub event_time: Millis,
    /// When its producer says to have made it.
    pub produced: Option<Millis>,
    /// When the flip was that took it in.
    pub loaded: Millis,
}

/// Takes each record, and says whether it wants more.
pub type EachFact<'a> = &'a mut (dyn FnMut(Fact) -> bool + Send);

/// Takes each row; an error ends the reading.
pub type EachCell<'a> = &'a mut (dyn FnMut(Result<&Cell, FoldError>) -> Result<(), FoldError> + Send);

/// Where snapshots come from.
pub trait BatchView: Send + Sync {
    /// Begins a snapshot in which no statement takes longer than `time_limit`.
    fn snapshot(&self, time_limit: Duration) -> BoxFuture<'_, Result<Box<dyn Snapshot>, BatchError>>;

    /// Where the batch view stands; `None` before its first run. `known` is what the caller has, returned as it is
    /// where nothing moved.
    fn position<'a>(
        &'a self,
        known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, BatchError>>;

    /// The newest runs that were audited, the newest first, each as its record and its audit's say.
    fn audits(&self, limit: i64) -> BoxFuture<'_, Result<Vec<serde_json::Value>, BatchError>>;
}

/// One consistent sight of the batch view.
pub trait Snapshot: Send {
    /// What is in force, or was when a past run was done; `None` before the first run. Asked first, and once.
    fn open<'a>(
        &'a mut self,
        at_run: Option<i64>,
        wanted: &'a [Wanted<'a>],
    ) -> BoxFuture<'a, Result<Option<Opening>, BatchError>>;

    /// Hands each row to `each` until it refuses one; that refusal is returned inside.
    fn rows<'a>(
        &'a mut self,
        scan: &'a Scan<'a>,
        each: EachCell<'a>,
    ) -> BoxFuture<'a, Result<Result<(), FoldError>, BatchError>>;

    /// Hands each record of a stream's facts in a span to `each`, by event time and then by its place in the log, until
    /// that has enough. Returns the event days of the span with records that the facts don't have.
    fn facts<'a>(
        &'a mut self,
        stream: &'a Stream,
        span: Interval,
        each: EachFact<'a>,
    ) -> BoxFuture<'a, Result<Vec<EventDay>, BatchError>>;

    /// Ends the snapshot; nobody waits until it has ended.
    fn close(self: Box<Self>);
}
