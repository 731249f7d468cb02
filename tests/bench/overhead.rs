//! What the serving layer adds to the calls that it makes: how long requests take, beside the same calls to Redis and
//! Postgres made by the bench itself, without decoding or merge, with HTTP and without.
//!
//! All three come in turn, one at a time, so that whatever else the machine does falls on each. That they are the same calls
//! is held against what Redis and Postgres say that they were asked.

use crate::Args;
use crate::bare::{Bare, Made};
use crate::figures::line;
use crate::load::{Ask, Call, Latency, Load};
use crate::questions::{Draw, Questions};
use crate::requests::Requests;
use crate::traffic;
use crate::world::{DAYS, END, World};
use anyhow::{Context as _, ensure};
use chrono::{DateTime, NaiveDate};
use futures::future::try_join_all;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use redis::aio::MultiplexedConnection;
use shared_model::dense;
use shared_model::event::Value;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::time::{DAY, EventDay};
use shared_model::view::{FENCE_FIELD, MARKS_KEY, group_key, group_of};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidemark_tests::stack::Stack;

/// As many connections as the serving layer has by default.
const CONNECTIONS: u32 = 16;
/// So often calls are made over all of them before any is measured.
const WARM_UP: usize = 100;

const BEGIN: &str = "begin isolation level repeatable read read only; set local statement_timeout = 30000;
                     set local client_connection_check_interval = '1s';
                     set local plan_cache_mode = force_generic_plan";
const OPENING: &str = include_str!("../../serving-layer/src/batch_view/postgres/opening.sql");

/// Compares requests with their calls alone, and with their calls behind a server that does nothing else.
pub(crate) async fn measure(args: &Args, world: &World) -> anyhow::Result<()> {
    let (questions, bare) = (world.questions(), Bare::new()?);
    let connect = || Calls::connect(&world.stack, args.partitions);
    let (alone, behind) = (Arc::new(connect().await?), Arc::new(bare.within(connect()).await?));
    let live = Beside {
        alone: about(questions.recent(), Calls::of_live(&alone)),
        behind: Questions::behind(&bare.serve(Calls::of_live(&behind)).await?, questions.recent()),
    };
    let merged = Beside {
        alone: about(questions.frequent(), Calls::of_merged(&alone)),
        behind: Questions::behind(&bare.serve(Calls::of_merged(&behind)).await?, questions.frequent()),
    };
    compare(args, world, "live counter of one key", &questions.live(), &live).await?;
    compare(args, world, "merged query, one key over 30 days", &questions.one_key(DAYS), &merged).await
}

/// What a request is measured beside: its calls.
struct Beside {
    /// Made by the bench.
    alone: Ask,
    /// Asked for over HTTP.
    behind: Arc<Requests>,
}

/// Makes calls about a key that is drawn anew each time.
fn about(draw: Draw, made: Made) -> Ask {
    Arc::new(move |random: &mut SmallRng| -> Call { made(draw(random)) })
}

/// Compares a request with its calls, at a rate so low that none waits for another.
async fn compare(
    args: &Args,
    world: &World,
    name: &str,
    requests: &Arc<Requests>,
    Beside { alone, behind }: &Beside,
) -> anyhow::Result<()> {
    let load = Load::new(args, world);
    // Then all connections are there, with their statements prepared.
    for requests in [requests, behind] {
        load.closed(requests, Duration::from_secs(1)).await?;
    }
    let mut random = SmallRng::seed_from_u64(args.seed);
    for _ in 0..WARM_UP {
        try_join_all((0..CONNECTIONS).map(|_| alone(&mut random))).await?;
    }
    let (request, behind) = (requests.one_at_a_time().await?, behind.one_at_a_time().await?);
    for ask in [&request, &behind] {
        let same = traffic::same(&world.stack, [ask, alone]).await;
        same.with_context(|| format!("{name}, beside its calls alone"))?;
    }
    let mut runs: Vec<[Latency; 3]> = Vec::new();
    for _ in 0..args.runs {
        let [request, behind, alone] = load.in_turn([&request, &behind, alone], args.low_rate).await?;
        runs.push([Latency::of(request)?, Latency::of(behind)?, Latency::of(alone)?]);
    }
    println!("{name}, {} a second, beside its calls (wanted: at most 1.3 x):", args.low_rate);
    for which in ["p50", "p99"] {
        let figure = |taken: &Latency| if which == "p50" { taken.p50 } else { taken.p99 };
        let of = |place: usize| -> Vec<f64> { runs.iter().map(|run| figure(&run[place])).collect() };
        let over = |place: usize| -> Vec<f64> {
            runs.iter().map(|run| figure(&run[0]) / figure(&run[place])).collect()
        };
        line(&format!("{which}, ms"), &of(0), 3);
        line(&format!("{which} of its calls behind bare HTTP, ms"), &of(1), 3);
        line(&format!("{which} of its calls, ms"), &of(2), 3);
        line(&format!("{which} over its calls behind bare HTTP"), &over(1), 2);
        line(&format!("{which} over its calls"), &over(2), 2);
    }
    Ok(())
}

/// The calls of requests for a user's views, where the serving layer has read the realtime view already, and nothing was
/// written since.
struct Calls {
    postgres: PgPool,
    redis: MultiplexedConnection,
    metric: Arc<Metric>,
    partitions: Vec<TopicPartition>,
    groups: u32,
}

impl Calls {
    async fn connect(stack: &Stack, partitions: i32) -> anyhow::Result<Calls> {
        let mut servers = stack.redis.connections().await;
        ensure!(servers.len() == 1, "of a Redis Cluster other calls are made than those known here");
        Ok(Calls {
            postgres: PgPoolOptions::new()
                .max_connections(CONNECTIONS)
                .test_before_acquire(false)
                .connect(&stack.database)
                .await?,
            redis: servers.remove(0),
            metric: stack.catalog.metric("user_view_cnt").context("a metric of the peer")?.clone(),
            partitions: (0..partitions).map(|partition| TopicPartition::new("events", partition)).collect(),
            groups: stack.catalog.layout.groups,
        })
    }

    /// The groups of each partition that may hold a user.
    fn keys(&self, user: &str) -> Vec<String> {
        let mut key = Vec::new();
        Value::str(user).encode(&mut key);
        let group = group_of(&key, self.groups);
        self.partitions.iter().map(|tp| group_key(tp, group, self.groups)).collect()
    }

    /// Makes those of a live counter.
    fn of_live(calls: &Arc<Calls>) -> Made {
        let calls = calls.clone();
        Arc::new(move |user: String| -> Call {
            let calls = calls.clone();
            Box::pin(async move { calls.live(&user).await })
        })
    }

    /// Makes those of a merged query.
    fn of_merged(calls: &Arc<Calls>) -> Made {
        let calls = calls.clone();
        Arc::new(move |user: String| -> Call {
            let calls = calls.clone();
            Box::pin(async move { calls.merged(&user).await })
        })
    }

    /// Those of a live counter: the fences of its groups and then the marks, in one go.
    async fn live(&self, user: &str) -> anyhow::Result<()> {
        let mut all = redis::pipe();
        for key in self.keys(user) {
            all.cmd("HGET").arg(key).arg(FENCE_FIELD);
        }
        all.cmd("HGETALL").arg(MARKS_KEY);
        let mut connection = self.redis.clone();
        let answers: Vec<redis::Value> = all.query_async(&mut connection).await?;
        ensure!(!answers.contains(&redis::Value::Nil), "a group of {user} is not there");
        Ok(())
    }

    /// Those of a merged query: in one snapshot of the batch view what is in force there, and the rows; the marks and the
    /// fences of the groups between them.
    async fn merged(&self, user: &str) -> anyhow::Result<()> {
        let mut connection = self.postgres.acquire().await?;
        sqlx::raw_sql(BEGIN).execute(&mut *connection).await?;
        let versions = self.versions(&mut connection).await?;
        self.fences(user).await?;
        self.rows(&mut connection, &versions, user).await?;
        // Nor does the serving layer wait for it.
        tokio::spawn(async move { sqlx::raw_sql("commit").execute(&mut *connection).await });
        Ok(())
    }

    /// What is in force: the tidemark, the versions of the days, the days that have none, and what the log had lost. Gives
    /// the versions.
    async fn versions(&self, connection: &mut PgConnection) -> anyhow::Result<BTreeMap<NaiveDate, i64>> {
        let (from, to) = (EventDay::of(END - DAYS * DAY).date(), EventDay::of(END).date());
        let opening = sqlx::query(OPENING).bind(vec![self.metric.version.to_string()]);
        let opening = opening.bind(vec![from]).bind(vec![to]).bind(vec![1i64]);
        let row =
            opening.bind(vec!["events".to_owned()]).bind("force_generic_plan").fetch_one(connection).await?;
        let (days, ids): (Vec<NaiveDate>, Vec<i64>) = (row.try_get(4)?, row.try_get(5)?);
        let tables: Vec<Option<String>> = row.try_get(7)?;
        let versions = days.into_iter().zip(ids).zip(tables);
        Ok(versions.filter(|(_, table)| table.is_some()).map(|(version, _)| version).collect())
    }

    /// The marks, and then the fences of a user's groups.
    async fn fences(&self, user: &str) -> anyhow::Result<()> {
        let mut connection = self.redis.clone();
        let _marks: redis::Value = redis::cmd("HGETALL").arg(MARKS_KEY).query_async(&mut connection).await?;
        let mut all = redis::pipe();
        for key in self.keys(user) {
            all.cmd("HGET").arg(key).arg(FENCE_FIELD);
        }
        let fences: Vec<Option<String>> = all.query_async(&mut connection).await?;
        ensure!(!fences.contains(&None), "a group of {user} is not there");
        Ok(())
    }

    async fn rows(
        &self,
        connection: &mut PgConnection,
        versions: &BTreeMap<NaiveDate, i64>,
        user: &str,
    ) -> anyhow::Result<()> {
        let ids: Vec<String> = versions.values().map(ToString::to_string).collect();
        let rows = format!(r#"views."{}_{}" v"#, self.metric.name, self.metric.version);
        let sql = format!(
            r#"select "uuid", $1, sum("value")::bigint from {}
               where version_id = any(array[{}]::bigint[]) and bucket >= $1 and bucket < $2 and "uuid" = $3
               group by 1, 2"#,
            dense::cells_of_few(&rows, &["version_id"], &self.metric, &self.metric.aggregate.columns()),
            ids.join(", ")
        );
        let from = DateTime::from_timestamp_millis(END - DAYS * DAY).context("a time")?;
        let to = DateTime::from_timestamp_millis(END).context("a time")?;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(from).bind(to);
        query.bind(user.to_owned()).fetch_all(&mut *connection).await?;
        Ok(())
    }
}
