//! Rewrites files of a stream's event day as one, and tells of it in the day's chain: from then on it stands, whatever becomes
//! of the ledger.

use crate::archive::checksum::{Checksum, Summing};
use crate::archive::compaction::{
    COMPACTION_VERSION, Compacted, Compaction, compacted_path, compaction_path,
};
use crate::archive::merge::{self, Merged, Part};
use crate::archive::store::Created;
use crate::archive::{Store, nonce};
use crate::files::{AT_ONCE, Files};
use crate::ledger::{self, Entry};
use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use shared_model::failpoint;
use shared_model::time::{EventDay, Millis};
use sqlx::PgConnection;
use std::collections::BTreeMap;

/// A file of a day with the segments whose rows it has.
#[derive(Debug, Clone)]
pub(super) struct Live {
    /// The segments.
    pub(super) entries: Vec<Entry>,
    /// The path that is read.
    pub(super) path: String,
    /// Its length.
    pub(super) bytes: u64,
}

/// The files that a day of a stream is read from, but for those of which some rows are removed: what is rewritten must be
/// whole files of the chain.
pub(super) async fn live_files(
    connection: &mut PgConnection,
    stream: &str,
    day: EventDay,
) -> Result<Vec<Live>> {
    let (entries, _) = ledger::day(connection, day).await?;
    let mut files: BTreeMap<String, (Live, u64)> = BTreeMap::new();
    for entry in entries.into_iter().filter(|entry| entry.stream == stream) {
        let (bytes, rows) = match &entry.compacted {
            Some(file) => (file.bytes, file.rows),
            None => (entry.segment.bytes, entry.segment.rows),
        };
        let path = entry.path().to_owned();
        let new = || (Live { entries: Vec::new(), path: path.clone(), bytes }, rows);
        let (file, left) = files.entry(path.clone()).or_insert_with(new);
        *left = left.saturating_sub(entry.segment.rows);
        file.entries.push(entry);
    }
    Ok(files.into_values().filter(|(_, left)| *left == 0).map(|(file, _)| file).collect())
}

/// Brings the rows of files to this machine, those of each by themselves.
pub(super) async fn bring(files: &Files, chosen: &[&Live]) -> Result<Vec<Vec<Part>>> {
    let bring = chosen.iter().map(async |file| {
        let mut parts = Vec::new();
        for held in files.held(&file.entries.iter().collect::<Vec<_>>()).await? {
            let mut from = 0;
            for place in held.places {
                let rows = place.rows;
                parts.push(Part { file: held.file.clone(), from, place });
                from += rows;
            }
        }
        anyhow::Ok(parts)
    });
    futures::stream::iter(bring).buffered(AT_ONCE).try_collect().await
}

/// Writes the rows of some files, in the order of their places in the log, as one, and says what it holds. `number` is the
/// next of the day's chain.
pub(super) async fn write(
    store: &Store,
    files: &Files,
    (stream, day, number): (&str, EventDay, u64),
    (chosen, mut parts): (&[&Live], Vec<Part>),
    now: Millis,
) -> Result<Compaction> {
    parts.sort_by(|a, b| a.place.position().cmp(&b.place.position()));
    let segments = parts.iter().map(|part| part.place.clone()).collect();
    let target = files.folder().join("compacted.parquet");
    let to = target.clone();
    let work = move || -> Result<(Merged, (u64, String))> {
        let inner = std::fs::File::create(&to).context("no file in the temporary folder (TMPDIR)")?;
        let mut to = Summing { inner, sum: Checksum::new() };
        let merged = merge::merge(&parts, &mut to)?;
        Ok((merged, to.sum.finish()))
    };
    let (merged, (bytes, checksum)) = tokio::task::spawn_blocking(work).await??;
    let path = compacted_path(stream, day, &checksum);
    failpoint::hit("batch.compact_write.before");
    store.put_file(&path, &target).await?;
    failpoint::hit("batch.compact_write.after");
    let Merged { rows, min_event_time, max_event_time } = merged;
    Ok(Compaction {
        v: COMPACTION_VERSION,
        stream: stream.to_owned(),
        event_day: day,
        number,
        file: Compacted { path, rows, bytes, checksum },
        min_event_time,
        max_event_time,
        segments,
        replaced: chosen.iter().map(|file| file.path.clone()).collect(),
        nonce: nonce(),
        written_at: now,
    })
}

/// Makes it the next of the day's chain.
pub(super) async fn seal(store: &Store, compaction: &Compaction) -> Result<()> {
    let path = compaction_path(&compaction.stream, compaction.event_day, compaction.number);
    let ours =
        |bytes: &[u8]| Compaction::from_json(&path, bytes).is_ok_and(|found| found.nonce == compaction.nonce);
    failpoint::hit("batch.compact_seal.before");
    let created = store.create(&path, compaction.to_json().into(), ours).await?;
    failpoint::hit("batch.compact_seal.after");
    match created {
        Created::Won => Ok(()),
        Created::Exists(_) => {
            bail!("another has compacted the day at the same time; the next run takes that in")
        }
    }
}
