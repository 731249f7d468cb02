//! The archive's laws, over random logs: chains tile the log, cuts equal a naive definition, each record is in
//! exactly one file, and rivals and restarts change nothing.

use crate::archive::buffer::Limits;
use crate::archive::fold::Fold;
use crate::archive::manifest::{Manifest, manifest_path};
use crate::archive::samples::{self, Entry, Unreliable};
use crate::archive::seal::{Chain, Sealer, walk};
use crate::archive::store::Store;
use crate::archive::sweep::sweep;
use object_store::memory::InMemory;
use polars::prelude::*;
use proptest::prelude::*;
use shared_model::epoch::{EpochLength, IngestClock, TrustedTime};
use shared_model::event;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};
use xxhash_rust::xxh3::xxh3_64;

const EPOCHS: EpochLength = EpochLength(100);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn tp() -> TopicPartition {
    TopicPartition::new("clicks", 3)
}

fn limits(rows: usize) -> Limits {
    Limits { rows, ..Limits::default() }
}

/// Archives a log from a cut on, as one step does, and returns the chain.
async fn archive(store: &Store, log: &[Entry], from: Cut, rows: usize) -> Chain {
    let chain = walk(store, tp(), from).await.unwrap();
    let mut at = chain.end().offset;
    let mut sealer = Sealer::new(store.clone(), samples::stream(), EPOCHS, chain, limits(rows), 9);
    while let Some(entry) = log.iter().find(|entry| entry.offset >= at) {
        at = match sealer.record(entry.record()).await.unwrap() {
            Some(offset) => offset,
            None => entry.offset + 1,
        };
    }
    sealer.finish()
}

/// The cuts by their definition: at each epoch's first record, the folds over all records below.
fn naive_cuts(log: &[Entry], low: i64) -> Vec<Cut> {
    let stream = samples::stream();
    let clock =
        |upto: usize| log[..upto].iter().filter_map(|entry| entry.append_time).max().unwrap_or(0).max(0);
    let mut cuts = vec![Cut::start(low)];
    for (at, entry) in log.iter().enumerate() {
        let (before, with) = (EPOCHS.epoch(clock(at)), EPOCHS.epoch(clock(at + 1)));
        if before == with {
            continue;
        }
        let (mut trusted, mut running) = (TrustedTime::default(), IngestClock::default());
        for below in &log[..at] {
            let stamp = below.append_time.unwrap_or(running.0);
            running.observe(stamp);
            match event::decode(&stream, &tp(), below.offset, stamp, below.value.as_deref()) {
                Ok(event) => trusted.observe(stream.event_clock(), event.time, stamp),
                Err(_) if below.tick && below.value.is_none() => {
                    trusted.observe_tick(stream.event_clock(), stamp)
                }
                Err(_) => {}
            }
        }
        let fingerprint = log[..at].iter().rev().find_map(|below| below.value.as_deref()).map(xxh3_64);
        cuts.push(Cut { epoch: with, offset: entry.offset, clock: clock(at), trusted, fingerprint });
    }
    cuts
}

/// The offsets in all files that a chain names, by kind of file.
async fn offsets(store: &Store, chain: &Chain) -> BTreeMap<&'static str, Vec<i64>> {
    let mut found: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for Manifest { segments, rejects, .. } in chain.sealed.iter().map(|sealed| &sealed.manifest) {
        for segment in segments {
            let frame = read(store, &segment.path).await;
            assert_eq!(frame.height() as u64, segment.rows, "{}", segment.path);
            let offsets = column(&frame, "_offset");
            assert!(offsets.is_sorted() && offsets[0] == segment.from_offset);
            assert_eq!(offsets.last().unwrap() + 1, segment.to_offset);
            let days = column(&frame, "_event_time").into_iter().map(shared_model::time::EventDay::of);
            assert!(days.eq(std::iter::repeat_n(segment.event_day, frame.height())));
            found.entry("rows").or_default().extend(offsets);
        }
        for path in rejects.iter().flat_map(|rejects| &rejects.paths) {
            found.entry("rejects").or_default().extend(column(&read(store, path).await, "_offset"));
        }
    }
    found.values_mut().for_each(|offsets| offsets.sort_unstable());
    found
}

async fn read(store: &Store, path: &str) -> DataFrame {
    let bytes = store.get(path).await.unwrap().unwrap();
    ParquetReader::new(std::io::Cursor::new(bytes)).finish().unwrap()
}

fn column(frame: &DataFrame, name: &str) -> Vec<i64> {
    let column = frame.column(name).unwrap().cast(&DataType::Int64).unwrap();
    column.i64().unwrap().into_no_null_iter().collect()
}

fn low(log: &[Entry]) -> i64 {
    log.first().map_or(5, |entry| entry.offset)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn manifests_tile_the_log_at_the_naive_cuts(log in samples::log(), rows in 1..20usize) {
        let store = Store::in_memory();
        let chain = runtime().block_on(archive(&store, &log, Cut::start(low(&log)), rows));
        prop_assert_eq!(&chain.cuts, &naive_cuts(&log, low(&log)));
        let mut at = low(&log);
        for sealed in &chain.sealed {
            prop_assert_eq!(sealed.manifest.from.offset, at);
            prop_assert_eq!(&sealed.path, &manifest_path(&tp(), at));
            at = sealed.manifest.to.offset;
        }
        prop_assert_eq!(at, chain.end().offset);
    }

    #[test]
    fn each_record_below_the_end_is_in_exactly_one_file_or_is_a_tick(log in samples::log(), rows in 1..20usize) {
        let store = Store::in_memory();
        let chain = runtime().block_on(archive(&store, &log, Cut::start(low(&log)), rows));
        let found = runtime().block_on(offsets(&store, &chain));
        let below = || log.iter().filter(|entry| entry.offset < chain.end().offset);
        let kind = |entry: &&Entry| match (&entry.value, entry.tick) {
            (None, true) => "tick",
            (Some(value), _) if value.ends_with(b"true}") => "rows",
            _ => "rejects",
        };
        for name in ["rows", "rejects"] {
            let expected: Vec<i64> = below().filter(|entry| kind(entry) == name).map(|entry| entry.offset).collect();
            prop_assert_eq!(found.get(name).cloned().unwrap_or_default(), expected);
        }
        let ticks: u64 = chain.sealed.iter().map(|sealed| sealed.manifest.ticks).sum();
        prop_assert_eq!(ticks, below().filter(|entry| kind(entry) == "tick").count() as u64);
    }

    #[test]
    fn restarts_and_rivals_leave_one_chain(
        log in samples::log(),
        stops in prop::collection::vec((0..60usize, 1..20usize), 1..4),
    ) {
        let runtime = runtime();
        let whole = runtime.block_on(archive(&Store::in_memory(), &log, Cut::start(low(&log)), 9));
        let store = Store::in_memory();
        for (upto, rows) in stops {
            runtime.block_on(archive(&store, &log[..upto.min(log.len())], Cut::start(low(&log)), rows));
        }
        let chain = runtime.block_on(archive(&store, &log, Cut::start(low(&log)), 5));
        prop_assert_eq!(&chain.cuts, &whole.cuts);
        let of = |chain: &Chain| chain.sealed.iter().map(|sealed| sealed.manifest.rows()).collect::<Vec<_>>();
        prop_assert_eq!(of(&chain), of(&whole));
    }

    #[test]
    fn a_rival_in_between_is_adopted_and_its_loser_s_files_are_swept(
        log in samples::log(),
        stale in 0..60usize,
        rows in 1..20usize,
    ) {
        runtime().block_on(async {
            let store = Store::in_memory();
            // Both start at the same cut; the rival seals everything while the first has read only so far.
            let chain = walk(&store, tp(), Cut::start(low(&log))).await.unwrap();
            let mut slow = Sealer::new(store.clone(), samples::stream(), EPOCHS, chain, limits(rows), 9);
            let rival = archive(&store, &log, Cut::start(low(&log)), 7).await;
            for entry in &log[..stale.min(log.len())] {
                if slow.record(entry.record()).await.unwrap().is_some() {
                    panic!("the same log gave other cuts");
                }
            }
            let slow = slow.finish();
            let nonces = |chain: &Chain, n: usize| {
                chain.sealed[..n].iter().map(|sealed| sealed.manifest.nonce.clone()).collect::<Vec<_>>()
            };
            assert_eq!(nonces(&slow, slow.sealed.len()), nonces(&rival, slow.sealed.len()));
            let kept = offsets(&store, &rival).await;
            let swept = sweep(&store, i64::MAX, &BTreeSet::new(), false).await.unwrap();
            assert_eq!(swept.strange, Vec::<String>::new());
            assert_eq!(offsets(&store, &rival).await, kept, "a sweep removed what a manifest names");
            let again = sweep(&store, i64::MAX, &BTreeSet::new(), false).await.unwrap();
            assert_eq!(again.orphans, Vec::<String>::new());
        });
    }
}

/// A rival that read a gap where this writer read records ends elsewhere: the writer goes on from its end.
#[test]
fn a_rival_that_ends_elsewhere_is_followed() {
    runtime().block_on(async {
        let entry = |offset: i64, stamp| Entry {
            offset,
            append_time: Some(stamp),
            tick: false,
            value: Some(format!(r#"{{"uuid":"u","at":{offset},"paid":true}}"#).into_bytes()),
        };
        let log: Vec<Entry> = vec![entry(0, 100), entry(1, 110), entry(2, 210), entry(3, 220), entry(4, 320)];
        let store = Store::in_memory();
        let chain = walk(&store, tp(), Cut::start(0)).await.unwrap();
        let mut ours = Sealer::new(store.clone(), samples::stream(), EPOCHS, chain, limits(9), 9);
        let mut at = 0;
        assert_eq!(ours.record(log[0].record()).await.unwrap(), None);
        let chain = walk(&store, tp(), Cut::start(0)).await.unwrap();
        let mut rival = Sealer::new(store.clone(), samples::stream(), EPOCHS, chain, limits(9), 9);
        rival.gap(0, 3);
        rival.record(log[3].record()).await.unwrap();
        assert_eq!(rival.chain().end().offset, 3);
        while let Some(entry) = log.iter().find(|entry| entry.offset > at) {
            at = ours.record(entry.record()).await.unwrap().map_or(entry.offset, |offset| offset - 1);
        }
        let chain = ours.finish();
        assert_eq!(chain.cuts.iter().map(|cut| cut.offset).collect::<Vec<_>>(), [0, 3, 4]);
        assert_eq!(chain.sealed[0].manifest.gaps.len(), 1);
        assert_eq!(offsets(&store, &chain).await["rows"], [3]);
    });
}

/// The log has lost the record with which an epoch began: those after it are of that epoch all the same.
#[test]
fn an_epoch_does_not_go_back_where_its_first_record_was_lost() {
    let cut = Cut { epoch: 50, clock: 120, ..Cut::start(5) };
    let mut fold = Fold::new(samples::stream(), tp(), EPOCHS, cut, limits(9));
    fold.gap(5, 7);
    let after = Entry { offset: 7, append_time: Some(130), tick: true, value: None };
    assert!(fold.record(after.record()).is_empty());
    assert_eq!(fold.epoch(), 50);
}

/// A store that fails for good (a full disk) ends the step with an error; the next one loses nothing.
#[test]
fn a_step_whose_store_fails_is_repeated_without_loss() {
    runtime().block_on(async {
        let inner = Arc::new(InMemory::new());
        let entry = |offset: i64| Entry {
            offset,
            append_time: Some(100 + offset * 20),
            tick: false,
            value: Some(format!(r#"{{"uuid":"u","at":{offset},"paid":true}}"#).into_bytes()),
        };
        let log: Vec<Entry> = (0..20).map(entry).collect();
        for good in 0..6 {
            let script: Vec<&str> = std::iter::repeat_n("ok", good).chain(["refuse"]).collect();
            let store = Store::from_object_store(Arc::new(Unreliable::new(inner.clone(), &script)));
            let chain = walk(&store, tp(), Cut::start(0)).await.unwrap();
            let at = chain.end().offset;
            let mut sealer = Sealer::new(store, samples::stream(), EPOCHS, chain, limits(9), 9);
            for entry in log.iter().filter(|entry| entry.offset >= at) {
                if let Err(error) = sealer.record(entry.record()).await {
                    assert!(format!("{error:#}").contains("can't be written"), "{error:#}");
                    break;
                }
            }
        }
        let store = Store::from_object_store(inner);
        let chain = archive(&store, &log, Cut::start(0), 9).await;
        assert_eq!(chain.cuts, naive_cuts(&log, 0));
        assert_eq!(offsets(&store, &chain).await["rows"], (0..chain.end().offset).collect::<Vec<_>>());
    });
}

/// Only what is old and unnamed goes.
#[test]
fn a_sweep_leaves_what_is_young_or_strange() {
    runtime().block_on(async {
        let store = Store::in_memory();
        let orphan = "data/stream=clicks/event_day=1970-01-01/clicks-3-0-9-00000000000000ff.parquet";
        let import = "data/stream=clicks/event_day=1970-01-01/import_ab-0-0-9-00000000000000ff.parquet";
        let strange = "data/stream=clicks/notes.txt";
        for path in [orphan, import, strange] {
            store.put(path, "x".into()).await.unwrap();
        }
        let none: Vec<String> = vec![];
        assert_eq!(sweep(&store, 0, &BTreeSet::new(), false).await.unwrap().orphans, none, "young");
        assert_eq!(
            sweep(&store, i64::MAX, &BTreeSet::new(), true).await.unwrap().orphans,
            [orphan, import],
            "only tried"
        );
        let swept = sweep(&store, i64::MAX, &BTreeSet::new(), false).await.unwrap();
        assert_eq!((swept.orphans.len(), swept.bytes, swept.strange), (2, 2, vec![strange.to_owned()]));
        assert_eq!(store.list("data").await.unwrap().len(), 1);
    });
}
