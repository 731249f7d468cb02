//! Kafka: one data consumer with a queue per partition, and beside it the group member that only says which
//! partitions are ours.
//!
//! Where to read is decided by what Redis holds, never by committed offsets: those are for lag tools. The two
//! consumers are apart so that a rebalance can't move a position, and a re-read can't disturb the group.

use crate::telemetry;
use anyhow::{Context as _, anyhow};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer as _, ConsumerContext, StreamConsumer,
    stream_consumer::StreamPartitionQueue,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaConfRes, RDKafkaRespErr};
use shared_model::offsets::TopicPartition;
use shared_model::secret::{KafkaProperties, Secret, property_refused};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long a question to the brokers may take.
const ASK: Duration = Duration::from_secs(10);
/// How long a rebalance waits for the revoked partitions' last flush.
const REVOKE: Duration = Duration::from_secs(10);
/// How often, in ms, a client looks for new partitions: both must, the member to be given them and the data consumer to
/// read them.
const METADATA_REFRESH: &str = "5000";

/// The queue of one partition's records.
pub(crate) type Records = StreamPartitionQueue<LogContext>;

/// The settings that every client starts from.
///
/// # Errors
/// Where a property is none, or librdkafka refuses it.
pub(crate) fn client_config(bootstrap: &str, properties: &[Secret]) -> anyhow::Result<ClientConfig> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("client.id", "tidemark-speed");
    let properties = KafkaProperties::read(properties, |path| std::fs::read_to_string(path));
    let properties = properties.context(PROPERTIES)?;
    for (key, value) in properties.pairs() {
        config.set(key, value);
    }
    match config.create_native_config() {
        // The error would show the value.
        Err(KafkaError::ClientConfig(why, _, key, _)) => {
            let is_known = why != RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
            Err(property_refused(properties.pairs(), &key, is_known)).context(PROPERTIES)
        }
        _ => Ok(config),
    }
}

const PROPERTIES: &str = "--kafka-property (TIDEMARK_KAFKA_PROPERTIES)";

/// The log of all streams.
#[derive(Clone)]
pub(crate) struct Log {
    data: Arc<StreamConsumer<LogContext>>,
}

/// How often each topic was replaced by another of its name while the client read it.
#[derive(Default)]
struct Replaced(Mutex<BTreeMap<String, u64>>);

impl Replaced {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Makes the data consumer; it connects on its own and assigns nothing yet.
    pub(crate) fn new(kafka: &ClientConfig, group_id: &str) -> anyhow::Result<Log> {
        let mut config = kafka.clone();
        config
            .set("group.id", group_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("statistics.interval.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH)
            .set("queued.min.messages", "50000")
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100");
        watch_topic_ids(&mut config);
        let data =
            config.create_with_context(LogContext::default()).context("cannot make the kafka consumer")?;
        Ok(Log { data: Arc::new(data) })
    }

    /// How often a topic was deleted and made anew while it was read. The client says so before it brings the first
    /// record of the new log.
    pub(crate) fn replaced(&self, topic: &str) -> u64 {
        self.data.context().replaced.lock().get(topic).copied().unwrap_or_default()
    }

    /// Serves the client's events until the stop; logs what it says. Records never come this way.
    pub(crate) async fn serve(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = self.data.recv() => if let Err(error) = event {
                    tracing::debug!("kafka: {error}");
                },
            }
        }
    }

    /// The number of partitions of each topic that exists.
    pub(crate) async fn partitions(&self, topics: Vec<Arc<str>>) -> anyhow::Result<BTreeMap<Arc<str>, i32>> {
        let data = self.data.clone();
        blocking(move || {
            let mut counts = BTreeMap::new();
            for topic in topics {
                let metadata = data.fetch_metadata(Some(&topic), ASK);
                let metadata = metadata.map_err(|error| match data.context().trouble() {
                    // What the call itself says is only that nothing came.
                    Some(reason) => anyhow!(reason),
                    None => error.into(),
                });
                let metadata = metadata.context("kafka does not answer")?;
                let found = metadata.topics().iter().find(|found| found.name() == &*topic);
                if let Some(found) = found.filter(|found| found.error().is_none()) {
                    counts.insert(topic, found.partitions().len() as i32);
                }
            }
            data.context().forget_trouble();
            Ok(counts)
        })
        .await
    }

    /// The first offset that the log has, and the next that it will give.
    pub(crate) async fn watermarks(&self, tp: &TopicPartition) -> anyhow::Result<(i64, i64)> {
        let (data, tp) = (self.data.clone(), tp.clone());
        blocking(move || {
            data.fetch_watermarks(&tp.topic, tp.partition, ASK)
                .with_context(|| format!("cannot ask for {tp}'s offsets"))
        })
        .await
    }

    /// Starts reading a partition at an offset.
    pub(crate) async fn open(&self, tp: &TopicPartition, offset: i64) -> anyhow::Result<Records> {
        let (data, tp) = (self.data.clone(), tp.clone());
        blocking(move || {
            let list = one(&tp, offset)?;
            // Split before the assignment, so that no record goes by way of the common queue.
            let queue = data.split_partition_queue(&tp.topic, tp.partition);
            let queue = queue.ok_or_else(|| anyhow!("kafka gives no queue for {tp}"))?;
            data.incremental_assign(&list).with_context(|| format!("cannot read {tp} from {offset}"))?;
            Ok(queue)
        })
        .await
    }

    /// Stops reading a partition.
    pub(crate) async fn close(&self, tp: &TopicPartition) -> anyhow::Result<()> {
        let (data, tp) = (self.data.clone(), tp.clone());
        blocking(move || {
            data.incremental_unassign(&one(&tp, 0)?).with_context(|| format!("cannot stop reading {tp}"))
        })
        .await
    }

    /// Commits a stored position, for lag tools; never waits and never fails for long.
    pub(crate) fn commit(&self, tp: &TopicPartition, offset: i64) {
        if let Ok(list) = one(tp, offset)
            && let Err(error) = self.data.commit(&list, CommitMode::Async)
        {
            tracing::debug!("cannot commit {tp} at {offset}: {error}");
        }
    }
}

fn one(tp: &TopicPartition, offset: i64) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(offset))?;
    Ok(list)
}

/// Runs one of librdkafka's blocking calls off the runtime's threads.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(call).await.context("a kafka call broke off")?
}

/// Makes the client say in its log when a topic gets another id.
fn watch_topic_ids(config: &mut ClientConfig) {
    let debug = config.get("debug").map_or("metadata".to_owned(), |debug| format!("{debug},metadata"));
    config.set("debug", debug).set_log_level(RDKafkaLogLevel::Debug);
}

/// The topic that the client's log says has another id now. librdkafka 2.12 tells it in this way alone: `Topic NAME
/// changed id from ID to ID`. The id of a topic that it sees for the first time is all zeros.
fn replaced_topic(message: &str) -> Option<&str> {
    const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let (before, ids) = message.split_once(" changed id from ")?;
    let (_, topic) = before.rsplit_once("Topic ")?;
    (!ids.starts_with(NO_ID)).then_some(topic)
}

/// Callbacks of the data consumer: its log, its statistics, what it last had trouble with and which topics were
/// replaced.
#[derive(Default)]
pub(crate) struct LogContext {
    trouble: Mutex<Option<String>>,
    replaced: Replaced,
}

impl LogContext {
    /// Why brokers can't be reached, as the client said last: a wrong password, a certificate, a refused connection.
    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget_trouble(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(topic) = replaced_topic(message) {
            tracing::error!("topic {topic} was deleted and made anew: {message}");
            *self.replaced.lock().entry(topic.to_owned()).or_default() += 1;
        }
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error {
            // The end of a partition is told to its own queue.
            KafkaError::Global(RDKafkaErrorCode::PartitionEOF) => return,
            // That all are down says less than what was said of each.
            KafkaError::Global(RDKafkaErrorCode::AllBrokersDown) => {}
            _ => *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned()),
        }
        tracing::warn!("kafka: {error}: {reason}");
    }

    fn stats(&self, statistics: Statistics) {
        for (topic, of) in &statistics.topics {
            for (&partition, of) in of.partitions.iter().filter(|(_, of)| of.desired && of.ls_offset >= 0) {
                if of.app_offset >= 0 {
                    telemetry::lag(topic, partition, (of.ls_offset - of.app_offset).max(0));
                }
            }
        }
    }
}

impl ConsumerContext for LogContext {}

fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            tracing::warn!("kafka {facility}: {message}");
        }
        _ => tracing::debug!("kafka {facility}: {message}"),
    }
}

/// What the group decided.
#[derive(Debug)]
pub(crate) enum Membership {
    /// These are ours now.
    Assigned(Vec<TopicPartition>),
    /// These are ours no more; the group waits until the sender is dropped (or a while).
    Revoked(Vec<TopicPartition>, std::sync::mpsc::Sender<()>),
    /// The group had no sign of us for a session: what is revoked next was others' before.
    Lost,
}

/// The property that says how long the partitions of a worker stand still that gave no sign: one that was killed.
const SESSION: &str = "session.timeout.ms";

/// Our place in the consumer group, on a thread of its own: librdkafka calls back and waits there.
pub(crate) struct Member {
    consumer: Arc<BaseConsumer<MemberContext>>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Member {
    /// Joins the group for some topics; decisions come by the channel.
    pub(crate) fn join(
        kafka: &ClientConfig,
        group_id: &str,
        topics: &[Arc<str>],
        decisions: mpsc::UnboundedSender<Membership>,
    ) -> anyhow::Result<Member> {
        let mut config = kafka.clone();
        config
            .set("group.id", group_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // A rebalance is noticed with the next heartbeat, and what moves stands still until then.
            .set("heartbeat.interval.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH)
            .set("partition.assignment.strategy", "cooperative-sticky");
        // The properties that were given may say how long.
        if config.get(SESSION).is_none() {
            config.set(SESSION, "10000");
        }
        let context = MemberContext { decisions };
        let consumer: BaseConsumer<MemberContext> =
            config.create_with_context(context).context("cannot make the kafka group member")?;
        let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
        consumer.subscribe(&names).context("cannot join the consumer group")?;
        let (consumer, stop) = (Arc::new(consumer), CancellationToken::new());
        let (polled, stopped) = (consumer.clone(), stop.clone());
        let poll = move || {
            while !stopped.is_cancelled() {
                // Its partitions are paused: nothing but events comes.
                match polled.poll(Duration::from_millis(100)) {
                    Some(Err(error))
                        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidSessionTimeout) =>
                    {
                        tracing::warn!(
                            "kafka group: {error}: the brokers' group.min.session.timeout.ms is longer"
                        );
                    }
                    Some(Err(error)) => tracing::debug!("kafka group: {error}"),
                    _ => {}
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("kafka-group".into()).spawn(poll).context("no thread")?;
        Ok(Member { consumer, stop, thread: Some(thread) })
    }

    /// Commits a stored position, for lag tools.
    pub(crate) fn commit(&self, tp: &TopicPartition, offset: i64) {
        if let Ok(list) = one(tp, offset)
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            tracing::debug!("cannot commit {tp} at {offset}: {error}");
        }
    }

    /// Leaves the group, so that others take over at once.
    pub(crate) async fn leave(mut self) {
        self.stop.cancel();
        let thread = self.thread.take();
        let left = blocking(move || {
            thread.map(std::thread::JoinHandle::join);
            self.consumer.unsubscribe();
            // Dropping the last reference closes the consumer, which leaves the group.
            drop(self);
            Ok(())
        });
        drop(left.await);
    }
}

/// Callbacks of the group member: hands on what the group decides.
pub(crate) struct MemberContext {
    decisions: mpsc::UnboundedSender<Membership>,
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("kafka group: {error}: {reason}");
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let named = list.elements();
        let partitions = named.iter().map(|of| TopicPartition::new(of.topic(), of.partition())).collect();
        drop(named);
        let done = match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let assigned = list
                    .set_all_offsets(Offset::Offset(0))
                    .and_then(|()| consumer.incremental_assign(list))
                    .and_then(|()| consumer.pause(list));
                // A closed channel means that the service stops: nobody needs to know.
                drop(self.decisions.send(Membership::Assigned(partitions)));
                assigned
            }
            _ => {
                if consumer.assignment_lost() {
                    drop(self.decisions.send(Membership::Lost));
                }
                let (flushed, wait) = std::sync::mpsc::channel();
                if self.decisions.send(Membership::Revoked(partitions, flushed)).is_ok() {
                    // Answered by a message or by the sender's end.
                    let _ = wait.recv_timeout(REVOKE);
                }
                consumer.incremental_unassign(list)
            }
        };
        if let Err(error) = done {
            tracing::warn!("kafka group: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_with_another_id_is_told_from_one_seen_for_the_first_time() {
        let first =
            "[thrd:main]: Topic views changed id from AAAAAAAAAAAAAAAAAAAAAA to jJ1Yt0BzQmKnq0nYyYjHhg";
        assert_eq!(replaced_topic(first), None);
        let second =
            "[thrd:main]: Topic views changed id from jJ1Yt0BzQmKnq0nYyYjHhg to 0pGdbtVBQ7uGVLFgIUvHWQ";
        assert_eq!(replaced_topic(second), Some("views"));
        assert_eq!(replaced_topic("[thrd:main]: Topic views partition 0 Leader 1"), None);
    }
}
