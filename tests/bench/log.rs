//! Writes the benches' records into a log.

use crate::events::{self, Records, Totals};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use std::time::Duration;

/// Writes records to a topic, uncompressed and without keys, as the peer's generator does, and shows each to `seen`.
pub(crate) fn send(
    bootstrap: &str,
    topic: &str,
    records: Records,
    mut seen: impl FnMut(&[u8]),
) -> anyhow::Result<Totals> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "1")
        .set("linger.ms", "20")
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "1000000")
        .create()?;
    let totals = events::generate(records, |partition, value| {
        seen(value);
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(partition).payload(value);
        while let Err((error, back)) = producer.send(record) {
            assert!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
            producer.poll(Duration::from_millis(20));
            record = back;
        }
        producer.poll(Duration::ZERO);
    });
    producer.flush(Duration::from_secs(60))?;
    Ok(totals)
}
