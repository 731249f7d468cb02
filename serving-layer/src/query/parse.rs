//! From a request's JSON to a [`Query`]: all faults are found and reported together.

mod condition;
mod fields;
mod filters;
mod having;
mod measures;
mod order;
mod span;
mod test;

pub(crate) use fields::MAX_FAULTS;
pub(crate) use test::type_name;

use super::buckets::Buckets;
use super::compare::{Compared, Period};
use super::filter::Filter;
use super::range::Shift;
use super::{Column, OrderBy, Part, Query};
use crate::error::ServeError;
use crate::table::Format;
use chrono_tz::Tz;
use fields::{Faults, Fields};
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
    /// The longest that a request may take.
    pub time_limit: Duration,
    /// How many requests are answered at once.
    pub at_once: usize,
    /// How long a request waits for its turn.
    pub patience: Duration,
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
            at_once: 16,
            patience: Duration::from_secs(3),
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

/// The fields of a query.
const OF_QUERY: [&str; 16] = [
    "metrics",
    "group_by",
    "filters",
    "from",
    "to",
    "time_range",
    "now",
    "time_zone",
    "granularity",
    "fill",
    "compare",
    "having",
    "order",
    "limit",
    "offset",
    "k",
];
/// The fields of a query that several queries may have in common.
const IN_COMMON: [&str; 6] = ["filters", "from", "to", "time_range", "now", "time_zone"];
/// The fields of a request beside those of its query, or of what its queries have in common.
const OF_REQUEST: [&str; 4] = ["queries", "strict", "at_run", "format"];
/// The most queries of one request.
const MAX_QUERIES: usize = 20;

/// A valid request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked; at least one.
    pub queries: Vec<Query>,
    /// The queries' names where there may be several; without them the request is its one query.
    pub names: Option<Vec<String>>,
    /// Whether an incomplete answer is an error.
    pub strict: bool,
    /// The run whose batch view alone is asked for.
    pub at_run: Option<i64>,
    /// The form of the answer: what was asked for, else what the client accepts.
    pub format: Format,
}

/// The time that a query is about.
struct Time {
    zone: Tz,
    span: Interval,
    buckets: Buckets,
}

impl Request {
    /// Reads and validates a request's body, from a client that accepts a format; what it says relative to now is meant as
    /// of `now`, ms since 1970.
    ///
    /// # Errors
    /// [`ServeError::Body`] where it is no JSON object; [`ServeError::Invalid`] with every fault that it has.
    pub fn parse(
        body: &[u8],
        accepted: Format,
        catalog: &Catalog,
        limits: &Limits,
        now: Millis,
    ) -> Result<Request, ServeError> {
        let json: Json = serde_json::from_slice(body).map_err(|error| ServeError::Body(error.to_string()))?;
        let Json::Object(object) = json else {
            return Err(ServeError::Body(
                "expected a JSON object with \"metrics\", \"from\" and \"to\"".into(),
            ));
        };
        let mut faults = Faults::default();
        let request = Fields::new(&object, "");
        let strict = request.flag("strict", &mut faults);
        let at_run = request.count("at_run", &mut faults).map(|run| run as i64);
        let format = request.word("format", &Format::NAMES, &mut faults).unwrap_or(accepted);
        if format != Format::Json && request.has("queries") {
            faults.unanswerable("format", "several queries are answered as json alone");
        }
        let read = |query: &Fields<'_>, faults: &mut Faults| read(query, catalog, limits, now, faults);
        let (queries, names) = match request.get("queries") {
            None => {
                request.refuse_unknown(&[&OF_QUERY[..], &OF_REQUEST].concat(), &mut faults);
                (read(&request, &mut faults).map(|query| vec![query]), None)
            }
            Some((at, queries)) => {
                request.refuse_unknown(&[&IN_COMMON[..], &OF_REQUEST].concat(), &mut faults);
                several(&at, queries, &object, &read, &mut faults).unzip()
            }
        };
        faults.or(queries.map(|queries| Request { queries, names, strict, at_run, format }))
    }
}

/// Several queries, by their names.
fn several(
    at: &str,
    queries: &Json,
    common: &Map<String, Json>,
    read: &dyn Fn(&Fields<'_>, &mut Faults) -> Option<Query>,
    faults: &mut Faults,
) -> Option<(Vec<Query>, Vec<String>)> {
    let Some(queries) = queries.as_object().filter(|queries| !queries.is_empty()) else {
        faults.malformed(at, "expected an object of queries, each under a name of its own");
        return None;
    };
    if queries.len() > MAX_QUERIES {
        faults.unanswerable(at, format!("{} are more than the limit of {MAX_QUERIES}", queries.len()));
        return None;
    }
    let mut valid = Vec::new();
    for (name, query) in queries {
        let at = format!("{at}.{name}");
        let Json::Object(query) = query else {
            faults.malformed(at, "expected an object with \"metrics\"");
            continue;
        };
        let at = format!("{at}.");
        let query = Fields::new(query, &at).or_common(common);
        query.refuse_unknown(&OF_QUERY, faults);
        valid.extend(read(&query, faults));
    }
    Some((valid, queries.keys().cloned().collect()))
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
    let names = metrics.iter().map(|(name, _)| name.clone()).collect();
    let values = Values { names, compared: period.is_some() };
    let having = having::having(request, &values, &metrics, faults);
    let fill = request.flag("fill", faults);
    if fill && ranked.is_some() {
        faults.unanswerable(request.at("fill"), "a top_k has no items where there is nothing to rank");
    }
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
    let columns =
        metrics.into_iter().map(|(name, metric)| column(name, metric, &group_by, &filters)).collect();
    let k = k.or(ranked).unwrap_or(0);
    let Time { zone, span, buckets } = time?;
    let mut query = Query {
        columns,
        formula,
        group_by,
        filters,
        condition,
        zone,
        span,
        buckets,
        compared: None,
        fill,
        having,
        order,
        limit,
        offset,
        k,
    };
    if let Some(period) = period {
        match Compared::new(&query, period, grain) {
            Ok(compared) => query.compared = Some(Box::new(compared)),
            Err(message) => faults.unanswerable(request.at("compare"), message),
        }
    }
    Some(query)
}

/// What a query may be compared with.
const PERIODS: [(&str, Period); 6] = [
    ("previous_period", Period::Previous),
    ("previous_day", Period::Back(Shift::Wall(DAY))),
    ("previous_week", Period::Back(Shift::Wall(7 * DAY))),
    ("previous_month", Period::Back(Shift::Months(1))),
    ("previous_quarter", Period::Back(Shift::Months(3))),
    ("previous_year", Period::Back(Shift::Months(12))),
];

/// The value columns of an answer, by name.
struct Values {
    names: Vec<String>,
    /// Whether those of the period that is compared with are there too, as `previous.<name>`.
    compared: bool,
}

impl Values {
    fn find(&self, name: &str) -> Option<OrderBy> {
        let place = |name: &str| self.names.iter().position(|own| own == name);
        match name.strip_prefix(PREVIOUS).filter(|_| self.compared) {
            Some(name) => place(name).map(OrderBy::Previous),
            None => place(name).map(OrderBy::Value),
        }
    }

    /// The place of a value column among the request's.
    fn place(&self, column: OrderBy) -> Option<usize> {
        match column {
            OrderBy::Value(place) | OrderBy::Previous(place) => Some(place),
            _ => None,
        }
    }

    fn names(&self) -> Vec<String> {
        let previous = self.names.iter().filter(|_| self.compared).map(|name| format!("{PREVIOUS}{name}"));
        self.names.iter().cloned().chain(previous).collect()
    }
}

/// What comes before the name of a value column of the period that is compared with.
const PREVIOUS: &str = "previous.";

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
