//! What seals an epoch: the manifest of one partition's offsets `[from, to)`, and the manifest of an import.
//!
//! A manifest is written once, with put-if-absent, under the offset where it begins, so that the manifests of a
//! partition form one chain without a fork: the next one's name is the last one's `to.offset`. A segment that no
//! manifest names doesn't exist for any reader.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use shared_model::offsets::{OffsetRange, TopicPartition};
use shared_model::tidemark::Cut;
use shared_model::time::{EventDay, Millis};

/// The newest form of both manifests that this program reads and writes.
pub const MANIFEST_VERSION: u8 = 1;

/// One Parquet file of one event day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its path below the archive's root.
    pub path: String,
    /// The event day of all its rows.
    #[serde(with = "day")]
    pub event_day: EventDay,
    /// The offset of its first row (of an import: its first row number).
    pub from_offset: i64,
    /// One more than the offset of its last row.
    pub to_offset: i64,
    /// How many rows it has; never 0.
    pub rows: u64,
    /// The file's length.
    pub bytes: u64,
    /// xxh3 of the file's bytes, 16 hex digits.
    pub checksum: String,
    /// The lowest event time.
    pub min_event_time: Millis,
    /// The highest event time.
    pub max_event_time: Millis,
}

/// The records that could not be decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejects {
    /// How many.
    pub rows: u64,
    /// The Parquet files that hold them, each with reason and original bytes.
    pub paths: Vec<String>,
}

/// Offsets that could not be archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first offset that is missing.
    pub from: i64,
    /// The first one after it that is not.
    pub to: i64,
    /// Why: `log_truncated`, where the log no longer had them when they were needed.
    pub cause: String,
}

/// The cause of a gap below the first offset that the log still has.
pub const LOG_TRUNCATED: &str = "log_truncated";

/// The seal of the records of one closed epoch (or of several, where an epoch is empty) of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The form's version.
    pub v: u8,
    /// The stream's name in the catalog.
    pub stream: String,
    /// The stream's [`version`](shared_model::catalog::Stream::version) that decoded the records, 16 hex digits.
    pub stream_version: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Where it begins: the `to` of the manifest before.
    pub from: Cut,
    /// Where it ends: the first record of a later epoch.
    pub to: Cut,
    /// The files with the valid records, in the order in which they were written.
    pub segments: Vec<Segment>,
    /// The records that were rejected.
    pub rejects: Option<Rejects>,
    /// How many ticks lie between.
    pub ticks: u64,
    /// What is missing.
    #[serde(default)]
    pub gaps: Vec<Gap>,
    /// Drawn by the writer: tells its own manifest from a rival's.
    pub nonce: String,
    /// When it was written, in ms since 1970, by the writer's clock.
    pub written_at: Millis,
}

impl Manifest {
    /// The partition.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(&self.topic, self.partition)
    }

    /// The offsets that it seals.
    pub fn range(&self) -> OffsetRange {
        OffsetRange { from: self.from.offset, to: self.to.offset }
    }

    /// Its rows over all segments.
    pub fn rows(&self) -> u64 {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// The manifest from its stored JSON. Refuses a newer form, and one that doesn't move its chain on.
    pub fn from_json(path: &str, json: &[u8]) -> Result<Manifest> {
        let manifest: Manifest = parse(path, json, MANIFEST_VERSION)?;
        if manifest.to.offset <= manifest.from.offset {
            let (from, to) = (manifest.from.offset, manifest.to.offset);
            bail!("manifest {path} seals no offset (from {from} to {to}): the archive is damaged there");
        }
        Ok(manifest)
    }

    /// The JSON to store.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest has no map with keys that JSON can't have")
    }
}

/// The seal of one imported file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportManifest {
    /// The form's version.
    pub v: u8,
    /// The hash of the input file's bytes, 32 hex digits: the same content is imported once.
    pub import_id: String,
    /// The stream's name in the catalog.
    pub stream: String,
    /// The stream's [`version`](shared_model::catalog::Stream::version) that read the rows, 16 hex digits.
    pub stream_version: String,
    /// The files with the valid rows.
    pub segments: Vec<Segment>,
    /// How many valid rows.
    pub rows: u64,
    /// The rows that were rejected.
    pub rejects: Option<Rejects>,
    /// Where the rows came from, as the importer named it.
    pub source: String,
    /// Drawn by the writer: tells its own manifest from a rival's.
    pub nonce: String,
    /// When it was written, in ms since 1970, by the writer's clock.
    pub written_at: Millis,
}

impl ImportManifest {
    /// The `_topic` of its rows; their partition is 0 and their offset the row number.
    pub fn topic(&self) -> String {
        import_topic(&self.import_id)
    }

    /// The manifest from its stored JSON. Refuses a newer form.
    pub fn from_json(path: &str, json: &[u8]) -> Result<ImportManifest> {
        parse(path, json, MANIFEST_VERSION)
    }

    /// The JSON to store.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest has no map with keys that JSON can't have")
    }
}

/// How the `_topic` of an import's rows begins: no topic's name can.
pub const IMPORT_PREFIX: &str = "import:";

/// The `_topic` of an import's rows.
pub fn import_topic(import_id: &str) -> String {
    format!("{IMPORT_PREFIX}{import_id}")
}

/// Where the manifest of a partition that begins at `from` lies.
pub fn manifest_path(tp: &TopicPartition, from: i64) -> String {
    format!("{}{from:020}.json", manifest_folder(tp))
}

/// The folder of a partition's manifests, with the closing slash.
pub fn manifest_folder(tp: &TopicPartition) -> String {
    format!("manifests/{}/{}/", tp.topic, tp.partition)
}

/// Where the manifest of an import lies.
pub fn import_path(stream: &str, import_id: &str) -> String {
    format!("imports/{stream}/{import_id}.json")
}

/// What a manifest's JSON says. Refuses a newer form than `newest`.
pub(crate) fn parse<T: for<'de> Deserialize<'de>>(path: &str, json: &[u8], newest: u8) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        v: u8,
    }
    let damaged = || format!("manifest {path} can't be read");
    let Version { v } = serde_json::from_slice(json).with_context(damaged)?;
    if v > newest {
        bail!("manifest {path} has version {v}; this program reads up to {newest}: upgrade it");
    }
    serde_json::from_slice(json).with_context(damaged)
}

/// An event day as `2016-06-14`.
pub(crate) mod day {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use shared_model::time::EventDay;

    pub(crate) fn serialize<S: Serializer>(day: &EventDay, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(day)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventDay, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map(EventDay::from_date)
            .map_err(|_| D::Error::custom(format!("no calendar date: {text}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let segment = Segment {
            path: "data/stream=clicks/event_day=2016-06-14/events-0-7-9-00ff.parquet".into(),
            event_day: EventDay::of(1_465_876_799_998),
            from_offset: 7,
            to_offset: 9,
            rows: 2,
            bytes: 100,
            checksum: "00000000000000ff".into(),
            min_event_time: 1,
            max_event_time: 2,
        };
        Manifest {
            v: MANIFEST_VERSION,
            stream: "clicks".into(),
            stream_version: "0000000000000001".into(),
            topic: "events".into(),
            partition: 0,
            from: Cut::start(7),
            to: Cut { epoch: 3, clock: 29, ..Cut::start(9) },
            segments: vec![segment],
            rejects: None,
            ticks: 0,
            gaps: vec![],
            nonce: "n".into(),
            written_at: 5,
        }
    }

    #[test]
    fn a_manifest_round_trips_and_shows_its_days_as_dates() {
        let json = manifest().to_json();
        assert!(String::from_utf8_lossy(&json).contains(r#""event_day": "2016-06-14""#));
        assert_eq!(Manifest::from_json("x", &json).unwrap(), manifest());
    }

    #[test]
    fn what_would_break_the_chain_or_is_newer_is_refused() {
        let check = |change: fn(&mut Manifest), expected: &str| {
            let mut changed = manifest();
            change(&mut changed);
            let error = format!("{:#}", Manifest::from_json("m.json", &changed.to_json()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check(|m| m.to.offset = 7, "seals no offset");
        check(|m| m.v = 2, "upgrade it");
        assert!(Manifest::from_json("m.json", b"{}").is_err());
    }

    #[test]
    fn names_sort_as_their_offsets_do() {
        let tp = TopicPartition::new("events", 3);
        assert_eq!(manifest_path(&tp, 42), "manifests/events/3/00000000000000000042.json");
        assert!(manifest_path(&tp, 99) < manifest_path(&tp, 100));
    }
}
