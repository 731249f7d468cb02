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
//! It keeps to a time, so that the lock is held for no longer than one day's files take beyond it, and what it leaves is the
//! next run's.
//!
//! Memory: see [`merge`]. Disk: the files of one day that are rewritten and what is made of them, in the folder for temporary
//! files.

mod adopt;
mod choice;
mod failures;
mod rewrite;

pub(crate) use failures::Failures;

use crate::archive::compaction::{self, compaction_path};
use crate::archive::{Store, merge};
use crate::files::{AT_ONCE, Files};
use crate::run::Context;
use adopt::{Found, Replaced};
use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use metrics::counter;
use rewrite::Live;
use shared_model::failpoint;
use shared_model::time::{EventDay, Millis};
use sqlx::PgConnection;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// After so many bytes a run leaves other days to the next one, and of one day it takes so many at most: an archive that was
/// never compacted takes several.
const BYTES_OF_A_RUN: u64 = 4 << 30;
/// After so long too; and so long it deletes at most, and a sweep catches up.
const TIME: Duration = Duration::from_secs(30);

/// Rewrites what has become too small and deletes what was replaced long enough ago. What can't be done is a warning, and
/// tried again after a later run. `moved` are days of which the run found rows elsewhere than the ledger knew. The caller
/// holds the run lock.
pub(crate) async fn compact(
    context: &Context,
    connection: &mut PgConnection,
    moved: &BTreeSet<(String, EventDay)>,
) {
    if let Err(error) = compact_days(context, connection, moved).await {
        tracing::warn!("small files of the archive are not compacted yet: {error:#}");
    }
    match clear(context, connection).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(files, "files that were compacted are deleted"),
        Err(error) => tracing::warn!("files that were compacted are not deleted yet: {error:#}"),
    }
}

/// Whether work that began then is to stop.
pub(crate) fn is_over(context: &Context, begun: Instant) -> bool {
    begun.elapsed() >= TIME || context.stop.is_cancelled()
}

async fn compact_days(
    context: &Context,
    connection: &mut PgConnection,
    moved: &BTreeSet<(String, EventDay)>,
) -> Result<()> {
    let begun = Instant::now();
    let mut days = adopt::crowded(connection, choice::MOST).await?;
    let crowded: BTreeSet<(String, EventDay)> = days.iter().cloned().collect();
    days.extend(moved.difference(&crowded).cloned());
    let mut bytes = 0;
    for of_day in days {
        if bytes >= BYTES_OF_A_RUN || is_over(context, begun) {
            break;
        }
        let now = (context.now)();
        if context.compaction_failures.is_waiting(&of_day, now) {
            continue;
        }
        let (stream, day) = (of_day.0.as_str(), of_day.1);
        let mut done = Done::default();
        let end = compact_day(connection, &context.store, (stream, day), now, &mut done).await;
        if let Err(error) = &end {
            tracing::warn!(stream, %day, "the day's small files are not compacted yet: {error:#}");
        }
        tell(stream, day, &done);
        bytes += done.read;
        context.compaction_failures.took(of_day, matches!(end, Ok(true)), now);
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
    let mut listed = compaction::listed(store).await?;
    listed.retain(|of_day, numbers| next.get(of_day).is_some_and(|next| numbers.last() >= Some(next)));
    Ok(listed.into_keys().collect())
}

/// Takes in all compactions that the archive has of some days, until it is enough; gives how many days were looked at, and of
/// how many the ledger has all now. What can't be taken in is a warning: one that is damaged holds up no other day. The caller
/// holds the run lock.
pub(crate) async fn catch_up(
    connection: &mut PgConnection,
    store: &Store,
    days: &BTreeSet<(String, EventDay)>,
    now: Millis,
    is_enough: impl Fn() -> bool,
) -> (usize, usize) {
    let (mut looked, mut known) = (0, 0);
    for (stream, day) in days {
        if is_enough() {
            break;
        }
        looked += 1;
        match adopt::catch_up(connection, store, stream, *day, now).await {
            Ok(found) => known += usize::from(matches!(found, Found::All { .. })),
            Err(error) => {
                tracing::warn!(stream, %day, "what the archive says of rewritten files is not taken in yet: {error:#}");
            }
        }
    }
    (looked, known)
}

/// What became of a day's files.
#[derive(Debug, Default)]
struct Done {
    /// How many were written, and of how many.
    written: u64,
    replaced: u64,
    /// Bytes of those, and the rows.
    read: u64,
    rows: u64,
}

fn tell(stream: &str, day: EventDay, done: &Done) {
    let Done { written, replaced, read, rows } = *done;
    if written == 0 {
        return;
    }
    tracing::info!(stream, %day, written, replaced, rows, bytes = read, "small files were compacted");
    let stream = stream.to_owned();
    counter!("tidemark_batch_compactions_total", "stream" => stream.clone()).increment(written);
    counter!("tidemark_batch_compacted_files_total", "stream" => stream.clone()).increment(replaced);
    counter!("tidemark_batch_compacted_rows_total", "stream" => stream.clone()).increment(rows);
    counter!("tidemark_batch_compacted_bytes_total", "stream" => stream).increment(read);
}

/// Rewrites a day's smallest files as one, where there are too many; as one of each set of columns where a field's type has
/// changed. Gives whether there is nothing to wait for.
async fn compact_day(
    connection: &mut PgConnection,
    store: &Store,
    (stream, day): (&str, EventDay),
    now: Millis,
    done: &mut Done,
) -> Result<bool> {
    let mut next = match adopt::catch_up(connection, store, stream, day, now).await? {
        Found::All { next } => next,
        // What is rewritten must be whole files of the chain.
        Found::Beyond { number } => {
            let why = "the archive's compaction of the day holds segments that this ledger lacks: rows that its tidemark \
                       has not reached yet or, where it was begun at the log's low watermark, older ones";
            tracing::info!(stream, %day, number, "not compacted: {why}");
            return Ok(false);
        }
    };
    let live = rewrite::live_files(connection, stream, day).await?;
    let lengths: Vec<u64> = live.iter().map(|file| file.bytes).collect();
    let Some(chosen) = choice::choose(&lengths) else { return Ok(true) };
    ensure_unbroken(store, stream, day, next).await?;
    let chosen = choice::within(chosen, &lengths, BYTES_OF_A_RUN);
    let chosen: Vec<&Live> = chosen.into_iter().map(|place| &live[place]).collect();
    let files = Files::new(store.clone())?;
    let parts = rewrite::bring(&files, &chosen).await?;
    let alike = move || anyhow::Ok((merge::alike(&parts)?, parts));
    let (groups, mut parts) = tokio::task::spawn_blocking(alike).await??;
    for group in groups.into_iter().filter(|group| group.len() > 1) {
        let of_group = group.iter().flat_map(|&at| std::mem::take(&mut parts[at])).collect();
        let group: Vec<&Live> = group.iter().map(|&at| chosen[at]).collect();
        let compaction =
            rewrite::write(store, &files, (stream, day, next), (group.as_slice(), of_group), now).await?;
        rewrite::seal(store, &compaction).await?;
        adopt::adopt(connection, &compaction, now).await?;
        next += 1;
        done.written += 1;
        done.replaced += group.len() as u64;
        done.read += group.iter().map(|file| file.bytes).sum::<u64>();
        done.rows += compaction.file.rows;
    }
    ensure!(
        done.written > 0,
        "no two of its smallest files have columns of the same types: import them anew"
    );
    Ok(true)
}

/// Refuses to go on with a chain that ends before the ledger's: what came behind the hole would be found by nobody who reads
/// the chain from its begin. And to fill a hole itself: what comes behind it was made of what it held.
async fn ensure_unbroken(store: &Store, stream: &str, day: EventDay, next: u64) -> Result<()> {
    if let Some(last) = next.checked_sub(1) {
        let path = compaction_path(stream, day, last);
        let is_there = store.size(&path).await?.is_some();
        ensure!(
            is_there,
            "{path} is in the ledger but not in the archive, which is older or was damaged: restore it"
        );
    }
    let (own, last) =
        (compaction_path(stream, day, next), compaction::last_listed(store, stream, day).await?);
    ensure!(
        last < Some(next),
        "{own} is missing in the archive, which has later ones of the day: restore it"
    );
    Ok(())
}

/// Deletes what compactions replaced that the ledger took in before the grace; gives how many files. What can't be deleted is
/// a warning.
async fn clear(context: &Context, connection: &mut PgConnection) -> Result<u64> {
    let (begun, now) = (Instant::now(), (context.now)());
    let grace = i64::try_from(context.options.compaction_grace.as_millis()).unwrap_or(i64::MAX);
    let mut deleted = 0;
    for replaced in adopt::to_clear(connection, now.saturating_sub(grace)).await? {
        if is_over(context, begun) {
            break;
        }
        match clear_one(connection, &context.store, &replaced, now).await {
            Ok(()) => deleted += replaced.files.len() as u64,
            Err(error) => {
                tracing::warn!(path = replaced.path, "what it replaced is not deleted yet: {error:#}");
            }
        }
    }
    Ok(deleted)
}

/// Deletes what a compaction replaced.
///
/// # Errors
/// Where some of that is still read, or the file that has its rows isn't there: then all stay. Where the archive or the ledger
/// fails.
async fn clear_one(
    connection: &mut PgConnection,
    store: &Store,
    replaced: &Replaced,
    now: Millis,
) -> Result<()> {
    let Replaced { path, bytes, files, current } = replaced;
    ensure!(!adopt::is_read(connection, files).await?, "it is still read");
    if *current {
        let is_there = store.size(path).await? == Some(*bytes);
        ensure!(is_there, "{path} isn't in the archive as it was written: restore it");
    }
    let deletes = futures::stream::iter(files).map(async |file| store.delete(file).await);
    deletes.buffered(AT_ONCE).try_collect::<()>().await?;
    failpoint::hit("batch.compact_clear.before");
    adopt::cleared(connection, replaced, now).await?;
    failpoint::hit("batch.compact_clear.after");
    Ok(())
}

#[cfg(test)]
mod tests;
