//! Drops the tables of versions that no reader can need: never rows.
//!
//! A reader takes its version ids and their rows from one snapshot. A version may go when it was retired longer ago than
//! the grace and no snapshot is older than the transaction that retired it; one that was never live, when its run is
//! over. Detaching waits for readers instead of standing in their way, and is tried again by the next run.

use crate::ledger::timestamp;
use crate::replace::names;
use anyhow::Result;
use shared_model::failpoint;
use shared_model::time::Millis;
use sqlx::{AssertSqlSafe, PgConnection};

/// Drops what may go; returns how many tables. `before`: versions retired, or staged and never published, before this
/// time.
pub(crate) async fn sweep(connection: &mut PgConnection, before: Millis, now: Millis) -> Result<usize> {
    let unseen = "select v.version_id, v.table_name, false from tidemark.view_version v
                  join tidemark.run r using (run_id)
                  where v.dropped_at is null and v.retired_at is null and r.status <> 'running' and v.created_at < $1
                    and not exists (select from tidemark.live_version l where l.version_id = v.version_id)";
    // An age counts transactions back from now: a snapshot as old as the retiring transaction may not see it.
    let retired = "select v.version_id, v.table_name, true from tidemark.view_version v
                   where v.dropped_at is null and v.retired_at < $1
                     and not exists (select from pg_stat_activity a
                                     where a.backend_xmin is not null and a.pid <> pg_backend_pid()
                                       and age(a.backend_xmin) >= age(v.retired_xid::xid))";
    let mut found: Vec<(i64, Option<String>, bool)> = Vec::new();
    for sql in [unseen, retired] {
        found.extend(
            sqlx::query_as::<_, (i64, Option<String>, bool)>(sql)
                .bind(timestamp(before))
                .fetch_all(&mut *connection)
                .await?,
        );
    }
    let mut dropped = 0;
    for (version, table, _) in found {
        if let Some(table) = table
            && let Err(error) = drop_partition(connection, "views", &table).await
        {
            tracing::info!(table, "not dropped yet: {error:#}");
            continue;
        }
        let done = "update tidemark.view_version set dropped_at = $2 where version_id = $1";
        sqlx::query(done).bind(version).bind(timestamp(now)).execute(&mut *connection).await?;
        dropped += 1;
    }
    Ok(dropped)
}

/// Takes away the pointers of metric versions that are not among the catalog's `versions` and were found so before
/// `before`; those that are found so now are marked, for processes that still work by an older catalog. Their tables
/// follow as those of any version that was replaced. Returns how many pointers went.
pub(crate) async fn orphans(
    connection: &mut PgConnection,
    versions: &[String],
    before: Millis,
    now: Millis,
) -> Result<u64> {
    let mark = "update tidemark.live_version
                set orphaned_at = case when version = any($1) then null else $2 end
                where (version = any($1)) = (orphaned_at is not null)";
    sqlx::query(mark).bind(versions).bind(timestamp(now)).execute(&mut *connection).await?;
    let go = "with gone as (delete from tidemark.live_version where orphaned_at <= $1 returning version_id)
              update tidemark.view_version set retired_at = $2, retired_xid = pg_current_xact_id()
              where version_id in (select version_id from gone)";
    let gone = sqlx::query(go).bind(timestamp(before)).bind(timestamp(now)).execute(connection).await?;
    Ok(gone.rows_affected())
}

/// Detaches a partition, waiting briefly for its readers, and drops it.
pub(crate) async fn drop_partition(connection: &mut PgConnection, schema: &str, table: &str) -> Result<()> {
    sqlx::raw_sql("set lock_timeout = '2s'").execute(&mut *connection).await?;
    failpoint::hit("batch.retire.before");
    let dropped = detach_and_drop(connection, schema, table).await;
    failpoint::hit("batch.retire.after");
    sqlx::raw_sql("reset lock_timeout").execute(connection).await?;
    dropped
}

async fn detach_and_drop(connection: &mut PgConnection, schema: &str, table: &str) -> Result<()> {
    // Postgres detaches one partition of a table at a time: what a detach that was cut short has left is finished first.
    let sql = "select p.relname, (select l.relname from pg_inherits o join pg_class l on l.oid = o.inhrelid
                                  where o.inhparent = p.oid and o.inhdetachpending)
               from pg_inherits i
               join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
               join pg_class p on p.oid = i.inhparent
               where n.nspname = $1 and c.relname = $2";
    let query = sqlx::query_as(sql).bind(schema).bind(table);
    let attached: Option<(String, Option<String>)> = query.fetch_optional(&mut *connection).await?;
    let schema = names::quote(schema);
    if let Some((parent, pending)) = attached {
        let detach = |partition: &str, how: &str| {
            let (parent, partition) = (names::quote(&parent), names::quote(partition));
            AssertSqlSafe(format!(
                "alter table {schema}.{parent} detach partition {schema}.{partition} {how}"
            ))
        };
        if let Some(pending) = &pending {
            sqlx::raw_sql(detach(pending, "finalize")).execute(&mut *connection).await?;
        }
        if pending.as_deref() != Some(table) {
            sqlx::raw_sql(detach(table, "concurrently")).execute(&mut *connection).await?;
        }
        failpoint::hit("batch.detach.after");
    }
    let name = names::quote(table);
    sqlx::raw_sql(AssertSqlSafe(format!("drop table if exists {schema}.{name}"))).execute(connection).await?;
    Ok(())
}
