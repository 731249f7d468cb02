//! From notes to segments: numbers become ranks, which order as names do, and each group's cells are packed in that order.

use super::{Cell, Noted, Notes, Place, Segment};
use shared_model::aggregate::State;
use shared_model::codec::CodecError;
use shared_model::interner::{Strings, ranks};
use shared_model::metric::MetricVersion;
use shared_model::time::Millis;
use shared_model::view::{Packer, Slice, key_begin};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The order of what was noted: parts and places by rank.
pub(super) struct Order<'a> {
    notes: &'a Notes,
    /// Parts by their bytes: the order of items.
    items: Vec<u32>,
    item_ranks: Vec<u32>,
    /// Parts by group, then by their bytes: the order of what metrics are `by`. One after the other, as they are packed.
    bys: Strings,
    /// The first rank of each group there, and the end.
    begins: Vec<u32>,
    by_ranks: Vec<u32>,
    pub(super) places: Vec<Place>,
    place_ranks: Vec<u32>,
}

/// What was noted for one metric, by ranks and in their order.
pub(super) struct Ranked {
    pub(super) version: MetricVersion,
    pub(super) counts: Vec<Cell>,
    pub(super) states: Vec<(Cell, State)>,
}

impl Order<'_> {
    pub(super) fn of(notes: &Notes) -> Order<'_> {
        // Of the parts that one metric has at one place of its keys none is the beginning of another: they order as keys do.
        let items = notes.parts.order(key_begin);
        let (bys, begins) = by_groups(&items, &notes.groups);
        let mut places: Vec<u32> = (0..notes.places.len() as u32).collect();
        places.sort_unstable_by_key(|&place| notes.places[place as usize]);
        let (item_ranks, by_ranks, place_ranks) = (ranks(&items), ranks(&bys), ranks(&places));
        let bys = notes.parts.ordered(&bys);
        let places = places.into_iter().map(|place| notes.places[place as usize]).collect();
        Order { notes, items, item_ranks, bys, begins, by_ranks, places, place_ranks }
    }

    /// The first rank of a group among what metrics are `by`.
    pub(super) fn begin(&self, group: usize) -> u32 {
        self.begins[group.min(self.begins.len() - 1)]
    }

    pub(super) fn ranked(&self, noted: Noted) -> Ranked {
        let Noted { version, mut counts, states, .. } = noted;
        self.rank_all(&mut counts);
        let mut states: Vec<_> = states.into_iter().map(|(cell, state)| (self.rank(cell), state)).collect();
        states.sort_unstable_by_key(|(cell, _)| cell.name());
        Ranked { version, counts, states }
    }

    fn rank(&self, cell: Cell) -> Cell {
        Cell {
            by: self.by_ranks[cell.by as usize],
            item: self.item_ranks[cell.item as usize],
            place: self.place_ranks[cell.place as usize],
        }
    }

    /// Gives cells their ranks and sorts them: by as many bits as ranks have, which nearly always are few enough for one
    /// number.
    fn rank_all(&self, cells: &mut [Cell]) {
        let bits = |len: usize| len.next_power_of_two().trailing_zeros();
        let (part, place) = (bits(self.items.len()), bits(self.places.len()));
        if 2 * part + place > u64::BITS {
            cells.iter_mut().for_each(|cell| *cell = self.rank(*cell));
            cells.sort_unstable_by_key(Cell::name);
            return;
        }
        let number = |cell: &Cell| {
            let cell = self.rank(*cell);
            (u64::from(cell.by) << part | u64::from(cell.item)) << place | u64::from(cell.place)
        };
        let mut numbers: Vec<u64> = cells.iter().map(number).collect();
        sort(&mut numbers);
        let lowest = |bits: u32| (1u64 << bits) - 1;
        for (cell, number) in cells.iter_mut().zip(numbers) {
            let (by, item) = (number >> place >> part, number >> place & lowest(part));
            *cell = Cell { by: by as u32, item: item as u32, place: (number & lowest(place)) as u32 };
        }
    }

    /// Makes a key a cell's.
    fn key(&self, cell: Cell, key: &mut Key) {
        match key.by {
            Some((by, length)) if by == cell.by => key.bytes.truncate(length),
            _ => {
                key.bytes.clear();
                key.bytes.extend_from_slice(self.bys.get(cell.by));
                key.by = Some((cell.by, key.bytes.len()));
            }
        }
        key.bytes.extend_from_slice(self.notes.parts.get(self.items[cell.item as usize]));
    }
}

/// Parts by group, in the order that they have, and where each group begins there, up to the end.
fn by_groups(parts: &[u32], groups: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let many = groups.iter().max().map_or(0, |highest| *highest as usize + 1);
    let mut begins = vec![0u32; many + 1];
    groups.iter().for_each(|&group| begins[group as usize + 1] += 1);
    (0..many).for_each(|group| begins[group + 1] += begins[group]);
    let (mut places, mut by_groups) = (begins.clone(), vec![0; parts.len()]);
    for &part in parts {
        let place = &mut places[groups[part as usize] as usize];
        by_groups[*place as usize] = part;
        *place += 1;
    }
    (by_groups, begins)
}

/// How many bits of numbers are sorted by at once.
const DIGIT: u32 = 11;

/// Sorts numbers digit by digit, from the lowest on, by the bits alone in which they differ. Where they are fewer than a
/// digit has values, comparing is quicker.
fn sort(numbers: &mut Vec<u64>) {
    if numbers.len() < 1 << DIGIT {
        return numbers.sort_unstable();
    }
    let first = numbers[0];
    let mut differing = numbers.iter().fold(0u64, |bits, number| bits | (number ^ first));
    let mut sorted = vec![0; numbers.len()];
    while differing != 0 {
        let shift = differing.trailing_zeros();
        let digit = |number: u64| (number >> shift) as usize & ((1 << DIGIT) - 1);
        let mut places = [0usize; 1 << DIGIT];
        numbers.iter().for_each(|&number| places[digit(number)] += 1);
        let mut next = 0;
        for place in &mut places {
            next += std::mem::replace(place, next);
        }
        for &number in &*numbers {
            let place = &mut places[digit(number)];
            sorted[*place] = number;
            *place += 1;
        }
        std::mem::swap(numbers, &mut sorted);
        differing &= !(((1u64 << DIGIT) - 1) << shift);
    }
}

/// A cell's key.
#[derive(Default)]
struct Key {
    bytes: Vec<u8>,
    /// The rank of its `by`, and how many of the bytes that has: the next cell's is often the same.
    by: Option<(u32, usize)>,
}

/// The segments of one group that are being packed, and which of them each place feeds.
pub(super) struct Targets<'a, W> {
    /// All places, in their order.
    places: &'a [Place],
    wanted: W,
    /// By the places' ranks: the packers of view and pane and the buckets there, once they were asked for.
    found: Vec<Option<[Target; 2]>>,
    /// The places that were.
    asked: Vec<u32>,
    slices: BTreeMap<Slice, usize>,
    /// Those of the slices, then others that wait.
    packers: Vec<Packer>,
    key: Key,
}

/// A packer and the bucket of the cells that go there.
type Target = Option<(usize, Millis)>;

impl<'a, W: Fn(Slice) -> bool> Targets<'a, W> {
    pub(super) fn new(places: &'a [Place], wanted: W) -> Targets<'a, W> {
        let (found, asked, slices) = (vec![None; places.len()], Vec::new(), BTreeMap::new());
        Targets { places, wanted, found, asked, slices, packers: Vec::new(), key: Key::default() }
    }

    /// Where the place of a rank leads to.
    fn of(&mut self, rank: u32) -> [Target; 2] {
        if let Some(found) = self.found[rank as usize] {
            return found;
        }
        let mut packer = |slice: Slice| {
            (self.wanted)(slice).then(|| {
                let next = self.slices.len();
                *self.slices.entry(slice).or_insert_with(|| {
                    if next == self.packers.len() {
                        self.packers.push(Packer::default());
                    }
                    next
                })
            })
        };
        let Place { view, pane } = self.places[rank as usize];
        let view = view.and_then(|(bucket, epoch)| Some((packer(Slice::Epoch(epoch))?, bucket)));
        let found = [view, pane.and_then(|start| Some((packer(Slice::Pane(start))?, start)))];
        self.found[rank as usize] = Some(found);
        self.asked.push(rank);
        found
    }

    /// Packs what was noted for a metric in one group, in its order. `state`: of all that was noted for one cell.
    pub(super) fn pack<'n, T>(
        &mut self,
        version: MetricVersion,
        order: &Order<'_>,
        noted: &'n [T],
        cell: impl Fn(&T) -> Cell,
        state: impl Fn(&'n [T]) -> Cow<'n, State>,
    ) -> Result<(), CodecError> {
        let mut states: Vec<(usize, Millis, Cow<'n, State>)> = Vec::new();
        for alike in noted.chunk_by(|a, b| cell(a).key() == cell(b).key()) {
            let (first, last) = (cell(&alike[0]), cell(&alike[alike.len() - 1]));
            order.key(first, &mut self.key);
            // Most keys have one place; of its segments, too, each gets one cell.
            if first.place == last.place {
                let state = state(alike);
                for (packer, bucket) in self.of(first.place).into_iter().flatten() {
                    self.packers[packer].push(version, &self.key.bytes, bucket, &state);
                }
                continue;
            }
            for alike in alike.chunk_by(|a, b| cell(a).place == cell(b).place) {
                let state = state(alike);
                let targets = self.of(cell(&alike[0]).place).into_iter().flatten();
                states.extend(targets.map(|(packer, bucket)| (packer, bucket, state.clone())));
            }
            // One bucket of the view comes with several panes, and one pane may come with several epochs.
            states.sort_by_key(|&(packer, bucket, _)| (packer, bucket));
            let mut states = states.drain(..).peekable();
            while let Some((packer, bucket, mut state)) = states.next() {
                while let Some((.., more)) = states.next_if(|next| (next.0, next.1) == (packer, bucket)) {
                    state.to_mut().merge(&more)?;
                }
                self.packers[packer].push(version, &self.key.bytes, bucket, &state);
            }
        }
        Ok(())
    }

    /// The segments of a group; then those of the next are begun.
    pub(super) fn finish(&mut self) -> Vec<Segment> {
        self.asked.drain(..).for_each(|rank| self.found[rank as usize] = None);
        let segment = |(slice, at): (Slice, usize)| (slice, self.packers[at].finish());
        std::mem::take(&mut self.slices).into_iter().map(segment).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// About as many as are sorted by comparing at most, that differ in a few bits here and there or in all.
        #[test]
        fn numbers_are_sorted_by_their_digits(
            drawn in prop::collection::vec(any::<u64>(), 1..64),
            count in 2_000usize..2_100,
            bits in prop::sample::select(vec![0, 1, 1 << 63, 0x7ff << 40, 0x8000_0000_0003_f001, u64::MAX]),
        ) {
            let turned = |(number, turn): (&u64, u32)| number.rotate_left(turn).wrapping_mul(u64::from(turn) | 1);
            let numbers = drawn.iter().cycle().zip(0..).map(turned).map(|number| number & bits);
            let mut numbers: Vec<u64> = numbers.take(count).collect();
            let mut expected = numbers.clone();
            expected.sort_unstable();
            sort(&mut numbers);
            prop_assert_eq!(numbers, expected);
        }
    }
}
