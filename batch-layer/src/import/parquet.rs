//! Parquet files as rows of a stream: columns by field name, one row group in memory at a time.
//!
//! A column's type is checked once against the field's; a value that its field can't hold costs its own row.

use super::{RawRow, RowFault};
use anyhow::{Context, Result, bail};
use polars::prelude::*;
use shared_model::catalog::{Field, Stream};
use shared_model::event::{FieldType, Reject, Value};
use std::fs::File;
use std::path::Path;

/// The rows of a file, a row group at a time, in the file's order.
pub(super) fn rows(
    stream: &Stream,
    path: &Path,
) -> Result<impl Iterator<Item = Result<Vec<RawRow>>> + use<>> {
    let unreadable = format!("{} can't be read as parquet", path.display());
    let read = |file: &Path| -> Result<ParquetReader<File>> { Ok(ParquetReader::new(File::open(file)?)) };
    let mut reader = read(path).context(unreadable.clone())?;
    let groups = row_groups(&mut reader).context(unreadable.clone())?;
    let schema = schema(&mut reader).context(unreadable.clone())?;
    check_columns(stream, &schema)?;
    let (fields, path) = (stream.recorded().to_vec(), path.to_owned());
    Ok(groups.into_iter().map(move |(start, length)| {
        let names = fields.iter().map(|field| field.name.clone()).collect();
        let group = || -> Result<DataFrame> {
            let reader = read(&path)?.with_columns(Some(names)).with_slice(Some((start, length)));
            Ok(reader.set_rechunk(true).finish()?)
        };
        group_rows(&fields, start as i64, &group().context(unreadable.clone())?)
    }))
}

/// Where each row group begins, and its rows.
fn row_groups(reader: &mut ParquetReader<File>) -> Result<Vec<(usize, usize)>> {
    let metadata = reader.get_metadata()?;
    let rows = metadata.row_groups.iter().map(|group| group.num_rows());
    Ok(rows.scan(0, |at, rows| Some((std::mem::replace(at, *at + rows), rows))).collect())
}

fn schema(reader: &mut ParquetReader<File>) -> Result<Schema> {
    Ok(Schema::from_arrow_schema(reader.schema()?.as_ref()))
}

fn group_rows(fields: &[Field], start: i64, group: &DataFrame) -> Result<Vec<RawRow>> {
    let columns = fields.iter().map(|field| Ok(group.column(&field.name)?.as_materialized_series()));
    let columns: Vec<&Series> = columns.collect::<Result<_>>()?;
    let mut cells: Vec<_> = columns.iter().map(|column| column.iter()).collect();
    let row = |at: usize| {
        // All columns must move on, whatever one of them says.
        let values: Vec<_> = cells.iter_mut().map(|cells| cells.next().unwrap_or(AnyValue::Null)).collect();
        let values = fields.iter().zip(values).map(|(field, cell)| value(field, cell));
        RawRow { number: start + at as i64 + 1, values: values.collect() }
    };
    Ok((0..group.height()).map(row).collect())
}

/// Refuses a file whose columns can't be the stream's fields, with all faults together.
fn check_columns(stream: &Stream, schema: &Schema) -> Result<()> {
    let fault = |field: &Field| match schema.get(&field.name) {
        None => Some(format!("column {} is missing", field.name)),
        Some(dtype) if fits(field.ty, dtype) => None,
        Some(dtype) => {
            Some(format!("column {} has type {dtype}, the field is {}: cast it", field.name, field.ty.name()))
        }
    };
    let faults: Vec<String> = stream.recorded().iter().filter_map(fault).collect();
    if !faults.is_empty() {
        bail!("the columns don't fit the stream: {}", faults.join("; "));
    }
    Ok(())
}

fn fits(ty: FieldType, dtype: &DataType) -> bool {
    match ty {
        _ if *dtype == DataType::Null => true,
        FieldType::String => *dtype == DataType::String,
        FieldType::Int => dtype.is_integer(),
        FieldType::Float => dtype.is_float() || dtype.is_integer(),
        FieldType::Bool => *dtype == DataType::Boolean,
        FieldType::Decimal(_) => dtype.is_integer() || dtype.is_float() || *dtype == DataType::String,
    }
}

/// One cell. Integers of a decimal field are its units, as in the archive's own files; other numbers are read as
/// they are written.
fn value(field: &Field, cell: AnyValue<'_>) -> Result<Value, RowFault> {
    let refuse = |problem: String| RowFault::of(&Reject::Field { field: field.name.clone(), problem }, None);
    Ok(match (field.ty, cell) {
        (_, AnyValue::Null) => Value::Null,
        (FieldType::Bool, AnyValue::Boolean(value)) => Value::Bool(value),
        (FieldType::String, cell) => match cell.get_str() {
            Some(text) => Value::str(text),
            None => return Err(refuse(format!("expected string, found {cell}"))),
        },
        (FieldType::Decimal(_), AnyValue::String(text)) => field.ty.read_text(text).map_err(refuse)?,
        (FieldType::Decimal(_), AnyValue::Float64(float)) => {
            field.ty.read_text(&float.to_string()).map_err(refuse)?
        }
        (FieldType::Decimal(_), AnyValue::Float32(float)) => {
            field.ty.read_text(&float.to_string()).map_err(refuse)?
        }
        (FieldType::Float, AnyValue::Float64(float)) => finite(float).map_err(refuse)?,
        (FieldType::Float, AnyValue::Float32(float)) => finite(f64::from(float)).map_err(refuse)?,
        (ty, cell) => match (cell.extract::<i128>(), ty) {
            (Some(int), FieldType::Float) => Value::Float(int as f64),
            (Some(int), _) => {
                i64::try_from(int).map(Value::Int).map_err(|_| refuse(format!("{int} is out of range")))?
            }
            (None, _) => return Err(refuse(format!("expected {}, found {cell}", ty.name()))),
        },
    })
}

fn finite(float: f64) -> Result<Value, String> {
    // Adding 0 turns -0 into 0, so that equal numbers have equal bytes.
    if float.is_finite() {
        Ok(Value::Float(float + 0.0))
    } else {
        Err(format!("expected a finite float, found {float}"))
    }
}
