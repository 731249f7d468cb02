//! What stands between a request and its handler where keys are needed: no handler of the API is reached without one, and
//! each is handed the service of the key that came, [`Scoped`], in place of the whole one.

use super::log::Entry;
use super::{Access, Holder};
use crate::error::{Code, ServeError};
use crate::query;
use crate::router::QueryId;
use crate::service::Service;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};
use shared_model::event::Value;
use shared_model::metric::Metric;
use std::sync::Arc;

/// The service as a request may use it.
#[derive(Clone)]
pub(crate) struct Scoped {
    /// With the catalog of what the key may read; without keys, of everything.
    pub(crate) service: Service,
    holder: Option<Arc<Holder>>,
}

impl FromRequestParts<Service> for Scoped {
    type Rejection = ServeError;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Scoped, ServeError> {
        match parts.extensions.get::<Scoped>() {
            Some(scoped) => Ok(scoped.clone()),
            None if service.access.is_none() => Ok(Scoped { service: service.clone(), holder: None }),
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
        "/healthz" | "/readyz" => Need::Nothing,
        "/metrics" => Need::AdminOfAll,
        _ => Need::Key,
    }
}

/// Lets a request pass that its key admits, and logs it.
pub(crate) async fn guard(State(service): State<Service>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let need = need(route.as_deref().unwrap_or_default());
    match &service.access {
        Some(access) if need != Need::Nothing => {
            let passed = pass(access, &service, request, next, &need, route).await;
            passed.unwrap_or_else(IntoResponse::into_response)
        }
        _ => next.run(request).await,
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
    let holder = access.admit(bearer(request.headers()), now)?;
    holder.count(now)?;
    let (mut request, asked) = asked(request, service.views.limits.max_body).await?;
    let id = request.extensions().get::<QueryId>().map(|QueryId(id)| id.clone()).unwrap_or_default();
    let pending = access.log.begin(Entry {
        at: now,
        query_id: id,
        key: holder.key.id.clone(),
        name: holder.key.name.clone(),
        method: request.method().to_string(),
        route: route.unwrap_or_else(|| "other".to_owned()),
        asked,
        status: 0,
        took: Default::default(),
    })?;
    let response = match need {
        Need::AdminOfAll if !holder.key.grants.administers_all() => {
            ServeError::Forbidden("this key is no admin of everything".to_owned()).into_response()
        }
        _ => {
            let scoped = Scoped { service: holder.service.clone(), holder: Some(holder) };
            request.extensions_mut().insert(scoped);
            next.run(request).await
        }
    };
    pending.end(response.status().as_u16());
    Ok(response)
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What a request asks: its body, which is read for it, or its path and parameters.
async fn asked(request: Request, max_body: usize) -> Result<(Request, String), ServeError> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST {
        let asked = parts.uri.path_and_query().map(|path| path.to_string()).unwrap_or_default();
        return Ok((Request::from_parts(parts, body), asked));
    }
    let read = to_bytes(body, max_body).await;
    let bytes = read.map_err(|error| ServeError::Body(format!("{error} (the limit is {max_body} bytes)")))?;
    let asked = String::from_utf8_lossy(&bytes).into_owned();
    Ok((Request::from_parts(parts, Body::from(bytes)), asked))
}

impl Scoped {
    /// Leaves out of a request's queries the rows that the key may not see.
    pub(crate) fn restrict(&self, request: &mut query::Request) {
        if let Some(holder) = &self.holder {
            request.queries.iter_mut().for_each(|query| holder.rows.restrict(query));
        }
    }

    /// Refuses a key of a metric that may not be seen.
    ///
    /// # Errors
    /// [`ServeError::Forbidden`]
    pub(crate) fn allow(&self, metric: &Metric, by: &[Value]) -> Result<(), ServeError> {
        match &self.holder {
            Some(holder) if !holder.rows.admits(metric, by) => {
                Err(ServeError::Forbidden("this key may not see that row".to_owned()))
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
