//! From the frames that plans give to canonical cells: sorted by key, then bucket, each once.

use crate::plan;
use anyhow::{Context, Result};
use polars::prelude::{DataFrame, DataType};
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::put_zigzag;
use shared_model::event::{FieldType, Value};
use shared_model::metric::{Binding, Metric};
use shared_model::time::Millis;
use std::collections::HashMap;
use std::vec::IntoIter;
use xxhash_rust::xxh3::Xxh3;

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

/// Brings cells into the canonical order, by key, then bucket, and merges those of one key and bucket.
///
/// # Errors
/// Where a count or sum would pass its bound, or states are of different kinds.
pub fn canonical(mut cells: Vec<Cell>) -> Result<Vec<Cell>> {
    cells.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(a.bucket.cmp(&b.bucket)));
    let mut failed = None;
    cells.dedup_by(|next, kept| {
        let same = next.bucket == kept.bucket && next.key == kept.key;
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

/// The hash of canonical cells (32 hex digits): equal exactly where the cells are.
pub fn hash(cells: &[Cell]) -> String {
    let mut hasher = Xxh3::new();
    let mut bytes = Vec::new();
    for cell in cells {
        bytes.clear();
        encode_name(&cell.key, cell.bucket, &mut bytes);
        cell.state.encode(&mut bytes);
        hasher.update(&bytes);
    }
    format!("{:032x}", hasher.digest128())
}

/// Appends the bytes that name a cell: its key's values, then its bucket.
fn encode_name(key: &[Value], bucket: Millis, out: &mut Vec<u8>) {
    key.iter().for_each(|value| value.encode(out));
    put_zigzag(out, i128::from(bucket));
}

/// Takes the frames of a metric's plans, one after the other.
pub(super) struct Collector<'a> {
    metric: &'a Metric,
    cells: Vec<Cell>,
    /// Of the aggregates whose plans give a row per value: where each cell is.
    places: HashMap<Vec<u8>, usize>,
    /// So many of `cells` are known to differ.
    settled: usize,
}

impl<'a> Collector<'a> {
    pub(super) fn new(metric: &'a Metric) -> Collector<'a> {
        Collector { metric, cells: Vec::new(), places: HashMap::new(), settled: 0 }
    }

    /// Takes what a plan of [`plan::cells`] gave.
    pub(super) fn take(&mut self, binding: &Binding, frame: &DataFrame) -> Result<()> {
        match self.metric.aggregate {
            Aggregate::Distinct | Aggregate::Quantile { .. } => self.fold(binding, frame),
            _ => self.append(binding, frame),
        }
    }

    /// The cells of all that was taken.
    pub(super) fn finish(self) -> Result<Vec<Cell>> {
        canonical(self.cells)
    }

    /// A row is a cell; cells that lie in several frames are merged now and then, so that few stand twice.
    fn append(&mut self, binding: &Binding, frame: &DataFrame) -> Result<()> {
        let mut names = Names::of(self.metric, frame)?;
        let states = states(self.metric, binding, frame)?;
        self.cells.reserve(states.len());
        for state in states {
            let (key, bucket) = names.next()?;
            self.cells.push(Cell { key, bucket, state });
        }
        if self.settled > 0 && self.cells.len() > 2 * self.settled {
            self.cells = canonical(std::mem::take(&mut self.cells))?;
        }
        self.settled = self.settled.max(self.cells.len());
        Ok(())
    }

    /// A row is a value of a cell, and how often it is there.
    fn fold(&mut self, binding: &Binding, frame: &DataFrame) -> Result<()> {
        let mut names = Names::of(self.metric, frame)?;
        let ty = value_type(binding);
        let values = plan::expression::values(frame.column("value")?, ty)?;
        let mut name = Vec::new();
        for (value, n) in values.into_iter().zip(counts(frame)?) {
            let (key, bucket) = names.next()?;
            name.clear();
            encode_name(&key, bucket, &mut name);
            let at = match self.places.get(&name) {
                Some(at) => *at,
                None => {
                    self.places.insert(name.clone(), self.cells.len());
                    self.cells.push(Cell { key, bucket, state: State::empty(&self.metric.aggregate) });
                    self.cells.len() - 1
                }
            };
            add_times(&self.metric.aggregate, &mut self.cells[at].state, &value, n)?;
        }
        Ok(())
    }
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
