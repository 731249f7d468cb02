//! The rows of a stream's day, read in chunks by several threads: a part of a large file, or several small files at once,
//! since what a plan costs by itself is many times what it costs to read the rows of one.

use crate::plan::{self, Segments};
use anyhow::{Context as _, Result, anyhow, ensure};
use polars::prelude::{DataFrame, Expr, LazyFrame};
use shared_model::catalog::Stream;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many rows are read at once; a row group of the archive's files has no more. In unit tests few, so that files have
/// several chunks.
const ROWS: u64 = if cfg!(test) { 7 } else { 1 << 18 };
/// The most files that are read at once.
const FILES: usize = 256;
/// So many chunks for each thread, where small files make it possible, so that all threads end at about the same time.
const CHUNKS: u64 = 4;

/// A stream's day.
#[derive(Debug)]
pub(super) struct Rows {
    segments: Vec<Segments>,
    /// In no order that matters.
    pub(super) chunks: Vec<Chunk>,
    threads: usize,
}

/// Some rows of a file, or all rows of several.
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
    /// Of segments, to be read by so many threads.
    pub(super) fn new(segments: Vec<Segments>, threads: usize) -> Rows {
        let threads = threads.max(1);
        let all: u64 = segments.iter().flat_map(|segments| &segments.rows).sum();
        let most = ROWS.min(all.div_ceil(CHUNKS * threads as u64));
        let mut chunks: Vec<Chunk> = Vec::new();
        for (alike, segments) in segments.iter().enumerate() {
            // A file of several chunks is never joined with another.
            let mut open = false;
            for (at, rows) in segments.rows.iter().copied().enumerate() {
                match chunks.last_mut().filter(|_| open) {
                    Some(last) if last.rows + rows <= most && last.files.len() < FILES => {
                        last.files.end = at + 1;
                        last.rows += rows;
                    }
                    _ => {
                        let starts = (0..rows).step_by(ROWS as usize);
                        let part =
                            |from| Chunk { alike, files: at..at + 1, from, rows: ROWS.min(rows - from) };
                        chunks.extend(starts.map(part));
                        open = (1..=ROWS).contains(&rows);
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
        let Segments { files, rows, missing } = &self.segments[chunk.alike];
        let (files, rows) = (&files[chunk.files.clone()], &rows[chunk.files.clone()]);
        let read = Segments { files: files.to_vec(), rows: rows.to_vec(), missing: missing.clone() };
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

    /// Runs `work` on each of the threads; what it is given hands out chunks, each to one of them.
    ///
    /// # Errors
    /// The first; then no more chunks are handed out.
    pub(super) fn spread<'s, T: Send>(
        &'s self,
        work: impl Fn(&mut dyn FnMut() -> Option<(usize, &'s Chunk)>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let next = AtomicUsize::new(0);
        let one = || {
            let mut hand_out = || {
                let at = next.fetch_add(1, Ordering::Relaxed);
                self.chunks.get(at).map(|chunk| (at, chunk))
            };
            work(&mut hand_out).inspect_err(|_| next.store(self.chunks.len(), Ordering::Relaxed))
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.threads.min(self.chunks.len()).max(1)).map(|_| scope.spawn(one)).collect();
            // All of them first: what one that dies says must not hide another's error.
            let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            let died = |_| Err(anyhow!("a reader of the archive died"));
            joined.into_iter().map(|done| done.unwrap_or_else(died)).collect()
        })
    }
}
