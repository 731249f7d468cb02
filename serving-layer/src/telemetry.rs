//! What the service says of itself to operators: logs and Prometheus metrics.
//!
//! Metric names start with `tidemark_serving_`; no label holds a user's text.

use metrics::{Counter, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use shared_model::tidemark::Tidemark;
use std::collections::BTreeMap;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

static PROMETHEUS: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

const SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error; the level is read from `RUST_LOG`, `info` without it.
pub fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // Another one is there already: a test's.
    started.unwrap_or(());
}

/// Installs the recorder of this process, once. Where another program's recorder is there, it is left alone.
pub fn install() {
    PROMETHEUS.get_or_init(|| {
        let suffix = Matcher::Suffix("_seconds".to_owned());
        let recorder =
            PrometheusBuilder::new().set_buckets_for_metric(suffix, &SECONDS).ok()?.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).ok()?;
        Some(handle)
    });
}

/// The metrics in Prometheus' text form.
pub fn render() -> String {
    PROMETHEUS.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

/// Folds what has been recorded into the histograms; called now and then.
pub fn upkeep() {
    if let Some(handle) = PROMETHEUS.get().and_then(Option::as_ref) {
        handle.run_upkeep();
    }
}

/// What the recorder has for names with something beside them: there are few, and each is looked up in it once.
type Kept<Beside, Handles> = RwLock<BTreeMap<String, BTreeMap<Beside, Handles>>>;

/// Notes something with what is kept, or else with what is looked up, and kept from then on.
fn record<Beside: Ord, Handles>(
    kept: &Kept<Beside, Handles>,
    name: &str,
    beside: Beside,
    look_up: impl FnOnce() -> Handles,
    note: impl FnOnce(&Handles),
) {
    let known = kept.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(handles) = known.get(name).and_then(|of| of.get(&beside)) {
        return note(handles);
    }
    drop(known);
    // What is looked up before the recorder is there is of none, and would stay so.
    let is_there = PROMETHEUS.get().is_some();
    let handles = look_up();
    note(&handles);
    if is_there {
        let mut known = kept.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(name.to_owned()).or_default().insert(beside, handles);
    }
}

/// By route and status.
static REQUESTS: Kept<u16, (Counter, Histogram)> = RwLock::new(BTreeMap::new());

/// Records one HTTP request.
pub fn request(route: &str, status: u16, took: Duration) {
    let look_up = || {
        let labels = [("route", route.to_owned()), ("status", status.to_string())];
        let count = metrics::counter!("tidemark_serving_requests_total", &labels);
        (count, metrics::histogram!("tidemark_serving_request_seconds", "route" => route.to_owned()))
    };
    record(&REQUESTS, route, status, look_up, |(count, seconds)| {
        count.increment(1);
        seconds.record(took.as_secs_f64());
    });
}

/// By kind, and whether they were complete.
static ANSWERS: Kept<bool, Counter> = RwLock::new(BTreeMap::new());

/// Records an answer.
pub fn answered(kind: &'static str, complete: bool) {
    let look_up = || {
        let told = if complete { "true" } else { "false" };
        metrics::counter!("tidemark_serving_answers_total", "kind" => kind, "complete" => told)
    };
    record(&ANSWERS, kind, complete, look_up, |answers| answers.increment(1));
}

/// Records that places for subscriptions, and for connections that have some, are taken or given back.
pub fn subscribers(change: f64) {
    metrics::gauge!("tidemark_serving_subscribers").increment(change);
}

/// Records how many different requests are subscribed to, or were a moment ago.
pub fn hubs(count: usize) {
    metrics::gauge!("tidemark_serving_hubs").set(count as f64);
}

/// Records one look of a hub.
pub fn looked(found: bool) {
    let found = if found { "true" } else { "false" };
    metrics::counter!("tidemark_serving_looks_total", "found" => found).increment(1);
}

/// Records an event that was given to a subscriber.
pub fn pushed(kind: &'static str) {
    metrics::counter!("tidemark_serving_events_total", "kind" => kind).increment(1);
}

/// Records that a subscriber was too slow for the changes, and was given the newest version whole.
pub fn slow_subscriber() {
    metrics::counter!("tidemark_serving_slow_subscribers_total").increment(1);
}

/// Records what was last seen of the views.
pub fn seen(tidemark: Option<&Tidemark>, ready: bool) {
    metrics::gauge!("tidemark_serving_ready").set(if ready { 1.0 } else { 0.0 });
    if let Some(tidemark) = tidemark {
        metrics::gauge!("tidemark_serving_tidemark_generation").set(tidemark.generation as f64);
        metrics::gauge!("tidemark_serving_tidemark_held_partitions").set(tidemark.held.len() as f64);
    }
}
