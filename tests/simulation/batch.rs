//! Batch runs: what they find around them, and an archive whose answers get lost.

use crate::world::{Sabotage, Weak, World};
use anyhow::Result;
use batch_layer::twin::{Arrived, Batch, Limits, Log, Logged, Order, Outcome, Record, Store, Surroundings};
use futures::future::LocalBoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use shared_model::event::{self, Event};
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One run, to its end.
pub(crate) async fn run(world: World, order: Order, ignores_lock: bool) -> Option<Outcome> {
    world.note(format_args!("{order:?} begins"));
    let around = Around { world: world.clone(), skew: *world.state().random.of(&[0, 0, 700, -700]) };
    let batch = Batch {
        catalog: world.catalog(),
        store: world.store().clone(),
        ledger: world.ledger(),
        world: &around,
        limits: Limits { rows: 9, ..Limits::default() },
        ignores_lock,
    };
    let outcome = batch.run(order).await;
    world.show_flips();
    world.note(format_args!("{order:?} ends: {outcome:?}"));
    if let Ok(Outcome::Refused(refused)) = &outcome {
        assert_eq!(*refused, batch_layer::twin::Refused::Overtaken);
    }
    outcome.ok()
}

/// Writes the first tidemark.
pub(crate) fn prepare(world: &World) {
    let around = Around { world: world.clone(), skew: 0 };
    let batch = Batch {
        catalog: world.catalog(),
        store: world.store().clone(),
        ledger: world.ledger(),
        world: &around,
        limits: Limits::default(),
        ignores_lock: false,
    };
    batch.prepare();
    world.show_flips();
}

struct Around {
    world: World,
    /// How far this machine's clock is ahead.
    skew: Millis,
}

impl Surroundings for Around {
    type Log = ArchivedLog;

    fn partitions(&self) -> BTreeMap<TopicPartition, i64> {
        self.world.state().broker.logs.iter().map(|(tp, log)| (tp.clone(), log.low)).collect()
    }

    fn open(&self, tp: &TopicPartition) -> ArchivedLog {
        ArchivedLog { world: self.world.clone(), tp: tp.clone(), at: 0 }
    }

    fn event(&self, tp: &TopicPartition, offset: i64) -> Option<Event> {
        let stream = self.world.catalog().stream_of_topic(&tp.topic)?.clone();
        let state = self.world.state();
        let records = &state.broker.log(tp).records;
        let record = &records[records.binary_search_by_key(&offset, |record| record.offset).ok()?];
        event::decode(&stream, tp, offset, record.append, record.value.as_deref()).ok()
    }

    fn now(&self) -> Millis {
        self.world.state().now + self.skew
    }

    fn pause(&self, _before: &'static str) -> LocalBoxFuture<'_, ()> {
        // A flip that was made is seen by readers at once.
        self.world.show_flips();
        Box::pin(self.world.step())
    }
}

/// A partition as the archiver reads it.
struct ArchivedLog {
    world: World,
    tp: TopicPartition,
    at: i64,
}

struct Message {
    offset: i64,
    append: Millis,
    value: Option<Vec<u8>>,
}

impl Logged for Message {
    fn record(&self) -> Record<'_> {
        Record {
            offset: self.offset,
            append_time: Some(self.append),
            produced: None,
            tick_header: self.value.is_none(),
            value: self.value.as_deref(),
        }
    }
}

impl Log for ArchivedLog {
    type Message = Message;

    fn watermarks(&mut self) -> Result<(i64, i64)> {
        let state = self.world.state();
        let log = state.broker.log(&self.tp);
        Ok((log.low, log.visible_end()))
    }

    fn seek(&mut self, offset: i64) -> Result<()> {
        self.at = offset;
        Ok(())
    }

    async fn next(&mut self) -> Result<Arrived<Message>> {
        if self.world.state().random.one_in(4) {
            self.world.step().await;
        }
        if self.world.is_sabotaged(Sabotage::ArchiveSkips) && self.world.state().random.one_in(100) {
            self.at += 1;
        }
        let state = self.world.state();
        let early = if state.sabotage == Some(Sabotage::CutsMoved) { 40 } else { 0 };
        let log = state.broker.log(&self.tp);
        if log.low > self.at {
            let gap = Arrived::Gap(self.at, log.low);
            self.at = log.low;
            return Ok(gap);
        }
        Ok(match log.at(self.at) {
            None => Arrived::End,
            Some(record) => {
                self.at = record.offset + 1;
                let (offset, append, value) = (record.offset, record.append - early, record.value.clone());
                Arrived::Record(Message { offset, append, value })
            }
        })
    }

    fn takes_ticks(&self) -> bool {
        true
    }

    async fn tick(&mut self) -> Result<Option<Millis>> {
        self.world.step().await;
        let stamped = {
            let mut state = self.world.state();
            let now = state.now;
            state.broker.log_mut(&self.tp).append(now, None, None)
        };
        self.world.note(format_args!("a tick in {}", self.tp));
        self.world.step().await;
        if self.world.fault() {
            anyhow::bail!("the tick's answer is lost");
        }
        Ok(Some(stamped))
    }

    async fn wait(&mut self, time: Duration) {
        let until = self.world.clock() + time;
        while self.world.clock() < until {
            self.world.step().await;
        }
    }
}

/// The archive: a store in memory, between any two of whose operations a run may be broken off.
pub(crate) fn archive(world: &Weak) -> Store {
    Store::from_object_store(Arc::new(Objects { world: world.clone(), inner: InMemory::new() }))
}

struct Objects {
    world: Weak,
    inner: InMemory,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an archive in memory")
    }
}

type Stored<T> = Result<T, Error>;

#[async_trait::async_trait]
impl ObjectStore for Objects {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Stored<PutResult> {
        let world = self.world.world();
        world.step().await;
        if world.fault() && world.fault() {
            // For good, so that nobody waits for the next try.
            world.note(format_args!("put {path}: refused"));
            world.count("writes to the archive refused");
            return Err(Error::PermissionDenied { path: path.to_string(), source: "a full disk".into() });
        }
        let put = self.inner.put_opts(path, payload, options.clone()).await;
        world.note(format_args!("put {path}: {}", if put.is_ok() { "done" } else { "exists" }));
        world.step().await;
        let conditional = options.mode == object_store::PutMode::Create;
        if conditional && world.fault() {
            world.note(format_args!("put {path}: its answer is lost"));
            world.count("answers lost");
            return Err(Error::Generic { store: "memory", source: "no answer".into() });
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Stored<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Stored<GetResult> {
        self.world.world().step().await;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Stored<Path>>) -> BoxStream<'static, Stored<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Stored<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Stored<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Stored<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
