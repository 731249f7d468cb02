//! Two brokers of one cluster: the stack's own, which is also the controller and whose clock is right, and a second one
//! that may die, stand still, or have a wrong clock.
//!
//! Every partition has a replica on each; which of them leads it while both are well is said when its topic is made.

use crate::kafka::admin;
use crate::preload::WrongClock;
use crate::stack::{Servers, Stack, found};
use crate::wait_for;
use local::servers::{Kafka, KafkaOptions};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use std::time::Duration;

/// The id of the stack's own broker.
pub const FIRST: i32 = 1;
/// The id of the second.
pub const SECOND: i32 = 2;

/// A stack on two brokers.
pub struct Pair {
    /// The stack, on the first.
    pub stack: Stack,
    /// The second broker.
    pub second: Kafka,
    clock: WrongClock,
    // After the broker whose data it holds.
    _folder: tempfile::TempDir,
}

impl Pair {
    /// Starts both, and makes the catalog's topics with a partition for each of `leaders`, which says who leads it.
    pub async fn start(program: &str, catalog: &str, leaders: &[i32]) -> Pair {
        // A leader that comes back leads again what is its own. Offsets of groups lie on both.
        let properties = [
            ("default.replication.factor", "2"),
            ("offsets.topic.replication.factor", "2"),
            ("leader.imbalance.check.interval.seconds", "1"),
            ("min.insync.replicas", "1"),
        ];
        let properties: Vec<_> = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let options = KafkaOptions { properties, ..KafkaOptions::default() };
        let servers = Servers { kafka: options.clone(), ..Servers::default() };
        let stack = Stack::without_topics(program, catalog, servers).await;
        let folder = local::servers::scratch().expect("a temporary folder");
        let clock = WrongClock::new(folder.path());
        let options = KafkaOptions { environment: clock.environment(), ..options };
        let home = folder.path().join("kafka");
        let second = stack.kafka.join(&found().await, &home, SECOND as u32, options).await;
        let pair = Pair { second: second.expect("a second broker"), stack, clock, _folder: folder };
        for topic in &pair.stack.probe.topics {
            pair.make(topic, leaders).await;
        }
        pair
    }

    async fn make(&self, topic: &str, leaders: &[i32]) {
        let replicas: Vec<[i32; 2]> =
            leaders.iter().map(|&leader| [leader, FIRST + SECOND - leader]).collect();
        let replicas: Vec<&[i32]> = replicas.iter().map(<[i32; 2]>::as_slice).collect();
        let new = NewTopic::new(topic, leaders.len() as i32, TopicReplication::Variable(&replicas));
        let made = admin(&self.stack).create_topics(&[new], &AdminOptions::new()).await.expect("an answer");
        made.into_iter().for_each(|topic| drop(topic.expect("made")));
        self.led(topic, leaders).await;
    }

    /// Starts the second broker anew with a clock that is wrong by so many milliseconds, and waits until it leads again
    /// what is its own.
    pub async fn restart_second(&mut self, wrong_by: i64, leaders: &[i32]) {
        self.clock.set(wrong_by);
        self.second.restart().await.expect("the second broker again");
        for topic in self.stack.probe.topics.clone() {
            self.led(&topic, leaders).await;
        }
    }

    /// Waits until the partitions of a topic have these leaders.
    pub async fn led(&self, topic: &str, leaders: &[i32]) {
        let admin = admin(&self.stack);
        wait_for(&format!("{topic} being led by {leaders:?}"), async || {
            let metadata = admin.inner().fetch_metadata(Some(topic), Duration::from_secs(10));
            let metadata = metadata.map_err(|error| error.to_string())?;
            let mut found: Vec<_> =
                metadata.topics()[0].partitions().iter().map(|p| (p.id(), p.leader())).collect();
            found.sort_unstable();
            let same = found.iter().map(|(_, leader)| leader).eq(leaders);
            if same { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
}
