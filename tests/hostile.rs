//! Bytes that nobody sane would send, into everything that reads bytes from outside: nothing panics, nothing asks for
//! more memory than the input explains, and what is valid comes back as it was.
//!
//! Seconds as it is. Long: `PROPTEST_CASES=1000000 cargo test --workspace --test security hostile`.

use batch_layer::archive::{ImportManifest, Manifest, Store};
use batch_layer::import;
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, setrlimit};
use serving_layer::query::{Limits, Request};
use serving_layer::table::Format;
use shared_model::aggregate::{Aggregate, State};
use shared_model::catalog::{Catalog, OUTBRAIN};
use shared_model::event::{self, FieldType, Reject, Value};
use shared_model::metric::MetricVersion;
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, CellId, Cells, Header};
use std::sync::LazyLock;
use tidemark_tests::naughty::NAUGHTY;

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    // An allocation beyond this ends the process, so no test here can pass by asking for more.
    let limit = Some(4 << 30);
    setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).expect("a limit of memory");
    Catalog::from_toml(OUTBRAIN).expect("the shipped catalog")
});

/// What is done to valid bytes: at a place, some are replaced.
type Damage = Vec<(prop::sample::Index, usize, Vec<u8>)>;

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6),
        // Numbers of many digits, in the forms that lengths have.
        Just(vec![0xff; 9]),
        Just(vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
        Just(b"99999999999999999999".to_vec()),
        Just(b"[[[[[[[[".to_vec()),
        Just(b"\\ud800".to_vec()),
        prop::sample::select(NAUGHTY).prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), 0..8usize, bytes), 0..4)
}

fn damaged(valid: &[u8], damage: &Damage) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (at, length, put) in damage {
        let at = at.index(bytes.len() + 1);
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, put.iter().copied());
    }
    bytes
}

fn aggregates() -> Vec<Aggregate> {
    let quantiles = vec![0.5];
    vec![
        Aggregate::Count,
        Aggregate::Sum(FieldType::Int),
        Aggregate::Min(FieldType::String),
        Aggregate::Max(FieldType::Float),
        Aggregate::Mean(FieldType::Decimal(2)),
        Aggregate::Distinct,
        Aggregate::TopK { k: 3 },
        Aggregate::Quantile { ty: FieldType::Int, quantiles },
        Aggregate::Sessions { of: 0, idle: 30 },
    ]
}

fn value(aggregate: &Aggregate, number: i64) -> Value {
    match aggregate {
        Aggregate::Min(_) => Value::str(&number.to_string()),
        Aggregate::Max(_) => Value::Float(number as f64),
        _ => Value::Int(number),
    }
}

/// A state of each aggregate, and a segment of one cell of each, under versions 0, 1, ...
fn segment(numbers: &[i64]) -> (Vec<(Aggregate, State)>, Vec<u8>) {
    let state = |aggregate: Aggregate| {
        let mut state = State::empty(&aggregate);
        numbers.iter().for_each(|number| state.add(&value(&aggregate, *number)));
        (aggregate, state)
    };
    let states: Vec<_> = aggregates().into_iter().map(state).collect();
    let cell = |(version, (_, state)): (u64, &(Aggregate, State))| {
        let id = CellId { version: MetricVersion(version), key: b"key".as_slice().into(), bucket: 1_200_000 };
        (id, state.clone())
    };
    let cells: Cells = (0..).zip(&states).map(cell).collect();
    let packed = view::pack(&cells);
    (states, packed)
}

fn record(user: &str) -> Vec<u8> {
    serde_json::json!({ "uuid": user, "document_id": 7, "timestamp": 61_250, "platform": 1,
        "geo_location": user, "traffic_source": null, "more": [{ "deep": [1.5e3] }] })
    .to_string()
    .into_bytes()
}

fn decode(bytes: &[u8]) -> Result<event::Event, Reject> {
    let stream = CATALOG.stream("page_views").expect("a shipped stream");
    event::decode(stream, &TopicPartition::new("page_views", 0), 5, 1_465_876_900_000, Some(bytes))
}

#[test]
fn a_record_at_its_limits_is_an_event_and_one_beyond_is_refused() {
    let check = |bytes: &[u8], expected: Result<(), &str>| match (decode(bytes), expected) {
        (Ok(_), Ok(())) => {}
        (Err(reject), Err(part)) => assert!(reject.to_string().contains(part), "{reject}"),
        (found, expected) => panic!("{:?} instead of {expected:?}", found.map(drop)),
    };
    check(&record(&"x".repeat(4_096)), Ok(()));
    check(&record(&"x".repeat(4_097)), Err("field uuid: the text has 4097 bytes; the stream allows 4096"));
    let padded = |length: usize| {
        let mut bytes = record("u");
        bytes.resize(length, b' ');
        bytes
    };
    check(&padded(1 << 20), Ok(()));
    check(&padded((1 << 20) + 1), Err("the record has 1048577 bytes; the stream allows 1048576"));
    for text in NAUGHTY {
        let event = decode(&record(text)).unwrap_or_else(|reject| panic!("{text:?}: {reject}"));
        assert!(event.values.contains(&Value::str(text)), "{text:?} comes back");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn records(bytes: Vec<u8>, user in ".*", damage in damage()) {
        let _ = decode(&bytes);
        let _ = decode(&damaged(&record(&user), &damage));
        match decode(&record(&user)) {
            Ok(event) => prop_assert!(event.values.contains(&Value::str(&user))),
            Err(reject) => prop_assert!(user.contains('\0') || user.len() > 4_096, "{}", reject),
        }
    }

    #[test]
    fn values_of_text(text: String, scale in 0..19u8) {
        for ty in [FieldType::Int, FieldType::Float, FieldType::Bool, FieldType::String, FieldType::Decimal(scale)] {
            if let Ok(value) = ty.read_text(&text) {
                let mut bytes = Vec::new();
                value.encode(&mut bytes);
                prop_assert_eq!(Value::decode(&mut &bytes[..]), Ok(value));
            }
        }
    }

    #[test]
    fn states_and_segments(bytes: Vec<u8>, numbers in prop::collection::vec(-600..600i64, 0..500), damage in damage()) {
        let _ = &*CATALOG;
        let (states, packed) = segment(&numbers);
        for (aggregate, state) in &states {
            let mut encoded = Vec::new();
            state.encode(&mut encoded);
            prop_assert_eq!(State::decode(aggregate, &mut &encoded[..]), Ok(state.clone()));
            for hostile in [bytes.clone(), damaged(&encoded, &damage)] {
                if let Ok(state) = State::decode(aggregate, &mut &hostile[..]) {
                    // Whatever is let in can be used: merged, finished, written.
                    let mut merged = state.clone();
                    let _ = merged.merge(&state);
                    let _ = (state.finish(aggregate), state.to_columns(aggregate));
                }
            }
        }
        for hostile in [bytes, damaged(&packed, &damage), packed] {
            let aggregate = |version: MetricVersion| states.get(version.0 as usize).map(|(aggregate, _)| aggregate);
            let _ = view::unpack(&hostile, aggregate, |_, mut key, _, _| {
                while Value::decode(&mut key).is_ok() {}
                Ok(())
            });
        }
    }

    #[test]
    fn headers_and_names(bytes: Vec<u8>, text: String, damage in damage()) {
        let header = include_bytes!("../shared-model/tests/golden/header.json");
        prop_assert!(Header::from_json(header.trim_ascii_end()).is_ok());
        for hostile in [bytes, damaged(header, &damage)] {
            if let Ok(header) = Header::from_json(&hostile) {
                prop_assert_eq!(Header::from_json(header.to_json().as_bytes()), Ok(header));
            }
        }
        let _ = view::parse_segment_field(&text);
        if let Some(tp) = TopicPartition::parse(&text) {
            prop_assert_eq!(TopicPartition::parse(&tp.to_string()), Some(tp));
        }
    }

    #[test]
    fn catalogs(damage in damage()) {
        let _ = &*CATALOG;
        let hostile = damaged(OUTBRAIN.as_bytes(), &damage);
        let _ = Catalog::from_toml(&String::from_utf8_lossy(&hostile));
    }

    #[test]
    fn queries(bytes: Vec<u8>, text: String, now in prop_oneof![any::<i64>(), -70_000_000_000_000..260_000_000_000_000i64], damage in damage()) {
        let valid = serde_json::json!({
            "metrics": ["user_view_cnt", { "name": "share", "share_of": "user_view_cnt" }],
            "group_by": ["uuid"], "from": "2016-06-14", "to": "2016-06-15T01:00:00Z",
            "granularity": "1h", "time_zone": "Europe/Berlin", "order": [{ "by": "uuid", "desc": true }], "limit": 5,
            "filters": [{ "dimension": "uuid", "op": "like", "value": format!("%{}%", text.replace('\\', "")) }],
            "offset": 3, "strict": true, "at_run": 4, "fill": true, "compare": "previous_month", "format": "csv",
            "rolling": "2 days", "cumulative": false, "limit_by": { "columns": ["bucket"], "limit": 2 },
            "having": { "or": [{ "column": "previous.user_view_cnt", "op": ">", "value": 3 }] },
        });
        let several = serde_json::json!({
            "time_range": "last 6 hours", "time_zone": "Pacific/Chatham", "now": now,
            "filters": { "not": { "dimension": "uuid", "value": text } },
            "queries": { text.clone(): { "metrics": ["user_view_cnt"] }, "b": { "metrics": ["user_click_cnt"] } },
        });
        let several = several.to_string().into_bytes();
        let valid = valid.to_string().into_bytes();
        let limits = Limits::default();
        prop_assert!(Request::parse(&valid, Format::Json, &CATALOG, &limits, 0).is_ok(), "{}", String::from_utf8_lossy(&valid));
        let _ = Request::parse(&several, Format::Json, &CATALOG, &limits, 0);
        let _ = Request::parse(&damaged(&several, &damage), Format::Json, &CATALOG, &limits, 0);
        let _ = Request::parse(&bytes, Format::Csv, &CATALOG, &limits, 0);
        let _ = Request::parse(&damaged(&valid, &damage), Format::Ndjson, &CATALOG, &limits, 0);
    }

    #[test]
    fn manifests(bytes: Vec<u8>, damage in damage()) {
        let _ = &*CATALOG;
        let valid: &[u8] = br#"{"v":1,"import_id":"a","stream":"s","stream_version":"00","segments":[],"rejects":null,
            "source":"a.csv","rows":1,"nonce":"n","written_at":1}"#;
        prop_assert!(ImportManifest::from_json("m", valid).is_ok());
        for hostile in [bytes, damaged(valid, &damage)] {
            let _ = (Manifest::from_json("m", &hostile), ImportManifest::from_json("m", &hostile));
        }
    }
}

proptest! {
    // Each writes files.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(8)))]

    #[test]
    fn imports(bytes: Vec<u8>, text in prop::sample::select(NAUGHTY), damage in damage()) {
        let header = "uuid,document_id,timestamp,platform,geo_location,traffic_source\n";
        let quoted = format!("\"{}\"", text.replace('"', "\"\"").replace(['\n', '\r'], " "));
        let valid = format!("{header}{quoted},7,61250,1,{quoted},\\N\nu,8,61251,1,US,2\n");
        let rows = |content: &[u8]| {
            let scratch = tempfile::tempdir().expect("a folder");
            let file = scratch.path().join("page_views.csv");
            std::fs::write(&file, content).expect("a file");
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let (store, files) = (Store::in_memory(), [file.display().to_string()]);
            let options = import::Options::at(1_465_876_900_000);
            let report = runtime.block_on(import::import(&store, &CATALOG, "page_views", &files, &options));
            report.map(|report| (report.files[0].rows, report.files[0].rejects))
        };
        prop_assert_eq!(rows(valid.as_bytes()).expect("valid rows"), (2, 0));
        let _ = rows(&bytes);
        let hostile = damaged(valid.as_bytes(), &damage);
        if let Ok((taken, rejected)) = rows(&hostile) {
            // Every line behind the header is a row or is refused.
            let lines = hostile.split(|byte| *byte == b'\n').count() as u64 - 1;
            let last_is_empty = u64::from(hostile.ends_with(b"\n"));
            prop_assert_eq!(taken + rejected, lines - last_is_empty, "{}", String::from_utf8_lossy(&hostile));
        }
    }
}
