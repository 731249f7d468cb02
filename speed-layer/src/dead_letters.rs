//! Writes records that can't be counted to the dead-letter topic: original bytes, reason, position.
//!
//! A dead letter is acknowledged by all replicas before any position that passes its record is stored. Written again
//! after a restart it has the same key, so that copies can be told.

pub(crate) mod letters;
pub(crate) mod replay;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use shared_model::event::{PRODUCED_HEADER, Reject};
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use std::time::Duration;

/// The topic of a topic's dead letters.
pub(crate) fn topic_of(topic: &str) -> String {
    format!("{topic}.dead-letters")
}

/// A producer that waits for all replicas and takes records of any size that a topic admits.
fn producer(kafka: &ClientConfig) -> Result<FutureProducer, KafkaError> {
    let mut config = kafka.clone();
    config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "20");
    config.set("message.max.bytes", "10485760").set("message.timeout.ms", "30000");
    config.create()
}

/// One record that can't be counted.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetter {
    /// Its offset.
    pub(crate) offset: i64,
    /// Its append time, where it has one.
    pub(crate) append_time: Option<Millis>,
    /// Why.
    pub(crate) reject: Reject,
    /// Its key.
    pub(crate) key: Option<Vec<u8>>,
    /// What its producer's header says of when it was made.
    pub(crate) produced: Option<Vec<u8>>,
    /// Its value.
    pub(crate) value: Option<Vec<u8>>,
}

impl DeadLetter {
    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len) + self.key.as_ref().map_or(0, Vec::len) + 256
    }
}

/// The producer of dead letters, shared by all partitions.
#[derive(Clone)]
pub(crate) struct DeadLetters(FutureProducer);

impl DeadLetters {
    /// Makes the producer; it connects when needed.
    pub(crate) fn new(kafka: &ClientConfig) -> anyhow::Result<DeadLetters> {
        Ok(DeadLetters(producer(kafka).context("cannot make the producer of dead letters")?))
    }

    /// Writes them all; returns when every one is acknowledged.
    ///
    /// # Errors
    /// The first that isn't; those before and after it may be written all the same.
    pub(crate) async fn write(&self, tp: &TopicPartition, letters: &[DeadLetter]) -> anyhow::Result<()> {
        let topic = topic_of(&tp.topic);
        let sent = letters.iter().map(|letter| self.send(&topic, tp, letter));
        futures::future::try_join_all(sent).await?;
        Ok(())
    }

    async fn send(&self, topic: &str, tp: &TopicPartition, letter: &DeadLetter) -> anyhow::Result<()> {
        let whole = self.try_send(topic, tp, letter, letter.value.as_deref()).await;
        let sent = match (whole, &letter.value) {
            (Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)), Some(value)) => {
                // The topic admits less than the stream's own, and a record must not stop its partition. Its whole
                // bytes are in the stream's topic and in the archive's rejects.
                self.try_send(topic, tp, letter, Some(&value[..value.len().min(TRUNCATED)])).await
            }
            (sent, _) => sent,
        };
        sent.with_context(|| format!("cannot write a dead letter to topic {topic}"))
    }

    async fn try_send(
        &self,
        topic: &str,
        tp: &TopicPartition,
        letter: &DeadLetter,
        value: Option<&[u8]>,
    ) -> Result<(), KafkaError> {
        let key = format!("{tp}/{}", letter.offset);
        let detail: String = letter.reject.to_string().chars().take(1_000).collect();
        let numbers = [tp.partition.to_string(), letter.offset.to_string()];
        let append_time = letter.append_time.map(|time| time.to_string());
        let size = letter.value.as_ref().map_or(0, Vec::len);
        let truncated = (value.map_or(0, <[u8]>::len) < size).then(|| size.to_string());
        let headers = [
            ("reason", Some(letter.reject.code().as_bytes())),
            ("detail", Some(detail.as_bytes())),
            ("topic", Some(tp.topic.as_bytes())),
            ("partition", Some(numbers[0].as_bytes())),
            ("offset", Some(numbers[1].as_bytes())),
            ("append_time", append_time.as_ref().map(String::as_bytes)),
            ("truncated_from", truncated.as_ref().map(String::as_bytes)),
            (KEY_HEADER, letter.key.as_deref()),
            (PRODUCED_HEADER, letter.produced.as_deref()),
        ];
        let headers = headers.iter().filter(|(_, value)| value.is_some());
        let headers =
            headers.fold(OwnedHeaders::new(), |headers, &(key, value)| headers.insert(Header { key, value }));
        let mut record = FutureRecord::to(topic).key(&key).headers(headers);
        record.payload = value;
        self.0.send(record, Duration::from_secs(30)).await.map(drop).map_err(|(error, _)| error)
    }
}

/// The header with the record's own key.
const KEY_HEADER: &str = "key";
/// How much of a record is kept that is too long for the topic of dead letters.
const TRUNCATED: usize = 64 << 10;
