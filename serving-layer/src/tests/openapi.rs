//! The document against what it describes: requests, replies, routes and errors.

use super::law::queries;
use super::over_http::Served;
use super::schema::Judge;
use super::world::{NOW, catalog, span};
use crate::error::{FaultKind, ServeError};
use crate::openapi::{document, page};
use crate::query::{Limits, Request};
use serde_json::{Map, Value as Json, json};
use shared_model::catalog::Catalog;
use std::collections::BTreeSet;

fn described() -> Json {
    document(&catalog(), &Limits::default())
}

fn parse(catalog: &Catalog, request: &Json) -> Result<Request, ServeError> {
    let (text, limits) = (request.to_string(), Limits::default());
    Request::parse(text.as_bytes(), Default::default(), catalog, &limits, NOW)
}

/// What of a request's form is refused.
fn malformed(catalog: &Catalog, request: &Json) -> Vec<String> {
    match parse(catalog, request) {
        Ok(_) => Vec::new(),
        Err(ServeError::Invalid(faults)) => {
            let of_form = faults.iter().filter(|fault| fault.kind == FaultKind::Malformed);
            of_form.map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
        }
        Err(other) => vec![other.to_string()],
    }
}

/// A request that has every field.
fn all_fields() -> Json {
    json!({
        "metrics": ["user_view_cnt", "user_click_cnt", { "name": "ctr", "formula": "cast(user_click_cnt as float) / user_view_cnt" },
                    { "name": "share", "share_of": "user_view_cnt" }],
        "group_by": ["uuid"], "from": "2016-06-15", "to": "2016-06-17T00:00:00Z", "now": 1_465_948_800_000_i64,
        "time_zone": "Europe/Berlin", "granularity": "6h", "fill": true, "compare": "previous_day",
        "rolling": "2 days", "cumulative": false, "limit_by": { "columns": ["bucket"], "limit": 3 },
        "filters": [{ "or": [{ "dimension": "uuid", "op": "in", "values": ["u1", "u2"] },
                             { "not": { "dimension": "uuid", "op": "is_null" } }] },
                    { "dimension": "uuid", "op": "like", "value": "u%" },
                    { "and": [{ "dimension": "uuid", "op": "between", "values": ["a", "z"] }] }],
        "having": [{ "column": "previous.ctr", "op": ">=", "value": 0.5 }, { "column": "user_view_cnt", "value": 3 }],
        "order": [{ "by": "user_view_cnt", "desc": true }, { "by": "uuid" }],
        "limit": 10, "offset": 5, "strict": true, "at_run": 1, "format": "ndjson",
    })
}

/// Requests of all kinds that are answered.
fn requests() -> Vec<Json> {
    let mut requests: Vec<Json> = queries().into_iter().map(span).collect();
    // Their form is what the document says but for one: a condition alone, which is a list of one.
    for request in &mut requests {
        if let Some(one) = request.get("filters").filter(|filters| filters.is_object()).cloned() {
            request["filters"] = json!([one]);
        }
    }
    let part = json!({ "metrics": ["doc_cnt"], "granularity": "hour", "fill": true });
    requests.extend([
        all_fields(),
        json!({ "metrics": ["doc_cnt"], "time_range": "last 6 hours", "as_of": "2016-06-15T00:10:00Z", "k": 3 }),
        json!({ "metrics": ["geo_top"], "time_range": "today so far", "k": 3, "order": [{ "by": "rank" }] }),
        json!({ "queries": { "a": part, "b": { "metrics": ["geo_top"], "k": 2, "from": 1_465_948_800_000_i64, "to": "2016-06-16" } },
                "time_range": "this week", "time_zone": "Asia/Tokyo", "filters": [], "strict": false, "as_of": NOW, "format": "json" }),
    ]);
    for example in described()["components"]["schemas"]["QueryRequest"]["examples"].as_array().unwrap() {
        requests.push(example.clone());
    }
    requests
}

#[test]
fn what_the_document_admits_the_parser_reads() {
    let (document, catalog) = (described(), catalog());
    let judge = Judge { document: &document, closed: false };
    for request in requests() {
        judge.of("QueryBody", &request).unwrap_or_else(|why| panic!("{request}: {why}"));
        assert_eq!(malformed(&catalog, &request), Vec::<String>::new(), "{request}");
    }
}

/// The fenced JSON requests of the README.
fn of_the_readme() -> Vec<Json> {
    let readme = include_str!("../../../README.md");
    let fenced = readme.split("```").skip(1).step_by(2);
    let json = |block: &str| {
        let text = block.strip_prefix("json\n").or_else(|| {
            block
                .split_once("api/v1/query")
                .and_then(|(_, rest)| Some(rest.split_once("-d '")?.1.split_once('\'')?.0))
        });
        text.map(|text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")))
    };
    fenced.filter_map(json).collect()
}

#[test]
fn the_readmes_requests_are_as_the_document_says() {
    let document = described();
    let found = of_the_readme();
    assert!(found.len() >= 2);
    for request in found {
        Judge { document: &document, closed: false }
            .of("QueryBody", &request)
            .unwrap_or_else(|why| panic!("{request}: {why}"));
    }
}

#[test]
fn every_field_of_the_parser_is_described_and_of_its_own_type() {
    let document = described();
    let schemas = &document["components"]["schemas"];
    for of in ["QueryRequest", "QueriesRequest", "PartialQuery"] {
        for (name, property) in schemas[of]["properties"].as_object().unwrap() {
            assert!(property["description"].is_string(), "{of}.{name} is not described");
            assert!(property.get("type").or(property.get("$ref")).is_some(), "{of}.{name} has no type");
        }
    }
    // What README says of a query's fields.
    let readme = include_str!("../../../README.md");
    let table = readme.split_once("| field | meaning |").unwrap().1.split("\n\n").next().unwrap();
    let named: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" |"))
        .flat_map(|(names, _)| names.split(", "))
        .map(|name| name.trim_matches('`'))
        .filter(|name| *name != "---")
        .collect();
    let described: BTreeSet<&str> = schemas["QueryRequest"]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .filter(|name| *name != "now")
        .collect();
    assert_eq!(named, described);
}

/// Every place of a value, as a pointer.
fn places(value: &Json, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Json::Array(list) => {
            list.iter().enumerate().for_each(|(i, item)| places(item, &format!("{at}/{i}"), found))
        }
        Json::Object(object) => {
            object.iter().for_each(|(name, item)| places(item, &format!("{at}/{name}"), found))
        }
        _ => {}
    }
}

/// What a client may put where something else belongs. No nulls, single things for lists and other abbreviations, which
/// the parser takes beyond the document.
fn strange() -> Vec<Json> {
    let mut strange =
        vec![json!({ "by": "bucket" }), json!({ "dimension": "uuid", "value": 1 }), json!(u64::MAX)];
    strange.extend([
        json!([{ "op": "in" }]),
        json!([{ "and": [] }]),
        json!(["uuid", "uuid"]),
        json!(["a", "b", "c"]),
    ]);
    strange.extend([
        json!(true),
        json!(-1),
        json!(0),
        json!(7),
        json!(1.5),
        json!([]),
        json!({}),
        json!(["a"]),
    ]);
    strange.extend(
        ["", "u1", "last 3 hours", "hour", "2016-06-15", ">=", "in", "between", "csv", "10m"].map(Json::from),
    );
    strange
}

/// What a field may be called.
const NAMES: [&str; 17] = [
    "metric",
    "from",
    "time_range",
    "queries",
    "at_run",
    "as_of",
    "value",
    "values",
    "op",
    "not",
    "and",
    "by",
    "desc",
    "k",
    "limit",
    "column",
    "dimension",
];

/// Every request that differs from one that is right in one place.
fn spoiled(request: &Json) -> Vec<Json> {
    let (mut there, mut spoiled) = (Vec::new(), Vec::new());
    places(request, "", &mut there);
    let mut with = |at: &str, change: &dyn Fn(&mut Json)| {
        let mut request = request.clone();
        change(request.pointer_mut(at).unwrap());
        spoiled.push(request);
    };
    for at in there {
        for value in strange() {
            with(&at, &|place| *place = value.clone());
        }
        let Some(object) = request.pointer(&at).and_then(Json::as_object) else { continue };
        for name in object.keys() {
            with(&at, &|place| drop(place.as_object_mut().unwrap().remove(name)));
        }
        for (name, value) in
            NAMES.iter().flat_map(|name| strange().into_iter().map(move |value| (name, value)))
        {
            with(&at, &|place| place[*name] = value.clone());
        }
    }
    spoiled
}

/// The same request without the abbreviations that the parser takes and the document doesn't have.
fn spelled_out(value: &Json, inside: &str) -> Json {
    match value {
        Json::Object(object) => {
            let mut out = Map::new();
            for (name, item) in object.iter().filter(|(_, item)| !item.is_null()) {
                let one_of_a_list = match name.as_str() {
                    "metrics" | "group_by" => item.is_string(),
                    "order" | "filters" | "having" => item.is_object(),
                    _ => false,
                };
                let item = spelled_out(item, name);
                out.insert(name.clone(), if one_of_a_list { json!([item]) } else { item });
            }
            let tested = inside != "queries" && (out.contains_key("dimension") || out.contains_key("column"));
            if tested { test_spelled_out(out) } else { out.into() }
        }
        Json::Array(list) => list.iter().map(|item| spelled_out(item, inside)).collect(),
        other => other.clone(),
    }
}

/// A test with one value as `value` and several as `values`.
fn test_spelled_out(mut test: Map<String, Json>) -> Json {
    let lists = matches!(test.get("op").and_then(Json::as_str), Some("in" | "between"));
    let (from, to) = if lists { ("value", "values") } else { ("values", "value") };
    if let (Some(given), false) = (test.get(from).cloned(), test.contains_key(to)) {
        test.remove(from);
        test.insert(to.to_owned(), given);
    }
    match test.get(to).cloned() {
        Some(Json::Array(list)) if !lists && list.len() == 1 => {
            drop(test.insert(to.to_owned(), list[0].clone()))
        }
        // An operator without a value may have an empty list of them.
        Some(Json::Array(list)) if list.is_empty() && !lists => drop(test.remove(to)),
        Some(one) if lists && !one.is_array() => drop(test.insert(to.to_owned(), json!([one]))),
        _ => {}
    }
    test.into()
}

/// Whatever one thing is put into a request that is right, or left out: what the parser takes, spelled out, the document
/// admits; and what the document admits, the parser refuses for its meaning alone.
#[test]
fn parser_and_document_agree_on_what_is_well_formed() {
    let (document, catalog) = (described(), catalog());
    let judge = Judge { document: &document, closed: false };
    let (mut admitted, mut refused) = (0, 0);
    for request in requests().iter().flat_map(spoiled) {
        match judge.of("QueryBody", &spelled_out(&request, "")) {
            // What is not meant well may not have been looked at to its end.
            Err(why) => {
                assert!(parse(&catalog, &request).is_err(), "{request}: the document refuses it: {why}");
                refused += 1;
            }
            Ok(()) => {
                let mut of_form = malformed(&catalog, &request);
                of_form.retain(|why| !of_meaning(why));
                assert!(of_form.is_empty(), "{request}: the parser refuses it: {of_form:?}");
                admitted += 1;
            }
        }
    }
    assert!(admitted > 1_000 && refused > 10_000, "{admitted} admitted, {refused} refused");
}

/// Whether a fault is of what is meant, though the parser calls it malformed.
fn of_meaning(why: &str) -> bool {
    let meant = [
        "is no time: expected",
        "is no IANA time zone",
        "no range of time",
        "is no unit",
        "is named twice",
        "lies outside the calendar",
        "must be later than from",
        "is a column of the answer already",
        "is no string like",
        "is no int like",
        "is no float like",
        "like needs a string column",
        "missing: a time in RFC 3339",
        "is no granularity",
    ];
    meant.iter().any(|meant| why.contains(meant)) || why.contains(".formula: ")
}

#[test]
fn what_the_parser_refuses_as_unknown_the_document_refuses() {
    let (document, catalog) = (described(), catalog());
    let judge = Judge { document: &document, closed: false };
    let mut tried = 0;
    for request in requests() {
        let mut there = Vec::new();
        places(&request, "", &mut there);
        for at in there {
            let mut request = request.clone();
            let Some(object) = request.pointer_mut(&at).and_then(Json::as_object_mut) else { continue };
            // The names of queries are free.
            if at == "/queries" {
                continue;
            }
            object.insert("surprise".to_owned(), json!(1));
            tried += 1;
            let refused = malformed(&catalog, &request);
            assert!(
                refused.iter().any(|why| why.ends_with("surprise: unknown field")),
                "{request}: {refused:?}"
            );
            assert!(judge.of("QueryBody", &request).is_err(), "{request}");
        }
    }
    assert!(tried > 30);
}

#[tokio::test]
async fn every_reply_is_as_the_document_says() {
    let served = Served::new().await;
    let document = described();
    let judge = Judge { document: &document, closed: true };
    let check = |name: &str, reply: &Json, of: &str| {
        judge.of(name, reply).unwrap_or_else(|why| panic!("{of}: {why}: {reply}"));
    };
    for mut request in requests() {
        request["strict"] = json!(false);
        request.as_object_mut().unwrap().remove("format");
        request.as_object_mut().unwrap().remove("as_of");
        let name = if request.get("queries").is_some() { "QueriesReply" } else { "QueryReply" };
        let (status, reply) = served.post(request.clone()).await;
        if status == 200 {
            check(name, &reply, &request.to_string());
        } else {
            assert_eq!(request.get("k").map(|k| (k, status)), Some((&json!(3), 422)), "{request}: {reply}");
            check("ErrorReply", &reply, &request.to_string());
        }
    }
    served.keep(&["page_views"]);
    for metric in ["user_view_cnt", "geo_top"] {
        let (status, reply) = served.post_to("/api/v1/facts", span(json!({ "metrics": [metric] }))).await;
        assert!(status == 200 && reply["row_count"].as_u64() > Some(10), "{reply}");
        check("FactsReply", &reply, metric);
    }
    check("CatalogReply", &served.get("/api/v1/metrics").await.1, "the catalog");
    check("Readiness", &served.get("/readyz").await.1, "readiness");
    for path in [
        "user_view_cnt_5m?uuid=u1",
        "geo_top_5m",
        "geo_top_doc_5m?geo_location=%5CN&k=2",
        "active_user_5m",
        "doc_cnt?document_id=3",
    ] {
        check("LiveReply", &served.get(&format!("/api/v1/live/{path}")).await.1, path);
    }
}

#[tokio::test]
async fn every_error_is_one_that_the_document_has_there() {
    let served = Served::new().await;
    let document = described();
    let judge = Judge { document: &document, closed: true };
    let check = |path: &str, method: &str, status: u16, reply: &Json| {
        judge.of("ErrorReply", reply).unwrap_or_else(|why| panic!("{why}: {reply}"));
        let code = reply["error"]["code"].as_str().unwrap();
        let said = &document["paths"][path][method]["responses"][status.to_string()]["description"];
        assert!(
            said.as_str().is_some_and(|said| said.contains(&format!("`{code}`: "))),
            "{path} {status} {code}: {said}"
        );
    };
    let whole = || span(json!({ "metrics": ["user_view_cnt"] }));
    let with = |name: &str, value: Json| {
        let mut request = whole();
        request[name] = value;
        request
    };
    for request in [
        with("metrics", json!(["nonsense"])),
        with("from", json!(1)),
        with("x", json!(1)),
        with("at_run", json!(99)),
        with("as_of", json!(0)),
        json!([1]),
        with("limit", json!(1_000_000)),
    ] {
        let (status, reply) = served.post(request).await;
        check("/api/v1/query", "post", status, &reply);
    }
    for request in [
        with("metrics", json!(["nonsense"])),
        with("metrics", json!(["features_20m"])),
        with("metrics", json!(["user_view_cnt", "user_click_cnt"])),
        with("from", json!(1)),
        with("group_by", json!(["uuid"])),
        with("limit", json!(10_001)),
        with("strict", json!(true)),
        json!([1]),
    ] {
        let (status, reply) = served.post_to("/api/v1/facts", request).await;
        check("/api/v1/facts", "post", status, &reply);
    }
    for (path, asked) in [
        ("/api/v1/live/doc_cnt_5m", "?document_id=x"),
        ("/api/v1/live/doc_cnt_5m", ""),
        ("/api/v1/audit", "?limit=x"),
        ("/api/v1/live/doc_cnt_5m/events", "?document_id=x"),
        ("/api/v1/query/events", ""),
        ("/api/v1/query/events", "?q={}"),
        ("/api/v1/subscribe", ""),
    ] {
        let (status, reply) = served.get(&format!("{path}{asked}")).await;
        check(path, "get", status, &reply);
    }
}

/// The routes of the router, as its code has them.
fn routes() -> BTreeSet<String> {
    let code = include_str!("../router.rs");
    let named = code.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    named.collect()
}

#[tokio::test]
async fn the_document_has_every_route_and_no_other() {
    let document = described();
    let live = "/api/v1/live/";
    let generic = |path: &String| match path.strip_prefix(live).map(|name| name.split_once('/')) {
        Some(Some((_, rest))) => format!("{live}{{name}}/{rest}"),
        Some(None) => format!("{live}{{name}}"),
        None => path.clone(),
    };
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.keys().map(generic).collect::<BTreeSet<_>>(), routes());
    let live_names: BTreeSet<String> =
        catalog().metrics.iter().filter_map(|metric| metric.live_name.clone()).collect();
    for of in ["", "/events"] {
        let names = paths.keys().filter_map(|path| path.strip_prefix(live)?.strip_suffix(of));
        let described: BTreeSet<String> =
            names.filter(|name| !name.contains('/')).map(str::to_owned).collect();
        assert_eq!(described, live_names, "{of}");
    }
    let served = Served::new().await;
    for (path, item) in paths {
        for method in ["get", "post", "put", "delete"] {
            let status = served.status(method, &path.replace("{file}", "app.js")).await;
            assert_eq!(
                item.get(method).is_some(),
                status != 404 && status != 405,
                "{method} {path}: {status}"
            );
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn each(value: &Json, look: &mut impl FnMut(&str)) {
        match value {
            Json::Object(object) => object.iter().for_each(|(name, value)| match (name.as_str(), value) {
                ("$ref", Json::String(to)) => look(to),
                _ => each(value, look),
            }),
            Json::Array(list) => list.iter().for_each(|value| each(value, look)),
            _ => {}
        }
    }
    let document = described();
    let mut count = 0;
    each(&document, &mut |to| {
        count += 1;
        assert!(document.pointer(to.strip_prefix('#').unwrap()).is_some(), "{to}");
    });
    assert!(count > 100);
}

/// Changes of the API show in review; of this file the tests' client is generated.
#[test]
fn the_document_of_the_shipped_catalog() {
    let text = include_str!("../../../infra/catalog/outbrain.toml");
    let catalog = Catalog::from_toml(text).unwrap_or_else(|faults| panic!("{faults}"));
    let document = document(&catalog, &Limits::default());
    let found = serde_json::to_string_pretty(&document).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert!(
        found == golden,
        "{path} is no longer what is served: write it anew with UPDATE_GOLDEN=1, and review what has changed"
    );
    let html = page(&document);
    assert!(html.len() < 160_000, "{} bytes", html.len());
}
