//! What is measured, and by which key columns it is told apart.

use super::fields::{Faults, Fields};
use super::{MAX_METRICS, names};
use crate::error::FaultKind;
use serde_json::Value as Json;
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::metric::{KeyColumn, Metric};
use std::sync::Arc;

/// The formula, if one was named, and the value columns.
pub(super) type Chosen = (Option<String>, Vec<(String, Arc<Metric>)>);

/// The value columns: metrics by name or live name, or one formula's.
pub(super) fn metrics(request: &Fields<'_>, catalog: &Catalog, faults: &mut Faults) -> Option<Chosen> {
    let names = named(request, faults);
    if names.is_empty() {
        faults.malformed(request.at("metrics"), "expected at least one metric's or formula's name");
        return None;
    }
    if names.len() > MAX_METRICS {
        let message = format!("{} are more than the limit of {MAX_METRICS}", names.len());
        faults.unanswerable(request.at("metrics"), message);
        return None;
    }
    let mut chosen: Chosen = (None, Vec::new());
    for (i, (field, name)) in names.iter().enumerate() {
        let (field, name) = (field.clone(), *name);
        let metric = catalog.metric(name).or_else(|| catalog.live(name));
        match (metric, catalog.formula(name)) {
            _ if names[..i].iter().any(|(_, before)| *before == name) => {
                faults.malformed(field, format!("{name} is named twice"));
            }
            (Some(metric), _) if chosen.1.iter().any(|(name, _)| *name == metric.name) => {
                faults.malformed(field, format!("{} is named twice", metric.name));
            }
            (Some(metric), _) => chosen.1.push((metric.name.clone(), metric.clone())),
            (None, Some(_)) if names.len() > 1 => {
                faults.unanswerable(field, format!("the formula {name} is queried alone"));
            }
            (None, Some(formula)) => {
                chosen.0 = Some(formula.name.clone());
                let of =
                    |(column, name): &(String, String)| Some((column.clone(), catalog.metric(name)?.clone()));
                chosen.1 = formula.columns.iter().filter_map(of).collect();
            }
            (None, None) => {
                let metrics = catalog.metrics.iter().map(|metric| metric.name.clone());
                let known =
                    metrics.chain(catalog.formulas.iter().map(|formula| formula.name.clone())).collect();
                let message = format!("the catalog has no metric or formula {name:?}");
                faults.with(FaultKind::UnknownMetric, field, message, known);
            }
        }
    }
    let ranked = |metric: &Metric| matches!(metric.aggregate, Aggregate::TopK { .. });
    if chosen.1.len() > 1
        && let Some((_, metric)) = chosen.1.iter().find(|(_, metric)| ranked(metric))
    {
        let message = format!("the top_k metric {} is queried alone", metric.name);
        faults.unanswerable(request.at("metrics"), message);
    }
    Some(chosen)
}

/// The elements of `metrics` that are names; the others are computed of what these name.
fn named<'a>(request: &Fields<'a>, faults: &mut Faults) -> Vec<(String, &'a str)> {
    match request.get("metrics") {
        Some((at, Json::Array(list))) if list.iter().any(Json::is_object) => {
            let named = list.iter().enumerate().filter(|(_, element)| !element.is_object());
            let name = |(i, element): (usize, &'a Json)| Some((format!("{at}[{i}]"), element.as_str()?));
            let names: Vec<_> = named.clone().filter_map(name).collect();
            if names.len() < named.count() {
                faults.malformed(
                    at,
                    "expected a list of names, and of {\"name\", \"formula\"} or {\"name\", \"share_of\"}",
                );
            }
            names
        }
        _ => request.names("metrics", faults),
    }
}

/// The key columns that all metrics have, with one type.
pub(super) fn shared_columns(metrics: &[(String, Arc<Metric>)]) -> Vec<KeyColumn> {
    let Some(((_, first), others)) = metrics.split_first() else { return Vec::new() };
    let shared = |column: &&KeyColumn| others.iter().all(|(_, metric)| metric.by.contains(column));
    first.by.iter().filter(shared).cloned().collect()
}

/// The key columns to group by.
pub(super) fn group_by(
    request: &Fields<'_>,
    metrics: &[(String, Arc<Metric>)],
    faults: &mut Faults,
) -> Vec<KeyColumn> {
    let shared = shared_columns(metrics);
    let mut columns: Vec<KeyColumn> = Vec::new();
    for (field, name) in request.names("group_by", faults) {
        match shared.iter().find(|column| column.name == name) {
            Some(column) if columns.contains(column) => {
                faults.malformed(field, format!("{name} is named twice"))
            }
            Some(column) => columns.push(column.clone()),
            None if metrics.is_empty() => {}
            None => {
                let message = format!("{name:?} is no key column of every metric asked for");
                faults.with(FaultKind::Unanswerable, field, message, names(&shared));
            }
        }
    }
    columns
}
