//! Preparing: every line is a row or a reject, whatever the input, the memory and the number of threads.

use super::*;
use crate::generate::{Generator, Options};
use crate::location::Stores;
use crate::replay::tests::records;
use crate::replay::{Filter, Record, discover};
use shared_model::catalog::Catalog;
use shared_model::time::{Interval, Millis};
use std::collections::BTreeMap;
use tempfile::TempDir;

const SHIPPED: &str = include_str!("../../../catalog/outbrain.toml");

/// The shipped streams, and one without a platform, with every type.
pub(crate) fn catalog() -> Catalog {
    let more = r#"
[streams.sales]
topic = "sales"
event_time = { field = "at", unit = "s" }
identity = ["shop", "at"]
message_key = "shop"
bounds = { from = "2020-01-01", to = "2021-01-01" }
fields = { shop = "string", at = "int", price = "decimal(2)", weight = "float", paid = "bool" }
"#;
    Catalog::from_toml(&format!("{SHIPPED}\n{more}")).expect("a valid catalog")
}

/// Stores that nothing stops.
pub(crate) fn stores() -> Stores {
    Stores::start(&CancellationToken::new()).expect("threads")
}

fn limits(threads: usize, sort_bytes: usize) -> Limits {
    Limits {
        threads,
        sort_bytes,
        piece_bytes: 4_096,
        longest_line: 12 << 20,
        fan_in: 3,
        read_ahead: 512,
        group_bytes: 1 << 20,
    }
}

/// Prepares files of a stream into a new folder.
fn run(stream: &str, files: &[(&str, &[u8])], limits: Limits) -> (TempDir, anyhow::Result<Summary>) {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files.iter().map(|(name, bytes)| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        Location::Local(path)
    });
    let stream = catalog().stream(stream).expect("a stream").clone();
    let job = Job { stream, files: files.collect(), out: folder.path().join("out"), limits };
    let summary = prepare(&job, &Progress::silent(), &CancellationToken::new());
    (folder, summary)
}

/// A folder in which rows of a stream have been prepared into `out`.
pub(crate) fn prepared(stream: &str, rows: &str) -> TempDir {
    let (folder, summary) = run(stream, &[("rows.csv", &with_header(rows))], limits(1, 4_000));
    summary.expect("prepared");
    folder
}

/// All records that a replay of the folder sends.
fn replayed(folder: &TempDir, filter: &Filter) -> Vec<Record> {
    let out = folder.path().join("out").display().to_string();
    records(&discover(&[out], &catalog(), &stores()).expect("files"), filter).expect("read")
}

fn rejects(folder: &TempDir, stream: &str) -> Vec<(u64, String, Vec<u8>)> {
    let path = folder.path().join("out").join(stream).join("rejects.csv");
    let mut reader = ::csv::Reader::from_path(path).expect("rejects.csv");
    let rows = reader.byte_records().map(|row| row.expect("a line"));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let mut all: Vec<_> =
        rows.map(|row| (text(&row[1]).parse().expect("a number"), text(&row[2]), row[3].to_vec())).collect();
    all.sort();
    all
}

#[test]
fn a_generated_file_comes_out_sorted_the_same_for_any_memory_and_threads() {
    let options =
        Options { records: 6_000, span: 3 * 86_400_000, malformed: 0.02, nulls: 0.1, ..Options::default() };
    let mut files = [Vec::new(), Vec::new()];
    let lines = Generator::new(options, 8).write_csv(&mut files, |_| true).expect("written");
    let [views, _] = files;
    // The naive way: every good line's own time, sorted.
    let stream = catalog().stream("page_views").expect("a stream").clone();
    let mut lines_of = views.split(|&byte| byte == b'\n');
    let mut reader = LineReader::new(&stream, lines_of.next()).expect("a header");
    let mut row = Vec::new();
    let mut naive: Vec<_> = lines_of
        .filter_map(|line| reader.read(line, &mut row).ok().map(|place| (place.time, row.clone())))
        .collect();
    naive.sort();
    let naive: Vec<Millis> = naive.into_iter().map(|(time, _)| time).collect();

    let mut outputs = Vec::new();
    for limits in [limits(1, 64 << 20), limits(1, 2_000), limits(3, 5_000)] {
        let (folder, summary) = run("page_views", &[("page_views.csv", &views)], limits);
        let summary = summary.expect("prepared");
        assert_eq!(summary.lines, lines[0]);
        assert_eq!(summary.rejects, rejects(&folder, "page_views").len() as u64);
        assert!(summary.rejects > 50 && summary.partitions >= 12, "{summary:?}");
        let records = replayed(&folder, &Filter::all());
        assert_eq!(records.iter().map(|record| record.time).collect::<Vec<_>>(), naive);
        outputs.push((records, rejects(&folder, "page_views")));
    }
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2], "memory or threads changed the result");
}

/// A file of page views -> times after the first moment of the data, and the rejects as (line, part of the reason).
fn check(text: &[u8], times: &[i64], expected: &[(u64, &str)]) {
    check_stream("page_views", 1_465_876_799_998, text, times, expected);
}

/// The same for any stream, with times after `start`.
fn check_stream(stream: &str, start: Millis, text: &[u8], times: &[i64], expected: &[(u64, &str)]) {
    let shown = String::from_utf8_lossy(&text[..text.len().min(300)]).into_owned();
    let (folder, summary) = run(stream, &[(&format!("{stream}.csv"), text)], limits(2, 4_000));
    let summary = summary.unwrap_or_else(|error| panic!("{shown}: {error:#}"));
    let found = rejects(&folder, stream);
    let rows: Vec<i64> = if summary.rows == 0 {
        Vec::new()
    } else {
        replayed(&folder, &Filter::all()).iter().map(|record| record.time - start).collect()
    };
    assert_eq!(rows, times, "{shown}");
    assert_eq!(summary.lines, summary.rows + summary.rejects, "{shown}");
    assert_eq!(found.len(), expected.len(), "{shown}: {found:?}");
    let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    for ((line, reason, kept), (expected_line, part)) in found.iter().zip(expected) {
        assert_eq!(line, expected_line, "{shown}");
        assert!(reason.contains(part), "{shown}: {reason:?} without {part:?}");
        let original = lines[*line as usize - 1];
        assert!(
            original.strip_suffix(b"\r").unwrap_or(original) == kept.as_slice(),
            "{shown}: text not kept"
        );
    }
}

const HEADER: &str = "uuid,document_id,timestamp,platform,geo_location,traffic_source\n";

fn with_header(lines: &str) -> Vec<u8> {
    format!("{HEADER}{lines}").into_bytes()
}

#[test]
fn hard_inputs_become_rows_or_rejects() {
    check(&with_header(""), &[], &[]);
    check(HEADER.trim_end().as_bytes(), &[], &[]);
    check(&with_header("u,1,5,1,US,1\nu,1,3,1,US,1"), &[3, 5], &[]);
    check(&with_header("u,1,5,1,US,1\r\nv,1,6,\\N,\\N,\\N\r\n"), &[5, 6], &[]);
    check(&with_header("\\N,\\N,7,\\N,\\N,\\N\n\\N,\\N,\\N,\\N,\\N,\\N\n"), &[7], &[(3, "must not be null")]);
    check(&with_header("u,1,5,1,US,1\nu,1,5,1,US,1\n"), &[5, 5], &[]);
    check(&with_header("u,,5,,,\n"), &[5], &[]);
    check(&with_header("\n\nu,1,5,1,US,1\n"), &[5], &[(2, "empty line"), (3, "empty line")]);
    check(
        &with_header("u,1,5,1,US\nu,1,5,1,US,1,9\n"),
        &[],
        &[(2, "5 columns instead of 6"), (3, "7 columns")],
    );
    check(
        &with_header("u,x,5,1,US,1\nu,1.5,5,1,US,1\n"),
        &[],
        &[(2, "field document_id"), (3, "expected int")],
    );
    check(&with_header("u,9223372036854775808,5,1,US,1\n"), &[], &[(2, "field document_id")]);
    check(&with_header("u,1,9223372036854775807,1,US,1\n"), &[], &[(2, "no time that a calendar can hold")]);
    check(&with_header("u,1,-1465876799998,1,US,1\n"), &[], &[(2, "1970-01-01T00:00:00.000Z is outside")]);
    check(&with_header("u,1,2636568000002,1,US,1\n"), &[], &[(2, "2100-01-01T00:00:00.000Z is outside")]);
    check(&with_header("\"a \"\"b\"\", c\",1,5,1,US,1\n"), &[5], &[]);
    check(&with_header("\"a,1,5,1,US,1\nu,1,6,1,US,1\n"), &[6], &[(2, "not closed on its line")]);
    check(&with_header("\"a\"b,1,5,1,US,1\n"), &[], &[(2, "after a closing quote")]);
    check(&with_header("u,1,5,1,U\"S,1\n"), &[5], &[]);
    let bytes = [HEADER.as_bytes(), b"u,1,5,1,U\xff,1\nu,1,6,1,\xc3\xbc,1\n"].concat();
    check(&bytes, &[6], &[(2, "field geo_location: not UTF-8")]);
    let long = format!("u,1,5,1,{},1\nu,1,6,1,US,1\n", "x".repeat(10 << 20));
    check(&with_header(&long), &[6], &[(2, "the stream allows 1048576")]);
    check(&[b"\xef\xbb\xbf", &*with_header("u,1,5,1,US,1\n")].concat(), &[5], &[]);
    check(b"traffic_source,timestamp,uuid,platform,geo_location,document_id\n1,5,u,2,US,9\n", &[5], &[]);
    check(format!("{}\r\n", HEADER.trim_end()).as_bytes(), &[], &[]);
    check(
        b"\"uuid\",\"document_id\",timestamp, platform ,geo_location,traffic_source\nu,1,5,1,US,1",
        &[5],
        &[],
    );
    check(&with_header("u\0,1,5,1,US,1\n\0\n"), &[5], &[(3, "1 columns instead of 6")]);
    check(&with_header("u,-9223372036854775808,5,1,US,1\n"), &[5], &[]);
    for number in ["+1", " 1", "1e3", "0x1", "-", "1_000", "\u{661}"] {
        check(
            &with_header(&format!("u,{number},5,1,US,1\n")),
            &[],
            &[(2, "field document_id: expected int")],
        );
    }
    for time in ["9000000000000000000", "-9223372036854775808", "1e3"] {
        check(&with_header(&format!("u,1,{time},1,US,1\nu,1,5,1,US,1\n")), &[5], &[(2, "timestamp")]);
    }
    for time in ["100000000000000", "-62135596800000"] {
        check(&with_header(&format!("u,1,{time},1,US,1\nu,1,5,1,US,1\n")), &[5], &[(2, "is outside")]);
    }
}

#[test]
fn every_type_refuses_what_it_cannot_hold() {
    let check = |row: &str, times: &[i64], expected: &[(u64, &str)]| {
        let text = format!("at,shop,price,weight,paid\n{row}\n");
        check_stream("sales", 1_577_836_800_000, text.as_bytes(), times, expected);
    };
    check("1577836800,a,92233720368547758.07,-1e308,false", &[0], &[]);
    check("1577836800,a,-0.01,1e-400,true\n1577836800,a,-0.01,1e-400,true", &[0, 0], &[]);
    for price in ["1.555", "99999999999999999999", "92233720368547758.08", "1,5", "NaN", "--1"] {
        check(&format!("1577836800,a,\"{price}\",1,true"), &[], &[(2, "field price")]);
    }
    for weight in ["NaN", "inf", "-inf", "1e999", "1.2.3"] {
        check(&format!("1577836800,a,1,{weight},true"), &[], &[(2, "field weight: expected float")]);
    }
    for paid in ["1", "TRUE", "yes", " true"] {
        check(&format!("1577836800,a,1,1,{paid}"), &[], &[(2, "field paid: expected bool")]);
    }
    check("\\N,a,1,1,true", &[], &[(2, "must not be null")]);
    check("1577836800.5,a,1,1,true", &[], &[(2, "field at: expected int")]);
    check("0,a,1,1,true", &[], &[(2, "1970-01-01T00:00:00.000Z is outside")]);
    check("4102444800,a,1,1,true", &[], &[(2, "2100-01-01T00:00:00.000Z is outside")]);
}

#[test]
fn a_line_that_memory_cannot_hold_is_a_reject_with_its_beginning() {
    let text = with_header(&format!("{}\nu,1,6,1,US,1\n", "y".repeat(100_000)));
    let cut = Limits { longest_line: 10_000, ..limits(2, 4_000) };
    let (folder, summary) = run("page_views", &[("page_views.csv", &text)], cut);
    assert_eq!(
        summary.expect("prepared"),
        Summary { lines: 2, rows: 1, rejects: 1, partitions: 1, files: 1 }
    );
    let found = rejects(&folder, "page_views");
    assert_eq!((found[0].0, found[0].2.len()), (2, 10_000));
    assert!(found[0].1.contains("100000 bytes"), "{}", found[0].1);
}

#[test]
fn wrong_files_are_refused_and_the_old_result_stays() {
    let refuse = |text: &[u8], parts: &[&str]| {
        let (folder, summary) = run("page_views", &[("page_views.csv", text)], limits(2, 4_000));
        let error = format!("{:#}", summary.expect_err("refused"));
        assert!(error.len() < 1_000 && !error.contains('\n'), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!folder.path().join("out/page_views").exists(), "{error}");
    };
    refuse(b"", &["page_views.csv", "the file is empty", "uuid, document_id"]);
    refuse(b"\n", &["the file is empty"]);
    let other = b"uuid,document_id,timestamp,platform,country,geo_location,uuid\n1\n";
    refuse(other, &["missing [traffic_source]", "not declared [country]", "twice [uuid]"]);
    refuse(HEADER.replace(',', ";").as_bytes(), &["missing [uuid, document_id"]);
    refuse(&with_header("u,1,5,1,US,1\n").repeat(2)[1..], &["missing [uuid]", "not declared [uid]"]);
    let old_mac = String::from_utf8(with_header("u,1,5,1,US,1\n")).expect("text").replace('\n', "\r");
    refuse(old_mac.as_bytes(), &["missing [traffic_source]"]);
    let utf_16: Vec<u8> = HEADER.encode_utf16().flat_map(u16::to_le_bytes).collect();
    refuse(&[b"\xff\xfe", &utf_16[..]].concat(), &["missing [uuid, document_id"]);
    refuse(&[0; 5_000], &["missing [uuid, document_id"]);
    refuse(&vec![b'x'; 13 << 20], &["missing [uuid, document_id", "not declared [xxx"]);
    refuse(&b"x,".repeat(1 << 20), &["missing [uuid, document_id", "not declared [x, x"]);
    let columns: Vec<String> = (0..300_000).map(|at| format!("c{at}")).collect();
    refuse(columns.join(",").as_bytes(), &["missing [uuid, document_id", "not declared [c0, c1"]);
    let whole = gzip(&with_header("u,1,5,1,US,1\n"));
    refuse(&whole[..whole.len() - 6], &["cannot read"]);
    refuse(&[&whole[..], b"and then garbage"].concat(), &["cannot read"]);
    refuse(&gzip(b""), &["the file is empty"]);

    let (folder, summary) =
        run("page_views", &[("page_views.csv", &with_header("u,1,5,1,US,1\n"))], limits(1, 4_000));
    summary.expect("prepared");
    let again = |files: Vec<Location>| {
        let stream = catalog().stream("page_views").expect("a stream").clone();
        let job = Job { stream, files, out: folder.path().join("out"), limits: limits(1, 4_000) };
        prepare(&job, &Progress::silent(), &CancellationToken::new())
    };
    assert!(again(vec![Location::Local(folder.path().join("missing.csv"))]).is_err());
    assert_eq!(replayed(&folder, &Filter::all()).len(), 1);
    std::fs::write(folder.path().join("b.csv"), with_header("u,1,5,2,US,1\nu,1,6,2,US,1\n"))
        .expect("written");
    again(vec![Location::Local(folder.path().join("b.csv"))]).expect("replaced");
    assert_eq!(replayed(&folder, &Filter::all()).len(), 2);
    assert!(!folder.path().join("out/page_views/platform=1").exists());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}

#[test]
fn gzip_of_several_members_and_several_files_are_one_input() {
    let members = [gzip(&with_header("u,1,5,1,US,1\n")), gzip(b"u,1,7,1,US,1\n")].concat();
    let plain = with_header("u,1,6,1,US,1\n");
    let (folder, summary) = run("page_views", &[("a.csv", &members), ("b.csv", &plain)], limits(2, 4_000));
    assert_eq!(summary.expect("prepared").rows, 3);
    assert_eq!(replayed(&folder, &Filter::all()).len(), 3);
}

#[test]
fn a_stopped_job_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("page_views.csv");
    std::fs::write(&path, with_header("u,1,5,1,US,1\n")).expect("written");
    let stream = catalog().stream("page_views").expect("a stream").clone();
    let out = folder.path().join("out");
    let job = Job { stream, files: vec![Location::Local(path)], out: out.clone(), limits: limits(2, 4_000) };
    let stop = CancellationToken::new();
    stop.cancel();
    let error = prepare(&job, &Progress::silent(), &stop).expect_err("stopped").to_string();
    assert!(error.contains("stopped before the end"), "{error}");
    let left: Vec<_> =
        std::fs::read_dir(out).expect("read").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, [".page_views.lock"]);
}

#[test]
fn a_failing_thread_ends_the_job_with_its_reason() {
    use std::fmt::Write;
    let mut text = String::new();
    (0..30_000).for_each(|platform| writeln!(text, "u,1,5,{platform},US,1").expect("written"));
    let (_folder, summary) = run("page_views", &[("page_views.csv", &with_header(&text))], limits(3, 4_000));
    let error = format!("{:#}", summary.expect_err("refused"));
    assert!(error.contains("more than 20000 partitions"), "{error}");
}

#[test]
fn any_stream_works_and_its_values_come_back_typed() {
    let text = "at,shop,price,weight,paid\n1577836801,\"a, b\",12.5,0.25,true\n1577836800,\\N,\\N,\\N,\\N\n";
    let (folder, summary) = run("sales", &[("sales.csv", text.as_bytes())], limits(1, 4_000));
    assert_eq!(summary.expect("prepared").partitions, 1);
    assert!(folder.path().join("out/sales/event_date=2020-01-01/part-0.parquet").exists());
    let records = replayed(&folder, &Filter::all());
    let value = |at: usize| serde_json::from_slice::<serde_json::Value>(&records[at].value).expect("JSON");
    assert_eq!(records[0].key, None);
    assert_eq!(
        value(0),
        serde_json::json!({"shop": null, "at": 1577836800, "price": null, "weight": null, "paid": null})
    );
    assert_eq!(records[1].key.as_deref(), Some(&b"a, b"[..]));
    let second =
        serde_json::json!({"shop": "a, b", "at": 1577836801, "price": "12.50", "weight": 0.25, "paid": true});
    assert_eq!(value(1), second);
}

#[test]
fn platforms_and_days_are_folders() {
    let day = 86_400_000;
    let text = with_header(&format!("u,1,5,1,US,1\nu,1,{day},2,US,1\nu,1,6,\\N,US,1\n"));
    let (folder, summary) = run("page_views", &[("page_views.csv", &text)], limits(1, 4_000));
    summary.expect("prepared");
    for part in [
        "1/event_date=2016-06-14",
        "2/event_date=2016-06-15",
        "__HIVE_DEFAULT_PARTITION__/event_date=2016-06-14",
    ] {
        assert!(
            folder.path().join("out/page_views").join(format!("platform={part}/part-0.parquet")).exists(),
            "{part}"
        );
    }
    let count = |platforms: &[&str], start, end| {
        let platforms = platforms.iter().map(ToString::to_string).collect();
        replayed(&folder, &Filter { platforms, span: Interval { start, end } }).len()
    };
    let start = 1_465_876_799_998;
    assert_eq!(count(&[], i64::MIN, i64::MAX), 3);
    assert_eq!(count(&["1"], i64::MIN, i64::MAX), 1);
    assert_eq!(count(&["1", "\\N"], i64::MIN, i64::MAX), 2);
    assert_eq!(count(&[], start + 6, i64::MAX), 2);
    assert_eq!(count(&[], start + 6, start + day), 1);
    assert_eq!(count(&["3"], i64::MIN, i64::MAX), 0);
}

#[test]
fn memory_is_shared_out_within_the_limit() {
    let mut shares = BTreeMap::new();
    for memory in [64_000_000, 128_000_000, 512_000_000, 4_000_000_000] {
        for threads in [1, 2, 8, 32] {
            let limits = Limits::within(memory, threads);
            let pieces = limits.piece_bytes * (threads * 3 + 2) + 2 * limits.longest_line;
            let sorting = limits.sort_bytes * threads + pieces;
            let merging = (limits.fan_in * limits.read_ahead + 2 * limits.group_bytes) * threads;
            shares.insert((memory, threads), (sorting, merging));
        }
    }
    for ((memory, threads), (sorting, merging)) in shares {
        assert!(sorting <= memory, "{memory} {threads}: sorting takes {sorting}");
        assert!(merging <= memory || threads == 32, "{memory} {threads}: merging takes {merging}");
    }
}
