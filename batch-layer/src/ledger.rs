//! What Postgres knows of the batch view: the tidemark, the segments below it, and which versions are live.
//!
//! Everything here only reads, but for the very first tidemark, which is written once, before any layer reads.

use crate::archive::compaction::{Compacted, Place};
use crate::archive::manifest::Segment;
use anyhow::{Context, Result, bail};
use chrono::{DateTime, NaiveDate, Utc};
use shared_model::catalog::{Catalog, Layout};
use shared_model::failpoint;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, StoredCut, Tidemark};
use shared_model::time::{EventDay, Millis};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, PgPool};
use std::collections::{BTreeMap, BTreeSet};

/// One Parquet file as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The stream's name.
    pub(crate) stream: String,
    /// The partition; of an import its pseudo-topic and 0.
    pub(crate) tp: TopicPartition,
    /// The import's id, of an import.
    pub(crate) import: Option<String>,
    /// The file.
    pub(crate) segment: Segment,
    /// The file that its rows were rewritten into, with others'; none while they are in its own.
    pub(crate) compacted: Option<Compacted>,
    /// Whether the ledger has it; else a manifest names it that a run is taking in.
    pub(crate) is_known: bool,
}

impl Entry {
    /// The file that has its rows.
    pub(crate) fn path(&self) -> &str {
        self.compacted.as_ref().map_or(&self.segment.path, |file| &file.path)
    }

    /// Where its rows stood in the log.
    pub(crate) fn place(&self) -> Place {
        Place {
            path: self.segment.path.clone(),
            topic: self.tp.topic.to_string(),
            partition: self.tp.partition,
            from_offset: self.segment.from_offset,
            to_offset: self.segment.to_offset,
            rows: self.segment.rows,
        }
    }
}

/// The time as Postgres takes it.
pub(crate) fn timestamp(millis: Millis) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Brings the schema up to date. Several processes may do so at once: one waits for the other.
pub(crate) async fn migrate(pool: &PgPool) -> Result<()> {
    let mut connection = pool.acquire().await.context("connecting to postgres")?;
    // A role that is called as our schema would otherwise find the record of migrations there, not in public.
    sqlx::query("set search_path to public").execute(&mut *connection).await?;
    sqlx::migrate!("./migrations").run(&mut *connection).await.context("migrating the schema in postgres")?;
    sqlx::query("reset search_path").execute(&mut *connection).await?;
    Ok(())
}

/// Writes the layout and generation 0 where there is none yet. Refuses a catalog whose layout differs from the stored.
pub(crate) async fn initialise(
    pool: &PgPool,
    layout: &Layout,
    initial: impl Future<Output = Result<BTreeMap<TopicPartition, Cut>>>,
    now: Millis,
) -> Result<()> {
    let stored: Option<(i64, i32, i64)> =
        sqlx::query_as("select epoch_ms, groups, pane_ms from tidemark.layout").fetch_optional(pool).await?;
    let wanted = (layout.epoch.0, layout.groups as i32, layout.pane);
    if let Some(stored) = stored {
        if stored != wanted {
            bail!(
                "the catalog's [layout] (epoch {} ms, groups {}, pane {} ms) differs from the one that this database \
                 was begun with (epoch {} ms, groups {}, pane {} ms): set it back, or begin with an empty database, \
                 archive and redis",
                wanted.0,
                wanted.1,
                wanted.2,
                stored.0,
                stored.1,
                stored.2
            );
        }
        return Ok(());
    }
    let first = Tidemark { cuts: initial.await?, ..Tidemark::default() };
    let mut transaction = pool.begin().await?;
    let layout =
        "insert into tidemark.layout (epoch_ms, groups, pane_ms) values ($1, $2, $3) on conflict do nothing";
    sqlx::query(layout).bind(wanted.0).bind(wanted.1).bind(wanted.2).execute(&mut *transaction).await?;
    let run: i64 = sqlx::query_scalar(
        "insert into tidemark.run (kind, status, started_at, finished_at, generation_after)
         values ('init', 'done', $1, $1, 0) returning run_id",
    )
    .bind(timestamp(now))
    .fetch_one(&mut *transaction)
    .await?;
    // Where another process was faster, its tidemark stands, and this one's run record goes with the rollback.
    let written = sqlx::query(
        "insert into tidemark.tidemark (generation, flipped_at, run_id, cuts) values (0, $1, $2, $3)
         on conflict do nothing",
    )
    .bind(timestamp(now))
    .bind(run)
    .bind(Json(first.to_stored()))
    .execute(&mut *transaction)
    .await?;
    if written.rows_affected() == 1 {
        failpoint::hit("batch.initialise.before");
        transaction.commit().await?;
        tracing::info!(partitions = first.cuts.len(), "the first tidemark is written");
    }
    Ok(())
}

/// The tidemark in force.
pub(crate) async fn tidemark(connection: &mut PgConnection) -> Result<Tidemark> {
    let sql = "select generation, cuts from tidemark.tidemark order by generation desc limit 1";
    let (generation, Json(cuts)): (i64, Json<Vec<StoredCut>>) =
        sqlx::query_as(sql).fetch_one(connection).await.context("reading the tidemark")?;
    Ok(Tidemark::from_stored(generation, cuts))
}

/// The ids of all imports that the ledger has taken in.
pub(crate) async fn imports(connection: &mut PgConnection) -> Result<BTreeSet<String>> {
    let sql = "select distinct import_id from tidemark.segment where import_id is not null";
    let ids: Vec<String> = sqlx::query_scalar(sql).fetch_all(connection).await?;
    Ok(ids.into_iter().collect())
}

/// A segment's row, with the file that it was rewritten into.
#[derive(FromRow)]
struct SegmentRow {
    path: String,
    stream: String,
    topic: String,
    partition: i32,
    from_offset: i64,
    to_offset: i64,
    rows: i64,
    bytes: i64,
    checksum: String,
    import_id: Option<String>,
    removed: bool,
    file: Option<String>,
    file_rows: Option<i64>,
    file_bytes: Option<i64>,
    file_checksum: Option<String>,
}

impl SegmentRow {
    fn entry(self, day: EventDay) -> Entry {
        let file = self.file.zip(self.file_rows).zip(self.file_bytes.zip(self.file_checksum));
        let compacted = file.map(|((path, rows), (bytes, checksum))| Compacted {
            path,
            rows: rows as u64,
            bytes: bytes as u64,
            checksum,
        });
        let segment = Segment {
            path: self.path,
            event_day: day,
            from_offset: self.from_offset,
            to_offset: self.to_offset,
            rows: self.rows as u64,
            bytes: self.bytes as u64,
            checksum: self.checksum,
            min_event_time: day.interval().start,
            max_event_time: day.interval().end - 1,
        };
        let tp = TopicPartition::new(&self.topic, self.partition);
        Entry { stream: self.stream, tp, import: self.import_id, segment, compacted, is_known: true }
    }
}

/// The segments of one event day, and the streams of which files have been removed from the archive.
pub(crate) async fn day(
    connection: &mut PgConnection,
    day: EventDay,
) -> Result<(Vec<Entry>, BTreeSet<String>)> {
    let sql = "select s.path, s.stream, s.topic, s.partition, s.from_offset, s.to_offset, s.rows, s.bytes, s.checksum,
                      s.import_id, s.removed_at is not null as removed,
                      c.path as file, c.rows as file_rows, c.bytes as file_bytes, c.checksum as file_checksum
               from tidemark.segment s left join tidemark.compaction c on c.path = s.compacted
               where s.event_day = $1 order by s.path";
    let rows: Vec<SegmentRow> = sqlx::query_as(sql).bind(day.date()).fetch_all(connection).await?;
    let (removed, kept): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.removed);
    let broken = removed.into_iter().map(|row| row.stream).collect();
    Ok((kept.into_iter().map(|row| row.entry(day)).collect(), broken))
}

/// The compacted files that rows are read from.
pub(crate) async fn compacted_files(connection: &mut PgConnection) -> Result<BTreeSet<String>> {
    let sql = "select path from tidemark.compaction where current";
    let paths: Vec<String> = sqlx::query_scalar(sql).fetch_all(connection).await?;
    Ok(paths.into_iter().collect())
}

/// A computed version of a metric's day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// Its id.
    pub(crate) id: i64,
    /// Its table, where it has rows.
    pub(crate) table: Option<String>,
    /// The hash of its rows.
    pub(crate) hash: String,
    /// The hash of the files that it was computed from.
    pub(crate) inputs: String,
    /// How many cells.
    pub(crate) rows: i64,
    /// Whether new records were merged into it instead of a recomputation.
    pub(crate) partial: bool,
}

impl Version {
    /// Whether a computation that gave these rows changes nothing.
    pub(crate) fn is(&self, hash: &str, partial: bool) -> bool {
        self.hash == hash && self.partial == partial
    }
}

type VersionRow = (i64, Option<String>, String, String, i64, bool);

fn version((id, table, hash, inputs, rows, partial): VersionRow) -> Version {
    Version { id, table, hash, inputs, rows, partial }
}

/// The live version of a metric's day.
pub(crate) async fn live(
    connection: &mut PgConnection,
    metric: &Metric,
    day: EventDay,
) -> Result<Option<Version>> {
    let sql = "select v.version_id, v.table_name, v.hash, v.inputs, v.rows, v.partial
               from tidemark.live_version l join tidemark.view_version v using (version_id)
               where l.version = $1 and l.event_day = $2";
    let row: Option<VersionRow> = sqlx::query_as(sql)
        .bind(metric.version.to_string())
        .bind(day.date())
        .fetch_optional(connection)
        .await?;
    Ok(row.map(version))
}

/// A version that an earlier run computed from the same files and didn't get to publish.
pub(crate) async fn staged(
    connection: &mut PgConnection,
    metric: &Metric,
    day: EventDay,
    inputs: &str,
) -> Result<Option<Version>> {
    let sql = "select v.version_id, v.table_name, v.hash, v.inputs, v.rows, v.partial
               from tidemark.view_version v
               where v.version = $1 and v.event_day = $2 and v.inputs = $3 and not v.partial
                 and v.retired_at is null and v.dropped_at is null
                 and not exists (select from tidemark.live_version l where l.version_id = v.version_id)
               order by v.version_id desc limit 1";
    let query = sqlx::query_as(sql).bind(metric.version.to_string()).bind(day.date()).bind(inputs);
    let row: Option<VersionRow> = query.fetch_optional(connection).await?;
    Ok(row.map(version))
}

/// For each metric the days of its streams that have files but no live version of it.
pub(crate) async fn uncovered(
    connection: &mut PgConnection,
    catalog: &Catalog,
) -> Result<BTreeMap<EventDay, BTreeSet<String>>> {
    let sql = "select distinct s.event_day from tidemark.segment s
               where s.stream = any($1)
                 and not exists (select from tidemark.live_version l
                                 where l.version = $2 and l.event_day = s.event_day)";
    let mut found: BTreeMap<EventDay, BTreeSet<String>> = BTreeMap::new();
    for metric in &catalog.metrics {
        let streams: Vec<String> = metric.bindings.iter().map(|binding| binding.stream.clone()).collect();
        let query = sqlx::query_scalar(sql).bind(streams).bind(metric.version.to_string());
        let days: Vec<NaiveDate> = query.fetch_all(&mut *connection).await?;
        for day in days {
            found.entry(EventDay::from_date(day)).or_default().insert(metric.name.clone());
        }
    }
    Ok(found)
}

/// The days in a span that have files.
pub(crate) async fn days(
    connection: &mut PgConnection,
    from: NaiveDate,
    to: NaiveDate,
) -> Result<Vec<EventDay>> {
    let sql = "select distinct event_day from tidemark.segment where event_day between $1 and $2 order by 1";
    let days: Vec<NaiveDate> = sqlx::query_scalar(sql).bind(from).bind(to).fetch_all(connection).await?;
    Ok(days.into_iter().map(EventDay::from_date).collect())
}

/// The days that the runs from `first` to `last` published or staged.
pub(crate) async fn days_of_runs(
    connection: &mut PgConnection,
    first: i64,
    last: i64,
) -> Result<Vec<EventDay>> {
    let sql =
        "select distinct event_day from tidemark.view_version where run_id between $1 and $2 order by 1";
    let days: Vec<NaiveDate> = sqlx::query_scalar(sql).bind(first).bind(last).fetch_all(connection).await?;
    Ok(days.into_iter().map(EventDay::from_date).collect())
}
