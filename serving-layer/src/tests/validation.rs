//! Which requests are refused, and with which faults: all of them at once.

use super::world::{NOW, catalog};
use crate::error::ServeError;
use crate::live::LiveRequest;
use crate::query::{At, Limits, Request};
use serde_json::{Value as Json, json};

fn faults(request: Json) -> Vec<String> {
    match Request::parse(
        request.to_string().as_bytes(),
        Default::default(),
        &catalog(),
        &Limits::default(),
        NOW,
    ) {
        Ok(_) => Vec::new(),
        Err(ServeError::Invalid(faults)) => {
            faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
        }
        Err(other) => vec![other.to_string()],
    }
}

#[test]
fn each_fault_is_named() {
    let base = || json!({ "metrics": ["user_view_cnt"], "from": "2016-06-15", "to": "2016-06-16" });
    let with = |name: &str, value: Json| {
        let mut request = base();
        request[name] = value;
        request
    };
    let ranged = |range: Json, zone: &str| json!({ "metrics": ["user_view_cnt"], "time_range": range, "time_zone": zone });
    assert_eq!(faults(base()), Vec::<String>::new());
    assert_eq!(faults(ranged(json!("last 6 hours"), "Asia/Kolkata")), Vec::<String>::new());
    let cases = [
        (with("metrics", json!(["nonsense"])), "metrics[0]: the catalog has no metric"),
        (with("metrics", json!([])), "metrics: expected at least one"),
        (
            with("metrics", json!(["user_view_cnt", "features_20m"])),
            "metrics[1]: the formula features_20m is queried alone",
        ),
        (
            with("metrics", json!(["user_view_cnt", "geo_top"])),
            "metrics: the top_k metric geo_top is queried alone",
        ),
        (
            with("metrics", json!(["user_view_cnt", "user_view_cnt_5m"])),
            "metrics[1]: user_view_cnt is named twice",
        ),
        (
            with("metrics", json!(["user_view_cnt", { "name": "twice", "formula": "2 * views" }])),
            "metrics[1].formula: unknown field \"views\"",
        ),
        (
            with("metrics", json!(["user_view_cnt", { "name": "x", "formula": "user_view_cnt like 'a'" }])),
            "metrics[1].formula: ",
        ),
        (
            with("metrics", json!(["user_view_cnt", { "name": "user_view_cnt", "formula": "1 + 1" }])),
            "metrics[1].name: user_view_cnt is a column of the answer already",
        ),
        (
            with("metrics", json!(["user_view_cnt", { "name": "x", "share_of": "active_user" }])),
            "metrics[1].share_of: \"active_user\" is no count or sum of this query",
        ),
        (
            with(
                "metrics",
                json!(["user_view_cnt", { "name": "x", "share_of": "user_view_cnt", "formula": "1" }]),
            ),
            "metrics[1].formula: give formula or share_of, not both",
        ),
        (with("limit_by", json!(3)), "limit_by: expected {"),
        (
            with("limit_by", json!({ "columns": ["uuid"], "limit": 1 })),
            "limit_by.columns[0]: \"uuid\" is neither",
        ),
        (
            with("limit_by", json!({ "columns": "bucket", "limit": 0 })),
            "limit_by.limit: expected a whole number from 1",
        ),
        (with("limit_by", json!({ "limit": 1 })), "limit_by.columns: expected a list of columns"),
        (with("metrics", json!(["user_view_cnt", { "name": "x" }])), "metrics[1].formula: expected a text"),
        (with("metrics", json!([{ "name": "x", "formula": "1" }])), "metrics: expected at least one"),
        (
            with("metrics", json!(["user_view_cnt", 3, { "name": "x", "formula": "1" }])),
            "metrics: expected a list of names, and of",
        ),
        (with("group_by", json!(["document_id"])), "group_by[0]: \"document_id\" is no key column"),
        (
            with("from", json!("2016-06-15T00:10:00Z")),
            "from: 2016-06-15T00:10:00.000Z is no multiple of the grain, 20m",
        ),
        (with("from", json!("yesterday")), "from: \"yesterday\" is no time"),
        (with("to", json!("2016-06-15")), "to: must be later than from"),
        (ranged(json!("tomorrow"), "UTC"), "time_range: \"tomorrow\" is no range of time"),
        (with("now", json!("soon")), "now: \"soon\" is no time"),
        (with("granularity", json!("30m")), "granularity: must be a multiple of the grain, 20m"),
        (with("granularity", json!("often")), "granularity: \"often\" is no granularity"),
        (
            with("rolling", json!("7 fortnights")),
            "rolling: \"7 fortnights\" is no length of time like 7 days",
        ),
        (with("rolling", json!(7)), "rolling: 7 is no length of time"),
        (with("rolling", json!("30 minutes")), "rolling: must reach back over a whole bucket"),
        (
            with("rolling", json!("1441 minutes")),
            "rolling: the boundary at 2016-06-14T23:59:00.000Z (UTC) is no multiple",
        ),
        (
            json!({ "metrics": ["user_view_cnt"], "from": "2016-06-15", "to": "2016-06-16", "rolling": "2 days",
                    "cumulative": true }),
            "rolling: give rolling or cumulative, not both",
        ),
        (with("time_zone", json!("Mars/Olympus")), "time_zone: \"Mars/Olympus\" is no IANA"),
        (with("limit", json!(-1)), "limit: -1 is no whole number"),
        (with("limit", json!(10_000_000)), "limit: 10000000 is more than the limit"),
        (with("k", json!(3)), "k: only a top_k metric"),
        (with("strict", json!("yes")), "strict: \"yes\" is neither"),
        (with("order", json!([{ "by": "uuid" }])), "order[0].by: \"uuid\" is no column of the answer"),
        (with("filters", json!([{ "dimension": "uuid", "value": 7 }])), "filters[0].value: 7 is no string"),
        (
            with("filters", json!([{ "dimension": "uuid", "value": null }])),
            "filters[0].value: null compares with nothing",
        ),
        (with("filters", json!([{ "dimension": "uuid", "op": "~" }])), "filters[0].op: unknown operator"),
        (
            with("filters", json!([{ "dimension": "uuid", "op": "between", "value": ["a"] }])),
            "between takes two values",
        ),
        (with("filters", json!([{ "dimension": "uuid", "op": "like", "value": "a\\" }])), "lone backslash"),
        (
            with("order", json!([{ "by": "previous.user_view_cnt" }])),
            "order[0].by: \"previous.user_view_cnt\" is no column",
        ),
        (with("order", json!([{ "by": "bucket", "dir": "asc" }])), "order[0].dir: unknown field"),
        (with("compare", json!("last_year")), "compare: \"last_year\" is none of what may stand here"),
        (with("fill", json!(1)), "fill: 1 is neither"),
        (
            with("having", json!([{ "column": "uuid", "value": 1 }])),
            "having[0].column: \"uuid\" is no value column",
        ),
        (
            with("having", json!({ "column": "user_view_cnt", "op": ">", "value": 2.5 })),
            "having.value: 2.5 is no int",
        ),
        (with("as_of", json!("lately")), "as_of: \"lately\" is no time"),
        (with("filters", json!([3])), "filters[0]: expected a test such as"),
        (with("filters", json!([{ "or": [] }])), "filters[0].or: expected a list of at least one"),
        (with("filters", json!({ "not": [1] })), "filters.not: expected a test such as"),
        (
            with("filters", json!([{ "or": [{ "not": { "dimension": "uuid", "value": 7 } }] }])),
            "filters[0].or[0].not.value: 7 is no string",
        ),
        (
            with("filters", json!({ "and": [{ "dimension": "uuid", "value": "a" }], "dimension": "uuid" })),
            "filters.dimension: unknown field",
        ),
        (with("group", json!(["uuid"])), "group: unknown field"),
    ];
    for (request, expected) in cases {
        let found = faults(request.clone());
        assert!(found.len() == 1 && found.join("; ").contains(expected), "{request}: {found:?}");
    }
}

#[test]
fn more_buckets_than_can_be_listed_are_refused_where_they_must_be() {
    let request = |more: &[(&str, Json)], to: &str| {
        let mut request =
            json!({ "metrics": ["doc_cnt"], "from": "2016-01-01", "to": to, "granularity": "5m" });
        more.iter().for_each(|(name, value)| request[*name] = value.clone());
        faults(request)
    };
    let (fill, compare) = (("fill", json!(true)), ("compare", json!("previous_period")));
    let zone = ("time_zone", json!("Europe/Berlin"));
    assert_eq!(request(&[], "2017-01-01"), Vec::<String>::new());
    // 100,000 are 347 days and 5 hours 20 minutes.
    assert_eq!(request(&[fill.clone(), compare.clone()], "2016-12-13T05:20"), Vec::<String>::new());
    for (field, more) in [("fill", fill), ("compare", compare), ("granularity", zone)] {
        let expected = format!("{field}: more than 100000 buckets: ask for wider ones or a shorter span");
        assert_eq!(request(&[more], "2016-12-13T05:25"), [expected]);
    }
}

#[test]
fn what_has_no_answer_is_refused() {
    let base = |metric: &str, more: (&str, Json)| {
        let mut request = json!({ "metrics": [metric], "from": "2016-06-15", "to": "2016-06-16" });
        request[more.0] = more.1;
        faults(request)
    };
    let lists = base("doc_spread", ("having", json!([{ "column": "doc_spread", "op": ">", "value": 1 }])));
    assert_eq!(lists, ["having[0].column: the values of doc_spread are lists, which compare with nothing"]);
    assert_eq!(
        base("geo_top", ("fill", json!(true))),
        ["fill: a top_k has no items where there is nothing to rank"]
    );
}

#[test]
fn a_range_that_the_grain_makes_impossible_names_the_grain() {
    let found = faults(json!({
        "metrics": ["user_view_cnt"], "time_range": "today", "time_zone": "Asia/Kolkata", "granularity": "hour"
    }));
    let start = "time_range: 2016-06-15T00:00:00.000+05:30 is no multiple of the grain, 20m: the nearest are";
    assert!(found[0].starts_with(start), "{found:?}");
    let hour = "granularity: the boundary at 2016-06-15T01:00:00.000+05:30 (Asia/Kolkata) is no multiple of the grain, 20m";
    assert!(found[2].starts_with(hour), "{found:?}");
}

#[test]
fn a_past_time_is_of_the_requests_zone() {
    let request = json!({
        "metrics": ["user_view_cnt"], "from": "2016-06-15", "to": "2016-06-16", "time_zone": "Asia/Tokyo",
        "as_of": "2016-06-16T15:00",
    });
    let body = request.to_string();
    let parsed = Request::parse(body.as_bytes(), Default::default(), &catalog(), &Limits::default(), NOW);
    // 2016-06-16T06:00:00Z
    assert_eq!(parsed.unwrap().at, At::Time(1_466_056_800_000));
}

#[test]
fn a_range_and_ends_are_too_much() {
    let found = faults(json!({
        "metrics": ["user_view_cnt"], "time_range": "today", "from": "2016-06-15", "to": "2016-06-16"
    }));
    let expected = ["from", "to"].map(|end| format!("{end}: give from and to, or time_range, not both"));
    assert_eq!(found, expected);
}

#[test]
fn all_faults_are_reported_together() {
    let found = faults(json!({
        "metrics": ["user_view_cnt"], "from": "2016-06-15T00:10:00Z", "group_by": ["x", "uuid", "uuid"],
        "filters": [{ "dimension": "uuid", "op": "in", "values": [] }, 3], "limit": "all", "orders": []
    }));
    let fields: Vec<&str> = found.iter().filter_map(|fault| fault.split(": ").next()).collect();
    assert_eq!(
        fields,
        ["orders", "group_by[0]", "group_by[2]", "filters[0].value", "filters[1]", "from", "to", "limit"]
    );
}

#[test]
fn a_live_request_names_its_whole_key_and_nothing_else() {
    let catalog = catalog();
    let check = |name: &str, parameters: &[(&str, &str)], expected: Result<&[&str], &str>| {
        let owned: Vec<_> =
            parameters.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let parsed = LiveRequest::parse(catalog.live(name).unwrap(), &owned);
        let found = match &parsed {
            Ok(request) => Ok(request.by.iter().map(ToString::to_string).collect::<Vec<_>>()),
            Err(ServeError::Invalid(faults)) => {
                Err(faults.iter().map(|f| f.field.clone()).collect::<Vec<_>>().join(" "))
            }
            Err(other) => Err(other.to_string()),
        };
        let expected =
            expected.map(|by| by.iter().map(|by| (*by).to_owned()).collect()).map_err(str::to_owned);
        assert_eq!(found, expected, "{name} {parameters:?}");
    };
    check("user_view_cnt_5m", &[("uuid", "u1")], Ok(&["u1"]));
    check("user_view_cnt_5m", &[("uuid", "\\N")], Ok(&["NULL"]));
    check("user_view_cnt_5m", &[], Err("uuid"));
    check("user_view_cnt_5m", &[("user", "u1"), ("k", "3")], Err("user k uuid"));
    check("doc_cnt_5m", &[("document_id", "x")], Err("document_id"));
    check("doc_cnt_5m", &[("document_id", "7"), ("strict", "true")], Ok(&["7"]));
    check("geo_top_5m", &[("k", "3")], Ok(&[]));
    check("active_user_5m", &[], Ok(&[]));
}
