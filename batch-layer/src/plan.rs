//! From metrics of the catalog and a day's segments to Polars plans. Pure: nothing is read here.
//!
//! Of equal identities one delivery survives: the lowest topic, partition, offset. What metrics take from a row (keys,
//! values, filters) are columns that a plan computes, each once, whichever metrics want it ([`Needs`]); the cells are
//! folded from these columns.

pub(crate) mod expression;

use expression::{data_type, translate};
use polars::prelude::*;
use shared_model::catalog::Stream;
use shared_model::expression::Expression;
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
    /// How many rows each row group of each has.
    pub(crate) groups: Vec<Vec<u64>>,
    /// About how many bytes the widest rows take in memory: those of the row group whose rows take the most.
    pub(crate) row_bytes: u64,
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
/// segment lacks them; of an append time, the column that each has), position, identity, and the event time as an integer.
pub(crate) fn deliveries(stream: &Stream, segments: &[Segments]) -> PolarsResult<LazyFrame> {
    let frames = segments.iter().map(|alike| Ok(scan(&alike.files)?.select(columns(stream, &alike.missing))));
    let mut frames = frames.collect::<PolarsResult<Vec<_>>>()?;
    match frames.len() {
        1 => Ok(frames.remove(0)),
        _ => concat(frames, UnionArgs { maintain_order: false, ..UnionArgs::default() }),
    }
}

/// The column with a record's append time; NULL of an imported row.
pub(crate) const INGEST_TIME: &str = "_ingest_time";

fn columns(stream: &Stream, missing: &[usize]) -> Vec<Expr> {
    let fields = stream.fields.iter().enumerate().map(|(at, field)| match field.name.as_str() {
        // Every segment has it, whatever the catalog was when it was written.
        name if at >= stream.recorded => col(INGEST_TIME).cast(DataType::Int64).alias(name),
        name if missing.contains(&at) => lit(NULL).cast(data_type(field.ty)).alias(name),
        name => col(name),
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

/// What metrics take from the rows of one stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needs {
    /// Each expression once.
    pub(crate) columns: Vec<Expression>,
    /// Of each metric.
    pub(crate) metrics: Vec<Need>,
}

/// What one metric takes; columns by their place in [`Needs::columns`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Need {
    /// Only rows where this is true count.
    pub(crate) filter: Option<usize>,
    /// The key's columns, then the item of a top-k.
    pub(crate) key: Vec<usize>,
    /// What the aggregate is taken of, if it is of a value.
    pub(crate) value: Option<usize>,
    /// The width of its buckets.
    pub(crate) width: Millis,
}

impl Needs {
    /// Of metrics, each with how the stream feeds it.
    pub(crate) fn of<'m>(metrics: impl Iterator<Item = (&'m Metric, &'m Binding)>) -> Needs {
        let mut needs = Needs::default();
        for (metric, binding) in metrics {
            let filter = binding.filter.as_ref().map(|filter| needs.column(filter));
            let key = binding.by.iter().chain(&binding.item).map(|part| needs.column(part)).collect();
            let value = binding.value.as_ref().map(|value| needs.column(value));
            needs.metrics.push(Need { filter, key, value, width: metric.grain.width() });
        }
        needs
    }

    fn column(&mut self, wanted: &Expression) -> usize {
        self.columns.iter().position(|known| known == wanted).unwrap_or_else(|| {
            self.columns.push(wanted.clone());
            self.columns.len() - 1
        })
    }

    /// The name of a column in the plan.
    pub(crate) fn name(column: usize) -> String {
        format!("c{column}")
    }

    /// The columns of rows that [`deliveries`] gives, and the event time; a row for each, in their order.
    pub(crate) fn select(&self, stream: &Stream, rows: LazyFrame) -> LazyFrame {
        let columns = self.columns.iter().enumerate();
        let mut columns: Vec<Expr> =
            columns.map(|(at, column)| translate(stream, column).alias(Needs::name(at))).collect();
        columns.push(col(EVENT_TIME));
        rows.select(columns)
    }
}

#[cfg(test)]
mod tests;
