//! Dense rows: how a table of the batch view holds several cells of one key in a row, and the SQL that reads them as cells.
//!
//! A dense row has its first cell in the columns that any row has, and further ones of the very same key (a top-k's item is
//! part of it), all of later buckets, in arrays: one of their buckets, and one for each column of the state, all equally long.
//! They are NULL where the key has no more. The name of a version's table says whether its rows may be dense; a parent has the
//! arrays from before the first of its tables does, so that rows of both kinds are read alike.

use crate::aggregate::ColumnType;
use crate::metric::Metric;
use crate::time::DAY;

/// The array of the further cells' buckets. No field, dimension or state's column has a name that begins like it.
pub const BUCKETS: &str = "_bucket";

/// What the name of a table with dense rows ends with; others end with a digit.
pub const SUFFIX: &str = "_dense";

/// About how many bytes a row's arrays take at most: beyond 2 kB Postgres would compress a row and move it elsewhere. Of a
/// count, 73 cells are a row: a day of 5 minutes' buckets has four, one of 20 minutes' or hours one.
const MOST_BYTES: usize = 1_152;

/// How many cells a row of a metric may have beside its first: none where the grain leaves a key one cell a day, or a column
/// may be of any length.
pub fn further(metric: &Metric) -> usize {
    if metric.grain.width() >= DAY {
        return 0;
    }
    let widths: Option<usize> = metric.aggregate.columns().into_iter().map(|(_, ty)| width(ty)).sum();
    widths.map_or(0, |columns| MOST_BYTES / (size_of::<i64>() + columns))
}

/// About how many bytes an element of an array takes, if its type bounds that.
fn width(ty: ColumnType) -> Option<usize> {
    match ty {
        ColumnType::BigInt | ColumnType::Double => Some(8),
        // Of 128 bits at most 28, and these are sums.
        ColumnType::Numeric => Some(16),
        ColumnType::Bool => Some(1),
        ColumnType::Text | ColumnType::Bytes => None,
    }
}

/// Whether a version's table, by its name, has dense rows.
pub fn is_dense(table: &str) -> bool {
    table.ends_with(SUFFIX)
}

/// The array of a column's values in further cells.
pub fn array(column: &str) -> String {
    format!("_{column}")
}

/// All cells of a metric's dense rows, as what a statement selects from: of each the rows' `own` columns (their version's id),
/// the key's, `bucket` and the aggregate's `columns`. `rows` is what the rows are selected from; their table is called `v`
/// there.
///
/// First cells are rows as they are, and the others are made of those rows alone that have some: twice read is faster than to
/// make each single cell an array. A condition on a key reaches the index in both parts, one on the bucket in the first.
pub fn cells(rows: &str, own: &[&str], metric: &Metric, columns: &[(&str, ColumnType)]) -> String {
    let first = list(own, metric, columns, |column| format!("v.{}", quote(column)));
    let further = list(own, metric, columns, |column| format!("unnest(v.{})", quote(&array(column))));
    let has_further = format!("v.{} is not null", quote(BUCKETS));
    format!(
        "(select {first} from {rows} union all select {further} from {rows} where {has_further}) as cells"
    )
}

/// The same, for whoever reads few rows: each is found once. A NULL array is an empty one to `||`.
pub fn cells_of_few(rows: &str, own: &[&str], metric: &Metric, columns: &[(&str, ColumnType)]) -> String {
    let both = |column: &str| format!("unnest(v.{} || v.{})", quote(column), quote(&array(column)));
    let all = list(own, metric, columns, both);
    format!("(select {all} from {rows}) as cells")
}

/// What is selected: `own` columns and the key's as they are, and the bucket and `columns` as `of` says.
fn list(
    own: &[&str],
    metric: &Metric,
    columns: &[(&str, ColumnType)],
    of: impl Fn(&str) -> String,
) -> String {
    let keys = metric.key_columns().map(|key| key.name.as_str());
    let same = own.iter().copied().chain(keys).map(|column| format!("v.{}", quote(column)));
    let columns = ["bucket"].into_iter().chain(columns.iter().map(|(name, _)| *name));
    let columns = columns.map(|column| format!("{} as {}", of(column), quote(column)));
    same.chain(columns).collect::<Vec<_>>().join(", ")
}

/// A name as SQL takes it, whatever it holds.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Aggregate;
    use crate::catalog::{Catalog, OUTBRAIN};
    use crate::event::FieldType;
    use crate::time::Grain;

    #[test]
    fn rows_are_dense_where_a_key_has_cells_of_bounded_length() {
        let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
        let mut metric = (**catalog.metric("doc_cnt").expect("shipped")).clone();
        metric.grain = Grain::new(300_000).expect("it divides a day");
        for (aggregate, expected) in [
            (Aggregate::Count, 72),
            (Aggregate::TopK { k: 3 }, 72),
            (Aggregate::Sum(FieldType::Int), 48),
            (Aggregate::Mean(FieldType::Decimal(2)), 28),
            (Aggregate::Min(FieldType::Bool), 128),
            (Aggregate::Max(FieldType::Float), 72),
            (Aggregate::Max(FieldType::String), 0),
            (Aggregate::Distinct, 0),
        ] {
            metric.aggregate = aggregate;
            assert_eq!(further(&metric), expected, "{:?}", metric.aggregate);
        }
        metric.aggregate = Aggregate::Count;
        metric.grain = Grain::new(DAY).expect("it divides a day");
        assert_eq!(further(&metric), 0, "a key has one cell a day");
        assert!(is_dense("doc_cnt_0123456789abcdef_20160614_5_dense"));
        assert!(!is_dense("doc_cnt_0123456789abcdef_20160614_5"));
    }

    #[test]
    fn cells_are_selected_of_arrays_too() {
        let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
        let metric = catalog.metric("geo_top_doc").expect("shipped");
        let columns = metric.aggregate.columns();
        assert_eq!(
            cells("views.\"t\" v", &[], metric, &columns),
            "(select v.\"geo_location\", v.\"document_id\", v.\"bucket\" as \"bucket\", v.\"value\" as \"value\" \
             from views.\"t\" v union all \
             select v.\"geo_location\", v.\"document_id\", unnest(v.\"_bucket\") as \"bucket\", \
             unnest(v.\"_value\") as \"value\" from views.\"t\" v where v.\"_bucket\" is not null) as cells"
        );
        assert_eq!(
            cells_of_few("views.\"t\" v", &["version_id"], metric, &columns),
            "(select v.\"version_id\", v.\"geo_location\", v.\"document_id\", \
             unnest(v.\"bucket\" || v.\"_bucket\") as \"bucket\", \
             unnest(v.\"value\" || v.\"_value\") as \"value\" from views.\"t\" v) as cells"
        );
    }
}
