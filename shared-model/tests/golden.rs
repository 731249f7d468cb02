//! Stored bytes, held to files: what one version wrote, every later one must read.
//!
//! A difference here means that states in Redis and Postgres would be misread: raise the version of what has changed
//! (`STATE_VERSION`, the segment's, the header's), then write the files anew with `UPDATE_GOLDEN=1`.

use datasketches::hll::{HllSketch, HllType, HllUnion};
use shared_model::aggregate::distinct::Distinct;
use shared_model::aggregate::{Aggregate, State};
use shared_model::epoch::TrustedTime;
use shared_model::event::{FieldType, Value};
use shared_model::metric::MetricVersion;
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, CellId, Cells, Header};
use std::fmt::Write;
use std::path::Path;

/// Holds bytes to a file under `tests/golden/`.
fn golden(name: &str, found: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let expected = read(name);
    match (std::str::from_utf8(found), std::str::from_utf8(&expected)) {
        (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
        _ => assert!(found == expected, "{name}: {} bytes differ from its {}", found.len(), expected.len()),
    }
}

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of(aggregate: &Aggregate, values: impl IntoIterator<Item = Value>) -> State {
    let mut state = State::empty(aggregate);
    values.into_iter().for_each(|value| state.add(&value));
    state
}

fn users(count: usize) -> impl Iterator<Item = Value> {
    (0..count).map(|n| Value::str(&format!("user-{n}")))
}

/// A state of each kind, and the empty one.
fn states() -> Vec<(&'static str, Aggregate, State)> {
    let ints = |values: &[i64]| values.iter().copied().map(Value::Int).collect::<Vec<_>>();
    let of = |name, aggregate: Aggregate, values: Vec<Value>| {
        let state = of(&aggregate, values);
        (name, aggregate, state)
    };
    let quantile = |ty| Aggregate::Quantile { ty, quantiles: vec![0.5, 0.99] };
    vec![
        of("count, empty", Aggregate::Count, vec![]),
        of("count, 300", Aggregate::Count, vec![Value::Null; 300]),
        of("top_k, 2", Aggregate::TopK { k: 10 }, vec![Value::Null; 2]),
        of("sum, empty", Aggregate::Sum(FieldType::Int), vec![]),
        of("sum, -7", Aggregate::Sum(FieldType::Int), ints(&[3, -10])),
        of("sum, 2^64 - 2", Aggregate::Sum(FieldType::Decimal(2)), ints(&[i64::MAX, i64::MAX])),
        of("min, empty", Aggregate::Min(FieldType::String), vec![]),
        of("min, text", Aggregate::Min(FieldType::String), vec![Value::str("b"), Value::str("a")]),
        of("min, float", Aggregate::Min(FieldType::Float), vec![Value::Float(1.5), Value::Float(-2.25)]),
        of("max, int", Aggregate::Max(FieldType::Int), ints(&[-4, 1000])),
        of("max, bool", Aggregate::Max(FieldType::Bool), vec![Value::Bool(false), Value::Bool(true)]),
        of("mean, empty", Aggregate::Mean(FieldType::Int), vec![]),
        of("mean, 5 / 2", Aggregate::Mean(FieldType::Int), ints(&[2, 3])),
        of("distinct, empty", Aggregate::Distinct, vec![]),
        of("distinct, 3 texts", Aggregate::Distinct, users(3).collect()),
        of("distinct, 2 ints", Aggregate::Distinct, ints(&[0, -1])),
        of("distinct, 2 truth values", Aggregate::Distinct, vec![Value::Bool(false), Value::Bool(true)]),
        of("distinct, the empty text", Aggregate::Distinct, vec![Value::str("")]),
        of("distinct, 5000 texts", Aggregate::Distinct, users(5000).collect()),
        of("quantile, empty", quantile(FieldType::Int), vec![]),
        of("quantile, ints", quantile(FieldType::Int), ints(&[-1000, -1, 0, 0, 1, 2, 3, 1_000_000])),
        of("quantile, floats", quantile(FieldType::Float), vec![Value::Float(0.1), Value::Float(1e300)]),
        of("sessions, empty", Aggregate::Sessions { of: 0, idle: 30 }, vec![]),
        of("sessions, 3", Aggregate::Sessions { of: 0, idle: 30 }, ints(&[60, 1_000, 90, -5, 30, 970])),
    ]
}

#[test]
fn states_have_these_bytes() {
    let mut lines = String::new();
    for (name, aggregate, state) in states() {
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        assert_eq!(State::decode(&aggregate, &mut &bytes[..]), Ok(state), "{name}");
        writeln!(lines, "{name}: {}", hex(&bytes)).expect("a string takes all");
    }
    golden("states.txt", lines.as_bytes());
}

#[test]
fn a_segment_has_these_bytes() {
    let (views, visitors) = (MetricVersion(0x0123_4567_89ab_cdef), MetricVersion(0xfedc_ba98_7654_3210));
    let cell = |version, key: &str, bucket, state| {
        let mut bytes = Vec::new();
        Value::str(key).encode(&mut bytes);
        (CellId { version, key: bytes.into(), bucket }, state)
    };
    let cells = Cells::from([
        cell(views, "u1", 1_465_876_800_000, State::Count(3)),
        cell(views, "u2", 1_465_876_800_000, State::Count(1)),
        cell(views, "u2", 1_465_878_000_000, State::Count(200)),
        cell(visitors, "US>CA", -1_200_000, of(&Aggregate::Distinct, users(2))),
    ]);
    golden("segment.hex", hex(&view::pack(&cells)).as_bytes());
    golden("segment_empty.hex", hex(&view::pack(&Cells::new())).as_bytes());
}

#[test]
fn a_header_has_this_json() {
    let header = Header {
        v: view::HEADER_VERSION,
        incarnation: 0x0123_4567_89ab_cdef,
        to: 1042,
        clock: 1_763_700_000_123,
        trusted: TrustedTime {
            newest: Some(1_465_876_799_998),
            leaps: vec![1_965_876_799_998],
            settled: true,
        },
        watermark: Some(1_465_876_499_998),
        panes_from: None,
        pane_holes: Vec::new(),
        cuts: vec![(2_939_499, 17), (2_939_500, 980)],
        metrics: [(MetricVersion(0x0123_4567_89ab_cdef), 17), (MetricVersion(0xfedc_ba98_7654_3210), 980)]
            .into(),
        seq: 42,
        gaps: vec![(100, 120)],
        forgotten: Vec::new(),
    };
    golden("header.json", header.to_json().as_bytes());
    assert_eq!(Header::from_json(&read("header.json")), Ok(header));
    assert_eq!(
        view::group_key(&TopicPartition { topic: "page_views".into(), partition: 3 }, 7, 32),
        "tm1:{page_views/3/7of32}"
    );
}

/// Ours and the C++ library's sketches of the same values have the same registers, so they merge as one.
/// `golden/distinct/make.py` made the C++ library's.
#[test]
fn sketches_are_those_of_the_cpp_library() {
    let value = |kind, n: i64| match kind {
        "text" => Value::str(&format!("user-{n}")),
        "int" => Value::Int(n * 7919 - 1000),
        _ => Value::Float(n as f64 / 8.0),
    };
    for name in ["text", "int", "float"] {
        for count in [5, 300, 5000] {
            let mut state = Distinct::default();
            (0..count).for_each(|n| state.add(&value(name, n)));
            golden(&format!("distinct/{name}.{count}.tidemark.sk"), &state.to_datasketches());
            let ours = HllSketch::deserialize(&state.to_datasketches()).expect("standard bytes");
            let theirs = read(&format!("distinct/{name}.{count}.cpp.sk"));
            let theirs = HllSketch::deserialize(&theirs).expect("standard bytes");
            let mut union = HllUnion::new(12).expect("a size in range");
            union.update(&theirs);
            union.update(&ours);
            let both = union.to_sketch(HllType::Hll8).composite_estimate();
            assert_eq!(ours.composite_estimate(), theirs.composite_estimate(), "{count} {name}s");
            assert_eq!(both, theirs.composite_estimate(), "{count} {name}s");
        }
    }
}
