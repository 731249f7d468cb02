//! Saved boards in a real Postgres, by the role that the schema is for, through real serving processes: by key, without keys,
//! by two processes at once, while the database doesn't answer; and the database held against boards in memory.

use futures::future::join_all;
use local::install::{self, Installing, Need};
use local::layers::Layer;
use local::servers::{Postgres, PostgresOptions, scratch};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use reqwest::Method;
use serde_json::{Value, json};
use serving_layer::access::Store;
use serving_layer::boards::{BoardError, Boards, Draft, MAX_BOARDS, MemoryBoards};
use sqlx::{Connection as _, PgConnection, PgPool};
use std::path::Path;
use std::time::{Duration, Instant};
use tidemark_tests::naughty::NAUGHTY;
use tidemark_tests::proxy::Proxy;
use tidemark_tests::stack::free_port;
use tidemark_tests::wait_for;
use tokio::runtime::Runtime;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const ROLES: &str = include_str!("../infra/postgres/roles.sql");
const CATALOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/catalog/outbrain.toml");

/// A database for boards. Neither view is there: boards don't wait for them.
struct Kept {
    postgres: Postgres,
    database: String,
    http: reqwest::Client,
    // Last: goes away after the server that lives in it.
    folder: tempfile::TempDir,
}

/// A serving process.
struct Serving {
    process: Layer,
    url: String,
}

impl Kept {
    async fn start() -> Kept {
        let ensure = || install::ensure(&[Need::Postgres], Installing::Yes, &mut |_| {});
        let found = tokio::task::spawn_blocking(ensure).await.expect("a search").expect("postgres");
        let folder = scratch().expect("a temporary folder");
        let fast = PostgresOptions { unsafe_fast: true, ..PostgresOptions::default() };
        let postgres =
            Postgres::start(&found, &folder.path().join("postgres"), fast).await.expect("postgres");
        let database = postgres.create_database("tidemark").await.expect("a database");
        let kept = Kept { postgres, database, http: reqwest::Client::new(), folder };
        sqlx::raw_sql(ROLES).execute(&mut kept.owner().await).await.expect("roles");
        kept
    }

    async fn owner(&self) -> PgConnection {
        PgConnection::connect(&self.database).await.expect("postgres")
    }

    /// Where the boards are, for the role that they are for.
    fn access(&self) -> String {
        self.database.replace("tidemark@", "tidemark_access@")
    }

    fn layer(&self, log: &str, command: &[&str], access: Option<&str>) -> Layer {
        let arguments: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
        let mut variables = vec![("TIDEMARK_CATALOG".to_owned(), CATALOG.to_owned())];
        variables.extend(access.map(|url| ("TIDEMARK_ACCESS".to_owned(), url.to_owned())));
        let log = self.folder.path().join(format!("{log}.log"));
        Layer::start_in(Path::new(LAYERS), "serving-layer", &arguments, &variables, &log).expect("a process")
    }

    /// Starts a serving process and waits until it listens.
    async fn serving(&self, log: &str, options: &[&str], access: Option<&str>) -> Serving {
        let address = format!("127.0.0.1:{}", free_port());
        let views = ["--redis", "redis://127.0.0.1:1", "--postgres", &self.database];
        let command = [&["serve", "--listen", &address][..], &views, options].concat();
        let serving =
            Serving { process: self.layer(log, &command, access), url: format!("http://{address}") };
        wait_for("serving layer running", async || {
            if let Some(code) = serving.process.exited() {
                panic!("ended with {code}:\n{}", serving.process.logged());
            }
            let reply = self.http.get(format!("{}/healthz", serving.url)).send().await;
            reply.map(drop).map_err(|error| error.to_string())
        })
        .await;
        serving
    }

    /// Makes a key; gives its token.
    async fn key(&self, name: &str, grant: &str) -> String {
        let access = self.access();
        let run = self.layer("keys", &["keys", "create", name, grant, "*"], Some(&access));
        assert_eq!(run.ended().await, 0, "{}", run.logged());
        let said = run.logged();
        said.lines().rfind(|line| line.starts_with("tm_")).expect("a token").to_owned()
    }

    async fn ask(
        &self,
        serving: &Serving,
        token: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", serving.url));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = request.send().await.expect("a reply");
        (reply.status().as_u16(), reply.json().await.unwrap_or_default())
    }

    async fn get(&self, serving: &Serving, token: &str, name: &str) -> (u16, Value) {
        self.ask(serving, token, Method::GET, &at(name), None).await
    }

    async fn put(&self, serving: &Serving, token: &str, name: &str, body: Value) -> (u16, Value) {
        self.ask(serving, token, Method::PUT, &at(name), Some(body)).await
    }

    /// The names and owners of the boards that are told of.
    async fn listed(&self, serving: &Serving, token: &str) -> Vec<(String, bool)> {
        let (status, reply) = self.ask(serving, token, Method::GET, "/api/v1/boards", None).await;
        assert_eq!(status, 200, "{reply}");
        let each = reply["boards"].as_array().expect("boards").iter();
        each.map(|board| {
            (board["name"].as_str().expect("a name").to_owned(), board["own"].as_bool().expect("own"))
        })
        .collect()
    }
}

/// Where a board is, each byte of its name encoded.
fn at(name: &str) -> String {
    let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/api/v1/boards/{encoded}")
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn boards_are_kept_by_key_shared_and_logged() {
    let kept = Kept::start().await;
    let access = kept.access();
    let [first, second] =
        [kept.serving("first", &[], Some(&access)).await, kept.serving("second", &[], Some(&access)).await];
    let (admin, reader) = (kept.key("admin", "--admin").await, kept.key("reader", "--read").await);
    for serving in [&first, &second] {
        for token in [&admin, &reader] {
            wait_for("a key that is known", async || {
                match kept.ask(serving, token, Method::GET, "/api/v1/boards", None).await {
                    (200, _) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
    }
    // Each asks a process of its own.
    let (by_admin, by_reader) = (json!({ "title": "admin" }), json!({ "title": "reader" }));
    let shared = json!({ "board": by_admin, "shared": true });
    assert_eq!(kept.put(&first, &admin, "ops", shared.clone()).await.0, 200);
    assert_eq!(kept.get(&second, &reader, "ops").await.1["board"], by_admin);
    assert_eq!(kept.put(&second, &reader, "ops", shared).await.0, 403);
    let (status, put) = kept.put(&second, &reader, "ops", json!({ "board": by_reader })).await;
    assert_eq!((status, &put["version"], &put["own"]), (200, &json!(1), &json!(true)));
    assert_eq!(kept.get(&first, &reader, "ops").await.1["board"], by_reader);
    assert_eq!(kept.get(&second, &admin, "ops").await.1["board"], by_admin);
    assert_eq!(kept.get(&first, "", "ops").await.0, 401);
    let (status, reply) = kept.put(&first, &reader, "ops", json!({ "board": {}, "version": 7 })).await;
    assert_eq!((status, code(&reply)), (409, "version_conflict"));
    assert_eq!(reply["error"]["details"][0]["allowed"], json!(["1"]));
    let other = format!("{}?version=1", at("ops"));
    assert_eq!(kept.ask(&first, &reader, Method::DELETE, &other, None).await.0, 204);
    assert_eq!(kept.get(&second, &reader, "ops").await.1["own"], false);
    assert_eq!(kept.ask(&first, &reader, Method::DELETE, &other, None).await.0, 404);
    naughty_names(&kept, [&first, &second], &reader).await;

    // What was answered stays when the processes go.
    for serving in [first, second] {
        assert_eq!(serving.process.stop().await, 0);
    }
    let mut owner = kept.owner().await;
    let sql = "select key_name || ' ' || method || ' ' || status || ' ' || asked from access.log
               where route = '/api/v1/boards/{name}' order by asked_at, query_id";
    let entries: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut owner).await.expect("the log");
    for expected in [
        format!("admin PUT 200 {} {{\"board\":{by_admin},\"shared\":true}}", at("ops")),
        format!("reader PUT 200 {} {{\"board\":{by_reader}}}", at("ops")),
        format!("reader PUT 409 {} {{\"board\":{{}},\"version\":7}}", at("ops")),
        format!("reader DELETE 204 {other}"),
        format!("reader DELETE 404 {other}"),
    ] {
        assert!(entries.contains(&expected), "{expected}: {entries:#?}");
    }
    let owners: Vec<String> =
        sqlx::query_scalar("select distinct tableowner::text from pg_tables where schemaname = 'access'")
            .fetch_all(&mut owner)
            .await
            .expect("the tables");
    assert_eq!(owners, ["tidemark_access"]);
    let third = kept.serving("third", &[], Some(&access)).await;
    wait_for("a board that is still there", async || match kept.get(&third, &admin, "ops").await {
        (200, reply) if reply["board"] == by_admin => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Each is a board's name as it stands there, or refused.
async fn naughty_names(kept: &Kept, [first, second]: [&Serving; 2], token: &str) {
    let is_name = |name: &str| !name.is_empty() && !name.chars().any(char::is_control);
    let (mut names, refused): (Vec<&str>, Vec<&str>) =
        NAUGHTY.iter().copied().partition(|name| is_name(name));
    names.extend(["a%2Fb", "/", "//", "\"", "a/../b", "%00", "?version=1", "#", "+", "{name}"]);
    names.sort_unstable();
    names.dedup();
    for (i, name) in names.iter().enumerate() {
        let (status, reply) =
            kept.put(first, token, name, json!({ "board": { "i": i, "name": name } })).await;
        assert_eq!((status, &reply["name"]), (200, &json!(name)), "{name:?}");
    }
    let mut told: Vec<(String, bool)> = names.iter().map(|name| ((*name).to_owned(), true)).collect();
    told.push(("ops".to_owned(), false));
    told.sort_unstable();
    assert_eq!(kept.listed(second, token).await, told);
    for (i, name) in names.iter().enumerate() {
        let found = kept.get(second, token, name).await.1;
        assert_eq!(found["board"], json!({ "i": i, "name": name }), "{name:?}");
    }
    let refused: Vec<&str> = refused.into_iter().filter(|name| !name.is_empty()).collect();
    assert!(names.len() > 30 && !refused.is_empty(), "{refused:?}");
    for name in refused {
        assert_eq!(kept.put(first, token, name, json!({ "board": {} })).await.0, 400, "{name:?}");
    }
}

/// Whoever changes one board at the same time, by whichever process: one change is made, the others are refused.
#[tokio::test(flavor = "multi_thread")]
async fn without_keys_two_processes_change_boards_as_one() {
    let kept = Kept::start().await;
    let access = kept.access();
    let options = ["--boards", &access];
    // Both find no schema yet.
    let [first, second] =
        [kept.serving("first", &options, None).await, kept.serving("second", &options, None).await];
    let both = |i: usize| if i.is_multiple_of(2) { &first } else { &second };
    for round in 0..15_i64 {
        let changed = |i: usize| {
            let mut body = json!({ "board": { "by": i }, "shared": true });
            if round > 0 {
                body["version"] = json!(round);
            }
            kept.put(both(i), "", "one", body)
        };
        let replies = join_all((0..8).map(changed)).await;
        let made: Vec<usize> = (0..8).filter(|i| replies[*i].0 == 200).collect();
        assert_eq!(made.len(), 1, "{replies:?}");
        assert_eq!(replies[made[0]].1["version"], json!(round + 1));
        for (status, reply) in replies.iter().filter(|(status, _)| *status != 200) {
            assert_eq!((*status, code(reply)), (409, "version_conflict"), "{reply}");
        }
        assert_eq!(kept.get(&second, "", "one").await.1["board"], json!({ "by": made[0] }));
    }
    // Room for five more.
    let mut owner = kept.owner().await;
    let filled = "insert into access.board select '', 'filled ' || i, false, '{}', 1, now() from generate_series(1, $1) i";
    sqlx::query(filled).bind(MAX_BOARDS as i64 - 6).execute(&mut owner).await.expect("boards");
    let names: Vec<String> = (0..20).map(|i| format!("new {i}")).collect();
    let new = names.iter().enumerate().map(|(i, name)| kept.put(both(i), "", name, json!({ "board": {} })));
    let replies = join_all(new).await;
    let of = |wanted: u16| replies.iter().filter(|(status, _)| *status == wanted).count();
    assert_eq!((of(200), of(422)), (5, 15), "{replies:?}");
    assert_eq!(kept.listed(&first, "").await.len(), MAX_BOARDS);
    // Nobody's requests are logged, and no key is asked for.
    let logged: i64 =
        sqlx::query_scalar("select count(*) from access.log").fetch_one(&mut owner).await.expect("the log");
    assert_eq!(logged, 0);
    assert!(first.process.logged().contains("everyone who can connect may change them"));

    let nowhere = kept.serving("nowhere", &[], None).await;
    let (status, reply) = kept.get(&nowhere, "", "one").await;
    assert_eq!((status, code(&reply)), (501, "no_boards"));
    assert!(reply["error"]["message"].as_str().expect("a message").contains("TIDEMARK_ACCESS"), "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_doesnt_answer_is_waited_for_so_long_and_no_longer() {
    let kept = Kept::start().await;
    let proxy = Proxy::start(kept.postgres.port(), 1).await;
    let access = kept.access().replace(&kept.postgres.port().to_string(), &proxy.port().to_string());
    let serving = kept.serving("serving", &["--boards", &access], None).await;
    let put = |version: i64| json!({ "board": {}, "version": version });
    assert_eq!(kept.put(&serving, "", "one", json!({ "board": {} })).await.0, 200);
    proxy.delay(Duration::from_secs(600));
    let begun = Instant::now();
    let (listed, read, written) = tokio::join!(
        kept.ask(&serving, "", Method::GET, "/api/v1/boards", None),
        kept.get(&serving, "", "one"),
        kept.put(&serving, "", "one", put(1)),
    );
    for (status, reply) in [&listed, &read, &written] {
        assert_eq!((*status, code(reply)), (503, "unavailable"), "{reply}");
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    proxy.delay(Duration::ZERO);
    proxy.lead_to(kept.postgres.port());
    wait_for("the boards again", async || match kept.get(&serving, "", "one").await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // Whether the change that got no answer was made isn't known; from the version that is there it goes on.
    let version = kept.get(&serving, "", "one").await.1["version"].as_i64().expect("a version");
    assert!((1..=2).contains(&version), "{version}");
    assert_eq!(kept.put(&serving, "", "one", put(version)).await.1["version"], json!(version + 1));
    assert!(serving.process.logged().contains("the boards can't be reached"));
}

const OWNERS: [&str; 3] = ["", "00000000000000aa", "00000000000000bb"];
const NAMES: [&str; 4] = ["a", "A", "é", "'"];

/// What is done with boards.
#[derive(Debug, Clone)]
enum Step {
    Write { owner: &'static str, name: &'static str, shared: bool, read: Option<i64> },
    Delete { owner: &'static str, name: &'static str, read: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    use prop::sample::select;
    let (owner, name) = (|| select(&OWNERS[..]), || select(&NAMES[..]));
    // Most changes are made from a version that may be there.
    let read = prop_oneof![Just(None), (1..4_i64).prop_map(Some)];
    prop_oneof![
        3 => (owner(), name(), any::<bool>(), read)
            .prop_map(|(owner, name, shared, read)| Step::Write { owner, name, shared, read }),
        1 => (owner(), name(), 1..3_i64).prop_map(|(owner, name, read)| Step::Delete { owner, name, read }),
    ]
}

/// Does one thing; gives what came of it, as text.
async fn take(boards: &dyn Boards, step: &Step, i: usize) -> Result<String, BoardError> {
    match *step {
        Step::Write { owner, name, shared, read } => {
            // What jsonb wouldn't take, or would write anew.
            let board = format!(r#"{{ "step" :{i}, "b":-0,"b":1e400,"a":1.0,"\u0000":"\ud800\" é" }}"#);
            let draft = Draft { owner, name, shared, board: &board };
            Ok(format!("{:?}", boards.write(draft, read, 1_700_000_000_123 + i as i64).await?))
        }
        Step::Delete { owner, name, read } => boards.delete(owner, name, read).await.map(|()| String::new()),
    }
}

#[test]
fn the_database_keeps_boards_as_memory_does() {
    let runtime = Runtime::new().expect("a runtime");
    let kept = runtime.block_on(Kept::start());
    let owner = runtime.block_on(PgPool::connect(&kept.database)).expect("postgres");
    let store = runtime.block_on(async { Store::new(&kept.access()).expect("a URL") });
    runtime.block_on(store.list("")).expect("the schema");
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) };
    let ran = TestRunner::new(config).run(&prop::collection::vec(step(), 1..30), |steps| {
        let memory = MemoryBoards::default();
        runtime.block_on(async {
            sqlx::raw_sql("delete from access.board").execute(&owner).await.expect("an empty table");
            for (i, step) in steps.iter().enumerate() {
                assert_eq!(take(&store, step, i).await, take(&memory, step, i).await, "{i}: {step:?}");
            }
            for reader in OWNERS {
                assert_eq!(store.list(reader).await, memory.list(reader).await, "{reader}");
                for name in NAMES {
                    let (found, expected) = (store.read(reader, name).await, memory.read(reader, name).await);
                    assert_eq!(found, expected, "{reader} {name}");
                }
            }
        });
        Ok(())
    });
    ran.unwrap_or_else(|failed| panic!("{failed}"));
}
