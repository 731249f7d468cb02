//! Canonical cells, however many: sorted by key, then bucket, each once. What exceeds the memory given lies in sorted
//! runs on disk, which are merged whenever the cells are read.

use crate::compute::cells::{Cell, canonical, encode_name};
use anyhow::{Context, Result};
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::take_zigzag;
use shared_model::event::Value;
use shared_model::metric::Metric;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, Write};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// So many runs are merged into one.
const RUNS: usize = 64;

/// Takes cells in any order, several of one key and bucket too.
pub struct Sorter {
    metric: Arc<Metric>,
    memory: usize,
    held: Vec<Cell>,
    bytes: usize,
    runs: Vec<File>,
}

impl Sorter {
    /// For cells of a metric, of which about `memory` bytes are held; beyond that they go to the system's folder for
    /// temporary files.
    pub fn new(metric: &Arc<Metric>, memory: u64) -> Sorter {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        Sorter { metric: metric.clone(), memory, held: Vec::new(), bytes: 0, runs: Vec::new() }
    }

    /// Takes a cell. May block, to write.
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
                self.spill().context("cells can't be written to the folder for temporary files (TMPDIR)")?;
            }
        }
        Ok(())
    }

    /// Writes what is held, in order, as a run. Runs don't become too many to be read at once.
    fn spill(&mut self) -> Result<()> {
        self.runs.push(write(self.held.drain(..).map(Ok))?);
        self.bytes = 0;
        if self.runs.len() == RUNS {
            let mut runs = std::mem::take(&mut self.runs);
            self.runs.push(write(merge(&[], &mut runs, &self.metric)?)?);
        }
        Ok(())
    }

    /// All that was taken. Blocks.
    ///
    /// # Errors
    /// As [`Sorter::push`].
    pub fn finish(mut self) -> Result<Cells> {
        let held = canonical(std::mem::take(&mut self.held))?;
        let mut cells = Cells { metric: self.metric, held, runs: self.runs, rows: 0, hash: String::new() };
        let (mut hasher, mut bytes, mut rows) = (Xxh3::new(), Vec::new(), 0);
        for cell in cells.read()? {
            bytes.clear();
            encode(&cell?, &mut bytes);
            hasher.update(&bytes);
            rows += 1;
        }
        (cells.rows, cells.hash) = (rows, format!("{:032x}", hasher.digest128()));
        Ok(cells)
    }
}

/// About how many bytes a cell takes while it is held.
fn size(cell: &Cell) -> usize {
    let value =
        |value: &Value| size_of::<Value>() + if let Value::Str(text) = value { text.len() + 32 } else { 0 };
    let state = match &cell.state {
        State::Min(Value::Str(text)) | State::Max(Value::Str(text)) => text.len() + 32,
        State::Distinct(_) | State::Quantile(_) => {
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
    held: Vec<Cell>,
    runs: Vec<File>,
    rows: u64,
    hash: String,
}

impl Cells {
    /// How many.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The hash (32 hex digits): equal exactly where the cells are.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Reads them in their order, from the first. Blocks.
    ///
    /// # Errors
    /// Where a run can't be read back.
    pub fn read(&mut self) -> Result<impl Iterator<Item = Result<Cell>>> {
        merge(&self.held, &mut self.runs, &self.metric)
    }
}

/// Writes canonical cells as a run.
fn write(cells: impl Iterator<Item = Result<Cell>>) -> Result<File> {
    let mut file = BufWriter::new(tempfile::tempfile()?);
    let mut bytes = Vec::new();
    for cell in cells {
        bytes.clear();
        encode(&cell?, &mut bytes);
        file.write_all(&u32::try_from(bytes.len())?.to_le_bytes())?;
        file.write_all(&bytes)?;
    }
    Ok(file.into_inner()?)
}

/// Canonical cells that are held, and runs of a metric, as one.
fn merge<'a>(held: &'a [Cell], runs: &'a mut [File], metric: &'a Metric) -> Result<Merged<'a>> {
    let keys = metric.by.len() + usize::from(metric.item.is_some());
    let aggregate = &metric.aggregate;
    let mut sources: Vec<Source<'_>> = vec![Box::new(held.iter().cloned().map(Ok))];
    for run in runs {
        run.rewind()?;
        sources.push(Box::new(Run { file: BufReader::new(run), keys, aggregate, bytes: Vec::new() }));
    }
    Merged::new(sources)
}

type Source<'a> = Box<dyn Iterator<Item = Result<Cell>> + Send + 'a>;

/// Reads a run back.
struct Run<'a> {
    file: BufReader<&'a mut File>,
    keys: usize,
    aggregate: &'a Aggregate,
    bytes: Vec<u8>,
}

impl Run<'_> {
    fn cell(&mut self) -> Result<Option<Cell>> {
        let mut length = [0; 4];
        match self.file.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        self.bytes.resize(u32::from_le_bytes(length) as usize, 0);
        self.file.read_exact(&mut self.bytes)?;
        let mut input = &self.bytes[..];
        let key = (0..self.keys).map(|_| Value::decode(&mut input)).collect::<Result<_, _>>()?;
        let bucket = i64::try_from(take_zigzag(&mut input, "bucket")?)?;
        let state = State::decode(self.aggregate, &mut input)?;
        Ok(Some(Cell { key, bucket, state }))
    }
}

impl Iterator for Run<'_> {
    type Item = Result<Cell>;

    fn next(&mut self) -> Option<Result<Cell>> {
        self.cell().context("cells can't be read back from a temporary file").transpose()
    }
}

/// The canonical bytes: its key's values, then its bucket, then its state.
fn encode(cell: &Cell, out: &mut Vec<u8>) {
    encode_name(&cell.key, cell.bucket, out);
    cell.state.encode(out);
}

/// Canonical sources as one.
struct Merged<'a> {
    sources: Vec<Source<'a>>,
    /// The next cell of each source that has one.
    heads: BinaryHeap<Head>,
}

struct Head {
    cell: Cell,
    source: usize,
}

impl<'a> Merged<'a> {
    fn new(sources: Vec<Source<'a>>) -> Result<Merged<'a>> {
        let mut merged = Merged { heads: BinaryHeap::with_capacity(sources.len()), sources };
        (0..merged.sources.len()).try_for_each(|source| merged.pull(source))?;
        Ok(merged)
    }

    fn pull(&mut self, source: usize) -> Result<()> {
        if let Some(cell) = self.sources[source].next().transpose()? {
            self.heads.push(Head { cell, source });
        }
        Ok(())
    }

    fn cell(&mut self) -> Result<Option<Cell>> {
        let Some(Head { mut cell, source }) = self.heads.pop() else { return Ok(None) };
        self.pull(source)?;
        while self.heads.peek().is_some_and(|head| head.cell.same_name(&cell))
            && let Some(same) = self.heads.pop()
        {
            cell.state.merge(&same.cell.state).context("cells of one key and bucket can't be merged")?;
            self.pull(same.source)?;
        }
        Ok(Some(cell))
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<Cell>;

    fn next(&mut self) -> Option<Result<Cell>> {
        self.cell().transpose()
    }
}

impl Ord for Head {
    /// A heap gives the greatest first: that is the one with the least name.
    fn cmp(&self, other: &Head) -> Ordering {
        other.cell.name_cmp(&self.cell)
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}
