//! Faults on real processes: whatever is killed or emptied, once quiet every answer equals the oracle.

use simulator::generate::{Delivery, Generator, Options};
use tidemark_tests::events::town;
use tidemark_tests::redis_servers::Topology;
use tidemark_tests::stack::{Servers, Stack, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    let options = Options { near_repeats: 0.05, late: 0.01, malformed: 0.005, ..town(records) };
    Generator::new(options, seed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_speed_worker_killed_mid_work_loses_and_doubles_nothing() {
    killed_mid_work(Topology::Chosen).await;
}

/// One test of the seam that every run of the tests does on a Cluster; `TIDEMARK_TEST_REDIS=cluster` does all there.
#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_on_a_redis_cluster() {
    killed_mid_work(Topology::Cluster).await;
}

async fn killed_mid_work(topology: Topology) {
    let servers = Servers { topology, ..Servers::default() };
    let stack = Stack::with_servers(LAYERS, 2, &outbrain(), servers).await;
    let (mut speed, _process, serving) = stack.layers().await;
    for (round, part) in deliveries(20_000, 11).chunks(5_000).enumerate() {
        stack.send(part);
        // Killed as soon as it has stored something of this part, wherever that leaves it.
        let before: i64 = stack.probe.ends().expect("ends").values().sum::<i64>() - part.len() as i64;
        wait_for("progress", async || {
            let headers = stack.probe.headers().await.expect("headers");
            let to: i64 =
                headers.iter().filter(|((_, group), _)| *group == 0).map(|(_, header)| header.to).sum();
            if to > before { Ok(()) } else { Err(format!("{to} of {before}")) }
        })
        .await;
        speed.kill();
        // Nobody writes now: each group stands at a position of its own, somewhere in the stream.
        stack.verify_groups(&format!("killed in round {round}")).await;
        if round == 2 {
            stack.batch(&["run"]).await;
        }
        speed.restart().expect("restarted");
    }
    stack.settle().await;
    stack.verify_groups("after four kills").await;
    stack.compare(&serving, &stack.oracle(), "after four kills").await;
    // A tidemark beyond the last record, and nobody who reads the ticks that brought it there: who claims the groups next
    // moves them to its boundary.
    speed.kill();
    let before = stack.probe.headers().await.expect("headers");
    stack.run_past_the_end().await;
    speed.restart().expect("restarted");
    wait_for("the groups standing at the tidemark", async || {
        let headers = stack.probe.headers().await.expect("headers");
        match headers.iter().find(|(group, header)| header.clock <= before[*group].clock) {
            Some((group, header)) => Err(format!("{group:?} stands at {}", header.clock)),
            None => Ok(()),
        }
    })
    .await;
    stack.verify_groups("at the tidemark").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_emptied_is_rebuilt_and_never_answered_as_whole_when_short() {
    let stack = Stack::start(LAYERS, 2).await;
    let (_speed, _process, serving) = stack.layers().await;
    let all = deliveries(12_000, 12);
    let (first, second) = all.split_at(6_000);
    stack.send(first);
    stack.settle().await;
    stack.batch(&["run"]).await;
    stack.send(second);
    stack.settle().await;
    stack.redis.empty().await;
    stack.settle().await;
    stack.verify_groups("after FLUSHALL").await;
    stack.compare(&serving, &stack.oracle(), "after FLUSHALL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_run_killed_anywhere_and_run_again_gives_the_same_rows() {
    let stack = Stack::start(LAYERS, 2).await;
    let (_speed, _process, serving) = stack.layers().await;
    stack.send(&deliveries(8_000, 13));
    stack.settle().await;
    let oracle = stack.oracle();
    // Killed at later and later points of its work, until it comes through by itself.
    let mut kills = 0;
    for wait in (0..).map(|step| std::time::Duration::from_millis(100 + 150 * step)) {
        let mut run = stack.batch_process(&["run"]);
        if tokio::time::timeout(wait, run.ended()).await.is_ok() {
            assert_eq!(run.exited(), Some(0), "{}", run.logged());
            break;
        }
        run.kill();
        kills += 1;
        stack.compare(&serving, &oracle, &format!("after kill {kills}")).await;
    }
    assert!(kills > 3, "the run was killed {kills} times only");
    stack.settle().await;
    stack.compare(&serving, &oracle, "after the run came through").await;
    let before = stack.live_hashes().await;
    assert!(!before.is_empty(), "rows were published");
    stack.batch(&["backfill", "--from", "2016-06-13", "--to", "2016-06-30"]).await;
    assert_eq!(stack.live_hashes().await, before, "recomputing gives identical rows");
    stack.compare(&serving, &oracle, "after recomputing").await;
}
