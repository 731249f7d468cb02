//! The cells of one group that are not yet written: the fold of the records since the last write alone.
//!
//! A record adds to one cell for each metric, whose *place* says to which pane and to which epoch's bucket it belongs;
//! both segments are made of it when it is packed. So a record costs one look-up for each metric, not two.

use crate::counters::{Counted, FastHash};
use hashbrown::{HashMap, HashTable};
use shared_model::aggregate::{State, count};
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::MetricVersion;
use shared_model::time::Millis;
use shared_model::view::{Packer, Slice};
use std::collections::BTreeMap;

/// To what a cell belongs, beside its key. At least one of pane and view is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The start of its pane, where a window may still ask for it.
    pub(crate) pane: Option<Millis>,
    /// Its bucket and epoch in the view.
    pub(crate) view: Option<(Millis, i64)>,
}

/// Cells that are not yet written.
#[derive(Default)]
pub(crate) struct Deltas {
    index: HashTable<u32>,
    cells: Vec<Cell>,
    /// The keys of all cells, one after the other.
    keys: Vec<u8>,
    places: Vec<(u32, Place)>,
    place_of: HashMap<(u32, Place), u32, FastHash>,
    /// The places that each metric's last cells had: the next cell's is mostly among them.
    recent: Vec<[u32; RECENT]>,
    versions: Vec<MetricVersion>,
}

struct Cell {
    hash: u64,
    key: (u32, u32),
    /// Its metric and place.
    place: u32,
    held: Held,
}

/// A state, in a third of its size where it is one of the many: what a record touches is to lie close together.
enum Held {
    Count(u64),
    Other(Box<State>),
}

/// How many places of each metric are found without a look-up.
const RECENT: usize = 4;
/// What a cell takes beside its key, with its share of the index.
const CELL_BYTES: usize = size_of::<Cell>() + 8;

impl Deltas {
    /// Adds a record to a cell. `hash` is the key's, by [`crate::counters::Plan::fold`].
    pub(crate) fn add(
        &mut self,
        counted: &Counted<'_>,
        place: Place,
        key: &[u8],
        hash: u64,
        values: &[Value],
    ) {
        let place = self.place(counted, place);
        // Spreads the places of one key.
        let hash = (hash ^ u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let Deltas { index, cells, keys, .. } = self;
        let same = |&at: &u32| {
            let cell = &cells[at as usize];
            cell.hash == hash && cell.place == place && bytes(keys, cell.key) == key
        };
        let at = match index.find(hash, same) {
            Some(&at) => at as usize,
            None => {
                let at = cells.len();
                index.insert_unique(hash, at as u32, |&at| cells[at as usize].hash);
                let key_at = (keys.len() as u32, key.len() as u32);
                keys.extend_from_slice(key);
                let held = match State::empty(&counted.metric.aggregate) {
                    State::Count(count) => Held::Count(count),
                    other => Held::Other(Box::new(other)),
                };
                cells.push(Cell { hash, key: key_at, place, held });
                at
            }
        };
        match &mut cells[at].held {
            Held::Count(count) => count::add(count),
            Held::Other(state) => counted.binding.add(values, state),
        }
    }

    fn place(&mut self, counted: &Counted<'_>, place: Place) -> u32 {
        let metric = counted.number;
        if self.recent.len() <= metric {
            self.recent.resize(metric + 1, [u32::MAX; RECENT]);
            self.versions.resize(metric + 1, MetricVersion(0));
        }
        self.versions[metric] = counted.metric.version;
        let named = (metric as u32, place);
        let known = |&&at: &&u32| self.places.get(at as usize) == Some(&named);
        if let Some(&at) = self.recent[metric].iter().find(known) {
            return at;
        }
        let at = *self.place_of.entry(named).or_insert_with(|| {
            self.places.push(named);
            self.places.len() as u32 - 1
        });
        self.recent[metric].rotate_right(1);
        self.recent[metric][0] = at;
        at
    }

    /// How many cells wait.
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    /// About how much memory they take, sketches not counted in full.
    pub(crate) fn bytes(&self) -> usize {
        self.cells.len() * CELL_BYTES + self.keys.len()
    }

    /// Takes all cells, packed into a segment for each slice that `wanted` admits.
    ///
    /// # Errors
    /// Where a count would pass its bound.
    pub(crate) fn take(
        &mut self,
        wanted: impl Fn(Slice) -> bool,
    ) -> Result<Vec<(Slice, Vec<u8>)>, CodecError> {
        // As many may come again.
        let (cells, keys) = (self.cells.len(), self.keys.len());
        let next = Deltas {
            index: HashTable::with_capacity(cells),
            cells: Vec::with_capacity(cells),
            keys: Vec::with_capacity(keys),
            ..Deltas::default()
        };
        let taken = std::mem::replace(self, next);
        let (mut packers, mut number_of) = (Vec::new(), BTreeMap::new());
        let mut number = |slice: Option<Slice>| {
            let slice = slice.filter(|slice| wanted(*slice))?;
            Some(*number_of.entry(slice).or_insert_with(|| {
                packers.push(Packer::default());
                packers.len() - 1
            }))
        };
        let targets: Vec<_> = taken
            .places
            .iter()
            .map(|(_, place)| {
                let epoch = place.view.map(|(_, epoch)| Slice::Epoch(epoch));
                (number(place.pane.map(Slice::Pane)), number(epoch))
            })
            .collect();
        for at in taken.canonical_order() {
            let cell = &taken.cells[at as usize];
            let (metric, place) = taken.places[cell.place as usize];
            let (version, key) = (taken.versions[metric as usize], bytes(&taken.keys, cell.key));
            let count;
            let state = match &cell.held {
                Held::Count(n) => {
                    count = State::Count(*n);
                    &count
                }
                Held::Other(state) => state,
            };
            let (pane, epoch) = targets[cell.place as usize];
            if let (Some(packer), Some(start)) = (pane, place.pane) {
                packers[packer].push(version, key, start, state)?;
            }
            if let (Some(packer), Some((bucket, _))) = (epoch, place.view) {
                packers[packer].push(version, key, bucket, state)?;
            }
        }
        let mut packed: Vec<_> = packers.into_iter().map(Packer::finish).map(Some).collect();
        let segment = |(slice, at): (Slice, usize)| Some((slice, packed[at].take()?));
        Ok(number_of.into_iter().filter_map(segment).collect())
    }

    /// The cells in an order that is canonical in each slice: by metric version, key, bucket.
    fn canonical_order(&self) -> Vec<u32> {
        // The first bytes of a key nearly always tell it from another, and numbers sort quickly.
        let begin = |cell: &Cell| {
            let (mut begin, key) = ([0; 8], bytes(&self.keys, cell.key));
            let length = key.len().min(8);
            begin[..length].copy_from_slice(&key[..length]);
            u128::from(self.places[cell.place as usize].0) << 64 | u128::from(u64::from_be_bytes(begin))
        };
        let mut order: Vec<(u128, u32)> = self.cells.iter().map(begin).zip(0..).collect();
        order.sort_unstable_by_key(|(begin, _)| *begin);
        for alike in order.chunk_by_mut(|(a, _), (b, _)| a == b).filter(|alike| alike.len() > 1) {
            alike.sort_unstable_by_key(|(_, at)| {
                let cell = &self.cells[*at as usize];
                let place = &self.places[cell.place as usize].1;
                (bytes(&self.keys, cell.key), place.view, place.pane)
            });
        }
        order.into_iter().map(|(_, at)| at).collect()
    }
}

fn bytes(keys: &[u8], (at, length): (u32, u32)) -> &[u8] {
    &keys[at as usize..(at + length) as usize]
}
