//! A whole request: one query, or several with what they have in common, and what concerns them all.

use super::fields::{Faults, Fields, MAX_NAME};
use super::span::time_zone;
use super::{OF_QUERY, read};
use crate::error::ServeError;
use crate::query::{Column, Limits, Query, range};
use crate::table::Format;
use serde_json::{Map, Value as Json};
use shared_model::catalog::Catalog;
use shared_model::time::Millis;

/// The fields of a query that several queries may have in common.
pub(crate) const IN_COMMON: [&str; 6] = ["filters", "from", "to", "time_range", "now", "time_zone"];
/// The fields of a request beside those of its query, or of what its queries have in common.
pub(crate) const OF_REQUEST: [&str; 5] = ["queries", "strict", "at_run", "as_of", "format"];
/// The fields of a request for records: those of a query that choose them.
pub(crate) const OF_FACTS: [&str; 10] =
    ["metrics", "filters", "from", "to", "time_range", "now", "time_zone", "limit", "offset", "strict"];
/// How many records a reply has unless asked otherwise, and at most.
pub(crate) const FACTS: (usize, usize) = (100, 10_000);
/// The most queries of one request.
pub(crate) const MAX_QUERIES: usize = 20;

/// A valid request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked; at least one.
    pub queries: Vec<Query>,
    /// The queries' names where there may be several; without them the request is its one query.
    pub names: Option<Vec<String>>,
    /// Whether an incomplete answer is an error.
    pub strict: bool,
    /// As of when.
    pub at: At,
    /// The form of the answer: what was asked for, else what the client accepts.
    pub format: Format,
}

/// As of when a request is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum At {
    /// As far as both views reach.
    #[default]
    Now,
    /// As a run left the batch view, by that alone.
    Run(i64),
    /// By what was appended to the log before a time, in ms since 1970: to be exact, before the boundary of an epoch at or
    /// before it.
    Time(Millis),
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
        Request::read(&json, accepted, catalog, limits, now)
    }

    /// Reads and validates a request for the records of one metric, as a query of it that is not grouped.
    ///
    /// # Errors
    /// See [`Request::parse`]; also where no stream of the metric keeps its records.
    pub fn facts(
        body: &[u8],
        catalog: &Catalog,
        limits: &Limits,
        now: Millis,
    ) -> Result<Request, ServeError> {
        let json: Json = serde_json::from_slice(body).map_err(|error| ServeError::Body(error.to_string()))?;
        let object = object(&json)?;
        let mut faults = Faults::default();
        let request = Fields::new(object, "");
        request.refuse_unknown(&OF_FACTS, &mut faults);
        let strict = request.flag("strict", &mut faults);
        let mut query = read(&request, catalog, limits, now, &mut faults);
        if let Some(query) = &mut query {
            let (usual, most) = FACTS;
            if !request.has("limit") {
                query.limit = usual.min(limits.max_rows);
            }
            if query.limit > most {
                let message =
                    format!("{} is more than the limit of {most} records: page by offset", query.limit);
                faults.unanswerable(request.at("limit"), message);
            }
            if query.columns.len() > 1 || !query.computed.is_empty() || query.formula.is_some() {
                faults.unanswerable(request.at("metrics"), "records are those of one metric: name it alone");
            }
            // A name that isn't known has a fault already.
            if let Some(Column { metric, .. }) = query.columns.first()
                && !catalog.keeps_records(metric)
            {
                let name = &metric.name;
                let message = format!(
                    "no stream of {name} keeps its records: say facts = true of it in the catalog, and they \
                     are kept from the next run on"
                );
                faults.unanswerable(request.at("metrics"), message);
            }
        }
        let (names, at, format) = (None, At::Now, Format::Json);
        faults.or(query.map(|query| Request { queries: vec![query], names, strict, at, format }))
    }

    /// The same of a request that is JSON already.
    ///
    /// # Errors
    /// See [`Request::parse`].
    pub fn read(
        json: &Json,
        accepted: Format,
        catalog: &Catalog,
        limits: &Limits,
        now: Millis,
    ) -> Result<Request, ServeError> {
        let object = object(json)?;
        let mut faults = Faults::default();
        let request = Fields::new(object, "");
        let strict = request.flag("strict", &mut faults);
        let at = at(&request, &mut faults);
        let wanted = request.word("format", &Format::NAMES, &mut faults);
        if wanted.is_some_and(|format| format != Format::Json) && request.has("queries") {
            faults.unanswerable("format", "several queries are answered as json alone");
        }
        let format = wanted.unwrap_or(if request.has("queries") { Format::Json } else { accepted });
        let read = |query: &Fields<'_>, faults: &mut Faults| read(query, catalog, limits, now, faults);
        let (queries, names) = match request.get("queries") {
            None => {
                request.refuse_unknown(&[&OF_QUERY[..], &OF_REQUEST].concat(), &mut faults);
                (read(&request, &mut faults).map(|query| vec![query]), None)
            }
            Some((at, queries)) => {
                request.refuse_unknown(&[&IN_COMMON[..], &OF_REQUEST].concat(), &mut faults);
                several(&at, queries, object, &read, &mut faults).unzip()
            }
        };
        faults.or(queries.map(|queries| Request { queries, names, strict, at, format }))
    }
}

fn object(json: &Json) -> Result<&Map<String, Json>, ServeError> {
    let expected = "expected a JSON object with \"metrics\", \"from\" and \"to\"";
    json.as_object().ok_or_else(|| ServeError::Body(expected.to_owned()))
}

fn at(request: &Fields<'_>, faults: &mut Faults) -> At {
    let run = request.count("at_run", faults).map(|run| At::Run(run as i64));
    let time = request.get("as_of").map(|(at, value)| (range::end(value, time_zone(request, faults)), at));
    match (run, time) {
        (Some(_), Some((_, at))) => faults.malformed(at, "give at_run or as_of, not both"),
        (None, Some((Ok(time), _))) => return At::Time(time),
        (None, Some((Err(message), at))) => faults.malformed(at, message),
        (run, None) => return run.unwrap_or_default(),
    }
    At::Now
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
        if name.len() > MAX_NAME {
            let message = format!("a name of {} bytes is longer than the limit of {MAX_NAME}", name.len());
            faults.malformed(at, message);
            return None;
        }
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
