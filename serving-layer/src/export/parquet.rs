//! An answer as a Parquet file: one column for each of the CSV's, under the same names, with types.
//!
//! `bucket` is a time (milliseconds, UTC). Key columns have their types in the catalog, decimals as `decimal128`. Value columns
//! are of the types that they are compared as, whatever their values: `int64`, `float64` or `utf8`.

use crate::finish::Row;
use crate::query::Query;
use crate::query::having::type_of;
use crate::table::titles;
use anyhow::{Context, Result};
use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray, UInt64Array,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use shared_model::aggregate::Finished;
use shared_model::event::{FieldType, Value};
use shared_model::metric::KeyColumn;
use std::sync::Arc;

/// Where the envelope stands in the file's metadata.
const ENVELOPE: &str = "tidemark.envelope";
/// The digits of a decimal: all that 64 bits hold.
const DIGITS: u8 = 19;

/// The file of an answer.
///
/// # Errors
/// Where the library refuses it.
pub(crate) fn file(query: &Query, rows: &[Row], envelope: &str) -> Result<Vec<u8>> {
    let columns = titles(query).into_iter().zip(columns(query, rows)?);
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.map(|(title, column)| (title, column, true)));
    let batch = batch.context("the answer is no table")?;
    let metadata = vec![KeyValue::new(ENVELOPE.to_owned(), envelope.to_owned())];
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(Default::default()))
        .set_key_value_metadata(Some(metadata))
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(file)
}

/// The columns in the order of their titles.
///
/// # Errors
/// Where the library refuses one.
pub(crate) fn columns(query: &Query, rows: &[Row]) -> Result<Vec<ArrayRef>> {
    let buckets = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.bucket));
    let mut columns: Vec<ArrayRef> = vec![Arc::new(buckets.with_timezone("UTC"))];
    for (i, column) in query.group_by.iter().enumerate() {
        columns.push(keys(column, rows.iter().map(|row| row.key.get(i)))?);
    }
    if let (true, Some(item)) = (query.ranked(), &query.columns[0].metric.item) {
        let ranks = rows.iter().map(|row| row.ranked.as_ref().map(|(rank, _)| *rank as u64));
        columns.push(Arc::new(ranks.collect::<UInt64Array>()));
        columns.push(keys(item, rows.iter().map(|row| row.ranked.as_ref().map(|(_, item)| item)))?);
    }
    let of: [fn(&Row) -> &Vec<Finished>; 2] = [|row| &row.values, |row| &row.previous];
    for of in &of[..1 + usize::from(query.compared.is_some())] {
        for (i, column) in query.columns.iter().enumerate() {
            let column_of = || rows.iter().map(|row| of(row).get(i));
            match query.parts(column).len() {
                0 => {
                    let ty = type_of(&column.metric.aggregate);
                    columns.push(values(ty.unwrap_or(FieldType::Float), column_of()));
                }
                parts => columns.extend((0..parts).map(|at| part(column_of(), at))),
            }
        }
        for (i, computed) in (query.columns.len()..).zip(&query.computed) {
            columns.push(values(computed.ty(), rows.iter().map(|row| of(row).get(i))));
        }
    }
    Ok(columns)
}

/// A key column; what is of another type than its column's is NULL, as nothing is.
fn keys<'a>(column: &KeyColumn, values: impl Iterator<Item = Option<&'a Value>>) -> Result<ArrayRef> {
    let int = |value: Option<&Value>| match value {
        Some(Value::Int(value)) => Some(*value),
        _ => None,
    };
    Ok(match column.ty {
        FieldType::String => {
            let text = |value: Option<&'a Value>| match value {
                Some(Value::Str(text)) => Some(text.as_str()),
                _ => None,
            };
            Arc::new(values.map(text).collect::<StringArray>())
        }
        FieldType::Int => Arc::new(values.map(int).collect::<Int64Array>()),
        FieldType::Float => {
            let float = |value: Option<&Value>| match value {
                Some(Value::Float(value)) => Some(*value),
                _ => None,
            };
            Arc::new(values.map(float).collect::<Float64Array>())
        }
        FieldType::Bool => {
            let truth = |value: Option<&Value>| match value {
                Some(Value::Bool(value)) => Some(*value),
                _ => None,
            };
            Arc::new(values.map(truth).collect::<BooleanArray>())
        }
        FieldType::Decimal(scale) => {
            let units = values.map(|value| int(value).map(i128::from)).collect::<Decimal128Array>();
            Arc::new(units.with_precision_and_scale(DIGITS.max(scale), i8::try_from(scale)?)?)
        }
    })
}

/// A part of values that are lists.
fn part<'a>(values: impl Iterator<Item = Option<&'a Finished>>, at: usize) -> ArrayRef {
    let one = |value: Option<&Finished>| match value {
        Some(Finished::List(list)) => list.get(at).copied().flatten(),
        _ => None,
    };
    Arc::new(values.map(one).collect::<Float64Array>())
}

/// A value column. A sum beyond 64 bits is a float, as in JSON, and so then is its whole column.
fn values<'a>(ty: FieldType, values: impl Iterator<Item = Option<&'a Finished>>) -> ArrayRef {
    let values: Vec<&Finished> = values.map(|value| value.unwrap_or(&Finished::Null(()))).collect();
    let int = |value: &'a Finished| match value {
        Finished::Int(value) => Some(*value),
        _ => None,
    };
    let float = |value: &'a Finished| match value {
        Finished::Float(value) => Some(*value),
        Finished::Int(value) => Some(*value as f64),
        Finished::Null(()) | Finished::Text(_) | Finished::List(_) => None,
    };
    let text = |value: &'a Finished| match value {
        Finished::Text(text) => Some(text.as_str()),
        _ => None,
    };
    match ty {
        FieldType::String | FieldType::Bool => {
            Arc::new(values.into_iter().map(text).collect::<StringArray>())
        }
        FieldType::Int if !values.iter().any(|value| matches!(value, Finished::Float(_))) => {
            Arc::new(values.into_iter().map(int).collect::<Int64Array>())
        }
        FieldType::Int | FieldType::Float | FieldType::Decimal(_) => {
            Arc::new(values.into_iter().map(float).collect::<Float64Array>())
        }
    }
}
