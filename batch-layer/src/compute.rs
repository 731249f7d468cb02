//! Runs a day's plans and turns what they give into canonical cells: sorted by key, then bucket, each once, with the
//! hash that says whether two computations gave the same.
//!
//! Memory: a stream's day is cut into *slices* by identity, so that all deliveries of an event are in one, and skew of
//! time or key cuts none larger. Repeats are found, and cells grouped, one slice after the other. What each slice gives
//! of a cell is merged by a [`Sorter`], whose disk takes what memory shouldn't. So the number of slices changes nothing
//! but how often the files are read. With `memory` the [`Budget`]:
//!
//! - the plan over a slice takes about 200 bytes a row, however few cells come of it: slices are so many that this is
//!   at most half of `memory`;
//! - the cells that are held take at most a quarter;
//! - the rest is for what is read, and for rows on their way to a table.

mod segments;
mod cells;
mod sorted;
pub(crate) mod healed;

pub use cells::Cell;
pub use sorted::{Cells, Sorter};

use crate::plan::{self, Segments};
use anyhow::{Context, Result, ensure};
use polars::prelude::{BooleanChunked, DataFrame, Engine, LazyFrame, ParquetWriter, PolarsResult};
use shared_model::catalog::Stream;
use shared_model::metric::{Binding, Metric};
use shared_model::time::EventDay;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempPath;

/// What the computation of one metric and day may take; what that means is said above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// In bytes.
    pub memory: u64,
}

/// Bytes that a plan takes for a row of its slice.
const BYTES_OF_ROW: u64 = 200;

impl Budget {
    /// Into how many slices so many rows are cut.
    fn slices(self, rows: u64) -> u64 {
        rows.saturating_mul(BYTES_OF_ROW).div_ceil((self.memory / 2).max(1)).clamp(1, 4096)
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
#[derive(Debug)]
pub struct Day {
    day: EventDay,
    budget: Budget,
    inputs: Vec<Input>,
}

/// One stream's day.
#[derive(Debug)]
struct Input {
    stream: Arc<Stream>,
    segments: Vec<Segments>,
    slices: u64,
    /// Of each slice the positions of the deliveries that must go, where there are any: a Parquet file.
    gone: Vec<Option<TempPath>>,
}

impl Day {
    /// Finds the repeats in each stream; a stream comes once. Blocks.
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

    /// For the cells of a metric: what is to be merged with the day's is pushed first.
    pub fn sorter(&self, metric: &Arc<Metric>) -> Sorter {
        Sorter::new(metric, self.budget.memory / 4)
    }

    /// The cells of a metric on this day, and those that were pushed. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read, a count or sum would pass its bound, or the disk for cells is full.
    pub fn cells(&self, metric: &Metric, mut cells: Sorter) -> Result<Cells> {
        for input in &self.inputs {
            let stream = &input.stream.name;
            let Some(binding) = metric.bindings.iter().find(|binding| binding.stream == *stream) else {
                continue;
            };
            for (slice, gone) in (0..).zip(&input.gone) {
                let failed = || format!("metric {}, stream {stream}, day {}", metric.name, self.day);
                let frame = input.cells(metric, binding, slice, gone.as_deref()).with_context(failed)?;
                cells::take(metric, binding, &frame, &mut cells).with_context(failed)?;
            }
        }
        cells.finish().with_context(|| format!("metric {}, day {}", metric.name, self.day))
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
        let slices = budget.slices(rows);
        let mut input = Input { stream: source.stream, segments, slices, gone: Vec::new() };
        let gone = (0..slices).map(|slice| input.repeats(slice).context("repeats can't be found"));
        input.gone = gone.collect::<Result<_>>()?;
        Ok(input)
    }

    /// The positions of a slice's deliveries that don't survive.
    fn repeats(&self, slice: u64) -> Result<Option<TempPath>> {
        if self.stream.identity.is_empty() {
            // Each delivery is an event of its own.
            return Ok(None);
        }
        let repeated = collect(plan::repeated(self.deliveries(slice)?))?;
        if repeated.height() == 0 {
            return Ok(None);
        }
        let gone = all_but_first(&collect(plan::contenders(self.deliveries(slice)?, repeated))?)?;
        positions_file(gone).map(Some)
    }

    /// What the plan of a metric gives for a slice of the day.
    fn cells(
        &self,
        metric: &Metric,
        binding: &Binding,
        slice: u64,
        gone: Option<&Path>,
    ) -> PolarsResult<DataFrame> {
        let mut rows = self.deliveries(slice)?;
        if let Some(gone) = gone {
            rows = plan::survivors(rows, plan::scan(&[gone.to_owned()])?);
        }
        collect(plan::cells(&self.stream, metric, binding, rows))
    }

    fn deliveries(&self, slice: u64) -> PolarsResult<LazyFrame> {
        let rows = plan::deliveries(&self.stream, &self.segments)?;
        Ok(plan::slice(rows, slice, self.slices))
    }
}

/// Writes positions of deliveries to a temporary file.
fn positions_file(mut positions: DataFrame) -> Result<TempPath> {
    let file = tempfile::Builder::new().prefix("tidemark-repeats-").tempfile();
    let file = file.context("a temporary file can't be made (TMPDIR)")?;
    ParquetWriter::new(file.as_file()).finish(&mut positions).context("repeats can't be written (TMPDIR)")?;
    Ok(file.into_temp_path())
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
