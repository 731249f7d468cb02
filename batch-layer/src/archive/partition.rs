//! The partitions of a step: find them, read each on from its chain's end, with a tick where it is idle.
//!
//! Each either has every epoch closed that ended before the step, or a reason why not.

use crate::archive::consume::{self, Arrived, LogConsumer, LogProducer, PartitionReader};
use crate::archive::manifest::{Manifest, manifest_folder};
use crate::archive::seal::{Chain, Sealer};
use crate::archive::store::Store;
use crate::archive::{Archiver, Until};
use anyhow::{Context, Result};
use rdkafka::message::Message;
use shared_model::catalog::Stream;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, LOG_LOST};
use shared_model::time::Millis;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tracing::{debug, info};
use xxhash_rust::xxh3::xxh3_64;

/// How many records below a cut are read again to see whether the log is still the one that was archived.
const LOOK_BACK: i64 = 16;
/// How many ticks one step appends to a partition at most.
const TICKS: u32 = 3;

/// What a step starts with.
pub(crate) struct Found {
    /// Where each partition begins, those of gone topics included.
    pub(crate) starts: BTreeMap<TopicPartition, Cut>,
    /// Partitions that have a cut and are not in the log any more.
    pub(crate) held: BTreeMap<TopicPartition, String>,
    /// Topics that are not there.
    pub(crate) waiting: Vec<String>,
}

/// Finds the partitions of all the catalog's topics. Those without a cut begin at their first manifest, if they
/// have one, or else where their log does.
pub(crate) async fn discover(ctx: &Archiver, from: &BTreeMap<TopicPartition, Cut>) -> Result<Found> {
    let topics: Vec<Arc<str>> = ctx.catalog.streams.iter().map(|stream| stream.topic.clone()).collect();
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    consume::check_topics(&ctx.kafka, &names).await?;
    let (kafka, known) = (ctx.kafka.clone(), from.clone());
    let look = move || -> Result<(Found, Vec<(TopicPartition, i64)>)> {
        let consumer = consume::consumer(&kafka)?;
        let mut found = Found { starts: known, held: BTreeMap::new(), waiting: Vec::new() };
        let (mut there, mut new) = (Vec::new(), Vec::new());
        for topic in &topics {
            match consume::partitions(&consumer, topic)? {
                Some(partitions) => there.extend(partitions),
                None => found.waiting.push(topic.to_string()),
            }
        }
        for tp in found.starts.keys().filter(|tp| there.binary_search(tp).is_err() && !there.contains(tp)) {
            found.held.insert(tp.clone(), format!("{LOG_LOST}: there is no such topic or partition"));
        }
        for tp in there {
            if !found.starts.contains_key(&tp) {
                let (low, _) = consume::watermarks(&consumer, &tp)?;
                new.push((tp, low));
            }
        }
        Ok((found, new))
    };
    let (mut found, new) =
        tokio::task::spawn_blocking(look).await.context("the reader of kafka's metadata died")??;
    for (tp, low) in new {
        let first = ctx.store.first(&manifest_folder(&tp)).await?;
        let start = match first {
            Some(path) => first_cut(&ctx.store, &path).await?,
            None => Cut::start(low),
        };
        info!(%tp, offset = start.offset, "a partition without a cut begins");
        found.starts.insert(tp, start);
    }
    Ok(found)
}

async fn first_cut(store: &Store, path: &str) -> Result<Cut> {
    let json = store.get(path).await?.with_context(|| format!("manifest {path} was listed and is gone"))?;
    Ok(Manifest::from_json(path, &json)?.from)
}

/// Reads chains on in the log until each has closed every epoch that ended before `until`, several at once. Each
/// comes back with the reason where it could not.
pub(crate) async fn read_all(
    ctx: &Archiver,
    chains: Vec<Chain>,
    until: Until,
) -> Result<Vec<(Chain, Option<String>)>> {
    if chains.is_empty() {
        return Ok(Vec::new());
    }
    let queue = Arc::new(Mutex::new(VecDeque::from(chains)));
    let mut workers = tokio::task::JoinSet::new();
    // Dropping this after a worker's fault stops the others at their next record.
    let stop = ctx.stop.child_token();
    let guard = stop.clone().drop_guard();
    for _ in 0..ctx.workers.max(1) {
        let (ctx, queue) = (Archiver { stop: stop.clone(), ..ctx.clone() }, queue.clone());
        let runtime = Handle::current();
        workers.spawn_blocking(move || work(&ctx, &queue, until, &runtime));
    }
    let mut done = Vec::new();
    while let Some(finished) = workers.join_next().await {
        done.extend(finished.context("a reader of the log died")??);
    }
    guard.disarm();
    Ok(done)
}

fn work(
    ctx: &Archiver,
    queue: &Mutex<VecDeque<Chain>>,
    until: Until,
    runtime: &Handle,
) -> Result<Vec<(Chain, Option<String>)>> {
    let mut done = Vec::new();
    let mut consumer: Option<(Arc<str>, LogConsumer)> = None;
    let mut producer = None;
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(chain) = next else { return Ok(done) };
        let topic = chain.tp.topic.clone();
        // One consumer per topic: the client tells the end of a partition by its number alone.
        let consumer = match &consumer {
            Some((of, consumer)) if *of == topic => consumer,
            _ => &consumer.insert((topic, consume::consumer(&ctx.kafka)?)).1,
        };
        if ctx.ticks && producer.is_none() {
            producer = Some(consume::producer(&ctx.kafka)?);
        }
        let stream = ctx.catalog.stream_of_topic(&chain.tp.topic);
        let stream =
            stream.with_context(|| format!("the catalog has no stream for topic {}", chain.tp.topic))?;
        let log = Log { consumer, producer: producer.as_ref(), runtime };
        done.push(Step::new(ctx, stream.clone(), chain, until).run(log)?);
    }
}

/// The way to the broker.
#[derive(Clone, Copy)]
struct Log<'a> {
    consumer: &'a LogConsumer,
    /// `None`: no ticks.
    producer: Option<&'a LogProducer>,
    runtime: &'a Handle,
}

/// One partition's step.
struct Step<'a> {
    ctx: &'a Archiver,
    until: Until,
    /// The epoch that must have begun.
    target: i64,
    sealer: Sealer,
}

impl<'a> Step<'a> {
    fn new(ctx: &'a Archiver, stream: Arc<Stream>, chain: Chain, until: Until) -> Step<'a> {
        let epochs = ctx.catalog.layout.epoch;
        let sealer = Sealer::new(ctx.store.clone(), stream, epochs, chain, ctx.limits, until.now);
        Step { ctx, until, target: epochs.epoch(until.now), sealer }
    }

    fn run(mut self, log: Log<'_>) -> Result<(Chain, Option<String>)> {
        let held = self.read(log).with_context(|| format!("archive of {}", self.sealer.chain().tp))?;
        let chain = self.sealer.finish();
        debug!(tp = %chain.tp, manifests = chain.sealed.len(), end = chain.end().offset, held, "archived");
        Ok((chain, held))
    }

    /// Reads until the target epoch has begun; otherwise says why it hasn't.
    fn read(&mut self, log: Log<'_>) -> Result<Option<String>> {
        let (tp, start) = (self.sealer.chain().tp.clone(), self.sealer.chain().end().clone());
        let (low, high) = consume::watermarks(log.consumer, &tp)?;
        if high < start.offset {
            return Ok(Some(consume::shrunk(start.offset, high)));
        }
        let mut below = LookBack::new(&start, low);
        let (patience, stop) = (self.until.patience, self.ctx.stop.clone());
        let first = below.from.max(low);
        let mut reader = PartitionReader::new(log.consumer, tp.clone(), first, patience, stop)?;
        if low > start.offset {
            self.sealer.gap(start.offset, low);
        }
        let mut ticks = Ticks::default();
        while self.sealer.epoch() < self.target {
            match reader.next()? {
                Arrived::Record(message) if message.offset() < start.offset => below.see(message.payload()),
                Arrived::Record(_) | Arrived::End if below.is_another_log() => {
                    return Ok(Some(format!(
                        "{LOG_LOST}: the records below offset {} are not those that were archived; the topic was deleted \
                         and made anew: give the new log a topic name of its own",
                        start.offset
                    )));
                }
                Arrived::Record(message) => {
                    let taken = self.sealer.record(consume::record(&message));
                    if let Some(offset) = log.runtime.block_on(taken)? {
                        reader.seek(offset)?;
                    }
                }
                Arrived::Gap(_, to) if to <= start.offset => {}
                Arrived::Gap(from, to) => self.sealer.gap(from.max(start.offset), to),
                Arrived::End => {
                    let boundary = self.ctx.catalog.layout.epoch.boundary(self.target);
                    if let Some(reason) =
                        log.runtime.block_on(ticks.next(log.producer, &tp, boundary, patience))
                    {
                        return Ok(Some(reason));
                    }
                }
                Arrived::Stuck(reason) if ticks.sent > 0 => {
                    return Ok(Some(format!(
                        "{reason} (a tick was written: an open transaction may hide it)"
                    )));
                }
                Arrived::Stuck(reason) => return Ok(Some(reason)),
            }
        }
        Ok(None)
    }
}

/// Compares the last value below a cut with the cut's fingerprint.
struct LookBack {
    from: i64,
    expected: Option<u64>,
    found: Option<u64>,
}

impl LookBack {
    fn new(start: &Cut, low: i64) -> LookBack {
        let look = start.fingerprint.is_some() && low < start.offset;
        let from = if look { start.offset - LOOK_BACK } else { start.offset };
        LookBack { from, expected: start.fingerprint, found: None }
    }

    fn see(&mut self, value: Option<&[u8]>) {
        self.found = value.map(xxh3_64).or(self.found);
    }

    /// Only what was seen speaks: behind many ticks nothing may have been.
    fn is_another_log(&self) -> bool {
        self.found.is_some() && self.found != self.expected
    }
}

/// Ticks of one step to one partition.
#[derive(Default)]
struct Ticks {
    sent: u32,
    /// When the broker stamped the last.
    stamped: Option<Millis>,
}

impl Ticks {
    /// Called where the log ends below the boundary: appends a tick that closes the epoch. Returns the reason where
    /// that can't be.
    async fn next(
        &mut self,
        producer: Option<&LogProducer>,
        tp: &TopicPartition,
        boundary: Millis,
        patience: Duration,
    ) -> Option<String> {
        let Some(producer) = producer else {
            return Some(
                "idle: no record since the last boundary, and ticks are off (--no-ticks)".to_owned(),
            );
        };
        let late = self.stamped.map_or(0, |stamped| boundary - stamped);
        if late > 0 && Duration::from_millis(late.unsigned_abs()) < patience && self.sent < TICKS {
            // The broker's clock is behind this machine's: its own boundary is still to come.
            tokio::time::sleep(Duration::from_millis(late.unsigned_abs())).await;
        } else if late > 0 {
            return Some(format!("the broker's clock is {late} ms behind this machine's"));
        } else if self.stamped.is_some() {
            return Some(
                "a tick was written and can't be read: an open transaction holds the log's end back"
                    .to_owned(),
            );
        }
        self.sent += 1;
        match consume::tick(producer, tp).await {
            Ok(stamped) => {
                self.stamped = stamped.or(Some(boundary));
                None
            }
            Err(error) => Some(format!("idle, and a tick can't be written: {error:#}")),
        }
    }
}
