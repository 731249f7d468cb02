//! The audit's row in Postgres: one a run, written before the flip, so that a run which is refused has its own too.

use super::Audit;
use crate::ledger::timestamp;
use anyhow::{Context as _, Result};
use shared_model::time::Millis;
use sqlx::PgConnection;
use sqlx::types::Json;

/// Writes the audit of a run. `threshold`: the error above which the run doesn't publish, where there is one.
pub(crate) async fn store(
    connection: &mut PgConnection,
    run: i64,
    audit: &Audit,
    threshold: Option<f64>,
    now: Millis,
) -> Result<()> {
    let total = audit.total();
    let sql = "insert into tidemark.audit (run_id, audited_at, status, alarm, cells, missing, extra, different, healed,
                   error, threshold, repeats, metrics, not_audited, cuts)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
    sqlx::query(sql)
        .bind(run)
        .bind(timestamp(now))
        .bind(audit.status())
        .bind(audit.alarm())
        .bind(total.cells as i64)
        .bind(total.missing as i64)
        .bind(total.extra as i64)
        .bind(total.different as i64)
        .bind(audit.repeats.healed() as i64)
        .bind(audit.error())
        .bind(threshold)
        .bind(Json(audit.repeats))
        .bind(Json(audit.metrics_json()))
        .bind(Json(Audit::listed(&audit.not_audited)))
        .bind(Json(Audit::listed(&audit.cuts)))
        .execute(connection)
        .await
        .context("writing the audit")?;
    Ok(())
}
