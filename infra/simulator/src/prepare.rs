//! CSV files of any size -> Parquet partitioned by platform and event day, each partition sorted by event time.
//!
//! Every line of the input is either a row of the output or a line of `rejects.csv`: the sum is checked. Memory stays
//! within the given limit (threads, buffers and row groups are cut to fit), and the result takes the old one's place
//! only when it is whole.

pub mod csv;
pub mod input;
pub mod lines;
mod place;
pub mod row;
pub mod sort;
pub mod upload;
pub mod write;

use crate::location::Location;
use crate::progress::Progress;
use anyhow::{Context, bail, ensure};
use csv::LineReader;
use lines::{Piece, Pieces};
use place::{Partitions, Rejects, Workshop};
use shared_model::catalog::Stream;
use sort::{Buffer, OpenRuns, Run};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;
use write::{PartitionWriter, folder_of};

/// The name of the file that holds the lines that are no rows.
pub const REJECTS: &str = "rejects.csv";

/// What to prepare.
#[derive(Debug, Clone)]
pub struct Job {
    /// The stream whose rows the files hold.
    pub stream: Arc<Stream>,
    /// Its files.
    pub files: Vec<Location>,
    /// The folder in which `<stream>/` is made anew.
    pub out: PathBuf,
    /// How the work is cut.
    pub limits: Limits,
}

/// How much memory and how many threads the work may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that parse, sort and write.
    pub threads: usize,
    /// Bytes of each thread's sort buffer.
    pub sort_bytes: usize,
    /// Bytes of one piece of input.
    pub piece_bytes: usize,
    /// The longest line that is held whole.
    pub longest_line: usize,
    /// Runs that one merge opens.
    pub fan_in: usize,
    /// Bytes read ahead of each run.
    pub read_ahead: usize,
    /// Bytes of a Parquet row group in the making.
    pub group_bytes: usize,
}

impl Limits {
    /// Shares `memory` bytes among `threads`. Reading and sorting come first, merging and writing after, so each
    /// phase may have it all: about a tenth for pieces of input and the rest for sorting; then half of it for reading
    /// runs and half for writing.
    pub fn within(memory: usize, threads: usize) -> Limits {
        let threads = threads.max(1);
        // What the program, its libraries and its threads' stacks take anyway.
        let usable = memory.saturating_sub(32 << 20).max(1 << 20);
        // In flight: two pieces a thread waiting, one in its hands, and the one being read (perhaps doubled).
        let piece_bytes = (usable / 10 / (threads * 3 + 2)).clamp(64 << 10, 1 << 20);
        let longest_line = (usable / 10).clamp(piece_bytes, 16 << 20);
        let pieces = piece_bytes * (threads * 3 + 2) + 2 * longest_line;
        let each = usable / 2 / threads;
        let read_ahead = (each / 128).clamp(16 << 10, 256 << 10);
        Limits {
            threads,
            sort_bytes: usable.saturating_sub(pieces).max(usable / 2) / threads,
            piece_bytes,
            longest_line,
            fan_in: (each / read_ahead).clamp(4, 128),
            read_ahead,
            // The encoder holds some times what it counts: dictionaries, a batch, compressed pages.
            group_bytes: (each / 4).clamp(1 << 20, 32 << 20),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines after the headers.
    pub lines: u64,
    /// Rows written.
    pub rows: u64,
    /// Lines refused, each in `rejects.csv`.
    pub rejects: u64,
    /// Partitions written.
    pub partitions: usize,
    /// Parquet files written.
    pub files: usize,
}

/// Does the job. Blocks. Where it fails or is stopped, what was there before is as it was. One preparation at a time
/// may work in a folder.
pub fn prepare(job: &Job, progress: &Progress, shutdown: &CancellationToken) -> anyhow::Result<Summary> {
    let workshop = Workshop::open(&job.out, &job.stream.name)?;
    let shared = Shared {
        job,
        runs_folder: workshop.runs(),
        partitions: Partitions::default(),
        rejects: Rejects::create(&workshop.result().join(REJECTS))?,
        lines: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        longest_row: AtomicUsize::new(0),
        shutdown,
    };
    let runs = shared.sorted_runs(progress)?;
    // Each open run also holds one row, which may be long.
    let each = job.limits.read_ahead + shared.longest_row.load(Ordering::Relaxed);
    let fan_in = (job.limits.fan_in * job.limits.read_ahead / each).max(2);
    let runs = sort::reduce(runs, fan_in, job.limits.read_ahead, &shared.runs_folder, || shared.go_on())
        .context("cannot merge sorted runs on disk")?;
    let (rows, partitions, files) = shared.write_all(&runs, &workshop.result())?;
    let summary = Summary {
        lines: shared.lines.into_inner(),
        rows,
        rejects: shared.rejects.finish()?,
        partitions,
        files,
    };
    ensure!(
        summary.lines == summary.rows + summary.rejects,
        "{} lines came in, but {} rows and {} rejects went out: please report this; nothing was replaced",
        summary.lines,
        summary.rows,
        summary.rejects
    );
    workshop.replace()?;
    Ok(summary)
}

/// What the threads of one job share.
struct Shared<'a> {
    job: &'a Job,
    runs_folder: PathBuf,
    partitions: Partitions,
    rejects: Rejects,
    lines: AtomicU64,
    /// Set when a thread has failed, with the first failure: the others' follow from it.
    stop: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
    /// Bytes of the longest row.
    longest_row: AtomicUsize,
    shutdown: &'a CancellationToken,
}

/// A piece of a file with what reads its lines.
struct Work {
    file: Arc<str>,
    reader: LineReader,
    piece: Piece,
}

impl Shared<'_> {
    /// Reads all files and leaves their rows as sorted runs.
    fn sorted_runs(&self, progress: &Progress) -> anyhow::Result<Vec<Run>> {
        let threads = self.job.limits.threads;
        let (sender, receiver) = sync_channel(threads * 2);
        // Held by the workers alone: when all have ended, the reader's next piece is refused instead of waiting.
        let receiver = Arc::new(Mutex::new(receiver));
        std::thread::scope(|scope| {
            let spawn = |_| {
                let receiver = receiver.clone();
                scope.spawn(move || self.guarded(|| self.sort_pieces(&receiver)))
            };
            let workers: Vec<_> = (0..threads).map(spawn).collect();
            drop(receiver);
            self.guarded(|| self.read_files(&sender, progress));
            drop(sender);
            let parts: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            self.outcome(parts).map(|runs| runs.into_iter().flatten().collect())
        })
    }

    /// Runs one thread's work; where it fails, keeps the first failure and tells the others to stop.
    fn guarded<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> Option<T> {
        let keep = |error| {
            if !self.stop.swap(true, Ordering::Relaxed)
                && let Ok(mut failure) = self.failure.lock()
            {
                *failure = Some(error);
            }
        };
        work().map_err(keep).ok()
    }

    /// What the threads brought, or the first failure.
    fn outcome<T>(&self, parts: Vec<std::thread::Result<Option<T>>>) -> anyhow::Result<Vec<T>> {
        let panicked = parts.iter().any(Result::is_err);
        if let Some(failure) = self.failure.lock().ok().and_then(|mut failure| failure.take()) {
            return Err(failure);
        }
        ensure!(!panicked, "a thread panicked; see the message above");
        Ok(parts.into_iter().flatten().flatten().collect())
    }

    /// Whether to go on: an error where somebody stopped it.
    fn go_on(&self) -> anyhow::Result<()> {
        if self.shutdown.is_cancelled() {
            bail!("stopped before the end; what was prepared before is untouched");
        }
        ensure!(!self.stop.load(Ordering::Relaxed), "another thread has failed");
        Ok(())
    }

    fn read_files(&self, sender: &SyncSender<Work>, progress: &Progress) -> anyhow::Result<()> {
        let limits = &self.job.limits;
        for location in &self.job.files {
            let shown = location.to_string();
            let context = || format!("cannot read {shown}");
            let source = input::open(location, progress)?;
            let mut pieces = Pieces::new(source, limits.piece_bytes, limits.longest_line);
            let header = pieces.first_line().with_context(context)?;
            let reader =
                LineReader::new(&self.job.stream, header.as_deref()).with_context(|| shown.clone())?;
            let file: Arc<str> = shown.as_str().into();
            while let Some(piece) = pieces.next_piece().with_context(context)? {
                self.go_on()?;
                let work = Work { file: file.clone(), reader: reader.clone(), piece };
                if sender.send(work).is_err() {
                    bail!("another thread has failed");
                }
            }
        }
        Ok(())
    }

    /// One thread: takes pieces until there are no more.
    fn sort_pieces(&self, pieces: &Mutex<Receiver<Work>>) -> anyhow::Result<Vec<Run>> {
        let mut buffer = Buffer::new(self.job.limits.sort_bytes);
        let (mut runs, mut row, mut longest) = (Vec::new(), Vec::new(), 0);
        let mut known = self.partitions.cache();
        let platform = self.job.stream.field("platform").map(|at| self.job.stream.fields[at].ty);
        let spill = |buffer: &mut Buffer| {
            buffer
                .spill(&self.runs_folder)
                .with_context(|| format!("cannot write sorted runs to {}", self.runs_folder.display()))
        };
        loop {
            // The lock ends with this statement: waiting threads take turns.
            let next = pieces.lock().map(|pieces| pieces.recv());
            let Ok(Ok(Work { file, mut reader, piece })) = next else { break };
            self.go_on()?;
            if let Some(length) = piece.cut_from {
                self.lines.fetch_add(1, Ordering::Relaxed);
                let reason = format!("the line has {length} bytes; here are its first {}", piece.bytes.len());
                self.rejects.add(&file, piece.first_line, &reason, &piece.bytes)?;
                continue;
            }
            let mut count = 0;
            for (number, line) in lines::lines(&piece) {
                count += 1;
                match reader.read(line, &mut row) {
                    Err(error) => self.rejects.add(&file, number, &error.to_string(), line)?,
                    Ok(place) => {
                        let partition = known.of(&place, &row, platform)?;
                        if buffer.is_full_for(&row) {
                            runs.extend(spill(&mut buffer)?);
                        }
                        buffer.push(partition, place.time, &row);
                        longest = longest.max(row.len());
                    }
                }
            }
            self.lines.fetch_add(count, Ordering::Relaxed);
        }
        runs.extend(spill(&mut buffer)?);
        self.longest_row.fetch_max(longest, Ordering::Relaxed);
        Ok(runs)
    }

    /// Merges the runs, partition by partition, several at a time. Returns rows, partitions and files.
    fn write_all(&self, runs: &[Run], result: &Path) -> anyhow::Result<(u64, usize, usize)> {
        let open =
            OpenRuns::open(runs).context("cannot open sorted runs; is the limit of open files very low?")?;
        let todo: Vec<u32> = open.partitions().into_iter().collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut rows, mut files) = (0, 0);
            while let Some(&partition) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (some_rows, some_files) = self.write_one(&open, partition, result)?;
                rows += some_rows;
                files += some_files;
            }
            anyhow::Ok((rows, files))
        };
        let parts = std::thread::scope(|scope| {
            let spawn = |_| scope.spawn(|| self.guarded(work));
            let workers: Vec<_> = (0..self.job.limits.threads).map(spawn).collect();
            workers.into_iter().map(|worker| worker.join()).collect()
        });
        let parts = self.outcome(parts)?;
        let sum = |(rows, files), (some_rows, some_files)| (rows + some_rows, files + some_files);
        let (rows, files) = parts.into_iter().fold((0, 0), sum);
        Ok((rows, todo.len(), files))
    }

    fn write_one(&self, open: &OpenRuns, partition: u32, result: &Path) -> anyhow::Result<(u64, usize)> {
        let (platform, day) = self.partitions.name(partition).context("a run names an unknown partition")?;
        let folder = result.join(folder_of(platform.as_deref(), day));
        let mut writer = PartitionWriter::new(&self.job.stream, folder, self.job.limits.group_bytes)?;
        let merge = open.merge(partition, self.job.limits.read_ahead).context("cannot read sorted runs")?;
        merge.for_each(|_, row| {
            if writer.rows % 4_096 == 0 {
                self.go_on()?;
            }
            writer.push(row)
        })?;
        writer.finish()?;
        Ok((writer.rows, writer.files))
    }
}

#[cfg(test)]
pub(crate) mod tests;
