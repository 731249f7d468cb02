//! Runs a day's plans and turns what they give into canonical cells: sorted by key, then bucket, each once, with the
//! hash that says whether two computations gave the same.
//!
//! Memory, with `limit` the [`MemoryLimit`]:
//!
//! - finding repeats reads identities and positions only, and takes about 64 bytes for each row of one *part*
//!   (identities modulo the number of parts, which is chosen so that a part takes at most `limit`);
//! - each repeated delivery is then kept by its position, about 40 bytes;
//! - a plan takes one *slice* of the day (spans of event time, chosen so that at 200 bytes a row a slice takes at most
//!   `limit`, down to 5 minutes), however few cells come of it;
//! - the cells of one metric and day are held, about 150 bytes each with short keys, while they are written. [`day`]
//!   holds those of all the metrics that it is asked for: [`Day`] gives them one by one;
//! - beside these, Polars' read buffers: some 10 MB for each file that is being read.

mod cells;
mod segments;

pub use cells::{Cell, Rows};

use crate::plan::{self, Segments};
use anyhow::{Context, Result};
use cells::Collector;
use polars::prelude::{BooleanChunked, DataFrame, Engine, LazyFrame, PolarsResult};
use shared_model::catalog::{Catalog, Stream};
use shared_model::metric::{Binding, Metric};
use shared_model::time::{EventDay, Interval};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What one step of a computation may take, in bytes; what that means is said above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit(pub u64);

impl Default for MemoryLimit {
    /// 1 GiB.
    fn default() -> MemoryLimit {
        MemoryLimit(1 << 30)
    }
}

/// Bytes that the search for repeats takes for a row, and a plan for a row of its slice.
const BYTES_OF_IDENTITY: u64 = 64;
const BYTES_OF_ROW: u64 = 200;

/// The least length of a slice: 5 minutes, so that most grains' buckets are in one slice.
const STEP: i64 = 300_000;

impl MemoryLimit {
    /// Into how many parts the search for repeats among so many rows is cut.
    fn parts(self, rows: u64) -> u64 {
        rows.saturating_mul(BYTES_OF_IDENTITY).div_ceil(self.0.max(1)).clamp(1, 4096)
    }

    /// The slices of a day that plans take one after the other; `None`: all at once.
    fn slices(self, day: EventDay, rows: u64) -> Vec<Option<Interval>> {
        let span = day.interval();
        let steps = (span.end - span.start) / STEP;
        let count = rows.saturating_mul(BYTES_OF_ROW).div_ceil(self.0.max(1)).clamp(1, steps as u64) as i64;
        if count == 1 {
            return vec![None];
        }
        let bound = |at: i64| span.start + (steps * at / count) * STEP;
        (0..count).map(|at| Some(Interval { start: bound(at), end: bound(at + 1) })).collect()
    }
}

/// The cells of metrics on one event day, from the Parquet segments of each stream (by its name) on this machine.
/// A stream without segments brings nothing. Blocks.
///
/// # Errors
/// Where a segment can't be read or isn't as the catalog says.
pub fn day(
    catalog: &Catalog,
    metrics: &[Arc<Metric>],
    day: EventDay,
    segments: &BTreeMap<String, Vec<PathBuf>>,
    memory: MemoryLimit,
) -> Result<Vec<(Arc<Metric>, Rows)>> {
    let needed = |stream: &Stream| metrics.iter().any(|metric| binding(metric, &stream.name).is_some());
    let streams = catalog.streams.iter().filter(|stream| needed(stream));
    let sources = streams.filter_map(|stream| Some((stream.clone(), segments.get(&stream.name)?.clone())));
    let opened = Day::open(day, sources.collect(), memory)?;
    metrics.iter().map(|metric| Ok((metric.clone(), opened.rows(metric)?))).collect()
}

/// A day, its repeats found: what all its metrics are computed from.
#[derive(Debug, Clone)]
pub struct Day {
    day: EventDay,
    memory: MemoryLimit,
    sources: Vec<Source>,
}

/// One stream's day.
#[derive(Debug, Clone)]
struct Source {
    stream: Arc<Stream>,
    segments: Vec<Segments>,
    /// Deliveries.
    rows: u64,
    /// The positions of those that must go.
    gone: DataFrame,
}

impl Day {
    /// Finds the repeats among the segments of each stream. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read or isn't as the catalog says.
    pub fn open(
        day: EventDay,
        streams: Vec<(Arc<Stream>, Vec<PathBuf>)>,
        memory: MemoryLimit,
    ) -> Result<Day> {
        let with_files = streams.into_iter().filter(|(_, files)| !files.is_empty());
        let sources = with_files.map(|(stream, files)| {
            let failed = format!("day {day} of stream {}", stream.name);
            Source::open(stream, &files, memory).context(failed)
        });
        Ok(Day { day, memory, sources: sources.collect::<Result<_>>()? })
    }

    /// How many deliveries of the day there are, and how many of them are repeats.
    pub fn deliveries(&self) -> (u64, u64) {
        let sums = |(rows, gone), source: &Source| (rows + source.rows, gone + source.gone.height() as u64);
        self.sources.iter().fold((0, 0), sums)
    }

    /// The cells of a metric on this day. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read, or a count or sum would pass its bound.
    pub fn rows(&self, metric: &Metric) -> Result<Rows> {
        let mut collector = Collector::new(metric);
        for source in &self.sources {
            let Some(binding) = binding(metric, &source.stream.name) else { continue };
            for slice in self.memory.slices(self.day, source.rows) {
                let failed =
                    || format!("metric {}, stream {}, day {}", metric.name, binding.stream, self.day);
                let frame = source.cells(metric, binding, slice).with_context(failed)?;
                collector.take(binding, &frame).with_context(failed)?;
            }
        }
        collector.finish().with_context(|| format!("metric {}, day {}", metric.name, self.day))
    }
}

impl Source {
    fn open(stream: Arc<Stream>, files: &[PathBuf], memory: MemoryLimit) -> Result<Source> {
        let (segments, rows) = segments::inspect(&stream, files)?;
        let mut source = Source { stream, segments, rows, gone: DataFrame::empty() };
        // Without an identity each delivery is an event of its own.
        if !source.stream.identity.is_empty() {
            source.gone = source.repeats(memory).context("repeats can't be found")?;
        }
        Ok(source)
    }

    /// The positions of the deliveries that don't survive.
    fn repeats(&self, memory: MemoryLimit) -> Result<DataFrame> {
        let parts = memory.parts(self.rows);
        let mut gone = DataFrame::empty();
        for part in 0..parts {
            let repeated = collect(plan::repeated(plan::scan(&self.stream, &self.segments)?, part, parts))?;
            if repeated.height() == 0 {
                continue;
            }
            let found = collect(plan::deliveries(plan::scan(&self.stream, &self.segments)?, repeated))?;
            let found = all_but_first(&found)?;
            if gone.width() == 0 {
                gone = found;
            } else {
                gone.vstack_mut(&found)?;
            }
        }
        Ok(gone)
    }

    /// What the plan of a metric gives for a slice of the day.
    fn cells(&self, metric: &Metric, binding: &Binding, slice: Option<Interval>) -> PolarsResult<DataFrame> {
        let rows = plan::scan(&self.stream, &self.segments)?;
        let rows = match slice {
            Some(slice) => plan::within(rows, slice),
            None => rows,
        };
        collect(plan::cells(&self.stream, metric, binding, plan::survivors(rows, &self.gone)))
    }
}

/// How a stream feeds a metric, if it does.
fn binding<'a>(metric: &'a Metric, stream: &str) -> Option<&'a Binding> {
    metric.bindings.iter().find(|binding| binding.stream == stream)
}

/// Runs a plan with the streaming engine.
fn collect(plan: LazyFrame) -> PolarsResult<DataFrame> {
    // Several frames come only of plans with several sinks.
    Ok(plan.collect_with_engine(Engine::Streaming)?.unwrap_single())
}

/// The positions of all rows but the first of each identity; the rows of one identity stand together.
fn all_but_first(deliveries: &DataFrame) -> PolarsResult<DataFrame> {
    let [hi, lo] = plan::IDENTITY;
    let (hi, lo) = (deliveries.column(hi)?.u64()?, deliveries.column(lo)?.u64()?);
    let mut last = None;
    let mask = hi.iter().zip(lo.iter()).map(|identity| last.replace(identity) == Some(identity));
    let mask: BooleanChunked = mask.collect();
    deliveries.select(plan::POSITION)?.filter(&mask)
}

#[cfg(test)]
mod tests;
