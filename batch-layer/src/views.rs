//! The views that people and BI tools read: `metrics.<metric>`, one a metric, with named, typed and commented columns,
//! showing just the live versions of the catalog's metric version. They follow flips by themselves; only a change of
//! the catalog makes them anew.

use crate::replace::names::{self, literal, quote};
use anyhow::{Context, Result};
use shared_model::aggregate::{Aggregate, ColumnType};
use shared_model::catalog::Catalog;
use shared_model::dense;
use shared_model::metric::{Formula, Metric};
use sqlx::{AssertSqlSafe, PgConnection};
use xxhash_rust::xxh3::xxh3_64;

/// Creates or updates the views of all metrics and formulas whose definition differs from the one in the database, and
/// drops those that are no longer in the catalog.
pub(crate) async fn refresh(connection: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    for metric in &catalog.metrics {
        sqlx::raw_sql(AssertSqlSafe(names::create_parent(metric))).execute(&mut *connection).await?;
        if let Err(error) = widen(connection, metric).await {
            tracing::warn!(
                metric = metric.name,
                "its rows can't be dense yet, and its view is as it was: {error:#}"
            );
            continue;
        }
        let over: Vec<&str> = catalog
            .formulas
            .iter()
            .filter(|formula| formula.columns.iter().any(|(_, used)| *used == metric.name))
            .map(|formula| formula.name.as_str())
            .collect();
        put(connection, &metric.name, &metric_view(metric), &over).await?;
    }
    for formula in &catalog.formulas {
        if let Some(definition) = formula_view(catalog, formula) {
            put(connection, &formula.name, &definition, &[]).await?;
        }
    }
    drop_removed(connection, catalog).await
}

/// Has a parent from before there were dense rows take them: what it has holds a cell a row, and no more.
async fn widen(connection: &mut PgConnection, metric: &Metric) -> Result<()> {
    if dense::further(metric) == 0 {
        return Ok(());
    }
    let parent = names::parent_table(metric);
    let sql = "select exists (select from pg_attribute where attrelid = to_regclass($1) and attname = $2)";
    let query = sqlx::query_scalar(sql).bind(format!("views.{}", quote(&parent))).bind(dense::BUCKETS);
    let is_wide: bool = query.fetch_one(&mut *connection).await?;
    if is_wide {
        return Ok(());
    }
    let widened = in_transaction(connection, &names::widen_parent(metric)).await;
    widened.with_context(|| format!("adding columns to views.{parent}"))
}

/// Drops the views of ours that the catalog doesn't have any more: no run keeps what they show up to date. One that
/// other views were built on stays, and is an error.
async fn drop_removed(connection: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let formulas = catalog.formulas.iter().map(|formula| formula.name.as_str());
    let kept: Vec<&str> = catalog.metrics.iter().map(|metric| metric.name.as_str()).chain(formulas).collect();
    let sql = "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'metrics' and c.relkind = 'v' and not (c.relname = any($1))
                 and obj_description(c.oid, 'pg_class') ~ '\\[[0-9a-f]{16}\\]$'";
    let removed: Vec<String> = sqlx::query_scalar(sql).bind(kept).fetch_all(&mut *connection).await?;
    if removed.is_empty() {
        return Ok(());
    }
    // At once: formulas stand on metrics.
    let names: Vec<String> = removed.iter().map(|name| format!("metrics.{}", quote(name))).collect();
    let names = names.join(", ");
    let dropped = in_transaction(connection, &format!("drop view {names};")).await;
    dropped.with_context(|| format!("dropping {names}, which the catalog doesn't have any more"))
}

/// Makes a view anew where its definition changed. The comment ends with the definition's hash, which tells.
///
/// It is replaced where it stands, which keeps grants and what people built on it. Where its columns changed that can't
/// be: then it is dropped, after the views of formulas `over` it, which follow in this refresh.
async fn put(connection: &mut PgConnection, name: &str, view: &View, over: &[&str]) -> Result<()> {
    let hash = format!("{:016x}", xxh3_64(format!("{view:?}").as_bytes()));
    let sql = "select obj_description(c.oid, 'pg_class') from pg_class c
               join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'metrics' and c.relname = $1";
    let found: Option<Option<String>> =
        sqlx::query_scalar(sql).bind(name).fetch_optional(&mut *connection).await?;
    if found.flatten().is_some_and(|comment| comment.ends_with(&format!("[{hash}]"))) {
        return Ok(());
    }
    let view_name = format!("metrics.{}", quote(name));
    let comment = literal(&format!("{} [{hash}]", view.comment));
    let mut create = format!(
        "create or replace view {view_name} as {}; comment on view {view_name} is {comment};",
        view.query
    );
    for (column, comment) in &view.columns {
        create += &format!(" comment on column {view_name}.{} is {};", quote(column), literal(comment));
    }
    let drops =
        over.iter().chain([&name]).map(|name| format!("drop view if exists metrics.{};", quote(name)));
    let anew = drops.collect::<String>() + &create;
    let done = match in_transaction(connection, &create).await {
        Err(error) if has_other_columns(&error) => in_transaction(connection, &anew).await,
        done => done,
    };
    done.with_context(|| format!("view {view_name}"))
}

async fn in_transaction(connection: &mut PgConnection, statements: &str) -> sqlx::Result<()> {
    let all = format!("begin; set local lock_timeout = '2s'; {statements} commit");
    let done = sqlx::raw_sql(AssertSqlSafe(all)).execute(&mut *connection).await;
    if done.is_err() {
        sqlx::raw_sql("rollback").execute(connection).await?;
    }
    done.map(|_| ())
}

/// Whether a view wasn't replaced because its columns are others: invalid_table_definition.
fn has_other_columns(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42P16"))
}

/// A view's definition.
#[derive(Debug, PartialEq, Eq)]
struct View {
    query: String,
    comment: String,
    /// Columns with their comments.
    columns: Vec<(String, String)>,
}

fn metric_view(metric: &Metric) -> View {
    let mut columns =
        vec![("bucket".to_owned(), format!("Start of the bucket, {} wide", width(metric.grain.width())))];
    for key in metric.key_columns() {
        columns.push((key.name.clone(), "Key".to_owned()));
    }
    if let Some(item) = &metric.item {
        let comment =
            format!("The item that is ranked: order by value desc, {} and take the first", item.name);
        columns.last_mut().into_iter().for_each(|last| last.1.clone_from(&comment));
    }
    for (name, _) in metric.aggregate.columns() {
        columns.push((name.to_owned(), column_comment(metric, name)));
    }
    let list: Vec<String> = columns.iter().map(|(name, _)| format!("v.{}", quote(name))).collect();
    let live = format!(
        "views.{} v join tidemark.live_version l on l.version_id = v.version_id and l.version = '{}'",
        quote(&names::parent_table(metric)),
        metric.version
    );
    let query = if dense::further(metric) == 0 {
        format!("select {} from {live}", list.join(", "))
    } else {
        let list: Vec<String> = columns.iter().map(|(name, _)| quote(name)).collect();
        let cells = dense::cells(&live, &[], metric, &metric.aggregate.columns());
        format!("select {} from {cells}", list.join(", "))
    };
    let owner = if metric.owner.is_empty() { String::new() } else { format!(" Owner: {}.", metric.owner) };
    let comment = format!("{}.{owner} Batch view only; version {}.", metric.description, metric.version);
    View { query, comment, columns }
}

fn column_comment(metric: &Metric, column: &str) -> String {
    let unit = if metric.unit.is_empty() { String::new() } else { format!(" in {}", metric.unit) };
    match (&metric.aggregate, column) {
        (Aggregate::Distinct, "estimate") => {
            "How many distinct values. It does NOT add up: not over keys, not over buckets; merge `sketch` instead".to_owned()
        }
        (_, "state") => "The mergeable state, for programs".to_owned(),
        (Aggregate::Distinct, "sketch") => "DataSketches HLL, lgK 12: merge with Spark's hll_union_agg or any \
             DataSketches library, then estimate. It does NOT add up"
            .to_owned(),
        (Aggregate::Quantile { .. }, _) => format!("A quantile{unit}. It does NOT add up"),
        (Aggregate::Sessions { .. }, _) => {
            "How many sessions have a record in the bucket. It does NOT add up over buckets: one may go on in the next".to_owned()
        }
        (Aggregate::Mean(_), "value") => format!("The mean{unit}. It does NOT add up: use sum / count"),
        (Aggregate::Mean(_), "sum") => format!("The sum{unit}, in units of the value's last decimal place"),
        (Aggregate::Mean(_), _) => "How many values".to_owned(),
        (Aggregate::Sum(_), _) => format!("The sum{unit}, in units of the value's last decimal place"),
        (aggregate, _) => {
            let name = match aggregate {
                Aggregate::Min(_) => "The least value",
                Aggregate::Max(_) => "The greatest value",
                _ => "How many",
            };
            format!("{name}{unit}")
        }
    }
}

/// A full outer join in which NULL keys meet too, written as a union: each metric has a row once a key and bucket.
fn formula_view(catalog: &Catalog, formula: &Formula) -> Option<View> {
    let keys: String = formula.by.iter().map(|key| format!(", {}", quote(&key.name))).collect();
    let mut parts = Vec::new();
    for (at, (_, metric)) in formula.columns.iter().enumerate() {
        let metric = catalog.metric(metric)?;
        // A mean keeps its sum and count before its value; a distinct has an estimate, no value.
        let columns = metric.aggregate.columns();
        let named = columns.iter().find(|(name, _)| *name == "value");
        let (value, _) =
            named.or_else(|| columns.iter().find(|(_, ty)| *ty != ColumnType::Bytes)).copied()?;
        let values = (0..formula.columns.len()).map(|other| {
            if other == at {
                format!(", {} as c{other}", quote(value))
            } else {
                format!(", null as c{other}")
            }
        });
        parts.push(format!(
            "select bucket{keys}{} from metrics.{}",
            values.collect::<String>(),
            quote(&metric.name)
        ));
    }
    let values: String = formula
        .columns
        .iter()
        .enumerate()
        .map(|(at, (name, _))| format!(", coalesce(max(c{at}), 0) as {}", quote(name)))
        .collect();
    let numbers: Vec<String> = (0..=formula.by.len()).map(|at| (at + 1).to_string()).collect();
    let query = format!(
        "select bucket{keys}{values} from ({}) parts group by {}",
        parts.join(" union all "),
        numbers.join(", ")
    );
    let mut columns =
        vec![("bucket".to_owned(), format!("Start of the bucket, {} wide", width(formula.grain.width())))];
    columns.extend(formula.by.iter().map(|key| (key.name.clone(), "Key".to_owned())));
    columns.extend(
        formula.columns.iter().map(|(name, metric)| (name.clone(), format!("{metric}; 0 where it has none"))),
    );
    Some(View { query, comment: format!("{}. Batch view only.", formula.description), columns })
}

fn width(millis: i64) -> String {
    humantime::format_duration(std::time::Duration::from_millis(millis.unsigned_abs())).to_string()
}
