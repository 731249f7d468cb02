//! The history of runs, for people and programs.

use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{FromRow, PgPool};

/// One run, as its record says.
#[derive(Debug, Serialize, FromRow)]
pub(crate) struct Record {
    run_id: i64,
    kind: String,
    status: String,
    started_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
    parameters: Json<serde_json::Value>,
    generation_before: Option<i64>,
    generation_after: Option<i64>,
    days: i32,
    rows: i64,
    imports: Json<serde_json::Value>,
    error: Option<String>,
}

/// The newest runs, the newest first.
pub(crate) async fn list(pool: &PgPool, limit: i64) -> Result<Vec<Record>> {
    let sql = "select run_id, kind, status, started_at, finished_at, parameters, generation_before, generation_after,
                      days, rows, imports, error
               from tidemark.run order by run_id desc limit $1";
    Ok(sqlx::query_as(sql).bind(limit).fetch_all(pool).await?)
}

impl Record {
    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// One line of the table under [`HEADING`].
    pub(crate) fn line(&self) -> String {
        let seconds = self.finished_at.map(|end| (end - self.started_at).num_milliseconds() as f64 / 1000.0);
        let show = |generation: Option<i64>| generation.map_or("-".to_owned(), |number| number.to_string());
        let moved = format!("{} -> {}", show(self.generation_before), show(self.generation_after));
        format!(
            "{:>6}  {:<8}  {:<7}  {:<20}  {:>8}  {:>12}  {:>5}  {:>10}  {}{}",
            self.run_id,
            self.kind,
            self.status,
            self.started_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1}")),
            moved,
            self.days,
            self.rows,
            self.parameters.0,
            self.error.as_ref().map(|error| format!("  {error}")).unwrap_or_default()
        )
    }
}

/// The heading of the table.
pub(crate) const HEADING: &str =
    "   run  kind      status   started               seconds     tidemark  days        rows  parameters";
