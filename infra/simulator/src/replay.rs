//! Prepared files, or CSV directly -> Kafka, in event-time order across streams, at a chosen pace.
//!
//! CSV is sorted first, on disk and within a memory limit, by the same code as `prepare`; what can't be read as a row
//! is reported, never sent.

mod batches;
pub mod merge;
pub mod pace;
pub mod rows;
pub mod send;
pub mod source;

use crate::location::Location;
use crate::prepare::{Job, Limits, REJECTS, prepare};
use crate::progress::Progress;
use shared_model::catalog::{Catalog, Stream};
use source::SourceFile;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub use merge::Merged;
pub use rows::Record;
pub use send::{SendError, Sender};
pub use source::{Filter, discover, sources};

/// Sorts the CSV among `files` into `folder`, and gives what is ready to be merged: all of it Parquet.
pub fn sort_csv(
    files: Vec<SourceFile>,
    catalog: &Catalog,
    limits: Limits,
    folder: &Path,
    shutdown: &CancellationToken,
) -> anyhow::Result<Vec<SourceFile>> {
    let (mut ready, csv): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.parquet);
    for stream in &catalog.streams {
        let of_stream = |file: &&SourceFile| file.stream.name == stream.name;
        let files: Vec<_> = csv.iter().filter(of_stream).map(|file| file.location.clone()).collect();
        if files.is_empty() {
            continue;
        }
        let job = Job { stream: stream.clone(), files, out: folder.to_owned(), limits };
        let progress = Progress::of_bytes(&format!("sorting {}", stream.name), total_bytes(&job.files)?);
        let summary = prepare(&job, &progress, shutdown)?;
        drop(progress);
        report_rejects(stream, &folder.join(&stream.name).join(REJECTS), summary.rejects);
    }
    // Rows may all have been refused: then nothing is there.
    let sorted = Location::Local(folder.to_owned()).below()?.unwrap_or_default();
    ready.extend(sources(sorted, None, catalog)?);
    Ok(ready)
}

/// The size of some files as stored.
pub fn total_bytes(files: &[Location]) -> anyhow::Result<u64> {
    files.iter().map(Location::size).sum()
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
pub(crate) mod tests;
