//! The flip: one transaction that makes staged versions live, takes segments into the ledger and moves the tidemark.
//!
//! It is a compare-and-set: the tidemark's next generation is a row whose primary key only one flip can insert. Either
//! everything of it is there for readers, or nothing.

use crate::facts;
use crate::ledger::{Entry, timestamp};
use crate::replace::{Staged, names};
use anyhow::{Context, Result};
use shared_model::failpoint;
use shared_model::tidemark::Tidemark;
use shared_model::time::{EventDay, Millis};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgTransaction};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// How often a flip is tried while others hold locks that it needs.
const ATTEMPTS: u32 = 10;

/// A flip that can't be: another one was first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("another run moved the tidemark to generation {generation} first; nothing was published, run again")]
pub(crate) struct Overtaken {
    /// The generation that was to be written.
    pub(crate) generation: i64,
}

/// Everything that one flip changes.
pub(crate) struct Flip<'a> {
    /// The run that it closes.
    pub(crate) run: i64,
    /// The tidemark that it leaves in force; its generation is one above the present one.
    pub(crate) next: &'a Tidemark,
    /// The versions that become live.
    pub(crate) publish: &'a [Staged],
    /// The segments that come below the tidemark.
    pub(crate) entries: &'a [Entry],
    /// What the log had lost before it was archived: topic, partition, from, to, cause.
    pub(crate) gaps: &'a [(String, i32, i64, i64, String)],
    /// Days with new rows: pointers there of metric versions that the catalog doesn't have become stale, and go.
    pub(crate) dirty: &'a [EventDay],
    /// All metric versions of the catalog.
    pub(crate) versions: &'a [String],
    /// Segments whose rows become facts, each with its file on this machine: all of a stream that keeps them.
    pub(crate) facts: &'a [(facts::Table, PathBuf)],
    /// Days and rows of the run, for its record.
    pub(crate) days: usize,
    /// Imports that it takes in.
    pub(crate) imports: &'a [String],
    /// The time of the flip.
    pub(crate) now: Millis,
}

/// Flips. Waits briefly for locks and tries again, so that it never stands in readers' way for long.
pub(crate) async fn flip(connection: &mut PgConnection, flip: &Flip<'_>) -> Result<()> {
    for attempt in 1.. {
        match once(connection, flip).await {
            Ok(()) => return Ok(()),
            Err(error) if attempt < ATTEMPTS && code(&error).as_deref() == Some("55P03") => {
                tracing::warn!(attempt, "the flip waits for a lock and is tried again");
                tokio::time::sleep(Duration::from_millis(100 << attempt.min(5))).await;
            }
            Err(error) if code(&error).as_deref() == Some("23505") && is_generation(&error) => {
                return Err(Overtaken { generation: flip.next.generation }.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn database_error(error: &anyhow::Error) -> Option<&dyn sqlx::error::DatabaseError> {
    match error.downcast_ref::<sqlx::Error>()? {
        sqlx::Error::Database(database) => Some(&**database),
        _ => None,
    }
}

fn code(error: &anyhow::Error) -> Option<String> {
    Some(database_error(error)?.code()?.into_owned())
}

fn is_generation(error: &anyhow::Error) -> bool {
    database_error(error).is_some_and(|database| database.constraint() == Some("tidemark_pkey"))
}

async fn once(connection: &mut PgConnection, flip: &Flip<'_>) -> Result<()> {
    let mut transaction = connection.begin().await?;
    sqlx::query("set local lock_timeout = '2s'").execute(&mut *transaction).await?;
    // First what may be lost to another: the loser's transaction then has done no work.
    sqlx::query(
        "insert into tidemark.tidemark (generation, flipped_at, run_id, cuts) values ($1, $2, $3, $4)",
    )
    .bind(flip.next.generation)
    .bind(timestamp(flip.now))
    .bind(flip.run)
    .bind(Json(flip.next.to_stored()))
    .execute(&mut *transaction)
    .await?;
    take_in(&mut transaction, flip).await?;
    for (table, file) in flip.facts {
        facts::append(&mut transaction, table, file, flip.now).await?;
    }
    for staged in flip.publish {
        publish(&mut transaction, staged, flip.now).await?;
    }
    drop_stale_pointers(&mut transaction, flip).await?;
    let rows: i64 = flip.publish.iter().map(|staged| staged.rows).sum();
    let sql = "update tidemark.run set status = 'done', finished_at = $2, generation_after = $3, days = $4, rows = $5,
                   imports = $6 where run_id = $1";
    sqlx::query(sql)
        .bind(flip.run)
        .bind(timestamp(flip.now))
        .bind(flip.next.generation)
        .bind(flip.days as i32)
        .bind(rows)
        .bind(Json(flip.imports))
        .execute(&mut *transaction)
        .await?;
    failpoint::hit("batch.flip.before");
    transaction.commit().await?;
    failpoint::hit("batch.flip.after");
    Ok(())
}

/// Writes the ledger. A path that is there already is a fault that must not be hidden: its rows would count twice.
async fn take_in(transaction: &mut PgTransaction<'_>, flip: &Flip<'_>) -> Result<()> {
    let sql = "insert into tidemark.segment (path, stream, topic, partition, from_offset, to_offset, event_day, rows,
                   bytes, checksum, import_id, generation, facts)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
    let with_facts: BTreeSet<&String> = flip.facts.iter().map(|(table, _)| &table.stream.name).collect();
    for Entry { stream, tp, import, segment, .. } in flip.entries {
        sqlx::query(sql)
            .bind(&segment.path)
            .bind(stream)
            .bind(&*tp.topic)
            .bind(tp.partition)
            .bind(segment.from_offset)
            .bind(segment.to_offset)
            .bind(segment.event_day.date())
            .bind(segment.rows as i64)
            .bind(segment.bytes as i64)
            .bind(&segment.checksum)
            .bind(import)
            .bind(flip.next.generation)
            .bind(with_facts.contains(stream))
            .execute(&mut **transaction)
            .await?;
    }
    for (topic, partition, from, to, cause) in flip.gaps {
        let sql = "insert into tidemark.gap (topic, partition, from_offset, to_offset, cause, generation)
                   values ($1, $2, $3, $4, $5, $6)";
        let query = sqlx::query(sql).bind(topic).bind(partition).bind(from).bind(to).bind(cause);
        query.bind(flip.next.generation).execute(&mut **transaction).await?;
    }
    Ok(())
}

async fn publish(transaction: &mut PgTransaction<'_>, staged: &Staged, now: Millis) -> Result<()> {
    let (version, day) = (staged.metric.version.to_string(), staged.day.date());
    if let Some(table) = &staged.table {
        let attach = names::attach(&names::parent_table(&staged.metric), table, staged.version);
        sqlx::raw_sql(AssertSqlSafe(attach)).execute(&mut **transaction).await?;
    }
    let retire = "update tidemark.view_version v set retired_at = $3, retired_xid = pg_current_xact_id()
                  from tidemark.live_version l
                  where l.version = $1 and l.event_day = $2 and v.version_id = l.version_id";
    sqlx::query(retire).bind(&version).bind(day).bind(timestamp(now)).execute(&mut **transaction).await?;
    let point =
        "insert into tidemark.live_version (metric, version, event_day, version_id) values ($1, $2, $3, $4)
                 on conflict (version, event_day) do update set version_id = excluded.version_id";
    let query = sqlx::query(point).bind(&staged.metric.name).bind(&version).bind(day).bind(staged.version);
    query.execute(&mut **transaction).await?;
    Ok(())
}

/// A pointer must mean "computed from all that lies below the tidemark": on days with new rows, those of versions that
/// this run didn't compute no longer do. Who wants them again has them computed anew.
async fn drop_stale_pointers(transaction: &mut PgTransaction<'_>, flip: &Flip<'_>) -> Result<()> {
    let days: Vec<chrono::NaiveDate> = flip.dirty.iter().map(|day| day.date()).collect();
    let sql = "with gone as (
                   delete from tidemark.live_version where event_day = any($1) and not (version = any($2))
                   returning version_id)
               update tidemark.view_version set retired_at = $3, retired_xid = pg_current_xact_id()
               where version_id in (select version_id from gone)";
    let query = sqlx::query(sql).bind(days).bind(flip.versions).bind(timestamp(flip.now));
    query.execute(&mut **transaction).await.context("retiring versions of other catalogs")?;
    Ok(())
}
