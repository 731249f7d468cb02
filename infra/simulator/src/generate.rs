//! Deterministic data: Outbrain's page views and clicks, or the views of a web site, in the order in which they are
//! delivered, with chosen rates of repeats, disorder, lateness and malformed records.
//!
//! Each event is a pure function of (options, seed, index); the generator holds only what is still to be
//! delivered, at most about a million waiting entries (some 50 MB) whatever the count.

mod render;
mod shape;
mod site;
mod zipf;

use clap::Args;
use shape::{Record, Shape};
use shared_model::time::Millis;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};
use zipf::Draw;

pub use render::Fault;
pub use shape::{Data, OUTBRAIN_OFFSET, Stream};

/// What to generate.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Options {
    /// Whose data
    #[arg(long, value_enum, default_value_t)]
    pub data: Data,
    /// Distinct events; repeats, malformed records and records from the future come on top
    #[arg(long, default_value_t = 100_000)]
    pub records: u64,
    /// Event time of the first, RFC 3339
    #[arg(long, default_value = "2016-06-14T04:00:00Z", value_parser = crate::cli::time)]
    pub start: Millis,
    /// Span of event time over which they are spread (30m, 1d ...)
    #[arg(long, default_value = "1d", value_parser = crate::cli::duration)]
    pub span: Millis,
    /// Users to draw from (Zipf)
    #[arg(long, default_value_t = 20_000)]
    pub users: u64,
    /// Documents, or pages of the site, to draw from (Zipf)
    #[arg(long, default_value_t = 5_000)]
    pub documents: u64,
    /// Displays to draw from (Zipf)
    #[arg(long, default_value_t = 50_000)]
    pub displays: u64,
    /// Places to draw from (Zipf)
    #[arg(long, default_value_t = 300)]
    pub geos: u64,
    /// Share of clicks (stream `events`); the others are page views
    #[arg(long, default_value_t = 0.25, value_parser = crate::cli::share)]
    pub click_share: f64,
    /// Share of events delivered again soon
    #[arg(long, default_value_t = 0.02, value_parser = crate::cli::share)]
    pub near_repeats: f64,
    /// How many deliveries later a near repeat comes at most
    #[arg(long, default_value_t = 300)]
    pub near_distance: u64,
    /// Share of events delivered again much later
    #[arg(long, default_value_t = 0.0, value_parser = crate::cli::share)]
    pub far_repeats: f64,
    /// How many deliveries later a far repeat comes at least (at most twice that); those that would come after the
    /// last event are left out. To be beyond a dedup horizon of N, take N x partitions x 2 streams or more
    #[arg(long, default_value_t = 4_000_000)]
    pub far_distance: u64,
    /// Share of events delivered out of order
    #[arg(long, default_value_t = 0.1, value_parser = crate::cli::share)]
    pub disorder: f64,
    /// How long after its event time such an event comes at most
    #[arg(long, default_value = "20s", value_parser = crate::cli::duration)]
    pub disorder_max: Millis,
    /// Share of events that come late
    #[arg(long, default_value_t = 0.002, value_parser = crate::cli::share)]
    pub late: f64,
    /// How long after its event time a late event comes at most (at least after disorder-max)
    #[arg(long, default_value = "2d", value_parser = crate::cli::duration)]
    pub late_max: Millis,
    /// Share of malformed records, on top of the events
    #[arg(long, default_value_t = 0.001, value_parser = crate::cli::share)]
    pub malformed: f64,
    /// Share of NULLs in platform, geo_location and traffic_source, each
    #[arg(long, default_value_t = 0.01, value_parser = crate::cli::share)]
    pub nulls: f64,
    /// How many well-formed records come from the future, spread evenly
    #[arg(long, default_value_t = 0)]
    pub future: u64,
    /// How far in the future
    #[arg(long, default_value = "3d", value_parser = crate::cli::duration)]
    pub future_by: Millis,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            data: Data::Outbrain,
            records: 100_000,
            start: 1_465_876_800_000,
            span: 86_400_000,
            users: 20_000,
            documents: 5_000,
            displays: 50_000,
            geos: 300,
            click_share: 0.25,
            near_repeats: 0.02,
            near_distance: 300,
            far_repeats: 0.0,
            far_distance: 4_000_000,
            disorder: 0.1,
            disorder_max: 20_000,
            late: 0.002,
            late_max: 2 * 86_400_000,
            malformed: 0.001,
            nulls: 0.01,
            future: 0,
            future_by: 3 * 86_400_000,
        }
    }
}

/// What a delivery is meant to be. Counting is not to rely on it: by chance two events may be equal in all fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An event's first delivery.
    Distinct,
    /// A later delivery of the same event, byte for byte.
    Repeat,
    /// A record that must be refused (where the stream has fixed time bounds around the generated span).
    Malformed(Fault),
    /// An event of its own whose time lies ahead of all others.
    Future,
}

/// One record on its way to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The stream's name, which is its topic in the shipped catalogs.
    pub stream: &'static str,
    /// Event time in ms since 1970; of a malformed record the time it would have had.
    pub event_time: Millis,
    /// The present in event time when it is delivered: it never goes back, and paces a replay.
    pub moment: Millis,
    /// The message key: the user's id.
    pub key: String,
    /// The record: JSON, or what is left of it.
    pub value: Vec<u8>,
    /// What it is meant to be.
    pub kind: Kind,
}

/// All deliveries in order. The same options and seed give the same bytes.
#[derive(Debug)]
pub struct Generator {
    options: Options,
    seed: u64,
    shape: Shape,
    next: u64,
    delivered: u64,
    moment: Millis,
    order: u64,
    /// Held back until event time reaches the key.
    held: BinaryHeap<Reverse<Waiting<Millis>>>,
    /// Due once so many deliveries have been made.
    queued: BinaryHeap<Reverse<Waiting<u64>>>,
    futures: u64,
}

/// Ordered by when it is due, then by when it was put there.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting<At> {
    at: At,
    order: u64,
    index: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Event,
    Near,
    Far,
    /// With the fault's place in `Fault::ALL`.
    Malformed(usize),
    Future,
}

/// The most entries that wait in one queue; beyond it the first due goes out early.
const MOST_WAITING: usize = 1 << 19;
const FATE: u64 = 4;
const AGAIN: u64 = 5;

impl Generator {
    /// A generator at its first delivery.
    pub fn new(options: Options, seed: u64) -> Generator {
        Generator {
            shape: Shape::new(&options, seed),
            moment: options.start,
            options,
            seed,
            next: 0,
            delivered: 0,
            order: 0,
            held: BinaryHeap::new(),
            queued: BinaryHeap::new(),
            futures: 0,
        }
    }

    /// Which record is delivered next, and as what.
    fn plan(&mut self) -> Option<(u64, What)> {
        loop {
            if self.queued.len() > MOST_WAITING
                || self.queued.peek().is_some_and(|Reverse(w)| w.at <= self.delivered)
            {
                let Reverse(waiting) = self.queued.pop()?;
                return Some(self.deliver(waiting.index, waiting.what));
            }
            let present = (self.next < self.options.records).then(|| self.shape.time(self.next));
            let due = |at: Millis| present.is_none_or(|present| at <= present);
            if self.held.len() > MOST_WAITING || self.held.peek().is_some_and(|Reverse(w)| due(w.at)) {
                let Reverse(waiting) = self.held.pop()?;
                self.moment = self.moment.max(waiting.at);
                return Some(self.deliver(waiting.index, waiting.what));
            }
            let Some(present) = present else {
                return self.last();
            };
            self.moment = self.moment.max(present);
            if let Some(delivery) = self.take_next(present) {
                return Some(delivery);
            }
        }
    }

    /// Takes the next event; `None` where it is held back.
    fn take_next(&mut self, present: Millis) -> Option<(u64, What)> {
        let index = self.next;
        self.next += 1;
        let mut fate = Draw::new(self.seed, index, FATE);
        if fate.chance(self.options.malformed) {
            let fault = fate.below(Fault::ALL.len() as u64) as usize;
            self.queue(0, index, What::Malformed(fault));
        }
        // The k-th of f lies at k / (f + 1) of the way.
        let way = u128::from(self.options.future + 1) * u128::from(index + 1);
        if self.futures < self.options.future
            && way >= u128::from(self.futures + 1) * u128::from(self.options.records)
        {
            self.futures += 1;
            self.queue(0, index, What::Future);
        }
        let span = |limit: Millis| limit.max(1) as u64;
        let (late, disorder) = (fate.chance(self.options.late), fate.chance(self.options.disorder));
        let wait = if late {
            let beyond = (self.options.late_max - self.options.disorder_max).max(1);
            self.options.disorder_max + 1 + fate.below(span(beyond)) as Millis
        } else if disorder {
            1 + fate.below(span(self.options.disorder_max)) as Millis
        } else {
            return Some(self.deliver(index, What::Event));
        };
        self.order += 1;
        let waiting = Waiting { at: present + wait, order: self.order, index, what: What::Event };
        self.held.push(Reverse(waiting));
        None
    }

    /// Counts a delivery and plans the repeats of an event.
    fn deliver(&mut self, index: u64, what: What) -> (u64, What) {
        self.delivered += 1;
        if what == What::Event {
            let mut again = Draw::new(self.seed, index, AGAIN);
            if again.chance(self.options.near_repeats) {
                let distance = again.below(self.options.near_distance.max(1));
                self.queue(distance, index, What::Near);
            }
            if again.chance(self.options.far_repeats) {
                let distance = self.options.far_distance + again.below(self.options.far_distance.max(1));
                self.queue(distance, index, What::Far);
            }
        }
        (index, what)
    }

    fn queue(&mut self, distance: u64, index: u64, what: What) {
        self.order += 1;
        let waiting = Waiting { at: self.delivered + distance, order: self.order, index, what };
        self.queued.push(Reverse(waiting));
    }

    /// When all events are out: the near repeats that are left; far ones would not be far.
    fn last(&mut self) -> Option<(u64, What)> {
        while let Some(Reverse(waiting)) = self.queued.pop() {
            if waiting.what != What::Far {
                return Some(self.deliver(waiting.index, waiting.what));
            }
        }
        None
    }

    fn record(&self, index: u64, what: What) -> (Record, Kind) {
        let mut record = self.shape.record(index);
        let kind = match what {
            What::Event => Kind::Distinct,
            What::Near | What::Far => Kind::Repeat,
            What::Malformed(fault) => Kind::Malformed(Fault::ALL[fault]),
            What::Future => {
                record.time += self.options.future_by;
                Kind::Future
            }
        };
        (record, kind)
    }

    /// Writes all that is left as CSV, one output for each of the data's streams, header first. Stops early, at a whole
    /// line, when `go_on` says so of how many there are. Returns the number of lines of each, without the headers.
    pub fn write_csv<W: Write>(
        mut self,
        outputs: &mut [W],
        mut go_on: impl FnMut(u64) -> bool,
    ) -> io::Result<Vec<u64>> {
        let streams = self.options.data.streams();
        for (output, stream) in outputs.iter_mut().zip(streams) {
            output.write_all(render::header(*stream).as_bytes())?;
        }
        let (mut line, mut lines) = (Vec::with_capacity(128), vec![0u64; streams.len()]);
        while go_on(lines.iter().sum())
            && let Some((index, what)) = self.plan()
        {
            let (record, kind) = self.record(index, what);
            line.clear();
            render::csv(&record, fault_of(kind), &mut line);
            for (at, stream) in streams.iter().enumerate() {
                if *stream == record.stream {
                    outputs[at].write_all(&line)?;
                    lines[at] += 1;
                }
            }
        }
        outputs.iter_mut().try_for_each(Write::flush)?;
        Ok(lines)
    }
}

fn fault_of(kind: Kind) -> Option<Fault> {
    match kind {
        Kind::Malformed(fault) => Some(fault),
        _ => None,
    }
}

impl Iterator for Generator {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        let (index, what) = self.plan()?;
        let (record, kind) = self.record(index, what);
        let value = render::json(&record, fault_of(kind));
        let stream = record.stream.name();
        Some(Delivery { stream, event_time: record.time, moment: self.moment, key: record.uuid, value, kind })
    }
}

#[cfg(test)]
mod tests;
