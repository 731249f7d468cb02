//! Sends records to Kafka, in order, each acknowledged by all replicas or reported as failed.
//!
//! At most 64 MB wait in the producer's queue; a full queue makes `send` wait, a broker that is away too. No failure is
//! silent: each is counted, and turns the final `flush` into an error with the first one's reason.

use crate::generate::Delivery;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, FromClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaConfRes;
use shared_model::event::PRODUCED_HEADER;
use shared_model::secret::{SecretFault, property_refused};
use shared_model::time::Millis;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// Why sending stopped.
#[derive(Debug, Error)]
pub enum SendError {
    /// A property is unknown, or its value is none.
    #[error("--kafka-property (TIDEMARK_KAFKA_PROPERTIES)")]
    Property(#[source] SecretFault),
    /// The properties contradict each other.
    #[error("kafka refuses its properties: {0}")]
    Properties(KafkaError),
    /// No broker answered.
    #[error(
        "no answer from kafka at {servers}: {error}; is it running, and are host, port, TLS and SASL right?"
    )]
    Unreachable {
        /// The bootstrap servers.
        servers: String,
        /// What the client said.
        error: KafkaError,
    },
    /// A topic is missing.
    #[error(
        "topic {topic} is not there ({error}); create it with message.timestamp.type=LogAppendTime, or give --create-topics PARTITIONS"
    )]
    NoTopic {
        /// The topic.
        topic: String,
        /// What the broker said.
        error: String,
    },
    /// The producer can't go on.
    #[error("the producer stopped: {0}")]
    Fatal(String),
    /// Some records were not stored.
    #[error("{failed} of {sent} records were not stored; the first: {first}")]
    Failed {
        /// How many.
        failed: u64,
        /// Of how many handed over.
        sent: u64,
        /// The first failure.
        first: String,
    },
    /// It was told to stop while no record could be taken.
    #[error("stopped before the record was sent")]
    Stopped,
    /// Not all was acknowledged in time.
    #[error("{waiting} records were still not acknowledged after {seconds} s")]
    Unacknowledged {
        /// How many.
        waiting: i32,
        /// The time given.
        seconds: u64,
    },
}

/// A producer of records. Calls block while the queue is full, so use `spawn_blocking` around it in async code.
pub struct Sender {
    producer: BaseProducer<Reports>,
    servers: String,
    properties: Vec<(String, String)>,
    clock: fn() -> Millis,
    sent: AtomicU64,
    stop: CancellationToken,
}

/// So many failures end the sending: nothing good comes after them.
const MOST_FAILURES: u64 = 1_000;
const ANSWER_IN: Duration = Duration::from_secs(10);
/// A little longer than a record waits for the broker (librdkafka's `message.timeout.ms`).
const FLUSH_IN: Duration = Duration::from_secs(310);
/// How long the broker may still take when it was told to stop.
const STOP_IN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Reports are taken in every so many records.
const POLL_EVERY: u64 = 512;

impl Sender {
    /// Connects to bootstrap servers and fails where none answers in 10 s. `properties` are librdkafka's and override
    /// ours. `clock` stamps the records (`act_prod_time`), in ms since 1970.
    pub fn connect(
        servers: &str,
        properties: &[(String, String)],
        clock: fn() -> Millis,
    ) -> Result<Sender, SendError> {
        let mut config = config(servers, properties);
        // The client's own error would show the value.
        if let Err(KafkaError::ClientConfig(why, _, key, _)) = config.create_native_config() {
            let is_known = why != RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
            return Err(SendError::Property(property_refused(properties, &key, is_known)));
        }
        for (key, value) in TUNING {
            if !properties.iter().any(|(given, _)| given == key) {
                config.set(*key, *value);
            }
        }
        let producer: BaseProducer<Reports> =
            BaseProducer::from_config_and_context(&config, Reports::default())
                .map_err(SendError::Properties)?;
        producer
            .client()
            .fetch_metadata(None, ANSWER_IN)
            .map_err(|error| SendError::Unreachable { servers: servers.to_owned(), error })?;
        let (servers, properties) = (servers.to_owned(), properties.to_vec());
        let stop = CancellationToken::new();
        Ok(Sender { producer, servers, properties, clock, sent: AtomicU64::new(0), stop })
    }

    /// The same, but it waits for no broker longer than some seconds once `stop` is cancelled.
    pub fn until(self, stop: &CancellationToken) -> Sender {
        Sender { stop: stop.clone(), ..self }
    }

    /// Checks that the topics are there.
    pub fn require_topics<'a>(&self, topics: impl IntoIterator<Item = &'a str>) -> Result<(), SendError> {
        for topic in topics {
            if let Some(error) = self.missing(topic)? {
                return Err(SendError::NoTopic { topic: topic.to_owned(), error });
            }
        }
        Ok(())
    }

    /// Creates the topics that are missing, stamped LogAppendTime, with one replica. Returns those created.
    pub fn create_topics<'a>(
        &self,
        topics: impl IntoIterator<Item = &'a str>,
        partitions: i32,
    ) -> Result<Vec<String>, SendError> {
        let mut created = Vec::new();
        for topic in topics {
            if self.missing(topic)?.is_none() {
                continue;
            }
            let admin: AdminClient<DefaultClientContext> =
                AdminClient::from_config(&config(&self.servers, &self.properties))
                    .map_err(SendError::Properties)?;
            let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1))
                .set("message.timestamp.type", "LogAppendTime");
            let options = AdminOptions::new().operation_timeout(Some(ANSWER_IN));
            let no_topic = |error: String| SendError::NoTopic { topic: topic.to_owned(), error };
            let results = futures::executor::block_on(admin.create_topics([&new], &options))
                .map_err(|error| no_topic(error.to_string()))?;
            for result in results {
                match result {
                    Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => created.push(topic.to_owned()),
                    Err((_, code)) => return Err(no_topic(code.to_string())),
                }
            }
            self.wait_for_topic(topic)?;
        }
        Ok(created)
    }

    /// A new topic is known to its controller before it is to every broker.
    fn wait_for_topic(&self, topic: &str) -> Result<(), SendError> {
        let started = Instant::now();
        while self.missing(topic)?.is_some() && started.elapsed() < ANSWER_IN {
            self.producer.poll(LOOK_EVERY);
        }
        Ok(())
    }

    /// What the broker says about a topic that is not there; `None` where it is.
    fn missing(&self, topic: &str) -> Result<Option<String>, SendError> {
        let metadata = self
            .producer
            .client()
            .fetch_metadata(Some(topic), ANSWER_IN)
            .map_err(|error| SendError::Unreachable { servers: self.servers.clone(), error })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(match found {
            Some(found) => found
                .error()
                .map(|error| RDKafkaErrorCode::from(error).to_string())
                .or_else(|| found.partitions().is_empty().then(|| "no partitions".to_owned())),
            None => Some("unknown topic".to_owned()),
        })
    }

    /// Sends a generated delivery to the topic that is called as its stream.
    pub fn send(&self, delivery: &Delivery) -> Result<(), SendError> {
        self.send_to(delivery.stream, Some(delivery.key.as_bytes()), &delivery.value)
    }

    /// Sends one record, stamped with the present; waits while the queue is full.
    pub fn send_to(&self, topic: &str, key: Option<&[u8]>, value: &[u8]) -> Result<(), SendError> {
        let produced = (self.clock)().to_string();
        let headers = OwnedHeaders::new_with_capacity(1)
            .insert(Header { key: PRODUCED_HEADER, value: Some(&produced) });
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).payload(value).headers(headers);
        record.key = key;
        if self.sent.load(Ordering::Relaxed).is_multiple_of(POLL_EVERY) {
            self.producer.poll(Duration::ZERO);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _))
                    if self.stop.is_cancelled() =>
                {
                    return Err(SendError::Stopped);
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(20));
                }
                Err((error, _)) => {
                    self.producer.context().fail(&format!("{topic}: {error}"));
                    break;
                }
            }
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.check()
    }

    /// Waits until every record is acknowledged or failed; an error where any failed since `connect`.
    pub fn flush(&self) -> Result<(), SendError> {
        let (started, mut stopped) = (Instant::now(), None);
        let mut flushed = self.producer.flush(LOOK_EVERY);
        while flushed.is_err() && started.elapsed() < FLUSH_IN {
            if self.stop.is_cancelled() && stopped.get_or_insert_with(Instant::now).elapsed() > STOP_IN {
                break;
            }
            flushed = self.producer.flush(LOOK_EVERY);
        }
        self.check()?;
        let reports = self.producer.context();
        let failed = reports.failed.load(Ordering::Relaxed);
        if failed > 0 {
            return Err(self.failed(failed));
        }
        flushed.map_err(|_| SendError::Unacknowledged {
            waiting: self.producer.in_flight_count(),
            seconds: started.elapsed().as_secs(),
        })
    }

    /// How many records the broker has acknowledged (as far as reports were taken in).
    pub fn acknowledged(&self) -> u64 {
        self.producer.context().stored.load(Ordering::Relaxed)
    }

    /// Takes in reports that have come; call it where long pauses lie between records.
    pub fn poll(&self) {
        self.producer.poll(Duration::ZERO);
    }

    fn check(&self) -> Result<(), SendError> {
        let reports = self.producer.context();
        let failed = reports.failed.load(Ordering::Relaxed);
        if failed == 0 {
            return Ok(());
        }
        if let Some((_, reason)) = self.producer.client().fatal_error() {
            return Err(SendError::Fatal(reason));
        }
        if failed >= MOST_FAILURES { Err(self.failed(failed)) } else { Ok(()) }
    }

    fn failed(&self, failed: u64) -> SendError {
        let first = self.producer.context().first.lock().map(|first| first.clone()).unwrap_or_default();
        SendError::Failed { failed, sent: self.sent.load(Ordering::Relaxed), first }
    }
}

/// Large batches and one connection's order: throughput with no loss. Java's partitioner, so that a key lands where
/// any Java producer would put it.
const TUNING: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("linger.ms", "20"),
    ("batch.size", "1000000"),
    ("batch.num.messages", "50000"),
    ("queue.buffering.max.messages", "500000"),
    ("queue.buffering.max.kbytes", "65536"),
    ("compression.type", "zstd"),
    ("partitioner", "murmur2_random"),
];

fn config(servers: &str, properties: &[(String, String)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("client.id", "tidemark-simulator");
    // A topic that is missing is an error, not a reason to make one with the wrong time stamps.
    config.set("allow.auto.create.topics", "false");
    properties.iter().for_each(|(key, value)| {
        config.set(key, value);
    });
    config
}

/// Counts what the broker says about each record.
#[derive(Default)]
struct Reports {
    stored: AtomicU64,
    failed: AtomicU64,
    first: Mutex<String>,
}

impl Reports {
    fn fail(&self, reason: &str) {
        if self.failed.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(reason, "a record was not stored; more that follow are counted");
            if let Ok(mut first) = self.first.lock() {
                reason.clone_into(&mut first);
            }
        }
    }
}

impl ClientContext for Reports {
    /// The client's own words are for those who look for them.
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                tracing::warn!(
                    reason,
                    "no broker of kafka answers; records wait for it, minutes at the most"
                );
            }
            _ => tracing::debug!(%error, reason, "kafka"),
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.stored.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, message)) => self.fail(&format!("{}: {error}", message.topic())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said() {
        let properties = [("linger.ms", "5"), ("sasl.pasword", "hunter2")];
        let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let Err(SendError::Property(fault)) = Sender::connect("127.0.0.1:1", &properties, || 0) else {
            panic!("not refused")
        };
        let fault = fault.to_string();
        assert!(fault.contains("at place 2 ") && !fault.contains("hunter2"), "{fault}");
    }
}
