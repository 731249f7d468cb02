//! A query that can be answered: every name resolved against the catalog, every value of its column's type, every
//! time on a boundary of the grain.
//!
//! Nothing downstream checks a request again; a [`Query`] only exists for requests without a fault.

pub mod buckets;
pub mod compare;
pub mod computed;
pub mod filter;
pub mod having;
mod limits;
mod parse;
pub mod range;
pub mod rolling;
pub mod zone;

pub use limits::Limits;
pub use parse::{At, Request};
pub(crate) use parse::{MAX_FAULTS, MAX_TEXT, lone_test, type_name};

/// The form of a request, for whoever describes it: the parser's own fields, words and limits.
pub(crate) mod form {
    pub(crate) use super::parse::{
        FACTS, IN_COMMON, MAX_FILTERS, MAX_METRICS, MAX_NAME, MAX_QUERIES, MAX_RETENTION, MAX_TEXT,
        MAX_VALUES, OF_FACTS, OF_QUERY, OF_REQUEST, OPS, PERIODS,
    };
    pub(crate) use super::range::FORMS as RANGES;
}

use buckets::Buckets;
use chrono_tz::Tz;
use compare::Compared;
use computed::Computed;
use filter::{Condition, Filter, Test};
use having::Having;
use rolling::Rolling;
use shared_model::aggregate::{Aggregate, quantile};
use shared_model::event::Value;
use shared_model::metric::{KeyColumn, Metric};
use shared_model::time::Interval;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A valid query.
#[derive(Debug, Clone)]
pub struct Query {
    /// Where it stands in its request: empty, or such as `queries.views`.
    pub place: String,
    /// The answer's value columns; at least one. A top-k stands alone.
    pub columns: Vec<Column>,
    /// What is computed of their values, in columns behind them.
    pub computed: Vec<Computed>,
    /// The formula that the columns are of, if it was asked for by name.
    pub formula: Option<String>,
    /// The key columns to group by, all of them in every metric's key.
    pub group_by: Vec<KeyColumn>,
    /// What is tested.
    pub filters: Vec<Filter>,
    /// What must hold of a cell, the filters named by their places.
    pub condition: Condition<usize>,
    /// By whose clock the span is cut and times are shown.
    pub zone: Tz,
    /// Event time, half-open; both ends on boundaries of every metric's grain.
    pub span: Interval,
    /// How the span is cut.
    pub buckets: Buckets,
    /// Where a bucket counts more than what lies in it: the windows.
    pub rolling: Option<Rolling>,
    /// Where a row's value is who of its bucket came again: in how many buckets behind it.
    pub retention: Option<usize>,
    /// What its rows are compared with.
    pub compared: Option<Box<Compared>>,
    /// Whether each key has a row in every bucket.
    pub fill: bool,
    /// What must hold of a row's values.
    pub having: Option<Condition<Having>>,
    /// What to sort by first; ties fall to bucket, key, rank.
    pub order: Vec<Order>,
    /// How many rows are kept of those that are equal in some columns.
    pub limit_by: Option<LimitBy>,
    /// The most rows to return.
    pub limit: usize,
    /// How many rows to pass over.
    pub offset: usize,
    /// How many items of a top-k; the metric's own number unless asked otherwise.
    pub k: usize,
}

/// One value column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name in the answer.
    pub name: String,
    /// The metric that fills it.
    pub metric: Arc<Metric>,
    /// For each column of `group_by`, its place in the metric's key.
    pub group: Vec<usize>,
    /// For each filter, what it is applied to.
    pub tested: Vec<Part>,
}

/// A part of a cell's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A `by` column, by its place.
    By(usize),
    /// The item of a top-k.
    Item,
}

/// One sort key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What by.
    pub by: OrderBy,
    /// Greatest first.
    pub desc: bool,
}

/// The first rows, in the order asked for, of those that are equal in some columns: the best of each group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitBy {
    /// Whether in the bucket.
    pub bucket: bool,
    /// In which columns of `group_by`, by their places.
    pub keys: Vec<usize>,
    /// How many.
    pub limit: usize,
}

/// What rows can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderBy {
    /// The bucket's start.
    Bucket,
    /// A column of `group_by`, by its place.
    Key(usize),
    /// A value column, by its place.
    Value(usize),
    /// A value column of what is compared with.
    Previous(usize),
    /// The rank of a top-k's item.
    Rank,
    /// The item of a top-k.
    Item,
}

/// More pinned keys than this are not worth being looked for one by one.
const MAX_PINNED: usize = 4_096;

impl Query {
    /// The span that is read, and the pieces in which it is.
    pub fn reads(&self) -> (Interval, &Buckets) {
        match &self.rolling {
            None => (self.span, &self.buckets),
            Some(rolling) => (rolling.span, &rolling.pieces),
        }
    }

    /// Whether it has one row for everything, as in SQL even where there is nothing.
    pub fn has_total(&self) -> bool {
        self.group_by.is_empty() && matches!(self.buckets, Buckets::One(_)) && !self.ranked()
    }

    /// Whether the one column is a top-k, whose rows are ranked items.
    pub fn ranked(&self) -> bool {
        matches!(self.columns[0].metric.aggregate, Aggregate::TopK { .. })
    }

    /// The names of the parts of a column's values; none where they aren't lists.
    pub fn parts(&self, column: &Column) -> Vec<String> {
        match (&column.metric.aggregate, self.retention) {
            (Aggregate::Quantile { quantiles, .. }, _) => {
                quantiles.iter().map(|&q| quantile::column_name(q).to_owned()).collect()
            }
            (_, Some(periods)) => (0..=periods).map(|behind| behind.to_string()).collect(),
            _ => Vec::new(),
        }
    }

    /// The names of a row's values.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let computed = self.computed.iter().map(|computed| computed.name.as_str());
        self.columns.iter().map(|column| column.name.as_str()).chain(computed)
    }

    /// The keys that a cell of `column` can have, where the filters pin its `by` values by equality; encoded, each once.
    /// `None`: it can have any.
    pub fn keys_of(&self, column: &Column) -> Option<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = vec![Vec::new()];
        for place in 0..column.metric.by.len() {
            let values = self.pinned(&self.condition, column, Part::By(place))?;
            if values.len() * keys.len() > MAX_PINNED {
                return None;
            }
            let extend = |key: &Vec<u8>, value: &Value| {
                let mut key = key.clone();
                value.encode(&mut key);
                key
            };
            keys = keys.iter().flat_map(|key| values.iter().map(move |value| extend(key, value))).collect();
        }
        Some(keys)
    }

    /// Whether the filters pin each of the `by` values of `column`, which has some, to one.
    pub fn pins_one_key(&self, column: &Column) -> bool {
        let pins_one = |place| {
            let pinned = self.pinned(&self.condition, column, Part::By(place));
            pinned.is_some_and(|values| values.len() == 1)
        };
        !column.metric.by.is_empty() && (0..column.metric.by.len()).all(pins_one)
    }

    /// The values that a part of the key can have where a condition holds; `None`: it can have any.
    fn pinned<'a>(
        &'a self,
        condition: &'a Condition<usize>,
        column: &Column,
        part: Part,
    ) -> Option<Cow<'a, BTreeSet<Value>>> {
        match condition {
            Condition::Test(filter) if column.tested[*filter] == part => match &self.filters[*filter].test {
                Test::In(values) => Some(Cow::Borrowed(values)),
                Test::IsNull => Some(Cow::Owned([Value::Null].into())),
                _ => None,
            },
            Condition::All(parts) => parts.iter().find_map(|each| self.pinned(each, column, part)),
            Condition::Any(parts) => {
                let pinned = parts.iter().map(|each| self.pinned(each, column, part));
                let pinned = pinned.collect::<Option<Vec<_>>>()?;
                Some(Cow::Owned(pinned.into_iter().flat_map(Cow::into_owned).collect()))
            }
            Condition::Test(_) | Condition::Not(_) => None,
        }
    }

    /// Whether a cell's key passes the filters.
    pub fn admits(&self, column: &Column, by: &[Value], item: Option<&Value>) -> bool {
        let test = &mut |filter: &usize| {
            let value = match column.tested[*filter] {
                Part::By(place) => &by[place],
                Part::Item => item.unwrap_or(&Value::Null),
            };
            self.filters[*filter].test.admits(value)
        };
        self.condition.holds(test) == Some(true)
    }
}
