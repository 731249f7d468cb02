//! Parquet segments: the rows of one event day, and the rejects, as files.
//!
//! A segment's columns are the stream's declared fields, then where the row stood in the log, its times and its
//! identity. Its name is made of its content, so that writing it again changes nothing.

use crate::archive::buffer::Batch;
use crate::archive::checksum;
use crate::archive::manifest::{Rejects, Segment};
use crate::archive::store::Store;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use polars::prelude::*;
use shared_model::catalog::Stream;
use shared_model::event::{Event, FieldType, Value};
use shared_model::offsets::TopicPartition;
use shared_model::time::{EventDay, Millis};
use std::sync::Arc;

/// The columns behind the declared fields, in their order.
pub const SYSTEM_COLUMNS: [&str; 8] = [
    "_topic",
    "_partition",
    "_offset",
    "_ingest_time",
    "_event_time",
    "_produced_time",
    "_identity_hi",
    "_identity_lo",
];

/// A valid record with its place in the log.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Its offset; of an import the row's number.
    pub(crate) offset: i64,
    /// The broker's append time; `None` for an imported row.
    pub(crate) ingest_time: Option<Millis>,
    /// The producer's own time.
    pub(crate) produced: Option<Millis>,
    /// What it says.
    pub(crate) event: Event,
}

impl Row {
    /// An estimate of the bytes that it takes in memory.
    pub(crate) fn size(&self) -> usize {
        let value = |value: &Value| {
            size_of::<Value>() + if let Value::Str(text) = value { text.len() + 16 } else { 0 }
        };
        size_of::<Row>() + self.event.values.iter().map(value).sum::<usize>()
    }
}

/// A record that could not be decoded, with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RejectedRow {
    /// Its offset; of an import the row's number.
    pub(crate) offset: i64,
    /// The broker's append time; `None` for an imported row.
    pub(crate) ingest_time: Option<Millis>,
    /// The short name of the reason.
    pub(crate) reason: &'static str,
    /// The reason for people.
    pub(crate) detail: String,
    /// The original bytes.
    pub(crate) value: Option<Vec<u8>>,
}

impl RejectedRow {
    /// An estimate of the bytes that it takes in memory.
    pub(crate) fn size(&self) -> usize {
        size_of::<RejectedRow>() + self.detail.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// How rows become a file's bytes. Polars' Parquet always, but where a test needs thousands of files.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Rows of one event day.
    pub(crate) rows: fn(&Stream, &TopicPartition, Vec<Row>) -> Result<Bytes>,
    /// Rejects.
    pub(crate) rejects: fn(&TopicPartition, Vec<RejectedRow>) -> Result<Bytes>,
}

/// Parquet.
const PARQUET: Form = Form {
    rows: |stream, tp, rows| parquet(&mut frame(stream, tp, rows)?),
    rejects: |tp, rows| parquet(&mut reject_frame(tp, rows)?),
};

/// The files of one seal.
pub(crate) struct Files {
    pub(crate) store: Store,
    pub(crate) stream: Arc<Stream>,
    pub(crate) tp: TopicPartition,
    form: Form,
    segments: Vec<Segment>,
    rejects: Rejects,
}

impl Files {
    /// None written yet. `tp` is what the rows say of where they stood.
    pub(crate) fn new(store: Store, stream: Arc<Stream>, tp: TopicPartition) -> Files {
        Files { store, stream, tp, form: PARQUET, segments: Vec::new(), rejects: Rejects::default() }
    }

    /// In another form.
    pub(crate) fn written_as(self, form: Form) -> Files {
        Files { form, ..self }
    }

    /// Writes one.
    pub(crate) async fn write(&mut self, batch: Batch) -> Result<()> {
        match batch {
            Batch::Rows(day, rows) => {
                let segment = self.write_rows(day, rows).await?;
                self.segments.push(segment);
            }
            Batch::Rejects(rows) => {
                let count = rows.len() as u64;
                let path = self.write_rejects(rows).await?;
                self.rejects.rows += count;
                self.rejects.paths.push(path);
            }
        }
        Ok(())
    }

    /// What was written since the last time, for a manifest.
    pub(crate) fn take(&mut self) -> (Vec<Segment>, Option<Rejects>) {
        let rejects = std::mem::take(&mut self.rejects);
        (std::mem::take(&mut self.segments), (rejects.rows > 0).then_some(rejects))
    }

    /// Writes rows of one event day, ascending by offset, and says what was written. `rows` must not be empty.
    async fn write_rows(&self, day: EventDay, rows: Vec<Row>) -> Result<Segment> {
        let Files { store, stream, tp, form, .. } = self;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            bail!("a segment of {tp} and day {day} has no rows: this is a fault of the archive step");
        };
        let (from_offset, to_offset) = (first.offset, last.offset + 1);
        let times = rows.iter().map(|row| row.event.time);
        let (min, max) =
            times.fold((Millis::MAX, Millis::MIN), |(min, max), time| (min.min(time), max.max(time)));
        let count = rows.len() as u64;
        let bytes = (form.rows)(stream, tp, rows).with_context(|| format!("rows of {tp}, day {day}"))?;
        let checksum = checksum::of(&bytes);
        let name = file_name(tp, from_offset, to_offset, &checksum);
        let path = format!("data/stream={}/event_day={day}/{name}", stream.name);
        let length = bytes.len() as u64;
        store.put(&path, bytes).await?;
        Ok(Segment {
            path,
            event_day: day,
            from_offset,
            to_offset,
            rows: count,
            bytes: length,
            checksum,
            min_event_time: min,
            max_event_time: max,
        })
    }

    /// Writes rejects and says where. `rows` must not be empty.
    async fn write_rejects(&self, rows: Vec<RejectedRow>) -> Result<String> {
        let Files { store, stream, tp, form, .. } = self;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            bail!("rejects of {tp} have no rows: this is a fault of the archive step");
        };
        let (from, to) = (first.offset, last.offset + 1);
        let bytes = (form.rejects)(tp, rows).with_context(|| format!("rejects of {tp}"))?;
        let name = file_name(tp, from, to, &checksum::of(&bytes));
        let path = format!("rejects/stream={}/{name}", stream.name);
        store.put(&path, bytes).await?;
        Ok(path)
    }
}

/// `events-3-100-200-00ff...parquet`; an import's topic `import:<hash>` loses its colon, which some stores and
/// shells dislike.
fn file_name(tp: &TopicPartition, from: i64, to: i64, hash: &str) -> String {
    format!("{}-{}-{from}-{to}-{hash}.parquet", tp.topic.replace(':', "_"), tp.partition)
}

/// Where a segment's or reject file's name says that its rows stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedRange {
    /// The topic as the name has it.
    pub(crate) topic: String,
    /// The partition.
    pub(crate) partition: i32,
    /// The offset of its first row.
    pub(crate) from: i64,
}

/// Reads what a file's name says, if the archive gave it that name.
pub(crate) fn parse_file_name(name: &str) -> Option<NamedRange> {
    let mut parts = name.strip_suffix(".parquet")?.rsplitn(5, '-');
    let (_hash, _to) = (parts.next()?, parts.next()?);
    let from = parts.next()?.parse().ok()?;
    let partition = parts.next()?.parse().ok()?;
    Some(NamedRange { topic: parts.next()?.to_owned(), partition, from })
}

/// The column of a field that records carry, which has its name. An append time is `_ingest_time`.
fn column(stream: &Stream, at: usize, rows: &[Row]) -> Column {
    let field = &stream.fields[at];
    let name = PlSmallStr::from_str(&field.name);
    let values = rows.iter().map(|row| &row.event.values[at]);
    match field.ty {
        FieldType::String => {
            let texts = values.map(|value| if let Value::Str(text) = value { Some(&**text) } else { None });
            StringChunked::from_iter_options(name, texts).into_column()
        }
        FieldType::Int | FieldType::Decimal(_) => {
            let ints = values.map(|value| if let Value::Int(int) = value { Some(*int) } else { None });
            Int64Chunked::from_iter_options(name, ints).into_column()
        }
        FieldType::Float => {
            let floats =
                values.map(|value| if let Value::Float(float) = value { Some(*float) } else { None });
            Float64Chunked::from_iter_options(name, floats).into_column()
        }
        FieldType::Bool => {
            let bools = values.map(|value| if let Value::Bool(bool) = value { Some(*bool) } else { None });
            BooleanChunked::from_iter_options(name, bools).into_column()
        }
    }
}

fn frame(stream: &Stream, tp: &TopicPartition, rows: Vec<Row>) -> Result<DataFrame> {
    let mut columns: Vec<Column> = (0..stream.recorded).map(|at| column(stream, at, &rows)).collect();
    columns.extend(place(tp, rows.iter().map(|row| row.offset).collect()));
    columns.push(times("_ingest_time", rows.iter().map(|row| row.ingest_time)));
    columns.push(times("_event_time", rows.iter().map(|row| Some(row.event.time))));
    columns.push(times("_produced_time", rows.iter().map(|row| row.produced)));
    let identities =
        |half: fn(u128) -> u64| rows.iter().map(|row| half(row.event.identity.0)).collect::<Vec<_>>();
    columns.push(Column::new("_identity_hi".into(), identities(|id| (id >> 64) as u64)));
    columns.push(Column::new("_identity_lo".into(), identities(|id| id as u64)));
    Ok(DataFrame::new(rows.len(), columns)?)
}

fn reject_frame(tp: &TopicPartition, rows: Vec<RejectedRow>) -> Result<DataFrame> {
    let mut columns: Vec<Column> = place(tp, rows.iter().map(|row| row.offset).collect()).into();
    columns.push(times("_ingest_time", rows.iter().map(|row| row.ingest_time)));
    columns.push(Column::new("reason".into(), rows.iter().map(|row| row.reason).collect::<Vec<_>>()));
    columns
        .push(Column::new("detail".into(), rows.iter().map(|row| row.detail.as_str()).collect::<Vec<_>>()));
    let values = rows.iter().map(|row| row.value.as_deref());
    columns.push(BinaryChunked::from_iter_options("value".into(), values).into_column());
    Ok(DataFrame::new(rows.len(), columns)?)
}

fn place(tp: &TopicPartition, offsets: Vec<i64>) -> [Column; 3] {
    let height = offsets.len();
    [
        Column::new_scalar("_topic".into(), Scalar::from(PlSmallStr::from_str(&tp.topic)), height),
        Column::new_scalar("_partition".into(), Scalar::from(tp.partition), height),
        Column::new("_offset".into(), offsets),
    ]
}

fn times(name: &'static str, millis: impl Iterator<Item = Option<Millis>>) -> Column {
    // Not a cast: without polars' time zone feature that drops the zone of all but empty columns.
    let millis: Int64Chunked = millis.collect_ca(name.into());
    millis.into_datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC)).into_column()
}

fn parquet(frame: &mut DataFrame) -> Result<Bytes> {
    let mut bytes = Vec::new();
    let writer = ParquetWriter::new(&mut bytes).with_compression(ParquetCompression::Zstd(None));
    // The archiver already works on several partitions at once.
    writer.set_parallel(false).finish(frame)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::samples;
    use shared_model::event::Identity;

    #[test]
    fn every_segment_has_the_same_columns_whatever_is_null() {
        let expected = [
            ("uuid", DataType::String),
            ("at", DataType::Int64),
            ("price", DataType::Int64),
            ("share", DataType::Float64),
            ("paid", DataType::Boolean),
            ("_topic", DataType::String),
            ("_partition", DataType::Int32),
            ("_offset", DataType::Int64),
            ("_ingest_time", DataType::Datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC))),
            ("_event_time", DataType::Datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC))),
            ("_produced_time", DataType::Datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC))),
            ("_identity_hi", DataType::UInt64),
            ("_identity_lo", DataType::UInt64),
        ];
        let filled =
            vec![Value::str("u"), Value::Int(1), Value::Int(2), Value::Float(0.5), Value::Bool(true)];
        for (values, time) in [(filled, Some(7)), (vec![Value::Null; 5], None)] {
            let event = Event { time: 5, values, identity: Identity(u128::MAX) };
            let row = Row { offset: 3, ingest_time: time, produced: time, event };
            let tp = TopicPartition::new("clicks", 2);
            let mut frame = frame(&samples::stream(), &tp, vec![row]).unwrap();
            let bytes = parquet(&mut frame).unwrap();
            let read = ParquetReader::new(std::io::Cursor::new(bytes)).finish().unwrap();
            let found: Vec<_> =
                read.schema().iter().map(|(name, dtype)| (name.as_str(), dtype.clone())).collect();
            assert_eq!(found, expected);
            assert!(read.equals_missing(&frame));
        }
    }

    #[test]
    fn a_file_s_name_tells_where_its_rows_stood() {
        let tp = TopicPartition::new("my-topic.a_b", 12);
        let name = file_name(&tp, 5, 9, "00ff");
        assert_eq!(name, "my-topic.a_b-12-5-9-00ff.parquet");
        let range = NamedRange { topic: "my-topic.a_b".into(), partition: 12, from: 5 };
        assert_eq!(parse_file_name(&name), Some(range));
        assert_eq!(parse_file_name("notes.txt"), None);
        assert_eq!(parse_file_name("a-b.parquet"), None);
    }
}
