//! The computing part of a run: each metric of each day is a job, from the day's files to a staged version.
//!
//! So many jobs are at work at once, each with its share of the memory, and what they give is in the order of the work
//! whatever finishes first. Nothing of it is seen before the flip.

use crate::compute::{Budget, Day};
use crate::files::Files;
use crate::ledger;
use crate::replace::{Origin, Staged, names, stage};
use crate::run::Context;
use crate::run::input::{Fresh, Inputs, Way};
use anyhow::{Result, bail};
use futures::StreamExt as _;
use shared_model::metric::Metric;
use shared_model::time::EventDay;
use sqlx::AssertSqlSafe;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// Under which run days are computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) run: i64,
    /// Whether versions that a killed run staged from the same files are used as they are. A backfill or rollback
    /// computes anew: this program may have been mended since.
    pub(super) reuse: bool,
    /// Whether a day that was asked for and can't be computed anew is an error; else its live version stays.
    pub(super) insist: bool,
}

/// Computes all work; gives the versions that differ from the live ones, staged, by day and metric.
///
/// # Errors
/// The first one; jobs that are at work end first, others don't begin.
pub(super) async fn compute(
    context: &Context,
    files: &Files,
    attempt: Attempt,
    fresh: &Fresh,
    work: &BTreeMap<EventDay, Vec<Arc<Metric>>>,
) -> Result<Vec<Staged>> {
    create_parents(context, work).await?;
    let bar = bar(work.values().map(Vec::len).sum());
    let (workers, budget) = share(context.options.memory, context.options.workers);
    let jobs = Jobs { context, files, attempt, fresh, budget, stop: context.stop.child_token() };
    let each = work.iter().flat_map(|(day, metrics)| {
        let shared = Arc::new(OnceCell::new());
        metrics.iter().map(move |metric| (*day, metric, shared.clone()))
    });
    let started = each.map(async |(day, metric, shared)| {
        let done = jobs.job(day, metric, &shared).await;
        if done.is_err() {
            jobs.stop.cancel();
        }
        bar.set_message(day.to_string());
        bar.inc(1);
        done
    });
    let done: Vec<Result<Option<Staged>>> = futures::stream::iter(started).buffered(workers).collect().await;
    bar.finish_and_clear();
    done.into_iter().filter_map(Result::transpose).collect()
}

/// The parents of all tables that jobs may write: made beforehand, because two who make one at once are in each
/// other's way.
async fn create_parents(context: &Context, work: &BTreeMap<EventDay, Vec<Arc<Metric>>>) -> Result<()> {
    let metrics: BTreeMap<_, _> = work.values().flatten().map(|metric| (metric.version, metric)).collect();
    for metric in metrics.values() {
        sqlx::raw_sql(AssertSqlSafe(names::create_parent(metric))).execute(&context.pool).await?;
    }
    Ok(())
}

/// A bar over the jobs of a run; it shows itself at a terminal only, elsewhere the log lines do.
fn bar(jobs: usize) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template(
        "{bar:30} {pos} of {len} metrics of days, now {msg} ({elapsed})",
    );
    let bar = indicatif::ProgressBar::new(jobs as u64);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// How many jobs are at work at once, and what each may take, so that the process stays below `memory`: it takes 128 MiB
/// itself, and 32 for what each worker reads ahead (as measured). Workers that would have less than 16 beside are left
/// out.
pub(crate) fn share(memory: u64, workers: u16) -> (usize, Budget) {
    const MIB: u64 = 1 << 20;
    let left = memory.saturating_sub(128 * MIB);
    let workers = u64::from(workers).min(left / (48 * MIB)).max(1);
    let memory = (left / workers).saturating_sub(32 * MIB).max(MIB);
    (workers as usize, Budget { memory })
}

struct Jobs<'a> {
    context: &'a Context,
    files: &'a Files,
    attempt: Attempt,
    fresh: &'a Fresh,
    budget: Budget,
    /// Cancelled when the program is, or when a job has failed.
    stop: CancellationToken,
}

/// A day's files with their repeats found: what its metrics share.
struct Opened {
    input: Inputs,
    whole: Arc<Day>,
    /// Of a day of which older files are gone: the new files alone.
    new: Option<Arc<Day>>,
}

impl Jobs<'_> {
    /// Computes one metric of a day and stages what differs from the live version.
    async fn job(
        &self,
        day: EventDay,
        metric: &Arc<Metric>,
        shared: &OnceCell<Opened>,
    ) -> Result<Option<Staged>> {
        if self.stop.is_cancelled() {
            bail!("stopped before the flip; nothing was published");
        }
        let opened = shared.get_or_try_init(|| self.open(day)).await?;
        let input = &opened.input;
        let Attempt { run, reuse, insist } = self.attempt;
        let mut connection = self.context.pool.acquire().await?;
        let live = ledger::live(&mut connection, metric, day).await?;
        let way = input.way(metric, live.is_some());
        let partial = way.is_partial();
        if way == Way::Refused {
            let why = format!(
                "day {day} can't be computed anew: files of it were removed from the archive ({}); its live version stays",
                input.broken.iter().cloned().collect::<Vec<_>>().join(", ")
            );
            if insist {
                bail!(why);
            }
            tracing::warn!(metric = metric.name, "{why}");
            return Ok(None);
        }
        if reuse
            && !partial
            && let Some(found) = ledger::staged(&mut connection, metric, day, &input.hash).await?
        {
            tracing::info!(metric = metric.name, %day, version = found.id, "staged by an earlier run, used as it is");
            let metric = metric.clone();
            return Ok(Some(Staged { metric, day, version: found.id, table: found.table, rows: found.rows }));
        }
        let merged = if way == Way::OntoLive { live.as_ref() } else { None };
        let today =
            if merged.is_some() { opened.new.as_ref().unwrap_or(&opened.whole) } else { &opened.whole };
        let mut cells = today.sorter(metric);
        if let Some(live) = merged {
            crate::stored::cells(&mut connection, metric, live, &mut cells).await?;
        }
        // The connection is another's while this one computes.
        drop(connection);
        let (today, of) = (today.clone(), metric.clone());
        let cells = tokio::task::spawn_blocking(move || today.cells(&of, cells)).await??;
        if live.as_ref().is_some_and(|live| live.is(cells.hash(), partial)) {
            return Ok(None);
        }
        let origin = Origin { inputs: &input.hash, run, partial, now: (self.context.now)() };
        let mut connection = self.context.pool.acquire().await?;
        Ok(Some(stage(&mut connection, metric, day, cells, origin).await?))
    }

    /// Brings a day's files here, and finds which of their rows are repeats.
    async fn open(&self, day: EventDay) -> Result<Opened> {
        let mut connection = self.context.pool.acquire().await?;
        let input = Inputs::of_day(self.context, &mut connection, day, self.fresh).await?;
        drop(connection);
        tracing::info!(%day, rows = input.rows(), partial = input.partial, "computing");
        let whole = self.day(&input, false).await?;
        // Where older files are gone, new rows are merged into what is live.
        let new = if input.partial { Some(self.day(&input, true).await?) } else { None };
        Ok(Opened { input, whole, new })
    }

    async fn day(&self, input: &Inputs, new_only: bool) -> Result<Arc<Day>> {
        let sources = input.sources(self.context, self.files, new_only).await?;
        let (day, budget) = (input.day, self.budget);
        Ok(Arc::new(tokio::task::spawn_blocking(move || Day::open(day, sources, budget)).await??))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_memory() {
        // MiB and workers; expected: workers and MiB of each.
        for (memory, workers, expected) in [
            (1024, 1, (1, 864)),
            (1024, 2, (2, 416)),
            (1024, 64, (18, 17)),
            (256, 4, (2, 32)),
            (128, 4, (1, 1)),
            (1, 4, (1, 1)),
        ] {
            let (at_once, budget) = share(memory << 20, workers);
            assert_eq!((at_once, budget.memory >> 20), expected, "{memory} MiB, {workers} workers");
        }
    }
}
