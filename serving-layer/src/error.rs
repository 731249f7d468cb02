//! What can go wrong with a request, and how a client hears of it: the only file that knows status codes.
//!
//! Every error leaves as one JSON shape, `{"error": {"code", "message", "details": [...]}}`; the text of an internal
//! error is logged, never sent.

use crate::batch_view::BatchError;
use crate::boards::BoardError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use std::time::Duration;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// Where it is: `filters[0].op`.
    pub field: String,
    /// What is wrong, with the value and the remedy.
    pub message: String,
    /// What could have stood there, where that is a short list.
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
    /// No key came, or none that is of use. Which of these is not said.
    #[error("a valid key is needed: authorization: Bearer <key>")]
    NoKey,
    /// The key may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// The key has asked more often than it may.
    #[error("this key may ask {per_second} times a second: ask again in {} ms", wait.as_millis().max(1))]
    Rate {
        /// How often it may ask.
        per_second: f64,
        /// When it may ask again.
        wait: Duration,
    },
    /// The path speaks WebSocket alone, and this is no request for it.
    #[error("this path speaks WebSocket (RFC 6455), version 13: {0}")]
    NoWebSocket(String),
    /// What a client sent over a WebSocket can't be read.
    #[error("the message can't be read: {0}")]
    Message(String),
    /// A WebSocket was asked for by a page from elsewhere.
    #[error(
        "origin {origin} is not this host ({host}): a page may open a WebSocket to where it came from alone; a proxy must pass on the Host header"
    )]
    ForeignOrigin {
        /// Where the page came from.
        origin: String,
        /// What the client calls this service.
        host: String,
    },
    /// As many subscribe as may, or to as many different things.
    #[error("{limit} {what}, as many as may be, are there: ask again later, or raise {option}")]
    Subscriptions {
        /// What there are so many of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// What raises the limit.
        option: &'static str,
    },
    /// A board can't be read or changed.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// Boards aren't kept.
    #[error(
        "boards are not kept here: start the serving layer with --access (TIDEMARK_ACCESS), or where no keys are needed with --boards (TIDEMARK_BOARDS)"
    )]
    NoBoards,
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
    /// The stable name of the error, for clients and counters.
    pub fn code(&self) -> Code {
        match self {
            ServeError::Invalid(faults) => match faults.iter().map(|fault| fault.kind).max() {
                Some(FaultKind::UnknownMetric) => Code::UnknownMetric,
                Some(FaultKind::Unanswerable) => Code::Unanswerable,
                Some(FaultKind::Malformed) | None => Code::InvalidRequest,
            },
            ServeError::Body(_) => Code::InvalidBody,
            ServeError::NoRoute(_) => Code::NotFound,
            ServeError::Method { .. } => Code::MethodNotAllowed,
            ServeError::Limit(_) => Code::LimitExceeded,
            ServeError::Run(_) => Code::RunNotAvailable,
            ServeError::AsOf(_) => Code::AsOfNotAvailable,
            ServeError::Incomplete(_) => Code::Incomplete,
            ServeError::Unavailable(_) => Code::Unavailable,
            ServeError::View { .. } => Code::ViewUnavailable,
            ServeError::Busy(_) | ServeError::Rate { .. } => Code::TooManyRequests,
            ServeError::NoKey => Code::NoKey,
            ServeError::Forbidden(_) => Code::Forbidden,
            ServeError::NoWebSocket(_) => Code::InvalidRequest,
            ServeError::Message(_) => Code::InvalidBody,
            ServeError::ForeignOrigin { .. } => Code::ForeignOrigin,
            ServeError::Subscriptions { .. } => Code::TooManySubscriptions,
            ServeError::Board(BoardError::Unavailable(_)) => Code::Unavailable,
            ServeError::Board(BoardError::Unknown(_)) => Code::UnknownBoard,
            ServeError::Board(BoardError::Conflict { .. }) => Code::VersionConflict,
            ServeError::Board(BoardError::NameTaken(_)) => Code::NameTaken,
            ServeError::Board(BoardError::Full) => Code::LimitExceeded,
            ServeError::NoBoards => Code::NoBoards,
            ServeError::TimeLimit(_) => Code::TimeLimit,
        }
    }

    fn details(&self) -> Vec<Detail> {
        let detail = |fault: &Fault| {
            let Fault { field, message, allowed, .. } = fault.clone();
            Detail { field: Some(field), message, allowed }
        };
        let reason = |reason: &String| Detail { field: None, message: reason.clone(), allowed: Vec::new() };
        match self {
            ServeError::Invalid(faults) => faults.iter().map(detail).collect(),
            ServeError::Incomplete(reasons) => reasons.iter().map(reason).collect(),
            ServeError::Board(BoardError::Conflict { there, .. }) => {
                let (message, allowed) = (self.to_string(), there.iter().map(i64::to_string).collect());
                vec![Detail { field: Some("version".to_owned()), message, allowed }]
            }
            _ => Vec::new(),
        }
    }

    /// What a client is told.
    pub fn reply(&self) -> ErrorReply {
        ErrorReply {
            error: ErrorBody { code: self.code(), message: self.to_string(), details: self.details() },
        }
    }

    /// The error with all its faults, in one line.
    pub(crate) fn line(&self) -> String {
        let body = self.reply().error;
        let faults = body.details.into_iter().map(|detail| match detail.field {
            Some(field) => format!("{field}: {}", detail.message),
            None => detail.message,
        });
        let faults: Vec<String> = faults.collect();
        let colon = if faults.is_empty() { "" } else { ": " };
        format!("{}{colon}{}", body.message, faults.join("; "))
    }

    /// Counts it, and logs what a client isn't told.
    pub fn note(&self) {
        if let ServeError::View { view, cause } = self {
            tracing::warn!(view, cause, "a view can't be read");
        }
        if let ServeError::Board(BoardError::Unavailable(cause)) = self {
            tracing::warn!(cause, "the boards can't be reached");
        }
        metrics::counter!("tidemark_serving_errors_total", "code" => self.code().name()).increment(1);
    }

    /// When to ask again, in seconds.
    fn retry_after(&self) -> Option<u64> {
        match self {
            ServeError::Busy(_) => Some(1),
            ServeError::Rate { wait, .. } => Some(wait.as_secs() + 1),
            ServeError::Subscriptions { .. } => Some(10),
            _ => None,
        }
    }
}

/// What every error is sent as.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorReply {
    /// The error.
    pub error: ErrorBody,
}

/// An error, for programs and for people.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// Its stable name.
    pub code: Code,
    /// What is wrong, and the remedy.
    pub message: String,
    /// Every fault of the request, or every reason why an answer would be incomplete.
    pub details: Vec<Detail>,
}

/// One fault, or one reason.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Detail {
    /// Where the fault is: `filters[0].op`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, with the value and the remedy.
    pub message: String,
    /// What could have stood there, where that is a short list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
}

/// The stable name of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not of the form that is documented; `details` names every fault.
    InvalidRequest,
    /// The body, or what stands in the address, can't be read at all.
    InvalidBody,
    /// The catalog has no metric or formula of this name; `allowed` has those that there are.
    UnknownMetric,
    /// Nothing is served at this path.
    NotFound,
    /// The path is served, but not with this method.
    MethodNotAllowed,
    /// Well formed, but no exact answer to it exists, or a limit of the request is passed; `details` says why.
    Unanswerable,
    /// The answer would pass a limit of the service, or there are as many boards of the key as may be.
    LimitExceeded,
    /// The run that `at_run` names is not there, or what it made is dropped.
    RunNotAvailable,
    /// The tidemark has passed the time that `as_of` names.
    AsOfNotAvailable,
    /// No valid key came with the request.
    NoKey,
    /// The key may not do this.
    Forbidden,
    /// As many requests as may be are being answered, or the key has asked as often as it may; `Retry-After` says when to ask again.
    TooManyRequests,
    /// As many subscribe as may; `Retry-After` says when to ask again.
    TooManySubscriptions,
    /// A page from elsewhere asks for a WebSocket.
    ForeignOrigin,
    /// The answer would be incomplete, and `strict` was asked for; `details` says why.
    Incomplete,
    /// There is no tidemark yet, or the keys or the boards can't be looked up.
    Unavailable,
    /// One of the views can't be read at the moment.
    ViewUnavailable,
    /// The request took longer than the service's limit.
    TimeLimit,
    /// There is no board of this name that the key may read, or change.
    UnknownBoard,
    /// The version that was to be changed is not the one that is there, which `allowed` has: none where there is no board.
    VersionConflict,
    /// There is another shared board of this name.
    NameTaken,
    /// The service was started without a place for boards.
    NoBoards,
}

impl Code {
    /// The HTTP status that it is sent with.
    pub fn status(self) -> StatusCode {
        match self {
            Code::InvalidRequest | Code::InvalidBody => StatusCode::BAD_REQUEST,
            Code::UnknownMetric | Code::NotFound | Code::UnknownBoard => StatusCode::NOT_FOUND,
            Code::VersionConflict | Code::NameTaken => StatusCode::CONFLICT,
            Code::NoBoards => StatusCode::NOT_IMPLEMENTED,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::Unanswerable | Code::LimitExceeded | Code::RunNotAvailable | Code::AsOfNotAvailable => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Code::NoKey => StatusCode::UNAUTHORIZED,
            Code::Forbidden | Code::ForeignOrigin => StatusCode::FORBIDDEN,
            Code::TooManyRequests | Code::TooManySubscriptions => StatusCode::TOO_MANY_REQUESTS,
            Code::Incomplete | Code::Unavailable | Code::ViewUnavailable | Code::TimeLimit => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// As it is written in replies.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
    }
}

impl IntoResponse for ServeError {
    fn into_response(self) -> Response {
        self.note();
        let mut response = (self.code().status(), Json(self.reply())).into_response();
        let headers = response.headers_mut();
        if let ServeError::NoKey = self {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tidemark\""));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// `200` where the service is ready, else `503`, with the reasons.
pub fn readiness(because: &[String]) -> Response {
    let status = if because.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: because.is_empty(), because: because.to_vec() })).into_response()
}

/// Whether the service is ready.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Readiness {
    /// Whether both views can be read, and there is a tidemark.
    pub ready: bool,
    /// Why not; empty where it is.
    pub because: Vec<String>,
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
            ServeError::Invalid(kinds.iter().map(|&kind| fault(kind)).collect()).code().status().as_u16()
        };
        assert_eq!(status(&[Unanswerable]), 422);
        assert_eq!(status(&[Unanswerable, UnknownMetric]), 404);
        assert_eq!(status(&[UnknownMetric, Malformed, Unanswerable]), 400);
    }

    #[test]
    fn an_internal_cause_is_not_sent() {
        let error = ServeError::View { view: "the batch view", cause: "password of bob is wrong".into() };
        assert!(!error.to_string().contains("bob"));
        assert_eq!(error.code().status().as_u16(), 503);
    }
}
