//! Server-sent events: a snapshot, then changes, and how a stream is resumed, refused and ended.

use super::*;
use crate::tests::over_http::Served;
use axum::body::BodyDataStream;
use futures::StreamExt as _;
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// A client of a stream of events.
struct Client {
    body: BodyDataStream,
    text: String,
    state: State,
}

impl Client {
    async fn open(growing: &Growing, path: &str, last: Option<&str>) -> Client {
        let mut request = Request::get(events_of(path)).header("accept-encoding", "gzip");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = growing.response(request.body(Body::empty()).unwrap()).await;
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(
            (response.status().as_u16(), header("content-type")),
            (200, Some("text/event-stream")),
            "{path}"
        );
        assert_eq!((header("cache-control"), header("x-accel-buffering")), (Some("no-store"), Some("no")));
        assert_eq!(header("content-encoding"), None, "what is gathered to be compressed comes late");
        Client { body: response.into_body().into_data_stream(), text: String::new(), state: State::default() }
    }

    /// The next block of lines; `None`: the stream has ended.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let bytes = in_time(self.body.next()).await?.unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// Takes the next event; whether there was one.
    async fn take(&mut self) -> bool {
        loop {
            let Some(block) = self.block().await else { return false };
            if block.starts_with(':') || block.starts_with("retry: ") {
                continue;
            }
            let field = |name: &str| {
                let mut values = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                values.next().unwrap_or_else(|| panic!("{name} in {block}")).to_owned()
            };
            let (kind, id, data) = (field("event"), field("id"), field("data"));
            self.state.take(&kind, &id, serde_json::from_str(&data).unwrap());
            return true;
        }
    }

    /// Takes events until its state is as expected.
    async fn until(&mut self, expected: &Json) {
        let come = async {
            while self.state.reply != *expected {
                assert!(self.take().await, "it ended: {:?}", self.state);
            }
        };
        if tokio::time::timeout(AT_LAST, come).await.is_err() {
            panic!("{:?}\ninstead of {expected}", self.state);
        }
    }
}

#[tokio::test]
async fn a_subscriber_has_what_plain_http_answers_at_each_step_of_the_log() {
    let growing = Growing::new(fast()).await;
    let mut clients = Vec::new();
    for path in paths() {
        clients.push((path.clone(), Client::open(&growing, &path, None).await));
    }
    for count in FIRST..FIRST + 25 {
        growing.grow(count);
        for (path, client) in &mut clients {
            client.until(&growing.plain(path).await).await;
        }
    }
    for (path, Client { state, .. }) in &clients {
        assert_eq!(state.kinds[0], "snapshot", "{path}");
        assert!(
            state.kinds.iter().filter(|kind| *kind == "change").count() > 10,
            "{path}: {:?}",
            state.kinds
        );
    }
}

#[tokio::test]
async fn who_comes_back_is_given_the_changes_since() {
    let growing = Growing::new(fast()).await;
    let path = &paths()[3];
    let mut first = Client::open(&growing, path, None).await;
    first.until(&growing.plain(path).await).await;
    growing.grow(FIRST + 1);
    first.until(&growing.plain(path).await).await;
    let state = std::mem::take(&mut first.state);
    // Nobody else is subscribed: the hub waits.
    drop(first);
    growing.grow(FIRST + 2);
    let mut second = Client::open(&growing, path, Some(&state.version)).await;
    second.state = State { kinds: Vec::new(), ..state };
    second.until(&growing.plain(path).await).await;
    assert_eq!(second.state.kinds[0], "change");
    // Of versions that it doesn't know it says the newest.
    for unknown in ["", "0000000000000001-1", "nonsense", "1"] {
        let mut third = Client::open(&growing, path, Some(unknown)).await;
        assert!(third.take().await);
        assert_eq!(
            (third.state.last(), &third.state.reply),
            ("snapshot", &second.state.reply),
            "{unknown:?}"
        );
    }
}

#[tokio::test]
async fn who_comes_to_a_hub_that_waits_is_given_nothing_old() {
    let growing = Growing::new(fast()).await;
    let mut first = Client::open(&growing, ONE_USER, None).await;
    assert!(first.take().await);
    drop(first);
    growing.grow(FIRST + 20);
    let mut second = Client::open(&growing, ONE_USER, None).await;
    assert!(second.take().await);
    assert_eq!((second.state.last(), &second.state.reply), ("snapshot", &growing.plain(ONE_USER).await));
}

#[tokio::test]
async fn a_slow_client_is_given_the_newest_whole() {
    let growing = Growing::new(fast()).await;
    let (mut slow, mut fast) =
        (Client::open(&growing, ONE_USER, None).await, Client::open(&growing, ONE_USER, None).await);
    assert!(slow.take().await && fast.take().await);
    let views = [view_of(FIRST + 1), view_of(FIRST + 2)];
    for round in 0..400 {
        put(&growing.realtime.view, &views[round % 2]);
        let expected = growing.plain(ONE_USER).await;
        fast.until(&expected).await;
    }
    assert!(fast.state.kinds[1..].iter().all(|kind| kind == "change"));
    assert!(slow.take().await);
    assert_eq!((slow.state.last(), &slow.state.reply), ("snapshot", &fast.state.reply));
    assert_eq!(slow.state.version, fast.state.version);
}

#[tokio::test]
async fn equal_requests_are_looked_at_once_for_all() {
    let growing = Growing::new(once()).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        for path in ["/api/v1/live/geo_top?k=2", "/api/v1/live/geo_top_5m?strict=false&k=2"] {
            let mut client = Client::open(&growing, path, None).await;
            assert!(client.take().await);
            clients.push(client);
        }
    }
    assert_eq!(growing.realtime.looks.load(Ordering::SeqCst), 1);
    assert!(clients.iter().all(|client| client.state.version == clients[0].state.version));
    let mut other = Client::open(&growing, "/api/v1/live/geo_top?k=3", None).await;
    assert!(other.take().await);
    assert_eq!(growing.realtime.looks.load(Ordering::SeqCst), 2);
}

/// The status and the code that a subscription is refused with.
async fn refused(growing: &Growing, path: &str) -> (u16, Json) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = growing.response(request).await;
    let status = response.status().as_u16();
    if status == 429 {
        assert_eq!(response.headers()["retry-after"], "10");
    }
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let reply: Json = serde_json::from_slice(&body).unwrap();
    (status, reply["error"]["code"].clone())
}

#[tokio::test]
async fn what_can_t_be_subscribed_to_is_refused() {
    let growing = Growing::new(fast()).await;
    let csv = json!({ "metrics": ["doc_cnt"], "time_range": "today", "format": "csv" });
    for (path, status, code) in [
        ("/api/v1/live/nonsense/events", 404, "unknown_metric"),
        ("/api/v1/live/user_view_cnt_5m/events", 400, "invalid_request"),
        ("/api/v1/live/user_view_cnt_5m/events?user=1", 400, "invalid_request"),
        ("/api/v1/query/events", 400, "invalid_body"),
        ("/api/v1/query/events?q={", 400, "invalid_body"),
        ("/api/v1/query/events?q={}", 400, "invalid_request"),
        ("/api/v1/query/events?q=[]", 400, "invalid_body"),
        (&events_of(&address(&csv)), 422, "unanswerable"),
        ("/api/v1/subscribe", 400, "invalid_request"),
    ] {
        assert_eq!(refused(&growing, path).await, (status, json!(code)), "{path}");
    }
}

#[tokio::test]
async fn there_are_as_many_subscribers_as_may_be() {
    let growing = Growing::new(PushLimits { subscribers: 2, ..fast() }).await;
    let first = Client::open(&growing, ONE_USER, None).await;
    let _second = Client::open(&growing, ONE_USER, None).await;
    let too_many = (429, json!("too_many_subscriptions"));
    assert_eq!(refused(&growing, &events_of(ONE_USER)).await, too_many);
    drop(first);
    let _third = Client::open(&growing, ONE_USER, None).await;
    assert_eq!(refused(&growing, &events_of(ONE_USER)).await, too_many);
}

#[tokio::test]
async fn there_are_as_many_hubs_as_may_be_and_one_that_waits_gives_way() {
    let growing = Growing::new(PushLimits { hubs: 1, ..fast() }).await;
    let first = Client::open(&growing, ONE_USER, None).await;
    let other = "/api/v1/live/user_view_cnt_5m?uuid=u2";
    assert_eq!(refused(&growing, &events_of(other)).await, (429, json!("too_many_subscriptions")));
    let _same = Client::open(&growing, ONE_USER, None).await;
    drop((first, _same));
    let mut second = Client::open(&growing, other, None).await;
    second.until(&growing.plain(other).await).await;
}

#[tokio::test]
async fn a_hub_that_nobody_comes_back_to_goes() {
    let growing = Growing::new(PushLimits { linger: Duration::from_millis(1), ..fast() }).await;
    let mut first = Client::open(&growing, ONE_USER, None).await;
    assert!(first.take().await);
    assert_eq!(growing.service.push.hub_count(), 1);
    let version = first.state.version.clone();
    drop(first);
    in_time(async {
        while growing.service.push.hub_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut second = Client::open(&growing, ONE_USER, Some(&version)).await;
    assert!(second.take().await);
    assert_ne!(second.state.version.split('-').next(), version.split('-').next());
}

#[tokio::test]
async fn more_replies_than_there_is_memory_for_are_an_error_until_there_is_some() {
    let one = Growing::new(fast()).await.plain(ONE_USER).await.to_string().len();
    let linger = Duration::from_millis(1);
    let growing = Growing::new(PushLimits { memory: one + one / 2, linger, ..fast() }).await;
    let mut first = Client::open(&growing, ONE_USER, None).await;
    first.until(&growing.plain(ONE_USER).await).await;
    let other = "/api/v1/live/user_view_cnt_5m?uuid=u2";
    let mut second = Client::open(&growing, other, None).await;
    assert!(second.take().await);
    assert_eq!(
        (second.state.last(), &second.state.reply["error"]["code"]),
        ("error", &json!("limit_exceeded"))
    );
    // A hub that has gone gives its memory back.
    drop(first);
    second.until(&growing.plain(other).await).await;
    assert_eq!(second.state.last(), "snapshot");
}

#[tokio::test]
async fn an_error_is_told_as_http_tells_it_and_the_stream_recovers() {
    let growing = Growing::new(fast()).await;
    let mut client = Client::open(&growing, ONE_USER, None).await;
    client.until(&growing.plain(ONE_USER).await).await;
    growing.realtime.view.fail();
    let error = growing.plain(ONE_USER).await;
    assert_eq!(error["error"]["code"], "view_unavailable");
    client.until(&error).await;
    assert_eq!(client.state.last(), "error");
    // Who comes meanwhile hears of it too, and who has heard isn't told again.
    let mut other = Client::open(&growing, ONE_USER, Some(&client.state.version)).await;
    other.state = State { version: client.state.version.clone(), reply: error, kinds: Vec::new() };
    growing.grow(FIRST + 1);
    let whole = growing.plain(ONE_USER).await;
    for client in [&mut client, &mut other] {
        client.until(&whole).await;
    }
    assert_eq!(
        (client.state.kinds.iter().filter(|kind| *kind == "error").count(), &*other.state.kinds[0]),
        (1, "snapshot")
    );
}

#[tokio::test]
async fn an_incomplete_answer_is_an_error_where_strict_is_asked_for() {
    let served = Served::new().await;
    (0..4).for_each(|group| served.spoil(0, group, |header| header.panes_from = Some(i64::MAX)));
    let strict = format!("{ONE_USER}&strict=true");
    let request = Request::get(events_of(&strict)).body(Body::empty()).unwrap();
    let response = router(served.service.clone()).oneshot(request).await.unwrap();
    let body = response.into_body().into_data_stream();
    let mut client = Client { body, text: String::new(), state: State::default() };
    assert!(client.take().await);
    assert_eq!((client.state.last(), &client.state.reply), ("error", &served.get(&strict).await.1));
    assert_eq!(client.state.reply["error"]["code"], "incomplete");
}

#[tokio::test]
async fn a_look_that_panics_ends_its_streams_and_no_others() {
    let growing = Growing::new(fast()).await;
    let query = &paths()[3];
    let mut other = Client::open(&growing, query, None).await;
    other.until(&growing.plain(query).await).await;
    let mut client = Client::open(&growing, ONE_USER, None).await;
    assert!(client.take().await);
    growing.realtime.panics.store(1, Ordering::SeqCst);
    in_time(async { while client.take().await {} }).await;
    growing.grow(FIRST + 1);
    let mut again = Client::open(&growing, ONE_USER, Some(&client.state.version)).await;
    again.until(&growing.plain(ONE_USER).await).await;
    assert_eq!(again.state.kinds[0], "snapshot");
    other.until(&growing.plain(query).await).await;
}

#[tokio::test]
async fn silence_is_broken_by_signs_of_life() {
    let growing = Growing::new(PushLimits { heartbeat: Duration::from_millis(5), ..once() }).await;
    let mut client = Client::open(&growing, ONE_USER, None).await;
    assert_eq!(client.block().await.as_deref(), Some("retry: 1000"));
    let mut beats = 0;
    while beats < 3 {
        beats += u32::from(client.block().await.unwrap() == ":");
    }
}

/// A stream of events over a socket, up to its first event.
async fn opened(address: SocketAddr) -> BufReader<TcpStream> {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", events_of(ONE_USER));
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    while !line.starts_with("event: snapshot") {
        line.clear();
        assert!(in_time(connection.read_line(&mut line)).await.unwrap() > 0);
    }
    connection
}

#[tokio::test]
async fn when_a_client_leaves_its_place_is_free() {
    let growing = Growing::new(PushLimits { subscribers: 1, ..fast() }).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let connection = opened(address).await;
    assert_eq!(refused(&growing, &events_of(ONE_USER)).await.0, 429);
    drop(connection);
    assert!(growing.service.push.left(AT_LAST).await);
    drop(opened(address).await);
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn when_the_service_stops_all_streams_end_at_once() {
    let growing = Growing::new(fast()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let mut connection = opened(address).await;
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
    let mut rest = String::new();
    in_time(connection.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "{rest:?}");
}
#[cfg(any(target_os = "linux", target_os = "android"))]
#[tokio::test]
async fn who_takes_nothing_is_let_go_of() {
    let growing = Growing::new(impatient()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let path = events_of(&super::address(&large(&growing).await));
    let mut client = narrow(address).await;
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    let mut status = [0; 12];
    in_time(client.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    assert!(growing.service.push.left(AT_LAST).await);
    drop(client);
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}
