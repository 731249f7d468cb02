//! Replaying: one order over streams, platforms and days; CSV directly; files that tell nothing are asked about.

use super::*;
use crate::generate::{Generator, Options};
use crate::prepare::tests::catalog;
use std::collections::BTreeSet;

fn generated(folder: &Path) -> u64 {
    let options = Options { records: 3_000, span: 2 * 86_400_000, malformed: 0.0, ..Options::default() };
    let create = |name: &str| std::fs::File::create(folder.join(name)).expect("created");
    let (mut views, mut clicks) = (create("page_views.csv"), create("events.csv"));
    let lines = Generator::new(options, 8).write_csv(&mut views, &mut clicks, |_| true).expect("written");
    lines[0] + lines[1]
}

#[test]
fn csv_is_replayed_in_event_time_order_across_streams() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines = generated(folder.path());
    let catalog = catalog();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let files = discover(&[folder.path().display().to_string()], &catalog).expect("files");
    let temporary = tempfile::tempdir().expect("a folder");
    let limits = Limits::within(64_000_000, 2);
    let stop = CancellationToken::new();
    let sorted =
        sort_csv(files, &catalog, limits, temporary.path(), runtime.handle(), &stop).expect("sorted");
    assert!(sorted.files.len() > 8);
    let mut merged = Merged::new(&sorted.files, &Filter::all());
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
    drop(sorted);
    assert_eq!(std::fs::read_dir(temporary.path()).expect("read").count(), 0, "temporary files are left");
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
    let stream = |input: String| discover(&[input], &catalog).map(|files| files[0].stream.name.clone());
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
        discover(&[make("events/platform=1/event_date=2016-06-14/part-1.parquet")], &catalog).expect("files");
    assert_eq!((files[0].platform.as_deref(), files[0].not_before()), (Some("1"), 1_465_862_400_000));
}

#[test]
fn unsorted_parquet_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let stream = catalog().stream("page_views").expect("a stream").clone();
    let path = folder.path().join("page_views");
    let mut writer = crate::prepare::write::PartitionWriter::new(&stream, path, 1 << 20).expect("a writer");
    let mut reader = crate::prepare::csv::LineReader::new(
        &stream,
        Some(b"uuid,document_id,timestamp,platform,geo_location,traffic_source"),
    )
    .expect("a header");
    let mut row = Vec::new();
    for line in ["u,1,9,1,US,1", "u,1,5,1,US,1"] {
        reader.read(line.as_bytes(), &mut row).expect("a row");
        writer.push(&row).expect("pushed");
    }
    writer.finish().expect("finished");
    let files = discover(&[folder.path().display().to_string()], &catalog()).expect("files");
    let mut merged = Merged::new(&files, &Filter::all());
    let error = merged.next(&mut Record::default()).expect_err("refused").to_string();
    assert!(error.contains("part-0.parquet") && error.contains("simulator prepare"), "{error}");
}
