//! API keys on real servers and real processes: made, used, logged and revoked by the role that the schema is for; an address
//! that others can reach is refused without them.

use local::probe::Serving;
use serde_json::{Value, json};
use simulator::generate::{Generator, Options};
use sqlx::{Connection as _, PgConnection};
use std::time::{Duration, Instant};
use tidemark_tests::stack::{Stack, free_port};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const ROLES: &str = include_str!("../infra/postgres/roles.sql");

/// A Tidemark whose serving layer asks for keys.
struct Guarded {
    stack: Stack,
    /// Where the keys are.
    access: String,
    http: reqwest::Client,
}

impl Guarded {
    async fn start() -> Guarded {
        let stack = Stack::start(LAYERS, 2).await;
        let mut owner = PgConnection::connect(&stack.database).await.expect("postgres");
        sqlx::raw_sql(ROLES).execute(&mut owner).await.expect("roles");
        let access = stack.database.replace("tidemark@", "tidemark_access:PLANTED_PASSWORD@");
        Guarded { stack, access, http: reqwest::Client::new() }
    }

    /// Runs a command about keys to its end; gives what it printed.
    async fn keys(&self, command: &[&str]) -> (i32, String) {
        let uses: &[&str] = if command[0] == "create" { &["catalog"] } else { &[] };
        let run = self.stack.process_named("serving-layer", "keys", &[&["keys"], command].concat(), uses);
        (run.ended().await, run.logged())
    }

    /// Makes a key; gives its token.
    async fn key(&self, name: &str, options: &[&str]) -> String {
        let (code, said) = self.keys(&[&["create", name], options].concat()).await;
        assert_eq!(code, 0, "{said}");
        said.lines()
            .find(|line| line.starts_with("tm_"))
            .unwrap_or_else(|| panic!("no token: {said}"))
            .to_owned()
    }

    async fn ask(&self, serving: &Serving, token: &str, query: &Value) -> (u16, Value) {
        let request = self.http.post(format!("{}/api/v1/query", serving.url)).bearer_auth(token).json(query);
        let reply = request.send().await.expect("a reply");
        (reply.status().as_u16(), reply.json().await.expect("JSON"))
    }

    /// Waits for a key's status: keys are looked at once a second.
    async fn becomes(&self, serving: &Serving, token: &str, status: u16) {
        wait_for(&format!("{status} for a key"), async || match self.ask(serving, token, &views()).await {
            (found, _) if found == status => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

fn views() -> Value {
    json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "from": 0, "to": "2100-01-01", "limit": 100, "strict": true })
}

/// Who asked what, as SQL shows it, the oldest first.
async fn logged(owner: &mut PgConnection) -> Vec<String> {
    let sql = "select key_name || ' ' || method || ' ' || route || ' ' || status from access.log order by asked_at, query_id";
    sqlx::query_scalar(sql).fetch_all(owner).await.expect("the log")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_used_logged_and_revoked() {
    let mut guarded = Guarded::start().await;
    let (_speed, _open, open) = guarded.stack.layers().await;
    guarded.stack.environment.push(("TIDEMARK_ACCESS".to_owned(), guarded.access.clone()));
    let stack = &guarded.stack;
    let options = Options { records: 400, users: 20, ..Options::default() };
    stack.send(&Generator::new(options, 67).collect::<Vec<_>>());
    stack.settle().await;
    let (process, serving) = stack.serving().await;

    assert_eq!(
        guarded.http.get(format!("{}/api/v1/metrics", serving.url)).send().await.expect("a reply").status(),
        401
    );
    let reader = guarded.key("reader", &["--read", "*"]).await;
    guarded.becomes(&serving, &reader, 200).await;
    let all = open.query(&views()).await.expect("an answer");
    let users = all["rows"].as_array().expect("rows");
    assert!(users.len() > 5, "{all}");
    assert_eq!(guarded.ask(&serving, &reader, &views()).await.1["rows"], all["rows"]);

    // A partner sees one user of one metric.
    let user = &users[0]["key"]["uuid"];
    let rows = json!([{ "dimension": "uuid", "value": user }]).to_string();
    let partner =
        guarded.key("partner", &["--read", "user_view_cnt", "--rows", &rows, "--expires", "1h"]).await;
    guarded.becomes(&serving, &partner, 200).await;
    assert_eq!(guarded.ask(&serving, &partner, &views()).await.1["rows"], json!([users[0]]));
    let clicks = json!({ "metrics": ["user_click_cnt"], "from": 0, "to": "2100-01-01" });
    assert_eq!(guarded.ask(&serving, &partner, &clicks).await.0, 403);
    let revoked = partner[3..19].to_owned();
    assert_eq!(guarded.keys(&["revoke", &revoked]).await.0, 0);
    guarded.becomes(&serving, &partner, 401).await;
    let (code, said) = guarded.keys(&["revoke", &revoked]).await;
    assert!(code == 1 && said.contains("there is no key"), "{said}");

    let (code, listed) = guarded.keys(&["list"]).await;
    assert!(
        code == 0 && listed.contains(&format!("{revoked}  partner")) && listed.contains("revoked 20"),
        "{listed}"
    );
    let (code, said) = guarded.keys(&["create", "x", "--read", "nonsense", "--rate", "0"]).await;
    assert!(code != 0 && !said.contains("tm_"), "{said}");

    // Asked just before the end: it is in the log all the same.
    assert_eq!(guarded.ask(&serving, &reader, &clicks).await.0, 200);
    let shown = process.logged() + &listed;
    assert_eq!(process.stop().await, 0);
    let mut owner = PgConnection::connect(&stack.database).await.expect("postgres");
    let entries = logged(&mut owner).await;
    let count = |line: &str| entries.iter().filter(|entry| *entry == line).count();
    assert!(
        count("reader POST /api/v1/query 200") >= 3 && count("partner POST /api/v1/query 200") >= 2,
        "{entries:?}"
    );
    assert_eq!(
        (count("partner POST /api/v1/query 403"), entries.last().map(String::as_str)),
        (1, Some("reader POST /api/v1/query 200"))
    );
    let asked: String = sqlx::query_scalar("select asked from access.log where status = 403")
        .fetch_one(&mut owner)
        .await
        .expect("one");
    assert_eq!(serde_json::from_str::<Value>(&asked).expect("JSON"), clicks);
    // No secret of a token is stored or printed.
    let stored: String = sqlx::query_scalar("select string_agg(k::text, ' ') from access.key k")
        .fetch_one(&mut owner)
        .await
        .expect("keys");
    for token in [&reader, &partner] {
        assert!(!stored.contains(&token[20..]) && !shown.contains(&token[20..]), "{token}");
    }
    assert!(!shown.contains("PLANTED_PASSWORD"), "{shown}");
    rights_end(stack, &guarded.access).await;
}

/// The role of the keys sees no view, and the role of the views no key.
async fn rights_end(stack: &Stack, access: &str) {
    let refused = async |url: &str, sql: &'static str| {
        let mut connection = PgConnection::connect(url).await.expect("a connection");
        let error = sqlx::raw_sql(sql).execute(&mut connection).await.expect_err(sql);
        let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error}");
    };
    refused(access, "select * from tidemark.tidemark").await;
    refused(access, "select * from metrics.user_view_cnt").await;
    refused(access, "create schema x").await;
    for role in ["tidemark_serving", "tidemark_reader", "tidemark_batch"] {
        let role = stack.database.replace("tidemark@", &format!("{role}@"));
        for sql in ["select * from access.key", "select * from access.board", "delete from access.board"] {
            refused(&role, sql).await;
        }
    }
}

/// Refused before anything listens.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_others_can_reach_needs_keys_or_a_word() {
    let guarded = Guarded::start().await;
    let port = free_port().to_string();
    for host in ["0.0.0.0", "[::]"] {
        let address = format!("{host}:{port}");
        let command = ["serve", "--listen", &address];
        let refused = guarded.stack.process("serving-layer", &command, &["catalog", "redis", "postgres"]);
        assert_eq!(refused.ended().await, 1);
        let said = refused.logged();
        assert!(said.contains("can be reached from elsewhere") && said.contains("--without-keys"), "{said}");
        assert!(!said.contains("serving address"), "{said}");
    }
}

/// Whatever is wrong with a key, what is said takes as long: nothing is to be learned of which keys there are, nor of how much
/// of a secret is right. `cargo test --workspace --test access -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: measures refusals, on a machine that has nothing else to do"]
async fn all_refusals_take_as_long() {
    const ROUNDS: usize = 5_000;
    let mut guarded = Guarded::start().await;
    guarded.stack.batch(&["run"]).await;
    guarded.stack.environment.push(("TIDEMARK_ACCESS".to_owned(), guarded.access.clone()));
    let (_process, serving) = guarded.stack.serving().await;
    let reader = guarded.key("reader", &["--read", "*"]).await;
    let revoked = guarded.key("revoked", &["--read", "*"]).await;
    let expired = guarded.key("expired", &["--read", "*", "--expires", "2s"]).await;
    guarded.becomes(&serving, &reader, 200).await;
    assert_eq!(guarded.keys(&["revoke", &revoked[3..19]]).await.0, 0);
    for gone in [&revoked, &expired] {
        guarded.becomes(&serving, gone, 401).await;
    }
    let with = |at: usize| {
        let other = if &reader[at..=at] == "0" { "1" } else { "0" };
        format!("{}{other}{}", &reader[..at], &reader[at + 1..])
    };
    let shown = [
        ("none", None),
        ("not of a key's form", Some("tm_nonsense".to_owned())),
        ("an unknown id", Some(with(3))),
        ("a secret whose first digit is wrong", Some(with(20))),
        ("a secret whose last digit is wrong", Some(with(reader.len() - 1))),
        ("a revoked key", Some(revoked)),
        ("an expired key", Some(expired)),
    ];
    let url = format!("{}/api/v1/metrics", serving.url);
    let mut took: Vec<Vec<Duration>> = vec![Vec::with_capacity(ROUNDS); shown.len()];
    for round in 0..ROUNDS {
        // Who follows whom changes, and so does what the one before has left in caches.
        for at in 0..shown.len() {
            let at = (at * (1 + round % 6) + round) % shown.len();
            let mut request = guarded.http.get(&url);
            if let Some(token) = &shown[at].1 {
                request = request.bearer_auth(token);
            }
            let begun = Instant::now();
            let reply = request.send().await.expect("a reply");
            let status = reply.status();
            reply.bytes().await.expect("its body");
            took[at].push(begun.elapsed());
            assert_eq!(status, 401, "{}", shown[at].0);
        }
    }
    let medians: Vec<f64> = took
        .iter_mut()
        .map(|took| {
            took.sort();
            took[ROUNDS / 2].as_secs_f64() * 1e6
        })
        .collect();
    for ((what, _), median) in shown.iter().zip(&medians) {
        println!("{what}: {median:.1} us, the median of {ROUNDS}");
    }
    let (least, most) =
        (medians.iter().copied().fold(f64::MAX, f64::min), medians.iter().copied().fold(0.0, f64::max));
    assert!(most <= 1.05 * least, "{least:.1} to {most:.1} us");
}
