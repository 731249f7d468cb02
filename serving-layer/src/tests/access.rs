//! Keys over HTTP, against views in memory: who is let in, what they see, what they can learn of the rest, and what is logged.

use super::law::queries;
use super::over_http::Served;
use super::world::{NOW, World, span};
use crate::access::{Access, Entry, Grants, Key, Log, Scope, Token, Writing};
use crate::boards::MemoryBoards;
use crate::error::ServeError;
use crate::query::filter::Condition;
use crate::router::router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use futures::StreamExt as _;
use serde_json::{Value as Json, json};
use std::sync::Arc;
use tower::ServiceExt;

/// A service whose keys are those of a test.
pub(super) struct Guarded {
    pub(super) served: Served,
    pub(super) boards: Arc<MemoryBoards>,
    writing: Writing,
}

/// A key, and the token that it is used by.
pub(super) fn key(name: &str, change: impl FnOnce(&mut Key)) -> (Key, Token) {
    let token = Token::random();
    let mut key = Key {
        id: token.id.clone(),
        name: name.to_owned(),
        hash: token.hash(),
        grants: Grants { read: all(), ..Grants::default() },
        rate: None,
        created: NOW - 1_000,
        expires: None,
        revoked: None,
    };
    change(&mut key);
    (key, token)
}

pub(super) fn all() -> Scope {
    Scope { all: true, ..Scope::default() }
}

fn of(names: &[&str]) -> Scope {
    Scope { metrics: names.iter().map(|name| (*name).to_owned()).collect(), ..Scope::default() }
}

fn rows(tests: Json) -> crate::access::RowFilter {
    serde_json::from_value(tests).unwrap()
}

impl Guarded {
    pub(super) async fn new(keys: &[(Key, Token)]) -> Guarded {
        Guarded::with_log(keys, 1_000).await
    }

    async fn with_log(keys: &[(Key, Token)], waiting: usize) -> Guarded {
        let (mut served, boards) = (Served::new().await, Arc::<MemoryBoards>::default());
        let (log, writing) = Log::new(waiting, None, || NOW);
        let access = Access::new(log);
        served.service.access = Some(access.clone());
        served.service.boards = Some(boards.clone());
        let keys = keys.iter().map(|(key, _)| key.clone()).collect();
        access.look("1".to_owned(), keys, &served.service, NOW);
        Guarded { served, boards, writing }
    }

    pub(super) async fn send(
        &self,
        token: Option<&str>,
        request: axum::http::request::Builder,
        body: String,
    ) -> (u16, HeaderMap, String) {
        let request = match token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        let response = router(self.served.service.clone())
            .oneshot(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        (status, headers, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, token: &Token, path: &str) -> (u16, Json) {
        let (status, _, text) = self.send(Some(&token.reveal()), Request::get(path), String::new()).await;
        (status, serde_json::from_str(&text).unwrap_or(Json::Null))
    }

    async fn post(&self, token: &Token, query: &Json) -> (u16, Json) {
        let asked = Request::post("/api/v1/query");
        let (status, _, text) = self.send(Some(&token.reveal()), asked, query.to_string()).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    pub(super) fn logged(&mut self) -> Vec<Entry> {
        std::iter::from_fn(|| self.writing.next_waiting()).collect()
    }
}

fn views_by_user() -> Json {
    span(json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"] }))
}

#[tokio::test]
async fn whatever_is_wrong_with_a_key_the_answer_is_the_same() {
    let good = key("good", |_| {});
    let expired = key("expired", |key| key.expires = Some(NOW));
    let revoked = key("revoked", |key| key.revoked = Some(NOW - 1));
    let guarded = Guarded::new(&[good.clone(), expired.clone(), revoked.clone()]).await;
    let (unknown, text) = (Token::random(), good.1.reveal());
    let other = Token::random().reveal();
    let of_another = format!("{}{}", &text[..20], &other[20..]);
    let wrong = [
        None,
        Some(String::new()),
        Some("nonsense".to_owned()),
        Some(unknown.reveal()),
        Some(of_another),
        Some(text[..83].to_owned()),
        Some(expired.1.reveal()),
        Some(revoked.1.reveal()),
    ];
    let paths = [
        "/api/v1/metrics",
        "/api/v1/live/user_view_cnt_5m?uuid=u1",
        "/api/v1/live/none",
        "/api/v1/query?q={}",
        "/api/v1/audit",
        "/api/v1/boards",
        "/api/v1/boards/a",
        "/api/v1/openapi.json",
        "/api/docs",
        "/metrics",
        "/nowhere",
    ];
    for token in &wrong {
        for path in paths {
            let (status, headers, text) =
                guarded.send(token.as_deref(), Request::get(path), String::new()).await;
            let expected = json!({ "error": { "code": "no_key", "details": [],
                                              "message": "a valid key is needed: authorization: Bearer <key>" } });
            assert_eq!((status, serde_json::from_str(&text).ok()), (401, Some(expected)), "{path} {token:?}");
            assert_eq!(headers["www-authenticate"], "Bearer realm=\"tidemark\"");
            assert_eq!(headers["cache-control"], "no-store");
        }
        for path in ["/healthz", "/readyz", "/", "/page/app.js"] {
            assert_eq!(guarded.send(token.as_deref(), Request::get(path), String::new()).await.0, 200);
        }
    }
    let asked = Request::get("/api/v1/metrics").header("authorization", format!("bearer {text}"));
    assert_eq!(guarded.send(None, asked, String::new()).await.0, 200);
    let basic = Request::get("/api/v1/metrics").header("authorization", format!("Basic {text}"));
    assert_eq!(guarded.send(None, basic, String::new()).await.0, 401);
    // As a browser sends it for a WebSocket; what `authorization` says comes first.
    let protocol = |request: axum::http::request::Builder, token: &str| {
        request.header("sec-websocket-protocol", format!("tidemark, bearer.{token}"))
    };
    let subscribe = || Request::get("/api/v1/subscribe");
    let (status, _, reply) = guarded.send(None, protocol(subscribe(), &text), String::new()).await;
    assert!(status != 401 && reply.contains("WebSocket"), "{status} {reply}");
    for asked in [
        protocol(Request::get("/api/v1/metrics"), &text),
        protocol(subscribe(), &expired.1.reveal()),
        protocol(subscribe().header("authorization", "Bearer tm_0"), &text),
    ] {
        assert_eq!(guarded.send(None, asked, String::new()).await.0, 401);
    }
}

#[tokio::test]
async fn what_a_key_may_not_read_is_not_there_for_it() {
    let partner = key("partner", |key| key.grants.read = of(&["user_view_cnt"]));
    let guarded = Guarded::new(std::slice::from_ref(&partner)).await;
    let token = &partner.1;
    let open = Served::new().await;
    let (mut own, mut same) = (guarded.post(token, &views_by_user()).await, open.post(views_by_user()).await);
    assert_eq!((own.0, own.1["rows"].as_array().map(Vec::len)), (200, Some(5)));
    [&mut own, &mut same].into_iter().for_each(|(_, reply)| drop(reply["rows"].take()));
    assert_eq!(own, same);
    assert_eq!(guarded.get(token, "/api/v1/live/user_view_cnt_5m?uuid=u1").await.0, 200);
    // Whether there is such a metric can't be told.
    let hidden = |name: &str| span(json!({ "metrics": [name] }));
    let refused = guarded.post(token, &hidden("doc_cnt")).await;
    assert_eq!((refused.0, &refused.1["error"]["code"]), (403, &json!("forbidden")));
    assert_eq!(guarded.post(token, &hidden("features_20m")).await, refused);
    assert_eq!(guarded.post(token, &hidden("nonsense")).await, refused);
    let [live, none] = ["doc_cnt_5m", "nonsense"].map(|name| format!("/api/v1/live/{name}?document_id=1"));
    assert_eq!(guarded.get(token, &live).await, (403, refused.1.clone()));
    assert_eq!(guarded.get(token, &none).await, (403, refused.1.clone()));
    let admin = [guarded.get(token, "/api/v1/audit").await.0, guarded.get(token, "/metrics").await.0];
    assert_eq!(admin, [403, 403]);
    for path in ["/api/v1/metrics", "/api/v1/openapi.json", "/api/docs"] {
        let (status, _, text) = guarded.send(Some(&token.reveal()), Request::get(path), String::new()).await;
        assert!(status == 200 && text.contains("user_view_cnt"), "{path} {status}");
        for name in ["doc_cnt", "geo_top", "active_user", "features_20m"] {
            assert!(!text.contains(name), "{path} tells of {name}");
        }
    }
    // A request with other faults as well.
    let (status, reply) = guarded.post(token, &json!({ "metrics": ["doc_cnt"], "surprise": 1 })).await;
    assert!(status == 400 && !reply.to_string().contains("geo_top"), "{reply}");
}

/// Every kind of query, asked with a key of some rows: what the same query answers without keys that asks for these rows.
#[tokio::test]
async fn a_key_of_some_rows_has_the_answers_of_these_rows() {
    let tests = json!([{ "dimension": "uuid", "op": "in", "values": ["u1", "u3"] }, { "dimension": "uuid", "op": "!=", "value": "u0" }]);
    let partner = key("partner", |key| key.grants.rows = rows(tests.clone()));
    let guarded = Guarded::new(std::slice::from_ref(&partner)).await;
    let open = Served::new().await;
    let (mut compared, mut hidden) = (0, 0);
    for query in queries().into_iter().map(span) {
        let mut filtered = query.clone();
        let own = filtered["filters"].take();
        let own = if own.is_array() { own.as_array().unwrap().clone() } else { vec![own] };
        let own = own.into_iter().filter(|test| !test.is_null());
        filtered["filters"] = own.chain(tests.as_array().unwrap().clone()).collect();
        let (status, reply) = guarded.post(&partner.1, &query).await;
        if status == 403 {
            hidden += 1;
            continue;
        }
        let (expected_status, expected) = open.post(filtered).await;
        assert_eq!(
            (status, &reply["rows"], &reply["total_rows"]),
            (expected_status, &expected["rows"], &expected["total_rows"]),
            "{query}"
        );
        compared += 1;
    }
    assert!(compared >= 5 && hidden >= 3, "{compared} compared, {hidden} hidden");
    let (_, told) = guarded.post(&partner.1, &views_by_user()).await;
    assert_eq!(
        (&told["tidemark"]["generation"], &told["tidemark"]["cuts"]),
        (&json!(1), &json!({})),
        "how much all have sent"
    );
    let (token, seen) = (&partner.1, |user: &str| format!("/api/v1/live/user_view_cnt_5m?uuid={user}"));
    assert_eq!(guarded.get(token, &seen("u1")).await.1["value"], open.get(&seen("u1")).await.1["value"]);
    assert_eq!(
        (guarded.get(token, &seen("u2")).await.0, guarded.get(token, &seen("%5CN")).await.0),
        (403, 403)
    );
    // Its key has no uuid: which of its rows may be seen can't be told.
    assert_eq!(guarded.get(token, "/api/v1/live/doc_cnt_5m?document_id=1").await.0, 403);
    assert_eq!(guarded.get(token, "/api/v1/live/active_user_5m").await.0, 403);
}

#[tokio::test]
async fn an_admin_sees_the_audits_of_its_metrics() {
    let admin = key("admin", |key| key.grants = Grants { admin: all(), ..Grants::default() });
    let of_one = key("of one", |key| key.grants.admin = of(&["doc_cnt"]));
    let of_rows = key("of rows", |key| {
        key.grants.admin = all();
        key.grants.rows = rows(json!([{ "dimension": "uuid", "value": "u1" }]));
    });
    let guarded = Guarded::new(&[admin.clone(), of_one.clone(), of_rows.clone()]).await;
    let run = json!({ "run": 7, "audit": { "cells": 9, "metrics": { "doc_cnt": { "cells": 4 }, "geo_top": { "cells": 5 } } } });
    guarded.served.audit(run.clone());
    assert_eq!(guarded.get(&admin.1, "/api/v1/audit").await, (200, json!({ "runs": [run] })));
    let own = json!({ "run": 7, "audit": { "metrics": { "doc_cnt": { "cells": 4 } } } });
    assert_eq!(guarded.get(&of_one.1, "/api/v1/audit").await, (200, json!({ "runs": [own] })));
    assert_eq!(guarded.get(&of_rows.1, "/api/v1/audit").await.0, 403);
    let figures = async |token: &Token| {
        guarded.send(Some(&token.reveal()), Request::get("/metrics"), String::new()).await.0
    };
    assert_eq!(
        (figures(&admin.1).await, figures(&of_one.1).await, figures(&of_rows.1).await),
        (200, 403, 403)
    );
    // It reads what it is an admin of.
    assert_eq!(guarded.post(&admin.1, &views_by_user()).await.0, 200);
}

#[tokio::test]
async fn a_key_asks_as_often_as_it_may() {
    let (slow, other) = (key("slow", |key| key.rate = Some(2.0)), key("other", |_| {}));
    let mut guarded = Guarded::new(&[slow.clone(), other.clone()]).await;
    let path = "/api/v1/live/user_view_cnt_5m?uuid=u1";
    let asked: Vec<u16> = [
        guarded.get(&slow.1, path).await.0,
        guarded.get(&slow.1, path).await.0,
        guarded.get(&slow.1, path).await.0,
    ]
    .into();
    assert_eq!(asked, [200, 200, 429]);
    let (_, headers, text) = guarded.send(Some(&slow.1.reveal()), Request::get(path), String::new()).await;
    assert_eq!(headers["retry-after"], "1");
    assert!(text.contains("this key may ask 2 times a second: ask again in 500 ms"), "{text}");
    assert_eq!(guarded.get(&other.1, path).await.0, 200);
    // What was turned away isn't logged.
    assert_eq!(guarded.logged().len(), 3);
    // A look at unchanged keys doesn't fill its bucket.
    let access = guarded.served.service.access.clone().unwrap();
    access.look("2".to_owned(), vec![slow.0.clone(), other.0.clone()], &guarded.served.service, NOW);
    assert_eq!(guarded.get(&slow.1, path).await.0, 429);
    let mut changed = slow.0.clone();
    changed.revoked = Some(NOW);
    access.look("3".to_owned(), vec![changed, other.0.clone()], &guarded.served.service, NOW);
    assert_eq!((guarded.get(&slow.1, path).await.0, guarded.get(&other.1, path).await.0), (401, 200));
}

#[tokio::test]
async fn what_is_asked_is_logged_with_who_asked_and_how_it_ended() {
    let (partner, other) =
        (key("partner", |key| key.grants.read = of(&["user_view_cnt"])), key("other", |_| {}));
    let mut guarded = Guarded::new(&[partner.clone(), other.clone()]).await;
    let query = views_by_user();
    let asked = Request::post("/api/v1/query").header("x-query-id", "mine");
    assert_eq!(guarded.send(Some(&partner.1.reveal()), asked, query.to_string()).await.0, 200);
    assert_eq!(guarded.get(&other.1, "/api/v1/live/doc_cnt_5m?document_id=7").await.0, 200);
    assert_eq!(guarded.get(&partner.1, "/metrics").await.0, 403);
    assert_eq!(guarded.get(&partner.1, "/nowhere").await.0, 404);
    assert_eq!(guarded.send(None, Request::get("/api/v1/metrics"), String::new()).await.0, 401);
    let long = json!({ "metrics": ["x".repeat(10_000)] }).to_string().replace("xx", "\u{e9}\0");
    assert_eq!(guarded.send(Some(&other.1.reveal()), Request::post("/api/v1/query"), long).await.0, 400);
    let entries = guarded.logged();
    let shown: Vec<String> = entries
        .iter()
        .map(|entry| {
            let Entry { name, method, route, status, asked, .. } = entry;
            format!("{name} {method} {route} {status} {asked}")
        })
        .collect();
    assert_eq!(
        shown[..4],
        [
            format!("partner POST /api/v1/query 200 {query}"),
            "other GET /api/v1/live/{name} 200 /api/v1/live/doc_cnt_5m?document_id=7".to_owned(),
            "partner GET /metrics 403 /metrics".to_owned(),
            "partner GET other 404 /nowhere".to_owned(),
        ]
    );
    assert_eq!((entries[0].query_id.as_str(), &entries[0].key, entries[0].at), ("mine", &partner.0.id, NOW));
    let long = &entries[4].asked;
    assert!((8_189..=8_192).contains(&long.len()) && !long.contains('\0'), "{}", long.len());
    assert!(long.capacity() <= 8_192, "{}", long.capacity());
    assert!(!format!("{entries:?}").contains(&partner.1.reveal()));
}

#[tokio::test]
async fn what_cant_be_logged_isnt_answered() {
    let reader = key("reader", |_| {});
    let mut guarded = Guarded::with_log(std::slice::from_ref(&reader), 2).await;
    let path = "/api/v1/live/user_view_cnt_5m?uuid=u1";
    for status in [200, 200, 503, 503] {
        assert_eq!(guarded.get(&reader.1, path).await.0, status);
    }
    assert_eq!(guarded.logged().len(), 2);
    assert_eq!(guarded.get(&reader.1, path).await.0, 200);
    // A client that leaves while its query waits for its turn.
    let service = &guarded.served.service;
    let turns = (0..service.views.limits.at_once)
        .map(|_| Box::pin(service.in_turn(std::future::pending::<Result<(), ServeError>>())));
    let mut turns: Vec<_> = turns.collect();
    for turn in &mut turns {
        assert!(futures::poll!(turn).is_pending());
    }
    let request =
        Request::post("/api/v1/query").header("authorization", format!("Bearer {}", reader.1.reveal()));
    let mut asking = Box::pin(router(service.clone()).oneshot(request.body(Body::from("{}")).unwrap()));
    assert!(futures::poll!(&mut asking).is_pending());
    drop((asking, turns));
    let entries = guarded.logged();
    assert_eq!(entries.iter().map(|entry| entry.status).collect::<Vec<_>>(), [200, 499]);
}

#[tokio::test]
async fn keys_that_cant_be_looked_at_are_believed_for_a_minute() {
    let reader = key("reader", |_| {});
    let guarded = Guarded::new(std::slice::from_ref(&reader)).await;
    let access = guarded.served.service.access.clone().unwrap();
    let at = async |time: i64| {
        access.look("1".to_owned(), vec![reader.0.clone()], &guarded.served.service, time);
        guarded.get(&reader.1, "/api/v1/metrics").await.0
    };
    assert_eq!((at(NOW - 60_000).await, at(NOW - 60_001).await), (200, 503));
    let mut unseen = Served::new().await;
    unseen.service.access = Some(Access::new(Log::new(1, None, || NOW).0));
    assert_eq!(unseen.status("get", "/api/v1/metrics").await, 503);
}

#[tokio::test]
async fn pages_of_the_origins_named_may_ask() {
    let reader = key("reader", |_| {});
    let mut guarded = Guarded::new(std::slice::from_ref(&reader)).await;
    guarded.served.service.origins = ["https://app.example".parse().unwrap()].into();
    let preflight = |origin: &str| {
        let request = Request::options("/api/v1/query").header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
    };
    let (status, headers, _) = guarded.send(None, preflight("https://app.example"), String::new()).await;
    assert_eq!(
        (status, &headers["access-control-allow-origin"]),
        (200, &"https://app.example".parse().unwrap())
    );
    let methods = headers["access-control-allow-methods"].to_str().unwrap();
    assert!(["GET", "POST", "PUT", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("authorization") && allowed.contains("content-type"), "{allowed}");
    let asked = Request::get("/api/v1/metrics").header("origin", "https://app.example");
    let (status, headers, _) = guarded.send(Some(&reader.1.reveal()), asked, String::new()).await;
    assert!(status == 200 && headers.contains_key("access-control-allow-origin"), "{headers:?}");
    assert!(headers["access-control-expose-headers"].to_str().unwrap().contains("x-query-id"));
    // What is refused says so to the page, too.
    let asked = Request::get("/api/v1/metrics").header("origin", "https://app.example");
    let (status, headers, _) = guarded.send(None, asked, String::new()).await;
    assert!(status == 401 && headers.contains_key("access-control-allow-origin"), "{headers:?}");
    let (_, headers, _) = guarded.send(None, preflight("https://elsewhere.example"), String::new()).await;
    assert!(!headers.contains_key("access-control-allow-origin"), "{headers:?}");
    let mut plain = Served::new().await;
    assert_eq!(plain.status("options", "/api/v1/query").await, 405);
    // Without keys pages from elsewhere change nothing.
    plain.service.origins = guarded.served.service.origins.clone();
    let request = preflight("https://app.example").body(Body::empty()).unwrap();
    let response = router(plain.service.clone()).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["access-control-allow-methods"], "GET,POST");
}

/// A stream of events goes on for as long as its key is valid, and shows what that may see.
#[tokio::test]
async fn a_subscription_sees_what_its_key_may_and_ends_with_it() {
    let tests = json!([{ "dimension": "uuid", "op": "in", "values": ["u1", "u3"] }]);
    let partner = key("partner", |key| key.grants.rows = rows(tests));
    let reader = key("reader", |_| {});
    let mut guarded = Guarded::new(&[partner.clone(), reader.clone()]).await;
    let query = views_by_user();
    let encoded: String = url::form_urlencoded::byte_serialize(query.to_string().as_bytes()).collect();
    let path = format!("/api/v1/query/events?q={encoded}");
    let mut streams = Vec::new();
    for (token, users) in [(&partner.1, 2), (&reader.1, 5)] {
        let request = Request::get(&path).header("authorization", format!("Bearer {}", token.reveal()));
        let response =
            router(guarded.served.service.clone()).oneshot(request.body(Body::empty()).unwrap()).await;
        let mut frames = response.unwrap().into_body().into_data_stream();
        let snapshot = loop {
            let frame = String::from_utf8(frames.next().await.unwrap().unwrap().to_vec()).unwrap();
            if let Some((_, data)) = frame.split_once("data: ") {
                break serde_json::from_str::<Json>(data.trim()).unwrap();
            }
        };
        // Equal requests, of who may see other rows: they are no one hub's.
        assert_eq!(snapshot["rows"].as_array().map(Vec::len), Some(users), "{snapshot}");
        streams.push(frames);
    }
    let refused = guarded.get(&partner.1, "/api/v1/live/user_view_cnt_5m/events?uuid=u2").await;
    assert_eq!((refused.0, &refused.1["error"]["code"]), (403, &json!("forbidden")));
    let access = guarded.served.service.access.clone().unwrap();
    access.look("2".to_owned(), vec![reader.0.clone()], &guarded.served.service, NOW);
    let mut partners = streams.remove(0);
    while partners.next().await.is_some() {}
    // The keys can't be looked at for too long: then nothing goes on with one.
    access.let_go(NOW + 60_000);
    assert!(futures::poll!(streams[0].next()).is_pending());
    access.let_go(NOW + 60_001);
    while streams[0].next().await.is_some() {}
    assert_eq!(guarded.get(&reader.1, "/api/v1/metrics").await.0, 503);
    // Who asks only those that are ready comes to one that knows them.
    guarded.served.service.refresh().await.unwrap();
    let unready = json!({ "ready": false, "because": ["the keys (TIDEMARK_ACCESS) aren't known"] });
    assert_eq!(guarded.get(&reader.1, "/readyz").await, (503, unready));
    // Once they can be, the key is as good as before.
    access.look("1".to_owned(), vec![reader.0.clone()], &guarded.served.service, NOW);
    assert_eq!(guarded.get(&reader.1, "/api/v1/metrics").await.0, 200);
    guarded.served.service.refresh().await.unwrap();
    assert_eq!(guarded.get(&reader.1, "/readyz").await.0, 200);
    let logged: Vec<u16> = guarded.logged().iter().map(|entry| entry.status).collect();
    assert_eq!(logged, [200, 200, 403, 200]);
}

/// A key that ends while a request's body still comes gets no answer.
#[tokio::test]
async fn a_body_that_takes_its_time_outlasts_no_key() {
    let reader = key("reader", |_| {});
    let mut guarded = Guarded::new(std::slice::from_ref(&reader)).await;
    let (mut sender, body) = futures::channel::mpsc::channel::<Result<&'static str, std::io::Error>>(1);
    let request =
        Request::post("/api/v1/query").header("authorization", format!("Bearer {}", reader.1.reveal()));
    let request = request.body(Body::from_stream(body)).unwrap();
    let mut asking = Box::pin(router(guarded.served.service.clone()).oneshot(request));
    sender.try_send(Ok("{")).unwrap();
    assert!(futures::poll!(&mut asking).is_pending());
    let access = guarded.served.service.access.clone().unwrap();
    access.look("2".to_owned(), vec![], &guarded.served.service, NOW);
    sender.try_send(Ok("}")).unwrap();
    drop(sender);
    assert_eq!(asking.await.unwrap().status(), 401);
    assert_eq!(guarded.logged().iter().map(|entry| entry.status).collect::<Vec<_>>(), [401]);
}

/// So that Postgres is left each test that it can make by itself, as without a key.
#[test]
fn the_rows_of_a_key_stand_beside_the_tests_of_a_query() {
    let query = World::new(&[]).query(span(
        json!({ "metrics": ["user_view_cnt"], "filters": [{ "dimension": "uuid", "value": "u1" }] }),
    ));
    let restricted = |tests: Json| {
        let mut query = query.clone();
        rows(tests).restrict(&mut query);
        query.condition
    };
    let like = json!([{ "dimension": "uuid", "op": "like", "value": "u%" }]);
    assert_eq!(restricted(like), Condition::All(vec![Condition::Test(0), Condition::Test(1)]));
    assert_eq!(restricted(json!([])), query.condition);
}
