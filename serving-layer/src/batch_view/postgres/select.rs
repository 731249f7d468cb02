//! The statement that reads a metric's rows, and how its rows are decoded.
//!
//! Whatever it leaves to Postgres (filters, adding up) changes how many rows travel, never what they merge to.

use super::super::Scan;
use crate::merge::{Cell, FoldError};
use crate::query::Part;
use crate::query::buckets::Buckets;
use crate::query::filter::{Condition, Test};
use chrono::{DateTime, Utc};
use shared_model::aggregate::{Aggregate, Column, ColumnType, State};
use shared_model::codec::CodecError;
use shared_model::dense::{self, quote};
use shared_model::event::{FieldType, Value};
use shared_model::metric::{KeyColumn, Metric};
use shared_model::time::Millis;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query as SqlQuery;
use sqlx::{Postgres, Row};
use std::cmp::Ordering;

pub(super) fn timestamp(time: Millis) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(time)
}

/// A value that the server compares with.
pub(super) enum Bound {
    One(Value),
    Many(Vec<Value>),
    Times(Vec<Millis>),
}

pub(super) fn bind(
    query: SqlQuery<'_, Postgres, PgArguments>,
    bound: Bound,
) -> SqlQuery<'_, Postgres, PgArguments> {
    match bound {
        Bound::One(Value::Str(text)) => query.bind(text.to_string()),
        Bound::One(Value::Int(int)) => query.bind(int),
        Bound::One(Value::Bool(value)) => query.bind(value),
        Bound::One(_) => query.bind(None::<String>),
        Bound::Times(times) => query.bind(times.into_iter().filter_map(timestamp).collect::<Vec<_>>()),
        Bound::Many(values) if matches!(values.first(), Some(Value::Int(_))) => {
            let ints = |value| if let Value::Int(int) = value { Some(int) } else { None };
            query.bind(values.into_iter().filter_map(ints).collect::<Vec<i64>>())
        }
        Bound::Many(values) if matches!(values.first(), Some(Value::Bool(_))) => {
            let bools = |value| if let Value::Bool(value) = value { Some(value) } else { None };
            query.bind(values.into_iter().filter_map(bools).collect::<Vec<bool>>())
        }
        Bound::Many(values) => {
            let texts = |value| if let Value::Str(text) = value { Some(text.to_string()) } else { None };
            query.bind(values.into_iter().filter_map(texts).collect::<Vec<String>>())
        }
    }
}

/// The statement of a scan.
pub(super) struct Select {
    pub(super) sql: String,
    /// What is bound from `$3` on.
    pub(super) bound: Vec<Bound>,
    /// The places of the `by` columns that it returns.
    pub(super) needed: Vec<usize>,
    /// The types of the columns that hold the state, which come last.
    pub(super) state: Vec<ColumnType>,
    /// Whether the connection keeps its plan: it is asked again about other keys, of the same days.
    pub(super) kept: bool,
}

/// A plan has a part for each day: of more days it isn't kept.
const KEPT_DAYS: usize = 64;

impl Select {
    /// Filters are there to read less; all are tested again. Counts and sums are added up over the columns that the
    /// query neither groups by nor tests, and over the answer's buckets: what they are added to in the end is the same,
    /// and far fewer rows travel.
    ///
    /// `dense`: rows of the table may be. A parent has the arrays only since the first of its tables that has dense rows.
    pub(super) fn new(scan: &Scan<'_>, table: &str, dense: bool) -> Select {
        let (column, metric) = (scan.column, &scan.column.metric);
        let adds = matches!(metric.aggregate, Aggregate::Count | Aggregate::TopK { .. } | Aggregate::Sum(_));
        let is_needed =
            |place: &usize| column.group.contains(place) || column.tested.contains(&Part::By(*place));
        let needed: Vec<usize> = (0..metric.by.len()).filter(|place| !adds || is_needed(place)).collect();
        let keys = needed.iter().map(|place| &metric.by[*place]).chain(&metric.item);
        let mut columns: Vec<String> = keys.map(|column| quote(&column.name)).collect();
        let mut bound = Vec::new();
        columns.push(if adds { bucket(scan.buckets, &mut bound) } else { "bucket".to_owned() });
        let places: Vec<String> = (1..=columns.len()).map(|place| place.to_string()).collect();
        let group_by = if adds { format!(" group by {}", places.join(", ")) } else { String::new() };
        for (name, ty) in metric.aggregate.state_columns() {
            let name = if adds { format!("sum({})", quote(name)) } else { quote(name) };
            columns.push(match ty {
                ColumnType::Numeric => format!("{name}::text"),
                ColumnType::BigInt if adds => format!("{name}::bigint"),
                _ => name,
            });
        }
        let ids: Vec<String> = scan.versions.iter().map(|version| version.version_id.to_string()).collect();
        let mut sql = format!(
            "select {} from {} where version_id = any(array[{}]::bigint[]) and bucket >= $1 and bucket < $2",
            columns.join(", "),
            if dense { cells(scan, table) } else { format!("views.{}", quote(table)) },
            ids.join(", ")
        );
        let conjuncts = match scan.condition {
            Condition::All(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        for condition in conjuncts {
            if let Some(condition) = exact(scan, condition, &mut bound) {
                sql.push_str(&format!(" and {condition}"));
            }
        }
        sql.push_str(&group_by);
        let kept = scan.one_key && !scan.past && scan.versions.len() <= KEPT_DAYS;
        let state = metric.aggregate.state_columns().into_iter().map(|(_, ty)| ty).collect();
        Select { sql, bound, needed, state, kept }
    }
}

/// The cells of a table of dense rows. A key without items has few rows a day, so that it is faster to find each once.
fn cells(scan: &Scan<'_>, table: &str) -> String {
    let metric = &scan.column.metric;
    let read = if scan.one_key && metric.item.is_none() { dense::cells_of_few } else { dense::cells };
    read(&format!("views.{} v", quote(table)), &["version_id"], metric, &metric.aggregate.state_columns())
}

/// A time of the answer's bucket that holds a row's, inside the span; what it compares with is bound behind the span.
fn bucket(buckets: &Buckets, bound: &mut Vec<Bound>) -> String {
    match buckets {
        Buckets::One(_) => "$1".to_owned(),
        Buckets::Even { width, origin } => {
            bound.push(Bound::Times(vec![*origin]));
            let origin = format!("(${})[1]", bound.len() + 2);
            format!("greatest(date_bin(interval '{width} milliseconds', bucket, {origin}), $1)")
        }
        Buckets::Starts(starts) => {
            bound.push(Bound::Times(starts.clone()));
            let starts = format!("${}", bound.len() + 2);
            format!("greatest(({starts})[greatest(width_bucket(bucket, {starts}), 1)], $1)")
        }
    }
}

/// A condition as SQL, where the server means exactly the same by it.
fn exact(scan: &Scan<'_>, condition: &Condition<usize>, bound: &mut Vec<Bound>) -> Option<String> {
    let before = bound.len();
    let mut joined = |parts: &[Condition<usize>], by: &str| {
        let parts = parts.iter().map(|part| exact(scan, part, bound)).collect::<Option<Vec<_>>>()?;
        Some(format!("({})", parts.join(by)))
    };
    let sql = match condition {
        Condition::All(parts) if !parts.is_empty() => joined(parts, " and "),
        Condition::Any(parts) if !parts.is_empty() => joined(parts, " or "),
        Condition::All(_) | Condition::Any(_) => None,
        Condition::Not(inner) => exact(scan, inner, bound).map(|inner| format!("(not {inner})")),
        Condition::Test(filter) => {
            let metric = &scan.column.metric;
            let column = match scan.column.tested[*filter] {
                Part::By(place) => metric.by.get(place),
                Part::Item => metric.item.as_ref(),
            };
            column.and_then(|column| test(column, &scan.filters[*filter].test, bound))
        }
    };
    if sql.is_none() {
        bound.truncate(before);
    }
    sql
}

/// One test as SQL, where the server means exactly the same by it.
fn test(column: &KeyColumn, test: &Test, bound: &mut Vec<Bound>) -> Option<String> {
    // Texts are ordered by their bytes, whatever the database's collation.
    let collate = if column.ty == FieldType::String { " collate \"C\"" } else { "" };
    let name = quote(&column.name);
    // No row has a text with U+0000, and the server would refuse to hear of one.
    let sayable = |value: &Value| !matches!(value, Value::Str(text) if text.contains('\0'));
    let mut compare = |operator: &str, value: &Value| {
        sayable(value).then(|| bound.push(Bound::One(value.clone())))?;
        Some(format!("{name}{collate} {operator} ${}", bound.len() + 2))
    };
    match test {
        Test::Not(value) => compare("<>", value),
        Test::Compare { is: [Ordering::Less], with } => compare("<", with),
        Test::Compare { is: [Ordering::Less, _], with } => compare("<=", with),
        Test::Compare { is: [Ordering::Greater], with } => compare(">", with),
        Test::Compare { is: [Ordering::Greater, _], with } => compare(">=", with),
        Test::Between(low, high) => Some(format!("({} and {})", compare(">=", low)?, compare("<=", high)?)),
        Test::In(values) => {
            let values: Vec<Value> = values.iter().filter(|value| sayable(value)).cloned().collect();
            // Of one, the plan is as good as one that knows the value, see [`Select::kept`].
            if let [value] = &values[..] {
                bound.push(Bound::One(value.clone()));
                return Some(format!("{name} = ${}", bound.len() + 2));
            }
            (!values.is_empty()).then(|| bound.push(Bound::Many(values)))?;
            Some(format!("{name} = any(${})", bound.len() + 2))
        }
        Test::IsNull => Some(format!("{name} is null")),
        Test::IsNotNull => Some(format!("{name} is not null")),
        Test::Compare { .. } | Test::Like(_) => None,
    }
}

/// A cell to decode rows of a [`Select`] into; columns that it doesn't return, which nobody asks for, are NULL.
pub(super) fn blank(metric: &Metric) -> Cell {
    let by = vec![Value::Null; metric.by.len()];
    Cell { by, item: None, bucket: 0, state: State::empty(&metric.aggregate) }
}

/// Decodes a row into a cell, in place of the row before it.
pub(super) fn decode(
    metric: &Metric,
    needed: &[usize],
    state: &[ColumnType],
    row: &PgRow,
    cell: &mut Cell,
) -> Result<(), FoldError> {
    let invalid = |_: sqlx::Error| FoldError::Undecodable(CodecError::Invalid("row of the batch view"));
    for (at, place) in needed.iter().enumerate() {
        cell.by[*place] = key_value(row, at, metric.by[*place].ty).map_err(invalid)?;
    }
    let mut at = needed.len();
    if let Some(item) = &metric.item {
        cell.item = Some(key_value(row, at, item.ty).map_err(invalid)?);
        at += 1;
    }
    let bucket: DateTime<Utc> = row.try_get(at).map_err(invalid)?;
    cell.bucket = bucket.timestamp_millis();
    // No aggregate has its state in more of them.
    let mut columns = [None, None];
    for ((column, ty), at) in columns.iter_mut().zip(state).zip(at + 1..) {
        *column = Some(state_column(row, at, *ty).map_err(invalid)?);
    }
    cell.state = State::from_columns(&metric.aggregate, columns.into_iter().flatten())?;
    Ok(())
}

fn key_value(row: &PgRow, at: usize, ty: FieldType) -> Result<Value, sqlx::Error> {
    let value = match ty {
        FieldType::Int => row.try_get::<Option<i64>, _>(at)?.map(Value::Int),
        FieldType::Bool => row.try_get::<Option<bool>, _>(at)?.map(Value::Bool),
        _ => row.try_get::<Option<&str>, _>(at)?.map(Value::str),
    };
    Ok(value.unwrap_or(Value::Null))
}

fn state_column(row: &PgRow, at: usize, ty: ColumnType) -> Result<Column, sqlx::Error> {
    Ok(match ty {
        ColumnType::BigInt => Column::BigInt(row.try_get(at)?),
        ColumnType::Numeric => {
            let text: Option<&str> = row.try_get(at)?;
            let parsed = text.map(str::parse::<i128>).transpose();
            Column::Numeric(parsed.map_err(|error| sqlx::Error::Decode(error.into()))?)
        }
        ColumnType::Double => Column::Double(row.try_get(at)?),
        ColumnType::Text => Column::Text(row.try_get(at)?),
        ColumnType::Bool => Column::Bool(row.try_get(at)?),
        ColumnType::Bytes => Column::Bytes(row.try_get(at)?),
    })
}
