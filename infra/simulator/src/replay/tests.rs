//! Replaying: one order over streams, platforms and days; CSV directly; files that tell nothing are asked about.

use super::*;
use crate::generate::{Generator, Options};
use crate::prepare::csv::LineReader;
use crate::prepare::tests::{catalog, stores};
use crate::prepare::write::PartitionWriter;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tempfile::TempDir;

fn generated(folder: &Path) -> u64 {
    let options = Options { records: 3_000, span: 2 * 86_400_000, malformed: 0.0, ..Options::default() };
    let create = |name: &str| std::fs::File::create(folder.join(name)).expect("created");
    let mut files = ["page_views.csv", "events.csv"].map(create);
    let lines = Generator::new(options, 8).write_csv(&mut files, |_| true).expect("written");
    lines.iter().sum()
}

#[test]
fn csv_is_replayed_in_event_time_order_across_streams() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines = generated(folder.path());
    let catalog = catalog();
    let files = discover(&[folder.path().display().to_string()], &catalog, &stores()).expect("files");
    let temporary = tempfile::tempdir().expect("a folder");
    let limits = Limits::within(64_000_000, 2);
    let stop = CancellationToken::new();
    let sorted = sort_csv(files, &catalog, limits, temporary.path(), &stop).expect("sorted");
    assert!(sorted.len() > 8);
    let mut merged = Merged::new(&sorted, &Filter::all());
    let (mut record, mut times, mut topics) = (Record::default(), Vec::new(), BTreeSet::new());
    let mut most_open = 0;
    while merged.next(&mut record).expect("read") {
        times.push(record.time);
        topics.insert(record.topic.to_string());
        most_open = most_open.max(merged.open_files());
        let value: serde_json::Value = serde_json::from_slice(&record.value).expect("JSON");
        assert_eq!(value["uuid"].as_str().map(str::as_bytes), record.key.as_deref());
        assert_eq!(value["timestamp"].as_i64(), Some(record.time - crate::generate::OUTBRAIN_OFFSET));
    }
    assert_eq!(times.len() as u64, lines);
    assert!(times.is_sorted());
    assert_eq!(topics.into_iter().collect::<Vec<_>>(), ["events", "page_views"]);
    // 2 streams of 3 platforms and NULL: a day's files, at the turn of days the next day's first ones too.
    assert!(most_open <= 9, "{most_open} files were open at once");
}

#[test]
fn a_files_stream_is_told_by_its_name_or_folder_or_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let make = |path: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, "").expect("written");
        path.display().to_string()
    };
    let catalog = catalog();
    let stream =
        |input: String| discover(&[input], &catalog, &stores()).map(|files| files[0].stream.name.clone());
    let check = |input: String, expected: &str| assert_eq!(stream(input).expect("a stream"), expected);
    check(make("page_views_sample.csv"), "page_views");
    check(make("events.csv.gz"), "events");
    check(make("events/platform=1/event_date=2016-06-14/part-0.parquet"), "events");
    check(format!("sales={}", make("x.csv")), "sales");
    check("events=s3://bucket/y.csv".to_owned(), "events");
    let error = stream(make("eventsource.csv")).expect_err("unknown").to_string();
    assert!(error.contains("write STREAM=") && error.contains("page_views"), "{error}");
    assert!(
        stream("nowhere/events.csv".to_owned()).expect_err("missing").to_string().contains("is not there")
    );
    let files =
        discover(&[make("events/platform=1/event_date=2016-06-14/part-1.parquet")], &catalog, &stores())
            .expect("files");
    assert_eq!((files[0].platform.as_deref(), files[0].not_before()), (Some("1"), 1_465_862_400_000));
}

/// Writes lines of page views, as they are, to a Parquet file with small row groups.
fn parquet(lines: impl Iterator<Item = String>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let stream = catalog().stream("page_views").expect("a stream").clone();
    let path = folder.path().join("page_views");
    let mut writer = PartitionWriter::new(&stream, path.clone(), 50_000).expect("a writer");
    let header = b"uuid,document_id,timestamp,platform,geo_location,traffic_source";
    let mut reader = LineReader::new(&stream, Some(header)).expect("a header");
    let mut row = Vec::new();
    for line in lines {
        reader.read(line.as_bytes(), &mut row).expect("a row");
        writer.push(&row).expect("pushed");
    }
    writer.finish().expect("finished");
    (folder, path.join("part-0.parquet"))
}

/// All that a replay of some files sends.
pub(crate) fn records(files: &[SourceFile], filter: &Filter) -> anyhow::Result<Vec<Record>> {
    let (mut merged, mut record, mut all) = (Merged::new(files, filter), Record::default(), Vec::new());
    while merged.next(&mut record)? {
        all.push(record.clone());
    }
    Ok(all)
}

fn all(location: Location) -> anyhow::Result<Vec<Record>> {
    records(&sources(vec![location], None, &catalog())?, &Filter::all())
}

/// An object of a new store in memory.
fn object(name: &str, bytes: Vec<u8>) -> Location {
    let (store, key) = (Arc::new(InMemory::new()), object_store::path::Path::from(name));
    let object = stores().object(store.clone(), key.clone(), format!("mem://{name}"));
    object.wait(async { Ok(store.put(&key, bytes.into()).await?) }).expect("put");
    Location::Remote(object)
}

#[test]
fn an_object_is_replayed_like_the_file_one_row_group_after_the_other() {
    let lines = (0..30_000).map(|at| format!("user-{},{at},{at},{},US,1", at * 7_919 % 10_007, at % 3));
    let (_folder, path) = parquet(lines);
    let bytes = std::fs::read(&path).expect("read");
    let groups = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path).expect("opened"));
    let groups = groups.expect("parquet").metadata().num_row_groups();
    assert!(groups >= 3, "{groups} row groups");
    let local = all(Location::Local(path)).expect("a file");
    assert_eq!(local.len(), 30_000);
    assert!(
        local == all(object("page_views/part-0.parquet", bytes.clone())).expect("an object"),
        "other rows"
    );

    let refuse = |bytes: Vec<u8>| {
        let error = format!("{:#}", all(object("page_views/x.parquet", bytes)).expect_err("refused"));
        assert!(error.contains("mem://page_views/x.parquet is no parquet file"), "{error}");
    };
    refuse(Vec::new());
    refuse(b"PAR1".to_vec());
    refuse(vec![b'x'; 200_000]);
    refuse(bytes[..bytes.len() - 1].to_vec());
    let other = object("events/part-0.parquet", bytes);
    let error = format!("{:#}", all(other).expect_err("other columns"));
    assert!(error.contains("doesn't fit stream events") && error.contains("no column display_id"), "{error}");
}

#[test]
fn unsorted_parquet_is_refused_by_name() {
    let (_folder, path) = parquet(["u,1,9,1,US,1", "u,1,5,1,US,1"].map(str::to_owned).into_iter());
    let error = all(Location::Local(path)).expect_err("refused").to_string();
    assert!(error.contains("part-0.parquet") && error.contains("simulator prepare"), "{error}");
}
