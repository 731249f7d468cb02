//! Imports of files of all kinds into a store in memory.

use super::*;
use crate::archive::samples;
use polars::prelude::{DataFrame, ParquetReader, ParquetWriter, SerReader, df};
use shared_model::catalog::Layout;
use shared_model::epoch::EpochLength;
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

fn catalog() -> Catalog {
    let layout = Layout { epoch: EpochLength(1_000), groups: 4, pane: 10_000 };
    Catalog { layout, streams: vec![samples::stream()], metrics: vec![], formulas: vec![] }
}

async fn run(store: &Store, input: &Path, rows: usize) -> Result<ImportReport> {
    let options = Options { limits: Limits { rows, bytes: 1 << 30 }, ..Options::at(1) };
    import(store, &catalog(), "clicks", &[input.to_string_lossy().into_owned()], &options).await
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

async fn frame(store: &Store, path: &str) -> DataFrame {
    let bytes = store.get(path).await.unwrap().unwrap();
    ParquetReader::new(std::io::Cursor::new(bytes)).finish().unwrap()
}

/// 100 rows over 4 days, with a reject every tenth.
fn csv() -> String {
    let line = |n: i64| match n % 10 {
        3 => format!("u{n},x,,,\n"),
        _ => format!("u{n},{},{n}.5,0.5,true\n", n * 3_600_000),
    };
    "uuid,at,price,share,paid\n".to_owned() + &(0..100).map(line).collect::<String>()
}

#[tokio::test]
async fn rows_go_to_their_days_once_and_rejects_keep_their_lines() {
    let folder = TempDir::new().unwrap();
    let file = write(&folder, "clicks.csv", csv().as_bytes());
    let store = Store::in_memory();
    let report = run(&store, &file, 7).await.unwrap();
    let [imported] = &report.files[..] else { panic!("{report:?}") };
    assert_eq!((imported.rows, imported.rejects, imported.already_imported), (90, 10, false));

    let path = import_path("clicks", &imported.import_id);
    let manifest = ImportManifest::from_json(&path, &store.get(&path).await.unwrap().unwrap()).unwrap();
    let mut lines = Vec::new();
    for segment in &manifest.segments {
        assert!(
            segment.path.contains(&format!("event_day={}/import_{}", segment.event_day, manifest.import_id))
        );
        let frame = frame(&store, &segment.path).await;
        lines.extend(frame.column("_offset").unwrap().i64().unwrap().into_no_null_iter());
        let topics =
            frame.column("_topic").unwrap().str().unwrap().iter().flatten().all(|t| t == manifest.topic());
        assert!(topics && frame.column("_ingest_time").unwrap().null_count() == frame.height());
    }
    lines.sort_unstable();
    assert_eq!(lines, (0..100).filter(|n| n % 10 != 3).map(|n| n + 2).collect::<Vec<i64>>());
    let rejects = frame(&store, &imported.reject_paths[0]).await;
    assert_eq!(rejects.column("_offset").unwrap().i64().unwrap().get(0), Some(5));
    assert_eq!(rejects.column("value").unwrap().binary().unwrap().get(0), Some(&b"u3,x,,,"[..]));
}

#[tokio::test]
async fn the_same_content_is_imported_once_under_any_name() {
    let folder = TempDir::new().unwrap();
    let store = Store::in_memory();
    let first = run(&store, &write(&folder, "a.csv", csv().as_bytes()), 1_000).await.unwrap();
    let files = store.list("data").await.unwrap().len();
    let again = run(&store, &write(&folder, "b.csv", csv().as_bytes()), 7).await.unwrap();
    assert!(!first.files[0].already_imported && again.files[0].already_imported);
    assert_eq!((again.files[0].rows, &again.files[0].import_id), (90, &first.files[0].import_id));
    assert_eq!(store.list("data").await.unwrap().len(), files);
}

#[tokio::test]
async fn gzip_and_parquet_give_the_same_rows_as_plain_text() {
    let folder = TempDir::new().unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(csv().as_bytes()).unwrap();
    write(&folder, "packed.csv.gz", &packed.finish().unwrap());
    let store = Store::in_memory();
    let plain = run(&store, &write(&folder, "plain.csv", csv().as_bytes()), 1_000).await.unwrap();
    let packed = run(&store, &folder.path().join("packed.csv.gz"), 1_000).await.unwrap();
    assert_eq!(
        (packed.files[0].rows, packed.files[0].rejects),
        (plain.files[0].rows, plain.files[0].rejects)
    );
    assert_ne!(packed.files[0].import_id, plain.files[0].import_id);

    // The archive's own segments are inputs too: the same identities come out.
    let day = "data/stream=clicks/event_day=1970-01-01/";
    let objects = store.list(day).await.unwrap();
    let own = objects.iter().find(|o| o.location.as_ref().contains(&plain.files[0].import_id)).unwrap();
    let own = own.location.to_string();
    let bytes = store.get(&own).await.unwrap().unwrap();
    let other = Store::in_memory();
    let copied = run(&other, &write(&folder, "own.parquet", &bytes), 1_000).await.unwrap();
    let copy = other.list("data").await.unwrap()[0].location.to_string();
    let (from, to) = (frame(&store, &own).await, frame(&other, &copy).await);
    assert_eq!(copied.files[0].rows as usize, from.height());
    for column in ["_identity_hi", "_identity_lo", "_event_time", "price", "share", "paid", "uuid"] {
        assert_eq!(from.column(column).unwrap(), to.column(column).unwrap(), "{column}");
    }
}

#[tokio::test]
async fn parquet_values_that_a_field_cant_hold_cost_their_row_and_wrong_types_the_file() {
    let folder = TempDir::new().unwrap();
    let parquet = |name: &str, mut frame: DataFrame| {
        let mut bytes = Vec::new();
        ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
        write(&folder, name, &bytes)
    };
    let good = df!(
        "uuid" => [Some("a"), None, Some("c"), Some("d")],
        "at" => [Some(5u64), Some(6), None, Some(u64::MAX)],
        "price" => ["1.5", "2", "3", "4"],
        "share" => [1i32, 2, 3, 4],
        "paid" => [true, false, true, false],
        "more" => [1, 2, 3, 4],
    );
    let store = Store::in_memory();
    let report = run(&store, &parquet("good.parquet", good.unwrap()), 1_000).await.unwrap();
    assert_eq!((report.files[0].rows, report.files[0].rejects), (2, 2));

    let wrong = df!("uuid" => ["a"], "at" => ["5"], "price" => [1i64], "share" => [0.5]).unwrap();
    let error = format!("{:#}", run(&store, &parquet("wrong.parquet", wrong), 9).await.unwrap_err());
    assert!(
        error.contains("column at has type str, the field is int: cast it; column paid is missing"),
        "{error}"
    );
}

#[tokio::test]
async fn faults_name_the_input_and_leave_nothing_sealed() {
    let folder = TempDir::new().unwrap();
    let store = Store::in_memory();
    let check = async |input: std::path::PathBuf, expected: &str| {
        let error = format!("{:#}", run(&store, &input, 9).await.unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    check(write(&folder, "empty.csv", b""), "the file has no header").await;
    check(write(&folder, "other.csv", b"a,b\n1,2\n"), "missing [uuid, at").await;
    check(write(&folder, "torn.parquet", b"PAR1 no more"), "can't be read as parquet").await;
    check(write(&folder, "torn.csv.gz", &[0x1f, 0x8b, 8, 0, 1]), "can't be read behind line 0").await;
    check(folder.path().join("none.csv"), "none.csv can't be opened").await;
    assert_eq!(store.list("imports").await.unwrap(), []);
    let header = run(&store, &write(&folder, "header.csv", b"uuid,at,price,share,paid\n"), 9).await.unwrap();
    assert_eq!((header.files[0].rows, header.files[0].rejects), (0, 0));
}
