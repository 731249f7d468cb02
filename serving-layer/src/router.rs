//! Which path leads where, and what surrounds every request: an id, a span, the clock for its metrics.

use crate::push::{socket, sse};
use crate::service::Service;
use crate::{access, boards, documents, facts, http, page, telemetry};
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tower_http::compression::CompressionLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::timeout::RequestBodyTimeoutLayer;
use tracing::Instrument;

/// The header that names a request, in the answer and in the log. A client may set it.
pub const QUERY_ID: &str = "x-query-id";

/// The longest pause between two parts of a request's body.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// A request's name, for whoever needs it on the way.
#[derive(Debug, Clone)]
pub(crate) struct QueryId(HeaderValue);

impl QueryId {
    /// It is plain text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// All routes of a service.
pub fn router(service: Service) -> Router {
    // Each request clones its way through the layers, some of them several times: the service is one pointer there, and
    // layers stand together, the outermost first, where the types of their bodies allow it.
    let service = Arc::new(service);
    let max_body = service.views.limits.max_body;
    let routes = Router::new()
        .route("/api/v1/metrics", get(documents::catalog))
        .route("/api/v1/live/{name}", get(http::live_value))
        .route("/api/v1/live/{name}/events", get(sse::live))
        .route("/api/v1/query", get(http::get_query).post(http::query))
        .route("/api/v1/query/events", get(sse::query))
        .route("/api/v1/subscribe", get(socket::subscribe))
        .route("/api/v1/facts", post(facts::read))
        .route("/api/v1/audit", get(http::audit))
        .route("/api/v1/boards", get(boards::list))
        .route("/api/v1/boards/{name}", get(boards::read).put(boards::write).delete(boards::delete))
        .route("/api/v1/openapi.json", get(documents::openapi))
        .route("/api/docs", get(documents::page))
        .route("/", get(page::index))
        .route("/page/{file}", get(page::file))
        .route("/healthz", get(http::healthz))
        .route("/readyz", get(http::readyz))
        .route("/metrics", get(http::prometheus))
        .method_not_allowed_fallback(http::no_method)
        .fallback(http::no_route)
        .layer((
            DefaultBodyLimit::max(max_body),
            middleware::from_fn_with_state(service.clone(), access::guard),
        ))
        .layer((CompressionLayer::new(), RequestBodyTimeoutLayer::new(BODY_WITHIN)));
    let routes = if service.origins.is_empty() { routes } else { routes.layer(cors(&service)) };
    routes.layer(middleware::from_fn(observe)).with_state(service)
}

/// Lets pages of the origins that are named ask, with a key that they have; `*` is any. Without keys they may ask, and not
/// change what is kept.
fn cors(service: &Service) -> CorsLayer {
    let origins = &service.origins;
    let mut methods = vec![Method::GET, Method::POST];
    if service.access.is_some() {
        methods.extend([Method::PUT, Method::DELETE]);
    }
    let origin = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().cloned()),
    };
    let (id, none_match) = (HeaderName::from_static(QUERY_ID), header::IF_NONE_MATCH);
    let last = HeaderName::from_static(sse::LAST);
    let shown = ["x-complete", "x-incomplete-because", "x-as-of", "x-tidemark", "x-total-rows"];
    let shown =
        shown.into_iter().map(HeaderName::from_static).chain([id.clone(), header::ETAG, header::RETRY_AFTER]);
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(methods)
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, none_match, id, last])
        .expose_headers(shown.collect::<Vec<_>>())
        .max_age(Duration::from_secs(3_600))
}

/// Names, times and logs a request.
async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = QueryId(query_id(&request));
    request.extensions_mut().insert(id.clone());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("other", MatchedPath::as_str);
    let span = tracing::info_span!("request", id = %id.as_str(), method = %request.method(), route);
    let mut response = next.run(request).instrument(span.clone()).await;
    let (took, status) = (started.elapsed(), response.status().as_u16());
    telemetry::request(route, status, took);
    span.in_scope(|| tracing::debug!(status, took_ms = took.as_millis() as u64, "answered"));
    response.headers_mut().insert(QUERY_ID, id.0);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The client's own id where it is short and plain, else the process's number and a counter.
fn query_id(request: &Request) -> HeaderValue {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // To ask for it is a system call each time.
    static PROCESS: LazyLock<u32> = LazyLock::new(std::process::id);
    let plain = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=64).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    match request.headers().get(QUERY_ID).filter(plain) {
        Some(id) => id.clone(),
        None => {
            let id = format!("{:x}-{:x}", *PROCESS, COUNTER.fetch_add(1, Ordering::Relaxed));
            HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("unnamed"))
        }
    }
}
