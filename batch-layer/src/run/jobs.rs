//! The computing part of a run: each day is a job, from its files to staged versions of its metrics.
//!
//! So many jobs are at work at once, each with its share of threads and memory, and what they give is in the order of
//! the work whatever finishes first. Nothing of it is seen before the flip.

use crate::compute::{Budget, Cells, Day};
use crate::files::Files;
use crate::ledger;
use crate::replace::{self, Origin, Staged, names, stage};
use crate::run::Context;
use crate::run::input::{Fresh, Inputs, Way};
use anyhow::{Result, bail};
use futures::StreamExt as _;
use shared_model::metric::Metric;
use shared_model::time::EventDay;
use sqlx::{AssertSqlSafe, PgConnection};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;
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
    let (at_once, budget) = share(context.options.memory, context.options.workers, work.len());
    let stop = context.stop.child_token();
    let jobs = Jobs { context, files, attempt, fresh, budget, bar: bar.clone(), stop };
    let started = work.iter().map(async |(day, metrics)| {
        let done = jobs.stopping(jobs.job(*day, metrics)).await;
        files.forget(*day);
        done
    });
    let done: Vec<Result<Vec<Staged>>> = futures::stream::iter(started).buffered(at_once).collect().await;
    bar.finish_and_clear();
    Ok(first_fault(done)?.concat())
}

/// The work was stopped, by a signal or because of another's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("stopped before the flip; nothing was published")]
struct Stopped;

/// All results, or the first fault: one that is not about being stopped, if there is one.
fn first_fault<T>(done: Vec<Result<T>>) -> Result<Vec<T>> {
    let (mut all, mut fault) = (Vec::new(), None);
    for one in done {
        match one {
            Ok(one) => all.push(one),
            Err(error) if fault.as_ref().is_none_or(|fault: &anyhow::Error| fault.is::<Stopped>()) => {
                fault = Some(error);
            }
            Err(_) => {}
        }
    }
    fault.map_or(Ok(all), Err)
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

/// How many days are at work at once, and what each may take, so that the process stays below `memory`: it takes 128 MiB
/// itself, and 32 for what each thread reads ahead (as measured). Threads that would have less than 16 beside are left
/// out. Few days have several threads each.
pub(crate) fn share(memory: u64, workers: u16, days: usize) -> (usize, Budget) {
    const MIB: u64 = 1 << 20;
    let left = memory.saturating_sub(128 * MIB);
    let workers = u64::from(workers).min(left / (48 * MIB)).max(1);
    let at_once = workers.min(days as u64).max(1);
    let threads = workers / at_once;
    let memory = (left / at_once).saturating_sub(32 * MIB * threads).max(MIB);
    (at_once as usize, Budget { memory, threads: threads as usize })
}

struct Jobs<'a> {
    context: &'a Context,
    files: &'a Files,
    attempt: Attempt,
    fresh: &'a Fresh,
    budget: Budget,
    /// Over the metrics of days.
    bar: indicatif::ProgressBar,
    /// Cancelled when the program is, or when a job has failed.
    stop: CancellationToken,
}

/// A metric of a day that is to be computed.
struct Wanted {
    metric: Arc<Metric>,
    way: Way,
    live: Option<ledger::Version>,
}

impl Jobs<'_> {
    /// Computes metrics of a day and stages what differs from the live versions, in the metrics' order.
    async fn job(&self, day: EventDay, metrics: &[Arc<Metric>]) -> Result<Vec<Staged>> {
        self.go_on()?;
        self.bar.set_message(day.to_string());
        let mut connection = self.context.pool.acquire().await?;
        let input = Inputs::of_day(self.context, &mut connection, day, self.fresh).await?;
        let (mut staged, mut whole, mut onto_live) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (place, metric) in metrics.iter().enumerate() {
            let live = ledger::live(&mut connection, metric, day).await?;
            let way = input.way(metric, live.is_some());
            if way == Way::Refused {
                self.refuse(day, metric, &input)?;
            } else if let Some(found) = self.staged(&mut connection, metric, &input, way).await? {
                staged.insert(place, found);
            } else {
                let metric = metric.clone();
                let of = if way == Way::OntoLive { &mut onto_live } else { &mut whole };
                of.push((place, Wanted { metric, way, live }));
            }
        }
        // The connection is another's while this job computes.
        drop(connection);
        self.bar.inc((metrics.len() - whole.len() - onto_live.len()) as u64);
        for (wanted, new_only) in [(whole, false), (onto_live, true)] {
            staged.extend(self.compute(&input, wanted, new_only).await?);
        }
        Ok(staged.into_values().collect())
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.is_cancelled() { Err(Stopped.into()) } else { Ok(()) }
    }

    /// Has all jobs stop where one fails.
    async fn stopping<T>(&self, job: impl Future<Output = Result<T>>) -> Result<T> {
        job.await.inspect_err(|_| self.stop.cancel())
    }

    /// Says that a day can't be computed anew.
    fn refuse(&self, day: EventDay, metric: &Metric, input: &Inputs) -> Result<()> {
        let why = format!(
            "day {day} can't be computed anew: files of it were removed from the archive ({}); its live version stays",
            input.broken.iter().cloned().collect::<Vec<_>>().join(", ")
        );
        if self.attempt.insist {
            bail!(why);
        }
        tracing::warn!(metric = metric.name, "{why}");
        Ok(())
    }

    /// A version that a killed run staged from the same files, where it may be used as it is.
    async fn staged(
        &self,
        connection: &mut PgConnection,
        metric: &Arc<Metric>,
        input: &Inputs,
        way: Way,
    ) -> Result<Option<Staged>> {
        if !self.attempt.reuse || way.is_partial() {
            return Ok(None);
        }
        let (day, metric) = (input.day, metric.clone());
        let found = ledger::staged(connection, &metric, day, &input.hash).await?;
        if let Some(table) = found.as_ref().and_then(|found| found.table.as_deref())
            && !replace::fits(connection, &metric, table).await?
        {
            return Ok(None);
        }
        Ok(found.map(|found| {
            tracing::info!(metric = metric.name, %day, version = found.id, "staged by an earlier run, used as it is");
            Staged { metric, day, version: found.id, table: found.table, rows: found.rows }
        }))
    }

    /// Computes metrics from all of a day's files, or from the new ones alone, which are merged into what is live; gives
    /// those that differ from the live versions, each with its place, in no order that matters.
    async fn compute(
        &self,
        input: &Inputs,
        wanted: Vec<(usize, Wanted)>,
        new_only: bool,
    ) -> Result<Vec<(usize, Staged)>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let day = self.open(input, new_only).await?;
        let mut metrics = Vec::new();
        for (_, Wanted { metric, way, live }) in &wanted {
            let mut sorter = day.sorter(metric, wanted.len());
            if let (Way::OntoLive, Some(live)) = (way, live) {
                let mut connection = self.context.pool.acquire().await?;
                crate::stored::cells(&mut connection, metric, live, &mut sorter).await?;
            }
            metrics.push((metric.clone(), sorter));
        }
        self.go_on()?;
        let cells = tokio::task::spawn_blocking(move || day.cells(metrics)).await??;
        tracing::info!(
            day = %input.day,
            metrics = cells.len(),
            cells = cells.iter().map(Cells::rows).sum::<u64>(),
            seconds = begun.elapsed().as_secs_f64(),
            "computed"
        );
        let begun = Instant::now();
        // The largest first, and the next as soon as one is done: one that begins late is waited for by all else.
        let mut tables: Vec<_> = wanted.into_iter().zip(cells).collect();
        tables.sort_by_key(|(_, cells)| Reverse(cells.rows()));
        // What is computed is stored, even where the work is to stop: the next run uses it.
        let each = tables.into_iter().map(async |((place, wanted), cells)| {
            let staged = self.stopping(self.stage(input, wanted, cells)).await?;
            self.bar.inc(1);
            Ok(staged.map(|staged| (place, staged)))
        });
        let done: Vec<Result<Option<_>>> =
            futures::stream::iter(each).buffer_unordered(self.budget.threads).collect().await;
        let done: Vec<_> = first_fault(done)?.into_iter().flatten().collect();
        tracing::info!(
            day = %input.day,
            tables = done.len(),
            rows = done.iter().map(|(_, staged)| staged.rows).sum::<i64>(),
            seconds = begun.elapsed().as_secs_f64(),
            "loaded"
        );
        Ok(done)
    }

    /// Stages a computed version, where it differs from the live one.
    async fn stage(&self, input: &Inputs, wanted: Wanted, cells: Cells) -> Result<Option<Staged>> {
        let Wanted { metric, way, live } = wanted;
        let partial = way.is_partial();
        if live.is_some_and(|live| live.is(cells.hash(), partial)) {
            return Ok(None);
        }
        let origin =
            Origin { inputs: &input.hash, run: self.attempt.run, partial, now: (self.context.now)() };
        let mut connection = self.context.pool.acquire().await?;
        stage(&mut connection, &metric, input.day, cells, origin).await.map(Some)
    }

    /// Brings a day's files here, all or the new ones alone, and finds which of their rows are repeats.
    async fn open(&self, input: &Inputs, new_only: bool) -> Result<Day> {
        let day = input.day;
        let sources = input.sources(self.context, self.files, new_only).await?;
        let rows = sources.iter().map(|source| source.rows).sum::<u64>();
        tracing::info!(%day, rows, partial = input.partial, "computing");
        self.go_on()?;
        let budget = self.budget;
        tokio::task::spawn_blocking(move || Day::open(day, sources, budget)).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fault_that_stopped_the_others_is_the_one_to_tell() {
        let stopped = || Err(Stopped.into());
        let fault = || Err(anyhow::anyhow!("no room"));
        let told = |done: Vec<Result<u8>>| first_fault(done).map_err(|error| error.to_string());
        assert_eq!(told(vec![Ok(1), Ok(2)]), Ok(vec![1, 2]));
        assert_eq!(told(vec![Ok(1), stopped(), fault(), stopped()]), Err("no room".into()));
        assert_eq!(told(vec![stopped(), Ok(1)]), Err(Stopped.to_string()));
    }

    #[test]
    fn days_share_threads_and_memory() {
        // MiB, workers and days; expected: days at once, MiB and threads of each.
        for (memory, workers, days, expected) in [
            (1024, 1, 9, (1, 864, 1)),
            (1024, 2, 9, (2, 416, 1)),
            (1024, 2, 1, (1, 832, 2)),
            (1024, 5, 2, (2, 384, 2)),
            (1024, 64, 99, (18, 17, 1)),
            (256, 4, 99, (2, 32, 1)),
            (128, 4, 1, (1, 1, 1)),
            (1, 4, 0, (1, 1, 1)),
        ] {
            let (at_once, Budget { memory: each, threads }) = share(memory << 20, workers, days);
            assert_eq!(
                (at_once, each >> 20, threads),
                expected,
                "{memory} MiB, {workers} workers, {days} days"
            );
        }
    }
}
