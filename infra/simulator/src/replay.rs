//! Prepared files, or CSV directly -> Kafka, in event-time order across streams, at a chosen pace.
//!
//! CSV is sorted first, on disk and within a memory limit, by the same code as `prepare`; what can't be read as a row
//! is reported, never sent.

pub mod merge;
pub mod pace;
pub mod rows;
pub mod send;
pub mod source;

use crate::prepare::{Job, Limits, prepare};
use crate::progress::Progress;
use anyhow::Context;
use shared_model::catalog::{Catalog, Stream};
use source::SourceFile;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use merge::Merged;
pub use rows::Record;
pub use send::{SendError, Sender};
pub use source::{Filter, discover};

/// Files that are sorted and ready to be merged.
pub struct Sorted {
    /// All of them Parquet.
    pub files: Vec<SourceFile>,
    /// Lines of CSV that were no rows.
    pub rejects: u64,
    /// Holds what was sorted for this replay alone.
    _temporary: Option<TempDir>,
}

/// Sorts the CSV among `files` into a temporary folder under `folder`.
pub fn sort_csv(
    files: Vec<SourceFile>,
    catalog: &Catalog,
    limits: Limits,
    folder: &Path,
    runtime: &Handle,
    shutdown: &CancellationToken,
) -> anyhow::Result<Sorted> {
    let (mut ready, csv): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.parquet);
    if csv.is_empty() {
        return Ok(Sorted { files: ready, rejects: 0, _temporary: None });
    }
    let temporary = tempfile::Builder::new()
        .prefix("simulator-replay-")
        .tempdir_in(folder)
        .with_context(|| format!("cannot make a temporary folder in {}", folder.display()))?;
    let mut rejects = 0;
    for stream in &catalog.streams {
        let of_stream = |file: &&SourceFile| file.stream.name == stream.name;
        let locations: Vec<_> = csv.iter().filter(of_stream).map(|file| file.location.clone()).collect();
        if locations.is_empty() {
            continue;
        }
        let job = Job { stream: stream.clone(), files: locations, out: temporary.path().to_owned(), limits };
        let progress = Progress::of_bytes(&format!("sorting {}", stream.name), total_bytes(&job, runtime)?);
        let summary = prepare(&job, runtime, &progress, shutdown)?;
        drop(progress);
        report_rejects(stream, &temporary.path().join(&stream.name).join("rejects.csv"), summary.rejects);
        rejects += summary.rejects;
    }
    // Rows may all have been refused: then nothing is there.
    let sorted = discover(&[temporary.path().display().to_string()], catalog).unwrap_or_default();
    ready.extend(sorted);
    Ok(Sorted { files: ready, rejects, _temporary: Some(temporary) })
}

/// The size of a job's input as stored.
pub fn total_bytes(job: &Job, runtime: &Handle) -> anyhow::Result<Option<u64>> {
    let sizes: Result<Vec<u64>, _> = job.files.iter().map(|file| file.size(runtime)).collect();
    Ok(Some(sizes?.iter().sum()))
}

/// The rejects go with the temporary folder, so the first are shown.
fn report_rejects(stream: &Arc<Stream>, path: &Path, count: u64) {
    if count == 0 {
        return;
    }
    tracing::warn!(
        stream = stream.name,
        count,
        "lines that are no rows are not sent; `prepare` keeps them all"
    );
    let Ok(mut reader) = csv::Reader::from_path(path) else { return };
    for reject in reader.byte_records().take(10).flatten() {
        let part = |at: usize| String::from_utf8_lossy(reject.get(at).unwrap_or_default()).into_owned();
        let text: String = part(3).chars().take(200).collect();
        tracing::warn!(file = part(0), line = part(1), reason = part(2), text, "not sent");
    }
}

#[cfg(test)]
mod tests;
