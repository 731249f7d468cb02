//! A Tidemark whose views hold the benches' records: days of them in the batch view, a dense hour in the realtime view.
//!
//! Before anything is measured of it, its answers are held against naive counts of the records.

use crate::events::{Records, Totals, uuid};
use crate::peer::{self, Peer};
use crate::process::peak_memory;
use crate::questions::{FREQUENT, Questions, query, views};
use crate::requests::Requests;
use crate::{Args, epochs, log};
use anyhow::{Context as _, ensure};
use local::layers::Layer;
use local::probe::Serving;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use shared_model::time::{DAY, show};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemark_tests::stack::Stack;

/// The end of all records: 2016-07-01T00:00:00Z.
pub(crate) const END: i64 = 1_467_331_200_000;
/// How many days lie before it, as usual.
pub(crate) const DAYS: i64 = 30;
const HOUR: i64 = 3_600_000;
const WINDOW: i64 = 300_000;
const PANE: i64 = 10_000;
/// Records are taken in within this time, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Each user's views in the last window.
type Window = HashMap<String, u64>;

/// What a record says.
#[derive(serde::Deserialize)]
struct Event<'a> {
    event_type: &'a str,
    uuid: &'a str,
    ts: i64,
}

/// How many times as much there is as usual.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    /// Of what keys are drawn from, and of records.
    pub(crate) keys: usize,
    /// Of days, and of the records before the last hour.
    pub(crate) days: usize,
    /// Of metrics.
    pub(crate) metrics: usize,
}

/// As much as usual.
pub(crate) const USUAL: Scale = Scale { keys: 1, days: 1, metrics: 1 };

impl Scale {
    fn days(self) -> i64 {
        DAYS * self.days as i64
    }

    /// A time before all records: some of those that are late lie before the first day.
    fn begin(self) -> i64 {
        END - (self.days() + 1) * DAY
    }
}

/// Servers, layers, and what was sent to them.
pub(crate) struct World {
    /// The serving layer's process.
    pub(crate) process: Layer,
    serving: Serving,
    speed: Layer,
    scale: Scale,
    /// The records of the last hour.
    recent: Records,
    totals: Vec<Totals>,
    window: Window,
    // Last: the layers go before their servers.
    pub(crate) stack: Stack,
}

impl World {
    /// Starts it, and brings the records in; answers that are wrong are an error.
    pub(crate) async fn start(args: &Args, scale: Scale) -> anyhow::Result<World> {
        let stack = peer::started(&args.layers, &catalog(scale), args.partitions).await?;
        let speed = stack.speed();
        let (process, serving) = stack.serving_with(&["--cache", &args.cache.to_string()]).await;
        let recent = Records {
            count: args.recent * scale.keys as u64,
            start: END - HOUR,
            length: HOUR,
            partitions: args.partitions as u64,
            keys: scale.keys,
            seed: args.seed,
        };
        let (count, days) = (args.history * (scale.keys * scale.days) as u64, scale.days());
        let history = Records { count, start: END - days * DAY, length: days * DAY - HOUR, ..recent };
        let (totals, window) = (Vec::new(), Window::new());
        let mut world = World { process, serving, speed, scale, recent, totals, window, stack };
        world.fill(history).await?;
        world.check(args.seed).await?;
        println!("answers are right");
        Ok(world)
    }

    /// Ends it.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        println!("serving layer's peak memory: {:.0} MB", peak_memory(self.process.pid())?);
        self.process.stop().await;
        Ok(())
    }

    /// What can be asked of it.
    pub(crate) fn questions(&self) -> Questions {
        Questions::new(&self.serving.url, self.users(), self.scale.keys)
    }

    /// Asks for the views of one key, of all time; an answer that differs from what was sent until now is an error.
    pub(crate) fn counted(&self) -> Arc<Requests> {
        let counts = (0..FREQUENT).map(|rank| self.views(rank * self.scale.keys));
        self.questions().counted(self.begin(), counts.collect())
    }

    /// The users of the last window with their views in it, in an order that is always the same.
    fn users(&self) -> Vec<(String, u64)> {
        let mut users: Vec<_> = self.window.iter().map(|(user, views)| (user.clone(), *views)).collect();
        users.sort_unstable();
        users
    }

    /// A user's views.
    fn views(&self, user: usize) -> u64 {
        self.totals.iter().map(|totals| u64::from(totals.users[user][1])).sum()
    }

    /// How many days its records lie on.
    pub(crate) fn days(&self) -> i64 {
        self.scale.days()
    }

    /// A time before all records.
    fn begin(&self) -> i64 {
        self.scale.begin()
    }

    /// Brings the days into the batch view and the hour into the realtime view.
    async fn fill(&mut self, history: Records) -> anyhow::Result<()> {
        self.send(history).await?;
        let ends = epochs::over(&self.stack).await?;
        epochs::run(&self.stack, &ends).await?;
        println!("computed");
        let (bootstrap, recent) = (self.stack.kafka.bootstrap(), self.recent);
        let (totals, window) = tokio::task::spawn_blocking(move || last_hour(&bootstrap, recent)).await??;
        self.window = window;
        self.taken_in(totals).await
    }

    /// As many records come as in the last hour, of the same hour and beside those.
    pub(crate) async fn more(&mut self) -> anyhow::Result<()> {
        let seed = self.recent.seed + self.totals.len() as u64;
        self.send(Records { seed, ..self.recent }).await
    }

    async fn send(&mut self, records: Records) -> anyhow::Result<()> {
        let bootstrap = self.stack.kafka.bootstrap();
        let totals =
            tokio::task::spawn_blocking(move || log::send(&bootstrap, "events", records, |_| ())).await??;
        self.taken_in(totals).await
    }

    /// Waits until the realtime view has taken in what was sent.
    async fn taken_in(&mut self, totals: Totals) -> anyhow::Result<()> {
        let (ends, begun) = (self.stack.probe.ends()?, Instant::now());
        while self.stack.probe.lag(&ends).await? > 0 {
            ensure!(self.speed.exited().is_none(), "the worker ended:\n{}", self.speed.logged());
            ensure!(begun.elapsed() < PATIENCE, "records aren't taken in after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let users = totals.users.iter().filter(|counts| counts[0] + counts[1] > 0).count();
        let records: u64 = totals.users.iter().flatten().map(|&count| u64::from(count)).sum();
        println!("{records} records of {users} users sent");
        self.totals.push(totals);
        Ok(())
    }

    /// Holds answers against the records.
    async fn check(&self, seed: u64) -> anyhow::Result<()> {
        let mut random = SmallRng::seed_from_u64(seed);
        let users = self.users();
        for _ in 0..100 {
            let (user, views) = &users[random.random_range(0..users.len())];
            let answer = self.serving.live("user_view_cnt", &[("uuid", user.clone())]).await?;
            let right = answer["value"] == *views && answer["complete"] == true;
            ensure!(right, "live of {user}, {views} views: {answer}");
        }
        for user in (0..100).map(|n| n * 7) {
            let answer = self.serving.query(&views(&uuid(user), self.begin())).await?;
            let right = answer["rows"][0]["values"]["user_view_cnt"] == self.views(user);
            ensure!(right, "{} views of {user}: {answer}", self.views(user));
        }
        self.check_documents().await
    }

    async fn check_documents(&self) -> anyhow::Result<()> {
        let documents: Vec<usize> = (1..=1_000).collect();
        let filters = json!([{ "dimension": "document_id", "op": "in", "values": documents }]);
        let answer = self.serving.query(&query("doc_cnt", self.begin(), &["document_id"], filters)).await?;
        let rows = answer["rows"].as_array().context("rows")?;
        let count = |document: usize| -> u64 {
            self.totals.iter().map(|totals| u64::from(totals.documents[document])).sum()
        };
        let there = documents.iter().filter(|&&document| count(document) > 0).count();
        ensure!(rows.len() == there, "{} documents, not {there}", rows.len());
        for row in rows {
            let document = row["key"]["document_id"].as_u64().context("a document")? as usize;
            ensure!(row["values"]["doc_cnt"] == count(document), "events of {document}: {row}");
        }
        Ok(())
    }
}

/// The peer's catalog, with copies of its metrics, and epochs that are soon over: the tidemark is to pass the days at once.
fn catalog(scale: Scale) -> String {
    let peer = Peer { metrics: peer::USUAL.metrics * scale.metrics, ..peer::USUAL };
    peer.catalog()
        .replace("epoch = \"10m\"", "epoch = \"1m\"")
        .replace("2016-06-13", &show(scale.begin())[.."2016-06-13".len()])
        .replace("to = \"2016-07-01\"", "to = \"2016-07-02\"")
}

/// Sends the records of the last hour, and counts those of its last window.
fn last_hour(bootstrap: &str, records: Records) -> anyhow::Result<(Totals, Window)> {
    let (mut views, mut newest, mut fault) = (Vec::new(), i64::MIN, None);
    let totals =
        log::send(bootstrap, "events", records, |record| match serde_json::from_slice::<Event>(record) {
            Ok(event) => {
                newest = newest.max(event.ts);
                if event.event_type == "view" && event.ts >= END - 2 * WINDOW {
                    views.push((event.uuid.to_owned(), event.ts));
                }
            }
            Err(error) => fault = Some(error),
        })?;
    ensure!(fault.is_none(), "a record can't be read: {fault:?}");
    let end = newest.div_euclid(PANE) * PANE + PANE;
    let mut window = Window::new();
    for (user, _) in views.into_iter().filter(|(_, time)| (end - WINDOW..end).contains(time)) {
        *window.entry(user).or_default() += 1;
    }
    Ok((totals, window))
}
