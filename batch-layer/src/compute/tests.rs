//! A computed day equals a naive fold over distinct identities, record by record, for the shipped catalog
//! and for one with every aggregate; whatever the memory limit, and whatever columns old segments have.

use super::*;
use crate::archive::compaction::Place;
use crate::archive::merge::{Part, merge};
use crate::plan;
use crate::plan::expression::{column, data_type};
use polars::prelude::*;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use shared_model::aggregate::State;
use shared_model::catalog::Catalog;
use shared_model::catalog::OUTBRAIN;
use shared_model::event::{Event, FieldType, Value, from_values};
use shared_model::metric::{Binding, KeyColumn};
use shared_model::offsets::TopicPartition;
use shared_model::time::{DAY, Millis};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

const EVERY_AGGREGATE: &str = r#"
[streams.orders]
topic = "orders"
event_time = { field = "at" }
identity = ["id", "at"]
message_key = "id"
bounds = { from = "1969-12-01", to = "1975-01-01" }
fields = { id = "int", at = "int", shop = "string", price = "decimal(2)", score = "float", paid = "bool", qty = "int" }
[streams.orders.dimensions]
country = "split_part(shop, '>', 1)"
[streams.visits]
topic = "visits"
event_time = { field = "at" }
bounds = { from = "1969-12-01", to = "1975-01-01" }
fields = { at = "int", shop = "string", qty = "int" }
[streams.visits.dimensions]
country = "lower(coalesce(shop, 'none'))"

[metrics.all_count]
streams = ["orders", "visits"]
aggregate = "count"
grain = "1d"
[metrics.filtered]
stream = "orders"
by = ["country", "paid"]
filter = "qty > 0 and (paid or shop like 'US%')"
aggregate = "count"
grain = "1h"
[metrics.revenue]
stream = "orders"
by = ["country"]
aggregate = "sum"
value = "price"
grain = "1h"
[metrics.quantity]
streams = ["orders", "visits"]
by = ["country"]
aggregate = "sum"
value = "qty"
grain = "1d"
[metrics.mean_price]
stream = "orders"
by = ["paid"]
aggregate = "mean"
value = "price"
grain = "1d"
[metrics.least_score]
stream = "orders"
by = ["shop"]
aggregate = "min"
value = "score"
grain = "1d"
[metrics.last_shop]
streams = ["orders", "visits"]
aggregate = "max"
value = "shop"
grain = "1h"
[metrics.any_paid]
stream = "orders"
by = ["id"]
aggregate = "max"
value = "paid"
grain = "1h"
[metrics.all_paid]
stream = "orders"
by = ["id"]
aggregate = "min"
value = "paid"
grain = "1h"
[metrics.least_price]
stream = "orders"
aggregate = "min"
value = "price"
grain = "20m"
[metrics.shops]
streams = ["orders", "visits"]
by = ["country"]
aggregate = "distinct"
value = "shop"
grain = "1d"
[metrics.scores]
stream = "orders"
by = ["paid"]
aggregate = "distinct"
value = "score"
grain = "1d"
[metrics.price_spread]
stream = "orders"
by = ["country"]
aggregate = "quantile"
value = "price"
grain = "1d"
[metrics.score_spread]
stream = "orders"
aggregate = "quantile"
value = "score"
grain = "1h"
[metrics.top_shops]
streams = ["orders", "visits"]
by = ["country"]
aggregate = "top_k"
item = "shop"
grain = "1h"
"#;

/// A delivery.
#[derive(Debug, Clone)]
struct Row {
    stream: Arc<Stream>,
    tp: TopicPartition,
    offset: i64,
    event: Event,
}

/// What a random row is made of: stream, partition, place of its time among the day's times, values, and whether an
/// earlier delivery is repeated instead (and whether by an import).
type Seed = (usize, i32, usize, Vec<Value>, Option<(usize, bool)>);

fn value() -> impl Strategy<Value = Value> {
    // Read as whatever the field's type is; see `of_type`.
    prop_oneof![
        1 => Just(Value::Null),
        6 => (0..5i64).prop_map(Value::Int),
        1 => prop::sample::select(vec![i64::MIN, i64::MAX, -1]).prop_map(Value::Int),
    ]
}

fn of_type(value: &Value, ty: FieldType) -> Value {
    let Value::Int(int) = value else { return Value::Null };
    match ty {
        FieldType::Int | FieldType::Decimal(_) => Value::Int(*int),
        FieldType::Float => Value::Float(*int as f64 / 7.0 + 0.0),
        FieldType::Bool => Value::Bool(int & 1 == 1),
        FieldType::String => Value::str(["US>CA>807", "DE>BE", "US", "", "ÄÖ>x"][int.rem_euclid(5) as usize]),
    }
}

fn seeds(rows: usize) -> impl Strategy<Value = Vec<Seed>> {
    let repeat = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<bool>()));
    let row = (0..2usize, 0..3i32, 0..60usize, prop::collection::vec(value(), 8), repeat);
    let row = row.prop_map(|(stream, partition, time, values, repeat)| {
        (stream, partition, time, values, repeat.map(|(index, import)| (index.index(1 << 20), import)))
    });
    prop::collection::vec(row, 0..rows)
}

/// Deliveries of one day, each topic and partition with offsets of its own.
fn deliveries(catalog: &Catalog, day: EventDay, seeds: &[Seed]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (stream, partition, time, values, repeat) in seeds {
        let earlier =
            repeat.filter(|_| !rows.is_empty()).map(|(at, import)| (rows[at % rows.len()].clone(), import));
        let (stream, topic, values) = match earlier {
            Some((row, import)) => {
                let topic = if import { "import:00ff".into() } else { row.tp.topic.clone() };
                (row.stream, topic, row.event.values)
            }
            None => {
                let stream = catalog.streams[*stream].clone();
                let time = day.interval().start + (*time as Millis) * (DAY / 60) + *time as Millis % 3 - 1;
                let time = time.clamp(day.interval().start, day.interval().end - 1);
                let fields = stream.fields.iter().zip(values).map(|(field, value)| of_type(value, field.ty));
                let mut values: Vec<Value> = fields.collect();
                values[stream.event_time.field] = Value::Int(time - stream.event_time.offset);
                (stream.clone(), stream.topic.clone(), values)
            }
        };
        let tp = TopicPartition { topic, partition: *partition };
        let offset = rows.iter().filter(|row| row.tp == tp).count() as i64;
        let event = from_values(&stream, &tp, offset, Some(0), values).expect("within the bounds");
        rows.push(Row { stream, tp, offset, event });
    }
    rows
}

/// Writes rows as the archive does, a file for each few rows of a partition.
fn write(directory: &Path, rows: &[Row]) -> BTreeMap<String, Vec<PathBuf>> {
    let mut parts: BTreeMap<(String, TopicPartition, i64), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let part = (row.stream.name.clone(), row.tp.clone(), row.offset / 40);
        parts.entry(part).or_default().push(row);
    }
    let mut segments: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (number, ((stream, ..), rows)) in parts.iter().enumerate() {
        let path = directory.join(format!("{number}.parquet"));
        write_file(&path, &mut frame(rows));
        segments.entry(stream.clone()).or_default().push(path);
    }
    segments
}

/// In row groups of 9 to 17 rows: chunks have 14 at most, or 7 where memory is short.
fn write_file(path: &Path, frame: &mut DataFrame) {
    let file = std::fs::File::create(path).expect("a file in a temporary directory");
    ParquetWriter::new(file).with_row_group_size(Some(9)).finish(frame).expect("written");
}

fn frame(rows: &[&Row]) -> DataFrame {
    let stream = &rows[0].stream;
    let mut columns: Vec<Column> = (0..stream.fields.len())
        .map(|at| {
            let values: Vec<Value> = rows.iter().map(|row| row.event.values[at].clone()).collect();
            column(stream.fields[at].name.as_str().into(), stream.fields[at].ty, &values)
        })
        .collect();
    let each = |of: fn(&Row) -> Value| rows.iter().map(|row| of(row)).collect::<Vec<Value>>();
    let time = DataType::Datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC));
    let int = |name: &str, of, ty: &DataType| {
        column(name.into(), FieldType::Int, &each(of)).cast(ty).expect("in range")
    };
    columns.push(column("_topic".into(), FieldType::String, &each(|row| Value::str(&row.tp.topic))));
    columns.push(int("_partition", |row| Value::Int(i64::from(row.tp.partition)), &DataType::Int32));
    columns.push(int("_offset", |row| Value::Int(row.offset), &DataType::Int64));
    columns.push(int("_ingest_time", |_| Value::Null, &time));
    columns.push(int("_event_time", |row| Value::Int(row.event.time), &time));
    // NULL throughout some files, where Polars gives the column another time zone.
    columns.push(int(
        "_produced_time",
        |row| if row.offset % 80 < 40 { Value::Null } else { Value::Int(row.offset) },
        &time,
    ));
    let identity =
        |half: fn(u128) -> u64| rows.iter().map(|row| half(row.event.identity.0)).collect::<Vec<_>>();
    columns.push(Column::new("_identity_hi".into(), identity(|id| (id >> 64) as u64)));
    columns.push(Column::new("_identity_lo".into(), identity(|id| id as u64)));
    DataFrame::new(rows.len(), columns).expect("columns of one length")
}

/// A metric with its cells and their hash.
type Computed = (Arc<Metric>, Vec<Cell>, String);

/// The cells of metrics, from segments as [`write`] gives them, with their hashes.
fn compute(
    catalog: &Catalog,
    metrics: &[Arc<Metric>],
    day: EventDay,
    segments: &BTreeMap<String, Vec<PathBuf>>,
    budget: Budget,
) -> Result<Vec<Computed>> {
    let source = |(stream, files): (&String, &Vec<PathBuf>)| {
        let stream = catalog.stream(stream).expect("in the catalog").clone();
        let height =
            |file| collect(plan::scan(std::slice::from_ref(file)).expect("a file")).expect("read").height();
        Source { stream, files: files.clone(), rows: files.iter().map(|file| height(file) as u64).sum() }
    };
    let opened = Day::open(day, segments.iter().map(source).collect(), budget)?;
    let sorters = metrics.iter().map(|metric| (metric.clone(), opened.sorter(metric, metrics.len())));
    let cells = opened.cells(sorters.collect())?;
    let read = |(metric, mut cells): (&Arc<Metric>, Cells)| {
        let (rows, hash) = (cells.rows(), cells.hash().to_owned());
        let read = cells.read()?.collect::<Result<Vec<Cell>>>()?;
        assert_eq!(read.len() as u64, rows);
        Ok((metric.clone(), read, hash))
    };
    metrics.iter().zip(cells).map(read).collect()
}

/// Cells by encoded key and bucket.
type Table = BTreeMap<(Vec<u8>, Millis), State>;

/// The reference: record by record, by the catalog's own words.
fn naive(metric: &Metric, rows: &[Row]) -> Table {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| (row.tp.clone(), row.offset));
    let (mut seen, mut table, mut key) = (BTreeSet::new(), Table::new(), Vec::new());
    for row in rows {
        let fed = |binding: &&Binding| binding.stream == row.stream.name;
        let Some(binding) = metric.bindings.iter().find(fed) else { continue };
        let values = &row.event.values;
        if seen.insert((&row.stream.name, row.event.identity)) && binding.admits(values) {
            binding.key(values, &mut key);
            let cell = (key.clone(), metric.grain.bucket(row.event.time));
            binding.add(values, table.entry(cell).or_insert_with(|| State::empty(&metric.aggregate)));
        }
    }
    table
}

fn table(cells: &[Cell]) -> Table {
    let ordered = cells.windows(2).all(|two| (&two[0].key, two[0].bucket) < (&two[1].key, two[1].bucket));
    assert!(ordered, "cells are in order, each once");
    let encode = |cell: &Cell| {
        let mut key = Vec::new();
        cell.key.iter().for_each(|value| value.encode(&mut key));
        ((key, cell.bucket), cell.state.clone())
    };
    cells.iter().map(encode).collect()
}

/// Computes and compares with the naive fold; gives the hashes.
fn compare(
    catalog: &Catalog,
    metrics: &[Arc<Metric>],
    day: EventDay,
    segments: &BTreeMap<String, Vec<PathBuf>>,
    rows: &[Row],
    budget: Budget,
) -> Vec<String> {
    let computed =
        compute(catalog, metrics, day, segments, budget).unwrap_or_else(|error| panic!("{error:#}"));
    let compared = computed.into_iter().map(|(metric, cells, hash)| {
        assert_eq!(table(&cells), naive(&metric, rows), "metric {} with {budget:?}", metric.name);
        hash
    });
    compared.collect()
}

/// Whatever the memory, the cells are the naive fold's, and their hashes one.
fn check(text: &str, day: EventDay, seeds: &[Seed], budgets: &[Budget], metrics: &[&str]) {
    let catalog = Catalog::from_toml(text).unwrap_or_else(|faults| panic!("{faults}"));
    let rows = deliveries(&catalog, day, seeds);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let segments = write(directory.path(), &rows);
    let wanted =
        catalog.metrics.iter().filter(|metric| metrics.is_empty() || metrics.contains(&&*metric.name));
    let wanted: Vec<Arc<Metric>> = wanted.cloned().collect();
    let of = |budget: &Budget| compare(&catalog, &wanted, day, &segments, &rows, *budget);
    let hashes: BTreeSet<Vec<String>> = budgets.iter().map(of).collect();
    assert_eq!(hashes.len(), 1, "the same hashes with {budgets:?}");
}

const UNLIMITED: Budget = Budget { memory: u64::MAX, threads: 2 };
/// 2016-06-15.
const SHIPPED_DAY: EventDay = EventDay(16_967);

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_shipped_catalog_equals_a_naive_fold(seeds in seeds(300)) {
        check(OUTBRAIN, SHIPPED_DAY, &seeds, &[UNLIMITED], &[]);
    }

    #[test]
    fn every_aggregate_equals_a_naive_fold(seeds in seeds(200), day in prop::sample::select(vec![-1, 365])) {
        check(EVERY_AGGREGATE, EventDay(day), &seeds, &[UNLIMITED], &[]);
    }

    /// Identities in several slices, and a run for each few rows.
    #[test]
    fn the_memory_limit_changes_nothing(seeds in seeds(120), memory in 0..4_000u64, threads in 1..4usize) {
        let budgets = [UNLIMITED, Budget { memory, threads }];
        let metrics =
            ["revenue", "shops", "price_spread", "mean_price", "last_shop", "least_score", "top_shops", "any_paid"];
        check(EVERY_AGGREGATE, EventDay(365), &seeds, &budgets, &metrics);
    }
}

/// Rows of `active_user` with so many users that its states are sketches: of ten minutes, and with one row of each
/// stream at the day's end, so that there are too many buckets for all of them to have a place.
#[test]
fn many_distinct_values_equal_a_naive_fold() {
    let catalog = Catalog::from_toml(OUTBRAIN).expect("shipped");
    let metric = catalog.metric("active_user").expect("shipped").clone();
    for last in [599_999, DAY - 1] {
        let rows = (0..2_000i64).map(|at| {
            let stream = catalog.streams[at as usize % 2].clone();
            let tp = TopicPartition { topic: stream.topic.clone(), partition: 0 };
            let mut values: Vec<Value> =
                stream.fields.iter().map(|field| of_type(&Value::Int(3), field.ty)).collect();
            values[stream.field("uuid").expect("shipped")] = Value::str(&format!("user-{}", at * 7 % 1_500));
            let time = SHIPPED_DAY.interval().start + if at < 1_998 { at % 600_000 } else { last };
            values[stream.event_time.field] = Value::Int(time - stream.event_time.offset);
            let event = from_values(&stream, &tp, at, Some(0), values).expect("within the bounds");
            Row { stream, tp, offset: at, event }
        });
        let rows: Vec<Row> = rows.collect();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let segments = write(directory.path(), &rows);
        let of = |memory| {
            let budget = Budget { memory, threads: 1 };
            compare(&catalog, std::slice::from_ref(&metric), SHIPPED_DAY, &segments, &rows, budget)
        };
        assert_eq!(of(u64::MAX), of(100_000), "as one, and merged from many runs");
    }
}

#[test]
fn the_order_of_files_and_deliveries_does_not_change_the_hash() {
    let catalog = Catalog::from_toml(OUTBRAIN).expect("shipped");
    let seeds: Vec<Seed> = (0..90usize)
        .map(|at| {
            (
                at % 2,
                at as i32 % 3,
                at % 11,
                vec![Value::Int(at as i64 % 4); 8],
                (at % 5 == 4).then_some((at, false)),
            )
        })
        .collect();
    let rows = deliveries(&catalog, SHIPPED_DAY, &seeds);
    let (one, other) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("other"));
    let hashes = |directory: &Path, rows: &[Row], reverse: bool| -> Vec<String> {
        let mut segments = write(directory, rows);
        if reverse {
            segments.values_mut().for_each(|files| files.reverse());
        }
        compare(&catalog, &catalog.metrics, SHIPPED_DAY, &segments, rows, UNLIMITED)
    };
    let mut shuffled = rows.clone();
    shuffled.reverse();
    let found = hashes(one.path(), &rows, false);
    assert_eq!(found, hashes(other.path(), &shuffled, true));
    assert!(found.iter().all(|hash| hash.len() == 32));
}

/// The same rows in one file for each stream, as a compaction leaves them.
fn rewritten(directory: &Path, segments: &BTreeMap<String, Vec<PathBuf>>) -> BTreeMap<String, Vec<PathBuf>> {
    let part = |file: &PathBuf| {
        let rows = collect(plan::scan(std::slice::from_ref(file)).expect("a file")).expect("read");
        let column = |name: &str| rows.column(name).expect("there").clone();
        let (topics, offsets) = (column("_topic"), column("_offset"));
        let offsets: Vec<i64> = offsets.i64().expect("integers").iter().flatten().collect();
        let place = Place {
            path: file.display().to_string(),
            topic: topics.str().expect("texts").get(0).expect("a topic").to_owned(),
            partition: column("_partition").i32().expect("integers").get(0).expect("a partition"),
            from_offset: offsets[0],
            to_offset: offsets[offsets.len() - 1] + 1,
            rows: offsets.len() as u64,
        };
        Part { file: file.clone(), from: 0, place }
    };
    let rewrite = |(stream, files): (&String, &Vec<PathBuf>)| {
        let parts: Vec<Part> = files.iter().map(part).collect();
        let path = directory.join(format!("{stream}.parquet"));
        let file = std::fs::File::create(&path).expect("a file in a temporary directory");
        merge(&parts, &file).unwrap_or_else(|error| panic!("{error:#}"));
        (stream.clone(), vec![path])
    };
    segments.iter().map(rewrite).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_that_were_rewritten_as_one_give_the_same_hashes(seeds in seeds(200)) {
        let catalog = Catalog::from_toml(EVERY_AGGREGATE).expect("valid");
        let rows = deliveries(&catalog, EventDay(365), &seeds);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let segments = write(directory.path(), &rows);
        let one = rewritten(directory.path(), &segments);
        let of = |segments| compare(&catalog, &catalog.metrics, EventDay(365), segments, &rows, UNLIMITED);
        assert_eq!(of(&segments), of(&one));
    }
}

#[test]
fn a_footer_tells_the_row_groups() {
    let catalog = Catalog::from_toml(EVERY_AGGREGATE).expect("valid");
    let seeds: Vec<Seed> = (0..40usize).map(|at| (0, 0, at, vec![Value::Int(1); 8], None)).collect();
    let rows = deliveries(&catalog, EventDay(365), &seeds);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("one.parquet");
    write_file(&path, &mut frame(&rows.iter().collect::<Vec<_>>()));
    let (found, count) = segments::inspect(&rows[0].stream, std::slice::from_ref(&path)).expect("a segment");
    assert_eq!((&found[0].groups, count), (&vec![vec![10; 4]], 40));
}

#[test]
fn old_segments_may_lack_fields_and_have_others_but_not_change_types() {
    let catalog = Catalog::from_toml(EVERY_AGGREGATE).expect("valid");
    let day = EventDay(365);
    let seeds: Vec<Seed> =
        (0..40usize).map(|at| (0, 0, at, vec![Value::Int(at as i64 % 5); 8], None)).collect();
    let mut rows = deliveries(&catalog, day, &seeds);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (old, new) = rows.split_at_mut(20);
    let stream = old[0].stream.clone();
    let shop = stream.field("shop").expect("declared");
    old.iter_mut().for_each(|row| row.event.values[shop] = Value::Null);
    let paths = [directory.path().join("old.parquet"), directory.path().join("new.parquet")];
    let mut frames = [frame(&old.iter().collect::<Vec<_>>()), frame(&new.iter().collect::<Vec<_>>())];
    frames[0].rename("shop", "gone".into()).expect("there");
    paths.iter().zip(&mut frames).for_each(|(path, frame)| write_file(path, frame));
    let segments = BTreeMap::from([("orders".to_owned(), paths.to_vec()), ("visits".to_owned(), vec![])]);
    compare(&catalog, &catalog.metrics, day, &segments, &rows, UNLIMITED);

    let text = frames[0]
        .column("qty")
        .and_then(|column| column.cast(&data_type(FieldType::String)))
        .expect("a text");
    frames[0].replace("qty", text).expect("there");
    write_file(&paths[0], &mut frames[0]);
    let error = compute(&catalog, &catalog.metrics, day, &segments, UNLIMITED).expect_err("a text");
    let error = format!("{error:#}");
    assert!(error.contains("field qty of stream orders is str there, but i64 in the catalog"), "{error}");
}

/// With no memory each cell is a run of its own, and runs are merged into others.
#[test]
fn cells_on_disk_are_those_in_memory() {
    let catalog = Catalog::from_toml(EVERY_AGGREGATE).expect("valid");
    for name in ["revenue", "shops", "last_shop", "top_shops", "price_spread", "mean_price"] {
        let metric = catalog.metric(name).expect("there");
        let cell = |at: i64| {
            let columns = (0..).zip(metric.key_columns());
            let value = |(key, column): (i64, &KeyColumn)| of_type(&Value::Int(at * key % 7), column.ty);
            let key = columns.map(|column| if at % 5 == 0 { Value::Null } else { value(column) }).collect();
            let mut state = State::empty(&metric.aggregate);
            let value = if name == "last_shop" { Value::str(&format!("{at}")) } else { Value::Int(at) };
            state.add(&value);
            Cell { key, bucket: at * 31 % 40 - 20, state }
        };
        let sorted = |memory: u64| {
            let mut sorter = Sorter::new(metric, memory);
            (0..500).for_each(|at| sorter.push(cell(at)).expect("taken"));
            let mut cells = sorter.finish().expect("sorted");
            let twice =
                [(); 2].map(|()| cells.read().expect("opened").collect::<Result<Vec<Cell>>>().expect("read"));
            assert_eq!(twice[0], twice[1], "{name}: read from the first each time");
            assert_eq!(cells.rows(), twice[0].len() as u64);
            table(&twice[0]);
            (cells.hash().to_owned(), twice[0].clone())
        };
        let held = sorted(u64::MAX);
        assert!(held.1.len() > 20 && held.1.len() < 500, "{name}: {} cells", held.1.len());
        for memory in [0, 5_000] {
            assert_eq!(sorted(memory), held, "{name} with {memory} bytes");
        }
    }
}
