//! Answers in every format say the same.

use super::over_http::Served;
use super::world::fixed;
use crate::router::router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use serde_json::{Value as Json, json};
use std::io::Read as _;
use tower::ServiceExt;

async fn sent(served: &Served, request: &Json, headers: &[(&str, &str)]) -> (HeaderMap, Vec<u8>) {
    let mut builder = Request::post("/api/v1/query");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let request = builder.body(Body::from(request.to_string())).unwrap();
    let response = router(served.service.clone()).oneshot(request).await.unwrap();
    let headers = response.headers().clone();
    (headers, to_bytes(response.into_body(), 1 << 26).await.unwrap().to_vec())
}

fn question() -> Json {
    json!({ "metrics": ["doc_mean", "geo_min", "doc_spread", { "name": "half", "formula": "doc_mean / 2.0" }], "group_by": ["uuid"], "granularity": "12h", "fill": true,
            "from": "2016-06-15", "to": "2016-06-17", "compare": "previous_day", "time_zone": "Asia/Tokyo" })
}

/// The fields of a line of CSV, with what stood in quotes told from what didn't.
fn fields(line: &str) -> Vec<(bool, String)> {
    let (mut fields, mut inside) = (vec![(false, String::new())], false);
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let (quoted, text) = fields.last_mut().unwrap();
        match character {
            '"' if inside && characters.peek() == Some(&'"') => text.push(characters.next().unwrap()),
            '"' => (*quoted, inside) = (true, !inside),
            ',' if !inside => fields.push((false, String::new())),
            other => text.push(other),
        }
    }
    fields
}

/// A value of a JSON answer as CSV has it.
fn expected(value: &Json) -> Vec<(bool, String)> {
    match value {
        Json::Null => vec![(false, String::new())],
        Json::String(text) => vec![(true, text.clone())],
        Json::Array(list) => list.iter().flat_map(expected).collect(),
        other => vec![(false, other.to_string())],
    }
}

#[tokio::test]
async fn csv_has_the_rows_of_json_and_its_promises_in_headers() {
    let served = Served::new().await;
    let (_, json_reply) = served.post(question()).await;
    let bounds = json!({ "doc_mean": 0.0, "geo_min": 0.0, "doc_spread": 0.0078125, "half": 0.0 });
    assert_eq!(json_reply["error_bound"], bounds);
    for (request, headers) in [
        (json!("csv"), vec![]),
        (Json::Null, vec![("accept", "text/html, text/csv;q=0.9, */*;q=0.8")]),
        (json!("csv"), vec![("accept", "application/json")]),
    ] {
        let mut question = question();
        question["format"] = request;
        let (headers, body) = sent(&served, &question, &headers).await;
        assert_eq!(headers["content-type"], "text/csv; charset=utf-8; header=present");
        assert_eq!((&headers["x-complete"], &headers["x-tidemark"]), (&json_text(true), &json_text(1)));
        assert_eq!(headers["x-total-rows"], json_reply["total_rows"].to_string());
        assert_eq!(headers["x-as-of"], json_reply["as_of"].as_str().unwrap());
        assert_eq!(headers["x-incomplete-because"], "");
        let text = String::from_utf8(body).unwrap();
        let mut lines = text.strip_suffix("\r\n").unwrap().split("\r\n");
        let spread = ["p50", "p95", "p99"].map(|q| format!("doc_spread.{q}"));
        let values: Vec<String> = ["doc_mean", "geo_min"]
            .map(str::to_owned)
            .into_iter()
            .chain(spread)
            .chain(["half".to_owned()])
            .collect();
        let previous = values.iter().map(|name| format!("previous.{name}"));
        let titles = ["bucket", "uuid"].map(str::to_owned).into_iter().chain(values.clone()).chain(previous);
        assert_eq!(fields(lines.next().unwrap()), titles.map(|title| (true, title)).collect::<Vec<_>>());
        for row in json_reply["rows"].as_array().unwrap() {
            let mut wanted = vec![(false, row["bucket"].as_str().unwrap().to_owned())];
            wanted.extend(expected(&row["key"]["uuid"]));
            for of in ["values", "previous"] {
                for name in ["doc_mean", "geo_min", "doc_spread", "half"] {
                    wanted.extend(expected(&row[of][name]));
                }
            }
            assert_eq!(fields(lines.next().unwrap()), wanted);
        }
        assert_eq!(lines.next(), None);
    }
}

fn json_text(value: impl ToString) -> axum::http::HeaderValue {
    value.to_string().parse().unwrap()
}

#[tokio::test]
async fn a_top_k_in_csv_has_its_ranks_and_tells_null_from_nothing() {
    let served = Served::new().await;
    let mut question =
        json!({ "metrics": ["geo_top"], "from": "2016-06-15", "to": "2016-06-17", "format": "csv" });
    let (_, body) = sent(&served, &question, &[]).await;
    let mut counts = std::collections::BTreeMap::new();
    fixed().iter().for_each(|event| *counts.entry(event.geo).or_insert(0) += 1);
    let text = String::from_utf8(body).unwrap();
    assert!(
        text.starts_with("\"bucket\",\"rank\",\"geo_location\",\"geo_top\"\r\n2016-06-15T00:00:00.000Z,1,")
    );
    let null = format!(",,{}\r\n", counts[&None]);
    assert!(text.contains(&null) && text.contains(",\"US>1\","), "{text}");
    question["filters"] = json!([{ "dimension": "geo_location", "value": "no \"such\" place" }]);
    let (headers, body) = sent(&served, &question, &[]).await;
    assert_eq!(headers["x-total-rows"], "0");
    assert_eq!(String::from_utf8(body).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn ndjson_is_the_envelope_and_then_each_row() {
    let served = Served::new().await;
    let (_, whole) = served.post(question()).await;
    for accept in ["application/x-ndjson", "application/jsonl"] {
        let (headers, body) = sent(&served, &question(), &[("accept", accept)]).await;
        assert_eq!(headers["content-type"], "application/x-ndjson");
        let text = String::from_utf8(body).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        let mut envelope = lines.next().unwrap()["envelope"].clone();
        envelope["rows"] = lines.collect();
        assert_eq!(envelope, whole);
    }
}

#[tokio::test]
async fn what_is_long_is_sent_in_pieces_and_compressed_where_that_is_accepted() {
    let mut served = Served::new().await;
    served.service.views.limits.max_rows = 1_000_000;
    let question = |format: &str| {
        json!({ "metrics": ["doc_cnt"], "granularity": "5m", "fill": true, "from": "2016-06-15", "to": "2016-07-15",
                "limit": 1_000_000, "format": format })
    };
    for format in ["json", "csv", "ndjson"] {
        let (headers, plain) = sent(&served, &question(format), &[]).await;
        assert!(plain.len() > 3 << 16 && !headers.contains_key("content-encoding"), "{format}");
        let accepts = [("accept-encoding", "gzip")];
        let (headers, packed) = sent(&served, &question(format), &accepts).await;
        assert_eq!(headers["content-encoding"], "gzip", "{format}");
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == plain && packed.len() * 5 < plain.len(), "{format}");
    }
    let query = Request::post("/api/v1/query").body(Body::from(question("csv").to_string())).unwrap();
    let response = router(served.service.clone()).oneshot(query).await.unwrap();
    let pieces: Vec<_> = futures::StreamExt::collect::<Vec<_>>(response.into_body().into_data_stream()).await;
    assert!(pieces.len() > 3, "{} pieces", pieces.len());
}

#[tokio::test]
async fn a_request_is_named_in_the_answer_whatever_its_format() {
    let served = Served::new().await;
    for format in ["json", "csv", "ndjson"] {
        let mut question = question();
        question["format"] = json!(format);
        let (headers, _) = sent(&served, &question, &[("x-query-id", "tile-7")]).await;
        assert_eq!(headers["x-query-id"], "tile-7");
    }
    let mut many =
        json!({ "from": "2016-06-15", "to": "2016-06-17", "queries": { "a": { "metrics": ["doc_cnt"] } } });
    let (_, body) = sent(&served, &many, &[("accept", "text/csv, application/json")]).await;
    let reply: Json = serde_json::from_slice(&body).unwrap();
    assert!(reply["answers"]["a"]["complete"].is_boolean(), "{reply}");
    many["format"] = json!("csv");
    let (_, body) = sent(&served, &many, &[]).await;
    let reply: Json = serde_json::from_slice(&body).unwrap();
    assert_eq!(reply["error"]["details"][0]["field"], "format");
}
