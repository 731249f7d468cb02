//! Publishes finished sliding values as plain keys, for readers with no code of ours.
//!
//! One worker does it, the holder of a lease; it writes what changed since its last pass, at most once a pane of event
//! time, and deletes what has slid out. Values here are for convenience: the serving layer never reads them.

use crate::live::{self, Live, Names, Published};
use crate::redis::Redis;
use ::redis::cmd;
use anyhow::Context as _;
use futures::{StreamExt as _, stream};
use shared_model::catalog::Catalog;
use shared_model::causes::Causes;
use shared_model::failpoint;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use shared_model::view::{self, Mark};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The key of the lease.
const LEASE: &str = "tm1:publisher";
/// The hash of all live names that were ever published and still stand, each with the pattern of its keys: what tells the
/// keys of a metric that is published no more.
const PUBLISHED: &str = "tm1:published";
/// How long a lease lasts without renewal.
const LEASE_MS: u64 = 5_000;
/// The lease was ours and is renewed.
const HELD: u8 = 1;
/// The lease was nobody's and is ours now.
const TAKEN: u8 = 2;
/// How many commands are under way at once.
const ABREAST: usize = 256;
/// The shortest time between two passes, for replays whose panes fly by.
const PACE: Duration = Duration::from_secs(1);

/// A candidate for publishing.
pub(crate) struct Publisher {
    redis: Redis,
    catalog: Arc<Catalog>,
    metrics: Vec<Arc<Metric>>,
    token: String,
    /// What stands in Redis, while we hold the lease. A value of `None` is known by its name alone.
    standing: Option<BTreeMap<String, Option<Published>>>,
    /// Live names whose keys go with the next pass, being published no more.
    stale: Vec<String>,
    marks: BTreeMap<String, Mark>,
    window_end: Option<Millis>,
    passed: Instant,
    settled: bool,
}

impl Publisher {
    pub(crate) fn new(redis: Redis, catalog: Arc<Catalog>, token: String) -> Publisher {
        let metrics = live::published_metrics(&catalog);
        let passed = Instant::now();
        let (marks, settled) = (BTreeMap::new(), false);
        let (standing, stale) = (None, Vec::new());
        Publisher {
            redis,
            catalog,
            metrics,
            token,
            standing,
            stale,
            marks,
            window_end: None,
            passed,
            settled,
        }
    }

    /// Publishes while it holds the lease, until the stop; then lets the lease go.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let pane = Duration::from_millis(self.catalog.layout.pane.unsigned_abs());
        let mut round = tokio::time::interval((pane / 4).clamp(Duration::from_millis(100), PACE));
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = round.tick() => {}
            }
            if let Err(error) = self.round(pane).await {
                tracing::debug!("publishing: {}", Causes(error.as_ref()));
                // What was written before the error isn't known: take stock anew.
                self.standing = None;
            }
        }
        if self.standing.is_some() {
            // Not renewed in vain: it runs out by itself too.
            if let Err(error) = self.lease(1).await {
                tracing::debug!("the publisher's lease was not released: {error}");
            }
        }
    }

    async fn round(&mut self, pane: Duration) -> anyhow::Result<()> {
        match self.lease(LEASE_MS).await.context("the lease")? {
            HELD => {}
            // Nobody held it, not even we: we are new, were late, or Redis was emptied.
            TAKEN => self.standing = None,
            _ => {
                self.standing = None;
                return Ok(());
            }
        }
        if self.standing.is_none() {
            tracing::info!("publishing finished values from this worker");
            self.standing = Some(self.take_stock().await.context("taking stock of published keys")?);
            self.settled = false;
        }
        let marks = self.redis.marks().await.context("the marks")?;
        let Some(newest) = marks.values().filter_map(|mark| mark.trusted).max() else { return Ok(()) };
        let window_end = newest.div_euclid(self.catalog.layout.pane);
        let since = self.passed.elapsed();
        let moved = self.window_end != Some(window_end);
        let still = marks == self.marks;
        let due = !(self.settled && still) && since >= pane.min(PACE) && (moved || since >= pane);
        if due || self.window_end.is_none() {
            self.passed = Instant::now();
            self.pass(&marks, newest).await?;
            // One more pass after the last movement has seen everything.
            self.settled = still;
            (self.marks, self.window_end) = (marks, Some(window_end));
        }
        Ok(())
    }

    /// Takes or renews the lease: [`HELD`], [`TAKEN`], or another's.
    async fn lease(&self, millis: u64) -> ::redis::RedisResult<u8> {
        let mut lease = cmd("FCALL");
        lease.arg("tm1_lease").arg(1).arg(LEASE).arg(&self.token).arg(millis);
        failpoint::hit("speed.lease.before");
        let reply = self.redis.ask(&lease).await;
        failpoint::hit("speed.lease.after");
        reply
    }

    /// Reads all groups, merges, and writes what differs from what stands.
    async fn pass(&mut self, marks: &BTreeMap<String, Mark>, newest: Millis) -> anyhow::Result<()> {
        let mut live = Live::at(&self.metrics, newest);
        let mut groups = stream::iter(self.groups(marks)).map(|key| {
            let redis = self.redis.clone();
            async move {
                let mut read = cmd("FCALL_RO");
                let read = read.arg("tm1_read").arg(1).arg(&key).arg("p");
                redis.ask::<Vec<Option<Vec<u8>>>>(read).await.with_context(|| format!("reading {key}"))
            }
        });
        let mut groups = groups.by_ref().buffer_unordered(8);
        while let Some(fields) = groups.next().await {
            let fields = fields?;
            // Without a header it is being put back, and not whole.
            let Some((Some(_), segments)) = fields.split_first() else { continue };
            for pair in segments.chunks(2) {
                let [Some(field), Some(segment)] = pair else { continue };
                let named = std::str::from_utf8(field).ok().and_then(view::parse_segment_field);
                if let Some((slice, _)) = named {
                    live.merge(slice, segment)?;
                }
            }
            // Merging is work: let others have their turn.
            tokio::task::yield_now().await;
        }
        drop(groups);
        let names = live.finish()?;
        self.write(names).await?;
        if !self.stale.is_empty() {
            self.redis.ask::<()>(cmd("HDEL").arg(PUBLISHED).arg(&self.stale)).await?;
            self.stale.clear();
        }
        Ok(())
    }

    /// The groups of the partitions that feed a published metric.
    fn groups(&self, marks: &BTreeMap<String, Mark>) -> Vec<String> {
        let feeds = |tp: &TopicPartition| {
            self.catalog.stream_of_topic(&tp.topic).is_some_and(|stream| {
                self.metrics.iter().flat_map(|metric| &metric.bindings).any(|of| of.stream == stream.name)
            })
        };
        let groups = self.catalog.layout.groups;
        let partitions = marks.keys().filter_map(|name| TopicPartition::parse(name)).filter(feeds);
        partitions.flat_map(|tp| (0..groups).map(move |group| view::group_key(&tp, group, groups))).collect()
    }

    async fn write(&mut self, mut names: Names) -> anyhow::Result<()> {
        let Some(standing) = self.standing.as_mut() else { return Ok(()) };
        let mut commands = Vec::new();
        standing.retain(|name, known| match names.remove(name) {
            None => {
                commands.push(cmd("UNLINK").arg(name).to_owned());
                false
            }
            Some(value) => {
                if known.as_ref() != Some(&value) {
                    commands.push(set(name, &value));
                    *known = Some(value);
                }
                true
            }
        });
        for (name, value) in names {
            commands.push(set(&name, &value));
            standing.insert(name, Some(value));
        }
        metrics::counter!("tidemark_speed_published_total").increment(commands.len() as u64);
        let mut sent = stream::iter(commands)
            .map(|command| {
                let redis = self.redis.clone();
                async move {
                    failpoint::hit("speed.publish.before");
                    let answer = redis.ask::<::redis::Value>(&command).await;
                    failpoint::hit("speed.publish.after");
                    answer
                }
            })
            .buffer_unordered(ABREAST);
        while let Some(answer) = sent.next().await {
            answer?;
        }
        Ok(())
    }

    /// The keys that stand in Redis already, whoever wrote them, those of metrics that are published no more included.
    async fn take_stock(&mut self) -> anyhow::Result<BTreeMap<String, Option<Published>>> {
        let mut named: BTreeMap<String, String> = self.redis.ask(cmd("HGETALL").arg(PUBLISHED)).await?;
        let ours = self.metrics.iter().map(|metric| {
            let name = metric.live_name.clone().unwrap_or_else(|| metric.name.clone());
            let pattern = if metric.by.is_empty() { name.clone() } else { format!("{name}:*") };
            (name, pattern)
        });
        let ours: BTreeMap<String, String> = ours.collect();
        self.stale = named.keys().filter(|name| !ours.contains_key(*name)).cloned().collect();
        if !ours.is_empty() {
            let mut note = cmd("HSET");
            note.arg(PUBLISHED);
            ours.iter().for_each(|(name, pattern)| _ = note.arg(name).arg(pattern));
            self.redis.ask::<()>(&note).await?;
        }
        named.extend(ours);
        let mut standing = BTreeMap::new();
        for pattern in named.values() {
            standing.extend(self.redis.scan(pattern).await?.into_iter().map(|key| (key, None)));
        }
        Ok(standing)
    }
}

/// What puts a value in its place, as a whole.
fn set(name: &str, value: &Published) -> ::redis::Cmd {
    match value {
        Published::Text(text) => cmd("SET").arg(name).arg(text).to_owned(),
        Published::Ranked(items) => {
            let mut command = cmd("FCALL");
            command.arg("tm1_rank").arg(1).arg(name);
            for (item, count) in items {
                command.arg(*count).arg(item);
            }
            command
        }
    }
}
