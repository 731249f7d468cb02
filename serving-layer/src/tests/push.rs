//! Push, over views in memory that change while they are subscribed to.

mod events;
mod socket;

use super::world::{Event, NOW, StoredGroup, World, put};
use crate::Service;
use crate::push::PushLimits;
use crate::realtime_view::{Group, Groups, Marks, MemoryRealtimeView, RealtimeError, RealtimeView, Want};
use crate::router::router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use futures::future::BoxFuture;
use serde_json::{Value as Json, json};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// No test waits longer for what must come.
const AT_LAST: Duration = Duration::from_secs(60);
/// The tidemark lies so far below these that more events change nothing of it.
const FIRST: usize = 100;

/// What must come in time.
async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_LAST, what).await.expect("it comes in time")
}

/// Limits under which all goes fast.
fn fast() -> PushLimits {
    PushLimits { interval: Duration::from_millis(1), ..PushLimits::default() }
}

/// Limits under which a hub looks once.
fn once() -> PushLimits {
    PushLimits { interval: Duration::from_secs(3_600), ..PushLimits::default() }
}

/// Events a few seconds apart, of some users and places.
fn log(count: usize) -> Vec<Event> {
    let event = |i: i64| Event {
        click: i % 3 == 0,
        partition: (i % 2) as i32,
        time: 80_000_000 + i * 7_000,
        user: i % 5,
        document: i % 7,
        geo: (i % 4 > 0).then_some(i % 4),
        pause: 700,
    };
    (0..count as i64).map(event).collect()
}

/// The realtime view, which counts how often it is looked at, and panics where it is told to.
struct Watched {
    view: MemoryRealtimeView,
    looks: AtomicU64,
    panics: AtomicU64,
}

impl RealtimeView for Watched {
    fn group<'a>(
        &'a self,
        key: &'a str,
        want: Want,
    ) -> BoxFuture<'a, Result<Option<Arc<Group>>, RealtimeError>> {
        self.view.group(key, want)
    }

    fn marks(&self) -> BoxFuture<'_, Result<Marks, RealtimeError>> {
        self.view.marks()
    }

    fn live<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<(Groups, Arc<Marks>), RealtimeError>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let left = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "a panic that was asked for");
        self.view.live(keys)
    }
}

/// A service over a log that grows.
struct Growing {
    service: Service,
    realtime: Arc<Watched>,
}

/// The realtime view of so many events.
fn view_of(count: usize) -> Vec<StoredGroup> {
    World::new(&log(count)).realtime(1)
}

impl Growing {
    async fn new(limits: PushLimits) -> Growing {
        let (mut views, ..) = World::new(&log(FIRST)).views(1, 2);
        let view = MemoryRealtimeView::default();
        put(&view, &view_of(FIRST));
        let realtime = Arc::new(Watched { view, looks: AtomicU64::new(0), panics: AtomicU64::new(0) });
        views.realtime = realtime.clone();
        let service = Service::new(views, || NOW).with_push(limits);
        service.refresh().await.unwrap();
        Growing { service, realtime }
    }

    /// So many events are there now.
    fn grow(&self, count: usize) {
        put(&self.realtime.view, &view_of(count));
    }

    async fn response(&self, request: Request<Body>) -> Response<Body> {
        router(self.service.clone()).oneshot(request).await.unwrap()
    }

    /// Its service on a socket of its own: where, what stops it, and how it ends.
    async fn on_a_socket(&self) -> (SocketAddr, CancellationToken, JoinHandle<anyhow::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        (address, stop.clone(), tokio::spawn(crate::run(listener, self.service.clone(), stop)))
    }

    /// What plain HTTP answers.
    async fn plain(&self, path: &str) -> Json {
        let response = self.response(Request::get(path).body(Body::empty()).unwrap()).await;
        let body = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

/// A client's state: what it makes of events.
#[derive(Debug, Default)]
struct State {
    version: String,
    reply: Json,
    /// The kinds of all that came.
    kinds: Vec<String>,
}

impl State {
    fn take(&mut self, kind: &str, version: &str, data: Json) {
        let number = |version: &str| version.split_once('-').map_or(0, |(_, number)| number.parse().unwrap());
        let (before, now): (u64, u64) = (number(&self.version), number(version));
        match kind {
            "change" => {
                assert_eq!(now, before + 1);
                let patch: json_patch::Patch = serde_json::from_value(data).unwrap();
                json_patch::patch(&mut self.reply, &patch).unwrap();
            }
            "snapshot" | "error" => self.reply = data,
            other => panic!("{other} is no event"),
        }
        assert!(now > before || self.version.split('-').next() != version.split('-').next(), "{version}");
        self.version = version.to_owned();
        self.kinds.push(kind.to_owned());
    }

    fn last(&self) -> &str {
        self.kinds.last().map_or("", String::as_str)
    }
}

/// A query in an address.
fn address(request: &Json) -> String {
    let text: String = url::form_urlencoded::byte_serialize(request.to_string().as_bytes()).collect();
    format!("/api/v1/query?q={text}")
}

/// The same path, for its events.
fn events_of(path: &str) -> String {
    match path.split_once('?') {
        Some((path, parameters)) => format!("{path}/events?{parameters}"),
        None => format!("{path}/events"),
    }
}

const ONE_USER: &str = "/api/v1/live/user_view_cnt_5m?uuid=u1";

/// Requests of all kinds, each whose answer changes as the log grows.
fn paths() -> Vec<String> {
    let of_users = json!({ "metrics": ["user_view_cnt", "user_click_cnt",
                                       { "name": "ctr", "formula": "cast(user_click_cnt as float) / user_view_cnt" }],
                           "group_by": ["uuid"], "from": "2016-06-15", "to": "2016-06-17", "granularity": "hour",
                           "order": [{ "by": "user_view_cnt", "desc": true }] });
    let several = json!({ "time_range": "today", "queries": { "all": { "metrics": ["doc_cnt"], "fill": true, "granularity": "hour" },
                                                              "top": { "metrics": ["geo_top"], "k": 2 } } });
    vec![
        ONE_USER.to_owned(),
        "/api/v1/live/active_user_5m?strict=true".to_owned(),
        "/api/v1/live/geo_top?k=2".to_owned(),
        address(&of_users),
        address(&several),
    ]
}

/// A connection for which the kernel holds little that isn't read.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect(address).await.unwrap()
}

/// A query whose reply is about as long as may be pushed.
async fn large(growing: &Growing) -> Json {
    let request = json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "from": "2016-06-03", "to": "2016-06-27",
                          "granularity": "20m", "fill": true });
    let length = growing.plain(&address(&request)).await.to_string().len();
    assert!((700_000..1_000_000).contains(&length), "{length} bytes");
    request
}

/// Limits under which only a client that takes nothing is let go of, and soon.
fn impatient() -> PushLimits {
    PushLimits { stalled: Duration::from_millis(200), heartbeat: Duration::from_secs(3_600), ..once() }
}
