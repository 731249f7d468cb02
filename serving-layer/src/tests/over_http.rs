//! Requests over HTTP, against views in memory: what each answer says of itself, and how it fails.

use super::world::{NOW, START, World, fixed, span};
use crate::Service;
use crate::batch_view::{Lost, MemoryBatchView};
use crate::realtime_view::MemoryRealtimeView;
use crate::router::router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use serde_json::{Value as Json, json};
use shared_model::offsets::{OffsetRange, TopicPartition};
use shared_model::time::show;
use shared_model::view::{self, Header, Slice};
use std::sync::Arc;
use tower::ServiceExt;

pub(crate) struct Served {
    world: World,
    pub(crate) service: Service,
    batch: Arc<MemoryBatchView>,
    realtime: Arc<MemoryRealtimeView>,
}

impl Served {
    pub(crate) async fn new() -> Served {
        let world = World::new(&fixed());
        let (views, batch, realtime) = world.views(1, 3);
        let service = Service::new(views, || NOW);
        service.refresh().await.unwrap();
        Served { world, service, batch, realtime }
    }

    async fn response(&self, request: Request<Body>) -> Response<Body> {
        let response = router(self.service.clone()).oneshot(request).await.unwrap();
        assert!(response.headers().contains_key("x-query-id"));
        response
    }

    async fn send(&self, request: Request<Body>) -> (u16, Json) {
        let response = self.response(request).await;
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Json::Null))
    }

    /// The status of a request without a body, whatever is answered: it may have no end.
    pub(crate) async fn status(&self, method: &str, path: &str) -> u16 {
        let request = Request::builder().method(method.to_uppercase().as_str()).uri(path);
        self.response(request.body(Body::empty()).unwrap()).await.status().as_u16()
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Json) {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, request: Json) -> (u16, Json) {
        self.post_to("/api/v1/query", request).await
    }

    pub(crate) async fn post_to(&self, path: &str, request: Json) -> (u16, Json) {
        self.send(Request::post(path).body(Body::from(request.to_string())).unwrap()).await
    }

    /// Keeps the records of streams below the tidemark as facts.
    pub(crate) fn keep(&self, streams: &[&str]) {
        let tidemark = self.world.tidemark(1, 3);
        streams.iter().for_each(|stream| self.batch.keep(stream, self.world.facts(stream, &tidemark)));
    }

    /// Adds the audit of a run.
    pub(crate) fn audit(&self, audit: Json) {
        self.batch.audit(audit);
    }

    /// Changes the header of a group in place.
    pub(crate) fn spoil(&self, partition: i32, group: u32, change: impl Fn(&mut Header)) {
        let tp = TopicPartition::new("page_views", partition);
        let wanted = view::group_key(&tp, group, self.world.catalog.layout.groups);
        for (key, _, mut header, segments) in
            self.world.realtime(1).into_iter().filter(|(key, ..)| *key == wanted)
        {
            change(&mut header);
            self.realtime.put(&key, &header, segments);
        }
    }
}

pub(crate) fn views_of_all() -> Json {
    span(json!({ "metrics": ["user_view_cnt"] }))
}

#[tokio::test]
async fn a_query_is_answered_with_its_envelope() {
    let served = Served::new().await;
    let (status, reply) = served.post(views_of_all()).await;
    assert_eq!(status, 200);
    let naive = fixed().iter().filter(|event| !event.click).count();
    assert_eq!(
        reply["rows"],
        json!([{
            "bucket": show(START), "key": {}, "values": { "user_view_cnt": naive }
        }])
    );
    assert_eq!((&reply["complete"], &reply["incomplete_because"]), (&json!(true), &json!([])));
    assert_eq!(reply["tidemark"]["generation"], 1);
    assert_eq!(reply["tidemark"]["cuts"].as_object().unwrap().len(), 2);
    assert_eq!(reply["parts"]["batch"]["runs"], json!([1]));
    assert!(
        reply["parts"]["batch"]["rows"].as_u64() > Some(0)
            && reply["parts"]["realtime"]["cells"].as_u64() > Some(0)
    );
    assert_eq!(reply["parts"]["realtime"]["groups"], 8);
    assert_eq!(reply["dedup_horizon"], json!({ "page_views": 1_000_000 }));
    assert_eq!(reply["error_bound"], json!({ "user_view_cnt": 0.0 }));
    assert_eq!(reply["metrics"][0]["version"].as_str().unwrap().len(), 16);
}

#[tokio::test]
async fn audits_are_listed_the_newest_first() {
    let served = Served::new().await;
    assert_eq!(served.get("/api/v1/audit").await, (200, json!({ "runs": [] })));
    (1..=3).for_each(|run| served.audit(json!({ "run": run })));
    assert_eq!(
        served.get("/api/v1/audit?limit=2").await,
        (200, json!({ "runs": [{ "run": 3 }, { "run": 2 }] }))
    );
    for wrong in ["limit=-1", "limit=x", "limits=2"] {
        assert_eq!(served.get(&format!("/api/v1/audit?{wrong}")).await.0, 400, "{wrong}");
    }
    served.batch.fail();
    assert_eq!(served.get("/api/v1/audit").await.0, 503);
}

#[tokio::test]
async fn final_is_what_the_watermark_has_passed() {
    let served = Served::new().await;
    let asked = |to: &str| json!({ "metrics": ["user_view_cnt"], "from": "2016-06-15", "to": to });
    assert_eq!(served.post(asked("2016-06-15T12:00:00Z")).await.1["final"], true);
    assert_eq!(served.post(asked("2016-06-20")).await.1["final"], false);
}

#[tokio::test]
async fn whatever_a_group_cannot_promise_makes_the_answer_incomplete() {
    type Change = fn(&mut Header);
    let cases: [(Change, &str); 5] = [
        (
            |header| header.cuts.iter_mut().for_each(|(_, offset)| *offset += 1),
            "was not cut where the tidemark is",
        ),
        // It went on beyond the boundary without seeing it.
        (|header| header.cuts.truncate(1), "was not cut where the tidemark is"),
        (|header| header.metrics.clear(), "is not in the realtime view in the catalog's version"),
        (|header| header.metrics.values_mut().for_each(|from| *from = 1_000), "only from above the tidemark"),
        (|header| header.gaps.push((0, 1_000)), "lost offsets 0 to 1000"),
    ];
    for (change, reason) in cases {
        let served = Served::new().await;
        served.spoil(1, 2, change);
        let (status, reply) = served.post(views_of_all()).await;
        assert_eq!((status, &reply["complete"], &reply["final"]), (200, &json!(false), &json!(false)));
        let reasons = reply["incomplete_because"].to_string();
        assert!(reasons.contains(reason) && reasons.contains("page_views/1"), "{reasons}");
        let mut strict = views_of_all();
        strict["strict"] = json!(true);
        let (status, reply) = served.post(strict).await;
        assert_eq!((status, &reply["error"]["code"]), (503, &json!("incomplete")));
        assert!(reply["error"]["details"][0]["message"].as_str().unwrap().contains(reason));
    }
}

#[tokio::test]
async fn a_pinned_key_asks_only_its_own_group() {
    let served = Served::new().await;
    let mut request = views_of_all();
    request["filters"] = json!([{ "dimension": "uuid", "value": "u1" }]);
    let (_, reply) = served.post(request).await;
    assert_eq!((&reply["parts"]["realtime"]["groups"], &reply["complete"]), (&json!(2), &json!(true)));
    let naive = fixed().iter().filter(|event| !event.click && event.user == 1).count();
    assert_eq!(reply["rows"][0]["values"]["user_view_cnt"], naive);
}

#[tokio::test]
async fn bytes_that_cannot_be_decoded_are_a_doubt_not_a_panic() {
    let key = view::group_key(&TopicPartition::new("page_views", 0), 0, 4);
    let header = World::new(&fixed()).realtime(1).into_iter().find(|(of, ..)| *of == key).unwrap().2;
    let group = |header: &[u8], segment: &[u8], unknown: &[&str]| view::Group {
        header: header.to_vec(),
        segments: vec![(Slice::Epoch(1_000), segment.to_vec())],
        unknown: unknown.iter().map(|field| (*field).to_owned()).collect(),
    };
    let good = header.to_json().into_bytes();
    for bad in [
        group(b"{", &[1], &[]),
        group(&[0xff; 40], &[1], &[]),
        group(&good, &[], &[]),
        group(&good, &[1, 2, 3], &[]),
        group(&good, &[9; 100], &[]),
        group(&good, &[1], &["x17"]),
    ] {
        let served = Served::new().await;
        served.realtime.put_group(&key, bad);
        let (status, reply) = served.post(views_of_all()).await;
        assert_eq!((status, &reply["complete"]), (200, &json!(false)), "{reply}");
    }
}

#[tokio::test]
async fn a_group_that_is_not_there_ends_the_answer_at_the_tidemark() {
    let served = Served::new().await;
    let (_, whole) = served.post(views_of_all()).await;
    let key = view::group_key(&TopicPartition::new("page_views", 0), 0, 4);
    let mut empty = served.world.realtime(1).into_iter().find(|(of, ..)| *of == key).unwrap().2;
    (empty.cuts, empty.to) = (vec![(1, 0)], 0);
    served.realtime.put(&key, &empty, vec![]);
    let (_, reply) = served.post(views_of_all()).await;
    assert_eq!((&reply["complete"], &reply["as_of"]), (&json!(true), &json!("1970-01-01T00:00:30.000Z")));
    assert_ne!(whole["as_of"], reply["as_of"]);
}

#[tokio::test]
async fn without_the_realtime_view_the_batch_view_answers_and_says_so() {
    let served = Served::new().await;
    served.realtime.fail();
    let (status, reply) = served.post(views_of_all()).await;
    assert_eq!((status, &reply["complete"]), (200, &json!(false)));
    assert_eq!(reply["parts"]["realtime"], json!({ "groups": 0, "cells": 0 }));
    assert_eq!(served.get("/api/v1/live/active_user_5m").await.0, 503);
    served.service.refresh().await.unwrap();
    let (status, ready) = served.get("/readyz").await;
    assert_eq!((status, &ready["because"][0]), (503, &json!("the realtime view (Redis) can't be read")));
}

#[tokio::test]
async fn without_the_batch_view_there_is_no_answer() {
    let served = Served::new().await;
    assert_eq!(served.get("/readyz").await, (200, json!({ "ready": true, "because": [] })));
    served.batch.fail();
    let (status, reply) = served.post(views_of_all()).await;
    assert_eq!((status, &reply["error"]["code"]), (503, &json!("view_unavailable")));
    assert_eq!(served.get("/healthz").await.0, 200);
    // Live answers do without it.
    assert_eq!(served.get("/api/v1/live/active_user_5m").await.0, 200);
}

#[tokio::test]
async fn a_past_run_is_answered_by_its_batch_view_alone() {
    let served = Served::new().await;
    let all = served.world.tidemark(2, 1_000);
    served.batch.flip(all.clone(), 2, served.world.days(&all), served.world.batch(&all, 2));
    let mut request = views_of_all();
    request["at_run"] = json!(1);
    let (_, first) = served.post(request.clone()).await;
    request["at_run"] = json!(2);
    let (_, second) = served.post(request.clone()).await;
    let value = |reply: &Json| reply["rows"][0]["values"]["user_view_cnt"].as_u64().unwrap();
    assert!(value(&first) < value(&second));
    assert_eq!(
        (&first["tidemark"]["generation"], &first["parts"]["realtime"]["cells"]),
        (&json!(1), &json!(0))
    );
    request["at_run"] = json!(9);
    let (status, reply) = served.post(request).await;
    assert_eq!((status, &reply["error"]["code"]), (422, &json!("run_not_available")));
}

#[tokio::test]
async fn live_is_the_fold_of_the_window() {
    let served = Served::new().await;
    let events = fixed();
    let (status, reply) = served.get("/api/v1/live/active_user_5m?strict=true").await;
    assert_eq!(status, 200, "{reply}");
    let newest = events.iter().map(|event| event.time).max().unwrap();
    let end = newest.div_euclid(10_000) * 10_000 + 10_000;
    assert_eq!(
        (&reply["window_end"], &reply["window_start"]),
        (&json!(show(START + end)), &json!(show(START + end - 300_000)))
    );
    let inside: Vec<_> = events.iter().filter(|event| (end - 300_000..end).contains(&event.time)).collect();
    assert_eq!(reply["value"], 1, "{inside:?}");
    let (_, top) = served.get("/api/v1/live/geo_top?k=1").await;
    let geo = inside[0].geo.map_or(Json::Null, |geo| json!(format!("US>{geo}")));
    assert_eq!(top["items"], json!([{ "rank": 1, "item": { "geo_location": geo }, "value": inside.len() }]));
    let (_, none) = served.get("/api/v1/live/user_view_cnt_5m?uuid=nobody").await;
    assert_eq!(
        (&none["value"], &none["complete"], &none["key"]),
        (&json!(0), &json!(true), &json!({ "uuid": "nobody" }))
    );
}

#[tokio::test]
async fn what_never_reached_the_archive_is_missing_for_good() {
    let served = Served::new().await;
    let range = OffsetRange { from: 3, to: 9 };
    for (topic, complete) in [("events", true), ("page_views", false)] {
        let (tp, cause) = (TopicPartition::new(topic, 1), "log_truncated".to_owned());
        served.batch.lose(Lost { tp, range, cause });
        assert_eq!(served.post(views_of_all()).await.1["complete"], complete);
    }
}

#[tokio::test]
async fn a_live_answer_from_panes_that_are_not_whole_says_so() {
    let newest = START + fixed().iter().map(|event| event.time).max().unwrap();
    let changes: [&dyn Fn(&mut Header); 2] =
        [&|header| header.panes_from = Some(newest - 200_000), &|header| {
            header.pane_holes = vec![newest / 10_000 * 10_000]
        }];
    for change in changes {
        let served = Served::new().await;
        (0..4).for_each(|group| served.spoil(0, group, change));
        let (_, reply) = served.get("/api/v1/live/user_view_cnt_5m?uuid=u1").await;
        assert_eq!(reply["complete"], false, "{reply}");
    }
}

#[tokio::test]
async fn what_is_not_served_is_refused_in_one_shape() {
    let served = Served::new().await;
    let cases = [
        ("/nowhere", 404, "not_found"),
        ("/api/v1/live/nonsense", 404, "unknown_metric"),
        ("/api/v1/live/user_view_cnt_5m", 400, "invalid_request"),
        ("/api/v1/live/user_view_cnt_5m?user=1", 400, "invalid_request"),
        ("/api/v1/query", 400, "invalid_body"),
        ("/api/v1/query?q={}&p=1", 400, "invalid_body"),
    ];
    for (path, status, code) in cases {
        let (found, reply) = served.get(path).await;
        assert_eq!((found, &reply["error"]["code"]), (status, &json!(code)), "{path}");
        assert!(reply["error"]["message"].is_string() && reply["error"]["details"].is_array());
    }
    assert_eq!(served.status("put", "/api/v1/query").await, 405);
    let mut request = views_of_all();
    request["metrics"] = json!(["nonsense"]);
    assert_eq!(served.post(request).await.0, 404);
    request = views_of_all();
    request["from"] = json!(1);
    assert_eq!(served.post(request).await.0, 422);
    let broken = Request::post("/api/v1/query").body(Body::from("{\"metrics\"")).unwrap();
    assert_eq!(served.send(broken).await.0, 400);
    // At the limit it is read to its end, beyond it is not.
    for (spaces, says) in [(1 << 20, "EOF"), ((1 << 20) + 1, "limit is 1048576 bytes")] {
        let long = Request::post("/api/v1/query").body(Body::from(" ".repeat(spaces))).unwrap();
        let (status, reply) = served.send(long).await;
        assert_eq!((status, &reply["error"]["code"]), (400, &json!("invalid_body")));
        assert!(reply["error"]["message"].as_str().unwrap().contains(says), "{reply}");
    }
}

#[tokio::test]
async fn the_catalog_names_what_can_be_asked() {
    let served = Served::new().await;
    let (_, reply) = served.get("/api/v1/metrics").await;
    let metrics = reply["metrics"].as_array().unwrap();
    let geo = metrics.iter().find(|metric| metric["name"] == "geo_top_doc").unwrap();
    assert_eq!(geo["live_name"], "geo_top_doc_5m");
    assert_eq!(geo["by"], json!([{ "name": "geo_location", "type": "string" }]));
    assert_eq!(geo["item"], json!({ "name": "document_id", "type": "int" }));
    assert_eq!((&geo["grain"], &geo["window"], &geo["k"]), (&json!("1h"), &json!("5m"), &json!(10)));
    assert_eq!(reply["formulas"][0]["columns"][0], json!({ "name": "clicks", "metric": "user_click_cnt" }));
}

#[tokio::test]
async fn an_answer_that_would_grow_too_large_is_refused() {
    let mut served = Served::new().await;
    let mut request = views_of_all();
    request["group_by"] = json!(["uuid"]);
    let keys = served.post(request.clone()).await.1["rows"].as_array().unwrap().len();
    assert!(keys > 3);
    served.service.views.limits.max_cells = keys;
    assert_eq!(served.post(request.clone()).await.0, 200);
    // Of the cells of all queries, and of rows that are filled in.
    let twice = |times: usize| {
        let name = |i: usize| (i.to_string(), json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"] }));
        span(json!({ "queries": (0..times).map(name).collect::<serde_json::Map<_, _>>() }))
    };
    let filled = |hours: usize| {
        let to = show(START + hours as i64 * 3_600_000);
        json!({ "metrics": ["doc_cnt"], "from": "2016-06-15", "to": to, "granularity": "hour", "fill": true })
    };
    served.service.views.limits.max_cells = 2 * keys;
    for (request, expected) in
        [(twice(2), 200), (twice(3), 422), (filled(2 * keys), 200), (filled(2 * keys + 1), 422)]
    {
        assert_eq!(served.post(request.clone()).await.0, expected, "{request}");
    }
    let told = served.post(twice(3)).await.1["error"]["message"].to_string();
    assert!(
        (0..3)
            .any(|name| told.starts_with(&format!("\"with queries.{name} all answers together would hold"))),
        "{told}"
    );
    served.service.views.limits.max_cells = keys - 1;
    let (status, reply) = served.post(request).await;
    assert_eq!((status, &reply["error"]["code"]), (422, &json!("limit_exceeded")));
}
