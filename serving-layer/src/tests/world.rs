//! A small log and both views of it, cut where a test says: each record folded by the one definition, naively.

use crate::answer::Views;
use crate::batch_view::{Fact, MemoryBatchView, MemoryVersion};
use crate::merge::Cell;
use crate::query::{Limits, Query, Request};
use crate::realtime_view::MemoryRealtimeView;
use serde_json::{Value as Json, json};
use shared_model::aggregate::State;
use shared_model::catalog::Catalog;
use shared_model::event::Value;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Tidemark};
use shared_model::time::{EventDay, Millis};
use shared_model::view::{self, CellId, Cells, Header, Looked, Mark, Slice};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const EPOCH: Millis = 10_000;
pub(crate) const START: Millis = 1_465_948_800_000; // 2016-06-15T00:00:00Z
pub(crate) const PARTITIONS: i32 = 2;
/// What the clock shows: the noon after [`START`].
pub(crate) const NOW: Millis = START + 43_200_000;

pub(crate) fn catalog() -> Arc<Catalog> {
    Arc::new(Catalog::from_toml(include_str!("catalog.toml")).unwrap_or_else(|faults| panic!("{faults}")))
}

/// One event: a page view, or a click.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) click: bool,
    pub(crate) partition: i32,
    /// Milliseconds after [`START`].
    pub(crate) time: Millis,
    pub(crate) user: i64,
    pub(crate) document: i64,
    pub(crate) geo: Option<i64>,
    /// How much later than the last of its partition it was appended.
    pub(crate) pause: Millis,
}

struct Record {
    offset: i64,
    clock: Millis,
    time: Millis,
    values: Vec<Value>,
}

/// A group as it is stored: its key, its partition, and what it holds.
pub(crate) type StoredGroup = (String, TopicPartition, Header, Vec<(Slice, Vec<u8>)>);

/// A log, and what its readers know of it.
pub(crate) struct World {
    pub(crate) catalog: Arc<Catalog>,
    logs: BTreeMap<TopicPartition, Vec<Record>>,
}

impl World {
    pub(crate) fn new(events: &[Event]) -> World {
        let catalog = catalog();
        let mut logs: BTreeMap<TopicPartition, Vec<Record>> = BTreeMap::new();
        for topic in ["events", "page_views"] {
            (0..PARTITIONS).for_each(|p| drop(logs.insert(TopicPartition::new(topic, p), Vec::new())));
        }
        for event in events {
            let time = START + event.time;
            let topic = if event.click { "events" } else { "page_views" };
            let log = logs.get_mut(&TopicPartition::new(topic, event.partition)).unwrap();
            let clock = log.last().map_or(EPOCH, |last| last.clock) + event.pause;
            let offset = log.len() as i64;
            let stream = catalog.stream(topic).unwrap();
            let value = |name: &str| match name {
                "uuid" => Value::str(&format!("u{}", event.user)),
                "document_id" => Value::Int(event.document),
                "display_id" => Value::Int(event.document * 10),
                "timestamp" => Value::Int(time),
                "geo_location" => event.geo.map_or(Value::Null, |geo| Value::str(&format!("US>{geo}"))),
                _ => Value::Int(1),
            };
            let values = stream.fields.iter().map(|field| value(&field.name)).collect();
            log.push(Record { offset, clock, time, values });
        }
        World { catalog, logs }
    }

    /// The cut of each partition at the boundary of `epoch`; partitions that haven't reached it are cut at their end.
    pub(crate) fn tidemark(&self, generation: i64, epoch: i64) -> Tidemark {
        let cut = |(tp, log): (&TopicPartition, &Vec<Record>)| {
            let below: Vec<&Record> = log.iter().take_while(|record| record.clock < epoch * EPOCH).collect();
            let newest = below.iter().map(|record| record.time).max();
            let mut cut = Cut { epoch, ..Cut::start(below.len() as i64) };
            cut.clock = below.last().map_or(0, |record| record.clock);
            cut.trusted.newest = newest;
            (tp.clone(), cut)
        };
        Tidemark { generation, cuts: self.logs.iter().map(cut).collect(), ..Tidemark::default() }
    }

    fn fold<'a>(
        &'a self,
        tp: &TopicPartition,
        width: Option<Millis>,
        records: impl Iterator<Item = &'a Record>,
    ) -> Cells {
        let mut cells = Cells::new();
        let stream = &self.catalog.stream_of_topic(&tp.topic).unwrap().name;
        let records: Vec<&Record> = records.collect();
        for metric in &self.catalog.metrics {
            for binding in metric.bindings.iter().filter(|binding| binding.stream == *stream) {
                for record in records.iter().filter(|record| binding.admits(&record.values)) {
                    let mut key = Vec::new();
                    binding.key(&record.values, &mut key);
                    let width = width.unwrap_or(metric.grain.width());
                    let bucket = record.time.div_euclid(width) * width;
                    let id = CellId { version: metric.version, key: key.into(), bucket };
                    let state = cells.entry(id).or_insert_with(|| State::empty(&metric.aggregate));
                    binding.add(&record.values, state);
                }
            }
        }
        cells
    }

    /// The batch view below a tidemark: its versions, as run `run` makes them.
    pub(crate) fn batch(&self, tidemark: &Tidemark, run: i64) -> Vec<MemoryVersion> {
        let mut days: BTreeMap<(usize, EventDay), BTreeMap<CellId, State>> = BTreeMap::new();
        for (tp, log) in &self.logs {
            let below = log.iter().take_while(|record| record.offset < tidemark.cut(tp).offset);
            for (id, state) in self.fold(tp, None, below) {
                let metric =
                    self.catalog.metrics.iter().position(|metric| metric.version == id.version).unwrap();
                let cells = days.entry((metric, EventDay::of(id.bucket))).or_default();
                let aggregate = &self.catalog.metrics[metric].aggregate;
                cells.entry(id).or_insert_with(|| State::empty(aggregate)).merge(&state).unwrap();
            }
        }
        for (_, day) in self.days(tidemark) {
            for metric in 0..self.catalog.metrics.len() {
                days.entry((metric, day)).or_default();
            }
        }
        let version = |((metric, day), cells): ((usize, EventDay), BTreeMap<CellId, State>)| {
            let metric = &self.catalog.metrics[metric];
            let cells = cells.into_iter().map(|(id, state)| cell(metric, &id, state)).collect();
            MemoryVersion { version: metric.version, day, run, cells }
        };
        days.into_iter().map(version).collect()
    }

    /// The days that the archive has below a tidemark, of each stream.
    pub(crate) fn days(&self, tidemark: &Tidemark) -> Vec<(String, EventDay)> {
        let of = |(tp, log): (&TopicPartition, &Vec<Record>)| {
            let below = tidemark.cut(tp).offset as usize;
            log[..below]
                .iter()
                .map(|record| (tp.topic.to_string(), EventDay::of(record.time)))
                .collect::<Vec<_>>()
        };
        self.logs.iter().flat_map(of).collect()
    }

    /// The records of a stream below a tidemark.
    pub(crate) fn facts(&self, stream: &str, tidemark: &Tidemark) -> Vec<Fact> {
        let of_stream = self.logs.iter().filter(|(tp, _)| &*tp.topic == stream);
        let of_partition = |(tp, log): (&TopicPartition, &Vec<Record>)| {
            let below = log.iter().take_while(|record| record.offset < tidemark.cut(tp).offset);
            let fact = |record: &Record| Fact {
                values: record.values.clone(),
                tp: tp.clone(),
                offset: record.offset,
                event_time: record.time,
                produced: None,
                loaded: NOW,
            };
            below.map(fact).collect::<Vec<_>>()
        };
        of_stream.flat_map(of_partition).collect()
    }

    /// Every group of the realtime view from the boundary of `epoch` on, to the end of the log.
    pub(crate) fn realtime(&self, epoch: i64) -> Vec<StoredGroup> {
        let groups = self.catalog.layout.groups;
        let mut found = Vec::new();
        for (tp, log) in &self.logs {
            let cut = self.tidemark(0, epoch).cut(tp);
            let from = &log[cut.offset as usize..];
            let mut epochs: BTreeMap<i64, Vec<&Record>> = BTreeMap::new();
            from.iter().for_each(|record| epochs.entry(record.clock / EPOCH).or_default().push(record));
            for group in 0..groups {
                let mut segments = Vec::new();
                for (epoch, records) in &epochs {
                    // Two segments, as two flushes make them.
                    let (first, second) = records.split_at(records.len() / 2);
                    for records in [first, second] {
                        let mut cells = self.fold(tp, None, records.iter().copied());
                        cells.retain(|id, _| self.group_of(id) == group);
                        segments.push((Slice::Epoch(*epoch), view::pack(&cells)));
                    }
                }
                let mut panes = self.fold(tp, Some(10_000), log.iter());
                panes.retain(|id, _| self.group_of(id) == group);
                for (id, state) in &panes {
                    segments.push((Slice::Pane(id.bucket), view::pack([(id, state)])));
                }
                let mut cuts = vec![(epoch, cut.offset)];
                cuts.extend(
                    epochs.iter().filter(|(e, _)| **e > epoch).map(|(e, records)| (*e, records[0].offset)),
                );
                let header = self.header(tp, log, cuts, cut.offset);
                found.push((view::group_key(tp, group, groups), tp.clone(), header, segments));
            }
        }
        found
    }

    fn group_of(&self, id: &CellId) -> u32 {
        let metric = self.catalog.metrics.iter().find(|metric| metric.version == id.version).unwrap();
        let mut rest = &id.key[..];
        metric.by.iter().for_each(|_| drop(Value::decode(&mut rest).unwrap()));
        view::group_of(&id.key[..id.key.len() - rest.len()], self.catalog.layout.groups)
    }

    fn header(&self, tp: &TopicPartition, log: &[Record], cuts: Vec<(i64, i64)>, from: i64) -> Header {
        let newest = log.iter().map(|record| record.time).max();
        let stream = &self.catalog.stream_of_topic(&tp.topic).unwrap().name;
        let fed = self.catalog.metrics.iter().filter(|m| m.bindings.iter().any(|b| b.stream == *stream));
        let mut header = Header {
            v: 1,
            incarnation: 1,
            to: log.len() as i64,
            clock: log.last().map_or(0, |last| last.clock),
            trusted: Default::default(),
            watermark: newest.map(|newest| newest - 60_000),
            panes_from: None,
            pane_holes: Vec::new(),
            cuts,
            metrics: fed.map(|metric| (metric.version, from)).collect(),
            seq: 0,
            gaps: Vec::new(),
            forgotten: Vec::new(),
        };
        header.trusted.newest = newest;
        header
    }

    /// Views in memory: batch below `cut`, realtime from `kept` on, which is at or below it.
    pub(crate) fn views(
        &self,
        kept: i64,
        cut: i64,
    ) -> (Views, Arc<MemoryBatchView>, Arc<MemoryRealtimeView>) {
        let batch = Arc::new(MemoryBatchView::new(&self.catalog.layout));
        batch.flip(self.tidemark(0, 0), 0, [], vec![]);
        let tidemark = self.tidemark(1, cut);
        batch.flip(tidemark.clone(), 1, self.days(&tidemark), self.batch(&tidemark, 1));
        let realtime = Arc::new(MemoryRealtimeView::default());
        put(&realtime, &self.realtime(kept));
        let limits = Limits::default();
        (
            Views { catalog: self.catalog.clone(), batch: batch.clone(), realtime: realtime.clone(), limits },
            batch,
            realtime,
        )
    }

    pub(crate) fn query(&self, request: Json) -> Query {
        let query = Request::parse(
            request.to_string().as_bytes(),
            Default::default(),
            &self.catalog,
            &Limits::default(),
            NOW,
        );
        query.unwrap_or_else(|error| panic!("{request}: {error:?}")).queries.remove(0)
    }
}

/// Puts groups, and the marks of their partitions.
pub(crate) fn put(view: &MemoryRealtimeView, groups: &[StoredGroup]) {
    for (key, tp, header, segments) in groups {
        let (trusted, watermark, clock) = (header.trusted.newest, header.watermark, header.clock);
        let looked = Some(Looked { partitions: 1, clock });
        let mark = Mark { trusted, watermark, clock, caught_up: true, generation: 1, looked };
        view.put_mark(tp, mark);
        view.put(key, header, segments.clone());
    }
}

fn cell(metric: &shared_model::metric::Metric, id: &CellId, state: State) -> Cell {
    crate::answer::cell(metric, &id.key, id.bucket, state).unwrap()
}

/// A request with more fields, or other values of those that it has.
pub(crate) fn with(request: &Json, more: &Json) -> Json {
    let mut request = request.clone();
    more.as_object().unwrap().iter().for_each(|(name, value)| request[name] = value.clone());
    request
}

/// The two days that every event of a test lies in.
pub(crate) fn span(mut request: Json) -> Json {
    request["from"] = json!("2016-06-15T00:00:00Z");
    request["to"] = json!("2016-06-17T00:00:00Z");
    request
}

/// A fixed log: views of two users and clicks, at some minutes' distance, over two days.
pub(crate) fn fixed() -> Vec<Event> {
    let event = |i: i64| Event {
        click: i % 3 == 0,
        partition: (i % 2) as i32,
        time: (i * 37 * 60_000) % (2 * 86_400_000 - 600_000),
        user: i % 5,
        document: i % 7,
        geo: (i % 4 > 0).then_some(i % 4),
        pause: 700,
    };
    (0..120).map(event).collect()
}
