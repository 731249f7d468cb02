//! Aggregates and their canonical, mergeable states.
//!
//! Merge is associative and commutative with the empty state as identity, and canonical: the same records in any
//! order and grouping give the same state, and a state has exactly one byte form. `laws` holds every kind to this.
//!
//! The byte form of a state is one byte `version << 4 | kind`, then what the kind's module says.

pub mod count;
pub mod distinct;
pub mod extrema;
pub mod mean;
pub mod quantile;
pub mod sessions;
pub mod sum;
pub mod top_k;

use crate::codec::{self, CodecError};
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
    /// How many sessions: a cell is kept for each visitor, and its state is the runs of that one's event times; what is
    /// counted over several visitors is the sum of each one's.
    Sessions {
        /// The key's column that tells visitors apart, by its place.
        of: usize,
        /// The longest pause within a session, in the unit of the event times.
        idle: i64,
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
    /// Runs of times.
    Sessions(sessions::Runs),
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

impl ColumnType {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            ColumnType::BigInt => "bigint",
            ColumnType::Numeric => "numeric",
            ColumnType::Double => "double precision",
            ColumnType::Text => "text",
            ColumnType::Bool => "boolean",
            ColumnType::Bytes => "bytea",
        }
    }
}

/// Two states of different kinds were to be merged, or a stored form is of another kind than the metric's.
pub type StateError = CodecError;

/// The version of the byte form, in the high half of a state's first byte. A change of what any kind's bytes mean
/// raises it, and is part of every metric version.
pub const STATE_VERSION: u8 = 1;

impl State {
    /// The empty state of an aggregate: merging it changes nothing.
    #[inline]
    pub fn empty(aggregate: &Aggregate) -> State {
        match aggregate {
            Aggregate::Count | Aggregate::TopK { .. } => State::Count(0),
            Aggregate::Sum(_) => State::Sum(None),
            Aggregate::Min(_) => State::Min(Value::Null),
            Aggregate::Max(_) => State::Max(Value::Null),
            Aggregate::Mean(_) => State::Mean { sum: 0, count: 0 },
            Aggregate::Distinct => State::Distinct(distinct::Distinct::default()),
            Aggregate::Quantile { .. } => State::Quantile(quantile::Histogram::default()),
            Aggregate::Sessions { idle, .. } => State::Sessions(sessions::Runs::new(*idle)),
        }
    }

    /// Adds one record's value (a count ignores it; all others ignore NULL). A catalog is valid only if the value is
    /// of a type that its aggregate takes; a value of another type is passed over like NULL.
    #[inline]
    pub fn add(&mut self, value: &Value) {
        match self {
            State::Count(count) => count::add(count),
            State::Sum(sum) => sum::add(sum, value),
            State::Min(least) => extrema::add_min(least, value),
            State::Max(greatest) => extrema::add_max(greatest, value),
            State::Mean { sum, count } => mean::add(sum, count, value),
            State::Distinct(distinct) => distinct.add(value),
            State::Quantile(histogram) => histogram.add(value),
            State::Sessions(runs) => runs.add(value),
        }
    }

    /// Merges another state of the same kind into this one.
    ///
    /// # Errors
    /// [`CodecError::Invalid`] where the kinds differ, or where a count or sum would pass its bound (which only forged
    /// states can: 2^63 records). This state is then unchanged.
    #[inline]
    pub fn merge(&mut self, other: &State) -> Result<(), StateError> {
        match (self, other) {
            (State::Count(count), State::Count(more)) => count::merge(count, *more),
            (State::Sum(sum), State::Sum(more)) => sum::merge(sum, *more),
            (State::Min(least), State::Min(other)) => {
                extrema::add_min(least, other);
                Ok(())
            }
            (State::Max(greatest), State::Max(other)) => {
                extrema::add_max(greatest, other);
                Ok(())
            }
            (State::Mean { sum, count }, State::Mean { sum: more, count: records }) => {
                mean::merge(sum, count, *more, *records)
            }
            (State::Distinct(distinct), State::Distinct(other)) => {
                distinct.merge(other);
                Ok(())
            }
            (State::Quantile(histogram), State::Quantile(other)) => histogram.merge(other),
            (State::Sessions(runs), State::Sessions(other)) => runs.merge(other),
            _ => Err(CodecError::Invalid("pair of states to merge: their kinds differ")),
        }
    }

    /// Appends the canonical, versioned, self-delimiting bytes.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(STATE_VERSION << 4 | self.kind());
        match self {
            State::Count(count) => count::encode(*count, out),
            State::Sum(sum) => sum::encode(*sum, out),
            State::Min(value) | State::Max(value) => value.encode(out),
            State::Mean { sum, count } => mean::encode(*sum, *count, out),
            State::Distinct(distinct) => distinct.encode(out),
            State::Quantile(histogram) => histogram.encode(out),
            State::Sessions(runs) => runs.encode(out),
        }
    }

    /// Takes the state of an aggregate from its bytes. Only canonical bytes are taken, so that what is read writes the
    /// same bytes again.
    #[inline]
    pub fn decode(aggregate: &Aggregate, input: &mut &[u8]) -> Result<State, StateError> {
        let tag = codec::take_byte(input, "state")?;
        let found = tag >> 4;
        if found != STATE_VERSION {
            return Err(CodecError::Version { what: "a state", found, known: STATE_VERSION });
        }
        if tag & 0x0f != State::empty(aggregate).kind() {
            return Err(CodecError::Invalid("state: it is of another kind than the metric"));
        }
        Ok(match aggregate {
            Aggregate::Count | Aggregate::TopK { .. } => State::Count(count::decode(input)?),
            Aggregate::Sum(_) => State::Sum(sum::decode(input)?),
            Aggregate::Min(ty) => State::Min(extrema::decode(*ty, input)?),
            Aggregate::Max(ty) => State::Max(extrema::decode(*ty, input)?),
            Aggregate::Mean(_) => {
                let (sum, count) = mean::decode(input)?;
                State::Mean { sum, count }
            }
            Aggregate::Distinct => State::Distinct(distinct::Distinct::decode(input)?),
            Aggregate::Quantile { .. } => State::Quantile(quantile::Histogram::decode(input)?),
            Aggregate::Sessions { idle, .. } => State::Sessions(sessions::Runs::decode(*idle, input)?),
        })
    }

    /// The value for a reader. Decimals come out of their units here, and only here.
    pub fn finish(&self, aggregate: &Aggregate) -> Finished {
        let float = |value: Option<f64>| value.map_or(Finished::Null(()), Finished::Float);
        let scale = aggregate.scale();
        match self {
            State::Count(count) => Finished::integer(i128::from(*count)),
            State::Sum(Some(sum)) if scale == 0 => Finished::integer(*sum),
            State::Sum(sum) => float(sum.map(|sum| from_units(sum as f64, scale))),
            State::Min(value) | State::Max(value) => extrema::finish(value, scale),
            State::Mean { sum, count } => float(mean::finish(*sum, *count, scale)),
            State::Distinct(distinct) => Finished::integer(i128::from(distinct.estimate())),
            State::Quantile(histogram) => match aggregate {
                Aggregate::Quantile { quantiles, .. } => Finished::List(histogram.finish(quantiles, scale)),
                _ => Finished::Null(()),
            },
            State::Sessions(runs) => Finished::integer(i128::from(runs.count())),
        }
    }

    /// The columns in which the batch view stores the state, as [`Aggregate::columns`] names them.
    pub fn to_columns(&self, aggregate: &Aggregate) -> Vec<Column> {
        let mut columns = Vec::new();
        self.each_column(aggregate, |column| columns.push(column));
        columns
    }

    /// Hands over what [`State::to_columns`] gives, one after the other: for numbers nothing is allocated.
    #[inline]
    pub fn each_column(&self, aggregate: &Aggregate, mut each: impl FnMut(Column)) {
        match self {
            State::Count(count) => each(Column::BigInt(i64::try_from(*count).ok())),
            State::Sum(sum) => each(Column::Numeric(*sum)),
            State::Min(value) | State::Max(value) => each(extrema::to_column(value, aggregate)),
            State::Mean { sum, count } => {
                each(Column::Numeric(Some(*sum)));
                each(Column::BigInt(i64::try_from(*count).ok()));
                each(Column::Double(mean::finish(*sum, *count, aggregate.scale())));
            }
            State::Distinct(distinct) => {
                each(self.to_bytes());
                each(Column::Bytes(Some(distinct.to_datasketches())));
                each(Column::BigInt(i64::try_from(distinct.estimate()).ok()));
            }
            State::Quantile(_) => {
                each(self.to_bytes());
                if let Finished::List(values) = self.finish(aggregate) {
                    values.into_iter().map(Column::Double).for_each(each);
                }
            }
            State::Sessions(runs) => {
                each(self.to_bytes());
                each(Column::BigInt(i64::try_from(runs.count()).ok()));
            }
        }
    }

    /// The state from its stored columns: first those of [`Aggregate::state_columns`]; the rest, which are for people, may be
    /// there or not and are not looked at.
    pub fn from_columns(
        aggregate: &Aggregate,
        columns: impl IntoIterator<Item = Column>,
    ) -> Result<State, StateError> {
        let mut columns = columns.into_iter();
        let state = match (aggregate, columns.next(), columns.next()) {
            (Aggregate::Count | Aggregate::TopK { .. }, Some(Column::BigInt(Some(count))), _) => {
                State::Count(u64::try_from(count).map_err(|_| CodecError::Invalid("stored count"))?)
            }
            (Aggregate::Sum(_), Some(Column::Numeric(sum)), _) => State::Sum(sum::bounded(sum)?),
            (Aggregate::Min(ty), Some(column), _) => State::Min(extrema::from_column(column, *ty)?),
            (Aggregate::Max(ty), Some(column), _) => State::Max(extrema::from_column(column, *ty)?),
            (Aggregate::Mean(_), Some(Column::Numeric(Some(sum))), Some(Column::BigInt(Some(count)))) => {
                let count = u64::try_from(count).map_err(|_| CodecError::Invalid("stored count"))?;
                let (sum, count) = mean::bounded(sum, count)?;
                State::Mean { sum, count }
            }
            (
                Aggregate::Distinct | Aggregate::Quantile { .. } | Aggregate::Sessions { .. },
                Some(Column::Bytes(Some(bytes))),
                _,
            ) => {
                let mut input = &bytes[..];
                let state = State::decode(aggregate, &mut input)?;
                if !input.is_empty() {
                    return Err(CodecError::Invalid("stored state: bytes follow it"));
                }
                state
            }
            _ => return Err(CodecError::Invalid("stored columns of a state")),
        };
        Ok(state)
    }

    fn to_bytes(&self) -> Column {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        Column::Bytes(Some(bytes))
    }

    #[inline]
    fn kind(&self) -> u8 {
        match self {
            State::Count(_) => 1,
            State::Sum(_) => 2,
            State::Min(_) => 3,
            State::Max(_) => 4,
            State::Mean { .. } => 5,
            State::Distinct(_) => 6,
            State::Quantile(_) => 7,
            State::Sessions(_) => 8,
        }
    }
}

impl Aggregate {
    /// Names and types of the columns that store a state in Postgres: `value bigint` for a count, and so on. Columns
    /// that exist for people and their tools only (a sketch in DataSketches' bytes, an estimate) come last.
    pub fn columns(&self) -> Vec<(&'static str, ColumnType)> {
        match self {
            Aggregate::Count | Aggregate::TopK { .. } => vec![("value", ColumnType::BigInt)],
            Aggregate::Sum(_) => vec![("value", ColumnType::Numeric)],
            Aggregate::Min(ty) | Aggregate::Max(ty) => vec![("value", extrema::column_type(*ty))],
            Aggregate::Mean(_) => vec![
                ("sum", ColumnType::Numeric),
                ("count", ColumnType::BigInt),
                ("value", ColumnType::Double),
            ],
            Aggregate::Distinct => vec![
                ("state", ColumnType::Bytes),
                ("sketch", ColumnType::Bytes),
                ("estimate", ColumnType::BigInt),
            ],
            Aggregate::Quantile { quantiles, .. } => {
                let for_people = quantiles.iter().map(|&q| (quantile::column_name(q), ColumnType::Double));
                [("state", ColumnType::Bytes)].into_iter().chain(for_people).collect()
            }
            Aggregate::Sessions { .. } => {
                vec![("state", ColumnType::Bytes), ("sessions", ColumnType::BigInt)]
            }
        }
    }

    /// Those of [`Aggregate::columns`], from the first, that hold the state; those after them are for people only.
    pub fn state_columns(&self) -> Vec<(&'static str, ColumnType)> {
        let mut columns = self.columns();
        columns.truncate(if matches!(self, Aggregate::Mean(_)) { 2 } else { 1 });
        columns
    }

    /// The decimal places of its value's units; 0 unless it is a decimal.
    fn scale(&self) -> u8 {
        match self {
            Aggregate::Sum(FieldType::Decimal(scale))
            | Aggregate::Min(FieldType::Decimal(scale))
            | Aggregate::Max(FieldType::Decimal(scale))
            | Aggregate::Mean(FieldType::Decimal(scale))
            | Aggregate::Quantile { ty: FieldType::Decimal(scale), .. } => *scale,
            _ => 0,
        }
    }
}

impl Column {
    /// Its Postgres type.
    pub fn ty(&self) -> ColumnType {
        match self {
            Column::BigInt(_) => ColumnType::BigInt,
            Column::Numeric(_) => ColumnType::Numeric,
            Column::Double(_) => ColumnType::Double,
            Column::Text(_) => ColumnType::Text,
            Column::Bool(_) => ColumnType::Bool,
            Column::Bytes(_) => ColumnType::Bytes,
        }
    }
}

impl Finished {
    /// A whole number; as a float where it has more than 64 bits.
    pub fn integer(value: i128) -> Finished {
        i64::try_from(value).map_or(Finished::Float(value as f64), Finished::Int)
    }
}

/// A number of units of 10^-scale as the number that it stands for.
fn from_units(units: f64, scale: u8) -> f64 {
    // In integers, since powi may differ in the last digit from one platform to another.
    units / 10u128.saturating_pow(u32::from(scale)) as f64
}

#[cfg(test)]
mod tests;
