//! The same world in a real Postgres and a real Redis: both must answer as the views in memory do.
//!
//! Run with `TIDEMARK_TEST_POSTGRES_URL` (an empty database) and `TIDEMARK_TEST_REDIS_URL` (an empty server) set, and
//! `--ignored`; the workspace's end-to-end tests start servers of their own.

use super::law::queries;
use super::world::{NOW, World, fixed, span};
use crate::answer::{Answer, Views, answer};
use crate::batch_view::{MemoryVersion, PostgresBatchView};
use crate::config::RedisArgs;
use crate::live::{LiveRequest, live};
use crate::merge::Cell;
use crate::query::At;
use crate::realtime_view::RedisRealtimeView;
use crate::service::Service;
use serde_json::json;
use shared_model::aggregate::Column;
use shared_model::dense;
use shared_model::event::{FieldType, Value};
use shared_model::metric::Metric;
use shared_model::tidemark::Tidemark;
use shared_model::view::{self, MARKS_KEY};
use sqlx::postgres::PgPool;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Executor};
use std::sync::Arc;

/// Writes a flip as the batch layer does.
async fn flip(pool: &PgPool, world: &World, tidemark: &Tidemark, run: i64, versions: &[MemoryVersion]) {
    let insert_run = "insert into tidemark.run (run_id, kind, status, started_at, generation_after)
                      values ($1, 'run', 'done', now(), $2)";
    sqlx::query(insert_run).bind(run).bind(tidemark.generation).execute(pool).await.unwrap();
    for (stream, day) in world.days(tidemark) {
        let path = format!("{stream}/{day}/{run}");
        sqlx::query(
            "insert into tidemark.segment values ($1, $2, $2, 0, 0, 1, $3, 1, 1, '', null, $4, null)
             on conflict do nothing",
        )
        .bind(path)
        .bind(stream)
        .bind(day.date())
        .bind(tidemark.generation)
        .execute(pool)
        .await
        .unwrap();
    }
    for version in versions {
        let metric = world.catalog.metrics.iter().find(|metric| metric.version == version.version).unwrap();
        publish(pool, metric, version).await;
    }
    sqlx::query("insert into tidemark.tidemark values ($1, now(), $2, $3)")
        .bind(tidemark.generation)
        .bind(run)
        .bind(Json(tidemark.to_stored()))
        .execute(pool)
        .await
        .unwrap();
}

/// Makes a metric's parent, as before there were dense rows; with the arrays of such, where there are to be some.
async fn create_parent(pool: &PgPool, parent: &str, metric: &Metric, dense: bool) {
    let key = |ty| match ty {
        FieldType::Int => "bigint",
        FieldType::Bool => "boolean",
        _ => "text",
    };
    let keys = metric.key_columns().map(|c| format!("\"{}\" {}", c.name, key(c.ty)));
    let states: Vec<_> = metric.aggregate.columns();
    let columns = states.iter().map(|(name, ty)| format!("\"{name}\" {}", ty.name()));
    let columns: Vec<String> = keys.chain(columns).collect();
    let create = format!(
        "create table if not exists {parent} (version_id bigint not null, bucket timestamptz not null, {})
         partition by list (version_id)",
        columns.join(", ")
    );
    pool.execute(AssertSqlSafe(create)).await.unwrap();
    if dense {
        let add = |name: &str, ty: &str| format!("add column if not exists \"_{name}\" {ty}[]");
        let arrays = states.iter().map(|(name, ty)| add(name, ty.name()));
        let arrays: Vec<String> = [add("bucket", "timestamptz")].into_iter().chain(arrays).collect();
        let alter = format!("alter table {parent} {}", arrays.join(", "));
        pool.execute(AssertSqlSafe(alter)).await.unwrap();
    }
}

/// The first run has a cell in each row, as those of before. Of the one after it every other day is dense.
async fn publish(pool: &PgPool, metric: &Metric, version: &MemoryVersion) {
    let parent = format!("views.\"{}_{}\"", metric.name, metric.version);
    let dense = dense::further(metric) > 0 && version.run > 2 && version.day.0 % 2 == 0;
    create_parent(pool, &parent, metric, dense).await;
    let id: i64 = sqlx::query_scalar(
        "insert into tidemark.view_version
            (metric, version, event_day, attempt, table_name, rows, hash, inputs, run_id, created_at)
         values ($1, $2, $3, 1, $4, $5, '', '', $6, now()) returning version_id",
    )
    .bind(&metric.name)
    .bind(version.version.to_string())
    .bind(version.day.date())
    .bind(None::<String>)
    .bind(version.cells.len() as i64)
    .bind(version.run)
    .fetch_one(pool)
    .await
    .unwrap();
    if !version.cells.is_empty() {
        let end = if dense { dense::SUFFIX } else { "" };
        let table = format!("{}_{}_{id}{end}", metric.name, metric.version);
        let name = "update tidemark.view_version set table_name = $1 where version_id = $2";
        sqlx::query(name).bind(&table).bind(id).execute(pool).await.unwrap();
        let create = format!("create table views.\"{table}\" partition of {parent} for values in ({id})");
        pool.execute(AssertSqlSafe(create)).await.unwrap();
    }
    // Few in a row, so that a key has several rows.
    let most = if dense { 3 } else { 1 };
    for of_key in version.cells.chunk_by(|a, b| a.by == b.by && a.item == b.item) {
        for cells in of_key.chunks(most) {
            insert(pool, &parent, metric, id, cells).await;
        }
    }
    sqlx::query(
        "with old as (update tidemark.view_version v set retired_at = now() from tidemark.live_version l
                      where l.version_id = v.version_id and l.version = $2 and l.event_day = $3)
         insert into tidemark.live_version values ($1, $2, $3, $4)
         on conflict (version, event_day) do update set version_id = excluded.version_id",
    )
    .bind(&metric.name)
    .bind(version.version.to_string())
    .bind(version.day.date())
    .bind(id)
    .execute(pool)
    .await
    .unwrap();
}

/// Inserts cells of one key as a row.
async fn insert(pool: &PgPool, parent: &str, metric: &Metric, id: i64, cells: &[Cell]) {
    let (first, further) = cells.split_first().unwrap();
    let literal = |value: &Value| match value {
        Value::Null => "null".to_owned(),
        Value::Str(text) => format!("'{}'", text.replace('\'', "''")),
        other => other.to_string(),
    };
    let column = |column: &Column| match column {
        Column::BigInt(value) => value.map(|value| value.to_string()),
        Column::Numeric(value) => value.map(|value| value.to_string()),
        Column::Double(value) => value.map(|value| format!("{value:?}")),
        Column::Text(value) => value.as_ref().map(|text| format!("'{}'", text.replace('\'', "''"))),
        Column::Bool(value) => value.map(|value| value.to_string()),
        Column::Bytes(value) => value.as_ref().map(|bytes| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("'\\x{hex}'::bytea")
        }),
    };
    let columns = |cell: &Cell| -> Vec<String> {
        let stored = cell.state.to_columns(&metric.aggregate);
        stored.iter().map(|stored| column(stored).unwrap_or_else(|| "null".to_owned())).collect()
    };
    let time = |cell: &Cell| format!("to_timestamp({})", cell.bucket / 1_000);
    let mut values = vec![id.to_string(), time(first)];
    values.extend(first.by.iter().chain(&first.item).map(literal));
    values.extend(columns(first));
    if !further.is_empty() {
        let array = |of: Vec<String>, ty: &str| format!("array[{}]::{ty}[]", of.join(", "));
        values.push(array(further.iter().map(time).collect(), "timestamptz"));
        for (at, (_, ty)) in metric.aggregate.columns().into_iter().enumerate() {
            let of = further.iter().map(|cell| columns(cell)[at].clone()).collect();
            values.push(array(of, ty.name()));
        }
    }
    let sql = format!("insert into {parent} values ({})", values.join(", "));
    pool.execute(AssertSqlSafe(sql)).await.unwrap();
}

async fn seed(world: &World, kept: i64, cut: i64, postgres: &str, redis: &str) -> Views {
    let pool = PgPool::connect(postgres).await.unwrap();
    pool.execute("drop schema if exists tidemark cascade; drop schema if exists views cascade")
        .await
        .unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../batch-layer/migrations"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
    files.sort();
    for file in files {
        pool.execute(AssertSqlSafe(std::fs::read_to_string(file).unwrap())).await.unwrap();
    }
    let layout = world.catalog.layout;
    let insert = "insert into tidemark.layout values (true, $1, $2, $3)";
    let query = sqlx::query(insert).bind(layout.epoch.0).bind(layout.groups as i32).bind(layout.pane);
    query.execute(&pool).await.unwrap();
    flip(&pool, world, &world.tidemark(0, 0), 1, &[]).await;
    for (generation, run, cut) in [(1, 2, cut / 2), (2, 3, cut)] {
        let tidemark = world.tidemark(generation, cut);
        flip(&pool, world, &tidemark, run, &world.batch(&tidemark, run)).await;
    }
    let mut connection =
        redis::Client::open(redis).unwrap().get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
    for (key, tp, header, segments) in world.realtime(kept) {
        let mut command = redis::cmd("HSET");
        command.arg(&key).arg("h").arg(header.to_json()).arg("f").arg(header.fence()).arg("o").arg("token");
        for (seq, (slice, bytes)) in segments.iter().enumerate() {
            command.arg(view::segment_field(*slice, seq as u64)).arg(bytes);
        }
        command.exec_async(&mut connection).await.unwrap();
        let mark = json!({ "trusted": header.trusted.newest, "watermark": header.watermark, "clock": header.clock,
                           "caught_up": true, "generation": 2 });
        let mut command = redis::cmd("HSET");
        command.arg(MARKS_KEY).arg(tp.to_string()).arg(mark.to_string());
        command.exec_async(&mut connection).await.unwrap();
    }
    let redis =
        RedisArgs { redis: redis.parse().unwrap(), redis_ca: None, redis_cert: None, redis_key: None };
    Views {
        catalog: world.catalog.clone(),
        batch: Arc::new(PostgresBatchView::new(postgres, 4).unwrap()),
        realtime: Arc::new(RedisRealtimeView::new(redis.address().unwrap(), 64 << 20)),
        limits: Default::default(),
    }
}

async fn at(views: &Views, query: &crate::query::Query, at: At) -> Result<Answer, crate::error::ServeError> {
    Ok(answer(views, std::slice::from_ref(query), at).await?.remove(0))
}

async fn ask(views: &Views, query: &crate::query::Query) -> Answer {
    at(views, query, At::Now).await.unwrap_or_else(|error| panic!("{query:?}: {error:?}"))
}

#[tokio::test]
#[ignore = "needs an empty Postgres and Redis: TIDEMARK_TEST_POSTGRES_URL, TIDEMARK_TEST_REDIS_URL"]
async fn real_servers_answer_as_memory_does() {
    let postgres = std::env::var("TIDEMARK_TEST_POSTGRES_URL").unwrap();
    let redis = std::env::var("TIDEMARK_TEST_REDIS_URL").unwrap();
    let world = World::new(&fixed());
    let views = seed(&world, 1, 2, &postgres, &redis).await;
    let (memory, ..) = world.views(1, 2);
    for request in queries() {
        let query = world.query(span(request.clone()));
        let (found, expected) = (ask(&views, &query).await, ask(&memory, &query).await);
        assert_eq!(found.rows, expected.rows, "{request}");
        assert_eq!(found.coverage.reasons(), Vec::<String>::new(), "{request}");
        assert!(!found.batch.runs.is_empty() && found.coverage.cells > 0, "{request}");
    }
    for op in ["=", "!=", "<", "<=", ">", ">=", "like"] {
        let filters = json!([{ "dimension": "uuid", "op": op, "value": "u2" }]);
        let request = json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "filters": filters });
        let query = world.query(span(request));
        assert_eq!(ask(&views, &query).await.rows, ask(&memory, &query).await.rows, "{op}");
    }
    let test = |op: &str, value: &str| json!({ "dimension": "uuid", "op": op, "value": value });
    for tree in [
        json!({ "or": [test("=", "u1"), test(">", "u3")] }),
        json!({ "not": { "and": [test(">=", "u1"), { "not": test("like", "%3") }] } }),
        json!([{ "or": [test("=", "a\u{0}b"), { "dimension": "uuid", "op": "is_not_null" }] }, test("!=", "u0")]),
    ] {
        let request = json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "filters": tree });
        let query = world.query(span(request));
        assert_eq!(ask(&views, &query).await.rows, ask(&memory, &query).await.rows, "{tree}");
    }
    for granularity in ["total", "grain", "7h", "day", "week"] {
        let request = json!({ "metrics": ["user_view_cnt", "doc_sum"], "granularity": granularity,
                              "from": "2016-06-15T03:00:00Z", "to": "2016-06-16T21:00:00Z" });
        let query = world.query(request);
        assert_eq!(ask(&views, &query).await.rows, ask(&memory, &query).await.rows, "{granularity}");
    }
    for (zone, granularity) in
        [("Asia/Tokyo", "week"), ("America/New_York", "7h"), ("Pacific/Chatham", "month")]
    {
        let request = json!({ "metrics": ["doc_cnt"], "granularity": granularity, "time_zone": zone });
        let query = world.query(span(request));
        assert_eq!(ask(&views, &query).await.rows, ask(&memory, &query).await.rows, "{zone}");
    }
    let service = Service::new(views.clone(), || NOW);
    service.refresh().await.unwrap();
    assert_eq!(service.unready(), Vec::<String>::new());
    let metric = world.catalog.live("geo_top_5m").unwrap();
    let request = LiveRequest::parse(metric, &[]).unwrap();
    let reply = live(&views, &service.known(), metric, metric.window.unwrap(), &request).await.unwrap();
    assert_eq!(reply.items.map(|items| items.len()), Some(1));
    let request = span(json!({ "metrics": ["user_view_cnt"] }));
    let mut counted = Vec::new();
    for run in [2, 3] {
        let answered = at(&views, &world.query(request.clone()), At::Run(run)).await.unwrap();
        assert_eq!(answered.coverage.reasons(), Vec::<String>::new());
        counted.push(answered.rows.rows[0].values[0].clone());
    }
    assert_ne!(counted[0], counted[1]);
    assert!(at(&views, &world.query(request.clone()), At::Run(77)).await.is_err());
    dead_connections_are_replaced(&views, &world.query(request), &postgres).await;
}

/// Ends every connection while it is idle: who asks next is answered as before.
async fn dead_connections_are_replaced(views: &Views, query: &crate::query::Query, postgres: &str) {
    let pool = PgPool::connect(postgres).await.unwrap();
    let expected = ask(views, query).await.rows;
    for _ in 0..3 {
        futures::future::join_all((0..4).map(|_| ask(views, query))).await;
        let sql = "select count(pg_terminate_backend(pid, 60000)) from pg_stat_activity
                   where application_name = 'tidemark-serving' and datname = current_database()";
        let ended: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
        assert!(ended > 0);
        for answer in futures::future::join_all((0..4).map(|_| ask(views, query))).await {
            assert_eq!(answer.rows, expected);
        }
        assert!(views.batch.position(None).await.unwrap().is_some());
        assert!(views.batch.audits(1).await.unwrap().is_empty());
    }
}
