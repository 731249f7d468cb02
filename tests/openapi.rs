//! The served OpenAPI document, and the client that `openapi-to-rust` generates from it, on real servers and real processes.

use futures::StreamExt as _;
use serde_json::{Value, json};
use simulator::generate::{Generator, Options};
use tidemark_client::client::{ApiOpError, HttpClient, QueryApiError};
use tidemark_client::types::{QueryBody, QueryRequest};
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// What the tests' serving layer is started with.
const MAX_ROWS: u64 = 1_000_000;

/// A running Tidemark, asked by plain HTTP.
struct Plain {
    base: String,
    http: reqwest::Client,
}

impl Plain {
    async fn sent(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let reply = request.send().await.expect("a reply");
        (reply.status().as_u16(), reply.json().await.expect("JSON"))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.sent(self.http.get(format!("{}{path}", self.base))).await
    }

    async fn query(&self, request: &Value) -> (u16, Value) {
        self.sent(self.http.post(format!("{}/api/v1/query", self.base)).json(request)).await
    }

    /// The status, tag and text of a query in the address, from a client that may have an answer.
    async fn tagged(&self, request: &Value, held: Option<&str>) -> (u16, Option<String>, String) {
        let address = format!("{}/api/v1/query", self.base);
        let mut asked = self.http.get(address).query(&[("q", request.to_string())]);
        if let Some(held) = held {
            asked = asked.header("if-none-match", held);
        }
        let reply = asked.send().await.expect("a reply");
        let tag = reply.headers().get("etag").map(|tag| tag.to_str().expect("plain text").to_owned());
        (reply.status().as_u16(), tag, reply.text().await.expect("a text"))
    }
}

fn typed(request: &Value) -> QueryBody {
    QueryBody::QueryRequest(serde_json::from_value::<QueryRequest>(request.clone()).expect("as documented"))
}

/// Waits until two ways to ask have the same answer: between them another epoch may begin.
async fn the_same(what: &str, mut ways: impl AsyncFnMut() -> (Value, Value)) {
    wait_for(what, async || match ways().await {
        (plain, generated) if plain == generated => Ok(()),
        (plain, generated) => Err(format!("plain: {plain}\nby the client: {generated}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_client_gets_what_plain_http_gets() {
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let _speed = stack.speed();
    let deliveries: Vec<_> =
        Generator::new(Options { records: 400, users: 20, ..Options::default() }, 61).collect();
    stack.send(&deliveries[..200]);
    stack.settle().await;
    let ends = stack.probe.ends().expect("the log's ends");
    wait_for("an audited run past the log's ends", async || {
        let run =
            stack.process("batch-layer", &["run"], &["catalog", "kafka", "redis", "postgres", "archive"]);
        assert_eq!(run.ended().await, 0, "{}", run.logged());
        stack.passed(&ends).await
    })
    .await;
    stack.send(&deliveries[200..]);
    stack.settle().await;
    let (_serving, serving) = stack.serving().await;
    let plain = Plain { base: serving.url.clone(), http: reqwest::Client::new() };
    let client = HttpClient::new().with_base_url(&plain.base);
    the_document_is_the_golden_one(&plain).await;
    a_live_value(&plain, &client).await;
    queries(&plain, &client).await;
    an_error(&plain, &client).await;
    events(&client).await;
    the_rest(&plain, &client).await;
    a_past_run_is_sent_once(&stack, &plain).await;
}

/// The client is generated from the file.
async fn the_document_is_the_golden_one(plain: &Plain) {
    let golden = include_str!("../serving-layer/openapi.json");
    let mut golden: Value = serde_json::from_str(golden).expect("JSON");
    for of in ["QueryRequest", "PartialQuery"] {
        golden["components"]["schemas"][of]["properties"]["limit"]["maximum"] = json!(MAX_ROWS);
    }
    assert!(
        plain.get("/api/v1/openapi.json").await == (200, golden),
        "not the document in serving-layer/openapi.json"
    );
    let page = plain.http.get(format!("{}/api/docs", plain.base)).send().await.expect("the page");
    let page = page.text().await.expect("a text");
    assert!(page.contains("live_user_view_cnt_5m") && !page.contains("<script"));
}

async fn a_live_value(plain: &Plain, client: &HttpClient) {
    let request = json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "from": 0, "to": "2100-01-01", "limit": 1,
                          "order": [{ "by": "user_view_cnt", "desc": true }] });
    let user = plain.query(&request).await.1["rows"][0]["key"]["uuid"].as_str().expect("a user").to_owned();
    the_same("a live value", async || {
        let path = format!("/api/v1/live/user_view_cnt_5m?uuid={user}");
        let generated = client.live_user_view_cnt_5m(&user, None, None::<&str>).await.expect("an answer");
        (plain.get(&path).await.1, serde_json::to_value(generated).expect("JSON"))
    })
    .await;
    the_same("a live top-k", async || {
        let generated = client.live_geo_top_5m(None, Some(3), None::<&str>).await.expect("an answer");
        (plain.get("/api/v1/live/geo_top_5m?k=3").await.1, serde_json::to_value(generated).expect("JSON"))
    })
    .await;
}

async fn queries(plain: &Plain, client: &HttpClient) {
    let span = |mut request: Value| {
        request["from"] = json!("2016-06-01");
        request["to"] = json!(1_469_923_200_000_i64);
        request
    };
    for request in [
        json!({ "metrics": ["user_view_cnt", "user_click_cnt", { "name": "ctr", "formula": "cast(user_click_cnt as float) / user_view_cnt" }],
                "group_by": ["uuid"], "granularity": "hour", "time_zone": "Europe/Berlin", "compare": "previous_day",
                "filters": [{ "not": { "dimension": "uuid", "op": "in", "values": ["nobody"] } }],
                "having": [{ "column": "user_view_cnt", "op": ">", "value": 0 }] }),
        json!({ "metrics": ["doc_cnt"], "group_by": ["document_id"], "limit": 5, "offset": 1,
                "filters": [{ "dimension": "document_id", "op": "between", "values": [1, 1_000_000] }] }),
        json!({ "metrics": ["geo_top_doc"], "group_by": ["geo_location"], "k": 2, "granularity": "day" }),
    ] {
        let request = span(request);
        the_same(&request.to_string(), async || {
            let generated = client.query(None::<&str>, typed(&request)).await;
            let generated = generated.unwrap_or_else(|error| panic!("{request}: {error:?}"));
            let (status, answer) = plain.query(&request).await;
            assert!(
                status == 200 && answer["rows"].as_array().is_some_and(|rows| !rows.is_empty()),
                "{answer}"
            );
            (answer, serde_json::to_value(generated).expect("JSON"))
        })
        .await;
    }
}

async fn an_error(plain: &Plain, client: &HttpClient) {
    let request = json!({ "metrics": ["nonsense"], "time_range": "today" });
    let (status, said) = plain.query(&request).await;
    let Err(ApiOpError::Api(error)) = client.query(None::<&str>, typed(&request)).await else {
        panic!("no error of the API");
    };
    let Some(QueryApiError::Status404(reply)) = &error.typed else { panic!("{error:?}") };
    assert_eq!((error.status, serde_json::to_value(reply).expect("JSON")), (status, said));
}

/// A stream of events is handed on as it comes.
async fn events(client: &HttpClient) {
    let none = None::<&str>;
    let stream = client.live_active_user_5m_events(None, none, none).await.expect("a stream");
    let (mut stream, mut text) = (std::pin::pin!(stream), String::new());
    while !text.contains("\nevent: snapshot\ndata: {\"live_name\":\"active_user_5m\"") {
        let bytes = stream.next().await.expect("a stream without an end").expect("bytes");
        text.push_str(std::str::from_utf8(&bytes).expect("a text"));
    }
}

/// Every other call reads what is served, too.
async fn the_rest(plain: &Plain, client: &HttpClient) {
    let none = None::<&str>;
    let catalog = client.list_metrics(none, none).await.expect("the catalog");
    assert_eq!(serde_json::to_value(catalog).expect("JSON"), plain.get("/api/v1/metrics").await.1);
    let audits = client.list_audits(Some(3), none).await.expect("audits");
    let audits = serde_json::to_value(audits).expect("JSON");
    assert!(audits["runs"].as_array().is_some_and(|runs| !runs.is_empty()), "{audits}");
    assert_eq!(audits, plain.get("/api/v1/audit?limit=3").await.1);
    let ready = client.get_readiness(none).await.expect("readiness");
    assert_eq!(serde_json::to_value(ready).expect("JSON"), plain.get("/readyz").await.1);
    assert_eq!(client.get_health(none).await.expect("health"), "ok\n");
}

/// What a run left behind is sent once, however far the tidemark has come meanwhile, and again by another question.
async fn a_past_run_is_sent_once(stack: &Stack, plain: &Plain) {
    let now = json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "from": "2016-06-01", "to": "2016-08-01" });
    let run = plain.query(&now).await.1["run"].clone();
    let mut request = now.clone();
    request["at_run"] = run;
    let (status, tag, first) = plain.tagged(&request, None).await;
    let tag = tag.expect("a tag");
    assert_eq!(status, 200, "{first}");
    let unchanged = async |when: &str| {
        assert_eq!(
            plain.tagged(&request, Some(&tag)).await,
            (304, Some(tag.clone()), String::new()),
            "{when}"
        );
        assert_eq!(plain.tagged(&request, None).await, (200, Some(tag.clone()), first.clone()), "{when}");
    };
    unchanged("at once").await;
    stack.run_past_the_end().await;
    unchanged("after another run").await;
    let (status, other, _) = plain.tagged(&now, Some(&tag)).await;
    assert!(status == 200 && other != Some(tag));
}
