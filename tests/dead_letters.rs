//! Records that can't be counted, on real servers: none stops its partition, each lies once in the dead-letter topic
//! with reason, position and original bytes, and those that a mended catalog admits are replayed and count once.

use local::oracle::{self, Oracle};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _};
use simulator::generate::{Delivery, Generator, Options};
use simulator::replay::Sender;
use std::collections::BTreeMap;
use std::time::Duration;
use tidemark_tests::kafka::producer;
use tidemark_tests::letters::letters;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::torture::{Fate, torture, view};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// What the catalog at fault admits: events before 2016-06-16, of at most 100,000 bytes.
const ADMITTED: (i64, usize) = (1_466_035_200_000, 100_000);
/// A stream's default for `max_record_bytes`.
const LONGEST: usize = 1 << 20;

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    let options = Options {
        records,
        span: 1_200_000,
        users: 200,
        documents: 100,
        displays: 150,
        geos: 20,
        near_repeats: 0.03,
        malformed: 0.001,
        late: 0.0,
        ..Options::default()
    };
    Generator::new(options, seed).collect()
}

/// Records that the catalog at fault refuses and the shipped one admits, with their reasons.
fn mendable(count: usize, round: usize) -> Vec<(Vec<u8>, &'static str)> {
    let one = |n: usize| {
        let user = format!("\"mended{}\"", n % 7);
        let time = ADMITTED.0 + (1_000 * round + n) as i64;
        match n % 2 {
            0 => (view(&user, time, ""), "event_time_out_of_bounds"),
            _ => (
                view(&user, time - 86_400_000, &format!(",\"pad\":\"{}\"", "x".repeat(ADMITTED.1))),
                "too_large",
            ),
        }
    };
    (0..count).map(one).collect()
}

/// What the log should have dead-lettered, by position: the oracle's word, and what the catalog at fault doesn't admit.
fn expected(stack: &Stack, counted: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for topic in &stack.probe.topics {
        let take = |message: &BorrowedMessage<'_>| {
            let value = message.payload();
            let is_tick =
                message.headers().is_some_and(|h| h.iter().any(|header| header.key == "tidemark-tick"));
            if value.is_none() && is_tick {
                return;
            }
            let plain = value.map(|value| counted.get(value).map_or(value, Vec::as_slice));
            let fact = plain.and_then(|plain| oracle::parse(topic, plain));
            let short = value.is_some_and(|value| value.len() <= ADMITTED.1);
            if !fact.is_some_and(|fact| fact.time < ADMITTED.0 && short) {
                let key = format!("{topic}/{}/{}", message.partition(), message.offset());
                found.insert(key, value.map(<[u8]>::to_vec));
            }
        };
        stack.probe.read_topic(topic, take).expect("the log");
    }
    found
}

async fn command(stack: &Stack, words: &[&str]) -> String {
    let words: Vec<&str> = ["dead-letters"].iter().chain(words).copied().collect();
    let process = stack.process("speed-layer", &words, &["catalog", "kafka"]);
    let code = process.ended().await;
    assert_eq!(code, 0, "{words:?}:\n{}", process.logged());
    process.logged()
}

/// The oracle of the log, records with passed-over fields read as their plain twins.
fn oracle_of(stack: &Stack, counted: &BTreeMap<Vec<u8>, Vec<u8>>) -> Oracle {
    let mut oracle = Oracle::default();
    let take = |mut record: oracle::Logged| {
        if let Some(plain) = counted.get(&record.value) {
            record.value.clone_from(plain);
        }
        if record.value.len() <= LONGEST {
            oracle.take(&record);
        }
    };
    stack.probe.read_log(&BTreeMap::new(), take).expect("the log");
    oracle
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_stops_nothing_and_counts_once_after_a_fix() {
    let whole = outbrain();
    let limit = format!("message_key = \"uuid\"\nmax_record_bytes = {}", ADMITTED.1);
    let faulty =
        whole.replace("to = \"2016-07-01\"", "to = \"2016-06-16\"").replace("message_key = \"uuid\"", &limit);
    let mut stack = Stack::with_catalog(LAYERS, 2, &faulty).await;
    stack.batch(&["run"]).await;
    let speed = stack.speed();

    // One poison record in a thousand that no catalog admits, one that a mended one does, and the torture set.
    let (torture, mut sent) = (torture(), 0);
    let mut reasons: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
    let mut counted: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for round in 0..2 {
        let sender =
            Sender::connect(&stack.kafka.bootstrap(), &[], || 1_700_000_000_000).expect("a producer");
        let all = deliveries(6_000, 31 + round as u64);
        let mut mendable = mendable(all.len() / 1_000 + 1, round).into_iter();
        for (n, delivery) in all.iter().enumerate() {
            sender.send(delivery).expect("sent");
            if n % 1_000 == 500
                && let Some((value, reason)) = mendable.next()
            {
                sender.send_to("page_views", Some(b"mended"), &value).expect("sent");
                reasons.insert(value, reason);
                sent += 1;
            }
            if round == 0
                && let Some((_, value, fate)) = torture.get(n)
            {
                sender.send_to("page_views", Some(format!("{n}").as_bytes()), value).expect("sent");
                match fate {
                    Fate::Refused(reason) => {
                        reasons.insert(value.clone(), reason);
                        // Our own rule, which the oracle doesn't know: Postgres can't store it.
                        if value.windows(6).any(|part| part == b"\\u0000") {
                            counted.insert(value.clone(), Vec::new());
                        }
                    }
                    Fate::CountedAs(plain) => drop(counted.insert(value.clone(), plain.clone())),
                }
            }
        }
        sender.flush().expect("acknowledged");
        tombstone(&stack);
        stack.settle().await;
        if round == 0 {
            // These refused records lie below the tidemark, those of the second round above it.
            stack.batch(&["run"]).await;
        }
    }

    let wanted = expected(&stack, &counted);
    let mut found = BTreeMap::new();
    for topic in &stack.probe.topics {
        found.extend(letters(&stack.probe, topic).0);
    }
    let values: BTreeMap<_, _> =
        found.iter().map(|(key, letter)| (key.clone(), letter.value.clone())).collect();
    let short = |key: &String| {
        let show = |value: Option<&Option<Vec<u8>>>| {
            let value = value
                .map(|value| String::from_utf8_lossy(value.as_deref().unwrap_or(b"(null)")).into_owned());
            value.map(|value| value.chars().take(200).collect::<String>())
        };
        format!("{key}: {:?} instead of {:?}", show(values.get(key)), show(wanted.get(key)))
    };
    let differ: Vec<String> = values
        .keys()
        .chain(wanted.keys())
        .filter(|key| values.get(*key) != wanted.get(*key))
        .map(short)
        .collect();
    assert!(
        differ.is_empty(),
        "dead letters are {} and should be {}: {differ:#?}",
        values.len(),
        wanted.len()
    );
    for letter in found.values() {
        let reason = letter.value.as_ref().map_or(Some(&"empty"), |value| reasons.get(value));
        let name =
            torture.iter().find(|(_, bytes, _)| Some(bytes) == letter.value.as_ref()).map(|(name, ..)| name);
        assert!(
            reason.is_none_or(|reason| *reason == letter.reason),
            "{name:?}: {reason:?} expected for {letter:?}"
        );
    }
    let listed = command(&stack, &["list"]).await;
    assert!(listed.contains("event_time_out_of_bounds"), "{listed}");
    let before = stack.probe.ends().expect("ends");
    let dry = command(&stack, &["replay", "--dry-run"]).await;
    assert!(
        dry.contains("page_views: 0 would be replayed"),
        "under the catalog at fault nothing counts: {dry}"
    );

    // The fix: the shipped catalog. Workers first, then the replay.
    stack.rewrite_catalog(&whole);
    assert_eq!(speed.stop().await, 0);
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let dry = command(&stack, &["replay", "--dry-run"]).await;
    assert!(dry.contains(&format!("page_views: {sent} would be replayed")), "{sent}: {dry}");
    let some =
        command(&stack, &["replay", "--reason", "too_large", "--topic", "page_views", "--dry-run"]).await;
    assert!(some.contains(&format!("page_views: {} would be replayed", sent / 2)), "{sent}: {some}");
    assert_eq!(stack.probe.ends().expect("ends"), before, "a dry run writes nothing");
    let done = command(&stack, &["replay"]).await;
    assert!(done.contains(&format!("page_views: {sent} replayed; 0 were before")), "{done}");
    let after = stack.probe.ends().expect("ends");
    let replayed: i64 = after.values().sum::<i64>() - before.values().sum::<i64>();
    assert!(replayed >= sent as i64, "{replayed}");
    let again = command(&stack, &["replay"]).await;
    assert!(again.contains(&format!("page_views: 0 replayed; {sent} were before")), "{again}");
    assert_eq!(letters(&stack.probe, "page_views").1, sent, "a mark for each");

    stack.settle().await;
    stack.batch(&["run"]).await;
    stack.settle().await;
    stack.compare(&serving, &oracle_of(&stack, &counted), "after the replay").await;
    // A kill between a record and its mark leaves a copy for the next replay to produce: a repeat like any other.
    let sender = Sender::connect(&stack.kafka.bootstrap(), &[], || 1_700_000_000_000).expect("a producer");
    for (value, _) in (0..2).flat_map(|round| mendable(6, round)) {
        sender.send_to("page_views", Some(b"mended"), &value).expect("sent");
    }
    sender.flush().expect("acknowledged");
    stack.settle().await;
    stack.compare(&serving, &oracle_of(&stack, &counted), "after copies of replayed records").await;
    stack.batch(&["run"]).await;
    stack.compare(&serving, &oracle_of(&stack, &counted), "after the run over all").await;
    println!(
        "{} dead letters (torture set: {}), each once with reason, position and bytes; {sent} replayed after the fix, \
         0 by a second replay; all metrics equal the oracle's",
        found.len(),
        torture.len()
    );
}

/// A record without value that is no tick.
fn tombstone(stack: &Stack) {
    let producer = producer(stack, &[]);
    let record: BaseRecord<'_, str, [u8]> = BaseRecord::to("events").key("gone");
    producer.send(record).map_err(|(error, _)| error).expect("sent");
    producer.flush(Duration::from_secs(30)).expect("acknowledged");
}
