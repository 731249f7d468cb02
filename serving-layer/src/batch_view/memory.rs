//! The batch view in memory: the reference that tests hold the real one against.

use super::{
    AtTidemark, BatchError, BatchView, EachCell, EachFact, Fact, Lost, Opening, Position, Scan, Snapshot,
    StoredLayout, VersionOf, Versions, Wanted,
};
use crate::merge::{Cell, FoldError};
use futures::future::BoxFuture;
use shared_model::catalog::{Layout, Stream};
use shared_model::metric::{Metric, MetricVersion};
use shared_model::tidemark::Tidemark;
use shared_model::time::{EventDay, Interval};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// All that a batch view holds; a snapshot is a copy of it.
#[derive(Debug, Clone, Default)]
struct Held {
    layout: Option<StoredLayout>,
    tidemarks: Vec<(Tidemark, i64)>,
    days: BTreeSet<(String, EventDay)>,
    versions: Vec<Arc<MemoryVersion>>,
    lost: Vec<Lost>,
    facts: Vec<(String, Fact)>,
    audits: Vec<serde_json::Value>,
}

/// One day of one metric as a run made it. The newest of a day is live.
#[derive(Debug, Clone)]
pub struct MemoryVersion {
    /// The metric's version.
    pub version: MetricVersion,
    /// The event day.
    pub day: EventDay,
    /// The run that made it.
    pub run: i64,
    /// Its rows.
    pub cells: Vec<Cell>,
}

/// The batch view in memory; out of reach after [`MemoryBatchView::fail`].
#[derive(Debug, Default)]
pub struct MemoryBatchView(Mutex<Option<Held>>);

impl MemoryBatchView {
    /// An empty one, before its first run.
    pub fn new(layout: &Layout) -> MemoryBatchView {
        let layout =
            StoredLayout { epoch_ms: layout.epoch.0, groups: i64::from(layout.groups), pane_ms: layout.pane };
        MemoryBatchView(Mutex::new(Some(Held { layout: Some(layout), ..Held::default() })))
    }

    fn with<T>(&self, read: impl FnOnce(&mut Option<Held>) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One flip: the archive's days, the versions that go live, and the tidemark, all at once.
    pub fn flip(
        &self,
        tidemark: Tidemark,
        run: i64,
        days: impl IntoIterator<Item = (String, EventDay)>,
        versions: Vec<MemoryVersion>,
    ) {
        self.with(|held| {
            let held = held.get_or_insert_default();
            held.tidemarks.push((tidemark, run));
            held.days.extend(days);
            held.versions.extend(versions.into_iter().map(Arc::new));
        });
    }

    /// Notes offsets that never reached the archive.
    pub fn lose(&self, lost: Lost) {
        self.with(|held| held.get_or_insert_default().lost.push(lost));
    }

    /// Keeps records of a stream as facts.
    pub fn keep(&self, stream: &str, facts: impl IntoIterator<Item = Fact>) {
        let facts = facts.into_iter().map(|fact| (stream.to_owned(), fact));
        self.with(|held| {
            let held = &mut held.get_or_insert_default().facts;
            held.extend(facts);
            held.sort_by(|(_, a), (_, b)| {
                (a.event_time, &a.tp, a.offset).cmp(&(b.event_time, &b.tp, b.offset))
            });
        });
    }

    /// Drops what a run left behind.
    pub fn forget(&self, run: i64) {
        self.with(|held| {
            let tidemarks = &mut held.get_or_insert_default().tidemarks;
            let current = tidemarks.last().map(|(_, run)| *run);
            tidemarks.retain(|(_, made)| *made != run || Some(run) == current);
        });
    }

    /// Adds a run's audit.
    pub fn audit(&self, audit: serde_json::Value) {
        self.with(|held| held.get_or_insert_default().audits.push(audit));
    }

    /// Puts it out of reach.
    pub fn fail(&self) {
        self.with(|held| *held = None);
    }

    fn copy(&self) -> Result<Held, BatchError> {
        self.with(|held| held.clone())
            .ok_or_else(|| BatchError::Unavailable("it was put out of reach".into()))
    }
}

impl BatchView for MemoryBatchView {
    fn snapshot(&self, _limit: Duration) -> BoxFuture<'_, Result<Box<dyn Snapshot>, BatchError>> {
        let copy = self.copy().map(|held| Box::new(MemorySnapshot(Arc::new(held))) as Box<dyn Snapshot>);
        Box::pin(async move { copy })
    }

    fn position<'a>(
        &'a self,
        _known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, BatchError>> {
        let position = self.copy().map(|held| {
            let (first, current) = (held.tidemarks.first()?.0.clone(), held.tidemarks.last()?.0.clone());
            Some(Position { layout: held.layout?, first, current })
        });
        Box::pin(async move { position })
    }

    fn audits(&self, limit: i64) -> BoxFuture<'_, Result<Vec<serde_json::Value>, BatchError>> {
        let limit = usize::try_from(limit).unwrap_or_default();
        let newest = self.copy().map(|held| held.audits.into_iter().rev().take(limit).collect());
        Box::pin(async move { newest })
    }
}

struct MemorySnapshot(Arc<Held>);

impl MemorySnapshot {
    fn tidemark(&self, at_run: Option<i64>) -> Result<Option<AtTidemark>, BatchError> {
        let found = match at_run {
            None => self.0.tidemarks.last(),
            Some(run) => match self.0.tidemarks.iter().find(|(_, made)| *made == run) {
                Some(found) => Some(found),
                None => return Err(BatchError::Run(format!("there is no run {run}"))),
            },
        };
        let at =
            |(tidemark, run): &(Tidemark, i64)| AtTidemark { tidemark: tidemark.clone(), run: Some(*run) };
        Ok(found.map(at))
    }

    fn versions(&self, metric: &Metric, span: Interval, at_generation: Option<i64>) -> Versions {
        let last_run = at_generation.and_then(|generation| {
            self.0
                .tidemarks
                .iter()
                .find(|(tidemark, _)| tidemark.generation == generation)
                .map(|(_, run)| *run)
        });
        let mut versions = Versions::default();
        for (id, version) in self.0.versions.iter().enumerate() {
            let live = last_run.is_none_or(|last| version.run <= last);
            if live && version.version == metric.version && version.day.interval().overlaps(&span) {
                let table = (!version.cells.is_empty()).then(|| id.to_string());
                // What has a number here never changes.
                let (version_id, hash) = (id as i64, id.to_string());
                let version_of = VersionOf { version_id, run: version.run, table, partial: false, hash };
                versions.days.insert(version.day, version_of);
            }
        }
        for (stream, day) in &self.0.days {
            let feeds = metric.bindings.iter().any(|binding| binding.stream == *stream);
            if feeds && day.interval().overlaps(&span) && !versions.days.contains_key(day) {
                versions.missing.insert(*day);
            }
        }
        versions
    }
}

impl Snapshot for MemorySnapshot {
    fn open<'a>(
        &'a mut self,
        at_run: Option<i64>,
        wanted: &'a [Wanted<'a>],
    ) -> BoxFuture<'a, Result<Option<Opening>, BatchError>> {
        let opening = self.tidemark(at_run).map(|at| {
            let at = at?;
            let generation = at_run.map(|_| at.tidemark.generation);
            let versions = wanted.iter().map(|wanted| self.versions(wanted.metric, wanted.span, generation));
            Some(Opening { versions: versions.collect(), lost: self.0.lost.clone(), at })
        });
        Box::pin(async move { opening })
    }

    fn rows<'a>(
        &'a mut self,
        scan: &'a Scan<'a>,
        each: EachCell<'a>,
    ) -> BoxFuture<'a, Result<Result<(), FoldError>, BatchError>> {
        let held = self.0.clone();
        Box::pin(async move {
            for version in &scan.versions {
                let cells = held.versions[version.version_id as usize].cells.iter();
                for cell in cells.filter(|cell| scan.span.contains(cell.bucket)) {
                    if let Err(refused) = each(Ok(cell)) {
                        return Ok(Err(refused));
                    }
                }
            }
            Ok(Ok(()))
        })
    }

    fn facts<'a>(
        &'a mut self,
        stream: &'a Stream,
        span: Interval,
        each: EachFact<'a>,
    ) -> BoxFuture<'a, Result<Vec<EventDay>, BatchError>> {
        let kept: Vec<&Fact> =
            self.0.facts.iter().filter(|(of, _)| *of == stream.name).map(|(_, fact)| fact).collect();
        let has = |day: &EventDay| kept.iter().any(|fact| day.interval().contains(fact.event_time));
        let days =
            self.0.days.iter().filter(|(of, day)| *of == stream.name && day.interval().overlaps(&span));
        let missing = days.map(|(_, day)| *day).filter(|day| !has(day)).collect();
        for fact in kept.iter().filter(|fact| span.contains(fact.event_time)) {
            if !each((*fact).clone()) {
                break;
            }
        }
        Box::pin(async move { Ok(missing) })
    }

    fn close(self: Box<Self>) {}
}
