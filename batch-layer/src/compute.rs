//! Computes a day's cells: sorted by key, then bucket, each once, with the hash that says whether two computations gave
//! the same.
//!
//! First the repeats of each stream are found (`repeats`), then its rows are read once, in chunks, by several threads
//! that fold them into the cells of all metrics (`fold`); what memory can't hold becomes sorted runs, which are merged
//! at the end (`sorted`), those of several metrics at once.
//!
//! Memory, with `memory` the [`Budget`]: finding repeats takes half of it; then the cells that are merged with the day's
//! a quarter, until they lie in runs; then folding eleven sixteenths, shared by the threads, the chunks that are read a
//! quarter, and runs that wait to be merged a sixteenth, or 16 of each metric, a block each, where that is more. Who
//! merges holds a block of each run, but nothing that is folded; and rows are on their way to a table once all is merged.

mod cells;
mod digits;
mod fold;
pub(crate) mod healed;
mod name;
mod numbers;
mod repeats;
mod rows;
mod run;
mod segments;
mod sorted;

pub use cells::Cell;
pub(crate) use name::ValueRef;
pub(crate) use sorted::RawCell;
pub use sorted::{Cells, Sorter};

use crate::plan::Needs;
use anyhow::{Context, Result, anyhow, ensure};
use fold::Fold;
use polars::prelude::{DataFrame, Engine, LazyFrame, PolarsResult};
use repeats::Gone;
use rows::Rows;
use run::BLOCK;
use shared_model::catalog::Stream;
use shared_model::metric::Metric;
use shared_model::time::EventDay;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// For each thread so many runs of cells may wait to be merged, those of all metrics together, and 16 of each metric in
/// any case: most are open files, of which the program allows itself as many as it may.
const OPEN_RUNS: u64 = 256;

/// What the computation of one day may take; what that means is said above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// In bytes.
    pub memory: u64,
    /// How many threads are at work.
    pub threads: usize,
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
    rows: Rows,
    gone: Gone,
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

    /// For the cells of one of so many metrics: what is to be merged with the day's is pushed first.
    pub fn sorter(&self, metric: &Arc<Metric>, metrics: usize) -> Sorter {
        let metrics = metrics.max(1) as u64;
        let Budget { memory, threads } = self.budget;
        // One that is smaller than a block lies in memory.
        let open = (memory / 16 / BLOCK as u64).min(OPEN_RUNS * threads.max(1) as u64);
        Sorter::new(metric, memory / 4 / metrics).with_runs(open / metrics)
    }

    /// The cells of each metric on this day, and those that were pushed into its sorter. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read, a count or sum would pass its bound, or the disk for cells is full.
    pub fn cells(&self, metrics: Vec<(Arc<Metric>, Sorter)>) -> Result<Vec<Cells>> {
        let (metrics, mut sorters): (Vec<Arc<Metric>>, Vec<Sorter>) = metrics.into_iter().unzip();
        sorters.iter_mut().try_for_each(Sorter::spill)?;
        let sorters: Vec<Mutex<Sorter>> = sorters.into_iter().map(Mutex::new).collect();
        for input in &self.inputs {
            let failed = || format!("stream {}, day {}", input.stream.name, self.day);
            input.fold(self.day, self.budget, &metrics, &sorters).with_context(failed)?;
        }
        self.finish(sorters)
    }

    /// Finishes sorters, several at once.
    fn finish(&self, sorters: Vec<Mutex<Sorter>>) -> Result<Vec<Cells>> {
        let sorters = sorters.into_iter().map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut sorters: Vec<(usize, Sorter)> = sorters.enumerate().collect();
        // The largest first, which are taken from the end: begun last, one would leave all threads but its own idle.
        sorters.sort_by_key(|(_, sorter)| sorter.cells());
        let waiting = Mutex::new(sorters);
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = || -> Result<Vec<(usize, Cells)>> {
            let mut done = Vec::new();
            while let Some((at, sorter)) = next() {
                done.push((at, sorter.finish().with_context(|| format!("day {}", self.day))?));
            }
            Ok(done)
        };
        let joined: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.budget.threads.max(1)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let mut done = Vec::new();
        for finished in joined {
            done.extend(finished.unwrap_or_else(|_| Err(anyhow!("a sorter of cells died")))?);
        }
        done.sort_by_key(|(at, _)| *at);
        Ok(done.into_iter().map(|(_, cells)| cells).collect())
    }
}

impl Input {
    fn open(source: Source, budget: Budget) -> Result<Input> {
        let (segments, count) = segments::inspect(&source.stream, &source.files)?;
        ensure!(
            count == source.rows,
            "the files have {count} rows, the ledger {}: fetch them anew",
            source.rows
        );
        let rows = Rows::new(segments, budget);
        // Without an identity each delivery is an event of its own.
        let gone = match source.stream.identity.is_empty() {
            true => vec![Vec::new(); rows.chunks.len()],
            false => repeats::find(&rows, budget.memory / 2).context("repeats can't be found")?,
        };
        Ok(Input { stream: source.stream, rows, gone })
    }

    /// Folds the rows into cells of the metrics that the stream feeds.
    fn fold(
        &self,
        day: EventDay,
        budget: Budget,
        metrics: &[Arc<Metric>],
        sorters: &[Mutex<Sorter>],
    ) -> Result<()> {
        let fed = metrics.iter().enumerate().filter_map(|(at, metric)| {
            let binding = metric.bindings.iter().find(|binding| binding.stream == self.stream.name)?;
            Some((at, metric, binding))
        });
        let fed: Vec<_> = fed.collect();
        if fed.is_empty() {
            return Ok(());
        }
        let needs = Needs::of(fed.iter().map(|(_, metric, binding)| (&***metric, *binding)));
        let metrics: Vec<Arc<Metric>> = fed.iter().map(|(_, metric, _)| (*metric).clone()).collect();
        let memory = budget.memory / 16 * 11 / budget.threads.max(1) as u64;
        let push = |fold: &mut Fold<'_>| -> Result<()> {
            for ((at, ..), run) in fed.iter().zip(fold.cells()?) {
                Sorter::push_shared(&sorters[*at], run)?;
            }
            Ok(())
        };
        self.rows.spread(|next| {
            let mut fold = Fold::new(day, &needs, &metrics, memory);
            while let Some((at, chunk)) = next() {
                if !fold.has_room(chunk.rows) {
                    push(&mut fold)?;
                }
                let failed = || self.rows.name(chunk);
                let frame = self.rows.select(&self.stream, chunk, |rows| needs.select(&self.stream, rows));
                fold.take(&frame.with_context(failed)?, &self.gone[at]).with_context(failed)?;
            }
            push(&mut fold)
        })?;
        Ok(())
    }
}

/// Runs a plan with the streaming engine.
pub(crate) fn collect(plan: LazyFrame) -> PolarsResult<DataFrame> {
    // Several frames come only of plans with several sinks.
    Ok(plan.collect_with_engine(Engine::Streaming)?.unwrap_single())
}

#[cfg(test)]
mod tests;
