//! The records behind a metric's value, from the facts of its streams.
//!
//! They are what the metric counts in a span, by its own filter and by the request's, of all that lies below the tidemark:
//! what came since is in no table yet. A row is a delivery; of an event that came twice there are two, of which the metric
//! counts one.

use crate::access::Scoped;
use crate::answer::{Views, no_tidemark};
use crate::batch_view::{AtTidemark, Fact, Opening};
use crate::coverage::Coverage;
use crate::error::ServeError;
use crate::http;
use crate::openapi::shapes;
use crate::query::{Query, Request, zone};
use crate::reply::{Envelope, Key, Plain};
use crate::telemetry;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value as JsonValue};
use shared_model::catalog::{Field, Stream};
use shared_model::event::{FieldType, Identity, Value};
use shared_model::expression::Expression;
use shared_model::metric::{KeyColumn, Metric};
use std::sync::Arc;

/// About as many bytes of records as a reply has at most; it then has fewer rows than it might, and says so.
const MAX_BYTES: usize = 32 << 20;

/// The records of one metric.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FactsReply {
    /// What it promises: `as_of` is how far the batch view reaches.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The span asked for, in event time.
    pub from: String,
    /// Its end, not included.
    pub to: String,
    /// By whose clock these times are shown.
    pub time_zone: &'static str,
    /// How many rows follow.
    pub row_count: usize,
    /// Whether there are more, which `offset` passes on to.
    pub more: bool,
    /// The records, stream by stream, by event time and then by their place in the log.
    pub rows: Vec<FactReply>,
}

/// A record: one delivery.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FactReply {
    /// Its stream.
    pub stream: String,
    /// Its event time.
    pub event_time: String,
    /// The metric's key that it is counted under, of a top-k with the item.
    #[schemars(with = "shapes::Key")]
    pub key: JsonValue,
    /// What it says, by the stream's fields; decimals as text.
    #[schemars(with = "shapes::Key")]
    pub fields: JsonValue,
    /// Which event it is, in hexadecimal digits: equal in all deliveries of one, which counts once.
    pub event: String,
    /// The topic that it was read from; of an import its own.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset there.
    pub offset: i64,
    /// When its producer says to have made it.
    pub produced_time: Option<String>,
    /// When the run that took it in was published.
    pub loaded_time: String,
}

/// `POST /api/v1/facts`
pub(crate) async fn read(
    scoped: Scoped,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<FactsReply>, ServeError> {
    let body = http::whole(&scoped, body)?;
    let service = &scoped.service;
    let views = &service.views;
    let work = async {
        let request = Request::facts(&body, &views.catalog, &views.limits, (service.clock)());
        let request = scoped.restricted(request)?;
        let query = &request.queries[0];
        // Who is let pass sees every row, so that nothing of the reply is veiled.
        scoped.administers(&query.columns[0].metric)?;
        Ok((records(views, query).await?.reply(views, query), request.strict))
    };
    let (reply, strict) = service.in_turn(work).await?;
    telemetry::answered("facts", reply.envelope.complete);
    if strict && !reply.envelope.complete {
        return Err(ServeError::Incomplete(reply.envelope.incomplete_because));
    }
    Ok(Json(reply))
}

/// A record, and the key that its metric counts it under.
struct Record {
    stream: Arc<Stream>,
    fact: Fact,
    key: Vec<Value>,
}

/// The records that were asked for, as they are found.
struct Records {
    /// How many to pass over yet.
    pass: usize,
    limit: usize,
    found: Vec<Record>,
    bytes: usize,
    more: bool,
    /// How many records of the streams were looked at.
    read: u64,
    at: AtTidemark,
    coverage: Coverage,
}

/// Looks for the records of a query's one metric.
async fn records(views: &Views, query: &Query) -> Result<Records, ServeError> {
    let catalog = &views.catalog;
    let column = &query.columns[0];
    let metric = &*column.metric;
    let mut snapshot = views.batch.snapshot(views.limits.time_limit).await?;
    let Opening { at, lost, .. } = snapshot.open(None, &[]).await?.ok_or_else(no_tidemark)?;
    let mut coverage = Coverage::default();
    coverage.reach_of_batch(catalog, &[metric], &at.tidemark);
    coverage.lost(catalog, &[metric], &lost);
    let (pass, limit) = (query.offset, query.limit);
    let mut records =
        Records { pass, limit, found: Vec::new(), bytes: 0, more: false, read: 0, at, coverage };
    for binding in &metric.bindings {
        let Some(stream) = catalog.stream(&binding.stream) else { continue };
        if !stream.facts {
            let why = format!("stream {} keeps no records (facts = true in the catalog)", stream.name);
            records.coverage.doubt(why);
            continue;
        }
        let mut each = |fact: Fact| {
            if records.more {
                return false;
            }
            records.read += 1;
            let value = |expression: &Expression| expression.value(&fact.values).into_owned();
            let mut key: Vec<Value> = binding.by.iter().map(value).collect();
            let item = binding.item.as_ref().map(value);
            if !binding.admits(&fact.values) || !query.admits(column, &key, item.as_ref()) {
                return true;
            }
            key.extend(item);
            records.take(Record { stream: stream.clone(), fact, key })
        };
        let lacking = snapshot.facts(stream, query.span, &mut each).await?;
        for day in lacking {
            let why = format!("stream {} has records that its facts lack", stream.name);
            records.coverage.doubt_of(why, day);
        }
    }
    snapshot.close();
    Ok(records)
}

impl Records {
    /// Takes one; whether it wants more.
    fn take(&mut self, record: Record) -> bool {
        if self.pass > 0 {
            self.pass -= 1;
            return true;
        }
        if self.found.len() == self.limit || self.bytes >= MAX_BYTES {
            self.more = true;
            return false;
        }
        let size = |value: &Value| if let Value::Str(text) = value { 32 + text.len() } else { 32 };
        self.bytes += record.fact.values.iter().chain(&record.key).map(size).sum::<usize>();
        self.found.push(record);
        true
    }

    fn reply(self, views: &Views, query: &Query) -> FactsReply {
        let metric: &Metric = &query.columns[0].metric;
        let mut envelope = Envelope::new(&views.catalog, &[metric], &self.at.tidemark, &self.coverage);
        envelope.run = self.at.run;
        envelope.parts.batch.rows = self.read;
        let show = |time| zone::show(query.zone, time);
        let columns: Vec<KeyColumn> = metric.key_columns().cloned().collect();
        let row = |Record { stream, fact, key }: Record| FactReply {
            event_time: show(fact.event_time),
            key: serde_json::to_value(Key(&columns, &key)).unwrap_or_default(),
            fields: fields(&stream, &fact.values),
            event: format!("{:032x}", Identity::of_record(&stream, &fact.tp, fact.offset, &fact.values).0),
            topic: fact.tp.topic.to_string(),
            partition: fact.tp.partition,
            offset: fact.offset,
            produced_time: fact.produced.map(show),
            loaded_time: show(fact.loaded),
            stream: stream.name.clone(),
        };
        FactsReply {
            envelope,
            from: show(query.span.start),
            to: show(query.span.end),
            time_zone: query.zone.name(),
            row_count: self.found.len(),
            more: self.more,
            rows: self.found.into_iter().map(row).collect(),
        }
    }
}

/// A record's fields by their names.
fn fields(stream: &Stream, values: &[Value]) -> JsonValue {
    let shown = |(field, value): (&Field, &Value)| {
        let shown = match (field.ty, value) {
            (FieldType::Decimal(scale), Value::Int(units)) => decimal(*units, scale).into(),
            (_, value) => serde_json::to_value(Plain(value)).unwrap_or_default(),
        };
        (field.name.clone(), shown)
    };
    stream.fields.iter().zip(values).map(shown).collect::<Map<_, _>>().into()
}

/// A number of units of 10^-scale, to the last digit.
fn decimal(units: i64, scale: u8) -> String {
    let (sign, digits) = (if units < 0 { "-" } else { "" }, units.unsigned_abs().to_string());
    let digits = format!("{digits:0>width$}", width = usize::from(scale) + 1);
    match digits.split_at(digits.len() - usize::from(scale)) {
        (whole, "") => format!("{sign}{whole}"),
        (whole, part) => format!("{sign}{whole}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn decimals_are_shown_to_the_last_digit() {
        for (units, scale, expected) in [
            (0, 0, "0"),
            (-7, 0, "-7"),
            (0, 2, "0.00"),
            (5, 2, "0.05"),
            (-5, 2, "-0.05"),
            (1_234, 2, "12.34"),
            (100, 3, "0.100"),
            (i64::MIN, 18, "-9.223372036854775808"),
            (i64::MAX, 20, "0.09223372036854775807"),
        ] {
            assert_eq!(decimal(units, scale), expected);
        }
    }
}
