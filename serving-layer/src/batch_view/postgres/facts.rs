//! A stream's records in `facts.<stream>`, as the batch layer appended them.
//!
//! They are read by their primary key, some at a time: what nobody wants any more isn't read, and nothing is sorted.

use super::super::{EachFact, Fact};
use super::select::timestamp;
use chrono::{DateTime, NaiveDate, Utc};
use futures::TryStreamExt as _;
use shared_model::catalog::{Field, Stream};
use shared_model::dense::quote;
use shared_model::event::{FieldType, Value};
use shared_model::offsets::TopicPartition;
use shared_model::time::{EventDay, Interval};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

/// How many records are read at first, and at most at once: who wants a few isn't sent many, and who looks for a few among
/// many asks seldom.
const AT_ONCE: std::ops::RangeInclusive<usize> = 200..=10_000;

/// Hands each record in a span to `each`, by event time and then by its place in the log, until that has enough.
pub(super) async fn read(
    connection: &mut PgConnection,
    stream: &Stream,
    span: Interval,
    each: EachFact<'_>,
) -> Result<(), sqlx::Error> {
    let (Some(from), Some(to)) = (timestamp(span.start), timestamp(span.end)) else { return Ok(()) };
    let there = columns(connection, stream).await?;
    if there.is_empty() {
        return Ok(());
    }
    let fields: String = stream.fields.iter().map(|field| selected(field, &there) + ", ").collect();
    let sql = format!(
        "select {fields}topic, \"partition\", \"offset\", event_time, act_prod_time, act_load_time from facts.{}
         where event_time >= $1 and event_time < $2 and (event_time, topic, \"partition\", \"offset\") > ($1, $3, $4, $5)
         order by event_time, topic, \"partition\", \"offset\" limit $6",
        quote(&stream.name)
    );
    // No topic has an empty name: all of the span's records lie behind this place.
    let (mut behind, mut at_once) = ((from, String::new(), 0, 0), *AT_ONCE.start());
    loop {
        let query = sqlx::query(AssertSqlSafe(sql.clone())).persistent(false).bind(behind.0).bind(to);
        let query = query.bind(behind.1.clone()).bind(behind.2).bind(behind.3).bind(at_once as i64);
        let (mut rows, mut read) = (query.fetch(&mut *connection), 0);
        while let Some(row) = rows.try_next().await? {
            let fact = fact(stream, &row)?;
            let time = timestamp(fact.event_time).unwrap_or(from);
            behind = (time, fact.tp.topic.to_string(), fact.tp.partition, fact.offset);
            read += 1;
            if !each(fact) {
                return Ok(());
            }
        }
        if read < at_once {
            return Ok(());
        }
        at_once = (2 * at_once).min(*AT_ONCE.end());
    }
}

/// The event days of a span with records in the archive that are not, or no longer, in the stream's facts. Asked for after
/// they were read: a day that was dropped meanwhile, which the snapshot doesn't know of, is one of them.
pub(super) async fn missing(
    connection: &mut PgConnection,
    stream: &Stream,
    span: Interval,
) -> Result<Vec<EventDay>, sqlx::Error> {
    let sql = "select distinct event_day from tidemark.segment
               where stream = $1 and event_day between $2 and $3
                 and not (facts and coalesce(
                     pg_partition_root(to_regclass(
                         format('facts.%I', stream || '_' || to_char(event_day, 'YYYYMMDD'))))
                     = to_regclass(format('facts.%I', stream)), false))
               order by 1";
    let (first, last) = (EventDay::of(span.start).date(), EventDay::of(span.end - 1).date());
    let query = sqlx::query_scalar(sql).bind(&stream.name).bind(first).bind(last);
    let days: Vec<NaiveDate> = query.fetch_all(connection).await?;
    Ok(days.into_iter().map(EventDay::from_date).collect())
}

/// The columns of the stream's facts: none where no run has made them yet.
async fn columns(connection: &mut PgConnection, stream: &Stream) -> Result<Vec<String>, sqlx::Error> {
    let sql = "select attname::text from pg_attribute
               where attrelid = to_regclass(format('facts.%I', $1::text)) and attnum > 0 and not attisdropped";
    sqlx::query_scalar(sql).bind(&stream.name).fetch_all(connection).await
}

/// A field's column, as the type that the catalog says; a decimal in its units. Of a field that no run has brought a record of
/// yet all values are NULL.
fn selected(field: &Field, there: &[String]) -> String {
    let column = match field.fact_column() {
        column if there.contains(&column) => quote(&column),
        _ => "null".to_owned(),
    };
    match field.ty {
        FieldType::String => format!("{column}::text"),
        FieldType::Int => format!("{column}::bigint"),
        FieldType::Float => format!("{column}::double precision"),
        FieldType::Bool => format!("{column}::boolean"),
        FieldType::Decimal(scale) => {
            format!("({column}::numeric * 1{})::bigint", "0".repeat(usize::from(scale)))
        }
    }
}

fn fact(stream: &Stream, row: &PgRow) -> Result<Fact, sqlx::Error> {
    let value = |(at, field): (usize, &Field)| {
        let value = match field.ty {
            FieldType::String => row.try_get::<Option<&str>, _>(at)?.map(Value::str),
            FieldType::Int | FieldType::Decimal(_) => row.try_get::<Option<i64>, _>(at)?.map(Value::Int),
            FieldType::Float => row.try_get::<Option<f64>, _>(at)?.map(Value::Float),
            FieldType::Bool => row.try_get::<Option<bool>, _>(at)?.map(Value::Bool),
        };
        Ok(value.unwrap_or(Value::Null))
    };
    let values = stream.fields.iter().enumerate().map(value).collect::<Result<Vec<_>, sqlx::Error>>()?;
    // A field may have the name of a column of ours, which come behind all fields.
    let at = values.len();
    let time = |at: usize| {
        row.try_get::<Option<DateTime<Utc>>, _>(at).map(|time| time.map(|time| time.timestamp_millis()))
    };
    Ok(Fact {
        tp: TopicPartition::new(row.try_get(at)?, row.try_get(at + 1)?),
        offset: row.try_get(at + 2)?,
        event_time: time(at + 3)?.unwrap_or_default(),
        produced: time(at + 4)?,
        loaded: time(at + 5)?.unwrap_or_default(),
        values,
    })
}
