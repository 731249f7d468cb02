//! Numbers for the strings of a column's rows as they come: equal values have the same one, whatever rows they are in.
//!
//! Strings are looked for many at once, so that what they wait for comes together; and the number of a small integer, or of
//! a text that came a moment ago, is found by the value itself.

use crate::compute::name;
use crate::compute::repeats::left;
use anyhow::Result;
use polars::prelude::Column;
use shared_model::event::{FieldType, Value};
use shared_model::interner::Interner;

/// So many strings are looked for at once.
const STRINGS: usize = if cfg!(test) { 3 } else { 64 };
/// Instead of a string's number, while it isn't known.
const UNKNOWN: u32 = u32::MAX;

/// What the rows of a column have, by numbers.
#[derive(Default)]
pub(super) struct Numbers {
    /// The strings, as [`name::put`] writes them.
    pub(super) known: Interner,
    /// As [`Small`] says.
    small: Vec<u32>,
    /// The number of each row's string.
    pub(super) of_rows: Vec<u32>,
}

impl Numbers {
    /// Takes the strings of a column's rows that aren't gone.
    pub(super) fn take(&mut self, column: &Column, ty: FieldType, gone: &[u64]) -> Result<()> {
        let Numbers { known, small, of_rows: numbers } = self;
        // Room for these and no more: doubling would hold twice of it.
        numbers.reserve_exact(column.len());
        let series = column.as_materialized_series();
        match ty {
            FieldType::String => {
                let texts = series.str()?.rechunk();
                let array = texts.downcast_as_array();
                let views = array.views().iter().zip(array.iter());
                let texts = views.map(|(view, text)| text.map(|text| (view.as_u128(), text)));
                let put = |(_, text): (u128, &str), out: &mut Vec<u8>| name::put_text(text, out);
                take(left(texts, gone), known, numbers, Seen::default(), put);
            }
            FieldType::Int | FieldType::Decimal(_) => {
                let small = Small { rows: numbers.len() + column.len(), numbers: small };
                take(left(series.i64()?.iter(), gone), known, numbers, small, name::put_int);
            }
            FieldType::Float => take(left(series.f64()?.iter(), gone), known, numbers, (), name::put_float),
            FieldType::Bool => {
                let put = |truth, out: &mut Vec<u8>| name::put(&Value::Bool(truth), out);
                take(left(series.bool()?.iter(), gone), known, numbers, (), put);
            }
        }
        Ok(())
    }

    /// The bytes that are held.
    pub(super) fn size(&self) -> usize {
        (self.of_rows.len() + self.small.capacity()) * size_of::<u32>() + self.known.size()
    }

    /// Lets go of what only more rows would want.
    pub(super) fn close(&mut self) {
        self.small = Vec::new();
    }
}

/// Takes values, and looks for those that no shortcut knows.
fn take<T: Copy>(
    values: impl Iterator<Item = Option<T>>,
    known: &mut Interner,
    numbers: &mut Vec<u32>,
    mut shortcut: impl Shortcut<T>,
    put: impl Fn(T, &mut Vec<u8>),
) {
    let mut batch = Batch { bytes: Vec::new(), ends: Vec::new(), rows: Vec::new(), numbers: Vec::new() };
    for value in values {
        let number = value.map_or(UNKNOWN, |value| shortcut.find(value));
        if number == UNKNOWN {
            match value {
                Some(value) => put(value, &mut batch.bytes),
                None => name::put(&Value::Null, &mut batch.bytes),
            }
            batch.ends.push(batch.bytes.len());
            batch.rows.push((numbers.len(), value));
        }
        numbers.push(number);
        if batch.ends.len() == STRINGS {
            batch.number(known, numbers, &mut shortcut);
        }
    }
    batch.number(known, numbers, &mut shortcut);
}

/// Strings that are looked for at once.
struct Batch<T> {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// The row of each, and its value unless it is NULL.
    rows: Vec<(usize, Option<T>)>,
    numbers: Vec<u32>,
}

impl<T> Batch<T> {
    /// Gives their rows their numbers; then there are none.
    fn number(&mut self, known: &mut Interner, numbers: &mut [u32], shortcut: &mut impl Shortcut<T>) {
        known.intern_all(&self.bytes, &self.ends, &mut self.numbers);
        for ((row, value), number) in self.rows.drain(..).zip(self.numbers.drain(..)) {
            numbers[row] = number;
            if let Some(value) = value {
                shortcut.learn(value, number);
            }
        }
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Numbers of values that needn't be looked for among all strings.
trait Shortcut<T> {
    /// A value's number, or [`UNKNOWN`].
    fn find(&self, value: T) -> u32;

    /// Learns a value's number.
    fn learn(&mut self, value: T, number: u32);
}

impl<T> Shortcut<T> for () {
    fn find(&self, _: T) -> u32 {
        UNKNOWN
    }

    fn learn(&mut self, _: T, _: u32) {}
}

/// Those of integers from 0 up, below the number of rows: ids often count up.
struct Small<'h> {
    numbers: &'h mut Vec<u32>,
    rows: usize,
}

impl Small<'_> {
    fn place(&self, int: i64) -> Option<usize> {
        usize::try_from(int).ok().filter(|place| *place < self.rows)
    }
}

impl Shortcut<i64> for Small<'_> {
    fn find(&self, int: i64) -> u32 {
        self.place(int).and_then(|place| self.numbers.get(place).copied()).unwrap_or(UNKNOWN)
    }

    fn learn(&mut self, int: i64, number: u32) {
        if let Some(place) = self.place(int) {
            if self.numbers.len() <= place {
                self.numbers.resize(place + 1, UNKNOWN);
            }
            self.numbers[place] = number;
        }
    }
}

/// Those of the texts of one array, by where they lie, or what they are where they are short: texts of a dictionary lie
/// in one place, however often they come. Each has one slot, and the last that came there stays.
struct Seen(Vec<(u128, u32)>);

/// How many slots, as a power of 2: the cache of a core holds them.
const SEEN: u32 = if cfg!(test) { 1 } else { 12 };

impl Default for Seen {
    fn default() -> Seen {
        Seen(vec![(0, UNKNOWN); 1 << SEEN])
    }
}

impl Seen {
    fn slot(view: u128) -> usize {
        let both = view as u64 ^ (view >> 64) as u64;
        (both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SEEN)) as usize
    }
}

impl<'t> Shortcut<(u128, &'t str)> for Seen {
    fn find(&self, (view, _): (u128, &'t str)) -> u32 {
        let (seen, number) = self.0[Seen::slot(view)];
        if seen == view { number } else { UNKNOWN }
    }

    fn learn(&mut self, (view, _): (u128, &'t str), number: u32) {
        self.0[Seen::slot(view)] = (view, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::IdxSize;
    use proptest::prelude::{ProptestConfig, any, prop, proptest};
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Integers that have places by themselves, at once or once more rows came, and others; two chunks.
        #[test]
        fn rows_numbers_lead_back_to_their_values(
            ints in prop::collection::vec(
                prop::option::of(prop::sample::select(vec![i64::MIN, -1, 0, 1, 9, 40, i64::MAX])),
                0..60,
            ),
            gone: u64,
        ) {
            let (mut numbers, mut expected) = (Numbers::default(), Vec::new());
            for chunk in ints.chunks(30) {
                let column = Column::new("ints".into(), chunk.to_vec());
                numbers.take(&column, FieldType::Int, &[gone]).unwrap();
                expected.extend(left(chunk.iter().map(|int| int.map_or(Value::Null, Value::Int)), &[gone]));
            }
            assert!(numbers.small.len() <= ints.len());
            assert_eq!(numbers.known.len(), expected.iter().collect::<BTreeSet<_>>().len());
            let found = numbers.of_rows.iter().map(|number| {
                name::take(FieldType::Int, &mut numbers.known.get(*number)).unwrap()
            });
            assert_eq!(found.collect::<Vec<Value>>(), expected);
        }

        /// Texts of a dictionary, which have several rows, and others; two arrays, of which each has two parts. Where
        /// two texts are of one length and begin alike, nothing but their place tells one's view from the other's.
        #[test]
        fn rows_numbers_lead_back_to_their_texts(
            rows in prop::collection::vec(prop::collection::vec((0..7usize, any::<bool>()), 0..20), 4),
            gone: u64,
        ) {
            let texts = ["", "a", "a\0", "alike to the end: 1", "alike to the end: 2", "alike to the end"];
            let dictionary = Column::new("texts".into(), texts.to_vec());
            let (mut numbers, mut expected) = (Numbers::default(), Vec::new());
            for parts in rows.chunks(2) {
                let column = |part: &Vec<(usize, bool)>| {
                    let in_dictionary = |(at, shared): &(usize, bool)| shared.then_some(*at as IdxSize % 6);
                    let shared = part.iter().filter_map(in_dictionary).collect::<Vec<IdxSize>>();
                    let mut column = dictionary.take_slice(&shared).unwrap();
                    let alone = part.iter().filter(|(_, shared)| !shared).map(|(at, _)| texts.get(*at).copied());
                    column.append(&Column::new("texts".into(), alone.collect::<Vec<_>>())).unwrap();
                    column
                };
                let mut both = column(&parts[0]);
                both.append(&column(&parts[1])).unwrap();
                numbers.take(&both, FieldType::String, &[gone]).unwrap();
                let values = both.as_materialized_series().str().unwrap().iter();
                expected.extend(left(values.map(|text| text.map_or(Value::Null, Value::str)), &[gone]));
            }
            assert_eq!(numbers.known.len(), expected.iter().collect::<BTreeSet<_>>().len());
            let found = numbers.of_rows.iter().map(|number| {
                name::take(FieldType::String, &mut numbers.known.get(*number)).unwrap()
            });
            assert_eq!(found.collect::<Vec<Value>>(), expected);
        }
    }
}
