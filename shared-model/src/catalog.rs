//! The catalog: one definition of streams, dimensions, metrics and formulas for all layers.
//!
//! It is read raw from TOML and validated once into [`Catalog`], a type that cannot be wrong: every name resolves,
//! every expression has a type, every grain divides a day. All faults are reported together.

pub mod raw;
pub mod version;
mod check;
mod document;
mod fault;
mod formulas;
mod literal;
mod metrics;
mod streams;
mod validate;

pub use fault::{CatalogFaults, Fault};

use crate::epoch::{EpochLength, EventClockRule};
use crate::event::FieldType;
use crate::expression::Expression;
use crate::metric::{Formula, Metric};
use crate::time::{Interval, Millis};
use std::sync::Arc;

/// The shipped catalog, over Outbrain's `page_views` and `events`.
pub const OUTBRAIN: &str = include_str!("../../infra/catalog/outbrain.toml");

/// The other shipped catalog: page views of a web site, by URL.
pub const SITE: &str = include_str!("../../infra/catalog/site.toml");

/// The JSON Schema of a catalog's TOML, for editors; committed as `infra/catalog/catalog.schema.json`.
pub fn json_schema() -> String {
    raw::json_schema()
}

/// A valid catalog.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// How the log is sliced and the realtime view laid out.
    pub layout: Layout,
    /// All streams, ordered by name.
    pub streams: Vec<Arc<Stream>>,
    /// All metrics, ordered by name.
    pub metrics: Vec<Arc<Metric>>,
    /// All formulas, ordered by name.
    pub formulas: Vec<Arc<Formula>>,
}

/// What all layers must agree on beside the definitions: fixed when the first tidemark is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The length of an epoch; default 10 min.
    pub epoch: EpochLength,
    /// Groups per partition in the realtime view; default 16.
    pub groups: u32,
    /// The pane: slide of all sliding windows; default 10 s.
    pub pane: Millis,
}

/// A stream: one topic of JSON records.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Its name in the catalog.
    pub name: String,
    /// The Kafka topic.
    pub topic: Arc<str>,
    /// The declared fields: those that a record carries, in the catalog's order, then those of the append time.
    pub fields: Vec<Field>,
    /// How many of them a record carries.
    pub recorded: usize,
    /// Derived dimensions, in the catalog's order; none refers to another.
    pub dimensions: Vec<Dimension>,
    /// Where the event time is.
    pub event_time: EventTimeField,
    /// Indices into `fields` of what identifies an event; empty: each delivery is an event of its own.
    pub identity: Vec<usize>,
    /// Index of the field that keys the messages (what the producer partitions by), if declared.
    pub message_key: Option<usize>,
    /// How many offsets back a repeat is recognised; default 1,000,000.
    pub dedup_horizon: i64,
    /// How long behind the newest trusted event time the watermark stays; default 1 min.
    pub lateness: Millis,
    /// Believable event times.
    pub bounds: Bounds,
    /// The longest record in bytes; default 1 MiB.
    pub max_record_bytes: usize,
    /// The longest text of a field in bytes: a record with a longer one is dead-lettered.
    pub max_text_bytes: usize,
    /// Whether raw facts are kept in Postgres.
    pub facts: bool,
    /// Hash of all that decides what a record of this stream means.
    pub version: u64,
}

/// A declared field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, the JSON key.
    pub name: String,
    /// Its type. Any field may be NULL.
    pub ty: FieldType,
}

impl Field {
    /// Its column in `facts.<stream>`: one that has the name of a column of ours gets an underscore.
    pub fn fact_column(&self) -> String {
        match self.name.as_str() {
            "topic" | "partition" | "offset" | "event_time" | "act_prod_time" | "act_load_time" => {
                format!("{}_", self.name)
            }
            name => name.to_owned(),
        }
    }
}

/// A dimension derived from a stream's fields.
#[derive(Debug, Clone)]
pub struct Dimension {
    /// Its name.
    pub name: String,
    /// Its SQL text, for people.
    pub sql: String,
    /// What computes it.
    pub expression: Expression,
}

/// The event-time field: an integer count of `unit` since 1970, plus `offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTimeField {
    /// Index into the stream's fields; of type int.
    pub field: usize,
    /// The unit.
    pub unit: TimeUnit,
    /// Added to the raw value, in the unit.
    pub offset: i64,
}

/// The unit of a raw event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds (floored to milliseconds).
    Micros,
}

impl EventTimeField {
    /// The event time in ms of a raw value; `None` where it lies beyond the years 0001 to 9999.
    pub fn to_millis(&self, raw: i64) -> Option<Millis> {
        let shifted = raw.checked_add(self.offset)?;
        let millis = match self.unit {
            TimeUnit::Seconds => shifted.checked_mul(1_000)?,
            TimeUnit::Millis => shifted,
            TimeUnit::Micros => shifted.div_euclid(1_000),
        };
        (-62_135_596_800_000..253_402_300_800_000).contains(&millis).then_some(millis)
    }
}

/// The believable event times of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// Near the record's own append time: `[append - past, append + future)`. A live stream.
    Relative {
        /// How far back.
        past: Millis,
        /// How far ahead.
        future: Millis,
    },
    /// Fixed dates, for a replay.
    Fixed(Interval),
}

impl Bounds {
    /// The span that refuses `time`, if it does. Without an append time only fixed bounds apply.
    pub fn refuse(&self, time: Millis, append_time: Option<Millis>) -> Option<Interval> {
        let span = match (*self, append_time) {
            (Bounds::Fixed(span), _) => span,
            (Bounds::Relative { past, future }, Some(append)) => {
                Interval { start: append.saturating_sub(past), end: append.saturating_add(future) }
            }
            (Bounds::Relative { .. }, None) => return None,
        };
        (!span.contains(time)).then_some(span)
    }
}

impl Stream {
    /// What may move the sliding windows of this stream. A replay believes steps up to its lateness plus 5 min.
    pub fn event_clock(&self) -> EventClockRule {
        match self.bounds {
            Bounds::Relative { .. } => EventClockRule::Live,
            Bounds::Fixed(_) => EventClockRule::Replay { leap: self.lateness + 300_000 },
        }
    }

    /// The fields that a record carries: what is read from JSON and from files. The others are an append time each.
    pub fn recorded(&self) -> &[Field] {
        &self.fields[..self.recorded]
    }

    /// The index of a field.
    pub fn field(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }
}

/// The longest text of a catalog in bytes.
pub const MAX_CATALOG_BYTES: usize = 1 << 20;

impl Catalog {
    /// Reads and validates a catalog's text.
    ///
    /// # Errors
    /// All faults together.
    pub fn from_toml(text: &str) -> Result<Catalog, CatalogFaults> {
        validate::validate(text).map_err(|faults| CatalogFaults { file: "catalog.toml".to_owned(), faults })
    }

    /// The metric of a name.
    pub fn metric(&self, name: &str) -> Option<&Arc<Metric>> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// The metric whose sliding window is served under a live name (`user_view_cnt_5m`).
    pub fn live(&self, live_name: &str) -> Option<&Arc<Metric>> {
        self.metrics.iter().find(|metric| metric.live_name.as_deref() == Some(live_name))
    }

    /// The formula of a name.
    pub fn formula(&self, name: &str) -> Option<&Arc<Formula>> {
        self.formulas.iter().find(|formula| formula.name == name)
    }

    /// The stream of a name.
    pub fn stream(&self, name: &str) -> Option<&Arc<Stream>> {
        self.streams.iter().find(|stream| stream.name == name)
    }

    /// The streams that feed a metric, ordered by name.
    pub fn streams_of<'a>(&'a self, metric: &'a Metric) -> impl Iterator<Item = &'a Arc<Stream>> {
        metric.bindings.iter().filter_map(|binding| self.stream(&binding.stream))
    }

    /// Whether records behind a metric's values are kept: by one of its streams at least, of which others may keep none.
    pub fn keeps_records(&self, metric: &Metric) -> bool {
        self.streams_of(metric).any(|stream| stream.facts)
    }

    /// The stream that a topic carries.
    pub fn stream_of_topic(&self, topic: &str) -> Option<&Arc<Stream>> {
        self.streams.iter().find(|stream| &*stream.topic == topic)
    }
}

#[cfg(test)]
mod tests;
