//! From the frames that plans give to cells.

use crate::compute::sorted::Sorter;
use crate::plan;
use anyhow::{Context, Result};
use polars::prelude::{DataFrame, DataType};
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::put_zigzag;
use shared_model::event::{FieldType, Value};
use shared_model::metric::{Binding, Metric};
use shared_model::time::Millis;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::vec::IntoIter;

/// One cell of a view.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The values of the key's columns, then the item's of a top-k.
    pub key: Vec<Value>,
    /// The start of the bucket.
    pub bucket: Millis,
    /// What is known of it.
    pub state: State,
}

impl Cell {
    /// The canonical order: by key, then bucket.
    pub(super) fn name_cmp(&self, other: &Cell) -> Ordering {
        self.key.cmp(&other.key).then(self.bucket.cmp(&other.bucket))
    }

    /// Whether it is of the same key and bucket.
    pub(super) fn same_name(&self, other: &Cell) -> bool {
        self.bucket == other.bucket && self.key == other.key
    }
}

/// Brings cells into the canonical order, by key, then bucket, and merges those of one key and bucket.
///
/// # Errors
/// Where a count or sum would pass its bound, or states are of different kinds.
pub(super) fn canonical(mut cells: Vec<Cell>) -> Result<Vec<Cell>> {
    cells.sort_unstable_by(Cell::name_cmp);
    let mut failed = None;
    cells.dedup_by(|next, kept| {
        let same = next.same_name(kept);
        if same && let Err(error) = kept.state.merge(&next.state) {
            failed = Some(error);
        }
        same
    });
    match failed {
        Some(error) => Err(error).context("cells of one key and bucket can't be merged"),
        None => Ok(cells),
    }
}

/// Appends the bytes that name a cell: its key's values, then its bucket.
pub(super) fn encode_name(key: &[Value], bucket: Millis, out: &mut Vec<u8>) {
    key.iter().for_each(|value| value.encode(out));
    put_zigzag(out, i128::from(bucket));
}

/// So many rows of a frame become values at once.
const CHUNK: usize = 1 << 16;

fn chunks(frame: &DataFrame) -> impl Iterator<Item = DataFrame> {
    (0..frame.height()).step_by(CHUNK).map(|at| frame.slice(at as i64, CHUNK))
}

/// Takes what a plan of [`plan::cells`] gave.
pub(super) fn take(metric: &Metric, binding: &Binding, frame: &DataFrame, cells: &mut Sorter) -> Result<()> {
    match metric.aggregate {
        Aggregate::Distinct | Aggregate::Quantile { .. } => fold(metric, binding, frame, cells),
        _ => chunks(frame).try_for_each(|rows| each(metric, binding, &rows, cells)),
    }
}

/// A row is a cell.
fn each(metric: &Metric, binding: &Binding, frame: &DataFrame, cells: &mut Sorter) -> Result<()> {
    let mut names = Names::of(metric, frame)?;
    for state in states(metric, binding, frame)? {
        let (key, bucket) = names.next()?;
        cells.push(Cell { key, bucket, state })?;
    }
    Ok(())
}

/// A row is a value of a cell, and how often it is there.
fn fold(metric: &Metric, binding: &Binding, frame: &DataFrame, cells: &mut Sorter) -> Result<()> {
    let mut folded: Vec<Cell> = Vec::new();
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut name = Vec::new();
    for frame in chunks(frame) {
        let mut names = Names::of(metric, &frame)?;
        let values = plan::expression::values(frame.column("value")?, value_type(binding))?;
        for (value, n) in values.into_iter().zip(counts(&frame)?) {
            let (key, bucket) = names.next()?;
            name.clear();
            encode_name(&key, bucket, &mut name);
            let at = match places.get(&name) {
                Some(at) => *at,
                None => {
                    places.insert(name.clone(), folded.len());
                    folded.push(Cell { key, bucket, state: State::empty(&metric.aggregate) });
                    folded.len() - 1
                }
            };
            add_times(&metric.aggregate, &mut folded[at].state, &value, n)?;
        }
    }
    folded.into_iter().try_for_each(|cell| cells.push(cell))
}

/// The keys and buckets of a frame's rows, from the first.
struct Names {
    keys: Vec<IntoIter<Value>>,
    buckets: IntoIter<Option<Millis>>,
}

impl Names {
    fn of(metric: &Metric, frame: &DataFrame) -> Result<Names> {
        let columns = metric.by.iter().chain(&metric.item).zip(plan::key_names(metric));
        let keys = columns
            .map(|(column, name)| Ok(plan::expression::values(frame.column(&name)?, column.ty)?.into_iter()));
        let buckets: Vec<Option<Millis>> = frame.column("bucket")?.i64()?.iter().collect();
        Ok(Names { keys: keys.collect::<Result<_>>()?, buckets: buckets.into_iter() })
    }

    fn next(&mut self) -> Result<(Vec<Value>, Millis)> {
        let bucket = self.buckets.next().context("a plan gave columns of different lengths")?;
        let key = self.keys.iter_mut().map(|column| column.next().unwrap_or(Value::Null)).collect();
        Ok((key, bucket.context("a row of the archive has no event time")?))
    }
}

fn value_type(binding: &Binding) -> FieldType {
    binding.value.as_ref().map_or(FieldType::Int, |value| value.ty)
}

fn counts(frame: &DataFrame) -> Result<Vec<u64>> {
    let counts = frame.column("n")?.i64()?;
    Ok(counts.iter().map(|n| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)).collect())
}

fn states(metric: &Metric, binding: &Binding, frame: &DataFrame) -> Result<Vec<State>> {
    let values = || plan::expression::values(frame.column("value")?, value_type(binding));
    let sums = || -> Result<Vec<i128>> {
        let sums = frame.column("sum")?.cast(&DataType::Int128)?;
        Ok(sums.as_materialized_series().i128()?.iter().map(|sum| sum.unwrap_or(0)).collect())
    };
    Ok(match &metric.aggregate {
        Aggregate::Sum(_) => {
            let states = sums()?.into_iter().zip(counts(frame)?);
            states.map(|(sum, n)| State::Sum((n > 0).then_some(sum))).collect()
        }
        Aggregate::Mean(_) => {
            let states = sums()?.into_iter().zip(counts(frame)?);
            states.map(|(sum, count)| State::Mean { sum, count }).collect()
        }
        Aggregate::Min(_) => values()?.into_iter().map(State::Min).collect(),
        Aggregate::Max(_) => values()?.into_iter().map(State::Max).collect(),
        // A distinct count and a quantile are folded and don't come here.
        Aggregate::Count | Aggregate::TopK { .. } | Aggregate::Distinct | Aggregate::Quantile { .. } => {
            counts(frame)?.into_iter().map(State::Count).collect()
        }
    })
}

/// Adds a value `n` times, by doubling where that pays.
fn add_times(aggregate: &Aggregate, state: &mut State, value: &Value, mut n: u64) -> Result<()> {
    if n == 1 || matches!(aggregate, Aggregate::Distinct) {
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
