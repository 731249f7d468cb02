//! What happened, as a person would count it, and the naive fold of it: no code of the layers but the group of a key.

use crate::log::Broker;
use shared_model::catalog::Catalog;
use shared_model::event::Value;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use shared_model::view;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// The dedup horizon in offsets.
pub(crate) const HORIZON: i64 = 12;
pub(crate) const GROUPS: u32 = 2;
const METRICS: [&str; 4] = ["view_cnt", "click_pages", "top_page", "users"];
pub(crate) const EPOCH: Millis = 1_000;
pub(crate) const PAST: Millis = 3 * 86_400_000;
pub(crate) const FUTURE: Millis = 300_000;

/// The catalog without its streams.
const CATALOG: &str = r#"
[layout]
epoch = "1s"
groups = 2
pane = "1s"

[metrics.view_cnt]
stream = "views"
by = ["who"]
aggregate = "count"
window = "5s"
grain = "1h"

[metrics.click_pages]
stream = "clicks"
by = ["place"]
aggregate = "sum"
value = "page"
grain = "1h"

[metrics.top_page]
streams = ["clicks", "views"]
aggregate = "top_k"
item = "page"
k = 100
grain = "1d"

[metrics.users]
streams = ["clicks", "views"]
aggregate = "distinct"
value = "who"
grain = "1h"
"#;

/// A stream but for its name: both are alike.
const STREAM: &str = r#"
[streams.NAME]
topic = "NAME"
event_time = { field = "at", unit = "ms" }
identity = ["who", "page", "at"]
message_key = "who"
bounds = { past = "3d", future = "5m" }
lateness = "1s"
dedup_horizon = 12
fields = { who = "string", page = "int", at = "int", place = "string" }
"#;

/// The definitions of the simulation.
pub(crate) fn catalog() -> Arc<Catalog> {
    let [views, clicks] = ["views", "clicks"].map(|name| STREAM.replace("NAME", name));
    let text = [CATALOG, &views, &clicks].concat();
    let catalog = Catalog::from_toml(&text).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!((catalog.layout.epoch.0, catalog.layout.groups), (EPOCH, GROUPS));
    Arc::new(catalog)
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) user: u8,
    pub(crate) page: u8,
    pub(crate) at: Millis,
    /// Not part of the identity: two deliveries may differ in it.
    pub(crate) place: Option<u8>,
}

/// A cell as a person names it.
pub(crate) type Cell = (&'static str, Millis, String);
/// Cells with their finished values.
pub(crate) type Counted = BTreeMap<Cell, i64>;

impl Fact {
    pub(crate) fn json(&self) -> Vec<u8> {
        let Fact { user, page, at, .. } = self;
        let place = self.place.map_or("null".to_owned(), |place| format!("\"p{place}\""));
        format!(r#"{{"who":"u{user}","page":{page},"at":{at},"place":{place}}}"#).into_bytes()
    }

    pub(crate) fn identity(&self) -> (u8, u8, Millis) {
        (self.user, self.page, self.at)
    }

    /// Whether its event time is believed at an append time.
    pub(crate) fn believed(&self, append: Millis) -> bool {
        append - PAST <= self.at && self.at < append + FUTURE
    }

    /// What it adds to each metric.
    pub(crate) fn counts(&self, topic: &str) -> Vec<Counts> {
        METRICS.into_iter().filter_map(|metric| self.cell(topic, metric)).collect()
    }

    /// What it adds to a metric.
    fn cell(&self, topic: &str, metric: &'static str) -> Option<Counts> {
        let bucket = |width: Millis| self.at.div_euclid(width) * width;
        let (hour, day) = (bucket(3_600_000), bucket(86_400_000));
        let place = || self.place.map_or(Value::Null, |place| Value::str(&format!("p{place}")));
        let (start, by, item, adds) = match (metric, topic) {
            ("top_page", _) => (day, None, self.page.to_string(), Adds::Number(1)),
            ("users", _) => (hour, None, String::new(), Adds::User(self.user)),
            ("view_cnt", "views") => {
                (hour, Some(Value::str(&format!("u{}", self.user))), String::new(), Adds::Number(1))
            }
            ("click_pages", "clicks") => {
                (hour, Some(place()), String::new(), Adds::Number(i64::from(self.page)))
            }
            _ => return None,
        };
        let mut key = Vec::new();
        by.iter().for_each(|value| value.encode(&mut key));
        let (cell, group) = ((metric, start, named(by.iter(), &item)), view::group_of(&key, GROUPS));
        Some(Counts { cell, group, adds })
    }
}

/// What an event adds to a metric.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    cell: Cell,
    /// The cell's group.
    group: u32,
    adds: Adds,
}

#[derive(Debug, Clone, Copy)]
enum Adds {
    Number(i64),
    User(u8),
}

/// The name of a key.
pub(crate) fn named<'a>(by: impl Iterator<Item = &'a Value>, item: &str) -> String {
    let by: Vec<String> = by.map(|value| format!("{value:?}")).collect();
    format!("{} {item}", by.join(" "))
}

/// What becomes of repeats.
#[derive(Clone, Copy)]
pub(crate) enum Repeats<'a> {
    /// Above the cut those within so many offsets of their partition aren't counted, below it none.
    Within(&'a dyn Fn(&TopicPartition) -> i64),
    /// All are counted: the most that can be, where the log and the archive lack what they repeat.
    All,
}

/// The naive cells of a metric in an answer: of the distinct events below the cuts, the delivery of the lowest place
/// standing for all; and, per partition and group, of the deliveries from the cut to where the group is read that repeat
/// none.
pub(crate) fn naive(
    broker: &Broker,
    metric: &'static str,
    cut: &dyn Fn(&TopicPartition) -> i64,
    reach: &dyn Fn(&TopicPartition, u32) -> i64,
    repeats: Repeats<'_>,
) -> Counted {
    let mut counted: BTreeMap<&Cell, i64> = BTreeMap::new();
    let mut users: BTreeMap<&Cell, BTreeSet<u8>> = BTreeMap::new();
    let mut seen = HashSet::new();
    for (tp, log) in &broker.logs {
        let below = cut(tp);
        let horizon = match repeats {
            Repeats::Within(horizon) => horizon(tp),
            Repeats::All => -1,
        };
        let reach: Vec<i64> = (0..GROUPS).map(|group| reach(tp, group)).collect();
        for record in &log.records {
            let Some(fact) = &record.fact else { continue };
            let counts = match record.offset < below {
                true => seen.insert((&tp.topic, fact.identity())) || matches!(repeats, Repeats::All),
                false => record.back.is_none_or(|back| back > horizon),
            };
            let Some(adds) = record.counts.iter().find(|counts| counts.cell.0 == metric) else { continue };
            if !counts || record.offset >= below && record.offset >= reach[adds.group as usize] {
                continue;
            }
            match adds.adds {
                Adds::Number(number) => *counted.entry(&adds.cell).or_default() += number,
                Adds::User(user) => _ = users.entry(&adds.cell).or_default().insert(user),
            }
        }
    }
    counted.extend(users.into_iter().map(|(cell, users)| (cell, users.len() as i64)));
    counted.into_iter().map(|(cell, value)| (cell.clone(), value)).collect()
}

/// The name of a metric for good.
pub(crate) fn catalog_name(metric: &str) -> &'static str {
    METRICS.into_iter().find(|name| *name == metric).expect("a metric of the simulation")
}
