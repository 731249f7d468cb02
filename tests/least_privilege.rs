//! The layers with just the rights of `infra/postgres/roles.sql` and `infra/redis/users.acl`, over keys with naughty
//! names: every answer equals the oracle, what a role doesn't need is refused, and the logs stay one line a message.

use local::layers::Layer;
use local::oracle::{self, Oracle};
use local::probe::Serving;
use serde_json::{Value, json};
use simulator::generate::{Delivery, Generator, Kind, Options};
use sqlx::Connection as _;
use std::collections::BTreeMap;
use tidemark_tests::naughty::{NAUGHTY, noise};
use tidemark_tests::redis_client::ask;
use tidemark_tests::redis_servers::Topology;
use tidemark_tests::stack::{SPEED, Servers, Stack, free_port, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const ROLES: &str = include_str!("../infra/postgres/roles.sql");
const USERS: &str = include_str!("../infra/redis/users.acl");
/// The passwords are like this one, with the role's name for `ADMIN`.
const PASSWORD: &str = "ADMIN_PASSWORD";
const MINUTE: i64 = 60_000;

struct Guarded {
    stack: Stack,
    database: String,
    redis: String,
}

impl Guarded {
    /// A stack whose servers admit just the shipped roles.
    async fn start(topology: Topology) -> Guarded {
        let servers = Servers { topology, ..Servers::default() };
        let catalog = outbrain().replace("topic = \"page_views\"", "topic = \"page_views\"\nfacts = true");
        let stack = Stack::with_servers(LAYERS, 2, &catalog, servers).await;
        let mut owner = sqlx::PgConnection::connect(&stack.database).await.expect("postgres");
        // Twice: the second time changes nothing.
        for _ in 0..2 {
            sqlx::raw_sql(ROLES).execute(&mut owner).await.expect("roles");
        }
        let mut lines: Vec<&str> = USERS.lines().collect();
        let mut masters = stack.redis.connections().await;
        // The one that we are comes last: it is switched off.
        lines.rotate_left(1);
        for line in lines {
            let words = [&["ACL", "SETUSER"], &line.split(' ').skip(1).collect::<Vec<_>>()[..]].concat();
            for master in &mut masters {
                let () = ask(master, &words).await;
            }
        }
        let (database, redis) = (stack.database.clone(), stack.redis.url());
        let mut guarded = Guarded { database, redis, stack };
        guarded.stack.probe.redis = guarded.redis_as("admin", PASSWORD);
        guarded
    }

    /// All layers, the speed and the serving layer running, over records that were just sent.
    async fn at_work(topology: Topology) -> (Guarded, [Layer; 2], Serving) {
        let mut guarded = Guarded::start(topology).await;
        guarded.batch().await;
        let speed = guarded.layer("speed-layer", &SPEED, "SPEED_PASSWORD");
        let (process, serving) = guarded.serving().await;
        guarded.stack.send(&deliveries());
        (guarded, [speed, process], serving)
    }

    fn postgres_as(&self, role: &str) -> String {
        // The server trusts whoever comes: the password is there to be looked for.
        self.database.replace("tidemark@", &format!("{role}:PLANTED_PASSWORD@"))
    }

    fn redis_as(&self, user: &str, password: &str) -> String {
        self.redis.replace("redis://", &format!("redis://{user}:{password}@"))
    }

    /// Starts a layer as its role; its URLs come by the environment.
    fn layer(&mut self, name: &'static str, command: &[&str], password: &str) -> Layer {
        let role = name.trim_end_matches("-layer");
        let (postgres, redis) = (
            self.postgres_as(&format!("tidemark_{role}")),
            self.redis_as(&format!("tidemark-{role}"), password),
        );
        self.stack.environment =
            vec![("TIDEMARK_POSTGRES".to_owned(), postgres), ("TIDEMARK_REDIS".to_owned(), redis)];
        let uses: &[&str] = match name {
            "batch-layer" => &["catalog", "kafka", "archive"],
            "speed-layer" => &["catalog", "kafka"],
            _ => &["catalog"],
        };
        self.stack.process(name, command, uses)
    }

    /// Starts the serving layer as its role and waits until it is ready.
    async fn serving(&mut self) -> (Layer, Serving) {
        let address = format!("127.0.0.1:{}", free_port());
        let command = ["serve", "--listen", &address, "--max-rows", "1000000"];
        let process = self.layer("serving-layer", &command, "SERVING_PASSWORD");
        let serving = Serving::at(format!("http://{address}"));
        wait_for("serving layer ready", async || {
            serving.ready().await.map_err(|error| format!("{error:#}\n{}", process.logged()))
        })
        .await;
        (process, serving)
    }

    /// Runs the batch layer; gives its log.
    async fn batch(&mut self) -> String {
        let run = self.layer("batch-layer", &["run", "--version-grace", "0s"], "BATCH_PASSWORD");
        assert_eq!(run.ended().await, 0, "{}", run.logged());
        one_line_a_message(&run);
        run.logged()
    }

    /// What the log holds, without the records that are refused for their text.
    fn oracle(&self) -> Oracle {
        let mut oracle = Oracle::default();
        let read = self.stack.probe.read_log(&BTreeMap::new(), |record| {
            let refused = serde_json::from_slice::<Value>(&record.value).is_ok_and(|value| {
                value["uuid"].as_str().is_some_and(|uuid| uuid.len() > 4_096 || uuid.contains('\0'))
            });
            if !refused {
                oracle.take(&record);
            }
        });
        read.expect("the log");
        oracle
    }

    /// Changes what the speed layer may do in Redis.
    async fn of_speed(&self, right: &str) {
        for url in self.redis_as("admin", PASSWORD).split(',') {
            let client = redis::Client::open(url).expect("a url");
            let mut connection = client.get_multiplexed_async_connection().await.expect("redis");
            let () = ask(&mut connection, &["ACL", "SETUSER", "tidemark-speed", right]).await;
        }
    }

    /// What Redis says to a user's command.
    async fn says(&self, user: &str, password: &str, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut said = Err(redis::RedisError::from((redis::ErrorKind::InvalidClientConfig, "no Redis")));
        // Of a Cluster's masters the one answers that has the key.
        for url in self.redis_as(user, password).split(',') {
            let client = redis::Client::open(url).expect("a url");
            let mut connection = client.get_multiplexed_async_connection().await.expect("redis");
            said = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await;
            if !said.as_ref().is_err_and(|error| error.code() == Some("MOVED")) {
                break;
            }
        }
        said
    }
}

fn one_line_a_message(layer: &Layer) {
    let log = layer.logged();
    // The first line may be cut, where the log is long.
    for line in log.lines().skip(1).filter(|line| !line.is_empty()) {
        let ours = ["20", "run ", "held back", "nothing new", "audit: ", "not audited", "\u{1b}[2m20"];
        assert!(ours.iter().any(|start| line.starts_with(start)), "{line:?} of\n{log}");
        assert!(!line.starts_with("2016-06-14T00:00:00Z ERROR forged"), "{log}");
    }
    assert!(!log.contains("_PASSWORD"), "{log}");
}

fn view(user: &str, time: i64) -> Delivery {
    let value = json!({
        "uuid": user, "document_id": 7, "timestamp": time - oracle::OUTBRAIN_ZERO, "platform": 1,
        "geo_location": user, "traffic_source": 1,
    });
    let (key, value) = (user.to_owned(), value.to_string().into_bytes());
    Delivery { stream: "page_views", event_time: time, moment: time, key, value, kind: Kind::Distinct }
}

/// A key's part of a plain name, as the README says: `:`, `%`, `\` and control characters percent-encoded.
fn encoded(text: &str) -> String {
    let one = |char: char| match char {
        ':' | '%' | '\\' => format!("%{:02X}", u32::from(char)),
        char if char.is_control() => char.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect(),
        plain => plain.to_string(),
    };
    text.chars().map(one).collect()
}

async fn refused(url: &str, sql: &'static str) {
    let mut connection = sqlx::PgConnection::connect(url).await.expect("a connection");
    let error = sqlx::raw_sql(sql).execute(&mut connection).await.expect_err(sql);
    let code =
        error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned()).unwrap_or_default();
    // insufficient_privilege, read_only_sql_transaction
    assert!(code == "42501" || code == "25006", "{sql}: {error}");
}

fn deliveries() -> Vec<Delivery> {
    let options =
        Options { records: 2_000, span: 20 * MINUTE, users: 100, malformed: 0.0, ..Options::default() };
    Generator::new(options, 5).collect()
}

/// A Cluster's clients ask it for its nodes and slots, which needs rights of its own.
#[tokio::test(flavor = "multi_thread")]
async fn with_just_their_rights_the_layers_answer_on_a_redis_cluster() {
    let (mut guarded, _layers, serving) = Guarded::at_work(Topology::Cluster).await;
    guarded.stack.settle().await;
    let log = guarded.batch().await;
    assert!(log.contains("unexplained error 0.000000"), "{log}");
    guarded.stack.settle().await;
    guarded.stack.compare(&serving, &guarded.oracle(), "on a Cluster").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_just_their_rights_and_naughty_keys_the_layers_answer_right() {
    let (mut guarded, [speed, process], serving) = Guarded::at_work(Topology::Chosen).await;
    let address = serving.url.clone();
    let end = 1_465_876_800_000 + 21 * MINUTE;
    let long = [noise(4_096), noise(4_097)];
    let keys: Vec<&str> = NAUGHTY.iter().copied().chain([long[0].as_str()]).collect();
    let times = || (0..3).map(|n| end + n * 1_000);
    let mut naughty: Vec<Delivery> =
        times().flat_map(|time| keys.iter().map(move |key| view(key, time))).collect();
    // One too long, one that holds what Postgres can't, one with half of a character.
    naughty.extend([view(&long[1], end), view("a\0b", end)]);
    let lone =
        Delivery { value: br#"{"uuid":"\ud800","document_id":7,"timestamp":1}"#.to_vec(), ..view("x", end) };
    naughty.push(lone);
    guarded.stack.send(&naughty);
    guarded.stack.settle().await;
    assert_eq!(guarded.stack.dead_letters(), Ok(3));
    guarded.stack.compare(&serving, &guarded.oracle(), "all of it in the realtime view").await;
    plain_keys(&guarded, &serving, &keys).await;
    let log = guarded.batch().await;
    // The long key doesn't fit an index, which is no reason to fail.
    assert!(log.contains("no index: a key is longer than one can hold"), "{log}");
    guarded.stack.compare(&serving, &guarded.oracle(), "after the run").await;
    guarded.stack.send(
        &times().flat_map(|time| keys.iter().map(move |key| view(key, time + 500))).collect::<Vec<_>>(),
    );
    guarded.stack.settle().await;
    guarded.stack.compare(&serving, &guarded.oracle(), "across the seam").await;
    let log = guarded.batch().await;
    assert!(log.contains("unexplained error 0.000000, 0 repeats healed\n"), "{log}");
    guarded.stack.compare(&serving, &guarded.oracle(), "after the second run").await;
    let views = json!({ "metrics": ["user_view_cnt"], "from": 0, "to": "2100-01-01" });
    let records = serving.facts(&views).await.expect("records");
    assert!(records["row_count"] == 100 && records["complete"] == true, "{records}");
    let audits = reqwest::get(format!("{address}/api/v1/audit")).await.expect("an answer");
    assert!(audits.status().is_success(), "{}", audits.text().await.unwrap_or_default());
    one_line_a_message(&speed);
    one_line_a_message(&process);
    for layer in [&speed, &process] {
        // What anyone on the machine can list.
        let listed =
            std::fs::read_to_string(format!("/proc/{}/cmdline", layer.pid())).expect("its command line");
        assert!(!listed.contains("_PASSWORD"), "{listed}");
    }
    rights_end(&guarded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_publish_says_so_and_does_once_it_may() {
    let mut guarded = Guarded::start(Topology::Chosen).await;
    guarded.batch().await;
    guarded.of_speed("-zadd").await;
    let speed = guarded.layer("speed-layer", &SPEED, "SPEED_PASSWORD");
    guarded.stack.send(&deliveries());
    wait_for("the worker saying that it publishes nothing", async || {
        let log = speed.logged();
        let says =
            log.contains("finished values are not published") && log.contains("can't run this command");
        if says { Ok(()) } else { Err(log) }
    })
    .await;
    guarded.of_speed("+zadd").await;
    wait_for("a plain key", async || {
        match guarded.says("tidemark-reader", "READER_PASSWORD", &["EXISTS", "geo_top_5m"]).await {
            Ok(redis::Value::Int(1)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    one_line_a_message(&speed);
}

/// Each key's counter, under its documented plain name, and from the API.
async fn plain_keys(guarded: &Guarded, serving: &Serving, keys: &[&str]) {
    for key in keys {
        let name = format!("user_view_cnt_5m:{}", encoded(key));
        wait_for(&name, async || {
            match guarded.says("tidemark-reader", "READER_PASSWORD", &["GET", &name]).await {
                Ok(redis::Value::BulkString(value)) if value == b"3" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // By itself this text is how a live request spells NULL.
        if *key != "\\N" {
            let live =
                serving.live("user_view_cnt_5m", &[("uuid", (*key).to_owned())]).await.expect("an answer");
            assert_eq!((&live["value"], &live["key"]["uuid"]), (&json!(3), &json!(key)));
        }
    }
}

/// What the README shows to users of BI tools.
fn of_the_readme() -> Vec<String> {
    let readme = include_str!("../README.md");
    let section = readme.split_once("\n## BI tools\n").expect("its section").1;
    let sql = section.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).expect("its SQL");
    let statements: Vec<String> =
        sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect();
    assert!(statements.len() >= 5, "{statements:?}");
    statements
}

/// What no layer needs is refused to it.
async fn rights_end(guarded: &Guarded) {
    let (speed, serving) = (guarded.postgres_as("tidemark_speed"), guarded.postgres_as("tidemark_serving"));
    let (batch, reader) = (guarded.postgres_as("tidemark_batch"), guarded.postgres_as("tidemark_reader"));
    for url in [&speed, &serving, &reader] {
        refused(url, "create table public.x (a int)").await;
        refused(url, "create schema x").await;
        refused(url, "set transaction read write; delete from tidemark.tidemark").await;
        refused(url, "set transaction read write; drop view metrics.user_view_cnt").await;
    }
    refused(&speed, "select * from metrics.user_view_cnt").await;
    refused(&serving, "select * from metrics.user_view_cnt").await;
    refused(&reader, "select * from tidemark.run").await;
    refused(&batch, "create role x").await;
    refused(&batch, "create database x").await;
    let mut connection = sqlx::PgConnection::connect(&reader).await.expect("a connection");
    let mut owner = sqlx::PgConnection::connect(&guarded.database).await.expect("the owner");
    let runs = sqlx::query_scalar("select string_agg(run::text, ' ') from tidemark.run");
    let runs: String = runs.fetch_one(&mut owner).await.expect("the runs");
    assert!(!runs.is_empty() && !runs.contains("_PASSWORD"), "{runs}");
    let rows: i64 = sqlx::query_scalar("select count(*) from metrics.user_view_cnt where uuid = $1")
        .bind(NAUGHTY[2])
        .fetch_one(&mut connection)
        .await
        .expect("the reader reads");
    assert_eq!(rows, 1);
    for statement in of_the_readme() {
        let read = sqlx::query(sqlx::AssertSqlSafe(statement.clone())).fetch_all(&mut connection).await;
        assert!(!read.unwrap_or_else(|error| panic!("{statement}: {error}")).is_empty(), "{statement}");
    }

    let no_permission = async |user: &str, password: &str, words: &[&str]| {
        let error = guarded.says(user, password, words).await.expect_err(&words.join(" "));
        assert_eq!(error.code(), Some("NOPERM"), "{words:?}: {error}");
    };
    for (user, password) in [
        ("tidemark-speed", "SPEED_PASSWORD"),
        ("tidemark-batch", "BATCH_PASSWORD"),
        ("tidemark-serving", "SERVING_PASSWORD"),
        ("tidemark-reader", "READER_PASSWORD"),
    ] {
        no_permission(user, password, &["FLUSHALL"]).await;
        no_permission(user, password, &["CONFIG", "SET", "maxmemory", "1"]).await;
        no_permission(user, password, &["ACL", "LIST"]).await;
        no_permission(user, password, &["KEYS", "*"]).await;
        no_permission(user, password, &["SHUTDOWN"]).await;
    }
    for (user, password) in [("tidemark-serving", "SERVING_PASSWORD"), ("tidemark-batch", "BATCH_PASSWORD")] {
        no_permission(user, password, &["HSET", "tm1:marks", "a", "b"]).await;
        no_permission(user, password, &["HGET", "elsewhere", "a"]).await;
    }
    no_permission("tidemark-reader", "READER_PASSWORD", &["SET", "user_view_cnt_5m:a", "1"]).await;
    no_permission("tidemark-reader", "READER_PASSWORD", &["GET", "tm1:marks"]).await;
}
