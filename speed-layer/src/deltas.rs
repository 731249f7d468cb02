//! The cells of one partition that are not yet written: the fold of the records since the last write alone.
//!
//! What a record adds is noted down, in the order in which it comes, and summed up when it is packed: noting is much
//! quicker than looking for a cell, and packing sorts in any case. Only states that aren't counts are folded soon. A
//! note is three numbers: of the two parts of its key, each of which is looked up once a record for all metrics, and of its
//! *place*, which says to which pane and to which epoch's bucket it belongs; the segments of both are made of it. Parts are
//! looked up for many records at once, so that what each waits for comes together, and so are states.

mod pack;

use crate::counters::{EMPTY_PART, FastHash, Feeds, Plan};
use hashbrown::HashMap;
use pack::{Order, Ranked, Targets};
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::interner::Interner;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::time::Millis;
use shared_model::view::{self, Slice};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// To what a note belongs, beside its key. At least one of view and pane is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Its bucket and epoch in the view.
    pub(crate) view: Option<(Millis, i64)>,
    /// The start of its pane, where a window may still ask for it.
    pub(crate) pane: Option<Millis>,
}

/// What decides to what a record's notes belong, where that is the same in all groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The number of the step of event time, of the plan's width.
    pub(crate) step: i64,
    /// The epoch.
    pub(crate) epoch: i64,
    /// Where panes start that a window may still ask for.
    pub(crate) oldest_pane: Option<Millis>,
}

/// What is not yet written.
#[derive(Default)]
pub(crate) struct Deltas {
    notes: Notes,
    /// By group: how many of the notes are its own, and what was packed for it and not yet taken.
    groups: Vec<(usize, Vec<Segment>)>,
    /// The bytes of all that is packed.
    packed: usize,
}

/// Packed cells of a slice.
type Segment = (Slice, Vec<u8>);

/// What was noted since all was packed.
#[derive(Default)]
struct Notes {
    /// The parts of keys.
    parts: Interner,
    /// The group of each, were it what a metric is `by`.
    groups: Vec<u32>,
    /// The parts of the last records' keys that are not looked up yet.
    waiting: Waiting,
    places: Vec<Place>,
    place_of: HashMap<Place, u32, FastHash>,
    /// By the metrics' numbers in the plan.
    metrics: Vec<Noted>,
    count: usize,
    /// By part: the place among those that wait of what the record at hand has there, as far as it is among them.
    known_parts: Vec<Option<u32>>,
    /// The last moments, the newest first, with their places: the next record's is mostly among them.
    recent: Vec<(Moment, Places)>,
    part: Vec<u8>,
}

/// A moment's places by slicing, as far as they are known.
type Places = Vec<Option<u32>>;

/// Byte strings that are looked up together.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Where each ends in `bytes`; it begins where the one before ends.
    ends: Vec<usize>,
    /// The number of each, while they are given.
    numbers: Vec<u32>,
    /// Of how many records they are.
    records: usize,
    /// The bytes of the texts that wait beside them to be added to states.
    texts: usize,
}

/// What was noted for one metric.
#[derive(Default)]
struct Noted {
    version: MetricVersion,
    /// One for each record that it counts.
    counts: Vec<Cell>,
    /// Of those from this one on, the parts are named by their places among those that wait.
    settled: usize,
    /// What isn't counted but added to a state: a value for each record, while its parts wait.
    values: Vec<(Cell, Value)>,
    /// The states of all before.
    states: HashMap<Cell, State, FastHash>,
}

/// The name of a cell: numbers first, then ranks, which order as the names do.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cell {
    by: u32,
    item: u32,
    place: u32,
}

impl Hash for Cell {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        // One piece, so that it is hashed once.
        hasher.write_u128(self.name());
    }
}

impl Cell {
    fn name(&self) -> u128 {
        u128::from(self.key()) << 32 | u128::from(self.place)
    }

    fn key(&self) -> u64 {
        u64::from(self.by) << 32 | u64::from(self.item)
    }
}

/// Of how many moments, and how many places, are found without a look-up.
const RECENT: usize = 4;
/// So many parts of keys are looked up at once.
const PARTS: usize = if cfg!(test) { 3 } else { 64 };
/// Nor do texts of more bytes than this wait.
const TEXTS: usize = 1 << 16;
/// About what a part of a key takes beside its bytes, and a place.
const PART_BYTES: usize = 40;
const PLACE_BYTES: usize = 3 * size_of::<Place>();
/// About what a state takes.
const STATE_BYTES: usize = size_of::<(Cell, State)>() + 32;

impl Deltas {
    /// Adds a record to the cells of all metrics that admit it, where `place` gives them one in their group. `moment`: what
    /// decides it, if it is the same in all groups.
    pub(crate) fn add(
        &mut self,
        plan: &Plan,
        values: &[Value],
        moment: Option<Moment>,
        place: impl Fn(usize, &Metric) -> Option<Place>,
    ) {
        let Waiting { ends, records, texts, .. } = &self.notes.waiting;
        if ends.len().max(*records) >= PARTS || *texts >= TEXTS {
            self.settle(plan);
        }
        let Deltas { notes, groups, .. } = self;
        groups.resize_with(plan.layout.groups as usize, Default::default);
        notes.begin(plan);
        let recent = moment.map(|moment| notes.recent(plan, moment));
        for (counted, Feeds { by, item, slicing }) in plan.counted(values) {
            let place = match recent {
                Some(at) => notes.place_at(at, slicing, || place(0, counted.metric)),
                None => {
                    let group = notes.group(plan, by, values);
                    notes.place(place(group, counted.metric))
                }
            };
            let Some(place) = place else { continue };
            if notes.metrics.len() <= counted.number {
                notes.metrics.resize_with(counted.number + 1, Noted::default);
            }
            notes.count += 1;
            let (by, item) = (notes.waits(plan, by, values), notes.waits(plan, item, values));
            let (noted, cell) = (&mut notes.metrics[counted.number], Cell { by, item, place });
            noted.version = counted.metric.version;
            match counted.metric.aggregate {
                Aggregate::Count | Aggregate::TopK { .. } => noted.counts.push(cell),
                _ => {
                    let value = counted.binding.value_of(values).into_owned();
                    if let Value::Str(text) = &value {
                        notes.waiting.texts += text.len();
                    }
                    noted.values.push((cell, value));
                }
            }
        }
    }

    /// Looks up the parts that wait, gives their numbers to the notes that are made of them, and adds values to states.
    fn settle(&mut self, plan: &Plan) {
        let Deltas { notes, groups, .. } = self;
        let Notes { parts, groups: group_of, waiting, metrics, known_parts, .. } = notes;
        let Waiting { bytes, ends, numbers, records, texts } = waiting;
        parts.intern_all(bytes, ends, numbers);
        for &number in &*numbers {
            // One that is new has the number after all before.
            if number as usize == group_of.len() {
                group_of.push(view::group_of(parts.get(number), groups.len() as u32));
            }
        }
        let mut name = |cell: &mut Cell| {
            (cell.by, cell.item) = (numbers[cell.by as usize], numbers[cell.item as usize]);
            groups[group_of[cell.by as usize] as usize].0 += 1;
        };
        for (number, Noted { counts, settled, values, states, .. }) in metrics.iter_mut().enumerate() {
            counts[*settled..].iter_mut().for_each(&mut name);
            *settled = counts.len();
            values.iter_mut().for_each(|(cell, _)| name(cell));
            // One after the other is mostly of the same cell.
            for alike in values.chunk_by(|(a, _), (b, _)| a == b) {
                let empty = || State::empty(&plan.metric(number).aggregate);
                let state = states.entry(alike[0].0).or_insert_with(empty);
                alike.iter().for_each(|(_, value)| state.add(value));
            }
            values.clear();
        }
        bytes.clear();
        ends.clear();
        numbers.clear();
        (*records, *texts) = (0, 0);
        known_parts.clear();
    }

    /// How many notes wait.
    pub(crate) fn len(&self) -> usize {
        self.notes.count
    }

    /// About how much memory all that waits takes, sketches not counted in full.
    pub(crate) fn bytes(&self) -> usize {
        let states = |noted: &Noted| noted.states.len() + noted.values.len();
        let states: usize = self.notes.metrics.iter().map(states).sum();
        let parts = self.notes.parts.bytes() + self.notes.parts.len() * PART_BYTES;
        let places = self.notes.places.len() * PLACE_BYTES;
        let Waiting { bytes, ends, texts, .. } = &self.notes.waiting;
        let waiting = bytes.len() + ends.len() * PART_BYTES + texts;
        parts + waiting + places + self.notes.count * size_of::<Cell>() + states * STATE_BYTES + self.packed
    }

    /// Whether a group has something that waits.
    pub(crate) fn has(&mut self, plan: &Plan, group: usize) -> bool {
        self.settle(plan);
        self.groups.get(group).is_some_and(|(notes, packed)| *notes > 0 || !packed.is_empty())
    }

    /// Takes all cells of a group, packed into a segment for each slice that `wanted` admits.
    ///
    /// # Errors
    /// Where a count or sum would pass its bound.
    pub(crate) fn take(
        &mut self,
        plan: &Plan,
        group: usize,
        wanted: impl Fn(Slice) -> bool,
    ) -> Result<Vec<Segment>, CodecError> {
        if self.notes.count > 0 {
            self.pack(plan, &wanted)?;
        }
        let Some((_, packed)) = self.groups.get_mut(group) else { return Ok(Vec::new()) };
        let mut slices: BTreeMap<Slice, Vec<Vec<u8>>> = BTreeMap::new();
        for (slice, bytes) in std::mem::take(packed) {
            self.packed -= bytes.len();
            if wanted(slice) {
                slices.entry(slice).or_default().push(bytes);
            }
        }
        // There are several where notes were packed while the group's last write wasn't stored yet.
        let merged = slices.into_iter().map(|(slice, mut bytes)| match bytes.len() {
            1 => Ok((slice, bytes.remove(0))),
            _ => {
                let bytes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                Ok((slice, view::merge(&bytes, |version| plan.aggregate(version))?))
            }
        });
        merged.collect()
    }

    /// Packs all notes, for each group. Panes that aren't wanted now never are again; of the view's slices that is decided
    /// when they are taken, together with what the group then says of them.
    fn pack(&mut self, plan: &Plan, wanted: impl Fn(Slice) -> bool) -> Result<(), CodecError> {
        self.settle(plan);
        let mut notes = std::mem::take(&mut self.notes);
        let metrics = std::mem::take(&mut notes.metrics);
        let used: Vec<usize> = metrics.iter().map(|noted| noted.counts.len()).collect();
        let order = Order::of(&notes);
        let mut metrics: Vec<Ranked> = metrics.into_iter().map(|noted| order.ranked(noted)).collect();
        let mut targets =
            Targets::new(&order.places, |slice| matches!(slice, Slice::Epoch(_)) || wanted(slice));
        for (group, (waiting, packed)) in self.groups.iter_mut().enumerate().rev() {
            if std::mem::take(waiting) == 0 {
                continue;
            }
            let begin = order.begin(group);
            for Ranked { version, counts, states } in &mut metrics {
                // Groups are taken from the last on.
                let own = counts.partition_point(|cell| cell.by < begin);
                targets.pack(
                    *version,
                    &order,
                    &counts[own..],
                    |cell| *cell,
                    |alike| Cow::Owned(State::Count(alike.len() as u64)),
                )?;
                counts.truncate(own);
                let own = states.partition_point(|(cell, _)| cell.by < begin);
                targets.pack(
                    *version,
                    &order,
                    &states[own..],
                    |(cell, _)| *cell,
                    |alike| Cow::Borrowed(&alike[0].1),
                )?;
                states.truncate(own);
            }
            let segments = targets.finish();
            self.packed += segments.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
            packed.extend(segments);
        }
        // The next notes are made where these were, which is in the cache; of room for more than twice as many it lets go.
        let room = |(Ranked { mut counts, .. }, used): (Ranked, usize)| {
            counts.clear();
            counts.shrink_to(2 * used);
            Noted { counts, ..Noted::default() }
        };
        let metrics = metrics.into_iter().zip(used).map(room).collect();
        self.notes = Notes { metrics, ..notes.cleared() };
        Ok(())
    }
}

impl Notes {
    /// None yet, with the room that the parts of these have.
    fn cleared(self) -> Notes {
        let Notes { mut parts, mut groups, .. } = self;
        parts.clear();
        let used = groups.len();
        groups.clear();
        groups.shrink_to(2 * used);
        Notes { parts, groups, ..Notes::default() }
    }

    /// Begins a record.
    fn begin(&mut self, plan: &Plan) {
        self.waiting.records += 1;
        self.known_parts.resize(plan.parts(), None);
        // The empty one is the same in all records.
        self.known_parts[EMPTY_PART + 1..].fill(None);
    }

    /// Where a moment is among the recent ones.
    fn recent(&mut self, plan: &Plan, moment: Moment) -> usize {
        self.recent.iter().position(|(recent, _)| *recent == moment).unwrap_or_else(|| {
            self.recent.truncate(RECENT - 1);
            self.recent.insert(0, (moment, vec![None; plan.slicings()]));
            0
        })
    }

    /// The place that a part of the key of the record at hand has among those that wait.
    fn waits(&mut self, plan: &Plan, part: usize, values: &[Value]) -> u32 {
        let Waiting { bytes, ends, .. } = &mut self.waiting;
        *self.known_parts[part].get_or_insert_with(|| {
            plan.part(part, values, bytes);
            ends.push(bytes.len());
            ends.len() as u32 - 1
        })
    }

    /// The group of the record at hand, for metrics that are `by` a part.
    fn group(&mut self, plan: &Plan, by: usize, values: &[Value]) -> usize {
        self.part.clear();
        plan.part(by, values, &mut self.part);
        view::group_of(&self.part, plan.layout.groups) as usize
    }

    /// The number of the place of a recent moment by a slicing.
    fn place_at(&mut self, recent: usize, slicing: usize, place: impl Fn() -> Option<Place>) -> Option<u32> {
        if let known @ Some(_) = self.recent[recent].1[slicing] {
            return known;
        }
        let number = self.place(place());
        self.recent[recent].1[slicing] = number;
        number
    }

    /// The number of a place.
    fn place(&mut self, place: Option<Place>) -> Option<u32> {
        let place = place?;
        // Mostly it is one of the newest.
        let newest = self.places.len().saturating_sub(RECENT);
        if let Some(at) = self.places[newest..].iter().position(|known| *known == place) {
            return Some((newest + at) as u32);
        }
        let number = self.place_of.entry(place).or_insert_with(|| {
            self.places.push(place);
            self.places.len() as u32 - 1
        });
        Some(*number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Plan;
    use proptest::prelude::*;
    use shared_model::catalog::Catalog;
    use shared_model::event::{Event, Identity};
    use shared_model::view::{CellId, Cells, pack};

    const CATALOG: &str = r#"
        [streams.x]
        topic = "x"
        event_time = { field = "at", unit = "ms" }
        bounds = { from = "1970-01-01", to = "1970-02-01" }
        fields = { at = "int", key = "string", n = "int" }
        [metrics.a]
        stream = "x"
        by = ["key"]
        aggregate = "count"
        grain = "5m"
        [metrics.b]
        stream = "x"
        by = ["key"]
        aggregate = "sum"
        value = "n"
        grain = "5m"
        [metrics.c]
        stream = "x"
        aggregate = "top_k"
        item = "key"
        k = 3
        grain = "5m"
        [metrics.d]
        stream = "x"
        aggregate = "distinct"
        value = "key"
        grain = "5m"
    "#;

    /// Of few letters, with lengths about the number of bytes that are looked at first.
    fn key() -> impl Strategy<Value = String> {
        let ends = prop::collection::vec(prop::sample::select(vec!['a', '\u{1}', 'é']), 0..4);
        (prop::sample::select(vec![0usize, 9, 10, 11, 12, 13, 14]), ends)
            .prop_map(|(same, end)| ["a".repeat(same), end.into_iter().collect()].concat())
    }

    fn place() -> impl Strategy<Value = Place> {
        let place = (prop::option::of((0i64..3, 0i64..3)), prop::option::of(0i64..3));
        place
            .prop_map(|(view, pane)| Place { view, pane })
            .prop_filter("it belongs somewhere", |place| place.view.is_some() || place.pane.is_some())
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_a_map_of_cells_would_hold(
            records in prop::collection::vec((key(), -3i64..3, place()), 0..60),
            early in prop::collection::btree_set(0usize..60, 0..4),
            same_in_all in any::<bool>(),
            unwanted in prop::sample::select(vec![Slice::Epoch(1), Slice::Pane(1)]),
        ) {
            let catalog = Catalog::from_toml(CATALOG).expect("valid");
            let plan = Plan::new(&catalog, &catalog.streams[0]);
            let groups = plan.layout.groups as usize;
            let wanted = |slice| slice != unwanted;
            let (mut deltas, mut expected) = (Deltas::default(), vec![BTreeMap::<Slice, Cells>::new(); groups]);
            let mut taken = BTreeMap::new();
            for (number, (key, n, place)) in records.into_iter().enumerate() {
                let values = vec![Value::Int(0), Value::str(&key), Value::Int(n)];
                let event = Event { time: 0, values, identity: Identity(0) };
                // Where groups differ, some have no place for it, others another.
                let of_group = |group: usize| match group % 3 {
                    _ if same_in_all => Some(place),
                    0 => Some(place),
                    1 => None,
                    _ => Some(Place { view: Some((7, 1)), pane: place.pane }),
                };
                let (bucket, epoch) = place.view.unwrap_or((-1, -1));
                let moment = Moment { step: bucket, epoch, oldest_pane: place.pane };
                deltas.add(&plan, &event.values, same_in_all.then_some(moment), |group, _| of_group(group));
                plan.fold(&event, &mut Vec::new(), |group, counted, key| {
                    let Some(place) = of_group(group as usize) else { return };
                    let view = place.view.map(|(bucket, epoch)| (Slice::Epoch(epoch), bucket));
                    let pane = place.pane.map(|start| (Slice::Pane(start), start));
                    for (slice, bucket) in view.into_iter().chain(pane) {
                        let id = CellId { version: counted.metric.version, key: key.into(), bucket };
                        let cells = expected[group as usize].entry(slice).or_default();
                        let state = cells.entry(id).or_insert_with(|| State::empty(&counted.metric.aggregate));
                        counted.binding.add(&event.values, state);
                    }
                });
                // Another group's turn to write, before this one's.
                if early.contains(&number) {
                    for (group, expected) in expected.iter().enumerate() {
                        let mut wanted = expected.keys().filter(|slice| wanted(**slice));
                        let has_cells = wanted.any(|slice| !taken.contains_key(&(group, *slice)));
                        prop_assert!(deltas.has(&plan, group) || !has_cells, "group {}", group);
                    }
                    let group = number % groups;
                    let aggregate = |version| plan.aggregate(version);
                    for (slice, cells) in deltas.take(&plan, group, wanted).expect("small sums") {
                        let before: Option<Vec<u8>> = taken.remove(&(group, slice));
                        let parts: Vec<&[u8]> = before.iter().chain([&cells]).map(Vec::as_slice).collect();
                        taken.insert((group, slice), view::merge(&parts, aggregate).expect("small sums"));
                    }
                }
            }
            for (group, expected) in expected.iter_mut().enumerate() {
                expected.remove(&unwanted);
                let mut found: BTreeMap<Slice, Vec<u8>> = BTreeMap::new();
                let late = deltas.take(&plan, group, wanted).expect("small sums");
                let early = taken.iter().filter(|((of, _), _)| *of == group);
                let early = early.map(|((_, slice), cells)| (*slice, cells.clone()));
                for (slice, cells) in early.chain(late) {
                    let before = found.remove(&slice);
                    let parts: Vec<&[u8]> = before.iter().chain([&cells]).map(Vec::as_slice).collect();
                    let merged = view::merge(&parts, |version| plan.aggregate(version));
                    found.insert(slice, merged.expect("small sums"));
                }
                let expected: BTreeMap<Slice, Vec<u8>> =
                    expected.iter().map(|(slice, cells)| (*slice, pack(cells))).collect();
                prop_assert_eq!(found, expected);
                prop_assert!(!deltas.has(&plan, group));
            }
            prop_assert_eq!((deltas.len(), deltas.bytes()), (0, 0));
        }
    }

    #[test]
    fn keys_of_records_that_count_nowhere_are_not_kept() {
        let catalog = Catalog::from_toml(CATALOG).expect("valid");
        let plan = Plan::new(&catalog, &catalog.streams[0]);
        let mut deltas = Deltas::default();
        for number in 0..50_000 {
            let values = [Value::Int(0), Value::str(&format!("key {number}")), Value::Int(1)];
            let moment = Moment { step: 0, epoch: 0, oldest_pane: None };
            deltas.add(&plan, &values, Some(moment), |_, _| None);
        }
        assert_eq!((deltas.len(), deltas.bytes()), (0, 0));
    }
}
