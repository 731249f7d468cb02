//! Sorted runs of cells: in memory while they are small, in the system's folder for temporary files beyond.
//!
//! A run has each name once, in order; equal runs have equal bytes, hence equal hashes. It is made of blocks of about
//! 64 KiB, each after its length (4 bytes, little-endian). A cell in a block: how many bytes of its name are those of
//! the name before it in the block, how many more there are, these, how many bytes its state has, these; numbers as
//! varints.

use anyhow::{Context, Result};
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::{put_bytes, put_varint, take_bytes, take_count, take_u64};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::io::{Read as _, Seek as _, Write as _};
use tempfile::SpooledTempFile;
use xxhash_rust::xxh3::Xxh3;

/// Larger runs lie on disk: so one that waits takes no more than one that is read.
const IN_MEMORY: usize = BLOCK;
/// A block ends when it has so many bytes. Another size gives all runs another hash: every day that is touched is loaded
/// anew once, as if it differed.
pub(super) const BLOCK: usize = 1 << 16;

/// Cells in order, each once.
pub(super) struct Run {
    file: SpooledTempFile,
    /// How many.
    pub(super) cells: u64,
    /// The hash of its bytes, 32 hex digits.
    pub(super) hash: String,
}

/// Writes a run.
pub(super) struct RunWriter {
    file: SpooledTempFile,
    block: Vec<u8>,
    last: Vec<u8>,
    cells: u64,
    hasher: Xxh3,
}

impl RunWriter {
    /// Of no cells yet.
    pub(super) fn new() -> RunWriter {
        let file = SpooledTempFile::new(IN_MEMORY);
        RunWriter { file, block: Vec::new(), last: Vec::new(), cells: 0, hasher: Xxh3::new() }
    }

    /// Appends a cell, whose name is beyond the last one's.
    ///
    /// # Errors
    /// Where the disk is full.
    #[inline]
    pub(super) fn push(&mut self, name: &[u8], state: &[u8]) -> Result<()> {
        self.push_first(name, name.len(), state)
    }

    /// The same of a name that is the first `length` of `bytes`: it is copied sooner where [`SHORT`] or more follow.
    ///
    /// # Errors
    /// As [`RunWriter::push`].
    #[inline]
    pub(super) fn push_first(&mut self, bytes: &[u8], length: usize, state: &[u8]) -> Result<()> {
        let shared = common(&self.last, &bytes[..length]);
        let (rest, more) = (&bytes[shared..], length - shared);
        put_varint(&mut self.block, shared as u128);
        put_varint(&mut self.block, more as u128);
        append(&mut self.block, rest, more);
        match state {
            // Most counts: where the length is known, no call is needed to copy them.
            [kind, count] => self.block.extend_from_slice(&[2, *kind, *count]),
            _ => put_bytes(&mut self.block, state),
        }
        self.cells += 1;
        self.last.truncate(shared);
        append(&mut self.last, rest, more);
        if self.block.len() >= BLOCK {
            self.end_block()?;
        }
        Ok(())
    }

    fn end_block(&mut self) -> Result<()> {
        let failed = "cells can't be written to the folder for temporary files (TMPDIR)";
        self.hasher.update(&self.block);
        self.file.write_all(&u32::try_from(self.block.len())?.to_le_bytes()).context(failed)?;
        self.file.write_all(&self.block).context(failed)?;
        self.block.clear();
        self.last.clear();
        Ok(())
    }

    /// All that was appended.
    ///
    /// # Errors
    /// Where the disk is full.
    pub(super) fn finish(mut self) -> Result<Run> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        Ok(Run { file: self.file, cells: self.cells, hash: format!("{:032x}", self.hasher.digest128()) })
    }
}

/// Reads a run, from its first cell.
pub(super) struct RunReader<'a> {
    file: &'a mut SpooledTempFile,
    block: Vec<u8>,
    at: usize,
    /// The present cell's name, and [`BEGIN`] zeros.
    name: Vec<u8>,
    /// The name's length without them.
    length: usize,
    state: (usize, usize),
}

/// By so many bytes names are compared first: they tell most apart, and 16 may be no more than the first of a key's
/// columns.
const BEGIN: usize = 32;

impl<'a> RunReader<'a> {
    /// Before the first cell.
    ///
    /// # Errors
    /// Where the run can't be read back.
    pub(super) fn new(run: &'a mut Run) -> Result<RunReader<'a>> {
        run.file.rewind().context(UNREADABLE)?;
        let name = vec![0; BEGIN];
        Ok(RunReader { file: &mut run.file, block: Vec::new(), at: 0, name, length: 0, state: (0, 0) })
    }

    /// Goes to the next cell, if there is one.
    ///
    /// # Errors
    /// Where the run can't be read back.
    #[inline]
    pub(super) fn advance(&mut self) -> Result<bool> {
        if self.at == self.block.len() && !self.next_block()? {
            return Ok(false);
        }
        let mut rest = self.block.get(self.at..).context(UNREADABLE)?;
        let shared = take_u64(&mut rest, "length of a shared name").context(UNREADABLE)?;
        let more = take_count(&mut rest, "name of a cell").context(UNREADABLE)?;
        self.name.truncate(usize::try_from(shared)?.min(self.length));
        append(&mut self.name, rest, more);
        self.length = self.name.len();
        self.name.extend_from_slice(&[0; BEGIN]);
        rest = &rest[more..];
        let state = take_bytes(&mut rest, "state of a cell").context(UNREADABLE)?;
        self.at = self.block.len() - rest.len();
        self.state = (self.at - state.len(), self.at);
        Ok(true)
    }

    /// The present cell's name.
    #[inline]
    pub(super) fn name(&self) -> &[u8] {
        &self.name[..self.length]
    }

    /// The first bytes of the present cell's name, filled up with zeros: they never contradict the order of names.
    #[inline]
    fn begin(&self) -> (u128, u128) {
        let word =
            |at: usize| self.name[at..].first_chunk::<16>().map_or(0, |bytes| u128::from_be_bytes(*bytes));
        (word(0), word(BEGIN / 2))
    }

    /// The present cell's state, encoded.
    #[inline]
    pub(super) fn state(&self) -> &[u8] {
        self.block.get(self.state.0..self.state.1).unwrap_or_default()
    }

    fn next_block(&mut self) -> Result<bool> {
        let mut length = [0; 4];
        if self.file.read(&mut length[..1]).context(UNREADABLE)? == 0 {
            return Ok(false);
        }
        self.file.read_exact(&mut length[1..]).context(UNREADABLE)?;
        self.block.resize(u32::from_le_bytes(length) as usize, 0);
        self.file.read_exact(&mut self.block).context(UNREADABLE)?;
        self.at = 0;
        Ok(true)
    }
}

/// So many bytes are copied without a call, whose length needn't be known.
pub(super) const SHORT: usize = 16;

/// Appends the first `count` of some bytes.
#[inline]
fn append(out: &mut Vec<u8>, bytes: &[u8], count: usize) {
    match bytes.first_chunk::<SHORT>() {
        Some(short) if count <= SHORT => {
            let end = out.len() + count;
            out.extend_from_slice(short);
            out.truncate(end);
        }
        _ => out.extend_from_slice(&bytes[..count]),
    }
}

const UNREADABLE: &str = "cells can't be read back from a temporary file";

/// How many bytes two strings begin with alike.
#[inline]
fn common(a: &[u8], b: &[u8]) -> usize {
    let ((wide_a, _), (wide_b, _)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut from = 0;
    for (a, b) in wide_a.iter().zip(wide_b) {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differ != 0 {
            return from + differ.trailing_zeros() as usize / 8;
        }
        from += 8;
    }
    from + a[from..].iter().zip(&b[from..]).take_while(|(a, b)| a == b).count()
}

/// Merges runs into one. Holds a block of each.
///
/// # Errors
/// Where one can't be read back, the disk is full, or a count or sum would pass its bound.
pub(super) fn merge(runs: &mut [Run], aggregate: &Aggregate) -> Result<Run> {
    let mut heads = BinaryHeap::with_capacity(runs.len());
    for run in runs {
        let mut head = Head { begin: (0, 0), reader: Box::new(RunReader::new(run)?) };
        if head.advance()? {
            heads.push(head);
        }
    }
    let (mut merged, mut state) = (RunWriter::new(), Vec::new());
    // The one with the least name is not among the others: what it has is passed on where it lies, and while its next is
    // the least again, the others stay as they are.
    let mut least = heads.pop();
    while let Some(head) = &mut least {
        let alike = heads.peek().is_some_and(|next| next.is_alike(head));
        if alike {
            let mut all = State::decode(aggregate, &mut head.reader.state())?;
            while let Some(mut next) = heads.peek_mut()
                && next.is_alike(head)
            {
                let more = State::decode(aggregate, &mut next.reader.state())?;
                all.merge(&more).context("cells of one key and bucket can't be merged")?;
                if !next.advance()? {
                    PeekMut::pop(next);
                }
            }
            state.clear();
            all.encode(&mut state);
        }
        let (reader, state) = (&head.reader, if alike { &state[..] } else { head.reader.state() });
        merged.push_first(&reader.name, reader.length, state)?;
        if !head.advance()? {
            least = heads.pop();
        } else if let Some(mut next) = heads.peek_mut()
            && *next > *head
        {
            std::mem::swap(&mut *next, head);
        }
    }
    merged.finish()
}

struct Head<'a> {
    /// As [`RunReader::begin`].
    begin: (u128, u128),
    reader: Box<RunReader<'a>>,
}

impl Head<'_> {
    /// As [`RunReader::advance`].
    fn advance(&mut self) -> Result<bool> {
        let more = self.reader.advance()?;
        self.begin = self.reader.begin();
        Ok(more)
    }

    /// Whether it has the same name.
    #[inline]
    fn is_alike(&self, other: &Head<'_>) -> bool {
        self.begin == other.begin && self.reader.name() == other.reader.name()
    }
}

impl Ord for Head<'_> {
    /// A heap gives the greatest first: that is the one with the least name.
    fn cmp(&self, other: &Self) -> Ordering {
        other.begin.cmp(&self.begin).then_with(|| other.reader.name().cmp(self.reader.name()))
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, prop, proptest};
    use std::collections::BTreeMap;

    /// Counts by name.
    type Counts = BTreeMap<Vec<u8>, u64>;

    fn write(counts: &Counts) -> Run {
        let mut run = RunWriter::new();
        for (name, count) in counts {
            let mut state = Vec::new();
            State::Count(*count).encode(&mut state);
            run.push(name, &state).unwrap();
        }
        run.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Names of less than 16 or 32 bytes and of more, which differ in their last ones, and some in zeros at the end
        /// alone.
        #[test]
        fn merged_runs_are_the_run_of_all_cells(
            counts in prop::collection::vec(
                prop::collection::btree_map(
                    (
                        prop::sample::select(vec![0, 1, 13, 14, 15, 16, 29, 30, 31, 32usize]),
                        prop::collection::vec(prop::sample::select(vec![0u8, 1, 255]), 0..3),
                    ),
                    1..9u64,
                    0..30,
                ),
                0..6,
            ),
        ) {
            let name = |(same, rest): &(usize, Vec<u8>)| [vec![7; *same], rest.clone()].concat();
            let (mut all, mut runs) = (Counts::new(), Vec::new());
            for counts in &counts {
                let counts: Counts = counts.iter().map(|(key, count)| (name(key), *count)).collect();
                counts.iter().for_each(|(name, count)| *all.entry(name.clone()).or_default() += count);
                runs.push(write(&counts));
            }
            let (merged, expected) = (merge(&mut runs, &Aggregate::Count).unwrap(), write(&all));
            assert_eq!((merged.cells, merged.hash), (expected.cells, expected.hash));
        }
    }

    fn of_numbers(numbers: impl Iterator<Item = u32>) -> Run {
        let mut run = RunWriter::new();
        for number in numbers {
            run.push(&number.to_be_bytes(), &[number as u8; 5]).unwrap();
        }
        run.finish().unwrap()
    }

    /// What the ledger holds of versions that were stored before is compared with it.
    #[test]
    fn the_hash_of_a_run_is_pinned() {
        let mut run = of_numbers(0..20_000);
        assert_eq!((run.cells, &*run.hash), (20_000, "b2e8615912e966acec927a2809cd710f"));
        // Each half has several blocks, too.
        let mut halves = [0, 1].map(|from| of_numbers((from..20_000).step_by(2)));
        assert_eq!(merge(&mut halves, &Aggregate::Count).unwrap().hash, run.hash);
        let mut reader = RunReader::new(&mut run).unwrap();
        for number in 0..20_000u32 {
            assert!(reader.advance().unwrap());
            assert_eq!((reader.name(), reader.state()), (&number.to_be_bytes()[..], &[number as u8; 5][..]));
        }
        assert!(!reader.advance().unwrap());
    }
}
