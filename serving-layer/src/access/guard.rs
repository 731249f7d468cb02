//! What stands between a request and its handler where keys are needed: no handler of the API is reached without one, and
//! each is handed the service of the key that came, [`Scoped`], in place of the whole one.

use super::log::{Entry, Pending};
use super::{Access, Holder};
use crate::caching::no_store;
use crate::error::{Code, ServeError};
use crate::query;
use crate::reply::Envelope;
use crate::router::QueryId;
use crate::service::Service;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};
use shared_model::event::Value;
use shared_model::metric::Metric;
use shared_model::time::Millis;
use std::sync::Arc;

/// The route of WebSockets.
pub(crate) const SUBSCRIBE: &str = "/api/v1/subscribe";

/// The service as a request may use it.
#[derive(Clone)]
pub(crate) struct Scoped {
    /// With the catalog of what the key may read; without keys, of everything.
    pub(crate) service: Arc<Service>,
    holder: Option<Arc<Holder>>,
    query_id: Arc<str>,
}

impl FromRequestParts<Arc<Service>> for Scoped {
    type Rejection = ServeError;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Scoped, ServeError> {
        match parts.extensions.get::<Scoped>() {
            Some(scoped) => Ok(scoped.clone()),
            None if service.access.is_none() => {
                Ok(Scoped { service: service.clone(), holder: None, query_id: Arc::default() })
            }
            None => Err(ServeError::NoKey),
        }
    }
}

/// What is needed for a path.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Key,
    AdminOfAll,
}

fn need(route: &str) -> Need {
    match route {
        // The page asks for its user's key itself.
        "/healthz" | "/readyz" | "/" | "/page/{file}" => Need::Nothing,
        "/metrics" => Need::AdminOfAll,
        _ => Need::Key,
    }
}

/// Lets a request pass that its key admits, and logs it. Of its response nothing may be stored that doesn't say so.
pub(crate) async fn guard(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let mut response = match &service.access {
        None => next.run(request).await,
        Some(access) => guarded(access, &service, request, next).await,
    };
    no_store(&mut response);
    response
}

async fn guarded(access: &Access, service: &Service, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    match need(route.as_deref().unwrap_or_default()) {
        Need::Nothing => next.run(request).await,
        need => {
            let passed = pass(access, service, request, next, &need, route).await;
            passed.unwrap_or_else(IntoResponse::into_response)
        }
    }
}

async fn pass(
    access: &Access,
    service: &Service,
    request: Request,
    next: Next,
    need: &Need,
    route: Option<String>,
) -> Result<Response, ServeError> {
    let now = (service.clock)();
    let holder = access.admit(bearer(request.headers(), route.as_deref()), now)?;
    holder.count(now)?;
    let id = request.extensions().get::<QueryId>().map(QueryId::as_str).unwrap_or_default();
    let scoped =
        Scoped { service: holder.service.clone(), holder: Some(holder.clone()), query_id: id.into() };
    let (method, route) = (request.method().as_str(), route.as_deref().unwrap_or("other"));
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let mut pending = access.log.begin(holder.entry(now, id, [method, route, path]))?;
    let read = with_body(request, service.views.limits.max_body, &mut pending).await;
    // A body may take its time, and the key's may be over meanwhile.
    let read = read.and_then(|request| if scoped.has_ended() { Err(ServeError::NoKey) } else { Ok(request) });
    let mut request = match read {
        Ok(request) => request,
        Err(error) => {
            pending.end(error.code().status().as_u16());
            return Err(error);
        }
    };
    let response = match need {
        Need::AdminOfAll if !holder.key.grants.administers_all() => {
            ServeError::Forbidden("this key is no admin of everything".to_owned()).into_response()
        }
        _ => {
            request.extensions_mut().insert(scoped);
            next.run(request).await
        }
    };
    pending.end(response.status().as_u16());
    Ok(response)
}

impl Holder {
    /// The entry of what was asked: by which method, on which route, and its text.
    fn entry(&self, at: Millis, query_id: &str, [method, route, asked]: [&str; 3]) -> Entry {
        Entry {
            at,
            query_id: query_id.to_owned(),
            key: self.key.id.clone(),
            name: self.key.name.clone(),
            ..Entry::default()
        }
        .with(method, route, asked)
    }
}

/// The token of a request: as `authorization`, or where that is missing, since browsers set no header of a WebSocket, among
/// its protocols, `bearer.<token>`.
fn bearer<'a>(headers: &'a HeaderMap, route: Option<&str>) -> Option<&'a str> {
    let Some(authorization) = headers.get(AUTHORIZATION) else {
        if route != Some(SUBSCRIBE) {
            return None;
        }
        let mut protocols = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?.split(',');
        return protocols.find_map(|protocol| protocol.trim().strip_prefix("bearer."));
    };
    let (scheme, token) = authorization.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A request with its body read, which is what it asks; of one without, its path and parameters are, and of one that puts
/// something somewhere, both.
async fn with_body(request: Request, max_body: usize, pending: &mut Pending) -> Result<Request, ServeError> {
    let (parts, body) = request.into_parts();
    if ![Method::POST, Method::PUT].contains(&parts.method) {
        return Ok(Request::from_parts(parts, body));
    }
    let read = to_bytes(body, max_body).await;
    let bytes = read.map_err(|error| ServeError::Body(format!("{error} (the limit is {max_body} bytes)")))?;
    if parts.method == Method::PUT {
        pending.puts(&bytes)
    } else {
        pending.asks(&bytes)
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

impl Scoped {
    /// The service as whoever opens a connection with a key's token may use it; without keys, as everyone may.
    ///
    /// # Errors
    /// See [`Access::admit`].
    #[cfg(feature = "sql")]
    pub(crate) fn connected(service: &Service, token: Option<&str>) -> Result<Scoped, ServeError> {
        let query_id = Arc::default();
        let Some(access) = &service.access else {
            return Ok(Scoped { service: Arc::new(service.clone()), holder: None, query_id });
        };
        let holder = access.admit(token, (service.clock)())?;
        Ok(Scoped { service: holder.service.clone(), holder: Some(holder), query_id })
    }

    /// A request as it was read, without the rows that the key may not see.
    ///
    /// # Errors
    /// What it couldn't be read for, see [`Scoped::refused`].
    pub(crate) fn restricted(
        &self,
        read: Result<query::Request, ServeError>,
    ) -> Result<query::Request, ServeError> {
        let mut request = read.map_err(|error| self.refused(error))?;
        if let Some(holder) = &self.holder {
            request.queries.iter_mut().for_each(|query| holder.key.grants.rows.restrict(query));
        }
        Ok(request)
    }

    /// Counts a message within a request that goes on, such as over a WebSocket.
    ///
    /// # Errors
    /// [`ServeError::Rate`]
    pub(crate) fn count(&self) -> Result<(), ServeError> {
        self.holder.as_ref().map_or(Ok(()), |holder| holder.count((self.service.clock)()))
    }

    /// Logs what is asked there, on a route.
    ///
    /// # Errors
    /// [`ServeError::Unavailable`] where it can't be logged, [`ServeError::NoKey`] where the key's time is over.
    pub(crate) fn asks(&self, method: &str, route: &str, asked: &str) -> Result<Pending, ServeError> {
        let (Some(access), Some(holder)) = (&self.service.access, &self.holder) else {
            return Ok(Pending::default());
        };
        if self.has_ended() {
            return Err(ServeError::NoKey);
        }
        let now = (self.service.clock)();
        access.log.begin(holder.entry(now, &self.query_id, [method, route, asked]))
    }

    /// Whom what is put belongs to: the id of the key; empty without keys.
    pub(crate) fn owner(&self) -> &str {
        self.holder.as_ref().map_or("", |holder| &holder.key.id)
    }

    /// Whether the key is an admin of everything; without keys everyone is.
    pub(crate) fn administers_all(&self) -> bool {
        self.holder.as_ref().is_none_or(|holder| holder.key.grants.administers_all())
    }

    /// What is the same for all who may see the same.
    pub(crate) fn scope(&self) -> &str {
        self.holder.as_ref().map_or("", |holder| &holder.scope)
    }

    /// Whether the key is of no use any more.
    pub(crate) fn has_ended(&self) -> bool {
        let is_over =
            |holder: &Arc<Holder>| holder.over.is_cancelled() || !holder.key.is_valid((self.service.clock)());
        self.holder.as_ref().is_some_and(is_over)
    }

    /// Leaves out of what is said beside an answer how much the log holds, which tells of rows that the key may not see.
    pub(crate) fn veil(&self, envelope: &mut Envelope) {
        if self.holder.as_ref().is_some_and(|holder| !holder.key.grants.rows.is_empty()) {
            envelope.tidemark.cuts.clear();
        }
    }

    /// When that is.
    pub(crate) async fn ended(&self) {
        match &self.holder {
            Some(holder) => holder.over.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Refuses a key of a metric that may not be seen.
    ///
    /// # Errors
    /// [`ServeError::Forbidden`]
    pub(crate) fn allow(&self, metric: &Metric, by: &[Value]) -> Result<(), ServeError> {
        match &self.holder {
            Some(holder) if !holder.key.grants.rows.admits(metric, by) => {
                Err(ServeError::Forbidden("this key may not see that row".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what only an admin of a metric may see: records show every field, not the metric's alone.
    ///
    /// # Errors
    /// [`ServeError::Forbidden`]
    pub(crate) fn administers(&self, metric: &Metric) -> Result<(), ServeError> {
        match &self.holder {
            Some(holder) if !holder.key.grants.administers(metric) => {
                Err(ServeError::Forbidden(format!("this key is no admin of metric {}", metric.name)))
            }
            _ => Ok(()),
        }
    }

    /// What a client is told that asked for a metric which its key doesn't know: the same whether or not there is one.
    pub(crate) fn refused(&self, error: ServeError) -> ServeError {
        let restricted = self.holder.as_ref().is_some_and(|holder| {
            let grants = &holder.key.grants;
            !(grants.read.all || grants.admin.all) || !grants.rows.is_empty()
        });
        if restricted && error.code() == Code::UnknownMetric {
            let why = "this key may read no metric or formula of that name: /api/v1/metrics lists those that it may";
            return ServeError::Forbidden(why.to_owned());
        }
        error
    }

    /// Of audited runs what the key is an admin of: everything, or the parts about its metrics alone.
    ///
    /// # Errors
    /// [`ServeError::Forbidden`] where it is an admin of nothing.
    pub(crate) fn audits(&self, mut runs: Vec<Json>) -> Result<Vec<Json>, ServeError> {
        let Some(holder) = &self.holder else { return Ok(runs) };
        let grants = &holder.key.grants;
        if grants.administers_all() {
            return Ok(runs);
        }
        let catalog = &self.service.views.catalog;
        let metrics: Vec<&str> = catalog
            .metrics
            .iter()
            .filter(|metric| grants.administers(metric))
            .map(|metric| metric.name.as_str())
            .collect();
        if metrics.is_empty() {
            return Err(ServeError::Forbidden("this key is an admin of no metric".to_owned()));
        }
        for run in &mut runs {
            let mut own = run["audit"]["metrics"].take();
            if let Some(all) = own.as_object_mut() {
                all.retain(|name, _| metrics.contains(&name.as_str()));
            }
            run["audit"] = json!({ "metrics": own });
        }
        Ok(runs)
    }
}
