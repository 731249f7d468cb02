//! The cells of one group that are not yet written: the fold of the records since the last write alone.
//!
//! What a record adds is noted down, in the order in which it comes, and summed up when it is packed: noting is much
//! quicker than looking for a cell, and packing sorts in any case. Only states that aren't counts are folded at once.
//! Each note is for one metric and has a *place*, which says to which pane and to which epoch's bucket it belongs; the
//! segments of both are made of it.

use crate::counters::{Counted, FastHash};
use hashbrown::{HashMap, HashTable};
use shared_model::aggregate::State;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::MetricVersion;
use shared_model::time::Millis;
use shared_model::view::{Packer, Slice};
use std::collections::BTreeMap;

/// To what a note belongs, beside its key. At least one of view and pane is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Its bucket and epoch in the view.
    pub(crate) view: Option<(Millis, i64)>,
    /// The start of its pane, where a window may still ask for it.
    pub(crate) pane: Option<Millis>,
}

/// What is not yet written.
#[derive(Default)]
pub(crate) struct Deltas {
    /// By the metrics' numbers in the plan.
    metrics: Vec<Notes>,
    /// The keys of all notes, one after the other.
    keys: Vec<u8>,
    places: Vec<Place>,
    place_of: HashMap<Place, u32, FastHash>,
    /// The states that aren't counts, and which notes they belong to.
    states: Vec<Folded>,
    state_of: HashTable<u32>,
    hash: FastHash,
    notes: usize,
}

/// What was noted for one metric.
#[derive(Default)]
struct Notes {
    version: MetricVersion,
    notes: Vec<Note>,
    /// The places that its last notes had: the next one's is mostly among them.
    recent: [Option<u32>; RECENT],
}

#[derive(Clone, Copy)]
struct Note {
    /// The first bytes of the key.
    begin: u128,
    key: Key,
    place: u32,
    /// Where the state lies that it stands for; `None`: one more record of a count.
    state: Option<u32>,
}

/// Where a key lies among the keys, and its length.
type Key = (usize, u32);

struct Folded {
    hash: u64,
    metric: usize,
    key: Key,
    place: u32,
    state: State,
}

/// How many places of each metric are found without a look-up.
const RECENT: usize = 4;
/// About what a state takes beside its key.
const STATE_BYTES: usize = size_of::<Folded>() + 32;

impl Deltas {
    /// Adds a record to a cell.
    pub(crate) fn add(&mut self, counted: &Counted<'_>, place: Place, key: &[u8], values: &[Value]) {
        let metric = counted.number;
        if self.metrics.len() <= metric {
            self.metrics.resize_with(metric + 1, Notes::default);
        }
        self.metrics[metric].version = counted.metric.version;
        let place = self.place(metric, place);
        let state = match State::empty(&counted.metric.aggregate) {
            State::Count(_) => None,
            empty => match self.state(metric, place, key) {
                Ok(state) => return counted.binding.add(values, state),
                Err(hash) => Some((hash, empty)),
            },
        };
        let begin = begin(key);
        let at = (self.keys.len(), key.len() as u32);
        self.keys.extend_from_slice(key);
        let state = state.map(|(hash, mut state)| {
            counted.binding.add(values, &mut state);
            let number = self.states.len() as u32;
            self.states.push(Folded { hash, metric, key: at, place, state });
            self.state_of.insert_unique(hash, number, |&number| self.states[number as usize].hash);
            number
        });
        self.metrics[metric].notes.push(Note { begin, key: at, place, state });
        self.notes += 1;
    }

    fn place(&mut self, metric: usize, place: Place) -> u32 {
        let known = |at: &&Option<u32>| at.is_some_and(|at| self.places[at as usize] == place);
        if let Some(&Some(at)) = self.metrics[metric].recent.iter().find(known) {
            return at;
        }
        let at = *self.place_of.entry(place).or_insert_with(|| {
            self.places.push(place);
            self.places.len() as u32 - 1
        });
        let recent = &mut self.metrics[metric].recent;
        recent.rotate_right(1);
        recent[0] = Some(at);
        at
    }

    /// The state of a cell; where there is none, the hash under which it belongs.
    fn state(&mut self, metric: usize, place: u32, key: &[u8]) -> Result<&mut State, u64> {
        let hash = self.hash.of(key) ^ (u64::from(place) << 32 | metric as u64).wrapping_mul(SPREAD);
        let same = |&number: &u32| {
            let folded = &self.states[number as usize];
            folded.metric == metric && folded.place == place && bytes(&self.keys, folded.key) == key
        };
        match self.state_of.find(hash, same) {
            Some(&number) => Ok(&mut self.states[number as usize].state),
            None => Err(hash),
        }
    }

    /// How many notes wait.
    pub(crate) fn len(&self) -> usize {
        self.notes
    }

    /// About how much memory they take, sketches not counted in full.
    pub(crate) fn bytes(&self) -> usize {
        self.notes * size_of::<Note>() + self.states.len() * STATE_BYTES + self.keys.len()
    }

    /// Takes all cells, packed into a segment for each slice that `wanted` admits.
    ///
    /// # Errors
    /// Where a count or sum would pass its bound.
    pub(crate) fn take(
        &mut self,
        wanted: impl Fn(Slice) -> bool,
    ) -> Result<Vec<(Slice, Vec<u8>)>, CodecError> {
        // As many may come again.
        let room = |of: &Notes| Notes { notes: Vec::with_capacity(of.notes.len()), ..Notes::default() };
        let metrics = self.metrics.iter().map(room).collect();
        let next = Deltas { metrics, keys: Vec::with_capacity(self.keys.len()), ..Deltas::default() };
        let mut taken = std::mem::replace(self, next);

        let mut places: Vec<(Place, u32)> = taken.places.iter().copied().zip(0..).collect();
        places.sort_unstable();
        let mut rank_of = vec![0; places.len()];
        for (rank, &(_, at)) in (0..).zip(&places) {
            rank_of[at as usize] = rank;
        }
        let mut targets = Targets::new(places.into_iter().map(|(place, _)| place), wanted);
        let mut metrics = std::mem::take(&mut taken.metrics);
        for Notes { version, notes, .. } in &mut metrics {
            notes.iter_mut().for_each(|note| note.place = rank_of[note.place as usize]);
            sort(notes, &taken.keys);
            let mut notes = &notes[..];
            while let Some(first) = notes.first() {
                let key = bytes(&taken.keys, first.key);
                let same = |note: &&Note| {
                    note.begin == first.begin
                        && note.place == first.place
                        && note.key.1 == first.key.1
                        && (!is_cut(note) || bytes(&taken.keys, note.key) == key)
                };
                let count = notes.iter().take_while(same).count();
                match first.state {
                    None => targets.push(*version, key, first.place, &State::Count(count as u64))?,
                    Some(at) => {
                        targets.push(*version, key, first.place, &taken.states[at as usize].state)?;
                    }
                }
                notes = &notes[count..];
            }
        }
        Ok(targets.finish())
    }
}

/// Sorts by key, then by place. Nearly all keys are told by their first bytes and their length alone.
fn sort(notes: &mut [Note], keys: &[u8]) {
    let beginning = |note: &Note| (note.begin, note.key.1.min(17));
    notes.sort_unstable_by_key(|note| (beginning(note), note.place));
    let alike = notes.chunk_by_mut(|a, b| beginning(a) == beginning(b));
    for alike in alike.filter(|alike| is_cut(&alike[0])) {
        alike.sort_unstable_by_key(|note| (bytes(keys, note.key), note.place));
    }
}

/// A key's first 16 bytes: with the length of those that aren't longer, keys order as these do.
fn begin(key: &[u8]) -> u128 {
    let mut begin = [0; 16];
    let length = key.len().min(16);
    begin[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(begin)
}

/// Whether its key has further bytes.
fn is_cut(note: &Note) -> bool {
    note.key.1 > 16
}

fn bytes(keys: &[u8], (at, length): Key) -> &[u8] {
    &keys[at..][..length as usize]
}

/// Spreads numbers over 64 bits: 2^64 over the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A packer and the bucket of the cells that go there.
type Target = Option<(usize, Millis)>;

/// The segments that are being packed, and which of them each place feeds.
struct Targets {
    /// The view's and the pane's, by the places' ranks.
    places: Vec<[Target; 2]>,
    slices: BTreeMap<Slice, usize>,
    packers: Vec<Packer>,
}

impl Targets {
    /// For places in the order of their ranks.
    fn new(places: impl Iterator<Item = Place>, wanted: impl Fn(Slice) -> bool) -> Targets {
        let (mut slices, mut packers) = (BTreeMap::new(), Vec::new());
        let mut packer = |slice: Slice| {
            wanted(slice).then(|| {
                *slices.entry(slice).or_insert_with(|| {
                    packers.push(Packer::default());
                    packers.len() - 1
                })
            })
        };
        let target = |Place { view, pane }: Place| {
            let view = view.and_then(|(bucket, epoch)| Some((packer(Slice::Epoch(epoch))?, bucket)));
            [view, pane.and_then(|start| Some((packer(Slice::Pane(start))?, start)))]
        };
        let places = places.map(target).collect();
        Targets { places, slices, packers }
    }

    fn push(
        &mut self,
        version: MetricVersion,
        key: &[u8],
        rank: u32,
        state: &State,
    ) -> Result<(), CodecError> {
        for (packer, bucket) in self.places[rank as usize].into_iter().flatten() {
            self.packers[packer].push(version, key, bucket, state)?;
        }
        Ok(())
    }

    fn finish(self) -> Vec<(Slice, Vec<u8>)> {
        let mut packed: Vec<_> = self.packers.into_iter().map(|packer| Some(packer.finish())).collect();
        self.slices.into_iter().filter_map(|(slice, at)| Some((slice, packed[at].take()?))).collect()
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
        (prop::sample::select(vec![0usize, 11, 12, 13, 14]), ends)
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
        ) {
            let catalog = Catalog::from_toml(CATALOG).expect("valid");
            let plan = Plan::new(&catalog, &catalog.streams[0]);
            let (mut deltas, mut expected) = (Deltas::default(), BTreeMap::<Slice, Cells>::new());
            for (key, n, place) in records {
                let values = vec![Value::Int(0), Value::str(&key), Value::Int(n)];
                let event = Event { time: 0, values, identity: Identity(0) };
                plan.fold(&event, &mut Vec::new(), |_, counted, key| {
                    deltas.add(&counted, place, key, &event.values);
                    let view = place.view.map(|(bucket, epoch)| (Slice::Epoch(epoch), bucket));
                    let pane = place.pane.map(|start| (Slice::Pane(start), start));
                    for (slice, bucket) in view.into_iter().chain(pane) {
                        let id = CellId { version: counted.metric.version, key: key.into(), bucket };
                        let cells = expected.entry(slice).or_default();
                        let state = cells.entry(id).or_insert_with(|| State::empty(&counted.metric.aggregate));
                        counted.binding.add(&event.values, state);
                    }
                });
            }
            let unwanted = Slice::Epoch(1);
            expected.remove(&unwanted);
            let expected: Vec<_> = expected.iter().map(|(slice, cells)| (*slice, pack(cells))).collect();
            prop_assert_eq!(deltas.take(|slice| slice != unwanted).expect("small sums"), expected);
            prop_assert_eq!((deltas.len(), deltas.bytes()), (0, 0));
        }
    }
}
