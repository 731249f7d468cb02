//! Folds the rows of a stream's day into cells, for all its metrics in one pass.
//!
//! Of a row are held its time and, for each column, the number of its string there, which is held once. When memory is
//! used up, or no more rows come, strings are numbered in their order; then, metric by metric, the rows become the
//! numbers of the cells that they count in ([`Digits`]), and the cells are handed on as a sorted run. Where few cells
//! are possible against the rows, each has its place, and rows are counted there; else the numbers are sorted. So the
//! memory is that of rows, however many metrics there are, and of distinct strings; and a row is read once.

use crate::compute::digits::Digits;
use crate::compute::name;
use crate::compute::numbers::Numbers;
use crate::compute::repeats::{is_gone, left};
use crate::compute::run::{Run, RunWriter, SHORT};
use crate::plan::{EVENT_TIME, Need, Needs};
use anyhow::{Context, Result, ensure};
use polars::prelude::{DataFrame, DataType};
use shared_model::aggregate::distinct::Distinct;
use shared_model::aggregate::{Aggregate, State};
use shared_model::event::{FieldType, Value};
use shared_model::interner::Strings;
use shared_model::metric::Metric;
use shared_model::time::{EventDay, Millis};
use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Counts have places where no more than so many cells are possible for each row.
const PLACES: u64 = 4;
/// Distinct counts have places where there are so many rows for each possible cell: they take more, and grow.
const ROWS_OF_SKETCH: u64 = 8;
/// What a row takes while a metric's cells are made: the cell's number, and places; sketches in places take no more.
const BYTES_OF_CELL: u64 = size_of::<u64>() as u64 + PLACES * size_of::<u32>() as u64;

/// Rows of one stream and day on their way to cells.
pub(super) struct Fold<'a> {
    needs: &'a Needs,
    metrics: &'a [Arc<Metric>],
    /// The day's start and end.
    day: (Millis, Millis),
    memory: u64,
    columns: Vec<Held>,
    /// Of each row, from the day's start.
    times: Vec<u32>,
}

/// What is held of a column.
#[derive(Default)]
struct Held {
    /// The numbers of the strings that its rows have; none where it only filters. Once no more come, ranks in a key's column.
    numbers: Numbers,
    /// The strings by number, once no more rows come.
    strings: Strings,
    /// By number what a distinct count keeps of the string, once it is wanted.
    items: Vec<Item>,
    /// Where it filters: whether each row counts.
    truths: Vec<bool>,
}

/// What a distinct count keeps of a value; no item is 0.
type Item = Option<NonZeroU64>;

impl<'a> Fold<'a> {
    /// Of no rows yet. `metrics` are those of `needs`. Beyond `memory` bytes there is no room for more rows.
    pub(super) fn new(day: EventDay, needs: &'a Needs, metrics: &'a [Arc<Metric>], memory: u64) -> Fold<'a> {
        let columns = needs.columns.iter().map(|_| Held::default()).collect();
        let (start, end) = (day.interval().start, day.interval().end);
        Fold { needs, metrics, day: (start, end), memory, columns, times: Vec::new() }
    }

    /// Takes the rows of a frame as [`Needs::select`] gives it, but those that are gone.
    ///
    /// # Errors
    /// Where a row is of another day.
    pub(super) fn take(&mut self, frame: &DataFrame, gone: &[u64]) -> Result<()> {
        let needs = &self.needs.metrics;
        for (at, held) in self.columns.iter_mut().enumerate() {
            let column = frame.column(&Needs::name(at))?;
            if needs.iter().any(|need| need.key.contains(&at) || need.value == Some(at)) {
                held.numbers.take(column, self.needs.columns[at].ty, gone)?;
            }
            if needs.iter().any(|need| need.filter == Some(at)) {
                let truths = column.as_materialized_series().bool()?;
                held.truths.extend(left(truths.iter().map(|truth| truth == Some(true)), gone));
            }
        }
        let (start, end) = self.day;
        let times = frame.column(EVENT_TIME)?.as_materialized_series().cast(&DataType::Int64)?;
        self.times.reserve_exact(frame.height());
        for (row, time) in times.i64()?.iter().enumerate() {
            let time = time.context("a row of the archive has no event time")?;
            ensure!(
                (start..end).contains(&time),
                "a row of the archive has event time {time}, which is none of its day"
            );
            if !is_gone(gone, row) {
                self.times.push((time - start) as u32);
            }
        }
        Ok(())
    }

    /// Whether so many more rows can come before [`Fold::cells`] is called. A fold of no rows takes any.
    pub(super) fn has_room(&self, rows: u64) -> bool {
        let taken = self.times.len() as u64;
        let all = u128::from(taken + rows);
        let held = |(at, held): (usize, &Held)| {
            let item = if self.is_counted(at) { size_of::<Item>() } else { 0 };
            held.numbers.size() + held.truths.len() + held.numbers.known.len() * item
        };
        let held: usize = self.columns.iter().enumerate().map(held).sum();
        // As many more strings, row by row, as there were so far.
        let of_all = |bytes: usize| u128::from(bytes as u64) * all / u128::from(taken.max(1));
        let times = u128::from(size_of::<u32>() as u64) * all;
        // Columns are put in order one after the other, before there are cells.
        let order = self.columns.iter().map(|held| held.numbers.known.size_of_order()).max().unwrap_or(0);
        let work = of_all(order).max(u128::from(BYTES_OF_CELL) * all);
        taken == 0 || all <= u128::from(u32::MAX) && of_all(held) + times + work <= u128::from(self.memory)
    }

    /// Whether a metric counts a column's distinct values.
    fn is_counted(&self, column: usize) -> bool {
        let mut metrics = self.metrics.iter().zip(&self.needs.metrics);
        metrics.any(|(metric, need)| need.value == Some(column) && metric.aggregate == Aggregate::Distinct)
    }

    /// The cells of the rows so far, for each metric as a run; then there are none.
    ///
    /// # Errors
    /// Where the disk is full, or a count or sum would pass its bound.
    pub(super) fn cells(&mut self) -> Result<Vec<Run>> {
        let Needs { columns, metrics: needs } = self.needs;
        // Of all columns, before one takes more: the last rows may have made them larger than was foreseen.
        self.columns.iter_mut().for_each(|held| held.numbers.close());
        for (at, column) in columns.iter().enumerate() {
            let is_counted = self.is_counted(at);
            let is_key = needs.iter().any(|need| need.key.contains(&at));
            self.columns[at].close(column.ty, is_key, is_counted)?;
        }
        let metrics = self.metrics.iter().zip(needs);
        let runs = metrics.map(|(metric, need)| {
            self.run(need, &metric.aggregate).with_context(|| format!("metric {}", metric.name))
        });
        let runs = runs.collect::<Result<_>>()?;
        // What was held is given back: the next rows may need it elsewhere.
        self.columns.fill_with(Held::default);
        self.times = Vec::new();
        Ok(runs)
    }

    /// A metric's cells, once strings are in order.
    fn run(&self, need: &Need, aggregate: &Aggregate) -> Result<Run> {
        let mask = need.filter.map(|filter| &self.columns[filter].truths[..]);
        let rows = mask.map_or(self.times.len(), |mask| mask.iter().filter(|counts| **counts).count());
        let (mut digits, mut cells) = (Digits::new(), vec![0u64; rows]);
        for column in &need.key {
            let held = &self.columns[*column];
            digits.push(
                &mut cells,
                held.strings.len() as u64,
                counting(&held.numbers.of_rows, mask).iter().copied(),
            );
        }
        // From the first bucket that has rows to the last: files often hold a part of the day.
        let width = need.width as u32;
        let bucket = |time: Option<&u32>| time.map_or(0, |time| time / width);
        let (first, last) = (bucket(self.times.iter().min()), bucket(self.times.iter().max()));
        let buckets = u64::from(last - first) + 1;
        digits.push(&mut cells, buckets, counting(&self.times, mask).iter().map(|time| time / width - first));

        let first = self.day.0 + Millis::from(first) * need.width;
        let Some(value) = need.value else {
            let mut run = Writer::new(&self.columns, need, &digits, first);
            counted(cells, digits.end(), |cell, count| run.push(cell, &State::Count(count)))?;
            return run.cells.finish();
        };
        let (held, ty) = (&self.columns[value], self.needs.columns[value].ty);
        let values = counting(&held.numbers.of_rows, mask);
        if *aggregate == Aggregate::Distinct && digits.end() <= rows as u64 / ROWS_OF_SKETCH {
            let mut sketches: Vec<Option<Distinct>> = vec![None; digits.end() as usize];
            for (cell, value) in cells.iter().zip(values.iter()) {
                // A cell of NULLs alone is one too.
                let sketch = sketches[*cell as usize].get_or_insert_default();
                if let Some(item) = held.items[*value as usize] {
                    sketch.add_item(item.get());
                }
            }
            let mut run = Writer::new(&self.columns, need, &digits, first);
            for (cell, sketch) in (0..).zip(sketches) {
                if let Some(sketch) = sketch {
                    run.push(cell, &State::Distinct(sketch))?;
                }
            }
            return run.cells.finish();
        }
        digits.push(&mut cells, held.strings.len() as u64, values.iter().copied());
        drop(values);
        cells.sort_unstable();
        let split = |number: u64| digits.split(need.key.len() + 1, number);
        let mut run = Writer::new(&self.columns, need, &digits, first);
        for rows in cells.chunk_by(|a, b| split(*a).0 == split(*b).0) {
            let (cell, mut state) = (split(rows[0]).0, State::empty(aggregate));
            for same in rows.chunk_by(|a, b| a == b) {
                let (_, value) = split(same[0]);
                match &mut state {
                    State::Distinct(distinct) => {
                        held.items[value as usize].into_iter().for_each(|item| distinct.add_item(item.get()));
                    }
                    state => add_times(aggregate, state, &held.value(value, ty)?, same.len())?,
                }
            }
            run.push(cell, &state)?;
        }
        run.cells.finish()
    }
}

impl Held {
    /// The value that a number's string is of.
    fn value(&self, number: u32, ty: FieldType) -> Result<Value> {
        name::take(ty, &mut self.strings.get(number))
    }

    /// Once no more rows come: numbers a key's strings in their order, and notes what distinct counts keep of strings.
    fn close(&mut self, ty: FieldType, is_key: bool, is_counted: bool) -> Result<()> {
        let known = std::mem::take(&mut self.numbers.known);
        if is_counted {
            // As the strings lie: each would be waited for in another order.
            let item = |number: u32| -> Result<Item> {
                let value = name::take(ty, &mut known.get(number))?;
                Ok(Distinct::item(&value).and_then(NonZeroU64::new))
            };
            self.items = (0..known.len() as u32).map(item).collect::<Result<_>>()?;
        }
        if !is_key {
            self.strings = known.into_strings();
            return Ok(());
        }
        let (strings, ranks) = known.into_ordered(name::prefix);
        self.strings = strings;
        self.numbers.of_rows.iter_mut().for_each(|number| *number = ranks[*number as usize]);
        if is_counted {
            let mut items = vec![None; ranks.len()];
            ranks.iter().zip(&self.items).for_each(|(rank, item)| items[*rank as usize] = *item);
            self.items = items;
        }
        Ok(())
    }
}

/// Writes the cells of a metric, which come by their numbers, in order.
struct Writer<'a> {
    columns: &'a [Held],
    need: &'a Need,
    digits: &'a Digits,
    /// The start of the first bucket.
    first: Millis,
    cells: RunWriter,
    /// The last cell's, and [`SHORT`] zeros.
    name: Vec<u8>,
    /// Of each digit of the last cell, the bucket's too: where the numbers begin that have the same digits before it, and
    /// how much of `name` is of these.
    before: Vec<Option<(u64, usize)>>,
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(columns: &'a [Held], need: &'a Need, digits: &'a Digits, first: Millis) -> Writer<'a> {
        let (name, bytes, before) = (Vec::new(), Vec::new(), vec![None; need.key.len() + 1]);
        Writer { columns, need, digits, first, cells: RunWriter::new(), name, before, bytes }
    }

    fn push(&mut self, cell: u64, state: &State) -> Result<()> {
        let bucket = self.last(self.need.key.len(), cell);
        name::put_bucket(self.first + Millis::from(bucket) * self.need.width, &mut self.name);
        self.bytes.clear();
        state.encode(&mut self.bytes);
        let length = self.name.len();
        self.name.extend_from_slice(&[0; SHORT]);
        self.cells.push_first(&self.name, length, &self.bytes)
    }

    /// The digit that a number ends with, which is the one at `at`; `name` becomes that of the key's columns before it.
    fn last(&mut self, at: usize, number: u64) -> u32 {
        // Numbers come in order: most have the same digits before the last as the one before, or only one other.
        if let Some((begin, length)) = self.before[at] {
            let digit = number.wrapping_sub(begin);
            if digit < self.digits.base(at) {
                self.name.truncate(length);
                return digit as u32;
            }
        }
        let (rest, digit) = self.digits.split(at, number);
        match at.checked_sub(1) {
            Some(before) => {
                let part = self.last(before, rest);
                self.name.extend_from_slice(self.columns[self.need.key[before]].strings.get(part));
            }
            None => self.name.clear(),
        }
        self.before[at] = Some((number - u64::from(digit), self.name.len()));
        digit
    }
}

/// Hands over numbers, which are below `end`, in their order, each once with how often it is there.
fn counted(mut numbers: Vec<u64>, end: u64, mut each: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    if end <= numbers.len() as u64 * PLACES {
        let mut counts = vec![0u32; end as usize];
        numbers.iter().for_each(|number| counts[*number as usize] += 1);
        let mut counts = (0..).zip(counts).filter(|(_, count)| *count > 0);
        return counts.try_for_each(|(number, count)| each(number, u64::from(count)));
    }
    numbers.sort_unstable();
    numbers.chunk_by(|a, b| a == b).try_for_each(|same| each(same[0], same.len() as u64))
}

/// Adds a value `n` times, by doubling where that pays.
fn add_times(aggregate: &Aggregate, state: &mut State, value: &Value, mut n: usize) -> Result<()> {
    let once = matches!(aggregate, Aggregate::Min(_) | Aggregate::Max(_) | Aggregate::Sessions { .. });
    if n == 1 || once {
        state.add(value);
        return Ok(());
    }
    let mut power = State::empty(aggregate);
    power.add(value);
    while n > 0 {
        if n & 1 == 1 {
            state.merge(&power)?;
        }
        n >>= 1;
        if n > 0 {
            power.merge(&power.clone())?;
        }
    }
    Ok(())
}

/// What rows have that a mask lets count.
fn counting<'v>(values: &'v [u32], mask: Option<&[bool]>) -> Cow<'v, [u32]> {
    let Some(mask) = mask else { return Cow::Borrowed(values) };
    values.iter().zip(mask).filter(|(_, counts)| **counts).map(|(value, _)| *value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, prop, proptest};
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However many digits differ from those of the cell before; where they fit into 64 bits, and where not.
        #[test]
        fn cells_have_the_names_of_their_digits(
            rows in prop::collection::btree_set((0..4u32, 0..4u32, 0..4u32), 0..40),
            base in prop::sample::select(vec![4, 1u64 << 32]),
        ) {
            fn string(text: &str) -> Vec<u8> {
                let mut bytes = Vec::new();
                name::put(&Value::str(text), &mut bytes);
                bytes
            }
            let texts = [["a", "bb", "ccc", "d"], ["e", "ff", "longer than 16 bytes", "z"]];
            let columns = texts.map(|texts| {
                let mut held = Held::default();
                // As they come, they aren't in their order.
                texts.iter().rev().for_each(|text| _ = held.numbers.known.intern(&string(text)));
                held.close(FieldType::String, true, true).unwrap();
                let items = texts.map(|text| Distinct::item(&Value::str(text)).and_then(NonZeroU64::new));
                assert_eq!(held.items, items);
                held
            });
            let need = Need { filter: None, key: vec![1, 0], value: None, width: 10 };
            let (mut digits, mut numbers) = (Digits::new(), vec![0u64; rows.len()]);
            digits.push(&mut numbers, base, rows.iter().map(|row| row.0));
            digits.push(&mut numbers, base, rows.iter().map(|row| row.1));
            digits.push(&mut numbers, base, rows.iter().map(|row| row.2));
            let (mut run, mut expected) = (Writer::new(&columns, &need, &digits, -20), RunWriter::new());
            for (number, row) in numbers.iter().zip(&rows) {
                run.push(*number, &State::Count(1)).unwrap();
                let (mut name, mut state) = (Vec::new(), Vec::new());
                name.extend_from_slice(&string(texts[1][row.0 as usize]));
                name.extend_from_slice(&string(texts[0][row.1 as usize]));
                name::put_bucket(Millis::from(row.2) * 10 - 20, &mut name);
                State::Count(1).encode(&mut state);
                expected.push(&name, &state).unwrap();
            }
            assert_eq!(run.cells.finish().unwrap().hash, expected.finish().unwrap().hash);
        }

        #[test]
        fn in_places_and_sorted_counts_are_the_same(
            numbers in prop::collection::vec(prop::sample::select(vec![0, 1, 2, 7, 90, 99u64]), 0..60),
        ) {
            let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
            numbers.iter().for_each(|number| *expected.entry(*number).or_default() += 1);
            let expected: Vec<(u64, u64)> = expected.into_iter().collect();
            for end in [100, u64::MAX] {
                let mut found = Vec::new();
                let each = |number: u64, count: u64| {
                    found.push((number, count));
                    Ok(())
                };
                counted(numbers.clone(), end, each).unwrap();
                assert_eq!(found, expected, "below {end}");
            }
        }
    }
}
