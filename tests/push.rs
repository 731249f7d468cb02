//! Push on real servers and real processes: what subscribers have of records that are sent meanwhile.

use futures::{SinkExt as _, StreamExt as _};
use local::oracle::{self, METRICS, Metric, Oracle};
use local::probe::Serving;
use serde_json::{Value, json};
use simulator::generate::{Delivery, Generator, Options};
use std::collections::BTreeMap;
use tidemark_tests::PATIENCE;
use tidemark_tests::stack::Stack;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

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

/// What came: which subscription's, the event, its version and data.
type Came = (String, String, String, Value);

/// Some subscriptions' events, read as they come: a client that waits for something else meanwhile is let go of.
struct Subscriptions {
    came: UnboundedReceiver<Came>,
    states: BTreeMap<String, State>,
}

impl Subscriptions {
    /// A stream of server-sent events, as the subscription `id`.
    async fn events(serving: &Serving, id: &str, path: &str, parameters: &[(&str, &str)]) -> Subscriptions {
        let request = reqwest::Client::new().get(format!("{}{path}", serving.url)).query(parameters);
        let mut response = request.send().await.expect("a reply");
        assert_eq!(response.status(), 200, "{path}");
        let (sender, came) = unbounded_channel();
        let id = id.to_owned();
        tokio::spawn(async move {
            let mut text = String::new();
            // Until the process ends.
            while let Ok(Some(chunk)) = response.chunk().await {
                text.push_str(std::str::from_utf8(&chunk).expect("text, cut between events alone"));
                while let Some((block, rest)) = text.split_once("\n\n") {
                    let field = |name: &str| {
                        let mut values =
                            block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                        values.next().map(str::to_owned)
                    };
                    if let (Some(event), Some(version), Some(data)) =
                        (field("event"), field("id"), field("data"))
                    {
                        let data = serde_json::from_str(&data).expect("JSON");
                        let _ = sender.send((id.clone(), event, version, data));
                    }
                    text = rest.to_owned();
                }
            }
        });
        Subscriptions { came, states: BTreeMap::new() }
    }

    /// A WebSocket with several subscriptions.
    async fn socket(serving: &Serving, subscriptions: &[Value]) -> Subscriptions {
        let url = format!("{}/api/v1/subscribe", serving.url.replacen("http", "ws", 1));
        let (mut stream, _) = connect_async(url).await.expect("a WebSocket");
        for subscribe in subscriptions {
            let message = json!({ "subscribe": subscribe }).to_string();
            stream.send(Message::text(message)).await.expect("sent");
        }
        let (sender, came) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let Message::Text(text) = message else { continue };
                let mut message: Value = serde_json::from_str(&text).expect("JSON");
                let word = |name: &str| message[name].as_str().unwrap_or_else(|| panic!("{text}")).to_owned();
                let (id, event, version) = (word("id"), word("event"), word("version"));
                let member = match event.as_str() {
                    "snapshot" => "reply",
                    "change" => "patch",
                    _ => "error",
                };
                let _ = sender.send((id, event, version, message[member].take()));
            }
        });
        Subscriptions { came, states: BTreeMap::new() }
    }

    /// Takes events until a subscription's reply is as expected; each on the way is looked at too.
    async fn until(&mut self, id: &str, mut as_expected: impl FnMut(&Value) -> bool) {
        let come = async {
            while !self.states.get(id).is_some_and(|state| as_expected(&state.reply)) {
                let (id, event, version, data) = self.came.recv().await.expect("a stream without an end");
                self.states.entry(id).or_default().take(&event, &version, data);
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
    let mut of_user = Subscriptions::events(&serving, "user", live, &[("uuid", user.as_str())]).await;
    let mut of_all =
        Subscriptions::events(&serving, "all", query, &[("q", request.to_string().as_str())]).await;
    let subscriptions = [
        json!({ "id": "user", "live": "user_view_cnt_5m", "key": { "uuid": user } }),
        json!({ "id": "all", "query": request }),
        json!({ "id": "top", "live": "geo_top_5m", "k": 3 }),
    ];
    let mut socket = Subscriptions::socket(&serving, &subscriptions).await;
    // What a client is told of before anything was sent, it has been told of at all.
    of_all.until("all", |reply| reply["complete"] == true && views(reply).is_empty()).await;
    for part in deliveries.chunks(1_000) {
        stack.send(part);
        stack.settle().await;
        let all = counted(&stack.oracle(), i64::MIN / 4, i64::MAX / 4);
        of_all.until("all", |reply| is_all(reply, &all)).await;
        stack.batch(&["run"]).await;
    }
    stack.run_past_the_end().await;
    let oracle = stack.oracle();
    let all = counted(&oracle, i64::MIN / 4, i64::MAX / 4);
    let tidemark = stack.tidemark().await.generation;
    of_all.until("all", |reply| is_all(reply, &all) && reply["tidemark"]["generation"] == tidemark).await;
    socket.until("all", |reply| is_all(reply, &all)).await;

    let plain = serving.live("user_view_cnt_5m", &[("uuid", user.clone())]).await.expect("an answer");
    let text = plain["window_end"].as_str().expect("a window");
    let end = chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis();
    let value = counted(&oracle, end - 5 * MINUTE, end)[&Some(user.clone())];
    assert!(value > 0);
    of_user.until("user", |reply| is_last(reply, &plain["window_end"], value)).await;
    socket.until("user", |reply| is_last(reply, &plain["window_end"], value)).await;
    let top = serving.live("geo_top_5m", &[("k", "3".to_owned())]).await.expect("an answer");
    socket.until("top", |reply| reply["items"] == top["items"] && reply["complete"] == true).await;
    for (name, events) in [("user", &of_user), ("all", &of_all)] {
        let state = &events.states[name];
        assert!(state.changes > 3, "{name}: {state:?}");
        // Who subscribed in one way shares a hub with who did in the other.
        let incarnation = |state: &State| state.version.split('-').next().map(str::to_owned);
        assert_eq!(incarnation(state), incarnation(&socket.states[name]), "{name}");
    }

    // All streams end with the process, which doesn't wait for them.
    process.stop().await;
    for mut subscriptions in [of_user, of_all, socket] {
        let ended = async { while subscriptions.came.recv().await.is_some() {} };
        assert!(tokio::time::timeout(PATIENCE, ended).await.is_ok());
    }
}
