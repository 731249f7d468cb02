//! Rolling values: the states of pieces of time, merged over windows that move on.
//!
//! States can be merged but not taken apart, so the pieces of a window lie in two stacks, of which one keeps the merges from
//! each piece to its end: every state is merged twice at most, and once for each window, however long windows are. A top-k's
//! counts can be taken apart, and are; sessions are rolled visitor by visitor. What is given for a window is the merge of exactly the pieces that lie in it; one
//! window of one key is held at a time.

use crate::merge::{Budget, FoldError, Merged, Slot};
use crate::query::rolling::Rolling;
use shared_model::aggregate::State;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::time::{Interval, Millis};
use std::collections::{BTreeMap, VecDeque};
use std::iter::Peekable;

/// The states of one key and piece: one slot for each value column.
type Slots = Vec<Option<Slot>>;

/// Gives each bucket's states, for each key that has any in the bucket's window; by key and bucket. `sessions`: the columns
/// that are of sessions.
///
/// # Errors
/// [`FoldError::TooManyCells`] where the buckets hold more than the budget has left.
pub(crate) fn roll(
    rolling: &Rolling,
    sessions: &[usize],
    pieces: Vec<Merged>,
    budget: &Budget,
    mut each: impl FnMut(Merged),
) -> Result<(), FoldError> {
    let mut keys: BTreeMap<Vec<Value>, Vec<(Millis, Slots)>> = BTreeMap::new();
    // They come by bucket: those of each key stay in order.
    for Merged { bucket, key, states } in pieces {
        keys.entry(key).or_default().push((bucket, states));
    }
    for (key, mut pieces) in keys {
        let sessions =
            sessions.iter().map(|column| Ok((*column, count(rolling, &mut pieces, *column, budget)?)));
        let sessions = sessions.collect::<Result<Vec<_>, FoldError>>()?;
        let (mut pieces, mut window) = (pieces.into_iter().peekable(), Window::default());
        for (at, (bucket, within)) in rolling.windows.iter().enumerate() {
            window.go_on(&mut pieces, within)?;
            let cells = window.cells();
            let counted = || sessions.iter().filter_map(|(column, counts)| Some((*column, counts[at]?)));
            if cells > 0 || counted().next().is_some() {
                budget.take(cells)?;
                let mut states = window.merged()?;
                for (column, sum) in counted() {
                    states.resize_with(states.len().max(column + 1), || None);
                    states[column] = Some(Slot::Sum(sum));
                }
                each(Merged { bucket: *bucket, key: key.clone(), states });
            }
        }
    }
    Ok(())
}

/// Of a column of sessions, taken out of its pieces: how many there are in each window, each visitor's rolled alone; `None`
/// where nobody came.
fn count(
    rolling: &Rolling,
    pieces: &mut [(Millis, Slots)],
    column: usize,
    budget: &Budget,
) -> Result<Vec<Option<u64>>, FoldError> {
    let mut visitors: BTreeMap<Value, Vec<(Millis, Slots)>> = BTreeMap::new();
    for (start, states) in pieces {
        if let Some(Slot::Items(items)) = states.get_mut(column).and_then(Option::take) {
            for (visitor, state) in items {
                visitors.entry(visitor).or_default().push((*start, vec![Some(Slot::One(state))]));
            }
        }
    }
    let mut counts = vec![None; rolling.windows.len()];
    for pieces in visitors.into_values() {
        let (mut pieces, mut window) = (pieces.into_iter().peekable(), Window::default());
        for ((_, within), sum) in rolling.windows.iter().zip(&mut counts) {
            window.go_on(&mut pieces, within)?;
            budget.take(window.cells())?;
            if let Some(Some(Slot::One(State::Sessions(runs)))) = window.merged()?.first() {
                *sum.get_or_insert(0) += runs.count();
            }
        }
    }
    Ok(counts)
}

/// The pieces of a window, in order. Those of a top-k, which stands alone, are in `items`, all others in the stacks.
#[derive(Default)]
struct Window {
    /// The older ones, the oldest last; each merged with all of these that are newer.
    old: Vec<(Millis, Slots)>,
    /// The newer ones as they came.
    new: Vec<(Millis, Slots)>,
    /// The merge of `new`.
    sum: Slots,
    /// The pieces of a top-k.
    items: VecDeque<(Millis, Vec<(Value, u64)>)>,
    /// The sum of `items`: none of 0.
    counts: BTreeMap<Value, u64>,
}

impl Window {
    /// Takes in the pieces that begin before the end of a window, and lets go of those before its start.
    fn go_on(
        &mut self,
        pieces: &mut Peekable<impl Iterator<Item = (Millis, Slots)>>,
        within: &Interval,
    ) -> Result<(), FoldError> {
        while let Some((start, states)) = pieces.next_if(|(start, _)| *start < within.end) {
            self.push(start, states)?;
        }
        self.leave(within.start)
    }

    fn push(&mut self, start: Millis, mut states: Slots) -> Result<(), FoldError> {
        if let Some(Some(Slot::Items(items))) = states.first_mut() {
            let counted = |(item, state)| match state {
                State::Count(count) => Ok((item, count)),
                _ => Err(CodecError::Invalid("state of a top-k")),
            };
            let items: Vec<_> = std::mem::take(items).into_iter().map(counted).collect::<Result<_, _>>()?;
            for (item, count) in items.iter().filter(|(_, count)| *count > 0) {
                let sum = self.counts.entry(item.clone()).or_default();
                *sum = sum.checked_add(*count).ok_or(CodecError::Invalid("count"))?;
            }
            self.items.push_back((start, items));
            return Ok(());
        }
        merge(&mut self.sum, &states)?;
        self.new.push((start, states));
        Ok(())
    }

    /// Lets go of the pieces that begin before a time.
    fn leave(&mut self, before: Millis) -> Result<(), FoldError> {
        while let Some((_, items)) = self.items.pop_front_if(|(start, _)| *start < before) {
            for (item, count) in items {
                if let Some(sum) = self.counts.get_mut(&item) {
                    *sum -= count;
                    if *sum == 0 {
                        self.counts.remove(&item);
                    }
                }
            }
        }
        loop {
            while self.old.pop_if(|(start, _)| *start < before).is_some() {}
            if !self.old.is_empty() || self.new.first().is_none_or(|(start, _)| *start >= before) {
                return Ok(());
            }
            self.sum.clear();
            for (start, mut states) in self.new.drain(..).rev() {
                if let Some((_, newer)) = self.old.last() {
                    merge(&mut states, newer)?;
                }
                self.old.push((start, states));
            }
        }
    }

    /// How many cells it has: a value column with a state, or an item, is one.
    fn cells(&self) -> usize {
        let of_old = self.old.last().map_or(&[][..], |(_, old)| old);
        let has = |slots: &[Option<Slot>], at: usize| slots.get(at).is_some_and(Option::is_some);
        let columns = of_old.len().max(self.sum.len());
        (0..columns).filter(|at| has(of_old, *at) || has(&self.sum, *at)).count() + self.counts.len()
    }

    /// The merge of all.
    fn merged(&self) -> Result<Slots, FoldError> {
        if !self.counts.is_empty() {
            let items = self.counts.iter().map(|(item, count)| (item.clone(), State::Count(*count)));
            return Ok(vec![Some(Slot::Items(items.collect()))]);
        }
        let mut states = self.old.last().map(|(_, old)| old.clone()).unwrap_or_default();
        merge(&mut states, &self.sum)?;
        Ok(states)
    }
}

fn merge(into: &mut Slots, from: &Slots) -> Result<(), FoldError> {
    into.resize_with(into.len().max(from.len()), || None);
    for (into, from) in into.iter_mut().zip(from) {
        match (into, from) {
            (Some(Slot::One(into)), Some(Slot::One(from))) => into.merge(from)?,
            (into @ None, Some(from)) => *into = Some(from.clone()),
            _ => {}
        }
    }
    Ok(())
}
