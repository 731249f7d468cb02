//! Rows of several Parquet files as one: copied part after part, each row exactly once, in the order of the parts.
//!
//! What is written is held to what was asked for, row by row: each part has the topic and the partition that it should
//! have, all its rows, and offsets that ascend within its range. Columns are those of all files together; where a file
//! lacks one, its rows have NULL there, which a computation makes of a column that is missing, too.
//!
//! Memory: a row group of a file that is read, and [`GROUP_ROWS`] rows or [`GROUP_BYTES`] of those that are written,
//! each as it is and encoded; whatever the files' lengths.

use crate::archive::compaction::Place;
use crate::archive::segment::SYSTEM_COLUMNS;
use crate::plan;
use anyhow::{Context, Result, bail, ensure};
use polars::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A row group that is written has no more rows than this. In unit tests few, so that files have several.
const GROUP_ROWS: usize = if cfg!(test) { 5 } else { 1 << 17 };
/// Nor is more held, about, before one is written.
const GROUP_BYTES: usize = 48 << 20;

/// A segment's rows in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The file that has them, on this machine.
    pub(crate) file: PathBuf,
    /// Its rows before them.
    pub(crate) from: u64,
    /// The segment.
    pub(crate) place: Place,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merged {
    /// How many rows.
    pub(crate) rows: u64,
    /// The lowest event time.
    pub(crate) min_event_time: i64,
    /// The highest event time.
    pub(crate) max_event_time: i64,
}

/// Writes the rows of parts, one part after the other, as one file. Blocks.
///
/// # Errors
/// Where a file can't be read or written, files have a column of different types, or the rows are not those of the parts.
pub(crate) fn merge(parts: &[Part], to: impl Write) -> Result<Merged> {
    for pair in parts.windows(2) {
        let (a, b) = (&pair[0].place, &pair[1].place);
        let is_one = (&a.topic, a.partition) == (&b.topic, b.partition);
        let is_after = a.position() < b.position() && (!is_one || a.to_offset <= b.from_offset);
        ensure!(is_after, "segments {} and {} overlap, or are not in the order of the log", a.path, b.path);
    }
    let columns = columns(parts)?;
    let schema: Schema = columns.iter().cloned().collect();
    let writer = ParquetWriter::new(to).with_compression(ParquetCompression::Zstd(None)).set_parallel(false);
    let mut writer = writer.batched(&schema)?;
    let mut check = Check::new(parts);
    let mut held: Option<DataFrame> = None;
    for stretch in stretches(parts) {
        let there = schema_of(stretch.file)?;
        let mut at = stretch.from;
        while at < stretch.from + stretch.rows {
            let rows = (stretch.from + stretch.rows - at).min(GROUP_ROWS as u64);
            let select: Vec<Expr> = columns
                .iter()
                .map(|(name, dtype)| match there.contains(name) {
                    true => col(name.clone()),
                    false => lit(NULL).cast(dtype.clone()).alias(name.clone()),
                })
                .collect();
            let scan = plan::scan(&[stretch.file.to_owned()])?.select(select);
            let frame = scan.slice(i64::try_from(at)?, u32::try_from(rows)?).collect();
            let frame = in_utc(Context::with_context(frame, || shown(stretch.file))?)?;
            ensure!(frame.height() as u64 == rows, "{} has fewer rows than it should", shown(stretch.file));
            check.take(&frame).with_context(|| shown(stretch.file))?;
            match &mut held {
                Some(held) => _ = held.vstack_mut(&frame)?,
                None => held = Some(frame),
            }
            held = held.map(|held| write_full(held, |group| Ok(writer.write_batch(group)?))).transpose()?;
            at += rows;
        }
    }
    if let Some(mut rest) = held.filter(|rest| rest.height() > 0) {
        rest.rechunk_mut();
        writer.write_batch(&rest)?;
    }
    writer.finish()?;
    check.finish()
}

/// Writes row groups while there are enough rows for one; gives those that are left.
fn write_full(mut held: DataFrame, mut write: impl FnMut(&DataFrame) -> Result<()>) -> Result<DataFrame> {
    while held.height() >= GROUP_ROWS || held.estimated_size() >= GROUP_BYTES {
        let rows = held.height().min(GROUP_ROWS);
        let (mut group, rest) = held.split_at(i64::try_from(rows)?);
        // A chunk becomes a row group.
        group.rechunk_mut();
        write(&group)?;
        held = rest;
        if held.height() == 0 {
            break;
        }
    }
    Ok(held)
}

/// The archive's columns of times.
const TIMES: [&str; 3] = ["_ingest_time", "_event_time", "_produced_time"];

fn utc() -> DataType {
    DataType::Datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC))
}

/// Gives times their zone, where a file that was written without has them.
fn in_utc(mut frame: DataFrame) -> Result<DataFrame> {
    for name in TIMES {
        let column = frame.column(name)?;
        if *column.dtype() != utc() {
            // Not a cast, which drops the zone.
            let millis = column.cast(&DataType::Int64)?.i64()?.clone();
            let column = millis.into_datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC)).into_column();
            frame.replace(name, column)?;
        }
    }
    Ok(frame)
}

fn shown(file: &Path) -> String {
    format!("file {}", file.display())
}

/// Rows of one file that follow each other, of one part or several.
struct Stretch<'a> {
    file: &'a Path,
    from: u64,
    rows: u64,
}

/// Parts that follow each other in one file are read together.
fn stretches(parts: &[Part]) -> Vec<Stretch<'_>> {
    let mut stretches: Vec<Stretch<'_>> = Vec::new();
    for Part { file, from, place } in parts {
        match stretches.last_mut() {
            Some(last) if last.file == file.as_path() && last.from + last.rows == *from => {
                last.rows += place.rows;
            }
            _ => stretches.push(Stretch { file, from: *from, rows: place.rows }),
        }
    }
    stretches
}

fn schema_of(file: &Path) -> Result<Arc<ArrowSchema>> {
    let open = File::open(file).with_context(|| shown(file))?;
    let schema = ParquetReader::new(open).schema();
    Context::with_context(schema, || format!("{} is not a Parquet file", shown(file)))
}

/// Which sets of parts may be written as one: groups of those that have no column of different types, each set in the first
/// group that it fits. Reads the files' footers. Blocks.
///
/// # Errors
/// As [`merge`], for each set by itself.
pub(crate) fn alike(sets: &[Vec<Part>]) -> Result<Vec<Vec<usize>>> {
    let mut groups: Vec<(Vec<usize>, BTreeMap<PlSmallStr, DataType>)> = Vec::new();
    for (at, set) in sets.iter().enumerate() {
        let columns = columns(set)?;
        let fits = |known: &BTreeMap<PlSmallStr, DataType>| {
            columns.iter().all(|(name, dtype)| known.get(name).is_none_or(|known| known == dtype))
        };
        match groups.iter_mut().find(|(_, known)| fits(known)) {
            Some((group, known)) => {
                group.push(at);
                known.extend(columns);
            }
            None => groups.push((vec![at], columns.into_iter().collect())),
        }
    }
    Ok(groups.into_iter().map(|(group, _)| group).collect())
}

/// The columns of all files: declared fields first, as they are met, then those of the archive.
fn columns(parts: &[Part]) -> Result<Vec<(PlSmallStr, DataType)>> {
    let mut files: Vec<&Path> = parts.iter().map(|part| part.file.as_path()).collect();
    files.sort_unstable();
    files.dedup();
    let mut columns: Vec<(PlSmallStr, DataType)> = Vec::new();
    for file in files {
        let schema = schema_of(file)?;
        for name in SYSTEM_COLUMNS {
            ensure!(
                schema.contains(name),
                "{} lacks column {name}: the archive did not write it",
                shown(file)
            );
        }
        for (name, field) in schema.iter() {
            let dtype = match DataType::from_arrow_field(field) {
                DataType::Datetime(TimeUnit::Milliseconds, _) if TIMES.contains(&name.as_str()) => utc(),
                dtype => dtype,
            };
            match columns.iter().find(|(known, _)| known == name) {
                None => columns.push((name.clone(), dtype)),
                Some((_, known)) if *known == dtype => {}
                Some((_, known)) => bail!(
                    "field {name} is {dtype} in {} and {known} in another file of the day: give the field a new \
                     name, or import the old data anew",
                    shown(file)
                ),
            }
        }
    }
    let of_archive = |name: &PlSmallStr| SYSTEM_COLUMNS.iter().position(|system| *system == name.as_str());
    columns.sort_by_key(|(name, _)| of_archive(name).map_or(0, |at| at + 1));
    Ok(columns)
}

/// Holds rows, as they come, to the parts.
struct Check<'a> {
    parts: std::slice::Iter<'a, Part>,
    /// The part whose rows come, how many of them are still to come, and the lowest offset that the next may have.
    open: Option<(&'a Place, u64, i64)>,
    merged: Merged,
}

impl<'a> Check<'a> {
    fn new(parts: &'a [Part]) -> Check<'a> {
        let merged = Merged { rows: 0, min_event_time: i64::MAX, max_event_time: i64::MIN };
        Check { parts: parts.iter(), open: None, merged }
    }

    fn take(&mut self, frame: &DataFrame) -> Result<()> {
        let (topics, partitions) = (frame.column("_topic")?.str()?, frame.column("_partition")?.i32()?);
        let offsets = frame.column("_offset")?.i64()?;
        for ((topic, partition), offset) in topics.iter().zip(partitions.iter()).zip(offsets.iter()) {
            self.row(topic, partition, offset)?;
        }
        let times = frame.column(plan::EVENT_TIME)?.cast(&DataType::Int64)?;
        for time in times.i64()?.iter().flatten() {
            self.merged.min_event_time = self.merged.min_event_time.min(time);
            self.merged.max_event_time = self.merged.max_event_time.max(time);
        }
        Ok(())
    }

    fn row(&mut self, topic: Option<&str>, partition: Option<i32>, offset: Option<i64>) -> Result<()> {
        while self.open.is_none_or(|(_, left, _)| left == 0) {
            let Some(part) = self.parts.next() else { bail!("there are more rows than there should be") };
            self.open = Some((&part.place, part.place.rows, part.place.from_offset));
        }
        let Some((place, left, lowest)) = &mut self.open else { return Ok(()) };
        let is_there = topic == Some(place.topic.as_str()) && partition == Some(place.partition);
        match offset.filter(|offset| is_there && (*lowest..place.to_offset).contains(offset)) {
            Some(offset) => (*left, *lowest) = (*left - 1, offset + 1),
            None => bail!(
                "a row of {topic:?}, {partition:?}, {offset:?} stands where one of segment {} should: the archive is \
                 damaged there",
                place.path
            ),
        }
        self.merged.rows += 1;
        Ok(())
    }

    fn finish(self) -> Result<Merged> {
        let left = self.open.map_or(0, |(_, left, _)| left);
        let left = left + self.parts.map(|part| part.place.rows).sum::<u64>();
        ensure!(left == 0, "{left} rows are missing");
        Ok(self.merged)
    }
}
