//! Publishing: a computed day becomes a table of its own, and one transaction makes it the one that readers see.
//!
//! A version's table is written whole, in one transaction with its record, before anyone can see it; only the flip
//! attaches it and moves the pointer. So a run that is killed leaves whole versions, or nothing.
//!
//! Rows are written frozen, as they may be in the transaction that made their table, so that Postgres needn't come back to
//! them to mark them. Frozen rows are there for every snapshot, also one from before their version: what readers see is
//! decided by the pointers and version ids of their own snapshot, never by which rows a parent has.

pub(crate) mod copy;
pub(crate) mod flip;
pub(crate) mod names;
pub(crate) mod retire;

use crate::compute::Cells;
use crate::ledger::timestamp;
use anyhow::{Context, Result};
use copy::BinaryCopy;
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
    /// How many.
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
    let parent = names::parent_table(metric);
    let (rows, hash) = (i64::try_from(cells.rows())?, cells.hash().to_owned());
    let mut transaction = connection.begin().await?;
    let version: i64 = sqlx::query_scalar("select nextval('tidemark.view_version_version_id_seq')")
        .fetch_one(&mut *transaction)
        .await?;
    let table = (rows > 0).then(|| names::child_table(metric, day, version));
    if let Some(table) = &table {
        let create = names::create_child(&parent, table, version);
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
        copy_cells(&mut transaction, metric, table, version, cells)
            .await
            .with_context(|| format!("writing {rows} rows to views.{table}"))?;
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
    let statement = format!("copy views.{} from stdin (format binary, freeze)", names::quote(table));
    let mut sink = connection.copy_in_raw(&statement).await?;
    let (chunks, mut received) = tokio::sync::mpsc::channel(2);
    let metric = metric.clone();
    let encoding = tokio::task::spawn_blocking(move || encode(&metric, version, cells, &chunks));
    while let Some(chunk) = received.recv().await {
        sink.send(chunk).await?;
    }
    // Without its trailer, a copy that came to a bad end isn't taken by the server either.
    encoding.await??;
    sink.finish().await?;
    Ok(())
}

/// Sends the rows in chunks, the last with the trailer. Blocks.
fn encode(metric: &Metric, version: i64, mut cells: Cells, chunks: &Sender<Vec<u8>>) -> Result<()> {
    let fields = 2 + names::key_columns(metric).count() + metric.aggregate.columns().len();
    let mut copy = BinaryCopy::new();
    let mut cells = cells.raw()?;
    while let Some(cell) = cells.advance()? {
        copy.row(fields);
        copy.bigint(Some(version));
        copy.timestamp(Some(cell.bucket));
        cell.each_value(|value| copy.value(value))?;
        cell.state()?.each_column(&metric.aggregate, |column| copy.column(&column));
        if copy.len() >= CHUNK {
            chunks.blocking_send(copy.take())?;
        }
    }
    chunks.blocking_send(copy.finish())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{Cell, Sorter};
    use proptest::prelude::*;
    use shared_model::aggregate::{Aggregate, State};
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

    /// A key's values, a bucket, and the values of a cell's records.
    type Drawn = (Vec<Value>, Millis, Vec<Value>);

    /// Cells of a metric, several of one name too.
    fn cases() -> impl Strategy<Value = (Arc<Metric>, Vec<Drawn>)> {
        let types = prop::collection::vec(prop::sample::select(TYPES.to_vec()), 0..4);
        (types, any::<bool>(), aggregates()).prop_flat_map(|(types, has_item, (aggregate, ty))| {
            let key: Vec<BoxedStrategy<Value>> = types.iter().map(|ty| value(*ty)).collect();
            let drawn = (key, -2..3i64, prop::collection::vec(value(ty), 0..6));
            (Just(metric(&types, has_item, aggregate)), prop::collection::vec(drawn, 0..40))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However they lie in a run: a field after the other, each value and column by its type.
        #[test]
        fn cells_have_the_bytes_of_their_fields((metric, drawn) in cases()) {
            let mut cells: BTreeMap<(Vec<Value>, Millis), State> = BTreeMap::new();
            for (key, bucket, values) in drawn {
                let state = cells.entry((key, bucket)).or_insert_with(|| State::empty(&metric.aggregate));
                values.iter().for_each(|value| state.add(value));
            }
            let (mut sorter, mut expected) = (Sorter::new(&metric, 1 << 20), BinaryCopy::new());
            for ((key, bucket), state) in cells {
                let columns = state.to_columns(&metric.aggregate);
                expected.row(2 + key.len() + columns.len());
                expected.bigint(Some(7));
                expected.timestamp(Some(bucket));
                for value in &key {
                    match value {
                        Value::Null => expected.bigint(None),
                        Value::Bool(value) => expected.boolean(Some(*value)),
                        Value::Int(value) => expected.bigint(Some(*value)),
                        Value::Float(value) => expected.double(Some(*value)),
                        Value::Str(value) => expected.text(Some(value)),
                    }
                }
                columns.iter().for_each(|column| expected.column(column));
                sorter.push(Cell { key, bucket, state }).unwrap();
            }
            let (chunks, mut sent) = tokio::sync::mpsc::channel(1);
            encode(&metric, 7, sorter.finish().unwrap(), &chunks).unwrap();
            prop_assert_eq!(sent.blocking_recv(), Some(expected.finish()));
        }
    }
}
