//! Faults of Postgres on real processes: killed in the middle of a run or of a detach, put back to an older copy, slow.
//!
//! The views and the tidemark move in one transaction, so whatever becomes of the database no answer mixes two of its
//! states.

use simulator::generate::{Delivery, Generator, Options};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tidemark_tests::events::{total, town};
use tidemark_tests::proxy::Proxy;
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;

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

/// How many rows a statement of one number gives.
async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

const PENDING: &str = "select count(*) from pg_inherits where inhdetachpending";

/// Begins to detach a partition beside a reader of its table, and ends the session that waits for the reader.
async fn detach_is_cut_short(stack: &Stack, pool: &PgPool, parent: &str, partition: &str) {
    let mut reader = pool.begin().await.expect("a transaction");
    let read = format!("select count(*) from {parent}");
    sqlx::query(AssertSqlSafe(read)).execute(&mut *reader).await.expect("read");
    let mut session = PgConnection::connect(&stack.database).await.expect("postgres");
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut session).await.expect("its process");
    let detach = format!("alter table {parent} detach partition {partition} concurrently");
    let end_it = async {
        wait_for("the detach begun", async || match count(pool, PENDING).await {
            1 => Ok(()),
            other => Err(format!("{other} pending")),
        })
        .await;
        sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(pool).await.expect("told to end");
    };
    let (detached, ()) = tokio::join!(sqlx::raw_sql(AssertSqlSafe(detach)).execute(&mut session), end_it);
    assert!(detached.is_err(), "the detach didn't wait for the reader");
    reader.rollback().await.expect("closed");
    wait_for("the session gone", async || {
        let there = sqlx::query_scalar::<_, i64>("select count(*) from pg_stat_activity where pid = $1");
        match there.bind(pid).fetch_one(pool).await.expect("sessions") {
            0 => Ok(()),
            _ => Err(format!("process {pid} is there")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detach_that_was_cut_short_is_finished_before_others_of_its_table() {
    const UNDROPPED: &str =
        "select count(*) from tidemark.view_version where retired_at is not null and dropped_at is null";
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let pool = PgPool::connect(&stack.database).await.expect("postgres");
    // Each round's versions of the day replace those of the one before: two are left to be dropped.
    for seed in 95..98 {
        stack.send(&deliveries(500, seed));
        stack.run_past_the_end().await;
    }
    let retired = "select i.inhparent::regclass::text, i.inhrelid::regclass::text
                   from tidemark.view_version v join pg_class c on c.relname = v.table_name
                   join pg_inherits i on i.inhrelid = c.oid
                   where v.metric = 'user_view_cnt' and v.retired_at is not null order by v.version_id";
    let retired: Vec<(String, String)> = sqlx::query_as(retired).fetch_all(&pool).await.expect("versions");
    let [(parent, _), .., (other, last)] = &retired[..] else { panic!("two old versions: {retired:?}") };
    assert_eq!(parent, other, "of one table");
    // A sweep comes to the older one first.
    detach_is_cut_short(&stack, &pool, parent, last).await;
    assert_eq!(count(&pool, PENDING).await, 1, "the detach is left as it was");
    assert!(count(&pool, UNDROPPED).await >= 2);

    stack.batch(&["sweep", "--version-grace", "0s"]).await;
    assert_eq!(count(&pool, PENDING).await, 0, "it is finished");
    assert_eq!(count(&pool, UNDROPPED).await, 0, "and what came before it is gone as well");
    for (_, table) in &retired {
        let there: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(table)
            .fetch_one(&pool)
            .await
            .expect("a table or none");
        assert!(!there, "{table} is still there");
    }
}
