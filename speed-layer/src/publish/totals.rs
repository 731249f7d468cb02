//! Counts over a window, each the sum of what is in it: what enters is added, what leaves is taken off again.
//!
//! A key has a slot exactly while its total isn't 0, and until the pass after that has seen it.

use super::changes::Changes;
use super::slots::Slots;
use crate::live;
use shared_model::codec::CodecError;
use shared_model::metric::Metric;
use std::mem::replace;

/// A key's total, and what else is held of it.
#[derive(Default)]
pub(super) struct Total<T> {
    pub(super) total: u64,
    /// Whether it was touched since the last pass.
    pub(super) is_touched: bool,
    pub(super) of: T,
}

/// The totals of keys.
pub(super) struct Totals<T> {
    pub(super) slots: Slots<Total<T>>,
    /// The slots whose totals were touched since the last pass, each once.
    pub(super) touched: Vec<u32>,
    /// What was found of the keys that came last.
    found: Vec<(u32, u32)>,
}

/// Takes in that what a slot holds was touched since the last pass.
#[inline]
pub(super) fn touch(slot: u32, is_touched: &mut bool, touched: &mut Vec<u32>) {
    if !replace(is_touched, true) {
        touched.push(slot);
    }
}

impl<T> Default for Totals<T> {
    fn default() -> Totals<T> {
        Totals { slots: Slots::default(), touched: Vec::new(), found: Vec::new() }
    }
}

impl<T: Default> Totals<T> {
    /// Adds to keys' totals what isn't 0. Hands each slot to `each`, with its key, what was added, and what else is held.
    ///
    /// # Errors
    /// Where a total would be more than 64 bits can hold, which only forged counts can; and what `each` refuses.
    #[inline]
    pub(super) fn add<'k>(
        &mut self,
        cells: &[(&'k [u8], u64)],
        mut each: impl FnMut(u32, &'k [u8], u64, &mut T) -> Result<(), CodecError>,
    ) -> Result<(), CodecError> {
        let Totals { slots, touched, found } = self;
        slots.take_all(cells.iter().map(|(key, _)| *key), found);
        for (&(_, slot), &(key, count)) in found.iter().zip(cells) {
            let held = slots.of_mut(slot);
            held.total = held.total.checked_add(count).ok_or(CodecError::Invalid("count: beyond 64 bits"))?;
            touch(slot, &mut held.is_touched, touched);
            each(slot, key, count, &mut held.of)?;
        }
        Ok(())
    }

    /// Takes off again what was added.
    #[inline]
    pub(super) fn take_off(&mut self, slot: u32, count: u64) {
        let held = self.slots.of_mut(slot);
        held.total -= count;
        touch(slot, &mut held.is_touched, &mut self.touched);
    }

    /// Whether a total was touched since the last pass.
    pub(super) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }
}

/// Counts that are published as they are.
#[derive(Default)]
pub(super) struct Counts {
    /// With what is published of each; 0: nothing.
    pub(super) totals: Totals<u64>,
}

impl Counts {
    /// Writes what differs from what is published.
    pub(super) fn changes(&mut self, metric: &Metric, out: &mut Changes) -> Result<(), CodecError> {
        let Totals { slots, touched, .. } = &mut self.totals;
        for slot in touched.drain(..) {
            let (mut key, held) = slots.both(slot);
            held.is_touched = false;
            let total = held.total;
            if replace(&mut held.of, total) != total {
                if total == 0 {
                    live::name(metric, &mut key, out.drops.next())?;
                    out.drops.end();
                } else {
                    live::name(metric, &mut key, out.puts.next())?;
                    out.puts.end();
                    live::count(total, out.puts.next());
                    out.puts.end();
                }
            }
            if total == 0 {
                slots.free(slot);
            }
        }
        Ok(())
    }
}
