//! Disks without room for one byte more: of the archive, of Postgres, and of Redis with an append-only file. What can't
//! go on says so, what is served stays as it was, and with room again all goes on by itself.

use local::probe::Serving;
use local::servers::{PostgresOptions, RedisOptions};
use simulator::generate::{Delivery, Generator, Options};
use std::path::Path;
use tidemark_tests::events::town;
use tidemark_tests::preload::Disk;
use tidemark_tests::stack::{Servers, Stack, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const NO_SPACE: &str = "No space left on device";

fn parts() -> Vec<Vec<Delivery>> {
    let options = Options { near_repeats: 0.03, late: 0.01, malformed: 0.005, ..town(8_000) };
    let all: Vec<Delivery> = Generator::new(options, 44).collect();
    all.chunks(all.len().div_ceil(4)).map(<[Delivery]>::to_vec).collect()
}

async fn stack_with(servers: Servers) -> Stack {
    let stack = Stack::without_topics(LAYERS, &outbrain(), servers).await;
    for topic in &stack.probe.topics {
        stack.kafka.create_topic(topic, 2, &[]).await.expect("topic");
    }
    stack.batch(&["run"]).await;
    stack
}

/// Fills the disk: a run fails with a line that says so, and changes nothing of what is served. With room again the
/// next one goes on.
async fn runs_without_room(stack: &Stack, disk: &Disk, serving: &Serving, part: &[Delivery]) {
    stack.send(part);
    stack.settle().await;
    let before = stack.live_hashes().await;
    disk.fill();
    for _ in 0..2 {
        // One that starts within the epoch of the last record has nothing to write.
        let log = wait_for("a run that finds no room", async || {
            let run = stack.batch_process(&["run"]);
            match run.ended().await {
                0 => Err(run.logged()),
                code => {
                    assert_eq!(code, 1, "a run without room:\n{}", run.logged());
                    Ok(run.logged())
                }
            }
        })
        .await;
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains(NO_SPACE), "the last line says why:\n{log}");
        assert!(!log.contains("panicked"), "a run without room ends in order:\n{log}");
        assert_eq!(stack.live_hashes().await, before, "the live versions");
        stack.becomes(serving, &stack.oracle(), "while the disk is full").await;
    }
    disk.clear();
    stack.run_past_the_end().await;
    stack.settle().await;
    assert_ne!(stack.live_hashes().await, before, "the run with room again");
    stack.compare(serving, &stack.oracle(), "with room again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_room_in_the_archive_or_in_postgres_says_so_and_leaves_what_is_served() {
    let beside = local::servers::scratch().expect("a temporary folder");
    // Where Postgres has its data is its own affair when it may not run as we do.
    let database = Disk::new(Path::new("/"), beside.path());
    let postgres = PostgresOptions { environment: database.environment(), ..PostgresOptions::default() };
    let mut stack = stack_with(Servers { postgres, ..Servers::default() }).await;
    let archive = Disk::new(Path::new(&stack.archive["file://".len()..]), beside.path());
    stack.environment = archive.environment();
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let parts = parts();
    stack.send(&parts[0]);
    stack.settle().await;
    stack.run_past_the_end().await;
    runs_without_room(&stack, &archive, &serving, &parts[1]).await;
    runs_without_room(&stack, &database, &serving, &parts[2]).await;
    stack.send(&parts[3]);
    stack.settle().await;
    stack.verify_groups("after full disks").await;
    println!(
        "2 runs each on a full archive and a full Postgres: exit code 1, said in the last line, the live versions \
         untouched; then {} events equal the oracle's",
        stack.oracle().facts().len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_whose_disk_is_full_is_waited_for() {
    let beside = local::servers::scratch().expect("a temporary folder");
    let disk = Disk::new(Path::new("/"), beside.path());
    let redis = RedisOptions { appendonly: true, environment: disk.environment(), ..RedisOptions::default() };
    let stack = stack_with(Servers { redis, ..Servers::default() }).await;
    let speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let parts = parts();
    stack.send(&parts[0]);
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "before").await;
    disk.fill();
    stack.send(&parts[1]);
    wait_for("the worker saying why it waits", async || {
        assert_eq!(speed.exited(), None, "the worker ended:\n{}", speed.logged());
        let log = speed.logged();
        if log.contains("MISCONF") { Ok(()) } else { Err(log) }
    })
    .await;
    let status = stack.redis.ask_each::<String>(&["INFO", "persistence"]).await;
    assert!(status.iter().any(|status| status.contains("aof_last_write_status:err")), "{status:?}");
    // A run moves the tidemark all the same: Postgres and the archive have room.
    stack.batch(&["run"]).await;
    disk.clear();
    stack.settle().await;
    stack.becomes(&serving, &stack.oracle(), "with room again").await;
    stack.verify_groups("with room again").await;
    stack.send(&parts[2]);
    stack.settle().await;
    stack.run_past_the_end().await;
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a run").await;
    println!(
        "a Redis without room for its append-only file: waited for, then {} events equal the oracle's",
        stack.oracle().facts().len()
    );
}
