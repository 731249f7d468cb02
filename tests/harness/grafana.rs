//! What the panels of a catalog's dashboard ask by SQL, asked as Grafana would.

use crate::stack::Stack;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use std::collections::BTreeMap;

/// The data source of the batch view.
pub const BATCH_VIEW: &str = "tidemark-batch";
/// The data source of merged SQL.
pub const MERGED: &str = "tidemark-merged";

/// The statement of each panel of a data source, by its title: over all times, in steps of half an hour or the grain's next, with something in each
/// text box.
///
/// # Panics
/// Where the dashboard can't be made, or a statement has anything that Grafana is not told here to replace.
pub fn statements(stack: &Stack, source: &str, in_boxes: &str) -> BTreeMap<String, String> {
    let dashboard: Value =
        serde_json::from_str(&stack.printed("batch-layer", &["catalog", "grafana"])).expect("a dashboard");
    let boxes = dashboard["templating"]["list"].as_array().expect("text boxes").iter();
    let boxes: Vec<&str> = boxes.map(|of| of["name"].as_str().expect("a name")).collect();
    let mut found = BTreeMap::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let Some(sql) = panel["targets"][0]["rawSql"].as_str() else { continue };
        if panel["datasource"]["uid"] != source {
            continue;
        }
        let mut sql = sql
            .replace("$__interval_ms", "1800000")
            .replace("$__timeFilter(bucket)", "bucket between '2000-01-01' and '2100-01-01'");
        for name in &boxes {
            sql = sql.replace(&format!("${{{name}:sqlstring}}"), &format!("'{in_boxes}'"));
        }
        assert!(!sql.contains('$'), "{sql}");
        found.insert(panel["title"].as_str().expect("a title").to_owned(), sql);
    }
    found
}

/// How many rows each panel of the batch view has.
///
/// # Panics
/// Where Postgres refuses a statement.
pub async fn rows(stack: &Stack, pool: &PgPool, in_boxes: &str) -> BTreeMap<String, usize> {
    let mut rows = BTreeMap::new();
    for (title, sql) in statements(stack, BATCH_VIEW, in_boxes) {
        let asked = sqlx::raw_sql(AssertSqlSafe(sql.clone())).fetch_all(pool).await;
        rows.insert(title, asked.unwrap_or_else(|error| panic!("{sql}: {error}")).len());
    }
    rows
}
