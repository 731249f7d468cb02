//! Push as server-sent events: for browsers' `EventSource`, `curl -N` and whatever reads lines.
//!
//! Each event is a frame that its hub wrote once; the body of an answer hands on the same bytes for all. It is asked for
//! more only when the connection has room.

use super::look::Look;
use super::{Push, Subscription};
use crate::access::Scoped;
use crate::error::ServeError;
use crate::http::QueryInAddress;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query as Parameters};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt as _};
use std::convert::Infallible;
use std::time::Duration;

/// The version that a client has.
pub(crate) const LAST: &str = "last-event-id";
/// Says to nginx that an answer isn't to be gathered.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How soon a browser comes back when the connection is lost.
const RETRY: Bytes = Bytes::from_static(b"retry: 1000\n\n");
/// A comment: a sign of life.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// `GET /api/v1/live/{name}/events`
pub(crate) async fn live(
    scoped: Scoped,
    Path(name): Path<String>,
    headers: HeaderMap,
    parameters: Result<Parameters<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ServeError> {
    let Parameters(parameters) = parameters.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    events(&scoped, Look::live(&scoped, &name, &parameters)?, &headers)
}

/// `GET /api/v1/query/events`
pub(crate) async fn query(
    scoped: Scoped,
    headers: HeaderMap,
    parameters: Result<Parameters<QueryInAddress>, QueryRejection>,
) -> Result<Response, ServeError> {
    let Parameters(asked) = parameters.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    let request = serde_json::from_str(&asked.q).map_err(|error| ServeError::Body(error.to_string()))?;
    events(&scoped, Look::query(&scoped, request).await?, &headers)
}

fn events(scoped: &Scoped, look: Look, headers: &HeaderMap) -> Result<Response, ServeError> {
    let last = headers.get(LAST).and_then(|last| last.to_str().ok());
    let subscription = Push::subscribe(scoped, look, last)?;
    let frames =
        stream::once(async { RETRY }).chain(frames(subscription, scoped.service.push.limits().heartbeat));
    let body = Body::from_stream(frames.map(Ok::<_, Infallible>));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (UNBUFFERED, HeaderValue::from_static("no")),
    ];
    Ok((headers, body).into_response())
}

/// A subscription's frames, and a sign of life after each silence.
fn frames(subscription: Subscription, silence: Duration) -> impl stream::Stream<Item = Bytes> {
    stream::unfold(subscription, move |mut subscription| async move {
        let frame = match tokio::time::timeout(silence, subscription.next()).await {
            Ok(event) => event?.frame,
            Err(_) => HEARTBEAT,
        };
        Some((frame, subscription))
    })
}
