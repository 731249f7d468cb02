//! The WebSocket: several subscriptions over one connection, its messages, and how it ends.

use super::*;
use futures::{SinkExt as _, StreamExt as _};
use std::collections::BTreeMap;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

/// A client of a WebSocket, and the state of each of its subscriptions.
struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    states: BTreeMap<String, State>,
}

impl Client {
    async fn open(address: SocketAddr) -> Client {
        let (socket, _) = connect_async(format!("ws://{address}/api/v1/subscribe")).await.unwrap();
        Client { socket, states: BTreeMap::new() }
    }

    async fn say(&mut self, message: Json) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn subscribe(&mut self, message: Json) {
        self.say(json!({ "subscribe": message })).await;
    }

    /// The next message; an error where the connection is closed, with its code.
    async fn next(&mut self) -> Result<Json, Option<CloseCode>> {
        loop {
            match in_time(self.socket.next()).await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code)),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// Takes the next message, which is an event.
    async fn take(&mut self) {
        let mut message = self.next().await.unwrap();
        let id = message["id"].as_str().unwrap().to_owned();
        let kind = message["event"].as_str().unwrap().to_owned();
        let data = match kind.as_str() {
            "snapshot" => message["reply"].take(),
            "change" => message["patch"].take(),
            _ => json!({ "error": message["error"].take() }),
        };
        let version = message["version"].as_str().unwrap_or_else(|| panic!("{kind} of {id}: {data}"));
        assert_eq!(message.as_object().unwrap().len(), 4, "{message}");
        self.states.entry(id).or_default().take(&kind, version, data);
    }

    /// Takes events until a subscription's state is as expected.
    async fn until(&mut self, id: &str, expected: &Json) {
        in_time(async {
            while self.states.get(id).is_none_or(|state| state.reply != *expected) {
                self.take().await;
            }
        })
        .await;
    }
}

/// The same requests as [`paths`], over a WebSocket.
fn subscriptions() -> Vec<Json> {
    let query = |path: &str| {
        let url = url::Url::parse(&format!("http://a{path}")).unwrap();
        let text = url.query_pairs().find(|(name, _)| name == "q").unwrap().1.into_owned();
        serde_json::from_str::<Json>(&text).unwrap()
    };
    let paths = paths();
    vec![
        json!({ "id": "0", "live": "user_view_cnt_5m", "key": { "uuid": "u1" } }),
        json!({ "id": "1", "live": "active_user", "strict": true }),
        json!({ "id": "2", "live": "geo_top_5m", "k": 2, "key": {} }),
        json!({ "id": "3", "query": query(&paths[3]) }),
        json!({ "id": "4", "query": query(&paths[4]) }),
    ]
}

#[tokio::test]
async fn one_connection_carries_what_plain_http_answers_to_several_requests() {
    let growing = Growing::new(fast()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let mut client = Client::open(address).await;
    for message in subscriptions() {
        client.subscribe(message).await;
    }
    for count in FIRST..FIRST + 10 {
        growing.grow(count);
        for (id, path) in paths().iter().enumerate() {
            client.until(&id.to_string(), &growing.plain(path).await).await;
        }
    }
    assert!(client.states.values().all(|state| state.kinds[0] == "snapshot" && state.last() == "change"));
    // They share the hubs of server-sent events.
    assert_eq!(growing.service.push.hub_count(), 5);
    // What is unsubscribed from says nothing more, and its name is free; the version that the client has is one to go on from.
    client.say(json!({ "unsubscribe": "0" })).await;
    while let Ok(message) = client.next().await {
        if message["event"] == "unsubscribed" {
            assert_eq!(message, json!({ "id": "0", "event": "unsubscribed" }));
            break;
        }
    }
    growing.grow(FIRST + 11);
    client.until("2", &growing.plain(&paths()[2]).await).await;
    let state = client.states.get_mut("0").unwrap();
    assert_ne!(state.reply, growing.plain(ONE_USER).await);
    state.kinds.clear();
    let mut again = subscriptions()[0].clone();
    again["last"] = json!(state.version);
    client.subscribe(again).await;
    client.until("0", &growing.plain(ONE_USER).await).await;
    assert_eq!(client.states["0"].kinds[0], "change");
    stop.cancel();
    let closed = loop {
        if let Err(code) = client.next().await {
            break code;
        }
    };
    assert_eq!(closed, Some(CloseCode::Away));
    in_time(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn messages_that_are_wrong_are_refused_and_the_connection_goes_on() {
    let growing = Growing::new(once()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let mut client = Client::open(address).await;
    let subscribe = |message: Json| json!({ "subscribe": message }).to_string();
    let query = json!({ "metrics": ["nonsense"], "time_range": "today" });
    let csv = json!({ "metrics": ["doc_cnt"], "time_range": "today", "format": "csv" });
    let long = json!({ "metrics": ["doc_cnt"], "time_range": "today", "group_by": ["x".repeat(64 << 10)] });
    for (message, id, code, says) in [
        ("{".to_owned(), Json::Null, "invalid_body", "EOF"),
        ("[]".to_owned(), Json::Null, "invalid_body", "message can't be read"),
        (r#"{"hello": 1}"#.to_owned(), Json::Null, "invalid_body", "unknown variant `hello`"),
        (
            r#"{"subscribe": {"id": "a"}, "unsubscribe": "a"}"#.to_owned(),
            Json::Null,
            "invalid_body",
            "expected",
        ),
        (subscribe(json!({ "live": "geo_top_5m" })), Json::Null, "invalid_body", "missing field `id`"),
        (
            subscribe(json!({ "id": "a", "life": "geo_top_5m" })),
            Json::Null,
            "invalid_body",
            "unknown field `life`",
        ),
        (
            subscribe(json!({ "id": "a" })),
            json!("a"),
            "invalid_body",
            "live, the name of a live value, or query",
        ),
        (
            subscribe(json!({ "id": "a", "live": "geo_top_5m", "query": query })),
            json!("a"),
            "invalid_body",
            "or query",
        ),
        (
            subscribe(json!({ "id": "a", "query": query, "k": 1 })),
            json!("a"),
            "invalid_body",
            "belong to live",
        ),
        (
            subscribe(json!({ "id": "a".repeat(201), "live": "geo_top_5m" })),
            json!("a".repeat(201)),
            "invalid_body",
            "201 bytes",
        ),
        (subscribe(json!({ "id": "a", "live": "nonsense" })), json!("a"), "unknown_metric", ""),
        (
            subscribe(json!({ "id": "a", "live": "geo_top_5m", "k": -1 })),
            Json::Null,
            "invalid_body",
            "invalid value",
        ),
        (subscribe(json!({ "id": "a", "live": "user_view_cnt_5m" })), json!("a"), "invalid_request", ""),
        (
            subscribe(json!({ "id": "a", "live": "user_view_cnt_5m", "key": { "uuid": [] } })),
            json!("a"),
            "invalid_body",
            "key.uuid is []",
        ),
        (
            subscribe(json!({ "id": "a", "live": "doc_cnt_5m", "key": { "document_id": "x" } })),
            json!("a"),
            "invalid_request",
            "",
        ),
        (subscribe(json!({ "id": "a", "query": query })), json!("a"), "unknown_metric", ""),
        (subscribe(json!({ "id": "a", "query": csv })), json!("a"), "unanswerable", ""),
        (
            subscribe(json!({ "id": "a", "query": long })),
            json!("a"),
            "limit_exceeded",
            "may be subscribed to",
        ),
        (r#"{"unsubscribe": "a"}"#.to_owned(), json!("a"), "invalid_body", "nothing is subscribed to"),
    ] {
        client.socket.send(Message::text(message.clone())).await.unwrap();
        let reply = client.next().await.unwrap();
        assert_eq!(
            (&reply["id"], &reply["event"], &reply["error"]["code"]),
            (&id, &json!("error"), &json!(code)),
            "{message}: {reply}"
        );
        assert!(reply["error"]["message"].as_str().unwrap().contains(says), "{message}: {reply}");
        assert!(reply.get("version").is_none() && reply["error"]["details"].is_array(), "{reply}");
    }
    client.socket.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(client.next().await.unwrap()["error"]["code"], "invalid_body");
    // A key may be NULL, a number, a text.
    for (id, key) in [("n", Json::Null), ("i", json!(3)), ("t", json!("3"))] {
        client.subscribe(json!({ "id": id, "live": "doc_cnt_5m", "key": { "document_id": key } })).await;
        client
            .until(
                id,
                &growing
                    .plain(&format!(
                        "/api/v1/live/doc_cnt_5m?document_id={}",
                        if key.is_null() { "%5CN" } else { "3" }
                    ))
                    .await,
            )
            .await;
    }
    client.subscribe(json!({ "id": "n", "live": "geo_top_5m" })).await;
    assert!(client.next().await.unwrap()["error"]["message"].as_str().unwrap().contains("this id is taken"));
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_and_subscriptions_have_limits() {
    let growing = Growing::new(PushLimits { subscribers: 66, ..once() }).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let mut client = Client::open(address).await;
    let message = |n: usize| json!({ "id": n.to_string(), "live": "geo_top_5m" });
    for n in 0..64 {
        client.subscribe(message(n)).await;
        client.take().await;
    }
    client.subscribe(message(64)).await;
    let refused = client.next().await.unwrap();
    assert!(refused["error"]["message"].as_str().unwrap().contains("at most 64 subscriptions"), "{refused}");
    // The 65 that are taken leave one: for a connection, which then has none to subscribe with.
    let mut other = Client::open(address).await;
    other.subscribe(message(0)).await;
    assert_eq!(other.next().await.unwrap()["error"]["code"], "too_many_subscriptions");
    assert_eq!(status(address, "").await, 429);
    client.say(json!({ "unsubscribe": "0" })).await;
    assert_eq!(client.next().await.unwrap()["event"], "unsubscribed");
    other.subscribe(message(0)).await;
    other.take().await;
    // What is longer than a message may be ends the connection.
    let long = Message::text(" ".repeat((128 << 10) + 1));
    let _ = other.socket.send(long).await;
    assert!(other.next().await.is_err());
    drop(client);
    assert!(growing.service.push.left(AT_LAST).await);
    drop(Client::open(address).await);
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}

/// The status that a WebSocket is refused with, for a page from somewhere.
async fn status(address: SocketAddr, origin: &str) -> u16 {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    let mut request = format!("ws://{address}/api/v1/subscribe").into_client_request().unwrap();
    if !origin.is_empty() {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    match connect_async(request).await {
        Ok((_, response)) => response.status().as_u16(),
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_page_from_elsewhere_is_refused() {
    let growing = Growing::new(once()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    assert_eq!(status(address, &format!("http://{address}")).await, 101);
    assert_eq!(status(address, "http://elsewhere.example").await, 403);
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_gives_no_sign_of_life_is_let_go_of() {
    let growing = Growing::new(PushLimits { heartbeat: Duration::from_secs(2), ..once() }).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let (mut silent, mut alive) = (Client::open(address).await, Client::open(address).await);
    // One that reads answers each ping, and stays.
    let mut pings = 0;
    while pings < 4 {
        match in_time(alive.socket.next()).await {
            Some(Ok(Message::Ping(_))) => pings += 1,
            other => panic!("{other:?}"),
        }
    }
    drop(alive);
    assert!(growing.service.push.left(AT_LAST).await);
    assert!(silent.next().await.is_err());
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_says_goodbye_is_answered() {
    let growing = Growing::new(once()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let mut client = Client::open(address).await;
    client.subscribe(subscriptions()[0].clone()).await;
    client.take().await;
    let frame = CloseFrame { code: CloseCode::Normal, reason: "enough".into() };
    client.socket.send(Message::Close(Some(frame))).await.unwrap();
    assert_eq!(client.next().await, Err(Some(CloseCode::Normal)));
    assert!(growing.service.push.left(AT_LAST).await);
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_look_that_panics_closes_the_connection() {
    let growing = Growing::new(fast()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let mut client = Client::open(address).await;
    client.subscribe(subscriptions()[0].clone()).await;
    client.take().await;
    growing.realtime.panics.store(1, Ordering::SeqCst);
    let closed = loop {
        if let Err(code) = client.next().await {
            break code;
        }
    };
    assert_eq!(closed, Some(CloseCode::Error));
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_takes_nothing_is_let_go_of() {
    let growing = Growing::new(impatient()).await;
    let (address, stop, running) = growing.on_a_socket().await;
    let query = large(&growing).await;
    let url = format!("ws://{address}/api/v1/subscribe");
    let (mut client, _) = client_async(url, narrow(address).await).await.unwrap();
    let subscribe = json!({ "subscribe": { "id": "a", "query": query } });
    client.send(Message::text(subscribe.to_string())).await.unwrap();
    // Once it is subscribed, for who waits until all have left keeps the places that are free.
    in_time(async {
        while growing.service.push.hub_count() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(growing.service.push.left(AT_LAST).await);
    drop(client);
    stop.cancel();
    in_time(running).await.unwrap().unwrap();
}
