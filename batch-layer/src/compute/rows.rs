//! The rows of a stream's day, read in chunks by several threads: a row group of a large file, since what two chunks
//! share of one (dictionaries, and the pages between them) would be decoded twice; or several small files at once, since
//! what a plan costs by itself is many times what it costs to read the rows of one.

use crate::compute::Budget;
use crate::plan::{self, Segments};
use anyhow::{Context as _, Result, anyhow, ensure};
use polars::prelude::{DataFrame, Expr, LazyFrame};
use shared_model::catalog::Stream;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// So many rows that aren't wide are read at once whatever memory there is, and where there is enough up to twice as many:
/// a row group of the archive's files has fewer than that. In unit tests few, so that files have several chunks.
const ROWS: u64 = if cfg!(test) { 7 } else { 1 << 18 };
/// About how many bytes a row takes that is read, unless the footers say more.
const BYTES_OF_ROW: u64 = 128;
/// The most files that are read at once.
const FILES: usize = 256;
/// So many chunks for each thread, where small files make it possible, so that all threads end at about the same time.
const CHUNKS: u64 = 4;

/// A stream's day.
#[derive(Debug)]
pub(super) struct Rows {
    segments: Vec<Segments>,
    /// In the order of their files; what is computed doesn't depend on it.
    pub(super) chunks: Vec<Chunk>,
    /// By so many they are read.
    pub(super) threads: usize,
}

/// The rows of a row group, or some of them where they are too many at once; or all rows of several files.
#[derive(Debug)]
pub(super) struct Chunk {
    alike: usize,
    /// Their places among those that have the same columns.
    files: Range<usize>,
    from: u64,
    /// How many.
    pub(super) rows: u64,
}

impl Rows {
    /// Of segments, to be read by the budget's threads, which have a quarter of its memory for that.
    pub(super) fn new(segments: Vec<Segments>, budget: Budget) -> Rows {
        let threads = budget.threads.max(1);
        let row = segments.iter().map(|alike| alike.row_bytes).fold(BYTES_OF_ROW, u64::max);
        let fewest = (ROWS * BYTES_OF_ROW / row).max(1);
        let most = (budget.memory / 4 / threads as u64 / row).clamp(fewest, 2 * ROWS);
        let all: u64 = segments.iter().flat_map(|segments| &segments.groups).flatten().sum();
        let joined = most.min(all.div_ceil(CHUNKS * threads as u64));
        let mut chunks: Vec<Chunk> = Vec::new();
        for (alike, segments) in segments.iter().enumerate() {
            // A file of several chunks is never joined with another.
            let mut open = false;
            for (at, groups) in segments.groups.iter().enumerate() {
                let (before, rows) = (chunks.len(), groups.iter().sum::<u64>());
                match chunks.last_mut().filter(|_| open) {
                    Some(last) if last.rows + rows <= joined && last.files.len() < FILES => {
                        last.files.end = at + 1;
                        last.rows += rows;
                    }
                    _ => {
                        chunks.extend(parts(groups, most).map(|part| Chunk {
                            alike,
                            files: at..at + 1,
                            from: part.start,
                            rows: part.end - part.start,
                        }));
                        open = chunks.len() == before + 1;
                    }
                }
            }
        }
        Rows { segments, chunks, threads }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.rows).sum()
    }

    /// Columns of a chunk's rows, in their order in the file.
    pub(super) fn read(&self, chunk: &Chunk, columns: Vec<Expr>) -> Result<DataFrame> {
        let rows = plan::scan(&self.segments[chunk.alike].files[chunk.files.clone()])?;
        self.finish(chunk, rows.select(columns))
    }

    /// What `select` makes of a chunk's rows as [`plan::deliveries`] gives them, row by row.
    pub(super) fn select(
        &self,
        stream: &Stream,
        chunk: &Chunk,
        select: impl FnOnce(LazyFrame) -> LazyFrame,
    ) -> Result<DataFrame> {
        let Segments { files, groups, row_bytes, missing } = &self.segments[chunk.alike];
        let (files, groups) = (files[chunk.files.clone()].to_vec(), groups[chunk.files.clone()].to_vec());
        let read = Segments { files, groups, row_bytes: *row_bytes, missing: missing.clone() };
        self.finish(chunk, select(plan::deliveries(stream, &[read])?))
    }

    fn finish(&self, chunk: &Chunk, rows: LazyFrame) -> Result<DataFrame> {
        let rows = rows.slice(i64::try_from(chunk.from)?, u32::try_from(chunk.rows)?);
        let frame = rows.collect()?;
        ensure!(frame.height() as u64 == chunk.rows, "there are fewer rows than the footer says");
        Ok(frame)
    }

    /// What a chunk's rows lie in, for errors.
    pub(super) fn name(&self, chunk: &Chunk) -> String {
        let files = &self.segments[chunk.alike].files[chunk.files.clone()];
        match files {
            [first, .., last] => {
                format!("segments {} to {}, {} together", first.display(), last.display(), files.len())
            }
            _ => files.iter().map(|file| format!("segment {}", file.display())).collect(),
        }
    }

    /// Reads all chunks, each by one of the threads.
    ///
    /// # Errors
    /// The first; then the threads begin no other chunk.
    pub(super) fn each(&self, read: impl Fn(usize, &Chunk) -> Result<()> + Sync) -> Result<()> {
        self.spread(|next| {
            while let Some((at, chunk)) = next() {
                read(at, chunk).with_context(|| self.name(chunk))?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Runs `work` on each of the threads; what it is given hands out chunks, each to one of them, mostly neighbours one
    /// after the other: rows of about the same time make fewer cells than as many from all over the day.
    ///
    /// # Errors
    /// The first; then no more chunks are handed out.
    pub(super) fn spread<'s, T: Send>(
        &'s self,
        work: impl Fn(&mut dyn FnMut() -> Option<(usize, &'s Chunk)>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let threads = self.threads.min(self.chunks.len()).max(1);
        let shares = Mutex::new(shares(self.chunks.len(), threads));
        let waiting = || shares.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |thread: usize| {
            let mut hand_out = || next_of(&mut waiting(), thread).map(|at| (at, &self.chunks[at]));
            work(&mut hand_out).inspect_err(|_| waiting().fill(0..0))
        };
        let one = &one;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
            // All of them first: what one that dies says must not hide another's error.
            let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            let died = |_| Err(anyhow!("a reader of the archive died"));
            joined.into_iter().map(|done| done.unwrap_or_else(died)).collect()
        })
    }
}

/// Shares of so many chunks, one for two threads each.
fn shares(chunks: usize, threads: usize) -> Vec<Range<usize>> {
    let begin = |thread: usize| chunks * thread.min(threads) / threads;
    (0..threads).step_by(2).map(|thread| begin(thread)..begin(thread + 2)).collect()
}

/// A thread's next chunk: of its own share, of which one thread has the first and another the last, or else of others'.
fn next_of(shares: &mut [Range<usize>], thread: usize) -> Option<usize> {
    let (others, own) = shares.split_at_mut(thread / 2);
    let next =
        |share: &mut Range<usize>| if thread.is_multiple_of(2) { share.next() } else { share.next_back() };
    own.iter_mut().chain(others).find_map(next)
}

/// The rows of a file in parts of at most so many, of which none has rows of two row groups.
fn parts(groups: &[u64], most: u64) -> impl Iterator<Item = Range<u64>> {
    let mut end = 0;
    groups.iter().flat_map(move |&rows| {
        let (from, parts) = (end, rows.div_ceil(most));
        end += rows;
        (0..parts).map(move |part| from + rows * part / parts..from + rows * (part + 1) / parts)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Files, the first row and the number of rows of the chunks that files become, which have such row groups.
    fn chunks(groups: &[&[u64]], memory: u64, threads: usize) -> Vec<(Range<usize>, u64, u64)> {
        chunks_of_rows(groups, 0, memory, threads)
    }

    /// The same, with rows so wide.
    fn chunks_of_rows(
        groups: &[&[u64]],
        row_bytes: u64,
        memory: u64,
        threads: usize,
    ) -> Vec<(Range<usize>, u64, u64)> {
        let files = (0..groups.len()).map(|at| PathBuf::from(format!("{at}.parquet"))).collect();
        let groups = groups.iter().map(|groups| groups.to_vec()).collect();
        let segments = Segments { files, groups, row_bytes, missing: Vec::new() };
        let rows = Rows::new(vec![segments], Budget { memory, threads });
        let parts = |chunk: Chunk| (chunk.files, chunk.from, chunk.rows);
        rows.chunks.into_iter().map(parts).collect()
    }

    #[test]
    fn chunks_are_row_groups_or_parts_of_them() {
        let groups: [&[u64]; 3] = [&[10, 9, 0, 14], &[40, 1], &[]];
        let expected = [
            (0..1, 0, 10),
            (0..1, 10, 9),
            (0..1, 19, 14),
            (1..2, 0, 13),
            (1..2, 13, 13),
            (1..2, 26, 14),
            (1..2, 40, 1),
        ];
        assert_eq!(chunks(&groups, u64::MAX, 1), expected);
        let expected = [(0..1, 0, 5), (0..1, 5, 5), (0..1, 10, 4), (0..1, 14, 5), (1..2, 0, 7)];
        assert_eq!(chunks(&[&[10, 9], &[7]], 0, 1), expected);
    }

    #[test]
    fn of_wide_rows_fewer_are_read_at_once() {
        let expected = [(0..1, 0, 3), (0..1, 3, 3)];
        assert_eq!(chunks_of_rows(&[&[6]], 2 * BYTES_OF_ROW, 0, 1), expected);
        assert_eq!(chunks_of_rows(&[&[2]], u64::MAX, 0, 1), [(0..1, 0, 1), (0..1, 1, 1)]);
        // A quarter of 40 such rows.
        let memory = 40 * 2 * BYTES_OF_ROW;
        assert_eq!(chunks_of_rows(&[&[10], &[11]], 2 * BYTES_OF_ROW, memory, 1).len(), 3);
    }

    #[test]
    fn each_chunk_is_handed_out_once() {
        for threads in 1..7 {
            let mut shares = shares(20, threads);
            let round =
                |_| (0..threads).filter_map(|thread| next_of(&mut shares, thread)).collect::<Vec<usize>>();
            let mut taken: Vec<usize> = (0..20).flat_map(round).collect();
            taken.sort_unstable();
            assert_eq!(taken, (0..20).collect::<Vec<usize>>(), "{threads} threads");
        }
        assert_eq!(next_of(&mut shares(0, 1), 0), None);
    }

    #[test]
    fn after_an_error_or_a_death_no_chunk_is_handed_out_twice() {
        let (files, groups) = (vec![PathBuf::from("one.parquet")], vec![vec![1; 20]]);
        let segments = Segments { files, groups, row_bytes: 0, missing: Vec::new() };
        let rows = Rows::new(vec![segments], Budget { memory: u64::MAX, threads: 3 });
        for (dies, expected) in [(false, "fails"), (true, "died")] {
            let handed_out = Mutex::new(Vec::new());
            let done = rows.each(|at, _| {
                handed_out.lock().unwrap().push(at);
                ensure!(dies || at != 5, "fails");
                assert_ne!(at, 5, "dies");
                Ok(())
            });
            assert!(format!("{:#}", done.unwrap_err()).contains(expected));
            let mut handed_out = handed_out.into_inner().unwrap();
            handed_out.sort_unstable();
            assert!(handed_out.is_sorted_by(|a, b| a < b), "{handed_out:?}");
            assert!(!dies || handed_out.len() == 20, "the others take what is left");
        }
    }

    #[test]
    fn two_threads_begin_at_the_ends_of_a_part_and_then_help_others() {
        for threads in [1, 2] {
            let shares = shares(20, threads);
            assert_eq!((shares.len(), shares[0].clone()), (1, 0..20));
        }
        assert_eq!([shares(20, 3), shares(20, 4)], [vec![0..13, 13..20], vec![0..10, 10..20]]);
        let mut shares = shares(8, 4);
        let taken = [0, 1, 1, 0, 1, 0, 2, 3, 1].map(|thread| next_of(&mut shares, thread));
        assert_eq!((&taken[..8], taken[8]), (&[0, 3, 2, 1, 7, 4, 5, 6].map(Some)[..], None));
    }

    #[test]
    fn small_files_are_joined_but_none_of_several_chunks() {
        let groups: [&[u64]; 6] = [&[3], &[2, 4], &[5], &[20], &[1], &[0]];
        // A quarter of 35 rows at once, with one thread.
        let expected = [(0..2, 0, 9), (2..3, 0, 5), (3..4, 0, 10), (3..4, 10, 10), (4..6, 0, 1)];
        assert_eq!(chunks(&groups, u64::MAX, 1), expected);
        let alone = [(0..1, 0, 3), (1..2, 0, 2), (1..2, 2, 4), (2..3, 0, 5), (3..4, 0, 10), (3..4, 10, 10)];
        assert_eq!(chunks(&groups, u64::MAX, 9)[..6], alone);
    }
}
