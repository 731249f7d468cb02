//! What the data looks like: the daily rhythm, geo codes, user ids, and one page view or click as a pure function of
//! (options, seed, index).
//!
//! Event times never go back as the index grows, so the index order is the order of event time.

use super::Options;
use super::zipf::{Draw, Zipf, mix};
use clap::ValueEnum;
use shared_model::time::Millis;

/// Outbrain's clock starts here: its `timestamp` is event time minus this.
pub const OUTBRAIN_OFFSET: Millis = 1_465_876_799_998;

const HOUR: Millis = 3_600_000;

/// How busy each hour of the UTC day is; the night of the Americas is quiet.
const RHYTHM: [f64; 24] = [
    1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.4, 0.5, 0.7, 0.9, 1.1, 1.3, 1.4, 1.5, 1.5, 1.5, 1.4, 1.4, 1.3,
    1.3, 1.2, 1.1,
];

/// Whose data is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Data {
    /// Outbrain's page views and clicks (catalog outbrain.toml).
    #[default]
    Outbrain,
    /// Page views of a web site, by URL (catalog site.toml).
    Site,
}

impl Data {
    /// Its streams.
    pub fn streams(self) -> &'static [Stream] {
        match self {
            Data::Outbrain => &[Stream::PageViews, Stream::Events],
            Data::Site => &[Stream::SiteViews],
        }
    }
}

/// The streams that are generated, named as in the shipped catalogs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Page views.
    PageViews,
    /// Clicks.
    Events,
    /// Page views of a web site.
    SiteViews,
}

impl Stream {
    /// The stream's name in its catalog, and its topic.
    pub fn name(self) -> &'static str {
        match self {
            Stream::PageViews => "page_views",
            Stream::Events => "events",
            Stream::SiteViews => "site_views",
        }
    }

    /// The columns of its CSV, in order: Outbrain's for its streams.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Stream::PageViews => {
                &["uuid", "document_id", "timestamp", "platform", "geo_location", "traffic_source"]
            }
            Stream::Events => &["display_id", "uuid", "document_id", "timestamp", "platform", "geo_location"],
            Stream::SiteViews => &[
                "view_id",
                "at",
                "visitor",
                "url",
                "referrer",
                "geo_location",
                "platform",
                "status",
                "load_ms",
            ],
        }
    }
}

/// One event before it is written as JSON or CSV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) stream: Stream,
    pub(crate) time: Millis,
    pub(crate) uuid: String,
    pub(crate) document: i64,
    pub(crate) display: i64,
    pub(crate) platform: Option<i64>,
    pub(crate) geo: Option<String>,
    pub(crate) traffic: Option<i64>,
    /// Random bits of a view of the site's: its id, and what else is its own.
    pub(crate) view: u64,
    /// Whether NULLs are left out of the JSON instead of being written.
    pub(crate) omit_nulls: bool,
}

/// Everything that the records are drawn from.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    seed: u64,
    data: Data,
    records: u64,
    start: Millis,
    /// The cumulated weight at the end of each (partial) hour of the span.
    hours: Vec<f64>,
    span: Millis,
    click_share: f64,
    nulls: f64,
    users: Zipf,
    documents: Zipf,
    displays: Zipf,
    geos: Zipf,
    /// How many sessions go on side by side.
    lanes: u64,
}

/// Purposes of draws; each its own sequence.
const RECORD: u64 = 1;
const SESSION: u64 = 2;
const MOMENT: u64 = 3;
const VIEW: u64 = 6;

/// How many turns of a lane are shared out among one or two sessions.
const LANE_BLOCK: u64 = 8;
/// The usual pause between two views of a session.
const PAUSE: f64 = 40_000.0;

impl Shape {
    pub(crate) fn new(options: &Options, seed: u64) -> Shape {
        let span = options.span.max(1);
        let per_milli = options.records as f64 / span as f64;
        Shape {
            seed,
            data: options.data,
            records: options.records.max(1),
            start: options.start,
            hours: hours(options.start, span),
            span,
            click_share: options.click_share,
            nulls: options.nulls,
            users: Zipf::new(options.users, 0.8),
            documents: Zipf::new(options.documents, 1.05),
            displays: Zipf::new(options.displays, 0.9),
            geos: Zipf::new(options.geos, 1.1),
            lanes: ((per_milli * PAUSE) as u64).clamp(1, 1 << 20),
        }
    }

    /// The event time of an index: its place on the span, stretched by the daily rhythm.
    pub(crate) fn time(&self, index: u64) -> Millis {
        let jitter = Draw::new(self.seed, index, MOMENT).unit();
        let total = self.hours[self.hours.len() - 1];
        let target = (index as f64 + jitter) / self.records as f64 * total;
        let hour = self.hours.partition_point(|&end| end <= target).min(self.hours.len() - 1);
        let before = if hour == 0 { 0.0 } else { self.hours[hour - 1] };
        // The first slice runs up to the next full hour, the others are hours.
        let first = HOUR - self.start.rem_euclid(HOUR);
        let (from, to) = match hour {
            0 => (0, first.min(self.span)),
            _ => {
                let from = first + (hour as Millis - 1) * HOUR;
                (from, (from + HOUR).min(self.span))
            }
        };
        let part = (target - before) / (self.hours[hour] - before);
        let within = (part * (to - from) as f64) as Millis;
        self.start + (from + within).min(self.span - 1)
    }

    /// The record of an index.
    pub(crate) fn record(&self, index: u64) -> Record {
        let mut session = self.session(index);
        let user = self.users.rank(&mut session);
        let home = Draw::new(0, user, SESSION).bits();
        let travels = session.chance(0.05);
        let geo_rank =
            if travels { self.geos.rank(&mut session) } else { self.geos.rank(&mut Draw::new(0, home, 0)) };
        let platform = if session.chance(0.9) { 1 + (home >> 8) % 3 } else { 1 + session.below(3) };
        let traffic = 1 + [0, 0, 0, 1, 1, 2][session.below(6) as usize];

        let mut draw = Draw::new(self.seed, index, RECORD);
        let stream = match (draw.chance(self.click_share), self.data) {
            (_, Data::Site) => Stream::SiteViews,
            (true, Data::Outbrain) => Stream::Events,
            (false, Data::Outbrain) => Stream::PageViews,
        };
        let document = self.documents.rank(&mut draw) as i64;
        let display = if stream == Stream::Events { self.displays.rank(&mut draw) as i64 } else { 0 };
        let null = [draw.chance(self.nulls), draw.chance(self.nulls), draw.chance(self.nulls)];
        Record {
            stream,
            time: self.time(index),
            uuid: uuid(user),
            document,
            display,
            platform: (!null[0]).then_some(platform as i64),
            geo: (!null[1]).then(|| geo(geo_rank)),
            traffic: (!null[2]).then_some(traffic),
            view: Draw::new(self.seed, index, VIEW).bits(),
            omit_nulls: draw.chance(0.5),
        }
    }

    /// The draws that all records of one session share.
    fn session(&self, index: u64) -> Draw {
        let (lane, turn) = (index % self.lanes, index / self.lanes);
        let block = (turn / LANE_BLOCK) * self.lanes + lane;
        let first_part = 1 + Draw::new(self.seed, block, SESSION).below(LANE_BLOCK);
        let second = u64::from(turn % LANE_BLOCK >= first_part);
        Draw::new(self.seed, block * 2 + second, SESSION + 100)
    }
}

fn hours(start: Millis, span: Millis) -> Vec<f64> {
    let (mut ends, mut total, mut at) = (Vec::new(), 0.0, 0);
    while at < span {
        let moment = start + at;
        let next = (at + HOUR - moment.rem_euclid(HOUR)).min(span);
        let weight = RHYTHM[moment.div_euclid(HOUR).rem_euclid(24) as usize];
        total += weight * (next - at) as f64;
        ends.push(total);
        at = next;
    }
    ends
}

/// A user's id: 14 hex digits, as Outbrain's are.
fn uuid(user: u64) -> String {
    format!("{:014x}", mix(user.wrapping_add(0x0075_7569_6400)) >> 8)
}

const STATES: [(&str, u16); 24] = [
    ("CA", 803),
    ("TX", 618),
    ("NY", 501),
    ("FL", 528),
    ("IL", 602),
    ("PA", 504),
    ("OH", 510),
    ("GA", 524),
    ("NC", 517),
    ("MI", 505),
    ("NJ", 501),
    ("VA", 511),
    ("WA", 819),
    ("AZ", 753),
    ("MA", 506),
    ("TN", 659),
    ("IN", 527),
    ("MO", 609),
    ("MD", 512),
    ("WI", 617),
    ("CO", 751),
    ("MN", 613),
    ("SC", 519),
    ("OR", 820),
];

const COUNTRIES: [&str; 20] = [
    "CA", "GB", "AU", "IN", "PH", "ZA", "IE", "NZ", "SG", "DE", "FR", "MY", "AE", "PK", "ES", "NL", "BR",
    "MX", "RS", "KR",
];

/// The code of a place by rank: `US>CA>803`, `US>CA`, `US`, `GB>H9` or `GB`, each place another one.
fn geo(rank: u64) -> String {
    let at = rank - 1;
    let nth = (at / 4) as usize;
    match at % 4 {
        0 | 1 => {
            let n = nth * 2 + (at % 4) as usize;
            let (state, area) = STATES[n % STATES.len()];
            match n / STATES.len() {
                0 => format!("US>{state}>{area}"),
                round => format!("US>{state}>{}", usize::from(area) + round * 1_000),
            }
        }
        2 => match nth / COUNTRIES.len() {
            0 => COUNTRIES[nth % COUNTRIES.len()].to_owned(),
            round => format!("{}>{:02}", COUNTRIES[nth % COUNTRIES.len()], round),
        },
        _ => match nth {
            0 => "US".to_owned(),
            n if n <= STATES.len() => format!("US>{}", STATES[n - 1].0),
            n => format!("{}>H{n}", COUNTRIES[n % COUNTRIES.len()]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn times_never_go_back_and_fill_the_span() {
        let cases = [(1_465_876_800_000, HOUR * 30), (1_465_877_123_456, 1_000), (-5_000_000, HOUR), (7, 1)];
        for (start, span) in cases {
            let options = Options { records: 5_000, start, span, ..Options::default() };
            let shape = Shape::new(&options, 9);
            let times: Vec<Millis> = (0..5_000).map(|index| shape.time(index)).collect();
            assert!(times.is_sorted(), "{start}");
            assert!(times[0] >= start && times[4_999] < start + span, "{start}");
            assert!(times[4_999] >= start + span * 9 / 10, "{start}: {}", times[4_999] - start);
        }
    }

    #[test]
    fn places_and_users_have_ids_of_their_own() {
        let places: HashSet<String> = (1..=400).map(geo).collect();
        assert_eq!(places.len(), 400);
        assert_eq!(geo(1), "US>CA>803");
        let users: HashSet<String> = (1..=100_000).map(uuid).collect();
        assert_eq!(users.len(), 100_000);
        assert!(users.iter().all(|id| id.len() == 14));
    }

    #[test]
    fn a_session_is_a_user_who_comes_again_within_minutes() {
        let shape = Shape::new(&Options { records: 20_000, ..Options::default() }, 1);
        let mut again = 0;
        for index in 0..1_000 {
            again += u64::from(shape.record(index).uuid == shape.record(index + shape.lanes).uuid);
        }
        assert!(again > 500, "{again}");
    }
}
