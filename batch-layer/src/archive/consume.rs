//! Reads one partition of the log at a time, by explicit assignment; commits nothing and belongs to no group.
//!
//! An offset that the log no longer has becomes a gap, never a skip; what stops a partition becomes a reason for
//! people, never an endless wait.

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders, Timestamp};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use shared_model::event::{PRODUCED_HEADER, TICK_HEADER};
use shared_model::failpoint;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::archive::fold::Record;
use crate::archive::step::{Arrived, Logged, shrunk};

/// How long one request to the broker may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How long one poll waits: the delay with which a stop signal is seen.
const POLL: Duration = Duration::from_millis(100);
/// How long the client is asked why the brokers can't be reached.
const TROUBLE: Duration = Duration::from_secs(3);

/// A consumer that reads only what it is assigned.
pub(crate) type LogConsumer = BaseConsumer<Quiet>;

/// Keeps the client's own log to what is worth a line: the end of a partition is no error. Why brokers can't be reached is
/// kept, since a request then says only that it had no answer in time.
#[derive(Default)]
pub(crate) struct Quiet {
    trouble: Mutex<Option<String>>,
}

impl Quiet {
    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why the brokers can't be reached, where the client finds out: a wrong password, a certificate, a refused connection.
/// Blocks for a while.
fn trouble(kafka: &ClientConfig) -> Option<String> {
    let (consumer, begun) = (consumer(kafka).ok()?, Instant::now());
    while begun.elapsed() < TROUBLE && consumer.context().trouble().is_none() {
        // Brings the client's errors to its context.
        drop(consumer.poll(POLL));
    }
    consumer.context().trouble()
}

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        match error {
            // That all are down says less than what was said of each.
            KafkaError::PartitionEOF(_) | KafkaError::Global(Code::PartitionEOF | Code::AllBrokersDown) => {}
            error => {
                debug!("kafka: {error}: {reason}");
                *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
            }
        }
    }
}

impl ConsumerContext for Quiet {}

/// Makes a consumer that commits nothing and resets nothing.
pub(crate) fn consumer(kafka: &ClientConfig) -> Result<LogConsumer> {
    let mut config = kafka.clone();
    config
        .set("group.id", "tidemark-archive")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false")
        .set("fetch.wait.max.ms", "20")
        .set("queued.max.messages.kbytes", "16384");
    config
        .create_with_context(Quiet::default())
        .context("the kafka consumer can't be made: check --kafka and --kafka-property")
}

/// A producer for ticks.
pub(crate) type LogProducer = FutureProducer<Quiet>;

/// Makes a producer that waits for all replicas.
pub(crate) fn producer(kafka: &ClientConfig) -> Result<LogProducer> {
    let mut config = kafka.clone();
    config.set("acks", "all").set("linger.ms", "0").set("message.timeout.ms", "10000");
    config
        .create_with_context(Quiet::default())
        .context("the kafka producer can't be made: check --kafka and --kafka-property")
}

/// The partitions of a topic, ascending; `None` where the topic isn't there.
pub(crate) fn partitions(consumer: &LogConsumer, topic: &str) -> Result<Option<Vec<TopicPartition>>> {
    let failed = || format!("kafka doesn't tell about topic {topic} (is the broker of --kafka up?)");
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST).with_context(failed)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(Code::from) {
        None => {}
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(None),
        Some(code) => return Err(KafkaError::MetadataFetch(code)).with_context(failed),
    }
    let mut partitions: Vec<_> =
        found.partitions().iter().map(|partition| TopicPartition::new(topic, partition.id())).collect();
    partitions.sort();
    Ok((!partitions.is_empty()).then_some(partitions))
}

/// The first offset that a partition's log has, and one more than its last.
pub(crate) fn watermarks(consumer: &LogConsumer, tp: &TopicPartition) -> Result<(i64, i64)> {
    let watermarks = consumer.fetch_watermarks(&tp.topic, tp.partition, REQUEST);
    watermarks.with_context(|| format!("kafka doesn't tell where the log of {tp} begins and ends"))
}

/// Refuses topics whose records carry their producers' times, or lose records to compaction: neither has an ingest
/// clock that everyone reads the same from the log.
pub(crate) async fn check_topics(kafka: &ClientConfig, topics: &[&str]) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        kafka.create().context("the kafka admin client can't be made")?;
    let specifiers: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST));
    let described = admin.describe_configs(&specifiers, &options).await;
    let described = match described {
        Ok(described) => described,
        Err(error) => {
            let kafka = kafka.clone();
            let reason = tokio::task::spawn_blocking(move || trouble(&kafka)).await.unwrap_or_default();
            let error = anyhow::Error::from(error);
            let error = if let Some(reason) = reason { error.context(reason) } else { error };
            return Err(error.context(
                "kafka doesn't tell how its topics are configured; are host, port, TLS and SASL right?",
            ));
        }
    };
    let bootstrap = kafka.get("bootstrap.servers").unwrap_or("BROKER:9092");
    let mut faults = Vec::new();
    for (topic, resource) in topics.iter().zip(described) {
        let resource = match resource {
            Ok(resource) => resource,
            Err(Code::UnknownTopicOrPartition) => continue,
            Err(code) => {
                warn!(topic, "the topic's configuration can't be checked: {code}");
                continue;
            }
        };
        let value = |name: &str| resource.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
        faults.extend(topic_fault(
            bootstrap,
            topic,
            &value("message.timestamp.type"),
            &value("cleanup.policy"),
        ));
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

fn topic_fault(bootstrap: &str, topic: &str, timestamps: &str, cleanup: &str) -> Option<String> {
    let mut wanted = Vec::new();
    if !timestamps.is_empty() && timestamps != "LogAppendTime" {
        wanted.push("message.timestamp.type=LogAppendTime");
    }
    if cleanup.contains("compact") {
        wanted.push("cleanup.policy=delete");
    }
    (!wanted.is_empty()).then(|| {
        format!(
            "topic {topic} has message.timestamp.type={timestamps} and cleanup.policy={cleanup}; tidemark needs the \
             broker's append times and every record: kafka-configs.sh --bootstrap-server {bootstrap} --alter \
             --entity-type topics --entity-name {topic} --add-config {}",
            wanted.join(",")
        )
    })
}

/// Appends a tick to a partition and says when the broker stamped it.
pub(crate) async fn tick(producer: &LogProducer, tp: &TopicPartition) -> Result<Option<Millis>> {
    let headers = OwnedHeaders::new_with_capacity(1).insert(Header { key: TICK_HEADER, value: Some("1") });
    let record: FutureRecord<'_, (), ()> =
        FutureRecord::to(&tp.topic).partition(tp.partition).headers(headers);
    failpoint::hit("batch.tick.before");
    let sent = producer.send(record, REQUEST).await;
    failpoint::hit("batch.tick.after");
    match sent {
        Ok(delivery) => Ok(delivery.timestamp.to_millis()),
        Err((error, _)) => Err(error).with_context(|| format!("a tick can't be written to {tp}")),
    }
}

/// Reads one partition from an offset on.
pub(crate) struct PartitionReader<'c> {
    consumer: &'c LogConsumer,
    tp: TopicPartition,
    /// The next offset to be read: one more than the last record's.
    next: i64,
    patience: Duration,
    stop: CancellationToken,
}

impl<'c> PartitionReader<'c> {
    /// Assigns the partition. `patience`: how long the broker may bring nothing, not even the log's end.
    pub(crate) fn new(
        consumer: &'c LogConsumer,
        tp: TopicPartition,
        from: i64,
        patience: Duration,
        stop: CancellationToken,
    ) -> Result<PartitionReader<'c>> {
        let mut reader = PartitionReader { consumer, tp, next: from, patience, stop };
        reader.seek(from)?;
        Ok(reader)
    }

    /// Goes on reading at another offset.
    pub(crate) fn seek(&mut self, offset: i64) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(1);
        let assigned = list
            .add_partition_offset(&self.tp.topic, self.tp.partition, Offset::Offset(offset))
            .and_then(|()| self.consumer.assign(&list));
        assigned.with_context(|| format!("{} can't be read from offset {offset}", self.tp))?;
        self.next = offset;
        Ok(())
    }

    /// Waits for what comes next.
    pub(crate) fn next(&mut self) -> Result<Arrived<BorrowedMessage<'c>>> {
        let since = Instant::now();
        let mut trouble = None;
        while since.elapsed() < self.patience {
            if self.stop.is_cancelled() {
                bail!("stopped while reading {}: what was sealed stays sealed", self.tp);
            }
            match self.consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) if self.expects(&message) => {
                    self.next = message.offset() + 1;
                    return Ok(Arrived::Record(message));
                }
                Some(Ok(_)) => {}
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == self.tp.partition => {
                    return Ok(Arrived::End);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => return self.out_of_range(),
                    Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                        return Ok(Arrived::Stuck("the topic or partition is gone".to_owned()));
                    }
                    Some(
                        Code::TopicAuthorizationFailed
                        | Code::SaslAuthenticationFailed
                        | Code::Authentication,
                    ) => {
                        return Err(error).with_context(|| format!("{} may not be read", self.tp));
                    }
                    _ => trouble = Some(error),
                },
            }
        }
        let trouble = trouble.map_or("the broker brings nothing".to_owned(), |error| error.to_string());
        Ok(Arrived::Stuck(format!("no record for {:?} at offset {}: {trouble}", self.patience, self.next)))
    }

    /// Whether a message is the next of this partition, and not one fetched for an earlier assignment.
    fn expects(&self, message: &BorrowedMessage<'_>) -> bool {
        message.partition() == self.tp.partition
            && message.offset() >= self.next
            && message.topic() == &*self.tp.topic
    }

    fn out_of_range(&mut self) -> Result<Arrived<BorrowedMessage<'c>>> {
        let (low, high) = watermarks(self.consumer, &self.tp)?;
        let at = self.next;
        if low > at {
            self.seek(low)?;
            return Ok(Arrived::Gap(at, low));
        }
        Ok(Arrived::Stuck(shrunk(at, high)))
    }
}

impl Logged for BorrowedMessage<'_> {
    fn record(&self) -> Record<'_> {
        let header =
            |name: &str| self.headers().and_then(|headers| headers.iter().find(|header| header.key == name));
        let produced = header(PRODUCED_HEADER).and_then(|header| header.value);
        Record {
            offset: self.offset(),
            append_time: match self.timestamp() {
                Timestamp::LogAppendTime(millis) => Some(millis),
                Timestamp::CreateTime(_) | Timestamp::NotAvailable => None,
            },
            produced: produced.and_then(|bytes| std::str::from_utf8(bytes).ok()?.trim().parse().ok()),
            tick_header: header(TICK_HEADER).is_some(),
            value: self.payload(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_without_append_times_is_refused_with_the_command_that_alters_it() {
        assert_eq!(topic_fault("k:1", "t", "LogAppendTime", "delete"), None);
        let fault = topic_fault("k:1", "t", "CreateTime", "compact,delete").unwrap();
        assert!(fault.contains("--bootstrap-server k:1"), "{fault}");
        assert!(
            fault.ends_with("--add-config message.timestamp.type=LogAppendTime,cleanup.policy=delete"),
            "{fault}"
        );
    }
}
