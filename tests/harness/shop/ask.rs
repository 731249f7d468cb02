//! Questions to the serving layer, each with the answer that the oracle gives.

use super::events::DAY;
use super::metrics::{Compute, Metric, metric};
use super::oracle::{Fact, Oracle};
use local::probe::Serving;
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// The most that a distinct count may be off beyond its exact size, and a quantile: what the README states.
const DISTINCT_BOUND: f64 = 0.049;
const QUANTILE_BOUND: f64 = 0.008;
const EXACT_DISTINCT: usize = 384;

/// A query.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// The metrics.
    pub metrics: Vec<&'static str>,
    /// The formula that is asked for instead of its metrics.
    pub formula: Option<&'static str>,
    /// The columns that are told apart.
    pub group_by: Vec<&'static str>,
    /// Column, operator, value: all must pass.
    pub filters: Vec<(&'static str, &'static str, Value)>,
    /// The width of the buckets, as asked and in ms; one bucket for all without.
    pub granularity: Option<(&'static str, i64)>,
    /// How many items.
    pub k: Option<usize>,
}

impl Query {
    /// All that the views hold of a metric: each bucket and key.
    pub fn whole(metric: &Metric) -> Query {
        Query {
            metrics: vec![metric.name],
            group_by: metric.by.iter().map(|(name, _)| *name).collect(),
            granularity: Some(("grain", metric.grain)),
            k: matches!(metric.compute, Compute::TopK(..)).then_some(1_000_000),
            ..Query::default()
        }
    }
}

/// What an answer was made from.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Rows of the batch view.
    pub batch: u64,
    /// Cells of the realtime view.
    pub realtime: u64,
}

/// The rows (a formula's columns are called like its metrics) by bucket, key, and the rank of a top-k; each with its values.
type Rows = BTreeMap<(i64, Vec<String>, usize), Vec<Value>>;

/// Asks, and holds the answer against the oracle's. `now` places the span: three days before to a day after.
///
/// # Panics
/// Where the answer isn't complete, or differs.
pub async fn check(serving: &Serving, oracle: &Oracle, now: i64, query: &Query, when: &str) -> Parts {
    let today = now.div_euclid(DAY) * DAY;
    let span = (today - 4 * DAY, today + 2 * DAY);
    let filters = query.filters.iter().map(|(dimension, op, value)| {
        let mut filter = json!({ "dimension": dimension, "op": op });
        if !value.is_null() {
            filter["value"] = value.clone();
        }
        filter
    });
    let mut request = json!({
        "metrics": query.formula.map_or(json!(query.metrics), |formula| json!([formula])),
        "group_by": query.group_by, "filters": filters.collect::<Vec<_>>(), "from": span.0, "to": span.1,
        "granularity": query.granularity.map_or("none", |(name, _)| name), "limit": 1_000_000, "strict": true,
    });
    if let Some(k) = query.k {
        request["k"] = json!(k);
    }
    let answer = serving.query(&request).await.unwrap_or_else(|error| panic!("{when}: {error:#}"));
    assert_eq!(answer["complete"], true, "{when}: {request}: {}", answer["incomplete_because"]);
    let found = found(query, &answer);
    let expected = expected(oracle, query, span);
    let computes: Vec<Compute> = query.metrics.iter().map(|name| metric(name).compute).collect();
    let differs = |place: &&(i64, Vec<String>, usize)| match (found.get(*place), expected.get(*place)) {
        (Some(found), Some(expected)) => !agree(&computes, found, expected),
        _ => true,
    };
    let places: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let wrong: Vec<String> = places
        .into_iter()
        .filter(differs)
        .map(|place| format!("{place:?}: {:?} instead of {:?}", found.get(place), expected.get(place)))
        .collect();
    let first = &wrong[..wrong.len().min(10)];
    assert!(wrong.is_empty(), "{when}: {request}: {} of {} differ: {first:#?}", wrong.len(), expected.len());
    assert!(!expected.is_empty(), "{when}: {request}: nothing to compare");
    let part = |part: &str, what: &str| answer["parts"][part][what].as_u64().expect("a number");
    Parts { batch: part("batch", "rows"), realtime: part("realtime", "cells") }
}

fn found(query: &Query, answer: &Value) -> Rows {
    let mut rows = Rows::new();
    for row in answer["rows"].as_array().expect("rows") {
        let bucket = row["bucket"].as_str().expect("bucket");
        let bucket = chrono::DateTime::parse_from_rfc3339(bucket).expect("a time").timestamp_millis();
        let key = query.group_by.iter().map(|name| row["key"][*name].to_string()).collect();
        let rank = row["rank"].as_u64().unwrap_or(0) as usize;
        let mut values: Vec<Value> = query.metrics.iter().map(|name| row["values"][*name].clone()).collect();
        if rank > 0 {
            values.extend(row["item"].as_object().expect("an item").values().cloned());
        }
        assert!(rows.insert((bucket, key, rank), values).is_none(), "a row came twice: {row}");
    }
    rows
}

fn expected(oracle: &Oracle, query: &Query, span: (i64, i64)) -> Rows {
    let mut groups: BTreeMap<(i64, Vec<String>), Vec<Vec<&Fact>>> = BTreeMap::new();
    for (place, name) in query.metrics.iter().enumerate() {
        let metric = metric(name);
        let column = |name: &str| match metric.compute {
            Compute::TopK(_, item, of) if item == name => of,
            _ => metric.by.iter().find(|(column, _)| *column == name).expect("a column").1,
        };
        for fact in facts(oracle, metric, span) {
            let passes = |(name, op, value): &(&'static str, &'static str, Value)| {
                admits(op, value, &column(name)(fact))
            };
            if !query.filters.iter().all(passes) {
                continue;
            }
            let bucket = query.granularity.map_or(span.0, |(_, width)| fact.time.div_euclid(width) * width);
            let key = query.group_by.iter().map(|name| column(name)(fact).to_string()).collect();
            let group = groups.entry((bucket, key)).or_insert_with(|| vec![Vec::new(); query.metrics.len()]);
            group[place].push(fact);
        }
    }
    let mut rows = Rows::new();
    for ((bucket, key), group) in groups {
        let first = metric(query.metrics[0]);
        if let Compute::TopK(k, _, of) = first.compute {
            let ranked = rank(&group[0], query.k.unwrap_or(k), of);
            for (at, (item, count)) in ranked.into_iter().enumerate() {
                rows.insert((bucket, key.clone(), at + 1), vec![json!(count), item]);
            }
            continue;
        }
        let value = |(name, facts): (&&'static str, &Vec<&Fact>)| match metric(name).compute {
            Compute::Sum(..) if facts.is_empty() && query.formula.is_some() => json!(0),
            compute => finish(compute, facts),
        };
        rows.insert((bucket, key, 0), query.metrics.iter().zip(&group).map(value).collect());
    }
    rows
}

fn facts(oracle: &Oracle, metric: Metric, (from, to): (i64, i64)) -> impl Iterator<Item = &Fact> {
    let counts = move |fact: &&Fact| metric.streams.contains(&fact.stream) && (metric.counts)(fact);
    oracle.facts.iter().filter(move |fact| from <= fact.time && fact.time < to).filter(counts)
}

/// Whether a column's value passes a filter: NULL passes none but `is_null`.
fn admits(op: &str, with: &Value, value: &Value) -> bool {
    match op {
        "is_null" => value.is_null(),
        "is_not_null" => !value.is_null(),
        _ if value.is_null() => false,
        "=" => value == with,
        "!=" => value != with,
        "in" => with.as_array().expect("a list").contains(value),
        ">" => value.as_i64() > with.as_i64(),
        "between" => (with[0].as_i64()..=with[1].as_i64()).contains(&value.as_i64()),
        // The patterns asked for here are a beginning and %.
        "like" => {
            let start = with.as_str().and_then(|pattern| pattern.strip_suffix('%')).expect("a beginning");
            value.as_str().expect("a text").starts_with(start)
        }
        other => panic!("the oracle has no {other}"),
    }
}

/// The most frequent items, NULL among them; of equally frequent ones the lesser first.
fn rank(facts: &[&Fact], k: usize, of: fn(&Fact) -> Value) -> Vec<(Value, i64)> {
    let mut counts: BTreeMap<String, (Value, i64)> = BTreeMap::new();
    for fact in facts {
        let item = of(fact);
        counts.entry(item.to_string()).or_insert((item, 0)).1 += 1;
    }
    let mut ranked: Vec<(Value, i64)> = counts.into_values().collect();
    ranked.sort_by(|(a, left), (b, right)| right.cmp(left).then_with(|| compare(a, b)));
    ranked.truncate(k);
    ranked
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Number(_), Value::Number(_)) => a.as_f64().partial_cmp(&b.as_f64()).expect("numbers"),
        _ => b.is_null().cmp(&a.is_null()),
    }
}

/// A whole number divided by 10^scale; other values as they are.
fn scaled(value: &Value, scale: u32) -> Value {
    match value.as_i64() {
        Some(number) if scale > 0 => json!(number as f64 / 10_f64.powi(scale as i32)),
        _ => value.clone(),
    }
}

/// Computes over some events.
pub fn finish(compute: Compute, facts: &[&Fact]) -> Value {
    let values = |of: fn(&Fact) -> Value| {
        let mut values: Vec<Value> =
            facts.iter().map(|fact| of(fact)).filter(|value| !value.is_null()).collect();
        values.sort_by(compare);
        values
    };
    let sum = |values: &[Value]| values.iter().map(|value| value.as_i64().expect("whole")).sum::<i64>();
    let nothing = Value::Null;
    match compute {
        Compute::Count => json!(facts.len()),
        Compute::TopK(..) => unreachable!("ranked elsewhere"),
        Compute::Sum(of, scale) => match values(of) {
            values if values.is_empty() => nothing,
            values => scaled(&json!(sum(&values)), scale),
        },
        Compute::Min(of, scale) => values(of).first().map_or(nothing, |value| scaled(value, scale)),
        Compute::Max(of, scale) => values(of).last().map_or(nothing, |value| scaled(value, scale)),
        Compute::Mean(of, scale) => match values(of) {
            values if values.is_empty() => nothing,
            values => json!(sum(&values) as f64 / values.len() as f64 / 10_f64.powi(scale as i32)),
        },
        Compute::Distinct(of) => {
            json!(values(of).iter().map(Value::to_string).collect::<BTreeSet<_>>().len())
        }
        Compute::Quantile(of, scale, quantiles) => {
            let values = values(of);
            let rank = |q: &f64| (q * values.len().saturating_sub(1) as f64) as usize;
            let value = |q: &f64| values.get(rank(q)).map_or(Value::Null, |value| scaled(value, scale));
            json!(quantiles.iter().map(value).collect::<Vec<_>>())
        }
    }
}

/// Whether what was answered is what was expected: sketches within their bounds, means to the last digits of a
/// double, all else equal.
fn agree(computes: &[Compute], found: &[Value], expected: &[Value]) -> bool {
    let right = |(place, (found, expected)): (usize, (&Value, &Value))| match computes.get(place) {
        Some(compute) => is_right(*compute, found, expected),
        // The last of a top-k's values is its item.
        None => found == expected,
    };
    found.len() == expected.len() && found.iter().zip(expected).enumerate().all(right)
}

fn is_right(compute: Compute, found: &Value, expected: &Value) -> bool {
    let near = |found: &Value, expected: &Value, bound: f64| match (found.as_f64(), expected.as_f64()) {
        (Some(found), Some(expected)) => (found - expected).abs() <= bound * expected.abs(),
        _ => found == expected,
    };
    match compute {
        Compute::Distinct(_) if expected.as_u64() > Some(EXACT_DISTINCT as u64) => {
            near(found, expected, DISTINCT_BOUND)
        }
        Compute::Quantile(..) => {
            let (found, expected) = (found.as_array().expect("a list"), expected.as_array().expect("a list"));
            let all = found.iter().zip(expected).all(|(f, e)| near(f, e, QUANTILE_BOUND));
            all && found.len() == expected.len()
        }
        Compute::Mean(..) => near(found, expected, 1e-12),
        _ => {
            found.as_f64() == expected.as_f64()
                && found.is_null() == expected.is_null()
                && found.as_str() == expected.as_str()
        }
    }
}

/// Asks for the sliding counter of every key that a metric ever had, and holds each against the events in the window
/// that the answer names. Gives the end of the window and how many of the keys had events in it.
///
/// # Panics
/// Where an answer isn't complete, or differs.
pub async fn check_live(serving: &Serving, oracle: &Oracle, metric: &Metric, when: &str) -> (i64, usize) {
    let (width, live) = metric.live.expect("a metric with a window");
    let mut keys: BTreeMap<Vec<String>, (Vec<Value>, Vec<&Fact>)> = BTreeMap::new();
    for fact in facts(oracle, *metric, (i64::MIN, i64::MAX)) {
        let key: Vec<Value> = metric.by.iter().map(|(_, of)| of(fact)).collect();
        let named = key.iter().map(Value::to_string).collect();
        keys.entry(named).or_insert((key, Vec::new())).1.push(fact);
    }
    let (mut end, mut alive) = (i64::MIN, 0);
    for (key, facts) in keys.into_values() {
        let parameters: Vec<(&str, String)> =
            metric.by.iter().zip(&key).map(|((name, _), value)| (*name, parameter(value))).collect();
        let answer =
            serving.live(live, &parameters).await.unwrap_or_else(|error| panic!("{when}: {error:#}"));
        let of = format!("{when}: {live} {key:?}: {answer}");
        assert_eq!(answer["complete"], true, "{of}");
        let window = (time(&answer, "window_start"), time(&answer, "window_end"));
        assert_eq!(window.1 - window.0, width, "{of}");
        let inside: Vec<&Fact> =
            facts.into_iter().filter(|fact| window.0 <= fact.time && fact.time < window.1).collect();
        match metric.compute {
            Compute::TopK(k, item, of_fact) => {
                let items = answer["items"].as_array().unwrap_or_else(|| panic!("{of}"));
                let found: Vec<(Value, i64)> = items
                    .iter()
                    .map(|found| (found["item"][item].clone(), found["value"].as_i64().expect("a count")))
                    .collect();
                assert_eq!(found, rank(&inside, k, of_fact), "{of}");
            }
            compute => {
                let expected = finish(compute, &inside);
                assert!(is_right(compute, &answer["value"], &expected), "instead of {expected}: {of}");
            }
        }
        end = end.max(window.1);
        alive += usize::from(!inside.is_empty());
    }
    (end, alive)
}

/// A key's value as a parameter of the live API.
fn parameter(value: &Value) -> String {
    match value {
        Value::Null => "\\N".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A time of an answer, ms since 1970.
///
/// # Panics
/// Where there is none.
pub fn time(answer: &Value, name: &str) -> i64 {
    let text = answer[name].as_str().unwrap_or_else(|| panic!("{name} in {answer}"));
    chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis()
}
