//! Publishing: a computed day becomes a table of its own, and one transaction makes it the one that readers see.
//!
//! A version's table is written whole, in one transaction with its record, before anyone can see it; only the flip
//! attaches it and moves the pointer. So a run that is killed leaves whole versions, or nothing.
//!
//! Rows are written frozen, as they may be in the transaction that made their table, so that Postgres needn't come back to
//! them to mark them. Frozen rows are there for every snapshot, also one from before their version: what readers see is
//! decided by the pointers and version ids of their own snapshot, never by which rows a parent has.
//!
//! Where a key may have several cells a day, rows are dense (see `shared_model::dense`). What is counted, and recorded as the
//! rows of a version and a run, are cells, however many lie in a row.

pub(crate) mod copy;
pub(crate) mod flip;
pub(crate) mod names;
pub(crate) mod retire;
mod rows;

use crate::compute::Cells;
use crate::ledger::timestamp;
use anyhow::{Context, Result};
use rows::Rows;
use shared_model::dense;
use shared_model::failpoint;
use shared_model::metric::Metric;
use shared_model::time::{EventDay, Millis};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::sync::Arc;
use tokio::sync::mpsc::Sender;

/// A version that is ready to be published.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    /// The metric.
    pub(crate) metric: Arc<Metric>,
    /// The event day.
    pub(crate) day: EventDay,
    /// Its id.
    pub(crate) version: i64,
    /// Its table, if it has rows.
    pub(crate) table: Option<String>,
    /// How many: cells, as everywhere.
    pub(crate) rows: i64,
}

/// What is recorded of a version beside its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The hash of the files that it was computed from.
    pub(crate) inputs: &'a str,
    /// The run.
    pub(crate) run: i64,
    /// Whether new records were merged into older rows instead of a recomputation.
    pub(crate) partial: bool,
    /// The time.
    pub(crate) now: Millis,
}

/// How many bytes of rows are sent at once.
const CHUNK: usize = 1 << 20;

/// Writes canonical cells into a table of their own, not attached yet, and records the version. The parent's table
/// must be there.
pub(crate) async fn stage(
    connection: &mut PgConnection,
    metric: &Arc<Metric>,
    day: EventDay,
    cells: Cells,
    origin: Origin<'_>,
) -> Result<Staged> {
    let (rows, hash) = (i64::try_from(cells.rows())?, cells.hash().to_owned());
    let mut transaction = connection.begin().await?;
    let version: i64 = sqlx::query_scalar("select nextval('tidemark.view_version_version_id_seq')")
        .fetch_one(&mut *transaction)
        .await?;
    let table = match rows {
        0 => None,
        _ => Some(names::child_table(metric, day, version, may_be_dense(&mut transaction, metric).await?)),
    };
    if let Some(table) = &table {
        let create = names::create_child(metric, table, version);
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
        copy_cells(&mut transaction, metric, table, version, cells)
            .await
            .with_context(|| format!("writing {rows} cells to views.{table}"))?;
        index(&mut transaction, metric, table, version).await?;
    }
    let sql = "insert into tidemark.view_version
                   (version_id, metric, version, event_day, attempt, table_name, rows, hash, inputs, run_id, partial,
                    created_at)
               select $1, $2, $3, $4, count(*) + 1, $5, $6, $7, $8, $9, $10, $11
               from tidemark.view_version where version = $3 and event_day = $4";
    sqlx::query(sql)
        .bind(version)
        .bind(&metric.name)
        .bind(metric.version.to_string())
        .bind(day.date())
        .bind(&table)
        .bind(rows)
        .bind(hash)
        .bind(origin.inputs)
        .bind(origin.run)
        .bind(origin.partial)
        .bind(timestamp(origin.now))
        .execute(&mut *transaction)
        .await?;
    failpoint::hit("batch.stage.before");
    transaction.commit().await?;
    failpoint::hit("batch.stage.after");
    if let Some(table) = &table {
        let analyze = format!("analyze views.{}", names::quote(table));
        sqlx::raw_sql(AssertSqlSafe(analyze)).execute(connection).await?;
    }
    Ok(Staged { metric: metric.clone(), day, version, table, rows })
}

/// Whether a metric's next table may have dense rows: all who read it must know of them. After an upgrade the first run still
/// writes none, and makes it so.
async fn may_be_dense(connection: &mut PgConnection, metric: &Metric) -> Result<bool> {
    if dense::further(metric) == 0 {
        return Ok(false);
    }
    let parent = format!("views.{}", names::quote(&names::parent_table(metric)));
    let query = sqlx::query_scalar(include_str!("replace/dense.sql")).bind(parent);
    query.fetch_one(connection).await.context("how its rows are read")
}

/// Whether a table that an earlier run staged can still become a partition: its parent may have got columns since.
pub(crate) async fn fits(connection: &mut PgConnection, metric: &Metric, table: &str) -> Result<bool> {
    let of = |table: &str| format!("views.{}", names::quote(table));
    let sql = "select not exists (
                   select attname from pg_attribute
                   where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
                   except select attname from pg_attribute where attrelid = to_regclass($2))";
    let query = sqlx::query_scalar(sql).bind(of(&names::parent_table(metric))).bind(of(table));
    Ok(query.fetch_one(connection).await?)
}

/// Makes the index. A key that is longer than one can hold costs the table its index, not the run.
async fn index(transaction: &mut PgConnection, metric: &Metric, table: &str, version: i64) -> Result<()> {
    sqlx::raw_sql(INDEX_MEMORY).execute(&mut *transaction).await?;
    let mut attempt = transaction.begin().await?;
    let create = names::create_index(metric, table, version);
    match sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *attempt).await {
        Ok(_) => attempt.commit().await?,
        Err(error) if error.as_database_error().is_some_and(|e| e.code().as_deref() == Some(TOO_LONG)) => {
            attempt.rollback().await?;
            tracing::warn!(
                table,
                "no index: a key is longer than one can hold; queries read the whole table"
            );
        }
        Err(error) => return Err(error).context("making the index"),
    }
    Ok(())
}

/// What Postgres sorts an index's keys in, until the transaction's end: few keys of a large day fit the 64 MB that it has
/// by itself. A server that was given more keeps it.
const INDEX_MEMORY: &str = "select set_config('maintenance_work_mem', '256MB', true)
     where pg_size_bytes(current_setting('maintenance_work_mem')) < pg_size_bytes('256MB')";

/// Postgres' program_limit_exceeded.
const TOO_LONG: &str = "54000";

/// Rows become bytes on a thread of their own, so that they do for several tables at once. The table must have been made
/// in this transaction, and no savepoint since: else Postgres refuses to freeze.
async fn copy_cells(
    connection: &mut PgConnection,
    metric: &Arc<Metric>,
    table: &str,
    version: i64,
    cells: Cells,
) -> Result<()> {
    let mut columns = names::columns(metric);
    let dense = dense::is_dense(table);
    if dense {
        columns.extend(names::arrays(metric).into_iter().map(|(name, _)| name));
    }
    let (name, columns) = (names::quote(table), columns.join(", "));
    let statement = format!("copy views.{name} ({columns}) from stdin (format binary, freeze)");
    let mut sink = connection.copy_in_raw(&statement).await?;
    let (chunks, mut received) = tokio::sync::mpsc::channel(2);
    let metric = metric.clone();
    let encoding =
        tokio::task::spawn_blocking(move || encode(Rows::new(&metric, version, dense), cells, &chunks));
    while let Some(chunk) = received.recv().await {
        sink.send(chunk).await?;
    }
    // Without its trailer, a copy that came to a bad end isn't taken by the server either.
    encoding.await??;
    sink.finish().await?;
    Ok(())
}

/// Sends the rows in chunks, the last with the trailer. Blocks.
fn encode(mut rows: Rows<'_>, mut cells: Cells, chunks: &Sender<Vec<u8>>) -> Result<()> {
    let mut cells = cells.raw()?;
    while let Some(cell) = cells.advance()? {
        rows.push(&cell)?;
        if rows.len() >= CHUNK {
            chunks.blocking_send(rows.take())?;
        }
    }
    chunks.blocking_send(rows.finish())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::copy::BinaryCopy;
    use super::*;
    use crate::compute::{Cell, Sorter};
    use proptest::prelude::*;
    use shared_model::aggregate::{Aggregate, Column, State};
    use shared_model::catalog::{Catalog, OUTBRAIN};
    use shared_model::event::{FieldType, Value};
    use shared_model::metric::KeyColumn;
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    const TYPES: [FieldType; 5] =
        [FieldType::String, FieldType::Int, FieldType::Float, FieldType::Bool, FieldType::Decimal(2)];

    fn metric(types: &[FieldType], has_item: bool, aggregate: Aggregate) -> Arc<Metric> {
        static SHIPPED: LazyLock<Metric> = LazyLock::new(|| {
            let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
            (**catalog.metric("doc_cnt").expect("shipped")).clone()
        });
        let column = |(at, ty): (usize, &FieldType)| KeyColumn { name: format!("key_{at}"), ty: *ty };
        let mut by: Vec<KeyColumn> = types.iter().enumerate().map(column).collect();
        let item = if has_item { by.pop() } else { None };
        Arc::new(Metric { by, item, aggregate, ..SHIPPED.clone() })
    }

    fn value(ty: FieldType) -> BoxedStrategy<Value> {
        let some = match ty {
            FieldType::String => "[a\\x00\\x01é]{0,40}".prop_map(|text| Value::str(&text)).boxed(),
            FieldType::Int | FieldType::Decimal(_) => {
                prop_oneof![-3..3i64, any::<i64>()].prop_map(Value::Int).boxed()
            }
            FieldType::Float => (-30..30i32).prop_map(|n| Value::Float(f64::from(n) / 8.0)).boxed(),
            FieldType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        };
        prop_oneof![1 => Just(Value::Null), 6 => some].boxed()
    }

    /// With the type of the values that it takes.
    fn aggregates() -> impl Strategy<Value = (Aggregate, FieldType)> {
        let number = || prop::sample::select(vec![FieldType::Int, FieldType::Decimal(2)]);
        let any_type = || prop::sample::select(TYPES.to_vec());
        let quantile = |ty| Aggregate::Quantile { ty, quantiles: vec![0.5, 0.99] };
        prop_oneof![
            Just((Aggregate::Count, FieldType::String)),
            Just((Aggregate::TopK { k: 3 }, FieldType::String)),
            number().prop_map(|ty| (Aggregate::Sum(ty), ty)),
            number().prop_map(|ty| (Aggregate::Mean(ty), ty)),
            any_type().prop_map(|ty| (Aggregate::Min(ty), ty)),
            any_type().prop_map(|ty| (Aggregate::Max(ty), ty)),
            Just((Aggregate::Distinct, FieldType::String)),
            number().prop_map(move |ty| (quantile(ty), ty)),
            Just((Aggregate::Sessions { of: 0, idle: 10 }, FieldType::Int)),
        ]
    }

    fn value_of(copy: &mut BinaryCopy, value: &Value) {
        match value {
            Value::Null => copy.bigint(None),
            Value::Bool(value) => copy.boolean(Some(*value)),
            Value::Int(value) => copy.bigint(Some(*value)),
            Value::Float(value) => copy.double(Some(*value)),
            Value::Str(value) => copy.text(Some(value)),
        }
    }

    /// What a field of an array holds, as the manual of Postgres' sources has it; NULL where there is nothing.
    fn array_of(copy: &mut BinaryCopy, oid: i32, elements: &[Vec<u8>]) {
        if elements.is_empty() {
            return copy.bytes(None);
        }
        let has_null = i32::from(elements.iter().any(|element| *element == [255; 4]));
        let header = [1, has_null, oid, elements.len() as i32, 1].map(i32::to_be_bytes);
        copy.bytes(Some(&[header.concat(), elements.concat()].concat()));
    }

    /// The bytes of one field.
    fn field(write: impl FnOnce(&mut BinaryCopy)) -> Vec<u8> {
        let mut copy = BinaryCopy::new();
        copy.take();
        write(&mut copy);
        copy.take()
    }

    /// What a row holds, cell by cell.
    type Row = (Vec<Value>, Vec<(Millis, Vec<Column>)>);

    /// Cells in their order as rows that hold so many at most.
    fn rows_of(metric: &Metric, cells: &BTreeMap<(Vec<Value>, Millis), State>, most: usize) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for ((key, bucket), state) in cells {
            let cell = (*bucket, state.to_columns(&metric.aggregate));
            match rows.last_mut().filter(|(of, held)| of == key && held.len() < most) {
                Some((_, held)) => held.push(cell),
                None => rows.push((key.clone(), vec![cell])),
            }
        }
        rows
    }

    fn copied(rows: &[Row], dense: bool) -> Vec<u8> {
        let mut expected = BinaryCopy::new();
        for (key, cells) in rows {
            let ((bucket, columns), further) = cells.split_first().expect("a row has a cell");
            expected.row(2 + key.len() + columns.len() + if dense { 1 + columns.len() } else { 0 });
            expected.bigint(Some(7));
            expected.timestamp(Some(*bucket));
            key.iter().for_each(|value| value_of(&mut expected, value));
            columns.iter().for_each(|column| expected.column(column));
            if dense {
                let buckets = further.iter().map(|(bucket, _)| field(|copy| copy.timestamp(Some(*bucket))));
                array_of(&mut expected, 1184, &buckets.collect::<Vec<_>>());
                for (at, column) in columns.iter().enumerate() {
                    let oid = match column {
                        Column::BigInt(_) => 20,
                        Column::Numeric(_) => 1700,
                        Column::Double(_) => 701,
                        Column::Bool(_) => 16,
                        Column::Text(_) | Column::Bytes(_) => panic!("of any length: {column:?}"),
                    };
                    let values = further.iter().map(|(_, columns)| field(|copy| copy.column(&columns[at])));
                    array_of(&mut expected, oid, &values.collect::<Vec<_>>());
                }
            }
        }
        expected.finish()
    }

    /// A key's values, a bucket, and the values of a cell's records.
    type Drawn = (Vec<Value>, Millis, Vec<Value>);

    /// Cells of a metric, several of one name too.
    fn cases() -> impl Strategy<Value = (Arc<Metric>, Vec<Drawn>)> {
        let types = prop::collection::vec(prop::sample::select(TYPES.to_vec()), 0..4);
        (types, any::<bool>(), aggregates()).prop_flat_map(|(types, has_item, (aggregate, ty))| {
            let key: Vec<BoxedStrategy<Value>> = types.iter().map(|ty| value(*ty)).collect();
            let bucket = prop_oneof![3 => -2..3i64, 1 => 0..200i64];
            let drawn = (key, bucket, prop::collection::vec(value(ty), 0..6));
            (Just(metric(&types, has_item, aggregate)), prop::collection::vec(drawn, 0..300))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However they lie in a run: a field after the other, each value and column by its type; in dense rows the
        /// further cells of a key as arrays, and a row for those that are too many.
        #[test]
        fn cells_have_the_bytes_of_their_fields((metric, drawn) in cases()) {
            let mut cells: BTreeMap<(Vec<Value>, Millis), State> = BTreeMap::new();
            for (key, bucket, values) in drawn {
                let state = cells.entry((key, bucket)).or_insert_with(|| State::empty(&metric.aggregate));
                values.iter().for_each(|value| state.add(value));
            }
            let further = dense::further(&metric);
            for dense in [false, true].into_iter().take(if further > 0 { 2 } else { 1 }) {
                let expected = copied(&rows_of(&metric, &cells, if dense { 1 + further } else { 1 }), dense);
                let mut sorter = Sorter::new(&metric, 1 << 20);
                for ((key, bucket), state) in &cells {
                    let (key, state) = (key.clone(), state.clone());
                    sorter.push(Cell { key, bucket: *bucket, state }).unwrap();
                }
                let (chunks, mut sent) = tokio::sync::mpsc::channel(1);
                encode(Rows::new(&metric, 7, dense), sorter.finish().unwrap(), &chunks).unwrap();
                prop_assert_eq!(sent.blocking_recv(), Some(expected));
            }
        }
    }
}
