//! Canonical cells, however many: sorted by key, then bucket, each once. What exceeds the memory given lies in sorted
//! runs, which are merged into one at the end: a cell is written twice at most, unless there are so many runs that some
//! must be merged before.

use crate::compute::cells::{Cell, canonical};
use crate::compute::name::{self, ValueRef};
use crate::compute::run::{Run, RunReader, RunWriter, merge};
use anyhow::{Context, Result, ensure};
use shared_model::aggregate::State;
use shared_model::event::{FieldType, Value};
use shared_model::metric::Metric;
use shared_model::time::Millis;
use std::sync::{Arc, Mutex, PoisonError};

/// The fewest runs that are merged before the end: with fewer, cells would be rewritten often.
const FEWEST: u64 = 16;
/// The most of one level that wait for it: a block of each must be held.
const MOST: u64 = 64;

/// Takes cells in any order, several of one key and bucket too.
pub struct Sorter {
    metric: Arc<Metric>,
    memory: usize,
    held: Vec<Cell>,
    bytes: usize,
    /// When a level has so many runs, they become one of the next.
    full: usize,
    /// By level.
    runs: Vec<Vec<Run>>,
}

impl Sorter {
    /// For cells of a metric, of which about `memory` bytes are held; beyond that they go to the system's folder for
    /// temporary files.
    pub fn new(metric: &Arc<Metric>, memory: u64) -> Sorter {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let (metric, full) = (metric.clone(), FEWEST as usize);
        Sorter { metric, memory, held: Vec::new(), bytes: 0, full, runs: Vec::new() }
    }

    /// With about so many runs of a level, at least 16 and at most 64, before they are merged into one of the next.
    pub(super) fn with_runs(self, runs: u64) -> Sorter {
        Sorter { full: runs.clamp(FEWEST, MOST) as usize, ..self }
    }

    /// Takes a cell, whose key's values are of the types of the metric's columns. May block, to write.
    ///
    /// # Errors
    /// Where the disk is full, or a count or sum would pass its bound.
    pub fn push(&mut self, cell: Cell) -> Result<()> {
        self.bytes += size(&cell);
        self.held.push(cell);
        if self.bytes > self.memory {
            self.held = canonical(std::mem::take(&mut self.held))?;
            self.bytes = self.held.iter().map(size).sum();
            // Where merging has not made much room, it would be tried again all too soon.
            if self.bytes > self.memory / 2 {
                self.write_held()?;
            }
        }
        Ok(())
    }

    /// Takes cells of the metric that are in order. Runs don't become too many to be read at once.
    ///
    /// # Errors
    /// As [`Sorter::push`].
    pub(super) fn push_run(&mut self, run: Run) -> Result<()> {
        push(run, |run, level| self.put(run, level))
    }

    /// The same of a sorter that several threads push into: what one of them has to merge keeps no other waiting.
    ///
    /// # Errors
    /// As [`Sorter::push`].
    pub(super) fn push_shared(sorter: &Mutex<Sorter>, run: Run) -> Result<()> {
        push(run, |run, level| sorter.lock().unwrap_or_else(PoisonError::into_inner).put(run, level))
    }

    /// Takes a run of a level. Gives all of that level, which are no longer its own, when they are too many.
    fn put(&mut self, run: Run, level: usize) -> Option<TooMany> {
        if run.cells == 0 {
            return None;
        }
        if self.runs.len() <= level {
            self.runs.resize_with(level + 1, Vec::new);
        }
        self.runs[level].push(run);
        if self.runs[level].len() < self.full {
            return None;
        }
        let runs = std::mem::take(&mut self.runs[level]);
        Some(TooMany { metric: self.metric.clone(), runs, level })
    }

    /// How many cells it has, counting each as often as it was taken.
    pub(super) fn cells(&self) -> u64 {
        let runs = self.runs.iter().flatten().map(|run| run.cells);
        self.held.len() as u64 + runs.sum::<u64>()
    }

    /// Has what is held lie in a run, so that its memory is free.
    ///
    /// # Errors
    /// As [`Sorter::push`].
    pub(super) fn spill(&mut self) -> Result<()> {
        self.held = canonical(std::mem::take(&mut self.held))?;
        self.write_held()
    }

    /// Writes what is held, which is canonical, as a run.
    fn write_held(&mut self) -> Result<()> {
        let mut run = RunWriter::new();
        let (mut name, mut state) = (Vec::new(), Vec::new());
        for cell in self.held.drain(..) {
            name.clear();
            cell.key.iter().for_each(|value| name::put(value, &mut name));
            name::put_bucket(cell.bucket, &mut name);
            state.clear();
            cell.state.encode(&mut state);
            run.push(&name, &state)?;
        }
        self.bytes = 0;
        self.push_run(run.finish()?)
    }

    /// All that was taken. Blocks.
    ///
    /// # Errors
    /// As [`Sorter::push`].
    pub fn finish(mut self) -> Result<Cells> {
        self.spill()?;
        let mut runs: Vec<Run> = self.runs.into_iter().flatten().collect();
        let run = if runs.len() == 1 { runs.swap_remove(0) } else { merged(&self.metric, runs)? };
        Ok(Cells { metric: self.metric, run })
    }
}

/// Runs of one level that are too many.
struct TooMany {
    metric: Arc<Metric>,
    runs: Vec<Run>,
    level: usize,
}

impl TooMany {
    /// One run of them, and its level.
    fn merge(self) -> Result<(Run, usize)> {
        Ok((merged(&self.metric, self.runs)?, self.level + 1))
    }
}

/// Puts a run into a sorter, and what becomes of those that are too many then.
fn push(run: Run, mut put: impl FnMut(Run, usize) -> Option<TooMany>) -> Result<()> {
    let mut next = Some((run, 0));
    while let Some((run, level)) = next {
        next = put(run, level).map(TooMany::merge).transpose()?;
    }
    Ok(())
}

fn merged(metric: &Metric, mut runs: Vec<Run>) -> Result<Run> {
    merge(&mut runs, &metric.aggregate).with_context(|| format!("metric {}", metric.name))
}

/// About how many bytes a cell takes while it is held.
fn size(cell: &Cell) -> usize {
    let value =
        |value: &Value| size_of::<Value>() + if let Value::Str(text) = value { text.len() + 32 } else { 0 };
    let state = match &cell.state {
        State::Min(Value::Str(text)) | State::Max(Value::Str(text)) => text.len() + 32,
        State::Distinct(_) | State::Quantile(_) | State::Sessions(_) => {
            let mut bytes = Vec::new();
            cell.state.encode(&mut bytes);
            2 * bytes.len()
        }
        _ => 0,
    };
    // A vector that grows is there twice for a moment, and half empty after.
    2 * size_of::<Cell>() + 16 + cell.key.iter().map(value).sum::<usize>() + state
}

/// Canonical cells.
pub struct Cells {
    metric: Arc<Metric>,
    run: Run,
}

impl Cells {
    /// How many.
    pub fn rows(&self) -> u64 {
        self.run.cells
    }

    /// The hash (32 hex digits): equal exactly where the cells are.
    pub fn hash(&self) -> &str {
        &self.run.hash
    }

    /// Reads them in their order, from the first. Blocks.
    ///
    /// # Errors
    /// Where they can't be read back.
    pub fn read(&mut self) -> Result<impl Iterator<Item = Result<Cell>>> {
        let mut raw = self.raw()?;
        let mut next = move || -> Result<Option<Cell>> {
            let Some(cell) = raw.advance()? else { return Ok(None) };
            Ok(Some(cell.to_cell()?))
        };
        Ok(std::iter::from_fn(move || next().transpose()))
    }

    /// Reads them in their order, from the first, as they lie in their run.
    ///
    /// # Errors
    /// Where they can't be read back.
    pub(crate) fn raw(&mut self) -> Result<RawCells<'_>> {
        let types = self.metric.key_columns().map(|column| column.ty).collect();
        Ok(RawCells { metric: &self.metric, types, reader: RunReader::new(&mut self.run)? })
    }
}

/// Reads cells as they lie in a run.
pub(crate) struct RawCells<'a> {
    metric: &'a Metric,
    /// Of the key's columns, then the item's.
    types: Vec<FieldType>,
    reader: RunReader<'a>,
}

impl RawCells<'_> {
    /// The next cell, if there is one. Blocks.
    ///
    /// # Errors
    /// Where it can't be read back.
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<Option<RawCell<'_>>> {
        if !self.reader.advance()? {
            return Ok(None);
        }
        let (key, bucket) = name::split(self.reader.name())?;
        Ok(Some(RawCell { metric: self.metric, types: &self.types, key, bucket, state: self.reader.state() }))
    }
}

/// A cell as it lies in a run: nothing was allocated for it.
pub(crate) struct RawCell<'a> {
    metric: &'a Metric,
    types: &'a [FieldType],
    key: &'a [u8],
    /// The start of the bucket.
    pub(crate) bucket: Millis,
    state: &'a [u8],
}

impl<'a> RawCell<'a> {
    /// The bytes of its key, the item's of a top-k among them: equal exactly where the keys are.
    #[inline]
    pub(crate) fn key(&self) -> &'a [u8] {
        self.key
    }

    /// Hands over the values of the key's columns, then the item's of a top-k.
    ///
    /// # Errors
    /// Where its bytes are not of these columns.
    #[inline]
    pub(crate) fn each_value(&self, mut each: impl FnMut(ValueRef<'a>)) -> Result<()> {
        let mut rest = self.key;
        for ty in self.types {
            each(name::take_ref(*ty, &mut rest)?);
        }
        ensure!(rest.is_empty(), "a cell's key has other columns than the metric");
        Ok(())
    }

    /// What is known of it.
    ///
    /// # Errors
    /// Where its bytes are not of the metric's kind.
    #[inline]
    pub(crate) fn state(&self) -> Result<State> {
        let mut state = self.state;
        Ok(State::decode(&self.metric.aggregate, &mut state)?)
    }

    fn to_cell(&self) -> Result<Cell> {
        let mut key = Vec::with_capacity(self.types.len());
        self.each_value(|value| key.push(Value::from(value)))?;
        Ok(Cell { key, bucket: self.bucket, state: self.state()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::catalog::{Catalog, OUTBRAIN};

    fn metric() -> Arc<Metric> {
        Catalog::from_toml(OUTBRAIN).unwrap().metric("user_view_cnt").unwrap().clone()
    }

    /// A count of 1 for a user in each of some buckets.
    fn run(buckets: std::ops::Range<Millis>) -> Run {
        let mut run = RunWriter::new();
        for bucket in buckets {
            let (mut name, mut state) = (Vec::new(), Vec::new());
            name::put(&Value::str("user"), &mut name);
            name::put_bucket(bucket, &mut name);
            State::Count(1).encode(&mut state);
            run.push(&name, &state).unwrap();
        }
        run.finish().unwrap()
    }

    fn counts(sorter: Sorter) -> Vec<(Millis, State)> {
        let mut cells = sorter.finish().unwrap();
        cells.read().unwrap().map(|cell| cell.map(|cell| (cell.bucket, cell.state)).unwrap()).collect()
    }

    #[test]
    fn what_is_being_merged_is_no_longer_the_sorter_s() {
        let mut sorter = Sorter::new(&metric(), 0).with_runs(0);
        for at in 1..FEWEST {
            assert!(sorter.put(run(0..3), 0).is_none(), "run {at}");
        }
        let many = sorter.put(run(0..3), 0).unwrap();
        assert_eq!((many.runs.len(), sorter.cells()), (16, 0));
        // Another thread's, meanwhile.
        assert!(sorter.put(run(2..4), 0).is_none());
        let (merged, level) = many.merge().unwrap();
        assert_eq!((merged.cells, level), (3, 1));
        assert!(sorter.put(merged, level).is_none());
        assert!(sorter.put(run(0..0), 0).is_none());
        assert_eq!((sorter.cells(), sorter.runs.len()), (5, 2));
        let expected: [(Millis, u64); 4] = [(0, 16), (1, 16), (2, 17), (3, 1)];
        assert_eq!(counts(sorter), expected.map(|(bucket, count)| (bucket, State::Count(count))));
    }

    #[test]
    fn runs_wait_for_the_end_unless_they_are_very_many() {
        for (runs, full) in [(0, 16), (16, 16), (40, 40), (64, 64), (u64::MAX, 64)] {
            assert_eq!(Sorter::new(&metric(), 0).with_runs(runs).full, full);
        }
        let mut sorter = Sorter::new(&metric(), 0).with_runs(40);
        (0..39).for_each(|_| sorter.push_run(run(0..2)).unwrap());
        assert_eq!(sorter.cells(), 78);
        sorter.push_run(run(0..2)).unwrap();
        assert_eq!(sorter.cells(), 2);
    }

    /// 300 of each thread: runs of three levels.
    #[test]
    fn what_several_threads_push_is_counted_once() {
        let sorter = Mutex::new(Sorter::new(&metric(), 0));
        let push = |at: Millis| Sorter::push_shared(&sorter, run(at..at + 2)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..300).for_each(push));
            }
        });
        let expected = |bucket: Millis| (bucket, State::Count(if bucket % 300 == 0 { 3 } else { 6 }));
        assert_eq!(counts(sorter.into_inner().unwrap()), (0..301).map(expected).collect::<Vec<_>>());
    }
}
