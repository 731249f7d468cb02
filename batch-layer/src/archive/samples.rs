//! A stream, random logs and an unreliable store for the archive's tests.

use crate::archive::fold::Record;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use proptest::prelude::*;
use shared_model::catalog::{Bounds, EventTimeField, Field, Stream, TimeUnit};
use shared_model::event::FieldType;
use shared_model::time::{DAY, Interval, Millis};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A stream with a field of each type; event times of the first 100 days are believed.
pub(crate) fn stream() -> Arc<Stream> {
    let field = |name: &str, ty| Field { name: name.into(), ty };
    Arc::new(Stream {
        name: "clicks".into(),
        topic: "clicks".into(),
        fields: vec![
            field("uuid", FieldType::String),
            field("at", FieldType::Int),
            field("price", FieldType::Decimal(2)),
            field("share", FieldType::Float),
            field("paid", FieldType::Bool),
        ],
        recorded: 5,
        dimensions: vec![],
        event_time: EventTimeField { field: 1, unit: TimeUnit::Millis, offset: 0 },
        identity: vec![0, 1],
        message_key: Some(0),
        dedup_horizon: 1_000,
        lateness: 60_000,
        bounds: Bounds::Fixed(Interval { start: 0, end: 100 * DAY }),
        max_record_bytes: 200,
        max_text_bytes: 100,
        facts: false,
        version: 7,
    })
}

/// One record of a test's log.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) offset: i64,
    pub(crate) append_time: Option<Millis>,
    pub(crate) tick: bool,
    pub(crate) value: Option<Vec<u8>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.value.as_deref().map(String::from_utf8_lossy);
        write!(f, "{}@{:?} {}{value:?}", self.offset, self.append_time, if self.tick { "tick " } else { "" })
    }
}

impl Entry {
    pub(crate) fn record(&self) -> Record<'_> {
        Record {
            offset: self.offset,
            append_time: self.append_time,
            produced: Some(self.offset),
            tick_header: self.tick,
            value: self.value.as_deref(),
        }
    }
}

/// Valid JSON, or a reject of some kind, or a tick.
fn content() -> impl Strategy<Value = (bool, Option<Vec<u8>>)> {
    let event = (0..5u8, 0..4i64 * DAY).prop_map(|(user, at)| {
        let json = format!(r#"{{"uuid":"u{user}","at":{at},"price":1.25,"share":0.5,"paid":true}}"#);
        (false, Some(json.into_bytes()))
    });
    prop_oneof![
        8 => event,
        1 => Just((false, Some(b"{".to_vec()))),
        1 => Just((false, Some(br#"{"uuid":"u","at":-5}"#.to_vec()))),
        1 => Just((false, None)),
        2 => Just((true, None)),
    ]
}

/// A log from some offset on, with holes, clocks that go back, and records that the broker didn't stamp.
pub(crate) fn log() -> impl Strategy<Value = Vec<Entry>> {
    let stamp = prop_oneof![6 => (0..40i64).prop_map(Some), 1 => Just(None), 1 => (-60..0i64).prop_map(Some)];
    let entries = prop::collection::vec((1..3i64, stamp, content()), 0..60);
    (0..50i64, 1..2_000i64, entries).prop_map(|(low, start, entries)| {
        let (mut offset, mut clock) = (low - 1, start);
        let place = |(hole, step, (tick, value)): (i64, Option<i64>, _)| {
            offset += if offset < low { 1 } else { hole };
            clock += step.unwrap_or(0).max(0);
            let append_time = step.map(|step| if step < 0 { clock + step } else { clock });
            Entry { offset, append_time, tick, value }
        };
        entries.into_iter().map(place).collect()
    })
}

/// A store whose next writes go as a script says: `ok`, `fail` (nothing written), `lose the answer` (written, and an
/// error all the same), `refuse` (for good), `overwrite` (put-if-absent ignored), `cut` (in parts, and the last one fails).
#[derive(Debug)]
pub(crate) struct Unreliable {
    inner: Arc<InMemory>,
    script: Mutex<VecDeque<&'static str>>,
    /// How many uploads in parts were given up.
    pub(crate) aborted: Arc<AtomicUsize>,
}

impl Unreliable {
    pub(crate) fn new(inner: Arc<InMemory>, script: &[&'static str]) -> Unreliable {
        Unreliable { inner, script: Mutex::new(script.iter().copied().collect()), aborted: Arc::default() }
    }
}

/// An upload in parts, of which the last one may fail: the one that is shorter than those before.
#[derive(Debug)]
struct UnreliableUpload {
    inner: Box<dyn MultipartUpload>,
    is_cut: bool,
    longest: usize,
    aborted: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl MultipartUpload for UnreliableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if self.is_cut && data.content_length() < self.longest {
            let lost = Error::Generic { store: "unreliable", source: "503 slow down".into() };
            return Box::pin(std::future::ready(Err(lost)));
        }
        self.longest = data.content_length();
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.aborted.fetch_add(1, Ordering::SeqCst);
        self.inner.abort().await
    }
}

impl std::fmt::Display for Unreliable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unreliable")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Unreliable {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let lost = || Error::Generic { store: "unreliable", source: "503 slow down".into() };
        let next = self.script.lock().unwrap().pop_front();
        match next.unwrap_or("ok") {
            "fail" => Err(lost()),
            "lose the answer" => self.inner.put_opts(path, payload, options).await.and(Err(lost())),
            "refuse" => Err(Error::PermissionDenied { path: path.to_string(), source: "no".into() }),
            "overwrite" => self.inner.put_opts(path, payload, PutOptions::default()).await,
            _ => self.inner.put_opts(path, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let is_cut = self.script.lock().unwrap().pop_front() == Some("cut");
        let inner = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(UnreliableUpload { inner, is_cut, longest: 0, aborted: self.aborted.clone() }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
