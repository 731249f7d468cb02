//! Every limit of a request, at the limit and one beyond.

use super::world::catalog;
use crate::error::ServeError;
use crate::live::LiveRequest;
use crate::query::{Limits, Query};
use serde_json::{Value as Json, json};

fn refusal(request: &Json, limits: &Limits) -> String {
    match Query::parse(request.to_string().as_bytes(), &catalog(), limits) {
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
