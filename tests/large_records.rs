//! Records that are too large: for their topic, for their stream, and for the topic of dead letters. None stops its
//! partition, and nothing of a record is lost without a word.

use simulator::generate::{Generator, Options};
use simulator::replay::Sender;
use std::path::Path;
use tidemark_tests::events::town;
use tidemark_tests::kafka;
use tidemark_tests::letters::letters;
use tidemark_tests::stack::Stack;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

/// Sets how large a batch of a topic may be.
async fn admit(stack: &Stack, topic: &str, bytes: usize) {
    let bytes = bytes.to_string();
    let settings = [("max.message.bytes", bytes.as_str()), ("message.timestamp.type", "LogAppendTime")];
    kafka::alter(stack, topic, &settings).await;
}

fn sender(stack: &Stack) -> Sender {
    let properties = [("message.max.bytes".to_owned(), "8000000".to_owned())];
    Sender::connect(&stack.kafka.bootstrap(), &properties, || 1_700_000_000_000).expect("a producer")
}

/// Bytes that no compression makes less of, and that are no JSON.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    use rand::{RngExt as _, SeedableRng as _};
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    (0..bytes).map(|_| rng.random()).collect()
}

fn files(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| if path.is_dir() { files(&path) } else { path.metadata().expect("a file").len() })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_too_large_stop_nothing_and_none_is_lost_without_a_word() {
    let stack = Stack::start(LAYERS, 1).await;
    let (_speed, _process, serving) = stack.layers().await;
    let options = Options { malformed: 0.0, near_repeats: 0.03, late: 0.0, ..town(3_000) };
    let all: Vec<_> = Generator::new(options, 17).collect();
    let (first, rest) = all.split_at(1_000);
    let (second, third) = rest.split_at(1_000);
    stack.send(first);

    // Larger than the topic admits: refused, and said by whoever sends it.
    let sent = sender(&stack);
    sent.send_to("page_views", Some(b"large"), &noise(1_500_000, 1)).expect("taken");
    sent.send_to("page_views", Some(b"small"), &first[0].value).expect("taken");
    let refused = sent.flush().expect_err("refused").to_string();
    assert!(refused.starts_with("1 of 2 records were not stored; the first: page_views: "), "{refused}");
    assert!(refused.contains("Message size too large"), "{refused}");

    // Larger than its stream admits: a dead letter, whole.
    admit(&stack, "page_views", 8_000_000).await;
    let sent = sender(&stack);
    sent.send_to("page_views", Some(b"large"), &noise(3_000_000, 2)).expect("taken");
    sent.flush().expect("acknowledged");
    stack.send(second);
    stack.settle().await;
    let (found, _) = letters(&stack.probe, "page_views");
    assert_eq!(found.len(), 1);
    let letter = found.values().next().expect("one");
    assert_eq!((letter.reason.as_str(), letter.truncated_from), ("too_large", None));
    assert!(letter.value.as_ref().is_some_and(|value| *value == noise(3_000_000, 2)), "the bytes differ");

    // The topic of dead letters admits less than they are long: single ones, and small ones together.
    admit(&stack, "page_views.dead-letters", 100_000).await;
    let sent = sender(&stack);
    for seed in 10..510 {
        sent.send_to("page_views", Some(b"small"), &noise(500, seed)).expect("taken");
    }
    sent.send_to("page_views", Some(b"large"), &noise(3_000_000, 3)).expect("taken");
    sent.send_to("page_views", Some(&noise(200_000, 4)), b"a key that is too large").expect("taken");
    sent.flush().expect("acknowledged");
    admit(&stack, "events.dead-letters", 20_000).await;
    sent.send_to("events", Some(b"large"), &noise(60_000, 5)).expect("taken");
    sent.flush().expect("acknowledged");
    stack.send(third);
    stack.settle().await;
    let (found, _) = letters(&stack.probe, "page_views");
    assert_eq!(found.len(), 503);
    let size = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
    let small = found.values().filter(|letter| letter.truncated_from.is_none() && size(&letter.value) == 500);
    assert_eq!(small.count(), 500, "small ones are kept whole");
    let cut: Vec<_> =
        found.values().filter_map(|letter| Some((letter.truncated_from?, size(&letter.value)))).collect();
    assert_eq!(cut.len(), 2, "{cut:?}");
    assert!(cut.contains(&(3_000_000, 65_536)) && cut.contains(&(23, 23)), "{cut:?}");
    let (of_events, _) = letters(&stack.probe, "events");
    let least = of_events.values().next().expect("a dead letter of which only the position is left");
    assert_eq!((least.truncated_from, size(&least.value)), (Some(60_000), 0));

    // A topic of dead letters that is gone is made again.
    kafka::delete(&stack, "events.dead-letters").await;
    sent.send_to("events", Some(b"poison"), b"no page view").expect("taken");
    sent.flush().expect("acknowledged");
    stack.settle().await;
    let (made_again, _) = letters(&stack.probe, "events");
    assert!(
        made_again.values().any(|letter| letter.value.as_deref() == Some(b"no page view")),
        "{made_again:?}"
    );

    let oracle = stack.oracle();
    stack.compare(&serving, &oracle, "with records too large").await;
    stack.run_past_the_end().await;
    stack.settle().await;
    stack.compare(&serving, &oracle, "after a run").await;
    let archive = Path::new(&stack.archive["file://".len()..]).join("rejects");
    let kept = files(&archive);
    assert!(kept > 6_000_000, "the archive has the whole bytes: {kept}");
    println!(
        "1 record refused by the broker, {} dead-lettered ({} cut to what their topic admits, whole in the archive: {kept} \
         bytes), {} events equal the oracle's",
        found.len() + of_events.len(),
        cut.len() + of_events.len(),
        oracle.facts().len()
    );
}
