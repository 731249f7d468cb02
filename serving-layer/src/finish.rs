//! From merged states to the rows of an answer: finished, set beside what they are compared with, filled up, sifted,
//! sorted, and cut to a page.
//!
//! Every step works on finished values, after everything is merged. The order is total: whatever is asked to be sorted by,
//! ties fall to bucket, key and rank, so that the pages of one set of rows are that set, each row once.

use crate::merge::{Budget, Fold, FoldError, Merged, Slot};
use crate::query::buckets::MAX_STARTS;
use crate::query::computed::{Computed, Of, share};
use crate::query::{LimitBy, OrderBy, Query};
use crate::{retained, rolled};
use shared_model::aggregate::{Aggregate, Finished, State, quantile, top_k};
use shared_model::event::Value;
use shared_model::time::Millis;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// A row of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The start of its bucket.
    pub bucket: Millis,
    /// The values of the `group_by` columns.
    pub key: Vec<Value>,
    /// Of a top-k: the rank from 1, and the item.
    pub ranked: Option<(usize, Value)>,
    /// One value for each value column, and behind them those that are computed.
    pub values: Vec<Finished>,
    /// The same of the period that is compared with; empty where none is.
    pub previous: Vec<Finished>,
}

/// All rows that an answer has, and the ones that its limit and offset leave.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// The rows returned.
    pub rows: Vec<Row>,
    /// How many there are without limit and offset.
    pub total: usize,
    /// For each value column the greatest relative error of its values: 0 where all are exact.
    pub error_bounds: Vec<f64>,
}

/// The rows of a query, from its fold and that of what it is compared with.
///
/// # Errors
/// [`FoldError::TooManyCells`] where rolling windows or filling up would take more than the budget has left.
pub fn finish(query: &Query, folds: Vec<Fold<'_>>, budget: &Budget) -> Result<Rows, FoldError> {
    let mut folds = folds.into_iter();
    let mut error_bounds = vec![0.0_f64; query.columns.len()];
    let mut rows = match folds.next() {
        Some(fold) => rows(fold, query.k, budget, &mut error_bounds)?,
        None => Vec::new(),
    };
    if let Some(fold) = folds.next() {
        let compared = self::rows(fold, usize::MAX, budget, &mut error_bounds)?;
        compare_with(query, &mut rows, compared);
    }
    if query.fill {
        fill(query, &mut rows, budget)?;
    }
    shares(query, &mut rows);
    if let Some(having) = &query.having {
        rows.retain(|row| having.holds(&mut |test| test.admits(row)) == Some(true));
    }
    if !query.order.is_empty() {
        // Stable: ties keep the order by bucket, key and rank.
        rows.sort_by(|a, b| in_order(query, a, b));
    }
    if let Some(limit_by) = &query.limit_by {
        first_of_each(limit_by, &mut rows);
    }
    let total = rows.len();
    let rows = rows.into_iter().skip(query.offset).take(query.limit).collect();
    Ok(Rows { rows, total, error_bounds })
}

/// The rows of a fold by bucket, key and rank, k items of each top-k. Widens the error bounds to theirs.
fn rows(fold: Fold<'_>, k: usize, budget: &Budget, error_bounds: &mut [f64]) -> Result<Vec<Row>, FoldError> {
    let (query, mut rows) = (fold.query(), Vec::new());
    let each = |merged: Merged| {
        widen(error_bounds, &merged);
        if query.ranked() {
            rows.extend(ranked(merged, k));
        } else {
            let Merged { bucket, key, states } = merged;
            let values = states.into_iter().enumerate().map(|(i, slot)| finished(query, i, slot));
            rows.push(Row { bucket, key, ranked: None, values: values.collect(), previous: Vec::new() });
        }
    };
    match (&query.rolling, query.retention) {
        (_, Some(periods)) => {
            rows = retained::rows(query, periods, fold.into_merged(), budget)?;
            by_place(&mut rows);
        }
        (None, None) => fold.into_merged().into_iter().for_each(each),
        (Some(rolling), None) => {
            let of_sessions =
                |at: &usize| matches!(query.columns[*at].metric.aggregate, Aggregate::Sessions { .. });
            let sessions: Vec<usize> = (0..query.columns.len()).filter(of_sessions).collect();
            rolled::roll(rolling, &sessions, fold.into_merged(), budget, each)?;
        }
    }
    rows.iter_mut().for_each(|row| compute(query, &mut row.values));
    if query.rolling.is_some() {
        if rows.is_empty() && query.has_total() {
            let values = nothing(query);
            rows.push(Row {
                bucket: query.span.start,
                key: Vec::new(),
                ranked: None,
                values,
                previous: Vec::new(),
            });
        }
        // Stable: a top-k's rows stay by rank.
        by_place(&mut rows);
    }
    Ok(rows)
}

/// Adds what is computed of a row's values; a share has its place, and its value once all rows are there.
fn compute(query: &Query, values: &mut Vec<Finished>) {
    let of = |computed: &Computed| match &computed.of {
        Of::Row(formula) => formula.value(values),
        Of::Share(_) => Finished::Null(()),
    };
    let computed: Vec<Finished> = query.computed.iter().map(of).collect();
    values.extend(computed);
}

/// Puts each row's share of its bucket in its place, of both periods.
fn shares(query: &Query, rows: &mut [Row]) {
    for (place, computed) in (query.columns.len()..).zip(&query.computed) {
        let Of::Share(column) = computed.of else { continue };
        let periods: [fn(&mut Row) -> &mut Vec<Finished>; 2] =
            [|row| &mut row.values, |row| &mut row.previous];
        for values in periods {
            let mut sums: BTreeMap<Millis, f64> = BTreeMap::new();
            for row in &mut *rows {
                let bucket = row.bucket;
                match values(row).get(column) {
                    Some(Finished::Int(value)) => *sums.entry(bucket).or_default() += *value as f64,
                    Some(Finished::Float(value)) => *sums.entry(bucket).or_default() += value,
                    _ => {}
                }
            }
            for row in &mut *rows {
                let sum = sums.get(&row.bucket).copied();
                let values = values(row);
                if let Some(value) = values.get(column) {
                    values[place] = share(value, sum);
                }
            }
        }
    }
}

/// Keeps the first rows, in the order in which they are, of those that are equal in some columns.
fn first_of_each(limit_by: &LimitBy, rows: &mut Vec<Row>) {
    let mut kept: BTreeMap<(Option<Millis>, Vec<Value>), usize> = BTreeMap::new();
    rows.retain(|row| {
        let key = limit_by.keys.iter().map(|place| row.key[*place].clone()).collect();
        let kept = kept.entry((limit_by.bucket.then_some(row.bucket), key)).or_default();
        *kept += 1;
        *kept <= limit_by.limit
    });
}

/// Sets beside each row the values that its bucket, key and item had in the other period. A row that only that period
/// has is there too, with the values of nothing; a top-k has the items of its own period alone.
fn compare_with(query: &Query, rows: &mut Vec<Row>, compared: Vec<Row>) {
    let Some(with) = &query.compared else { return };
    let mut previous = BTreeMap::new();
    for row in compared {
        let bucket = with.own(row.bucket).unwrap_or(row.bucket);
        previous.insert((bucket, row.key, row.ranked.map(|(_, item)| item)), row.values);
    }
    let nothing = nothing(query);
    for row in &mut *rows {
        // Clones of keys, which are cheap beside what it took to merge them.
        let place = (row.bucket, row.key.clone(), row.ranked.as_ref().map(|(_, item)| item.clone()));
        row.previous = previous.remove(&place).unwrap_or_else(|| nothing_before(query, row.bucket, &nothing));
    }
    if !query.ranked() {
        let alone = previous.into_iter().map(|((bucket, key, _), previous)| Row {
            bucket,
            key,
            ranked: None,
            values: nothing.clone(),
            previous,
        });
        rows.extend(alone);
        by_place(rows);
    }
}

/// Adds to each key the buckets that it has no row for, with the values of nothing.
fn fill(query: &Query, rows: &mut Vec<Row>, budget: &Budget) -> Result<(), FoldError> {
    // A request for more buckets than can be listed is refused before anything is read.
    let starts = query.buckets.starts(query.span).map_err(|_| FoldError::TooManyCells(MAX_STARTS))?;
    let there: BTreeSet<(Vec<Value>, Millis)> =
        rows.iter().map(|row| (row.key.clone(), row.bucket)).collect();
    let mut keys: BTreeSet<Vec<Value>> = there.iter().map(|(key, _)| key.clone()).collect();
    if query.group_by.is_empty() {
        // As an aggregate over everything has a row even where there is nothing.
        keys.insert(Vec::new());
    }
    budget.take(keys.len().saturating_mul(starts.len()).saturating_sub(rows.len()))?;
    let nothing = nothing(query);
    for mut key in keys {
        for &bucket in &starts {
            let place = (key, bucket);
            if !there.contains(&place) {
                let (values, previous) = (nothing.clone(), nothing_before(query, bucket, &nothing));
                rows.push(Row { bucket, key: place.0.clone(), ranked: None, values, previous });
            }
            key = place.0;
        }
    }
    by_place(rows);
    Ok(())
}

fn by_place(rows: &mut [Row]) {
    rows.sort_by(|a, b| (a.bucket, &a.key).cmp(&(b.bucket, &b.key)));
}

fn widen(bounds: &mut [f64], merged: &Merged) {
    for (bound, slot) in bounds.iter_mut().zip(&merged.states) {
        if let Some(Slot::One(state)) = slot {
            *bound = error_bound_of(state).max(*bound);
        }
    }
}

/// The relative error within which a state's value lies; 0 where it is exact.
pub fn error_bound_of(state: &State) -> f64 {
    match state {
        State::Distinct(distinct) => distinct.error_bound(),
        State::Quantile(_) => quantile::RELATIVE_ERROR,
        _ => 0.0,
    }
}

/// The values where there is no record.
fn nothing(query: &Query) -> Vec<Finished> {
    let mut values = (0..query.columns.len()).map(|column| finished(query, column, None)).collect();
    compute(query, &mut values);
    values
}

/// The same of the period that is compared with: NULLs beside a bucket that none of that period lies beside, since nothing
/// was counted there.
fn nothing_before(query: &Query, bucket: Millis, nothing: &[Finished]) -> Vec<Finished> {
    match &query.compared {
        None => Vec::new(),
        Some(with) if with.reaches(bucket) => nothing.to_vec(),
        Some(_) => vec![Finished::Null(()); nothing.len()],
    }
}

fn finished(query: &Query, column: usize, slot: Option<Slot>) -> Finished {
    let aggregate = &query.columns[column].metric.aggregate;
    match slot {
        Some(Slot::One(state)) => state.finish(aggregate),
        Some(Slot::Sum(sum)) => Finished::integer(i128::from(sum)),
        // Each visitor's own.
        Some(Slot::Items(items)) if matches!(aggregate, Aggregate::Sessions { .. }) => {
            let count = |state: &State| if let State::Sessions(runs) = state { runs.count() } else { 0 };
            Finished::integer(items.values().map(|state| i128::from(count(state))).sum())
        }
        // In a formula a missing sum is 0, like a missing count; of nothing there is no mean, least or quantile.
        _ if query.formula.is_some() && matches!(aggregate, Aggregate::Sum(_)) => Finished::Int(0),
        _ => State::empty(aggregate).finish(aggregate),
    }
}

/// The k items counted most often; ties go to the lesser item.
fn ranked(Merged { bucket, key, mut states }: Merged, k: usize) -> Vec<Row> {
    let items = match states.swap_remove(0) {
        Some(Slot::Items(items)) => items,
        _ => return Vec::new(),
    };
    let row = |(i, (item, count)): (usize, (Value, u64))| Row {
        bucket,
        key: key.clone(),
        ranked: Some((i + 1, item)),
        values: vec![State::Count(count).finish(&Aggregate::Count)],
        previous: Vec::new(),
    };
    let counted = |(item, state)| match state {
        State::Count(count) => Some((item, count)),
        _ => None,
    };
    let best = top_k::rank(items.into_iter().filter_map(counted), k);
    best.into_iter().enumerate().map(row).collect()
}

fn in_order(query: &Query, a: &Row, b: &Row) -> Ordering {
    let by = |order: &crate::query::Order| {
        let ordering = match order.by {
            OrderBy::Bucket => a.bucket.cmp(&b.bucket),
            OrderBy::Key(place) => a.key[place].cmp(&b.key[place]),
            OrderBy::Value(place) => compare_values(&a.values[place], &b.values[place]),
            OrderBy::Previous(place) => compare_values(&a.previous[place], &b.previous[place]),
            OrderBy::Rank => a.ranked.as_ref().map(|r| r.0).cmp(&b.ranked.as_ref().map(|r| r.0)),
            OrderBy::Item => a.ranked.as_ref().map(|r| &r.1).cmp(&b.ranked.as_ref().map(|r| &r.1)),
        };
        if order.desc { ordering.reverse() } else { ordering }
    };
    query.order.iter().map(by).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

/// NULL first, then numbers by size, then texts; lists as arrays are compared.
fn compare_values(a: &Finished, b: &Finished) -> Ordering {
    let rank = |value: &Finished| match value {
        Finished::Null(()) => 0,
        Finished::Int(_) | Finished::Float(_) => 1,
        Finished::Text(_) => 2,
        Finished::List(_) => 3,
    };
    match (a, b) {
        (Finished::Int(a), Finished::Int(b)) => a.cmp(b),
        (Finished::Float(a), Finished::Float(b)) => a.total_cmp(b),
        (Finished::Int(a), Finished::Float(b)) => (*a as f64).total_cmp(b),
        (Finished::Float(a), Finished::Int(b)) => a.total_cmp(&(*b as f64)),
        (Finished::Text(a), Finished::Text(b)) => a.cmp(b),
        (Finished::List(a), Finished::List(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
        _ => rank(a).cmp(&rank(b)),
    }
}
