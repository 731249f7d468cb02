//! Bulk history from files straight into the archive.
//!
//! An import is one file's content: sealed by one manifest under the hash of its bytes, so that the same content is
//! imported once however often, and by whomever, it is tried. Each row ends in exactly one segment or one rejects
//! file. Identity is the streamed records' own, so that a row and a record of the same event count once.
//!
//! Memory: the rows held, up to [`Options::limits`], as much again for the segment being encoded, and of Parquet
//! input one row group. Inputs by URL are copied to a temporary file first.

mod csv;
mod parquet;
mod source;

use crate::archive::manifest::{ImportManifest, MANIFEST_VERSION, import_path, import_topic};
use crate::archive::store::{Created, Store};
use crate::archive::{Batch, Buffers, Files, Limits, RejectedRow, Row, nonce};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use shared_model::catalog::{Catalog, Stream};
use shared_model::event::{self, Reject, Value};
use shared_model::offsets::TopicPartition;
use shared_model::secret::shown;
use shared_model::time::Millis;
use source::{Format, Staged};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// How an import works.
#[derive(Clone)]
pub struct Options {
    /// The time, in ms since 1970, that manifests say of when they were written.
    pub now: Millis,
    /// What may be held in memory. More makes larger and fewer segments where the input isn't sorted by day.
    pub limits: Limits,
    /// Stops the import; what was written of an unfinished file stays unnamed.
    pub stop: CancellationToken,
    /// Told of each thousand rows read: how many.
    pub progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

impl Options {
    /// Up to two million rows or 512 MiB are held.
    pub fn at(now: Millis) -> Options {
        let limits = Limits { rows: 2_000_000, bytes: 512 << 20 };
        Options { now, limits, stop: CancellationToken::new(), progress: None }
    }
}

/// What became of all inputs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// One for each file, in the order of the inputs.
    pub files: Vec<ImportedFile>,
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportedFile {
    /// The file, as it was named.
    pub source: String,
    /// The hash of its content.
    pub import_id: String,
    /// Whether this very content was in the archive before; then nothing was written.
    pub already_imported: bool,
    /// Its valid rows.
    pub rows: u64,
    /// Its rejected rows.
    pub rejects: u64,
    /// The files with the rejected rows, each with line number, reason and original line.
    pub reject_paths: Vec<String>,
}

/// Imports files as rows of a stream. Inputs are paths, folders (all `.csv`, `.csv.gz` and `.parquet` files below) or
/// object-store URLs of single files; CSV needs a header with the stream's field names, plain or gzip, `\N` being
/// NULL; Parquet needs columns of these names. Other columns are passed over.
///
/// # Errors
/// An unknown stream, an input that can't be read, columns that don't fit, a store that fails. Files before the one
/// that failed stay imported.
pub async fn import(
    store: &Store,
    catalog: &Catalog,
    stream: &str,
    inputs: &[String],
    options: &Options,
) -> Result<ImportReport> {
    let known = || catalog.streams.iter().map(|stream| stream.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = catalog.stream(stream);
    let stream =
        found.with_context(|| format!("the catalog has no stream {stream} (it has: {})", known()))?;
    let files = source::expand(inputs)?;
    if files.is_empty() {
        bail!("nothing to import: give a file, a folder or a url");
    }
    let mut report = ImportReport::default();
    for file in &files {
        let imported = import_file(store, stream, file, options).await;
        let imported =
            imported.with_context(|| format!("import of {} into stream {}", shown(file), stream.name))?;
        let ImportedFile { source, rows, rejects, already_imported, .. } = &imported;
        info!(source, rows, rejects, already_imported, "imported");
        report.files.push(imported);
    }
    Ok(report)
}

async fn import_file(
    store: &Store,
    stream: &Arc<Stream>,
    file: &str,
    options: &Options,
) -> Result<ImportedFile> {
    let staged = source::stage(file, &options.stop).await?;
    let path = import_path(&stream.name, &staged.import_id);
    if let Some(json) = store.get(&path).await? {
        return Ok(report(file, ImportManifest::from_json(&path, &json)?, true));
    }
    let (import_id, source) = (staged.import_id.clone(), shown(file));
    let tp = TopicPartition::new(&import_topic(&import_id), 0);
    let importer = Importer {
        files: Files::new(store.clone(), stream.clone(), tp.clone()),
        buffers: Buffers::new(options.limits),
        stream: stream.clone(),
        tp,
        options: options.clone(),
        runtime: Handle::current(),
        seen: 0,
    };
    let worked = tokio::task::spawn_blocking(move || importer.run(&staged)).await;
    let mut files = worked.context("the import's worker died")??;
    let (segments, rejects) = files.take();
    let manifest = ImportManifest {
        v: MANIFEST_VERSION,
        import_id,
        stream: stream.name.clone(),
        stream_version: format!("{:016x}", stream.version),
        rows: segments.iter().map(|segment| segment.rows).sum(),
        segments,
        rejects,
        source,
        nonce: nonce(),
        written_at: options.now,
    };
    let ours = |bytes: &[u8]| {
        ImportManifest::from_json(&path, bytes).is_ok_and(|found| found.nonce == manifest.nonce)
    };
    Ok(match store.create(&path, manifest.to_json().into(), ours).await? {
        Created::Won => report(file, manifest, false),
        Created::Exists(theirs) => report(file, ImportManifest::from_json(&path, &theirs)?, true),
    })
}

fn report(file: &str, manifest: ImportManifest, already_imported: bool) -> ImportedFile {
    let rejects = manifest.rejects.unwrap_or_default();
    ImportedFile {
        source: shown(file),
        import_id: manifest.import_id,
        already_imported,
        rows: manifest.rows,
        rejects: rejects.rows,
        reject_paths: rejects.paths,
    }
}

/// A row as an input file has it.
struct RawRow {
    /// Of CSV the line's number, of Parquet the row's, both from 1: the row's `_offset`.
    number: i64,
    /// One value for each declared field, or why there is none, with the original bytes where there are any.
    values: Result<Vec<Value>, RowFault>,
}

/// Why a row can't be counted.
struct RowFault {
    reason: &'static str,
    detail: String,
    value: Option<Vec<u8>>,
}

impl RowFault {
    fn of(reject: &Reject, value: Option<Vec<u8>>) -> RowFault {
        RowFault { reason: reject.code(), detail: reject.to_string(), value }
    }
}

/// One file's way into the archive.
struct Importer {
    files: Files,
    buffers: Buffers,
    stream: Arc<Stream>,
    tp: TopicPartition,
    options: Options,
    runtime: Handle,
    seen: u64,
}

impl Importer {
    fn run(mut self, staged: &Staged) -> Result<Files> {
        match staged.format()? {
            Format::Parquet => {
                for batch in parquet::rows(&self.stream.clone(), staged.path())? {
                    batch?.into_iter().try_for_each(|row| self.take(row))?;
                }
            }
            Format::Csv => {
                let mut lines = csv::Rows::new(self.stream.clone(), staged.reader()?)?;
                while let Some(row) = lines.next_row()? {
                    self.take(row)?;
                }
            }
        }
        let rest = self.buffers.drain();
        self.write(rest)?;
        Ok(self.files)
    }

    fn take(&mut self, row: RawRow) -> Result<()> {
        let RawRow { number: offset, values } = row;
        let checked = values.and_then(|values| {
            event::from_values(&self.stream, &self.tp, offset, None, values)
                .map_err(|reject| RowFault::of(&reject, None))
        });
        match checked {
            Ok(event) => self.buffers.keep(Row { offset, ingest_time: None, produced: None, event }),
            Err(RowFault { reason, detail, value }) => {
                self.buffers.refuse(RejectedRow { offset, ingest_time: None, reason, detail, value });
            }
        }
        self.seen += 1;
        if self.seen.is_multiple_of(1_000) {
            if self.options.stop.is_cancelled() {
                bail!("stopped at row {offset}: nothing of this file is in the archive");
            }
            if let Some(progress) = &self.options.progress {
                progress(1_000);
            }
        }
        let batches = self.buffers.spill();
        self.write(batches)
    }

    fn write(&mut self, batches: Vec<Batch>) -> Result<()> {
        let runtime = self.runtime.clone();
        batches.into_iter().try_for_each(|batch| runtime.block_on(self.files.write(batch)))
    }
}

#[cfg(test)]
mod tests;
