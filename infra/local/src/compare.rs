//! Holds every cell that the serving layer answers against the oracle.

use crate::oracle::{self, Key, METRICS, Metric, Oracle};
use crate::probe::Serving;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The cells of a metric: bucket start and key, with the count.
pub type Cells = BTreeMap<(i64, Key), i64>;

/// How one metric compares.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The metric's name.
    pub metric: &'static str,
    /// How many cells the oracle has.
    pub cells: usize,
    /// The cells that differ: where, what was answered, what should have been.
    pub wrong: Vec<String>,
    /// Why the answer says that it isn't complete; empty where it is.
    pub incomplete_because: Vec<String>,
    /// How many rows came from the batch view.
    pub batch_rows: u64,
    /// How many cells came from the realtime view.
    pub realtime_cells: u64,
}

impl Comparison {
    /// Whether all cells are right and the answer is complete.
    pub fn is_right(&self) -> bool {
        self.wrong.is_empty() && self.incomplete_because.is_empty()
    }
}

/// Compares all metrics of the shipped catalog, in every bucket and key. `grain` gives the width of a metric's
/// buckets in ms.
///
/// # Errors
/// When the serving layer doesn't answer, or not in the form that it promises.
pub async fn all(serving: &Serving, oracle: &Oracle, grain: impl Fn(&str) -> i64) -> Result<Vec<Comparison>> {
    let mut compared = Vec::new();
    for metric in METRICS {
        let (found, answer) = cells(serving, metric).await.with_context(|| metric.name)?;
        let (from, to) = (oracle::BELIEVABLE.start, oracle::BELIEVABLE.end);
        let expected = oracle.count(metric, from, to, grain(metric.name));
        let because = answer["incomplete_because"].as_array().cloned().unwrap_or_default();
        compared.push(Comparison {
            metric: metric.name,
            cells: expected.len(),
            wrong: differences(&found, &expected),
            incomplete_because: because
                .iter()
                .map(|reason| reason.as_str().unwrap_or("?").to_owned())
                .collect(),
            batch_rows: answer["parts"]["batch"]["rows"].as_u64().unwrap_or(0),
            realtime_cells: answer["parts"]["realtime"]["cells"].as_u64().unwrap_or(0),
        });
    }
    Ok(compared)
}

/// The comparisons as a table.
pub fn table(compared: &[Comparison]) -> String {
    let mut lines = vec![format!(
        "{:<16} {:>9} {:>9} {:>11} {:>15}  {}",
        "metric", "cells", "wrong", "batch rows", "realtime cells", "verdict"
    )];
    for Comparison { metric, cells, wrong, incomplete_because, batch_rows, realtime_cells } in compared {
        let verdict = match (wrong.first(), incomplete_because.first()) {
            (None, None) => "equal".to_owned(),
            (Some(first), _) => format!("DIFFERS: {first}"),
            (None, Some(first)) => format!("INCOMPLETE: {first}"),
        };
        let wrong = wrong.len();
        lines.push(format!(
            "{metric:<16} {cells:>9} {wrong:>9} {batch_rows:>11} {realtime_cells:>15}  {verdict}"
        ));
    }
    lines.join("\n")
}

fn differences(found: &Cells, expected: &Cells) -> Vec<String> {
    let mut places: Vec<_> = found.keys().chain(expected.keys()).collect();
    places.sort();
    places.dedup();
    let wrong = places.into_iter().filter(|place| found.get(place) != expected.get(place));
    wrong
        .map(|place| format!("{place:?}: {:?} instead of {:?}", found.get(place), expected.get(place)))
        .collect()
}

/// All cells of a metric as the serving layer answers them, and the answer without its rows.
///
/// # Errors
/// When the serving layer doesn't answer, or not in the form that it promises.
pub async fn cells(serving: &Serving, metric: &Metric) -> Result<(Cells, Value)> {
    let by = if metric.top_k { &metric.columns[..metric.columns.len() - 1] } else { metric.columns };
    let mut query = json!({
        "metrics": [metric.name],
        "group_by": by,
        "granularity": "grain",
        "from": "2016-06-13T00:00:00Z",
        "to": "2016-07-01T00:00:00Z",
        "limit": 1_000_000,
    });
    if metric.top_k {
        query["k"] = json!(1_000_000);
    }
    let mut answer = serving.query(&query).await?;
    let mut cells = Cells::new();
    for row in answer["rows"].as_array().context("an answer without rows")? {
        let bucket = row["bucket"].as_str().context("a row without its bucket")?;
        let bucket = chrono::DateTime::parse_from_rfc3339(bucket)?.timestamp_millis();
        let mut key: Key = by.iter().map(|column| text(&row["key"][column])).collect();
        if metric.top_k {
            key.push(text(&row["item"][metric.columns[by.len()]]));
        }
        let count = row["values"][metric.name].as_i64().with_context(|| format!("no count in {row}"))?;
        ensure!(cells.insert((bucket, key), count).is_none(), "a cell came twice: {row}");
    }
    answer["rows"].take();
    Ok((cells, answer))
}

/// A key's value as the oracle writes it.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
