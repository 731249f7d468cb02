//! No secret is ever shown: each program fails in many ways with planted passwords, and all that it says, in its help,
//! its log, its errors and over HTTP, is searched for them.

use local::install::{self, Installing, Need};
use local::servers::{Postgres, PostgresOptions, Redis, RedisOptions};
use sqlx::Connection as _;
use std::process::Stdio;
use tidemark_tests::{stack::free_port, wait_for};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// A part of every planted password.
const PLANTED: &str = "hunter2";

/// One failure: a program, its arguments, what it gets by the environment beside the usual, and a part of what it must
/// say.
struct Case {
    command: &'static [&'static str],
    environment: Vec<(&'static str, String)>,
    says: &'static str,
}

fn case(command: &'static [&'static str], environment: &[(&'static str, &str)], says: &'static str) -> Case {
    let environment = environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Case { command, environment, says }
}

/// The program with everything that it needs, where nothing answers.
fn program(command: &[&str], environment: &[(&str, String)]) -> Command {
    let catalog = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/catalog/outbrain.toml");
    let mut program = Command::new(LAYERS);
    program
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    program.envs([
        ("TIDEMARK_CATALOG", catalog),
        ("TIDEMARK_KAFKA", "127.0.0.1:1"),
        ("TIDEMARK_KAFKA_PROPERTIES", "sasl.username=u;sasl.password=hunter2-kafka"),
        ("TIDEMARK_REDIS", "redis://u:hunter2-redis@127.0.0.1:1"),
        ("TIDEMARK_POSTGRES", "postgres://u:hunter2-postgres@127.0.0.1:1/d"),
        ("TIDEMARK_ARCHIVE", "memory:///"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2-archive"),
        ("RUST_LOG", "debug"),
    ]);
    program.envs(environment.iter().map(|(name, value)| (name, value)));
    program
}

fn look_through(said: &str, what: &str) {
    assert!(!said.contains(PLANTED), "{what} shows a secret:\n{said}");
}

/// Runs to the end, which must be a failure, unless help was asked for.
async fn check(case: Case) {
    let what = format!("{:?} {:?}", case.command, case.environment);
    let run = program(case.command, &case.environment).output();
    let output =
        tokio::time::timeout(tidemark_tests::PATIENCE, run).await.expect("it ends").expect("it runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    look_through(&said, &what);
    assert!(said.contains(case.says), "{what} doesn't say {:?}:\n{said}", case.says);
    assert_eq!(output.status.success(), case.command.ends_with(&["--help"]), "{what}: {said}");
}

const COMMANDS: [&[&str]; 21] = [
    &["speed-layer", "run"],
    &["speed-layer", "verify"],
    &["speed-layer", "dead-letters", "list"],
    &["speed-layer", "dead-letters", "replay"],
    &["batch-layer", "run"],
    &["batch-layer", "backfill"],
    &["batch-layer", "retry"],
    &["batch-layer", "rollback"],
    &["batch-layer", "schedule"],
    &["batch-layer", "archive"],
    &["batch-layer", "import"],
    &["batch-layer", "runs"],
    &["batch-layer", "retention"],
    &["batch-layer", "catalog", "of"],
    &["serving-layer", "serve"],
    &["serving-layer", "keys", "create"],
    &["serving-layer", "keys", "list"],
    &["serving-layer", "keys", "revoke"],
    &["simulator", "generate"],
    &["simulator", "prepare"],
    &["simulator", "replay"],
];

#[tokio::test(flavor = "multi_thread")]
async fn help_and_wrong_options_show_no_secret() {
    for command in COMMANDS {
        for (option, succeeds) in [("--help", true), ("--no-such-option", false)] {
            let output = program(&[command, &[option]].concat(), &[]).output().await.expect("it runs");
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.success(), succeeds, "{said}");
            assert!(said.contains(option), "{said}");
            look_through(&said, &format!("{command:?} {option}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_wrong_are_refused_without_showing_them() {
    const PROPERTIES: &str = "TIDEMARK_KAFKA_PROPERTIES";
    // Without =, with a ; in the value, with a name mistyped, with a value that can't be.
    let properties = [
        ("hunter2", "no property is at place 1 "),
        ("sasl.password=x;hunter2", "no property is at place 2 "),
        ("sasl.password=x;hunter2=y", "the property at place 2 "),
        ("linger.ms=1;sasl.pasword=hunter2", "the property at place 2 "),
        ("security.protocol=hunter2", "none that security.protocol can have"),
        ("@/nowhere", "the file /nowhere"),
    ];
    for (value, says) in properties {
        check(case(&["speed-layer", "run"], &[(PROPERTIES, value)], says)).await;
        check(case(&["speed-layer", "verify"], &[(PROPERTIES, value)], says)).await;
        check(case(&["speed-layer", "dead-letters", "list"], &[(PROPERTIES, value)], says)).await;
        check(case(&["speed-layer", "dead-letters", "replay"], &[(PROPERTIES, value)], says)).await;
        check(case(&["batch-layer", "run"], &[(PROPERTIES, value)], says)).await;
        check(case(&["simulator", "generate"], &[(PROPERTIES, value)], says)).await;
    }
    let urls = ["hunter2", "://u:hunter2@h", "@/nowhere", "@hunter2", "u:hunter2@h:1"];
    for url in urls {
        check(case(&["speed-layer", "run"], &[("TIDEMARK_POSTGRES", url)], "--postgres")).await;
        check(case(&["speed-layer", "run"], &[("TIDEMARK_REDIS", url)], "--redis")).await;
        check(case(&["serving-layer", "serve"], &[("TIDEMARK_POSTGRES", url)], "--postgres")).await;
        check(case(&["serving-layer", "serve"], &[("TIDEMARK_REDIS", url)], "--redis")).await;
        check(case(&["serving-layer", "serve"], &[("TIDEMARK_ACCESS", url)], "--access")).await;
        check(case(&["serving-layer", "keys", "list"], &[("TIDEMARK_ACCESS", url)], "--access")).await;
        check(case(&["batch-layer", "runs"], &[("TIDEMARK_POSTGRES", url)], "--postgres")).await;
        check(case(&["batch-layer", "run"], &[("TIDEMARK_REDIS", url)], "--redis")).await;
        check(case(&["speed-layer", "verify"], &[("TIDEMARK_REDIS", url)], "--redis")).await;
    }
    let of_redis = [
        ("redis://u:1/hunter2@127.0.0.1:1", "percent-encoded"),
        ("redis://127.0.0.1:1,u:hunter2/x@127.0.0.1:1", "percent-encoded"),
        ("redis://u:hunter2@127.0.0.1:hunter2", "expected redis://"),
        ("rediss://u:hunter2@127.0.0.1:1", "cannot read /nowhere (--redis-ca)"),
    ];
    for (url, says) in of_redis {
        let environment = [("TIDEMARK_REDIS", url), ("TIDEMARK_REDIS_CA", "/nowhere")];
        check(case(&["speed-layer", "run"], &environment, says)).await;
        check(case(&["serving-layer", "serve"], &environment, says)).await;
        check(case(&["batch-layer", "run"], &environment, says)).await;
    }
    let of_postgres = [
        ("postgres://u:hunter2/x@127.0.0.1:1/d", "percent-encoded"),
        ("postgres://u:1/hunter2@127.0.0.1:1/d", "percent-encoded"),
        ("postgres://u@127.0.0.1:1/d?pasword=hunter2", "a parameter that is none of"),
        ("postgres://u@127.0.0.1:1/d?sslmode=hunter2", "--postgres"),
        ("postgres://u@127.0.0.1:1/d?port=hunter2", "--postgres"),
    ];
    for (url, says) in of_postgres {
        check(case(&["speed-layer", "run"], &[("TIDEMARK_POSTGRES", url)], says)).await;
        check(case(&["serving-layer", "serve"], &[("TIDEMARK_POSTGRES", url)], says)).await;
        check(case(&["batch-layer", "runs"], &[("TIDEMARK_POSTGRES", url)], says)).await;
    }
    let archives = [
        ("s3://u:hunter2@bucket/x", "it holds a password"),
        ("s3://bucket/x?secret=hunter2", "it holds a password or parameters"),
        ("nope://hunter2@h/x", "can't be opened"),
        ("s3://u:hunter2@h:x", "can't be opened"),
        ("@/nowhere", "the file /nowhere"),
    ];
    for (url, says) in archives {
        check(case(&["batch-layer", "run"], &[("TIDEMARK_ARCHIVE", url)], says)).await;
    }
    let import =
        &["batch-layer", "import", "--stream", "events", "https://u:hunter2@127.0.0.1:1/a.csv?sig=hunter2"];
    check(case(import, &[], "it holds a password")).await;
    check(case(import, &[("AWS_SECRET_ACCESS_KEY", "@/nowhere")], "AWS_SECRET_ACCESS_KEY")).await;
    let import = &["batch-layer", "import", "--stream", "events", "http://127.0.0.1:1/a.csv"];
    check(case(import, &[], "import of http://127.0.0.1:1/a.csv")).await;
    const INPUT: &str = "events=https://u:hunter2@127.0.0.1:1/a.csv?sig=hunter2";
    let prepare = &["simulator", "prepare", "--out", "/nowhere", INPUT];
    check(case(prepare, &[], "holds a password or parameters")).await;
    let prepare = &["simulator", "prepare", "--out", "/nowhere", "events=ftp://u@h/a"];
    check(case(prepare, &[], "no object store for ftp://h/a")).await;
    let prepare = &["simulator", "prepare", "--out", "/nowhere", "events=https://u:hunter2@h:hunter2/a"];
    check(case(prepare, &[], "no URL that can be read")).await;
    let replay = &["simulator", "replay", "events=s3://bucket/a.csv"];
    check(case(replay, &[("AWS_SECRET_ACCESS_KEY", "@/nowhere")], "AWS_SECRET_ACCESS_KEY")).await;
}

/// Runs a service until `/readyz` says a thing, then looks through that, the metrics and the log.
async fn check_service(command: &[&str], environment: &[(&str, String)], says: &str) {
    let address = format!("127.0.0.1:{}", free_port());
    let mut process =
        program(&[command, &["--listen", &address]].concat(), environment).spawn().expect("it starts");
    let page = async |path: &str| {
        let answer = reqwest::get(format!("http://{address}/{path}")).await.map_err(|e| e.to_string())?;
        answer.text().await.map_err(|e| e.to_string())
    };
    let ready = wait_for("the service to say what is wrong", async || {
        let said = page("readyz").await?;
        if said.contains(says) { Ok(said) } else { Err(said) }
    })
    .await;
    let metrics = page("metrics").await.expect("metrics");
    process.kill().await.expect("killed");
    let mut said = ready + &metrics;
    process.stdout.take().expect("output").read_to_string(&mut said).await.expect("text");
    process.stderr.take().expect("errors").read_to_string(&mut said).await.expect("text");
    look_through(&said, &format!("{command:?} {environment:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_passwords_that_are_wrong_show_no_secret() {
    let ensure = || install::ensure(&[Need::Redis, Need::Postgres], Installing::Yes, &mut |_| {});
    let found = tokio::task::spawn_blocking(ensure).await.expect("the search").expect("servers");
    let scratch = local::servers::scratch().expect("a folder");
    // Passwords are asked of all but the owner, who sets up.
    let rules = scratch.path().join("pg_hba.conf");
    let text = "host all tidemark 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&rules, text).expect("rules");
    let settings = vec![("hba_file".to_owned(), rules.display().to_string())];
    let options = PostgresOptions { unsafe_fast: true, settings, ..PostgresOptions::default() };
    let postgres =
        Postgres::start(&found, &scratch.path().join("postgres"), options).await.expect("postgres");
    let mut owner = sqlx::PgConnection::connect(&postgres.url()).await.expect("the owner");
    sqlx::raw_sql("create role u login password 'right'").execute(&mut owner).await.expect("a role");
    let users = scratch.path().join("users.acl");
    std::fs::write(&users, "user default on nopass ~* &* +@all\nuser u on >right ~* &* +@all\n")
        .expect("users");
    let settings = vec![("aclfile".to_owned(), users.display().to_string())];
    let redis = RedisOptions { settings, ..RedisOptions::default() };
    let redis = Redis::start(&found, &scratch.path().join("redis"), redis).await;
    let redis = redis.expect("redis");

    let wrong_redis = format!("redis://u:hunter2@127.0.0.1:{}", redis.port());
    let right_redis = format!("redis://u:right@127.0.0.1:{}", redis.port());
    let wrong_postgres = format!("postgres://u:hunter2@127.0.0.1:{}/postgres", postgres.port());
    // What Kafka's client talks to is no broker: it fails in its own ways, and logs them.
    let no_broker = format!("127.0.0.1:{}", redis.port());
    let sasl = "security.protocol=SASL_PLAINTEXT;sasl.mechanism=PLAIN;sasl.username=u;sasl.password=hunter2;debug=all";
    let speed = ["speed-layer", "run"];
    check_service(&speed, &[], "waiting for redis").await;
    check_service(&speed, &[("TIDEMARK_REDIS", wrong_redis.clone())], "waiting for redis").await;
    check_service(
        &speed,
        &[
            ("TIDEMARK_REDIS", right_redis),
            ("TIDEMARK_POSTGRES", wrong_postgres.clone()),
            ("TIDEMARK_KAFKA", no_broker.clone()),
            ("TIDEMARK_KAFKA_PROPERTIES", sasl.to_owned()),
        ],
        "waiting for postgres",
    )
    .await;
    let serving = ["serving-layer", "serve"];
    check_service(&serving, &[], "can't be read").await;
    let wrong = [("TIDEMARK_REDIS", wrong_redis), ("TIDEMARK_POSTGRES", wrong_postgres.clone())];
    check_service(&serving, &wrong, "can't be read").await;
    let wrong = [("TIDEMARK_ACCESS", wrong_postgres.as_str())];
    check(case(&["serving-layer", "keys", "list"], &wrong, "the database of keys")).await;
    check(case(&["batch-layer", "runs"], &[], "postgres can't be reached")).await;
    let says = "password authentication failed";
    check(case(&["batch-layer", "runs"], &[("TIDEMARK_POSTGRES", &wrong_postgres)], says)).await;
    check(case(&["batch-layer", "run"], &[("TIDEMARK_POSTGRES", &wrong_postgres)], says)).await;
    let kafka = [("TIDEMARK_KAFKA", no_broker.as_str()), ("TIDEMARK_KAFKA_PROPERTIES", sasl)];
    check(case(&["simulator", "generate"], &kafka, "no answer from kafka")).await;
}
