//! The audit's law, on random logs: whatever repeats they hold and wherever the tidemarks cut them, an audit of views
//! that are right finds nothing, and one of a view that lost or doubled records finds just that.
//!
//! The views are naive folds over deliveries; the repeats are explained by the code under test.

use super::{Audit, CellStream, Figures, Sides, compare};
use crate::audit::Repeats;
use crate::compute::healed::{Delivery, Fate, Seam, fates};
use crate::compute::{Cell, Sorter};
use futures::StreamExt as _;
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use shared_model::aggregate::{Aggregate, State};
use shared_model::catalog::{Catalog, OUTBRAIN};
use shared_model::event::{FieldType, Value};
use shared_model::metric::Metric;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

const HORIZON: i64 = 6;

/// One delivery, in the order of the log.
#[derive(Debug, Clone)]
struct Record {
    partition: i32,
    offset: i64,
    identity: u32,
    key: i64,
    value: i64,
}

/// Deliveries, from what is drawn of each: partition, identity, key, value. Copies may differ in key and value.
fn log(drawn: &[(i32, u32, i64, i64)]) -> Vec<Record> {
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    let record = |&(partition, identity, key, value): &(i32, u32, i64, i64)| {
        let end = ends.entry(partition).or_default();
        *end += 1;
        Record { partition, offset: *end - 1, identity, key, value }
    };
    drawn.iter().map(record).collect()
}

fn metric(aggregate: &Aggregate) -> Metric {
    static SHIPPED: LazyLock<Metric> = LazyLock::new(|| {
        let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
        (**catalog.metric("doc_cnt").expect("shipped")).clone()
    });
    Metric { aggregate: aggregate.clone(), ..SHIPPED.clone() }
}

fn aggregates() -> [Aggregate; 9] {
    let int = || FieldType::Int;
    let quantile = Aggregate::Quantile { ty: int(), quantiles: vec![0.5] };
    [
        Aggregate::Count,
        Aggregate::Sum(int()),
        Aggregate::Min(int()),
        Aggregate::Max(int()),
        Aggregate::Mean(int()),
        Aggregate::Distinct,
        Aggregate::TopK { k: 3 },
        quantile,
        Aggregate::Sessions { of: 0, idle: 2 },
    ]
}

fn fold<'a>(aggregate: &Aggregate, records: impl IntoIterator<Item = &'a Record>) -> Vec<Cell> {
    let cell = |record: &Record| {
        let mut state = State::empty(aggregate);
        state.add(&Value::Int(record.value));
        Cell { key: vec![Value::Int(record.key)], bucket: record.value.rem_euclid(2), state }
    };
    let mut sorter = Sorter::new(&Arc::new(metric(aggregate)), 1 << 20);
    records.into_iter().for_each(|record| sorter.push(cell(record)).expect("pushed"));
    let mut cells = sorter.finish().expect("they merge");
    let read = cells.read().expect("a run");
    read.collect::<Result<_, _>>().expect("cells")
}

fn stream(cells: Vec<Cell>) -> CellStream<'static> {
    futures::stream::iter(cells.into_iter().map(Ok)).boxed()
}

/// A log with its records' places, and a move of the tidemark from one number of records to another.
struct World<'a> {
    log: &'a [Record],
    from: usize,
    to: usize,
}

impl World<'_> {
    /// What the batch view counts of the first `n` records: the lowest delivery of each identity.
    fn batch(&self, n: usize) -> Vec<&Record> {
        let mut lowest: BTreeMap<u32, &Record> = BTreeMap::new();
        for record in &self.log[..n] {
            let place = |record: &Record| (record.partition, record.offset);
            let first = lowest.entry(record.identity).or_insert(record);
            if place(record) < place(first) {
                *first = record;
            }
        }
        lowest.into_values().collect()
    }

    /// What the realtime view counts between: what has no copy in its partition within the horizon below.
    fn realtime(&self) -> Vec<&Record> {
        let mut last: HashMap<(i32, u32), i64> = HashMap::new();
        let mut counted = Vec::new();
        for (at, record) in self.log[..self.to].iter().enumerate() {
            let before = last.insert((record.partition, record.identity), record.offset);
            if at >= self.from && before.is_none_or(|offset| offset < record.offset - HORIZON) {
                counted.push(record);
            }
        }
        counted
    }

    /// What the archive explains.
    fn healed(&self, repeats: &mut Repeats) -> Vec<&Record> {
        let ends = |partition| {
            let below = self.log[..self.from].iter().filter(|record| record.partition == partition);
            (("t".to_owned(), partition), below.count() as i64)
        };
        let partitions: BTreeSet<i32> = self.log.iter().map(|record| record.partition).collect();
        let seam = Seam {
            below: partitions.into_iter().map(ends).collect(),
            imports: BTreeSet::new(),
            import_prefix: "import:",
        };
        let mut copies: BTreeMap<u32, Vec<&Record>> = BTreeMap::new();
        for record in &self.log[..self.to] {
            copies.entry(record.identity).or_default().push(record);
        }
        let mut healed = Vec::new();
        for mut records in copies.into_values() {
            records.sort_by_key(|record| (record.partition, record.offset));
            let place = |record: &&Record| Delivery {
                topic: "t",
                partition: record.partition,
                offset: record.offset,
            };
            let deliveries: Vec<_> = records.iter().map(place).collect();
            let fates = fates(&deliveries, &seam, HORIZON, repeats);
            let found = records.iter().zip(fates).filter(|(_, fate)| *fate == Fate::Healed);
            healed.extend(found.map(|(record, _)| *record));
        }
        healed
    }

    /// The audit's figures, with the realtime view spoiled by `change`.
    fn audit(&self, aggregate: &Aggregate, change: impl FnOnce(&mut Vec<&Record>)) -> Figures {
        let mut read = self.realtime();
        change(&mut read);
        let healed = self.healed(&mut Repeats::default());
        let [before, after] = [self.from, self.to].map(|n| self.batch(n));
        let [before, read, after, healed] =
            [before, read, after, healed].map(|records| stream(fold(aggregate, records)));
        let metric = metric(aggregate);
        let compared = compare(&metric, Sides { before, read, after, healed });
        futures::executor::block_on(compared).expect("compared")
    }
}

fn records() -> impl Strategy<Value = Vec<(i32, u32, i64, i64)>> {
    prop::collection::vec((0..3i32, 0..40u32, 0..4i64, -20..20i64), 0..120)
}

proptest! {
    #[test]
    fn views_that_are_right_are_found_so(drawn in records(), cuts in prop::collection::vec(0..120usize, 2..5)) {
        let log = log(&drawn);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(log.len())).collect();
        cuts.sort_unstable();
        for two in cuts.windows(2) {
            let world = World { log: &log, from: two[0], to: two[1] };
            for aggregate in aggregates() {
                let figures = world.audit(&aggregate, |_| {});
                prop_assert_eq!((figures.wrong(), figures.error()), (0, 0.0), "{:?} {:?}", aggregate, figures);
            }
        }
    }

    #[test]
    fn a_record_lost_or_doubled_is_found(
        drawn in records(),
        from in 0..60usize,
        at in any::<prop::sample::Index>(),
        doubled: bool,
    ) {
        let log = log(&drawn);
        let world = World { log: &log, from: from.min(log.len()), to: log.len() };
        let read = world.realtime().len();
        prop_assume!(read > 0);
        let change = |read: &mut Vec<&Record>| {
            let one = read[at.index(read.len())];
            if doubled { read.push(one) } else { read.retain(|record| !std::ptr::eq(*record, one)) }
        };
        let figures = world.audit(&Aggregate::Count, change);
        prop_assert_eq!(figures.wrong(), 1, "{:?}", figures);
        let (distance, moved) = (figures.distance, figures.moved);
        prop_assert!(distance == 1.0 && moved >= 1.0 && moved <= (read + 1) as f64, "{:?}", figures);
        prop_assert!(figures.error() > 0.0 && figures.examples.len() == 1);
    }
}

/// A log of many records with repeats, cut a hundred times.
fn long_log(seed: u64) -> Vec<Record> {
    let mut random = StdRng::seed_from_u64(seed);
    let draw = |_| {
        let [partition, identity, key] = [3, 15_000, 50].map(|below| random.random_range(0..below));
        (partition, identity as u32, i64::from(key), i64::from(identity) % 1_000)
    };
    log(&(0..10_000u32).map(draw).collect::<Vec<_>>())
}

#[test]
fn a_hundred_clean_runs_raise_no_alarm_and_one_lost_record_in_a_thousand_does_in_the_first() {
    let log = long_log(7);
    let mut healed = 0;
    for run in 0..100 {
        let world = World { log: &log, from: run * 100, to: (run + 1) * 100 };
        let mut repeats = Repeats::default();
        world.healed(&mut repeats);
        healed += repeats.healed();
        let clean = world.audit(&Aggregate::Count, |_| {});
        let audit = Audit { metrics: [("clean".to_owned(), clean)].into(), ..Audit::default() };
        assert!(!audit.alarm() && audit.admit(0.0).is_ok(), "run {run}: {audit}");
    }
    assert!(healed > 1_000, "{healed} repeats healed");
    let world = World { log: &log, from: 0, to: 1_000 };
    let counting = [Aggregate::Count, Aggregate::Mean(FieldType::Int), Aggregate::TopK { k: 3 }];
    for aggregate in counting {
        let lossy = world.audit(&aggregate, |read| read.truncate(read.len() - 1));
        let name = format!("{aggregate:?}");
        let audit = Audit { metrics: [(name, lossy)].into(), ..Audit::default() };
        assert!(audit.alarm() && audit.admit(0.0005).is_err() && audit.admit(0.01).is_ok(), "{audit}");
    }
}

#[test]
fn streams_out_of_order_are_refused() {
    let cell = |key| Cell { key: vec![Value::Int(key)], bucket: 0, state: State::Count(1) };
    let cells = |keys: &[i64]| stream(keys.iter().map(|&key| cell(key)).collect());
    let metric = metric(&Aggregate::Count);
    let compared = |before: &[i64], after: &[i64]| {
        let sides =
            Sides { before: cells(before), read: cells(&[]), after: cells(after), healed: cells(&[]) };
        futures::executor::block_on(compare(&metric, sides))
    };
    assert_eq!(compared(&[1, 2], &[1, 2]).expect("in order").cells, 0);
    assert!(compared(&[2, 1], &[1, 2]).is_err());
    assert!(compared(&[1, 1], &[1]).is_err());
}
