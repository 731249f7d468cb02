//! Runs a day's plans and turns what they give into canonical cells: sorted by key, then bucket, each once, with the
//! hash that says whether two computations gave the same.
//!
//! Memory, with `limit` the [`Budget`]:
//!
//! - finding repeats reads identities and positions only, and takes about 64 bytes for each row of one *part*
//!   (identities modulo the number of parts, which is chosen so that a part takes at most `limit`);
//! - each repeated delivery is then kept by its position, about 40 bytes;
//! - a plan takes one *slice* of the day (spans of event time, chosen so that at 200 bytes a row a slice takes at most
//!   `limit`, down to 5 minutes), however few cells come of it;
//! - the cells of one metric and day are held, about 150 bytes each with short keys, while they are written;
//! - beside these, Polars' read buffers: some 10 MB for each file that is being read.

mod cells;
mod segments;

pub use cells::{Cell, canonical, hash};

use crate::plan::{self, Segments};
use anyhow::{Context, Result, ensure};
use cells::Collector;
use polars::prelude::{BooleanChunked, DataFrame, Engine, LazyFrame, PolarsResult};
use shared_model::catalog::Stream;
use shared_model::metric::{Binding, Metric};
use shared_model::time::{EventDay, Interval};
use std::path::PathBuf;
use std::sync::Arc;

/// What one step of a computation may take; what that means is said above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// In bytes.
    pub memory: u64,
}

/// Bytes that the search for repeats takes for a row, and a plan for a row of its slice.
const BYTES_OF_IDENTITY: u64 = 64;
const BYTES_OF_ROW: u64 = 200;

/// The least length of a slice: 5 minutes, so that most grains' buckets are in one slice.
const STEP: i64 = 300_000;

impl Budget {
    /// Into how many parts the search for repeats among so many rows is cut.
    fn parts(self, rows: u64) -> u64 {
        rows.saturating_mul(BYTES_OF_IDENTITY).div_ceil(self.memory.max(1)).clamp(1, 4096)
    }

    /// The slices of a day that plans take one after the other; `None`: all at once.
    fn slices(self, day: EventDay, rows: u64) -> Vec<Option<Interval>> {
        let span = day.interval();
        let steps = (span.end - span.start) / STEP;
        let count =
            rows.saturating_mul(BYTES_OF_ROW).div_ceil(self.memory.max(1)).clamp(1, steps as u64) as i64;
        if count == 1 {
            return vec![None];
        }
        let bound = |at: i64| span.start + (steps * at / count) * STEP;
        (0..count).map(|at| Some(Interval { start: bound(at), end: bound(at + 1) })).collect()
    }
}

/// The files of one stream that a day is computed from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The stream.
    pub stream: Arc<Stream>,
    /// Its segments of the day, on this machine. Without any, the stream brings nothing.
    pub files: Vec<PathBuf>,
    /// Their rows, as the ledger says; the files are held to it.
    pub rows: u64,
}

/// A day, its repeats found: what all its metrics are computed from.
#[derive(Debug, Clone)]
pub struct Day {
    day: EventDay,
    budget: Budget,
    inputs: Vec<Input>,
}

/// One stream's day.
#[derive(Debug, Clone)]
struct Input {
    stream: Arc<Stream>,
    segments: Vec<Segments>,
    /// Deliveries.
    rows: u64,
    /// The positions of those that must go.
    gone: DataFrame,
}

impl Day {
    /// Finds the repeats among the segments of each stream; a stream comes once. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read, or isn't as the catalog or the ledger says.
    pub fn open(day: EventDay, sources: Vec<Source>, budget: Budget) -> Result<Day> {
        let with_files = sources.into_iter().filter(|source| !source.files.is_empty());
        let inputs = with_files.map(|source| {
            let failed = format!("day {day} of stream {}", source.stream.name);
            Input::open(source, budget).context(failed)
        });
        Ok(Day { day, budget, inputs: inputs.collect::<Result<_>>()? })
    }

    /// How many deliveries of the day are repeats.
    pub fn repeats(&self) -> usize {
        self.inputs.iter().map(|input| input.gone.height()).sum()
    }

    /// The cells of a metric on this day, canonical. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read, or a count or sum would pass its bound.
    pub fn cells(&self, metric: &Metric) -> Result<Vec<Cell>> {
        let mut collector = Collector::new(metric);
        for input in &self.inputs {
            let stream = &input.stream.name;
            let Some(binding) = metric.bindings.iter().find(|binding| binding.stream == *stream) else {
                continue;
            };
            for slice in self.budget.slices(self.day, input.rows) {
                let failed = || format!("metric {}, stream {stream}, day {}", metric.name, self.day);
                let frame = input.cells(metric, binding, slice).with_context(failed)?;
                collector.take(binding, &frame).with_context(failed)?;
            }
        }
        collector.finish().with_context(|| format!("metric {}, day {}", metric.name, self.day))
    }
}

impl Input {
    fn open(source: Source, budget: Budget) -> Result<Input> {
        let (segments, rows) = segments::inspect(&source.stream, &source.files)?;
        ensure!(
            rows == source.rows,
            "the files have {rows} rows, the ledger {}: fetch them anew",
            source.rows
        );
        let mut input = Input { stream: source.stream, segments, rows, gone: DataFrame::empty() };
        // Without an identity each delivery is an event of its own.
        if !input.stream.identity.is_empty() {
            input.gone = input.repeats(budget).context("repeats can't be found")?;
        }
        Ok(input)
    }

    /// The positions of the deliveries that don't survive.
    fn repeats(&self, budget: Budget) -> Result<DataFrame> {
        let deliveries = || plan::deliveries(&self.stream, &self.segments);
        let parts = budget.parts(self.rows);
        let mut gone = DataFrame::empty();
        for part in 0..parts {
            let repeated = collect(plan::repeated(deliveries()?, part, parts))?;
            if repeated.height() == 0 {
                continue;
            }
            let found = all_but_first(&collect(plan::contenders(deliveries()?, repeated))?)?;
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
        let rows = plan::deliveries(&self.stream, &self.segments)?;
        let rows = match slice {
            Some(slice) => plan::within(rows, slice),
            None => rows,
        };
        collect(plan::cells(&self.stream, metric, binding, plan::survivors(rows, &self.gone)))
    }
}

/// Runs a plan with the streaming engine.
pub(crate) fn collect(plan: LazyFrame) -> PolarsResult<DataFrame> {
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
