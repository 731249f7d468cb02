//! What the ledger knows of compactions: in which file the rows of each segment lie now, and which files nobody needs.
//!
//! A compaction is taken in as a whole, in one transaction, and only where all segments that it holds are in the ledger: the
//! ledger never leads to a file with rows above its tidemark.

use crate::archive::Store;
use crate::archive::compaction::{self, Compaction};
use crate::ledger::timestamp;
use anyhow::{Result, ensure};
use chrono::NaiveDate;
use shared_model::failpoint;
use shared_model::time::{EventDay, Millis};
use sqlx::{Connection as _, PgConnection};
use std::collections::BTreeMap;

/// The streams and event days that are read from more than so many files, those first that changed last.
pub(super) async fn crowded(connection: &mut PgConnection, most: usize) -> Result<Vec<(String, EventDay)>> {
    let sql = "select stream, event_day
               from (select stream, event_day, generation from tidemark.segment
                     where compacted is null and removed_at is null
                     union all
                     select stream, event_day, 0 from tidemark.compaction where current) as file
               group by stream, event_day having count(*) > $1
               order by max(generation) desc, event_day desc, stream";
    let found: Vec<(String, NaiveDate)> = sqlx::query_as(sql).bind(most as i64).fetch_all(connection).await?;
    Ok(found.into_iter().map(|(stream, day)| (stream, EventDay::from_date(day))).collect())
}

/// What the archive's chain of a day has beyond what the ledger knew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The ledger has all of it now; the next compaction has this number.
    All { next: u64 },
    /// This one holds segments that the ledger doesn't have, or of which some were removed.
    Beyond { number: u64 },
}

/// Takes in what the chain of a stream's event day has: what a killed run had sealed, and all that came after a backup that
/// this ledger was restored from.
pub(super) async fn catch_up(
    connection: &mut PgConnection,
    store: &Store,
    stream: &str,
    day: EventDay,
    now: Millis,
) -> Result<Found> {
    let mut next = next_number(connection, stream, day).await?;
    while let Some(compaction) = compaction::read(store, stream, day, next).await? {
        let paths = paths(&compaction);
        let sql = "select count(*) filter (where removed_at is null), count(*) from tidemark.segment where path = any($1)";
        let (kept, known): (i64, i64) = sqlx::query_as(sql).bind(&paths).fetch_one(&mut *connection).await?;
        match (kept as usize == paths.len(), kept == 0 && known as usize == paths.len()) {
            (true, _) => adopt(connection, &compaction, now).await?,
            // The day has left the archive, and so does what its rows were rewritten into. What that had replaced is the
            // segments' own, which goes with them, or lies before it in the chain.
            (_, true) => {
                store.delete(&compaction.file.path).await?;
                record(connection, &compaction, true, now).await?;
            }
            _ => return Ok(Found::Beyond { number: compaction.number }),
        }
        next = compaction.number + 1;
    }
    Ok(Found::All { next })
}

/// The streams and event days that the ledger has, or had, files of, each with the number behind the last compaction that it
/// has of them.
pub(super) async fn next_numbers(connection: &mut PgConnection) -> Result<BTreeMap<(String, EventDay), u64>> {
    let sql = "select stream, event_day, coalesce(next, 0)
               from (select distinct stream, event_day from tidemark.segment) as day
               left join (select stream, event_day, max(number) + 1 as next from tidemark.compaction
                          group by stream, event_day) as chain using (stream, event_day)";
    let found: Vec<(String, NaiveDate, i64)> = sqlx::query_as(sql).fetch_all(connection).await?;
    let next = |(stream, day, next): (String, NaiveDate, i64)| {
        ((stream, EventDay::from_date(day)), next.unsigned_abs())
    };
    Ok(found.into_iter().map(next).collect())
}

/// The number behind the last compaction of a day that the ledger has.
async fn next_number(connection: &mut PgConnection, stream: &str, day: EventDay) -> Result<u64> {
    let sql =
        "select coalesce(max(number) + 1, 0) from tidemark.compaction where stream = $1 and event_day = $2";
    let next: i64 = sqlx::query_scalar(sql).bind(stream).bind(day.date()).fetch_one(connection).await?;
    Ok(next.unsigned_abs())
}

fn paths(compaction: &Compaction) -> Vec<String> {
    compaction.segments.iter().map(|place| place.path.clone()).collect()
}

/// Takes in one compaction, all of whose segments the ledger has.
pub(super) async fn adopt(connection: &mut PgConnection, compaction: &Compaction, now: Millis) -> Result<()> {
    let Compaction { stream, event_day, file, .. } = compaction;
    let mut transaction = connection.begin().await?;
    record(&mut transaction, compaction, false, now).await?;
    let paths = paths(compaction);
    let sql = "update tidemark.segment set compacted = $1 where path = any($2) and removed_at is null";
    let moved = sqlx::query(sql).bind(&file.path).bind(&paths).execute(&mut *transaction).await?;
    ensure!(
        moved.rows_affected() == paths.len() as u64,
        "the ledger has {} of the {} segments that {} holds",
        moved.rows_affected(),
        paths.len(),
        file.path
    );
    let sql = "update tidemark.compaction c set current = false
               where stream = $1 and event_day = $2 and current
                 and not exists (select from tidemark.segment s where s.compacted = c.path and s.removed_at is null)";
    sqlx::query(sql).bind(stream).bind(event_day.date()).execute(&mut *transaction).await?;
    failpoint::hit("batch.compact_adopt.before");
    transaction.commit().await?;
    failpoint::hit("batch.compact_adopt.after");
    Ok(())
}

/// Writes a compaction down: as the one that has its rows, or as deleted with all that it replaced.
async fn record(
    connection: &mut PgConnection,
    compaction: &Compaction,
    is_deleted: bool,
    now: Millis,
) -> Result<()> {
    let Compaction { stream, event_day, number, file, replaced, .. } = compaction;
    let now = timestamp(now);
    let sql = "insert into tidemark.compaction
                   (path, stream, event_day, number, rows, bytes, checksum, replaced, current, adopted_at,
                    cleared_at, deleted_at)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)";
    sqlx::query(sql)
        .bind(&file.path)
        .bind(stream)
        .bind(event_day.date())
        .bind(*number as i64)
        .bind(file.rows as i64)
        .bind(file.bytes as i64)
        .bind(&file.checksum)
        .bind(replaced)
        .bind(!is_deleted)
        .bind(now)
        .bind(is_deleted.then_some(now))
        .execute(connection)
        .await?;
    Ok(())
}

/// A compaction whose replaced files may go.
#[derive(Debug)]
pub(super) struct Replaced {
    /// The compacted file.
    pub(super) path: String,
    /// Its length.
    pub(super) bytes: u64,
    /// The files that it replaced.
    pub(super) files: Vec<String>,
    /// Whether it is read itself.
    pub(super) current: bool,
}

/// The compactions that were taken in by `before`, and whose replaced files were not deleted yet.
pub(super) async fn to_clear(connection: &mut PgConnection, before: Millis) -> Result<Vec<Replaced>> {
    // Who had lost a file and went on without it has marked its segments; that it isn't there holds up nothing then.
    let sql = "select path, bytes, replaced,
                      current and exists (select from tidemark.segment s
                                          where s.compacted = c.path and s.removed_at is null)
               from tidemark.compaction c
               where cleared_at is null and adopted_at <= $1 order by adopted_at, path";
    let found: Vec<(String, i64, Vec<String>, bool)> =
        sqlx::query_as(sql).bind(timestamp(before)).fetch_all(connection).await?;
    let replaced =
        |(path, bytes, files, current)| Replaced { path, bytes: i64::unsigned_abs(bytes), files, current };
    Ok(found.into_iter().map(replaced).collect())
}

/// Whether the rows of a segment that is kept lie in one of some files.
pub(super) async fn is_read(connection: &mut PgConnection, files: &[String]) -> Result<bool> {
    let sql = "select exists (select from tidemark.segment where removed_at is null
                                and ((path = any($1) and compacted is null) or compacted = any($1)))";
    Ok(sqlx::query_scalar(sql).bind(files).fetch_one(connection).await?)
}

/// Records that what a compaction replaced is deleted, segments' own files and earlier compacted ones: it is not deleted again
/// where the day leaves the archive.
pub(super) async fn cleared(connection: &mut PgConnection, replaced: &Replaced, now: Millis) -> Result<()> {
    let mut transaction = connection.begin().await?;
    let sql = "update tidemark.compaction
               set cleared_at = case when path = $1 then $3 else cleared_at end,
                   deleted_at = case when path = any($2) then coalesce(deleted_at, $3) else deleted_at end
               where path = $1 or path = any($2)";
    let query = sqlx::query(sql).bind(&replaced.path).bind(&replaced.files).bind(timestamp(now));
    query.execute(&mut *transaction).await?;
    let sql = "update tidemark.segment set deleted_at = $2 where path = any($1) and deleted_at is null";
    let query = sqlx::query(sql).bind(&replaced.files).bind(timestamp(now));
    query.execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}
