//! Rolling values: the states of pieces of time, merged over windows that move on.
//!
//! States can be merged but not taken apart, so the pieces of a window lie in two stacks, of which one keeps the merges from
//! each piece to its end: every state is merged twice at most, and once for each window, however long windows are. A top-k's
//! counts can be taken apart, and are. What is given for a window is the merge of exactly the pieces that lie in it; one
//! window of one key is held at a time.

use crate::merge::{Budget, FoldError, Merged, Slot};
use crate::query::rolling::Rolling;
use shared_model::aggregate::State;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::time::Millis;
use std::collections::{BTreeMap, VecDeque};

/// The states of one key and piece: one slot for each value column.
type Slots = Vec<Option<Slot>>;

/// Gives each bucket's states, for each key that has any in the bucket's window; by key and bucket.
///
/// # Errors
/// [`FoldError::TooManyCells`] where the buckets hold more than the budget has left.
pub(crate) fn roll(
    rolling: &Rolling,
    pieces: Vec<Merged>,
    budget: &Budget,
    mut each: impl FnMut(Merged),
) -> Result<(), FoldError> {
    let mut keys: BTreeMap<Vec<Value>, Vec<(Millis, Slots)>> = BTreeMap::new();
    // They come by bucket: those of each key stay in order.
    for Merged { bucket, key, states } in pieces {
        keys.entry(key).or_default().push((bucket, states));
    }
    for (key, pieces) in keys {
        let (mut pieces, mut window) = (pieces.into_iter().peekable(), Window::default());
        for (bucket, within) in &rolling.windows {
            while let Some((start, states)) = pieces.next_if(|(start, _)| *start < within.end) {
                window.push(start, states)?;
            }
            window.leave(within.start)?;
            let cells = window.cells();
            if cells > 0 {
                budget.take(cells)?;
                each(Merged { bucket: *bucket, key: key.clone(), states: window.merged()? });
            }
        }
    }
    Ok(())
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
    fn push(&mut self, start: Millis, mut states: Slots) -> Result<(), FoldError> {
        let is_count = |state: &State| matches!(state, State::Count(_));
        if let Some(Some(Slot::Items(items))) = states.first_mut()
            && items.values().all(is_count)
        {
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

    /// How many cells it has, or more: a value column with a state, or an item, is one; a visitor who is among the older
    /// pieces and the newer ones is two.
    fn cells(&self) -> usize {
        let of_old = self.old.last().map_or(&[][..], |(_, old)| old);
        let cells =
            |at: usize| match [of_old, &self.sum[..]].map(|slots| slots.get(at).and_then(Option::as_ref)) {
                [None, None] => 0,
                parts => {
                    let items = |slot: &Slot| if let Slot::Items(items) = slot { items.len() } else { 0 };
                    parts.into_iter().flatten().map(items).sum::<usize>().max(1)
                }
            };
        (0..of_old.len().max(self.sum.len())).map(cells).sum::<usize>() + self.counts.len()
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
            (Some(Slot::Items(into)), Some(Slot::Items(from))) => {
                for (item, from) in from {
                    match into.get_mut(item) {
                        Some(into) => into.merge(from)?,
                        None => drop(into.insert(item.clone(), from.clone())),
                    }
                }
            }
            (into @ None, Some(from)) => *into = Some(from.clone()),
            _ => {}
        }
    }
    Ok(())
}
