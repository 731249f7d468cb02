//! Who came again: of the visitors of each bucket, how many in each of those behind it.
//!
//! Who came is known by name, of each bucket and key, so that the numbers are exact.

use crate::finish::Row;
use crate::merge::{Budget, FoldError, Merged, Slot};
use crate::query::Query;
use crate::query::buckets::MAX_STARTS;
use shared_model::aggregate::{Finished, State};
use shared_model::event::Value;
use std::collections::BTreeMap;

/// Those who came, by name.
type Visitors = BTreeMap<Value, State>;

/// A row for each key and bucket in which anyone came: how many did, and how many of them in each of so many buckets behind
/// it; NULL of a bucket beyond the span.
///
/// # Errors
/// [`FoldError::TooManyCells`] where the span has more buckets than can be listed, or the rows hold more numbers than the
/// budget has left.
pub(crate) fn rows(
    query: &Query,
    periods: usize,
    merged: Vec<Merged>,
    budget: &Budget,
) -> Result<Vec<Row>, FoldError> {
    let starts = query.buckets.starts(query.span).map_err(|_| FoldError::TooManyCells(MAX_STARTS))?;
    let mut keys: BTreeMap<Vec<Value>, BTreeMap<usize, Visitors>> = BTreeMap::new();
    for Merged { bucket, key, mut states } in merged {
        let Ok(place) = starts.binary_search(&bucket) else { continue };
        if let Some(Some(Slot::Items(visitors))) = states.pop() {
            keys.entry(key).or_default().insert(place, visitors);
        }
    }
    let mut rows = Vec::new();
    for (key, of) in keys {
        for (place, visitors) in &of {
            budget.take(periods + 1)?;
            let again = |behind: usize| match of.get(&(place + behind)) {
                Some(later) => Some(visitors.keys().filter(|one| later.contains_key(one)).count() as f64),
                None => (place + behind < starts.len()).then_some(0.0),
            };
            let values = vec![Finished::List((0..=periods).map(again).collect())];
            let bucket = starts[*place];
            rows.push(Row { bucket, key: key.clone(), ranked: None, values, previous: Vec::new() });
        }
    }
    Ok(rows)
}
