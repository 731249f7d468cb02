//! The shop's oracle: every distinct event of the log, kept whole, and each answer computed by looking at all of them
//! anew.

use super::events::DAY;
use local::oracle::Logged;
use local::probe::Probe;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// One distinct event: its stream and its fields, decimals as cents.
#[derive(Debug, Clone)]
pub struct Fact {
    /// The stream.
    pub stream: &'static str,
    /// Event time, ms since 1970.
    pub time: i64,
    /// When the broker appended it, ms since 1970.
    pub append_time: i64,
    fields: Map<String, Value>,
}

impl Fact {
    /// A field; NULL where it is missing.
    pub fn get(&self, name: &str) -> Value {
        self.fields.get(name).cloned().unwrap_or(Value::Null)
    }
}

/// The oracle.
#[derive(Debug, Default)]
pub struct Oracle {
    /// The distinct events.
    pub facts: Vec<Fact>,
    /// How many records must be refused.
    pub refused: usize,
    seen: BTreeSet<(&'static str, String, String)>,
}

/// The streams by their topics: name, field of the event time, milliseconds of a raw time, and the typed fields.
type Declared =
    (&'static str, &'static str, fn(i64) -> i64, &'static [(&'static str, fn(&Value) -> Option<Value>)]);

fn declared(topic: &str) -> Declared {
    match topic {
        "shop-orders" => (
            "orders",
            "at",
            |raw| raw,
            &[
                ("order_id", int),
                ("at", int),
                ("customer", text),
                ("shop", text),
                ("article", int),
                ("quantity", int),
                ("price", cents),
                ("weight", float),
                ("gift", truth),
                ("note", text),
            ],
        ),
        "shop-returns" => (
            "returns",
            "returned_at",
            |raw| raw.div_euclid(1_000),
            &[
                ("order_id", int),
                ("returned_at", int),
                ("customer", text),
                ("shop", text),
                ("article", int),
                ("price", cents),
                ("note", text),
            ],
        ),
        _ => ("pings", "seconds", |raw| (raw + 1_700_000_000) * 1_000, &[("seconds", int), ("kind", text)]),
    }
}

fn int(value: &Value) -> Option<Value> {
    value.as_i64().filter(|_| !value.is_f64()).map(Value::from)
}

fn float(value: &Value) -> Option<Value> {
    value.as_f64().map(Value::from)
}

fn truth(value: &Value) -> Option<Value> {
    value.as_bool().map(Value::from)
}

fn text(value: &Value) -> Option<Value> {
    value.as_str().filter(|text| !text.contains('\0')).map(Value::from)
}

fn cents(value: &Value) -> Option<Value> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let cents = format!("{whole}{fraction:0<2}").parse::<i64>();
    cents.ok().filter(|_| fraction.len() <= 2).map(Value::from)
}

/// A record's fields and event time; `None` where it must be refused.
fn parse(record: &Logged) -> Option<(Fact, Option<[String; 2]>)> {
    let (stream, time_field, to_millis, types) = declared(&record.topic);
    let Value::Object(raw) = serde_json::from_slice(&record.value).ok()? else { return None };
    let mut fields = Map::new();
    for (name, typed) in types {
        match raw.get(*name) {
            None | Some(Value::Null) => {}
            Some(value) => drop(fields.insert((*name).to_owned(), typed(value)?)),
        }
    }
    let time = to_millis(fields.get(time_field)?.as_i64()?);
    let believable = record.append_time - 3 * DAY..record.append_time + 300_000;
    let identity = |name: &str| fields.get(name).unwrap_or(&json!(null)).to_string();
    let identity = (stream != "pings").then(|| [identity("order_id"), identity(time_field)]);
    let append_time = record.append_time;
    believable.contains(&time).then_some((Fact { stream, time, append_time, fields }, identity))
}

impl Oracle {
    /// The oracle of all that a log holds. Blocks.
    pub fn of(probe: &Probe) -> Oracle {
        let mut oracle = Oracle::default();
        probe.read_log(&BTreeMap::new(), |record| oracle.take(&record)).expect("the log");
        oracle
    }

    /// The end of the sliding windows: that of the pane of the newest event time, believed up to its own append time,
    /// or of the newest tick.
    pub fn window_end(&self, ticks: &[i64], pane: i64) -> i64 {
        let trusted = self.facts.iter().map(|fact| fact.time.min(fact.append_time));
        let newest = trusted.chain(ticks.iter().copied()).max().expect("an event or a tick");
        newest.div_euclid(pane) * pane + pane
    }

    /// Takes in the log's next record.
    pub fn take(&mut self, record: &Logged) {
        let Some((fact, identity)) = parse(record) else {
            self.refused += 1;
            return;
        };
        if identity.is_none_or(|[order, time]| self.seen.insert((fact.stream, order, time))) {
            self.facts.push(fact);
        }
    }
}
