//! The laws of the fold, checked on random logs: whatever the flush points, refusals, losses and restarts, a store
//! that obeys the fence ends with groups that each equal the naive fold of exactly their range.

use crate::counters::{self, Plan};
use crate::decode::{Payload, Record};
use crate::flush::Found;
use crate::group::{Claimed, Expired, Merge, Write};
use crate::partition::{PaneStart, Partition};
use proptest::prelude::*;
use shared_model::aggregate::State;
use shared_model::catalog::Catalog;
use shared_model::epoch::{IngestClock, TrustedTime};
use shared_model::event;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use shared_model::view::{CellId, Cells, Header, Slice};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Of panes and grains of which neither divides the other, so that a record's pane does not tell its bucket.
const CATALOG: &str = r#"
[layout]
epoch = "1s"
groups = 3
pane = "2s"

[streams.views]
topic = "views"
event_time = { field = "at", unit = "ms" }
identity = ["who", "at"]
message_key = "who"
bounds = { from = "1970-01-01", to = "1970-01-03" }
lateness = "1s"
dedup_horizon = 7
fields = { who = "string", what = "int", at = "int" }

[metrics.by_user]
stream = "views"
by = ["who"]
aggregate = "count"
window = "4s"
grain = "3s"

[metrics.by_what]
stream = "views"
by = ["what"]
aggregate = "count"
window = "4s"
grain = "5m"

[metrics.top_what]
stream = "views"
aggregate = "top_k"
item = "what"
k = 2
window = "6s"
grain = "1h"

[metrics.users]
stream = "views"
aggregate = "distinct"
value = "who"
grain = "1d"
"#;

fn plan() -> Arc<Plan> {
    let catalog = Catalog::from_toml(CATALOG).expect("the laws' catalog is valid");
    Arc::new(Plan::new(&catalog, &catalog.streams[0]))
}

/// One record of a random log: append time, and bytes or a tick.
type Logged = (i64, Option<String>);

fn log() -> impl Strategy<Value = Vec<Logged>> {
    let event = (0u8..5, 0i64..4, 0i64..30_000)
        .prop_map(|(who, what, at)| Some(format!(r#"{{"who":"u{who}","what":{what},"at":{at}}}"#)));
    let value = prop_oneof![8 => event, 1 => Just(None), 1 => Just(Some("{broken".to_owned()))];
    let record = (0i64..400, value);
    proptest::collection::vec(record, 1..120).prop_map(|records| {
        // Append times mostly rise, and sometimes step back, as brokers' clocks do.
        let mut now = 10_000;
        records
            .into_iter()
            .map(|(step, value)| {
                now += step - 50;
                (now, value)
            })
            .collect()
    })
}

/// What may happen between two records.
#[derive(Debug, Clone, Copy)]
enum Happens {
    /// All due writes succeed.
    Flush,
    /// Writes succeed, but nobody hears of it: all is dropped and claimed anew.
    FlushUnheard,
    /// Only the first group's write succeeds before a crash.
    FlushPartly,
    /// A crash.
    Crash,
    /// Redis loses everything.
    Emptied,
    /// Redis goes back to its state of an earlier flush.
    RolledBack,
    /// The tidemark moves to the newest cut passed.
    Moves,
    /// Memory is full: writes are stored without a word before it is, or refused; what lies below the tidemark makes room,
    /// which is heard of or not.
    Full { stored: bool, heard: bool },
}

fn happenings() -> impl Strategy<Value = Vec<(usize, Happens)>> {
    let what = prop_oneof![
        6 => Just(Happens::Flush), 1 => Just(Happens::FlushUnheard), 2 => Just(Happens::FlushPartly),
        1 => Just(Happens::Crash), 1 => Just(Happens::Emptied), 1 => Just(Happens::RolledBack),
        1 => Just(Happens::Moves),
        3 => any::<(bool, bool)>().prop_map(|(stored, heard)| Happens::Full { stored, heard }),
    ];
    proptest::collection::vec((0usize..120, what), 0..25)
}

/// Redis as far as the fence goes.
#[derive(Clone, Default)]
struct Store(BTreeMap<String, Kept>);

/// A header and its segments.
type Kept = (Header, HashMap<(Slice, u64), Vec<u8>>);

impl Store {
    /// As `tm1_flush`; whether it is stored.
    fn apply(&mut self, key: &str, write: &Write) -> bool {
        let fence = self.0.get(key).map(|(header, _)| header.fence()).unwrap_or_default();
        if fence == write.header.fence() {
            return true;
        }
        if fence != write.expected {
            return false;
        }
        let (header, segments) =
            self.0.entry(key.to_owned()).or_insert((write.header.clone(), HashMap::new()));
        *header = write.header.clone();
        for (slice, bytes) in &write.segments {
            segments.insert((*slice, write.header.seq), bytes.clone());
        }
        for field in &write.deletes {
            segments.remove(field);
        }
        true
    }

    fn claim(&self, key: &str) -> Claimed {
        match self.0.get(key) {
            None => Claimed { found: Found::Nothing, segments: Vec::new() },
            Some((header, segments)) => Claimed {
                found: Found::Group(header.clone().into()),
                segments: segments.iter().map(|(&(slice, seq), bytes)| (slice, seq, bytes.len())).collect(),
            },
        }
    }
}

/// A worker, its store and its tidemark.
struct World<'a> {
    plan: Arc<Plan>,
    tp: TopicPartition,
    log: &'a [Logged],
    store: Store,
    earlier: Store,
    cut: Cut,
    incarnations: u64,
    partition: Partition,
    next: usize,
    expired: Expired,
}

impl<'a> World<'a> {
    fn new(log: &'a [Logged]) -> World<'a> {
        let (plan, tp, cut) = (plan(), TopicPartition::new("views", 0), Cut::start(0));
        let partition = start(&plan, &tp, &mut Store::default(), &cut, &mut 0);
        let (store, earlier) = (Store::default(), Store::default());
        World {
            plan,
            tp,
            log,
            store,
            earlier,
            cut,
            incarnations: 1_000,
            partition,
            next: 0,
            expired: Expired::default(),
        }
    }

    fn record(&self, at: usize) -> Record<'a> {
        let (append_time, value) = &self.log[at];
        let payload = value.as_ref().map_or(Payload::Tick, |value| Payload::Value(Some(value.as_bytes())));
        Record { offset: at as i64, append_time: Some(*append_time), payload }
    }

    fn restart(&mut self) {
        self.partition = start(&self.plan, &self.tp, &mut self.store, &self.cut, &mut self.incarnations);
        self.next = self.partition.read_from(0) as usize;
    }

    /// A round over the first `groups` groups; whether all were stored.
    fn flush(&mut self, groups: usize, heard: bool) -> bool {
        let (position, open_epoch, expired) =
            (self.partition.position(), self.partition.epoch(), self.expired);
        let mut whole = true;
        for number in (0..self.partition.groups().len()).take(groups) {
            let group = &self.partition.groups()[number];
            if group.folds_from() > position.to {
                continue;
            }
            let merge = group.to_merge(open_epoch, &expired).and_then(|(slice, seqs, _)| {
                let (_, segments) = self.store.0.get(&group.key)?;
                let stored: Option<Vec<Vec<u8>>> =
                    seqs.iter().map(|&seq| segments.get(&(slice, seq)).cloned()).collect();
                Some(Merge { slice, seqs, stored: stored? })
            });
            let write =
                self.partition.write(number, &position, &expired, merge).expect("states merge").clone();
            let group = &mut self.partition.groups_mut()[number];
            if !self.store.apply(&group.key, &write) {
                whole = false;
            } else if heard {
                // A retry of the same write is recognised.
                assert!(self.store.apply(&group.key, &write));
                group.confirm();
            }
        }
        whole
    }

    /// Builds all due writes, of which some are stored unheard, and then deletes what has expired instead. Whether what is
    /// there is ours.
    fn trim(&mut self, stored: bool, heard: bool) -> bool {
        let (position, before, mut ours) = (self.partition.position(), self.expired, true);
        self.expired = Expired { panes_below: None, epochs_below: Some((self.cut.epoch, self.cut.offset)) };
        for number in 0..self.partition.groups().len() {
            if self.partition.groups()[number].folds_from() <= position.to {
                let write =
                    self.partition.write(number, &position, &before, None).expect("states merge").clone();
                if stored {
                    self.store.apply(&self.partition.groups()[number].key, &write);
                }
            }
            let group = &mut self.partition.groups_mut()[number];
            if let Some(write) = group.trimming(&self.expired) {
                let done = self.store.apply(&group.key, &write);
                if done && heard {
                    group.trimmed(write, &self.expired);
                }
                ours &= done;
            }
        }
        ours
    }

    fn happens(&mut self, what: Happens) {
        match what {
            Happens::Flush => {
                let before = self.store.clone();
                if self.flush(usize::MAX, true) {
                    self.earlier = before;
                } else {
                    self.restart();
                }
            }
            Happens::FlushUnheard => {
                self.flush(usize::MAX, false);
                self.restart();
            }
            Happens::FlushPartly => {
                self.flush(1, true);
                self.restart();
            }
            Happens::Full { stored, heard } => {
                if !self.trim(stored, heard) {
                    self.restart();
                }
            }
            Happens::Crash => self.restart(),
            Happens::Emptied => self.store = Store::default(),
            Happens::RolledBack => self.store = self.earlier.clone(),
            Happens::Moves => {
                let passed = naive_cuts(&self.plan, self.log, self.partition.position().to as usize);
                self.cut = passed.into_iter().next_back().unwrap_or(self.cut.clone());
            }
        }
    }
}

fn start(
    plan: &Arc<Plan>,
    tp: &TopicPartition,
    store: &mut Store,
    cut: &Cut,
    incarnations: &mut u64,
) -> Partition {
    let key = |group| shared_model::view::group_key(tp, group, plan.layout.groups);
    let claimed = (0..plan.layout.groups).map(|group| store.claim(&key(group))).collect();
    let panes = PaneStart { cut: Cut::start(0), panes_from: None, holes: Vec::new() };
    let (partition, rebuilt) = Partition::start(tp, plan, claimed, cut, &panes, 0, || {
        *incarnations += 1;
        *incarnations
    });
    for (group, _) in rebuilt {
        store.0.remove(&key(group as u32));
    }
    partition
}

/// All cuts below `to`, by their definition.
fn naive_cuts(plan: &Plan, log: &[Logged], to: usize) -> Vec<Cut> {
    let (mut clock, mut trusted, mut cuts) = (IngestClock::default(), TrustedTime::default(), Vec::new());
    for (offset, (append, value)) in log[..to].iter().enumerate() {
        let (before, below) = (plan.layout.epoch.epoch(clock.0), clock.0);
        let epoch = plan.layout.epoch.epoch(clock.observe(*append));
        if epoch > before {
            let (offset, trusted) = (offset as i64, trusted.clone());
            cuts.push(Cut { epoch, offset, clock: below, trusted, fingerprint: None });
        }
        let tp = TopicPartition::new("views", 0);
        let decoded = value
            .as_ref()
            .map(|value| event::decode(&plan.stream, &tp, offset as i64, *append, Some(value.as_bytes())));
        if let Some(Ok(event)) = decoded {
            trusted.observe(plan.stream.event_clock(), event.time, *append);
        }
    }
    cuts
}

/// The cells of one group over `[from, to)`, and its panes over `[0, to)`, by their definition.
fn naive_cells(plan: &Plan, log: &[Logged], group: u32, from: i64, to: i64) -> BTreeMap<Slice, Cells> {
    let tp = TopicPartition::new("views", 0);
    let mut clock = IngestClock::default();
    let mut valid = Vec::new();
    let mut slices: BTreeMap<Slice, Cells> = BTreeMap::new();
    for (offset, (append, value)) in log[..to as usize].iter().enumerate() {
        let (offset, epoch) = (offset as i64, plan.layout.epoch.epoch(clock.observe(*append)));
        let Some(value) = value else { continue };
        let Ok(event) = event::decode(&plan.stream, &tp, offset, *append, Some(value.as_bytes())) else {
            continue;
        };
        let horizon = offset - plan.stream.dedup_horizon;
        let repeat = valid.iter().any(|&(identity, at)| identity == event.identity && at >= horizon);
        valid.push((event.identity, offset));
        if repeat {
            continue;
        }
        plan.fold(&event, &mut Vec::new(), |of, counted, key| {
            let metric = counted.metric;
            let mut add = |slice, bucket| {
                let id = CellId { version: metric.version, key: key.into(), bucket };
                let cells = slices.entry(slice).or_default();
                counted
                    .binding
                    .add(&event.values, cells.entry(id).or_insert_with(|| State::empty(&metric.aggregate)));
            };
            if of == group && metric.window.is_some() {
                let pane = event.time.div_euclid(plan.layout.pane) * plan.layout.pane;
                add(Slice::Pane(pane), pane);
            }
            if of == group && offset >= from {
                add(Slice::Epoch(epoch), metric.grain.bucket(event.time));
            }
        });
    }
    slices
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_stored_group_equals_the_naive_fold_of_its_range(log in log(), happenings in happenings()) {
        let mut world = World::new(&log);
        let mut happenings = happenings;
        happenings.sort_by_key(|&(at, _)| at);
        let mut happenings = happenings.into_iter().peekable();
        let mut done = 0;
        while world.next < log.len() {
            let record = world.record(world.next);
            world.partition.take(&record);
            world.next += 1;
            done = done.max(world.next);
            while happenings.peek().is_some_and(|&(at, _)| at < done) {
                let (_, what) = happenings.next().expect("peeked");
                world.happens(what);
                check(&world, false)?;
            }
        }
        // Quiet at last: what was refused is written, then the rest; whatever was lost is noticed and read again.
        while !(world.flush(usize::MAX, true) && world.flush(usize::MAX, true)) {
            world.restart();
            while world.next < log.len() {
                let record = world.record(world.next);
                world.partition.take(&record);
                world.next += 1;
            }
        }
        check(&world, true)?;
    }
}

fn check(world: &World<'_>, whole: bool) -> Result<(), TestCaseError> {
    let end = world.log.len() as i64;
    prop_assert!(!whole || world.store.0.len() == world.plan.layout.groups as usize);
    for (number, group) in world.partition.groups().iter().enumerate() {
        let Some((header, segments)) = world.store.0.get(&group.key) else { continue };
        prop_assert!(!whole || header.to == end, "{header:?}");
        let from = header.cuts[0].1;
        let mut found: BTreeMap<Slice, Cells> = BTreeMap::new();
        for ((slice, _), bytes) in segments {
            let merged = found.entry(*slice).or_default();
            counters::merge_segments(&world.plan, std::iter::once(&bytes[..]), merged)
                .expect("segments decode");
        }
        let expected = naive_cells(&world.plan, world.log, number as u32, from, header.to);
        prop_assert_eq!(&found, &expected, "{} {:?}", group.key, header);
        let cuts = naive_cuts(&world.plan, world.log, (header.to + 1).min(end) as usize).into_iter();
        // One that ends at the tidemark's boundary has come by it, though the record that reached it isn't folded yet.
        let passed = |&(epoch, at): &(i64, i64)| at < header.to || header.cuts.contains(&(epoch, at));
        let cuts = cuts.map(|cut| (cut.epoch, cut.offset)).filter(|&(_, at)| at >= from);
        let cuts: Vec<(i64, i64)> = cuts.filter(passed).collect();
        let known: Vec<_> = header
            .cuts
            .iter()
            .copied()
            .filter(|&(_, at)| at > from || cuts.contains(&(header.cuts[0].0, at)))
            .collect();
        let cuts: Vec<_> = cuts.into_iter().filter(|cut| cut.1 > from || known.contains(cut)).collect();
        prop_assert_eq!(known, cuts);
    }
    Ok(())
}
