//! The program's log and its Prometheus metrics: names, labels and units in one place.

use crate::config::LogFormat;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shared_model::offsets::TopicPartition;
use std::sync::OnceLock;
use std::time::Duration;

/// Starts the log on standard error; `RUST_LOG` chooses the level (default: info). A second call changes nothing.
pub fn start_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // In a process that has a log already, that one is used.
    drop(started);
}

/// The process's metrics, to be rendered; `None` where another recorder was installed before.
pub(crate) fn metrics() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let handle = PrometheusBuilder::new()
            .set_buckets(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0])
            .ok()?
            .install_recorder()
            .ok()?;
        describe();
        Some(handle)
    };
    HANDLE.get_or_init(install).as_ref()
}

fn describe() {
    describe_counter!("tidemark_speed_records_total", "Records read, by outcome");
    describe_counter!("tidemark_speed_rejects_total", "Records that can't be counted, by reason");
    describe_counter!("tidemark_speed_refusals_total", "Writes that Redis refused, by kind");
    describe_counter!("tidemark_speed_rebuilds_total", "Groups built anew from the tidemark");
    describe_counter!("tidemark_speed_put_back_total", "Groups put back into Redis from the local copy");
    describe_gauge!("tidemark_speed_local_copy_groups", "Groups that the local copy has whole");
    describe_counter!("tidemark_speed_gaps_total", "Ranges of offsets that the log no longer had");
    describe_counter!("tidemark_speed_written_bytes_total", Unit::Bytes, "Segment bytes written");
    describe_histogram!("tidemark_speed_flush_seconds", Unit::Seconds, "Time of one flush of a partition");
    describe_gauge!("tidemark_speed_pending_cells", "Cells that wait to be written");
    describe_gauge!("tidemark_speed_remembered", "Identities held to recognise repeats");
    describe_gauge!("tidemark_speed_lag_records", "Records behind the end of the log");
    describe_gauge!("tidemark_speed_clock_seconds", Unit::Seconds, "Ingest clock of what is stored");
    describe_gauge!("tidemark_speed_event_time_seconds", Unit::Seconds, "Newest trusted event time");
    describe_gauge!("tidemark_speed_generation", "Newest tidemark generation seen");
    describe_gauge!("tidemark_speed_ready", "1 when ready");
    describe_counter!("tidemark_speed_published_total", "Plain keys written or deleted by the publisher");
    describe_counter!(
        "tidemark_speed_published_panes_total",
        "Panes whose windows were published, each in its turn"
    );
    describe_gauge!("tidemark_speed_waiting", "1 while reading waits for the publisher of every pane");
}

/// Counters of one partition, resolved once: the fold is no place to look up labels.
pub(crate) struct PartitionMetrics {
    topic: String,
    partition: String,
    counted: metrics::Counter,
    repeats: metrics::Counter,
    ticks: metrics::Counter,
    flushes: metrics::Histogram,
    bytes: metrics::Counter,
    pending: metrics::Gauge,
    remembered: metrics::Gauge,
    copied: metrics::Gauge,
    clock: metrics::Gauge,
    event_time: metrics::Gauge,
}

impl PartitionMetrics {
    pub(crate) fn new(tp: &TopicPartition) -> PartitionMetrics {
        let (topic, partition) = (tp.topic.to_string(), tp.partition.to_string());
        let records = |outcome: &'static str| {
            counter!("tidemark_speed_records_total", "topic" => topic.clone(), "partition" => partition.clone(),
                "outcome" => outcome)
        };
        let of =
            |name: &'static str| gauge!(name, "topic" => topic.clone(), "partition" => partition.clone());
        PartitionMetrics {
            counted: records("counted"),
            repeats: records("repeat"),
            ticks: records("tick"),
            flushes: histogram!("tidemark_speed_flush_seconds"),
            bytes: counter!("tidemark_speed_written_bytes_total"),
            pending: of("tidemark_speed_pending_cells"),
            remembered: of("tidemark_speed_remembered"),
            copied: of("tidemark_speed_local_copy_groups"),
            clock: of("tidemark_speed_clock_seconds"),
            event_time: of("tidemark_speed_event_time_seconds"),
            topic,
            partition,
        }
    }

    pub(crate) fn took(&self, counted: u64, repeats: u64, ticks: u64) {
        self.counted.increment(counted);
        self.repeats.increment(repeats);
        self.ticks.increment(ticks);
    }

    pub(crate) fn rejected(&self, reason: &'static str) {
        counter!("tidemark_speed_rejects_total", "topic" => self.topic.clone(),
            "partition" => self.partition.clone(), "reason" => reason)
        .increment(1);
    }

    pub(crate) fn refused(&self, kind: &'static str) {
        counter!("tidemark_speed_refusals_total", "topic" => self.topic.clone(),
            "partition" => self.partition.clone(), "kind" => kind)
        .increment(1);
    }

    pub(crate) fn rebuilt(&self, groups: u64) {
        counter!("tidemark_speed_rebuilds_total", "topic" => self.topic.clone()).increment(groups);
    }

    pub(crate) fn put_back(&self, groups: u64) {
        counter!("tidemark_speed_put_back_total", "topic" => self.topic.clone()).increment(groups);
    }

    pub(crate) fn gap(&self) {
        counter!("tidemark_speed_gaps_total", "topic" => self.topic.clone()).increment(1);
    }

    pub(crate) fn flushed(&self, took: Duration, bytes: usize) {
        self.flushes.record(took.as_secs_f64());
        self.bytes.increment(bytes as u64);
    }

    pub(crate) fn copied(&self, groups: usize) {
        self.copied.set(groups as f64);
    }

    pub(crate) fn stands(&self, pending: usize, remembered: usize, clock: i64, event_time: Option<i64>) {
        self.pending.set(pending as f64);
        self.remembered.set(remembered as f64);
        self.clock.set(clock as f64 / 1e3);
        if let Some(time) = event_time {
            self.event_time.set(time as f64 / 1e3);
        }
    }
}

/// Sets a partition's lag.
pub(crate) fn lag(topic: &str, partition: i32, records: i64) {
    gauge!("tidemark_speed_lag_records", "topic" => topic.to_owned(), "partition" => partition.to_string())
        .set(records as f64);
}
