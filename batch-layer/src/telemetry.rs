//! Logs, metrics and health.

use crate::audit::Audit;
use crate::config::LogFormat;
use anyhow::{Context, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Starts the log on stderr; `RUST_LOG` chooses what is in it.
pub fn start_logging(format: LogFormat) {
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter()).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

/// Records what the audit of a move of the tidemark found.
pub(crate) fn audited(audit: &Audit) {
    let total = audit.total();
    metrics::counter!("tidemark_audit_runs_total", "status" => audit.status()).increment(1);
    metrics::counter!("tidemark_audit_cells_total").increment(total.cells);
    for (kind, cells) in [("missing", total.missing), ("extra", total.extra), ("different", total.different)]
    {
        metrics::counter!("tidemark_audit_wrong_cells_total", "kind" => kind).increment(cells);
    }
    metrics::counter!("tidemark_audit_healed_repeats_total").increment(audit.repeats.healed());
    metrics::counter!("tidemark_audit_boundaries_total").increment(audit.cuts.len() as u64);
    metrics::gauge!("tidemark_audit_alarm").set(if audit.alarm() { 1.0 } else { 0.0 });
    metrics::gauge!("tidemark_audit_not_audited").set(audit.not_audited.len() as f64);
    for (metric, figures) in &audit.metrics {
        metrics::gauge!("tidemark_audit_error", "metric" => metric.clone()).set(figures.error());
    }
}

/// What a scheduled program says of itself.
#[derive(Clone)]
pub(crate) struct Health {
    /// Whether the last run succeeded.
    ready: Arc<AtomicBool>,
    metrics: PrometheusHandle,
}

impl Health {
    /// Not ready until a run has succeeded.
    pub(crate) fn new() -> Health {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        // Tests may start several in one process; the first recorder stays.
        let _ = metrics::set_global_recorder(recorder);
        Health { ready: Arc::new(AtomicBool::new(false)), metrics }
    }

    /// Takes in how a run ended.
    pub(crate) fn ran(&self, seconds: f64, succeeded: bool, generation: Option<i64>, rows: i64) {
        self.ready.store(succeeded, Ordering::Relaxed);
        let result = if succeeded { "done" } else { "failed" };
        metrics::counter!("tidemark_batch_runs_total", "result" => result).increment(1);
        metrics::histogram!("tidemark_batch_run_seconds").record(seconds);
        metrics::counter!("tidemark_batch_rows_total").increment(rows.unsigned_abs());
        if let Some(generation) = generation {
            metrics::gauge!("tidemark_generation").set(generation as f64);
        }
    }

    /// Serves /healthz, /readyz and /metrics until it is told to stop.
    pub(crate) async fn serve(self, listen: SocketAddr, stop: CancellationToken) -> Result<()> {
        let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| {
            format!("--listen {listen}: the address can't be taken; port 0 takes a free one")
        })?;
        tracing::info!(address = %listener.local_addr()?, "health and metrics are served");
        let ready = self.ready.clone();
        let readiness = move || async move {
            match ready.load(Ordering::Relaxed) {
                true => (StatusCode::OK, "the last run succeeded\n"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "no run has succeeded since the last failure\n"),
            }
        };
        let metrics = self.metrics;
        let app = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readiness))
            .route("/metrics", get(move || async move { metrics.render() }));
        axum::serve(listener, app).with_graceful_shutdown(async move { stop.cancelled().await }).await?;
        Ok(())
    }
}
