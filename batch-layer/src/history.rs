//! The history of runs: their records, for people and programs, and the catalogs that they worked with.

use crate::ledger::timestamp;
use crate::run::Order;
use anyhow::{Result, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;
use shared_model::time::Millis;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, PgPool};
use xxhash_rust::xxh3::xxh3_128;

/// Opens the record of a run that starts now; the text of its catalog is kept once, however many runs have it.
pub(crate) async fn open(
    connection: &mut PgConnection,
    order: &Order,
    catalog: &str,
    now: Millis,
) -> Result<i64> {
    let sql =
        "with kept as (insert into tidemark.catalog (hash, text) values ($4, $5) on conflict do nothing)
               insert into tidemark.run (kind, status, started_at, parameters, catalog)
               values ($1, 'running', $2, $3, $4) returning run_id";
    let run = sqlx::query_scalar(sql)
        .bind(order.kind())
        .bind(timestamp(now))
        .bind(Json(order.parameters()))
        .bind(format!("{:032x}", xxh3_128(catalog.as_bytes())))
        .bind(catalog);
    Ok(run.fetch_one(connection).await?)
}

/// The text of a run's catalog.
pub(crate) async fn catalog(pool: &PgPool, run: i64) -> Result<String> {
    let sql = "select c.text from tidemark.run r left join tidemark.catalog c on c.hash = r.catalog where run_id = $1";
    match sqlx::query_scalar::<_, Option<String>>(sql).bind(run).fetch_optional(pool).await? {
        None => bail!("there is no run {run}; `batch-layer runs` lists them"),
        Some(None) => {
            bail!("no catalog is stored with run {run}; take another run, or give one by --catalog")
        }
        Some(Some(text)) => Ok(text),
    }
}

/// One run, as its record says.
#[derive(Debug, Serialize, FromRow)]
pub(crate) struct Record {
    run_id: i64,
    kind: String,
    status: String,
    started_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
    parameters: Json<Value>,
    generation_before: Option<i64>,
    generation_after: Option<i64>,
    days: i32,
    rows: i64,
    imports: Json<Value>,
    error: Option<String>,
    /// What the audit found, as its row says.
    audit: Option<Json<Value>>,
}

/// The newest runs, the newest first.
pub(crate) async fn list(pool: &PgPool, limit: i64) -> Result<Vec<Record>> {
    let sql = "select run_id, kind, status, started_at, finished_at, parameters, generation_before, generation_after,
                      days, rows, imports, error, audit
               from tidemark.run left join (select run_id, to_jsonb(a) - 'run_id' as audit from tidemark.audit a) a
                    using (run_id)
               order by run_id desc limit $1";
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
            "{:>6}  {:<8}  {:<7}  {:<20}  {:>8}  {:>12}  {:>5}  {:>10}  {:<14}  {}{}",
            self.run_id,
            self.kind,
            self.status,
            self.started_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1}")),
            moved,
            self.days,
            self.rows,
            self.audit.as_ref().map_or("-".to_owned(), |audit| verdict(&audit.0)),
            self.parameters.0,
            self.error.as_ref().map(|error| format!("  {error}")).unwrap_or_default()
        )
    }
}

/// An audit in a word or two.
fn verdict(audit: &Value) -> String {
    let error = audit["error"].as_f64().unwrap_or_default();
    match (audit["alarm"].as_bool(), audit["status"].as_str()) {
        (Some(true), _) if error > 0.0 => format!("ERROR {error:.6}"),
        (Some(true), _) => "BOUNDARIES".to_owned(),
        (_, Some("whole")) => format!("ok, {} cells", audit["cells"]),
        (_, Some("partly")) => "ok in part".to_owned(),
        _ => "not audited".to_owned(),
    }
}

/// The heading of the table.
pub(crate) const HEADING: &str = "   run  kind      status   started               seconds     tidemark  days        rows  audit           parameters";
