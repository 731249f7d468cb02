//! The shop's seeded records: with repeats (some of which say something else than the first), disorder, lateness of
//! days, malformed ones, and times too old and from the future.
//!
//! One seed and one present always give the same records. What lies on past days is placed in the day, so that it is
//! the same for every present of a day.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

/// A day in milliseconds.
pub const DAY: i64 = 86_400_000;
const MINUTE: i64 = 60_000;

/// A record to be sent.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its topic.
    pub topic: &'static str,
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// Some records, those of `part` (each part has orders of its own), as they are sent around the time `now`.
pub fn records(seed: u64, part: u64, now: i64, count: usize) -> Vec<Record> {
    let mut random = StdRng::seed_from_u64(seed ^ part << 32);
    let mut sent: Vec<Record> = Vec::new();
    for index in 0..count {
        let id = (part as usize * count + index) as i64;
        let time = time(&mut random, now);
        let record = match random.random_range(0..10) {
            0..6 => order(&mut random, id, time),
            6..9 => returned(&mut random, id, time),
            _ => ping(&mut random, time),
        };
        let record = if random.random_bool(0.02) { spoilt(&mut random, record) } else { record };
        sent.push(record);
        if random.random_bool(0.08) {
            let again = sent.choose(&mut random).expect("one at least").clone();
            let differs = random.random_bool(0.5);
            sent.push(if differs { changed(again) } else { again });
        }
    }
    sent
}

/// Now, later than now, on the two days before, or beyond the streams' bounds.
fn time(random: &mut StdRng, now: i64) -> i64 {
    let today = now.div_euclid(DAY) * DAY;
    let in_day = random.random_range(0..DAY);
    match random.random_range(0..100) {
        0..30 => now - random.random_range(0..10 * MINUTE),
        30..35 => now + random.random_range(0..2 * MINUTE),
        35..70 => today - DAY + in_day,
        70..97 => today - 2 * DAY + in_day,
        97 => now - 4 * DAY + in_day / 2,
        98 => now + 10 * MINUTE + in_day,
        _ => now + 400 * DAY,
    }
}

/// One of some values, or NULL: in one way or the other.
fn or_null(random: &mut StdRng, object: &mut Map<String, Value>, name: &str, value: Value) {
    match random.random_range(0..25) {
        0 => {}
        1 => drop(object.insert(name.to_owned(), Value::Null)),
        _ => drop(object.insert(name.to_owned(), value)),
    }
}

/// What orders and returns have in common.
fn common(random: &mut StdRng, id: i64) -> Map<String, Value> {
    let shops = ["DE/Berlin", "DE/KÖLN", "FR/Paris/Nord", "FR", "US/New York", "US/", "", "XX/berlin"];
    let notes = ["sale", "Swap", "swap", "a gift", "", "none", "ä", "%"];
    let customer = format!("c{}", random.random_range(0..900));
    // Few articles are most of the sales.
    let article = random.random_range(0.0..6.0_f64).exp() as i64;
    let cents: i64 = random.random_range(-500..100_000);
    let price = match random.random_range(0..3) {
        0 => json!(cents / 100),
        1 => json!(format!(
            "{}{}.{:02}",
            if cents < 0 { "-" } else { "" },
            cents.abs() / 100,
            cents.abs() % 100
        )),
        _ => json!(cents as f64 / 100.0),
    };
    let mut object = Map::new();
    object.insert("order_id".into(), json!(id));
    let shop = json!(shops.choose(random));
    let note = json!(notes.choose(random));
    or_null(random, &mut object, "customer", json!(customer));
    or_null(random, &mut object, "shop", shop);
    or_null(random, &mut object, "article", json!(article));
    or_null(random, &mut object, "price", price);
    or_null(random, &mut object, "note", note);
    object
}

fn record(topic: &'static str, id: i64, object: Map<String, Value>) -> Record {
    Record { topic, key: id.to_string(), value: Value::Object(object).to_string().into_bytes() }
}

fn order(random: &mut StdRng, id: i64, time: i64) -> Record {
    let mut object = common(random, id);
    object.insert("at".into(), json!(time));
    let (quantity, gift): (i64, bool) = (random.random_range(-1..10), random.random());
    let weight = f64::from(random.random_range(-80..40_000)) / 16.0;
    or_null(random, &mut object, "quantity", json!(quantity));
    or_null(random, &mut object, "weight", json!(weight));
    or_null(random, &mut object, "gift", json!(gift));
    record("shop-orders", id, object)
}

fn returned(random: &mut StdRng, id: i64, time: i64) -> Record {
    let mut object = common(random, id);
    object.insert("returned_at".into(), json!(time * 1_000 + random.random_range(0..1_000)));
    record("shop-returns", id, object)
}

fn ping(random: &mut StdRng, time: i64) -> Record {
    let kinds = ["up", "down", "a:b", "%", "ümlaut"];
    let mut object = Map::new();
    object.insert("seconds".into(), json!(time.div_euclid(1_000) - 1_700_000_000));
    let kind = json!(kinds.choose(random));
    or_null(random, &mut object, "kind", kind);
    record("shop-pings", random.random_range(0..100), object)
}

/// The same event by its identity, and another content: the first delivery is the one that counts.
fn changed(mut record: Record) -> Record {
    if let Ok(Value::Object(mut object)) = serde_json::from_slice(&record.value)
        && object.contains_key("order_id")
    {
        object.insert("article".into(), json!(777_777));
        object.insert("price".into(), json!("99999.99"));
        record.value = Value::Object(object).to_string().into_bytes();
    }
    record
}

/// A record that must be refused.
fn spoilt(random: &mut StdRng, mut record: Record) -> Record {
    let Ok(Value::Object(mut object)) = serde_json::from_slice::<Value>(&record.value) else { return record };
    let time = ["at", "returned_at", "seconds"].into_iter().find(|name| object.contains_key(*name));
    let time = time.expect("each has its time").to_owned();
    let mut set = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    match (record.topic, random.random_range(0..9)) {
        (_, 0) => drop(record.value.pop()),
        (_, 1) => record.value.clear(),
        (_, 2) => set(&time, Value::Null),
        (_, 3) => set(&time, json!("yesterday")),
        (_, 4) => set(&time, json!(1.5)),
        ("shop-pings", _) => set("kind", json!(["up"])),
        (_, 5) => set("price", json!("1.234")),
        (_, 6) => set("article", json!(2.5)),
        (_, 7) => set("note", json!("a\u{0}b")),
        (_, _) => set("order_id", json!(u64::MAX)),
    }
    if !record.value.is_empty() && record.value.ends_with(b"}") {
        record.value = Value::Object(object).to_string().into_bytes();
    }
    record
}
