//! Merged SQL on real servers (feature `sql`): every table's rows are the API's, whatever speaks to Postgres reads them, all
//! tables of a statement are of one tidemark, and nothing is read without a key, nor written at all.

use chrono::{DateTime, Utc};
use local::layers::Layer;
use local::probe::Serving;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shared_model::time::show;
use simulator::generate::Generator;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Column as _, Connection as _, PgConnection, Row as _, TypeInfo as _};
use std::collections::BTreeMap;
use std::process::Stdio;
use tidemark_tests::events::town;
use tidemark_tests::stack::{Stack, free_port, outbrain};
use tidemark_tests::{grafana, wait_for};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const ROLES: &str = include_str!("../infra/postgres/roles.sql");
/// What psql, Metabase, Grafana and DBeaver ask before anyone asks anything.
const STARTUP: &str = include_str!("sql/startup.sql");

/// A Tidemark that has records on both sides of the tidemark, and where its SQL is served.
struct Merged {
    stack: Stack,
    speed: Layer,
    _layer: Layer,
    serving: Serving,
    /// `postgres://tidemark@...`
    sql: String,
}

impl Merged {
    async fn start(seed: u64) -> Merged {
        let stack = Stack::start(LAYERS, 2).await;
        stack.batch(&["run"]).await;
        let speed = stack.speed();
        let deliveries: Vec<_> = Generator::new(town(3_000), seed).collect();
        let (below, above) = deliveries.split_at(2_000);
        stack.send(below);
        stack.settle().await;
        stack.run_past_the_end().await;
        stack.send(above);
        stack.settle().await;
        let address = format!("127.0.0.1:{}", free_port());
        let (layer, serving) = stack.serving_with(&["--sql-listen", &address]).await;
        let sql = format!("postgres://anyone@{address}/tidemark");
        Merged { stack, speed, _layer: layer, serving, sql }
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.sql).await.expect("a connection for SQL")
    }
}

/// A statement's rows: for each column its value, of times milliseconds since 1970.
async fn rows(connection: &mut PgConnection, sql: &str) -> Vec<BTreeMap<String, Value>> {
    let found = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await;
    found.unwrap_or_else(|error| panic!("{sql}: {error}")).iter().map(row).collect()
}

fn row(row: &PgRow) -> BTreeMap<String, Value> {
    let value = |at: usize, ty: &str| match ty {
        "TIMESTAMPTZ" => {
            json!(row.get::<Option<DateTime<Utc>>, _>(at).map(|time| time.timestamp_millis()))
        }
        "INT8" => json!(row.get::<Option<i64>, _>(at)),
        "FLOAT8" => json!(row.get::<Option<f64>, _>(at)),
        "BOOL" => json!(row.get::<Option<bool>, _>(at)),
        "TEXT" | "VARCHAR" => json!(row.get::<Option<String>, _>(at)),
        other => panic!("a column of type {other}"),
    };
    let columns = row.columns().iter().enumerate();
    columns.map(|(at, column)| (column.name().to_owned(), value(at, column.type_info().name()))).collect()
}

/// What a statement is refused with.
async fn refused(connection: &mut PgConnection, sql: &str) -> String {
    let asked = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await;
    match asked {
        Ok(rows) => panic!("{sql}: {} rows", rows.len()),
        Err(error) => error.to_string(),
    }
}

/// The API's rows of all keys and buckets of a metric, as SQL has them.
async fn asked(
    serving: &Serving,
    metric: &str,
    keys: &[String],
    value: &str,
) -> Vec<BTreeMap<String, Value>> {
    let mut query = json!({
        "metrics": [metric], "group_by": keys, "granularity": "grain", "from": "2000-01-01", "to": "2100-01-01",
        "limit": 1_000_000, "strict": true,
    });
    if metric.contains("_top") {
        query["k"] = json!(1_000_000);
    }
    let answer = serving.query(&query).await.expect("an answer");
    let at = |time: &Value| {
        let time = DateTime::parse_from_rfc3339(time.as_str().expect("a time")).expect("RFC 3339");
        json!(time.timestamp_millis())
    };
    let row = |row: &Value| {
        let mut found: BTreeMap<String, Value> = BTreeMap::new();
        for part in ["key", "item"] {
            let columns = row[part].as_object().into_iter().flatten();
            found.extend(columns.map(|(name, value)| (name.clone(), value.clone())));
        }
        for (name, of) in row["values"].as_object().expect("values") {
            let name = if name == metric { value } else { name };
            found.insert(name.to_owned(), of.clone());
        }
        found.insert("bucket".to_owned(), at(&row["bucket"]));
        found.insert("as_of".to_owned(), at(&answer["as_of"]));
        found.insert("complete".to_owned(), json!(true));
        found
    };
    answer["rows"].as_array().expect("rows").iter().map(row).collect()
}

fn sorted(mut rows: Vec<BTreeMap<String, Value>>) -> Vec<String> {
    // How far an answer reaches is another moment's in the next.
    rows.iter_mut().for_each(|row| drop(row.remove("as_of").expect("as_of")));
    let mut lines: Vec<String> = rows.iter().map(|row| json!(row).to_string()).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_has_the_api_s_rows_for_whatever_speaks_to_postgres() {
    let merged = Merged::start(151).await;
    let (catalog, serving) = (&merged.stack.catalog, &merged.serving);
    let mut connection = merged.connect().await;
    for metric in &catalog.metrics {
        let keys: Vec<String> = metric.by.iter().map(|key| key.name.clone()).collect();
        let value = if metric.name == "active_user" { "estimate" } else { "value" };
        let found = rows(&mut connection, &format!("select * from {}", metric.name)).await;
        let expected = asked(serving, &metric.name, &keys, value).await;
        assert!(expected.len() > 2, "{}", metric.name);
        assert_eq!(sorted(found), sorted(expected), "{}", metric.name);
    }
    for formula in &catalog.formulas {
        let keys: Vec<String> = formula.by.iter().map(|key| key.name.clone()).collect();
        let found = rows(&mut connection, &format!("select * from metrics.{}", formula.name)).await;
        assert!(found.len() > 2, "{}", formula.name);
        assert_eq!(sorted(found), sorted(asked(serving, &formula.name, &keys, "value").await));
    }
    conditions_are_pushed_down(&merged, &mut connection).await;
    tools_find_their_way(&merged, &mut connection).await;
    a_statement_is_taken_back(&merged).await;
    nothing_is_written(&mut connection).await;
    all_tables_of_a_statement_are_of_one_tidemark(&merged).await;
    what_is_incomplete_fails_unless_asked_for(merged).await;
}

/// A metric of which no run has computed the days yet: nobody takes a part for the whole, but who says so.
async fn what_is_incomplete_fails_unless_asked_for(mut merged: Merged) {
    let metric = "\n[metrics.hour_cnt]\nstream = \"page_views\"\naggregate = \"count\"\ngrain = \"1h\"\n";
    merged.stack.rewrite_catalog(&(outbrain() + metric));
    assert_eq!(merged.speed.stop().await, 0);
    let _speed = merged.stack.speed();
    merged.stack.send(&Generator::new(town(500), 154).collect::<Vec<_>>());
    merged.stack.settle().await;
    let address = format!("127.0.0.1:{}", free_port());
    let (_layer, _) = merged.stack.serving_with(&["--sql-listen", &address]).await;
    let mut connection =
        PgConnection::connect(&format!("postgres://anyone@{address}/tidemark")).await.expect("a connection");
    let said = refused(&mut connection, "select sum(value) from hour_cnt").await;
    assert!(said.contains("not computed yet") && said.contains("SET tidemark.strict = false"), "{said}");
    sqlx::raw_sql("set tidemark.strict = false").execute(&mut connection).await.expect("an option");
    let sql = "select count(*) as n, bool_or(complete) as any from hour_cnt";
    assert_eq!(rows(&mut connection, sql).await[0]["any"], json!(false));
    // That is the connection's own.
    let mut other =
        PgConnection::connect(&format!("postgres://anyone@{address}/tidemark")).await.expect("a connection");
    let said = refused(&mut other, "select sum(value) from hour_cnt").await;
    assert!(said.contains("not computed yet"), "{said}");
    let whole = rows(&mut connection, "select bool_and(complete) as every from doc_cnt").await;
    assert_eq!(whole[0]["every"], json!(true));
}

/// Conditions on time and keys reach the views; what they can't hold is tested behind them, with the same rows.
async fn conditions_are_pushed_down(merged: &Merged, connection: &mut PgConnection) {
    let all =
        rows(connection, "select uuid, bucket, value from user_view_cnt order by value desc, uuid, bucket")
            .await;
    let (user, bucket) =
        (all[0]["uuid"].as_str().expect("a user"), all[0]["bucket"].as_i64().expect("a time"));
    let from = DateTime::from_timestamp_millis(bucket).expect("a time");
    let to = from + chrono::Duration::minutes(40);
    let plan = |sql: &str| format!("explain {sql}");
    let literal = format!(
        "select uuid, bucket, value from user_view_cnt where bucket >= '{from}' and bucket < '{to}' and uuid in ('{user}', 'x') and value > 0"
    );
    let found = rows(connection, &literal).await;
    let expected: Vec<_> = all
        .iter()
        .filter(|row| {
            let time = row["bucket"].as_i64().expect("a time");
            row["uuid"] == user && (bucket..bucket + 2_400_000).contains(&time)
        })
        .cloned()
        .collect();
    assert!(!expected.is_empty());
    let lines = |rows: &[BTreeMap<String, Value>]| {
        let mut lines: Vec<String> = rows.iter().map(|row| json!(row).to_string()).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&found), lines(&expected));
    let explained = rows(connection, &plan(&literal)).await;
    let physical = explained.iter().map(|row| row["plan"].to_string()).collect::<String>();
    let pushed = format!(
        "MergedScan: user_view_cnt, buckets=[{}, {}), tests=2",
        show(bucket),
        show(to.timestamp_millis())
    );
    assert!(physical.contains(&pushed), "{physical}");
    // By parameters, as programs ask.
    let bound = sqlx::query(
        "select uuid, bucket, value from user_view_cnt where bucket >= $1 and bucket < $2 and uuid = $3",
    )
    .bind(from)
    .bind(to)
    .bind(user)
    .fetch_all(&mut *connection)
    .await
    .expect("rows");
    assert_eq!(lines(&bound.iter().map(row).collect::<Vec<_>>()), lines(&expected));
    // A span that begins at a boundary of the engine's own making, and a sum over keys.
    let sql = "select date_trunc('hour', bucket) as hour, sum(value) as views from user_view_cnt \
               where bucket > now() - interval '100 years' group by 1 order by 1";
    let hours = rows(connection, sql).await;
    let query = json!({ "metrics": ["user_view_cnt"], "granularity": "1h", "from": "2000-01-01", "to": "2100-01-01" });
    let answer = merged.serving.query(&query).await.expect("an answer");
    let expected: Vec<&Value> =
        answer["rows"].as_array().expect("rows").iter().map(|row| &row["values"]["user_view_cnt"]).collect();
    assert_eq!(hours.iter().map(|row| &row["views"]).collect::<Vec<_>>(), expected);
    let none =
        rows(connection, "select * from doc_cnt where bucket > '2016-06-01' and bucket < '2016-01-01'").await;
    assert_eq!(none.len(), 0);
}

/// psql itself, what other tools ask first, and the panels of the catalog's dashboard.
async fn tools_find_their_way(merged: &Merged, connection: &mut PgConnection) {
    let psql = |commands: &'static [&'static str]| {
        let mut psql = Command::new("psql");
        psql.arg(&merged.sql).args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        commands.iter().for_each(|command| {
            psql.args(["-c", command]);
        });
        psql
    };
    let run = async |commands: &'static [&'static str]| {
        let done = psql(commands).output().await.expect("psql runs");
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{commands:?}: {out}{err}");
        out.into_owned()
    };
    let listed = run(&["\\dv"]).await;
    for name in ["user_view_cnt", "active_user", "features_20m"] {
        assert!(listed.contains(name), "{listed}");
    }
    let described = run(&["\\d doc_cnt"]).await;
    for column in
        ["bucket|timestamp with time zone", "document_id|bigint", "value|bigint", "complete|boolean"]
    {
        assert!(described.contains(column), "{described}");
    }
    let shown = run(&["begin", "select count(*), sum(value) from doc_cnt", "commit"]).await;
    let counted = rows(connection, "select count(*) as n, sum(value) as clicks from doc_cnt").await;
    assert!(shown.contains(&format!("{}|{}", counted[0]["n"], counted[0]["clicks"])), "{shown}");

    for statement in STARTUP.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        let asked = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).fetch_all(&mut *connection).await;
        asked.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    let sql = "select column_name as name, data_type as type from information_schema.columns \
               where table_schema = 'metrics' and table_name = 'doc_cnt' order by ordinal_position";
    let columns = rows(connection, sql).await;
    let types: Vec<&str> = columns.iter().map(|row| row["type"].as_str().expect("a type")).collect();
    let time = "timestamp with time zone";
    assert_eq!(types, [time, "bigint", "bigint", time, "boolean"], "{columns:?}");
    let version = rows(connection, "select version() as v").await;
    assert!(version[0]["v"].as_str().expect("a text").starts_with("PostgreSQL 16"), "{version:?}");
    let mut panels = 0;
    for (title, sql) in grafana::statements(&merged.stack, grafana::MERGED, "") {
        let asked = sqlx::raw_sql(AssertSqlSafe(sql.clone())).fetch_all(&mut *connection).await;
        let rows = asked.unwrap_or_else(|error| panic!("{title}: {sql}: {error}"));
        assert!(!rows.is_empty(), "{title}: {sql}");
        panels += 1;
    }
    assert_eq!(panels, merged.stack.catalog.metrics.len() + merged.stack.catalog.formulas.len());
}

/// Ctrl-C in psql.
async fn a_statement_is_taken_back(merged: &Merged) {
    let mut psql = Command::new("psql");
    psql.arg(&merged.sql).args(["-X", "-A", "-t", "-c", "select 1"]);
    psql.args(["-c", "select count(*) from generate_series(1, 100000000000)"]);
    psql.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut psql = psql.spawn().expect("psql runs");
    let mut first = [0; 2];
    psql.stdout
        .as_mut()
        .expect("its output")
        .read_exact(&mut first)
        .await
        .expect("the first statement's row");
    let pid = Pid::from_raw(psql.id().expect("it runs") as i32).expect("a process");
    // As long as a person would: the statement may not have begun.
    wait_for("psql's end", async || match psql.try_wait().expect("its state") {
        Some(_) => Ok(()),
        None => {
            kill_process(pid, Signal::INT).expect("a signal");
            Err("still at work".to_owned())
        }
    })
    .await;
    let mut said = String::new();
    psql.stderr.take().expect("its errors").read_to_string(&mut said).await.expect("a text");
    assert!(said.contains("canceling statement due to user request"), "{said}");
}

async fn nothing_is_written(connection: &mut PgConnection) {
    for sql in [
        "insert into doc_cnt values (now(), 1, 1, now(), true)",
        "create table t (a int)",
        "select 1 into t",
        "copy doc_cnt to '/tmp/tidemark-must-not-be'",
        "create external table t stored as csv location '/etc/passwd'",
        "set datafusion.execution.target_partitions = 8",
        "set \"datafusion\".\"runtime\".\"memory_limit\" = '100G'",
        "declare c cursor for select 1 into t",
    ] {
        let said = refused(connection, sql).await;
        assert!(
            said.contains("read-only")
                || said.contains("can't be changed")
                || said.contains("syntax")
                || said.contains("parser"),
            "{sql}: {said}"
        );
    }
    assert!(!std::path::Path::new("/tmp/tidemark-must-not-be").exists());
    let said = refused(connection, "select * from nothing_of_the_kind").await;
    assert!(said.contains("nothing_of_the_kind"), "{said}");
    for (sql, why) in [
        ("select repeat('x', 2000000000)".to_owned(), "repeat"),
        ("select array[1]::bigint[2000000000]".to_owned(), "no fixed length"),
        ("select arrow_cast(array[1], 'FixedSizeList(2000000000, Int64)')".to_owned(), "arrow_cast"),
        (format!("select '{}'", "x".repeat(70_000)), "longer than the limit of 65536"),
        (format!("select /*'*/ {}1 /*'*/", "1+".repeat(1_001)), "more than the limit of 1000"),
    ] {
        let said = refused(connection, &sql).await;
        assert!(said.contains(why), "{why}: {said}");
    }
    // As deep as it may nest.
    let chain = format!("select {}1 as n", "1+".repeat(990));
    assert_eq!(rows(connection, &chain).await[0]["n"], json!(991));
    // A list of times reaches the views as their span.
    let listed =
        "explain select * from doc_cnt where bucket in ('2016-06-14T04:00:00Z', '2016-06-14T05:00:00Z')";
    let plan = rows(connection, listed).await.iter().map(|row| row["plan"].to_string()).collect::<String>();
    assert!(plan.contains("buckets=[2016-06-14T04:00:00.000Z, 2016-06-14T05:05:00.000Z)"), "{plan}");
    sqlx::raw_sql("set tidemark.strict = off").execute(&mut *connection).await.expect("an option");
    let said = refused(connection, "set tidemark.strict = perhaps").await;
    assert!(said.contains("expected true or false"), "{said}");
}

/// While records come, a statement that counts the same records by two metrics finds the same number.
async fn all_tables_of_a_statement_are_of_one_tidemark(merged: &Merged) {
    let mut connection = merged.connect().await;
    let stack = &merged.stack;
    let deliveries: Vec<_> = Generator::new(town(4_000), 152).collect();
    let sql = "select (select sum(value) from doc_cnt) as docs, (select sum(value) from display_cnt) as displays, \
               (select sum(value) from user_click_cnt) as users";
    let mut seen = std::collections::BTreeSet::new();
    let mut pieces = deliveries.chunks(400);
    let (mut rounds, mut settled) = (0, false);
    while !settled {
        match pieces.next() {
            Some(piece) => stack.send(piece),
            None => {
                stack.settle().await;
                settled = true;
            }
        }
        let found = &rows(&mut connection, sql).await[0];
        assert_eq!((&found["docs"], &found["docs"]), (&found["displays"], &found["users"]), "round {rounds}");
        seen.insert(found["docs"].as_i64().expect("a number"));
        rounds += 1;
    }
    assert!(seen.len() > 1, "nothing came in between: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_the_password() {
    let mut stack = Stack::start(LAYERS, 2).await;
    let mut owner = PgConnection::connect(&stack.database).await.expect("postgres");
    sqlx::raw_sql(ROLES).execute(&mut owner).await.expect("roles");
    let access = stack.database.replace("tidemark@", "tidemark_access@");
    stack.environment.push(("TIDEMARK_ACCESS".to_owned(), access));
    stack.batch(&["run"]).await;
    let _speed = stack.speed();
    stack.send(&Generator::new(town(800), 153).collect::<Vec<_>>());
    stack.settle().await;
    let address = format!("127.0.0.1:{}", free_port());
    let bounds = ["--sql-listen", &address, "--time-limit", "3s", "--sql-memory", "16"];
    let (layer, _) = stack.serving_with(&bounds).await;
    let key = async |options: &[&str]| {
        let command = [&["keys", "create", "someone"], options].concat();
        let made = stack.process_named("serving-layer", "keys", &command, &["catalog"]);
        assert_eq!(made.ended().await, 0, "{}", made.logged());
        let token = made.logged().lines().find(|line| line.starts_with("tm_")).expect("a token").to_owned();
        let url = format!("postgres://x:{token}@{address}/tidemark");
        wait_for("a key that is let in", async || {
            PgConnection::connect(&url).await.map_err(|error| error.to_string())
        })
        .await
    };
    for url in [format!("postgres://x@{address}/t"), format!("postgres://x:wrong@{address}/t")] {
        let error = PgConnection::connect(&url).await.map(drop).expect_err("no key").to_string();
        assert!(error.contains("a valid key is needed") || error.contains("password"), "{error}");
    }
    let mut reader = key(&["--read", "*"]).await;
    let users =
        rows(&mut reader, "select uuid, sum(value) as views from user_view_cnt group by uuid order by 1")
            .await;
    assert!(users.len() > 5);
    // More work than a statement may do, and more rows than it may hold.
    let said = refused(&mut reader, "select count(*) from generate_series(1, 1000000000000)").await;
    assert!(said.contains("worked longer than the limit of 3 s"), "{said}");
    let held = sqlx::query("select * from generate_series(1, 1000000000)").fetch_all(&mut reader).await;
    let said = held.expect_err("rows that wait to be sent").to_string();
    assert!(said.contains("Resources exhausted"), "{said}");
    // A partner sees its own rows, and what it may not read isn't there.
    let own = json!([{ "dimension": "uuid", "value": users[0]["uuid"] }]).to_string();
    let mut partner = key(&["--read", "user_view_cnt", "--rows", &own]).await;
    let seen = rows(&mut partner, "select uuid, sum(value) as views from user_view_cnt group by uuid").await;
    assert_eq!(seen, users[..1]);
    let said = refused(&mut partner, "select * from user_click_cnt").await;
    assert!(said.contains("not found"), "{said}");
    let tables =
        rows(&mut partner, "select table_name from information_schema.tables where table_schema = 'metrics'")
            .await;
    assert_eq!(tables, [BTreeMap::from([("table_name".to_owned(), json!("user_view_cnt"))])]);
    let sql = "select c.relname as name from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
               where n.nspname = 'metrics'";
    assert_eq!(
        rows(&mut partner, sql).await,
        [BTreeMap::from([("name".to_owned(), json!("user_view_cnt"))])]
    );
    // To prepare a statement and to run it is to ask once.
    let mut once = key(&["--read", "*", "--rate", "1"]).await;
    sqlx::query("select sum(value) from user_view_cnt where uuid <> $1")
        .bind("x")
        .fetch_all(&mut once)
        .await
        .expect("within its rate");
    // As often as it may.
    let mut hasty = key(&["--read", "*", "--rate", "0.01"]).await;
    let said = refused_in_the_end(&mut hasty).await;
    assert!(said.contains("may ask 0.01 times a second"), "{said}");

    // A key that is revoked ends its connections.
    let ids: Vec<String> =
        sqlx::query_scalar("select key_id from access.key").fetch_all(&mut owner).await.expect("keys");
    for id in ids {
        let revoke = stack.process_named("serving-layer", "keys", &["keys", "revoke", &id], &[]);
        assert_eq!(revoke.ended().await, 0, "{}", revoke.logged());
    }
    wait_for("the connection's end", async || match sqlx::raw_sql("select 1").execute(&mut partner).await {
        Ok(_) => Err("still served".to_owned()),
        Err(sqlx::Error::Io(_)) => Ok(()),
        Err(other) => Err(other.to_string()),
    })
    .await;
    assert_eq!(layer.stop().await, 0);
    let sql = "select count(*) from access.log where asked like '%uuid <> $1%'";
    let prepared: i64 = sqlx::query_scalar(sql).fetch_one(&mut owner).await.expect("the log");
    assert_eq!(prepared, 1, "prepared and run is one entry");
    let sql =
        "select distinct key_name || ' ' || method || ' ' || route from access.log where method = 'SQL'";
    let logged: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut owner).await.expect("the log");
    assert_eq!(logged, ["someone SQL sql"]);
}

/// Asks until it is refused, which the second time is.
async fn refused_in_the_end(connection: &mut PgConnection) -> String {
    for _ in 0..3 {
        if let Err(error) = sqlx::raw_sql("select 1").fetch_all(&mut *connection).await {
            return error.to_string();
        }
    }
    panic!("never refused");
}
