//! Aggregates and their canonical, mergeable states.
//!
//! Merge is associative and commutative with the empty state as identity, and canonical: the same records in any
//! order and grouping give the same state, and a state has exactly one byte form.

pub mod count;
pub mod sum;
pub mod extrema;
pub mod mean;
pub mod distinct;
pub mod top_k;
pub mod quantile;

use crate::codec::CodecError;
use crate::event::{FieldType, Value};
use serde::{Deserialize, Serialize};

/// What a metric computes over the records of a cell. SQL's rules for NULL: all but `Count` pass over it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Aggregate {
    /// How many records.
    Count,
    /// The sum of an int or decimal.
    Sum(FieldType),
    /// The least value.
    Min(FieldType),
    /// The greatest value.
    Max(FieldType),
    /// The mean of an int or decimal.
    Mean(FieldType),
    /// How many distinct values.
    Distinct,
    /// The `k` items counted most often: a cell is kept per item, with the state of a count, and ranked when read.
    TopK {
        /// How many.
        k: usize,
    },
    /// Quantiles of a number, each in [0, 1], by a histogram of fixed log-spaced buckets.
    Quantile {
        /// The type of the value.
        ty: FieldType,
        /// Which quantiles are served.
        quantiles: Vec<f64>,
    },
}

/// The state of one cell.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Of [`Aggregate::Count`] and of each item of a [`Aggregate::TopK`].
    Count(u64),
    /// `None`: no value yet.
    Sum(Option<i128>),
    /// `Null`: no value yet.
    Min(Value),
    /// `Null`: no value yet.
    Max(Value),
    /// The sum and number of values.
    Mean {
        /// Sum in the type's units.
        sum: i128,
        /// Number of values.
        count: u64,
    },
    /// A set of hashes or an HLL sketch.
    Distinct(distinct::Distinct),
    /// A histogram.
    Quantile(quantile::Histogram),
}

/// A state's value as a reader gets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Finished {
    /// No value (SQL's NULL).
    Null(()),
    /// An exact integer.
    Int(i64),
    /// A number: a mean, a decimal sum, a quantile. Sums beyond 64 bits come as floats too.
    Float(f64),
    /// A text or truth value (min, max).
    Text(String),
    /// Quantiles in the aggregate's order.
    List(Vec<Option<f64>>),
}

/// One column in which a state is stored in Postgres.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// `bigint`.
    BigInt(Option<i64>),
    /// `numeric` without fraction.
    Numeric(Option<i128>),
    /// `double precision`.
    Double(Option<f64>),
    /// `text`.
    Text(Option<String>),
    /// `boolean`.
    Bool(Option<bool>),
    /// `bytea`.
    Bytes(Option<Vec<u8>>),
}

/// The Postgres type of a stored column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `bigint`.
    BigInt,
    /// `numeric`.
    Numeric,
    /// `double precision`.
    Double,
    /// `text`.
    Text,
    /// `boolean`.
    Bool,
    /// `bytea`.
    Bytes,
}

/// Two states of different kinds were to be merged, or a stored form is of another kind than the metric's.
pub type StateError = CodecError;

impl State {
    /// The empty state of an aggregate: merging it changes nothing.
    pub fn empty(aggregate: &Aggregate) -> State {
        match aggregate {
            Aggregate::Count | Aggregate::TopK { .. } => State::Count(0),
            Aggregate::Sum(_) => State::Sum(None),
            Aggregate::Min(_) => State::Min(Value::Null),
            Aggregate::Max(_) => State::Max(Value::Null),
            Aggregate::Mean(_) => State::Mean { sum: 0, count: 0 },
            Aggregate::Distinct => State::Distinct(distinct::Distinct::default()),
            Aggregate::Quantile { .. } => State::Quantile(quantile::Histogram::default()),
        }
    }

    /// Adds one record's value (a count ignores it; all others ignore NULL).
    pub fn add(&mut self, _value: &Value) {
        unimplemented!()
    }

    /// Merges another state of the same kind into this one.
    ///
    /// # Errors
    /// [`CodecError::Invalid`] where the kinds differ.
    pub fn merge(&mut self, _other: &State) -> Result<(), StateError> {
        unimplemented!()
    }

    /// Appends the canonical, versioned, self-delimiting bytes.
    pub fn encode(&self, _out: &mut Vec<u8>) {
        unimplemented!()
    }

    /// Takes the state of an aggregate from its bytes.
    pub fn decode(_aggregate: &Aggregate, _input: &mut &[u8]) -> Result<State, StateError> {
        unimplemented!()
    }

    /// The value for a reader.
    pub fn finish(&self, _aggregate: &Aggregate) -> Finished {
        unimplemented!()
    }

    /// The columns in which the batch view stores the state, as [`Aggregate::columns`] names them.
    pub fn to_columns(&self, _aggregate: &Aggregate) -> Vec<Column> {
        unimplemented!()
    }

    /// The state from its stored columns.
    pub fn from_columns(_aggregate: &Aggregate, _columns: Vec<Column>) -> Result<State, StateError> {
        unimplemented!()
    }
}

impl Aggregate {
    /// Names and types of the columns that store a state in Postgres: `value bigint` for a count, and so on. Columns
    /// that exist for people only (an estimate) come last.
    pub fn columns(&self) -> Vec<(&'static str, ColumnType)> {
        unimplemented!()
    }
}
