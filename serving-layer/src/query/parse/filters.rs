//! The filters of a request: resolved against the key columns, their values of the columns' types.

use super::condition::condition;
use super::fields::{Faults, Fields};
use super::measures::shared_columns;
use super::{names, test};
use crate::error::FaultKind;
use crate::query::filter::{Condition, Filter};
use serde_json::{Map, Value as Json};
use shared_model::metric::{KeyColumn, Metric};
use std::sync::Arc;

/// The filters of a query, each resolved and typed, and how they are joined; behind those that all queries have in common.
pub(super) fn filters(
    request: &Fields<'_>,
    metrics: &[(String, Arc<Metric>)],
    faults: &mut Faults,
) -> (Vec<Filter>, Condition<usize>) {
    let mut columns = shared_columns(metrics);
    if let [(_, metric)] = metrics {
        columns.extend(metric.item.clone());
    }
    let mut filters = Vec::new();
    let mut leaf = |at: &str, filter: &Map<String, Json>, faults: &mut Faults| {
        filters.push(one_filter(at, filter, &columns, !metrics.is_empty(), faults)?);
        Some(filters.len() - 1)
    };
    let mut all = Vec::new();
    for request in request.common().iter().chain([&request.alone()]) {
        match condition(request, "filters", &mut leaf, faults) {
            Condition::All(parts) => all.extend(parts),
            one => all.push(one),
        }
    }
    (filters, Condition::All(all))
}

fn one_filter(
    at: &str,
    filter: &Map<String, Json>,
    columns: &[KeyColumn],
    resolvable: bool,
    faults: &mut Faults,
) -> Option<Filter> {
    let Some(name) = test::named(at, filter, "dimension", faults) else {
        faults.malformed(format!("{at}.dimension"), "expected the name of a key column");
        return None;
    };
    let Some(column) = columns.iter().find(|column| column.name == name) else {
        if resolvable {
            let message = format!("{name:?} is no key column of every metric asked for");
            faults.with(FaultKind::Unanswerable, format!("{at}.dimension"), message, names(columns));
        }
        return None;
    };
    let test = test::test(at, filter, column, faults)?;
    Some(Filter { dimension: column.name.clone(), test })
}
