//! Positions in the log: partitions of topics, and half-open ranges of offsets.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One partition of one topic. Orders by topic, then partition: the order in which a surviving delivery is chosen.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }

    /// The partition that `Display` wrote (`topic/3`), if it is one.
    pub fn parse(text: &str) -> Option<TopicPartition> {
        let (topic, partition) = text.rsplit_once('/')?;
        Some(TopicPartition::new(topic, partition.parse().ok()?))
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl std::fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// The offsets `[from, to)` of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OffsetRange {
    /// The first offset inside.
    pub from: i64,
    /// The first offset after.
    pub to: i64,
}

impl OffsetRange {
    /// Whether `offset` lies inside.
    pub fn contains(&self, offset: i64) -> bool {
        self.from <= offset && offset < self.to
    }

    /// How many offsets it spans (records at most: control records and compaction leave holes).
    pub fn len(&self) -> i64 {
        (self.to - self.from).max(0)
    }

    /// Whether it spans none.
    pub fn is_empty(&self) -> bool {
        self.to <= self.from
    }
}
