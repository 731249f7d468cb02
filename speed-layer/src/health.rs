//! What keeps the service from being ready, and the small HTTP server that tells it.
//!
//! Each trouble has a name and a text; it is logged once when it comes, changes or goes.

use crate::telemetry;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The service's troubles, shared.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<Mutex<BTreeMap<String, String>>>);

impl Health {
    /// Sets or clears a trouble, and logs it when it changes.
    pub(crate) fn set(&self, name: &str, trouble: Option<String>) {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            Some(text) if troubles.get(name) != Some(&text) => {
                tracing::info!("not ready: {name}: {text}");
                troubles.insert(name.to_owned(), text);
            }
            None => {
                if troubles.remove(name).is_some() {
                    tracing::info!("{name}: ready");
                }
            }
            Some(_) => {}
        }
        metrics::gauge!("tidemark_speed_ready").set(if troubles.is_empty() { 1.0 } else { 0.0 });
    }

    /// Forgets a trouble whose cause is no longer ours.
    pub(crate) fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// All troubles, a line each; empty when ready.
    pub(crate) fn troubles(&self) -> String {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.iter().map(|(name, text)| format!("{name}: {text}\n")).collect()
    }
}

/// Serves `/healthz` (the process lives), `/readyz` (200, or 503 with the troubles) and `/metrics` until the stop.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|| async { telemetry::metrics().map(|m| m.render()).unwrap_or_default() }))
        .with_state(health);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    match health.troubles() {
        troubles if troubles.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
        troubles => (StatusCode::SERVICE_UNAVAILABLE, troubles),
    }
}
