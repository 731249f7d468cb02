//! One Tidemark of its own for a test: Kafka, Redis and Postgres on free ports, a catalog with epochs of a second,
//! and the layers as processes that can be killed.

use crate::redis_servers::{RedisServers, Topology};
use crate::shop::events::Record;
use crate::wait_for;
use local::compare;
use local::install::{self, Found, Installing, Need};
use local::layers::Layer;
use local::oracle::Oracle;
use local::probe::{Probe, Serving};
use local::servers::{Kafka, KafkaOptions, Postgres, PostgresOptions, RedisOptions};
use local::stack::with_layout;
use shared_model::catalog::{Catalog, OUTBRAIN};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{StoredCut, Tidemark};
use simulator::generate::Delivery;
use simulator::replay::Sender;
use sqlx::types::Json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The layout of most tests: epochs of a second, so that runs needn't wait for one to end.
pub const LAYOUT: &str = "epoch = \"1s\"\ngroups = 4\npane = \"10s\"";

/// The shipped catalog with [`LAYOUT`].
pub fn outbrain() -> String {
    with_layout(OUTBRAIN, LAYOUT)
}

/// A killed worker's partitions are taken over so soon.
const SESSION: (&str, &str) = ("TIDEMARK_KAFKA_PROPERTIES", "session.timeout.ms=3000");

/// How most tests start a speed worker: with short intervals.
pub const SPEED: [&str; 7] =
    ["run", "--listen", "127.0.0.1:0", "--flush-interval", "50ms", "--epoch-grace", "1s"];

/// How the servers of a test are started.
#[derive(Default)]
pub struct Servers {
    /// The broker.
    pub kafka: KafkaOptions,
    /// Redis, or each master of a Cluster.
    pub redis: RedisOptions,
    /// Which of them.
    pub topology: Topology,
    /// Postgres, which forces no writes to disk in any case.
    pub postgres: PostgresOptions,
}

/// Servers, catalog and archive of one test. Layers are started from it.
pub struct Stack {
    /// The broker.
    pub kafka: Kafka,
    /// The realtime view's store.
    pub redis: RedisServers,
    /// The batch view's store.
    pub postgres: Postgres,
    /// The valid catalog.
    pub catalog: Catalog,
    /// The URL of the database.
    pub database: String,
    /// The URL of the archive.
    pub archive: String,
    /// What the layers' processes get beside what they inherit: an archive's credentials.
    pub environment: Vec<(String, String)>,
    /// Looks at it from outside.
    pub probe: Probe,
    program: PathBuf,
    folder: PathBuf,
    // Last: goes away after the servers that live in it.
    _scratch: tempfile::TempDir,
}

impl Stack {
    /// Starts the servers and makes the topics, with `partitions` each. `program` is the binary that is re-executed
    /// as the layers.
    pub async fn start(program: &str, partitions: i32) -> Stack {
        Stack::with_layout(program, partitions, LAYOUT).await
    }

    /// The same with a `[layout]` of one's own.
    pub async fn with_layout(program: &str, partitions: i32, layout: &str) -> Stack {
        Stack::with_catalog(program, partitions, &with_layout(OUTBRAIN, layout)).await
    }

    /// The same with a whole catalog of one's own, over its own topics.
    pub async fn with_catalog(program: &str, partitions: i32, text: &str) -> Stack {
        Stack::with_servers(program, partitions, text, Servers::default()).await
    }

    /// The same with servers of one's own choice.
    pub async fn with_servers(program: &str, partitions: i32, text: &str, servers: Servers) -> Stack {
        let stack = Stack::without_topics(program, text, servers).await;
        for topic in &stack.probe.topics {
            stack.kafka.create_topic(topic, partitions, &[]).await.expect("topic");
        }
        stack
    }

    /// The same with topics yet to be made.
    pub async fn without_topics(program: &str, text: &str, servers: Servers) -> Stack {
        let catalog = Catalog::from_toml(text).expect("a valid catalog");
        let topics: Vec<String> = catalog.streams.iter().map(|stream| stream.topic.to_string()).collect();
        let found = found().await;
        let scratch = local::servers::scratch().expect("a temporary folder");
        let folder = scratch.path().to_owned();
        let (kafka, redis, postgres) = (folder.join("kafka"), folder.join("redis"), folder.join("postgres"));
        let fast = PostgresOptions { unsafe_fast: true, ..servers.postgres };
        let (kafka, redis, postgres) = tokio::try_join!(
            Kafka::start(&found, &kafka, servers.kafka),
            RedisServers::start(&found, &redis, servers.redis, servers.topology),
            Postgres::start(&found, &postgres, fast),
        )
        .expect("servers");
        let database = postgres.create_database("tidemark").await.expect("database");
        std::fs::write(folder.join("catalog.toml"), text).expect("catalog file");
        let archive = format!("file://{}", folder.join("archive").display());
        let (bootstrap, groups) = (kafka.bootstrap(), catalog.layout.groups);
        let probe = Probe { kafka: bootstrap, topics, redis: redis.url(), groups };
        let program = PathBuf::from(program);
        Stack {
            kafka,
            redis,
            postgres,
            catalog,
            database,
            archive,
            environment: [("TIDEMARK_NICE", "0"), SESSION]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            probe,
            program,
            folder,
            _scratch: scratch,
        }
    }

    /// Workers' sessions are as long as they are where nobody says otherwise.
    #[must_use]
    pub fn with_usual_sessions(mut self) -> Stack {
        self.environment.retain(|(name, _)| name != SESSION.0);
        self
    }

    /// Gives the layers that are started from now on another catalog, of the same streams and layout.
    pub fn rewrite_catalog(&mut self, text: &str) {
        self.catalog = Catalog::from_toml(text).expect("a valid catalog");
        std::fs::write(self.folder.join("catalog.toml"), text).expect("catalog file");
    }

    fn arguments(&self, command: &[&str], connections: &[&str]) -> Vec<String> {
        let all = [
            ("--catalog", self.folder.join("catalog.toml").display().to_string()),
            ("--kafka", self.kafka.bootstrap()),
            ("--redis", self.probe.redis.clone()),
            ("--postgres", self.database.clone()),
            ("--archive", self.archive.clone()),
        ];
        let wanted = all.into_iter().filter(|(name, _)| connections.contains(&&name[2..]));
        let command = command.iter().map(|part| (*part).to_owned());
        command.chain(wanted.flat_map(|(name, value)| [name.to_owned(), value])).collect()
    }

    /// Starts a speed worker.
    pub fn speed(&self) -> Layer {
        self.speed_named("speed-layer")
    }

    /// The same with a log of its own, so that several can be told apart.
    pub fn speed_named(&self, name: &str) -> Layer {
        self.process_named("speed-layer", name, &SPEED, &["catalog", "kafka", "redis", "postgres"])
    }

    /// Starts a batch command.
    pub fn batch_process(&self, command: &[&str]) -> Layer {
        self.process("batch-layer", command, &["catalog", "kafka", "postgres", "archive"])
    }

    /// Starts a command with just the connections that it knows, out of catalog, kafka, redis, postgres, archive.
    pub fn process(&self, layer: &'static str, command: &[&str], connections: &[&str]) -> Layer {
        self.process_named(layer, layer, command, connections)
    }

    /// The same with a log of its own.
    pub fn process_named(
        &self,
        layer: &'static str,
        name: &str,
        command: &[&str],
        connections: &[&str],
    ) -> Layer {
        let (log, arguments) =
            (self.folder.join(format!("{name}.log")), self.arguments(command, connections));
        Layer::start_in(&self.program, layer, &arguments, &self.environment, &log).expect("a layer's process")
    }

    /// What a command of a layer that needs nothing but the catalog prints.
    ///
    /// # Panics
    /// Where it fails, with what it says.
    pub fn printed(&self, layer: &str, command: &[&str]) -> String {
        let mut program = std::process::Command::new(&self.program);
        program.arg(layer).args(command).env("TIDEMARK_CATALOG", self.folder.join("catalog.toml"));
        let done = program.output().expect("the program starts");
        assert!(done.status.success(), "{layer} {command:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("a text")
    }

    /// The same with variables of its own.
    pub fn process_in(
        &self,
        layer: &'static str,
        command: &[&str],
        connections: &[&str],
        variables: &[(String, String)],
    ) -> Layer {
        let (log, mut environment) = (self.folder.join(format!("{layer}.log")), self.environment.clone());
        environment.extend_from_slice(variables);
        let arguments = self.arguments(command, connections);
        Layer::start_in(&self.program, layer, &arguments, &environment, &log).expect("a layer's process")
    }

    /// Runs one batch command to its end.
    ///
    /// # Panics
    /// When it fails, with its log.
    pub async fn batch(&self, command: &[&str]) {
        let layer = self.batch_process(command);
        let code = layer.ended().await;
        assert_eq!(code, 0, "batch-layer {command:?}:\n{}", layer.logged());
    }

    /// Starts the serving layer and waits until it is ready.
    pub async fn serving(&self) -> (Layer, Serving) {
        self.serving_with(&[]).await
    }

    /// The same with further options.
    pub async fn serving_with(&self, options: &[&str]) -> (Layer, Serving) {
        let address = format!("127.0.0.1:{}", free_port());
        let command = [&["serve", "--listen", &address, "--max-rows", "1000000"], options].concat();
        let layer = self.process("serving-layer", &command, &["catalog", "redis", "postgres"]);
        let serving = Serving::at(format!("http://{address}"));
        wait_for("serving layer ready", async || {
            if let Some(code) = layer.exited() {
                panic!("serving layer ended with {code}:\n{}", layer.logged());
            }
            serving.ready().await.map_err(|error| format!("{error:#}"))
        })
        .await;
        (layer, serving)
    }

    /// Runs the batch layer once, so that there is a tidemark, then starts a speed worker and the serving layer, and waits
    /// until that is ready.
    pub async fn layers(&self) -> (Layer, Layer, Serving) {
        self.batch(&["run"]).await;
        let speed = self.speed();
        let (process, serving) = self.serving().await;
        (speed, process, serving)
    }

    /// Sends deliveries and waits until the broker has acknowledged them all.
    pub fn send(&self, deliveries: &[Delivery]) {
        let sender = Sender::connect(&self.kafka.bootstrap(), &[], || 1_700_000_000_000).expect("a producer");
        deliveries.iter().for_each(|delivery| sender.send(delivery).expect("sent"));
        sender.flush().expect("acknowledged");
    }

    /// Sends records of the shop and waits until the broker has acknowledged them all.
    pub fn send_records(&self, records: &[Record]) {
        let sender = Sender::connect(&self.kafka.bootstrap(), &[], || 1_700_000_000_000).expect("a producer");
        for Record { topic, key, value } in records {
            sender.send_to(topic, Some(key.as_bytes()), value).expect("sent");
        }
        sender.flush().expect("acknowledged");
    }

    /// The oracle of all that the log holds.
    pub fn oracle(&self) -> Oracle {
        let mut oracle = Oracle::default();
        self.probe.read_log(&BTreeMap::new(), |record| oracle.take(&record)).expect("the log");
        oracle
    }

    /// Holds every group of the realtime view, as it is stored now, against the naive fold of exactly its range of the
    /// log.
    ///
    /// # Panics
    /// With the groups that differ.
    pub async fn verify_groups(&self, when: &str) {
        let verify = self.process("speed-layer", &["verify"], &["catalog", "kafka", "redis"]);
        let code = verify.ended().await;
        assert_eq!(code, 0, "{when}:\n{}", verify.logged());
    }

    /// How many distinct records lie in the dead-letter topics.
    pub fn dead_letters(&self) -> Result<usize, String> {
        let keys = |topic: &str| self.probe.keys(&format!("{topic}.dead-letters")).map(|keys| keys.len());
        let counted: Result<usize, _> = self.probe.topics.iter().map(|topic| keys(topic)).sum();
        counted.map_err(|error| format!("{error:#}"))
    }

    /// The content hashes of the live versions, by metric and day.
    pub async fn live_hashes(&self) -> BTreeMap<(String, String), String> {
        let pool = sqlx::PgPool::connect(&self.database).await.expect("postgres");
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "select live.metric, live.event_day::text, version.hash
             from tidemark.live_version live join tidemark.view_version version using (version_id)",
        )
        .fetch_all(&pool)
        .await
        .expect("live versions");
        rows.into_iter().map(|(metric, day, hash)| ((metric, day), hash)).collect()
    }

    /// The tidemark in force.
    pub async fn tidemark(&self) -> Tidemark {
        let pool = sqlx::PgPool::connect(&self.database).await.expect("postgres");
        let sql = "select generation, cuts from tidemark.tidemark order by generation desc limit 1";
        let (generation, Json(cuts)): (i64, Json<Vec<StoredCut>>) =
            sqlx::query_as(sql).fetch_one(&pool).await.expect("the tidemark");
        Tidemark::from_stored(generation, cuts)
    }

    /// Whether the tidemark cuts each partition at the given end or beyond; else those that it doesn't.
    pub async fn passed(&self, ends: &BTreeMap<TopicPartition, i64>) -> Result<(), String> {
        let Tidemark { cuts, .. } = self.tidemark().await;
        let is_behind = |(tp, end): &(_, &i64)| cuts.get(*tp).is_none_or(|cut| cut.offset < **end);
        let behind: Vec<_> = ends.iter().filter(is_behind).collect();
        if behind.is_empty() { Ok(()) } else { Err(format!("{behind:?}")) }
    }

    /// Runs the batch layer until all that the log holds now lies below the tidemark: a run that starts within the epoch
    /// of the last record leaves that open.
    pub async fn run_past_the_end(&self) {
        let ends = self.probe.ends().expect("the log's ends");
        wait_for("the tidemark passing the log's ends", async || {
            self.batch(&["run"]).await;
            self.passed(&ends).await
        })
        .await;
    }

    /// Waits until the realtime view has taken in all that the log holds now.
    pub async fn settle(&self) {
        let ends = self.probe.ends().expect("the log's ends");
        wait_for("the realtime view reaching the log's end", async || match self.probe.lag(&ends).await {
            Ok(0) => Ok(()),
            Ok(lag) => Err(format!("{lag} records behind")),
            Err(error) => Err(format!("{error:#}")),
        })
        .await;
    }

    /// Waits until every metric, in every bucket and key, equals the oracle in a complete answer: for a realtime view
    /// that can't be looked into.
    pub async fn becomes(&self, serving: &Serving, oracle: &Oracle, when: &str) {
        wait_for(&format!("the answers equalling the oracle {when}"), async || {
            let grain = |name: &str| self.catalog.metric(name).expect("a shipped metric").grain.width();
            let compared =
                compare::all(serving, oracle, grain).await.map_err(|error| format!("{error:#}"))?;
            let right = compared.iter().all(compare::Comparison::is_right);
            if right { Ok(()) } else { Err(compare::table(&compared)) }
        })
        .await;
    }

    /// Compares every metric, in every bucket and key, with the oracle. Every answer must say that it is complete.
    ///
    /// # Panics
    /// With the cells that differ.
    pub async fn compare(&self, serving: &Serving, oracle: &Oracle, when: &str) {
        let grain = |name: &str| self.catalog.metric(name).expect("a shipped metric").grain.width();
        let compared = compare::all(serving, oracle, grain).await.unwrap_or_else(|e| panic!("{when}: {e:#}"));
        for comparison in &compared {
            let first: Vec<_> = comparison.wrong.iter().take(10).collect();
            assert!(comparison.is_right(), "{when}: {first:#?}\n{}", compare::table(&compared));
        }
    }
}

/// A test that fails shows what its layers said last.
impl Drop for Stack {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let last: Vec<&str> = text.lines().rev().take(60).collect();
                eprintln!("{}:", entry.path().display());
                last.iter().rev().for_each(|line| eprintln!("  {line}"));
            }
        }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// The servers' programs, found or installed.
///
/// # Panics
/// When they can't be had.
pub async fn found() -> Found {
    let ensure =
        || install::ensure(&[Need::Redis, Need::Postgres, Need::Kafka], Installing::Yes, &mut |_| {});
    tokio::task::spawn_blocking(ensure).await.expect("the search for servers").expect("servers")
}
