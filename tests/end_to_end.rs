//! The whole path on real servers and real processes, held against the oracle.

use local::compare;
use local::oracle::{self, Oracle};
use local::probe::Serving;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use serde_json::json;
use simulator::generate::{Delivery, Generator, Options};
use std::collections::BTreeMap;
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

/// Hostile but small: repeats near and far, disorder, lateness of days, malformed records, some from the future.
fn options(records: u64) -> Options {
    Options {
        records,
        span: 2 * 3_600_000,
        users: 300,
        documents: 120,
        displays: 200,
        geos: 25,
        near_repeats: 0.05,
        far_repeats: 0.02,
        far_distance: 2_000,
        disorder: 0.2,
        late: 0.02,
        late_max: 3 * 86_400_000,
        malformed: 0.01,
        nulls: 0.02,
        future: 3,
        ..Options::default()
    }
}

/// The sliding counters of some keys of each metric against the events inside the window that the answer names.
async fn compare_live(serving: &Serving, oracle: &Oracle, when: &str) {
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    for metric in oracle::METRICS {
        let columns = if metric.top_k { &metric.columns[..metric.columns.len() - 1] } else { metric.columns };
        let keyed = oracle.count(metric, oracle::BELIEVABLE.start, oracle::BELIEVABLE.end, i64::MAX);
        let mut keys: Vec<oracle::Key> = keyed.keys().map(|(_, key)| key[..columns.len()].to_vec()).collect();
        keys.dedup();
        keys.retain(|key| key.iter().all(Option::is_some));
        let chosen: Vec<_> = keys.sample(&mut random, 12).cloned().collect();
        for key in chosen {
            let pairs =
                columns.iter().zip(&key).map(|(column, value)| (*column, value.clone().expect("kept")));
            let answer = serving.live(&format!("{}_5m", metric.name), &pairs.collect::<Vec<_>>()).await;
            let answer = answer.expect("an answer");
            let time = |name: &str| {
                let text = answer[name].as_str().unwrap_or_else(|| panic!("{name} in {answer}"));
                chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis()
            };
            let (from, to) = (time("window_start"), time("window_end"));
            assert_eq!(to - from, 300_000, "{answer}");
            assert_eq!(answer["complete"], true, "{when}: {answer}");
            let inside = oracle.count(metric, from, to, i64::MAX);
            if metric.top_k {
                let mut ranked: Vec<(i64, String)> = Vec::new();
                for ((_, found), count) in inside {
                    if found[..columns.len()] == key[..] {
                        ranked.push((-count, found[columns.len()].clone().unwrap_or("null".into())));
                    }
                }
                ranked.sort();
                let expected: Vec<i64> = ranked.iter().take(10).map(|(count, _)| -count).collect();
                let found = answer["items"].as_array().unwrap_or_else(|| panic!("{answer}"));
                let counts: Vec<i64> =
                    found.iter().map(|item| item["value"].as_i64().expect("count")).collect();
                assert_eq!(counts, expected, "{when}: {} {key:?}: {answer}", metric.name);
                for item in found {
                    let name =
                        compare::text(&item["item"][metric.columns[columns.len()]]).unwrap_or("null".into());
                    let count = item["value"].as_i64().expect("count");
                    assert!(ranked.contains(&(-count, name)), "{when}: {item} in {answer}");
                }
            } else {
                let mut cells: BTreeMap<_, _> =
                    inside.into_iter().map(|((_, key), count)| (key, count)).collect();
                let expected = cells.remove(&key).unwrap_or(0);
                assert_eq!(answer["value"], json!(expected), "{when}: {} {key:?}: {answer}", metric.name);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_equals_the_oracle_at_many_tidemarks() {
    let stack = Stack::start(LAYERS, 3).await;
    let deliveries: Vec<Delivery> = Generator::new(options(12_000), 1).collect();
    let (speed, process, serving) = stack.layers().await;

    for (round, part) in deliveries.chunks(deliveries.len().div_ceil(4)).enumerate() {
        stack.send(part);
        stack.settle().await;
        let oracle = stack.oracle();
        stack.compare(&serving, &oracle, &format!("round {round}, before the run")).await;
        compare_live(&serving, &oracle, &format!("round {round}, before the run")).await;
        stack.batch(&["run"]).await;
        stack.settle().await;
        stack.compare(&serving, &oracle, &format!("round {round}, after the run")).await;
        compare_live(&serving, &oracle, &format!("round {round}, after the run")).await;
    }

    // Every rejected record is in a dead-letter topic, once, with its bytes.
    let mut refused = 0;
    let count = |record: oracle::Logged| {
        refused += usize::from(oracle::parse(&record.topic, &record.value).is_none())
    };
    stack.probe.read_log(&BTreeMap::new(), count).expect("the log");
    assert!(refused > 20, "the generator made {refused} malformed records");
    wait_for("the dead letters", async || {
        let found = stack.dead_letters()?;
        if found == refused { Ok(()) } else { Err(format!("{found} of {refused}")) }
    })
    .await;

    assert_eq!(speed.stop().await, 0, "the speed layer stops cleanly");
    assert_eq!(process.stop().await, 0, "the serving layer stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_formula_joins_its_metrics_fully_and_fills_with_zero() {
    let stack = Stack::start(LAYERS, 2).await;
    let deliveries: Vec<Delivery> = Generator::new(options(3_000), 2).collect();
    let (_speed, _process, serving) = stack.layers().await;
    let (first, second) = deliveries.split_at(deliveries.len() / 2);
    stack.send(first);
    stack.batch(&["run"]).await;
    stack.send(second);
    stack.settle().await;

    let oracle = stack.oracle();
    let query = json!({
        "metrics": ["features_20m"], "group_by": ["uuid"], "granularity": "20m",
        "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z", "limit": 1_000_000, "strict": true,
    });
    let answer = serving.query(&query).await.expect("an answer");
    let rows = answer["rows"].as_array().expect("rows");
    let metric = |name| oracle::METRICS.iter().find(|metric| metric.name == name).expect("shipped");
    let (from, to) = (oracle::BELIEVABLE.start, oracle::BELIEVABLE.end);
    let clicks = oracle.count(metric("user_click_cnt"), from, to, 1_200_000);
    let views = oracle.count(metric("user_view_cnt"), from, to, 1_200_000);
    let mut expected: BTreeMap<_, (i64, i64)> = BTreeMap::new();
    clicks.into_iter().for_each(|(cell, count)| expected.entry(cell).or_default().0 = count);
    views.into_iter().for_each(|(cell, count)| expected.entry(cell).or_default().1 = count);
    assert_eq!(rows.len(), expected.len(), "a full outer join");
    for row in rows {
        let bucket =
            chrono::DateTime::parse_from_rfc3339(row["bucket"].as_str().expect("bucket")).expect("time");
        let key = vec![row["key"]["uuid"].as_str().map(str::to_owned)];
        let found = (
            row["values"]["clicks"].as_i64().expect("clicks"),
            row["values"]["views"].as_i64().expect("views"),
        );
        assert_eq!(expected.get(&(bucket.timestamp_millis(), key)), Some(&found), "{row}");
    }
}
