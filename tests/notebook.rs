//! `infra/notebook` on real servers across the seam, with an API key and as the reading role: it runs to its end, and what
//! it found equals the oracle's counts.

use local::install::{self, Installing, Need};
use local::oracle::{BELIEVABLE, Key, METRICS, Oracle};
use serde_json::{Value, json};
use simulator::generate::{Generator, Options};
use sqlx::{Connection as _, PgConnection};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use tidemark_tests::events::town;
use tidemark_tests::stack::Stack;
use tokio::process::Command;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const ROLES: &str = include_str!("../infra/postgres/roles.sql");
const NOTEBOOK: &str = include_str!("../infra/notebook/tidemark.ipynb");
const HOUR: i64 = 3_600_000;
/// How wide the buckets of page views are kept.
const GRAIN: i64 = 1_200_000;
const ALL: i64 = i64::MAX;

#[tokio::test(flavor = "multi_thread")]
async fn the_notebook_finds_what_the_oracle_counts() {
    let mut stack = Stack::start(LAYERS, 2).await;
    grant(&stack).await;
    let access = stack.database.replace("tidemark@", "tidemark_access@");
    stack.environment.push(("TIDEMARK_ACCESS".to_owned(), access));
    let token = key(&stack).await;
    let (_speed, _process, serving) = stack.layers().await;
    let deliveries: Vec<_> = Generator::new(Options { span: 5 * HOUR, ..town(6_000) }, 137).collect();
    let (below, above) = deliveries.split_at(4_000);
    stack.send(below);
    stack.settle().await;
    stack.run_past_the_end().await;
    let at_run = stack.oracle();
    stack.send(above);
    stack.settle().await;
    let all = stack.oracle();
    // Now that there are views, to read them.
    grant(&stack).await;

    let reader = stack.database.replace("tidemark@", "tidemark_reader@");
    let variables =
        [("TIDEMARK_URL", &serving.url), ("TIDEMARK_KEY", &token), ("TIDEMARK_POSTGRES", &reader)];
    let found = figures(&run(&variables).await);
    assert!(found["run"].is_i64(), "{found}");
    let metrics = stack.catalog.metrics.iter().map(|metric| metric.name.as_str());
    assert_eq!(found, expected(&all, &at_run, metrics.collect(), &found["run"]));
}

/// What the notebook is to find, of data that leaves something to be found.
fn expected(all: &Oracle, at_run: &Oracle, metrics: Vec<&str>, run: &Value) -> Value {
    let hours: Vec<i64> = buckets(all, "user_view_cnt", HOUR).iter().map(|(views, _)| *views).collect();
    let views: i64 = hours.iter().sum();
    let batch = buckets(at_run, "user_view_cnt", GRAIN);
    let since = views - batch.iter().map(|(views, _)| views).sum::<i64>();
    let clicks = count(all, "user_click_cnt", ALL);
    let mut top: Vec<((i64, Key), i64)> = count(all, "user_view_cnt", ALL).into_iter().collect();
    top.sort_by_key(|((_, key), views)| (Reverse(*views), key.clone()));
    let top =
        top.iter().take(10).map(|(cell, views)| json!([cell.1[0], views, clicks.get(cell).unwrap_or(&0)]));
    let users: i64 = count(all, "active_user", ALL).into_values().sum();
    let users_by_hour: Vec<i64> = count(all, "active_user", HOUR).into_values().collect();
    assert!(hours.len() > 3 && batch.len() > 5 && since > 100, "{hours:?} {batch:?} {since}");
    assert!(users_by_hour.iter().sum::<i64>() > users, "{users_by_hour:?} {users}");
    json!({
        "metrics": metrics, "complete": true, "views": views, "hours": hours, "hours_in_pandas": hours,
        "top": top.collect::<Vec<_>>(), "users": users, "users_by_hour": users_by_hour,
        "run": run, "batch": batch, "since": since,
    })
}

/// What a metric counts, by bucket and key.
fn count(oracle: &Oracle, name: &str, width: i64) -> BTreeMap<(i64, Key), i64> {
    let metric = METRICS.iter().find(|metric| metric.name == name).expect("a shipped metric");
    oracle.count(metric, BELIEVABLE.start, BELIEVABLE.end, width)
}

/// Of each bucket what a metric counts, and how many keys it has.
fn buckets(oracle: &Oracle, name: &str, width: i64) -> Vec<(i64, i64)> {
    let mut buckets: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for ((bucket, _), count) in count(oracle, name, width) {
        let (sum, keys) = buckets.entry(bucket).or_default();
        (*sum, *keys) = (*sum + count, *keys + 1);
    }
    buckets.into_values().collect()
}

/// Makes the roles, and lets them read what is there.
async fn grant(stack: &Stack) {
    let mut owner = PgConnection::connect(&stack.database).await.expect("postgres");
    sqlx::raw_sql(ROLES).execute(&mut owner).await.expect("roles");
}

/// A key that reads all.
async fn key(stack: &Stack) -> String {
    let command = ["keys", "create", "notebook", "--read", "*"];
    let create = stack.process_named("serving-layer", "keys", &command, &["catalog"]);
    let code = create.ended().await;
    let said = create.logged();
    assert_eq!(code, 0, "{said}");
    said.lines().find(|line| line.starts_with("tm_")).unwrap_or_else(|| panic!("no token: {said}")).to_owned()
}

/// Runs the notebook to its end; gives it with its outputs.
///
/// # Panics
/// Where a cell fails, with the cell and its traceback.
async fn run(variables: &[(&str, &String)]) -> Value {
    let ensure = || install::ensure(&[Need::Python], Installing::Yes, &mut |_| {});
    let found = tokio::task::spawn_blocking(ensure).await.expect("the search for Python").expect("Python");
    let home = tempfile::tempdir().expect("a folder");
    let out = home.path().join("executed.ipynb");
    let ran = Command::new(found.python.expect("Python"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/notebook/run.py"))
        .arg(&out)
        .envs(variables.iter().copied())
        // There Jupyter looks for settings, and writes its own.
        .env("HOME", home.path())
        .env("no_proxy", "127.0.0.1")
        .kill_on_drop(true)
        .output()
        .await
        .expect("the notebook's run");
    let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
    assert!(ran.status.success(), "{said}");
    serde_json::from_slice(&std::fs::read(out).expect("the notebook as it ran")).expect("JSON")
}

fn cells(notebook: &Value) -> &Vec<Value> {
    notebook["cells"].as_array().expect("cells")
}

/// What its last cell printed.
fn figures(notebook: &Value) -> Value {
    let outputs = &cells(notebook).last().expect("a cell")["outputs"];
    let lines = outputs[0]["text"].as_array().unwrap_or_else(|| panic!("no text: {outputs}"));
    let text: String = lines.iter().filter_map(Value::as_str).collect();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Outputs are of a day and of whoever ran it.
#[test]
fn it_is_kept_without_outputs() {
    let notebook: Value = serde_json::from_str(NOTEBOOK).expect("JSON");
    let (code, text): (Vec<&Value>, Vec<&Value>) =
        cells(&notebook).iter().partition(|cell| cell["cell_type"] == "code");
    assert!(code.len() >= 8 && text.len() >= 8, "{} and {} cells", code.len(), text.len());
    for cell in code {
        assert!(cell["outputs"] == json!([]) && cell["execution_count"].is_null(), "{cell}");
    }
}
