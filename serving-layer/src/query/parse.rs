//! From a request's JSON to a [`Query`]: all faults are found and reported together.

mod condition;
mod fields;
mod filters;
mod measures;
mod order;
mod span;

pub(crate) use fields::MAX_FAULTS;
pub(crate) use filters::type_name;

use super::buckets::Buckets;
use super::filter::Filter;
use super::{Column, Part, Query};
use crate::error::ServeError;
use chrono_tz::Tz;
use fields::{Faults, Fields};
use serde_json::Value as Json;
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::metric::{KeyColumn, Metric};
use shared_model::time::{Interval, Millis};
use std::sync::Arc;
use std::time::Duration;

/// What one request may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most rows of one answer; also what `limit` may not exceed.
    pub max_rows: usize,
    /// Rows of an answer whose request names no limit.
    pub default_rows: usize,
    /// The most cells (groups by buckets, and items of a top-k) that one answer may hold in memory.
    pub max_cells: usize,
    /// The longest body in bytes.
    pub max_body: usize,
    /// The longest that a query may take.
    pub time_limit: Duration,
    /// How many groups are read from Redis at once.
    pub redis_reads: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_rows: 100_000,
            default_rows: 10_000,
            max_cells: 1_000_000,
            max_body: 1 << 20,
            time_limit: Duration::from_secs(30),
            redis_reads: 32,
        }
    }
}

/// The most metrics of one query.
pub(super) const MAX_METRICS: usize = 20;
/// The most filters, and the most sort keys.
pub(super) const MAX_FILTERS: usize = 50;
/// The most values of one filter.
pub(super) const MAX_VALUES: usize = 1_000;
/// The longest text of a value in bytes.
pub(crate) const MAX_TEXT: usize = 8_192;

const FIELDS: [&str; 15] = [
    "metrics",
    "filters",
    "group_by",
    "from",
    "to",
    "time_range",
    "now",
    "granularity",
    "time_zone",
    "order",
    "limit",
    "offset",
    "k",
    "strict",
    "at_run",
];

/// The time that a query is about.
struct Time {
    zone: Tz,
    span: Interval,
    buckets: Buckets,
}

impl Query {
    /// Reads and validates a request's body; what it says relative to now is meant as of `now`, ms since 1970.
    ///
    /// # Errors
    /// [`ServeError::Body`] where it is no JSON object; [`ServeError::Invalid`] with every fault that it has.
    pub fn parse(body: &[u8], catalog: &Catalog, limits: &Limits, now: Millis) -> Result<Query, ServeError> {
        let json: Json = serde_json::from_slice(body).map_err(|error| ServeError::Body(error.to_string()))?;
        let Json::Object(request) = json else {
            return Err(ServeError::Body(
                "expected a JSON object with \"metrics\", \"from\" and \"to\"".into(),
            ));
        };
        let mut faults = Faults::default();
        let query = read(&Fields::new(&request, ""), catalog, limits, now, &mut faults);
        faults.or(query)
    }
}

fn read(
    request: &Fields<'_>,
    catalog: &Catalog,
    limits: &Limits,
    now: Millis,
    faults: &mut Faults,
) -> Option<Query> {
    request.refuse_unknown(&FIELDS, faults);
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
    let values: Vec<&str> = metrics.iter().map(|(name, _)| name.as_str()).collect();
    let order = order::order(request, &group_by, &values, ranked.is_some(), faults);
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
    let strict = request.flag("strict", faults);
    let at_run = request.count("at_run", faults).map(|run| run as i64);
    let columns =
        metrics.into_iter().map(|(name, metric)| column(name, metric, &group_by, &filters)).collect();
    let k = k.or(ranked).unwrap_or(0);
    let Time { zone, span, buckets } = time?;
    Some(Query {
        columns,
        formula,
        group_by,
        filters,
        condition,
        zone,
        span,
        buckets,
        order,
        limit,
        offset,
        k,
        strict,
        at_run,
    })
}

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
    let gcd = |mut a: Millis, mut b: Millis| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    a / gcd(a, b) * b
}
