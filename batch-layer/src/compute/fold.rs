//! Folds the rows of a stream's day into cells, for all its metrics in one pass.
//!
//! Of a row are held its time and, for each column, the number of its string there, which is held once. When memory is
//! used up, or no more rows come, strings are numbered in their order; then, metric by metric, the rows become the
//! numbers of the cells that they count in ([`Digits`]), and the cells are handed on as a sorted run. Where few cells
//! are possible against the rows, each has its place, and rows are counted there; else the numbers are sorted. So the
//! memory is that of rows, however many metrics there are, and of distinct strings; and a row is read once.

use crate::compute::digits::Digits;
use crate::compute::name;
use crate::compute::repeats::is_gone;
use crate::compute::run::{Run, RunWriter, SHORT};
use crate::plan::{EVENT_TIME, Need, Needs};
use anyhow::{Context, Result, ensure};
use polars::prelude::{Column, DataFrame, DataType};
use shared_model::aggregate::distinct::Distinct;
use shared_model::aggregate::{Aggregate, State};
use shared_model::event::{FieldType, Value};
use shared_model::interner::{Interner, Strings};
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

/// So many strings are looked for at once.
const STRINGS: usize = if cfg!(test) { 3 } else { 64 };
/// Instead of a string's number, while it isn't known.
const UNKNOWN: u32 = u32::MAX;

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
    /// The strings that it had, as [`name::put`] writes them, while rows come; none where it only filters.
    known: Interner,
    /// As [`Small`] says.
    small: Vec<u32>,
    /// The strings by number, once no more rows come.
    strings: Strings,
    /// The number of each row's string: as they came, and once no more come the rank in a key's column.
    numbers: Vec<u32>,
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
                intern(column, self.needs.columns[at].ty, gone, held)?;
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
            let numbers = held.numbers.len() + held.small.capacity();
            let rows = numbers * size_of::<u32>() + held.truths.len();
            rows + held.known.size() + held.known.len() * item
        };
        let held: usize = self.columns.iter().enumerate().map(held).sum();
        // As many more strings, row by row, as there were so far.
        let of_all = |bytes: usize| u128::from(bytes as u64) * all / u128::from(taken.max(1));
        let times = u128::from(size_of::<u32>() as u64) * all;
        // Columns are put in order one after the other, before there are cells.
        let order = self.columns.iter().map(|held| held.known.size_of_order()).max().unwrap_or(0);
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
        self.columns.iter_mut().for_each(|held| held.small = Vec::new());
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
            digits.push(&mut cells, held.strings.len() as u64, counting(&held.numbers, mask).iter().copied());
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
        let values = counting(&held.numbers, mask);
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
        let known = std::mem::take(&mut self.known);
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
        self.numbers.iter_mut().for_each(|number| *number = ranks[*number as usize]);
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

/// What rows have that aren't gone.
fn left<T>(values: impl Iterator<Item = T>, gone: &[u64]) -> impl Iterator<Item = T> {
    values.enumerate().filter(move |(row, _)| !is_gone(gone, *row)).map(|(_, value)| value)
}

/// What rows have that a mask lets count.
fn counting<'v>(values: &'v [u32], mask: Option<&[bool]>) -> Cow<'v, [u32]> {
    let Some(mask) = mask else { return Cow::Borrowed(values) };
    values.iter().zip(mask).filter(|(_, counts)| **counts).map(|(value, _)| *value).collect()
}

/// Takes the strings of a column's rows that aren't gone.
fn intern(column: &Column, ty: FieldType, gone: &[u64], held: &mut Held) -> Result<()> {
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
    let Held { known, small, numbers, .. } = held;
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
    use std::collections::{BTreeMap, BTreeSet};

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
            let (mut held, mut expected) = (Held::default(), Vec::new());
            for chunk in ints.chunks(30) {
                let column = Column::new("ints".into(), chunk.to_vec());
                intern(&column, FieldType::Int, &[gone], &mut held).unwrap();
                expected.extend(left(chunk.iter().map(|int| int.map_or(Value::Null, Value::Int)), &[gone]));
            }
            assert!(held.small.len() <= ints.len());
            assert_eq!(held.known.len(), expected.iter().collect::<BTreeSet<_>>().len());
            let found = held.numbers.iter().map(|number| {
                name::take(FieldType::Int, &mut held.known.get(*number)).unwrap()
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
            let (mut held, mut expected) = (Held::default(), Vec::new());
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
                intern(&both, FieldType::String, &[gone], &mut held).unwrap();
                let values = both.as_materialized_series().str().unwrap().iter();
                expected.extend(left(values.map(|text| text.map_or(Value::Null, Value::str)), &[gone]));
            }
            assert_eq!(held.known.len(), expected.iter().collect::<BTreeSet<_>>().len());
            let found = held.numbers.iter().map(|number| {
                name::take(FieldType::String, &mut held.known.get(*number)).unwrap()
            });
            assert_eq!(found.collect::<Vec<Value>>(), expected);
        }

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
                texts.iter().rev().for_each(|text| _ = held.known.intern(&string(text)));
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
