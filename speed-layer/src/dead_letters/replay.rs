//! Produces dead-lettered records again, once their stream admits them.
//!
//! A record goes to its own topic and partition with its own key and bytes, and only when that is acknowledged a mark
//! with its dead letter's key says so: what is marked is never produced again. A copy that a kill between the two
//! leaves behind is a repeat like any other, recognised by its identity; hence streams without one are refused.

use super::letters::{self, Letter, REPLAYED_HEADER, Shelf};
use super::{config, topic_of};
use crate::config::ReplayArgs;
use crate::consume;
use anyhow::{Context as _, bail};
use futures::future::try_join_all;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use shared_model::catalog::{Catalog, Stream};
use shared_model::event::{self, PRODUCED_HEADER};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

/// How many records, and bytes, go out together.
const TOGETHER: (usize, usize) = (500, 8 << 20);
const SEND: Duration = Duration::from_secs(30);
const PROGRESS: Duration = Duration::from_secs(2);

/// Replays the wanted dead letters that the catalog now admits, and says how many of which sort there were.
pub(crate) async fn replay(args: &ReplayArgs, catalog: &Catalog, out: &mut impl Write) -> anyhow::Result<()> {
    let streams = letters::streams(&args.letters, catalog)?;
    if let Some(stream) = streams.iter().find(|stream| stream.identity.is_empty()) {
        bail!(
            "stream {} has no identity, so a record that is replayed can't be told from its first delivery and might \
             count twice: give the stream an identity, or leave it out with --topic",
            stream.name
        );
    }
    let kafka = consume::client_config(&args.letters.kafka, &args.letters.kafka_property)?;
    let producer = config(&kafka).create().context("cannot make the producer of replayed records")?;
    let shelf = Shelf::new(&args.letters)?;
    for stream in streams {
        let sink = if args.dry_run { None } else { Some(&producer) };
        let mut round = Round {
            stream,
            sink,
            waiting: Vec::new(),
            bytes: 0,
            told: Instant::now(),
            tally: Tally::default(),
        };
        shelf
            .read(stream, &args.letters, async |letter, replayed_as| round.take(letter, replayed_as).await)
            .await?;
        round.send().await?;
        writeln!(out, "{}: {}", stream.topic, round.tally.show(args.dry_run))
            .context("standard output is closed")?;
    }
    Ok(())
}

/// How many dead letters there were of which sort.
#[derive(Default)]
struct Tally {
    replayed: usize,
    before: usize,
    truncated: usize,
    refused: BTreeMap<String, usize>,
}

impl Tally {
    fn show(&self, dry_run: bool) -> String {
        let Tally { replayed, before, truncated, refused } = self;
        let verb = if dry_run { "would be replayed" } else { "replayed" };
        let (still, counts) = (refused.values().sum::<usize>(), letters::counts(refused));
        let cut = if *truncated > 0 {
            format!(
                "; {truncated} not whole here: their bytes are in the stream's topic and the archive's rejects"
            )
        } else {
            String::new()
        };
        format!("{replayed} {verb}; {before} were before; {still} still can't be counted{counts}{cut}")
    }
}

/// The replay of one stream's dead letters.
struct Round<'a> {
    stream: &'a Stream,
    /// `None`: nothing is written.
    sink: Option<&'a FutureProducer>,
    waiting: Vec<Letter>,
    bytes: usize,
    told: Instant,
    tally: Tally,
}

impl Round<'_> {
    async fn take(&mut self, letter: Letter, replayed_as: Option<&str>) -> anyhow::Result<()> {
        if replayed_as.is_some() {
            self.tally.before += 1;
            return Ok(());
        }
        if letter.truncated_from.is_some() {
            self.tally.truncated += 1;
            return Ok(());
        }
        let value = letter.value.as_deref();
        if let Err(reject) = event::decode(self.stream, &letter.tp, letter.offset, letter.append_time, value)
        {
            *self.tally.refused.entry(reject.code().to_owned()).or_default() += 1;
            return Ok(());
        }
        self.bytes += letter.value.as_ref().map_or(0, Vec::len);
        self.waiting.push(letter);
        if self.waiting.len() >= TOGETHER.0 || self.bytes >= TOGETHER.1 {
            self.send().await?;
        }
        Ok(())
    }

    /// Produces the waiting records, and when all are acknowledged their marks.
    async fn send(&mut self) -> anyhow::Result<()> {
        self.bytes = 0;
        let letters = std::mem::take(&mut self.waiting);
        if let Some(producer) = self.sink {
            let places = try_join_all(letters.iter().map(|letter| again(producer, letter))).await?;
            let marks = letters.iter().zip(&places).map(|(letter, place)| mark(producer, letter, place));
            try_join_all(marks).await?;
        }
        self.tally.replayed += letters.len();
        if self.told.elapsed() >= PROGRESS {
            tracing::info!("{}: {} so far", self.stream.topic, self.tally.show(self.sink.is_none()));
            self.told = Instant::now();
        }
        Ok(())
    }
}

/// Produces a record as it was, and says where it is now.
async fn again(producer: &FutureProducer, letter: &Letter) -> anyhow::Result<String> {
    let mut record: FutureRecord<'_, [u8], [u8]> =
        FutureRecord::to(&letter.tp.topic).partition(letter.tp.partition);
    (record.key, record.payload) = (letter.key.as_deref(), letter.value.as_deref());
    if let Some(produced) = &letter.produced {
        record.headers =
            Some(OwnedHeaders::new().insert(Header { key: PRODUCED_HEADER, value: Some(produced) }));
    }
    let sent = producer.send(record, SEND).await.map_err(|(error, _)| error);
    let place = sent.with_context(|| format!("cannot produce {}/{} again", letter.tp, letter.offset))?;
    Ok(format!("{}/{}/{}", letter.tp.topic, place.partition, place.offset))
}

/// Notes under a dead letter's key that its record was produced again.
async fn mark(producer: &FutureProducer, letter: &Letter, place: &str) -> anyhow::Result<()> {
    let (topic, key) = (topic_of(&letter.tp.topic), format!("{}/{}", letter.tp, letter.offset));
    let headers = OwnedHeaders::new().insert(Header { key: REPLAYED_HEADER, value: Some(place) });
    let record: FutureRecord<'_, String, [u8]> = FutureRecord::to(&topic).key(&key).headers(headers);
    let sent = producer.send(record, SEND).await.map_err(|(error, _)| error);
    sent.map(drop).with_context(|| format!("cannot note in topic {topic} that {key} was replayed"))
}
