//! Sliding counters on real servers: the plain keys that `redis-cli` alone reads, what happens when event time moves
//! on, and a speed worker's start and stop.

use local::layers::Layer;
use local::oracle::{self, METRICS, Metric, Oracle};
use local::probe::Serving;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use simulator::generate::{Delivery, Generator, Kind, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidemark_tests::kafka;
use tidemark_tests::redis_client::ask;
use tidemark_tests::redis_servers::{RedisServers, Topology};
use tidemark_tests::stack::{Servers, Stack, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const MINUTE: i64 = 60_000;
/// The generator's first event time.
const START: i64 = 1_465_876_800_000;

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    let options = Options {
        records,
        span: 20 * MINUTE,
        users: 200,
        documents: 100,
        displays: 150,
        geos: 30,
        near_repeats: 0.05,
        disorder: 0.2,
        late: 0.01,
        late_max: 10 * MINUTE,
        malformed: 0.005,
        nulls: 0.02,
        ..Options::default()
    };
    Generator::new(options, seed).collect()
}

/// A page view of a user.
fn view(user: &str, time: i64) -> Delivery {
    let value = json!({
        "uuid": user, "document_id": 7, "timestamp": time - oracle::OUTBRAIN_ZERO, "platform": 1,
        "geo_location": "XX>YY", "traffic_source": 1,
    });
    let (stream, key, value) = ("page_views", user.to_owned(), value.to_string().into_bytes());
    Delivery { stream, event_time: time, moment: time, key, value, kind: Kind::Distinct }
}

/// Enough views of one user for a jump of event time to be believed.
fn views(user: &str, time: i64) -> Vec<Delivery> {
    (0..10).map(|n| view(user, time + 100 * n)).collect()
}

fn time(answer: &Value, name: &str) -> i64 {
    let text = answer[name].as_str().unwrap_or_else(|| panic!("{name} in {answer}"));
    chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis()
}

/// The end of the sliding window, as the serving layer says.
async fn window_end(serving: &Serving) -> i64 {
    let answer = serving.live("active_user_5m", &[]).await.expect("an answer");
    assert_eq!(answer["complete"], true, "{answer}");
    time(&answer, "window_end")
}

async fn views_now(serving: &Serving, user: &str) -> Value {
    let answer = serving.live("user_view_cnt_5m", &[("uuid", user.to_owned())]).await.expect("an answer");
    assert_eq!(answer["complete"], true, "{answer}");
    answer["value"].clone()
}

/// What stands under a plain key, or should: a string, or a top-k's items with their counts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plain {
    Text(String),
    Ranked(BTreeMap<String, i64>),
}

type Plains = BTreeMap<String, Plain>;

/// All plain keys that stand in Redis.
async fn published(masters: &mut [MultiplexedConnection]) -> Plains {
    let mut plains = Plains::new();
    for master in masters {
        plains.append(&mut published_by(master).await);
    }
    plains
}

async fn published_by(redis: &mut MultiplexedConnection) -> Plains {
    let mut plains = Plains::new();
    for metric in METRICS {
        let (mut cursor, pattern) = ("0".to_owned(), format!("{}_5m*", metric.name));
        loop {
            let (next, names): (String, Vec<String>) =
                ask(redis, &["SCAN", &cursor, "MATCH", &pattern, "COUNT", "1000"]).await;
            for name in names {
                let plain = if metric.top_k {
                    let items: Vec<(String, i64)> =
                        ask(redis, &["ZREVRANGE", &name, "0", "-1", "WITHSCORES"]).await;
                    Plain::Ranked(items.into_iter().collect())
                } else {
                    let text: Option<String> = ask(redis, &["GET", &name]).await;
                    Plain::Text(text.unwrap_or_default())
                };
                plains.insert(name, plain);
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    plains
}

/// The plain keys of the window that ends at `end`. A top-k has all its items here.
fn expected(oracle: &Oracle, end: i64) -> Plains {
    let mut plains = Plains::new();
    for metric in METRICS {
        for ((_, mut key), count) in oracle.count(metric, end - 5 * MINUTE, end, i64::MAX) {
            if !metric.top_k {
                plains.insert(name(metric, &key), Plain::Text(count.to_string()));
                continue;
            }
            let item = key.pop().expect("an item").unwrap_or("\\N".to_owned());
            let plain = plains.entry(name(metric, &key)).or_insert_with(|| Plain::Ranked(BTreeMap::new()));
            if let Plain::Ranked(items) = plain {
                items.insert(item, count);
            }
        }
    }
    // A window without a user has no value, not 0.
    plains.retain(|_, plain| *plain != Plain::Text("0".to_owned()));
    plains
}

fn name(metric: &Metric, key: &oracle::Key) -> String {
    let parts = key.iter().map(|part| format!(":{}", part.as_deref().unwrap_or("\\N")));
    format!("{}_5m{}", metric.name, parts.collect::<String>())
}

/// Whether the plain keys are those of the oracle, and nothing else; the first difference otherwise.
fn same(found: &Plains, expected: &Plains) -> Result<(), String> {
    let names: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    for name in names {
        let right = match (found.get(name), expected.get(name)) {
            (Some(Plain::Ranked(found)), Some(Plain::Ranked(all))) => is_top(found, all, 10),
            (found, expected) => found == expected,
        };
        if !right {
            return Err(format!("{name}: {:?} instead of {:?}", found.get(name), expected.get(name)));
        }
    }
    Ok(())
}

/// Whether these are `k` items with the highest counts, each with its count; which of equal ones is left open.
fn is_top(found: &BTreeMap<String, i64>, all: &BTreeMap<String, i64>, k: usize) -> bool {
    let descending = |counts: &BTreeMap<String, i64>| {
        let mut counts: Vec<i64> = counts.values().copied().collect();
        counts.sort_by_key(|count| -count);
        counts
    };
    let (ours, mut best) = (descending(found), descending(all));
    best.truncate(k);
    ours == best && found.iter().all(|(item, count)| all.get(item) == Some(count))
}

/// Waits until the publisher has caught up with what the log holds.
async fn compare_plain(masters: &mut [MultiplexedConnection], serving: &Serving, oracle: &Oracle) -> Plains {
    let end = window_end(serving).await;
    let expected = expected(oracle, end);
    wait_for("the plain keys equalling the oracle", async || {
        let found = published(masters).await;
        same(&found, &expected).map(|()| found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_keys_equal_the_oracle_and_a_record_from_the_future_moves_nothing() {
    let stack = Stack::start(LAYERS, 3).await;
    let (_speed, _process, serving) = stack.layers().await;
    let mut masters = stack.redis.connections().await;
    let all = deliveries(6_000, 21);
    for part in all.chunks(all.len().div_ceil(3)) {
        stack.send(part);
        stack.settle().await;
        let plains = compare_plain(&mut masters, &serving, &stack.oracle()).await;
        for metric in METRICS {
            let of_metric = format!("{}_5m", metric.name);
            assert!(plains.keys().any(|name| name.starts_with(&of_metric)), "nothing of {of_metric}");
        }
    }

    let before = window_end(&serving).await;
    let ahead = START + 3 * 24 * 60 * MINUTE;
    stack.send(&[view("from-the-future", ahead)]);
    stack.settle().await;
    assert_eq!(window_end(&serving).await, before, "one record from the future moves the window");
    assert_eq!(views_now(&serving, "from-the-future").await, json!(0));
    let oracle = stack.oracle();
    compare_plain(&mut masters, &serving, &oracle).await;
    stack.compare(&serving, &oracle, "with one record from the future").await;
    let query = json!({
        "metrics": ["user_view_cnt"], "group_by": ["uuid"], "granularity": "grain", "strict": true,
        "from": "2016-06-17T04:00:00Z", "to": "2016-06-17T04:20:00Z",
    });
    let answer = serving.query(&query).await.expect("an answer");
    assert_eq!(answer["rows"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer["rows"][0]["key"]["uuid"], "from-the-future", "{answer}");
    assert_eq!(answer["rows"][0]["values"]["user_view_cnt"], 1, "{answer}");
}

/// The starts of all panes, and all epochs, of which Redis holds segments.
async fn slices(masters: &mut [MultiplexedConnection]) -> (BTreeSet<i64>, BTreeSet<i64>) {
    let (mut panes, mut epochs) = (BTreeSet::new(), BTreeSet::new());
    for redis in masters {
        let keys: Vec<String> = ask(redis, &["KEYS", "tm1:{*"]).await;
        for key in keys {
            let fields: Vec<String> = ask(redis, &["HKEYS", &key]).await;
            for field in fields {
                let number =
                    field.get(1..).and_then(|rest| rest.split_once(':')).and_then(|(n, _)| n.parse().ok());
                match (field.get(..1), number) {
                    (Some("p"), Some(start)) => panes.insert(start),
                    (Some("e"), Some(epoch)) => epochs.insert(epoch),
                    _ => continue,
                };
            }
        }
    }
    (panes, epochs)
}

/// Turns off what Redis keeps beside data and yet counts as `dataset.bytes`: a latency histogram of about 25 kB for
/// each kind of command that was ever used, and the slow log with its arguments.
async fn count_data_alone(redis: &RedisServers) {
    for (name, value) in [("latency-tracking", "no"), ("slowlog-max-len", "0")] {
        let _: Vec<()> = redis.ask_each(&["CONFIG", "SET", name, value]).await;
    }
}

/// Sends, and moves T past it: twice, since epochs are kept down to the tidemark before the last.
async fn pass(stack: &Stack, user: &str, at: i64) {
    for step in 0..2 {
        stack.send(&views(user, at + step * 2_000));
        stack.settle().await;
        stack.batch(&["run"]).await;
    }
    stack.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_slid_out_is_gone_though_other_partitions_are_idle() {
    let stack = Stack::start(LAYERS, 3).await;
    let mut masters = stack.redis.connections().await;
    count_data_alone(&stack.redis).await;
    let (_speed, _process, serving) = stack.layers().await;
    // The start is measured in the state that the end is to come back to: some views of one user in the window, and T
    // past them.
    pass(&stack, "before", START - 30 * MINUTE).await;
    let start = wait_for("epochs below the tidemark before last dropped", async || {
        let (panes, epochs) = slices(&mut masters).await;
        if epochs.len() <= 2 { Ok(stack.redis.dataset().await) } else { Err(format!("{panes:?} {epochs:?}")) }
    })
    .await;

    stack.send(&deliveries(9_000, 22));
    let at = START + 21 * MINUTE;
    stack.send(&views("first", at));
    stack.settle().await;
    assert_eq!(views_now(&serving, "first").await, json!(10));
    let oracle = stack.oracle();
    compare_plain(&mut masters, &serving, &oracle).await;
    let peak = stack.redis.dataset().await;
    // Not relative to the start, which is mostly what each master keeps for itself: the function library.
    assert!(peak > start + 150_000, "the load fills Redis: {start} -> {peak} bytes");

    // All that comes from here on is one user's, hence in one partition of six: the others are idle.
    let later = at + 20 * MINUTE;
    stack.send(&views("second", later));
    stack.settle().await;
    let end = window_end(&serving).await;
    assert_eq!(
        end,
        (later + 900).div_euclid(10_000) * 10_000 + 10_000,
        "idle partitions hold the window back"
    );
    assert_eq!(views_now(&serving, "first").await, json!(0));
    assert_eq!(views_now(&serving, "second").await, json!(10));
    let top = serving.live("geo_top_5m", &[]).await.expect("an answer");
    assert_eq!(top["items"].as_array().map(Vec::len), Some(1), "only the second user's place is left: {top}");
    let plains = compare_plain(&mut masters, &serving, &stack.oracle()).await;
    assert_eq!(plains.len(), 3, "one user, one place, one active user: {plains:?}");
    wait_for("the old panes gone", async || {
        let (panes, _) = slices(&mut masters).await;
        let old: Vec<i64> = panes.into_iter().filter(|pane| *pane < end - 5 * MINUTE).collect();
        if old.is_empty() { Ok(()) } else { Err(format!("{} panes before the window", old.len())) }
    })
    .await;

    pass(&stack, "second", later + 2 * 5 * MINUTE).await;
    // Beside 5 %: headers name times and offsets with more digits, in Redis' next size of allocation.
    let groups = 6 * i64::from(stack.catalog.layout.groups);
    let allowed = start + start / 20 + 512 * groups;
    let after = wait_for("memory given back", async || {
        let bytes = stack.redis.dataset().await;
        let (panes, epochs) = slices(&mut masters).await;
        if bytes <= allowed {
            return Ok(bytes);
        }
        Err(format!("{start} -> {peak} -> {bytes} bytes, {} panes, epochs {epochs:?}", panes.len()))
    })
    .await;
    println!("dataset.bytes: {start} at the start, {peak} with the load, {after} after it");
    stack.compare(&serving, &stack.oracle(), "after the windows have passed").await;
}

/// The end of the window that a worker says to publish first, where it publishes every pane.
fn first_window(worker: &Layer) -> Result<i64, String> {
    let log = worker.logged();
    let (_, time) = log.split_once("first the window that ends at ").ok_or_else(|| log.clone())?;
    let time = time.split_whitespace().next().unwrap_or_default();
    Ok(chrono::DateTime::parse_from_rfc3339(time).map_err(|error| error.to_string())?.timestamp_millis())
}

/// How many panes a worker says to have published, each in its turn.
async fn panes_published(worker: &Layer) -> Result<i64, String> {
    let log = worker.logged();
    let (_, url) = log.split_once("listening on ").ok_or("not listening")?;
    let url = format!("{}/metrics", url.split_whitespace().next().unwrap_or_default());
    let answer = reqwest::get(&url).await.map_err(|error| error.to_string())?;
    let told = answer.text().await.map_err(|error| error.to_string())?;
    let line = told.lines().find_map(|line| line.strip_prefix("tidemark_speed_published_panes_total "));
    line.unwrap_or("0").parse().map_err(|_| format!("{line:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pane_is_published_once_and_in_turn_whoever_does_it_being_killed() {
    const PANE: i64 = 10_000;
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let (_process, serving) = stack.serving().await;
    let mut masters = stack.redis.connections().await;
    // No group, whose members would have to be timed out first.
    let partitions: Vec<String> =
        stack.probe.partitions().expect("partitions").iter().map(ToString::to_string).collect();
    let partitions = partitions.join(",");
    let command = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--flush-interval",
        "20ms",
        "--pending-cells",
        "200",
        "--publish-panes",
        "--assign",
        &partitions,
    ];
    let mut left_off = None;
    for part in deliveries(8_000, 31).chunks(4_000) {
        stack.send(part);
        let mut speed = stack.process("speed-layer", &command, &["catalog", "kafka", "redis", "postgres"]);
        stack.settle().await;
        compare_plain(&mut masters, &serving, &stack.oracle()).await;
        let (first, end) =
            (first_window(&speed).expect("what it publishes first"), window_end(&serving).await);
        match left_off {
            Some(left_off) => assert_eq!(first, left_off + PANE, "goes on where the other left off"),
            // The first, or an empty one before it, where the watermark was there when it began.
            None => assert!((-12 * PANE..=6 * PANE).contains(&(first - START)), "first {first}"),
        }
        wait_for("every pane published", async || {
            let (panes, all) = (panes_published(&speed).await?, (end - first) / PANE + 1);
            if panes == all { Ok(()) } else { Err(format!("{panes} panes of {all}")) }
        })
        .await;
        left_off = Some(end);
        speed.kill();
    }
}

/// The offsets that are committed to Kafka for lag tools.
fn committed(stack: &Stack) -> BTreeMap<(String, i32), i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &stack.probe.kafka)
        .set("group.id", "tidemark-speed")
        .create()
        .expect("a consumer");
    let mut list = rdkafka::TopicPartitionList::new();
    for tp in stack.probe.partitions().expect("partitions") {
        list.add_partition(&tp.topic, tp.partition);
    }
    let found = consumer.committed_offsets(list, Duration::from_secs(30)).expect("committed offsets");
    let offset = |offset: rdkafka::Offset| offset.to_raw().unwrap_or(-1);
    found.elements().iter().map(|e| ((e.topic().to_owned(), e.partition()), offset(e.offset()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_flushes_and_nothing_is_counted_anew() {
    let stack = Stack::start(LAYERS, 3).await;
    stack.batch(&["run"]).await;
    let (_process, serving) = stack.serving().await;
    let all = deliveries(12_000, 23);
    let mut sent = 0;
    for part in all.chunks(all.len().div_ceil(3)) {
        let speed = stack.speed();
        stack.send(part);
        wait_for("progress", async || {
            let headers = stack.probe.headers().await.map_err(|error| format!("{error:#}"))?;
            let to: i64 =
                headers.iter().filter(|((_, group), _)| *group == 0).map(|(_, header)| header.to).sum();
            if to > sent { Ok(()) } else { Err(format!("{to} of {sent}")) }
        })
        .await;
        let log = speed.logged();
        assert_eq!(speed.stop().await, 0, "{log}");
        sent += part.len() as i64;

        // All groups of a partition end at the same offset, which is the one that Kafka was told.
        let headers = stack.probe.headers().await.expect("headers");
        assert_eq!(headers.len(), 6 * stack.catalog.layout.groups as usize);
        let committed = committed(&stack);
        for ((tp, group), header) in &headers {
            let told = committed[&(tp.topic.to_string(), tp.partition)];
            assert_eq!(header.to, told, "{tp}, group {group}: stored and committed\n{log}");
        }
    }
    let speed = stack.speed();
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after three stops").await;
    assert_eq!(speed.stop().await, 0);
    // Stopped with nothing to do, and started again: still the same.
    let _speed = stack.speed();
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a stop when quiet").await;
}

/// Waits until what Kafka was told, which is what lag tools show, is the end of each partition's log.
async fn told_the_ends(stack: &Stack, when: &str) {
    wait_for(&format!("committed offsets at the log's ends {when}"), async || {
        let ends = stack.probe.ends().map_err(|error| format!("{error:#}"))?;
        let ends: BTreeMap<_, _> =
            ends.into_iter().map(|(tp, end)| ((tp.topic.to_string(), tp.partition), end)).collect();
        let committed = committed(stack);
        if committed == ends { Ok(()) } else { Err(format!("{committed:?} instead of {ends:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_offsets_are_the_logs_ends_in_a_group_and_with_fixed_assignment() {
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let (_process, serving) = stack.serving().await;
    let assigned = |partitions: &str| {
        let command = ["run", "--listen", "127.0.0.1:0", "--assign", partitions];
        stack.process("speed-layer", &command, &["catalog", "kafka", "redis", "postgres"])
    };
    let all = deliveries(6_000, 27);
    let mut parts = all.chunks(2_000);
    let mut send = || stack.send(parts.next().expect("three parts"));

    let nowhere = assigned("page_views/0,page_views/2");
    assert_eq!(nowhere.ended().await, 1);
    assert!(nowhere.logged().contains("the topic has 2 partitions"), "{}", nowhere.logged());

    // One worker alone leaves alone what isn't its own.
    let one = assigned("page_views/0,events/1");
    send();
    let ends = stack.probe.ends().expect("ends");
    let own: BTreeMap<_, _> = ends
        .into_iter()
        .filter(|(tp, _)| ["page_views/0", "events/1"].contains(&tp.to_string().as_str()))
        .collect();
    wait_for("its partitions read", async || match stack.probe.lag(&own).await {
        Ok(0) => Ok(()),
        other => Err(format!("{other:?}: {}", one.logged())),
    })
    .await;
    let headers = stack.probe.headers().await.expect("headers");
    assert!(headers.keys().all(|(tp, _)| own.contains_key(tp)), "{:?}", headers.keys());

    let other = assigned("page_views/1,events/0");
    send();
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "with fixed assignment").await;
    told_the_ends(&stack, "with fixed assignment").await;
    assert_eq!([one.stop().await, other.stop().await], [0, 0]);

    let speed = stack.speed();
    send();
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "in a group").await;
    told_the_ends(&stack, "in a group").await;
    assert_eq!(speed.stop().await, 0);
}

/// Waits until the worker says on /readyz that it is not ready because of `why`; empty: that it is ready.
async fn says(layer: &Layer, why: &str) {
    wait_for(&format!("the worker saying {why:?}"), async || {
        assert_eq!(layer.exited(), None, "the worker ended:\n{}", layer.logged());
        let log = layer.logged();
        let (_, url) = log.split_once("listening on ").ok_or("not listening")?;
        let url = format!("{}/readyz", url.split_whitespace().next().unwrap_or_default());
        let answer = reqwest::get(&url).await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let right = if why.is_empty() { status == 200 } else { status == 503 && text.contains(why) };
        if right { Ok(()) } else { Err(format!("{status}: {text}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_started_before_its_servers_and_topics_waits_and_goes_on() {
    let mut stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    kafka::delete(&stack, "events").await;
    wait_for("the topic gone", async || {
        if stack.probe.partitions().is_err() { Ok(()) } else { Err("still there".to_owned()) }
    })
    .await;
    stack.redis.stop().await;
    stack.postgres.stop().await;

    let speed = stack.speed();
    says(&speed, "waiting for redis").await;
    stack.redis.restart().await.expect("redis");
    says(&speed, "postgres").await;
    stack.postgres.restart().await.expect("postgres");
    says(&speed, "waiting for topics: events").await;
    stack.kafka.create_topic("events", 2, &[]).await.expect("topic");
    says(&speed, "").await;

    let (_process, serving) = stack.serving().await;
    stack.send(&deliveries(2_000, 24));
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a late start of everything").await;
    assert_eq!(speed.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_of_three_masters_does_as_well() {
    let servers = Servers { topology: Topology::Cluster, ..Servers::default() };
    let stack = Stack::with_servers(LAYERS, 2, &outbrain(), servers).await;
    let (_speed, _process, serving) = stack.layers().await;
    let all = deliveries(4_000, 25);
    let (first, second) = all.split_at(2_000);
    stack.send(first);
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "before the run").await;
    stack.batch(&["run"]).await;
    stack.send(second);
    stack.settle().await;
    let oracle = stack.oracle();
    stack.compare(&serving, &oracle, "after the run").await;
    compare_plain(&mut stack.redis.connections().await, &serving, &oracle).await;
}
