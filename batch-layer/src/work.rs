//! Which metrics of which days a run computes. Pure.
//!
//! A metric's day needs computing if new rows of one of its streams lie in it, if it has rows but no live version, or
//! if a person asks for it.

use shared_model::catalog::Catalog;
use shared_model::metric::Metric;
use shared_model::time::EventDay;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is known before deciding.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The streams that bring new rows to each day.
    pub(crate) fresh: BTreeMap<EventDay, BTreeSet<String>>,
    /// Metrics, by name, that lack a live version of days that have rows.
    pub(crate) uncovered: BTreeMap<EventDay, BTreeSet<String>>,
    /// Days that were asked for.
    pub(crate) asked: BTreeSet<EventDay>,
    /// The metrics that are meant by that; `None`: all.
    pub(crate) metrics: Option<BTreeSet<String>>,
}

/// The days to compute, each with its metrics in the catalog's order.
pub(crate) fn decide(catalog: &Catalog, known: &Known) -> BTreeMap<EventDay, Vec<Arc<Metric>>> {
    let days: BTreeSet<EventDay> =
        known.fresh.keys().chain(known.uncovered.keys()).chain(&known.asked).copied().collect();
    let mut work = BTreeMap::new();
    for day in days {
        let needs = |metric: &&Arc<Metric>| {
            let fresh = known.fresh.get(&day).is_some_and(|streams| {
                metric.bindings.iter().any(|binding| streams.contains(&binding.stream))
            });
            let uncovered = known.uncovered.get(&day).is_some_and(|metrics| metrics.contains(&metric.name));
            let meant = known.metrics.as_ref().is_none_or(|metrics| metrics.contains(&metric.name));
            fresh || uncovered || (meant && known.asked.contains(&day))
        };
        let metrics: Vec<Arc<Metric>> = catalog.metrics.iter().filter(needs).cloned().collect();
        if !metrics.is_empty() {
            work.insert(day, metrics);
        }
    }
    work
}
