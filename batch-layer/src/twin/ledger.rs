//! What Postgres holds of the batch view, in memory: each function is one statement or transaction of `ledger` and
//! `replace`.

use crate::compute::Cell;
use crate::ledger::{Entry, Version};
use crate::run::input::{Fresh, Way};
use shared_model::catalog::Catalog;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::offsets::{OffsetRange, TopicPartition};
use shared_model::tidemark::Tidemark;
use shared_model::time::EventDay;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The database.
#[derive(Default)]
pub struct MemoryLedger(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    locked: bool,
    runs: i64,
    tidemarks: Vec<Tidemark>,
    segments: Vec<Entry>,
    versions: Vec<Stored>,
    live: BTreeMap<(MetricVersion, EventDay), usize>,
    /// What is to be shown to readers, in the order of the flips.
    published: Vec<Published>,
}

struct Stored {
    metric: MetricVersion,
    day: EventDay,
    version: Version,
    retired: bool,
    cells: Vec<Cell>,
}

/// What one flip changed for readers.
#[derive(Debug, Clone)]
pub struct Published {
    /// The tidemark.
    pub tidemark: Tidemark,
    /// The run.
    pub run: i64,
    /// The days that the archive has now, by stream.
    pub days: Vec<(String, EventDay)>,
    /// The versions that became live.
    pub versions: Vec<(MetricVersion, EventDay, Vec<Cell>)>,
    /// What the log had lost: partition, offsets, cause.
    pub lost: Vec<(TopicPartition, OffsetRange, String)>,
}

/// Why a flip can't be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The generation is there already.
    Overtaken,
    /// A segment is in the ledger already.
    Twice(String),
}

/// The advisory lock; it ends with the connection.
pub(super) struct Lock(Option<Arc<Mutex<Held>>>);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(held) = &self.0 {
            held.lock().unwrap_or_else(PoisonError::into_inner).locked = false;
        }
    }
}

impl MemoryLedger {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All tidemarks, the first one first.
    pub fn history(&self) -> Vec<Tidemark> {
        self.held().tidemarks.clone()
    }

    /// What readers were not shown yet.
    pub fn take_published(&self) -> Vec<Published> {
        std::mem::take(&mut self.held().published)
    }

    /// The hashes of all live versions.
    pub fn live_hashes(&self) -> BTreeMap<(MetricVersion, EventDay), String> {
        let held = self.held();
        held.live.iter().map(|(name, &at)| (*name, held.versions[at].version.hash.clone())).collect()
    }

    pub(super) fn lock(&self, ignore: bool) -> Option<Lock> {
        let mut held = self.held();
        if ignore {
            return Some(Lock(None));
        }
        if held.locked {
            return None;
        }
        held.locked = true;
        Some(Lock(Some(self.0.clone())))
    }

    pub(super) fn begin(&self) -> i64 {
        let mut held = self.held();
        held.runs += 1;
        held.runs
    }

    pub(super) fn initialise(&self, first: Tidemark) {
        let mut held = self.held();
        if held.tidemarks.is_empty() {
            held.published.push(Published {
                tidemark: first.clone(),
                run: 0,
                days: Vec::new(),
                versions: Vec::new(),
                lost: Vec::new(),
            });
            held.tidemarks.push(first);
        }
    }

    pub(super) fn tidemark(&self) -> Tidemark {
        self.held().tidemarks.last().expect("prepared").clone()
    }

    pub(super) fn days(&self) -> BTreeSet<EventDay> {
        self.held().segments.iter().map(|entry| entry.segment.event_day).collect()
    }

    /// As `ledger::uncovered`.
    pub(super) fn uncovered(&self, catalog: &Catalog) -> BTreeMap<EventDay, BTreeSet<String>> {
        let held = self.held();
        let mut found: BTreeMap<EventDay, BTreeSet<String>> = BTreeMap::new();
        for metric in &catalog.metrics {
            for Entry { stream, segment, .. } in &held.segments {
                let feeds = metric.bindings.iter().any(|binding| binding.stream == *stream);
                if feeds && !held.live.contains_key(&(metric.version, segment.event_day)) {
                    found.entry(segment.event_day).or_default().insert(metric.name.clone());
                }
            }
        }
        found
    }

    /// As `ledger::day`.
    pub(super) fn day(&self, day: EventDay) -> (Vec<Entry>, BTreeSet<String>) {
        let held = self.held();
        let entries = held.segments.iter().filter(|entry| entry.segment.event_day == day);
        (entries.cloned().collect(), BTreeSet::new())
    }

    /// As `ledger::live`.
    pub(super) fn live(&self, metric: &Metric, day: EventDay) -> Option<Version> {
        let held = self.held();
        held.live.get(&(metric.version, day)).map(|&at| held.versions[at].version.clone())
    }

    /// As `ledger::staged`.
    pub(super) fn staged(&self, metric: &Metric, day: EventDay, inputs: &str) -> Option<Version> {
        let held = self.held();
        let is_live = |at: usize| held.live.values().any(|&live| live == at);
        let fits = |(at, stored): &(usize, &Stored)| {
            let named = stored.metric == metric.version && stored.day == day;
            let whole = stored.version.inputs == inputs && !stored.version.partial && !stored.retired;
            named && whole && !is_live(*at)
        };
        held.versions.iter().enumerate().rev().find(fits).map(|(_, stored)| stored.version.clone())
    }

    pub(super) fn cells(&self, id: i64) -> Vec<Cell> {
        self.held().versions[id as usize].cells.clone()
    }

    /// As `replace::stage`.
    pub(super) fn stage(
        &self,
        run: i64,
        metric: &Metric,
        day: EventDay,
        (hash, inputs): (String, String),
        way: Way,
        cells: Vec<Cell>,
    ) -> i64 {
        let mut held = self.held();
        let (id, rows) = (held.versions.len() as i64, cells.len() as i64);
        let table = (rows > 0).then(|| format!("run {run}"));
        let version = Version { id, table, hash, inputs, rows, partial: way.is_partial() };
        held.versions.push(Stored { metric: metric.version, day, version, retired: false, cells });
        id
    }

    /// As `replace::flip`: all or nothing, and nothing where the generation is there already.
    pub(super) fn flip(
        &self,
        run: i64,
        next: &Tidemark,
        publish: &[i64],
        fresh: &Fresh,
    ) -> Result<(), Refused> {
        let mut held = self.held();
        if held.tidemarks.iter().any(|tidemark| tidemark.generation == next.generation) {
            return Err(Refused::Overtaken);
        }
        for entry in &fresh.entries {
            if held.segments.iter().any(|there| there.segment.path == entry.segment.path) {
                return Err(Refused::Twice(entry.segment.path.clone()));
            }
        }
        held.tidemarks.push(next.clone());
        held.segments.extend(fresh.entries.iter().cloned());
        let mut versions = Vec::new();
        for &id in publish {
            let at = id as usize;
            let name = (held.versions[at].metric, held.versions[at].day);
            if let Some(before) = held.live.insert(name, at) {
                held.versions[before].retired = true;
            }
            versions.push((name.0, name.1, held.versions[at].cells.clone()));
        }
        let lost = fresh.gaps.iter().map(|(topic, partition, from, to, cause)| {
            let range = OffsetRange { from: *from, to: *to };
            (TopicPartition::new(topic, *partition), range, cause.clone())
        });
        let lost = lost.collect();
        let days = fresh.entries.iter().map(|entry| (entry.stream.clone(), entry.segment.event_day));
        let (tidemark, days) = (next.clone(), days.collect());
        held.published.push(Published { tidemark, run, days, versions, lost });
        Ok(())
    }
}
