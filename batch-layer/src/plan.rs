//! From a metric of the catalog and a day's segments to Polars plans. Pure: nothing is read here.
//!
//! Of equal identities one delivery survives: the lowest topic, partition, offset. Which ones must go is found first,
//! over identities and positions alone ([`repeated`], [`contenders`]), and taken away by an anti-join ([`survivors`]):
//! a small table instead of a `unique` over the whole day. Then [`cells`] groups by key and bucket. Plans end in
//! numbers and values that the states of [`shared_model::aggregate`] are made of, exactly.

pub(crate) mod expression;

use expression::{data_type, translate};
use polars::prelude::*;
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Stream;
use shared_model::metric::{Binding, Metric};
use shared_model::time::Millis;
use std::path::PathBuf;

/// The columns that name a delivery.
pub(crate) const POSITION: [&str; 3] = ["_topic", "_partition", "_offset"];
/// The columns of the identity.
pub(crate) const IDENTITY: [&str; 2] = ["_identity_hi", "_identity_lo"];
/// The column of the event time.
pub(crate) const EVENT_TIME: &str = "_event_time";

/// Segments of one stream that have the same columns, of the same types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segments {
    /// Their paths; not empty.
    pub(crate) files: Vec<PathBuf>,
    /// Indices of the stream's fields that they lack: fields declared after they were written.
    pub(crate) missing: Vec<usize>,
}

/// All rows of files that have the same columns.
pub(crate) fn scan(files: &[PathBuf]) -> PolarsResult<LazyFrame> {
    let paths = files.iter().map(|file| PlRefPath::try_from_path(file)).collect::<PolarsResult<Vec<_>>>()?;
    let args = ScanArgsParquet {
        glob: false,
        cache: false,
        hive_options: HiveOptions::new_disabled(),
        ..ScanArgsParquet::default()
    };
    LazyFrame::scan_parquet_files(paths.into_iter().collect(), args)
}

/// All rows of segments of one stream, in the columns that a computation reads: the declared fields (NULL where a
/// segment lacks them), position, identity, and the event time as an integer.
pub(crate) fn deliveries(stream: &Stream, segments: &[Segments]) -> PolarsResult<LazyFrame> {
    let frames = segments.iter().map(|alike| Ok(scan(&alike.files)?.select(columns(stream, &alike.missing))));
    let mut frames = frames.collect::<PolarsResult<Vec<_>>>()?;
    match frames.len() {
        1 => Ok(frames.remove(0)),
        _ => concat(frames, UnionArgs { maintain_order: false, ..UnionArgs::default() }),
    }
}

fn columns(stream: &Stream, missing: &[usize]) -> Vec<Expr> {
    let fields = stream.fields.iter().enumerate().map(|(at, field)| match missing.contains(&at) {
        true => lit(NULL).cast(data_type(field.ty)).alias(field.name.as_str()),
        false => col(field.name.as_str()),
    });
    let system = POSITION.iter().chain(&IDENTITY).map(|name| col(*name));
    fields.chain(system).chain([col(EVENT_TIME).cast(DataType::Int64)]).collect()
}

/// The rows whose identities' low half is `slice` modulo `slices`: all deliveries of an event are in one slice.
pub(crate) fn slice(rows: LazyFrame, slice: u64, slices: u64) -> LazyFrame {
    if slices > 1 { rows.filter((col(IDENTITY[1]) % lit(slices)).eq(lit(slice))) } else { rows }
}

/// The identities that more than one row has.
pub(crate) fn repeated(rows: LazyFrame) -> LazyFrame {
    let counted = rows.group_by(IDENTITY.map(col)).agg([len().alias("deliveries")]);
    counted.filter(col("deliveries").gt(lit(1u32))).select(IDENTITY.map(col))
}

/// The same of those identities alone that `new` rows have.
pub(crate) fn repeated_of(new: LazyFrame, rows: LazyFrame) -> LazyFrame {
    let (new, rows) = (new.select(IDENTITY.map(col)), rows.select(IDENTITY.map(col)));
    let join = JoinArgs::new(JoinType::Semi);
    repeated(rows.join(new, IDENTITY.map(col), IDENTITY.map(col), join))
}

/// Those deliveries whose identities are repeated, the ones of one identity together, the survivor first.
pub(crate) fn contenders(rows: LazyFrame, repeated: DataFrame) -> LazyFrame {
    let columns: Vec<Expr> = IDENTITY.iter().chain(&POSITION).map(|name| col(*name)).collect();
    let join = JoinArgs::new(JoinType::Semi);
    let found =
        rows.select(columns.clone()).join(repeated.lazy(), IDENTITY.map(col), IDENTITY.map(col), join);
    found.sort_by_exprs(columns, SortMultipleOptions::default())
}

/// The rows without the deliveries that must go.
pub(crate) fn survivors(rows: LazyFrame, gone: LazyFrame) -> LazyFrame {
    rows.join(gone, POSITION.map(col), POSITION.map(col), JoinArgs::new(JoinType::Anti))
}

/// The names of a metric's key columns in its plans: `k0`, `k1`, ..., the item of a top-k last.
pub(crate) fn key_names(metric: &Metric) -> Vec<String> {
    (0..metric.by.len() + usize::from(metric.item.is_some())).map(|at| format!("k{at}")).collect()
}

/// The cells of a metric over the surviving rows of one of its streams: one row per (key, `bucket`), NULL keys being
/// keys of their own, with
///
/// - count, top-k: `n` rows;
/// - sum, mean: `sum` (128 bits) and number `n` of values;
/// - min, max: `value`;
/// - distinct, quantile: one row per `value` too, `n` times there.
pub(crate) fn cells(stream: &Stream, metric: &Metric, binding: &Binding, rows: LazyFrame) -> LazyFrame {
    let rows = match &binding.filter {
        Some(filter) => rows.filter(translate(stream, filter)),
        None => rows,
    };
    let keys = binding.by.iter().chain(&binding.item).map(|key| translate(stream, key));
    let mut columns: Vec<Expr> =
        keys.zip(key_names(metric)).map(|(key, name)| key.alias(name.as_str())).collect();
    columns.push(bucket(metric.grain.width()).alias("bucket"));
    if let Some(value) = &binding.value {
        columns.push(translate(stream, value).alias("value"));
    }
    let mut by: Vec<Expr> = key_names(metric).iter().map(|name| col(name.as_str())).collect();
    by.push(col("bucket"));
    let value = || col("value");
    let rows_of_cell = || len().cast(DataType::Int64).alias("n");
    let values_of_cell = || value().count().cast(DataType::Int64).alias("n");
    let aggregates = match &metric.aggregate {
        Aggregate::Count | Aggregate::TopK { .. } => vec![rows_of_cell()],
        Aggregate::Sum(_) | Aggregate::Mean(_) => {
            vec![value().cast(DataType::Int128).sum().alias("sum"), values_of_cell()]
        }
        Aggregate::Min(_) => vec![value().min()],
        Aggregate::Max(_) => vec![value().max()],
        Aggregate::Distinct | Aggregate::Quantile { .. } => {
            by.push(value());
            vec![rows_of_cell()]
        }
    };
    rows.select(columns).group_by(by).agg(aggregates)
}

/// The start of the bucket that holds the event time, rounded down before 1970 too, whichever sign a remainder has.
fn bucket(width: Millis) -> Expr {
    let time = || col(EVENT_TIME);
    time() - ((time() % lit(width)) + lit(width)) % lit(width)
}

#[cfg(test)]
mod tests;
