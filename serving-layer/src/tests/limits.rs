//! Every limit of a request, at the limit and one beyond.

use super::world::{NOW, World, catalog, fixed};
use crate::Service;
use crate::error::ServeError;
use crate::live::LiveRequest;
use crate::query::{Limits, Request};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

fn refusal(request: &Json, limits: &Limits) -> String {
    match Request::parse(request.to_string().as_bytes(), Default::default(), &catalog(), limits, NOW) {
        Ok(_) => String::new(),
        Err(ServeError::Invalid(faults)) => {
            faults.iter().map(|fault| format!("{}: {}\n", fault.field, fault.message)).collect()
        }
        Err(other) => other.to_string(),
    }
}

#[test]
fn a_query_at_its_limits_is_answered_and_one_beyond_is_refused() {
    let check = |limit: usize, field: &str, value: &dyn Fn(usize) -> Json, expected: &str| {
        let request = |n: usize| {
            let mut request =
                json!({ "metrics": ["user_view_cnt"], "from": "2016-06-15", "to": "2016-06-16" });
            request[field] = value(n);
            request
        };
        let at = refusal(&request(limit), &Limits::default());
        assert!(!at.contains("limit"), "{field} at {limit}: {at}");
        let beyond = refusal(&request(limit + 1), &Limits::default());
        assert!(beyond.contains(expected), "{field} beyond {limit}: {beyond}");
    };
    let filter = json!({ "dimension": "uuid", "value": "a" });
    // Names that the catalog doesn't have: counted before they are looked up.
    check(20, "metrics", &|n| (0..n).map(|i| json!(format!("m{i}"))).collect(), "metrics: 21 are more");
    check(200, "metrics", &|n| json!(["m".repeat(n)]), "metrics: a name of 201 bytes is longer");
    check(200, "group_by", &|n| json!(["m".repeat(n)]), "group_by: a name of 201 bytes is longer");
    check(50, "filters", &|n| vec![filter.clone(); n].into(), "filters: 51 are more");
    check(50, "filters", &|n| json!({ "not": { "or": vec![filter.clone(); n] } }), "filters: 51 are more");
    check(50, "order", &|n| vec![json!({ "by": "bucket" }); n].into(), "order: 51 are more");
    check(
        1_000,
        "filters",
        &|n| json!([{ "dimension": "uuid", "op": "in", "values": vec!["a"; n] }]),
        "1001 values",
    );
    check(
        8_192,
        "filters",
        &|n| json!([{ "dimension": "uuid", "value": "a".repeat(n) }]),
        "a text of 8193 bytes",
    );
    check(100_000, "limit", &|n| json!(n), "limit: 100001 is more than the limit");
    check(
        1_000,
        "metrics",
        &|n| json!(["user_view_cnt", { "name": "x", "formula": format!("1{:>1$}", "+ 1", n - 1) }]),
        "metrics: formulas of 1001 bytes in all are more",
    );
}

#[test]
fn a_live_key_at_its_limit_is_answered_and_one_beyond_is_refused() {
    let catalog = catalog();
    let parse = |n: usize| {
        let parameters = [("uuid".to_owned(), "a".repeat(n))];
        LiveRequest::parse(catalog.live("user_view_cnt_5m").unwrap(), &parameters)
    };
    assert!(parse(8_192).is_ok());
    let Err(ServeError::Invalid(faults)) = parse(8_193) else { panic!("not refused") };
    assert_eq!(faults[0].message, "a text of 8193 bytes is longer than the limit of 8192");
}

#[test]
fn of_very_many_faults_a_hundred_are_reported() {
    let request: serde_json::Map<String, Json> = (0..5_000).map(|i| (format!("x{i}"), json!(i))).collect();
    assert_eq!(refusal(&request.into(), &Limits::default()).lines().count(), 100);
    let parameters: Vec<_> = (0..5_000).map(|i| (format!("x{i}"), String::new())).collect();
    let live = LiveRequest::parse(catalog().live("user_view_cnt_5m").unwrap(), &parameters);
    let Err(ServeError::Invalid(faults)) = live else { panic!("not refused") };
    assert_eq!(faults.len(), 100);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let (views, ..) = World::new(&fixed()).views(1, 3);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let running = tokio::spawn(crate::run(listener, Service::new(views, || NOW), stop.clone()));
    let status = async |head: String| {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // The answer may come before all is sent: the rest is then not wanted.
        let _ = connection.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await;
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await.unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    };
    let of_path = |length: usize| format!("GET /{} HTTP/1.1\r\nhost: a", "x".repeat(length - 1));
    assert_eq!(status(of_path(65_534)).await, "HTTP/1.1 404");
    assert_eq!(status(of_path(65_535)).await, "HTTP/1.1 414");
    let of_headers =
        |count: usize| format!("GET /healthz HTTP/1.1\r\nhost: a{}", "\r\nx: y".repeat(count - 2));
    assert_eq!(status(of_headers(100)).await, "HTTP/1.1 200");
    assert_eq!(status(of_headers(101)).await, "HTTP/1.1 431");
    assert_eq!(status(format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(1 << 20))).await, "HTTP/1.1 431");
    stop.cancel();
    running.await.unwrap().unwrap();
}
