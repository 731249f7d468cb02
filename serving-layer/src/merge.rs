//! The merge of both views: one fold that takes cells from wherever they come.
//!
//! Since states merge associatively and commutatively, what is merged depends only on which cells were added, not on
//! their order nor on which view they came from. Nothing is finished before everything is merged.

use crate::query::Query;
use hashbrown::{DefaultHashBuilder, HashTable};
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::time::Millis;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{self, AtomicUsize};

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

/// How many cells the folds of a request may hold, all together.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    taken: AtomicUsize,
}

impl Budget {
    /// So many.
    pub fn new(limit: usize) -> Budget {
        Budget { limit, taken: AtomicUsize::new(0) }
    }

    /// Takes so many of them.
    ///
    /// # Errors
    /// [`FoldError::TooManyCells`] where there are not as many left.
    pub fn take(&self, cells: usize) -> Result<(), FoldError> {
        let taken = self.taken.fetch_add(cells, atomic::Ordering::Relaxed).saturating_add(cells);
        if taken > self.limit { Err(FoldError::TooManyCells(self.limit)) } else { Ok(()) }
    }
}

/// The states of the cells of one bucket and key.
pub(crate) struct Merged {
    pub(crate) bucket: Millis,
    pub(crate) key: Vec<Value>,
    /// One for each value column; absent until a cell of it came.
    pub(crate) states: Vec<Option<Slot>>,
}

/// What was merged of one value column.
#[derive(Clone)]
pub(crate) enum Slot {
    One(State),
    /// Of a top-k by item; of sessions by visitor.
    Items(BTreeMap<Value, State>),
    /// How many sessions there are, of all visitors.
    Sum(u64),
}

/// The fold of one answer.
pub struct Fold<'q> {
    query: &'q Query,
    merged: Vec<Merged>,
    /// Where each bucket and key stands among them.
    places: HashTable<usize>,
    /// Where the last cell came to: most often the next one comes there too.
    last: usize,
    hash: DefaultHashBuilder,
    cells: usize,
    budget: Arc<Budget>,
}

impl<'q> Fold<'q> {
    /// An empty fold that takes its cells from a budget.
    pub fn new(query: &'q Query, budget: Arc<Budget>) -> Fold<'q> {
        let (merged, places, hash) = (Vec::new(), HashTable::new(), DefaultHashBuilder::default());
        let mut fold = Fold { query, merged, places, last: 0, hash, cells: 0, budget };
        fold.restart();
        fold
    }

    /// Lets go of all that was added.
    pub fn restart(&mut self) {
        let query = self.query;
        self.merged.clear();
        self.places.clear();
        self.budget.taken.fetch_sub(std::mem::take(&mut self.cells), atomic::Ordering::Relaxed);
        // Rolling values get it once their windows are made.
        if query.has_total() && query.rolling.is_none() {
            self.place(query.span.start, &[], &[]);
        }
    }

    /// Whether the query's filters admit the cells of a key.
    pub fn admits(&self, column: usize, by: &[Value], item: Option<&Value>) -> bool {
        self.query.admits(&self.query.columns[column], by, item)
    }

    /// Takes in one cell of a value column's metric; `false` where the query's span or filters leave it out.
    ///
    /// # Errors
    /// [`FoldError`]; the fold is then short of this cell and must not be called complete.
    pub fn add(&mut self, column: usize, cell: &Cell) -> Result<bool, FoldError> {
        Ok(self.admits(column, &cell.by, cell.item.as_ref()) && self.add_admitted(column, cell)?)
    }

    /// Takes in a cell whose key the filters admit; `false` where the query's span leaves it out.
    ///
    /// # Errors
    /// See [`Fold::add`].
    pub fn add_admitted(&mut self, column: usize, cell: &Cell) -> Result<bool, FoldError> {
        let query = self.query;
        let plan = &query.columns[column];
        let (span, buckets) = query.reads();
        if !span.contains(cell.bucket) {
            return Ok(false);
        }
        let place = self.place(buckets.start_of(cell.bucket), &plan.group, &cell.by);
        let slot = &mut self.merged[place].states[column];
        let before = self.cells;
        let item = match plan.metric.aggregate {
            // NULL is nobody, whose records are no sessions.
            Aggregate::Sessions { of, .. } => match cell.by.get(of) {
                Some(visitor) if !visitor.is_null() => Some(visitor),
                _ => return Ok(false),
            },
            _ => cell.item.as_ref(),
        };
        let target = match (item, slot) {
            (None, slot) => match slot.get_or_insert_with(|| {
                self.cells += 1;
                Slot::One(State::empty(&plan.metric.aggregate))
            }) {
                Slot::One(state) => state,
                Slot::Items(_) | Slot::Sum(_) => return Err(CodecError::Invalid("cell key").into()),
            },
            (Some(item), slot) => match slot.get_or_insert_with(|| Slot::Items(BTreeMap::new())) {
                Slot::Items(items) => items.entry(item.clone()).or_insert_with(|| {
                    self.cells += 1;
                    State::empty(&plan.metric.aggregate)
                }),
                Slot::One(_) | Slot::Sum(_) => return Err(CodecError::Invalid("cell key").into()),
            },
        };
        target.merge(&cell.state)?;
        if self.cells > before {
            self.budget.take(self.cells - before)?;
        }
        Ok(true)
    }

    /// Where the states of a bucket and of a key stand: the key is made of those of the values `by` that `group` names.
    fn place(&mut self, bucket: Millis, group: &[usize], by: &[Value]) -> usize {
        let Fold { query, merged, places, last, hash, .. } = self;
        let hash_of = |bucket: Millis, key: &mut dyn Iterator<Item = &Value>| {
            let mut hasher = hash.build_hasher();
            bucket.hash(&mut hasher);
            key.for_each(|value| value.hash(&mut hasher));
            hasher.finish()
        };
        let key = || group.iter().map(|place| &by[*place]);
        let same = |&place: &usize| {
            let there: Option<&Merged> = merged.get(place);
            there.is_some_and(|there| there.bucket == bucket && there.key.iter().eq(key()))
        };
        if same(&*last) {
            return *last;
        }
        let hashed = hash_of(bucket, &mut key());
        if let Some(&place) = places.find(hashed, same) {
            *last = place;
            return place;
        }
        let place = merged.len();
        *last = place;
        places.insert_unique(hashed, place, |&place| {
            hash_of(merged[place].bucket, &mut merged[place].key.iter())
        });
        let states = query.columns.iter().map(|_| None).collect();
        merged.push(Merged { bucket, key: key().cloned().collect(), states });
        place
    }

    /// What it is the fold of.
    pub fn query(&self) -> &'q Query {
        self.query
    }

    /// All that was merged, by bucket and key.
    pub(crate) fn into_merged(mut self) -> Vec<Merged> {
        self.merged.sort_unstable_by(|a, b| (a.bucket, &a.key).cmp(&(b.bucket, &b.key)));
        self.merged
    }
}
