//! Push on real servers and real processes: what subscribers have of records that are sent meanwhile.

use futures::{SinkExt as _, StreamExt as _};
use local::oracle::{self, METRICS, Metric, Oracle};
use local::probe::Serving;
use serde_json::{Value, json};
use simulator::generate::{Delivery, Generator, Options};
use std::collections::BTreeMap;
use tidemark_tests::PATIENCE;
use tidemark_tests::stack::Stack;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const MINUTE: i64 = 60_000;
const SEED: u64 = 83;

/// What a client makes of a subscription's events.
#[derive(Debug, Default)]
struct State {
    version: String,
    reply: Value,
    changes: usize,
}

impl State {
    fn take(&mut self, event: &str, version: &str, data: Value) {
        let number = |version: &str| version.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
        match event {
            "snapshot" => self.reply = data,
            "change" => {
                assert_eq!(number(version), number(&self.version).map(|number| number + 1), "{version}");
                let patch: json_patch::Patch = serde_json::from_value(data).expect("a patch");
                json_patch::patch(&mut self.reply, &patch).expect("a patch of the version before");
                self.changes += 1;
            }
            other => panic!("{other}: {data}"),
        }
        version.clone_into(&mut self.version);
    }
}

/// A stream of server-sent events.
struct Events {
    response: reqwest::Response,
    text: String,
    state: State,
}

impl Events {
    async fn open(serving: &Serving, path: &str, parameters: &[(&str, &str)]) -> Events {
        let request = reqwest::Client::new().get(format!("{}{path}", serving.url)).query(parameters);
        let response = request.send().await.expect("a reply");
        assert_eq!(response.status(), 200, "{path}");
        Events { response, text: String::new(), state: State::default() }
    }

    async fn take(&mut self) {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut values =
                        block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    values.next().map(str::to_owned)
                };
                let (event, version, data) = (field("event"), field("id"), field("data"));
                self.text = rest.to_owned();
                if let (Some(event), Some(version), Some(data)) = (event, version, data) {
                    let data = serde_json::from_str(&data).expect("JSON");
                    return self.state.take(&event, &version, data);
                }
            }
            let chunk = self.response.chunk().await.expect("a stream").expect("a stream without an end");
            self.text.push_str(std::str::from_utf8(&chunk).expect("text, cut between events alone"));
        }
    }

    /// Takes events until the reply is as expected; each on the way is looked at too.
    async fn until(&mut self, what: &str, mut as_expected: impl FnMut(&Value) -> bool) {
        let come = async {
            while !as_expected(&self.state.reply) {
                self.take().await;
            }
        };
        let came = tokio::time::timeout(PATIENCE, come).await;
        assert!(came.is_ok(), "{what}: not within {PATIENCE:?}; last: {:?}", self.state);
    }
}

/// A WebSocket with several subscriptions.
struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    states: BTreeMap<String, State>,
}

impl Socket {
    async fn open(serving: &Serving, subscriptions: &[Value]) -> Socket {
        let url = format!("{}/api/v1/subscribe", serving.url.replacen("http", "ws", 1));
        let (mut stream, _) = connect_async(url).await.expect("a WebSocket");
        for subscribe in subscriptions {
            let message = json!({ "subscribe": subscribe }).to_string();
            stream.send(Message::text(message)).await.expect("sent");
        }
        Socket { stream, states: BTreeMap::new() }
    }

    async fn take(&mut self) {
        loop {
            match self.stream.next().await.expect("a message").expect("a message") {
                Message::Text(text) => {
                    let mut message: Value = serde_json::from_str(&text).expect("JSON");
                    let word =
                        |name: &str| message[name].as_str().unwrap_or_else(|| panic!("{text}")).to_owned();
                    let (id, event, version) = (word("id"), word("event"), word("version"));
                    let data = message[match &*event {
                        "snapshot" => "reply",
                        "change" => "patch",
                        _ => "error",
                    }]
                    .take();
                    return self.states.entry(id).or_default().take(&event, &version, data);
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn until(&mut self, id: &str, mut as_expected: impl FnMut(&Value) -> bool) {
        let come = async {
            while !self.states.get(id).is_some_and(|state| as_expected(&state.reply)) {
                self.take().await;
            }
        };
        let came = tokio::time::timeout(PATIENCE, come).await;
        assert!(came.is_ok(), "{id}: not within {PATIENCE:?}; last: {:?}", self.states.get(id));
    }
}

fn deliveries() -> Vec<Delivery> {
    let options = Options {
        records: 3_000,
        span: 20 * MINUTE,
        users: 40,
        documents: 60,
        geos: 10,
        near_repeats: 0.1,
        disorder: 0.2,
        ..Options::default()
    };
    Generator::new(options, SEED).collect()
}

/// Whose page view has the newest event time.
fn newest_user(deliveries: &[Delivery]) -> String {
    let views = deliveries.iter().filter_map(|delivery| oracle::parse(delivery.stream, &delivery.value));
    let newest = views.filter(|fact| !fact.click && fact.uuid.is_some()).max_by_key(|fact| fact.time);
    newest.and_then(|fact| fact.uuid).expect("a page view")
}

fn metric(name: &str) -> &'static Metric {
    METRICS.iter().find(|metric| metric.name == name).expect("a shipped metric")
}

fn views_of_all() -> Value {
    json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "from": "2016-06-13", "to": "2016-07-01" })
}

/// The views of each user, as a reply has them.
fn views(reply: &Value) -> BTreeMap<Option<String>, i64> {
    let row = |row: &Value| {
        let user = row["key"]["uuid"].as_str().map(str::to_owned);
        (user, row["values"]["user_view_cnt"].as_i64().expect("a count"))
    };
    reply["rows"].as_array().into_iter().flatten().map(row).collect()
}

/// The same, counted naively over any span.
fn counted(oracle: &Oracle, from: i64, to: i64) -> BTreeMap<Option<String>, i64> {
    let cells = oracle.count(metric("user_view_cnt"), from, to, i64::MAX);
    cells.into_iter().map(|((_, mut key), count)| (key.pop().flatten(), count)).collect()
}

/// Whether a complete query's answer is the whole log's; no complete one on the way may count more.
fn is_all(reply: &Value, all: &BTreeMap<Option<String>, i64>) -> bool {
    if reply["complete"] != true {
        return false;
    }
    let found = views(reply);
    for (user, count) in &found {
        assert!(Some(count) <= all.get(user), "{user:?}: {count} of {:?}", all.get(user));
    }
    found == *all
}

/// Whether a live value is that of the window that ends the log.
fn is_last(reply: &Value, window_end: &Value, value: i64) -> bool {
    reply["complete"] == true && reply["window_end"] == *window_end && reply["value"] == value
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_have_what_is_sent_meanwhile_on_both_sides_of_the_tidemark() {
    let deliveries = deliveries();
    let user = newest_user(&deliveries);
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let _speed = stack.speed();
    let (process, serving) = stack.serving_with(&["--push-interval", "20ms"]).await;
    let (live, query) = ("/api/v1/live/user_view_cnt_5m/events", "/api/v1/query/events");
    let request = views_of_all();
    let mut of_user = Events::open(&serving, live, &[("uuid", user.as_str())]).await;
    let mut of_all = Events::open(&serving, query, &[("q", request.to_string().as_str())]).await;
    let subscriptions = [
        json!({ "id": "user", "live": "user_view_cnt_5m", "key": { "uuid": user } }),
        json!({ "id": "all", "query": request }),
        json!({ "id": "top", "live": "geo_top_5m", "k": 3 }),
    ];
    let mut socket = Socket::open(&serving, &subscriptions).await;
    // What a client is told of before anything was sent, it has been told of at all.
    of_all.until("an empty answer", |reply| reply["complete"] == true && views(reply).is_empty()).await;
    for part in deliveries.chunks(1_000) {
        stack.send(part);
        stack.settle().await;
        let all = counted(&stack.oracle(), i64::MIN / 4, i64::MAX / 4);
        of_all.until("the views of all", |reply| is_all(reply, &all)).await;
        stack.batch(&["run"]).await;
    }
    stack.run_past_the_end().await;
    let oracle = stack.oracle();
    let all = counted(&oracle, i64::MIN / 4, i64::MAX / 4);
    let tidemark = stack.tidemark().await.generation;
    of_all.until("batch", |reply| is_all(reply, &all) && reply["tidemark"]["generation"] == tidemark).await;
    socket.until("all", |reply| is_all(reply, &all)).await;

    let plain = serving.live("user_view_cnt_5m", &[("uuid", user.clone())]).await.expect("an answer");
    let text = plain["window_end"].as_str().expect("a window");
    let end = chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis();
    let value = counted(&oracle, end - 5 * MINUTE, end)[&Some(user.clone())];
    assert!(value > 0);
    of_user.until("the user's views", |reply| is_last(reply, &plain["window_end"], value)).await;
    socket.until("user", |reply| is_last(reply, &plain["window_end"], value)).await;
    let top = serving.live("geo_top_5m", &[("k", "3".to_owned())]).await.expect("an answer");
    socket.until("top", |reply| reply["items"] == top["items"] && reply["complete"] == true).await;
    for (name, state) in [("user", &of_user.state), ("all", &of_all.state)] {
        assert!(state.changes > 3, "{name}: {state:?}");
        // Who subscribed in one way shares a hub with who did in the other.
        let incarnation = |state: &State| state.version.split('-').next().map(str::to_owned);
        assert_eq!(incarnation(state), incarnation(&socket.states[name]), "{name}");
    }

    // All streams end with the process, which doesn't wait for them.
    process.stop().await;
    let ended = async { while let Ok(Some(_)) = of_user.response.chunk().await {} };
    assert!(tokio::time::timeout(PATIENCE, ended).await.is_ok());
}
