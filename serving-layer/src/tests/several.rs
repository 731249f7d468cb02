//! Several queries in one request: what they have in common, and that all are answered of the same records.

use super::over_http::Served;
use super::world::{START, World, fixed, with};
use crate::answer::answer;
use crate::finish::Row;
use crate::query::{At, Limits, Request};
use crate::realtime_view::{Group, Marks, RealtimeError, RealtimeView, Want};
use futures::future::BoxFuture;
use serde_json::{Value as Json, json};
use shared_model::aggregate::Finished;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn dashboard() -> Json {
    json!({
        "from": "2016-06-15", "to": "2016-06-17", "time_zone": "Europe/Berlin",
        "filters": [{ "dimension": "uuid", "op": "<", "value": "u3" }],
        "queries": {
            "views": { "metrics": ["user_view_cnt"] },
            "by user": { "metrics": ["user_view_cnt"], "group_by": ["uuid"] },
            "one": { "metrics": ["user_view_cnt"], "filters": [{ "dimension": "uuid", "value": "u1" }] },
            "first day": { "metrics": ["user_view_cnt"], "to": "2016-06-16", "from": "2016-06-15" },
        }
    })
}

#[tokio::test]
async fn queries_of_one_request_share_filters_span_and_tidemark() {
    let served = Served::new().await;
    let (status, reply) = served.post(dashboard()).await;
    assert_eq!((status, &reply["complete"], &reply["tidemark"]), (200, &json!(true), &json!(1)), "{reply}");
    let value = |name: &str| reply["answers"][name]["rows"][0]["values"]["user_view_cnt"].as_u64().unwrap();
    // Days of Berlin begin two hours earlier.
    let shown = |day: i64| START - 7_200_000 + day * 86_400_000;
    let naive = |days: i64, users: std::ops::Range<i64>| {
        let inside = |time: i64| (shown(0)..shown(days)).contains(&(START + time));
        let of = fixed().into_iter().filter(|event| !event.click && users.contains(&event.user));
        of.filter(|event| inside(event.time)).count() as u64
    };
    assert_eq!(value("views"), naive(2, 0..3));
    assert_eq!(value("one"), naive(2, 1..2));
    assert_eq!(value("first day"), naive(1, 0..3));
    assert!(naive(1, 0..3) < naive(2, 0..3));
    let rows = reply["answers"]["by user"]["rows"].as_array().unwrap();
    let sum: u64 = rows.iter().map(|row| row["values"]["user_view_cnt"].as_u64().unwrap()).sum();
    assert_eq!((rows.len(), sum), (3, value("views")));
    for (_, answer) in reply["answers"].as_object().unwrap() {
        assert_eq!(
            (&answer["tidemark"]["generation"], &answer["time_zone"]),
            (&json!(1), &json!("Europe/Berlin"))
        );
    }
}

#[tokio::test]
async fn faults_name_the_query_that_they_are_in_and_what_is_common_once() {
    let served = Served::new().await;
    let fields = async |request: Json| {
        let (_, reply) = served.post(request).await;
        let details = reply["error"]["details"].as_array().unwrap_or_else(|| panic!("{reply}")).clone();
        details.iter().map(|fault| fault["field"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut request = dashboard();
    request["time_zone"] = json!("Mars");
    request["limit"] = json!(3);
    request["queries"]["one"]["granularity"] = json!("often");
    request["queries"]["views"]["strict"] = json!(true);
    let found = fields(request).await;
    assert_eq!(found, ["limit", "time_zone", "queries.one.granularity", "queries.views.strict"]);
    let mut request = dashboard();
    request["queries"] = json!({ "docs": { "metrics": ["doc_cnt"] }, "no": 3 });
    assert_eq!(fields(request).await, ["filters[0].dimension", "queries.no"]);
    let many = |n: usize| {
        let query = |i: usize| (i.to_string(), json!({ "metrics": ["doc_cnt"] }));
        json!({ "from": "2016-06-15", "to": "2016-06-17",
                "queries": (0..n).map(query).collect::<serde_json::Map<_, _>>() })
    };
    assert_eq!(fields(many(0)).await, ["queries"]);
    assert_eq!(fields(many(21)).await, ["queries"]);
    assert_eq!(served.post(many(20)).await.0, 200);
}

#[tokio::test]
async fn one_incomplete_answer_makes_a_strict_request_an_error() {
    let served = Served::new().await;
    served.spoil(1, 2, |header| header.metrics.clear());
    let (status, reply) = served.post(dashboard()).await;
    assert_eq!((status, &reply["complete"]), (200, &json!(false)));
    let mut strict = dashboard();
    strict["strict"] = json!(true);
    let (status, reply) = served.post(strict).await;
    assert_eq!((status, &reply["error"]["code"]), (503, &json!("incomplete")));
}

/// A realtime view that moves on with every group that is read of it.
struct Moving {
    worlds: Vec<Arc<dyn RealtimeView>>,
    reads: AtomicUsize,
}

impl RealtimeView for Moving {
    fn group<'a>(
        &'a self,
        key: &'a str,
        want: Want,
    ) -> BoxFuture<'a, Result<Option<Arc<Group>>, RealtimeError>> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        self.worlds[read.min(self.worlds.len() - 1)].group(key, want)
    }

    fn marks(&self) -> BoxFuture<'_, Result<Marks, RealtimeError>> {
        self.worlds[0].marks()
    }
}

#[tokio::test]
async fn queries_of_one_request_count_the_same_records_while_the_realtime_view_moves_on() {
    let events = fixed();
    let (mut views, ..) = World::new(&events[..60]).views(1, 1);
    let worlds =
        (0..40).map(|read| -> Arc<dyn RealtimeView> { World::new(&events[..60 + read]).views(1, 1).2 });
    let moving = Arc::new(Moving { worlds: worlds.collect(), reads: AtomicUsize::new(0) });
    views.realtime = moving.clone();
    let query = |more: Json| with(&json!({ "metrics": ["doc_cnt"] }), &more);
    let request = json!({ "from": "2016-06-15", "to": "2016-06-17", "queries": {
        "all": query(json!({})), "by document": query(json!({ "group_by": ["document_id"] })),
        "by day": query(json!({ "granularity": "day" })), "compared": query(json!({ "compare": "previous_day" })),
    } });
    let request = Request::parse(
        request.to_string().as_bytes(),
        Default::default(),
        &views.catalog,
        &Limits::default(),
        0,
    )
    .unwrap();
    let answers = answer(&views, &request.queries, At::Now).await.unwrap();
    let sum = |rows: &[Row]| {
        let value = |row: &Row| if let Finished::Int(count) = row.values[0] { count } else { 0 };
        rows.iter().map(value).sum::<i64>()
    };
    let sums: Vec<i64> = answers.iter().map(|answer| sum(&answer.rows.rows)).collect();
    assert!(sums[0] > 0 && sums.iter().all(|found| *found == sums[0]), "{sums:?}");
    // Two partitions with four groups each, whatever the number of queries.
    assert_eq!(moving.reads.load(Ordering::Relaxed), 8);
    assert_eq!(answers[0].at.tidemark.cuts.values().map(|cut| cut.epoch).max(), Some(1));
}
