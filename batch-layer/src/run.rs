//! One run: archive, decide, compute, flip.
//!
//! Every flip publishes versions computed from exactly what lies below the tidemark that it leaves in force. One run at
//! a time computes (an advisory lock); should two flip all the same, the generation lets one win.

pub(crate) mod input;
mod jobs;
mod order;

pub(crate) use input::{Fresh, Inputs};
pub(crate) use jobs::share;
pub(crate) use order::{Order, Outcome};

use crate::archive::{self, Archiver, Store, Until};
use crate::audit::{self, Audit, Move, Refused};
use crate::config::WorkArgs;
use crate::files::Files;
use crate::ledger::{self, timestamp};
use crate::replace::flip::{Flip, flip};
use crate::replace::retire;
use crate::{compact, facts, history, retention, telemetry, views, work};
use anyhow::{Context as _, Result};
use rdkafka::ClientConfig;
use shared_model::catalog::Catalog;
use shared_model::causes::Causes;
use shared_model::failpoint;
use shared_model::tidemark::Tidemark;
use shared_model::time::{EventDay, Millis};
use sqlx::{PgConnection, PgPool};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// The key of the advisory lock that a computing run holds: `tidemark` in ASCII.
const LOCK: i64 = 0x7469_6465_6d61_726b;

/// Another run computes at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("another run is at work on this database; wait for it, or look at `batch-layer runs`")]
pub(crate) struct Busy;

/// What a run works with.
pub(crate) struct Context {
    /// The definitions.
    pub(crate) catalog: Arc<Catalog>,
    /// Their text, which is stored with each run.
    pub(crate) catalog_text: String,
    /// The ledger and the views.
    pub(crate) pool: PgPool,
    /// The archive.
    pub(crate) store: Store,
    /// The log.
    pub(crate) kafka: ClientConfig,
    /// Options.
    pub(crate) options: WorkArgs,
    /// Options of the audit.
    pub(crate) audit: audit::Options,
    /// The clock.
    pub(crate) now: fn() -> Millis,
    /// Days that couldn't be compacted.
    pub(crate) compaction_failures: compact::Failures,
    /// Stops the archive step, and jobs between their steps.
    pub(crate) stop: CancellationToken,
}

impl Context {
    /// Brings the schema up to date, and writes generation 0 where there is none.
    pub(crate) async fn prepare(&self) -> Result<()> {
        failpoint::hit("batch.migrate.before");
        ledger::migrate(&self.pool).await?;
        failpoint::hit("batch.migrate.after");
        let initial = archive::initial_cuts(&self.kafka, &self.catalog);
        ledger::initialise(&self.pool, &self.catalog.layout, initial, (self.now)()).await?;
        failpoint::hit("batch.initialise.after");
        Ok(())
    }

    /// The archive step's settings.
    pub(crate) fn archiver(&self) -> Archiver {
        let mut archiver = Archiver::new(self.catalog.clone(), self.store.clone(), self.kafka.clone());
        archiver.ticks = !self.options.no_ticks;
        archiver.stop = self.stop.clone();
        archiver
    }
}

/// Takes the lock that one command at a time may hold. It lives as long as the connection, which is no longer the
/// pool's.
///
/// # Errors
/// [`Busy`] where another holds it.
pub(crate) async fn lock(pool: &PgPool) -> Result<PgConnection> {
    let mut connection = pool.acquire().await.context("no connection to postgres")?.detach();
    let query = sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK);
    let locked: bool = query.fetch_one(&mut connection).await?;
    if locked { Ok(connection) } else { Err(Busy.into()) }
}

/// Does what is ordered. The schema and generation 0 must be there.
pub(crate) async fn run(context: &Context, order: &Order, dry_run: bool) -> Result<Outcome> {
    let mut connection = lock(&context.pool).await?;
    if dry_run {
        return locked_run(context, &mut connection, order, None).await;
    }
    failpoint::hit("batch.begin.before");
    let run = history::open(&mut connection, order, &context.catalog_text, (context.now)()).await?;
    failpoint::hit("batch.begin.after");
    let outcome = locked_run(context, &mut connection, order, Some(run)).await;
    close(context, run, &outcome).await;
    if let Ok(outcome) = &outcome {
        tidy(context, &mut connection, order, outcome).await;
    }
    outcome
}

/// Closes the record of a run that published nothing. One that did was closed by its flip.
async fn close(context: &Context, run: i64, outcome: &Result<Outcome>) {
    let (status, error) = match outcome {
        Ok(outcome) if outcome.generation.is_some() => return,
        Ok(_) => ("nothing", None),
        Err(error) if error.is::<Refused>() => ("refused", Some(Causes(error.as_ref()).to_string())),
        Err(error) => ("failed", Some(Causes(error.as_ref()).to_string())),
    };
    let sql = "update tidemark.run set status = $2, error = $3, finished_at = $4 where run_id = $1";
    let query = sqlx::query(sql).bind(run).bind(status).bind(error).bind(timestamp((context.now)()));
    failpoint::hit("batch.close.before");
    if let Err(error) = query.execute(&context.pool).await {
        tracing::warn!(run, "the run's record can't be closed: {error}");
    }
    failpoint::hit("batch.close.after");
}

/// `run`: the record of the run; none for a run that only shows what it would do.
async fn locked_run(
    context: &Context,
    connection: &mut PgConnection,
    order: &Order,
    run: Option<i64>,
) -> Result<Outcome> {
    abandon_dead_runs(connection, run, (context.now)()).await?;
    let current = ledger::tidemark(connection).await?;
    if let Some(run) = run {
        let sql = "update tidemark.run set generation_before = $2 where run_id = $1";
        sqlx::query(sql).bind(run).bind(current.generation).execute(&mut *connection).await?;
    }
    let (next, fresh, reached) = match order.moves_tidemark() {
        true => {
            let until = Until { patience: context.options.patience, ..Until::at((context.now)()) };
            let advanced = archive::advance(&context.archiver(), &current.cuts, until).await?;
            for (tp, why) in &advanced.held {
                tracing::warn!(partition = %tp, "held: {why}");
            }
            let next = advanced.next_tidemark(&current);
            let imports = input::new_imports(context, connection).await?;
            let fresh = Fresh::collect(advanced.below(&next), imports);
            (next, fresh, advanced.reached)
        }
        false => {
            let next = Tidemark { generation: current.generation + 1, ..current.clone() };
            (next, Fresh::default(), BTreeMap::new())
        }
    };
    let known = order.known(context, connection, &fresh).await?;
    let work = work::decide(&context.catalog, &known);
    let mut outcome = Outcome { run, held: next.held.clone(), ..Outcome::default() };
    let moved = fresh.moves(&current, &next);
    for (day, metrics) in &work {
        let input = Inputs::of_day(context, connection, *day, &fresh).await?;
        outcome.days.push(order::DayOutcome::new(*day, metrics, &input));
    }
    let Some(run) = run else { return Ok(outcome) };
    let files = Files::new(context.store.clone())?;
    let insist = matches!(order, Order::Run { .. } | Order::Backfill { .. });
    let attempt = jobs::Attempt { run, reuse: order.moves_tidemark(), insist };
    let publish = jobs::compute(context, &files, attempt, &fresh, &work).await?;
    if !moved && publish.is_empty() {
        outcome.moved = files.moved();
        return Ok(outcome);
    }
    if order.moves_tidemark() {
        let (current, next, reached, fresh) = (&current, &next, &reached, &fresh);
        let of = Move { current, next, reached, fresh, publish: &publish, files: &files };
        outcome.audit = audited(context, connection, run, &of).await?;
    }
    let facts = prepare_facts(context, connection, &files, &fresh).await?;
    let versions: Vec<String> =
        context.catalog.metrics.iter().map(|metric| metric.version.to_string()).collect();
    let dirty: Vec<EventDay> = fresh.days().into_iter().collect();
    let change = Flip {
        run,
        next: &next,
        publish: &publish,
        entries: &fresh.entries,
        gaps: &fresh.gaps,
        dirty: &dirty,
        versions: &versions,
        facts: &facts,
        days: work.len(),
        imports: &fresh.imports,
        now: (context.now)(),
    };
    flip(connection, &change).await?;
    outcome.moved = files.moved();
    outcome.generation = Some(next.generation);
    outcome.published = publish.len();
    outcome.rows = publish.iter().map(|staged| staged.rows).sum();
    Ok(outcome)
}

/// Runs that were killed are recorded as failed: nobody but this process holds the lock.
async fn abandon_dead_runs(connection: &mut PgConnection, run: Option<i64>, now: Millis) -> Result<()> {
    let sql = "update tidemark.run set status = 'failed', finished_at = $2, error = 'the process ended before the run did'
               where status = 'running' and run_id is distinct from $1";
    if run.is_some() {
        sqlx::query(sql).bind(run).bind(timestamp(now)).execute(connection).await?;
    }
    Ok(())
}

async fn prepare_facts(
    context: &Context,
    connection: &mut PgConnection,
    files: &Files,
    fresh: &Fresh,
) -> Result<Vec<(facts::Table, std::path::PathBuf)>> {
    let mut prepared = BTreeSet::new();
    let mut found = Vec::new();
    // Day by day: of one at a time it is known where its rows lie.
    let mut entries: Vec<&ledger::Entry> = fresh.entries.iter().collect();
    entries.sort_by_key(|entry| entry.segment.event_day);
    for entries in entries.chunk_by(|a, b| a.segment.event_day == b.segment.event_day) {
        for &entry in entries {
            let Some(stream) = context.catalog.stream(&entry.stream).filter(|stream| stream.facts) else {
                continue;
            };
            let table = facts::Table { stream: stream.clone(), day: entry.segment.event_day };
            if prepared.insert((stream.name.clone(), table.day)) {
                failpoint::hit("batch.facts.before");
                facts::prepare(connection, &table)
                    .await
                    .with_context(|| format!("table facts.{}", stream.name))?;
                failpoint::hit("batch.facts.after");
            }
            let files = files.rows_of(&[entry]).await?;
            found.extend(files.into_iter().map(|file| (table.clone(), file)));
        }
        if let Some(first) = entries.first() {
            files.forget(first.segment.event_day);
        }
    }
    Ok(found)
}

/// Audits a move of the tidemark before it is published, and stores what was found; nothing without Redis.
///
/// # Errors
/// [`Refused`] where the run must not publish; where what was found can't be stored.
async fn audited(
    context: &Context,
    connection: &mut PgConnection,
    run: i64,
    of: &Move<'_>,
) -> Result<Option<Audit>> {
    let options = &context.audit;
    let Some(redis) = &options.redis else {
        tracing::info!(run, "not audited: --redis (TIDEMARK_REDIS) is not given");
        return Ok(None);
    };
    // What the audit can't do stops no run.
    let audit = match audit::audit(context, redis, of).await {
        Ok(audit) => audit,
        Err(error) => Audit::none(Causes(error.as_ref()).to_string()),
    };
    match audit.alarm() {
        true => tracing::error!(run, "{audit}"),
        false => tracing::info!(run, "{audit}"),
    }
    telemetry::audited(&audit);
    audit::store(connection, run, &audit, options.strict, (context.now)()).await?;
    if let Some(threshold) = options.strict {
        audit.admit(threshold)?;
    }
    Ok(Some(audit))
}

/// What follows a run that succeeded, and may fail without harm: the next run does it again.
async fn tidy(context: &Context, connection: &mut PgConnection, order: &Order, outcome: &Outcome) {
    failpoint::hit("batch.views.before");
    if let Err(error) = views::refresh(connection, &context.catalog).await {
        tracing::warn!("the views for people are not up to date: {error:#}");
    }
    failpoint::hit("batch.views.after");
    let now = (context.now)();
    let grace = i64::try_from(context.options.version_grace.as_millis()).unwrap_or(i64::MAX);
    if let Err(error) = orphans(context, connection, now).await {
        tracing::warn!("versions of metrics that the catalog doesn't have stay for now: {error:#}");
    }
    match retire::sweep(connection, now.saturating_sub(grace), now).await {
        Ok(0) => {}
        Ok(dropped) => tracing::info!(dropped, "versions that no reader needs were dropped"),
        Err(error) => tracing::warn!("old versions are not dropped yet: {error:#}"),
    }
    // A backfill or rollback may be what someone hurries to do before days go.
    if order.moves_tidemark() {
        if let Err(error) = retain(context, connection, now).await {
            tracing::warn!("old event days are not removed yet: {error:#}");
        }
        compact::compact(context, connection, &outcome.moved).await;
    }
}

/// Lets go of metric versions that the catalog has not had for the grace.
async fn orphans(context: &Context, connection: &mut PgConnection, now: Millis) -> Result<()> {
    let versions: Vec<String> =
        context.catalog.metrics.iter().map(|metric| metric.version.to_string()).collect();
    let grace = i64::try_from(context.options.removed_grace.as_millis()).unwrap_or(i64::MAX);
    let gone = retire::orphans(connection, &versions, now.saturating_sub(grace), now).await?;
    if gone > 0 {
        tracing::info!(days = gone, "versions of metrics that were changed or removed are retired");
    }
    Ok(())
}

/// Applies the retention that is configured.
async fn retain(context: &Context, connection: &mut PgConnection, now: Millis) -> Result<()> {
    let tidemark = ledger::tidemark(connection).await?;
    for stream in &context.catalog.streams {
        let first_kept = |days: Option<u32>| retention::first_kept(stream, &tidemark, days?);
        if let Some(before) = first_kept(context.options.archive_days) {
            let name = Some(stream.name.as_str());
            let (files, bytes) = retention::archive(connection, &context.store, name, before, now).await?;
            if files > 0 {
                tracing::info!(stream = stream.name, %before, files, bytes, "old event days left the archive");
            }
        }
        if let Some(before) = first_kept(context.options.facts_days) {
            retention::facts(connection, Some(&stream.name), before).await?;
        }
    }
    Ok(())
}
