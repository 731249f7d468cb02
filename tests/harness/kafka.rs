//! The broker as an operator handles it, and a producer that puts records where a test wants them.

use crate::stack::Stack;
use crate::wait_for;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord};
use std::collections::BTreeMap;
use std::time::Duration;

/// A client that may do anything to topics.
pub fn admin(stack: &Stack) -> AdminClient<DefaultClientContext> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", stack.kafka.bootstrap());
    config.create().expect("an admin client")
}

/// Gives a topic these settings, and the broker's own for all others. They hold when this ends: the controller says yes
/// before the broker has heard of it.
///
/// # Panics
/// When the broker refuses.
pub async fn alter(stack: &Stack, topic: &str, settings: &[(&str, &str)]) {
    let (admin, topic) = (admin(stack), ResourceSpecifier::Topic(topic));
    // Of a setting given twice the last holds.
    let settings: BTreeMap<_, _> = settings.iter().copied().collect();
    let config =
        settings.iter().fold(AlterConfig::new(topic), |config, (name, value)| config.set(name, value));
    let altered = admin.alter_configs(&[config], &AdminOptions::new()).await.expect("an answer");
    altered.into_iter().for_each(|topic| drop(topic.expect("altered")));
    wait_for("the broker to have the settings", async || {
        let described = admin.describe_configs([&topic], &AdminOptions::new()).await;
        let described =
            described.map_err(|error| error.to_string())?.remove(0).map_err(|code| code.to_string())?;
        let has = |name: &str| described.get(name).and_then(|entry| entry.value.as_deref());
        match settings.iter().find(|(name, value)| has(name) != Some(*value)) {
            None => Ok(()),
            Some((name, _)) => Err(format!("{name}={:?}", has(name))),
        }
    })
    .await;
}

/// Deletes a topic.
///
/// # Panics
/// When the broker refuses.
pub async fn delete(stack: &Stack, topic: &str) {
    let deleted = admin(stack).delete_topics(&[topic], &AdminOptions::new()).await.expect("an answer");
    deleted.into_iter().for_each(|topic| drop(topic.expect("deleted")));
}

/// A producer that keeps each partition's order and repeats nothing of its own accord, with properties of librdkafka's
/// beside.
pub fn producer(stack: &Stack, properties: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", stack.kafka.bootstrap()).set("enable.idempotence", "true");
    for (name, value) in properties {
        config.set(*name, *value);
    }
    config.create().expect("a producer")
}

/// Puts a record into a partition: acknowledged once the producer is flushed.
pub fn put(producer: &BaseProducer, topic: &str, partition: i32, key: &str, value: &[u8]) {
    let record = BaseRecord::to(topic).partition(partition).key(key).payload(value);
    producer.send(record).map_err(|(error, _)| error).expect("sent");
    producer.poll(Duration::ZERO);
}
