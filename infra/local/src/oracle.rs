//! The oracle: a naive fold over the distinct events of the log, which every answer must equal.
//!
//! It shares no code with the layers: it parses the bytes that Kafka holds by itself, keeps every distinct event in
//! memory, and counts by looking at each of them anew for each question.

use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};

/// Outbrain's clock: a raw timestamp of 0.
pub const OUTBRAIN_ZERO: i64 = 1_465_876_799_998;

/// The believable event times of the shipped catalog: 2016-06-13 to 2016-07-01.
pub const BELIEVABLE: std::ops::Range<i64> = 1_465_776_000_000..1_467_331_200_000;

/// A record as the log holds it.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// When the broker appended it, ms since 1970.
    pub append_time: i64,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// One distinct event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// Whether it is a click (`events`) rather than a view (`page_views`).
    pub click: bool,
    /// Event time, ms since 1970.
    pub time: i64,
    /// Who.
    pub uuid: Option<String>,
    /// On which document.
    pub document: Option<i64>,
    /// Which display (clicks only).
    pub display: Option<i64>,
    /// Where.
    pub geo: Option<String>,
}

/// A JSON object's entries as written, repeated names kept, so that a repeated name can be refused.
struct Entries(Vec<(String, serde_json::Value)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// What a record means; `None` where it must be refused.
pub fn parse(topic: &str, bytes: &[u8]) -> Option<Fact> {
    let Entries(entries) = serde_json::from_slice(bytes).ok()?;
    let click = topic == "events";
    let ints: &[&str] = if click {
        &["display_id", "document_id", "timestamp", "platform"]
    } else {
        &["document_id", "timestamp", "platform", "traffic_source"]
    };
    let mut int = BTreeMap::new();
    let mut text = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (name, value) in entries {
        let (is_int, is_text) =
            (ints.contains(&name.as_str()), ["uuid", "geo_location"].contains(&name.as_str()));
        if (is_int || is_text) && !seen.insert(name.clone()) {
            return None;
        }
        match value {
            serde_json::Value::Null => {}
            value if is_int => {
                int.insert(name, value.as_i64().filter(|_| !value.is_f64())?);
            }
            value if is_text => {
                text.insert(name, value.as_str()?.to_owned());
            }
            _ => {}
        }
    }
    let time = int.get("timestamp")?.checked_add(OUTBRAIN_ZERO)?;
    BELIEVABLE.contains(&time).then(|| Fact {
        click,
        time,
        uuid: text.get("uuid").cloned(),
        document: int.get("document_id").copied(),
        display: int.get("display_id").copied(),
        geo: text.get("geo_location").cloned(),
    })
}

/// A key as people write it; `None` is NULL.
pub type Key = Vec<Option<String>>;

/// A metric of the shipped catalog, by what it counts.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Whether page views feed it.
    pub views: bool,
    /// Whether clicks feed it.
    pub clicks: bool,
    /// Its key; for a top-k with the item last.
    pub key: fn(&Fact) -> Key,
    /// What distinct values are counted; a count where there are none.
    pub distinct: Option<fn(&Fact) -> Option<String>>,
    /// The column names of the key.
    pub columns: &'static [&'static str],
    /// Whether the last column is a top-k's item.
    pub top_k: bool,
}

fn text(value: Option<i64>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// The eight metrics of the shipped catalog.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "user_click_cnt",
        views: false,
        clicks: true,
        key: |fact| vec![fact.uuid.clone()],
        distinct: None,
        columns: &["uuid"],
        top_k: false,
    },
    Metric {
        name: "user_view_cnt",
        views: true,
        clicks: false,
        key: |fact| vec![fact.uuid.clone()],
        distinct: None,
        columns: &["uuid"],
        top_k: false,
    },
    Metric {
        name: "doc_cnt",
        views: false,
        clicks: true,
        key: |fact| vec![text(fact.document)],
        distinct: None,
        columns: &["document_id"],
        top_k: false,
    },
    Metric {
        name: "display_cnt",
        views: false,
        clicks: true,
        key: |fact| vec![text(fact.display)],
        distinct: None,
        columns: &["display_id"],
        top_k: false,
    },
    Metric {
        name: "geo_top_doc",
        views: false,
        clicks: true,
        key: |fact| vec![fact.geo.clone(), text(fact.document)],
        distinct: None,
        columns: &["geo_location", "document_id"],
        top_k: true,
    },
    Metric {
        name: "geo_top_display",
        views: false,
        clicks: true,
        key: |fact| vec![fact.geo.clone(), text(fact.display)],
        distinct: None,
        columns: &["geo_location", "display_id"],
        top_k: true,
    },
    Metric {
        name: "geo_top",
        views: true,
        clicks: true,
        key: |fact| vec![fact.geo.clone()],
        distinct: None,
        columns: &["geo_location"],
        top_k: true,
    },
    Metric {
        name: "active_user",
        views: true,
        clicks: true,
        key: |_| vec![],
        distinct: Some(|fact| fact.uuid.clone()),
        columns: &[],
        top_k: false,
    },
];

/// Every distinct event of a log.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    facts: Vec<Fact>,
    identities: BTreeSet<String>,
}

impl Oracle {
    /// Takes in a record; repeats and records that must be refused change nothing.
    pub fn take(&mut self, record: &Logged) {
        let Some(fact) = parse(&record.topic, &record.value) else { return };
        let Fact { click, time, uuid, document, display, .. } = &fact;
        let what = if *click { display } else { document };
        let identity = format!("{click} {time} {uuid:?} {what:?}");
        if self.identities.insert(identity) {
            self.facts.push(fact);
        }
    }

    /// Takes in a delivery as an event of its own, whether or not it repeats another.
    pub fn take_again(&mut self, record: &Logged) {
        self.facts.extend(parse(&record.topic, &record.value));
    }

    /// The oracle of a whole log.
    pub fn of<'a>(log: impl IntoIterator<Item = &'a Logged>) -> Oracle {
        let mut oracle = Oracle::default();
        log.into_iter().for_each(|record| oracle.take(record));
        oracle
    }

    /// The distinct events.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// What a metric counts over the events with `from <= time < to`, by bucket of `width` and key.
    pub fn count(&self, metric: &Metric, from: i64, to: i64, width: i64) -> BTreeMap<(i64, Key), i64> {
        let mut counts: BTreeMap<(i64, Key), (i64, BTreeSet<String>)> = BTreeMap::new();
        for fact in &self.facts {
            let counted = if fact.click { metric.clicks } else { metric.views };
            if !counted || fact.time < from || fact.time >= to {
                continue;
            }
            let cell = counts.entry((fact.time.div_euclid(width) * width, (metric.key)(fact))).or_default();
            cell.0 += 1;
            cell.1.extend(metric.distinct.and_then(|value| value(fact)));
        }
        let finish = |(count, values): (i64, BTreeSet<String>)| match metric.distinct {
            Some(_) => values.len() as i64,
            None => count,
        };
        counts.into_iter().map(|(cell, found)| (cell, finish(found))).collect()
    }
}
