//! Measurements that take minutes; each prints its figures. Not part of the ordinary run:
//! `cargo test --workspace --test measure -- --ignored --nocapture`

use local::oracle::{self, METRICS};
use serde_json::json;
use simulator::generate::{Generator, Options};
use simulator::replay::Sender;
use std::time::{Duration, Instant};
use tidemark_tests::stack::Stack;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

/// The realtime view when no batch run has come for a day of events by a million users: its size in Redis, and its
/// totals against the oracle's. `MEASURE_RECORDS` sets how many events (default 5,000,000).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: measures the realtime view's size"]
async fn the_realtime_view_under_a_day_old_tidemark() {
    let records = std::env::var("MEASURE_RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000_000);
    let layout = "epoch = \"10m\"\ngroups = 16\npane = \"10s\"";
    let stack = Stack::with_layout(LAYERS, 4, layout).await;
    stack.batch(&["run"]).await;
    let idle = stack.redis.dataset().await;
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;

    let options =
        Options { records, users: 1_000_000, documents: 100_000, geos: 2_000, ..Options::default() };
    let (kafka, started) = (stack.kafka.bootstrap(), Instant::now());
    let send = move || {
        let sender = Sender::connect(&kafka, &[], || 1_700_000_000_000).expect("a producer");
        Generator::new(options, 5).for_each(|delivery| sender.send(&delivery).expect("sent"));
        sender.flush().expect("acknowledged");
    };
    tokio::task::spawn_blocking(send).await.expect("sent");
    println!("sent {records} events in {:.0?}", started.elapsed());
    let ends = stack.probe.ends().expect("ends");
    let mut lag = i64::MAX;
    while lag > 0 {
        assert!(started.elapsed() < Duration::from_secs(1_800), "{lag} records behind after half an hour");
        tokio::time::sleep(Duration::from_millis(200)).await;
        lag = stack.probe.lag(&ends).await.expect("lag");
    }
    println!("caught up {:.0?} after the first event was sent", started.elapsed());

    let dataset = stack.redis.dataset().await - idle;
    let oracle = stack.oracle();
    let mut cells = 0;
    for metric in METRICS.iter().filter(|metric| !metric.top_k && metric.distinct.is_none()) {
        let query = json!({
            "metrics": [metric.name], "granularity": "none", "strict": true,
            "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z",
        });
        let answer = serving.query(&query).await.expect("an answer");
        let (from, to) = (oracle::BELIEVABLE.start, oracle::BELIEVABLE.end);
        let expected: i64 = oracle.count(metric, from, to, i64::MAX).values().sum();
        assert_eq!(answer["rows"][0]["values"][metric.name], json!(expected), "{}: {answer}", metric.name);
        cells += answer["parts"]["realtime"]["cells"].as_i64().expect("cells");
    }
    println!(
        "realtime view: {} MB in redis for {} distinct events (all eight metrics; {cells} cells in the four plain \
         counts); totals equal the oracle's",
        dataset / 1_000_000,
        oracle.facts().len()
    );
}

/// A large day, imported: how long a run takes that computes all its metrics, and its peak memory (VmHWM), for numbers of
/// workers and limits. The rows are the same whatever these are. `MEASURE_RECORDS` sets how many events (default
/// 10,000,000), `MEASURE_SHARES` with how many workers and MiB the day is computed (default 1:1024,2:1024,2:512).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: measures the batch layer's memory"]
async fn a_large_day_within_the_memory_given() {
    let records = std::env::var("MEASURE_RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let shares = std::env::var("MEASURE_SHARES").unwrap_or_else(|_| "1:1024,2:1024,2:512".to_owned());
    let stack = Stack::start(LAYERS, 1).await;
    stack.batch(&["run"]).await;
    let scratch = tempfile::tempdir().expect("a folder");
    let options = Options {
        records,
        span: 19 * 3_600_000,
        users: 1_000_000,
        documents: 100_000,
        geos: 2_000,
        near_repeats: 0.02,
        ..Options::default()
    };
    let files = ["page_views", "events"].map(|stream| (stream, scratch.path().join(format!("{stream}.csv"))));
    let create = |at: usize| std::io::BufWriter::new(std::fs::File::create(&files[at].1).expect("a file"));
    Generator::new(options, 9).write_csv(&mut [create(0), create(1)], |_| true).expect("written");
    let started = Instant::now();
    for (stream, file) in &files {
        let file = file.display().to_string();
        let import =
            stack.process("batch-layer", &["import", "--stream", stream, &file], &["catalog", "archive"]);
        assert_eq!(import.ended().await, 0, "{}", import.logged());
    }
    println!("{records} events imported in {:.0?}", started.elapsed());
    let mut known = None;
    for share in shares.split(',') {
        let (workers, memory) = share.split_once(':').expect("workers:MiB");
        let command = match known {
            None => vec!["run"],
            Some(_) => vec!["backfill", "--from", "2016-06-13", "--to", "2016-06-20"],
        };
        let started = Instant::now();
        let layer =
            stack.batch_process(&[&command[..], &["--workers", workers, "--memory", memory]].concat());
        let mut peak = 0;
        while layer.exited().is_none() {
            peak = peak_memory(layer.pid()).unwrap_or(peak);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(layer.exited(), Some(0), "{}", layer.logged());
        println!("{command:?}, {workers} workers, {memory} MiB: {:.0?}, peak {peak} MiB", started.elapsed());
        let hashes = stack.live_hashes().await;
        assert!(known.is_none_or(|known| known == hashes), "the same rows with {share}");
        known = Some(hashes);
    }
    let pool = sqlx::PgPool::connect(&stack.database).await.expect("postgres");
    let sql = "select metric, event_day::text, rows from tidemark.live_version join tidemark.view_version
               using (version_id, metric, event_day) order by rows desc";
    let rows: Vec<(String, String, i64)> = sqlx::query_as(sql).fetch_all(&pool).await.expect("versions");
    println!("rows: {rows:?}");
}

/// The most memory that a process had so far, in MiB.
fn peak_memory(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1024)
}
