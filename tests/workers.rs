//! Several speed workers: one that was stopped and comes back too late, and many that join and leave under load. Nothing
//! of an older owner is accepted, nothing stands still for long, nothing is lost or doubled.

use local::layers::Layer;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shared_model::offsets::TopicPartition;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tidemark_tests::load::Load;
use tidemark_tests::redis_client::{ask, connect};
use tidemark_tests::stack::Stack;
use tidemark_tests::{number, wait_for};
use tokio_util::sync::CancellationToken;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

/// How far each partition's slowest group has come.
async fn reached(stack: &Stack) -> BTreeMap<TopicPartition, i64> {
    let mut reached: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    for ((tp, _), header) in stack.probe.headers().await.expect("headers") {
        let to = reached.entry(tp).or_insert(i64::MAX);
        *to = header.to.min(*to);
    }
    reached
}

/// Watches how long a partition with records waiting stands still.
struct Stalls {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Duration>,
}

impl Stalls {
    fn watch(stack: &std::sync::Arc<Stack>) -> Stalls {
        let (stack, stop) = (stack.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut longest, mut since) = (Duration::ZERO, BTreeMap::new());
            while !stopped.is_cancelled() {
                // The ends first: what lies above them came later than this look.
                let ends = tokio::task::block_in_place(|| stack.probe.ends().expect("ends"));
                let now = reached(&stack).await;
                for (tp, end) in ends {
                    let to = now.get(&tp).copied().unwrap_or(0);
                    let (last, at) = since.entry(tp).or_insert((to, Instant::now()));
                    if to > *last || to >= end {
                        (*last, *at) = (to, Instant::now());
                    }
                    longest = longest.max(at.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            longest
        });
        Stalls { stop, task }
    }

    async fn end(self) -> Duration {
        self.stop.cancel();
        self.task.await.expect("the watch")
    }
}

/// Waits until a worker's log says something.
async fn says(layer: &Layer, what: &str) {
    wait_for(&format!("a worker saying {what:?}"), async || {
        assert_eq!(layer.exited(), None, "the worker ended:\n{}", layer.logged());
        if layer.logged().contains(what) { Ok(()) } else { Err(layer.logged()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stopped_past_its_session_writes_nothing_and_comes_back() {
    let stack = Stack::start(LAYERS, 2).await.with_usual_sessions();
    stack.batch(&["run"]).await;
    let (_process, serving) = stack.serving().await;
    let zombie = stack.speed_named("zombie");
    says(&zombie, "events/1: ours").await;
    let load = Load::start(&stack, 51);
    wait_for("progress", async || {
        let to: i64 = reached(&stack).await.values().sum();
        if to > 2_000 { Ok(()) } else { Err(to.to_string()) }
    })
    .await;
    zombie.freeze();
    let heir = stack.speed_named("heir");
    let frozen = Instant::now();
    let tps = stack.probe.partitions().expect("partitions");
    for tp in &tps {
        says(&heir, &format!("{tp}: ours")).await;
    }
    let taken = frozen.elapsed();
    stack.settle().await;
    let owners = owners(&stack, &tps).await;

    // It resumes in the middle of what it was doing.
    zombie.thaw();
    let thawed = Instant::now();
    wait_for("the zombie saying that it is not ready", async || {
        let log = zombie.logged();
        let refused = ["another worker has claimed it", "no sign of this worker for a session"];
        if refused.iter().any(|why| log.contains(why)) { Ok(()) } else { Err(log) }
    })
    .await;
    let noticed = thawed.elapsed();
    assert!(noticed < Duration::from_secs(15), "noticed after {noticed:?}");
    // It joins the group again and is given partitions; what it isn't given stays with the heir's token.
    wait_for("the zombie being given partitions again", async || {
        let log = zombie.logged();
        let ours = log.matches(": ours").count();
        if ours > tps.len() { Ok(()) } else { Err(log) }
    })
    .await;
    let back = thawed.elapsed();
    let sent = load.end().await;
    stack.settle().await;
    let now = self::owners(&stack, &tps).await;
    let kept = owners.iter().filter(|(group, owner)| now.get(*group) == Some(owner)).count();
    assert!(kept > 0, "cooperative: some partitions stay where they are");
    stack.verify_groups("after the zombie came back").await;
    stack.compare(&serving, &stack.oracle(), "after the zombie came back").await;
    assert_eq!((zombie.stop().await, heir.stop().await), (0, 0));
    println!(
        "a zombie: taken over after {taken:.1?}, refused and unhealthy {noticed:.1?} after it was resumed, owner again after \
         {back:.1?}; {kept} of {} groups kept their owner; {sent} records, 0 lost, 0 doubled",
        owners.len()
    );
}

/// The owner's token of each group.
async fn owners(stack: &Stack, tps: &[TopicPartition]) -> BTreeMap<String, String> {
    let mut redis = connect(&stack.redis.url()).await;
    let groups = stack.catalog.layout.groups;
    let mut owners = BTreeMap::new();
    for key in
        tps.iter().flat_map(|tp| (0..groups).map(|group| shared_model::view::group_key(tp, group, groups)))
    {
        let owner = ask(&mut redis, &["HGET", &key, "o"]).await;
        owners.insert(key, owner);
    }
    owners
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_join_and_leave_under_load() {
    let (changes, seed) =
        (number("TIDEMARK_REBALANCES").unwrap_or(10), number("TIDEMARK_SEED").unwrap_or(52));
    println!("{changes} rebalances, seed {seed} (TIDEMARK_REBALANCES, TIDEMARK_SEED)");
    let mut rng = StdRng::seed_from_u64(seed);
    let stack = std::sync::Arc::new(Stack::start(LAYERS, 3).await.with_usual_sessions());
    stack.batch(&["run"]).await;
    let (_process, serving) = stack.serving().await;
    let mut workers = vec![stack.speed_named("worker-0")];
    says(&workers[0], "events/2: ours").await;
    let load = Load::start(&stack, seed);
    let stalls = Stalls::watch(&stack);
    let (mut joined, mut errors) = (0, Vec::new());
    for change in 1..=changes {
        let leaves = workers.len() > 1 && (workers.len() > 3 || rng.random_bool(0.5));
        if leaves {
            let gone = workers.remove(rng.random_range(0..workers.len()));
            errors.extend(faults(&gone));
            assert_eq!(gone.stop().await, 0);
        } else {
            let new = stack.speed_named(&format!("worker-{change}"));
            says(&new, ": ours").await;
            workers.push(new);
            joined += 1;
        }
    }
    let sent = load.end().await;
    stack.settle().await;
    let stall = stalls.end().await;
    errors.extend(workers.iter().flat_map(faults));
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(stall <= Duration::from_secs(10), "a partition stood still for {stall:?}");
    stack.verify_groups("after the rebalances").await;
    stack.compare(&serving, &stack.oracle(), "after the rebalances").await;
    println!(
        "{changes} rebalances ({joined} workers joined, {} left) under {sent} records: 0 errors, the longest stall {stall:.1?}, \
         0 lost, 0 doubled",
        changes - joined
    );
}

/// The errors that a worker has logged.
fn faults(worker: &Layer) -> Vec<String> {
    let log = worker.logged();
    log.lines()
        .filter(|line| line.contains("ERROR") || line.contains("panicked"))
        .map(str::to_owned)
        .collect()
}
