//! The HTTP handlers: from a request to a call, from its result to JSON.
//!
//! No decision is made here but which call it is.

use crate::access::Scoped;
use crate::answer::{Answer, Begun, Views};
use crate::caching::{ANSWERS, Held, Tag};
use crate::error::{self, Fault, FaultKind, ServeError};
use crate::live::{LiveRequest, live};
use crate::query::Request;
use crate::reply::{Head, LiveReply, Reply};
use crate::service::Service;
use crate::table::{Format, csv, ndjson};
use crate::telemetry;
use axum::Json;
use axum::body::{Bytes, HttpBody as _, to_bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared_model::metric::Metric;
use shared_model::time::SlidingWindow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// `POST /api/v1/query`
pub(crate) async fn query(
    scoped: Scoped,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ServeError> {
    let body = whole(&scoped, body)?;
    match ask(&scoped, &headers, &body, None).await? {
        Asked::Unchanged(tag) => Ok(tag.unchanged()),
        Asked::Answered { request, heads, answers, .. } => Ok(reply(request, heads, answers)),
    }
}

/// A body that was read to its end.
///
/// # Errors
/// [`ServeError::Body`]
pub(crate) fn whole(scoped: &Scoped, body: Result<Bytes, BytesRejection>) -> Result<Bytes, ServeError> {
    body.map_err(|rejection| {
        let limit = scoped.service.views.limits.max_body;
        ServeError::Body(format!("{} (the limit is {limit} bytes)", rejection.body_text()))
    })
}

/// A query in the address.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueryInAddress {
    /// The request, as JSON.
    pub(crate) q: String,
}

/// `GET /api/v1/query`: the same, for who asks again whether the answer has changed.
pub(crate) async fn get_query(
    scoped: Scoped,
    headers: HeaderMap,
    parameters: Result<Parameters<QueryInAddress>, QueryRejection>,
) -> Result<Response, ServeError> {
    let Parameters(asked) = parameters.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    let held = Held::new(&headers);
    let mut response = match ask(&scoped, &headers, asked.q.as_bytes(), Some(&held)).await? {
        Asked::Unchanged(tag) => tag.unchanged(),
        Asked::Answered { request, heads, answers, tag: Some(tag) } => {
            tag.put_on(reply(request, heads, answers))
        }
        Asked::Answered { request, heads, answers, tag: None } => {
            tagged(&held, reply(request, heads, answers)).await?
        }
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// What came of a request for queries.
enum Asked {
    /// The client has the answer.
    Unchanged(Tag),
    /// The answer, and its tag where that is known before any row is.
    Answered { request: Request, heads: Vec<Head>, answers: Vec<Answer>, tag: Option<Tag> },
}

/// Answers a request's text; `held`, where a client may name answers that it has.
async fn ask(
    scoped: &Scoped,
    headers: &HeaderMap,
    text: &[u8],
    held: Option<&Held>,
) -> Result<Asked, ServeError> {
    let service = &scoped.service;
    let views = &service.views;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let accepted = accept.map(Format::accepted).unwrap_or_default();
    // In turn from the start: to list the buckets of many queries takes its time and room too.
    let work = async {
        let request = Request::parse(text, accepted, &views.catalog, &views.limits, (service.clock)());
        let request = scoped.restricted(request)?;
        let begun = Begun::new(views, &request.queries, request.at).await?;
        let inputs = held.and_then(|held| Some((held, begun.inputs()?)));
        let tag = inputs.map(|(held, inputs)| (held, tag_of_run(service, &request, &inputs)));
        match tag {
            Some((held, tag)) if held.has(&tag) => {
                begun.leave();
                Ok(Err(tag))
            }
            tag => {
                let answers = begun.answers().await?;
                Ok(Ok((request, answers, tag.map(|(_, tag)| tag))))
            }
        }
    };
    let (request, answers, tag) = match service.in_turn(work).await? {
        Ok(answered) => answered,
        Err(tag) => return Ok(Asked::Unchanged(tag)),
    };
    let heads = heads(scoped, &request, &answers)?;
    Ok(Asked::Answered { request, heads, answers, tag })
}

/// What is said of the answers to a request.
///
/// # Errors
/// [`ServeError::Incomplete`] where one is, and none may be.
pub(crate) fn heads(scoped: &Scoped, request: &Request, answers: &[Answer]) -> Result<Vec<Head>, ServeError> {
    let head = |(query, answer)| {
        let mut head = Head::new(&scoped.service.views, query, answer);
        scoped.veil(&mut head.envelope);
        head
    };
    let heads: Vec<Head> = request.queries.iter().zip(answers).map(head).collect();
    let incomplete: BTreeSet<&String> =
        heads.iter().flat_map(|head| &head.envelope.incomplete_because).collect();
    telemetry::answered("query", incomplete.is_empty());
    if request.strict && !incomplete.is_empty() {
        return Err(ServeError::Incomplete(incomplete.into_iter().cloned().collect()));
    }
    Ok(heads)
}

/// The tag of an answer as of a run: see [`crate::caching`].
fn tag_of_run(service: &Service, request: &Request, inputs: &dyn fmt::Debug) -> Tag {
    let Views { catalog, limits, .. } = &service.views;
    Tag::of_parts(&[&ANSWERS, &service.documents().openapi.tag, &catalog.streams, limits, request, inputs])
}

/// An answer with the tag of its bytes, unless the client has it. What is written while it is sent has none.
async fn tagged(held: &Held, response: Response) -> Result<Response, ServeError> {
    let (head, body) = response.into_parts();
    if body.size_hint().exact().is_none() {
        return Ok(Response::from_parts(head, body));
    }
    let read = to_bytes(body, usize::MAX).await;
    let bytes = read.map_err(|error| ServeError::Body(error.to_string()))?;
    let tag = Tag::of(&bytes);
    Ok(if held.has(&tag) { tag.unchanged() } else { tag.put_on(Response::from_parts(head, bytes.into())) })
}

/// The reply to a request, in its format.
fn reply(mut request: Request, heads: Vec<Head>, mut answers: Vec<Answer>) -> Response {
    if request.names.is_none()
        && request.format != Format::Json
        && let (Some(head), Some(answer), Some(query)) = (heads.first(), answers.pop(), request.queries.pop())
    {
        let rows = answer.rows.rows;
        return if request.format == Format::Csv {
            csv(head, query, rows)
        } else {
            ndjson(head, query, rows)
        };
    }
    json(&Reply::new(&request, heads, answers))
}

/// JSON, in as much room as most replies need.
fn json(reply: &impl Serialize) -> Response {
    let mut text = Vec::with_capacity(1_024);
    match serde_json::to_writer(&mut text, reply) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        // It says that it can't be written.
        Err(_) => Json(reply).into_response(),
    }
}

/// `GET /api/v1/live/{name}`
pub(crate) async fn live_value(
    scoped: Scoped,
    Path(name): Path<String>,
    parameters: Result<Parameters<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ServeError> {
    let Parameters(parameters) = parameters.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    let (metric, _) = live_metric(&scoped, &name)?;
    let request = LiveRequest::parse(metric, &parameters)?;
    Ok(json(&live_reply(&scoped, &name, &request).await?))
}

/// The value of one key of what is served live under a name.
///
/// # Errors
/// See [`live`]; [`ServeError::Incomplete`] where the answer is, and may not be; [`ServeError::Forbidden`].
pub(crate) async fn live_reply(
    scoped: &Scoped,
    name: &str,
    request: &LiveRequest,
) -> Result<LiveReply, ServeError> {
    let service = &scoped.service;
    let (metric, window) = live_metric(scoped, name)?;
    scoped.allow(metric, &request.by)?;
    let known = service.known();
    let mut reply = service.within_limit(live(&service.views, &known, metric, window, request)).await?;
    scoped.veil(&mut reply.envelope);
    telemetry::answered("live", reply.envelope.complete);
    if request.strict && !reply.envelope.complete {
        return Err(ServeError::Incomplete(reply.envelope.incomplete_because));
    }
    Ok(reply)
}

/// What may be asked of the audits.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditRequest {
    /// How many, the newest first.
    #[serde(default = "twenty")]
    limit: u16,
}

fn twenty() -> u16 {
    20
}

/// `GET /api/v1/audit`
pub(crate) async fn audit(
    scoped: Scoped,
    parameters: Result<Parameters<AuditRequest>, QueryRejection>,
) -> Result<Response, ServeError> {
    let Parameters(request) = parameters.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    let limit = i64::from(request.limit.min(1_000));
    let service = &scoped.service;
    let read = async { Ok(service.views.batch.audits(limit).await?) };
    let runs = scoped.audits(service.within_limit(read).await?)?;
    Ok(Json(serde_json::json!({ "runs": runs })).into_response())
}

/// The metric of a live name, or of its own name.
pub(crate) fn live_metric<'a>(
    scoped: &'a Scoped,
    name: &str,
) -> Result<(&'a Metric, SlidingWindow), ServeError> {
    let catalog = &scoped.service.views.catalog;
    let metric = catalog.live(name).or_else(|| catalog.metric(name));
    if let Some(metric) = metric
        && let Some(window) = metric.window
    {
        return Ok((metric, window));
    }
    let message = match metric {
        Some(_) => format!("metric {name} has no sliding window: ask /api/v1/query"),
        None => format!("no metric is served live under the name {name:?}"),
    };
    let allowed = catalog.metrics.iter().filter_map(|metric| metric.live_name.clone()).collect();
    let kind = FaultKind::UnknownMetric;
    let error = ServeError::Invalid(vec![Fault { kind, field: "name".to_owned(), message, allowed }]);
    Err(if metric.is_some() { error } else { scoped.refused(error) })
}

/// `GET /healthz`: the process runs.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: both views can be read, there is a tidemark, and the keys are known.
pub(crate) async fn readyz(State(service): State<Arc<Service>>) -> Response {
    error::readiness(&service.unready())
}

/// `GET /metrics`
pub(crate) async fn prometheus() -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry::render()).into_response()
}

/// Any other path.
pub(crate) async fn no_route(uri: Uri) -> ServeError {
    ServeError::NoRoute(uri.path().to_owned())
}

/// Any other method.
pub(crate) async fn no_method(method: Method, uri: Uri) -> ServeError {
    ServeError::Method { method: method.to_string(), path: uri.path().to_owned() }
}
