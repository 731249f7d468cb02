//! The merge of both views: one fold that takes cells from wherever they come and finishes them into rows.
//!
//! Since states merge associatively and commutatively, the rows depend only on which cells were added, not on their
//! order nor on which view they came from. Nothing is finished before everything is merged.

use crate::query::{OrderBy, Query};
use hashbrown::{DefaultHashBuilder, HashTable};
use shared_model::aggregate::{Aggregate, Finished, State, quantile, top_k};
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::time::Millis;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};

/// One cell of a view, its key decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The `by` values.
    pub by: Vec<Value>,
    /// The item of a top-k.
    pub item: Option<Value>,
    /// The start of its bucket.
    pub bucket: Millis,
    /// Its state.
    pub state: State,
}

/// Why a cell could not be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoldError {
    /// The answer would hold more cells than it may; the limit.
    TooManyCells(usize),
    /// The stored state is not one of the metric's.
    Undecodable(CodecError),
}

impl From<CodecError> for FoldError {
    fn from(error: CodecError) -> FoldError {
        FoldError::Undecodable(error)
    }
}

/// A row of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The start of its bucket.
    pub bucket: Millis,
    /// The values of the `group_by` columns.
    pub key: Vec<Value>,
    /// Of a top-k: the rank from 1, and the item.
    pub ranked: Option<(usize, Value)>,
    /// One value for each value column.
    pub values: Vec<Finished>,
}

/// All rows that an answer has, and the ones that its limit and offset leave.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// The rows returned.
    pub rows: Vec<Row>,
    /// How many there are without limit and offset.
    pub total: usize,
    /// For each value column the greatest relative error of its values: 0 where all are exact.
    pub error_bounds: Vec<f64>,
}

/// The states of the cells of one bucket and key.
struct Merged {
    bucket: Millis,
    key: Vec<Value>,
    states: States,
}

/// One for each value column; absent until a cell of it came.
type States = Vec<Option<Slot>>;

enum Slot {
    One(State),
    Items(BTreeMap<Value, State>),
}

/// The fold of one answer.
pub struct Fold<'q> {
    query: &'q Query,
    merged: Vec<Merged>,
    /// Where each bucket and key stands among them.
    places: HashTable<usize>,
    hash: DefaultHashBuilder,
    cells: usize,
    max_cells: usize,
}

impl<'q> Fold<'q> {
    /// An empty fold that may hold `max_cells` cells.
    pub fn new(query: &'q Query, max_cells: usize) -> Fold<'q> {
        let (merged, places, hash) = (Vec::new(), HashTable::new(), DefaultHashBuilder::default());
        let mut fold = Fold { query, merged, places, hash, cells: 0, max_cells };
        fold.restart();
        fold
    }

    /// Lets go of all that was added.
    pub fn restart(&mut self) {
        let query = self.query;
        self.merged.clear();
        self.places.clear();
        self.cells = 0;
        if query.group_by.is_empty()
            && let crate::query::buckets::Buckets::One(start) = query.buckets
        {
            // As in SQL, an aggregate over everything has a row even where there is nothing.
            self.place(start, &[], &[]);
        }
    }

    /// Takes in one cell of a value column's metric; `false` where the query's span or filters leave it out.
    ///
    /// # Errors
    /// [`FoldError`]; the fold is then short of this cell and must not be called complete.
    pub fn add(&mut self, column: usize, cell: &Cell) -> Result<bool, FoldError> {
        let query = self.query;
        let plan = &query.columns[column];
        if !query.span.contains(cell.bucket) || !query.admits(plan, &cell.by, cell.item.as_ref()) {
            return Ok(false);
        }
        let place = self.place(query.buckets.start_of(cell.bucket), &plan.group, &cell.by);
        let slot = &mut self.merged[place].states[column];
        let target = match (&cell.item, slot) {
            (None, slot) => match slot.get_or_insert_with(|| {
                self.cells += 1;
                Slot::One(State::empty(&plan.metric.aggregate))
            }) {
                Slot::One(state) => state,
                Slot::Items(_) => return Err(CodecError::Invalid("cell key").into()),
            },
            (Some(item), slot) => match slot.get_or_insert_with(|| Slot::Items(BTreeMap::new())) {
                Slot::Items(items) => items.entry(item.clone()).or_insert_with(|| {
                    self.cells += 1;
                    State::empty(&plan.metric.aggregate)
                }),
                Slot::One(_) => return Err(CodecError::Invalid("cell key").into()),
            },
        };
        target.merge(&cell.state)?;
        if self.cells > self.max_cells { Err(FoldError::TooManyCells(self.max_cells)) } else { Ok(true) }
    }

    /// Where the states of a bucket and of a key stand: the key is made of those of the values `by` that `group` names.
    fn place(&mut self, bucket: Millis, group: &[usize], by: &[Value]) -> usize {
        let Fold { query, merged, places, hash, .. } = self;
        let hash_of = |bucket: Millis, key: &mut dyn Iterator<Item = &Value>| {
            let mut hasher = hash.build_hasher();
            bucket.hash(&mut hasher);
            key.for_each(|value| value.hash(&mut hasher));
            hasher.finish()
        };
        let key = || group.iter().map(|place| &by[*place]);
        let same = |&place: &usize| {
            let there: &Merged = &merged[place];
            there.bucket == bucket && there.key.iter().eq(key())
        };
        let hashed = hash_of(bucket, &mut key());
        if let Some(&place) = places.find(hashed, same) {
            return place;
        }
        let place = merged.len();
        places.insert_unique(hashed, place, |&place| {
            hash_of(merged[place].bucket, &mut merged[place].key.iter())
        });
        let states = query.columns.iter().map(|_| None).collect();
        merged.push(Merged { bucket, key: key().cloned().collect(), states });
        place
    }

    /// The rows, in order, after limit and offset.
    pub fn finish(mut self) -> Rows {
        let query = self.query;
        self.merged.sort_unstable_by(|a, b| (a.bucket, &a.key).cmp(&(b.bucket, &b.key)));
        let bound = |place| self.merged.iter().map(|of| error_bound(&of.states, place)).fold(0.0, f64::max);
        let error_bounds = (0..query.columns.len()).map(bound).collect();
        let mut rows: Vec<Row> = if query.ranked() {
            self.merged.into_iter().flat_map(|merged| ranked(query, merged)).collect()
        } else {
            let row = |Merged { bucket, key, states }| {
                let values = states.into_iter().enumerate().map(|(i, slot)| finished(query, i, slot));
                Row { bucket, key, ranked: None, values: values.collect() }
            };
            self.merged.into_iter().map(row).collect()
        };
        if !query.order.is_empty() {
            // Stable: ties keep the order by bucket, key and rank.
            rows.sort_by(|a, b| compare(query, a, b));
        }
        let total = rows.len();
        let rows = rows.into_iter().skip(query.offset).take(query.limit).collect();
        Rows { rows, total, error_bounds }
    }
}

fn error_bound(states: &States, place: usize) -> f64 {
    match &states[place] {
        Some(Slot::One(state)) => error_bound_of(state),
        _ => 0.0,
    }
}

/// The relative error within which a state's value lies; 0 where it is exact.
pub fn error_bound_of(state: &State) -> f64 {
    match state {
        State::Distinct(distinct) => distinct.error_bound(),
        State::Quantile(_) => quantile::RELATIVE_ERROR,
        _ => 0.0,
    }
}

fn finished(query: &Query, column: usize, slot: Option<Slot>) -> Finished {
    let aggregate = &query.columns[column].metric.aggregate;
    match slot {
        Some(Slot::One(state)) => state.finish(aggregate),
        // In a formula a missing sum is 0, like a missing count; of nothing there is no mean, least or quantile.
        _ if query.formula.is_some() && matches!(aggregate, Aggregate::Sum(_)) => Finished::Int(0),
        _ => State::empty(aggregate).finish(aggregate),
    }
}

/// The k items counted most often; ties go to the lesser item.
fn ranked(query: &Query, Merged { bucket, key, mut states }: Merged) -> Vec<Row> {
    let items = match states.swap_remove(0) {
        Some(Slot::Items(items)) => items,
        _ => return Vec::new(),
    };
    let row = |(i, (item, count)): (usize, (Value, u64))| Row {
        bucket,
        key: key.clone(),
        ranked: Some((i + 1, item)),
        values: vec![State::Count(count).finish(&Aggregate::Count)],
    };
    let counted = |(item, state)| match state {
        State::Count(count) => Some((item, count)),
        _ => None,
    };
    let best = top_k::rank(items.into_iter().filter_map(counted), query.k);
    best.into_iter().enumerate().map(row).collect()
}

fn compare(query: &Query, a: &Row, b: &Row) -> Ordering {
    let by = |order: &crate::query::Order| {
        let ordering = match order.by {
            OrderBy::Bucket => a.bucket.cmp(&b.bucket),
            OrderBy::Key(place) => a.key[place].cmp(&b.key[place]),
            OrderBy::Value(place) => compare_values(&a.values[place], &b.values[place]),
            OrderBy::Rank => a.ranked.as_ref().map(|r| r.0).cmp(&b.ranked.as_ref().map(|r| r.0)),
            OrderBy::Item => a.ranked.as_ref().map(|r| &r.1).cmp(&b.ranked.as_ref().map(|r| &r.1)),
        };
        if order.desc { ordering.reverse() } else { ordering }
    };
    query.order.iter().map(by).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

/// NULL first, then numbers by size, then texts; lists as arrays are compared.
fn compare_values(a: &Finished, b: &Finished) -> Ordering {
    let rank = |value: &Finished| match value {
        Finished::Null(()) => 0,
        Finished::Int(_) | Finished::Float(_) => 1,
        Finished::Text(_) => 2,
        Finished::List(_) => 3,
    };
    match (a, b) {
        (Finished::Int(a), Finished::Int(b)) => a.cmp(b),
        (Finished::Float(a), Finished::Float(b)) => a.total_cmp(b),
        (Finished::Int(a), Finished::Float(b)) => (*a as f64).total_cmp(b),
        (Finished::Float(a), Finished::Int(b)) => a.total_cmp(&(*b as f64)),
        (Finished::Text(a), Finished::Text(b)) => a.cmp(b),
        (Finished::List(a), Finished::List(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
        _ => rank(a).cmp(&rank(b)),
    }
}
