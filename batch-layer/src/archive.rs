//! The archive step: the log's closed epochs become Parquet segments, each epoch sealed by one manifest.
//!
//! Whatever process archives, and however often it is killed: of each partition there is one chain of manifests,
//! without overlap and without an unrecorded gap, and each record between its ends is in exactly one file that it
//! names.
//!
//! Memory: each of `workers` readers buffers one partition's open slice, up to [`Limits`] (64 MiB estimated), beside
//! 16 MiB that the Kafka client fetches ahead and the one segment being encoded.

pub mod boundary;
mod buffer;
pub(crate) mod checksum;
pub mod compaction;
mod consume;
pub(crate) mod fold;
#[cfg(test)]
mod laws;
pub mod manifest;
pub(crate) mod merge;
pub(crate) mod partition;
#[cfg(test)]
pub(crate) mod samples;
mod seal;
mod segment;
pub(crate) mod step;
pub mod store;
pub mod sweep;

pub use boundary::next_tidemark;
pub use buffer::Limits;
pub use manifest::{ImportManifest, Manifest};
pub use segment::SYSTEM_COLUMNS;
pub use store::Store;

pub(crate) use buffer::{Batch, Buffers};
pub(crate) use seal::{Chain, Sealer};
pub(crate) use segment::{Files, Form, RejectedRow, Row};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use rdkafka::config::ClientConfig;
use shared_model::catalog::Catalog;
use shared_model::epoch::EpochLength;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Tidemark};
use shared_model::time::Millis;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the archive step works with.
#[derive(Clone)]
pub struct Archiver {
    /// The streams and the length of an epoch.
    pub catalog: Arc<Catalog>,
    /// Where the archive is.
    pub store: Store,
    /// The log: bootstrap servers and security, no more.
    pub kafka: ClientConfig,
    /// Whether idle partitions get ticks; without, they are held.
    pub ticks: bool,
    /// How many partitions are read at once.
    pub workers: usize,
    /// What one reader may buffer.
    pub limits: Limits,
    /// Stops the step; what was sealed stays sealed.
    pub stop: CancellationToken,
}

impl Archiver {
    /// An archiver with ticks, two workers and the default limits.
    pub fn new(catalog: Arc<Catalog>, store: Store, kafka: ClientConfig) -> Archiver {
        let (limits, stop) = (Limits::default(), CancellationToken::new());
        Archiver { catalog, store, kafka, ticks: true, workers: 2, limits, stop }
    }
}

/// How far one step goes.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// The time, in ms since 1970: every epoch that has ended by then is closed.
    pub now: Millis,
    /// How long a partition may bring nothing before it is held.
    pub patience: Duration,
}

impl Until {
    /// Up to now, with a patience of 30 s.
    pub fn at(now: Millis) -> Until {
        Until { now, patience: Duration::from_secs(30) }
    }
}

/// A manifest in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// What it says.
    pub manifest: Manifest,
    /// Where it lies.
    pub path: String,
}

/// What one step found and made.
#[derive(Debug, Clone, Default)]
pub struct Advanced {
    /// All manifests from the given cuts on, old and new, by partition and offset.
    pub sealed: Vec<Sealed>,
    /// Of each partition: the cuts on its chain, from where it began to where it is sealed, ascending. Where the
    /// first has the offset of the second, the log began there and its first epoch was not known yet.
    pub reached: BTreeMap<TopicPartition, Vec<Cut>>,
    /// Partitions that are not sealed up to now, each with the reason.
    pub held: BTreeMap<TopicPartition, String>,
    /// Topics of the catalog that are not there yet.
    pub waiting: Vec<String>,
}

impl Advanced {
    /// The tidemark that this step allows: see [`boundary::next_tidemark`].
    pub fn next_tidemark(&self, current: &Tidemark) -> Tidemark {
        next_tidemark(current, &self.reached, &self.held)
    }

    /// The manifests below a tidemark's cuts: what its batch view holds beyond the cuts that the step began at.
    pub fn below<'a>(&'a self, tidemark: &'a Tidemark) -> impl Iterator<Item = &'a Sealed> {
        self.sealed.iter().filter(|sealed| {
            let cut = tidemark.cuts.get(&sealed.manifest.topic_partition());
            cut.is_some_and(|cut| sealed.manifest.to.offset <= cut.offset)
        })
    }
}

/// Archives every epoch that has closed since the given cuts, in all partitions of all topics of the catalog.
///
/// Partitions without a cut begin at their first manifest or, without any, at the log's start. They are looked for
/// again once all are read, so that one that isn't found holds nothing that was appended before the epochs that were
/// closed. A failure of the store or of the broker is an error; a partition that merely can't move on is held.
pub async fn advance(ctx: &Archiver, from: &BTreeMap<TopicPartition, Cut>, until: Until) -> Result<Advanced> {
    let epochs = ctx.catalog.layout.epoch;
    let discover = async |known: &BTreeMap<TopicPartition, Cut>| partition::discover(ctx, known).await;
    let read_all = async |chains| partition::read_all(ctx, chains, until).await;
    advance_by(&ctx.store, epochs, from, until.now, discover, read_all).await
}

/// The same by any way to look for partitions and to read their logs.
pub(crate) async fn advance_by(
    store: &Store,
    epochs: EpochLength,
    from: &BTreeMap<TopicPartition, Cut>,
    now: Millis,
    discover: impl AsyncFn(&BTreeMap<TopicPartition, Cut>) -> Result<partition::Found>,
    read_all: impl AsyncFn(Vec<seal::Chain>) -> Result<Vec<partition::Read>>,
) -> Result<Advanced> {
    let (mut advanced, mut known) = (Advanced::default(), from.clone());
    loop {
        let found = discover(&known).await?;
        known.clone_from(&found.starts);
        let Some(starts) = advanced.news(found) else { break };
        let chains = advanced.walk(store, epochs, starts, now).await?;
        for (chain, held) in read_all(chains).await? {
            advanced.take(chain, held);
        }
    }
    advanced.sealed.sort_by(|a, b| {
        let place = |sealed: &Sealed| (sealed.manifest.topic_partition(), sealed.manifest.from.offset);
        place(a).cmp(&place(b))
    });
    Ok(advanced)
}

impl Advanced {
    /// Takes in what was found; where the partitions begin that weren't found before, if there are any.
    fn news(&mut self, found: partition::Found) -> Option<BTreeMap<TopicPartition, Cut>> {
        self.waiting = found.waiting;
        self.held.extend(found.held);
        let mut starts = found.starts;
        starts.retain(|tp, _| !self.reached.contains_key(tp));
        (!starts.is_empty()).then_some(starts)
    }

    /// Follows the manifests of partitions; those that must be read on come back as chains.
    async fn walk(
        &mut self,
        store: &Store,
        epochs: EpochLength,
        starts: BTreeMap<TopicPartition, Cut>,
        now: Millis,
    ) -> Result<Vec<seal::Chain>> {
        let walked: Vec<seal::Chain> = futures::stream::iter(starts)
            .map(|(tp, start)| seal::walk(store, tp, start))
            .buffered(16)
            .try_collect()
            .await?;
        let mut chains = Vec::new();
        for chain in walked {
            let stopped = self.held.contains_key(&chain.tp);
            let closed = chain.end().epoch >= epochs.epoch(now);
            if stopped || closed { self.take(chain, None) } else { chains.push(chain) }
        }
        Ok(chains)
    }

    fn take(&mut self, chain: seal::Chain, held: Option<String>) {
        if let Some(reason) = held {
            self.held.insert(chain.tp.clone(), reason);
        }
        self.sealed.extend(chain.sealed);
        self.reached.insert(chain.tp, chain.cuts);
    }
}

/// The cuts of the very first tidemark: the start of each partition's log. Topics that aren't there yet have none;
/// their partitions come in with the first step that finds them.
pub async fn initial_cuts(kafka: &ClientConfig, catalog: &Catalog) -> Result<BTreeMap<TopicPartition, Cut>> {
    let topics: Vec<Arc<str>> = catalog.streams.iter().map(|stream| stream.topic.clone()).collect();
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    consume::check_topics(kafka, &names).await?;
    let kafka = kafka.clone();
    let read = move || -> Result<BTreeMap<TopicPartition, Cut>> {
        let consumer = consume::consumer(&kafka)?;
        let mut cuts = BTreeMap::new();
        for topic in topics {
            for tp in consume::partitions(&consumer, &topic)?.unwrap_or_default() {
                let (low, _) = consume::watermarks(&consumer, &tp)?;
                cuts.insert(tp, Cut::start(low));
            }
        }
        Ok(cuts)
    };
    tokio::task::spawn_blocking(read).await.context("the reader of kafka's watermarks died")?
}

/// Tells one writer's files from another's.
pub(crate) fn nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}
