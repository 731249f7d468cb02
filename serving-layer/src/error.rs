//! What can go wrong with a request, and how a client hears of it: the only file that knows status codes.
//!
//! Every error leaves as one JSON shape, `{"error": {"code", "message", "details": [...]}}`; the text of an internal
//! error is logged, never sent.

use crate::batch_view::BatchError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use thiserror::Error;

/// What kind of fault a request has; the gravest one decides the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// Well formed, but no exact answer to it exists.
    Unanswerable,
    /// Names a metric that the catalog doesn't have.
    UnknownMetric,
    /// Not of the form that the API documents.
    Malformed,
}

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Its kind.
    #[serde(skip)]
    pub kind: FaultKind,
    /// Where it is: `filters[0].op`.
    pub field: String,
    /// What is wrong, with the value and the remedy.
    pub message: String,
    /// What could have stood there, where that is a short list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
}

/// Why a request got no answer.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The request has faults; all of them.
    #[error("the request has {} fault(s)", .0.len())]
    Invalid(Vec<Fault>),
    /// The body can't be read as a query.
    #[error("the request's body can't be read: {0}")]
    Body(String),
    /// Nothing is served at this path.
    #[error("nothing is served at {0}: see /api/v1/metrics, /api/v1/live/<live name>, /api/v1/query")]
    NoRoute(String),
    /// The path is served, but not with this method.
    #[error("method {method} is not served at {path}")]
    Method {
        /// The method used.
        method: String,
        /// The path.
        path: String,
    },
    /// The answer would pass a limit of the service.
    #[error("{0}")]
    Limit(String),
    /// A past run can't be answered as of any more.
    #[error("{0}")]
    Run(String),
    /// A past time can't be answered as of any more.
    #[error("{0}")]
    AsOf(String),
    /// `strict` was asked for, and the answer is incomplete.
    #[error("the answer would be incomplete, and strict was asked for")]
    Incomplete(Vec<String>),
    /// One of the views can't be reached, or holds nothing yet.
    #[error("{0}")]
    Unavailable(String),
    /// One of the views can't be reached; the cause is for the log only.
    #[error("{view} can't be read at the moment")]
    View {
        /// Which view.
        view: &'static str,
        /// The cause.
        cause: String,
    },
    /// As many requests as may be are being answered, and none of them ended in time.
    #[error(
        "{0} requests, as many as may be, are being answered: ask again later, ask several queries in one request, or raise --postgres-connections"
    )]
    Busy(usize),
    /// The time limit passed.
    #[error("the query took longer than the limit of {0} s: narrow its time span or its filters")]
    TimeLimit(u64),
}

impl From<BatchError> for ServeError {
    fn from(error: BatchError) -> ServeError {
        match error {
            BatchError::Unavailable(cause) => ServeError::View { view: "the batch view", cause },
            BatchError::Run(message) => ServeError::Run(message),
        }
    }
}

impl ServeError {
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            ServeError::Invalid(faults) => match faults.iter().map(|fault| fault.kind).max() {
                Some(FaultKind::UnknownMetric) => (StatusCode::NOT_FOUND, "unknown_metric"),
                Some(FaultKind::Unanswerable) => (StatusCode::UNPROCESSABLE_ENTITY, "unanswerable"),
                Some(FaultKind::Malformed) | None => (StatusCode::BAD_REQUEST, "invalid_request"),
            },
            ServeError::Body(_) => (StatusCode::BAD_REQUEST, "invalid_body"),
            ServeError::NoRoute(_) => (StatusCode::NOT_FOUND, "not_found"),
            ServeError::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            ServeError::Limit(_) => (StatusCode::UNPROCESSABLE_ENTITY, "limit_exceeded"),
            ServeError::Run(_) => (StatusCode::UNPROCESSABLE_ENTITY, "run_not_available"),
            ServeError::AsOf(_) => (StatusCode::UNPROCESSABLE_ENTITY, "as_of_not_available"),
            ServeError::Incomplete(_) => (StatusCode::SERVICE_UNAVAILABLE, "incomplete"),
            ServeError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ServeError::View { .. } => (StatusCode::SERVICE_UNAVAILABLE, "view_unavailable"),
            ServeError::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests"),
            ServeError::TimeLimit(_) => (StatusCode::SERVICE_UNAVAILABLE, "time_limit"),
        }
    }

    /// The stable name of the error, for clients and counters.
    pub fn code(&self) -> &'static str {
        self.status_and_code().1
    }

    fn details(&self) -> serde_json::Value {
        match self {
            ServeError::Invalid(faults) => json!(faults),
            ServeError::Incomplete(reasons) => {
                reasons.iter().map(|reason| json!({ "message": reason })).collect()
            }
            _ => json!([]),
        }
    }
}

impl IntoResponse for ServeError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        if let ServeError::View { view, cause } = &self {
            tracing::warn!(view, cause, "a view can't be read");
        }
        metrics::counter!("tidemark_serving_errors_total", "code" => code).increment(1);
        let body =
            json!({ "error": { "code": code, "message": self.to_string(), "details": self.details() } });
        let mut response = (status, Json(body)).into_response();
        if matches!(self, ServeError::Busy(_)) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// `200` where the service is ready, else `503`, with the reasons.
pub fn readiness(because: &[String]) -> Response {
    let status = if because.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": because.is_empty(), "because": because }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: FaultKind) -> Fault {
        Fault { kind, field: "metrics".into(), message: "wrong".into(), allowed: vec![] }
    }

    #[test]
    fn the_gravest_fault_decides_the_status() {
        use FaultKind::{Malformed, Unanswerable, UnknownMetric};
        let status = |kinds: &[FaultKind]| {
            ServeError::Invalid(kinds.iter().map(|&kind| fault(kind)).collect()).status_and_code().0.as_u16()
        };
        assert_eq!(status(&[Unanswerable]), 422);
        assert_eq!(status(&[Unanswerable, UnknownMetric]), 404);
        assert_eq!(status(&[UnknownMetric, Malformed, Unanswerable]), 400);
    }

    #[test]
    fn an_internal_cause_is_not_sent() {
        let error = ServeError::View { view: "the batch view", cause: "password of bob is wrong".into() };
        assert!(!error.to_string().contains("bob"));
        assert_eq!(error.status_and_code().0.as_u16(), 503);
    }
}
