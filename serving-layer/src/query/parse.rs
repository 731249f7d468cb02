//! From a query's JSON to a [`Query`]: all faults are found and reported together.

mod computed;
mod condition;
mod fields;
mod filters;
mod having;
mod measures;
mod order;
mod request;
mod span;
mod test;
mod values;

pub(crate) use fields::{MAX_FAULTS, MAX_NAME};
pub use request::{At, Request};
pub(crate) use request::{FACTS, IN_COMMON, MAX_QUERIES, OF_FACTS, OF_REQUEST};
pub(crate) use test::{OPS, lone_test, type_name};

use super::buckets::Buckets;
use super::compare::{Compared, Period};
use super::filter::Filter;
use super::having::type_of;
use super::range::Shift;
use super::rolling::Rolling;
use super::{Column, Limits, Part, Query};
use chrono_tz::Tz;
use fields::{Faults, Fields};
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::metric::{KeyColumn, Metric};
use shared_model::time::{DAY, Interval, Millis, common_step};
use std::sync::Arc;
use values::Values;

/// The most metrics of one query.
pub(crate) const MAX_METRICS: usize = 20;
/// The most filters, and the most sort keys.
pub(crate) const MAX_FILTERS: usize = 50;
/// The most values of one filter.
pub(crate) const MAX_VALUES: usize = 1_000;
/// The longest text of a value in bytes.
pub(crate) const MAX_TEXT: usize = 8_192;

/// The fields of a query.
pub(crate) const OF_QUERY: [&str; 20] = [
    "metrics",
    "group_by",
    "filters",
    "from",
    "to",
    "time_range",
    "now",
    "time_zone",
    "granularity",
    "rolling",
    "cumulative",
    "retention",
    "fill",
    "compare",
    "having",
    "order",
    "limit_by",
    "limit",
    "offset",
    "k",
];

/// The time that a query is about.
struct Time {
    zone: Tz,
    span: Interval,
    buckets: Buckets,
}

fn read(
    request: &Fields<'_>,
    catalog: &Catalog,
    limits: &Limits,
    now: Millis,
    faults: &mut Faults,
) -> Option<Query> {
    let chosen = measures::metrics(request, catalog, faults);
    let (formula, metrics) = chosen.unwrap_or_default();
    let group_by = measures::group_by(request, &metrics, faults);
    let (filters, condition) = filters::filters(request, &metrics, faults);
    let grain = metrics.iter().map(|(_, metric)| metric.grain.width()).fold(1, lcm);
    let time = span::time(request, now, grain, faults);
    let ranked = metrics.first().and_then(|(_, metric)| match metric.aggregate {
        Aggregate::TopK { k } => Some(k),
        _ => None,
    });
    let period = request.word("compare", &PERIODS, faults);
    let retention = request.count("retention", faults);
    // Of whom came again it is a list.
    let type_of = |aggregate: &Aggregate| if retention.is_some() { None } else { type_of(aggregate) };
    let columns = metrics.iter().map(|(name, metric)| (name.clone(), type_of(&metric.aggregate)));
    let mut values = Values { columns: columns.collect(), compared: period.is_some() };
    let computed = computed::computed(request, &metrics, &group_by, &values, faults);
    values.columns.extend(computed.iter().map(|computed| (computed.name.clone(), Some(computed.ty()))));
    let having = having::having(request, &values, faults);
    let fill = request.flag("fill", faults);
    if fill && ranked.is_some() {
        faults.unanswerable(request.at("fill"), "a top_k has no items where there is nothing to rank");
    }
    let order = order::order(request, &group_by, &values, ranked.is_some(), faults);
    let limit_by = order::limit_by(request, &group_by, faults);
    let limit = request.count("limit", faults).unwrap_or(limits.default_rows.min(limits.max_rows));
    if limit > limits.max_rows {
        let message = format!("{limit} is more than the limit of {} rows: page by offset", limits.max_rows);
        faults.unanswerable(request.at("limit"), message);
    }
    let offset = request.count("offset", faults).unwrap_or(0);
    let k = request.count("k", faults);
    if k.is_some() && ranked.is_none() && !metrics.is_empty() {
        faults.unanswerable(request.at("k"), "only a top_k metric has a k");
    }
    let columns =
        metrics.into_iter().map(|(name, metric)| column(name, metric, &group_by, &filters)).collect();
    let k = k.or(ranked).unwrap_or(0);
    let reach = span::reach(request, faults);
    let Time { zone, span, buckets } = time?;
    if fill && let Err(message) = buckets.starts(span) {
        faults.unanswerable(request.at("fill"), message);
    }
    let rolling = reach.and_then(|(at, reach)| {
        let rolling = Rolling::new(reach, zone, span, &buckets, grain).and_then(Rolling::wide_enough);
        rolling.map_err(|message| faults.unanswerable(at, message)).ok()
    });
    let mut query = Query {
        place: request.at("").trim_end_matches('.').to_owned(),
        columns,
        computed,
        formula,
        group_by,
        filters,
        condition,
        zone,
        span,
        buckets,
        rolling,
        retention,
        compared: None,
        fill,
        having,
        order,
        limit_by,
        limit,
        offset,
        k,
    };
    if retention.is_some() {
        retained(request, &query, period.is_some(), faults);
    }
    if let Some(period) = period {
        match Compared::new(&query, period, grain) {
            Ok(compared) => query.compared = Some(Box::new(compared)),
            Err(message) => faults.unanswerable(request.at("compare"), message),
        }
    }
    Some(query)
}

/// The most buckets behind its own in which it is counted who came again.
pub(crate) const MAX_RETENTION: usize = 60;

/// What must hold of a query that asks who came again.
fn retained(request: &Fields<'_>, query: &Query, compared: bool, faults: &mut Faults) {
    let at = request.at("retention");
    if !(1..=MAX_RETENTION).contains(&query.retention.unwrap_or_default()) {
        faults.unanswerable(&at, format!("1 to {MAX_RETENTION} buckets can be looked at"));
    }
    let of_sessions = |column: &Column| matches!(column.metric.aggregate, Aggregate::Sessions { .. });
    let alone = query.columns.iter().all(of_sessions) && query.columns.len() == 1;
    let beside = !query.computed.is_empty() || query.formula.is_some();
    if (!alone || beside) && !query.columns.is_empty() {
        faults.unanswerable(request.at("metrics"), "who came again is known of one metric of sessions alone");
    }
    if matches!(query.buckets, Buckets::One(_)) {
        faults.unanswerable(&at, "it needs buckets: say their width as granularity, such as day");
    } else if let Err(message) = query.buckets.starts(query.span) {
        faults.unanswerable(&at, message);
    }
    let options = [
        ("rolling or cumulative", query.rolling.is_some()),
        ("compare", compared),
        ("fill", query.fill),
        ("having", query.having.is_some()),
    ];
    for (name, _) in options.iter().filter(|(_, given)| *given) {
        faults.unanswerable(&at, format!("it doesn't go with {name}"));
    }
}

/// What a query may be compared with.
pub(crate) const PERIODS: [(&str, Period); 6] = [
    ("previous_period", Period::Previous),
    ("previous_day", Period::Back(Shift::Wall(DAY))),
    ("previous_week", Period::Back(Shift::Wall(7 * DAY))),
    ("previous_month", Period::Back(Shift::Months(1))),
    ("previous_quarter", Period::Back(Shift::Months(3))),
    ("previous_year", Period::Back(Shift::Months(12))),
];

fn column(name: String, metric: Arc<Metric>, group_by: &[KeyColumn], filters: &[Filter]) -> Column {
    let place = |name: &str| metric.by.iter().position(|column| column.name == name);
    let group = group_by.iter().filter_map(|column| place(&column.name)).collect();
    let part = |filter: &Filter| place(&filter.dimension).map_or(Part::Item, Part::By);
    let tested = filters.iter().map(part).collect();
    Column { name, group, tested, metric }
}

fn names(columns: &[KeyColumn]) -> Vec<String> {
    columns.iter().map(|column| column.name.clone()).collect()
}

fn lcm(a: Millis, b: Millis) -> Millis {
    a / common_step(a, b) * b
}
