//! What a client gets: the rows or the value, and beside them, in every answer, what it can and can't promise.

use crate::answer::{Answer, Views};
use crate::coverage::{Coverage, feeds};
use crate::finish::Row;
use crate::openapi::shapes;
use crate::query::{Query, Request, zone};
use schemars::JsonSchema;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use shared_model::aggregate::Finished;
use shared_model::catalog::Catalog;
use shared_model::event::Value;
use shared_model::metric::{KeyColumn, Metric};
use shared_model::tidemark::{LOG_LOST, Tidemark};
use shared_model::time::show;
use std::collections::{BTreeMap, BTreeSet};

/// What every answer says of itself.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Envelope {
    /// Nothing that was appended to the log before `as_of` is missing.
    pub complete: bool,
    /// Why it is not complete; empty where it is.
    pub incomplete_because: Vec<String>,
    /// Complete, and no event of the span is expected any more: the watermark has passed its end.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// How far the answer reaches, in ingest time; null where no partition is known.
    pub as_of: Option<String>,
    /// Of a live answer: the sliding window, in event time; its start is included, its end is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_start: Option<String>,
    /// See `window_start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_end: Option<String>,
    /// Where the batch view ends and the realtime view begins.
    pub tidemark: TidemarkReply,
    /// The run that made this tidemark.
    pub run: Option<i64>,
    /// The metrics, in the versions that were merged.
    pub metrics: Vec<MetricReply>,
    /// What came from where.
    pub parts: Parts,
    /// For each value column the relative error of its values; 0: exact; null: computed of values that aren't.
    pub error_bound: BTreeMap<String, Option<f64>>,
    /// For each stream, how many offsets back a repeated delivery is recognised before the batch run that covers it: less
    /// than the catalog says where the log no longer had that much when a worker began.
    pub dedup_horizon: BTreeMap<String, i64>,
}

/// A tidemark, for people.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TidemarkReply {
    /// Which one it is; each flip makes the next.
    pub generation: i64,
    /// The offset of the cut in each partition of the metrics' streams.
    pub cuts: BTreeMap<String, i64>,
    /// Partitions that stayed behind, each with the reason.
    pub held: BTreeMap<String, String>,
}

/// A metric in an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MetricReply {
    /// Its name.
    pub name: String,
    /// Hash of all that its values depend on.
    pub version: String,
    /// The unit of its values.
    pub unit: String,
}

/// What came from where.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Parts {
    /// From the batch view.
    pub batch: BatchReply,
    /// From the realtime view.
    pub realtime: RealtimeReply,
}

/// What came from the batch view.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct BatchReply {
    /// Rows merged (Postgres adds up what the answer doesn't tell apart).
    pub rows: u64,
    /// The runs that made the versions read.
    pub runs: BTreeSet<i64>,
    /// Days whose versions were merged with new records instead of recomputed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partial_days: Vec<String>,
}

/// What came from the realtime view.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RealtimeReply {
    /// Groups that reach back to the tidemark.
    pub groups: u64,
    /// Cells merged.
    pub cells: u64,
}

impl Envelope {
    /// The envelope of an answer to `metrics`.
    pub fn new(catalog: &Catalog, metrics: &[&Metric], tidemark: &Tidemark, coverage: &Coverage) -> Envelope {
        let cuts = tidemark.cuts.iter().filter(|(tp, _)| feeds(catalog, metrics, tp));
        let held = tidemark.held.iter().filter(|(tp, _)| feeds(catalog, metrics, tp));
        let lost = held.clone().filter(|(_, why)| why.starts_with(LOG_LOST));
        let mut reasons = coverage.reasons();
        reasons.extend(lost.map(|(tp, why)| format!("{tp}: {why}")));
        let mut versions = BTreeMap::new();
        let mut dedup_horizon = BTreeMap::new();
        for metric in metrics {
            let (name, unit) = (metric.name.clone(), metric.unit.clone());
            versions.insert(&metric.name, MetricReply { name, version: metric.version.to_string(), unit });
            for stream in catalog.streams_of(metric) {
                dedup_horizon.insert(stream.name.clone(), coverage.horizon(stream));
            }
        }
        Envelope {
            complete: reasons.is_empty(),
            incomplete_because: reasons,
            is_final: false,
            as_of: coverage.as_of().map(show),
            window_start: None,
            window_end: None,
            tidemark: TidemarkReply {
                generation: tidemark.generation,
                cuts: cuts.map(|(tp, cut)| (tp.to_string(), cut.offset)).collect(),
                held: held.map(|(tp, why)| (tp.to_string(), why.clone())).collect(),
            },
            run: None,
            metrics: versions.into_values().collect(),
            parts: Parts {
                batch: BatchReply::default(),
                realtime: RealtimeReply { groups: coverage.groups, cells: coverage.cells },
            },
            error_bound: BTreeMap::new(),
            dedup_horizon,
        }
    }
}

/// What the reply to a query says before its rows.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Head {
    /// What it promises.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The span answered, in event time.
    pub from: String,
    /// Its end, not included.
    pub to: String,
    /// By whose clock the span is cut, and these times are shown.
    pub time_zone: &'static str,
    /// The span that is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<SpanReply>,
    /// How many rows follow.
    pub row_count: usize,
    /// How many there are without limit and offset.
    pub total_rows: usize,
}

/// The reply to a query.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueryReply<'a> {
    /// What it says of them.
    #[serde(flatten)]
    pub head: Head,
    /// The rows.
    #[schemars(with = "Vec<shapes::Row>")]
    pub rows: RowsReply<'a>,
}

/// The reply to several queries: all read at one tidemark, of the same snapshot and the same groups.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueriesReply<'a> {
    /// Whether every answer is complete.
    pub complete: bool,
    /// The generation of the tidemark that all are given at.
    pub tidemark: i64,
    /// Each answer by its query's name.
    pub answers: BTreeMap<&'a str, QueryReply<'a>>,
}

/// The reply to a request, as JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply<'a> {
    /// To its one query.
    One(Option<Box<QueryReply<'a>>>),
    /// To its queries, by their names.
    Several(QueriesReply<'a>),
}

impl<'a> Reply<'a> {
    /// The reply to a request of answers, each with what is said of it.
    pub fn new(request: &'a Request, heads: Vec<Head>, answers: Vec<Answer>) -> Reply<'a> {
        let complete = heads.iter().all(|head| head.envelope.complete);
        let tidemark = answers.first().map_or(0, |answer| answer.at.tidemark.generation);
        let rows = request.queries.iter().zip(answers);
        let replies = heads.into_iter().zip(rows).map(|(head, (query, answer))| QueryReply {
            head,
            rows: RowsReply { query, rows: answer.rows.rows },
        });
        match &request.names {
            None => Reply::One(replies.into_iter().next().map(Box::new)),
            Some(names) => {
                let answers = names.iter().map(String::as_str).zip(replies).collect();
                Reply::Several(QueriesReply { complete, tidemark, answers })
            }
        }
    }
}

/// A span of event time.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SpanReply {
    /// Its start.
    pub from: String,
    /// Its end, not included.
    pub to: String,
}

/// Rows with their names.
#[derive(Debug)]
pub struct RowsReply<'a> {
    /// The query.
    pub query: &'a Query,
    /// Its rows.
    pub rows: Vec<Row>,
}

impl Head {
    /// What the reply to a query says of an answer, which keeps its rows.
    pub fn new(views: &Views, query: &Query, answer: &Answer) -> Head {
        let metrics: Vec<&Metric> = query.columns.iter().map(|column| &*column.metric).collect();
        let mut envelope = Envelope::new(&views.catalog, &metrics, &answer.at.tidemark, &answer.coverage);
        let watermark = answer.coverage.watermark(&views.catalog);
        envelope.is_final =
            envelope.complete && watermark.is_some_and(|watermark| watermark >= query.span.end);
        envelope.run = answer.at.run;
        envelope.parts.batch = BatchReply {
            rows: answer.batch.rows,
            runs: answer.batch.runs.clone(),
            partial_days: answer.batch.partial_days.iter().map(ToString::to_string).collect(),
        };
        let bounds = query.columns.iter().zip(&answer.rows.error_bounds);
        envelope.error_bound = bounds.map(|(column, bound)| (column.name.clone(), Some(*bound))).collect();
        for computed in &query.computed {
            let exact = |column: usize| answer.rows.error_bounds.get(column) == Some(&0.0);
            let bound = computed.columns().into_iter().all(exact).then_some(0.0);
            envelope.error_bound.insert(computed.name.clone(), bound);
        }
        Head {
            envelope,
            from: zone::show(query.zone, query.span.start),
            to: zone::show(query.zone, query.span.end),
            time_zone: query.zone.name(),
            compared: query.compared.as_ref().map(|compared| SpanReply {
                from: zone::show(query.zone, compared.query.span.start),
                to: zone::show(query.zone, compared.query.span.end),
            }),
            row_count: answer.rows.rows.len(),
            total_rows: answer.rows.total,
        }
    }
}

impl Serialize for RowsReply<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut rows = serializer.serialize_seq(Some(self.rows.len()))?;
        for row in &self.rows {
            rows.serialize_element(&RowReply { query: self.query, row })?;
        }
        rows.end()
    }
}

/// A row with its names.
pub struct RowReply<'a> {
    /// The query.
    pub query: &'a Query,
    /// Its row.
    pub row: &'a Row,
}

impl Serialize for RowReply<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RowReply { query, row } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("bucket", &zone::show(query.zone, row.bucket))?;
        map.serialize_entry("key", &Key(&query.group_by, &row.key))?;
        if let (Some((rank, item)), Some(column)) = (&row.ranked, &query.columns[0].metric.item) {
            map.serialize_entry("rank", rank)?;
            map.serialize_entry("item", &Key(std::slice::from_ref(column), std::slice::from_ref(item)))?;
        }
        map.serialize_entry("values", &Values(query, &row.values))?;
        if query.compared.is_some() {
            map.serialize_entry("previous", &Values(query, &row.previous))?;
        }
        map.end()
    }
}

/// Key columns with their values, as one JSON object.
pub struct Key<'a>(pub &'a [KeyColumn], pub &'a [Value]);

impl Serialize for Key<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(self.1).map(|(column, value)| (&column.name, Plain(value))))
    }
}

struct Values<'a>(&'a Query, &'a [Finished]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.names().zip(self.1))
    }
}

/// A value as plain JSON.
pub struct Plain<'a>(pub &'a Value);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_none(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) => serializer.serialize_i64(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Str(value) => serializer.serialize_str(value),
        }
    }
}

/// The reply to a live request.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LiveReply {
    /// The live name.
    pub live_name: String,
    /// The key that was asked for.
    #[schemars(with = "shapes::Key")]
    pub key: serde_json::Value,
    /// The value, where the metric is no top-k.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<shapes::Value>")]
    pub value: Option<Finished>,
    /// The ranked items of a top-k.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<RankedReply>>,
    /// What it promises.
    #[serde(flatten)]
    pub envelope: Envelope,
}

/// One ranked item.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RankedReply {
    /// From 1.
    pub rank: usize,
    /// The item.
    #[schemars(with = "shapes::Key")]
    pub item: serde_json::Value,
    /// How often it was counted.
    #[schemars(with = "shapes::Value")]
    pub value: Finished,
}
