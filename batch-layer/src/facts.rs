//! Raw facts in Postgres: `facts.<stream>`, partitioned by event day, a row per delivery.
//!
//! Rows are appended once, with the flip that takes their segment in, and never changed: `act_load_time` is that flip's
//! time. The primary key is the record's place in the log (with the event time, which partitioning asks for), so a
//! segment can't be appended twice.

use crate::plan;
use crate::plan::expression::values;
use crate::replace::{copy::BinaryCopy, names::quote};
use anyhow::{Context, Result};
use polars::prelude::{Column, DataFrame, DataType, PolarsResult, TimeUnit, TimeZone};
use shared_model::catalog::Stream;
use shared_model::event::FieldType;
use shared_model::time::{EventDay, Millis};
use sqlx::{AssertSqlSafe, PgConnection, PgTransaction};
use std::path::Path;
use std::sync::Arc;

/// Where a segment's rows go.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// The stream.
    pub(crate) stream: Arc<Stream>,
    /// The event day.
    pub(crate) day: EventDay,
}

const SYSTEM: &str = "topic text not null, \"partition\" int not null, \"offset\" bigint not null, \
                      event_time timestamptz not null, act_prod_time timestamptz, act_load_time timestamptz not null";

/// Creates the stream's table and its day's partition, if they aren't there. Attaching a partition made beforehand
/// doesn't stand in readers' way.
pub(crate) async fn prepare(connection: &mut PgConnection, table: &Table) -> Result<()> {
    let stream = &table.stream;
    let parent = quote(&stream.name);
    let columns: String = stream
        .fields
        .iter()
        .map(|field| format!("{} {}, ", quote(&field.fact_column()), column_type(field.ty)))
        .collect();
    let create = format!(
        "create table if not exists facts.{parent} ({columns}{SYSTEM}, \
         primary key (event_time, topic, \"partition\", \"offset\")) partition by range (event_time)"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *connection).await?;
    for field in &stream.fields {
        // A field that the stream got later.
        let (column, ty) = (field.fact_column(), column_type(field.ty));
        let name = quote(&column);
        let add = format!("alter table facts.{parent} add column if not exists {name} {ty}");
        let known: bool = sqlx::query_scalar(
            "select exists (select from information_schema.columns
                            where table_schema = 'facts' and table_name = $1 and column_name = $2)",
        )
        .bind(&stream.name)
        .bind(&column)
        .fetch_one(&mut *connection)
        .await?;
        if !known {
            sqlx::raw_sql(AssertSqlSafe(add)).execute(&mut *connection).await?;
        }
    }
    let name = format!("{}_{}", stream.name, table.day.date().format("%Y%m%d"));
    let there: Option<i32> = sqlx::query_scalar(
        "select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'facts' and c.relname = $1",
    )
    .bind(&name)
    .fetch_optional(&mut *connection)
    .await?;
    if there.is_none() {
        let (from, to) = (table.day, EventDay(table.day.0 + 1));
        let name = quote(&name);
        let attach = format!(
            "begin; create table facts.{name} (like facts.{parent} including all, \
                 check (event_time >= '{from} 00:00:00+00' and event_time < '{to} 00:00:00+00')); \
             alter table facts.{parent} attach partition facts.{name} \
                 for values from ('{from} 00:00:00+00') to ('{to} 00:00:00+00'); commit"
        );
        sqlx::raw_sql(AssertSqlSafe(attach)).execute(connection).await?;
    }
    Ok(())
}

/// Appends a segment's rows, in the flip's transaction.
pub(crate) async fn append(
    transaction: &mut PgTransaction<'_>,
    table: &Table,
    file: &Path,
    now: Millis,
) -> Result<()> {
    let (stream, path) = (table.stream.clone(), file.to_owned());
    let encoded = tokio::task::spawn_blocking(move || encode(&stream, &path, now)).await?;
    let encoded = encoded.with_context(|| format!("facts of {}", file.display()))?;
    let fields: String = table.stream.fields.iter().map(|field| quote(&field.fact_column()) + ", ").collect();
    let statement = format!(
        "copy facts.{} ({fields}topic, \"partition\", \"offset\", event_time, act_prod_time, act_load_time) \
         from stdin (format binary)",
        quote(&table.stream.name)
    );
    let mut sink = transaction.copy_in_raw(&statement).await?;
    sink.send(encoded).await?;
    sink.finish().await?;
    Ok(())
}

fn column_type(ty: FieldType) -> String {
    match ty {
        FieldType::String => "text".to_owned(),
        FieldType::Int => "bigint".to_owned(),
        FieldType::Float => "double precision".to_owned(),
        FieldType::Bool => "boolean".to_owned(),
        FieldType::Decimal(scale) => format!("numeric(38, {scale})"),
    }
}

/// A segment as a binary COPY.
fn encode(stream: &Stream, file: &Path, now: Millis) -> Result<Vec<u8>> {
    let frame = crate::compute::collect(plan::scan(&[file.to_owned()])?)?;
    let fields: Vec<_> = stream
        .fields
        .iter()
        .enumerate()
        .map(|(at, field)| match frame.column(&field.name) {
            _ if at >= stream.recorded => values(frame.column(plan::INGEST_TIME)?, field.ty),
            Ok(column) => values(column, field.ty),
            // The segment is older than the field.
            Err(_) => Ok(vec![shared_model::event::Value::Null; frame.height()]),
        })
        .collect::<PolarsResult<_>>()?;
    let topic = frame.column("_topic")?.str()?.clone();
    let partition = ints(&frame, "_partition")?;
    let offset = ints(&frame, "_offset")?;
    let (event_time, produced) = (times(&frame, "_event_time")?, times(&frame, "_produced_time")?);
    let mut copy = BinaryCopy::new();
    for row in 0..frame.height() {
        copy.row(fields.len() + 6);
        for (field, column) in stream.fields.iter().zip(&fields) {
            match (field.ty, &column[row]) {
                (FieldType::Decimal(scale), shared_model::event::Value::Int(units)) => {
                    copy.decimal(Some(i128::from(*units)), scale);
                }
                (_, value) => copy.value(value),
            }
        }
        copy.text(topic.get(row));
        copy.int(partition[row].and_then(|partition| i32::try_from(partition).ok()).unwrap_or(0));
        copy.bigint(offset[row]);
        copy.timestamp(event_time[row]);
        copy.timestamp(produced[row]);
        copy.timestamp(Some(now));
    }
    Ok(copy.finish())
}

fn ints(frame: &DataFrame, name: &str) -> PolarsResult<Vec<Option<i64>>> {
    let column: Column = frame.column(name)?.cast(&DataType::Int64)?;
    Ok(column.i64()?.iter().collect())
}

fn times(frame: &DataFrame, name: &str) -> PolarsResult<Vec<Option<i64>>> {
    let column =
        frame.column(name)?.cast(&DataType::Datetime(TimeUnit::Milliseconds, Some(TimeZone::UTC)))?;
    Ok(column.cast(&DataType::Int64)?.i64()?.iter().collect())
}
