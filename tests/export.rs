//! `serving-layer export` on real servers: what lies in the store is the answer that the API gives as of the same run, to
//! the last row; and where it is refused, what was there stays.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMillisecondType};
use chrono::DateTime;
use local::probe::Serving;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use simulator::generate::Generator;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use tidemark_tests::events::town;
use tidemark_tests::s3::{Api, Behaviour};
use tidemark_tests::stack::Stack;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

/// Asks `export` for a query's answer at a place; its exit code and what it printed and logged.
async fn export(stack: &Stack, query: &Value, to: &str, options: &[&str]) -> (i32, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("query.json");
    std::fs::write(&file, query.to_string()).expect("a query's file");
    let file = file.display().to_string();
    let command = [&["export", "--query", &file, "--to", to], options].concat();
    // A log of its own, of which the end is shown.
    let name = format!("export-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let process = stack.process_named("serving-layer", &name, &command, &["catalog", "redis", "postgres"]);
    let code = process.ended().await;
    (code, process.logged())
}

/// What it promised: the one line that is an object.
fn promised(printed: &str) -> Value {
    let line = printed.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{printed}"));
    serde_json::from_str(line).expect("JSON")
}

fn views(run: &Value) -> Value {
    json!({
        "metrics": ["user_view_cnt", "user_click_cnt",
                    { "name": "ctr", "formula": "cast(user_click_cnt as float) / user_view_cnt" }],
        "group_by": ["uuid"], "granularity": "1h", "at_run": run,
        "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z",
    })
}

/// The row count, the envelope in the metadata, and the rows as the API's JSON has them.
fn read(bytes: Vec<u8>) -> (Value, Vec<Value>) {
    let file = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).expect("a Parquet file");
    let metadata = file.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let envelope =
        metadata.iter().find(|pair| pair.key == "tidemark.envelope").and_then(|pair| pair.value.clone());
    let batches = file.build().expect("a reader").map(|batch| batch.expect("rows"));
    let rows =
        batches.flat_map(|batch| (0..batch.num_rows()).map(|row| self::row(&batch, row)).collect::<Vec<_>>());
    (serde_json::from_str(&envelope.expect("an envelope")).expect("JSON"), rows.collect())
}

fn row(batch: &RecordBatch, row: usize) -> Value {
    let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    let int = |name: &str| {
        let column = column(name).as_primitive::<Int64Type>();
        column.iter().nth(row).flatten()
    };
    let bucket = column("bucket").as_primitive::<TimestampMillisecondType>().value(row);
    let uuid = column("uuid").as_string::<i32>().iter().nth(row).flatten();
    let ctr = column("ctr").as_primitive::<Float64Type>().iter().nth(row).flatten();
    json!({
        "bucket": bucket, "key": { "uuid": uuid },
        "values": { "user_view_cnt": int("user_view_cnt"), "user_click_cnt": int("user_click_cnt"), "ctr": ctr },
    })
}

/// Equal but for the last bit of ratios, which reading JSON may cost.
fn same(rows: &[Value], expected: &[Value]) {
    assert_eq!(rows.len(), expected.len());
    for (row, expected) in rows.iter().zip(expected) {
        let (mut row, mut expected) = (row.clone(), expected.clone());
        let [ours, theirs] = [&mut row, &mut expected].map(|row| row["values"]["ctr"].take());
        assert_eq!(row, expected);
        match (ours.as_f64(), theirs.as_f64()) {
            (Some(ours), Some(theirs)) => assert!((ours - theirs).abs() <= theirs * 1e-15, "{ours} {theirs}"),
            _ => assert_eq!(ours, theirs),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_the_api_s_answer_in_a_file_and_in_a_bucket() {
    let mut stack = Stack::start(LAYERS, 2).await;
    let api = Api::start(Behaviour::default()).await;
    stack.environment.extend(api.environment());
    let (_speed, _process, serving) = stack.layers().await;
    stack.send(&Generator::new(town(3_000), 131).collect::<Vec<_>>());
    stack.settle().await;
    stack.run_past_the_end().await;
    let now = serving
        .query(&json!({ "metrics": ["active_user"], "time_range": "today" }))
        .await
        .expect("an answer");
    let query = views(&now["run"]);
    let mut answer = serving.query(&query).await.expect("the answer");
    for row in answer["rows"].as_array_mut().expect("rows") {
        let at = DateTime::parse_from_rfc3339(row["bucket"].as_str().expect("a time")).expect("RFC 3339");
        row["bucket"] = json!(at.timestamp_millis());
    }
    assert!(answer["rows"].as_array().is_some_and(|rows| rows.len() > 20));

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("views.parquet");
    let here = format!("file://{}", file.display());
    for (to, found) in [
        (here.as_str(), file.clone()),
        ("s3://tidemark/out/views.parquet", api.folder().join("out/views.parquet")),
    ] {
        let (code, printed) = export(&stack, &query, to, &[]).await;
        assert_eq!(code, 0, "{printed}");
        let said = promised(&printed);
        assert_eq!((&said["to"], &said["envelope"]["complete"]), (&json!(to), &answer["complete"]));
        let (envelope, rows) = read(std::fs::read(found).expect("the object"));
        same(&rows, answer["rows"].as_array().expect("rows"));
        assert_eq!(said["rows"], json!(rows.len()));
        for part in ["tidemark", "as_of", "from", "to", "error_bound", "metrics"] {
            assert_eq!(envelope[part], answer[part], "{part}");
        }
    }

    let csv = csv(&serving, &query).await;
    let file = folder.path().join("views");
    let (code, printed) =
        export(&stack, &query, &format!("file://{}", file.display()), &["--as", "csv"]).await;
    assert_eq!((code, std::fs::read(&file).expect("the file")), (0, csv), "{printed}");
    nothing_is_written_of_what_is_refused(&stack, folder.path()).await;
}

async fn csv(serving: &Serving, query: &Value) -> Vec<u8> {
    let mut query = query.clone();
    query["format"] = json!("csv");
    let answer =
        reqwest::Client::new().post(format!("{}/api/v1/query", serving.url)).json(&query).send().await;
    answer.expect("asked").bytes().await.expect("the answer").to_vec()
}

async fn nothing_is_written_of_what_is_refused(stack: &Stack, folder: &Path) {
    let file = folder.join("kept.csv");
    std::fs::write(&file, "as it was").expect("a file");
    let to = format!("file://{}", file.display());
    let faulty =
        json!({ "metrics": ["user_view_cnt"], "group_by": ["uid"], "time_range": "today", "surprise": 1 });
    let several = json!({ "time_range": "today", "queries": { "a": { "metrics": ["active_user"] } } });
    let by_user = json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "from": "2016-06-13", "to": "2016-07-01" });
    let fine = json!({ "metrics": ["active_user"], "time_range": "today" });
    for (query, to, options, expected) in [
        (&faulty, to.as_str(), &[][..], &["group_by", "uid", "surprise"][..]),
        (&several, &to, &[], &["--query", "several queries"]),
        (&fine, "file:///nowhere/else", &[], &["--to", ".parquet", "--as"]),
        (&fine, "nonsense://x/y.csv", &[], &["--to", "nonsense"]),
        (&fine, "memory:///y.csv", &[], &["--to", "memory"]),
        (&by_user, &to, &["--max-rows", "3"], &["--max-rows", "rows, more than the limit of 3"]),
        (&fine, "s3://user:PLANTED@tidemark/y.csv", &[], &["--to", "credentials come from the environment"]),
        (&fine, &to, &["--postgres-connections", "0", "--time-limit", "nonsense"], &["time-limit"]),
    ] {
        let (code, printed) = export(stack, query, to, options).await;
        assert!(code != 0 && expected.iter().all(|word| printed.contains(word)), "{code}: {printed}");
        assert!(!printed.contains("PLANTED"), "{printed}");
    }
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "as it was");
}
