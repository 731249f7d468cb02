//! Holds what the serving layer answers of the benches' records against what they add up to.

use crate::events::{self, Totals};
use anyhow::{Context as _, ensure};
use local::probe::Serving;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use tidemark_tests::stack::Stack;

/// Holds what the serving layer answers of the catalog's metrics against the totals: of all keys, or of `some` drawn evenly,
/// where the realtime view is more than one answer can read.
pub(crate) async fn check(stack: &Stack, totals: &Totals, some: Option<usize>) -> anyhow::Result<()> {
    let (_process, serving) = stack.serving().await;
    let is_there = |metric: &str| stack.catalog.metric(metric).is_some();
    let number = |counts: &[u32]| -> BTreeMap<String, u64> {
        let counted = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(key, &count)| (key.to_string(), u64::from(count))).collect()
    };
    let by_user = |of: usize| -> BTreeMap<String, u64> {
        let counted = totals.users.iter().enumerate().filter(|(_, counts)| counts[of] > 0);
        counted.map(|(user, counts)| (events::uuid(user), u64::from(counts[of]))).collect()
    };
    for (metric, key, expected) in [
        ("user_click_cnt", "uuid", by_user(0)),
        ("user_view_cnt", "uuid", by_user(1)),
        ("doc_cnt", "document_id", number(&totals.documents)),
        ("display_cnt", "display_id", number(&totals.displays)),
    ]
    .into_iter()
    .filter(|(metric, _, _)| is_there(metric))
    {
        let mut expected: BTreeMap<String, u64> = expected;
        let mut filters = json!([]);
        if let Some(some) = some {
            let every = (expected.len() / some).max(1);
            expected = expected.into_iter().step_by(every).collect();
            // A user's id may look like a number.
            let value = |name: &String| match name.parse::<i64>() {
                Ok(number) if key != "uuid" => json!(number),
                _ => json!(name),
            };
            let values: Vec<Value> = expected.keys().map(value).collect();
            filters = json!([{ "dimension": key, "op": "in", "values": values }]);
        }
        let answer = ask(&serving, metric, &[key], filters).await?;
        let rows = answer["rows"].as_array().context("rows")?;
        ensure!(rows.len() == expected.len(), "{metric}: {} rows, not {}", rows.len(), expected.len());
        for row in rows {
            let name = match &row["key"][key] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let found = row["values"][metric].as_u64();
            ensure!(found == expected.get(&name).copied(), "{metric} of {name}: {found:?}");
        }
    }
    if is_there("geo_top_doc") {
        // All places would be more items than one answer may hold.
        places(&serving, totals, if some.is_some() { 1_000 } else { 50 }).await?;
    }
    if some.is_none() && is_there("active_user") {
        let users = totals.users.iter().filter(|counts| counts[0] + counts[1] > 0).count() as f64;
        let answer = ask(&serving, "active_user", &[], json!([])).await?;
        let estimate = answer["rows"][0]["values"]["active_user"].as_f64().context("an estimate")?;
        ensure!((estimate / users - 1.0).abs() < 0.05, "active_user: {estimate}, not about {users}");
    }
    Ok(())
}

/// The documents with the most events in each `every`-th place.
async fn places(serving: &Serving, totals: &Totals, every: u32) -> anyhow::Result<()> {
    let mut places: HashMap<String, Vec<u64>> = HashMap::new();
    for (&(place, _), &count) in totals.geo_documents.iter().filter(|((place, _), _)| place % every == 0) {
        places.entry(events::geo(place as usize)).or_default().push(u64::from(count));
    }
    let named: Vec<&String> = places.keys().collect();
    let filters = json!([{ "dimension": "geo", "op": "in", "values": named }]);
    let answer = ask(serving, "geo_top_doc", &["geo"], filters).await?;
    let mut found: HashMap<String, Vec<u64>> = HashMap::new();
    for row in answer["rows"].as_array().context("rows")? {
        let place = row["key"]["geo"].as_str().context("a place")?.to_owned();
        found.entry(place).or_default().extend(row["values"]["geo_top_doc"].as_u64());
    }
    for (place, counts) in &mut places {
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.truncate(10);
        ensure!(
            found.get(place) == Some(counts),
            "geo_top_doc of {place}: {:?}, not {counts:?}",
            found.get(place)
        );
    }
    ensure!(found.len() == places.len(), "geo_top_doc: {} places, not {}", found.len(), places.len());
    Ok(())
}

/// All that a metric counted, by its keys, over all time.
async fn ask(serving: &Serving, metric: &str, by: &[&str], filters: Value) -> anyhow::Result<Value> {
    let query = json!({
        "metrics": [metric], "group_by": by, "filters": filters, "granularity": "none", "strict": true, "limit": 1_000_000,
        "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z",
    });
    serving.query(&query).await
}
