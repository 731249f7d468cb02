//! What the servers can do at most, measured beside each run: a consumer that does nothing with the log's records, and Redis
//! where each command changes one value.

use crate::process::cpu;
use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use redis::Cmd;
use std::time::{Duration, Instant};
use tidemark_tests::redis_client::connect;
use tidemark_tests::stack::Stack;

/// So many commands of each kind.
const COMMANDS: usize = 1 << 20;
/// So many of them are sent at once.
const DEPTH: usize = 256;
/// While Redis works on those of one connection, the next ones come by another.
const CONNECTIONS: usize = 2;

/// What was reached.
pub(crate) struct Ceiling {
    /// The bare consumer.
    pub(crate) consume: Rate,
    /// `HINCRBY` of fields of some hundred hashes.
    pub(crate) hincrby: Rate,
    /// `SET` with an expiry.
    pub(crate) set: Rate,
}

/// How fast something was done, and what it cost.
pub(crate) struct Rate {
    /// Of it a second.
    pub(crate) per_second: f64,
    /// CPU-microseconds for each: the consumer's own, or Redis'.
    pub(crate) cpu: f64,
}

impl Rate {
    fn of(count: f64, begun: Instant, cpu: f64) -> Rate {
        Rate { per_second: count / begun.elapsed().as_secs_f64(), cpu: 1e6 * cpu / count }
    }
}

impl Ceiling {
    /// Reads the log's records, which must be so many, and writes into Redis, which is not emptied afterwards.
    pub(crate) async fn measure(stack: &Stack, partitions: i32, records: u64) -> anyhow::Result<Ceiling> {
        let bootstrap = stack.kafka.bootstrap();
        let consume = move || consume(&bootstrap, partitions, records);
        let consume = tokio::task::spawn_blocking(consume).await??;
        // One slot, so that a pipeline goes to one node of a Cluster too.
        let hincrby = commands(stack, |n| {
            let mut command = redis::cmd("HINCRBY");
            command.arg(format!("{{ceiling}}:{}", n % 512)).arg(n).arg(1);
            command
        });
        let hincrby = hincrby.await?;
        let set = commands(stack, |n| {
            let mut command = redis::cmd("SET");
            command.arg(format!("{{ceiling}}:value:{n}")).arg(n).arg("EX").arg(3_600);
            command
        });
        Ok(Ceiling { consume, hincrby, set: set.await? })
    }
}

/// A consumer alone. Its CPU time is that of this process, which does nothing else meanwhile.
fn consume(bootstrap: &str, partitions: i32, records: u64) -> anyhow::Result<Rate> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "ceiling")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("queued.min.messages", "1000000");
    let consumer: BaseConsumer = config.create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset("events", partition, Offset::Beginning)?;
    }
    let myself = std::process::id() as i32;
    let (before, begun) = (cpu([myself])?, Instant::now());
    consumer.assign(&list)?;
    let (mut read, mut ended) = (0, 0);
    while ended < partitions {
        match consumer.poll(Duration::from_secs(30)).context("the broker is silent")? {
            // A tick has no value.
            Ok(message) => read += u64::from(message.payload().is_some()),
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => return Err(error.into()),
        }
    }
    let rate = Rate::of(records as f64, begun, cpu([myself])? - before);
    ensure!(read == records, "{read} records are in the log, not {records}");
    Ok(rate)
}

/// Commands in pipelines, the n-th as it is made.
async fn commands(stack: &Stack, made: impl Fn(usize) -> Cmd) -> anyhow::Result<Rate> {
    let (made, url) = (&made, stack.redis.url());
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(connect(&url).await);
    }
    let (before, begun) = (cpu(stack.redis.pids())?, Instant::now());
    let sent = connections.into_iter().enumerate().map(|(at, mut connection)| async move {
        for first in (at * DEPTH..COMMANDS).step_by(CONNECTIONS * DEPTH) {
            let mut pipeline = redis::pipe();
            for n in first..first + DEPTH {
                pipeline.add_command(made(n)).ignore();
            }
            pipeline.exec_async(&mut connection).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(sent).await?;
    Ok(Rate::of(COMMANDS as f64, begun, cpu(stack.redis.pids())? - before))
}
