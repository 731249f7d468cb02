//! Recognises repeats: a record is one iff the same partition has a valid record of equal identity at an offset in
//! `[o - N, o)`, counted or not.
//!
//! A pure function of the log: whoever has seen the `N` offsets below a record decides as one who has seen all.

use shared_model::event::Identity;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The identities of the newest offsets of one partition, each with the newest offset that carried it.
///
/// Two generations of `N` offsets each: every offset in the horizon is in one of them, and a whole generation is
/// let go of at once, so that memory stays below 2 `N` entries without a queue.
pub(crate) struct Dedup {
    horizon: i64,
    /// Offsets from this one on are in `current`; those of the `horizon` below it in `previous`.
    base: i64,
    current: Seen,
    previous: Seen,
}

type Seen = HashMap<u128, i64, BuildHasherDefault<Already>>;

impl Dedup {
    /// For a horizon of `horizon` offsets (0: nothing is ever a repeat).
    pub(crate) fn new(horizon: i64) -> Dedup {
        Dedup { horizon, base: i64::MIN, current: Seen::default(), previous: Seen::default() }
    }

    /// Takes in the valid record at `offset`, higher than any before, and says whether it is a repeat. Where nothing ever
    /// is, its identity isn't made.
    pub(crate) fn is_repeat(&mut self, offset: i64, identity: impl FnOnce() -> Identity) -> bool {
        if self.horizon <= 0 {
            return false;
        }
        self.turn(offset);
        let identity = identity();
        let oldest = offset - self.horizon;
        match self.current.insert(identity.0, offset) {
            Some(seen) => seen >= oldest,
            None => self.previous.get(&identity.0).is_some_and(|&seen| seen >= oldest),
        }
    }

    /// How many identities are held.
    pub(crate) fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    fn turn(&mut self, offset: i64) {
        if self.base == i64::MIN {
            self.base = offset;
        }
        if offset - self.base < self.horizon {
            return;
        }
        // Beyond two generations at once (a hole in the log) nothing held is within the horizon.
        let far = offset - self.base >= 2 * self.horizon;
        self.previous = if far { Seen::default() } else { std::mem::take(&mut self.current) };
        self.current = Seen::default();
        self.base = if far { offset } else { self.base + self.horizon };
    }
}

/// Identities are hashes already.
#[derive(Default)]
pub(crate) struct Already(u64);

impl Hasher for Already {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u128(&mut self, identity: u128) {
        self.0 = identity as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The definition, word by word, over logs with holes and many repeats.
        #[test]
        fn decides_as_the_definition_does(
            horizon in 0i64..12,
            log in proptest::collection::vec((0u128..6, 1i64..9), 0..200),
        ) {
            let mut dedup = Dedup::new(horizon);
            let mut before: Vec<(u128, i64)> = Vec::new();
            let mut offset = 100;
            for (identity, step) in log {
                offset += step;
                let naive = before.iter().any(|&(seen, at)| seen == identity && at >= offset - horizon);
                prop_assert_eq!(dedup.is_repeat(offset, || Identity(identity)), naive, "at {}", offset);
                before.push((identity, offset));
            }
        }

        /// Having read only the horizon below a record decides as having read all.
        #[test]
        fn the_horizon_is_all_the_history_it_needs(
            horizon in 1i64..12,
            log in proptest::collection::vec(0u128..6, 1..100),
            from in 0usize..100,
        ) {
            let from = from.min(log.len() - 1);
            let mut whole = Dedup::new(horizon);
            let all: Vec<bool> =
                log.iter().enumerate().map(|(o, &id)| whole.is_repeat(o as i64, || Identity(id))).collect();
            let mut late = Dedup::new(horizon);
            for o in from.saturating_sub(horizon as usize)..log.len() {
                let repeat = late.is_repeat(o as i64, || Identity(log[o]));
                prop_assert!(o < from || repeat == all[o]);
            }
            prop_assert!(late.len() <= 2 * horizon as usize);
        }
    }
}
