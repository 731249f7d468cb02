//! Compaction of the archive: the small files of a stream's event day are rewritten as one, so that few are left however
//! short the epochs.
//!
//! It follows a run that took in what was new, under that run's lock, and changes nothing that a reader sees: no record, no
//! version, no hash, no manifest. In this order, each step there for good before the next: the file is written; the
//! archive's own chain says what it holds ([`archive::compaction`](crate::archive::compaction)); the ledger takes that in, and
//! the next run reads the file; after a grace, for readers that have the old names, the files that it replaced are deleted.
//! Whatever is killed in between is done by the next run, which takes in first what the chain has. A ledger that is older
//! than the archive, or new, finds in the chain where rows went.
//!
//! Memory: see [`merge`]. Disk: the files of one compaction and what is made of them, in the folder for temporary files.

mod adopt;
mod choice;

use crate::archive::compaction::{
    COMPACTION_VERSION, Compacted, Compaction, compacted_path, compaction_path,
};
use crate::archive::merge::{self, Merged, Part};
use crate::archive::store::Created;
use crate::archive::{self, Store, nonce};
use crate::files::Files;
use crate::ledger::{self, Entry};
use crate::run::Context;
use adopt::Found;
use anyhow::{Context as _, Result, bail, ensure};
use metrics::counter;
use shared_model::failpoint;
use shared_model::time::{EventDay, Millis};
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// After so many bytes a run leaves other days to the next one: an archive that was never compacted takes several.
const BYTES_OF_A_RUN: u64 = 4 << 30;

/// Rewrites what has become too small and deletes what was replaced long enough ago. What can't be done is a warning, and
/// tried again after the next run. `moved` are days of which the run found rows elsewhere than the ledger knew. The caller
/// holds the run lock.
pub(crate) async fn compact(
    context: &Context,
    connection: &mut PgConnection,
    moved: &BTreeSet<(String, EventDay)>,
) {
    if let Err(error) = compact_days(context, connection, moved).await {
        tracing::warn!("small files of the archive are not compacted yet: {error:#}");
    }
    let now = (context.now)();
    let grace = i64::try_from(context.options.compaction_grace.as_millis()).unwrap_or(i64::MAX);
    match clear(connection, &context.store, now.saturating_sub(grace), now).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(files, "files that were compacted are deleted"),
        Err(error) => tracing::warn!("files that were compacted are not deleted yet: {error:#}"),
    }
}

async fn compact_days(
    context: &Context,
    connection: &mut PgConnection,
    moved: &BTreeSet<(String, EventDay)>,
) -> Result<()> {
    let mut days = adopt::crowded(connection, choice::MOST).await?;
    let crowded: BTreeSet<(String, EventDay)> = days.iter().cloned().collect();
    days.extend(moved.difference(&crowded).cloned());
    let mut bytes = 0;
    for (stream, day) in days {
        if bytes >= BYTES_OF_A_RUN || context.stop.is_cancelled() {
            break;
        }
        let now = (context.now)();
        match compact_day(connection, &context.store, &stream, day, now).await {
            Ok(None) => {}
            Ok(Some(done)) => {
                tell(&stream, day, &done);
                bytes += done.read;
            }
            Err(error) => {
                tracing::warn!(stream, %day, "the day's small files are not compacted yet: {error:#}");
            }
        }
    }
    Ok(())
}

/// The ledger's streams and event days of which a listing of the archive has compactions that the ledger lacks: it is older
/// than the archive.
pub(crate) async fn behind(
    connection: &mut PgConnection,
    store: &Store,
) -> Result<BTreeSet<(String, EventDay)>> {
    let next = adopt::next_numbers(connection).await?;
    let mut listed = archive::compaction::listed(store).await?;
    listed.retain(|of_day, numbers| next.get(of_day).is_some_and(|next| numbers.last() >= Some(next)));
    Ok(listed.into_keys().collect())
}

/// Takes in all compactions that the archive has of some days; gives of how many days the ledger has all now. The caller
/// holds the run lock.
pub(crate) async fn catch_up(
    connection: &mut PgConnection,
    store: &Store,
    days: &BTreeSet<(String, EventDay)>,
    now: Millis,
) -> Result<usize> {
    let mut known = 0;
    for (stream, day) in days {
        let found = adopt::catch_up(connection, store, stream, *day, now).await?;
        known += usize::from(matches!(found, Found::All { .. }));
    }
    Ok(known)
}

/// What became of a day.
struct Done {
    /// How many files there were, and are.
    before: usize,
    after: usize,
    /// Bytes that were rewritten, and that came of them.
    read: u64,
    written: u64,
    rows: u64,
}

fn tell(stream: &str, day: EventDay, done: &Done) {
    let Done { before, after, read, written, rows } = *done;
    tracing::info!(stream, %day, before, after, rows, read, written, "small files were compacted");
    let stream = stream.to_owned();
    counter!("tidemark_batch_compactions_total", "stream" => stream.clone()).increment(1);
    let files = (before - after + 1) as u64;
    counter!("tidemark_batch_compacted_files_total", "stream" => stream.clone()).increment(files);
    counter!("tidemark_batch_compacted_rows_total", "stream" => stream.clone()).increment(rows);
    counter!("tidemark_batch_compacted_bytes_total", "stream" => stream).increment(read);
}

/// A file of a day with the segments whose rows it has.
struct Live {
    entries: Vec<Entry>,
    /// The path that is read, and its length.
    path: String,
    bytes: u64,
}

/// Rewrites a day's smallest files as one, where there are too many.
async fn compact_day(
    connection: &mut PgConnection,
    store: &Store,
    stream: &str,
    day: EventDay,
    now: Millis,
) -> Result<Option<Done>> {
    let next = match adopt::catch_up(connection, store, stream, day, now).await? {
        Found::All { next } => next,
        // What is rewritten must be whole files of the chain.
        Found::Beyond { number } => {
            let why = "the archive's compaction of the day holds segments that this ledger lacks: rows that its tidemark \
                       has not reached yet or, where it was begun at the log's low watermark, older ones";
            tracing::info!(stream, %day, number, "not compacted: {why}");
            return Ok(None);
        }
    };
    ensure_unbroken(store, stream, day, next).await?;
    let live = live_files(connection, stream, day).await?;
    let lengths: Vec<u64> = live.iter().map(|file| file.bytes).collect();
    let Some(chosen) = choice::choose(&lengths) else { return Ok(None) };
    let chosen: Vec<&Live> = chosen.into_iter().map(|place| &live[place]).collect();
    let compaction = write(store, stream, day, next, &chosen, now).await?;
    seal(store, &compaction).await?;
    adopt::adopt(connection, &compaction, now).await?;
    Ok(Some(Done {
        before: live.len(),
        after: live.len() - chosen.len() + 1,
        read: chosen.iter().map(|file| file.bytes).sum(),
        written: compaction.file.bytes,
        rows: compaction.file.rows,
    }))
}

/// Refuses to go on with a chain that ends before the ledger's: what came behind the hole would be found by nobody who reads
/// the chain from its begin.
async fn ensure_unbroken(store: &Store, stream: &str, day: EventDay, next: u64) -> Result<()> {
    let Some(last) = next.checked_sub(1) else { return Ok(()) };
    let path = compaction_path(stream, day, last);
    let is_there = store.size(&path).await?.is_some();
    ensure!(
        is_there,
        "{path} is in the ledger but not in the archive, which is older or was damaged: restore it"
    );
    Ok(())
}

/// The files that a day of a stream is read from.
async fn live_files(connection: &mut PgConnection, stream: &str, day: EventDay) -> Result<Vec<Live>> {
    let (entries, _) = ledger::day(connection, day).await?;
    let mut live: BTreeMap<String, Live> = BTreeMap::new();
    for entry in entries.into_iter().filter(|entry| entry.stream == stream) {
        let (path, bytes) = match &entry.compacted {
            Some(file) => (file.path.clone(), file.bytes),
            None => (entry.segment.path.clone(), entry.segment.bytes),
        };
        let file = live.entry(path.clone()).or_insert_with(|| Live { entries: Vec::new(), path, bytes });
        file.entries.push(entry);
    }
    Ok(live.into_values().collect())
}

/// Writes the rows of files, in the order of their places in the log, as one, and says what it holds.
async fn write(
    store: &Store,
    stream: &str,
    day: EventDay,
    number: u64,
    chosen: &[&Live],
    now: Millis,
) -> Result<Compaction> {
    let files = Files::new(store.clone())?;
    let mut parts = Vec::new();
    for Live { entries, path, .. } in chosen {
        let here = files.rows_of(&entries.iter().collect::<Vec<_>>()).await?;
        let [file] = &here[..] else {
            bail!("the rows of {path} lie in {} files: another ledger has compacted the day", here.len());
        };
        // As they stand in it, whichever file that is.
        let mut places: Vec<_> = entries.iter().map(Entry::place).collect();
        places.sort_by(|a, b| a.position().cmp(&b.position()));
        let mut from = 0;
        for place in places {
            let rows = place.rows;
            parts.push(Part { file: file.clone(), from, place });
            from += rows;
        }
    }
    parts.sort_by(|a, b| a.place.position().cmp(&b.place.position()));
    let segments = parts.iter().map(|part| part.place.clone()).collect();
    let target = files.folder().join("compacted.parquet");
    let (Merged { rows, min_event_time, max_event_time }, bytes, checksum) = {
        let target = target.clone();
        let work = move || -> Result<(Merged, u64, String)> {
            let file = std::fs::File::create(&target).context("no file in the temporary folder (TMPDIR)")?;
            let merged = merge::merge(&parts, &file)?;
            drop(file);
            let (bytes, checksum) = measure(&target)?;
            Ok((merged, bytes, checksum))
        };
        tokio::task::spawn_blocking(work).await??
    };
    let path = compacted_path(stream, day, &checksum);
    failpoint::hit("batch.compact_write.before");
    store.put_file(&path, &target).await?;
    failpoint::hit("batch.compact_write.after");
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

/// The length and the checksum of a file. Blocks.
fn measure(file: &Path) -> Result<(u64, String)> {
    let (mut file, mut hasher) = (std::fs::File::open(file)?, Xxh3::new());
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, format!("{:016x}", hasher.digest())));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// Makes it the next of the day's chain.
async fn seal(store: &Store, compaction: &Compaction) -> Result<()> {
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

/// Deletes what compactions replaced that the ledger took in by `before` (ms since 1970); gives how many files. One that is
/// still read stays, and all stay where the file that has their rows isn't there.
async fn clear(connection: &mut PgConnection, store: &Store, before: Millis, now: Millis) -> Result<usize> {
    let mut deleted = 0;
    for replaced in adopt::to_clear(connection, before).await? {
        let adopt::Replaced { path, bytes, files, current } = &replaced;
        if adopt::is_read(connection, files).await? {
            tracing::warn!(path, "files that it replaced are still read, and stay");
            continue;
        }
        if *current && store.size(path).await? != Some(*bytes) {
            tracing::warn!(
                path,
                "the compacted file isn't there as it was written: restore it; what it replaced stays"
            );
            continue;
        }
        for file in files {
            store.delete(file).await?;
            deleted += 1;
        }
        failpoint::hit("batch.compact_clear.before");
        adopt::cleared(connection, &replaced, now).await?;
        failpoint::hit("batch.compact_clear.after");
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests;
