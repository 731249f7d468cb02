//! The paths of the document: for each route what it takes and what it answers.
//!
//! A test holds them against the router's routes, and each error that is sent against those named here.

use super::request::{example, of};
use crate::error::Code;
use crate::query::type_name;
use axum::http::StatusCode;
use serde_json::{Map, Value as Json, json};
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::event::FieldType;
use shared_model::metric::{KeyColumn, Metric};

/// What every operation that reads the views may fail with.
const OF_VIEWS: [Code; 2] = [Code::ViewUnavailable, Code::TimeLimit];
/// What a query may fail with.
const OF_QUERIES: [Code; 12] = [
    Code::InvalidRequest,
    Code::InvalidBody,
    Code::UnknownMetric,
    Code::Unanswerable,
    Code::LimitExceeded,
    Code::RunNotAvailable,
    Code::AsOfNotAvailable,
    Code::TooManyRequests,
    Code::Incomplete,
    Code::Unavailable,
    Code::ViewUnavailable,
    Code::TimeLimit,
];

/// What is answered to whoever asks.
const WITHOUT_KEY: [&str; 4] = ["/healthz", "/readyz", "/", "/page/{file}"];
/// What everything else may fail with where keys are needed.
const OF_KEYS: [Code; 4] = [Code::NoKey, Code::Forbidden, Code::TooManyRequests, Code::Unavailable];

/// Says what an error means.
pub(super) type About<'a> = &'a dyn Fn(Code) -> String;

/// All paths.
pub(super) fn paths(catalog: &Catalog, about: About<'_>) -> Map<String, Json> {
    let mut paths = Map::new();
    let mut add = |path: &str, item: Json| paths.insert(path.to_owned(), item);
    add(
        "/api/v1/query",
        json!({
            "get": operation("getQuery", "queries", "Ask a query in the address: its answer can be kept",
                "For a client or a cache that asks again: with `If-None-Match` an answer that hasn't changed is not \
                 sent again (304), and of a query with `at_run` not even computed.",
                vec![query_in_address(catalog), parameter("IfNoneMatch")],
                None, answers(tagged(rows(), "A query's answer"), &OF_QUERIES, about)),
            "post": operation("query", "queries", "Ask one query, or several at once",
                "Metrics over a span of time, merged from both views.", vec![],
                Some(json!({ "required": true, "content": { "application/json": { "schema": of("QueryBody") } } })),
                answers(ok("A query's answer", rows()), &OF_QUERIES, about)),
        }),
    );
    add("/api/v1/facts", json!({ "post": facts(about) }));
    for (path, item) in super::boards::paths(about) {
        add(path, item);
    }
    let tag = || vec![parameter("IfNoneMatch")];
    let page = || json!({ "text/html": { "schema": { "type": "string" } } });
    let plain = || json!({ "text/plain": { "schema": { "type": "string" } } });
    let got = |id, tag, summary, about, parameters, responses| json!({ "get": operation(id, tag, summary, about, parameters, None, responses) });
    for metric in catalog.metrics.iter().filter(|metric| metric.window.is_some()) {
        let name = metric.live_name.as_deref().unwrap_or(&metric.name);
        add(&format!("/api/v1/live/{name}"), json!({ "get": live(metric, name, about) }));
        add(&format!("/api/v1/live/{name}/events"), json!({ "get": live_events(metric, name, about) }));
    }
    add("/api/v1/query/events", json!({ "get": query_events(catalog, about) }));
    add("/api/v1/subscribe", json!({ "get": subscribe(about) }));
    let catalog_reply = json!({ "application/json": { "schema": of("CatalogReply") } });
    let found = answers(tagged(catalog_reply, "The catalog"), &[], about);
    add(
        "/api/v1/metrics",
        got(
            "listMetrics",
            "catalog",
            "What can be asked for",
            "The catalog: metrics and formulas with their keys, grains and versions.",
            tag(),
            found,
        ),
    );
    let limit = json!({ "name": "limit", "in": "query", "description": "How many, the newest first; more than 1000 are 1000.",
                        "schema": { "type": "integer", "minimum": 0, "maximum": u16::MAX, "default": 20 } });
    let audits = json!({ "application/json": { "schema": of("Audits") } });
    let errors = [&OF_VIEWS[..], &[Code::InvalidBody]].concat();
    let found = answers(ok("The audited runs", audits), &errors, about);
    add(
        "/api/v1/audit",
        got(
            "listAudits",
            "health",
            "The newest audited runs",
            "What a reader would have had, against what was published.",
            vec![limit],
            found,
        ),
    );
    let document = json!({ "application/json": { "schema": { "type": "object" } } });
    let found = answers(tagged(document, "The document"), &[], about);
    add(
        "/api/v1/openapi.json",
        got("getOpenapi", "documentation", "This document", "OpenAPI 3.1.", tag(), found),
    );
    let found = answers(tagged(page(), "The page"), &[], about);
    add(
        "/api/docs",
        got("getDocs", "documentation", "This document as a page", "Without a script.", tag(), found),
    );
    let found = answers(tagged(page(), "The page"), &[], about);
    add("/", got("getPage", "page", "The page", "Charts and live counters, for people.", tag(), found));
    let any = json!({ "*/*": { "schema": { "type": "string" } } });
    let found = answers(tagged(any, "A script, a style or a licence"), &[Code::NotFound], about);
    let name = json!({ "name": "file", "in": "path", "required": true, "schema": { "type": "string" }, "description": "Its name." });
    let parameters = [vec![name], tag()].concat();
    add(
        "/page/{file}",
        got("getPageFile", "page", "A file of the page", "What the page loads.", parameters, found),
    );
    let found = answers(ok("It runs", plain()), &[], about);
    add("/healthz", got("getHealth", "health", "Whether the process runs", "Always `ok`.", vec![], found));
    let ready = json!({ "application/json": { "schema": of("Readiness") } });
    let mut found = answers(ok("It is ready", ready.clone()), &[], about);
    found["503"] = json!({ "description": "It isn't; `because` says why.", "content": ready, "headers": headers(&["XQueryId"]) });
    add(
        "/readyz",
        got(
            "getReadiness",
            "health",
            "Whether queries can be answered",
            "Both views can be read, there is a tidemark, and the keys are known.",
            vec![],
            found,
        ),
    );
    let found = answers(ok("The figures", plain()), &[], about);
    add(
        "/metrics",
        got("getFigures", "health", "The service's own figures", "For Prometheus.", vec![], found),
    );
    for (_, item) in paths.iter_mut().filter(|(path, _)| !WITHOUT_KEY.contains(&path.as_str())) {
        for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
            let responses = operation["responses"].take();
            operation["responses"] = answers(responses, &OF_KEYS, about);
        }
    }
    paths
}

/// A query in the address.
fn query_in_address(catalog: &Catalog) -> Json {
    json!({ "name": "q", "in": "query", "required": true, "description": "The request, as JSON: a `QueryBody`.",
            "schema": { "type": "string", "contentMediaType": "application/json", "contentSchema": of("QueryBody") },
            "example": example(catalog).to_string() })
}

/// The records behind a value.
fn facts(about: About<'_>) -> Json {
    let errors = [
        &OF_VIEWS[..],
        &[Code::InvalidRequest, Code::InvalidBody, Code::UnknownMetric, Code::Unanswerable],
        &[Code::TooManyRequests, Code::Incomplete, Code::Unavailable],
    ];
    let content = |name: &str| json!({ "application/json": { "schema": of(name) } });
    operation(
        "facts",
        "queries",
        "The records behind a metric's value",
        "What the metric counts in a span, record by record, as far as the batch view reaches: where a stream of it keeps its \
         records (`facts = true` in the catalog). A key must be an admin of the metric, since records show every field.",
        vec![],
        Some(json!({ "required": true, "content": content("FactsRequest") })),
        answers(ok("The records", content("FactsReply")), &errors.concat(), about),
    )
}

/// The live value of one metric.
fn live(metric: &Metric, name: &str, about: About<'_>) -> Json {
    let errors =
        [&OF_VIEWS[..], &[Code::InvalidRequest, Code::InvalidBody, Code::Incomplete, Code::Unavailable]]
            .concat();
    let reply = json!({ "application/json": { "schema": of("LiveReply") } });
    let text = format!("The sliding counter of metric `{}`, which may stand in the path too.", metric.name);
    operation(
        &format!("live_{name}"),
        "live",
        described(metric, name),
        &text,
        live_parameters(metric),
        None,
        answers(ok("The value now", reply), &errors, about),
    )
}

/// The live value of one metric, and its changes.
fn live_events(metric: &Metric, name: &str, about: About<'_>) -> Json {
    let mut parameters = live_parameters(metric);
    parameters.push(parameter("LastEventId"));
    operation(
        &format!("live_{name}_events"),
        "push",
        &format!("{name}, and its changes"),
        "The value, and each change of it.",
        parameters,
        None,
        events(&[Code::InvalidRequest, Code::InvalidBody, Code::TooManySubscriptions], about),
    )
}

/// A query's answer, and its changes.
fn query_events(catalog: &Catalog, about: About<'_>) -> Json {
    let errors = [
        Code::InvalidRequest,
        Code::InvalidBody,
        Code::UnknownMetric,
        Code::Unanswerable,
        Code::TooManyRequests,
        Code::TooManySubscriptions,
        Code::TimeLimit,
    ];
    operation(
        "queryEvents",
        "push",
        "Subscribe to a query in the address",
        "The answer in JSON, and each change of it. What the request says relative to now is understood anew each time.",
        vec![query_in_address(catalog), parameter("LastEventId")],
        None,
        events(&errors, about),
    )
}

/// The WebSocket.
fn subscribe(about: About<'_>) -> Json {
    let mut found = json!({ "101": { "description": "The connection speaks WebSocket from here on.", "headers": headers(&["XQueryId"]) } });
    found = answers(found, &[Code::InvalidRequest, Code::ForeignOrigin, Code::TooManySubscriptions], about);
    operation(
        "subscribe",
        "push",
        "Several subscriptions over one WebSocket",
        "Each message is a JSON object. The client sends `{\"subscribe\": {\"id\": \"a\", \"live\": \"<live name>\", \"key\": {...}, \
         \"k\", \"strict\", \"last\"}}` or `{\"subscribe\": {\"id\": \"a\", \"query\": {...}, \"last\"}}`, the query as a `QueryBody`, \
         `last` a version that it has; and `{\"unsubscribe\": \"a\"}`. It gets `{\"id\", \"event\", \"version\"}` with `reply` (event \
         `snapshot`), `patch` (`change`: a JSON Patch, RFC 6902, of the version before) or `error` (`error`, as in an \
         `ErrorReply`; without `version` where the message is refused), and `{\"id\", \"event\": \"unsubscribed\"}`.",
        vec![],
        None,
        found,
    )
}

/// A stream of events, and how it is refused.
fn events(errors: &[Code], about: About<'_>) -> Json {
    let stream = json!({ "text/event-stream": { "schema": of("Events") } });
    answers(ok("The events", stream), errors, about)
}

fn described<'a>(metric: &'a Metric, name: &'a str) -> &'a str {
    if metric.description.is_empty() { name } else { &metric.description }
}

/// Of a live value: its key columns, and what is wanted of it.
fn live_parameters(metric: &Metric) -> Vec<Json> {
    let mut parameters: Vec<Json> = metric.by.iter().map(key_parameter).collect();
    let own = |name: &str| !metric.by.iter().any(|column| column.name == name);
    if own("strict") {
        parameters.push(parameter("Strict"));
    }
    if let (Aggregate::TopK { k }, true) = (&metric.aggregate, own("k")) {
        parameters.push(json!({ "name": "k", "in": "query", "description": "How many items.",
            "schema": { "type": "integer", "minimum": 0, "default": k } }));
    }
    parameters
}

/// A key column as a parameter: text in any case, since NULL has to be written too.
fn key_parameter(column: &KeyColumn) -> Json {
    let schema = match column.ty {
        FieldType::Int => json!({ "type": "string", "pattern": r"^([+-]?[0-9]+|\\N)$" }),
        FieldType::Bool => json!({ "type": "string", "enum": ["true", "false", "\\N"] }),
        _ => json!({ "type": "string", "maxLength": crate::query::MAX_TEXT }),
    };
    let about = format!("The key: a column of type {}. NULL is written `\\N`.", type_name(column.ty));
    json!({ "name": column.name, "in": "query", "required": true, "description": about, "schema": schema })
}

fn parameter(name: &str) -> Json {
    json!({ "$ref": format!("#/components/parameters/{name}") })
}

pub(super) fn operation(
    id: &str,
    tag: &str,
    summary: &str,
    about: &str,
    mut parameters: Vec<Json>,
    body: Option<Json>,
    responses: Json,
) -> Json {
    parameters.push(parameter("XQueryId"));
    let mut operation = json!({ "operationId": id, "tags": [tag], "summary": summary, "description": about,
                                "parameters": parameters, "responses": responses });
    if let Some(body) = body {
        operation["requestBody"] = body;
    }
    operation
}

/// A query's answer in its formats.
fn rows() -> Json {
    json!({
        "application/json": { "schema": { "oneOf": [of("QueryReply"), of("QueriesReply")] } },
        "text/csv": { "schema": { "type": "string", "description":
            "RFC 4180 with a header: bucket, the key columns, of a top-k rank and item, the values (of a quantile metric one \
             column for each, `name.p50`), and with `compare` the previous ones. Texts are in quotes; NULL is empty, \
             without. The envelope's gist is in headers." } },
        "application/x-ndjson": { "schema": { "type": "string", "description":
            "One JSON document a line: the first is a `FirstLine`, each further one a `Row`." } },
    })
}

pub(super) fn headers(names: &[&str]) -> Json {
    let header =
        |name: &&str| ((*name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }));
    let named: Map<String, Json> = names.iter().map(header).collect();
    named.into_iter().map(|(name, of)| (header_name(&name), of)).collect::<Map<_, _>>().into()
}

/// `XQueryId` -> `X-Query-Id`.
fn header_name(component: &str) -> String {
    let mut name = String::new();
    for character in component.chars() {
        if character.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(character);
    }
    if name == "E-Tag" { "ETag".to_owned() } else { name }
}

/// A reply that comes.
pub(super) fn ok(about: &str, content: Json) -> Json {
    let mut names = vec!["XQueryId", "CacheControl"];
    if content.get("text/csv").is_some() {
        names.extend(["XComplete", "XIncompleteBecause", "XAsOf", "XTidemark", "XTotalRows"]);
    }
    json!({ "200": { "description": about, "headers": headers(&names), "content": content } })
}

/// A reply that comes with a tag, and is not sent again to who has it.
fn tagged(content: Json, about: &str) -> Json {
    let mut replies = ok(about, content);
    let tag = headers(&["ETag", "CacheControl", "XQueryId"]);
    replies["200"]["headers"]["ETag"] = tag["ETag"].clone();
    replies["304"] = json!({ "description": "It is what the client has.", "headers": tag });
    replies
}

/// What comes, and the errors, by their status.
pub(super) fn answers(mut replies: Json, errors: &[Code], about: About<'_>) -> Json {
    for code in errors {
        let status = code.status().as_u16().to_string();
        let line = format!("`{}`: {}", code.name(), about(*code));
        let mut names = vec!["XQueryId", "CacheControl"];
        names.extend((code.status() == StatusCode::TOO_MANY_REQUESTS).then_some("RetryAfter"));
        names.extend((*code == Code::NoKey).then_some("WwwAuthenticate"));
        let before = replies[&status]["description"].as_str().unwrap_or_default();
        if before.contains(&format!("`{}`: ", code.name())) {
            continue;
        }
        let before = if before.is_empty() { String::new() } else { format!("{before}\n\n") };
        replies[&status] = json!({ "description": format!("{before}{line}"), "headers": headers(&names),
                                   "content": { "application/json": { "schema": of("ErrorReply") } } });
    }
    replies
}

/// How a request names its key.
pub(super) fn security_schemes() -> Json {
    json!({ "key": { "type": "http", "scheme": "bearer", "bearerFormat": "tm_<id>_<secret>",
                     "description": "An API key. Where the service was started without keys none is needed." } })
}

/// Parameters that several operations have.
pub(super) fn parameters() -> Json {
    json!({
        "XQueryId": { "name": "x-query-id", "in": "header", "schema": { "type": "string", "pattern": "^[0-9A-Za-z._-]{1,64}$" },
            "description": "A name for the request, for the answer's header and the log; one of another form is replaced." },
        "IfNoneMatch": { "name": "if-none-match", "in": "header", "schema": { "type": "string" },
            "description": "The `ETag` of the answer that the client has, or several, with commas between." },
        "LastEventId": { "name": "last-event-id", "in": "header", "schema": { "type": "string" },
            "description": "The `id` of the version that the client has." },
        "Strict": { "name": "strict", "in": "query", "schema": { "type": "string", "enum": ["true", "false", ""] },
            "description": "`true`: an answer that isn't complete is an error." },
    })
}

/// Headers that several answers have.
pub(super) fn header_components() -> Json {
    let text = |about: &str| json!({ "description": about, "schema": { "type": "string" } });
    let whole = |about: &str| json!({ "description": about, "schema": { "type": "integer" } });
    json!({
        "XQueryId": text("The request's name: the client's own, or ours."),
        "CacheControl": text("`no-store`, or `no-cache` where an answer has an `ETag` to ask again with."),
        "ETag": text("A weak tag of the answer, whatever its compression."),
        "RetryAfter": whole("Seconds."),
        "WwwAuthenticate": text("`Bearer`."),
        "XComplete": { "description": "With CSV: `complete`.", "schema": { "type": "string", "enum": ["true", "false"] } },
        "XIncompleteBecause": text("With CSV: `incomplete_because`."),
        "XAsOf": text("With CSV: `as_of`."),
        "XTidemark": whole("With CSV: the tidemark's generation."),
        "XTotalRows": whole("With CSV: how many rows there are without limit and offset."),
    })
}
