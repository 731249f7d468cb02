//! Compaction of the archive on real servers: however many files the epochs make, a day is read from few, and nobody sees a
//! difference: not those who compute anew, not a ledger that is older than the archive or begins anew, whatever is killed
//! in between.

use batch_layer::archive::compaction::Compaction;
use batch_layer::archive::{Manifest, Store};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use simulator::generate::{Delivery, Generator, Options};
use sqlx::{AssertSqlSafe, PgPool};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tidemark_tests::events::town;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// What most commands connect to.
const ALL: &[&str] = &["catalog", "kafka", "postgres", "archive"];
/// Each epoch brings so many files of either stream: one more than are left, and a day is crowded again.
const PARTITIONS: i32 = 12;
/// So many files of a stream and day are let stand.
const MOST: i64 = 24;
/// A run that keeps no file that it has replaced.
const RUN: &[&str] = &["run", "--compaction-grace", "0s"];
/// The event day of all records.
const DAY: &str = "2016-06-14";
/// Has that day leave the archive.
const RETAIN: &[&str] = &["retention", "--archive-before", "2016-06-15"];

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    let options = Options {
        records,
        span: 3 * 3_600_000,
        users: 1_500,
        documents: 100,
        displays: 150,
        geos: 20,
        near_repeats: 0.05,
        disorder: 0.2,
        late: 0.0,
        malformed: 0.01,
        ..Options::default()
    };
    Generator::new(options, seed).collect()
}

async fn start() -> Stack {
    let text = outbrain().replace("message_key = \"uuid\"", "message_key = \"uuid\"\nfacts = true");
    let stack = Stack::with_catalog(LAYERS, PARTITIONS, &text).await;
    stack.batch(RUN).await;
    stack
}

/// Runs until all that the log has lies below the tidemark.
async fn run_past_the_end(stack: &Stack) {
    let ends = stack.probe.ends().expect("the log's ends");
    wait_for("the tidemark passing the log's ends", async || {
        stack.batch(RUN).await;
        stack.passed(&ends).await
    })
    .await;
}

async fn number(stack: &Stack, sql: &str) -> i64 {
    let pool = PgPool::connect(&stack.database).await.expect("postgres");
    let found: Result<i64, _> = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&pool).await;
    pool.close().await;
    found.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The greatest number of files that a stream's day is read from.
async fn most_files(stack: &Stack) -> i64 {
    let sql = "select coalesce(max(files), 0)
               from (select count(distinct coalesce(compacted, path)) as files from tidemark.segment
                     where removed_at is null group by stream, event_day) as day";
    number(stack, sql).await
}

async fn facts(stack: &Stack) -> i64 {
    number(stack, "select (select count(*) from facts.page_views) + (select count(*) from facts.events)")
        .await
}

async fn paths(stack: &Stack, sql: &'static str) -> BTreeSet<String> {
    let pool = PgPool::connect(&stack.database).await.expect("postgres");
    let paths: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("paths");
    pool.close().await;
    paths.into_iter().collect()
}

/// The files that rows are read from, as the ledger has them: what the README says of exactly what the batch view holds.
async fn read_from(stack: &Stack) -> BTreeSet<String> {
    paths(stack, "select distinct coalesce(compacted, path) from tidemark.segment where removed_at is null")
        .await
}

/// Changes the ledger by hand, as who goes on without a lost file does.
async fn change(stack: &Stack, sql: &'static str, path: &str) {
    let pool = PgPool::connect(&stack.database).await.expect("postgres");
    let changed = sqlx::query(sql).bind(path).execute(&pool).await.expect("changed");
    pool.close().await;
    assert!(changed.rows_affected() > 0, "nothing has {path}: {sql}");
}

fn folder(stack: &Stack) -> PathBuf {
    PathBuf::from(stack.archive.strip_prefix("file://").expect("a folder"))
}

async fn listed(store: &Store, folder: &str) -> Vec<String> {
    let listed = store.list(folder).await.expect("listed");
    listed.into_iter().map(|object| object.location.to_string()).collect()
}

/// What the archive says of itself, without a ledger.
struct Archive {
    /// The files that hold all rows that were sealed: of each segment that a manifest names the one that the newest
    /// compaction says.
    files: BTreeSet<String>,
    /// Rows that were sealed.
    rows: u64,
    compactions: Vec<Compaction>,
}

impl Archive {
    async fn read(store: &Store) -> Archive {
        let (mut found, mut rows) = (BTreeMap::new(), 0);
        for path in listed(store, "manifests").await {
            let json = store.get(&path).await.expect("read").expect("listed above");
            let manifest = Manifest::from_json(&path, &json).expect("a manifest");
            rows += manifest.rows();
            found.extend(manifest.segments.into_iter().map(|segment| (segment.path.clone(), segment.path)));
        }
        let (mut manifests, mut compactions) = (listed(store, "compactions").await, Vec::new());
        manifests.sort();
        for path in &manifests {
            let json = store.get(path).await.expect("read").expect("listed above");
            let compaction = Compaction::from_json(path, &json).expect("a compaction");
            for place in &compaction.segments {
                let known = found.insert(place.path.clone(), compaction.file.path.clone());
                assert!(known.is_some(), "{path} holds {}, which no manifest names", place.path);
            }
            compactions.push(compaction);
        }
        Archive { files: found.into_values().collect(), rows, compactions }
    }
}

/// Holds the archive to what it promises: its files have each row that was sealed, once.
async fn check_rows(stack: &Stack, when: &str) -> Archive {
    let store = Store::open(&stack.archive).expect("the archive");
    let archive = Archive::read(&store).await;
    let mut positions = BTreeSet::new();
    for file in &archive.files {
        let open = std::fs::File::open(folder(stack).join(file));
        let open = open.unwrap_or_else(|error| panic!("{when}: {file}: {error}"));
        let reader = SerializedFileReader::new(open).expect("a Parquet file");
        for row in reader.get_row_iter(None).expect("rows") {
            let row = row.expect("a row");
            let columns = row.get_column_iter();
            let place =
                columns.filter(|(name, _)| ["_topic", "_partition", "_offset"].contains(&name.as_str()));
            let place: Vec<String> = place.map(|(_, value)| value.to_string()).collect();
            assert_eq!(place.len(), 3, "{file}");
            assert!(positions.insert(place.join(" ")), "{when}: {place:?} is there twice, also in {file}");
        }
    }
    assert_eq!(positions.len() as u64, archive.rows, "{when}: rows that were sealed are missing");
    archive
}

/// The same where nothing was left by a kill: what is stored is what the ledger reads, and no more.
async fn check_whole(stack: &Stack, when: &str) -> Archive {
    let archive = check_rows(stack, when).await;
    let store = Store::open(&stack.archive).expect("the archive");
    let stored: BTreeSet<String> = listed(&store, "data").await.into_iter().collect();
    assert_eq!(stored, archive.files, "{when}: what is stored, and what the archive says");
    assert_eq!(read_from(stack).await, archive.files, "{when}: what the ledger reads");
    let most = most_files(stack).await;
    assert!(most <= MOST, "{when}: {most} files of a day");
    archive
}

/// A copy of the database as it is now, under another name; its address.
async fn copied(stack: &Stack, name: &str) -> String {
    let pool = PgPool::connect(&stack.postgres.url()).await.expect("postgres");
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = 'tidemark'";
    sqlx::query(end).execute(&pool).await.expect("ended");
    let copy = format!("create database \"{name}\" template tidemark");
    sqlx::raw_sql(AssertSqlSafe(copy)).execute(&pool).await.expect("copied");
    pool.close().await;
    stack.postgres.database_url(name)
}

/// Computes the day anew: whatever differed would be published.
async fn compute_anew(stack: &Stack, when: &str) {
    let before = stack.live_hashes().await;
    stack.batch(&["backfill", "--from", DAY, "--to", DAY]).await;
    assert_eq!(stack.live_hashes().await, before, "{when}: computed anew, the day is another");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_is_read_from_few_files_and_gives_the_same_whatever_the_ledger_knows() {
    let mut stack = start().await;
    let all = deliveries(6_000, 31);
    let parts: Vec<&[Delivery]> = all.chunks(all.len().div_ceil(6)).collect();
    for part in &parts[..3] {
        stack.send(part);
        run_past_the_end(&stack).await;
    }
    let compactions = check_whole(&stack, "after three runs").await.compactions;
    assert!(!compactions.is_empty(), "nothing was compacted");
    let (older, older_hashes) = (copied(&stack, "older").await, stack.live_hashes().await);
    for part in &parts[3..] {
        stack.send(part);
        run_past_the_end(&stack).await;
    }
    let archive = check_whole(&stack, "after six runs").await;
    compute_anew(&stack, "by the ledger").await;
    let (hashes, rows) = (stack.live_hashes().await, facts(&stack).await);
    assert_ne!(hashes, older_hashes);
    assert_eq!(rows as u64, archive.rows);

    // Files that it knows are gone, and what has their rows has also some from above its tidemark.
    stack.database = older;
    assert!(
        !read_from(&stack).await.is_subset(&archive.files),
        "the older ledger knows no file that is gone"
    );
    compute_anew(&stack, "by an older ledger").await;
    stack.batch(&["sweep"]).await;
    compute_anew(&stack, "by an older ledger that knows what it may").await;
    assert_eq!(stack.live_hashes().await, older_hashes);
    run_past_the_end(&stack).await;
    assert_eq!(
        (stack.live_hashes().await, facts(&stack).await),
        (hashes.clone(), rows),
        "by an older ledger"
    );
    check_whole(&stack, "by an older ledger").await;

    stack.database = stack.postgres.create_database("anew").await.expect("a database");
    run_past_the_end(&stack).await;
    assert_eq!((stack.live_hashes().await, facts(&stack).await), (hashes, rows), "by a new ledger");
    check_whole(&stack, "by a new ledger").await;
    compute_anew(&stack, "by a new ledger").await;

    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    stack.settle().await;
    stack.becomes(&serving, &stack.oracle(), "by a new ledger").await;
}

/// Sends records and runs, until a run ends at a failpoint: one within the epoch of the records leaves that open, and until a
/// day is crowded none comes by.
async fn kill_at(stack: &Stack, point: &str, send: &mut impl FnMut()) {
    let armed = [("TIDEMARK_FAILPOINT".to_owned(), format!("batch.{point}"))];
    wait_for(&format!("the end at {point}"), async || {
        send();
        let run = stack.process_in("batch-layer", RUN, ALL, &armed);
        match run.ended().await {
            -1 => Ok(()),
            code => Err(format!("ended with {code}: {}", run.logged())),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_step_is_killed_each_row_is_there_once_and_the_next_run_goes_on() {
    let points = [
        "compact_write.before:1",
        "compact_write.after:1",
        "compact_seal.before:1",
        "compact_seal.after:1",
        "compact_adopt.before:1",
        "compact_adopt.after:1",
        "delete.before:1",
        "delete.after:4",
        "compact_clear.before:1",
        "compact_clear.after:1",
    ];
    let stack = start().await;
    let mut parts = Generator::new(Options { span: 6 * 3_600_000, late: 0.0, ..town(100_000) }, 32);
    let mut send = || {
        let part: Vec<Delivery> = parts.by_ref().take(800).collect();
        stack.send(&part);
    };
    send();
    run_past_the_end(&stack).await;
    for point in points {
        kill_at(&stack, point, &mut send).await;
        check_rows(&stack, &format!("after a kill at {point}")).await;
    }
    run_past_the_end(&stack).await;
    // What was written and not sealed.
    stack.batch(&["sweep", "--older-than", "0s"]).await;
    check_whole(&stack, "after the kills").await;
    compute_anew(&stack, "after the kills").await;

    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    stack.settle().await;
    stack.becomes(&serving, &stack.oracle(), "after the kills").await;

    // Who goes on without a file that is lost isn't asked for it for ever: what it had replaced goes.
    kill_at(&stack, "compact_adopt.after:1", &mut send).await;
    let store = Store::open(&stack.archive).expect("the archive");
    let uncleared = "select path from tidemark.compaction where cleared_at is null";
    let lost = paths(&stack, uncleared).await.pop_first().expect("one that was taken in");
    store.delete(&lost).await.expect("deleted");
    change(&stack, "update tidemark.segment set removed_at = now() where compacted = $1", &lost).await;
    stack.batch(RUN).await;
    assert_eq!(paths(&stack, uncleared).await, BTreeSet::new());

    // What was sealed and not taken in goes with its day.
    kill_at(&stack, "compact_seal.after:1", &mut send).await;
    stack.batch(RETAIN).await;
    let left = listed(&store, "data").await;
    assert!(!left.iter().any(|path| path.contains("/compacted_")), "{left:#?}");

    // So does what can't be taken in, as some of its rows were removed before; and the ledger knows of it then.
    kill_at(&stack, "compact_seal.after:1", &mut send).await;
    let recorded = "select path from tidemark.compaction";
    let (known, archive) = (paths(&stack, recorded).await, Archive::read(&store).await);
    let mut sealed = archive.compactions.into_iter().filter(|one| !known.contains(&one.file.path));
    let sealed = sealed.next().expect("one that was not taken in");
    let gone = &sealed.segments[0].path;
    change(&stack, "update tidemark.segment set removed_at = now() where path = $1", gone).await;
    stack.batch(RETAIN).await;
    let left = listed(&store, "data").await;
    assert!(!left.iter().any(|path| path.contains("/compacted_")), "{left:#?}");
    assert!(paths(&stack, recorded).await.contains(&sealed.file.path));

    // The day leaves the archive as a whole, and doesn't come back.
    run_past_the_end(&stack).await;
    stack.batch(RETAIN).await;
    assert_eq!(listed(&store, "data").await, Vec::<String>::new());
    assert_eq!(read_from(&stack).await, BTreeSet::new());
    stack.batch(RUN).await;
    assert_eq!(listed(&store, "data").await, Vec::<String>::new());
}
