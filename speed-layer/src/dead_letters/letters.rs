//! Reads dead letters back: each once, whatever copies of it there are, with whether it was replayed.
//!
//! The topic is read twice, for the marks of replays and for the letters, so that no letter's bytes wait in memory.

use super::{KEY_HEADER, topic_of};
use crate::config::LetterArgs;
use crate::consume::{self, Log};
use crate::decode;
use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use rdkafka::Message as _;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _};
use shared_model::catalog::{Catalog, Stream};
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;

/// The header of a mark: where the record was produced again. A mark has its letter's key and no value.
pub(super) const REPLAYED_HEADER: &str = "replayed_as";

/// How much of a record's bytes a list shows.
const SHOWN: usize = 120;

/// A dead letter as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    /// The record's partition.
    pub(super) tp: TopicPartition,
    /// The record's offset.
    pub(super) offset: i64,
    /// The record's append time.
    pub(super) append_time: Millis,
    /// The code of the reason.
    pub(super) reason: String,
    /// The reason for people.
    pub(super) detail: String,
    /// The record's key, where it had one (and the letter isn't older than that header).
    pub(super) key: Option<Vec<u8>>,
    /// What the record's producer said of when it was made.
    pub(super) produced: Option<Vec<u8>>,
    /// The record's bytes.
    pub(super) value: Option<Vec<u8>>,
    /// How many bytes the record had, where not all are here.
    pub(super) truncated_from: Option<String>,
}

impl Letter {
    /// Reads a message; `None` where it is no dead letter.
    fn read(message: &BorrowedMessage<'_>) -> Option<Letter> {
        let headers = message.headers()?;
        let bytes = |name: &str| headers.iter().find(|header| header.key == name)?.value;
        let text = |name: &str| Some(String::from_utf8_lossy(bytes(name)?).into_owned());
        Some(Letter {
            tp: TopicPartition::new(&text("topic")?, text("partition")?.parse().ok()?),
            offset: text("offset")?.parse().ok()?,
            append_time: text("append_time").and_then(|time| time.parse().ok()).unwrap_or_default(),
            reason: text("reason")?,
            detail: text("detail").unwrap_or_default(),
            key: bytes(KEY_HEADER).map(<[u8]>::to_vec),
            produced: decode::produced(message),
            value: message.payload().map(<[u8]>::to_vec),
            truncated_from: text("truncated_from"),
        })
    }

    fn is_wanted(&self, wanted: &LetterArgs) -> bool {
        (wanted.partition.is_empty() || wanted.partition.contains(&self.tp.partition))
            && (wanted.reason.is_empty() || wanted.reason.contains(&self.reason))
            && wanted.offsets.is_none_or(|offsets| offsets.contains(self.offset))
    }

    /// A line for people.
    fn show(&self, replayed_as: Option<&str>) -> String {
        let value = self.value.as_deref().unwrap_or_default();
        let size = self.truncated_from.clone().unwrap_or_else(|| value.len().to_string());
        let begins: String =
            String::from_utf8_lossy(&value[..value.len().min(SHOWN)]).escape_debug().collect();
        let replayed = replayed_as.map(|place| format!("; replayed as {place}")).unwrap_or_default();
        format!(
            "{}/{} {}: {}{replayed}; {size} bytes: {begins}",
            self.tp, self.offset, self.reason, self.detail
        )
    }
}

/// Where dead letters are read.
pub(super) struct Shelf {
    log: Log,
}

impl Shelf {
    pub(super) fn new(args: &LetterArgs) -> anyhow::Result<Shelf> {
        let kafka = consume::client_config(&args.kafka, &args.kafka_property)?;
        Ok(Shelf { log: Log::new(&kafka, "tidemark-dead-letters")? })
    }

    /// Hands on each wanted dead letter of a stream once, with where it was replayed, if it was.
    pub(super) async fn read(
        &self,
        stream: &Stream,
        wanted: &LetterArgs,
        mut each: impl AsyncFnMut(Letter, Option<&str>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let topic: Arc<str> = topic_of(&stream.topic).into();
        let count = self.log.partitions(vec![topic.clone()]).await?.get(&topic).copied();
        // Made by the first worker: without it nothing was refused yet.
        for partition in 0..count.unwrap_or(0) {
            let tp = TopicPartition::new(&topic, partition);
            let (from, to) = self.log.watermarks(&tp).await?;
            let mut replayed: HashMap<Vec<u8>, String> = HashMap::new();
            self.scan(&tp, from, to, async |message| {
                if let (Some(place), Some(key)) = (mark(message), message.key()) {
                    replayed.insert(key.to_vec(), place);
                }
                Ok(())
            })
            .await?;
            let mut seen: HashSet<Vec<u8>> = HashSet::new();
            self.scan(&tp, from, to, async |message| {
                let key = message.key().unwrap_or_default();
                match Letter::read(message) {
                    Some(letter) if letter.is_wanted(wanted) && seen.insert(key.to_vec()) => {
                        each(letter, replayed.get(key).map(String::as_str)).await
                    }
                    _ => Ok(()),
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn scan(
        &self,
        tp: &TopicPartition,
        from: i64,
        to: i64,
        mut each: impl AsyncFnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if from >= to {
            return Ok(());
        }
        let queue = self.log.open(tp, from).await?;
        let mut messages = queue.stream();
        loop {
            match messages.next().await {
                Some(Ok(message)) if message.offset() < to => each(&message).await?,
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) | None => break,
                Some(Err(error)) => bail!("reading {tp}: {error}"),
            }
        }
        drop(messages);
        drop(queue);
        self.log.close(tp).await
    }
}

fn mark(message: &BorrowedMessage<'_>) -> Option<String> {
    let header = message.headers()?.iter().find(|header| header.key == REPLAYED_HEADER)?;
    Some(String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
}

/// The streams that are asked about.
pub(super) fn streams<'a>(args: &LetterArgs, catalog: &'a Catalog) -> anyhow::Result<Vec<&'a Arc<Stream>>> {
    if let Some(unknown) = args.topic.iter().find(|topic| catalog.stream_of_topic(topic).is_none()) {
        bail!("--topic {unknown}: no stream of the catalog has this topic");
    }
    let wanted =
        |stream: &&Arc<Stream>| args.topic.is_empty() || args.topic.iter().any(|t| **t == *stream.topic);
    Ok(catalog.streams.iter().filter(wanted).collect())
}

/// Writes a line for each wanted dead letter, and how many there are of each reason.
pub(crate) async fn list(args: &LetterArgs, catalog: &Catalog, out: &mut impl Write) -> anyhow::Result<()> {
    let shelf = Shelf::new(args)?;
    for stream in streams(args, catalog)? {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut replayed = 0;
        shelf
            .read(stream, args, async |letter, replayed_as| {
                writeln!(out, "{}", letter.show(replayed_as)).context("standard output is closed")?;
                *reasons.entry(letter.reason).or_default() += 1;
                replayed += usize::from(replayed_as.is_some());
                Ok(())
            })
            .await?;
        let total: usize = reasons.values().sum();
        writeln!(out, "{}: {total} dead letters{}; {replayed} replayed", stream.topic, counts(&reasons))?;
    }
    Ok(())
}

/// ` (bad_field 3, not_json 1)`, or nothing.
pub(super) fn counts(reasons: &BTreeMap<String, usize>) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let each: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!(" ({})", each.join(", "))
}
