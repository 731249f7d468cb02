//! Names and definitions of the batch view's tables. Pure.
//!
//! A parent per metric version, `views."<metric>_<version>"`, partitioned by version id; a child per computed day. Both
//! names fit Postgres' 63 bytes: a child's keeps what makes it unique and shortens the metric's part. A parent whose metric
//! may have dense rows has their arrays behind all other columns.

use shared_model::dense;
pub(crate) use shared_model::dense::quote;
use shared_model::event::FieldType;
use shared_model::metric::Metric;
use shared_model::time::{DAY, EventDay};

/// A text as SQL takes it.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The parent's name.
pub(crate) fn parent_table(metric: &Metric) -> String {
    format!("{}_{}", metric.name, metric.version)
}

/// A child's name: `<metric>_<version>_<yyyymmdd>_<version id>`, and at its end whether its rows may be dense.
pub(crate) fn child_table(metric: &Metric, day: EventDay, version: i64, dense: bool) -> String {
    let dense = if dense { dense::SUFFIX } else { "" };
    let unique = format!("_{}_{}_{version}{dense}", metric.version, day.date().format("%Y%m%d"));
    let room = 63usize.saturating_sub(unique.len());
    let mut name = metric.name.clone();
    name.truncate((0..=room.min(name.len())).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0));
    name + &unique
}

/// The columns of any row, quoted, in the order in which they are written.
pub(crate) fn columns(metric: &Metric) -> Vec<String> {
    let own = ["version_id", "bucket"].map(str::to_owned);
    let keys = metric.key_columns().map(|key| quote(&key.name));
    let states = metric.aggregate.columns().into_iter().map(|(name, _)| quote(name));
    own.into_iter().chain(keys).chain(states).collect()
}

/// The arrays of a metric's dense rows, quoted and with their types, in the order in which they are written; none if it has no
/// such rows.
pub(crate) fn arrays(metric: &Metric) -> Vec<(String, String)> {
    if dense::further(metric) == 0 {
        return Vec::new();
    }
    let states = metric.aggregate.columns().into_iter();
    let states = states.map(|(name, ty)| (quote(&dense::array(name)), format!("{}[]", ty.name())));
    std::iter::once((quote(dense::BUCKETS), "timestamptz[]".to_owned())).chain(states).collect()
}

/// The Postgres type of a key's column. Texts are ordered by their bytes, as everywhere, in a database of any locale; so
/// conditions on their order reach the index, whose keys are sorted fastest so.
fn key_type(ty: FieldType) -> &'static str {
    match ty {
        FieldType::String => "text collate \"C\"",
        FieldType::Int | FieldType::Decimal(_) => "bigint",
        FieldType::Float => "double precision",
        FieldType::Bool => "boolean",
    }
}

/// Creates a metric version's parent, if it isn't there.
pub(crate) fn create_parent(metric: &Metric) -> String {
    let keys = metric.key_columns().map(|key| format!(", {} {}", quote(&key.name), key_type(key.ty)));
    let columns = metric.aggregate.columns();
    let states = columns.iter().map(|(name, ty)| format!(", {} {}", quote(name), ty.name()));
    let arrays = arrays(metric).into_iter().map(|(name, ty)| format!(", {name} {ty}"));
    let columns: String = keys.chain(states).chain(arrays).collect();
    format!(
        "create table if not exists views.{} (version_id bigint not null, bucket timestamptz not null{columns}) \
         partition by list (version_id)",
        quote(&parent_table(metric))
    )
}

/// Adds the arrays of dense rows to a parent from before there were any, and to its children. No row is written anew.
pub(crate) fn widen_parent(metric: &Metric) -> String {
    let arrays = arrays(metric).into_iter().map(|(name, ty)| format!("add column if not exists {name} {ty}"));
    let arrays: Vec<String> = arrays.collect();
    format!("alter table views.{} {};", quote(&parent_table(metric)), arrays.join(", "))
}

/// Creates a child. The check spares the attaching a scan. Nothing is planned by what dense rows' arrays hold, and to sample
/// them takes long: neither who loads the table nor autovacuum does.
pub(crate) fn create_child(metric: &Metric, table: &str, version: i64) -> String {
    let (parent, child) = (quote(&parent_table(metric)), quote(table));
    let create = format!("create table views.{child} (like views.{parent}, check (version_id = {version}));");
    if !dense::is_dense(table) {
        return create;
    }
    let unsampled: Vec<String> =
        arrays(metric).iter().map(|(name, _)| format!("alter column {name} set statistics 0")).collect();
    format!("{create} alter table views.{child} {};", unsampled.join(", "))
}

/// The index that reading by key and time wants. Named by its version, since the names that Postgres gives, shortened to
/// what it can hold, may be the same for two days of one metric that are loaded at once.
///
/// A bucket as wide as a day is the same in all rows of a table: behind a key it tells none of them apart. (Without a
/// key, too; but there are few rows then, and each table has its index.)
pub(crate) fn create_index(metric: &Metric, table: &str, version: i64) -> String {
    let mut columns: Vec<String> = metric.by.iter().map(|key| quote(&key.name)).collect();
    if columns.is_empty() || metric.grain.width() < DAY {
        columns.push("bucket".to_owned());
    }
    format!("create index by_key_{version} on views.{} ({})", quote(table), columns.join(", "))
}

/// Makes a child a partition.
pub(crate) fn attach(parent: &str, table: &str, version: i64) -> String {
    format!(
        "alter table views.{} attach partition views.{} for values in ({version})",
        quote(parent),
        quote(table)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::catalog::{Catalog, OUTBRAIN};
    use shared_model::time::Grain;

    #[test]
    fn tables_are_as_the_readers_expect_them() {
        let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
        let metric = catalog.metric("geo_top_doc").expect("shipped");
        let version = metric.version;
        let columns = "version_id bigint not null, bucket timestamptz not null, \"geo_location\" text collate \"C\", \
                       \"document_id\" bigint, \"value\" bigint, \"_bucket\" timestamptz[], \"_value\" bigint[]";
        assert_eq!(
            create_parent(metric),
            format!(
                "create table if not exists views.\"geo_top_doc_{version}\" ({columns}) partition by list (version_id)"
            )
        );
        assert_eq!(
            widen_parent(metric),
            format!(
                "alter table views.\"geo_top_doc_{version}\" add column if not exists \"_bucket\" timestamptz[], \
                 add column if not exists \"_value\" bigint[];"
            )
        );
        let child = |table: &str| {
            format!(
                "create table views.\"{table}\" (like views.\"geo_top_doc_{version}\", check (version_id = 5));"
            )
        };
        assert_eq!(create_child(metric, "t", 5), child("t"));
        let unsampled = " alter table views.\"t_dense\" alter column \"_bucket\" set statistics 0, \
                         alter column \"_value\" set statistics 0;";
        assert_eq!(create_child(metric, "t_dense", 5), child("t_dense") + unsampled);
        let index = "create index by_key_5 on views.\"t\" (\"geo_location\", bucket)";
        assert_eq!(create_index(metric, "t", 5), index);
        let mut daily = (**metric).clone();
        daily.grain = Grain::new(DAY).expect("it divides a day");
        assert_eq!(create_index(&daily, "t", 5), "create index by_key_5 on views.\"t\" (\"geo_location\")");
        assert!(arrays(&daily).is_empty(), "a key has one cell a day");
        daily.by.clear();
        assert_eq!(create_index(&daily, "t", 5), "create index by_key_5 on views.\"t\" (bucket)");
        let day = EventDay(16_966);
        for (dense, end) in [(false, ""), (true, "_dense")] {
            assert_eq!(child_table(metric, day, 5, dense), format!("geo_top_doc_{version}_20160614_5{end}"));
            let long = child_table(metric, day, i64::MAX, dense);
            let end = format!("_20160614_9223372036854775807{end}");
            assert!(long.len() <= 63 && long.ends_with(&end), "{long}");
        }
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
    }
}
