//! Changes of the catalog under way: metrics added, changed and removed, streams that gain, lose and retype fields.
//!
//! What isn't whole yet says so, what wasn't touched goes on, and what is gone takes its data with it.

use local::compare;
use local::oracle::{METRICS, Metric, Oracle};
use local::probe::Serving;
use serde_json::json;
use shared_model::catalog::Catalog;
use simulator::generate::{Delivery, Generator, Options};
use std::collections::BTreeMap;
use tidemark_tests::events::{total, town};
use tidemark_tests::redis_client::{ask, connect};
use tidemark_tests::shop::events::Record;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

fn options(records: u64) -> Options {
    Options { near_repeats: 0.03, late: 0.0, ..town(records) }
}

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    Generator::new(options(records), seed).collect()
}

/// Replaces one part of a catalog's text.
fn with(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} stands once in the catalog");
    text.replace(from, to)
}

/// Leaves a metric's section out.
fn without(text: &str, metric: &str) -> String {
    let start = text.find(&format!("[metrics.{metric}]")).expect("the metric's section");
    let end = text[start + 1..].find("\n[").map_or(text.len(), |at| start + 1 + at + 1);
    format!("{}{}", &text[..start], &text[end..])
}

/// Page views of each geo, which the shipped catalog doesn't have.
const GEO_VIEWS: Metric = Metric {
    name: "geo_view_cnt",
    views: true,
    clicks: false,
    key: |fact| vec![fact.geo.clone()],
    distinct: None,
    columns: &["geo_location"],
    top_k: false,
};

fn shipped(name: &str) -> &'static Metric {
    METRICS.iter().find(|metric| metric.name == name).expect("a shipped metric")
}

/// What is wrong with a metric's answer: cells that differ from the oracle's, or why it isn't complete.
async fn wrong(serving: &Serving, oracle: &Oracle, metric: &Metric, grain: i64) -> Result<(), String> {
    let (found, answer) = compare::cells(serving, metric).await.map_err(|error| format!("{error:#}"))?;
    if answer["complete"] != true {
        return Err(format!("{}: {}", metric.name, answer["incomplete_because"]));
    }
    let (from, to) = (local::oracle::BELIEVABLE.start, local::oracle::BELIEVABLE.end);
    let expected = oracle.count(metric, from, to, grain);
    if found == expected { Ok(()) } else { Err(format!("{}: the cells differ", metric.name)) }
}

async fn becomes(serving: &Serving, oracle: &Oracle, metrics: &[(&Metric, i64)], when: &str) {
    wait_for(when, async || {
        for (metric, grain) in metrics {
            wrong(serving, oracle, metric, *grain).await?;
        }
        Ok(())
    })
    .await;
}

const MINUTE: i64 = 60_000;

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_are_added_changed_and_removed_leave_the_others_as_they_are() {
    let mut stack = Stack::with_catalog(LAYERS, 2, &outbrain()).await;
    let (speed, old_process, old) = stack.layers().await;
    stack.send(&deliveries(3_000, 111));
    stack.settle().await;
    stack.run_past_the_end().await;
    // Days later, so that the run after the change finds days that it needn't touch for what it has.
    let start = Options::default().start + 3 * 24 * 60 * MINUTE;
    let later = Options { start, ..options(3_000) };
    stack.send(&Generator::new(later, 112).collect::<Vec<_>>());
    stack.settle().await;
    let oracle = stack.oracle();
    stack.becomes(&old, &oracle, "before the change").await;

    let added = "[metrics.geo_view_cnt]\nstream = \"page_views\"\nby = [\"geo_location\"]\naggregate = \"count\"\n\
                 window = \"5m\"\ngrain = \"20m\"\n\n[metrics.doc_cnt]";
    let changed = with(&without(&outbrain(), "display_cnt"), "[metrics.doc_cnt]", added);
    let doc = changed.find("[metrics.doc_cnt]").expect("its section");
    let (head, tail) = changed.split_at(doc);
    let changed = format!("{head}{}", tail.replacen("grain = \"5m\"", "grain = \"1h\"", 1));
    let parsed = Catalog::from_toml(&changed).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(parsed.metric("doc_cnt").expect("kept").grain.width(), 60 * MINUTE);
    stack.rewrite_catalog(&changed);

    // The workers change first: whoever still serves by the old catalog keeps all that the change doesn't touch.
    assert_eq!(speed.stop().await, 0);
    let _speed = stack.speed();
    let untouched = [(shipped("user_view_cnt"), 20 * MINUTE), (shipped("user_click_cnt"), 20 * MINUTE)];
    becomes(&old, &oracle, &untouched, "the old serving layer while the workers have changed").await;
    let (_process, serving) = stack.serving().await;
    stack.settle().await;
    becomes(&serving, &oracle, &untouched, "what was not touched, before a run").await;
    for metric in [&GEO_VIEWS, shipped("doc_cnt")] {
        let why =
            wrong(&serving, &oracle, metric, 20 * MINUTE).await.expect_err("its history isn't computed");
        assert!(why.contains("not computed yet"), "{why}");
    }
    let unknown = serving.query(&total("display_cnt")).await.expect_err("a metric that is gone");
    let unknown = format!("{unknown:#}");
    assert!(unknown.contains("display_cnt") && unknown.contains("unknown_metric"), "{unknown}");

    // One run computes the history of what is new; what is gone is kept for those who still work by the old catalog.
    stack.batch(&["run"]).await;
    stack.settle().await;
    let whole = [untouched[0], untouched[1], (&GEO_VIEWS, 20 * MINUTE), (shipped("doc_cnt"), 60 * MINUTE)];
    becomes(&serving, &oracle, &whole, "after the run").await;
    stack.verify_groups("after the change").await;
    drop(old_process);
    let pool = sqlx::PgPool::connect(&stack.database).await.expect("postgres");
    let kept = "select count(*) from tidemark.live_version where orphaned_at is not null";
    let kept: i64 = sqlx::query_scalar(kept).fetch_one(&pool).await.expect("pointers");
    let left = "select count(*) from tidemark.view_version
                where metric = 'display_cnt' and table_name is not null and dropped_at is null";
    assert!(kept > 0, "the old versions are kept for the grace");
    stack.batch(&["run", "--removed-grace", "0s", "--version-grace", "0s"]).await;
    stack.batch(&["run", "--removed-grace", "0s", "--version-grace", "0s"]).await;
    let left: i64 = sqlx::query_scalar(left).fetch_one(&pool).await.expect("versions");
    assert_eq!(left, 0, "tables of the removed metric");
    let views = "select count(*) from pg_views where schemaname = 'metrics' and viewname = 'display_cnt'";
    let views: i64 = sqlx::query_scalar(views).fetch_one(&pool).await.expect("views");
    assert_eq!(views, 0, "views of the removed metric");
    let mut redis = connect(&stack.redis.url()).await;
    wait_for("the plain keys of the removed metric going", async || {
        let keys: Vec<String> = ask(&mut redis, &["KEYS", "display_cnt_5m:*"]).await;
        if keys.is_empty() { Ok(()) } else { Err(format!("{} keys", keys.len())) }
    })
    .await;
    becomes(&serving, &oracle, &whole, "after the old data went").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_files_stay_readable_when_a_stream_gains_or_loses_a_field_and_refuse_another_type() {
    let mut stack = Stack::with_catalog(LAYERS, 1, &outbrain()).await;
    stack.batch(&["run"]).await;
    stack.send(&deliveries(2_000, 121));
    stack.run_past_the_end().await;
    // Gained: a field that nothing had before, and a metric by it. Lost: a field that no metric uses.
    let fields = "fields = { uuid = \"string\", document_id = \"int\", timestamp = \"int\", platform = \"int\", \
                  geo_location = \"string\", traffic_source = \"int\" }";
    let gained = fields.replace("traffic_source = \"int\"", "referrer = \"string\"");
    let metric = "[metrics.referrer_cnt]\nstream = \"page_views\"\nby = [\"referrer\"]\naggregate = \"count\"\n\
                  grain = \"1h\"\n\n[metrics.doc_cnt]";
    let changed = with(&with(&outbrain(), fields, &gained), "[metrics.doc_cnt]", metric);
    stack.rewrite_catalog(&changed);
    let _speed = stack.speed();
    stack.batch(&["run"]).await;
    let (_process, serving) = stack.serving().await;
    let referred =
        br#"{"uuid":"new","document_id":7,"timestamp":1000,"platform":1,"geo_location":"US","referrer":"r"}"#;
    stack.send_records(&[Record { topic: "page_views", key: "new".to_owned(), value: referred.to_vec() }]);
    stack.settle().await;
    let oracle = stack.oracle();
    stack.becomes(&serving, &oracle, "by the new definition, half in realtime").await;
    let by_referrer = async || {
        let query = json!({
            "metrics": ["referrer_cnt"], "group_by": ["referrer"], "strict": true,
            "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z",
        });
        let answer = serving.query(&query).await.expect("a complete answer");
        let row = |row: &serde_json::Value| {
            (row["key"]["referrer"].to_string(), row["values"]["referrer_cnt"].as_i64().expect("a count"))
        };
        answer["rows"].as_array().expect("rows").iter().map(row).collect::<BTreeMap<_, _>>()
    };
    let views = oracle.facts().iter().filter(|fact| !fact.click).count() as i64;
    let expected = BTreeMap::from([("null".to_owned(), views - 1), ("\"r\"".to_owned(), 1)]);
    assert_eq!(by_referrer().await, expected);
    stack.batch(&["run"]).await;
    stack.batch(&["backfill", "--from", "2016-06-13", "--to", "2016-06-30"]).await;
    stack.settle().await;
    assert_eq!(by_referrer().await, expected, "from files with the field and without");
    stack.becomes(&serving, &oracle, "old files by the new definition").await;

    // Retyped: what lies in the archive can't be read by that; the reason is said and nothing changes.
    let hashes = stack.live_hashes().await;
    let retyped = gained.replace("platform = \"int\"", "platform = \"string\"");
    stack.rewrite_catalog(&with(&changed, &gained, &retyped));
    let run = stack.batch_process(&["run", "--day", "2016-06-14"]);
    assert_ne!(run.ended().await, 0);
    let said = run.logged();
    assert!(said.contains("field platform of stream page_views"), "{said}");
    assert!(said.contains("give the field a new name"), "{said}");
    assert_eq!(stack.live_hashes().await, hashes);
}
