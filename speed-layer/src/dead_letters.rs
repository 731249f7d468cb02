//! Writes records that can't be counted to the dead-letter topic: original bytes, reason, position.
//!
//! A dead letter is acknowledged by all replicas before any position that passes its record is stored. Written again
//! after a restart it has the same key, so that copies can be told.

pub(crate) mod letters;
pub(crate) mod replay;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, FutureProducer, FutureRecord};
use shared_model::event::{PRODUCED_HEADER, Reject};
use shared_model::failpoint;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use std::time::Duration;
use tokio::sync::OnceCell;

/// The topic of a topic's dead letters.
pub(crate) fn topic_of(topic: &str) -> String {
    format!("{topic}.dead-letters")
}

/// Makes topics of dead letters. Where they are meanwhile there that is as good.
pub(crate) async fn make_topics(admin: &AdminClient<DefaultClientContext>, names: &[&str]) {
    let new = |name| NewTopic::new(name, 1, TopicReplication::Fixed(-1)).set("max.message.bytes", "10485760");
    let new: Vec<NewTopic<'_>> = names.iter().copied().map(new).collect();
    failpoint::hit("speed.topics.before");
    let made = admin.create_topics(&new, &AdminOptions::new()).await;
    failpoint::hit("speed.topics.after");
    match made {
        Ok(made) => made.into_iter().filter_map(Result::err).for_each(|(name, code)| {
            if code != RDKafkaErrorCode::TopicAlreadyExists {
                tracing::warn!("cannot make topic {name}: {code}");
            }
        }),
        Err(error) => tracing::warn!("cannot make the topics of dead letters: {error}"),
    }
}

/// The properties of a producer that waits for all replicas and takes records of any size that a topic admits.
fn config(kafka: &ClientConfig) -> ClientConfig {
    let mut config = kafka.clone();
    config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "20");
    config.set("message.max.bytes", "10485760").set("message.timeout.ms", "30000");
    config
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

/// The producers of dead letters, shared by all partitions. Each is made when it is first needed: its thread takes a
/// hundredth of a core, even where there are no letters (it looks without waiting for the last of each 100 ms; rdkafka
/// 0.39).
pub(crate) struct DeadLetters {
    config: ClientConfig,
    together: OnceCell<FutureProducer>,
    /// Sends every letter by itself: a broker refuses a batch that is longer than its topic admits, whole.
    alone: OnceCell<FutureProducer>,
    admin: AdminClient<DefaultClientContext>,
}

impl DeadLetters {
    /// Makes one producer for a moment, so that properties with which there can be none are told at once.
    pub(crate) fn new(kafka: &ClientConfig) -> anyhow::Result<DeadLetters> {
        let config = config(kafka);
        drop(config.create::<BaseProducer>().context(FAILED)?);
        let admin = kafka.create().context(FAILED)?;
        Ok(DeadLetters { config, together: OnceCell::new(), alone: OnceCell::new(), admin })
    }

    /// The producer that sends letters together.
    async fn together(&self) -> anyhow::Result<&FutureProducer> {
        self.together.get_or_try_init(|| async { self.config.create().context(FAILED) }).await
    }

    /// The one that doesn't.
    async fn alone(&self) -> anyhow::Result<&FutureProducer> {
        let made = || async {
            self.config.clone().set("batch.num.messages", "1").create::<FutureProducer>().context(FAILED)
        };
        self.alone.get_or_try_init(made).await
    }

    /// Writes them all; returns when every one is acknowledged.
    ///
    /// # Errors
    /// The first that isn't; those before and after it may be written all the same.
    pub(crate) async fn write(&self, tp: &TopicPartition, letters: &[DeadLetter]) -> anyhow::Result<()> {
        let topic = topic_of(&tp.topic);
        let sent = letters.iter().map(|letter| self.send(&topic, tp, letter));
        let sent = futures::future::try_join_all(sent).await;
        if sent.is_err() {
            // It may not be there: it was deleted, or couldn't be made when the worker started.
            make_topics(&self.admin, &[&topic]).await;
        }
        sent.map(drop)
    }

    /// A record must not stop its partition: of one that is longer than the topic of dead letters admits, as much is kept
    /// as goes in. Its whole bytes are in the stream's topic and in the archive's rejects.
    async fn send(&self, topic: &str, tp: &TopicPartition, letter: &DeadLetter) -> anyhow::Result<()> {
        let mut sent = try_send(self.together().await?, topic, tp, letter, usize::MAX).await;
        for kept in [usize::MAX, TRUNCATED, 0] {
            let Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) = sent else {
                break;
            };
            sent = try_send(self.alone().await?, topic, tp, letter, kept).await;
        }
        sent.with_context(|| format!("cannot write a dead letter to topic {topic}"))
    }
}

/// Writes a letter with at most `kept` bytes each of its record's value, key and header.
async fn try_send(
    producer: &FutureProducer,
    topic: &str,
    tp: &TopicPartition,
    letter: &DeadLetter,
    kept: usize,
) -> Result<(), KafkaError> {
    let parts = [&letter.value, &letter.key, &letter.produced].map(Option::as_ref);
    let is_cut = parts.iter().flatten().any(|bytes| bytes.len() > kept);
    let [value, its_key, produced] = parts.map(|part| part.map(|bytes| &bytes[..bytes.len().min(kept)]));
    let key = format!("{tp}/{}", letter.offset);
    let detail: String = letter.reject.to_string().chars().take(1_000).collect();
    let numbers = [tp.partition.to_string(), letter.offset.to_string()];
    let append_time = letter.append_time.map(|time| time.to_string());
    let truncated = is_cut.then(|| letter.value.as_ref().map_or(0, Vec::len).to_string());
    let headers = [
        ("reason", Some(letter.reject.code().as_bytes())),
        ("detail", Some(detail.as_bytes())),
        ("topic", Some(tp.topic.as_bytes())),
        ("partition", Some(numbers[0].as_bytes())),
        ("offset", Some(numbers[1].as_bytes())),
        ("append_time", append_time.as_ref().map(String::as_bytes)),
        ("truncated_from", truncated.as_ref().map(String::as_bytes)),
        (KEY_HEADER, its_key),
        (PRODUCED_HEADER, produced),
    ];
    let headers = headers.iter().filter(|(_, value)| value.is_some());
    let headers =
        headers.fold(OwnedHeaders::new(), |headers, &(key, value)| headers.insert(Header { key, value }));
    let mut record = FutureRecord::to(topic).key(&key).headers(headers);
    record.payload = value;
    producer.send(record, Duration::from_secs(30)).await.map(drop).map_err(|(error, _)| error)
}

const FAILED: &str = "cannot make the producer of dead letters";
/// The header with the record's own key.
const KEY_HEADER: &str = "key";
/// How much of a record is kept that is too long for the topic of dead letters.
const TRUNCATED: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// The client of the topics would do with these.
    #[test]
    fn properties_with_which_there_is_no_producer_are_told_at_once() {
        let mut kafka = ClientConfig::new();
        kafka.set("bootstrap.servers", "localhost:1").set("retries", "0");
        let error = DeadLetters::new(&kafka).err().expect("one without repeats can't be idempotent");
        assert!(error.root_cause().to_string().contains("retries"), "{error:#}");
    }
}
