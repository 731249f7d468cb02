//! The HTTP handlers: from a request to a call, from its result to JSON.
//!
//! No decision is made here but which call it is.

use crate::answer::{Answer, answer};
use crate::catalog_reply::CatalogReply;
use crate::error::{self, Fault, FaultKind, ServeError};
use crate::live::{LiveRequest, live};
use crate::query::Request;
use crate::reply::{Head, QueriesReply, QueryReply, RowsReply};
use crate::service::Service;
use crate::table::{Format, csv, ndjson};
use crate::telemetry;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use shared_model::metric::Metric;
use shared_model::time::SlidingWindow;
use std::collections::BTreeSet;

/// `GET /api/v1/metrics`
pub(crate) async fn catalog(State(service): State<Service>) -> Response {
    Json(CatalogReply::new(&service.views.catalog)).into_response()
}

/// `POST /api/v1/query`
pub(crate) async fn query(
    State(service): State<Service>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ServeError> {
    let views = &service.views;
    let body = body.map_err(|rejection| {
        ServeError::Body(format!("{} (the limit is {} bytes)", rejection.body_text(), views.limits.max_body))
    })?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let accepted = accept.map(Format::accepted).unwrap_or_default();
    // In turn from the start: to list the buckets of many queries takes its time and room too.
    let work = async {
        let request = Request::parse(&body, accepted, &views.catalog, &views.limits, (service.clock)())?;
        let answers = answer(views, &request.queries, request.at).await?;
        Ok((request, answers))
    };
    let (request, answers) = service.in_turn(work).await?;
    let heads: Vec<Head> =
        request.queries.iter().zip(&answers).map(|(query, answer)| Head::new(views, query, answer)).collect();
    let incomplete: BTreeSet<&String> =
        heads.iter().flat_map(|head| &head.envelope.incomplete_because).collect();
    telemetry::answered("query", incomplete.is_empty());
    if request.strict && !incomplete.is_empty() {
        return Err(ServeError::Incomplete(incomplete.into_iter().cloned().collect()));
    }
    Ok(reply(request, heads, answers))
}

/// The reply to a request, in its format.
fn reply(request: Request, heads: Vec<Head>, answers: Vec<Answer>) -> Response {
    let Request { mut queries, names, format, .. } = request;
    let complete = heads.iter().all(|head| head.envelope.complete);
    let tidemark = answers.first().map_or(0, |answer| answer.at.tidemark.generation);
    let mut rows = answers.into_iter().map(|answer| answer.rows.rows);
    if names.is_none()
        && format != Format::Json
        && let (Some(head), Some(rows), Some(query)) = (heads.first(), rows.next(), queries.pop())
    {
        return if format == Format::Csv { csv(head, query, rows) } else { ndjson(head, query, rows) };
    }
    let replies = heads.into_iter().zip(queries.iter().zip(rows));
    let mut replies =
        replies.map(|(head, (query, rows))| QueryReply { head, rows: RowsReply { query, rows } });
    match &names {
        None => Json(replies.next()).into_response(),
        Some(names) => {
            let answers = names.iter().map(String::as_str).zip(replies).collect();
            Json(QueriesReply { complete, tidemark, answers }).into_response()
        }
    }
}

/// `GET /api/v1/live/{name}`
pub(crate) async fn live_value(
    State(service): State<Service>,
    Path(name): Path<String>,
    parameters: Result<Parameters<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ServeError> {
    let Parameters(parameters) = parameters.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    let (metric, window) = live_metric(&service, &name)?;
    let request = LiveRequest::parse(metric, &parameters)?;
    let known = service.known();
    let reply = service.within_limit(live(&service.views, &known, metric, window, &request)).await?;
    telemetry::answered("live", reply.envelope.complete);
    if request.strict && !reply.envelope.complete {
        return Err(ServeError::Incomplete(reply.envelope.incomplete_because));
    }
    Ok(Json(reply).into_response())
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
    State(service): State<Service>,
    parameters: Result<Parameters<AuditRequest>, QueryRejection>,
) -> Result<Response, ServeError> {
    let Parameters(request) = parameters.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    let limit = i64::from(request.limit.min(1_000));
    let read = async { Ok(service.views.batch.audits(limit).await?) };
    Ok(Json(serde_json::json!({ "runs": service.within_limit(read).await? })).into_response())
}

/// The metric of a live name, or of its own name.
fn live_metric<'a>(service: &'a Service, name: &str) -> Result<(&'a Metric, SlidingWindow), ServeError> {
    let catalog = &service.views.catalog;
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
    Err(ServeError::Invalid(vec![Fault { kind, field: "name".to_owned(), message, allowed }]))
}

/// `GET /healthz`: the process runs.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: both views can be read, and there is a tidemark.
pub(crate) async fn readyz(State(service): State<Service>) -> Response {
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
