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
    let idle = stack.dataset().await;
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

    let dataset = stack.dataset().await - idle;
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
