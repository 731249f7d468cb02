//! Event times that are wrong, on real servers: a day ahead, a day behind, 30 days late, and in 2100. Each is counted
//! exactly where its stream's bounds admit it, or dead-lettered by them, and moves neither watermark nor window.

use local::layers::Layer;
use local::probe::Serving;
use serde_json::{Value, json};
use shared_model::offsets::TopicPartition;
use shared_model::view;
use std::collections::{BTreeMap, BTreeSet};
use tidemark_tests::redis_client::{ask, connect};
use tidemark_tests::shop::events::Record;
use tidemark_tests::stack::{LAYOUT, Stack};
use tidemark_tests::{now, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const PANE: i64 = 10_000;
const LATENESS: i64 = 60_000;
const YEAR_2100: i64 = 4_102_444_800_000;
/// Noon of the day around which the replayed stream's events lie.
const REPLAYED: i64 = 1_466_424_000_000;
const USERS: i64 = 5;

/// What a stream's bounds say.
#[derive(Clone, Copy)]
enum Bounds {
    /// Around the append time.
    Live { past: i64, future: i64 },
    /// 2016-06-13 to 2016-07-01.
    Fixed,
}

impl Bounds {
    fn admit(self, time: i64, append: i64) -> bool {
        match self {
            Bounds::Live { past, future } => (append - past..append + future).contains(&time),
            Bounds::Fixed => (1_465_776_000_000..1_467_331_200_000).contains(&time),
        }
    }

    /// How far a record brings event time on.
    fn trusted(self, time: i64, append: i64) -> Option<i64> {
        match self {
            Bounds::Live { .. } => Some(time.min(append)),
            // A leap ahead is no news before others confirm it.
            Bounds::Fixed => (time < REPLAYED + HOUR).then_some(time),
        }
    }
}

/// Name, bounds, those as the catalog has them, and how many of the wrong records they refuse.
type Stream = (&'static str, Bounds, &'static str, usize);

/// The streams, each with its bounds and how many of the four wrong records they refuse.
const STREAMS: [Stream; 3] = [
    ("wide", Bounds::Live { past: 31 * DAY, future: 2 * DAY }, "{ past = \"31d\", future = \"2d\" }", 1),
    ("narrow", Bounds::Live { past: 2 * DAY, future: 5 * MINUTE }, "{ past = \"2d\", future = \"5m\" }", 3),
    ("replayed", Bounds::Fixed, "{ from = \"2016-06-13\", to = \"2016-07-01\" }", 2),
];

fn catalog(streams: &[Stream]) -> String {
    let stream = |(name, _, bounds, _): &Stream| {
        format!(
            "[streams.{name}]\ntopic = \"{name}\"\nevent_time = {{ field = \"at\", unit = \"ms\" }}\n\
             identity = [\"id\", \"at\"]\nmessage_key = \"id\"\nbounds = {bounds}\nlateness = \"1m\"\n\
             fields = {{ id = \"int\", at = \"int\", who = \"string\" }}\n\
             [metrics.{name}_cnt]\nstream = \"{name}\"\nby = [\"who\"]\naggregate = \"count\"\nwindow = \"5m\"\n\
             grain = \"1h\"\n"
        )
    };
    let streams: String = streams.iter().map(stream).collect();
    format!("[layout]\n{LAYOUT}\n{streams}")
}

fn record(topic: &'static str, id: i64, at: i64) -> Record {
    let value = json!({ "id": id, "at": at, "who": format!("u{}", id % USERS) }).to_string().into_bytes();
    Record { topic, key: id.to_string(), value }
}

/// A record as the log holds it: event time, append time, and who.
type Event = (i64, i64, String);

/// The events that a stream's bounds admit.
fn admitted(stack: &Stack, stream: &str, bounds: Bounds) -> Vec<Event> {
    let mut events = Vec::new();
    let take = |record: local::oracle::Logged| {
        let value: Value = serde_json::from_slice(&record.value).expect("our own record");
        let (at, who) = (value["at"].as_i64().expect("a time"), value["who"].as_str().expect("a name"));
        if record.topic == stream && bounds.admit(at, record.append_time) {
            events.push((at, record.append_time, who.to_owned()));
        }
    };
    stack.probe.read_log(&BTreeMap::new(), take).expect("the log");
    events
}

/// The append time of a stream's newest tick: the offsets that hold no record are ticks'.
fn ticks(stack: &Stack, stream: &str) -> Option<i64> {
    let mut records = BTreeSet::new();
    let take = |record: local::oracle::Logged| {
        if record.topic == stream {
            records.insert(record.offset);
        }
    };
    stack.probe.read_log(&BTreeMap::new(), take).expect("the log");
    let times = stack.probe.append_times().expect("the log").remove(&TopicPartition::new(stream, 0));
    let ticks = times.unwrap_or_default().into_iter().filter(|(offset, _)| !records.contains(offset));
    ticks.map(|(_, time)| time).max()
}

/// Holds every hour's counts, of years, against the events admitted.
async fn compare(serving: &Serving, stream: &str, events: &[Event], when: &str) {
    let mut expected: BTreeMap<(i64, String), i64> = BTreeMap::new();
    for (at, _, who) in events {
        *expected.entry((at.div_euclid(HOUR) * HOUR, who.clone())).or_default() += 1;
    }
    let metric = format!("{stream}_cnt");
    let mut found = BTreeMap::new();
    for from in expected.keys().map(|(hour, _)| hour.div_euclid(DAY) * DAY).collect::<BTreeSet<_>>() {
        let text = |time: i64| chrono::DateTime::from_timestamp_millis(time).expect("a time").to_rfc3339();
        let answer = serving
            .query(&json!({
                "metrics": [metric], "group_by": ["who"], "granularity": "grain", "strict": true,
                "from": text(from), "to": text(from + DAY),
            }))
            .await
            .unwrap_or_else(|error| panic!("{when}: {error:#}"));
        for row in answer["rows"].as_array().expect("rows") {
            let bucket = chrono::DateTime::parse_from_rfc3339(row["bucket"].as_str().expect("a bucket"));
            let key = (
                bucket.expect("a time").timestamp_millis(),
                row["key"]["who"].as_str().expect("who").to_owned(),
            );
            found.insert(key, row["values"][&metric].as_i64().expect("a count"));
        }
    }
    assert_eq!(found, expected, "{stream} {when}");
    // And nowhere else.
    let whole = json!({ "metrics": [metric], "from": "2010-01-01T00:00:00Z", "to": "2110-01-01T00:00:00Z" });
    let answer = serving.query(&whole).await.expect("an answer");
    assert_eq!(answer["rows"][0]["values"][&metric], events.len(), "{stream} {when}: {answer}");
}

/// Holds windows and watermarks against what the admitted events say of the present; gives each stream's newest time.
async fn check_windows(stack: &Stack, serving: &Serving, streams: &[Stream]) -> BTreeMap<&'static str, i64> {
    let mut redis = connect(&stack.redis.url()).await;
    let mut newest = BTreeMap::new();
    for &(stream, bounds, ..) in streams {
        let events = admitted(stack, stream, bounds);
        let event = events.iter().filter_map(|(at, append, _)| bounds.trusted(*at, *append)).max();
        // In a live stream ticks bring event time on.
        let tick = ticks(stack, stream).filter(|_| matches!(bounds, Bounds::Live { .. }));
        let of_stream = event.max(tick).expect("some event");
        let mark: String = ask(&mut redis, &["HGET", view::MARKS_KEY, &format!("{stream}/0")]).await;
        let mark: view::Mark = serde_json::from_str(&mark).expect("a mark");
        assert_eq!((mark.trusted, mark.watermark), (Some(of_stream), Some(of_stream - LATENESS)), "{stream}");
        newest.insert(stream, of_stream);
    }
    // One window for all.
    let end = newest.values().max().expect("a stream").div_euclid(PANE) * PANE + PANE;
    for &(stream, bounds, ..) in streams {
        let events = admitted(stack, stream, bounds);
        for who in (0..USERS).map(|user| format!("u{user}")) {
            let live = serving.live(&format!("{stream}_cnt_5m"), &[("who", who.clone())]).await;
            let live = live.expect("an answer");
            let window = chrono::DateTime::parse_from_rfc3339(live["window_end"].as_str().expect("a window"));
            assert_eq!(window.expect("a time").timestamp_millis(), end, "{stream}: {live}");
            let inside =
                events.iter().filter(|(at, _, of)| *of == who && (end - 5 * MINUTE..end).contains(at));
            assert_eq!(live["value"], inside.count(), "{stream} of {who}: {live}");
            assert_eq!(live["complete"], true, "{live}");
        }
    }
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn in_live_streams_wrong_event_times_count_where_the_bounds_say_and_move_no_watermark() {
    check(&STREAMS[..2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_replay_wrong_event_times_count_where_the_bounds_say_and_move_no_watermark() {
    check(&STREAMS[2..]).await;
}

async fn check(streams: &[Stream]) {
    let stack = Stack::with_catalog(LAYERS, 1, &catalog(streams)).await;
    let (_speed, _process, serving) = stack.layers().await;
    let present = now();
    let base = |bounds| if matches!(bounds, Bounds::Fixed) { REPLAYED } else { present };
    for &(stream, bounds, ..) in streams {
        // Twenty minutes up to the present, a third of them out of order.
        let time = |id: i64| base(bounds) - (300 - id) * 4_000 - if id % 3 == 0 { 30_000 } else { 0 };
        let usual: Vec<Record> = (0..300).map(|id| record(stream, id, time(id))).collect();
        stack.send_records(&usual);
    }
    stack.settle().await;
    let before = check_windows(&stack, &serving, streams).await;

    for &(stream, bounds, ..) in streams {
        let base = base(bounds);
        let wrong = [base + DAY, base - DAY, base - 30 * DAY, YEAR_2100];
        let wrong = (1_000..).zip(wrong).map(|(id, at)| record(stream, id, at));
        stack.send_records(&wrong.collect::<Vec<_>>());
    }
    stack.settle().await;
    let newest = check_windows(&stack, &serving, streams).await;
    let mut all = BTreeMap::new();
    for &(stream, bounds, _, refused) in streams {
        let events = admitted(&stack, stream, bounds);
        assert_eq!(events.len(), 304 - refused, "{stream}");
        // In a live stream the present itself goes on, by the append time of what is admitted; never beyond.
        assert!(newest[stream] <= now(), "{stream}");
        if stream != "wide" {
            assert_eq!(newest[stream], before[stream], "{stream}: the watermark was moved");
        }
        compare(&serving, stream, &events, "in realtime").await;
        all.insert(stream, events);
    }
    stack.run_past_the_end().await;
    stack.settle().await;
    for (stream, ..) in streams {
        compare(&serving, stream, &all[stream], "after the run").await;
    }
    check_windows(&stack, &serving, streams).await;
    stack.verify_groups("with wrong event times").await;

    let refused: usize = streams.iter().map(|(.., refused)| refused).sum();
    wait_for("the dead letters", async || match stack.dead_letters()? {
        found if found == refused => Ok(()),
        found => Err(format!("{found} of {refused}")),
    })
    .await;
    let list: Layer = stack.process("speed-layer", &["dead-letters", "list"], &["catalog", "kafka"]);
    assert_eq!(list.ended().await, 0, "{}", list.logged());
    let listed = list.logged();
    for (stream, _, _, refused) in streams {
        let line = format!("{stream}: {refused} dead letters (event_time_out_of_bounds {refused})");
        assert!(listed.contains(&line), "{line}\n{listed}");
    }
    println!(
        "{} streams with a record a day ahead, a day behind, 30 days late and in 2100 each: {} counted in their hour, \
         {refused} dead-lettered, watermarks unmoved",
        streams.len(),
        4 * streams.len() - refused
    );
}
