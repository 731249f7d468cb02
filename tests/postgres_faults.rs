//! Faults of Postgres on real processes: killed in the middle of a run, put back to an older copy, slow.
//!
//! The views and the tidemark move in one transaction, so whatever becomes of the database no answer mixes two of its
//! states.

use simulator::generate::{Delivery, Generator, Options};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tidemark_tests::events::{total, town};
use tidemark_tests::proxy::Proxy;
use tidemark_tests::stack::Stack;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    let options = Options { near_repeats: 0.03, late: 0.01, malformed: 0.005, ..town(records) };
    Generator::new(options, seed).collect()
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(done.success(), "copying {} to {}", from.display(), to.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_put_back_to_an_older_state_is_noticed_and_made_up_for() {
    let mut stack = Stack::start(LAYERS, 2).await;
    let (_speed, _process, serving) = stack.layers().await;
    stack.send(&deliveries(3_000, 81));
    stack.settle().await;
    stack.batch(&["run"]).await;
    // What a standby that is behind would hold.
    stack.postgres.stop().await;
    let (data, standby) = (stack.postgres.data().to_owned(), stack.postgres.data().with_extension("standby"));
    copy(&data, &standby);
    stack.postgres.restart().await.expect("postgres again");
    for seed in 82..85 {
        stack.send(&deliveries(2_000, seed));
        stack.settle().await;
        stack.batch(&["run"]).await;
    }
    let oracle = stack.oracle();
    stack.becomes(&serving, &oracle, "answers before the failover").await;
    stack.postgres.stop().await;
    std::fs::remove_dir_all(&data).expect("the primary is lost");
    std::fs::rename(&standby, &data).expect("the standby takes its place");
    stack.postgres.restart().await.expect("postgres again");
    // No run yet: the realtime view is built again from the older tidemark.
    let begun = Instant::now();
    stack.becomes(&serving, &oracle, "answers after the failover").await;
    println!("answers were whole again {:?} after the failover", begun.elapsed());
    stack.batch(&["run"]).await;
    stack.send(&deliveries(1_000, 85));
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a run on the new primary").await;
    stack.verify_groups("after the failover").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_postgres_holds_up_runs_and_queries_but_no_live_answer() {
    const DELAY: Duration = Duration::from_millis(100);
    let mut stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let proxy = Proxy::start(stack.postgres.port(), 86).await;
    let [direct, slow] = [stack.postgres.port(), proxy.port()].map(|port| format!(":{port}/"));
    stack.database = stack.database.replace(&direct, &slow);
    assert!(stack.database.contains(&slow), "{}", stack.database);
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    proxy.delay(DELAY);
    stack.send(&deliveries(2_000, 86));
    stack.settle().await;
    let begun = Instant::now();
    stack.batch(&["run"]).await;
    let run = begun.elapsed();
    let oracle = stack.oracle();
    stack.becomes(&serving, &oracle, "behind a slow postgres").await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let asked = Instant::now();
        serving.live("active_user_5m", &[]).await.expect("a live answer");
        took.push(asked.elapsed());
    }
    took.sort_unstable();
    println!(
        "postgres {DELAY:?} late with each answer: a run took {run:.1?}, a live answer {:.1?}",
        took[10]
    );
    assert!(took[0] < DELAY, "every live answer waited: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_in_the_middle_of_runs_leaves_the_views_as_they_were() {
    let mut stack = Stack::start(LAYERS, 2).await;
    let (_speed, _process, serving) = stack.layers().await;
    stack.send(&deliveries(6_000, 91));
    stack.settle().await;
    let oracle = stack.oracle();
    let before = stack.live_hashes().await;
    let mut killed = 0;
    for wait in (0..).map(|step| Duration::from_millis(300 << step)) {
        let run = stack.batch_process(&["run"]);
        if tokio::time::timeout(wait, run.ended()).await.is_ok() {
            assert_eq!(run.exited(), Some(0), "{}", run.logged());
            break;
        }
        stack.postgres.kill();
        let (code, log) = (run.ended().await, run.logged());
        let asked = serving.query(&total("user_view_cnt")).await;
        let refused = asked.expect_err("no database, no answer").to_string();
        assert!(!refused.is_empty());
        stack.postgres.restart().await.expect("postgres again");
        // One that has published has done what counts, and tells what it left; any other fails.
        let published = stack.live_hashes().await != before;
        assert!(code != 0 || published, "a run without a database ended well:\n{log}");
        killed += 1;
        stack.becomes(&serving, &oracle, "answers after a kill").await;
    }
    assert!(killed > 1, "postgres was killed {killed} times only");
    stack.becomes(&serving, &oracle, "answers after the run").await;
}
