//! Tags: `304` is said of nothing that has changed, and of a past run before a row is read.

use super::law::{event, queries};
use super::over_http::Served;
use super::world::{NOW, START, World, fixed, span};
use crate::Service;
use crate::batch_view::{
    BatchError, BatchView, EachCell, EachFact, Lost, MemoryBatchView, Opening, Position, Scan, Snapshot,
    Wanted,
};
use crate::merge::FoldError;
use crate::realtime_view::MemoryRealtimeView;
use crate::router::router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use futures::future::BoxFuture;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use shared_model::catalog::Stream;
use shared_model::offsets::{OffsetRange, TopicPartition};
use shared_model::time::{EventDay, Interval, show};
use shared_model::view::{Looked, Mark};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tower::ServiceExt;

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn get(service: &Service, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router(service.clone()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Reply { status, headers, body: to_bytes(response.into_body(), 1 << 26).await.unwrap() }
}

/// The address of a query.
fn address(request: &Json) -> String {
    let q: String = url::form_urlencoded::byte_serialize(request.to_string().as_bytes()).collect();
    format!("/api/v1/query?q={q}")
}

#[tokio::test]
async fn what_is_told_of_the_catalog_is_sent_once() {
    let served = Served::new().await;
    for path in ["/api/v1/metrics", "/api/v1/openapi.json", "/api/docs", "/", "/page/app.js"] {
        let first = get(&served.service, path, &[]).await;
        assert_eq!((first.status.as_u16(), first.header("cache-control")), (200, "no-cache"), "{path}");
        assert!(!first.body.is_empty() && first.header("etag").starts_with("W/\""));
        let again = get(
            &served.service,
            path,
            &[("if-none-match", first.header("etag")), ("accept-encoding", "gzip")],
        )
        .await;
        assert_eq!(
            (again.status.as_u16(), again.body.len(), again.header("etag")),
            (304, 0, first.header("etag")),
            "{path}"
        );
        let packed =
            get(&served.service, path, &[("accept-encoding", "gzip"), ("if-none-match", "\"other\"")]).await;
        assert_eq!(
            (packed.header("content-encoding"), packed.header("etag")),
            ("gzip", first.header("etag")),
            "{path}"
        );
    }
    for path in [
        "/api/v1/live/active_user_5m",
        "/api/v1/live/nonsense",
        "/api/v1/audit",
        "/readyz",
        "/nowhere",
        "/page/nothing.js",
        "/api/v1/query?q=1",
    ] {
        let reply = get(&served.service, path, &[]).await;
        assert_eq!((reply.header("cache-control"), reply.header("etag")), ("no-store", ""), "{path}");
    }
}

#[tokio::test]
async fn a_query_in_the_address_is_answered_as_one_in_a_body() {
    let served = Served::new().await;
    for format in ["json", "csv", "ndjson"] {
        let mut request = span(json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"] }));
        request["format"] = json!(format);
        let post = Request::post("/api/v1/query").body(Body::from(request.to_string())).unwrap();
        let posted = router(served.service.clone()).oneshot(post).await.unwrap();
        assert_eq!(
            (posted.headers().get("etag"), &posted.headers()["cache-control"]),
            (None, &"no-store".parse().unwrap())
        );
        let posted = to_bytes(posted.into_body(), 1 << 20).await.unwrap();
        let got = get(&served.service, &address(&request), &[]).await;
        assert_eq!((got.status.as_u16(), &got.body), (200, &posted), "{format}");
        assert_eq!(got.header("etag").is_empty(), format != "json", "{format}");
        assert!(got.headers.get_all("vary").iter().any(|vary| vary == "accept"));
        if format == "json" {
            let again =
                get(&served.service, &address(&request), &[("if-none-match", got.header("etag"))]).await;
            assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
        }
    }
}

/// A batch view that counts how often rows are read.
struct Counting(Arc<MemoryBatchView>, Arc<AtomicUsize>);

impl BatchView for Counting {
    fn snapshot(&self, limit: Duration) -> BoxFuture<'_, Result<Box<dyn Snapshot>, BatchError>> {
        Box::pin(async move {
            let inner = self.0.snapshot(limit).await?;
            Ok(Box::new(CountingSnapshot(inner, self.1.clone())) as Box<dyn Snapshot>)
        })
    }

    fn position<'a>(
        &'a self,
        known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, BatchError>> {
        self.0.position(known)
    }

    fn audits(&self, limit: i64) -> BoxFuture<'_, Result<Vec<Json>, BatchError>> {
        self.0.audits(limit)
    }
}

struct CountingSnapshot(Box<dyn Snapshot>, Arc<AtomicUsize>);

impl Snapshot for CountingSnapshot {
    fn open<'a>(
        &'a mut self,
        at_run: Option<i64>,
        wanted: &'a [Wanted<'a>],
    ) -> BoxFuture<'a, Result<Option<Opening>, BatchError>> {
        self.0.open(at_run, wanted)
    }

    fn rows<'a>(
        &'a mut self,
        scan: &'a Scan<'a>,
        each: EachCell<'a>,
    ) -> BoxFuture<'a, Result<Result<(), FoldError>, BatchError>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.rows(scan, each)
    }

    fn facts<'a>(
        &'a mut self,
        stream: &'a Stream,
        span: Interval,
        each: EachFact<'a>,
    ) -> BoxFuture<'a, Result<Vec<EventDay>, BatchError>> {
        self.0.facts(stream, span, each)
    }

    fn close(self: Box<Self>) {
        self.0.close();
    }
}

#[tokio::test]
async fn of_a_past_run_nothing_is_read_again() {
    let (mut views, batch, _) = World::new(&fixed()).views(1, 3);
    let read = Arc::new(AtomicUsize::new(0));
    views.batch = Arc::new(Counting(batch.clone(), read.clone()));
    let service = Service::new(views, || NOW);
    for format in ["json", "csv", "ndjson"] {
        let request = span(
            json!({ "metrics": ["user_view_cnt"], "compare": "previous_day", "at_run": 1, "format": format }),
        );
        let first = get(&service, &address(&request), &[]).await;
        let before = read.load(Ordering::Relaxed);
        assert!(first.status == 200 && before > 0);
        let again = get(&service, &address(&request), &[("if-none-match", first.header("etag"))]).await;
        assert_eq!((again.status.as_u16(), read.load(Ordering::Relaxed)), (304, before), "{format}");
        assert_eq!(again.header("cache-control"), "no-cache");
        // Another way to write the same request has the same answer; another request has another.
        let mut same = request.clone();
        same["from"] = json!("2016-06-15T02:00:00+02:00");
        let same = get(&service, &address(&same), &[("if-none-match", first.header("etag"))]).await;
        assert_eq!(same.status.as_u16(), 304);
        let mut other = request.clone();
        other["offset"] = json!(1);
        assert_eq!(
            get(&service, &address(&other), &[("if-none-match", first.header("etag"))]).await.status.as_u16(),
            200
        );
    }
}

/// What happens between two questions.
#[derive(Debug, Clone)]
enum Step {
    /// So many more records come.
    Records(usize),
    /// A run moves the tidemark on by so many epochs.
    Flip(i64),
    /// A run publishes other versions at the same cuts.
    Import,
    /// What a run made is dropped.
    Drop(prop::sample::Index),
    /// Offsets turn out to be lost.
    Lose,
    /// A client asks, knowing all tags that were ever given.
    Ask(prop::sample::Index, Option<prop::sample::Index>),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => (0..8usize).prop_map(Step::Records),
        2 => (0..3i64).prop_map(Step::Flip),
        1 => Just(Step::Import),
        1 => index().prop_map(Step::Drop),
        1 => Just(Step::Lose),
        8 => (index(), proptest::option::weighted(0.7, index())).prop_map(|(which, run)| Step::Ask(which, run)),
    ]
}

/// Both views, and what has happened to them.
struct Moving {
    events: Vec<super::world::Event>,
    come: usize,
    epoch: i64,
    run: i64,
    batch: Arc<MemoryBatchView>,
    realtime: Arc<MemoryRealtimeView>,
    service: Service,
    /// Each answer that was ever given, by its tag.
    given: BTreeMap<String, Bytes>,
    unchanged: usize,
}

impl Moving {
    fn new(events: Vec<super::world::Event>) -> Moving {
        let come = events.len() / 2;
        let (views, batch, realtime) = World::new(&events[..come]).views(0, 1);
        let service = Service::new(views, || NOW);
        Moving {
            events,
            come,
            epoch: 1,
            run: 1,
            batch,
            realtime,
            service,
            given: BTreeMap::new(),
            unchanged: 0,
        }
    }

    fn world(&self) -> World {
        World::new(&self.events[..self.come])
    }

    fn show(&self) {
        for (key, tp, header, segments) in self.world().realtime(self.epoch) {
            let (trusted, watermark, clock) = (header.trusted.newest, header.watermark, header.clock);
            let looked = Some(Looked { partitions: 1, clock });
            self.realtime
                .put_mark(&tp, Mark { trusted, watermark, clock, caught_up: true, generation: 1, looked });
            self.realtime.put(&key, &header, segments);
        }
    }

    fn publish(&mut self, twice: bool) {
        self.run += 1;
        let (world, run) = (self.world(), self.run);
        let tidemark = world.tidemark(run, self.epoch);
        let mut versions = world.batch(&tidemark, run);
        for cell in versions.iter_mut().filter(|_| twice).flat_map(|version| &mut version.cells) {
            let same = cell.state.clone();
            cell.state.merge(&same).unwrap();
        }
        self.batch.flip(tidemark.clone(), run, world.days(&tidemark), versions);
        self.show();
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Records(more) => {
                self.come = (self.come + more).min(self.events.len());
                self.show();
            }
            Step::Flip(epochs) => {
                self.epoch += epochs;
                self.publish(false);
            }
            Step::Import => self.publish(true),
            Step::Drop(run) => self.batch.forget(1 + run.index(self.run as usize) as i64),
            Step::Lose => {
                let (tp, range) = (TopicPartition::new("events", 0), OffsetRange { from: 3, to: 9 });
                self.batch.lose(Lost { tp, range, cause: "log_truncated".to_owned() });
            }
            Step::Ask(which, run) => {
                let mut request = which.get(&questions()).clone();
                if let Some(run) = run {
                    request["at_run"] = json!(1 + run.index(self.run as usize));
                }
                self.ask(&request).await;
            }
        }
    }

    async fn ask(&mut self, request: &Json) {
        let known: Vec<&str> = self.given.keys().map(String::as_str).collect();
        let asked = get(&self.service, &address(request), &[("if-none-match", &known.join(", "))]).await;
        let whole = get(&self.service, &address(request), &[]).await;
        if asked.status == 304 {
            self.unchanged += 1;
            assert_eq!(whole.status, 200, "{request}");
            assert_eq!(asked.header("etag"), whole.header("etag"), "{request}");
            assert_eq!(self.given[asked.header("etag")], whole.body, "{request}");
        } else {
            assert_eq!((asked.status, &asked.body), (whole.status, &whole.body), "{request}");
        }
        let tag = whole.header("etag").to_owned();
        if let Some(before) = (!tag.is_empty()).then(|| self.given.insert(tag, whole.body.clone())).flatten()
        {
            assert_eq!(before, whole.body, "one tag, two answers: {request}");
        }
    }
}

fn questions() -> Vec<Json> {
    let mut questions: Vec<Json> = queries().into_iter().map(span).collect();
    questions.extend([
        json!({ "metrics": ["doc_cnt"], "time_range": "last 6 hours", "now": show(START), "format": "csv" }),
        json!({ "metrics": ["doc_cnt"], "time_range": "today", "format": "ndjson" }),
        span(json!({ "queries": { "a": { "metrics": ["doc_cnt"] }, "b": { "metrics": ["geo_top"] } } })),
        span(json!({ "metrics": ["doc_cnt"], "strict": true })),
        span(
            json!({ "metrics": ["doc_cnt"], "compare": "previous_day", "fill": true, "granularity": "day" }),
        ),
    ]);
    questions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens between two questions, an answer of which 304 is said is, byte for byte, the one that the client has.
    #[test]
    fn what_is_called_unchanged_is(
        events in proptest::collection::vec(event(), 10..40),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut moving = Moving::new(events);
            for step in &steps {
                moving.step(step).await;
            }
            // At last twice in a row, so that each play has answers that are unchanged.
            moving.ask(&questions()[0]).await;
            moving.ask(&questions()[0]).await;
            assert!(moving.unchanged > 0);
        });
    }
}
