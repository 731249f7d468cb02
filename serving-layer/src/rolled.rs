//! Rolling values: the states of pieces of time, merged over windows that move on.
//!
//! States can be merged but not taken apart, so the pieces of a window lie in two stacks, of which one keeps the merges from
//! each piece to its end: every state is merged twice at most, and once for each window, however long windows are. What is
//! given for a window is the merge of exactly the pieces that lie in it.

use crate::merge::{Budget, FoldError, Merged, Slot};
use crate::query::rolling::Rolling;
use shared_model::event::Value;
use shared_model::time::Millis;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The states of one key and piece: one slot for each value column.
type Slots = Vec<Option<Slot>>;

/// A bucket's states for each key that has any in the bucket's window; by bucket and key.
///
/// # Errors
/// [`FoldError::TooManyCells`] where the buckets hold more than the budget has left.
pub(crate) fn roll(
    rolling: &Rolling,
    pieces: Vec<Merged>,
    budget: &Budget,
) -> Result<Vec<Merged>, FoldError> {
    let mut keys: BTreeMap<Vec<Value>, Vec<(Millis, Slots)>> = BTreeMap::new();
    // They come by bucket: those of each key stay in order.
    for Merged { bucket, key, states } in pieces {
        keys.entry(key).or_default().push((bucket, states));
    }
    let mut rolled = Vec::new();
    for (key, pieces) in keys {
        let (mut pieces, mut window) = (pieces.into_iter().peekable(), Window::default());
        for (bucket, within) in &rolling.windows {
            while let Some((start, states)) = pieces.next_if(|(start, _)| *start < within.end) {
                window.push(start, states)?;
            }
            window.leave(within.start)?;
            if let Some(states) = window.merged()? {
                budget.take(states.iter().flatten().map(cells).sum())?;
                rolled.push(Merged { bucket: *bucket, key: key.clone(), states });
            }
        }
    }
    rolled.sort_unstable_by(|a, b| (a.bucket, &a.key).cmp(&(b.bucket, &b.key)));
    Ok(rolled)
}

/// The pieces of a window, in order.
#[derive(Default)]
struct Window {
    /// The older ones, the oldest last; each merged with all of these that are newer.
    old: Vec<(Millis, Slots)>,
    /// The newer ones as they came.
    new: Vec<(Millis, Slots)>,
    /// The merge of `new`.
    sum: Slots,
}

impl Window {
    fn push(&mut self, start: Millis, states: Slots) -> Result<(), FoldError> {
        merge(&mut self.sum, &states)?;
        self.new.push((start, states));
        Ok(())
    }

    /// Lets go of the pieces that begin before a time.
    fn leave(&mut self, before: Millis) -> Result<(), FoldError> {
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

    /// The merge of all; `None` where there are no pieces.
    fn merged(&self) -> Result<Option<Slots>, FoldError> {
        let Some((_, old)) = self.old.last() else {
            return Ok((!self.new.is_empty()).then(|| self.sum.clone()));
        };
        let mut states = old.clone();
        merge(&mut states, &self.sum)?;
        Ok(Some(states))
    }
}

fn merge(into: &mut Slots, from: &Slots) -> Result<(), FoldError> {
    into.resize_with(into.len().max(from.len()), || None);
    for (into, from) in into.iter_mut().zip(from) {
        match (into, from) {
            (_, None) => {}
            (into @ None, Some(from)) => *into = Some(from.clone()),
            (Some(Slot::One(into)), Some(Slot::One(from))) => into.merge(from)?,
            (Some(Slot::Items(into)), Some(Slot::Items(from))) => {
                for (item, from) in from {
                    match into.entry(item.clone()) {
                        Entry::Vacant(place) => drop(place.insert(from.clone())),
                        Entry::Occupied(mut into) => into.get_mut().merge(from)?,
                    }
                }
            }
            // A column's slots are all of one kind.
            (Some(_), Some(_)) => {}
        }
    }
    Ok(())
}

fn cells(slot: &Slot) -> usize {
    match slot {
        Slot::One(_) => 1,
        Slot::Items(items) => items.len(),
    }
}
