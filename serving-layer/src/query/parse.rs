//! From a request's JSON to a [`Query`]: all faults are found and reported together.

mod filters;

pub(crate) use filters::type_name;

use super::buckets::{Buckets, Granularity, show_width};
use super::filter::Filter;
use super::{Column, Order, OrderBy, Part, Query};
use crate::error::{Fault, FaultKind, ServeError};
use chrono_tz::Tz;
use serde_json::{Map, Value as Json};
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::metric::{KeyColumn, Metric};
use shared_model::time::{DAY, Interval, Millis};
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
/// The longest name in bytes.
const MAX_NAME: usize = 200;
/// The longest text of a value in bytes.
pub(crate) const MAX_TEXT: usize = 8_192;
/// The most faults that are reported of one request.
pub(crate) const MAX_FAULTS: usize = 100;

const FIELDS: [&str; 13] = [
    "metrics",
    "filters",
    "group_by",
    "from",
    "to",
    "granularity",
    "time_zone",
    "order",
    "limit",
    "offset",
    "k",
    "strict",
    "at_run",
];

impl Query {
    /// Reads and validates a request's body.
    ///
    /// # Errors
    /// [`ServeError::Body`] where it is no JSON object; [`ServeError::Invalid`] with every fault that it has.
    pub fn parse(body: &[u8], catalog: &Catalog, limits: &Limits) -> Result<Query, ServeError> {
        let json: Json = serde_json::from_slice(body).map_err(|error| ServeError::Body(error.to_string()))?;
        let Json::Object(request) = json else {
            return Err(ServeError::Body(
                "expected a JSON object with \"metrics\", \"from\" and \"to\"".into(),
            ));
        };
        let mut faults = Faults(Vec::new());
        let query = read(&request, catalog, limits, &mut faults);
        match query {
            Some(query) if faults.0.is_empty() => Ok(query),
            _ => Err(ServeError::Invalid(faults.0)),
        }
    }
}

/// Collects faults.
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, kind: FaultKind, field: impl Into<String>, message: impl Into<String>) {
        self.with(kind, field, message, Vec::new());
    }

    fn with(
        &mut self,
        kind: FaultKind,
        field: impl Into<String>,
        message: impl Into<String>,
        allowed: Vec<String>,
    ) {
        if self.0.len() < MAX_FAULTS {
            self.0.push(Fault { kind, field: field.into(), message: message.into(), allowed });
        }
    }

    fn malformed(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(FaultKind::Malformed, field, message);
    }
}

fn read(
    request: &Map<String, Json>,
    catalog: &Catalog,
    limits: &Limits,
    faults: &mut Faults,
) -> Option<Query> {
    for name in request.keys().filter(|name| !FIELDS.contains(&name.as_str())) {
        let allowed = FIELDS.map(str::to_owned).to_vec();
        faults.with(FaultKind::Malformed, name, "unknown field", allowed);
    }
    let chosen = metrics(request, catalog, faults);
    let (formula, metrics) = chosen.unwrap_or_default();
    let group_by = group_by(request, &metrics, faults);
    let filters = filters::filters(request, &metrics, faults);
    let grain = metrics.iter().map(|(_, metric)| metric.grain.width()).fold(1, lcm);
    let span = span(request, grain, faults);
    let buckets = buckets(request, span, grain, faults);
    let ranked = metrics.first().and_then(|(_, metric)| match metric.aggregate {
        Aggregate::TopK { k } => Some(k),
        _ => None,
    });
    let names: Vec<&str> = metrics.iter().map(|(name, _)| name.as_str()).collect();
    let order = order(request, &group_by, &names, ranked.is_some(), faults);
    let limit = count(request, "limit", faults).unwrap_or(limits.default_rows.min(limits.max_rows));
    if limit > limits.max_rows {
        let message = format!("{limit} is more than the limit of {} rows: page by offset", limits.max_rows);
        faults.add(FaultKind::Unanswerable, "limit", message);
    }
    let offset = count(request, "offset", faults).unwrap_or(0);
    let k = count(request, "k", faults);
    if k.is_some() && ranked.is_none() && !metrics.is_empty() {
        faults.add(FaultKind::Unanswerable, "k", "only a top_k metric has a k");
    }
    let strict = flag(request, "strict", faults);
    let at_run = count(request, "at_run", faults).map(|run| run as i64);
    let columns =
        metrics.into_iter().map(|(name, metric)| column(name, metric, &group_by, &filters)).collect();
    let k = k.or(ranked).unwrap_or(0);
    let span = span?;
    Some(Query {
        columns,
        formula,
        group_by,
        filters,
        span,
        order,
        limit,
        offset,
        k,
        strict,
        at_run,
        buckets: buckets?,
    })
}

type Chosen = (Option<String>, Vec<(String, Arc<Metric>)>);

/// The value columns: metrics by name or live name, or one formula's.
fn metrics(request: &Map<String, Json>, catalog: &Catalog, faults: &mut Faults) -> Option<Chosen> {
    let names = strings(request, "metrics", faults).unwrap_or_default();
    if names.is_empty() {
        faults.malformed("metrics", "expected at least one metric's or formula's name");
        return None;
    }
    if names.len() > MAX_METRICS {
        let message = format!("{} are more than the limit of {MAX_METRICS}", names.len());
        faults.add(FaultKind::Unanswerable, "metrics", message);
        return None;
    }
    let mut chosen: Chosen = (None, Vec::new());
    for (i, name) in names.iter().enumerate() {
        let field = format!("metrics[{i}]");
        let metric = catalog.metric(name).or_else(|| catalog.live(name));
        match (metric, catalog.formula(name)) {
            _ if names[..i].contains(name) => faults.malformed(field, format!("{name} is named twice")),
            (Some(metric), _) if chosen.1.iter().any(|(name, _)| *name == metric.name) => {
                faults.malformed(field, format!("{} is named twice", metric.name));
            }
            (Some(metric), _) => chosen.1.push((metric.name.clone(), metric.clone())),
            (None, Some(_)) if names.len() > 1 => {
                faults.add(FaultKind::Unanswerable, field, format!("the formula {name} is queried alone"));
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
        faults.add(
            FaultKind::Unanswerable,
            "metrics",
            format!("the top_k metric {} is queried alone", metric.name),
        );
    }
    Some(chosen)
}

/// The key columns that all metrics have, with one type.
fn shared_columns(metrics: &[(String, Arc<Metric>)]) -> Vec<KeyColumn> {
    let Some(((_, first), others)) = metrics.split_first() else { return Vec::new() };
    let shared = |column: &&KeyColumn| others.iter().all(|(_, metric)| metric.by.contains(column));
    first.by.iter().filter(shared).cloned().collect()
}

fn group_by(
    request: &Map<String, Json>,
    metrics: &[(String, Arc<Metric>)],
    faults: &mut Faults,
) -> Vec<KeyColumn> {
    let shared = shared_columns(metrics);
    let mut columns: Vec<KeyColumn> = Vec::new();
    for (i, name) in strings(request, "group_by", faults).unwrap_or_default().into_iter().enumerate() {
        let field = format!("group_by[{i}]");
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

fn span(request: &Map<String, Json>, grain: Millis, faults: &mut Faults) -> Option<Interval> {
    let mut end = |name: &str| {
        let time = match request.get(name).map(time) {
            Some(Ok(time)) => time,
            Some(Err(message)) => {
                faults.malformed(name, message);
                return None;
            }
            None => {
                faults.malformed(name, "missing: a time in RFC 3339 or in milliseconds since 1970");
                return None;
            }
        };
        if time % grain != 0 {
            let (below, width) = (time.div_euclid(grain) * grain, show_width(grain));
            let message = format!(
                "{} is no multiple of the grain, {width}: the nearest are {} and {}",
                shared_model::time::show(time),
                shared_model::time::show(below),
                shared_model::time::show(below + grain)
            );
            faults.add(FaultKind::Unanswerable, name, message);
        }
        Some(time)
    };
    let (from, to) = (end("from"), end("to"));
    let (start, end) = (from?, to?);
    if start >= end {
        faults.malformed("to", "must be later than from, which is included; to is not");
        return None;
    }
    Some(Interval { start, end })
}

/// RFC 3339, a date (its midnight UTC), or milliseconds since 1970.
fn time(value: &Json) -> Result<Millis, String> {
    let parsed = match value {
        Json::Number(number) => number.as_i64(),
        Json::String(text) => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(at) => Some(at.timestamp_millis()),
            Err(_) => {
                text.parse::<chrono::NaiveDate>().ok().map(|date| i64::from(date.to_epoch_days()) * DAY)
            }
        },
        _ => None,
    };
    let years = -62_135_596_800_000..=253_402_300_800_000;
    let wanted = "2016-06-14T04:00:00Z, 2016-06-14, or milliseconds since 1970";
    parsed.filter(|time| years.contains(time)).ok_or_else(|| format!("{value} is no time: expected {wanted}"))
}

fn buckets(
    request: &Map<String, Json>,
    span: Option<Interval>,
    grain: Millis,
    faults: &mut Faults,
) -> Option<Buckets> {
    let zone = match request.get("time_zone") {
        None | Some(Json::Null) => Tz::UTC,
        Some(value) => match value.as_str().and_then(|name| name.parse().ok()) {
            Some(zone) => zone,
            None => {
                faults.malformed("time_zone", format!("{value} is no IANA time zone such as Europe/Berlin"));
                Tz::UTC
            }
        },
    };
    let granularity = match request.get("granularity") {
        None | Some(Json::Null) => Granularity::Total,
        Some(Json::String(text)) if text == "grain" => Granularity::Fixed(grain),
        Some(value) => match value.as_str().and_then(Granularity::parse) {
            Some(granularity) => granularity,
            None => {
                let message =
                    format!("{value} is no granularity: expected none, grain, 20m, 1h, day, week, month");
                faults.malformed("granularity", message);
                return None;
            }
        },
    };
    match Buckets::new(granularity, zone, span?, grain) {
        Ok(buckets) => Some(buckets),
        Err(message) => {
            faults.add(FaultKind::Unanswerable, "granularity", message);
            None
        }
    }
}

fn order(
    request: &Map<String, Json>,
    group_by: &[KeyColumn],
    values: &[&str],
    ranked: bool,
    faults: &mut Faults,
) -> Vec<Order> {
    let list = match request.get("order") {
        None | Some(Json::Null) => return Vec::new(),
        Some(Json::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    if list.len() > MAX_FILTERS {
        let message = format!("{} are more than the limit of {MAX_FILTERS}", list.len());
        faults.add(FaultKind::Unanswerable, "order", message);
        return Vec::new();
    }
    let mut allowed = vec!["bucket".to_owned()];
    allowed.extend(names(group_by));
    allowed.extend(values.iter().map(|name| (*name).to_owned()));
    allowed.extend(ranked.then_some(["rank", "item"].map(str::to_owned)).into_iter().flatten());
    let mut read = |(i, order): (usize, &Json)| {
        let field = format!("order[{i}]");
        let Some(by) = order.get("by").and_then(Json::as_str) else {
            faults.malformed(field, "expected {\"by\": column, \"desc\": true or false}");
            return None;
        };
        let desc = match order.get("desc") {
            None => false,
            Some(Json::Bool(desc)) => *desc,
            Some(_) => {
                faults.malformed(format!("{field}.desc"), "expected true or false");
                false
            }
        };
        let by_key = group_by.iter().position(|column| column.name == by).map(OrderBy::Key);
        let by_value = values.iter().position(|name| *name == by).map(OrderBy::Value);
        let found = by_key.or(by_value).or(match by {
            "bucket" => Some(OrderBy::Bucket),
            "rank" if ranked => Some(OrderBy::Rank),
            "item" if ranked => Some(OrderBy::Item),
            _ => None,
        });
        match found {
            Some(by) => Some(Order { by, desc }),
            None => {
                let message = format!("{by:?} is no column of the answer");
                faults.with(FaultKind::Unanswerable, format!("{field}.by"), message, allowed.clone());
                None
            }
        }
    };
    list.iter().enumerate().filter_map(&mut read).collect()
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

fn strings(request: &Map<String, Json>, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    let list = match request.get(name)? {
        Json::Null => return None,
        Json::Array(list) => list.iter().map(text).collect::<Option<Vec<_>>>(),
        one => text(one).map(|one| vec![one]),
    };
    if list.is_none() {
        faults.malformed(name, "expected a list of names");
    }
    if let Some(long) = list.iter().flatten().find(|one| one.len() > MAX_NAME) {
        faults.malformed(
            name,
            format!("a name of {} bytes is longer than the limit of {MAX_NAME}", long.len()),
        );
        return None;
    }
    list
}

fn count(request: &Map<String, Json>, name: &str, faults: &mut Faults) -> Option<usize> {
    let value = request.get(name).filter(|value| !value.is_null())?;
    let count = value.as_u64().filter(|count| i64::try_from(*count).is_ok());
    if count.is_none() {
        faults.malformed(name, format!("{value} is no whole number from 0"));
    }
    count.map(|count| count as usize)
}

fn flag(request: &Map<String, Json>, name: &str, faults: &mut Faults) -> bool {
    match request.get(name) {
        None | Some(Json::Null) => false,
        Some(Json::Bool(flag)) => *flag,
        Some(value) => {
            faults.malformed(name, format!("{value} is neither true nor false"));
            false
        }
    }
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
