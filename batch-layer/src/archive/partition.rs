//! The partitions of a step: find them, read each on from its chain's end, with a tick where it is idle.
//!
//! Each either has every epoch closed that ended before the step, or a reason why not.

use crate::archive::consume::{self, LogConsumer, LogProducer, PartitionReader};
use crate::archive::manifest::{Manifest, manifest_folder};
use crate::archive::seal::{Chain, Sealer};
use crate::archive::step::{self, Arrived, Log};
use crate::archive::store::Store;
use crate::archive::{Archiver, Until};
use anyhow::{Context, Result};
use rdkafka::message::BorrowedMessage;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, LOG_LOST};
use shared_model::time::Millis;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

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
/// have one, or else as [`begin`] says.
pub(crate) async fn discover(ctx: &Archiver, from: &BTreeMap<TopicPartition, Cut>) -> Result<Found> {
    let topics: Vec<Arc<str>> = ctx.catalog.streams.iter().map(|stream| stream.topic.clone()).collect();
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    consume::check_topics(&ctx.kafka, &names).await?;
    let (kafka, known) = (ctx.kafka.clone(), from.clone());
    let look = move || -> Result<Seen> {
        let consumer = consume::consumer(&kafka)?;
        let mut seen = Seen::default();
        for topic in &topics {
            match consume::partitions(&consumer, topic)? {
                Some(partitions) => seen.there.extend(partitions),
                None => seen.waiting.push(topic.to_string()),
            }
        }
        for tp in seen.there.iter().filter(|tp| !known.contains_key(tp)) {
            let (low, _) = consume::watermarks(&consumer, tp)?;
            seen.new.push((tp.clone(), low));
        }
        Ok(seen)
    };
    let seen = tokio::task::spawn_blocking(look).await.context("the reader of kafka's metadata died")??;
    begin(&ctx.store, from, seen).await
}

/// What the broker has.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Its partitions.
    pub(crate) there: BTreeSet<TopicPartition>,
    /// Those without a cut, with the first offset that each has.
    pub(crate) new: Vec<(TopicPartition, i64)>,
    /// Topics that are not there.
    pub(crate) waiting: Vec<String>,
}

/// Decides where each partition begins. One that is new in a topic that has been read begins at 0: what its log has
/// lost by now is a gap. What a topic had lost before it was first read is of no concern.
pub(crate) async fn begin(store: &Store, from: &BTreeMap<TopicPartition, Cut>, seen: Seen) -> Result<Found> {
    let mut found = Found { starts: from.clone(), held: BTreeMap::new(), waiting: seen.waiting };
    for tp in from.keys().filter(|tp| !seen.there.contains(tp)) {
        found.held.insert(tp.clone(), format!("{LOG_LOST}: there is no such topic or partition"));
    }
    for (tp, low) in seen.new {
        let first = store.first(&manifest_folder(&tp)).await?;
        let start = match first {
            Some(path) => first_cut(store, &path).await?,
            None if from.keys().any(|known| known.topic == tp.topic) => Cut::start(0),
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

/// A chain that was read on, and the reason where it could not be.
pub(crate) type Read = (Chain, Option<String>);

/// Reads chains on in the log until each has closed every epoch that ended before `until`, several at once. Each
/// comes back with the reason where it could not.
pub(crate) async fn read_all(ctx: &Archiver, chains: Vec<Chain>, until: Until) -> Result<Vec<Read>> {
    if chains.is_empty() {
        return Ok(Vec::new());
    }
    let queue = Arc::new(Mutex::new(VecDeque::from(chains)));
    let mut workers = JoinSet::new();
    // Whatever drops this stops the workers at their next record.
    let stop = ctx.stop.child_token();
    let _guard = stop.clone().drop_guard();
    for _ in 0..ctx.workers.max(1) {
        let (ctx, queue) = (Archiver { stop: stop.clone(), ..ctx.clone() }, queue.clone());
        let runtime = Handle::current();
        workers.spawn_blocking(move || work(&ctx, &queue, until, &runtime));
    }
    all(workers, &stop).await
}

/// Waits for all workers and puts what they did together. A fault stops the others at their next record and is
/// returned once they have ended: one that still worked while the program ends would have its runtime taken away.
async fn all<T: 'static>(mut workers: JoinSet<Result<Vec<T>>>, stop: &CancellationToken) -> Result<Vec<T>> {
    let mut done = Ok(Vec::new());
    while let Some(finished) = workers.join_next().await {
        match (finished.context("a reader of the log died").flatten(), &mut done) {
            (Ok(read), Ok(done)) => done.extend(read),
            (Ok(_), Err(_)) => {}
            // What the others say after the first fault comes of their being stopped.
            (Err(fault), _) => {
                stop.cancel();
                done = done.and(Err(fault));
            }
        }
    }
    done
}

fn work(ctx: &Archiver, queue: &Mutex<VecDeque<Chain>>, until: Until, runtime: &Handle) -> Result<Vec<Read>> {
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
        let (tp, epochs) = (chain.tp.clone(), ctx.catalog.layout.epoch);
        let sealer = Sealer::new(ctx.store.clone(), stream.clone(), epochs, chain, ctx.limits, until.now);
        let mut log = KafkaLog {
            tp: tp.clone(),
            consumer,
            producer: producer.as_ref(),
            patience: until.patience,
            stop: ctx.stop.clone(),
            reader: None,
        };
        // This thread is one that may block: reading does.
        let read = runtime.block_on(step::read_on(&mut log, sealer, epochs, until));
        done.push(read.with_context(|| format!("archive of {tp}"))?);
    }
}

/// One partition's log on the broker.
struct KafkaLog<'a> {
    tp: TopicPartition,
    consumer: &'a LogConsumer,
    /// `None`: no ticks.
    producer: Option<&'a LogProducer>,
    patience: Duration,
    stop: CancellationToken,
    reader: Option<PartitionReader<'a>>,
}

impl<'a> Log for KafkaLog<'a> {
    type Message = BorrowedMessage<'a>;

    fn watermarks(&mut self) -> Result<(i64, i64)> {
        consume::watermarks(self.consumer, &self.tp)
    }

    fn seek(&mut self, offset: i64) -> Result<()> {
        match &mut self.reader {
            Some(reader) => reader.seek(offset),
            None => {
                let (tp, stop) = (self.tp.clone(), self.stop.clone());
                self.reader = Some(PartitionReader::new(self.consumer, tp, offset, self.patience, stop)?);
                Ok(())
            }
        }
    }

    async fn next(&mut self) -> Result<Arrived<BorrowedMessage<'a>>> {
        self.reader.as_mut().context("a log is read before it is opened")?.next()
    }

    fn takes_ticks(&self) -> bool {
        self.producer.is_some()
    }

    async fn tick(&mut self) -> Result<Option<Millis>> {
        consume::tick(self.producer.context("ticks are off")?, &self.tp).await
    }

    async fn wait(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_partition_begins_where_its_records_count_from() {
        let tp = TopicPartition::new;
        let from = [(tp("old", 0), Cut::start(40)), (tp("gone", 0), Cut::start(7))].into();
        let new = vec![(tp("old", 1), 5), (tp("new", 0), 90)];
        let there = [tp("old", 0), tp("old", 1), tp("new", 0)].into();
        let seen = Seen { there, new, waiting: Vec::new() };
        let found = begin(&Store::in_memory(), &from, seen).await.unwrap();
        let starts: Vec<_> = found.starts.iter().map(|(tp, cut)| (tp.to_string(), cut.offset)).collect();
        let expected = [("gone/0", 7), ("new/0", 90), ("old/0", 40), ("old/1", 0)];
        assert_eq!(starts, expected.map(|(tp, offset)| (tp.to_owned(), offset)));
        assert_eq!(found.held.keys().collect::<Vec<_>>(), [&tp("gone", 0)]);
    }

    #[tokio::test]
    async fn a_fault_is_returned_once_all_workers_have_ended() {
        let stop = CancellationToken::new();
        let (ended, runtime) = (Arc::new(Mutex::new(0)), Handle::current());
        let mut workers = JoinSet::new();
        workers.spawn_blocking(|| anyhow::bail!("no room"));
        for worker in 1..=2 {
            let (stop, ended, runtime) = (stop.clone(), ended.clone(), runtime.clone());
            workers.spawn_blocking(move || {
                runtime.block_on(stop.cancelled());
                *ended.lock().unwrap() += 1;
                if worker == 1 { Ok(vec![worker]) } else { anyhow::bail!("stopped") }
            });
        }
        assert_eq!(all(workers, &stop).await.unwrap_err().to_string(), "no room");
        assert_eq!(*ended.lock().unwrap(), 2);
    }
}
