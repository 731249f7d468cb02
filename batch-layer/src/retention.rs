//! Retention: old event days leave the archive or the facts. The batch view's rows of those days stay.
//!
//! The ledger is told before a file goes, so that no run takes what is left of a day for the whole of it: later rows of
//! such a day are merged into its live version, which is then marked as partial.

use crate::archive::Store;
use crate::ledger::timestamp;
use crate::replace::{names, retire};
use anyhow::Result;
use chrono::NaiveDate;
use shared_model::time::Millis;
use sqlx::PgConnection;

/// Removes all segments of event days before a day. Returns how many, and their bytes. The caller holds the run lock.
pub(crate) async fn archive(
    connection: &mut PgConnection,
    store: &Store,
    before: NaiveDate,
    now: Millis,
) -> Result<(usize, i64)> {
    let sql = "update tidemark.segment set removed_at = $2 where event_day < $1 and removed_at is null";
    sqlx::query(sql).bind(before).bind(timestamp(now)).execute(&mut *connection).await?;
    // Also those that an earlier call marked and was killed before deleting; deleting twice is no error.
    let sql = "select path, bytes from tidemark.segment where event_day < $1 and removed_at is not null";
    let marked: Vec<(String, i64)> = sqlx::query_as(sql).bind(before).fetch_all(connection).await?;
    let there: std::collections::HashSet<String> =
        store.list("data").await?.into_iter().map(|object| object.location.to_string()).collect();
    let (mut files, mut bytes) = (0, 0);
    for (path, length) in marked.into_iter().filter(|(path, _)| there.contains(path)) {
        store.delete(&path).await?;
        files += 1;
        bytes += length;
    }
    Ok((files, bytes))
}

/// Drops the partitions of facts of event days before a day. Returns how many.
pub(crate) async fn facts(connection: &mut PgConnection, before: NaiveDate) -> Result<usize> {
    let sql = "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'facts' and c.relkind = 'r' and c.relname ~ '_[0-9]{8}$'
                 and to_date(right(c.relname, 8), 'YYYYMMDD') < $1
               order by 1";
    let tables: Vec<String> = sqlx::query_scalar(sql).bind(before).fetch_all(&mut *connection).await?;
    for table in &tables {
        retire::drop_partition(connection, "facts", table).await?;
        tracing::info!(table = names::quote(table), "facts dropped");
    }
    Ok(tables.len())
}
