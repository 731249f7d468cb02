//! Carries an audit out: reads the realtime view in passes, the repeats of each day from the archive, and both versions
//! of each metric's day from Postgres as two ordered streams.
//!
//! Memory: an eighth of what `--memory` leaves for computing holds packed cells of the realtime view, one pass after the
//! other; a quarter the cells of one metric and day that moved, whose rest is sorted on disk; half the search for
//! repeats, slice by slice; and of the batch view one row of each version. Whatever can't be compared is named.

use super::realtime::{Pass, Realtime};
use super::seam::{self, Span};
use super::{Audit, CellStream, Sides, compare};
use crate::archive::manifest::{IMPORT_PREFIX, import_topic};
use crate::compute::healed::{Healed, Seam};
use crate::compute::{Budget, Cells, Sorter};
use crate::config::AuditArgs;
use crate::files::Files;
use crate::ledger;
use crate::replace::Staged;
use crate::run::{self, Context, Fresh, Inputs};
use crate::stored;
use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use shared_model::metric::{Metric, MetricVersion};
use shared_model::offsets::TopicPartition;
use shared_model::redis_address::Address;
use shared_model::tidemark::{Cut, Tidemark};
use shared_model::time::EventDay;
use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which part of the memory packed segments, and what was read or healed of one metric and day, may take: each.
const SHARE: u64 = 8;

/// How moves of the tidemark are audited.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// Where the realtime view is; without it, no audit.
    pub(crate) redis: Option<Address>,
    /// The greatest unexplained error with which a run may publish.
    pub(crate) strict: Option<f64>,
    /// How long the realtime view may take to reach T1.
    patience: Duration,
}

impl Options {
    /// From the command line.
    ///
    /// # Errors
    /// Where a certificate can't be read or a URL is none.
    pub(crate) fn new(args: &AuditArgs) -> Result<Options> {
        let (strict, patience) = (args.strict_audit, args.audit_patience);
        Ok(Options { redis: args.address()?, strict, patience })
    }
}

/// A move of the tidemark that is about to be published.
pub(crate) struct Move<'a> {
    /// T0.
    pub(crate) current: &'a Tidemark,
    /// T1.
    pub(crate) next: &'a Tidemark,
    /// The cuts on each partition's chain of manifests from T0 on.
    pub(crate) reached: &'a BTreeMap<TopicPartition, Vec<Cut>>,
    /// What T1 takes in.
    pub(crate) fresh: &'a Fresh,
    /// The versions that become live with T1.
    pub(crate) publish: &'a [Staged],
    /// The segments' files.
    pub(crate) files: &'a Files,
}

/// Audits a move. Waits until the realtime view has reached T1, for a bounded time.
///
/// # Errors
/// Where the archive or Postgres can't be read. A realtime view that can't be is said in the audit.
pub(crate) async fn audit(context: &Context, redis: &Address, of: &Move<'_>) -> Result<Audit> {
    let deadline = Instant::now() + context.audit.patience;
    let spans = seam::spans(of.current, of.next, of.reached);
    let realtime = match Realtime::connect(redis).await {
        Ok(realtime) => realtime,
        Err(error) => return Ok(Audit::none(format!("redis can't be reached: {error}"))),
    };
    let (_, budget) = run::share(context.options.memory, 1, 1);
    let limit = usize::try_from(budget.memory / SHARE).unwrap_or(usize::MAX);
    let mut audit = Audit::default();
    let mut from = 0;
    while from < context.catalog.layout.groups {
        let pass = realtime.pass(&context.catalog, &spans, from, deadline, limit).await;
        let pass = match pass {
            Ok(pass) => pass,
            Err(error) => return Ok(Audit::none(format!("the realtime view can't be read: {error:#}"))),
        };
        from = pass.groups.end;
        audit.passes += 1;
        let auditor = Auditor { context, of, seam: seam_of(of, &spans), budget, pass };
        auditor.take(&mut audit).await?;
    }
    Ok(audit)
}

fn seam_of(of: &Move<'_>, spans: &[Span]) -> Seam {
    let mut below: BTreeMap<(String, i32), i64> = BTreeMap::new();
    for (tp, cut) in &of.current.cuts {
        below.insert((tp.topic.to_string(), tp.partition), cut.offset);
    }
    for span in spans {
        below.insert((span.tp.topic.to_string(), span.tp.partition), span.from.offset);
    }
    let imports = of.fresh.imports.iter().map(|id| import_topic(id)).collect();
    Seam { below, imports, import_prefix: IMPORT_PREFIX }
}

/// One pass of an audit.
struct Auditor<'a> {
    context: &'a Context,
    of: &'a Move<'a>,
    seam: Seam,
    budget: Budget,
    pass: Pass,
}

/// One day's search for repeats, by stream, and what can't be compared on it.
struct Day {
    day: EventDay,
    healed: Vec<Healed>,
    /// Streams of which files were removed from the archive.
    broken: BTreeSet<String>,
    /// Streams that had files of the day below T0.
    known: BTreeSet<String>,
}

impl Auditor<'_> {
    async fn take(&self, audit: &mut Audit) -> Result<()> {
        audit.not_audited.extend(self.pass.not_audited.iter().cloned());
        audit.cuts.extend(self.pass.cuts.iter().cloned());
        let touched = match self.pass.days(&self.context.catalog) {
            Ok(touched) => touched,
            Err(error) => {
                audit.not_audited.insert(format!("the realtime view can't be decoded: {error:#}"));
                return Ok(());
            }
        };
        let fresh = self.of.fresh.streams_by_day(&self.context.catalog);
        let days: BTreeSet<EventDay> = fresh.keys().chain(touched.keys()).copied().collect();
        let (none, no_streams) = (BTreeSet::new(), BTreeSet::new());
        for day in days {
            let (touched, fresh) =
                (touched.get(&day).unwrap_or(&none), fresh.get(&day).unwrap_or(&no_streams));
            let found = self.open(day).await?;
            self.of.files.forget(day);
            // The same repeats are found by each pass.
            if self.pass.groups.start == 0 {
                found.healed.iter().for_each(|healed| audit.repeats.add(healed.repeats));
            }
            for metric in &self.context.catalog.metrics {
                if self.concerns(metric, touched, fresh) {
                    self.metric(metric, &found, audit).await?;
                }
            }
        }
        Ok(())
    }

    fn concerns(&self, metric: &Metric, touched: &BTreeSet<MetricVersion>, fresh: &BTreeSet<String>) -> bool {
        touched.contains(&metric.version)
            || metric.bindings.iter().any(|binding| fresh.contains(&binding.stream))
    }

    /// Looks for a day's repeats.
    async fn open(&self, day: EventDay) -> Result<Day> {
        let mut connection = self.context.pool.acquire().await?;
        let input = Inputs::of_day(self.context, &mut connection, day, self.of.fresh).await?;
        drop(connection);
        let fresh = input.sources(self.context, self.of.files, true).await?;
        let all = match fresh.is_empty() {
            true => Vec::new(),
            false => input.sources(self.context, self.of.files, false).await?,
        };
        let mut healed = Vec::new();
        for new in fresh {
            let Some(all) = all.iter().find(|all| all.stream.name == new.stream.name).cloned() else {
                continue;
            };
            let (seam, budget) = (self.seam.clone(), self.budget);
            let find = move || Healed::find(day, all, &new, &seam, budget);
            let found = tokio::task::spawn_blocking(find).await?;
            healed.push(found.with_context(|| format!("looking for repeats on {day}"))?);
        }
        Ok(Day { day, healed, broken: input.broken.clone(), known: input.known_streams() })
    }

    /// Compares a metric on a day.
    async fn metric(&self, metric: &Arc<Metric>, day: &Day, audit: &mut Audit) -> Result<()> {
        let name = &metric.name;
        let of_metric =
            |streams: &BTreeSet<String>| metric.bindings.iter().any(|b| streams.contains(&b.stream));
        if of_metric(&day.broken) {
            let why = format!("metric {name} on {}: files of the day were removed from the archive", day.day);
            audit.not_audited.insert(why);
            return Ok(());
        }
        let (mut first, mut second) =
            (self.context.pool.acquire().await?, self.context.pool.acquire().await?);
        let live = ledger::live(&mut first, metric, day.day).await?;
        if live.is_none() && of_metric(&day.known) {
            let why =
                format!("metric {name} on {}: readers had no batch view of it before this run", day.day);
            audit.not_audited.insert(why);
            return Ok(());
        }
        let before = live.and_then(|live| live.table);
        let staged = |staged: &&Staged| staged.metric.version == metric.version && staged.day == day.day;
        let after = self.of.publish.iter().find(staged).map_or(before.clone(), |staged| staged.table.clone());
        let (mut read, mut healed) = self.moved(metric, day)?;
        let figures = audit.metrics.entry(name.clone()).or_default();
        if before == after && read.rows() == 0 && healed.rows() == 0 {
            return Ok(());
        }
        let sides = Sides {
            before: self.covered(metric, stored::ordered(&mut first, metric, before.as_deref())),
            read: self.covered(metric, futures::stream::iter(read.read()?).boxed()),
            after: self.covered(metric, stored::ordered(&mut second, metric, after.as_deref())),
            healed: self.covered(metric, futures::stream::iter(healed.read()?).boxed()),
        };
        let found = compare(metric, sides).await;
        figures.add(found.with_context(|| format!("comparing metric {name} on {}", day.day))?);
        Ok(())
    }

    /// The cells that this pass compares.
    fn covered<'c>(&'c self, metric: &'c Metric, cells: CellStream<'c>) -> CellStream<'c> {
        let groups = self.context.catalog.layout.groups;
        cells.try_filter(move |cell| ready(self.pass.covers(metric, &cell.key, groups))).boxed()
    }

    /// What a reader merges with the batch view at T0, and what of it the batch view at T1 doesn't count.
    fn moved(&self, metric: &Arc<Metric>, day: &Day) -> Result<(Cells, Cells)> {
        tokio::task::block_in_place(|| {
            let sorter = || Sorter::new(metric, self.budget.memory / SHARE);
            let (mut read, mut healed) = (sorter(), sorter());
            self.pass.cells(metric, day.day, &mut read)?;
            for stream in &day.healed {
                stream.imported(metric, &mut read)?;
                stream.healed(metric, &mut healed)?;
            }
            Ok((read.finish()?, healed.finish()?))
        })
    }
}
