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

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::catalog::OUTBRAIN;

    /// `known`: a change to nothing known; expected: day and metrics.
    fn check(change: impl FnOnce(&mut Known), expected: &[(i32, &[&str])]) {
        let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
        let mut known = Known::default();
        change(&mut known);
        let found = decide(&catalog, &known);
        let found: Vec<(i32, Vec<&str>)> = found
            .iter()
            .map(|(day, metrics)| (day.0, metrics.iter().map(|metric| metric.name.as_str()).collect()))
            .collect();
        let expected: Vec<(i32, Vec<&str>)> =
            expected.iter().map(|(day, names)| (*day, names.to_vec())).collect();
        assert_eq!(found, expected);
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn new_rows_concern_the_metrics_of_their_stream_alone() {
        let day = EventDay(7);
        check(|_| {}, &[]);
        check(
            |known| _ = known.fresh.insert(day, set(&["page_views"])),
            &[(7, &["active_user", "geo_top", "user_view_cnt"])],
        );
        check(|known| _ = known.fresh.insert(day, set(&["gone"])), &[]);
    }

    #[test]
    fn a_day_without_a_version_of_a_metric_is_computed_for_it() {
        check(
            |known| {
                known.uncovered.insert(EventDay(3), set(&["doc_cnt"]));
                known.fresh.insert(EventDay(4), set(&["page_views"]));
            },
            &[(3, &["doc_cnt"]), (4, &["active_user", "geo_top", "user_view_cnt"])],
        );
    }

    #[test]
    fn what_is_asked_for_is_computed_and_nothing_else() {
        check(
            |known| {
                known.asked = [EventDay(1), EventDay(2)].into();
                known.metrics = Some(set(&["doc_cnt"]));
            },
            &[(1, &["doc_cnt"]), (2, &["doc_cnt"])],
        );
    }
}
