//! Retention: old event days leave the archive or the facts. The batch view's rows of those days stay.
//!
//! The ledger is told before a file goes, so that no run takes what is left of a day for the whole of it: later rows of
//! such a day are merged into its live version, which is then marked as partial.

use crate::archive::Store;
use crate::compact;
use crate::ledger::timestamp;
use crate::replace::{names, retire};
use anyhow::Result;
use chrono::NaiveDate;
use shared_model::catalog::Stream;
use shared_model::tidemark::Tidemark;
use shared_model::time::{EventDay, Millis};
use sqlx::PgConnection;

/// The first event day that is kept of a stream, where that many before its newest are. By the newest trusted event
/// time below the tidemark, so that neither a replay's age nor a record from the future matters; `None` where there is
/// none.
pub(crate) fn first_kept(stream: &Stream, tidemark: &Tidemark, days: u32) -> Option<NaiveDate> {
    let of_stream = tidemark.cuts.iter().filter(|(tp, _)| tp.topic == stream.topic);
    let newest = of_stream.filter_map(|(_, cut)| cut.trusted.newest).max()?;
    let days = i32::try_from(days).unwrap_or(i32::MAX);
    Some(EventDay(EventDay::of(newest).0.saturating_sub(days)).date())
}

/// Removes the segments of event days before a day, of one stream or of all. Returns how many files had their rows, and
/// those files' bytes. The caller holds the run lock.
pub(crate) async fn archive(
    connection: &mut PgConnection,
    store: &Store,
    stream: Option<&str>,
    before: NaiveDate,
    now: Millis,
) -> Result<(usize, i64)> {
    // A compaction that a killed run has sealed goes with its day, too; at no later time is that day looked at again.
    let sql = "select distinct stream, event_day from tidemark.segment
               where event_day < $1 and removed_at is null and stream = coalesce($2, stream)";
    let query = sqlx::query_as(sql).bind(before).bind(stream);
    let days: Vec<(String, NaiveDate)> = query.fetch_all(&mut *connection).await?;
    let days = days.into_iter().map(|(stream, day)| (stream, EventDay::from_date(day))).collect();
    compact::catch_up(connection, store, &days, now, || false).await;
    let sql = "update tidemark.segment set removed_at = $2
               where event_day < $1 and removed_at is null and stream = coalesce($3, stream)";
    sqlx::query(sql).bind(before).bind(timestamp(now)).bind(stream).execute(&mut *connection).await?;
    // One of whose rows some were removed before couldn't be taken in; now none are kept, and its file goes.
    compact::catch_up(connection, store, &days, now, || false).await;
    // Of a segment that was rewritten there may still be the file that it had; what counts is the one that has its rows.
    let sql = "select path, case when compacted is null then bytes else 0 end, compacted is null
               from tidemark.segment where removed_at is not null and deleted_at is null";
    let marked: Vec<(String, i64, bool)> = sqlx::query_as(sql).fetch_all(&mut *connection).await?;
    let (mut files, mut bytes) = (0, 0);
    for (path, length, is_read) in &marked {
        store.delete(path).await?;
        let sql = "update tidemark.segment set deleted_at = $2 where path = $1";
        sqlx::query(sql).bind(path).bind(timestamp(now)).execute(&mut *connection).await?;
        files += usize::from(*is_read);
        bytes += length;
    }
    let (more_files, more_bytes) = compacted(connection, store, stream, before, now).await?;
    Ok((files + more_files, bytes + more_bytes))
}

/// Removes the compacted files of event days before a day of which all segments are removed, and what those replaced that is
/// still there. What that had replaced itself goes when compactions are cleared.
async fn compacted(
    connection: &mut PgConnection,
    store: &Store,
    stream: Option<&str>,
    before: NaiveDate,
    now: Millis,
) -> Result<(usize, i64)> {
    let sql = "select path, bytes, case when cleared_at is null then replaced else '{}' end
               from tidemark.compaction c
               where event_day < $1 and stream = coalesce($2, stream) and deleted_at is null
                 and exists (select from tidemark.segment s where s.compacted = c.path and s.removed_at is not null)
                 and not exists (select from tidemark.segment s where s.compacted = c.path and s.removed_at is null)";
    let query = sqlx::query_as(sql).bind(before).bind(stream);
    let gone: Vec<(String, i64, Vec<String>)> = query.fetch_all(&mut *connection).await?;
    for (path, _, replaced) in &gone {
        for file in replaced.iter().chain([path]) {
            store.delete(file).await?;
        }
        let sql = "update tidemark.compaction
                   set deleted_at = coalesce(deleted_at, $3), current = false,
                       cleared_at = case when path = $1 then coalesce(cleared_at, $3) else cleared_at end
                   where path = $1 or path = any($2)";
        let query = sqlx::query(sql).bind(path).bind(replaced).bind(timestamp(now));
        query.execute(&mut *connection).await?;
    }
    Ok((gone.len(), gone.iter().map(|(_, bytes, _)| bytes).sum()))
}

/// Drops the partitions of facts of event days before a day, of one stream or of all. Returns how many. The ledger is told
/// first here, too: what readers are told to be there is there.
pub(crate) async fn facts(
    connection: &mut PgConnection,
    stream: Option<&str>,
    before: NaiveDate,
) -> Result<usize> {
    let sql = "update tidemark.segment set facts = false
               where event_day < $1 and facts and stream = coalesce($2, stream)";
    sqlx::query(sql).bind(before).bind(stream).execute(&mut *connection).await?;
    let sql = "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'facts' and c.relkind = 'r' and c.relname ~ '_[0-9]{8}$'
                 and left(c.relname, -9) = coalesce($2, left(c.relname, -9))
                 and to_date(right(c.relname, 8), 'YYYYMMDD') < $1
               order by 1";
    let query = sqlx::query_scalar(sql).bind(before).bind(stream);
    let tables: Vec<String> = query.fetch_all(&mut *connection).await?;
    for table in &tables {
        retire::drop_partition(connection, "facts", table).await?;
        tracing::info!(table = names::quote(table), "facts dropped");
    }
    Ok(tables.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::catalog::{Catalog, OUTBRAIN};
    use shared_model::offsets::TopicPartition;
    use shared_model::tidemark::Cut;
    use shared_model::time::DAY;

    #[test]
    fn days_are_counted_back_from_the_newest_trusted_time_of_the_stream() {
        let catalog = Catalog::from_toml(OUTBRAIN).expect("shipped");
        let stream = catalog.stream("page_views").expect("shipped");
        let check = |newest: &[(&str, Option<i64>)], days: u32, expected: Option<i32>| {
            let mut tidemark = Tidemark::default();
            for (at, (topic, newest)) in newest.iter().enumerate() {
                let mut cut = Cut::start(5);
                cut.trusted.newest = newest.map(|day| day * DAY + 7);
                tidemark.cuts.insert(TopicPartition::new(topic, at as i32), cut);
            }
            let found = first_kept(stream, &tidemark, days);
            assert_eq!(found, expected.map(|day| EventDay(day).date()), "{newest:?}, {days} days");
        };
        check(&[], 3, None);
        check(&[("page_views", None), ("events", Some(9_000))], 3, None);
        check(&[("page_views", Some(100)), ("page_views", Some(90)), ("events", Some(9_000))], 3, Some(97));
        check(&[("page_views", Some(100)), ("page_views", None)], 0, Some(100));
    }
}
