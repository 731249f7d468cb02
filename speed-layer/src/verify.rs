//! Compares the realtime view with the log: each group must equal the naive fold of exactly its range.
//!
//! Shares the meaning of a record with the fold, and nothing else: repeats by their definition, cells by one map over
//! the whole log, cuts by looking at every record. Read only; for tests and for an operator's doubt.

use crate::config::VerifyArgs;
use crate::consume::{self, Log};
use crate::counters::Plan;
use crate::decode::{self, Payload};
use crate::redis::Redis;
use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use rdkafka::error::KafkaError;
use shared_model::aggregate::State;
use shared_model::catalog::{Catalog, Stream};
use shared_model::epoch::{EpochLength, IngestClock, TrustedTime};
use shared_model::event::{self, Event, Identity};
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use shared_model::view::{self, CellId, Cells, Header, Slice};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Compares all groups of all partitions, and says how many cells were equal.
///
/// # Errors
/// The first group that differs, or a server that doesn't answer.
pub(crate) async fn verify(args: VerifyArgs, catalog: &Catalog) -> anyhow::Result<()> {
    let log = Log::new(&consume::client_config(&args.kafka, &args.kafka_property)?, "tidemark-verify")?;
    let redis = Redis::connect(&args.redis.address()?).await?;
    let topics = catalog.streams.iter().map(|stream| stream.topic.clone()).collect();
    let (mut total, mut faults) = (0, Vec::new());
    let partitions = log.partitions(topics).await?;
    let marks = redis.marks().await?;
    let newest = marks.values().filter_map(|mark| mark.trusted).max();
    let longest = crate::counters::longest_window(catalog);
    let pane = catalog.layout.pane;
    let window = newest.map_or(Millis::MAX, |newest| newest.div_euclid(pane) * pane + pane - longest);
    for (topic, count) in partitions {
        let stream = catalog.stream_of_topic(&topic).context("a topic of the catalog has no stream")?;
        for partition in 0..count {
            let tp = TopicPartition::new(&topic, partition);
            let groups = groups(&redis, &tp, catalog).await?;
            let to = groups.iter().flatten().map(|group| group.header.to).max().unwrap_or(0);
            let (_, end) = log.watermarks(&tp).await?;
            let history = History::read(&log, &tp, stream, end).await?;
            for (number, group) in groups.iter().enumerate() {
                let Some(group) = group else {
                    tracing::info!("{tp} group {number}: absent");
                    continue;
                };
                match compare(group, number as u32, &history, &Plan::new(catalog, stream), window) {
                    Ok(cells) => total += cells,
                    Err(fault) => faults.push(format!("{tp} group {number}: {fault}")),
                }
            }
            tracing::info!("{tp}: {} records up to {to}, {} behind", history.below(to).len(), end - to);
        }
    }
    if !faults.is_empty() {
        bail!("{} groups differ from the log:\n{}", faults.len(), faults.join("\n"));
    }
    tracing::info!("{total} cells equal the log's");
    Ok(())
}

/// A group as stored.
struct Stored {
    header: Header,
    segments: Vec<(Slice, Vec<u8>)>,
}

async fn groups(
    redis: &Redis,
    tp: &TopicPartition,
    catalog: &Catalog,
) -> anyhow::Result<Vec<Option<Stored>>> {
    let mut groups = Vec::new();
    for group in 0..catalog.layout.groups {
        let key = view::group_key(tp, group, catalog.layout.groups);
        let fields: HashMap<String, Vec<u8>> = redis.ask(::redis::cmd("HGETALL").arg(&key)).await?;
        groups.push(match fields.get(view::HEADER_FIELD) {
            None => None,
            Some(header) => {
                let header = Header::from_json(header)?;
                let segment = |(field, bytes): (&String, &Vec<u8>)| {
                    Some((view::parse_segment_field(field)?.0, bytes.clone()))
                };
                Some(Stored { header, segments: fields.iter().filter_map(segment).collect() })
            }
        });
    }
    Ok(groups)
}

/// What the log says of every record.
struct History {
    /// Offset, clock at it, the event if it is a first delivery.
    records: Vec<(i64, Millis, Option<Event>)>,
    /// Offset to clock and trusted time just below it.
    times: BTreeMap<i64, (Millis, TrustedTime)>,
}

impl History {
    async fn read(log: &Log, tp: &TopicPartition, stream: &Arc<Stream>, to: i64) -> anyhow::Result<History> {
        let (from, _) = log.watermarks(tp).await?;
        let mut history = History { records: Vec::new(), times: BTreeMap::new() };
        let (mut clock, mut trusted) = (IngestClock::default(), TrustedTime::default());
        let mut seen: HashMap<Identity, i64> = HashMap::new();
        let queue = log.open(tp, from).await?;
        let mut messages = queue.stream();
        let mut next = from;
        while next < to {
            let message = match messages.next().await {
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) | None => break,
                Some(Err(error)) => bail!("reading {tp}: {error}"),
            };
            let record = decode::record(&message);
            if record.offset >= to {
                break;
            }
            // One that its producer stamped moves no clock, and is judged at where the clock stands.
            let append = record.append_time.unwrap_or(clock.0);
            clock.observe(append);
            let event = match record.payload {
                Payload::Tick => {
                    trusted.observe_tick(stream.event_clock(), append);
                    None
                }
                Payload::Value(value) => event::decode(stream, tp, record.offset, append, value).ok(),
            };
            let first = event.inspect(|event| trusted.observe(stream.event_clock(), event.time, append));
            let first = first.filter(|event| {
                let last = seen.insert(event.identity, record.offset);
                last.is_none_or(|last| last < record.offset - stream.dedup_horizon)
            });
            next = record.offset + 1;
            history.records.push((record.offset, clock.0, first));
            history.times.insert(next, (clock.0, trusted.clone()));
        }
        drop(messages);
        drop(queue);
        log.close(tp).await?;
        Ok(history)
    }

    /// The records below an offset.
    fn below(&self, to: i64) -> &[(i64, Millis, Option<Event>)] {
        &self.records[..self.records.partition_point(|&(offset, ..)| offset < to)]
    }

    /// Whether a group's ingest clock and trusted time may stand where it ends. The clock is that of the record below, or a
    /// tidemark's boundary that lies between it and the next record.
    fn has_times(&self, header: &Header, epochs: EpochLength) -> bool {
        let Some((clock, trusted)) = self.times.get(&header.to) else { return true };
        let next = self.records.get(self.below(header.to).len()).map_or(Millis::MAX, |&(_, clock, _)| clock);
        let boundary = epochs.boundary(epochs.epoch(header.clock));
        header.trusted == *trusted
            && (header.clock == *clock || (*clock..=next).contains(&boundary) && header.clock == boundary)
    }
}

/// Compares a group with the log, and returns how many cells were equal.
fn compare(
    group: &Stored,
    number: u32,
    history: &History,
    plan: &Plan,
    window: Millis,
) -> Result<usize, String> {
    let header = &group.header;
    let &(_, from) = header.cuts.first().ok_or("its header has no cut")?;
    if !header.gaps.is_empty() {
        return Err(format!("it has gaps {:?}", header.gaps));
    }
    let epochs = plan.layout.epoch;
    if !history.has_times(header, epochs) {
        return Err(format!(
            "its times are {}, {:?}; the log's are {:?}",
            header.clock,
            header.trusted,
            history.times.get(&header.to)
        ));
    }
    let records = history.below(header.to);
    let mut cuts = vec![header.cuts[0]];
    let mut expected: BTreeMap<Slice, Cells> = BTreeMap::new();
    let panes_from = header.panes_from.unwrap_or(Millis::MIN).max(window);
    for (offset, clock, event) in records {
        let epoch = epochs.epoch(*clock);
        if *offset >= from && cuts[cuts.len() - 1].0 < epoch {
            cuts.push((epoch, *offset));
        }
        let Some(event) = event else { continue };
        let pane = event.time.div_euclid(plan.layout.pane) * plan.layout.pane;
        plan.fold(event, &mut Vec::new(), |of, counted, key| {
            if of != number {
                return;
            }
            let metric = counted.metric;
            let mut add = |slice, bucket| {
                let id = CellId { version: metric.version, key: key.into(), bucket };
                let cells: &mut Cells = expected.entry(slice).or_default();
                counted
                    .binding
                    .add(&event.values, cells.entry(id).or_insert_with(|| State::empty(&metric.aggregate)));
            };
            if *offset >= from {
                add(Slice::Epoch(epoch), metric.grain.bucket(event.time));
            }
            if metric.window.is_some() && pane >= panes_from && !header.pane_holes.contains(&pane) {
                add(Slice::Pane(pane), pane);
            }
        });
    }
    // A tidemark's boundary is a cut too, though no record need begin its epoch.
    let stands = |&(epoch, offset): &(i64, i64)| {
        let begins = records.partition_point(|&(_, clock, _)| epochs.epoch(clock) < epoch);
        records[..begins].last().is_none_or(|&(last, ..)| last < offset)
            && records.get(begins).is_none_or(|&(first, ..)| offset <= first)
    };
    let has = |&(epoch, _): &(i64, i64)| header.cuts.iter().any(|&(other, _)| other == epoch);
    if !header.cuts.iter().skip(1).all(stands) || !cuts.iter().all(has) {
        return Err(format!("its cuts are {:?}; the log's are {cuts:?}", header.cuts));
    }
    let mut found: BTreeMap<Slice, Cells> = BTreeMap::new();
    for (slice, bytes) in &group.segments {
        let cells = found.entry(*slice).or_default();
        crate::counters::merge_segments(plan, std::iter::once(&bytes[..]), cells)
            .map_err(|e| e.to_string())?;
    }
    // Panes that have slid out may be there still, and cells of metrics that are no more.
    let has_slid_out = |slice: &Slice| match slice {
        Slice::Pane(start) => *start < panes_from || header.pane_holes.contains(start),
        Slice::Epoch(_) => false,
    };
    found.retain(|slice, cells| !cells.is_empty() && !has_slid_out(slice));
    for slice in expected.keys().chain(found.keys()) {
        if expected.get(slice) != found.get(slice) {
            let count = |cells: Option<&Cells>| cells.map_or(0, BTreeMap::len);
            let (want, have) = (count(expected.get(slice)), count(found.get(slice)));
            return Err(format!("{slice:?} has {have} cells; the log gives {want}, or other values"));
        }
    }
    Ok(found.values().map(BTreeMap::len).sum())
}
