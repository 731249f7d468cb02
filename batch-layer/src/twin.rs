//! The batch layer without Kafka, Postgres and Polars: the same archive step and the same run over a ledger in memory,
//! so that tests can break a run off at any point and let others run in between.
//!
//! Nothing is decided here: what is sealed, where the tidemark goes, which days are computed from what and what a
//! flip refuses is decided as in the real run. Days are computed by the per-record evaluator, with which Polars' plans
//! are held to agree elsewhere, from files that hold offsets alone.

mod ledger;

pub use crate::archive::fold::Record;
pub use crate::archive::step::{Arrived, Log, Logged};
pub use crate::archive::{Limits, Store, Until};
pub use crate::compute::Cell;
pub use ledger::{MemoryLedger, Published, Refused};

use crate::archive::{self, Advanced, Chain, Form, Sealer, partition, step};
use crate::compute::Sorter;
use crate::ledger::Entry;
use crate::run::input::{Fresh, Inputs, Way};
use crate::work::{self, Known};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use shared_model::aggregate::State;
use shared_model::catalog::Catalog;
use shared_model::event::Event;
use shared_model::metric::{Binding, Metric};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Tidemark};
use shared_model::time::Millis;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The world that a run works in.
pub trait Surroundings {
    /// The log of one partition.
    type Log: Log;

    /// All partitions that the broker has, each with the first offset of its log.
    fn partitions(&self) -> BTreeMap<TopicPartition, i64>;

    /// Opens a partition's log.
    fn open(&self, tp: &TopicPartition) -> Self::Log;

    /// The valid record at an offset, whether or not the log still has it.
    fn event(&self, tp: &TopicPartition, offset: i64) -> Option<Event>;

    /// The run's clock.
    fn now(&self) -> Millis;

    /// Called between any two steps of a run, each of which happens whole or not at all: here it may be broken off.
    fn pause(&self, before: &'static str) -> LocalBoxFuture<'_, ()>;
}

/// What a run is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Take in what is new.
    Run,
    /// Compute all days again, at the tidemark in force.
    Backfill,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to publish.
    Nothing,
    /// It flipped to this generation.
    Flipped(i64),
    /// Another run holds the lock.
    Busy,
    /// Its flip was refused.
    Refused(Refused),
}

/// A batch layer.
pub struct Batch<'a, S> {
    /// The definitions.
    pub catalog: &'a Catalog,
    /// The archive.
    pub store: Store,
    /// The database.
    pub ledger: &'a MemoryLedger,
    /// Everything else.
    pub world: &'a S,
    /// What one partition's reader may hold.
    pub limits: Limits,
    /// Whether it finds the lock free whoever holds it, as one does that reached another database server.
    pub ignores_lock: bool,
}

impl<S: Surroundings> Batch<'_, S> {
    /// Writes the first tidemark where there is none.
    pub fn prepare(&self) {
        let cuts = self.world.partitions().into_iter().map(|(tp, low)| (tp, Cut::start(low)));
        self.ledger.initialise(Tidemark { cuts: cuts.collect(), ..Tidemark::default() });
    }

    /// One run.
    ///
    /// # Errors
    /// Where the archive fails, or a day can't be computed.
    pub async fn run(&self, order: Order) -> Result<Outcome> {
        self.world.pause("the lock").await;
        let Some(_lock) = self.ledger.lock(self.ignores_lock) else { return Ok(Outcome::Busy) };
        let run = self.ledger.begin();
        self.world.pause("the tidemark is read").await;
        let current = self.ledger.tidemark();
        let (next, fresh) = match order {
            Order::Run => {
                let advanced = self.archive(&current.cuts).await?;
                let next = advanced.next_tidemark(&current);
                let fresh = Fresh::collect(advanced.below(&next), Vec::new());
                (next, fresh)
            }
            Order::Backfill => {
                (Tidemark { generation: current.generation + 1, ..current.clone() }, Fresh::default())
            }
        };
        self.world.pause("the work is decided").await;
        let mut known = Known { fresh: fresh.streams_by_day(self.catalog), ..Known::default() };
        match order {
            Order::Run => known.uncovered = self.ledger.uncovered(self.catalog),
            Order::Backfill => known.asked = self.ledger.days(),
        }
        let mut publish = Vec::new();
        for (day, metrics) in work::decide(self.catalog, &known) {
            self.world.pause("a day's input is read").await;
            let input = Inputs::of(self.catalog, day, self.ledger.day(day), &fresh);
            for metric in &metrics {
                publish.extend(self.day(run, order, metric, &input).await?);
            }
        }
        if !fresh.moves(&current, &next) && publish.is_empty() {
            return Ok(Outcome::Nothing);
        }
        self.world.pause("the flip").await;
        Ok(match self.ledger.flip(run, &next, &publish, &fresh) {
            Ok(()) => Outcome::Flipped(next.generation),
            Err(refused) => Outcome::Refused(refused),
        })
    }

    /// The archive step.
    async fn archive(&self, from: &BTreeMap<TopicPartition, Cut>) -> Result<Advanced> {
        let until = Until::at(self.world.now());
        let epochs = self.catalog.layout.epoch;
        let discover = async |known: &BTreeMap<TopicPartition, Cut>| {
            let there = self.world.partitions();
            let new = there.iter().filter(|(tp, _)| !known.contains_key(tp));
            let new = new.map(|(tp, low)| (tp.clone(), *low)).collect();
            let seen = partition::Seen { there: there.into_keys().collect(), new, waiting: Vec::new() };
            partition::begin(&self.store, known, seen).await
        };
        let read_all = async |chains: Vec<Chain>| {
            let mut read = Vec::new();
            for chain in chains {
                let Some(stream) = self.catalog.stream_of_topic(&chain.tp.topic) else { continue };
                let mut log = self.world.open(&chain.tp);
                let (stream, store) = (stream.clone(), self.store.clone());
                let sealer = Sealer::new(store, stream, epochs, chain, self.limits, until.now);
                read.push(step::read_on(&mut log, sealer.written_as(PLAIN), epochs, until).await?);
            }
            Ok(read)
        };
        archive::advance_by(&self.store, epochs, from, until.now, discover, read_all).await
    }

    /// Computes one metric's day; nothing where that changes nothing. The id of the staged version.
    async fn day(&self, run: i64, order: Order, metric: &Arc<Metric>, input: &Inputs) -> Result<Option<i64>> {
        self.world.pause("a metric's day is computed").await;
        let live = self.ledger.live(metric, input.day);
        let way = input.way(metric, live.is_some());
        if way == Way::Refused {
            bail!("day {} can't be computed anew: files of it were removed from the archive", input.day);
        }
        if order == Order::Run
            && !way.is_partial()
            && let Some(staged) = self.ledger.staged(metric, input.day, &input.hash)
        {
            return Ok(Some(staged.id));
        }
        let new_only = way == Way::OntoLive;
        let read = input.entries().iter().filter(|(_, new)| *new || !new_only).map(|(entry, _)| entry);
        let mut sorter = Sorter::new(metric, u64::MAX);
        self.compute(metric, read).await?.into_iter().try_for_each(|cell| sorter.push(cell))?;
        if let (Way::OntoLive, Some(live)) = (way, &live) {
            self.ledger.cells(live.id).into_iter().try_for_each(|cell| sorter.push(cell))?;
        }
        let mut cells = sorter.finish()?;
        if live.is_some_and(|live| live.is(cells.hash(), way.is_partial())) {
            return Ok(None);
        }
        let (hash, cells) = (cells.hash().to_owned(), cells.read()?.collect::<Result<Vec<_>>>()?);
        self.world.pause("a version is staged").await;
        Ok(Some(self.ledger.stage(run, metric, input.day, (hash, input.hash.clone()), way, cells)))
    }

    /// Folds each distinct identity of a stream once: the delivery of the lowest topic, partition, offset.
    async fn compute<'e>(
        &self,
        metric: &Metric,
        entries: impl Iterator<Item = &'e Entry>,
    ) -> Result<Vec<Cell>> {
        let mut entries: Vec<&Entry> = entries.collect();
        entries.sort_by(|a, b| {
            let place = |entry: &Entry| (entry.tp.clone(), entry.segment.from_offset);
            place(a).cmp(&place(b))
        });
        let (mut seen, mut cells) = (HashSet::new(), Vec::new());
        for entry in entries {
            let Entry { stream, tp, segment, .. } = entry;
            let Some(binding) = metric.bindings.iter().find(|binding| binding.stream == *stream) else {
                continue;
            };
            let bytes = self.store.get(&segment.path).await?;
            let bytes = bytes.with_context(|| format!("{} is not there", segment.path))?;
            let offsets = std::str::from_utf8(&bytes)?.lines().map(str::parse::<i64>);
            for offset in offsets.collect::<Result<Vec<_>, _>>()? {
                let row = self.world.event(tp, offset).context("an archived row is no valid record")?;
                if seen.insert((stream, row.identity)) {
                    cells.extend(cell(metric, binding, &row));
                }
            }
        }
        Ok(cells)
    }
}

/// Files that hold the offsets of their rows alone.
const PLAIN: Form = Form {
    rows: |_, _, rows| Ok(lines(rows.iter().map(|row| row.offset))),
    rejects: |_, rows| Ok(lines(rows.iter().map(|row| row.offset))),
};

fn lines(offsets: impl Iterator<Item = i64>) -> Bytes {
    offsets.map(|offset| format!("{offset}\n")).collect::<String>().into()
}

fn cell(metric: &Metric, binding: &Binding, row: &Event) -> Option<Cell> {
    if !binding.admits(&row.values) {
        return None;
    }
    let key = binding.by.iter().chain(&binding.item).map(|part| part.evaluate(&row.values)).collect();
    let mut state = State::empty(&metric.aggregate);
    binding.add(&row.values, &mut state);
    Some(Cell { key, bucket: metric.grain.bucket(row.time), state })
}
