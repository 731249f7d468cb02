//! Reads a version's rows, dense or not, back as cells: what new records are merged into where a day's archive is no longer
//! whole, and what the audit compares.

use crate::compute::{Cell, Sorter};
use crate::ledger::Version;
use crate::replace::names;
use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use shared_model::aggregate::{Column, ColumnType, State};
use shared_model::dense;
use shared_model::event::{FieldType, Value};
use shared_model::metric::Metric;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

/// Pushes all cells of a version, as they are stored. The columns for people are not read.
pub(crate) async fn cells(
    connection: &mut PgConnection,
    metric: &Metric,
    version: &Version,
    cells: &mut Sorter,
) -> Result<()> {
    let Some(table) = &version.table else { return Ok(()) };
    let columns = metric.aggregate.state_columns();
    let failed = || format!("reading version {} of {}", version.id, metric.name);
    let mut rows = sqlx::query(AssertSqlSafe(select(metric, &columns, table))).fetch(connection);
    while let Some(row) = rows.try_next().await.with_context(failed)? {
        cells.push(cell(metric, &columns, &row).with_context(failed)?)?;
    }
    Ok(())
}

/// All cells of a version's table, one after the other, by key, then bucket: the canonical order. Postgres sorts them,
/// in its `work_mem` or on its disk; none without a table.
pub(crate) fn ordered<'a>(
    connection: &'a mut PgConnection,
    metric: &'a Metric,
    table: Option<&str>,
) -> BoxStream<'a, Result<Cell>> {
    let Some(table) = table else { return futures::stream::empty().boxed() };
    let order = metric.key_columns().map(|key| match key.ty {
        // Text by its bytes, as everywhere.
        FieldType::String => format!("{} collate \"C\" nulls first, ", names::quote(&key.name)),
        _ => format!("{} nulls first, ", names::quote(&key.name)),
    });
    let columns = metric.aggregate.state_columns();
    let sql = format!("{} order by {}bucket", select(metric, &columns, table), order.collect::<String>());
    let rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch(connection);
    rows.map(move |row| cell(metric, &columns, &row?)).boxed()
}

fn select(metric: &Metric, columns: &[(&'static str, ColumnType)], table: &str) -> String {
    let mut from = format!("views.{}", names::quote(table));
    if dense::is_dense(table) {
        from = dense::cells(&format!("{from} v"), &[], metric, columns);
    }
    let keys = metric.key_columns().map(|key| names::quote(&key.name));
    // A numeric comes as text: its 128 bits are ours to read.
    let states = columns.iter().map(|(name, ty)| match ty {
        ColumnType::Numeric => format!("{}::text", names::quote(name)),
        _ => names::quote(name),
    });
    let list: Vec<String> = std::iter::once("bucket".to_owned()).chain(keys).chain(states).collect();
    format!("select {} from {from}", list.join(", "))
}

fn cell(metric: &Metric, columns: &[(&'static str, ColumnType)], row: &PgRow) -> Result<Cell> {
    let bucket: DateTime<Utc> = row.try_get(0)?;
    let mut key = Vec::new();
    for (at, column) in metric.key_columns().enumerate() {
        key.push(value(row, 1 + at, column.ty)?);
    }
    let mut state = Vec::new();
    for (at, (_, ty)) in columns.iter().enumerate() {
        state.push(stored(row, 1 + key.len() + at, *ty)?);
    }
    let state = State::from_columns(&metric.aggregate, state)?;
    Ok(Cell { key, bucket: bucket.timestamp_millis(), state })
}

fn value(row: &PgRow, at: usize, ty: FieldType) -> Result<Value> {
    let found = match ty {
        FieldType::String => row.try_get::<Option<String>, _>(at)?.map(|text| Value::str(&text)),
        FieldType::Int | FieldType::Decimal(_) => row.try_get::<Option<i64>, _>(at)?.map(Value::Int),
        FieldType::Float => row.try_get::<Option<f64>, _>(at)?.map(Value::Float),
        FieldType::Bool => row.try_get::<Option<bool>, _>(at)?.map(Value::Bool),
    };
    Ok(found.unwrap_or(Value::Null))
}

fn stored(row: &PgRow, at: usize, ty: ColumnType) -> Result<Column> {
    Ok(match ty {
        ColumnType::BigInt => Column::BigInt(row.try_get(at)?),
        ColumnType::Double => Column::Double(row.try_get(at)?),
        ColumnType::Text => Column::Text(row.try_get(at)?),
        ColumnType::Bool => Column::Bool(row.try_get(at)?),
        ColumnType::Bytes => Column::Bytes(row.try_get(at)?),
        ColumnType::Numeric => match row.try_get::<Option<String>, _>(at)? {
            None => Column::Numeric(None),
            Some(text) => match text.parse() {
                Ok(number) => Column::Numeric(Some(number)),
                Err(_) => bail!("{text} is no integer of 128 bits"),
            },
        },
    })
}
