//! Follows the tidemark in Postgres: read only, polled, handed on as it moves.
//!
//! Keeps when each generation was first seen, since epochs may be dropped only a grace after the flip that made them
//! unneeded.

use crate::health::Health;
use crate::partition::{PaneStart, pane_start, panes_before};
use anyhow::{Context as _, bail};
use shared_model::catalog::{Catalog, Stream};
use shared_model::offsets::TopicPartition;
use shared_model::secret::{POSTGRES, Secret};
use shared_model::tidemark::{Cut, StoredCut, Tidemark};
use shared_model::time::Millis;
use sqlx::Row as _;
use sqlx::postgres::{PgPool, PgPoolOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The generations seen, oldest first, each with when; never empty.
#[derive(Clone)]
pub(crate) struct Tidemarks(Vec<(Arc<Tidemark>, Instant)>);

impl Tidemarks {
    /// What was found at first, oldest first; not empty.
    pub(crate) fn new(found: Vec<(Arc<Tidemark>, Instant)>) -> Tidemarks {
        Tidemarks(found)
    }

    /// The one in force.
    pub(crate) fn current(&self) -> &Arc<Tidemark> {
        &self.0[self.0.len() - 1].0
    }

    /// The cut of a partition below which nothing is needed any more: that of the generation before the newest that
    /// was first seen at least `grace` ago.
    pub(crate) fn floor(&self, tp: &TopicPartition, now: Instant, grace: Duration) -> Option<Cut> {
        let aged = self.0.iter().rposition(|(_, seen)| now.duration_since(*seen) >= grace)?;
        self.0[..aged].last()?.0.cuts.get(tp).cloned()
    }

    /// Takes in another generation: the next ones, or those of an older copy of the database.
    pub(crate) fn see(&mut self, tidemark: Tidemark, now: Instant, grace: Duration) {
        let (generation, known) = (tidemark.generation, self.current().generation);
        if generation > known {
            tracing::info!(generation, "the tidemark has moved");
        } else {
            tracing::error!(
                generation,
                known,
                "postgres was put back to an older state: its tidemark counts"
            );
            self.0.clear();
        }
        self.0.push((Arc::new(tidemark), now));
        while self.0.len() > 2 && now.duration_since(self.0[1].1) >= grace && self.floor_is_later(now, grace)
        {
            self.0.remove(0);
        }
    }

    /// Whether the oldest generation kept is older than the one that the floor is taken from.
    fn floor_is_later(&self, now: Instant, grace: Duration) -> bool {
        self.0.iter().rposition(|(_, seen)| now.duration_since(*seen) >= grace).is_some_and(|aged| aged > 1)
    }
}

/// The Postgres side of the tidemark.
#[derive(Clone)]
pub(crate) struct TidemarkSource {
    pool: PgPool,
}

impl TidemarkSource {
    /// Prepares connections; none is made yet.
    pub(crate) fn new(given: &Secret) -> anyhow::Result<TidemarkSource> {
        let url = given.reveal_url(&POSTGRES, |path| std::fs::read_to_string(path));
        let pool = PgPoolOptions::new().max_connections(3).acquire_timeout(Duration::from_secs(5));
        let pool = url.and_then(|url| pool.connect_lazy(&url).map_err(|_| POSTGRES.refused()));
        Ok(TidemarkSource { pool: pool.context("--postgres (TIDEMARK_POSTGRES)")? })
    }

    /// Waits until the layout and a tidemark are there, and checks the layout against the catalog's.
    pub(crate) async fn wait(
        &self,
        catalog: &Catalog,
        health: &Health,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Tidemarks>> {
        loop {
            match self.first().await {
                Ok(Some((layout, tidemarks))) => {
                    check_layout(layout, catalog)?;
                    health.set("tidemark", None);
                    return Ok(Some(tidemarks));
                }
                Ok(None) => {
                    health.set("tidemark", Some("no tidemark yet: waiting for a first batch run".into()))
                }
                Err(error) => {
                    health.set("tidemark", Some(format!("waiting for postgres: {}", explain(&error))))
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    async fn first(&self) -> sqlx::Result<Option<((i64, i32, i64), Tidemarks)>> {
        let layout = sqlx::query_as("select epoch_ms, groups, pane_ms from tidemark.layout");
        let Some(layout) = layout.fetch_optional(&self.pool).await? else { return Ok(None) };
        let now = Instant::now();
        let newest = self.newest(2).await?;
        let mut tidemarks: Vec<_> = newest.into_iter().map(|tidemark| (Arc::new(tidemark), now)).collect();
        tidemarks.reverse();
        Ok((!tidemarks.is_empty()).then_some((layout, Tidemarks::new(tidemarks))))
    }

    /// The newest generations, newest first.
    async fn newest(&self, limit: i64) -> sqlx::Result<Vec<Tidemark>> {
        let query =
            sqlx::query("select generation, cuts from tidemark.tidemark order by generation desc limit $1");
        let rows = query.bind(limit).fetch_all(&self.pool).await?;
        rows.into_iter()
            .map(|row| {
                let cuts: sqlx::types::Json<Vec<StoredCut>> = row.try_get(1)?;
                Ok(Tidemark::from_stored(row.try_get(0)?, cuts.0))
            })
            .collect()
    }

    /// Polls until the stop and hands on each move.
    pub(crate) async fn follow(
        self,
        moves: watch::Sender<Tidemarks>,
        poll: Duration,
        grace: Duration,
        health: Health,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(poll) => {}
            }
            match self.newest(1).await {
                Ok(newest) => {
                    health.set("postgres", None);
                    let known = moves.borrow().current().clone();
                    for tidemark in newest.into_iter().filter(|newest| *newest != *known) {
                        metrics::gauge!("tidemark_speed_generation").set(tidemark.generation as f64);
                        moves.send_modify(|seen| seen.see(tidemark, Instant::now(), grace));
                    }
                }
                Err(error) => health.set("postgres", Some(explain(&error))),
            }
        }
    }

    /// The newest cut of a partition from which all panes of the longest window at the tidemark's cut are whole, and
    /// which the log still has; the very first generation's otherwise, or the tidemark's own as the last resort.
    pub(crate) async fn pane_start(
        &self,
        tp: &TopicPartition,
        cut: &Cut,
        stream: &Stream,
        longest_window: Millis,
        pane: Millis,
        log_start: i64,
    ) -> sqlx::Result<PaneStart> {
        let before = panes_before(cut, stream, longest_window, pane);
        let query = sqlx::query_as(
            "select t.generation, t.generation = (select min(generation) from tidemark.tidemark), c
             from tidemark.tidemark t, jsonb_array_elements(t.cuts) c
             where c->>'topic' = $1 and (c->>'partition')::int = $2 and (c->>'offset')::bigint between $3 and $4
               and ((c->'trusted'->>'newest')::bigint < $5
                    or t.generation = (select min(generation) from tidemark.tidemark))
             order by t.generation desc limit 1",
        );
        let query = query.bind(&*tp.topic).bind(tp.partition).bind(log_start).bind(cut.offset).bind(before);
        let row: Option<(i64, bool, sqlx::types::Json<StoredCut>)> = query.fetch_optional(&self.pool).await?;
        Ok(match row {
            Some((_, first, stored)) => pane_start(stored.0.cut, first, stream, pane),
            None => pane_start(cut.clone(), false, stream, pane),
        })
    }
}

fn check_layout((epoch, groups, pane): (i64, i32, i64), catalog: &Catalog) -> anyhow::Result<()> {
    let layout = catalog.layout;
    if (epoch, i64::from(groups), pane) != (layout.epoch.0, i64::from(layout.groups), layout.pane) {
        bail!(
            "the catalog's layout (epoch {} ms, {} groups, pane {} ms) differs from that of the first tidemark \
             (epoch {epoch} ms, {groups} groups, pane {pane} ms): put the stored values into the catalog",
            layout.epoch.0,
            layout.groups,
            layout.pane
        );
    }
    Ok(())
}

/// A database error for people: a missing table means that no batch layer has migrated yet.
fn explain(error: &sqlx::Error) -> String {
    match error.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("42P01" | "3F000") => "the batch layer has not made its tables yet".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_dropped_below_the_last_but_one_and_a_grace_after_the_flip() {
        let tp = TopicPartition::new("t", 0);
        let tidemark = |generation: i64| {
            let cut = Cut { epoch: generation * 10, ..Cut::start(generation * 100) };
            Tidemark { generation, cuts: [(tp.clone(), cut)].into(), ..Tidemark::default() }
        };
        let (start, grace) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut seen = Tidemarks(vec![(Arc::new(tidemark(0)), start)]);
        let floor = |seen: &Tidemarks, now| seen.floor(&tp, now, grace).map(|cut| cut.epoch);
        assert_eq!(floor(&seen, at(100)), None);
        // A flip every 10 s: the floor follows a minute and a generation behind.
        for generation in 1..=30 {
            seen.see(tidemark(generation), at(generation as u64 * 10), grace);
            let expected = (generation >= 7).then_some((generation - 7) * 10);
            assert_eq!(floor(&seen, at(generation as u64 * 10)), expected, "generation {generation}");
            assert!(seen.0.len() < 12);
        }
        assert_eq!(floor(&seen, at(900)), Some(290));
        // An older copy of the database: nothing is dropped by what only the lost one knew.
        seen.see(tidemark(12), at(901), grace);
        assert_eq!((seen.current().generation, floor(&seen, at(990))), (12, None));
        seen.see(tidemark(13), at(991), grace);
        assert_eq!(floor(&seen, at(2_000)), Some(120));
    }
}
