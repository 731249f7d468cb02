//! Looks at a running Tidemark from outside: what the log holds, how far the realtime view has come, and what the
//! serving layer answers.
//!
//! It only reads, and uses no code of the layers beyond the form in which the realtime view is stored.

use crate::oracle::Logged;
use crate::redis_client;
use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, Header};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const ANSWER_IN: Duration = Duration::from_secs(30);

/// Where a Tidemark is.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Kafka's bootstrap servers.
    pub kafka: String,
    /// The topics of its streams.
    pub topics: Vec<String>,
    /// The URL of Redis, or those of a Cluster's nodes, divided by commas.
    pub redis: String,
    /// Groups per partition in the realtime view.
    pub groups: u32,
}

/// The headers of the realtime view, by partition and group.
pub type Headers = BTreeMap<(TopicPartition, u32), Header>;

impl Probe {
    fn consumer(&self) -> Result<BaseConsumer> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .set("group.id", "tidemark-probe")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "20")
            .create();
        consumer.context("can't make a consumer")
    }

    /// The partitions of the topics. Blocks.
    ///
    /// # Errors
    /// When the broker doesn't answer or a topic isn't there.
    pub fn partitions(&self) -> Result<Vec<TopicPartition>> {
        let consumer = self.consumer()?;
        let mut partitions = Vec::new();
        for topic in &self.topics {
            partitions.extend(partitions_of(&consumer, topic)?);
        }
        Ok(partitions)
    }

    /// The end of each partition's log. Blocks.
    ///
    /// # Errors
    /// When the broker doesn't answer.
    pub fn ends(&self) -> Result<BTreeMap<TopicPartition, i64>> {
        let consumer = self.consumer()?;
        let mut ends = BTreeMap::new();
        for tp in self.partitions()? {
            let (_, high) = consumer.fetch_watermarks(&tp.topic, tp.partition, ANSWER_IN)?;
            ends.insert(tp, high);
        }
        Ok(ends)
    }

    /// Hands on every record that the log holds from the given offsets on (from the start, where there is none); those
    /// of one partition in their order, ticks left out. Gives the ends. Blocks.
    ///
    /// # Errors
    /// When the broker doesn't answer.
    pub fn read_log(
        &self,
        from: &BTreeMap<TopicPartition, i64>,
        mut each: impl FnMut(Logged),
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let starts = self.partitions()?.into_iter().map(|tp| (from.get(&tp).copied(), tp));
        read(&self.consumer()?, starts.map(|(from, tp)| (tp, from)).collect(), |message| {
            let Some(value) = message.payload() else { return };
            let (topic, partition) = (message.topic().to_owned(), message.partition());
            let append_time = message.timestamp().to_millis().unwrap_or(0);
            each(Logged { topic, partition, offset: message.offset(), append_time, value: value.to_vec() });
        })
    }

    /// The append times of all ticks in the log. Blocks.
    ///
    /// # Errors
    /// When the broker doesn't answer.
    pub fn ticks(&self) -> Result<Vec<i64>> {
        let starts = self.partitions()?.into_iter().map(|tp| (tp, None)).collect();
        let mut ticks = Vec::new();
        read(&self.consumer()?, starts, |message| {
            if message.payload().is_none() {
                ticks.extend(message.timestamp().to_millis());
            }
        })?;
        Ok(ticks)
    }

    /// The offset and append time of every record in the log, ticks included, by partition and ascending. Blocks.
    ///
    /// # Errors
    /// When the broker doesn't answer.
    pub fn append_times(&self) -> Result<BTreeMap<TopicPartition, Vec<(i64, i64)>>> {
        let starts = self.partitions()?.into_iter().map(|tp| (tp, None)).collect();
        let mut times: BTreeMap<TopicPartition, Vec<(i64, i64)>> = BTreeMap::new();
        read(&self.consumer()?, starts, |message| {
            let tp = TopicPartition::new(message.topic(), message.partition());
            let time = message.timestamp().to_millis().unwrap_or(0);
            times.entry(tp).or_default().push((message.offset(), time));
        })?;
        Ok(times)
    }

    /// The keys of all records of a topic, each once. Blocks.
    ///
    /// # Errors
    /// When the broker doesn't answer or the topic isn't there.
    pub fn keys(&self, topic: &str) -> Result<BTreeSet<Vec<u8>>> {
        let mut keys = BTreeSet::new();
        self.read_topic(topic, |message| {
            keys.insert(message.key().unwrap_or_default().to_vec());
        })?;
        Ok(keys)
    }

    /// Hands on every record of a topic, ticks and others without a value included; those of one partition in their
    /// order. Blocks.
    ///
    /// # Errors
    /// When the broker doesn't answer or the topic isn't there.
    pub fn read_topic(&self, topic: &str, each: impl FnMut(&BorrowedMessage<'_>)) -> Result<()> {
        let consumer = self.consumer()?;
        let starts = partitions_of(&consumer, topic)?.into_iter().map(|tp| (tp, None)).collect();
        read(&consumer, starts, each)?;
        Ok(())
    }

    /// The headers of all groups, as Redis holds them now.
    ///
    /// # Errors
    /// When Redis doesn't answer, or a header can't be read.
    pub async fn headers(&self) -> Result<Headers> {
        let probe = self.clone();
        let partitions = tokio::task::spawn_blocking(move || probe.partitions()).await??;
        let mut connection = redis_client::connect(&self.redis).await?;
        let mut headers = Headers::new();
        for tp in partitions {
            for group in 0..self.groups {
                let key = view::group_key(&tp, group, self.groups);
                let json: Option<Vec<u8>> =
                    redis::cmd("HGET").arg(&key).arg(view::HEADER_FIELD).query_async(&mut connection).await?;
                if let Some(json) = json {
                    headers.insert((tp.clone(), group), Header::from_json(&json).with_context(|| key)?);
                }
            }
        }
        Ok(headers)
    }

    /// How many records the realtime view is behind the given ends, over all partitions, by its slowest groups.
    ///
    /// # Errors
    /// When Redis doesn't answer.
    pub async fn lag(&self, ends: &BTreeMap<TopicPartition, i64>) -> Result<i64> {
        let headers = self.headers().await?;
        let behind = |(tp, end): (&TopicPartition, &i64)| {
            let to = |group| headers.get(&(tp.clone(), group)).map_or(0, |header| header.to);
            (0..self.groups).map(|group| (end - to(group)).max(0)).max().unwrap_or(0)
        };
        Ok(ends.iter().map(behind).sum())
    }
}

fn partitions_of(consumer: &BaseConsumer, topic: &str) -> Result<Vec<TopicPartition>> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_IN)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.filter(|found| found.error().is_none() && !found.partitions().is_empty());
    let partitions = found.with_context(|| format!("topic {topic} is not there"))?.partitions().len();
    Ok((0..partitions as i32).map(|partition| TopicPartition::new(topic, partition)).collect())
}

/// Reads partitions from their starts (the log's own, where none is given) to their ends, which it gives.
fn read(
    consumer: &BaseConsumer,
    starts: BTreeMap<TopicPartition, Option<i64>>,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<BTreeMap<TopicPartition, i64>> {
    let mut next = BTreeMap::new();
    let topics: BTreeSet<_> = starts.keys().map(|tp| tp.topic.clone()).collect();
    // Topic by topic: the client says of an end only the partition's number.
    for topic in topics {
        let mut list = TopicPartitionList::new();
        let mut open = BTreeSet::new();
        for (tp, from) in starts.iter().filter(|(tp, _)| tp.topic == topic) {
            list.add_partition_offset(&topic, tp.partition, from.map_or(Offset::Beginning, Offset::Offset))?;
            open.insert(tp.partition);
            next.insert(tp.clone(), from.unwrap_or(0));
        }
        consumer.assign(&list)?;
        while !open.is_empty() {
            match consumer.poll(ANSWER_IN) {
                Some(Ok(message)) => {
                    next.insert(TopicPartition::new(&topic, message.partition()), message.offset() + 1);
                    each(&message);
                }
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) => bail!("reading {topic}: {error}"),
                None => bail!("reading {topic}: nothing came for {ANSWER_IN:?}"),
            }
        }
    }
    Ok(next)
}

/// A client of the serving layer.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Its address, such as `http://127.0.0.1:8080`.
    pub url: String,
    http: reqwest::Client,
}

impl Serving {
    /// A client of the serving layer at an address.
    pub fn at(url: impl Into<String>) -> Serving {
        Serving { url: url.into(), http: reqwest::Client::new() }
    }

    /// Whether it is ready; else what it says.
    ///
    /// # Errors
    /// With its own reason, or that it doesn't answer.
    pub async fn ready(&self) -> Result<()> {
        let answer = self.http.get(format!("{}/readyz", self.url)).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{status}: {}", answer.text().await?.trim());
        Ok(())
    }

    /// Asks a query.
    ///
    /// # Errors
    /// When it is refused, with the answer's text.
    pub async fn query(&self, query: &Value) -> Result<Value> {
        let request = self.http.post(format!("{}/api/v1/query", self.url)).json(query);
        Serving::answer(request).await.with_context(|| format!("query {query}"))
    }

    /// Asks for the records behind a value.
    ///
    /// # Errors
    /// When it is refused, with the answer's text.
    pub async fn facts(&self, request: &Value) -> Result<Value> {
        let asked = self.http.post(format!("{}/api/v1/facts", self.url)).json(request);
        Serving::answer(asked).await.with_context(|| format!("facts {request}"))
    }

    /// Asks for a sliding counter by its key.
    ///
    /// # Errors
    /// When it is refused, with the answer's text.
    pub async fn live(&self, name: &str, key: &[(&str, String)]) -> Result<Value> {
        let request = self.http.get(format!("{}/api/v1/live/{name}", self.url)).query(key);
        Serving::answer(request).await.with_context(|| format!("live {name} {key:?}"))
    }

    async fn answer(request: reqwest::RequestBuilder) -> Result<Value> {
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }
}
