//! Folds the rows of a stream's day into cells, for all its metrics in one pass.
//!
//! A row becomes, for each metric that it counts in, an *entry*: the number of its key, the number of its bucket and,
//! where the metric takes a value, the number of that. When so many are held that memory is used up, or no more come,
//! they are put in the order of names and each metric's cells are handed on as a sorted run. So the memory is that of
//! entries and of distinct keys and values, and a row is read once, however many metrics there are.

use crate::compute::name;
use crate::compute::repeats::is_gone;
use crate::compute::run::{Run, RunWriter};
use crate::plan::{EVENT_TIME, Need, Needs};
use anyhow::{Context, Result, ensure};
use polars::prelude::{Column, DataFrame, DataType};
use shared_model::aggregate::distinct::Distinct;
use shared_model::aggregate::{Aggregate, State};
use shared_model::event::{FieldType, Value};
use shared_model::interner::{Interner, order, ranks};
use shared_model::metric::Metric;
use shared_model::time::{EventDay, Millis};
use std::sync::Arc;

/// Rows of one stream and day on their way to cells.
pub(super) struct Fold<'a> {
    needs: &'a Needs,
    metrics: &'a [Arc<Metric>],
    /// The day's start and end.
    day: (Millis, Millis),
    memory: u64,
    /// Rows that were taken.
    rows: u64,
    /// By column: the strings that it had, as [`name::put`] writes them; unused for a column that only filters.
    strings: Vec<Interner>,
    /// Keys of several columns, each as the numbers of its columns' strings.
    keys: Vec<Key>,
    /// By metric.
    entries: Vec<Entries>,
}

/// A key of several columns, which metrics may share.
struct Key {
    columns: Vec<usize>,
    interner: Interner,
}

/// The entries of a metric. The upper half of the first number is the key's, the lower the bucket's, from the day's
/// first; the second number is the value's.
enum Entries {
    /// Of an aggregate that counts rows.
    Rows(Vec<u64>),
    /// Of any other.
    Values(Vec<(u64, u32)>),
}

impl<'a> Fold<'a> {
    /// Of no rows yet. `metrics` are those of `needs`. Beyond `memory` bytes there is no room for more rows.
    pub(super) fn new(day: EventDay, needs: &'a Needs, metrics: &'a [Arc<Metric>], memory: u64) -> Fold<'a> {
        let strings = needs.columns.iter().map(|_| Interner::default()).collect();
        let mut keys: Vec<Key> = Vec::new();
        for need in needs.metrics.iter().filter(|need| need.key.len() > 1) {
            if !keys.iter().any(|key| key.columns == need.key) {
                keys.push(Key { columns: need.key.clone(), interner: Interner::default() });
            }
        }
        let entries = needs.metrics.iter().map(|need| match need.value {
            None => Entries::Rows(Vec::new()),
            Some(_) => Entries::Values(Vec::new()),
        });
        let (start, end) = (day.interval().start, day.interval().end);
        Fold { needs, metrics, day: (start, end), memory, rows: 0, strings, keys, entries: entries.collect() }
    }

    /// Takes the rows of a frame as [`Needs::select`] gives it, but those that are gone.
    ///
    /// # Errors
    /// Where a row is of another day.
    pub(super) fn take(&mut self, frame: &DataFrame, gone: &[u64]) -> Result<()> {
        let height = frame.height();
        self.rows += height as u64;
        let filters: Vec<usize> = self.needs.metrics.iter().filter_map(|need| need.filter).collect();
        let mut numbers: Vec<Vec<u32>> = Vec::new();
        let mut masks: Vec<Vec<bool>> = Vec::new();
        for (at, strings) in self.strings.iter_mut().enumerate() {
            let column = frame.column(&Needs::name(at))?;
            let interned =
                self.needs.metrics.iter().any(|need| need.key.contains(&at) || need.value == Some(at));
            let ty = self.needs.columns[at].ty;
            numbers.push(if interned { intern(column, ty, strings)? } else { Vec::new() });
            masks.push(if filters.contains(&at) { mask(column)? } else { Vec::new() });
        }
        let keys: Vec<Vec<u32>> = self.keys.iter_mut().map(|key| key.take(&numbers, height)).collect();
        let mut buckets: Vec<(Millis, Vec<u32>)> = Vec::new();
        for need in &self.needs.metrics {
            if !buckets.iter().any(|(width, _)| *width == need.width) {
                buckets.push((need.width, self.buckets(frame.column(EVENT_TIME)?, need.width)?));
            }
        }
        for (need, entries) in self.needs.metrics.iter().zip(&mut self.entries) {
            let (_, buckets) =
                buckets.iter().find(|(width, _)| *width == need.width).context("a width of the metrics")?;
            let key: &[u32] = match need.key[..] {
                [] => &[],
                [column] => &numbers[column],
                _ => {
                    let at = self.keys.iter().position(|key| key.columns == need.key);
                    &keys[at.context("a key of the metrics")?]
                }
            };
            let mask = need.filter.map(|filter| &masks[filter]);
            let counts = |row: usize| !is_gone(gone, row) && mask.is_none_or(|mask| mask[row]);
            let rows = (0..height).filter(|row| counts(*row));
            let name = |row: usize| {
                u64::from(key.get(row).copied().unwrap_or_default()) << 32 | u64::from(buckets[row])
            };
            // Room for these and no more: doubling would hold twice of it.
            match (entries, need.value) {
                (Entries::Values(entries), Some(value)) => {
                    entries.reserve_exact(height);
                    entries.extend(rows.map(|row| (name(row), numbers[value][row])));
                }
                (Entries::Rows(entries), _) => {
                    entries.reserve_exact(height);
                    entries.extend(rows.map(name));
                }
                (Entries::Values(_), None) => {}
            }
        }
        Ok(())
    }

    /// The number of each row's bucket, from the day's first.
    fn buckets(&self, times: &Column, width: Millis) -> Result<Vec<u32>> {
        let (start, end) = self.day;
        let first = start.div_euclid(width);
        let times = times.as_materialized_series().cast(&DataType::Int64)?;
        let times = times.i64()?.iter().map(|time| {
            let time = time.context("a row of the archive has no event time")?;
            ensure!(
                (start..end).contains(&time),
                "a row of the archive has event time {time}, which is none of its day"
            );
            Ok((time.div_euclid(width) - first) as u32)
        });
        times.collect()
    }

    /// Whether so many more rows can come before [`Fold::cells`] is called. A fold of no rows takes any.
    pub(super) fn has_room(&self, rows: u64) -> bool {
        let entry = |need: &Need| size_of::<u64>() * if need.value.is_some() { 2 } else { 1 };
        let entries: usize = self.needs.metrics.iter().map(entry).sum();
        let keys = self.keys.iter().map(|key| &key.interner);
        let strings: usize = self.strings.iter().chain(keys).map(Interner::size).sum();
        // As many more strings, row by row, as there were so far.
        let all = u128::from(self.rows + rows);
        let strings = u128::from(strings as u64) * all / u128::from(self.rows.max(1));
        let entries = u128::from(entries as u64) * all;
        self.rows == 0 || strings + entries <= u128::from(self.memory)
    }

    /// The cells of the rows so far, for each metric as a run; then there are none.
    ///
    /// # Errors
    /// Where the disk is full, or a count or sum would pass its bound.
    pub(super) fn cells(&mut self) -> Result<Vec<Run>> {
        let used = |at: usize| self.needs.metrics.iter().any(|need| need.key.contains(&at));
        let strings = self.strings.iter().enumerate();
        let singles: Vec<Vec<u32>> = strings
            .map(|(at, strings)| if used(at) { strings.order(name::prefix) } else { Vec::new() })
            .collect();
        let single_ranks: Vec<Vec<u32>> = singles.iter().map(|order| ranks(order)).collect();
        let several: Vec<Vec<u32>> = self.keys.iter().map(|key| key.order(&single_ranks)).collect();
        let several_ranks: Vec<Vec<u32>> = several.iter().map(|order| ranks(order)).collect();
        let mut runs = Vec::new();
        let metrics = self.metrics.iter().zip(&self.needs.metrics).zip(&mut self.entries);
        for ((metric, need), entries) in metrics {
            let key = self.keys.iter().position(|key| key.columns == need.key);
            let (order, ranks): (&[u32], &[u32]) = match (need.key.first(), key) {
                (_, Some(at)) => (&several[at], &several_ranks[at]),
                (Some(column), None) => (&singles[*column], &single_ranks[*column]),
                (None, None) => (&[], &[]),
            };
            let names = Names {
                need,
                day: self.day.0,
                strings: &self.strings,
                key: key.map(|at| &self.keys[at]),
                order,
                ranks,
            };
            let values = need.value.map(|value| (&self.strings[value], self.needs.columns[value].ty));
            let run = match entries {
                Entries::Rows(entries) => counted(entries, &names),
                Entries::Values(entries) => folded(entries, &names, &metric.aggregate, values),
            };
            runs.push(run.with_context(|| format!("metric {}", metric.name))?);
        }
        // What they held is given back: the next rows may need it elsewhere.
        self.strings.fill_with(Interner::default);
        self.keys.iter_mut().for_each(|key| key.interner = Interner::default());
        self.rows = 0;
        Ok(runs)
    }
}

impl Key {
    /// The numbers of rows' keys.
    fn take(&mut self, numbers: &[Vec<u32>], height: usize) -> Vec<u32> {
        let mut key = Vec::new();
        let numbers = (0..height).map(|row| {
            key.clear();
            self.columns.iter().for_each(|column| key.extend(numbers[*column][row].to_le_bytes()));
            self.interner.intern(&key)
        });
        numbers.collect()
    }

    /// The numbers of the columns' strings.
    fn parts(&self, key: u32) -> impl Iterator<Item = usize> {
        let (parts, _) = self.interner.get(key).as_chunks();
        parts.iter().map(|part| u32::from_le_bytes(*part) as usize)
    }

    /// All keys in the order of their names, by the ranks of the columns' strings.
    fn order(&self, ranks: &[Vec<u32>]) -> Vec<u32> {
        let ranks = |key| self.columns.iter().zip(self.parts(key)).map(|(column, part)| ranks[*column][part]);
        let prefix = |key| ranks(key).take(2).fold(0, |prefix, rank| prefix << 32 | u64::from(rank));
        order(self.interner.len(), prefix, |a, b| ranks(a).cmp(ranks(b)))
    }
}

/// The names of a metric's cells.
struct Names<'a> {
    need: &'a Need,
    day: Millis,
    strings: &'a [Interner],
    /// Where the key has several columns.
    key: Option<&'a Key>,
    /// The keys in the order of names; empty where there is but one key.
    order: &'a [u32],
    /// The rank of each key in this order.
    ranks: &'a [u32],
}

impl Names<'_> {
    /// Writes the key of a rank.
    fn key(&self, rank: u32, out: &mut Vec<u8>) {
        let Some(number) = self.order.get(rank as usize) else { return };
        match self.key {
            Some(key) => {
                for (column, part) in self.need.key.iter().zip(key.parts(*number)) {
                    out.extend_from_slice(self.strings[*column].get(part as u32));
                }
            }
            None => {
                for column in &self.need.key {
                    out.extend_from_slice(self.strings[*column].get(*number));
                }
            }
        }
    }

    fn bucket(&self, number: u32) -> Millis {
        (self.day.div_euclid(self.need.width) + Millis::from(number)) * self.need.width
    }
}

/// Writes cells whose names come in the order of keys' ranks and buckets.
struct Writer<'a> {
    names: &'a Names<'a>,
    run: RunWriter,
    /// The rank of the key that `name` begins with, and its length.
    key: Option<(u32, usize)>,
    name: Vec<u8>,
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(names: &'a Names<'a>) -> Writer<'a> {
        Writer { names, run: RunWriter::new(), key: None, name: Vec::new(), bytes: Vec::new() }
    }

    /// Of a rank (the upper half) and bucket.
    fn push(&mut self, name: u64, state: &State) -> Result<()> {
        let rank = (name >> 32) as u32;
        let length = match self.key {
            Some((known, length)) if known == rank => length,
            _ => {
                self.name.clear();
                self.names.key(rank, &mut self.name);
                self.name.len()
            }
        };
        self.key = Some((rank, length));
        self.name.truncate(length);
        name::put_bucket(self.names.bucket(name as u32), &mut self.name);
        self.bytes.clear();
        state.encode(&mut self.bytes);
        self.run.push(&self.name, &self.bytes)
    }
}

fn ranked(name: u64, ranks: &[u32]) -> u64 {
    match ranks.get((name >> 32) as usize) {
        Some(rank) => u64::from(*rank) << 32 | name & u64::from(u32::MAX),
        None => name,
    }
}

/// Cells that count their entries.
fn counted(entries: &mut Vec<u64>, names: &Names<'_>) -> Result<Run> {
    let mut entries = std::mem::take(entries);
    entries.iter_mut().for_each(|name| *name = ranked(*name, names.ranks));
    entries.sort_unstable();
    let mut cells = Writer::new(names);
    for same in entries.chunk_by(|a, b| a == b) {
        cells.push(same[0], &State::Count(same.len() as u64))?;
    }
    cells.run.finish()
}

/// Cells of values.
fn folded(
    entries: &mut Vec<(u64, u32)>,
    names: &Names<'_>,
    aggregate: &Aggregate,
    values: Option<(&Interner, FieldType)>,
) -> Result<Run> {
    let mut entries = std::mem::take(entries);
    entries.iter_mut().for_each(|(name, _)| *name = ranked(*name, names.ranks));
    entries.sort_unstable();
    let mut cells = Writer::new(names);
    let value = |number: u32| match values {
        Some((strings, ty)) => name::take(ty, &mut strings.get(number)),
        None => Ok(Value::Null),
    };
    if matches!(aggregate, Aggregate::Distinct) {
        let count = values.map_or(0, |(strings, _)| strings.len() as u32);
        let items =
            (0..count).map(|number| Ok(Distinct::item(&value(number)?))).collect::<Result<Vec<_>>>()?;
        for cell in entries.chunk_by(|a, b| a.0 == b.0) {
            let mut distinct = Distinct::default();
            let values = cell.chunk_by(|a, b| a.1 == b.1);
            values.filter_map(|same| items[same[0].1 as usize]).for_each(|item| distinct.add_item(item));
            cells.push(cell[0].0, &State::Distinct(distinct))?;
        }
        return cells.run.finish();
    }
    for cell in entries.chunk_by(|a, b| a.0 == b.0) {
        let mut state = State::empty(aggregate);
        for same in cell.chunk_by(|a, b| a.1 == b.1) {
            add_times(aggregate, &mut state, &value(same[0].1)?, same.len())?;
        }
        cells.push(cell[0].0, &state)?;
    }
    cells.run.finish()
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

/// The rows where a column is true.
fn mask(column: &Column) -> Result<Vec<bool>> {
    let truths = column.as_materialized_series().bool()?;
    Ok(truths.iter().map(|truth| truth == Some(true)).collect())
}

/// The numbers of a column's strings.
fn intern(column: &Column, ty: FieldType, strings: &mut Interner) -> Result<Vec<u32>> {
    fn numbers<T>(
        values: impl Iterator<Item = Option<T>>,
        strings: &mut Interner,
        put: impl Fn(T, &mut Vec<u8>),
    ) -> Vec<u32> {
        let mut string = Vec::new();
        let numbers = values.map(|value| {
            string.clear();
            match value {
                Some(value) => put(value, &mut string),
                None => name::put(&Value::Null, &mut string),
            }
            strings.intern(&string)
        });
        numbers.collect()
    }
    let series = column.as_materialized_series();
    Ok(match ty {
        FieldType::String => numbers(series.str()?.iter(), strings, name::put_text),
        FieldType::Int | FieldType::Decimal(_) => numbers(series.i64()?.iter(), strings, name::put_int),
        FieldType::Float => numbers(series.f64()?.iter(), strings, name::put_float),
        FieldType::Bool => {
            numbers(series.bool()?.iter(), strings, |truth, out| name::put(&Value::Bool(truth), out))
        }
    })
}
