//! Repeats at every distance, in one partition and in two, while workers restart and hand over between the copies.
//!
//! The oracle here is the promise itself: below the tidemark every event counts once; from there on every delivery
//! counts that isn't a repeat of a valid record at most N offsets before it in its own partition.

use local::layers::Layer;
use local::oracle::{self, Logged, Oracle};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rdkafka::producer::{BaseProducer, Producer as _};
use serde_json::json;
use shared_model::offsets::TopicPartition;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tidemark_tests::kafka;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::{number, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// The dedup horizon, N.
const HORIZON: i64 = 200;

/// Page view `id`, always the same bytes.
fn view(id: u64) -> (String, Vec<u8>) {
    let user = format!("user-{}", id % 50);
    let value = json!({
        "uuid": user, "document_id": id % 90, "timestamp": 1_000 * id, "platform": 1,
        "geo_location": format!("XX>{}", id % 7), "traffic_source": 1,
    });
    (user, value.to_string().into_bytes())
}

struct Log {
    producer: BaseProducer,
    /// Ids that were never sent before are from here on.
    fresh: u64,
}

impl Log {
    fn new(stack: &Stack) -> Log {
        Log { producer: kafka::producer(stack, &[]), fresh: 1_000 }
    }

    fn send(&self, partition: i32, id: u64) {
        let (key, value) = view(id);
        kafka::put(&self.producer, "page_views", partition, &key, &value);
    }

    /// So many events that are nobody's repeat.
    fn fill(&mut self, partition: i32, count: u64) {
        (self.fresh..self.fresh + count).for_each(|id| self.send(partition, id));
        self.fresh += count;
    }

    fn flush(&self) {
        self.producer.flush(Duration::from_secs(60)).expect("acknowledged");
    }
}

/// The promise, kept naively; with how many deliveries count twice for now.
async fn promised(stack: &Stack) -> (Oracle, usize) {
    let tidemark = stack.tidemark().await;
    let mut last: HashMap<(i32, Vec<u8>), i64> = HashMap::new();
    let (mut oracle, mut distinct) = (Oracle::default(), Oracle::default());
    let mut from_t = Vec::new();
    let take = |record: Logged| {
        if oracle::parse(&record.topic, &record.value).is_none() {
            return;
        }
        distinct.take(&record);
        let place = (record.partition, record.value.clone());
        let is_repeat = last.insert(place, record.offset).is_some_and(|at| record.offset - at <= HORIZON);
        if record.offset < tidemark.cut(&TopicPartition::new(&record.topic, record.partition)).offset {
            oracle.take(&record);
        } else if !is_repeat {
            from_t.push(record);
        }
    };
    stack.probe.read_log(&BTreeMap::new(), take).expect("the log");
    from_t.iter().for_each(|record| oracle.take_again(record));
    let twice = oracle.facts().len() - distinct.facts().len();
    (oracle, twice)
}

/// The workers of a test, of which one at least is at work.
#[derive(Default)]
struct Workers {
    all: Vec<Layer>,
    started: usize,
}

impl Workers {
    fn start(&mut self, stack: &Stack) {
        self.started += 1;
        self.all.push(stack.speed_named(&format!("worker-{}", self.started)));
    }

    /// A new worker takes over from all others, which stop or are killed.
    async fn hand_over(&mut self, stack: &Stack, killing: bool) {
        let old = std::mem::take(&mut self.all);
        self.start(stack);
        let new = &self.all[0];
        wait_for("the new worker having joined", async || {
            assert_eq!(new.exited(), None, "the worker ended:\n{}", new.logged());
            if new.logged().contains(": ours") { Ok(()) } else { Err(new.logged()) }
        })
        .await;
        for mut layer in old {
            if killing {
                layer.kill();
            } else {
                assert_eq!(layer.stop().await, 0);
            }
        }
    }
}

async fn check(stack: &Stack, serving: &local::probe::Serving, when: &str) -> usize {
    stack.settle().await;
    let (oracle, twice) = promised(stack).await;
    stack.becomes(serving, &oracle, when).await;
    twice
}

/// A stack of that horizon with a tidemark, and its serving layer.
async fn begun() -> (Stack, Layer, local::probe::Serving) {
    let horizon = format!("message_key = \"uuid\"\ndedup_horizon = {HORIZON}");
    let stack = Stack::with_catalog(LAYERS, 2, &outbrain().replace("message_key = \"uuid\"", &horizon)).await;
    stack.batch(&["run"]).await;
    let (process, serving) = stack.serving().await;
    (stack, process, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_two_partitions_and_in_a_chain_count_as_promised_whatever_the_restarts_between_them() {
    let (stack, _process, serving) = begun().await;
    let (mut workers, mut log) = (Workers::default(), Log::new(&stack));
    workers.start(&stack);
    // One event in two partitions, and a chain: each copy within the horizon of the one before, not of the first.
    log.send(0, 1);
    log.send(1, 1);
    log.send(0, 2);
    log.fill(0, 150);
    log.send(0, 2);
    log.flush();
    assert_eq!(check(&stack, &serving, "the second copy").await, 1, "that of the other partition");
    workers.hand_over(&stack, false).await;
    log.fill(0, 150);
    log.send(0, 2);
    log.flush();
    assert_eq!(check(&stack, &serving, "the third copy, after a handover").await, 1);
    workers.all[0].restart().expect("restarted");
    log.fill(0, 150);
    log.send(0, 2);
    log.flush();
    assert_eq!(check(&stack, &serving, "the fourth copy, after a restart").await, 1);
    stack.run_past_the_end().await;
    assert_eq!(check(&stack, &serving, "after a run").await, 0, "healed by the run");
    // The chain goes on across the tidemark; and a copy from beyond the horizon counts until the next run.
    workers.hand_over(&stack, false).await;
    log.fill(0, 100);
    log.send(0, 2);
    log.send(0, 1);
    log.send(1, 2);
    log.flush();
    assert_eq!(check(&stack, &serving, "copies across the tidemark").await, 2);
    stack.run_past_the_end().await;
    assert_eq!(check(&stack, &serving, "after a second run").await, 0);
    stack.verify_groups("after the chain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_at_all_distances_count_as_promised_whatever_the_restarts_between_them() {
    let seed = number("TIDEMARK_SEED").unwrap_or(61);
    println!("seed {seed} (TIDEMARK_SEED)");
    let (stack, _process, serving) = begun().await;
    let (mut workers, log) = (Workers::default(), Log::new(&stack));
    workers.start(&stack);
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut most, mut events) = (0, BTreeMap::new());
    for round in 0..8 {
        for _ in 0..400 {
            log.send(rng.random_range(0..2), 10_000 + rng.random_range(0..500));
        }
        log.flush();
        let event =
            ["nothing", "restart", "handover", "kill", "run", "another worker"][rng.random_range(0..6)];
        match event {
            "restart" => workers.all[0].restart().expect("restarted"),
            "handover" => workers.hand_over(&stack, false).await,
            "kill" => workers.hand_over(&stack, true).await,
            "run" => stack.batch(&["run"]).await,
            "another worker" => workers.start(&stack),
            _ => {}
        }
        *events.entry(event).or_insert(0) += 1;
        most = most.max(check(&stack, &serving, &format!("round {round}, {event}")).await);
    }
    stack.verify_groups("after repeats at all distances").await;
    assert!(most > 100, "{most} repeats counted at most");
    stack.run_past_the_end().await;
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after the last run").await;
    println!(
        "{} deliveries of {} events over {} workers ({events:?}): as promised each time, {most} repeats counted at most, \
         0 after a run",
        stack.probe.ends().expect("ends").values().sum::<i64>(),
        stack.oracle().facts().len(),
        workers.started
    );
}
