//! The broker: partitions of appended records, each stamped by its leader's clock.

use crate::fact::{Counts, Fact, HORIZON};
use crate::random::Random;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use std::collections::BTreeMap;

/// The first millisecond of the simulation: ten seconds before midnight, 2016-06-14.
pub(crate) const START: Millis = 1_465_948_790_000;

/// One record, and what a look at the whole log below it tells.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    pub(crate) append: Millis,
    /// `None`: a tick.
    pub(crate) value: Option<Vec<u8>>,
    /// The event, where it is a valid one.
    pub(crate) fact: Option<Fact>,
    /// How many offsets back the newest valid record of the same partition lies that is the same event.
    pub(crate) back: Option<i64>,
    /// The running maximum of append times.
    pub(crate) clock: Millis,
    /// When it was appended, by no leader's clock.
    pub(crate) now: Millis,
    /// What it adds to each metric.
    pub(crate) counts: Vec<Counts>,
}

/// One partition.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<Record>,
    /// The next offset.
    pub(crate) end: i64,
    /// The first offset that is still there.
    pub(crate) low: i64,
    /// Records from here on are hidden by an open transaction.
    pub(crate) hidden: Option<i64>,
    /// How far its leader's clock is ahead.
    pub(crate) skew: Millis,
    topic: &'static str,
    /// All events that were sent to it, valid or not.
    sent: Vec<Fact>,
}

/// All partitions.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    pub(crate) logs: BTreeMap<TopicPartition, Log>,
    /// The most that any leader's clock has been ahead.
    pub(crate) far_ahead: Millis,
    /// Whose events go where.
    users: BTreeMap<TopicPartition, Vec<u8>>,
}

impl Log {
    /// The next offset that a reader can get to.
    pub(crate) fn visible_end(&self) -> i64 {
        self.hidden.unwrap_or(self.end)
    }

    /// The first record at or above an offset that can be read.
    pub(crate) fn at(&self, offset: i64) -> Option<&Record> {
        let at = self.records.partition_point(|record| record.offset < offset.max(self.low));
        self.records.get(at).filter(|record| record.offset < self.visible_end())
    }

    /// Appends at the leader's time and returns the stamp.
    pub(crate) fn append(&mut self, now: Millis, value: Option<Vec<u8>>, fact: Option<Fact>) -> Millis {
        let append = now + self.skew;
        let fact = fact.filter(|fact| fact.believed(append));
        let offset = self.end;
        let near = self.records.iter().rev().take_while(|record| record.offset >= offset - HORIZON);
        let same = |fact: &Fact| {
            let is_same =
                |record: &&Record| record.fact.as_ref().map(Fact::identity) == Some(fact.identity());
            near.into_iter().find(is_same).map(|record| offset - record.offset)
        };
        let back = fact.as_ref().and_then(same);
        let counts = fact.as_ref().map(|fact| fact.counts(self.topic)).unwrap_or_default();
        let clock = self.records.last().map_or(0, |last| last.clock).max(append);
        self.records.push(Record { offset, append, value, fact, back, clock, now, counts });
        self.end += 1;
        append
    }
}

impl Broker {
    pub(crate) fn add(&mut self, topic: &'static str, partition: i32) {
        let tp = TopicPartition::new(topic, partition);
        // Each partition has users of its own, as a partitioner by key gives them.
        let users = (0..4).map(|user| user * 4 + partition as u8).collect();
        self.users.insert(tp.clone(), users);
        self.logs.insert(tp, Log { topic, ..Log::default() });
    }

    /// How many partitions a topic has.
    pub(crate) fn count(&self, topic: &str) -> i32 {
        self.logs.keys().filter(|tp| &*tp.topic == topic).count() as i32
    }

    pub(crate) fn log(&self, tp: &TopicPartition) -> &Log {
        &self.logs[tp]
    }

    pub(crate) fn log_mut(&mut self, tp: &TopicPartition) -> &mut Log {
        self.logs.get_mut(tp).expect("a partition of the broker")
    }

    /// A producer sends one record.
    pub(crate) fn produce(&mut self, tp: &TopicPartition, now: Millis, random: &mut Random) {
        let foreign = self.foreign(tp, random);
        let users = &self.users[tp];
        let log = self.logs.get_mut(tp).expect("a partition of the broker");
        if random.one_in(12) {
            // A control record, or those of an aborted transaction.
            log.end += random.below(3) as i64 + 1;
        }
        let fact = match random.below(20) {
            0 => {
                let garbage = ["", "{", "[]", r#"{"who":"u1"}"#, r#"{"who":7,"at":1}"#];
                log.append(now, Some(random.of(&garbage).as_bytes().to_vec()), None);
                return;
            }
            1..=4 if !log.sent.is_empty() => {
                let far = if random.one_in(3) { 40 } else { 10 };
                let back = random.below(far);
                let mut again = log.sent[log.sent.len() - 1 - back.min(log.sent.len() - 1)].clone();
                if random.one_in(3) {
                    again.place = random.place();
                }
                again
            }
            5 if foreign.is_some() && random.one_in(3) => foreign.expect("looked at"),
            _ => {
                let late = match random.below(12) {
                    0 => random.below(10 * 60_000) as i64,
                    1 => random.below(80_000_000) as i64,
                    2 if random.one_in(3) => -(random.below(20_000_000) as i64),
                    3 if random.one_in(3) => 400_000_000,
                    _ => random.below(1_500) as i64,
                };
                // Coarse, so that equal identities are sometimes drawn by chance.
                let at = (now - late).div_euclid(100) * 100;
                Fact { user: *random.of(users), page: random.below(3) as u8, at, place: random.place() }
            }
        };
        log.sent.push(fact.clone());
        log.append(now, Some(fact.json()), Some(fact));
    }

    /// An event that was sent to another partition of the topic.
    fn foreign(&self, tp: &TopicPartition, random: &mut Random) -> Option<Fact> {
        let others = self.logs.iter().filter(|(other, _)| other.topic == tp.topic && *other != tp);
        let others: Vec<&Log> = others.map(|(_, log)| log).filter(|log| !log.sent.is_empty()).collect();
        if others.is_empty() {
            return None;
        }
        let other = *random.of(&others);
        Some(random.of(&other.sent).clone())
    }
}
