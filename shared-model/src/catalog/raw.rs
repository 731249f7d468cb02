//! The catalog as it is written: shapes only, nothing resolved. The JSON Schema for editors is made from these types.
//!
//! What must be given is still optional here, so that a missing key is one fault among all others and not the only
//! one that is reported.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A Tidemark catalog: streams, metrics over them and formulas over metrics.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Tidemark catalog")]
pub struct RawCatalog {
    /// What all layers must agree on; fixed when the first tidemark is written.
    #[serde(default)]
    pub layout: RawLayout,
    /// The streams by name.
    #[serde(default)]
    pub streams: BTreeMap<String, RawStream>,
    /// The metrics by name.
    #[serde(default)]
    pub metrics: BTreeMap<String, RawMetric>,
    /// The formulas by name.
    #[serde(default)]
    pub formulas: BTreeMap<String, RawFormula>,
}

/// How the log is sliced and the realtime view laid out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Layout")]
pub struct RawLayout {
    /// Length of an epoch, 1s to 1d; default "10m".
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub epoch: Option<String>,
    /// Groups per partition in the realtime view, 1 to 1024; default 16.
    #[schemars(range(min = 1, max = 1024))]
    pub groups: Option<i64>,
    /// The pane, by which sliding windows slide; it divides a day; default "10s".
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub pane: Option<String>,
}

/// A stream: one Kafka topic of JSON records.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Stream")]
pub struct RawStream {
    /// The Kafka topic.
    #[schemars(required)]
    pub topic: Option<String>,
    /// Where the event time is.
    #[schemars(required)]
    pub event_time: Option<RawEventTime>,
    /// The fields that make two deliveries the same event, the event time among them; none: each delivery is one.
    pub identity: Option<Vec<String>>,
    /// The fields by name: "string", "int", "float", "bool", "decimal(2)"; or "append_time": an int that isn't in the
    /// record but is when the broker appended it, ms since 1970 (NULL for rows that were imported).
    #[schemars(required)]
    pub fields: Option<BTreeMap<String, String>>,
    /// Dimensions by name: SQL expressions over the fields.
    #[serde(default)]
    pub dimensions: BTreeMap<String, String>,
    /// The field that the producer keys (and so partitions) the records by.
    pub message_key: Option<String>,
    /// Believable event times: { past, future } around the append time, or { from, to } for a replay.
    pub bounds: Option<RawBounds>,
    /// How long behind the newest event time the watermark stays; default "1m".
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub lateness: Option<String>,
    /// How many offsets back a repeat is recognised; default 1000000.
    #[schemars(range(min = 0, max = 100_000_000))]
    pub dedup_horizon: Option<i64>,
    /// The longest record in bytes; default 1048576.
    #[schemars(range(min = 1, max = 67_108_864))]
    pub max_record_bytes: Option<i64>,
    /// The longest text of a field in bytes; default 4096.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_text_bytes: Option<i64>,
    /// Whether raw facts are kept in Postgres; default false.
    pub facts: Option<bool>,
}

/// The event-time field: an int, a count of `unit` since 1970, plus `offset`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EventTime")]
pub struct RawEventTime {
    /// The field.
    #[schemars(required)]
    pub field: Option<String>,
    /// Its unit; default "ms".
    pub unit: Option<RawUnit>,
    /// Added to the raw value, in the unit; default 0.
    pub offset: Option<i64>,
}

/// A unit of time.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Unit")]
pub enum RawUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
}

/// Believable event times; default { past = "30d", future = "5m" }.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Bounds")]
pub struct RawBounds {
    /// How far before a record's append time its event time may be; default "30d".
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub past: Option<String>,
    /// How far after it; default "5m".
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub future: Option<String>,
    /// The first date or time (UTC) of a replay: "2016-06-13" or "2016-06-13T04:00:00Z".
    pub from: Option<String>,
    /// The first date or time after the replay.
    pub to: Option<String>,
}

/// A metric: what is computed over which streams, by which key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Metric")]
pub struct RawMetric {
    /// The stream that feeds it; or use `streams`.
    pub stream: Option<String>,
    /// The streams that feed it, each with all fields that the metric names.
    pub streams: Option<Vec<String>>,
    /// The key: names of fields or dimensions; none: one value for all.
    #[serde(default)]
    pub by: Vec<String>,
    /// Only records for which this SQL expression is true count.
    pub filter: Option<String>,
    /// What is computed.
    #[schemars(required)]
    pub aggregate: Option<RawAggregate>,
    /// What sum, min, max, mean, distinct and quantile are taken of: an SQL expression.
    pub value: Option<String>,
    /// What a top_k counts: the name of a field or dimension.
    pub item: Option<String>,
    /// How many items a top_k keeps, 1 to 1000; default 10.
    #[schemars(range(min = 1, max = 1000))]
    pub k: Option<i64>,
    /// Which quantiles are served, each from 0 to 1; default [0.5, 0.95, 0.99].
    pub quantiles: Option<Vec<f64>>,
    /// Of sessions: the column of `by` that tells visitors apart; where it is NULL, it is nobody.
    pub of: Option<String>,
    /// Of sessions: the longest pause within one; default 30m.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub idle: Option<String>,
    /// The sliding window, a multiple of the pane; none: not served live.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub window: Option<String>,
    /// The bucket width of the views; it divides a day.
    #[schemars(required, regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub grain: Option<String>,
    /// Whether the sliding values are published as plain Redis keys; default false.
    pub publish: Option<bool>,
    /// What it means, for people.
    pub description: Option<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The unit of its values.
    pub unit: Option<String>,
    /// What it belongs to: API keys can be granted all metrics of a tag.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What a metric computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Aggregate")]
pub enum RawAggregate {
    /// How many records.
    Count,
    /// The sum of `value`, an int or decimal.
    Sum,
    /// The least `value`.
    Min,
    /// The greatest `value`.
    Max,
    /// The mean of `value`, an int or decimal.
    Mean,
    /// How many distinct `value`s.
    Distinct,
    /// The `k` items counted most often.
    TopK,
    /// `quantiles` of `value`, a number.
    Quantile,
    /// How many sessions there were `of` a column of `by`: of records with no pause longer than `idle` between them.
    Sessions,
}

/// A formula: metrics of one key and grain side by side; where one has no value, it is 0.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Formula")]
pub struct RawFormula {
    /// Column name = metric name.
    #[schemars(required)]
    pub columns: Option<BTreeMap<String, String>>,
    /// What it means, for people.
    pub description: Option<String>,
}

/// The JSON Schema of a catalog, pretty-printed, for editors.
pub(super) fn json_schema() -> String {
    // Draft 7 is what the TOML plug-ins of editors understand.
    let settings = schemars::generate::SchemaSettings::draft07();
    let settings = settings.with_transform(schemars::transform::RecursiveTransform(without_null));
    let schema = settings.into_generator().into_root_schema_for::<RawCatalog>();
    let text = serde_json::to_string_pretty(&schema).expect("a schema has only keys that JSON can have");
    text + "\n"
}

/// TOML has no null: an optional key is left out, so neither types nor defaults speak of it.
fn without_null(schema: &mut schemars::Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("default").is_some_and(|default| default.is_null() || default.is_object()) {
        object.remove("default");
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|ty| ty != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            object.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|ty| ty != "null"));
        if let [_] = &choices[..] {
            let only = object.remove("anyOf").unwrap_or_default();
            object.insert("allOf".to_owned(), only);
        }
    }
}
