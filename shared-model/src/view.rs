//! The realtime view's stored form: groups of packed cells in Redis.
//!
//! A partition's realtime state is split by key hash into groups; each group is one Redis hash that exists, moves or
//! is lost as a whole. It holds a [`Header`] and *segments*: packed cells, each the fold of the records of one slice
//! of the log. The merge of all segments of an epoch is the fold of exactly that epoch's records below the header's
//! `to`; that a record is in exactly one segment is held by the fence, which admits a write only at the position
//! where the last one ended.

mod segment;

use crate::aggregate::State;
use crate::codec::CodecError;
use crate::epoch::TrustedTime;
use crate::metric::MetricVersion;
use crate::offsets::TopicPartition;
use crate::time::Millis;
pub use segment::{
    Packer, Section, Sections, each_cell, is_empty, key_begin, merge, pack, take_cell, unpack,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The hash field that holds the [`Header`] as JSON.
pub const HEADER_FIELD: &str = "h";
/// The hash field that holds the fence: `<incarnation>:<to>:<seq>`.
pub const FENCE_FIELD: &str = "f";
/// The hash field that holds the owner's token.
pub const OWNER_FIELD: &str = "o";
/// The Redis hash with the newest times of all partitions: field `topic/partition`, value [`Mark`] as JSON.
pub const MARKS_KEY: &str = "tm1:marks";

/// Names a group's Redis key. The braces make it one slot of a Redis Cluster.
pub fn group_key(tp: &TopicPartition, group: u32, groups: u32) -> String {
    format!("tm1:{{{tp}/{group}of{groups}}}")
}

/// The group of a cell, by the `by` part of its key alone, so that one key's cells are all in one group.
#[inline]
pub fn group_of(by: &[u8], groups: u32) -> u32 {
    // The high bits are spread over the groups; the low ones are left to hash maps.
    ((u128::from(xxhash_rust::xxh3::xxh3_64(by)) * u128::from(groups)) >> 64) as u32
}

/// What a group says of itself. Stored as JSON so that a person can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of this layout.
    pub v: u8,
    /// Drawn anew whenever the group is built from scratch.
    pub incarnation: u64,
    /// Every record of the log below this offset (and from the first cut's offset on) is in the group.
    pub to: i64,
    /// The ingest clock just below `to`: all records appended before it are in the group.
    pub clock: Millis,
    /// The newest trusted event time of the partition just below `to`.
    pub trusted: TrustedTime,
    /// Event time up to which the partition is believed whole: the newest trusted time less the lateness.
    pub watermark: Option<Millis>,
    /// Panes that start at or after this event time are whole; `None`: all are, the log was read from its start.
    pub panes_from: Option<Millis>,
    /// Starts of panes that are not whole although they are at or after `panes_from`: events from the future lie in
    /// them that were read before the group was built anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pane_holes: Vec<Millis>,
    /// (epoch, first offset of that epoch or a later one), ascending. The first is where the view cells start.
    pub cuts: Vec<(i64, i64)>,
    /// The offset from which each metric version has been folded into the view cells.
    pub metrics: BTreeMap<MetricVersion, i64>,
    /// The number of the last write: that of the newest segments, and what makes each fence unique. It grows with each
    /// write, and leaps whenever another owner begins, so that no number of an incarnation is ever given twice.
    pub seq: u64,
    /// Ranges of offsets that the log no longer had when they were needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<(i64, i64)>,
    /// Records that were folded with less than the dedup horizon in mind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forgotten: Vec<Forgotten>,
}

/// A fold that began without all of the dedup horizon: the log no longer had the records below `known`. A repeat of one
/// of those counts as a first delivery until a batch run covers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The first offset whose identity was known.
    pub known: i64,
    /// The first offset that was folded so.
    pub from: i64,
    /// From this offset on the whole horizon was known again.
    pub until: i64,
}

/// The newest layout version.
pub const HEADER_VERSION: u8 = 1;

impl Header {
    /// The fence that a writer must find to write after this header.
    pub fn fence(&self) -> String {
        format!("{:016x}:{}:{}", self.incarnation, self.to, self.seq)
    }

    /// How many offsets back a repeat was recognised among the group's records from `offset` on, of the `horizon` that
    /// the stream asks for.
    pub fn horizon_from(&self, offset: i64, horizon: i64) -> i64 {
        let reached = |forgotten: &Forgotten| offset.max(forgotten.from) - forgotten.known;
        self.forgotten.iter().map(reached).fold(horizon, i64::min)
    }

    /// The stored JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a header has no map with keys that JSON can't have")
    }

    /// The header from its stored JSON.
    pub fn from_json(json: &[u8]) -> Result<Header, CodecError> {
        let header: Header = serde_json::from_slice(json).map_err(|_| CodecError::Invalid("group header"))?;
        if header.v > HEADER_VERSION {
            let (found, known) = (header.v, HEADER_VERSION);
            return Err(CodecError::Version { what: "group header", found, known });
        }
        Ok(header)
    }
}

/// Which slice a segment belongs to; also the name of its hash field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slice {
    /// View cells of one epoch: `e<epoch>:<seq>`.
    Epoch(i64),
    /// Pane cells of the pane that starts at this event time: `p<start>:<seq>`.
    Pane(Millis),
}

/// The hash field of a segment.
pub fn segment_field(slice: Slice, seq: u64) -> String {
    match slice {
        Slice::Epoch(epoch) => format!("e{epoch}:{seq}"),
        Slice::Pane(start) => format!("p{start}:{seq}"),
    }
}

/// The slice and number of a hash field, if it is a segment's.
pub fn parse_segment_field(field: &str) -> Option<(Slice, u64)> {
    let (kind, rest) = field.split_at_checked(1)?;
    let (slice, seq) = rest.split_once(':')?;
    let (slice, seq) = (slice.parse().ok()?, seq.parse().ok()?);
    match kind {
        "e" => Some((Slice::Epoch(slice), seq)),
        "p" => Some((Slice::Pane(slice), seq)),
        _ => None,
    }
}

/// One group as it is read, undecoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// The header's JSON.
    pub header: Vec<u8>,
    /// The segments wanted, perhaps others too.
    pub segments: Vec<(Slice, Vec<u8>)>,
    /// Fields that no known layout has.
    pub unknown: Vec<String>,
}

impl Group {
    /// The group that a hash's fields are; `None` where there is no header, as before its first flush.
    pub fn from_fields(fields: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Option<Group> {
        let mut group = Group::default();
        let mut header = None;
        for (field, value) in fields {
            let name = String::from_utf8_lossy(&field);
            match (&*name, parse_segment_field(&name)) {
                (HEADER_FIELD, _) => header = Some(value),
                (FENCE_FIELD | OWNER_FIELD, _) => {}
                (_, Some((slice, _))) => group.segments.push((slice, value)),
                (_, None) => group.unknown.push(name.into_owned()),
            }
        }
        group.header = header?;
        Some(group)
    }
}

/// Names a cell: (metric version, key, bucket). `key` is the encoded `by` values and, for a top-k, the item's;
/// `bucket` is the start of the grain's bucket, or of the pane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId {
    /// The metric's version.
    pub version: MetricVersion,
    /// The encoded key.
    pub key: Box<[u8]>,
    /// The bucket's start.
    pub bucket: Millis,
}

/// Cells by their name, in the canonical order.
pub type Cells = BTreeMap<CellId, State>;

/// The newest times of one partition, as its owner last published them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The newest trusted event time.
    pub trusted: Option<Millis>,
    /// Event time up to which the partition is believed whole.
    pub watermark: Option<Millis>,
    /// The ingest clock.
    pub clock: Millis,
    /// Whether the owner had read all that the log held.
    pub caught_up: bool,
    /// The generation of the newest tidemark that the owner knows.
    pub generation: i64,
    /// What the owner last saw of the topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked: Option<Looked>,
}

/// A look at a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// How many partitions it had.
    pub partitions: i32,
    /// The ingest clock of the owner's partition before the look: what is in further partitions was appended later.
    pub clock: Millis,
}

#[cfg(test)]
mod tests;
