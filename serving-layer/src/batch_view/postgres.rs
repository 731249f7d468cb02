//! The batch view in Postgres.
//!
//! A snapshot is one REPEATABLE READ, READ ONLY transaction. What is in force is read by one statement, whose plan is kept.
//! Rows are read from a metric's parent table with literal version ids, so that the planner leaves out every other version's
//! table; a statement about one key stays the same until a flip, and so does its plan. Nobody waits for the end of a
//! transaction that wrote nothing. A snapshot that is dropped before its end closes its connection, which the server looks at
//! once a second: a query that nobody waits for any more ends there too.
//!
//! Connections are not asked whether they are alive before they are used. One that turns out dead where a snapshot begins, when
//! nothing has been read yet, is closed, and another one taken in its place.

mod facts;
mod select;

use super::{
    AtTidemark, BatchError, BatchView, EachCell, EachFact, Lost, Opening, Position, Scan, Snapshot,
    StoredLayout, VersionOf, Versions, Wanted,
};
use crate::merge::FoldError;
use chrono::NaiveDate;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use select::{Select, bind, blank, decode, timestamp};
use shared_model::catalog::Stream;
use shared_model::dense::is_dense;
use shared_model::metric::Metric;
use shared_model::offsets::{OffsetRange, TopicPartition};
use shared_model::tidemark::{StoredCut, Tidemark};
use shared_model::time::{EventDay, Interval};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row};
use std::str::FromStr;
use std::time::Duration;

/// What an answer begins with.
const OPENING: &str = include_str!("postgres/opening.sql");
/// How long a connection is waited for, then the beginning of a snapshot, and its end.
const CONNECTED_WITHIN: Duration = Duration::from_secs(3);
/// How long audits may be read for.
const AUDITS_WITHIN: Duration = Duration::from_secs(30);
/// How many statements' plans a connection keeps: of rows, those about one key.
const STATEMENTS: usize = 32;

/// A pool of connections to the batch view. Connects when first needed, again and again.
#[derive(Debug, Clone)]
pub struct PostgresBatchView {
    pool: PgPool,
    /// For looking at where it stands, however many queries are under way.
    watch: PgPool,
}

impl PostgresBatchView {
    /// Names the server; nothing is connected yet.
    ///
    /// # Errors
    /// Where the URL is none.
    pub fn new(url: &str, connections: u32) -> Result<PostgresBatchView, sqlx::Error> {
        let options = PgConnectOptions::from_str(url)?.application_name("tidemark-serving");
        let options = options.statement_cache_capacity(STATEMENTS);
        let pool =
            |connections| PgPoolOptions::new().max_connections(connections).acquire_timeout(CONNECTED_WITHIN);
        let snapshots = pool(connections.max(1)).test_before_acquire(false);
        Ok(PostgresBatchView {
            pool: snapshots.connect_lazy_with(options.clone()),
            watch: pool(1).connect_lazy_with(options),
        })
    }

    /// Begins a snapshot in which no statement takes longer than `time_limit`.
    async fn begin(&self, time_limit: Duration) -> Result<PostgresSnapshot, BatchError> {
        let begin = format!(
            "begin isolation level repeatable read read only; set local statement_timeout = {};
             set local client_connection_check_interval = '1s';
             set local plan_cache_mode = force_generic_plan",
            time_limit.as_millis().max(1)
        );
        let mut begun = self.try_begin(&begin).await?;
        // All that were idle may have died: each that has is closed, so that in the end one is made anew.
        for _ in 0..self.pool.options().get_max_connections() {
            match &begun {
                Ok(_) => break,
                Err(error) => tracing::info!(%error, "a connection to the batch view is replaced"),
            }
            begun = self.try_begin(&begin).await?;
        }
        begun
    }

    /// A snapshot over whichever connection comes; `Ok(Err(_))`: over this one none can be begun.
    async fn try_begin(&self, begin: &str) -> Result<Result<PostgresSnapshot, BatchError>, BatchError> {
        let connection = self.pool.acquire().await.map_err(unavailable)?;
        let mut snapshot = PostgresSnapshot { connection, ended: false };
        let begun = tokio::time::timeout(CONNECTED_WITHIN, snapshot.run(begin.to_owned())).await;
        match begun {
            Ok(begun) => Ok(begun.map(|()| snapshot)),
            Err(_) => Err(BatchError::Unavailable("a connection gives no answer".to_owned())),
        }
    }

    async fn read_position(&self, known: Option<&Position>) -> Result<Option<Position>, sqlx::Error> {
        let newest: Option<i64> = sqlx::query_scalar("select max(generation) from tidemark.tidemark")
            .fetch_one(&self.watch)
            .await?;
        let Some(newest) = newest else { return Ok(None) };
        if let Some(known) = known.filter(|known| known.current.generation == newest) {
            return Ok(Some(known.clone()));
        }
        let (epoch_ms, groups, pane_ms): (i64, i64, i64) =
            sqlx::query_as("select epoch_ms::bigint, groups::bigint, pane_ms::bigint from tidemark.layout")
                .fetch_one(&self.watch)
                .await?;
        let tidemarks: Vec<(i64, Json<Vec<StoredCut>>)> = sqlx::query_as(
            "select generation, cuts from tidemark.tidemark
             where generation = $1 or generation = (select min(generation) from tidemark.tidemark)
             order by generation",
        )
        .bind(newest)
        .fetch_all(&self.watch)
        .await?;
        let of = |(generation, cuts): &(i64, Json<Vec<StoredCut>>)| {
            Tidemark::from_stored(*generation, cuts.0.clone())
        };
        let layout = StoredLayout { epoch_ms, groups, pane_ms };
        let ends = tidemarks.first().zip(tidemarks.last());
        Ok(ends.map(|(first, current)| Position { layout, first: of(first), current: of(current) }))
    }
}

impl BatchView for PostgresBatchView {
    fn snapshot(&self, time_limit: Duration) -> BoxFuture<'_, Result<Box<dyn Snapshot>, BatchError>> {
        Box::pin(async move { Ok(Box::new(self.begin(time_limit).await?) as Box<dyn Snapshot>) })
    }

    fn position<'a>(
        &'a self,
        known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, BatchError>> {
        Box::pin(async move {
            match self.read_position(known).await {
                Err(error) if is_undefined(&error) => Ok(None),
                other => other.map_err(unavailable),
            }
        })
    }

    fn audits(&self, limit: i64) -> BoxFuture<'_, Result<Vec<serde_json::Value>, BatchError>> {
        let sql = "select json_build_object('run', run_id, 'kind', r.kind, 'status', r.status,
                          'generation_before', r.generation_before, 'generation_after', r.generation_after,
                          'audit', to_jsonb(a) - 'run_id')
                   from tidemark.audit a join tidemark.run r using (run_id) order by run_id desc limit $1";
        Box::pin(async move {
            let mut snapshot = self.begin(AUDITS_WITHIN).await?;
            let found = sqlx::query_scalar(sql).bind(limit).fetch_all(&mut *snapshot.connection).await;
            match found {
                Ok(audits) => {
                    Box::new(snapshot).close();
                    Ok(audits)
                }
                Err(error) if is_undefined(&error) => Ok(Vec::new()),
                Err(error) => Err(unavailable(error)),
            }
        })
    }
}

struct PostgresSnapshot {
    connection: PoolConnection<Postgres>,
    ended: bool,
}

impl Drop for PostgresSnapshot {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

impl PostgresSnapshot {
    /// Runs statements that return nothing.
    async fn run(&mut self, sql: String) -> Result<(), BatchError> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.connection).await;
        done.map(drop).map_err(unavailable)
    }

    /// The generation that a run left in force.
    async fn generation_of(&mut self, run: i64) -> Result<i64, BatchError> {
        let sql = "select status, coalesce(generation_after, generation_before) from tidemark.run where run_id = $1";
        let found: Option<(String, Option<i64>)> =
            sqlx::query_as(sql).bind(run).fetch_optional(&mut *self.connection).await.map_err(unavailable)?;
        match found {
            None => Err(BatchError::Run(format!("there is no run {run}: `batch-layer runs` lists them"))),
            Some((status, Some(generation))) if status == "done" || status == "nothing" => Ok(generation),
            Some((status, _)) => Err(BatchError::Run(format!(
                "run {run} left no batch view behind (its status is {status}): ask as of a run that is done"
            ))),
        }
    }

    /// What is in force.
    async fn read_now(&mut self, wanted: &[Wanted<'_>]) -> Result<Option<Opening>, sqlx::Error> {
        let streams = (1i64..).zip(wanted).flat_map(|(place, wanted)| {
            wanted.metric.bindings.iter().map(move |binding| (place, binding.stream.clone()))
        });
        let (places, streams): (Vec<i64>, Vec<String>) = streams.unzip();
        let of: Vec<String> = wanted.iter().map(|wanted| wanted.metric.version.to_string()).collect();
        let (from, to): (Vec<NaiveDate>, Vec<NaiveDate>) =
            wanted.iter().map(|wanted| days(wanted.span)).unzip();
        // Who asks about one key asks about others the same way.
        let one_key = !wanted.is_empty() && wanted.iter().all(|wanted| wanted.one_key);
        let planned = if one_key { "force_generic_plan" } else { "auto" };
        let query = sqlx::query(OPENING).bind(of).bind(from).bind(to).bind(places).bind(streams);
        let found = query.bind(planned).fetch_optional(&mut *self.connection).await?;
        found.map(|row| opening(&row, wanted.len())).transpose()
    }

    /// What was in force when a past run was done.
    async fn read_run(&mut self, run: i64, wanted: &[Wanted<'_>]) -> Result<Option<Opening>, BatchError> {
        self.run("set local plan_cache_mode = auto".to_owned()).await?;
        let generation = self.generation_of(run).await?;
        let Some(at) = self.read_tidemark(generation).await.map_err(unavailable)? else { return Ok(None) };
        let mut versions = Vec::new();
        for Wanted { metric, span, .. } in wanted {
            let mut past = self.past(metric, days(*span), generation).await.map_err(unavailable)??;
            let archived = self.archived(metric, days(*span), generation).await.map_err(unavailable)?;
            past.missing = archived.into_iter().filter(|day| !past.days.contains_key(day)).collect();
            versions.push(past);
        }
        let lost = self.read_lost(generation).await.map_err(unavailable)?;
        Ok(Some(Opening { at, versions, lost }))
    }

    async fn read_tidemark(&mut self, generation: i64) -> Result<Option<AtTidemark>, sqlx::Error> {
        let sql = "select generation, run_id, cuts from tidemark.tidemark where generation = $1";
        let found = sqlx::query(sql).bind(generation).fetch_optional(&mut *self.connection).await?;
        found.map(|row| tidemark_of(&row)).transpose()
    }

    /// The versions that were live at a past generation. A version stays live until the flip that retires it: of each
    /// day's versions that were retired after that generation's flip, or never, it is the one retired first.
    async fn past(
        &mut self,
        metric: &Metric,
        days: (NaiveDate, NaiveDate),
        generation: i64,
    ) -> Result<Result<Versions, BatchError>, sqlx::Error> {
        let sql = "select distinct on (v.event_day)
                          v.event_day, v.version_id, v.run_id, v.table_name, v.partial, v.hash,
                          v.dropped_at is not null
                   from tidemark.view_version v
                        left join tidemark.run r using (run_id)
                        join tidemark.tidemark t on t.generation = $4
                   where v.version = $1 and v.event_day >= $2 and v.event_day < $3
                     and (v.created_at <= t.flipped_at or r.generation_after <= $4)
                     and (v.retired_at > t.flipped_at
                          or v.retired_at is null
                             and exists (select from tidemark.live_version l where l.version_id = v.version_id))
                   order by v.event_day, v.retired_at nulls last, v.version_id";
        let query = sqlx::query(sql).bind(metric.version.to_string()).bind(days.0).bind(days.1);
        let rows = query.bind(generation).fetch_all(&mut *self.connection).await?;
        let mut versions = Versions::default();
        for row in rows {
            let (day, version) = version_of(&row)?;
            if row.try_get(6)? {
                return Ok(Err(dropped(metric, &day.to_string())));
            }
            versions.days.insert(day, version);
        }
        Ok(Ok(versions))
    }

    async fn archived(
        &mut self,
        metric: &Metric,
        days: (NaiveDate, NaiveDate),
        generation: i64,
    ) -> Result<Vec<EventDay>, sqlx::Error> {
        let sql = "select distinct event_day from tidemark.segment
                   where stream = any($1) and event_day >= $2 and event_day < $3 and generation <= $4";
        let streams: Vec<String> = metric.bindings.iter().map(|binding| binding.stream.clone()).collect();
        let query = sqlx::query_scalar(sql).bind(streams).bind(days.0).bind(days.1).bind(generation);
        let found: Vec<NaiveDate> = query.fetch_all(&mut *self.connection).await?;
        Ok(found.into_iter().map(EventDay::from_date).collect())
    }

    async fn read_lost(&mut self, generation: i64) -> Result<Vec<Lost>, sqlx::Error> {
        let sql = "select topic, partition, from_offset, to_offset, cause from tidemark.gap
                   where generation <= $1 order by 1, 2, 3";
        let rows: Vec<(String, i32, i64, i64, String)> =
            sqlx::query_as(sql).bind(generation).fetch_all(&mut *self.connection).await?;
        let lost = |(topic, partition, from, to, cause): (String, i32, i64, i64, String)| Lost {
            tp: TopicPartition::new(&topic, partition),
            range: OffsetRange { from, to },
            cause,
        };
        Ok(rows.into_iter().map(lost).collect())
    }

    /// Reads from one table, or from the parent of all.
    async fn read_rows(
        &mut self,
        scan: &Scan<'_>,
        table: &str,
        dense: bool,
        each: &mut EachCell<'_>,
    ) -> Result<Result<(), FoldError>, sqlx::Error> {
        let statement = Select::new(scan, table, dense);
        let (Some(from), Some(to)) = (timestamp(scan.span.start), timestamp(scan.span.end)) else {
            return Ok(Ok(()));
        };
        let query = sqlx::query(AssertSqlSafe(statement.sql)).persistent(statement.kept).bind(from).bind(to);
        let mut rows = statement.bound.into_iter().fold(query, bind).fetch(&mut *self.connection);
        let metric = &scan.column.metric;
        let mut cell = blank(metric);
        while let Some(row) = rows.try_next().await? {
            let decoded = decode(metric, &statement.needed, &statement.state, &row, &mut cell);
            if let Err(refused) = each(decoded.map(|()| &cell)) {
                return Ok(Err(refused));
            }
        }
        Ok(Ok(()))
    }

    /// A past run's versions may be dropped at any time, and a parent would be silent about one that is gone: each is
    /// read from its own table.
    async fn read_past(
        &mut self,
        scan: &Scan<'_>,
        mut each: EachCell<'_>,
    ) -> Result<Result<(), FoldError>, BatchError> {
        for table in scan.versions.iter().filter_map(|version| version.table.as_deref()) {
            match self.read_rows(scan, table, is_dense(table), &mut each).await {
                Ok(Ok(())) => {}
                Err(error) if is_undefined(&error) => return Err(dropped(&scan.column.metric, table)),
                other => return other.map_err(unavailable),
            }
        }
        Ok(Ok(()))
    }
}

impl Snapshot for PostgresSnapshot {
    fn open<'a>(
        &'a mut self,
        at_run: Option<i64>,
        wanted: &'a [Wanted<'a>],
    ) -> BoxFuture<'a, Result<Option<Opening>, BatchError>> {
        Box::pin(async move {
            if let Some(run) = at_run {
                return self.read_run(run, wanted).await;
            }
            match self.read_now(wanted).await {
                Err(error) if is_undefined(&error) => Ok(None),
                other => other.map_err(unavailable),
            }
        })
    }

    fn rows<'a>(
        &'a mut self,
        scan: &'a Scan<'a>,
        each: EachCell<'a>,
    ) -> BoxFuture<'a, Result<Result<(), FoldError>, BatchError>> {
        Box::pin(async move {
            if scan.past {
                return self.read_past(scan, each).await;
            }
            let parent = format!("{}_{}", scan.column.metric.name, scan.column.metric.version);
            let mut tables = scan.versions.iter().filter_map(|version| version.table.as_deref());
            let (dense, mut each) = (tables.any(is_dense), each);
            self.read_rows(scan, &parent, dense, &mut each).await.map_err(unavailable)
        })
    }

    fn facts<'a>(
        &'a mut self,
        stream: &'a Stream,
        span: Interval,
        each: EachFact<'a>,
    ) -> BoxFuture<'a, Result<Vec<EventDay>, BatchError>> {
        Box::pin(async move {
            facts::read(&mut self.connection, stream, span, each).await.map_err(unavailable)?;
            facts::missing(&mut self.connection, stream, span).await.map_err(unavailable)
        })
    }

    fn close(mut self: Box<Self>) {
        tokio::spawn(async move {
            // Of a server that stands still no connection is kept waiting: there are only so many.
            let ended = tokio::time::timeout(CONNECTED_WITHIN, self.run("commit".to_owned())).await;
            self.ended = matches!(ended, Ok(Ok(())));
        });
    }
}

/// The first of a span's days, and the one behind its last.
fn days(span: Interval) -> (NaiveDate, NaiveDate) {
    let last = EventDay::of(span.end - 1);
    (EventDay::of(span.start).date(), EventDay(last.0 + 1).date())
}

fn dropped(metric: &Metric, what: &str) -> BatchError {
    let name = &metric.name;
    BatchError::Run(format!("what metric {name} was then is dropped by now ({what}): ask as of a later run"))
}

fn unavailable(error: sqlx::Error) -> BatchError {
    BatchError::Unavailable(error.to_string())
}

/// Whether a table or schema isn't there: no batch run has made them yet.
fn is_undefined(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("42P01" | "3F000"))
}

fn version_of(row: &PgRow) -> Result<(EventDay, VersionOf), sqlx::Error> {
    let (version_id, run): (i64, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
    let partial: Option<bool> = row.try_get(4)?;
    let version = VersionOf {
        version_id,
        run: run.unwrap_or_default(),
        table: row.try_get(3)?,
        partial: partial.unwrap_or(false),
        hash: row.try_get(5)?,
    };
    Ok((EventDay::from_date(row.try_get(0)?), version))
}

/// The tidemark at the beginning of a row.
fn tidemark_of(row: &PgRow) -> Result<AtTidemark, sqlx::Error> {
    let Json(cuts): Json<Vec<StoredCut>> = row.try_get(2)?;
    Ok(AtTidemark { tidemark: Tidemark::from_stored(row.try_get(0)?, cuts), run: row.try_get(1)? })
}

/// The row of [`OPENING`], of so many metrics that are wanted.
fn opening(row: &PgRow, wanted: usize) -> Result<Opening, sqlx::Error> {
    let mut versions = vec![Versions::default(); wanted];
    let (places, days): (Vec<i64>, Vec<NaiveDate>) = (list(row, 3)?, list(row, 4)?);
    let (ids, runs): (Vec<i64>, Vec<i64>) = (list(row, 5)?, list(row, 6)?);
    let (tables, partial): (Vec<Option<String>>, Vec<bool>) = (list(row, 7)?, list(row, 8)?);
    let hashes: Vec<String> = list(row, 9)?;
    let made = ids.into_iter().zip(runs).zip(tables.into_iter().zip(partial)).zip(hashes);
    let live = places.into_iter().zip(days);
    for ((place, day), (((version_id, run), (table, partial)), hash)) in live.zip(made) {
        if let Some(versions) = versions.get_mut((place - 1) as usize) {
            let version = VersionOf { version_id, run, table, partial, hash };
            versions.days.insert(EventDay::from_date(day), version);
        }
    }
    let (places, days): (Vec<i64>, Vec<NaiveDate>) = (list(row, 10)?, list(row, 11)?);
    for (place, day) in places.into_iter().zip(days) {
        if let Some(versions) = versions.get_mut((place - 1) as usize) {
            versions.missing.insert(EventDay::from_date(day));
        }
    }
    let (topics, partitions): (Vec<String>, Vec<i32>) = (list(row, 12)?, list(row, 13)?);
    let (from, to): (Vec<i64>, Vec<i64>) = (list(row, 14)?, list(row, 15)?);
    let causes: Vec<String> = list(row, 16)?;
    let ranges = from.into_iter().zip(to).map(|(from, to)| OffsetRange { from, to });
    let lost = topics.into_iter().zip(partitions).zip(ranges).zip(causes);
    let lost = lost.map(|(((topic, partition), range), cause)| Lost {
        tp: TopicPartition::new(&topic, partition),
        range,
        cause,
    });
    Ok(Opening { at: tidemark_of(row)?, versions, lost: lost.collect() })
}

/// An array, which is NULL where it has nothing.
fn list<'r, T>(row: &'r PgRow, at: usize) -> Result<Vec<T>, sqlx::Error>
where
    Vec<T>: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    Ok(row.try_get::<Option<Vec<T>>, _>(at)?.unwrap_or_default())
}
