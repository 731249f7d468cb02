//! The schemas of a request: one property for each field that the parser knows, by the parser's own lists and limits.
//!
//! Whatever they admit, the parser reads: what it may still refuse is the meaning (a name that the catalog doesn't have, a
//! date that isn't there, a span off the grain). Beyond them the parser takes three abbreviations, which no client needs:
//! one thing for a list of it, null for a field that is missing, and `value` and `values` for each other.

use crate::query::Limits;
use crate::query::form::{
    FACTS, IN_COMMON, MAX_FILTERS, MAX_METRICS, MAX_NAME, MAX_QUERIES, MAX_RETENTION, MAX_TEXT, MAX_VALUES,
    OF_FACTS, OF_QUERY, OF_REQUEST, OPS, PERIODS, RANGES,
};
use crate::table::Format;
use serde_json::{Map, Value as Json, json};
use shared_model::catalog::Catalog;

/// A reference to a schema of the document.
pub(super) fn of(name: &str) -> Json {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// All schemas of requests, by name.
pub(super) fn schemas(catalog: &Catalog, limits: &Limits) -> Map<String, Json> {
    let of_one = [&OF_QUERY[..], &OF_REQUEST].concat();
    let of_one: Vec<&str> = of_one.into_iter().filter(|name| *name != "queries").collect();
    let of_several = [&IN_COMMON[..], &OF_REQUEST].concat();
    let object = |names: &[&str]| {
        let properties: Map<String, Json> =
            names.iter().map(|name| ((*name).to_owned(), property(name, catalog, limits))).collect();
        json!({ "type": "object", "properties": properties, "additionalProperties": false,
                "dependentSchemas": { "time_range": { "properties": { "from": false, "to": false } },
                                      "rolling": { "properties": { "cumulative": { "const": false } } },
                                      "at_run": { "properties": { "as_of": false } } } })
    };
    let mut one = object(&of_one);
    one["description"] = json!("One query. Its span is `from` and `to`, or `time_range`.");
    one["required"] = json!(["metrics"]);
    spanned(&mut one);
    one["examples"] = json!([example(catalog)]);
    let mut several = object(&of_several);
    several["description"] = json!(
        "Several queries, all answered at one tidemark of the same records. `filters` hold for each of them beside its own, the \
         span and the time zone for those that name none."
    );
    several["required"] = json!(["queries"]);
    several["properties"]["format"] = json!({ "type": "string", "enum": ["json"],
        "description": "Several queries are answered as JSON alone." });
    let mut part = object(&OF_QUERY);
    part["description"] = json!("One of several queries.");
    part["required"] = json!(["metrics"]);
    let (usual, most) = FACTS;
    let mut facts = object(&OF_FACTS);
    facts["description"] =
        json!("The records of one metric. Their span is `from` and `to`, or `time_range`.");
    facts["required"] = json!(["metrics"]);
    facts["dependentSchemas"] = json!({ "time_range": { "properties": { "from": false, "to": false } } });
    spanned(&mut facts);
    facts["properties"]["metrics"] = json!({ "type": "array", "minItems": 1, "maxItems": 1,
        "items": text(MAX_NAME), "description": "The metric." });
    facts["properties"]["limit"] = json!({ "type": "integer", "minimum": 0, "maximum": most.min(limits.max_rows),
        "default": usual.min(limits.max_rows), "description": "The most records to return." });
    facts["properties"]["offset"]["description"] =
        json!("How many records to pass over; a run that takes in more of the span moves them.");
    let mut all = Map::new();
    all.insert("FactsRequest".to_owned(), facts);
    all.insert(
        "QueryBody".to_owned(),
        json!({ "description": "One query, or several.",
        "oneOf": [of("QueryRequest"), of("QueriesRequest")] }),
    );
    all.insert("QueryRequest".to_owned(), one);
    all.insert("QueriesRequest".to_owned(), several);
    all.insert("PartialQuery".to_owned(), part);
    all.insert("ComputedColumn".to_owned(), computed());
    all.insert("Order".to_owned(), order());
    all.insert("Time".to_owned(), time());
    let (about, column) = ("A test on a key column.", "The key column, or the item's column of a top-k.");
    all.insert("Filter".to_owned(), test("dimension", column, about));
    all.insert("FilterCondition".to_owned(), condition("FilterCondition", "Filter"));
    let (about, column) = (
        "A test on a value column of the answer.",
        "The value column; one of the period that is compared with is `previous.<name>`.",
    );
    all.insert("Having".to_owned(), test("column", column, about));
    all.insert("HavingCondition".to_owned(), condition("HavingCondition", "Having"));
    all
}

/// A query needs a span.
fn spanned(query: &mut Json) {
    query["if"] = json!({ "properties": { "time_range": false } });
    query["then"] = json!({ "required": ["from", "to"] });
}

/// A request that the catalog can answer.
pub(super) fn example(catalog: &Catalog) -> Json {
    let name = catalog.metrics.first().map_or("views", |metric| metric.name.as_str());
    let by: Vec<&str> = catalog.metrics.first().iter().flat_map(|m| &m.by).map(|c| c.name.as_str()).collect();
    json!({ "metrics": [name], "group_by": by, "granularity": "grain", "time_range": "today so far",
            "order": [{ "by": name, "desc": true }], "limit": 10 })
}

/// A field of a request. A name that isn't here has no description, which a test finds.
fn property(name: &str, catalog: &Catalog, limits: &Limits) -> Json {
    let mut property = match name {
        "metrics" => metrics(catalog),
        "group_by" => json!({ "type": "array", "items": text(MAX_NAME), "uniqueItems": true }),
        "filters" => list("FilterCondition"),
        "having" => list("HavingCondition"),
        "from" | "to" | "now" | "as_of" => of("Time"),
        "time_range" => json!({ "type": "string", "pattern": range(), "examples": RANGES }),
        "time_zone" => json!({ "type": "string", "default": "UTC", "examples": ["Europe/Berlin"] }),
        "granularity" => json!({ "type": "string", "default": "none", "pattern": granularity(),
                                 "examples": ["grain", "20m", "hour", "day", "month"] }),
        "rolling" => json!({ "type": "string", "pattern": length(), "examples": ["7 days", "month"] }),
        "fill" | "strict" | "cumulative" => json!({ "type": "boolean", "default": false }),
        "retention" => json!({ "type": "integer", "minimum": 1, "maximum": MAX_RETENTION }),
        "compare" => json!({ "type": "string", "enum": PERIODS.map(|(name, _)| name) }),
        "order" => json!({ "type": "array", "items": of("Order"), "maxItems": MAX_FILTERS }),
        "limit_by" => json!({ "type": "object", "properties": {
                "columns": { "type": "array", "items": text(MAX_NAME), "minItems": 1, "uniqueItems": true,
                    "description": "`bucket`, or columns of `group_by`." },
                "limit": { "type": "integer", "minimum": 1, "maximum": i64::MAX, "description": "How many rows." } },
            "required": ["columns", "limit"], "additionalProperties": false }),
        "limit" => json!({ "type": "integer", "minimum": 0, "maximum": limits.max_rows,
                           "default": limits.default_rows.min(limits.max_rows) }),
        "offset" => json!({ "type": "integer", "minimum": 0, "maximum": i64::MAX, "default": 0 }),
        "k" | "at_run" => json!({ "type": "integer", "minimum": 0, "maximum": i64::MAX }),
        "queries" => json!({ "type": "object", "additionalProperties": of("PartialQuery"),
                             "propertyNames": { "maxLength": MAX_NAME },
                             "minProperties": 1, "maxProperties": MAX_QUERIES }),
        "format" => json!({ "type": "string", "enum": Format::NAMES.map(|(name, _)| name) }),
        _ => json!({}),
    };
    if let Some(about) = about(name) {
        property["description"] = json!(about);
    }
    property
}

/// What a field means.
fn about(name: &str) -> Option<&'static str> {
    Some(match name {
        "metrics" => {
            "What is measured: names of metrics, or of one of the catalog's formulas; and formulas and shares of one's own of \
             their values. A top_k metric stands alone."
        }
        "group_by" => "Key columns that every metric has: any of them; none for one row a bucket.",
        "filters" => "Tests on key columns, all of which must be true, as SQL means it.",
        "from" => "The start of the span of event time, on a boundary of every metric's grain.",
        "to" => "The span's end, not included.",
        "time_range" => {
            "The span, counted from now, instead of `from` and `to`. `last 6 hours` ends with the grain's bucket that holds \
             the present, and is widened to whole ones."
        }
        "now" => "As of when `time_range` is counted; the present unless named.",
        "time_zone" => "An IANA name: by its clock and calendar the span is cut.",
        "granularity" => {
            "The width of buckets: `none` (or `total`) for one, `grain` for the metrics' own, a width, or a unit of the \
             zone's clock or calendar; weeks begin on Monday. A multiple of the grain."
        }
        "rolling" => {
            "Each bucket counts what lies in a window of this length, by the zone's clock, which ends with the bucket: \
             weekly active users by day."
        }
        "retention" => {
            "Of a metric of sessions: each row's value is a list of how many came in its bucket, and how many of them in each \
             of so many buckets behind it; null beyond the span."
        }
        "cumulative" => "Each bucket counts all from the span's start to the bucket's end.",
        "fill" => "Each key of the answer has a row in every bucket, with the values of nothing.",
        "compare" => "Each row has the values of this earlier period too, as `previous`.",
        "having" => "Tests on the rows' values, all of which must be true.",
        "order" => "What rows are sorted by; ties fall to bucket, key and rank, so that the order is total.",
        "limit_by" => {
            "How many rows are kept, in the order asked for, of those that are equal in some columns: the best of each \
             group."
        }
        "limit" => "The most rows to return.",
        "offset" => {
            "How many rows to pass over: pages of one answer, where all name the same `as_of` and `now`."
        }
        "k" => "How many items of a top_k; the catalog's number unless named.",
        "queries" => "The queries, each under a name of its own, by which it is answered.",
        "strict" => "An answer that isn't complete is an error.",
        "at_run" => {
            "The number of a run: its batch view alone answers, as that run left it, for as long as that is kept."
        }
        "as_of" => {
            "An ingest time: what was appended to the log from the epoch's boundary at or before it on is left out."
        }
        "format" => "The form of the answer; without it what `Accept` names.",
        _ => return None,
    })
}

fn text(longest: usize) -> Json {
    json!({ "type": "string", "maxLength": longest })
}

fn metrics(catalog: &Catalog) -> Json {
    let metrics = catalog.metrics.iter().map(|metric| metric.name.as_str());
    let names: Vec<&str> = metrics.chain(catalog.formulas.iter().map(|of| of.name.as_str())).collect();
    // Names are examples, no enum: a metric that is added breaks no client, and one that isn't there is named as such.
    json!({ "type": "array", "minItems": 1, "maxItems": MAX_METRICS, "uniqueItems": true,
            "items": { "anyOf": [{ "type": "string", "minLength": 1, "maxLength": MAX_NAME, "examples": names },
                                 of("ComputedColumn")] },
            "contains": { "type": "string" } })
}

fn list(of_each: &str) -> Json {
    json!({ "type": "array", "items": of(of_each) })
}

fn computed() -> Json {
    json!({ "type": "object", "description": "A column computed of the others' values: a formula, or a share.",
            "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": MAX_NAME, "description": "Its name in the answer." },
                "formula": { "type": "string", "minLength": 1,
                    "description": "An expression over the value columns, in the catalog's subset of SQL.",
                    "examples": ["cast(clicks as float) / views"] },
                "share_of": { "type": "string", "minLength": 1, "maxLength": MAX_NAME,
                    "description": "A count or sum of the query: its value beside its sum over all rows of the bucket." } },
            "required": ["name"], "additionalProperties": false,
            "oneOf": [{ "required": ["formula"] }, { "required": ["share_of"] }] })
}

fn order() -> Json {
    json!({ "type": "object", "description": "One sort key.",
            "properties": {
                "by": { "type": "string",
                    "description": "`bucket`, a column of `group_by`, a value column, or of a top-k `rank` or `item`." },
                "desc": { "type": "boolean", "default": false, "description": "The greatest first." } },
            "required": ["by"], "additionalProperties": false })
}

fn time() -> Json {
    json!({ "description": "RFC 3339; a date or time of the time zone (`2016-06-14`, `2016-06-14T04:30`); or milliseconds \
                            since 1970.",
            "anyOf": [{ "type": "string", "examples": ["2016-06-14T04:00:00Z", "2016-06-14", "2016-06-14T04:30"] },
                      { "type": "integer", "examples": [1_465_876_800_000_i64] }] })
}

/// A test. Which of `value` and `values` it needs depends on its operator.
fn test(column: &str, about_column: &str, about: &str) -> Json {
    let scalar = ["string", "integer", "number", "boolean"];
    let lists = json!({ "properties": { "op": { "enum": ["in", "between"] } }, "required": ["op"] });
    let unary = json!({ "properties": { "op": { "enum": ["is_null", "is_not_null"] } }, "required": ["op"] });
    let between = json!({ "properties": { "op": { "const": "between" } } });
    let mut properties = json!({
        "op": { "type": "string", "enum": OPS, "default": "=",
            "description": "The operator. In the pattern of `like`, `%` is any text, `_` any one character, and `\\` takes \
                            the next one literally." },
        "value": { "type": scalar, "maxLength": MAX_TEXT,
            "description": "What is compared with, of the column's type; not for lists and tests on NULL." },
        "values": { "type": "array", "items": { "type": scalar, "maxLength": MAX_TEXT }, "minItems": 1,
            "maxItems": MAX_VALUES, "description": "Of `in`: the values; of `between`: the two ends, both included." },
    });
    properties[column] = json!({ "type": "string", "description": about_column });
    json!({
        "type": "object", "description": about, "properties": properties, "required": [column],
        "additionalProperties": false,
        "if": lists,
        "then": { "required": ["values"], "properties": { "value": false }, "if": between,
                  "then": { "properties": { "values": { "minItems": 2, "maxItems": 2 } } } },
        "else": { "if": unary, "then": { "properties": { "value": false, "values": false } },
                  "else": { "required": ["value"], "properties": { "values": false } } },
    })
}

/// Tests joined by and, or and not.
fn condition(own: &str, test: &str) -> Json {
    let joined = |name: &str, inner: Json| {
        let properties: Map<String, Json> = [(name.to_owned(), inner)].into_iter().collect();
        json!({ "type": "object", "properties": properties, "required": [name], "additionalProperties": false })
    };
    let several = json!({ "type": "array", "items": of(own), "minItems": 1 });
    let about = format!("A test, or tests joined by and, or and not; at most {MAX_FILTERS} in all.");
    json!({ "description": about, "anyOf": [of(test), joined("and", several.clone()), joined("or", several),
                                            joined("not", of(own))] })
}

const NUMBER: &str = "[1-9][0-9]{0,5}|1000000";
const UNITS: &str = "second|minute|hour|day|week|month|quarter|year";

fn range() -> String {
    format!(
        "^(today|yesterday|today so far|(this|previous|last) ({UNITS})|this ({UNITS}) so far|last ({NUMBER}) ({UNITS})s?)$"
    )
}

/// A length of time.
fn length() -> String {
    format!("^(({NUMBER}) )?({UNITS})s?$")
}

fn granularity() -> String {
    format!("^(none|total|grain|{UNITS}|0*[1-9][0-9]*(ms|s|m|min|h|d|w))$")
}
