//! Counts over a window, each the sum of what is in it: what enters is added, what leaves is taken off again.
//!
//! A key has a slot exactly while its total isn't 0, and until the pass after that has seen it.

use super::changes::Changes;
use super::slots::Slots;
use crate::live;
use shared_model::codec::CodecError;
use shared_model::metric::Metric;

/// The totals of keys.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) slots: Slots,
    totals: Vec<u64>,
    is_touched: Vec<bool>,
    touched: Vec<u32>,
}

impl Totals {
    /// Adds to a key's total what isn't 0. Gives its slot, and whether it is given to it just now.
    ///
    /// # Errors
    /// Where it would be more than 64 bits can hold, which only forged counts can.
    #[inline]
    pub(super) fn add(&mut self, key: &[u8], count: u64) -> Result<(u32, bool), CodecError> {
        let (slot, is_new) = self.slots.take(key);
        if slot as usize == self.totals.len() {
            self.totals.push(0);
            self.is_touched.push(false);
        }
        let total = &mut self.totals[slot as usize];
        *total = total.checked_add(count).ok_or(CodecError::Invalid("count: beyond 64 bits"))?;
        self.touch(slot);
        Ok((slot, is_new))
    }

    /// Takes off again what was added.
    #[inline]
    pub(super) fn take_off(&mut self, slot: u32, count: u64) {
        self.totals[slot as usize] -= count;
        self.touch(slot);
    }

    #[inline]
    fn touch(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.is_touched[slot as usize], true) {
            self.touched.push(slot);
        }
    }

    /// The total of a slot.
    #[inline]
    pub(super) fn of(&self, slot: u32) -> u64 {
        self.totals[slot as usize]
    }

    /// Whether a total was touched since the last pass.
    pub(super) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// The slots whose totals were touched since the last pass, each once.
    pub(super) fn take_touched(&mut self) -> Vec<u32> {
        for &slot in &self.touched {
            self.is_touched[slot as usize] = false;
        }
        std::mem::take(&mut self.touched)
    }
}

/// Counts that are published as they are.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) totals: Totals,
    /// What is published of each slot; 0: nothing.
    published: Vec<u64>,
}

impl Counts {
    /// Writes what differs from what is published.
    pub(super) fn changes(&mut self, metric: &Metric, out: &mut Changes) -> Result<(), CodecError> {
        let touched = self.totals.take_touched();
        self.published.resize(self.totals.totals.len(), 0);
        for slot in touched {
            let (total, published) = (self.totals.of(slot), &mut self.published[slot as usize]);
            if total != *published {
                *published = total;
                let key = &mut self.totals.slots.key(slot);
                if total == 0 {
                    live::name(metric, key, out.drops.next())?;
                    out.drops.end();
                } else {
                    live::name(metric, key, out.puts.next())?;
                    out.puts.end();
                    live::count(total, out.puts.next());
                    out.puts.end();
                }
            }
            if total == 0 {
                self.totals.slots.free(slot);
            }
        }
        Ok(())
    }
}
