//! What a run is told to do, and what came of it.

use crate::audit::Audit;
use crate::ledger;
use crate::run::Context;
use crate::run::input::{Fresh, Inputs};
use crate::work::Known;
use anyhow::{Result, bail};
use chrono::NaiveDate;
use serde_json::json;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::time::EventDay;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a run is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Take in what is new; a day beside the dirty ones.
    Run {
        /// That day.
        day: Option<NaiveDate>,
    },
    /// Compute days again, at the present tidemark.
    Backfill {
        /// The first day.
        from: NaiveDate,
        /// The last one, included.
        to: NaiveDate,
        /// Only these metrics; none: all.
        metrics: Vec<String>,
    },
    /// A failed run's work, and what is new besides.
    Retry {
        /// That run.
        run: i64,
    },
    /// Compute, by this program and catalog, all days that a run or a later one computed, at the present tidemark.
    Rollback {
        /// That run.
        run: i64,
    },
}

impl Order {
    /// Its name in the history.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Order::Run { .. } => "run",
            Order::Backfill { .. } => "backfill",
            Order::Retry { .. } => "retry",
            Order::Rollback { .. } => "rollback",
        }
    }

    /// Its parameters in the history.
    pub(crate) fn parameters(&self) -> serde_json::Value {
        match self {
            Order::Run { day: None } => json!({}),
            Order::Run { day } => json!({ "day": day }),
            Order::Backfill { from, to, metrics } => json!({ "from": from, "to": to, "metrics": metrics }),
            Order::Retry { run } | Order::Rollback { run } => json!({ "run": run }),
        }
    }

    /// Whether it takes in what is new; the others compute at the tidemark in force.
    pub(crate) fn moves_tidemark(&self) -> bool {
        matches!(self, Order::Run { .. } | Order::Retry { .. })
    }

    /// What is known for deciding which days to compute.
    pub(crate) async fn known(
        &self,
        context: &Context,
        connection: &mut PgConnection,
        fresh: &Fresh,
    ) -> Result<Known> {
        let catalog = &context.catalog;
        let mut known = Known { fresh: fresh.streams_by_day(catalog), ..Known::default() };
        match self {
            Order::Run { day } => {
                known.uncovered = ledger::uncovered(connection, catalog).await?;
                known.asked.extend(day.map(EventDay::from_date));
            }
            Order::Backfill { from, to, metrics } => {
                if let Some(unknown) = metrics.iter().find(|name| catalog.metric(name).is_none()) {
                    let names: Vec<&str> =
                        catalog.metrics.iter().map(|metric| metric.name.as_str()).collect();
                    bail!("--metric {unknown} is not in the catalog; it has {}", names.join(", "));
                }
                known.asked = ledger::days(connection, *from, *to).await?.into_iter().collect();
                known.metrics = (!metrics.is_empty()).then(|| metrics.iter().cloned().collect());
            }
            Order::Retry { run } => {
                known.uncovered = ledger::uncovered(connection, catalog).await?;
                known.asked = days_of(connection, *run, *run).await?;
            }
            Order::Rollback { run } => {
                known.uncovered = ledger::uncovered(connection, catalog).await?;
                known.asked = days_of(connection, *run, i64::MAX).await?;
            }
        }
        Ok(known)
    }
}

/// The days of which a run, and those after it up to `last`, computed versions.
async fn days_of(connection: &mut PgConnection, run: i64, last: i64) -> Result<BTreeSet<EventDay>> {
    let there: bool = sqlx::query_scalar("select exists (select from tidemark.run where run_id = $1)")
        .bind(run)
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        bail!("there is no run {run}; `batch-layer runs` lists them");
    }
    Ok(ledger::days_of_runs(connection, run, last).await?.into_iter().collect())
}

/// What a run did, or would do.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The run's record; none where it only showed what it would do.
    pub(crate) run: Option<i64>,
    /// The generation that it wrote, if it published anything.
    pub(crate) generation: Option<i64>,
    /// The days that it computed.
    pub(crate) days: Vec<DayOutcome>,
    /// How many versions became live.
    pub(crate) published: usize,
    /// Their rows.
    pub(crate) rows: i64,
    /// Partitions that hold the tidemark back.
    pub(crate) held: BTreeMap<TopicPartition, String>,
    /// What the audit found; none where the tidemark didn't move, or without Redis.
    pub(crate) audit: Option<Audit>,
    /// The streams and days of which rows lay elsewhere than the ledger knew: it is older than the archive.
    pub(crate) moved: BTreeSet<(String, EventDay)>,
}

/// One day of a run.
#[derive(Debug)]
pub(crate) struct DayOutcome {
    /// The day.
    pub(crate) day: EventDay,
    /// Names of the metrics.
    pub(crate) metrics: Vec<String>,
    /// Segments that are read, and how many of them are new.
    pub(crate) segments: (usize, usize),
    /// Rows that are read.
    pub(crate) rows: u64,
}

impl DayOutcome {
    pub(crate) fn new(day: EventDay, metrics: &[Arc<Metric>], input: &Inputs) -> DayOutcome {
        let metrics = metrics.iter().map(|metric| metric.name.clone()).collect();
        DayOutcome { day, metrics, segments: input.segments(), rows: input.rows() }
    }
}
