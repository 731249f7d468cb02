//! Promise 1, on random logs: wherever the tidemark cuts them, the batch view below merged with the realtime view
//! from there on is the naive fold of the whole log.
//!
//! The realtime side is the speed layer's own fold, flush, compaction and restart over a store in memory, driven
//! through random interleavings with crashes, lost and rolled-back groups, stale tidemarks and dropped epochs; what
//! of it counts is decided by the serving layer's own judgement. The batch side is the fold of the distinct
//! identities below the cuts, the cuts are found by looking at every record, and the expected cells are counted here
//! by hand from the events that the log was made of.
//!
//! Exactly: every cell is the naive one plus one for each delivery above the cut that repeats an event from beyond
//! the dedup horizon, so that distinct events and repeats within the horizon are exact, any other repeat adds at most
//! one, and below T it adds none. This holds while reading goes on too, for each group up to where it stands.
//!
//! A failure prints its shrunk case and keeps its seed in `seam.proptest-regressions`, which is tried first from then
//! on. `PROPTEST_CASES=100000 cargo test -p tidemark-tests --test seam` looks longer; `PROPTEST_RNG_SEED` fixes the
//! start.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serving_layer::coverage::Coverage;
use shared_model::aggregate::{Finished, State};
use shared_model::catalog::{Catalog, OUTBRAIN, Stream};
use shared_model::epoch::{IngestClock, TrustedTime};
use shared_model::event::{self, Event, Identity, Value};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Tidemark};
use shared_model::time::Millis;
use shared_model::view::{self, CellId, Cells, Slice};
use speed_layer::twin::{Outcome, Stored, Twin};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Cases of each property; more by `PROPTEST_CASES`.
const CASES: u32 = 1_500;
/// The dedup horizon in offsets.
const HORIZON: i64 = 12;
const GROUPS: usize = 3;
const EPOCH: Millis = 1_000;
/// 2016-06-14T04:00:00Z, where append times begin.
const START: Millis = 1_465_876_800_000;
/// What a raw timestamp is counted from in the shipped catalog.
const ORIGIN: Millis = 1_465_876_799_998;
const PARTITIONS: [(&str, i32); 4] = [("events", 0), ("events", 1), ("page_views", 0), ("page_views", 1)];

/// One record to be appended.
#[derive(Debug, Clone)]
struct Spec {
    /// From the last record's offset; more than 1 leaves a hole.
    step: i64,
    /// From the last record's append time; may go back.
    pause: Millis,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    New {
        user: u8,
        document: u8,
        geo: Option<u8>,
        late: Millis,
    },
    /// Another delivery of the event this many event records back, with another geo where told.
    Repeat {
        back: usize,
        geo: Option<Option<u8>>,
    },
    Tick,
    Garbage(&'static str),
}

/// One step of the world, of one partition unless it concerns all.
#[derive(Debug, Clone)]
enum Step {
    /// So many records are produced.
    Grow(usize),
    /// The worker takes in so many.
    Work(usize),
    /// The worker writes; groups outside of the mask are not reached. Epochs may be dropped, the grace being over.
    Flush {
        reached: u8,
        drop: bool,
    },
    /// The worker dies; the next one may know only the tidemark before.
    Crash {
        stale: bool,
        panes_from_first: bool,
    },
    /// Redis loses a group, or goes back to what it held when it was last remembered.
    Lose {
        group: usize,
        back: bool,
    },
    Remember,
    /// A batch run moves the tidemark to one of the boundaries that it may, holding some partitions back.
    Move {
        boundary: prop::sample::Index,
        held: u8,
    },
    /// A reader asks.
    Ask,
}

/// A random log of one partition and how it is met.
#[derive(Debug, Clone)]
struct Case {
    logs: Vec<Vec<Spec>>,
    /// Partitions that are not in the first tidemark.
    newer: u8,
    /// Event times are bound to append times, not to fixed dates.
    live: bool,
    steps: Vec<(usize, Step)>,
}

fn spec() -> impl Strategy<Value = Spec> {
    let late = prop_oneof![6 => 0..400i64, 2 => 0..600_000i64, 1 => 0..100_000_000i64, 1 => -2_000_000..0i64];
    let geo = || prop::option::of(0..3u8);
    let what = prop_oneof![
        8 => (0..4u8, 0..3u8, geo(), late)
            .prop_map(|(user, document, geo, late)| What::New { user, document, geo, late }),
        3 => (1..5usize, prop::option::of(geo())).prop_map(|(back, geo)| What::Repeat { back, geo }),
        2 => (5..30usize, prop::option::of(geo())).prop_map(|(back, geo)| What::Repeat { back, geo }),
        1 => Just(What::Tick),
        1 => prop::sample::select(vec!["", "{", "[]", r#"{"uuid":"u"}"#, r#"{"uuid":7,"timestamp":1}"#])
            .prop_map(What::Garbage),
    ];
    let step = prop_oneof![9 => Just(1i64), 1 => 2..4i64];
    let pause = prop_oneof![6 => 0..400i64, 2 => -3_000..0i64, 1 => 1_000..6_000i64];
    (step, pause, what).prop_map(|(step, pause, what)| Spec { step, pause, what })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1..20usize).prop_map(Step::Grow),
        6 => (1..15usize).prop_map(Step::Work),
        6 => (prop_oneof![3 => Just(0xffu8), 1 => any::<u8>()], any::<bool>())
            .prop_map(|(reached, drop)| Step::Flush { reached, drop }),
        2 => (any::<bool>(), any::<bool>())
            .prop_map(|(stale, panes_from_first)| Step::Crash { stale, panes_from_first }),
        1 => (0..GROUPS, any::<bool>()).prop_map(|(group, back)| Step::Lose { group, back }),
        1 => Just(Step::Remember),
        3 => (any::<prop::sample::Index>(), prop_oneof![2 => Just(0u8), 1 => any::<u8>()])
            .prop_map(|(boundary, held)| Step::Move { boundary, held }),
        2 => Just(Step::Ask),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let log = prop_oneof![5 => vec(spec(), 0..45), 1 => vec(spec(), 0..3)];
    let newer = prop_oneof![1 => Just(0u8), 1 => any::<u8>()];
    let steps = vec((0..PARTITIONS.len(), step()), 0..60);
    (vec(log, PARTITIONS.len()), newer, any::<bool>(), steps).prop_map(|(logs, newer, live, steps)| Case {
        logs,
        newer,
        live,
        steps,
    })
}

fn catalog(live: bool) -> Catalog {
    let bounds = r#"bounds = { from = "2016-06-13", to = "2016-07-01" }"#;
    let other = if live { r#"bounds = { past = "12h", future = "5m" }"# } else { bounds };
    let text = OUTBRAIN
        .replace("epoch = \"10m\"", "epoch = \"1s\"")
        .replace("groups = 16", &format!("groups = {GROUPS}"))
        .replace(bounds, &format!("{other}\ndedup_horizon = {HORIZON}"));
    let catalog = Catalog::from_toml(&text).expect("the shipped catalog, cut small");
    assert_eq!((catalog.layout.epoch.0, catalog.layout.groups as usize), (EPOCH, GROUPS));
    assert!(catalog.streams.iter().all(|stream| stream.dedup_horizon == HORIZON));
    catalog
}

/// What a record says, as a person would count it.
#[derive(Debug, Clone, PartialEq)]
struct Fact {
    click: bool,
    user: u8,
    document: u8,
    geo: Option<u8>,
    time: Millis,
}

impl Fact {
    fn json(&self) -> Vec<u8> {
        let Fact { user, document, time, .. } = self;
        let geo = self.geo.map_or("null".to_owned(), |geo| format!("\"US>{geo}\""));
        // A click's display stands for its document one to one.
        let more = if self.click { format!(r#","display_id":{}"#, 100 + document) } else { String::new() };
        let timestamp = time - ORIGIN;
        format!(
            r#"{{"uuid":"u{user}","document_id":{document},"timestamp":{timestamp},"platform":1,"geo_location":{geo}{more}}}"#
        )
        .into_bytes()
    }

    /// What makes two deliveries the same event.
    fn identity(&self) -> (u8, u8, Millis) {
        (self.user, self.document, self.time)
    }

    fn believable(&self, live: bool, append: Millis) -> bool {
        match live {
            true => append - 12 * 3_600_000 <= self.time && self.time < append + 300_000,
            false => (1_465_776_000_000..1_467_331_200_000).contains(&self.time),
        }
    }

    /// The cells that it counts in: metric, bucket width, `by`, item.
    fn cells(&self) -> Vec<(&'static str, Millis, Vec<Value>, Vec<Value>)> {
        let user = Value::str(&format!("u{}", self.user));
        let document = Value::Int(i64::from(self.document));
        let display = Value::Int(100 + i64::from(self.document));
        let geo = self.geo.map_or(Value::Null, |geo| Value::str(&format!("US>{geo}")));
        let (five, twenty, hour) = (300_000, 1_200_000, 3_600_000);
        let mut cells =
            vec![("geo_top", five, vec![], vec![geo.clone()]), ("active_user", five, vec![], vec![])];
        match self.click {
            false => cells.push(("user_view_cnt", twenty, vec![user], vec![])),
            true => cells.extend([
                ("user_click_cnt", twenty, vec![user], vec![]),
                ("doc_cnt", five, vec![document.clone()], vec![]),
                ("display_cnt", five, vec![display.clone()], vec![]),
                ("geo_top_doc", hour, vec![geo.clone()], vec![document]),
                ("geo_top_display", hour, vec![geo], vec![display]),
            ]),
        }
        cells
    }
}

/// One record of a log, and all that a look at the whole log below it tells.
struct Record {
    offset: i64,
    append: Millis,
    value: Option<Vec<u8>>,
    /// The event, where it is a valid one.
    fact: Option<Fact>,
    event: Option<Event>,
    /// No record below is the same event.
    first: bool,
    /// None within the horizon is.
    fresh: bool,
}

/// One partition's log.
struct Log {
    tp: TopicPartition,
    stream: Arc<Stream>,
    low: i64,
    records: Vec<Record>,
    /// Its cuts by their definition, the start first.
    cuts: Vec<Cut>,
    /// The clock and trusted time over all.
    end: (Millis, TrustedTime),
}

impl Log {
    fn new(at: usize, specs: &[Spec], catalog: &Catalog, live: bool, newer: bool) -> Log {
        let (topic, partition) = PARTITIONS[at];
        let tp = TopicPartition::new(topic, partition);
        let stream = catalog.stream_of_topic(topic).expect("shipped").clone();
        // What retention has taken away before the first start is of no concern; a newer partition has all.
        let low = if newer || partition == 0 { 0 } else { 7 };
        let (mut offset, mut append) = (low - 1, START + 137 * at as i64);
        let mut records: Vec<Record> = Vec::new();
        let mut sent: Vec<Fact> = Vec::new();
        for spec in specs {
            (offset, append) = (offset + spec.step, append + spec.pause);
            let fact = match spec.what.clone() {
                What::Tick | What::Garbage(_) => None,
                What::New { user, document, geo, late } => {
                    // A user's records lie in one partition, as the message key has it: no event is in two.
                    let user = user * 2 + partition as u8;
                    Some(Fact { click: topic == "events", user, document, geo, time: append - late })
                }
                What::Repeat { back, geo } => sent.len().checked_sub(back).map(|at| {
                    let mut again = sent[at].clone();
                    again.geo = geo.unwrap_or(again.geo);
                    again
                }),
            };
            let value = match (&fact, &spec.what) {
                (Some(fact), _) => Some(fact.json()),
                (None, What::Garbage(text)) => Some(text.as_bytes().to_vec()),
                (None, _) => None,
            };
            sent.extend(fact.clone());
            let fact = fact.filter(|fact| fact.believable(live, append));
            let same = |record: &&Record| {
                record.fact.as_ref().zip(fact.as_ref()).is_some_and(|(a, b)| a.identity() == b.identity())
            };
            let first = !records.iter().any(|record| same(&record));
            let fresh = !records.iter().any(|record| same(&record) && record.offset >= offset - HORIZON);
            // What the layers make of it.
            let event = event::decode(&stream, &tp, offset, append, value.as_deref()).ok();
            assert_eq!(
                event.as_ref().map(|event| event.time),
                fact.as_ref().map(|fact| fact.time),
                "{spec:?}"
            );
            records.push(Record { offset, append, value, fact, event, first, fresh });
        }
        let (cuts, end) = cuts(&records, &stream, low);
        Log { tp, stream, low, records, cuts, end }
    }

    /// The cuts that are sealed once `produced` records are in the log.
    fn sealed(&self, produced: usize) -> impl Iterator<Item = &Cut> {
        let last = produced.checked_sub(1).map_or(i64::MIN, |at| self.records[at].offset);
        self.cuts.iter().skip(1).filter(move |cut| cut.offset <= last)
    }
}

/// At each epoch's first record, the folds over all records below; and those over all.
fn cuts(records: &[Record], stream: &Stream, low: i64) -> (Vec<Cut>, (Millis, TrustedTime)) {
    let mut cuts = vec![Cut::start(low)];
    let (mut clock, mut trusted, mut fingerprint) = (IngestClock::default(), TrustedTime::default(), None);
    for record in records {
        let (below, rule) = (clock.0, stream.event_clock());
        let epoch = clock.observe(record.append).div_euclid(EPOCH);
        if epoch != below.div_euclid(EPOCH) {
            let trusted = trusted.clone();
            cuts.push(Cut { epoch, offset: record.offset, clock: below, trusted, fingerprint });
        }
        match &record.fact {
            Some(fact) => trusted.observe(rule, fact.time, record.append),
            None if record.value.is_none() => trusted.observe_tick(rule, record.append),
            None => {}
        }
        fingerprint = record.value.as_deref().map(xxh3_64).or(fingerprint);
    }
    (cuts, (clock.0, trusted))
}

/// A cell as a person names it, and its finished value.
type Counted = BTreeMap<(String, Millis, String), i64>;

/// The naive cells: of first deliveries, plus those that repeat from beyond the horizon at or above the cuts. `reach`
/// tells up to which offset a partition's group is read.
fn naive(logs: &[Log], tidemark: &Tidemark, reach: &dyn Fn(usize, usize) -> i64) -> Counted {
    let mut counted = Counted::new();
    let mut users: BTreeMap<_, BTreeSet<u8>> = BTreeMap::new();
    for (at, log) in logs.iter().enumerate() {
        let cut = tidemark.cut(&log.tp);
        for record in &log.records {
            let Some(fact) = &record.fact else { continue };
            let counts = if record.offset < cut.offset { record.first } else { record.fresh };
            assert!(record.fresh || !record.first);
            for (metric, grain, by, item) in if counts { fact.cells() } else { Vec::new() } {
                let group = view::group_of(&encoded(&by), GROUPS as u32) as usize;
                if record.offset >= reach(at, group) {
                    continue;
                }
                let bucket = fact.time.div_euclid(grain) * grain;
                let cell = (metric.to_owned(), bucket, shown(by.iter().chain(&item)));
                if metric == "active_user" {
                    users.entry(cell).or_default().insert(fact.user);
                } else {
                    *counted.entry(cell).or_default() += 1;
                }
            }
        }
    }
    counted.extend(users.into_iter().map(|(cell, users)| (cell, users.len() as i64)));
    counted
}

fn encoded(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    values.iter().for_each(|value| value.encode(&mut bytes));
    bytes
}

fn shown<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    values.map(|value| format!("{value:?} ")).collect()
}

/// The world that a case plays in.
struct World {
    catalog: Catalog,
    logs: Vec<Log>,
    twins: Vec<Twin>,
    /// How many records each log has.
    produced: Vec<usize>,
    /// The next record that each worker takes.
    next: Vec<usize>,
    /// What each group held when it was last remembered.
    remembered: Vec<Vec<Option<Stored>>>,
    /// All tidemarks, the first to the current.
    tidemarks: Vec<Tidemark>,
    newer: u8,
}

impl World {
    fn new(case: &Case) -> World {
        let catalog = catalog(case.live);
        let newer = |at: usize| case.newer >> at & 1 == 1;
        let logs: Vec<Log> = (case.logs.iter().enumerate())
            .map(|(at, specs)| Log::new(at, specs, &catalog, case.live, newer(at)))
            .collect();
        let cuts = logs.iter().enumerate().filter(|(at, _)| !newer(*at));
        let cuts = cuts.map(|(_, log)| (log.tp.clone(), Cut::start(log.low))).collect();
        let twins: Vec<Twin> = logs.iter().map(|log| Twin::new(&catalog, &log.stream, &log.tp)).collect();
        let count = logs.len();
        let mut world = World {
            catalog,
            logs,
            twins,
            produced: vec![0; count],
            next: vec![0; count],
            remembered: vec![vec![None; GROUPS]; count],
            tidemarks: vec![Tidemark { cuts, ..Tidemark::default() }],
            newer: case.newer,
        };
        (0..count).for_each(|at| world.claim(at, false, true));
        world
    }

    fn current(&self) -> &Tidemark {
        self.tidemarks.last().expect("the first")
    }

    /// The tidemark before the last: epochs below it may be dropped.
    fn floor(&self) -> Option<&Tidemark> {
        self.tidemarks.len().checked_sub(2).map(|at| &self.tidemarks[at])
    }

    fn claim(&mut self, at: usize, stale: bool, panes_from_first: bool) {
        let log = &self.logs[at];
        let tidemark = self.floor().filter(|_| stale).unwrap_or(self.current());
        let cut = tidemark.cut(&log.tp);
        let panes = if panes_from_first { Cut::start(log.low) } else { cut.clone() };
        let from = self.twins[at].claim(&cut, &panes, panes_from_first, log.low);
        self.next[at] = log.records.partition_point(|record| record.offset < from);
    }

    fn work(&mut self, at: usize, records: usize) {
        let to = (self.next[at] + records).min(self.produced[at]);
        for record in &self.logs[at].records[self.next[at].min(to)..to] {
            let outcome = self.twins[at].take(record.offset, record.append, record.value.as_deref());
            let expected = match (record.fresh, &record.fact) {
                (true, Some(_)) => Outcome::Counted,
                (_, None) if record.value.is_some() => Outcome::Rejected,
                _ => Outcome::Passed,
            };
            assert!(outcome == expected || outcome == Outcome::Passed, "{outcome:?} of {expected:?}");
        }
        self.next[at] = self.next[at].max(to);
    }

    /// A round of writes; a refused worker starts anew.
    fn flush(&mut self, at: usize, reached: u8, drop: bool) {
        let floor = self.floor().filter(|_| drop).map(|tidemark| tidemark.cut(&self.logs[at].tp));
        if self.twins[at].flush(floor.as_ref(), |group| reached >> group & 1 == 1).is_err() {
            self.claim(at, false, false);
        }
    }

    /// The boundaries that a run may move to with these partitions held, ascending.
    fn boundaries(&self, held: u8) -> Vec<i64> {
        let free: Vec<usize> = (0..self.logs.len()).filter(|&at| self.is_free(at, held)).collect();
        let sealed = |&at: &usize| self.logs[at].sealed(self.produced[at]).map(|cut| cut.epoch);
        let newest = free.iter().map(|at| sealed(at).max()).min().flatten();
        let all: BTreeSet<i64> = free.iter().flat_map(sealed).collect();
        all.into_iter().filter(|epoch| newest.is_some_and(|newest| *epoch <= newest)).collect()
    }

    /// Whether a run waits for this partition; one that it doesn't know yet it does not wait for.
    fn is_free(&self, at: usize, held: u8) -> bool {
        held >> at & 1 == 0 && (self.newer >> at & 1 == 0 || self.produced[at] > 0)
    }

    fn move_to(&mut self, boundary: i64, held: u8) {
        let mut next = self.current().clone();
        next.generation += 1;
        for at in (0..self.logs.len()).filter(|&at| self.is_free(at, held)) {
            let log = &self.logs[at];
            let reached = log.sealed(self.produced[at]).find(|cut| cut.epoch >= boundary);
            let reached = reached.expect("the boundary is one that all free partitions have sealed").clone();
            if reached.offset >= next.cut(&log.tp).offset && reached.epoch >= next.cut(&log.tp).epoch {
                next.cuts.insert(log.tp.clone(), reached);
            }
        }
        self.tidemarks.push(next);
        for at in 0..self.logs.len() {
            // No record places a boundary elsewhere than the archive did.
            assert!(!self.twins[at].differs(&self.current().cut(&self.logs[at].tp)), "{}", self.logs[at].tp);
        }
    }

    fn step(&mut self, at: usize, step: &Step) {
        match step {
            Step::Grow(records) => {
                self.produced[at] = (self.produced[at] + records).min(self.logs[at].records.len());
            }
            Step::Work(records) => self.work(at, *records),
            Step::Flush { reached, drop } => self.flush(at, *reached, *drop),
            Step::Crash { stale, panes_from_first } => self.claim(at, *stale, *panes_from_first),
            Step::Lose { group, back } => {
                let earlier = if *back { self.remembered[at][*group].clone() } else { None };
                self.twins[at].lose(*group, earlier);
            }
            Step::Remember => {
                self.remembered[at] = (0..GROUPS).map(|group| self.twins[at].group(group)).collect();
            }
            Step::Move { boundary, held } => {
                let boundaries = self.boundaries(*held);
                if !boundaries.is_empty() {
                    self.move_to(*boundary.get(&boundaries), *held);
                    self.ask();
                }
            }
            Step::Ask => self.ask(),
        }
    }

    /// Answers at the current tidemark, which must be complete, and at the one before, where a reader's snapshot may
    /// still stand: complete or honestly not.
    fn ask(&self) {
        self.check(self.current(), true);
        if let Some(before) = self.floor() {
            self.check(before, false);
        }
    }

    fn check(&self, tidemark: &Tidemark, must_be_complete: bool) {
        let mut coverage = Coverage::default();
        let mut cells = self.batch(tidemark);
        let mut reached = vec![vec![0; GROUPS]; self.logs.len()];
        for (at, log) in self.logs.iter().enumerate() {
            let cut = tidemark.cut(&log.tp);
            let fed = self
                .catalog
                .metrics
                .iter()
                .filter(|m| m.bindings.iter().any(|b| b.stream == log.stream.name));
            let fed: Vec<_> = fed.map(|metric| &**metric).collect();
            for (group, reached) in reached[at].iter_mut().enumerate() {
                let stored = self.twins[at].group(group);
                let header = stored.as_ref().map(|stored| &stored.header);
                let counts = coverage.judge(&self.catalog, &log.tp, header, tidemark, &fed);
                *reached = cut.offset;
                if let (true, Some(stored)) = (counts, &stored) {
                    *reached = stored.header.to;
                    merge(&self.catalog, stored, &cut, &mut cells);
                }
            }
        }
        let reasons = coverage.reasons();
        if !reasons.is_empty() {
            assert!(!must_be_complete, "not complete at the current tidemark: {reasons:?}");
            return;
        }
        let expected = naive(&self.logs, tidemark, &|at, group| reached[at][group]);
        let found = finished(&self.catalog, &cells);
        for cell in found.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
            let (found, expected) = (found.get(cell), expected.get(cell));
            assert_eq!(
                found, expected,
                "{cell:?} at generation {}: {:?}",
                tidemark.generation, tidemark.cuts
            );
        }
    }

    /// The batch view: distinct identities below the cuts, the survivor that of the lowest position.
    fn batch(&self, tidemark: &Tidemark) -> Cells {
        let (mut cells, mut seen) = (Cells::new(), HashSet::<Identity>::new());
        for log in &self.logs {
            let cut = tidemark.cut(&log.tp);
            for event in log.records.iter().filter(|r| r.offset < cut.offset).filter_map(|r| r.event.as_ref())
            {
                if seen.insert(event.identity) {
                    fold(&self.catalog, &log.stream.name, event, &mut cells);
                }
            }
        }
        cells
    }

    /// All is produced, read and written.
    fn settle(&mut self) {
        for at in 0..self.logs.len() {
            self.produced[at] = self.logs[at].records.len();
            // Groups that were lost or rolled back are noticed by the first round, those then rebuilt by no other.
            for _ in 0..2 {
                self.work(at, usize::MAX / 2);
                self.flush(at, 0xff, false);
            }
            self.work(at, usize::MAX / 2);
            self.flush(at, 0xff, false);
        }
    }

    /// Each group holds the whole log now, and its clocks are the log's.
    fn stands_at_the_end(&self) {
        for (log, twin) in self.logs.iter().zip(&self.twins) {
            for header in (0..GROUPS).filter_map(|group| Some(twin.group(group)?.header)) {
                let end = log.records.last().map_or(log.low, |record| record.offset + 1);
                assert_eq!(
                    (header.to, header.clock, &header.trusted),
                    (end, log.end.0, &log.end.1),
                    "{}",
                    log.tp
                );
            }
        }
    }
}

fn fold(catalog: &Catalog, stream: &str, event: &Event, cells: &mut Cells) {
    for metric in &catalog.metrics {
        for binding in metric.bindings.iter().filter(|b| b.stream == stream && b.admits(&event.values)) {
            let mut key = Vec::new();
            binding.key(&event.values, &mut key);
            let bucket = metric.grain.bucket(event.time);
            let id = CellId { version: metric.version, key: key.into(), bucket };
            binding.add(&event.values, cells.entry(id).or_insert_with(|| State::empty(&metric.aggregate)));
        }
    }
}

/// Merges a group's segments from the cut's epoch on, as a reader does.
fn merge(catalog: &Catalog, stored: &Stored, cut: &Cut, cells: &mut Cells) {
    let aggregate = |version| catalog.metrics.iter().find(|m| m.version == version).map(|m| &m.aggregate);
    for ((slice, _), bytes) in &stored.segments {
        if !matches!(slice, Slice::Epoch(epoch) if *epoch >= cut.epoch) {
            continue;
        }
        let read = view::unpack(bytes, aggregate, |version, key, bucket, state| {
            let empty = || State::empty(aggregate(version).expect("known"));
            cells.entry(CellId { version, key: key.into(), bucket }).or_insert_with(empty).merge(&state)
        });
        read.expect("a readable segment");
    }
}

fn finished(catalog: &Catalog, cells: &Cells) -> Counted {
    let mut counted = Counted::new();
    for (id, state) in cells {
        let metric = catalog.metrics.iter().find(|metric| metric.version == id.version).expect("known");
        let (mut key, mut values) = (&id.key[..], Vec::new());
        while !key.is_empty() {
            values.push(Value::decode(&mut key).expect("a key"));
        }
        let Finished::Int(value) = state.finish(&metric.aggregate) else {
            panic!("{state:?} of {}", metric.name)
        };
        counted.insert((metric.name.clone(), id.bucket, shown(values.iter())), value);
    }
    counted
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let persistence = FileFailurePersistence::Direct("seam.proptest-regressions");
    ProptestConfig {
        cases: default.cases.max(CASES),
        failure_persistence: Some(Box::new(persistence)),
        max_shrink_time: 60_000,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    /// While records, crashes, losses and runs happen in any order, and once all is quiet.
    #[test]
    fn merged_views_equal_the_naive_fold_whatever_happens(case in case()) {
        let mut world = World::new(&case);
        for (at, step) in &case.steps {
            world.step(*at, step);
        }
        world.settle();
        world.stands_at_the_end();
        world.ask();
    }

    /// As the tidemark advances over every boundary, every cell stays what it is.
    #[test]
    fn a_quiet_log_answers_the_same_at_every_tidemark(mut case in case(), drops in any::<u64>()) {
        case.steps.truncate(15);
        let mut world = World::new(&case);
        for (at, step) in &case.steps {
            world.step(*at, step);
        }
        world.settle();
        let idle = (0..world.logs.len()).filter(|&at| world.logs[at].records.is_empty());
        let held = idle.fold(0, |held, at| held | 1 << at);
        for (round, boundary) in world.boundaries(held).into_iter().enumerate() {
            world.move_to(boundary, held);
            world.ask();
            (0..world.logs.len()).for_each(|at| world.flush(at, 0xff, drops >> (round % 64) & 1 == 1));
            world.ask();
        }
    }
}
