//! The one source of chance: all that happens follows from its seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Numbers fixed by a seed.
pub(crate) struct Random(StdRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(StdRng::seed_from_u64(seed))
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n.max(1))
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.random()
    }

    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A place, or none.
    pub(crate) fn place(&mut self) -> Option<u8> {
        (!self.one_in(4)).then(|| self.below(2) as u8)
    }
}
