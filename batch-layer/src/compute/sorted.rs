//! Canonical cells, however many: sorted by key, then bucket, each once. What exceeds the memory given lies in sorted
//! runs, which are merged into one.

use crate::compute::cells::{Cell, canonical};
use crate::compute::name::{self, ValueRef};
use crate::compute::run::{Run, RunReader, RunWriter, merge};
use anyhow::{Context, Result, ensure};
use shared_model::aggregate::State;
use shared_model::event::{FieldType, Value};
use shared_model::metric::Metric;
use shared_model::time::Millis;
use std::sync::Arc;

/// So many runs of one level are merged into one of the next, so that few are open and a cell is rewritten seldom.
const RUNS: usize = 16;

/// Takes cells in any order, several of one key and bucket too.
pub struct Sorter {
    metric: Arc<Metric>,
    memory: usize,
    held: Vec<Cell>,
    bytes: usize,
    /// By level.
    runs: Vec<Vec<Run>>,
}

impl Sorter {
    /// For cells of a metric, of which about `memory` bytes are held; beyond that they go to the system's folder for
    /// temporary files.
    pub fn new(metric: &Arc<Metric>, memory: u64) -> Sorter {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        Sorter { metric: metric.clone(), memory, held: Vec::new(), bytes: 0, runs: Vec::new() }
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
                self.spill()?;
            }
        }
        Ok(())
    }

    /// Takes cells of the metric that are in order. Runs don't become too many to be read at once.
    ///
    /// # Errors
    /// As [`Sorter::push`].
    pub(super) fn push_run(&mut self, run: Run) -> Result<()> {
        let mut run = Some(run).filter(|run| run.cells > 0);
        let mut level = 0;
        while let Some(more) = run.take() {
            if self.runs.len() == level {
                self.runs.push(Vec::new());
            }
            self.runs[level].push(more);
            if self.runs[level].len() == RUNS {
                let runs = std::mem::take(&mut self.runs[level]);
                run = Some(self.merge(runs)?);
            }
            level += 1;
        }
        Ok(())
    }

    fn merge(&self, mut runs: Vec<Run>) -> Result<Run> {
        merge(&mut runs, &self.metric.aggregate).with_context(|| format!("metric {}", self.metric.name))
    }

    /// Writes what is held, in order, as a run.
    fn spill(&mut self) -> Result<()> {
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
        self.held = canonical(std::mem::take(&mut self.held))?;
        self.spill()?;
        let mut runs: Vec<Run> = std::mem::take(&mut self.runs).into_iter().flatten().collect();
        let run = if runs.len() == 1 { runs.swap_remove(0) } else { self.merge(runs)? };
        Ok(Cells { metric: self.metric, run })
    }
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
        let columns = self.metric.by.iter().chain(&self.metric.item);
        let types = columns.map(|column| column.ty).collect();
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
