//! One Tidemark of its own for a test: Kafka, Redis and Postgres on free ports, a catalog with epochs of a second,
//! and the layers as processes that can be killed.

use crate::oracle::{self, Logged, Oracle};
use crate::wait_for;
use local::install::{self, Found, Installing, Need};
use local::layers::Layer;
use local::servers::{Kafka, KafkaOptions, Postgres, PostgresOptions, Redis, RedisOptions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use shared_model::catalog::Catalog;
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, Header};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The shipped catalog.
pub const OUTBRAIN: &str = include_str!("../../infra/catalog/outbrain.toml");

/// The topics of the shipped catalog.
pub const TOPICS: [&str; 2] = ["page_views", "events"];

/// Servers, catalog and archive of one test. Layers are started from it.
pub struct Stack {
    /// The broker.
    pub kafka: Kafka,
    /// The realtime view's store.
    pub redis: Redis,
    /// The batch view's store.
    pub postgres: Postgres,
    /// The valid catalog.
    pub catalog: Catalog,
    /// The URL of the database.
    pub database: String,
    /// The URL of the archive.
    pub archive: String,
    /// For questions to the serving layer.
    pub http: reqwest::Client,
    folder: PathBuf,
    // Last: goes away after the servers that live in it.
    _scratch: tempfile::TempDir,
}

impl Stack {
    /// Starts the servers and makes the topics, with `partitions` each.
    pub async fn start(partitions: i32) -> Stack {
        Stack::with_layout(partitions, "epoch = \"1s\"\ngroups = 4\npane = \"10s\"").await
    }

    /// The same with a `[layout]` of one's own.
    pub async fn with_layout(partitions: i32, layout: &str) -> Stack {
        let found = found().await;
        let scratch = local::servers::scratch().expect("a temporary folder");
        let folder = scratch.path().to_owned();
        let (kafka, redis, postgres) = (folder.join("kafka"), folder.join("redis"), folder.join("postgres"));
        let fast = PostgresOptions { unsafe_fast: true, ..PostgresOptions::default() };
        let (kafka, redis, postgres) = tokio::try_join!(
            Kafka::start(&found, &kafka, KafkaOptions::default()),
            Redis::start(&found, &redis, RedisOptions::default()),
            Postgres::start(&found, &postgres, fast),
        )
        .expect("servers");
        for topic in TOPICS {
            kafka.create_topic(topic, partitions, &[]).await.expect("topic");
        }
        let database = postgres.create_database("tidemark").await.expect("database");
        let text = with_layout(OUTBRAIN, layout);
        let catalog = Catalog::from_toml(&text).expect("the shipped catalog is valid");
        std::fs::write(folder.join("catalog.toml"), text).expect("catalog file");
        let archive = format!("file://{}", folder.join("archive").display());
        let http = reqwest::Client::new();
        Stack { kafka, redis, postgres, catalog, database, archive, http, folder, _scratch: scratch }
    }

    /// The folder with logs and catalog.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn arguments(&self, command: &[&str]) -> Vec<String> {
        command.iter().map(|part| (*part).to_owned()).collect()
    }

    fn connections(&self, which: &[&str]) -> Vec<String> {
        let all = [
            ("--catalog", self.folder.join("catalog.toml").display().to_string()),
            ("--kafka", self.kafka.bootstrap()),
            ("--redis", self.redis.url()),
            ("--postgres", self.database.clone()),
            ("--archive", self.archive.clone()),
        ];
        let wanted = all.into_iter().filter(|(name, _)| which.contains(&&name[2..]));
        wanted.flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Starts a layer of this test binary.
    pub fn layer(&self, program: &str, name: &'static str, arguments: Vec<String>) -> Layer {
        Layer::start(Path::new(program), name, &arguments, &self.folder.join(format!("{name}.log")))
            .expect("a layer's process")
    }

    /// Starts a speed worker.
    pub fn speed(&self, program: &str) -> Layer {
        let mut arguments = self.arguments(&["run", "--listen", "127.0.0.1:0", "--flush-interval", "50ms"]);
        arguments.extend(self.connections(&["catalog", "kafka", "redis", "postgres"]));
        self.layer(program, "speed-layer", arguments)
    }

    /// The command line of a batch command.
    pub fn batch_arguments(&self, command: &[&str]) -> Vec<String> {
        let mut arguments = self.arguments(command);
        arguments.extend(self.connections(&["catalog", "kafka", "postgres", "archive"]));
        arguments
    }

    /// Runs one batch command to its end.
    ///
    /// # Panics
    /// When it fails, with its log.
    pub async fn batch(&self, program: &str, command: &[&str]) {
        let layer = self.layer(program, "batch-layer", self.batch_arguments(command));
        let code = layer.ended().await;
        assert_eq!(code, 0, "batch-layer {command:?}:\n{}", layer.logged());
    }

    /// Starts the serving layer, waits until it is ready, and gives its address.
    pub async fn serving(&self, program: &str) -> (Layer, String) {
        let address = format!("127.0.0.1:{}", free_port());
        let mut arguments = self.arguments(&["serve", "--listen", &address]);
        arguments.extend(self.connections(&["catalog", "redis", "postgres"]));
        let layer = self.layer(program, "serving-layer", arguments);
        let url = format!("http://{address}");
        wait_for("serving layer ready", async || {
            if let Some(code) = layer.exited() {
                panic!("serving layer ended with {code}:\n{}", layer.logged());
            }
            let answer = self.http.get(format!("{url}/readyz")).send().await.map_err(|e| e.to_string())?;
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            if status.is_success() { Ok(()) } else { Err(format!("{status}: {text}")) }
        })
        .await;
        (layer, url)
    }

    /// The partitions of the catalog's topics.
    pub fn partitions(&self) -> Vec<TopicPartition> {
        let consumer = self.consumer();
        let topics = TOPICS.iter().flat_map(|topic| {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("metadata");
            let partitions = metadata.topics()[0].partitions().len() as i32;
            (0..partitions).map(|partition| TopicPartition::new(topic, partition)).collect::<Vec<_>>()
        });
        topics.collect()
    }

    fn consumer(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap())
            .set("group.id", "the-tests-own-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer")
    }

    /// The end of each partition's log.
    pub fn ends(&self) -> BTreeMap<TopicPartition, i64> {
        let consumer = self.consumer();
        let end = |tp: TopicPartition| {
            let (_, high) = consumer
                .fetch_watermarks(&tp.topic, tp.partition, Duration::from_secs(10))
                .expect("watermarks");
            (tp, high)
        };
        self.partitions().into_iter().map(end).collect()
    }

    /// Every record that the log holds, ticks left out, in the order of partitions and offsets.
    pub fn log(&self) -> Vec<Logged> {
        let consumer = self.consumer();
        let mut records = Vec::new();
        for (tp, end) in self.ends() {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&tp.topic, tp.partition, Offset::Beginning).expect("a position");
            consumer.assign(&list).expect("assignment");
            loop {
                let message = match consumer.poll(Duration::from_secs(30)) {
                    Some(Ok(message)) => message,
                    Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => break,
                    other => panic!("reading {tp} up to {end}: {:?}", other.map(|o| o.err())),
                };
                let Some(value) = message.payload() else { continue };
                records.push(Logged {
                    topic: tp.topic.to_string(),
                    partition: tp.partition,
                    offset: message.offset(),
                    value: value.to_vec(),
                });
            }
        }
        records
    }

    /// The oracle of all that the log holds.
    pub fn oracle(&self) -> Oracle {
        Oracle::of(&self.log())
    }

    /// The headers of all groups, as Redis holds them now.
    pub async fn headers(&self) -> BTreeMap<(TopicPartition, u32), Header> {
        let client = redis::Client::open(self.redis.url()).expect("redis url");
        let mut connection = client.get_multiplexed_async_connection().await.expect("redis");
        let mut headers = BTreeMap::new();
        for tp in self.partitions() {
            for group in 0..self.catalog.layout.groups {
                let key = view::group_key(&tp, group, self.catalog.layout.groups);
                let json: Option<Vec<u8>> = redis::cmd("HGET")
                    .arg(key)
                    .arg(view::HEADER_FIELD)
                    .query_async(&mut connection)
                    .await
                    .expect("a header");
                if let Some(json) = json {
                    headers.insert((tp.clone(), group), Header::from_json(&json).expect("a valid header"));
                }
            }
        }
        headers
    }

    /// Waits until the realtime view has taken in all that the log holds now.
    pub async fn settle(&self) {
        let ends = self.ends();
        wait_for("the realtime view reaching the log's end", async || {
            let headers = self.headers().await;
            for (tp, end) in &ends {
                for group in 0..self.catalog.layout.groups {
                    let to = headers.get(&(tp.clone(), group)).map(|header| header.to);
                    if to.is_none_or(|to| to < *end) {
                        return Err(format!("{tp} group {group} is at {to:?} of {end}"));
                    }
                }
            }
            Ok(())
        })
        .await;
    }

    /// Asks a query, which must succeed.
    pub async fn query(&self, url: &str, query: &Value) -> Value {
        let answer = self.http.post(format!("{url}/api/v1/query")).json(query).send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        assert!(status.is_success(), "{status} to {query}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Asks for a sliding counter, which must succeed.
    pub async fn live(&self, url: &str, path: &str) -> Value {
        let answer = self.http.get(format!("{url}/api/v1/live/{path}")).send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        assert!(status.is_success(), "{status} to {path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Compares every metric, in every bucket and key, with the oracle. Every answer must say that it is complete.
    ///
    /// # Panics
    /// With the cells that differ.
    pub async fn compare(&self, url: &str, oracle: &Oracle, when: &str) {
        for metric in oracle::METRICS {
            let (found, answer) = self.cells(url, metric).await;
            assert_eq!(answer["complete"], true, "{when}: {}: {}", metric.name, answer["incomplete_because"]);
            let width = self.catalog.metric(metric.name).expect("a shipped metric").grain.width();
            let expected = oracle.count(metric, oracle::BELIEVABLE.start, oracle::BELIEVABLE.end, width);
            let wrong: Vec<String> = found
                .keys()
                .chain(expected.keys())
                .filter(|cell| found.get(cell) != expected.get(cell))
                .map(|cell| format!("{cell:?}: {:?}, not {:?}", found.get(cell), expected.get(cell)))
                .collect();
            assert!(
                wrong.is_empty(),
                "{when}: {}: {} of {} cells differ: {:#?}\nanswer: {}",
                metric.name,
                wrong.len(),
                expected.len(),
                &wrong[..wrong.len().min(10)],
                json!({"as_of": answer["as_of"], "tidemark": answer["tidemark"], "parts": answer["parts"]}),
            );
        }
    }

    /// All cells of a metric as the serving layer answers them, and the answer itself without its rows.
    pub async fn cells(
        &self,
        url: &str,
        metric: &oracle::Metric,
    ) -> (BTreeMap<(i64, oracle::Key), i64>, Value) {
        let group_by = if metric.top_k { &metric.columns[..metric.columns.len() - 1] } else { metric.columns };
        let mut query = json!({
            "metrics": [metric.name],
            "group_by": group_by,
            "granularity": "grain",
            "from": "2016-06-13T00:00:00Z",
            "to": "2016-07-01T00:00:00Z",
            "limit": 1_000_000,
        });
        if metric.top_k {
            query["k"] = json!(1_000_000);
        }
        let mut answer = self.query(url, &query).await;
        let mut cells = BTreeMap::new();
        for row in answer["rows"].as_array().expect("rows") {
            let bucket = millis(&row["bucket"]);
            let mut key: oracle::Key = group_by.iter().map(|column| text(&row[column])).collect();
            if metric.top_k {
                for item in row[metric.name].as_array().expect("a ranking") {
                    let mut key = key.clone();
                    key.push(text(&item["item"]));
                    let count = item["count"].as_i64().expect("a count");
                    assert_eq!(cells.insert((bucket, key), count), None, "twice in an answer");
                }
            } else {
                let count = row[metric.name].as_i64().expect("a count");
                key.truncate(group_by.len());
                assert_eq!(cells.insert((bucket, key), count), None, "twice in an answer");
            }
        }
        answer["rows"].take();
        (cells, answer)
    }
}

fn millis(value: &Value) -> i64 {
    match value {
        Value::String(text) => chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis(),
        other => other.as_i64().expect("a time"),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The catalog with its `[layout]` section replaced.
pub fn with_layout(catalog: &str, layout: &str) -> String {
    let mut kept = Vec::new();
    let mut inside = false;
    for line in catalog.lines() {
        if line.starts_with('[') {
            inside = line.trim() == "[layout]";
        }
        if !inside {
            kept.push(line);
        }
    }
    format!("{}\n[layout]\n{layout}\n", kept.join("\n"))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

async fn found() -> Found {
    let ensure = || install::ensure(&[Need::Redis, Need::Postgres, Need::Kafka], Installing::Yes, &mut |_| {});
    tokio::task::spawn_blocking(ensure).await.expect("the search for servers").expect("servers")
}
