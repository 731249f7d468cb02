//! The seam, measured on real servers: at each move of the tidemark the audit compares what a reader would have had with
//! what is published. Clean runs raise no alarm, lost records are caught in the first, repeats heal and are shown, and a
//! boundary that the speed layer has elsewhere makes answers incomplete until the group is rebuilt.
//!
//! The long form: `TIDEMARK_RUNS=100 cargo test --workspace --test audit clean -- --nocapture`.

use local::oracle;
use local::probe::Serving;
use serde_json::Value;
use shared_model::aggregate::{Aggregate, State};
use shared_model::catalog::Catalog;
use shared_model::view::{self, CellId, Cells, Header, Slice};
use simulator::generate::{Delivery, Generator, Options};
use std::collections::BTreeMap;
use tidemark_tests::redis_client::connect;
use tidemark_tests::stack::{Stack, free_port, outbrain};
use tidemark_tests::{number, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// What an audited run connects to.
const ALL: &[&str] = &["catalog", "kafka", "redis", "postgres", "archive"];
/// What the others connect to.
const NO_REDIS: &[&str] = &["catalog", "kafka", "postgres", "archive"];

fn deliveries(options: Options, seed: u64) -> Vec<Delivery> {
    generator(options, seed).collect()
}

fn generator(options: Options, seed: u64) -> Generator {
    let options = Options {
        span: 3 * 3_600_000,
        users: 400,
        documents: 100,
        displays: 150,
        geos: 20,
        disorder: 0.2,
        late: 0.02,
        malformed: 0.005,
        ..options
    };
    Generator::new(options, seed)
}

/// A stack whose streams recognise repeats within so many offsets.
async fn start(horizon: i64) -> Stack {
    let bounds = r#"bounds = { from = "2016-06-13", to = "2016-07-01" }"#;
    let text = outbrain().replace(bounds, &format!("{bounds}\ndedup_horizon = {horizon}"));
    assert_eq!(Catalog::from_toml(&text).expect("valid").streams[0].dedup_horizon, horizon);
    let stack = Stack::with_catalog(LAYERS, 2, &text).await;
    stack.batch(&["run"]).await;
    stack
}

/// Runs a batch command to its end; gives its exit code and what it said.
async fn ended(stack: &Stack, command: &[&str], connections: &[&str]) -> (i32, String) {
    let layer = stack.process("batch-layer", command, connections);
    (layer.ended().await, layer.logged())
}

/// The newest runs' records, the newest first.
async fn runs(stack: &Stack, limit: usize) -> Vec<Value> {
    let command = ["runs", "--json", "--limit", &limit.to_string()];
    let layer = stack.process("batch-layer", &command, &["postgres"]);
    assert_eq!(layer.ended().await, 0, "{}", layer.logged());
    let said = layer.logged();
    let lines = said.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).expect("JSON")).take(limit).collect()
}

/// Sends deliveries and archives them: whole once the epoch that they came in is over. The tidemark stays.
async fn send_and_archive(stack: &Stack, deliveries: &[Delivery]) {
    stack.send(deliveries);
    let valid = |delivery: &&Delivery| oracle::parse(delivery.stream, &delivery.value).is_some();
    let whole = format!("with {} rows beyond the tidemark", deliveries.iter().filter(valid).count());
    wait_for("all records archived", async || {
        let (code, said) = ended(stack, &["archive"], NO_REDIS).await;
        assert_eq!(code, 0, "{said}");
        if said.contains(&whole) { Ok(()) } else { Err(format!("{whole}: {said}")) }
    })
    .await;
}

/// The same, and waits for the realtime view; then runs. Gives the exit code and the run's record.
async fn audited_run(stack: &Stack, deliveries: &[Delivery], options: &[&str]) -> (i32, Value) {
    send_and_archive(stack, deliveries).await;
    stack.settle().await;
    run(stack, options).await
}

async fn run(stack: &Stack, options: &[&str]) -> (i32, Value) {
    let (code, said) = ended(stack, &[&["run"], options].concat(), ALL).await;
    let record = runs(stack, 1).await.remove(0);
    assert!(!record["audit"].is_null(), "{said}\n{record}");
    println!("run {}: exit {code}, {}", record["run_id"], record["audit"]);
    (code, record)
}

fn is_clean(record: &Value) -> bool {
    let audit = &record["audit"];
    let wrong = ["missing", "extra", "different"].map(|kind| audit[kind].as_i64());
    audit["status"] == "whole"
        && audit["alarm"] == false
        && wrong == [Some(0); 3]
        && audit["error"].as_f64() == Some(0.0)
        && audit["cells"].as_i64() > Some(100)
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_runs_raise_no_alarm_and_show_which_repeats_healed() {
    // Near repeats lie within it; far ones of page views beyond, every other one on the other side of a tidemark.
    let stack = start(300).await;
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let repeats =
        Options { near_repeats: 0.05, far_repeats: 0.05, far_distance: 1_200, ..Options::default() };
    let records = 2_500 * number("TIDEMARK_RUNS").unwrap_or(6);
    let all = deliveries(Options { records, ..repeats.clone() }, 41);
    let mut kinds = BTreeMap::<&str, i64>::new();
    let mut healed = 0;
    for part in all.chunks(2_500) {
        let (code, record) = audited_run(&stack, part, &["--strict-audit", "0"]).await;
        assert!(code == 0 && record["status"] == "done" && is_clean(&record), "{record}");
        for kind in ["within_horizon", "beyond_horizon", "across_tidemark", "across_partitions"] {
            *kinds.entry(kind).or_default() += record["audit"]["repeats"][kind].as_i64().expect("a number");
        }
        healed += record["audit"]["healed"].as_i64().expect("a number");
    }
    println!("{} clean runs; repeats: {kinds:?}", all.len().div_ceil(2_500));
    let of = |kind| kinds[kind];
    assert!(
        of("within_horizon") > 100 && of("beyond_horizon") > 20 && of("across_tidemark") > 20,
        "{kinds:?}"
    );
    assert_eq!(of("across_partitions"), 0, "the key brings an event's copies into one partition");
    assert_eq!(healed, of("beyond_horizon") + of("across_tidemark"));
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after the last run").await;
    // What is imported is no error either: the beginning of the log again, and a history of its own.
    import(&stack, generator(Options { records, ..repeats }, 41), 3_000).await;
    import(&stack, generator(Options { records: 1_500, ..Options::default() }, 45), 1_500).await;
    let more = deliveries(Options { records: 1_000, ..Options::default() }, 46);
    let (code, record) = audited_run(&stack, &more, &["--strict-audit", "0"]).await;
    assert!(code == 0 && is_clean(&record), "{record}");
    assert_eq!(record["imports"].as_array().map(Vec::len), Some(4), "{record}");
    the_api_lists_audits(&stack, &serving.url).await;
    prometheus_shows_audits(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_memory_does_not_hold_is_audited_in_several_passes() {
    let stack = start(300).await;
    let _speed = stack.speed();
    let repeats =
        Options { near_repeats: 0.05, far_repeats: 0.05, far_distance: 1_200, ..Options::default() };
    send_and_archive(&stack, &deliveries(Options { records: 25_000, ..repeats }, 47)).await;
    stack.settle().await;
    let (code, said) = ended(&stack, &["run", "--strict-audit", "0", "--memory", "1"], ALL).await;
    let record = runs(&stack, 1).await.remove(0);
    assert!(code == 0 && is_clean(&record) && !said.contains(" in 1 passes"), "{said}\n{record}");
}

/// Imports the first deliveries of a generator as files.
async fn import(stack: &Stack, generator: Generator, wanted: u64) {
    let scratch = tempfile::tempdir().expect("a folder");
    let path = |stream: &str| scratch.path().join(format!("{stream}.csv"));
    let mut files =
        ["page_views", "events"].map(|stream| std::fs::File::create(path(stream)).expect("a file"));
    generator.write_csv(&mut files, |written| written < wanted).expect("files");
    for stream in ["page_views", "events"] {
        let file = path(stream).display().to_string();
        let (code, said) =
            ended(stack, &["import", "--stream", stream, &file], &["catalog", "archive"]).await;
        assert_eq!(code, 0, "{said}");
    }
}

async fn the_api_lists_audits(stack: &Stack, serving: &str) {
    let answer = reqwest::get(format!("{serving}/api/v1/audit?limit=2")).await.expect("an answer");
    let answer: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
    let records = runs(stack, 2).await;
    for (listed, record) in answer["runs"].as_array().expect("a list").iter().zip(&records) {
        assert_eq!((&listed["run"], &listed["audit"]), (&record["run_id"], &record["audit"]));
        assert_eq!(listed["generation_after"], record["generation_after"]);
    }
    assert_eq!(answer["runs"].as_array().map(Vec::len), Some(2));
}

async fn prometheus_shows_audits(stack: &Stack) {
    let listen = format!("127.0.0.1:{}", free_port());
    let schedule = stack.process("batch-layer", &["schedule", "--every", "1s", "--listen", &listen], ALL);
    stack.send(&deliveries(Options { records: 500, ..Options::default() }, 42));
    wait_for("audited cells in the metrics", async || {
        let answer =
            reqwest::get(format!("http://{listen}/metrics")).await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let cells = text.lines().find_map(|line| line.strip_prefix("tidemark_audit_cells_total "));
        let some = cells.and_then(|cells| cells.parse::<u64>().ok()) > Some(100);
        let quiet = text.lines().any(|line| line == "tidemark_audit_alarm 0");
        let each = text.contains("tidemark_audit_error{metric=\"user_view_cnt\"} 0");
        if some && quiet && each { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(schedule.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lost_record_in_a_thousand_is_caught_in_the_first_run() {
    let stack = start(1_000_000).await;
    let mut speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let all = deliveries(Options { records: 12_000, ..Options::default() }, 43);
    let parts: Vec<&[Delivery]> = all.chunks(all.len().div_ceil(3)).collect();

    send_and_archive(&stack, parts[0]).await;
    stack.settle().await;
    // Not under its hands: it may be merging segments.
    speed.kill();
    let (lost, all_of_them) = lose(&stack, "user_view_cnt", 1_000).await;
    speed.restart().expect("restarted");
    println!("{lost} of {all_of_them} records lost");
    let generation = runs(&stack, 1).await[0]["generation_after"].clone();
    let (code, refused) = run(&stack, &["--strict-audit", "0.0005"]).await;
    assert_eq!(
        (code, &refused["status"], &refused["generation_after"]),
        (5, &"refused".into(), &Value::Null)
    );
    assert!(refused["error"].as_str().is_some_and(|why| why.contains("user_view_cnt")), "{refused}");
    let metric = &refused["audit"]["metrics"]["user_view_cnt"];
    assert_eq!(metric["distance"].as_f64(), Some(lost as f64), "each lost record is counted: {metric}");
    let error = metric["error"].as_f64().expect("a number");
    assert!((0.000_9..0.002).contains(&error) && metric["examples"][0]["key"].is_array(), "{metric}");
    assert_eq!(refused["audit"]["alarm"], true);
    assert_eq!(refused["audit"]["metrics"]["doc_cnt"]["error"].as_f64(), Some(0.0));

    // Published all the same, since the archive is right; what comes then is clean again.
    let (code, record) = run(&stack, &["--strict-audit", "0.01"]).await;
    assert_eq!((code, &record["status"], &record["audit"]["alarm"]), (0, &"done".into(), &true.into()));
    assert_eq!(record["generation_before"], generation, "the refused run moved nothing");
    let (code, record) = audited_run(&stack, parts[1], &["--strict-audit", "0"]).await;
    assert!(code == 0 && is_clean(&record), "{record}");

    // Without a speed layer nothing can be compared: said, and no reason to refuse.
    speed.kill();
    send_and_archive(&stack, parts[2]).await;
    let (code, record) = run(&stack, &["--strict-audit", "0", "--audit-patience", "300ms"]).await;
    let because = record["audit"]["not_audited"].to_string();
    assert!(code == 0 && record["status"] == "done" && record["audit"]["status"] == "none", "{record}");
    assert!(because.contains("reached only offset"), "{because}");
    speed.restart().expect("restarted");
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after all").await;
}

/// Makes the realtime view lose one in `of` of a metric's records, spread over its stored cells.
async fn lose(stack: &Stack, metric: &str, of: u64) -> (u64, u64) {
    let version = stack.catalog.metric(metric).expect("shipped").version;
    let known: BTreeMap<_, &Aggregate> =
        stack.catalog.metrics.iter().map(|metric| (metric.version, &metric.aggregate)).collect();
    let mut connection = connect(&stack.redis.url()).await;
    let (mut all, mut lost) = (0, 0);
    for (tp, group) in stack.probe.headers().await.expect("headers").into_keys() {
        let key = view::group_key(&tp, group, stack.probe.groups);
        let fields: BTreeMap<String, Vec<u8>> =
            redis::cmd("HGETALL").arg(&key).query_async(&mut connection).await.expect("a group");
        for (field, bytes) in fields {
            let Some((Slice::Epoch(_), _)) = view::parse_segment_field(&field) else { continue };
            let mut cells = Cells::new();
            let take = |version, key: &[u8], bucket, state| {
                cells.insert(CellId { version, key: key.into(), bucket }, state);
                Ok(())
            };
            view::unpack(&bytes, |version| known.get(&version).copied(), take).expect("a segment");
            let mut spoiled = false;
            for (id, state) in &mut cells {
                let State::Count(count) = state else { continue };
                if id.version == version {
                    all += *count;
                    if lost * of < all && *count > 0 {
                        (*count, lost, spoiled) = (*count - 1, lost + 1, true);
                    }
                }
            }
            cells.retain(|_, state| *state != State::Count(0));
            if spoiled {
                let packed = view::pack(&cells);
                let () = redis::cmd("HSET")
                    .arg(&key)
                    .arg(&field)
                    .arg(packed)
                    .query_async(&mut connection)
                    .await
                    .expect("spoiled");
            }
        }
    }
    (lost, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_elsewhere_makes_answers_incomplete_until_the_group_is_rebuilt() {
    let stack = start(1_000_000).await;
    let mut speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let all = deliveries(Options { records: 6_000, ..Options::default() }, 44);
    let (first, second) = all.split_at(3_000);

    // The speed layer is down when the tidemark moves: found by readers, and by the next claim.
    send_and_archive(&stack, first).await;
    stack.settle().await;
    speed.kill();
    move_boundaries(&stack).await;
    stack.batch(&["run"]).await;
    let answer = serving.query(&views()).await.expect("an answer");
    let because = answer["incomplete_because"].to_string();
    assert!(answer["complete"] == false && because.contains("was not cut where the tidemark is"), "{answer}");
    speed.restart().expect("restarted");
    is_whole_again(&stack, &serving, "claimed").await;

    // It is at work when the tidemark moves: found by the audit, and by the worker itself.
    send_and_archive(&stack, second).await;
    stack.settle().await;
    speed.kill();
    let moved = move_boundaries(&stack).await;
    speed.restart().expect("restarted");
    let (code, record) = run(&stack, &["--strict-audit", "0"]).await;
    let audit = &record["audit"];
    assert!(code == 0 && audit["alarm"] == true && audit["status"] != "whole", "{record}");
    assert_eq!(audit["cuts"].as_array().map(Vec::len), Some(moved), "{audit}");
    assert_eq!(audit["error"].as_f64(), Some(0.0), "what could be compared is right: {audit}");
    is_whole_again(&stack, &serving, "at work").await;
    stack.verify_groups("after the rebuild").await;
}

fn views() -> Value {
    serde_json::json!({ "metrics": ["user_view_cnt"], "from": "2016-06-13", "to": "2016-07-01" })
}

async fn is_whole_again(stack: &Stack, serving: &Serving, when: &str) {
    wait_for("answers that are complete", async || {
        let answer = serving.query(&views()).await.map_err(|error| format!("{error:#}"))?;
        if answer["complete"] == true { Ok(()) } else { Err(answer["incomplete_because"].to_string()) }
    })
    .await;
    stack.settle().await;
    stack.compare(serving, &stack.oracle(), when).await;
}

/// Makes the newest boundary of each group of one partition that of a much later epoch, and a record too early; gives how
/// many.
async fn move_boundaries(stack: &Stack) -> usize {
    let mut connection = connect(&stack.redis.url()).await;
    let mut moved = 0;
    let headers = stack.probe.headers().await.expect("headers");
    for ((tp, group), mut header) in headers.into_iter().filter(|((tp, _), _)| tp.partition == 0) {
        if &*tp.topic != "page_views" {
            continue;
        }
        assert!(header.cuts.len() > 1, "{tp} group {group}: {header:?}");
        let newest = header.cuts.last_mut().expect("a cut");
        *newest = (newest.0 + 1_000_000, newest.1 - 1);
        let key = view::group_key(&tp, group, stack.probe.groups);
        let json = Header::to_json(&header);
        let set = redis::cmd("HSET").arg(&key).arg(view::HEADER_FIELD).arg(json).to_owned();
        let () = set.query_async(&mut connection).await.expect("moved");
        moved += 1;
    }
    moved
}
