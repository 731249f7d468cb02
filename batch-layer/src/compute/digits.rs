//! Rows' keys and buckets as numbers that compare as these do, so that rows are put in the order of cells, or counted
//! in the cells' places, without a look at names.
//!
//! What a key or bucket is made of are digits, the first the highest, each of a base of its own. A number always fits
//! into 64 bits: where it would not with one more digit, the numbers so far are replaced by their ranks first, of which
//! there are no more than rows.

/// What numbers are made of. Bases are 2^32 at most, and numbers fewer than 2^32.
pub(super) struct Digits {
    /// All numbers are below.
    end: u64,
    digits: Vec<Digit>,
}

struct Digit {
    /// All that stand here are below.
    base: u64,
    /// Where the numbers of the digits before were replaced by their ranks: these numbers, by rank.
    before: Option<Vec<u64>>,
}

impl Digits {
    /// None yet: all numbers are 0.
    pub(super) fn new() -> Digits {
        Digits { end: 1, digits: Vec::new() }
    }

    /// What all numbers are below.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What the digit at a place is below: numbers that differ in it alone lie next to each other, as many as that.
    #[inline]
    pub(super) fn base(&self, at: usize) -> u64 {
        self.digits[at].base
    }

    /// Appends a digit to each number.
    pub(super) fn push(&mut self, numbers: &mut [u64], base: u64, digits: impl Iterator<Item = u32>) {
        let before = self.end.checked_mul(base).is_none().then(|| rank(numbers));
        if let Some(before) = &before {
            self.end = before.len() as u64;
        }
        if base > 1 {
            let with = |(number, digit): (&mut u64, u32)| *number = *number * base + u64::from(digit);
            numbers.iter_mut().zip(digits).for_each(with);
        }
        self.end *= base;
        self.digits.push(Digit { base, before });
    }

    /// Parts a number that ends with the digit `last` into the number of those before and this one.
    #[inline]
    pub(super) fn split(&self, last: usize, number: u64) -> (u64, u32) {
        let Digit { base, before } = &self.digits[last];
        let (rest, digit) = (number / base, (number % base) as u32);
        (before.as_ref().map_or(rest, |before| before[rest as usize]), digit)
    }
}

/// Replaces numbers by their ranks; gives the number of each.
fn rank(numbers: &mut [u64]) -> Vec<u64> {
    let mut known = numbers.to_vec();
    known.sort_unstable();
    known.dedup();
    for number in numbers {
        *number = known.partition_point(|one| *one < *number) as u64;
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, prop, proptest};

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Up to six digits, so that some numbers fit into 64 bits and others would not.
        #[test]
        fn numbers_compare_as_their_digits_do_and_lead_back_to_them(
            bases in prop::collection::vec(prop::sample::select(vec![1, 2, 288, 1 << 20, 1u64 << 32]), 0..7),
            rows in prop::collection::vec(prop::collection::vec(0..=u32::MAX, 6), 0..40),
            few in 1..4u64,
        ) {
            // Some rows alike in their first digits, some in all.
            let digit = |row: &[u32], at: usize| match at {
                0 | 1 => (u64::from(row[at]) % few * bases[at] / 4) as u32,
                _ => (u64::from(row[at]) % bases[at]) as u32,
            };
            let twice = rows.iter().chain(rows.iter().take(3));
            let rows: Vec<Vec<u32>> =
                twice.map(|row| (0..bases.len()).map(|at| digit(row, at)).collect()).collect();
            let (mut digits, mut numbers) = (Digits::new(), vec![0u64; rows.len()]);
            for (at, base) in bases.iter().enumerate() {
                digits.push(&mut numbers, *base, rows.iter().map(|row| row[at]));
            }
            for (row, number) in rows.iter().zip(&numbers) {
                assert!(*number < digits.end());
                let split = |(number, mut row): (u64, Vec<u32>), at| {
                    let (rest, digit) = digits.split(at, number);
                    row.insert(0, digit);
                    (rest, row)
                };
                assert_eq!((0..bases.len()).rev().fold((*number, Vec::new()), split), (0, row.clone()));
                for (other, theirs) in rows.iter().zip(&numbers) {
                    assert_eq!(number.cmp(theirs), row.cmp(other));
                }
            }
        }
    }
}
