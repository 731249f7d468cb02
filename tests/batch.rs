//! The batch layer's commands on real servers: what they write, what they leave alone, and how they refuse.
//!
//! Invariant: whatever a command does or fails to do, the answers equal the oracle of all that was accepted.

use chrono::{DateTime, Utc};
use local::oracle::{self, Logged, Oracle};
use local::probe::Serving;
use serde_json::{Value, json};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Tidemark;
use simulator::generate::{Delivery, Generator, Options};
use sqlx::{AssertSqlSafe, PgPool, Row as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tidemark_tests::grafana;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// What most commands connect to.
const ALL: &[&str] = &["catalog", "kafka", "postgres", "archive"];

fn options(records: u64) -> Options {
    Options {
        records,
        span: 4 * 3_600_000,
        users: 1_500,
        documents: 100,
        displays: 150,
        geos: 20,
        near_repeats: 0.05,
        disorder: 0.2,
        late: 0.02,
        late_max: 2 * 86_400_000,
        malformed: 0.01,
        nulls: 0.02,
        ..Options::default()
    }
}

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    Generator::new(options(records), seed).collect()
}

/// Runs a batch command to its end; gives its exit code and all that it said.
async fn ended(stack: &Stack, command: &[&str], connections: &[&str]) -> (i32, String) {
    let layer = stack.process("batch-layer", command, connections);
    let code = layer.ended().await;
    (code, layer.logged())
}

/// The same for a command that must succeed.
async fn done(stack: &Stack, command: &[&str], connections: &[&str]) -> String {
    let (code, said) = ended(stack, command, connections).await;
    assert_eq!(code, 0, "batch-layer {command:?}:\n{said}");
    said
}

/// The same for a command that must fail: its error, which is one line, the last.
async fn refused(stack: &Stack, command: &[&str], connections: &[&str]) -> String {
    let (code, said) = ended(stack, command, connections).await;
    assert_eq!(code, 1, "batch-layer {command:?}:\n{said}");
    let last = said.trim_end().lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("error: "), "batch-layer {command:?} ends with its error:\n{said}");
    last
}

async fn pool(stack: &Stack) -> PgPool {
    PgPool::connect(&stack.database).await.expect("postgres")
}

async fn number(pool: &PgPool, sql: &str) -> i64 {
    let found: Result<i64, _> = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await;
    found.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The records that the runs are known by, the newest first.
async fn runs(stack: &Stack) -> Vec<Value> {
    let said = done(stack, &["runs", "--json", "--limit", "5"], &["postgres"]).await;
    said.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Whether a record lies below the tidemark.
fn is_below(tidemark: &Tidemark, record: &Logged) -> bool {
    record.offset < tidemark.cuts[&TopicPartition::new(&record.topic, record.partition)].offset
}

/// What of the log lies below the tidemark.
async fn below_the_tidemark(stack: &Stack) -> Vec<Logged> {
    let tidemark = stack.tidemark().await;
    let mut below = Vec::new();
    let mut take = |record: Logged| {
        if is_below(&tidemark, &record) {
            below.push(record);
        }
    };
    stack.probe.read_log(&BTreeMap::new(), &mut take).expect("the log");
    below
}

/// Sends deliveries and archives them: whole once the epoch that they came in is over. The tidemark stays.
async fn send_and_archive(stack: &Stack, deliveries: &[Delivery]) {
    stack.send(deliveries);
    let tidemark = stack.tidemark().await;
    let mut above = 0;
    let count = |record: Logged| {
        let new = !is_below(&tidemark, &record);
        above += usize::from(new && oracle::parse(&record.topic, &record.value).is_some());
    };
    stack.probe.read_log(&BTreeMap::new(), count).expect("the log");
    let whole = format!("with {above} rows beyond the tidemark");
    wait_for("all records archived", async || {
        let said = done(stack, &["archive"], ALL).await;
        if said.contains(&whole) { Ok(()) } else { Err(format!("{whole}: {said}")) }
    })
    .await;
    assert_eq!(stack.tidemark().await, tidemark, "archiving alone moves nothing");
}

/// Every metric's view against the oracle: every row of the counters, the sum of all.
async fn compare_views(stack: &Stack, pool: &PgPool, oracle: &Oracle) {
    for metric in oracle::METRICS {
        let width = stack.catalog.metric(metric.name).expect("shipped").grain.width();
        let expected = oracle.count(metric, oracle::BELIEVABLE.start, oracle::BELIEVABLE.end, width);
        let value = if metric.distinct.is_some() { "estimate" } else { "value" };
        let keys: String = metric.columns.iter().map(|column| format!(", {column}::text")).collect();
        let sql = format!("select bucket, {value}{keys} from metrics.{}", metric.name);
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(pool).await.expect("a view");
        let mut found = BTreeMap::new();
        for row in rows {
            let bucket: DateTime<Utc> = row.get(0);
            let key: oracle::Key = (0..metric.columns.len()).map(|at| row.get(2 + at)).collect();
            let twice = found.insert((bucket.timestamp_millis(), key), row.get::<i64, _>(1));
            assert_eq!(twice, None, "metrics.{} has a row twice", metric.name);
        }
        assert_eq!(found.len(), expected.len(), "rows of metrics.{}", metric.name);
        assert!(found == expected, "metrics.{} differs from the oracle", metric.name);
    }
}

/// A row of facts: its load and its production time, by its place in the log.
type Facts = BTreeMap<(String, i32, i64), (DateTime<Utc>, Option<DateTime<Utc>>)>;

async fn facts(pool: &PgPool) -> Facts {
    let sql = "select topic, \"partition\", \"offset\", act_load_time, act_prod_time from facts.page_views";
    let rows = sqlx::query(sql).fetch_all(pool).await.expect("facts.page_views");
    let count = rows.len();
    let place = |row: &sqlx::postgres::PgRow| (row.get(0), row.get(1), row.get(2));
    let found: Facts = rows.iter().map(|row| (place(row), (row.get(3), row.get(4)))).collect();
    assert_eq!(found.len(), count, "each delivery once");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_imports_views_and_facts() {
    let text = outbrain().replace("topic = \"page_views\"", "topic = \"page_views\"\nfacts = true");
    let stack = Stack::with_catalog(LAYERS, 2, &text).await;
    done(&stack, &["run"], ALL).await;
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let pool = pool(&stack).await;

    // The log gets the end of the history, the file its beginning; the middle is in both.
    let whole = deliveries(6_000, 21);
    let (streamed, in_file) = (&whole[whole.len() * 2 / 5..], whole.len() * 3 / 5);
    send_and_archive(&stack, streamed).await;
    stack.settle().await;

    a_dry_run_shows_and_writes_nothing(&stack, &pool).await;
    a_second_run_changes_nothing(&stack, &pool).await;
    the_views_are_for_people(&pool).await;
    a_dashboard_asks_what_is_right(&stack, &pool).await;
    facts_hold_each_delivery_once(&stack, &pool).await;
    records_are_those_that_a_value_counts(&serving, &pool).await;
    let loaded = facts(&pool).await;

    let mut oracle = stack.oracle();
    let scratch = tempfile::tempdir().expect("a folder");
    history_is_imported(&stack, scratch.path(), &whole[..in_file]).await;
    strange_files_lose_nothing(&stack, scratch.path(), &mut oracle).await;
    stack.settle().await;
    let streamed_only = stack.oracle();
    stack.compare(&serving, &streamed_only, "imported and not yet taken in").await;
    for delivery in &whole[..in_file] {
        oracle.take(&logged(delivery.stream, &delivery.value));
    }
    assert!(oracle.facts().len() > streamed_only.facts().len() + 1_000, "the file brings something new");
    done(&stack, &["run"], ALL).await;
    stack.settle().await;
    stack.compare(&serving, &oracle, "with the imports").await;
    compare_views(&stack, &pool, &oracle).await;
    let imports = &runs(&stack).await[0]["imports"];
    assert!(imports.as_array().is_some_and(|ids| ids.len() > 5), "the run names the imports: {imports}");

    // What later runs bring leaves the facts that are there alone.
    let later = facts(&pool).await;
    assert!(later.len() > loaded.len());
    assert!(loaded.iter().all(|(place, times)| later.get(place) == Some(times)), "facts are never changed");
    records_are_those_that_a_value_counts(&serving, &pool).await;
}

/// All records that the API tells for a request, page by page.
async fn records(serving: &Serving, mut request: Value) -> Vec<Value> {
    let mut found = Vec::new();
    loop {
        (request["limit"], request["offset"]) = (1_000.into(), found.len().into());
        let mut reply = serving.facts(&request).await.expect("records");
        assert_eq!(reply["complete"], true, "{}", reply["incomplete_because"]);
        found.append(reply["rows"].as_array_mut().expect("rows"));
        if reply["more"] == false {
            return found;
        }
    }
}

/// Each record is there once, at its place; its events are as many as the run counted, of all users and of one.
async fn records_are_those_that_a_value_counts(serving: &Serving, pool: &PgPool) {
    let run = number(pool, "select run_id from tidemark.tidemark order by generation desc limit 1").await;
    let of_all = json!({ "metrics": ["user_view_cnt"], "from": "2016-06-01", "to": "2016-07-01" });
    let found = records(serving, of_all.clone()).await;
    let place = |row: &Value| {
        let whole = |name: &str| row[name].as_i64().expect("a number");
        (row["topic"].as_str().expect("a topic").to_owned(), whole("partition") as i32, whole("offset"))
    };
    let places: BTreeSet<_> = found.iter().map(place).collect();
    assert!(places.len() == found.len() && found.len() > 1_000, "{} records", found.len());
    assert!(places.iter().eq(facts(pool).await.keys()), "the records are the facts");
    let mut of_one = of_all.clone();
    let user = found.iter().map(|row| &row["fields"]["uuid"]).find(|uuid| uuid.is_string());
    of_one["filters"] = json!([{ "dimension": "uuid", "value": user }]);
    for (request, found) in [(of_all, found), (of_one.clone(), records(serving, of_one).await)] {
        let mut counted = request.clone();
        counted["at_run"] = run.into();
        let counted = serving.query(&counted).await.expect("an answer");
        let events: BTreeSet<&str> = found.iter().filter_map(|row| row["event"].as_str()).collect();
        assert_eq!(
            counted["rows"][0]["values"]["user_view_cnt"].as_u64(),
            Some(events.len() as u64),
            "{request}"
        );
    }
}

fn logged(topic: &str, value: &[u8]) -> Logged {
    Logged { topic: topic.to_owned(), partition: 0, offset: 0, append_time: 0, value: value.to_vec() }
}

async fn a_dry_run_shows_and_writes_nothing(stack: &Stack, pool: &PgPool) {
    let sql = "select (select count(*) from tidemark.run) + (select count(*) from tidemark.tidemark)
                    + (select count(*) from tidemark.segment) + (select count(*) from tidemark.view_version)
                    + (select count(*) from pg_class)";
    let before = number(pool, sql).await;
    let said = done(stack, &["run", "--dry-run"], ALL).await;
    assert!(said.contains("day 2016-06-14: ") && said.contains("user_view_cnt"), "{said}");
    assert!(said.contains("dry run: ") && said.contains("nothing was published"), "{said}");
    assert_eq!(number(pool, sql).await, before, "a dry run writes nothing:\n{said}");
}

async fn a_second_run_changes_nothing(stack: &Stack, pool: &PgPool) {
    const VERSIONS: &str = "select count(*) from tidemark.view_version";
    done(stack, &["run"], ALL).await;
    let oracle = Oracle::of(&below_the_tidemark(stack).await);
    // Partitions are read in no certain order.
    let facts = |oracle: &Oracle| oracle.facts().iter().cloned().collect::<BTreeSet<_>>();
    assert!(facts(&oracle) == facts(&stack.oracle()), "a run takes in all that the log holds");
    compare_views(stack, pool, &oracle).await;
    let (hashes, versions, before) =
        (stack.live_hashes().await, number(pool, VERSIONS).await, stack.tidemark().await.generation);
    assert!(!hashes.is_empty());
    for command in [
        &["run"][..],
        &["run", "--day", "2016-06-14"],
        &["backfill", "--from", "2016-06-13", "--to", "2016-06-20"],
    ] {
        done(stack, command, ALL).await;
        assert_eq!(stack.live_hashes().await, hashes, "{command:?}");
        assert_eq!(number(pool, VERSIONS).await, versions, "{command:?} makes no tables");
    }
    let runs = runs(stack).await;
    let [backfill, day, second, first, ..] = &runs[..] else { panic!("{runs:?}") };
    assert_eq!(first["status"], "done");
    assert!(first["rows"].as_i64() > Some(1_000) && first["days"].as_i64() >= Some(1), "{first}");
    assert_eq!(
        (first["generation_before"].as_i64(), first["generation_after"].as_i64()),
        (Some(before - 1), Some(before))
    );
    assert!(first["finished_at"].as_str() > first["started_at"].as_str(), "{first}");
    assert!(second["status"] == "nothing" || second["rows"] == 0, "{second}");
    assert_eq!(day["parameters"]["day"], "2016-06-14", "{day}");
    assert_eq!(
        (&backfill["kind"], &backfill["parameters"]["to"]),
        (&"backfill".into(), &"2016-06-20".into())
    );
    assert_eq!(backfill["status"], "nothing", "{backfill}");
    // All is computed anew, so many at once; the least memory cuts days into slices.
    for share in [&["--workers", "1"][..], &["--workers", "7"], &["--workers", "2", "--memory", "1"]] {
        let command = [&["backfill", "--from", "2016-06-13", "--to", "2016-06-20"][..], share].concat();
        let said = done(stack, &command, ALL).await;
        assert!(said.contains("nothing new"), "{command:?}: {said}");
        assert_eq!(stack.live_hashes().await, hashes, "{command:?}");
        assert_eq!(number(pool, VERSIONS).await, versions, "{command:?} makes no tables");
    }
}

async fn the_views_are_for_people(pool: &PgPool) {
    let sql = "select a.attname::text, format_type(a.atttypid, null), coalesce(col_description(a.attrelid, a.attnum), '')
               from pg_attribute a where a.attrelid = $1::regclass and a.attnum > 0 order by a.attnum";
    for (view, expected) in [
        ("metrics.user_view_cnt", "bucket timestamp with time zone, uuid text, value bigint"),
        (
            "metrics.geo_top_doc",
            "bucket timestamp with time zone, geo_location text, document_id bigint, value bigint",
        ),
        (
            "metrics.active_user",
            "bucket timestamp with time zone, state bytea, sketch bytea, estimate bigint",
        ),
        ("metrics.features_20m", "bucket timestamp with time zone, uuid text, clicks bigint, views bigint"),
    ] {
        let rows =
            sqlx::query_as::<_, (String, String, String)>(sql).bind(view).fetch_all(pool).await.expect(view);
        let columns: Vec<String> = rows.iter().map(|(name, ty, _)| format!("{name} {ty}")).collect();
        assert_eq!(columns.join(", "), expected, "{view}");
        assert!(
            rows.iter().all(|(_, _, comment)| !comment.is_empty()),
            "{view}: every column has a comment: {rows:?}"
        );
        if let Some((_, _, comment)) = rows.iter().find(|(name, ..)| name == "estimate") {
            assert!(comment.contains("NOT add up"), "{comment}");
        }
        let whole: Option<String> = sqlx::query_scalar("select obj_description($1::regclass)")
            .bind(view)
            .fetch_one(pool)
            .await
            .expect(view);
        assert!(whole.is_some_and(|comment| comment.contains("Batch view only")), "{view} says what it is");
    }
    // One key over a range of time, as the README asks it.
    let explain = "explain select bucket, value from metrics.user_view_cnt
                   where uuid = (select min(uuid) from metrics.user_view_cnt)
                     and bucket >= '2016-06-14 04:00:00+00' and bucket < '2016-06-14 05:00:00+00' order by bucket";
    let mut transaction = pool.begin().await.expect("a transaction");
    // However small the tables are.
    let only_indexes = "set local enable_seqscan = off; set local enable_bitmapscan = off";
    sqlx::raw_sql(only_indexes).execute(&mut *transaction).await.expect("set");
    let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut *transaction).await.expect("a plan");
    let plan = plan.join("\n");
    let index = plan.lines().any(|line| line.contains("Index Scan") && line.contains("by_key_"));
    // First cells by key and time; of the others, which lie in arrays, the rows by key.
    for condition in ["Index Cond: ((uuid = ", "Index Cond: (uuid = "] {
        assert!(index && plan.contains(condition), "{condition}: {plan}");
    }
}

/// Each panel has rows, and none for a key that there isn't; sums are those of the whole view.
async fn a_dashboard_asks_what_is_right(stack: &Stack, pool: &PgPool) {
    let rows = grafana::rows(stack, pool, "").await;
    assert!(rows.len() == 9 && rows.values().all(|rows| *rows > 0), "{rows:?}");
    for (title, rows) in grafana::rows(stack, pool, "nobody").await {
        assert_eq!(rows > 0, title == "active_user", "{title}: it alone has no key");
    }
    let sql = &grafana::statements(stack, grafana::BATCH_VIEW, "")["user_view_cnt"];
    let sum = number(pool, &format!("select sum(user_view_cnt)::bigint from ({sql}) panel")).await;
    assert_eq!(sum, number(pool, "select sum(value)::bigint from metrics.user_view_cnt").await);
}

async fn facts_hold_each_delivery_once(stack: &Stack, pool: &PgPool) {
    let found = facts(pool).await;
    let below = below_the_tidemark(stack).await;
    let valid = |record: &&Logged| {
        record.topic == "page_views" && oracle::parse(&record.topic, &record.value).is_some()
    };
    let place = |record: &Logged| (record.topic.clone(), record.partition, record.offset);
    let expected: BTreeSet<_> = below.iter().filter(valid).map(place).collect();
    assert!(expected.len() > 1_000);
    assert!(found.keys().eq(expected.iter()), "{} facts, {} deliveries", found.len(), expected.len());
    let sent = DateTime::from_timestamp_millis(1_700_000_000_000);
    assert!(
        found.values().all(|(_, produced)| *produced == sent),
        "act_prod_time is what the producer stamped"
    );
}

/// Imports Outbrain-shaped files with exactly these deliveries, twice.
async fn history_is_imported(stack: &Stack, folder: &Path, deliveries: &[Delivery]) {
    let path = |stream: &str| folder.join(format!("{stream}.csv"));
    let mut files =
        ["page_views", "events"].map(|stream| std::fs::File::create(path(stream)).expect("a file"));
    let wanted = deliveries.len() as u64;
    let generator = Generator::new(options(6_000), 21);
    let lines = generator.write_csv(&mut files, |written| written < wanted).expect("files");
    for (stream, lines) in ["page_views", "events"].into_iter().zip(lines) {
        let of_stream = || deliveries.iter().filter(|delivery| delivery.stream == stream);
        let valid = of_stream().filter(|delivery| oracle::parse(stream, &delivery.value).is_some()).count();
        assert_eq!(of_stream().count() as u64, lines);
        let file = path(stream).display().to_string();
        let command = ["import", "--stream", stream, &file];
        let said = done(stack, &command, &["catalog", "archive"]).await;
        let counted = format!("imported, {valid} rows, {} rejected", lines as usize - valid);
        assert!(said.contains(&counted) && !said.contains("already imported"), "{counted}: {said}");
        let again = done(stack, &command, &["catalog", "archive"]).await;
        assert!(again.contains(&format!("already {counted}")), "{again}");
    }
}

/// Strange files: each is refused as a whole with a clear error, or its rows are counted, taken or rejected.
async fn strange_files_lose_nothing(stack: &Stack, folder: &Path, oracle: &mut Oracle) {
    const HEADER: &str = "uuid,document_id,timestamp,platform,geo_location,traffic_source";
    for (name, text, error) in [
        ("empty", "", "the file has no header"),
        (
            "wrong columns",
            "uuid,document,timestamp,platform,geo_location,traffic_source\n",
            "missing [document_id]",
        ),
        ("no such stream", HEADER, "the catalog has no stream clicks"),
    ] {
        let file = folder.join(format!("{name}.csv")).display().to_string();
        std::fs::write(&file, text).expect("a file");
        let stream = if name == "no such stream" { "clicks" } else { "page_views" };
        let said = refused(stack, &["import", "--stream", stream, &file], &["catalog", "archive"]).await;
        assert!(said.contains(error), "{name}: {said}");
    }
    let long = format!("long,{},600000,1,US,1\nafter,1,600000,1,US,1\n", "1".repeat(10 << 20));
    let row = |uuid: &str, document: &str, time: i64| {
        format!(
            r#"{{"uuid":{uuid},"document_id":{document},"timestamp":{time},"platform":1,"geo_location":"US"}}"#
        )
    };
    let plain = |uuid: &str| row(&format!("\"{uuid}\""), "1", 600_000);
    let twice = "again,1,600000,1,US,1\n".repeat(2);
    let unsorted = "late,1,90000000,1,US,1\nsoon,1,600000,1,US,1\nnext,1,500000,1,US,1\n";
    // Name, bytes behind the header, the rows that count, and how many lines are rejected.
    let cases: Vec<(&str, Vec<u8>, Vec<String>, usize)> = vec![
        ("header only", vec![], vec![], 0),
        (
            "nulls",
            b"\\N,\\N,\\N,\\N,\\N,\\N\n\\N,\\N,600000,\\N,\\N,\\N\n".into(),
            vec![r#"{"timestamp":600000}"#.to_owned()],
            1,
        ),
        ("bad utf-8", b"\xff\xfe,1,600000,1,US,1\nutf,1,600000,1,US,1\n".into(), vec![plain("utf")], 1),
        ("crlf", b"cr,1,600000,1,US,1\r\nlf,1,600000,1,US,1\r\n".into(), vec![plain("cr"), plain("lf")], 0),
        ("10 mb line", long.into(), vec![plain("after")], 1),
        (
            "out of range",
            b"big,9223372036854775808,600000,1,US,1\ntop,9223372036854775807,600000,1,US,1\n\
            neg,-5,600000,1,US,1\nfar,1,99999999999999999999,1,US,1\nmax,1,9223372036854775807,1,US,1\n"
                .into(),
            vec![row("\"top\"", "9223372036854775807", 600_000), row("\"neg\"", "-5", 600_000)],
            3,
        ),
        ("duplicates", twice.into(), vec![plain("again"), plain("again")], 0),
        (
            "unsorted",
            unsorted.into(),
            vec![row("\"late\"", "1", 90_000_000), plain("soon"), row("\"next\"", "1", 500_000)],
            0,
        ),
        ("1970 and 2100", b"old,1,-1465876799998,1,US,1\nnew,1,2636568000002,1,US,1\n".into(), vec![], 2),
    ];
    for (name, text, rows, rejects) in cases {
        let file = folder.join(format!("{name}.csv")).display().to_string();
        let end = if name == "crlf" { "\r\n" } else { "\n" };
        std::fs::write(&file, [HEADER.as_bytes(), end.as_bytes(), &text].concat()).expect("a file");
        let said = done(stack, &["import", "--stream", "page_views", &file], &["catalog", "archive"]).await;
        assert!(
            said.contains(&format!("imported, {} rows, {rejects} rejected", rows.len())),
            "{name}: {said}"
        );
        assert_eq!(said.contains("  rejects: "), rejects > 0, "{name}: {said}");
        rows.iter().for_each(|row| oracle.take(&logged("page_views", row.as_bytes())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_rollback_two_at_once_and_old_snapshots() {
    let stack = Stack::start(LAYERS, 2).await;
    done(&stack, &["run"], ALL).await;
    let pool = pool(&stack).await;
    let all = deliveries(6_000, 22);
    let parts: Vec<&[Delivery]> = all.chunks(all.len().div_ceil(4)).collect();

    send_and_archive(&stack, parts[0]).await;
    a_killed_run_is_retried_with_what_it_staged(&stack, &pool).await;
    send_and_archive(&stack, parts[1]).await;
    of_two_runs_at_once_one_wins(&stack, &pool).await;
    send_and_archive(&stack, parts[2]).await;
    old_versions_go_when_no_snapshot_needs_them(&stack, &pool).await;
    send_and_archive(&stack, parts[3]).await;
    a_bad_catalog_is_rolled_back(&stack, &pool).await;
}

async fn a_killed_run_is_retried_with_what_it_staged(stack: &Stack, pool: &PgPool) {
    let mut run = stack.process("batch-layer", &["run"], ALL);
    wait_for("some versions staged", async || {
        match number(pool, "select count(*) from tidemark.view_version").await {
            0 => Err(format!("none; the run: {:?} {}", run.exited(), run.logged())),
            count => Ok(count),
        }
    })
    .await;
    run.kill();
    assert_eq!(number(pool, "select count(*) from tidemark.live_version").await, 0, "killed before its flip");
    let staged: Vec<i64> = sqlx::query_scalar("select version_id from tidemark.view_version")
        .fetch_all(pool)
        .await
        .expect("versions");
    wait_for("the dead run's lock gone", async || {
        match number(pool, "select count(*) from pg_locks where locktype = 'advisory'").await {
            0 => Ok(()),
            locks => Err(format!("{locks} held")),
        }
    })
    .await;
    let killed = number(pool, "select max(run_id) from tidemark.run").await;
    done(stack, &["retry", &killed.to_string()], ALL).await;
    let live: Vec<i64> = sqlx::query_scalar("select version_id from tidemark.live_version")
        .fetch_all(pool)
        .await
        .expect("pointers");
    assert!(staged.iter().all(|version| live.contains(version)), "staged {staged:?}, live {live:?}");
    let runs = runs(stack).await;
    assert_eq!((&runs[0]["kind"], &runs[0]["status"]), (&"retry".into(), &"done".into()), "{runs:?}");
    assert_eq!(runs[1]["status"], "failed", "{runs:?}");
    assert_eq!(runs[0]["parameters"]["run"], killed);
    compare_views(stack, pool, &stack.oracle()).await;
    let unknown = refused(stack, &["retry", "4711"], ALL).await;
    assert!(unknown.contains("there is no run 4711"), "{unknown}");
}

async fn of_two_runs_at_once_one_wins(stack: &Stack, pool: &PgPool) {
    let before = stack.tidemark().await.generation;
    let both = [(); 2].map(|()| stack.process("batch-layer", &["run"], ALL));
    let codes = [both[0].ended().await, both[1].ended().await];
    let said = both.each_ref().map(|run| run.logged());
    assert!(codes == [0, 3] || codes == [3, 0], "one wins: {codes:?}\n{}\n{}", said[0], said[1]);
    assert!(said[0].contains("another run is at work"), "the other says so: {}\n{}", said[0], said[1]);
    assert_eq!(stack.tidemark().await.generation, before + 1);
    compare_views(stack, pool, &stack.oracle()).await;
}

async fn old_versions_go_when_no_snapshot_needs_them(stack: &Stack, pool: &PgPool) {
    const SUM: &str = "select coalesce(sum(value), 0)::bigint from metrics.user_view_cnt";
    const OLD: &str =
        "select count(*) from tidemark.view_version v join pg_class c on c.relname = v.table_name
                       where v.retired_at is not null and v.version_id = any($1)";
    let live: Vec<i64> = sqlx::query_scalar("select version_id from tidemark.live_version")
        .fetch_all(pool)
        .await
        .expect("pointers");
    let mut reader = pool.begin().await.expect("a transaction");
    sqlx::query("set transaction isolation level repeatable read").execute(&mut *reader).await.expect("set");
    let seen: i64 = sqlx::query_scalar(SUM).fetch_one(&mut *reader).await.expect("sum");
    assert!(seen > 0);
    let tables = async |when: &str| {
        sqlx::query_scalar::<_, i64>(OLD)
            .bind(&live)
            .fetch_one(pool)
            .await
            .unwrap_or_else(|e| panic!("{when}: {e}"))
    };
    let short = ["--version-grace", "1ms"];
    done(stack, &[&["run"][..], &short].concat(), ALL).await;
    let kept = tables("replaced").await;
    assert!(kept > 0, "the replaced tables are still there");
    done(stack, &[&["sweep"][..], &short].concat(), ALL).await;
    assert_eq!(tables("swept under a reader").await, kept, "an older snapshot is open");
    let again: i64 = sqlx::query_scalar(SUM).fetch_one(&mut *reader).await.expect("sum");
    assert_eq!(again, seen, "the reader still sees what it saw");
    reader.rollback().await.expect("closed");
    assert!(number(pool, SUM).await > seen);
    done(stack, &["sweep"], ALL).await;
    assert_eq!(tables("swept within the grace").await, kept, "the default grace is minutes");
    done(stack, &[&["sweep"][..], &short].concat(), ALL).await;
    assert_eq!(tables("swept").await, 0, "nobody needs them any more");
    compare_views(stack, pool, &stack.oracle()).await;
}

/// A run by a catalog with other keys and grains publishes other versions; a rollback to the run before brings its own
/// back, by the catalog that is stored with it.
async fn a_bad_catalog_is_rolled_back(stack: &Stack, pool: &PgPool) {
    let good = outbrain();
    let bad = good.replace("grain = \"20m\"", "grain = \"10m\"");
    let bad = bad.replace("by = [\"uuid\"]", "by = [\"uuid\", \"platform\"]");
    let bad = bad.replace("[metrics.display_cnt]", "[metrics.other_cnt]");
    let scratch = tempfile::tempdir().expect("a folder");
    let file = scratch.path().join("bad.toml").display().to_string();
    std::fs::write(&file, bad).expect("a catalog");
    const WIDTHS: &str = "select count(*) from metrics.user_view_cnt
                          where extract(epoch from bucket)::bigint % 1200 <> 0";
    let newest = async || runs(stack).await[0]["run_id"].as_i64().expect("an id").to_string();
    let good_run = newest().await;
    done(stack, &["run", "--catalog", &file], &ALL[1..]).await;
    assert!(number(pool, WIDTHS).await > 0, "the bad catalog's buckets are seen");
    let views = "select count(*) from pg_views where schemaname = 'metrics' and viewname in ('display_cnt', 'other_cnt')";
    assert_eq!(number(pool, views).await, 1, "the view of a metric that is no longer there is dropped");
    let (bad_run, before) = (newest().await, stack.tidemark().await.generation);
    let printed = done(stack, &["catalog", "of", &bad_run], &["postgres"]).await;
    assert!(printed.contains("grain = \"10m\""), "the catalog of a run is kept: {printed}");
    let said = done(stack, &["rollback", &good_run, "--dry-run"], &ALL[1..]).await;
    assert!(said.contains("day 2016-06-14: ") && said.contains("nothing was published"), "{said}");
    let init = refused(stack, &["rollback", "1"], &ALL[1..]).await;
    assert!(init.contains("no catalog is stored with run 1") && init.contains("--catalog"), "{init}");
    let write = async |text: &str, run: &str| {
        let sql = "update tidemark.catalog set text = $1
                   where hash = (select catalog from tidemark.run where run_id = $2::bigint)";
        sqlx::query(sql).bind(text).bind(run).execute(pool).await.expect("written");
    };
    write("[streams.page_views]\ncolour = 1", &good_run).await;
    let (code, said) = ended(stack, &["rollback", &good_run], &ALL[1..]).await;
    assert!(
        code == 1 && said.contains(&format!("the catalog of run {good_run} can't be read by this build")),
        "{said}"
    );
    write(&good, &good_run).await;
    assert_eq!(stack.tidemark().await.generation, before);
    done(stack, &["rollback", &good_run], &ALL[1..]).await;
    assert_eq!(number(pool, WIDTHS).await, 0, "the old catalog's buckets are back");
    compare_views(stack, pool, &stack.oracle()).await;
    let last = &runs(stack).await[0];
    assert_eq!((&last["kind"], &last["status"]), (&"rollback".into(), &"done".into()), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_moves_the_tidemark_and_failures_leave_it() {
    let stack = Stack::start(LAYERS, 2).await;
    done(&stack, &["run"], ALL).await;
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let pool = pool(&stack).await;
    a_metric_is_as_before_dense_rows(&stack, &pool).await;
    let all = deliveries(3_000, 23);
    let parts: Vec<&[Delivery]> = all.chunks(all.len().div_ceil(3)).collect();

    let schedule = stack.process("batch-layer", &["schedule", "--every", "1s"], ALL);
    for part in &parts[..2] {
        stack.send(part);
        let ends = stack.probe.ends().expect("the log's ends");
        wait_for("the tidemark beyond what was sent", async || {
            stack.passed(&ends).await.map_err(|behind| format!("{behind} {}", schedule.logged()))
        })
        .await;
        compare_views(&stack, &pool, &stack.oracle()).await;
    }
    assert_eq!(schedule.stop().await, 0, "SIGTERM ends it well");

    stack.send(parts[2]);
    stack.settle().await;
    let (before, oracle) = (stack.tidemark().await.generation, stack.oracle());
    let error = refused(&stack, &["run", "--archive", "file:///proc/tidemark"], &ALL[..3]).await;
    assert!(error.contains("archive") || error.contains("/proc"), "{error}");
    no_servers_and_wrong_passwords(&stack, &pool).await;
    assert_eq!(stack.tidemark().await.generation, before, "failures don't move the tidemark");
    stack.compare(&serving, &oracle, "after failures").await;
    done(&stack, &["run"], ALL).await;
    stack.settle().await;
    stack.compare(&serving, &oracle, "after the run that succeeded").await;
    compare_views(&stack, &pool, &oracle).await;
    let dense = "select count(*) from tidemark.live_version join tidemark.view_version using (version_id)
                 where view_version.metric = 'user_view_cnt' and table_name like '%\\_dense'";
    assert!(number(&pool, dense).await > 0, "what came after the first run is dense");
}

/// Takes from a metric's table and view what only dense rows need, and the collation of texts, as a build from before there
/// were such leaves them.
async fn a_metric_is_as_before_dense_rows(stack: &Stack, pool: &PgPool) {
    let version = stack.catalog.metric("user_view_cnt").expect("shipped").version;
    let statements = format!(
        "alter table views.user_view_cnt_{version} drop column _bucket cascade, drop column _value cascade;
         alter table views.user_view_cnt_{version} alter column uuid type text collate \"default\";
         create view metrics.user_view_cnt as
             select v.bucket, v.uuid, v.value from views.user_view_cnt_{version} v
             join tidemark.live_version l on l.version_id = v.version_id and l.version = '{version}'"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(pool).await.expect("an older layout");
}

async fn no_servers_and_wrong_passwords(stack: &Stack, pool: &PgPool) {
    // From now on one role needs a password.
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(pool).await.expect("its path");
    let rules = std::fs::read_to_string(&file).expect("the rules");
    std::fs::write(&file, format!("host all locked 127.0.0.1/32 scram-sha-256\n{rules}")).expect("the rules");
    sqlx::query("create role locked login password 'right-one'").execute(pool).await.expect("a role");
    sqlx::query("select pg_reload_conf()").execute(pool).await.expect("reloaded");
    let wrong = format!("postgres://locked:hunter2@127.0.0.1:{}/tidemark", stack.postgres.port());
    wait_for("the new rules", async || match PgPool::connect(&wrong).await {
        Ok(_) => Err("the wrong password is taken".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    let nobody =
        format!("postgres://locked:hunter2@127.0.0.1:{}/tidemark", tidemark_tests::stack::free_port());
    let no_kafka = format!("127.0.0.1:{}", tidemark_tests::stack::free_port());
    for (command, connections, expected) in [
        (vec!["run", "--postgres", &wrong], &["catalog", "kafka", "archive"][..], "postgres"),
        (vec!["runs", "--postgres", &wrong], &[], "postgres"),
        (vec!["run", "--postgres", &nobody], &["catalog", "kafka", "archive"], "postgres"),
        (vec!["run", "--postgres", &nobody, "--kafka", &no_kafka], &["catalog", "archive"], "postgres"),
        (vec!["run", "--archive", "s3://user:hunter2@bucket"], &["catalog", "kafka", "postgres"], "archive"),
        (vec!["run", "--kafka", &no_kafka], &["catalog", "postgres", "archive"], "kafka"),
    ] {
        let (code, said) = ended(stack, &command, connections).await;
        assert_eq!(code, 1, "{command:?}: {said}");
        let last = said.trim_end().lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.to_lowercase().contains(expected), "{command:?}: {said}");
        assert!(!said.contains("hunter2"), "{command:?} tells a secret: {said}");
    }
}

/// A day's files leave the archive by the retention that a schedule applies; what comes late for such a day is merged
/// into its live version, which says so, and doesn't replace it.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_event_of_a_removed_day_is_merged_into_the_live_version() {
    const VERSIONS: &str = "select event_day::text, bool_or(partial) from tidemark.live_version
                            join tidemark.view_version using (version_id, event_day) group by 1 order by 1";
    let text = outbrain().replace("topic = \"page_views\"", "topic = \"page_views\"\nfacts = true");
    let stack = Stack::with_catalog(LAYERS, 2, &text).await;
    done(&stack, &["run"], ALL).await;
    let pool = pool(&stack).await;
    let three_days = Options { span: 3 * 86_400_000, late: 0.0, ..options(3_000) };
    let all: Vec<Delivery> = Generator::new(three_days, 24).collect();
    let (first, rest) = all.split_at(all.len() * 2 / 3);
    send_and_archive(&stack, first).await;
    done(&stack, &["run"], ALL).await;
    assert_eq!(number(&pool, "select count(*) from tidemark.segment where removed_at is not null").await, 0);
    send_and_archive(&stack, rest).await;

    let retention = ["--archive-days", "1", "--facts-days", "2", "--version-grace", "1ms"];
    let schedule =
        stack.process("batch-layer", &[&["schedule", "--every", "1s"][..], &retention].concat(), ALL);
    let folder = Path::new(stack.archive.strip_prefix("file://").expect("a folder")).join("data");
    wait_for("old days' files and versions gone", async || {
        let old = ["stream=page_views", "stream=events"].map(|stream| {
            let day = folder.join(stream).join("event_day=2016-06-14");
            std::fs::read_dir(day).map_or(0, |files| files.count())
        });
        let retired = number(
            &pool,
            "select count(*) from tidemark.view_version where retired_at is not null and dropped_at is null",
        )
        .await;
        if old == [0, 0] && retired == 0 {
            Ok(())
        } else {
            Err(format!("{old:?}, {retired}: {}", schedule.logged()))
        }
    })
    .await;
    assert_eq!(schedule.stop().await, 0);
    let removed =
        "select string_agg(distinct event_day::text, ' ') from tidemark.segment where deleted_at is not null";
    let removed: String = sqlx::query_scalar(removed).fetch_one(&pool).await.expect("days");
    assert_eq!(removed, "2016-06-14 2016-06-15");
    let facts = "select string_agg(inhrelid::regclass::text, ' ' order by 1) from pg_inherits
                 where inhparent = 'facts.page_views'::regclass";
    let facts: String = sqlx::query_scalar(facts).fetch_one(&pool).await.expect("partitions");
    assert_eq!(facts.replace("facts.page_views_", ""), "20160615 20160616 20160617");
    compare_views(&stack, &pool, &stack.oracle()).await;

    let error = refused(&stack, &["backfill", "--from", "2016-06-14", "--to", "2016-06-14"], ALL).await;
    assert!(error.contains("day 2016-06-14 can't be computed anew"), "{error}");
    let late = Options { records: 1, click_share: 0.0, near_repeats: 0.0, malformed: 0.0, ..options(1) };
    let late: Vec<Delivery> = Generator::new(late, 25).collect();
    assert_eq!(late.len(), 1);
    let before =
        number(&pool, "select count(*) from metrics.user_view_cnt where bucket < '2016-06-15'").await;
    send_and_archive(&stack, &late).await;
    done(&stack, &[&["run"][..], &retention].concat(), ALL).await;
    compare_views(&stack, &pool, &stack.oracle()).await;
    let after = number(&pool, "select count(*) from metrics.user_view_cnt where bucket < '2016-06-15'").await;
    assert!(before > 100 && (before..=before + 1).contains(&after), "{before} rows, then {after}");
    let versions: Vec<(String, bool)> = sqlx::query_as(VERSIONS).fetch_all(&pool).await.expect("versions");
    let day = |day: &str, partial| (format!("2016-06-{day}"), partial);
    assert_eq!(versions, [day("14", true), day("15", false), day("16", false), day("17", false)]);
    let (_process, serving) = stack.serving().await;
    let since = |day: &str| json!({ "metrics": ["user_view_cnt"], "from": day, "to": "2016-06-18" });
    assert_eq!(serving.facts(&since("2016-06-15")).await.expect("records")["complete"], true);
    let lacking = serving.facts(&since("2016-06-14")).await.expect("records");
    let why = "stream page_views has records that its facts lack (2016-06-14)";
    assert_eq!(lacking["incomplete_because"], json!([why]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metric_is_tried_out_before_it_is_published() {
    let mut stack = Stack::start(LAYERS, 2).await;
    stack.send(&deliveries(3_000, 25));
    stack.run_past_the_end().await;
    let (oracle, shipped) = (stack.oracle(), outbrain());
    let (hashes, tidemark) = (stack.live_hashes().await, stack.tidemark().await);
    // A metric that no run knows yet.
    let tried = "\n[metrics.country_view_cnt]\nstream = \"page_views\"\nby = [\"country\"]\naggregate = \"count\"\n\
                 grain = \"1d\"\n";
    stack.rewrite_catalog(&(shipped.clone() + tried));
    let day = DateTime::from_timestamp_millis(options(1).start).expect("a time").date_naive();
    let (day, from) =
        (day.to_string(), day.and_hms_opt(0, 0, 0).expect("midnight").and_utc().timestamp_millis());
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for fact in
        oracle.facts().iter().filter(|fact| !fact.click && (from..from + 86_400_000).contains(&fact.time))
    {
        let country = fact.geo.as_deref().map_or("NULL", |geo| geo.split('>').next().expect("one part"));
        *counts.entry(country.to_owned()).or_default() += 1;
    }
    let mut expected: Vec<(u64, String)> =
        counts.into_iter().map(|(country, count)| (count, country)).collect();
    expected.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let said = done(&stack, &["preview", "country_view_cnt", "--day", &day, "--rows", "3"], ALL).await;
    let shown: Vec<&str> = said.lines().filter(|line| line.starts_with("2016-")).collect();
    assert_eq!(shown.len(), 3, "{said}");
    for (line, (count, _)) in shown.iter().zip(&expected) {
        let (rest, value) = line.rsplit_once(' ').expect("columns");
        let country = rest.split_whitespace().nth(1).expect("a country");
        assert_eq!(value.parse(), Ok(*count), "{said}");
        assert!(expected.contains(&(*count, country.to_owned())), "{line}: {expected:?}");
    }
    let keys = expected.len();
    let cost = format!("country_view_cnt on {day}: {keys} cells of {keys} keys");
    assert!(said.contains(&cost) && said.contains("nothing was written") && keys > 3, "{cost}: {said}");
    let newest = done(&stack, &["preview", "country_view_cnt"], ALL).await;
    assert!(newest.contains("country_view_cnt on 2016-06-14"), "{newest}");

    let unknown = refused(&stack, &["preview", "contry_view_cnt"], ALL).await;
    assert!(unknown.contains("it has active_user, country_view_cnt"), "{unknown}");
    let empty = refused(&stack, &["preview", "country_view_cnt", "--day", "2016-06-30"], ALL).await;
    assert!(empty.contains("for 2016-06-30; it has days from 2016-06-14 to 2016-06-14"), "{empty}");
    assert_eq!(
        (stack.live_hashes().await, stack.tidemark().await),
        (hashes, tidemark),
        "nothing was written"
    );
}
