//! Boards over HTTP, kept in memory: who reads and changes which, from which version, what is refused, and what is logged.
//! Every reply and error is held against the document.

use super::access::{Guarded, all, key};
use super::over_http::Served;
use super::schema::Judge;
use super::world::{NOW, catalog};
use crate::access::{Grants, Key, Token};
use crate::boards::{Boards, Draft, MAX_BOARD, MAX_BOARDS, MAX_DEPTH, MAX_NAME, MemoryBoards};
use crate::openapi::document;
use crate::query::Limits;
use crate::router::router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::{Value as Json, json};
use shared_model::time::show;
use std::sync::Arc;
use tower::ServiceExt;

/// A service that keeps boards, and what its document says of them.
struct Kept {
    guarded: Guarded,
    document: Json,
}

/// Where a board is, each byte of its name encoded.
fn at(name: &str) -> String {
    let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/api/v1/boards/{encoded}")
}

fn body(board: &Json, version: Option<i64>) -> Json {
    match version {
        Some(version) => json!({ "board": board, "version": version }),
        None => json!({ "board": board }),
    }
}

/// Holds what was answered against the document.
fn judge(document: &Json, method: &str, path: &str, status: u16, reply: &Json) {
    let template = if path == "/api/v1/boards" { path } else { "/api/v1/boards/{name}" };
    let said = &document["paths"][template][method]["responses"][status.to_string()];
    let schema = match (status, said["content"]["application/json"]["schema"]["$ref"].as_str()) {
        (204, None) => return assert!(said.is_object() && reply.is_null(), "{reply}"),
        (_, Some(schema)) => schema.rsplit('/').next().unwrap(),
        (_, None) => panic!("{method} {path}: {status} is not in the document: {reply}"),
    };
    let judge = Judge { document, closed: true };
    judge.of(schema, reply).unwrap_or_else(|why| panic!("{method} {path} {status}: {why}: {reply}"));
    if let Some(code) = reply["error"]["code"].as_str() {
        let about = said["description"].as_str().unwrap();
        assert!(about.contains(&format!("`{code}`: ")), "{method} {path} {status} {code}: {about}");
    }
}

impl Kept {
    async fn new(keys: &[&(Key, Token)]) -> Kept {
        let keys: Vec<_> = keys.iter().map(|key| (*key).clone()).collect();
        let document = document(&catalog(), &Limits::default());
        Kept { guarded: Guarded::new(&keys).await, document }
    }

    async fn ask(&self, key: &(Key, Token), method: &str, path: &str, body: String) -> (u16, Json) {
        let request = Request::builder().method(method).uri(path);
        let (status, headers, text) = self.guarded.send(Some(&key.1.reveal()), request, body).await;
        assert_eq!(headers["cache-control"], "no-store");
        let reply = serde_json::from_str(&text).unwrap_or(Json::Null);
        judge(&self.document, &method.to_lowercase(), path.split('?').next().unwrap(), status, &reply);
        (status, reply)
    }

    async fn get(&self, key: &(Key, Token), name: &str) -> (u16, Json) {
        self.ask(key, "GET", &at(name), String::new()).await
    }

    async fn put(&self, key: &(Key, Token), name: &str, body: Json) -> (u16, Json) {
        self.ask(key, "PUT", &at(name), body.to_string()).await
    }

    async fn delete(&self, key: &(Key, Token), name: &str, version: i64) -> (u16, Json) {
        self.ask(key, "DELETE", &format!("{}?version={version}", at(name)), String::new()).await
    }

    /// The boards that a key is told of: name, whether it is shared, and whether it is its own.
    async fn listed(&self, key: &(Key, Token)) -> Vec<(String, bool, bool)> {
        let (status, reply) = self.ask(key, "GET", "/api/v1/boards", String::new()).await;
        assert_eq!(status, 200, "{reply}");
        let flag = |board: &Json, name: &str| board[name].as_bool().unwrap();
        let each = reply["boards"].as_array().unwrap().iter();
        each.map(|board| {
            (board["name"].as_str().unwrap().to_owned(), flag(board, "shared"), flag(board, "own"))
        })
        .collect()
    }
}

fn code(reply: &Json) -> &str {
    reply["error"]["code"].as_str().unwrap_or_default()
}

fn admin() -> (Key, Token) {
    key("admin", |key| key.grants = Grants { admin: all(), ..Grants::default() })
}

#[tokio::test]
async fn a_board_is_changed_from_the_version_that_is_there() {
    let reader = key("reader", |_| {});
    let kept = Kept::new(&[&reader]).await;
    let (one, two) = (json!({ "panels": [1] }), json!({ "panels": [1, 2] }));
    assert_eq!((kept.listed(&reader).await, kept.get(&reader, "ops").await.0), (vec![], 404));
    let of = |version: i64| json!({ "name": "ops", "shared": false, "own": true, "version": version, "updated_at": show(NOW) });
    assert_eq!(kept.put(&reader, "ops", body(&one, None)).await, (200, of(1)));
    assert_eq!(kept.put(&reader, "ops", body(&two, Some(1))).await, (200, of(2)));
    let mut whole = of(2);
    whole["board"] = two.clone();
    // What was read before another change, what was never read, and what will never be.
    for version in [Some(1), None, Some(3), Some(0), Some(-1)] {
        let (status, reply) = kept.put(&reader, "ops", body(&one, version)).await;
        assert_eq!((status, code(&reply)), (409, "version_conflict"), "{version:?}");
        let detail = &reply["error"]["details"][0];
        assert_eq!((&detail["field"], &detail["allowed"]), (&json!("version"), &json!(["2"])));
        assert!(reply["error"]["message"].as_str().unwrap().contains("version 2"), "{reply}");
        assert_eq!(kept.get(&reader, "ops").await, (200, whole.clone()), "{version:?}");
    }
    let (status, reply) = kept.delete(&reader, "ops", 1).await;
    assert_eq!((status, code(&reply)), (409, "version_conflict"));
    assert_eq!(kept.get(&reader, "ops").await, (200, whole));
    assert_eq!(kept.delete(&reader, "ops", 2).await, (204, Json::Null));
    for (status, reply) in [kept.get(&reader, "ops").await, kept.delete(&reader, "ops", 2).await] {
        assert_eq!((status, code(&reply)), (404, "unknown_board"));
    }
    let (status, reply) = kept.put(&reader, "ops", body(&one, Some(2))).await;
    assert_eq!((status, code(&reply)), (409, "version_conflict"));
    // No version stands there.
    assert_eq!(reply["error"]["details"][0].get("allowed"), None, "{reply}");
    assert_eq!(kept.put(&reader, "ops", body(&one, None)).await, (200, of(1)));
}

#[tokio::test]
async fn a_key_changes_its_own_boards_and_reads_the_shared_ones() {
    let (admin, one, other) = (admin(), key("one", |_| {}), key("other", |_| {}));
    let kept = Kept::new(&[&admin, &one, &other]).await;
    let board = |whose: &str| json!({ "title": whose });
    for (key, name) in [(&one, "b"), (&one, "a"), (&other, "a"), (&admin, "private")] {
        assert_eq!(kept.put(key, name, body(&board(&key.0.name), None)).await.0, 200);
    }
    let shared = json!({ "board": board("admin"), "shared": true });
    for name in ["a", "all"] {
        assert_eq!(kept.put(&admin, name, shared.clone()).await.1["shared"], true);
    }
    let listed = |names: &[(&str, bool, bool)]| -> Vec<(String, bool, bool)> {
        names.iter().map(|(name, shared, own)| ((*name).to_owned(), *shared, *own)).collect()
    };
    let own = listed(&[("a", false, true), ("all", true, false), ("b", false, true)]);
    assert_eq!(kept.listed(&one).await, own);
    assert_eq!(kept.listed(&other).await, own[..2]);
    let of_admin = listed(&[("a", true, true), ("all", true, true), ("private", false, true)]);
    assert_eq!(kept.listed(&admin).await, of_admin);
    // An own board before the shared one of its name, and each listed board can be read.
    for (key, name, whose) in [(&one, "a", "one"), (&other, "a", "other"), (&one, "all", "admin")] {
        assert_eq!(kept.get(key, name).await.1["board"], board(whose), "{name}");
    }
    // Whether another key has a board of a name can't be told.
    assert_eq!(kept.get(&other, "b").await.0, 404);
    assert_eq!(kept.delete(&other, "b", 1).await, kept.delete(&admin, "b", 1).await);
    // A shared board is nobody else's to change; an own one of its name stands before it, and away again.
    assert_eq!(kept.delete(&one, "all", 1).await.0, 404);
    assert_eq!(kept.put(&one, "all", body(&board("one"), Some(1))).await.0, 409);
    assert_eq!(kept.put(&one, "all", body(&board("one"), None)).await.1["own"], true);
    assert_eq!(kept.get(&one, "all").await.1["board"], board("one"));
    assert_eq!(kept.get(&other, "all").await.1["board"], board("admin"));
    assert_eq!(kept.delete(&one, "all", 1).await.0, 204);
    assert_eq!(kept.get(&one, "all").await.1["own"], false);
    // Put without `shared`, it is not shared any more.
    assert_eq!(kept.put(&admin, "all", body(&board("admin"), Some(1))).await.1["version"], 2);
    assert_eq!(kept.get(&one, "all").await.0, 404);
}

#[tokio::test]
async fn admins_of_everything_share_each_under_a_name_of_its_own() {
    let (admin, second, reader) = (admin(), admin(), key("reader", |_| {}));
    let of_rows = key("of rows", |key| {
        key.grants.admin = all();
        key.grants.rows = serde_json::from_value(json!([{ "dimension": "uuid", "value": "u1" }])).unwrap();
    });
    let kept = Kept::new(&[&admin, &second, &reader, &of_rows]).await;
    let shared = json!({ "board": {}, "shared": true });
    for key in [&reader, &of_rows] {
        let (status, reply) = kept.put(key, "ops", shared.clone()).await;
        assert_eq!((status, code(&reply)), (403, "forbidden"));
        assert_eq!(kept.listed(key).await, vec![]);
    }
    assert_eq!(kept.put(&admin, "ops", shared.clone()).await.0, 200);
    assert_eq!(kept.put(&second, "ops", json!({ "board": {} })).await.0, 200);
    let (status, reply) =
        kept.put(&second, "ops", json!({ "board": {}, "shared": true, "version": 1 })).await;
    assert_eq!((status, code(&reply)), (409, "name_taken"));
    assert_eq!(kept.put(&second, "ops 2", shared).await.0, 200);
    assert_eq!(kept.get(&second, "ops").await.1["own"], true);
}

#[tokio::test]
async fn a_board_comes_back_byte_for_byte() {
    let reader = key("reader", |_| {});
    let kept = Kept::new(&[&reader]).await;
    let deepest = format!("{}{}", r#"{"a":"#.repeat(MAX_DEPTH - 1), "{}") + &"}".repeat(MAX_DEPTH - 1);
    let largest = format!(r#"{{"a":"{}"}}"#, "é".repeat((MAX_BOARD - 8) / 2));
    assert_eq!(largest.len(), MAX_BOARD);
    let texts = [
        "{}",
        "{ \"z\" : 1.0 ,\n\t\"a\":[ ], \"z\":1e400, \"n\": 123456789012345678901234567890, \"m\": -0 }",
        r#"{"\u0000":"\ud800","<script>":"</script>\\\" ]}","é":"é 👩‍👩‍👧"}"#,
        &deepest,
        &largest,
    ];
    for (version, text) in texts.iter().enumerate() {
        let read = if version == 0 { String::new() } else { format!(", \"version\": {version}") };
        let put = format!("{{ \"shared\": false, \"board\":  {text}\n{read} }}");
        assert_eq!(kept.ask(&reader, "PUT", &at("x"), put).await.0, 200, "{text:.100}");
        let (_, _, found) =
            kept.guarded.send(Some(&reader.1.reveal()), Request::get(at("x")), String::new()).await;
        assert!(found.ends_with(&format!(",\"board\":{text}}}")), "{text:.100}: {found:.300}");
    }
}

#[tokio::test]
async fn a_name_may_be_any_text_that_an_address_holds() {
    let reader = key("reader", |_| {});
    let kept = Kept::new(&[&reader]).await;
    let longest = "\u{1f600}".repeat(MAX_NAME);
    let mut names = vec![
        " ",
        "a/b",
        "/",
        "//",
        "a%2Fb",
        "%",
        "%00",
        "a?b#c",
        "a+b",
        "...",
        "..\\x",
        "'; drop table access.board; --",
        "\"x\"",
        "{name}",
        "*",
        "<script>alert(1)</script>",
        "\u{202e}evil",
        "e\u{301}",
        "\u{e9}",
        "İıß",
        "ops",
        "Ops",
        "NULL",
        "\\N",
        &longest,
    ];
    for (i, name) in names.iter().enumerate() {
        let (status, reply) = kept.put(&reader, name, body(&json!({ "i": i }), None)).await;
        assert_eq!((status, &reply["name"]), (200, &json!(name)), "{name:?}");
    }
    for (i, name) in names.iter().enumerate() {
        assert_eq!(kept.get(&reader, name).await.1["board"], json!({ "i": i }), "{name:?}");
    }
    names.sort_unstable();
    let listed = kept.listed(&reader).await;
    assert_eq!(listed.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), names);
    // By an address as a client may write it, too.
    assert_eq!(kept.ask(&reader, "GET", "/api/v1/boards/a%2fb", String::new()).await.1["name"], "a/b");
    assert_eq!(kept.ask(&reader, "GET", "/api/v1/boards/a+b", String::new()).await.1["name"], "a+b");
    for name in names {
        assert_eq!(kept.delete(&reader, name, 1).await.0, 204, "{name:?}");
    }
    let too_long = "x".repeat(MAX_NAME + 1);
    for name in ["\0", "a\nb", "\u{7f}", "\u{85}", ".", "..", &too_long] {
        for (status, reply) in [
            kept.put(&reader, name, body(&json!({}), None)).await,
            kept.get(&reader, name).await,
            kept.delete(&reader, name, 1).await,
        ] {
            assert_eq!((status, code(&reply)), (400, "invalid_request"), "{name:?}");
            assert_eq!(reply["error"]["details"][0]["field"], "name");
        }
    }
    // No UTF-8; and no name at all.
    let (status, reply) = kept.ask(&reader, "GET", "/api/v1/boards/%ff", String::new()).await;
    assert_eq!((status, code(&reply)), (400, "invalid_body"));
    let (status, _, _) =
        kept.guarded.send(Some(&reader.1.reveal()), Request::get("/api/v1/boards/"), String::new()).await;
    assert_eq!(status, 404);
}

/// What the document admits is taken, and what it refuses is refused.
#[tokio::test]
async fn what_is_put_is_as_the_document_says() {
    let reader = key("reader", |_| {});
    let kept = Kept::new(&[&reader]).await;
    let judge = Judge { document: &kept.document, closed: false };
    for taken in [json!({ "board": {} }), json!({ "board": { "a": [null] }, "shared": false, "version": 1 })]
    {
        judge.of("BoardBody", &taken).unwrap();
        assert_eq!(kept.put(&reader, "x", taken).await.0, 200);
    }
    for refused in [
        json!({}),
        json!([]),
        json!([{}]),
        json!([{}, false, 1]),
        json!({ "board": [] }),
        json!({ "board": "{}" }),
        json!({ "board": null }),
        json!({ "board": {}, "shared": "yes" }),
        json!({ "board": {}, "version": "2" }),
        json!({ "board": {}, "version": 1.5 }),
        json!({ "board": {}, "surprise": 1 }),
    ] {
        assert!(judge.of("BoardBody", &refused).is_err(), "{refused}");
        let (status, reply) = kept.put(&reader, "x", refused.clone()).await;
        assert!(status == 400 && ["invalid_body", "invalid_request"].contains(&code(&reply)), "{refused}");
    }
    // Both faults of one request.
    let (_, reply) = kept.put(&reader, "\t", json!({ "board": [], "version": 2 })).await;
    let fields: Vec<&Json> =
        reply["error"]["details"].as_array().unwrap().iter().map(|detail| &detail["field"]).collect();
    assert_eq!(fields, ["name", "board"]);
    let too_deep = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
    let deeper_than_the_stack = "[".repeat(200_000) + &"]".repeat(200_000);
    let too_large = "x".repeat(MAX_BOARD - 7);
    for text in [
        format!("{{\"a\":{too_deep}}}"),
        format!("{{\"a\":\"{too_large}\"}}"),
        format!("{{\"a\":{deeper_than_the_stack}}}"),
    ] {
        let put = format!("{{\"board\":{text},\"version\":2}}");
        let (status, reply) = kept.ask(&reader, "PUT", &at("x"), put).await;
        assert_eq!((status, &reply["error"]["details"][0]["field"]), (400, &json!("board")), "{text:.80}");
    }
    for text in ["", "{", "{\"board\":{}", "{\"board\":{},\"board\":{}}", "{\"board\":{\"a\":}}", "\u{0}"] {
        let (status, reply) = kept.ask(&reader, "PUT", &at("x"), text.to_owned()).await;
        assert_eq!((status, code(&reply)), (400, "invalid_body"), "{text}");
    }
    let (status, reply) = kept.ask(&reader, "PUT", &at("x"), " ".repeat((1 << 20) + 1)).await;
    assert_eq!((status, code(&reply)), (400, "invalid_body"));
    for asked in ["", "?version=", "?version=x", "?version=1&shared=true", "?versions=1"] {
        let (status, reply) = kept.ask(&reader, "DELETE", &(at("x") + asked), String::new()).await;
        assert_eq!((status, code(&reply)), (400, "invalid_body"), "{asked}");
    }
    assert_eq!(kept.get(&reader, "x").await.1["version"], 2);
}

#[tokio::test]
async fn a_key_has_so_many_boards_and_no_more() {
    let (reader, other) = (key("reader", |_| {}), key("other", |_| {}));
    let kept = Kept::new(&[&reader, &other]).await;
    for i in 0..MAX_BOARDS {
        let draft = Draft { owner: &reader.0.id, name: &i.to_string(), shared: false, board: "{}" };
        kept.guarded.boards.write(draft, None, NOW).await.unwrap();
    }
    let (status, reply) = kept.put(&reader, "more", body(&json!({}), None)).await;
    assert_eq!((status, code(&reply)), (422, "limit_exceeded"));
    assert!(reply["error"]["message"].as_str().unwrap().contains("200 boards"), "{reply}");
    // Those that are there are changed and deleted, and others have room of their own.
    assert_eq!(kept.put(&reader, "7", body(&json!({}), Some(1))).await.0, 200);
    assert_eq!(kept.put(&other, "more", body(&json!({}), None)).await.0, 200);
    assert_eq!(kept.delete(&reader, "0", 1).await.0, 204);
    assert_eq!(kept.put(&reader, "more", body(&json!({}), None)).await.0, 200);
    assert_eq!(kept.listed(&reader).await.len(), MAX_BOARDS);
}

#[tokio::test]
async fn boards_are_logged_with_what_was_put() {
    let reader = key("reader", |_| {});
    let mut kept = Kept::new(&[&reader]).await;
    let (put, long) = (body(&json!({ "a": 1 }), None), json!({ "board": { "a": "\u{e9}\0".repeat(5_000) } }));
    assert_eq!(kept.put(&reader, "a b", put.clone()).await.0, 200);
    assert_eq!(kept.put(&reader, "a b", long).await.0, 409);
    assert_eq!(kept.get(&reader, "a b").await.0, 200);
    assert_eq!(kept.delete(&reader, "a b", 1).await.0, 204);
    let entries = kept.guarded.logged();
    let shown: Vec<String> = entries
        .iter()
        .map(|entry| format!("{} {} {} {}", entry.name, entry.method, entry.route, entry.status))
        .collect();
    let route = "/api/v1/boards/{name}";
    let of = |method: &str, status: u16| format!("reader {method} {route} {status}");
    assert_eq!(shown, [of("PUT", 200), of("PUT", 409), of("GET", 200), of("DELETE", 204)]);
    let asked: Vec<&str> = entries.iter().map(|entry| entry.asked.as_str()).collect();
    assert_eq!((asked[0], asked[2]), (&*format!("{} {put}", at("a b")), &*at("a b")));
    assert_eq!(asked[3], at("a b") + "?version=1");
    assert!(asked[1].starts_with(&format!("{} {{\"board\"", at("a b"))), "{:.100}", asked[1]);
    let length = asked[1].len();
    assert!((8_189..=8_192).contains(&length) && entries[1].asked.capacity() <= 8_192, "{length}");
}

/// Whoever can connect is nobody's key, and an admin of everything.
#[tokio::test]
async fn without_keys_boards_are_everyones_where_they_are_kept() {
    let document = document(&catalog(), &Limits::default());
    let (mut served, boards) = (Served::new().await, Arc::<MemoryBoards>::default());
    let ask = async |served: &Served, method: &str, path: &str, body: Json| {
        let request = Request::builder().method(method).uri(path).body(Body::from(body.to_string()));
        let response = router(served.service.clone()).oneshot(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        let reply = serde_json::from_slice(&bytes).unwrap_or(Json::Null);
        judge(&document, &method.to_lowercase(), path.split('?').next().unwrap(), status, &reply);
        (status, reply)
    };
    let each = [
        ("GET", "/api/v1/boards"),
        ("GET", "/api/v1/boards/a"),
        ("PUT", "/api/v1/boards/a"),
        ("DELETE", "/api/v1/boards/a?version=1"),
    ];
    for (method, path) in each {
        let (status, reply) = ask(&served, method, path, json!({ "board": {} })).await;
        assert_eq!((status, code(&reply)), (501, "no_boards"), "{method} {path}");
        assert!(reply["error"]["message"].as_str().unwrap().contains("TIDEMARK_ACCESS"), "{reply}");
    }
    served.service.boards = Some(boards.clone());
    let draft = Draft { owner: "0123456789abcdef", name: "theirs", shared: true, board: "{}" };
    boards.write(draft, None, NOW).await.unwrap();
    let put = json!({ "board": { "a": 1 }, "shared": true });
    assert_eq!(ask(&served, "PUT", "/api/v1/boards/a", put).await.0, 200);
    let (_, reply) = ask(&served, "GET", "/api/v1/boards", Json::Null).await;
    let own: Vec<(&Json, &Json)> =
        reply["boards"].as_array().unwrap().iter().map(|board| (&board["name"], &board["own"])).collect();
    assert_eq!(own, [(&json!("a"), &json!(true)), (&json!("theirs"), &json!(false))]);
    assert_eq!(ask(&served, "DELETE", "/api/v1/boards/theirs?version=1", Json::Null).await.0, 404);
    assert_eq!(ask(&served, "DELETE", "/api/v1/boards/a?version=1", Json::Null).await.0, 204);
    boards.fail();
    for (method, path) in each {
        let (status, reply) = ask(&served, method, path, json!({ "board": {} })).await;
        assert_eq!((status, code(&reply)), (503, "unavailable"), "{method} {path}");
        assert!(!reply.to_string().contains("put out of reach"), "the cause is for the log: {reply}");
    }
}
