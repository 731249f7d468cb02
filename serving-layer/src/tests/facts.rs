//! Records behind values: they are those that a run counted, page by page; and what is lacking is said.

use super::access::{Guarded, key};
use super::over_http::Served;
use super::world::{catalog, fixed, span, with};
use crate::access::Scope;
use axum::http::Request;
use serde_json::{Value as Json, json};
use shared_model::catalog::Catalog;
use std::sync::Arc;

const FACTS: &str = "/api/v1/facts";

async fn kept(streams: &[&str]) -> Served {
    let served = Served::new().await;
    served.keep(streams);
    served
}

/// Records of all, by their places in the log.
fn places(reply: &Json) -> Vec<String> {
    let rows = reply["rows"].as_array().unwrap().iter();
    rows.map(|row| format!("{}/{}/{}", row["topic"], row["partition"], row["offset"])).collect()
}

#[tokio::test]
async fn the_records_are_those_that_a_run_counted() {
    let served = kept(&["page_views", "events"]).await;
    let first_day = json!({ "from": "2016-06-15", "to": "2016-06-16" });
    let users = json!({ "filters": [{ "dimension": "uuid", "op": "in", "values": ["u1", "u3"] }] });
    let documents = json!({ "filters": { "not": { "dimension": "document_id", "op": "<", "value": 3 } } });
    let place = json!({ "filters": [{ "dimension": "geo_location", "value": "US>1" }] });
    let nowhere = json!({ "filters": [{ "dimension": "geo_location", "op": "is_null" }] });
    for (metric, narrowed) in [
        ("user_view_cnt", vec![json!({}), first_day.clone(), users.clone()]),
        ("user_click_cnt", vec![json!({}), with(&users, &first_day)]),
        ("doc_cnt", vec![json!({}), documents]),
        ("geo_top", vec![place.clone(), with(&place, &first_day), nowhere]),
    ] {
        for narrowed in narrowed {
            let asked = with(&span(json!({ "metrics": [metric] })), &narrowed);
            let (status, counted) = served.post(with(&asked, &json!({ "at_run": 1 }))).await;
            assert_eq!(status, 200, "{counted}");
            let counted = counted["rows"][0]["values"][metric].as_u64().unwrap();
            assert!(counted > 3, "{asked}: {counted}");
            let (status, reply) = served.post_to(FACTS, asked.clone()).await;
            assert_eq!((status, &reply["complete"]), (200, &json!(true)), "{asked}: {reply}");
            assert_eq!(reply["row_count"].as_u64(), Some(counted), "{asked}");
            assert_eq!((&reply["more"], &reply["run"]), (&json!(false), &json!(1)));
            let rows = reply["rows"].as_array().unwrap();
            for row in rows {
                let time = row["event_time"].as_str().unwrap();
                assert!(reply["from"].as_str().unwrap() <= time && time < reply["to"].as_str().unwrap());
                let columns = row["key"].as_object().unwrap();
                assert!(columns.iter().all(|(name, value)| row["fields"][name] == *value), "{row}");
                assert_eq!(row["event"].as_str().unwrap().len(), 32);
            }
            let of_stream = |stream: &str| {
                let times = rows.iter().filter(|row| row["stream"] == stream);
                times.map(|row| row["event_time"].as_str().unwrap()).collect::<Vec<_>>()
            };
            assert!(["page_views", "events"].iter().all(|stream| of_stream(stream).is_sorted()));
        }
    }
}

#[tokio::test]
async fn pages_are_the_whole_in_pieces() {
    let served = kept(&["page_views", "events"]).await;
    let asked = span(json!({ "metrics": ["active_user"] }));
    let whole = places(&served.post_to(FACTS, with(&asked, &json!({ "limit": 10_000 }))).await.1);
    assert!(whole.len() > 50);
    let (mut pages, mut offset) = (Vec::new(), 0);
    loop {
        let page = with(&asked, &json!({ "limit": 17, "offset": offset }));
        let (_, reply) = served.post_to(FACTS, page).await;
        pages.extend(places(&reply));
        offset += 17;
        assert_eq!(reply["more"], json!(whole.len() > offset));
        if reply["more"] == false {
            break;
        }
    }
    assert_eq!(pages, whole);
    let (_, none) = served.post_to(FACTS, with(&asked, &json!({ "limit": 0 }))).await;
    assert_eq!((&none["row_count"], &none["more"]), (&json!(0), &json!(true)));
}

#[tokio::test]
async fn what_facts_lack_is_said() {
    let mut served = kept(&["page_views"]).await;
    let asked = |metric: &str| span(json!({ "metrics": [metric] }));
    assert_eq!(served.post_to(FACTS, asked("user_view_cnt")).await.1["complete"], true);
    let (_, reply) = served.post_to(FACTS, asked("geo_top")).await;
    let why = reply["incomplete_because"][0].as_str().unwrap();
    assert!(why.contains("stream events has records that its facts lack (2016-06-15"), "{why}");
    assert!(reply["row_count"].as_u64() > Some(10), "{reply}");
    let strict = with(&asked("geo_top"), &json!({ "strict": true }));
    assert_eq!(served.post_to(FACTS, strict).await.1["error"]["code"], "incomplete");

    // A stream that keeps none.
    let text = include_str!("catalog.toml").replace("topic = \"events\"\nfacts = true", "topic = \"events\"");
    served.service.views.catalog = Arc::new(Catalog::from_toml(&text).unwrap());
    assert!(
        catalog().stream("events").unwrap().facts
            && !served.service.views.catalog.stream("events").unwrap().facts
    );
    let (_, reply) = served.post_to(FACTS, asked("geo_top")).await;
    let why = "stream events keeps no records (facts = true in the catalog)";
    assert_eq!(reply["incomplete_because"], json!([why]));
    let (status, reply) = served.post_to(FACTS, asked("doc_cnt")).await;
    assert_eq!(status, 422, "{reply}");
    let message = reply["error"]["details"][0]["message"].as_str().unwrap();
    assert!(message.contains("no stream of doc_cnt keeps its records: say facts = true"), "{message}");
    let listed = served.get("/api/v1/metrics").await.1;
    let facts = |name: &str| {
        let metric = listed["metrics"].as_array().unwrap().iter().find(|metric| metric["name"] == name);
        metric.unwrap()["facts"].clone()
    };
    assert_eq!((facts("geo_top"), facts("doc_cnt")), (json!(true), json!(false)));
    assert!(fixed().iter().any(|event| event.click));
}

/// Records show every field: who may read a metric's values may not read them.
#[tokio::test]
async fn only_an_admin_of_the_metric_sees_its_records() {
    let one = Scope { metrics: ["user_view_cnt".to_owned()].into(), ..Scope::default() };
    let reader = key("reader", |_| {});
    let admin = key("admin", |key| (key.grants.read, key.grants.admin) = (Scope::default(), one.clone()));
    let tests = json!([{ "dimension": "uuid", "value": "u1" }]);
    let partner = key("partner", |key| {
        (key.grants.admin, key.grants.rows) = (one, serde_json::from_value(tests).unwrap());
    });
    let guarded = Guarded::new(&[reader.clone(), admin.clone(), partner.clone()]).await;
    let ask = async |token: &str, metric: &str| {
        let body = span(json!({ "metrics": [metric] })).to_string();
        let (status, _, text) = guarded.send(Some(token), Request::post(FACTS), body).await;
        (status, text)
    };
    assert_eq!(ask(&admin.1.reveal(), "user_view_cnt").await.0, 200);
    for (token, metric) in [(&reader, "user_view_cnt"), (&partner, "user_view_cnt"), (&admin, "doc_cnt")] {
        let (status, text) = ask(&token.1.reveal(), metric).await;
        assert!(status == 403 && !text.contains("u1"), "{}: {status} {text}", token.0.name);
    }
}
