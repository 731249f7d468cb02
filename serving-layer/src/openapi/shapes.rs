//! The shapes of what replies write by hand, for their schemas: values, keys and rows.
//!
//! They are never made: a test holds every reply of the in-memory views against them.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Key columns with their values.
pub(crate) type Key = BTreeMap<String, KeyValue>;

/// The value of a key column.
pub(crate) struct KeyValue;

impl JsonSchema for KeyValue {
    fn schema_name() -> Cow<'static, str> {
        "KeyValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The value of a key column, of its type in the catalog; null is NULL. Whole numbers have \
                            up to 64 bits.",
            "type": ["string", "integer", "number", "boolean", "null"],
        })
    }
}

/// A metric's value.
pub(crate) struct Value;

impl JsonSchema for Value {
    fn schema_name() -> Cow<'static, str> {
        "Value".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A value: a number, a text or truth value (min, max, a formula) as text, the list of a \
                            quantile metric's quantiles in the catalog's order, or with `retention` of who came again, or null where there is none.",
            "type": ["integer", "number", "string", "array", "null"],
            "items": { "type": ["number", "null"] },
        })
    }
}

/// A row of an answer.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "a shape alone: rows are written by hand")]
pub(crate) struct Row {
    /// The start of its bucket, as the time zone's clock shows it.
    bucket: String,
    /// The values of the `group_by` columns, by name.
    key: Key,
    /// Of a top-k: the rank, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u64>,
    /// Of a top-k: the item, by its column's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<Key>,
    /// The values, by the names of metrics and formulas.
    values: BTreeMap<String, Value>,
    /// With `compare`: the same of the period that is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<BTreeMap<String, Value>>,
}

/// The first line of an NDJSON answer; each further one is a `Row`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "a shape alone: lines are written by hand")]
pub(crate) struct FirstLine {
    /// All that a JSON answer says beside its rows.
    envelope: crate::reply::Head,
}

/// A stream of events.
pub(crate) struct Events;

impl JsonSchema for Events {
    fn schema_name() -> Cow<'static, str> {
        "Events".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Server-sent events, the data of each in JSON: `snapshot`, the reply that plain HTTP gives; `change`, a \
                            JSON Patch (RFC 6902) of the version before; `error`, an `ErrorReply`, after which a snapshot \
                            comes once there is a reply again. The `id` names the version.",
            "type": "string",
        })
    }
}

/// The newest audited runs.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "a shape alone: the batch view hands over what was stored")]
pub(crate) struct Audits {
    /// The newest first.
    runs: Vec<AuditedRun>,
}

/// A run that was audited.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "a shape alone: the batch view hands over what was stored")]
pub(crate) struct AuditedRun {
    /// Its number.
    run: i64,
    /// Its kind, such as `run`.
    kind: String,
    /// How it ended: `done`, or `refused` by the audit.
    status: String,
    /// The tidemark's generation that it began at.
    generation_before: Option<i64>,
    /// The generation that it left in force.
    generation_after: Option<i64>,
    /// What the audit found: `status`, `alarm`, cells compared, missing, extra, different, healed, `error`, and by
    /// metric with examples.
    audit: BTreeMap<String, serde_json::Value>,
}
