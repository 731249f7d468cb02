//! Quantiles by a histogram of fixed buckets, merged by addition: a DDSketch with the linearly interpolated mapping.
//!
//! A bucket is 1/64 of a power of two: the index of a number is its sign, exponent and the first 6 bits of its
//! fraction, taken from its bits. That is exact integer work, so the same value falls into the same bucket on every
//! platform, which a logarithm (whose last digit differs between math libraries) can't promise. A bucket's middle is
//! within 1/128 (0.79 %) of every number in it. Magnitudes below 2^-64 count as 0 and those of 2^64 and more as just
//! below 2^64, so a histogram has at most 16,385 buckets, whatever its input.

use super::{count, from_units};
use crate::codec::{self, CodecError};
use crate::event::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// A quantile differs from the exact one (the value of that rank) by at most this part of it.
pub const RELATIVE_ERROR: f64 = 1.0 / 128.0;

/// The bits of an f64's fraction that are not looked at.
const IGNORED_BITS: u32 = 52 - 6;
/// The bucket of 2^-64 and that which ends at 2^64: the least and greatest of positive numbers.
const LOWEST: i32 = (1023 - 64) << 6;
const HIGHEST: i32 = ((1023 + 64) << 6) - 1;

/// How many values fell into each bucket. Decimals are kept in their units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Values by bucket, in ascending order of value: negative numbers have negative indices, zero has 0.
    buckets: BTreeMap<i32, u64>,
}

/// The bucket of a finite number.
#[inline]
fn bucket(value: f64) -> i32 {
    let magnitude = (value.abs().to_bits() >> IGNORED_BITS) as i32;
    match magnitude {
        ..LOWEST => 0,
        _ if value < 0.0 => -magnitude.min(HIGHEST),
        _ => magnitude.min(HIGHEST),
    }
}

/// The middle of a bucket.
fn middle(bucket: i32) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let half = 1u64 << (IGNORED_BITS - 1);
    let magnitude = f64::from_bits(u64::from(bucket.unsigned_abs()) << IGNORED_BITS | half);
    if bucket < 0 { -magnitude } else { magnitude }
}

impl Histogram {
    /// Adds a value: an int, a decimal's units or a float.
    #[inline]
    pub fn add(&mut self, value: &Value) {
        let value = match value {
            Value::Int(value) => *value as f64,
            Value::Float(value) => *value,
            _ => return,
        };
        count::add(self.buckets.entry(bucket(value)).or_insert(0));
    }

    /// Adds another histogram.
    ///
    /// # Errors
    /// Where a count would pass its bound; this histogram is then unchanged.
    pub fn merge(&mut self, other: &Histogram) -> Result<(), CodecError> {
        let sum = |index: &i32, more: u64| {
            let mut count = self.buckets.get(index).copied().unwrap_or(0);
            count::merge(&mut count, more).map(|()| (*index, count))
        };
        let changed: Vec<_> =
            other.buckets.iter().map(|(index, more)| sum(index, *more)).collect::<Result<_, _>>()?;
        self.buckets.extend(changed);
        Ok(())
    }

    /// Appends the number of buckets, then each one's distance from the last (the first: its index, zigzag) and count.
    pub fn encode(&self, out: &mut Vec<u8>) {
        codec::put_varint(out, self.buckets.len() as u128);
        let mut last: Option<i32> = None;
        for (&index, &count) in &self.buckets {
            match last {
                None => codec::put_zigzag(out, i128::from(index)),
                Some(last) => codec::put_varint(out, u128::from(index.abs_diff(last))),
            }
            count::encode(count, out);
            last = Some(index);
        }
    }

    /// Takes what [`Histogram::encode`] wrote.
    pub fn decode(input: &mut &[u8]) -> Result<Histogram, CodecError> {
        let number = codec::take_count(input, "number of buckets")?;
        let mut buckets = BTreeMap::new();
        let mut last: Option<i32> = None;
        for _ in 0..number {
            let index = match last {
                None => codec::take_zigzag(input, "bucket")?,
                Some(last) => match codec::take_u64(input, "bucket")? {
                    0 => return Err(CodecError::Invalid("bucket: twice")),
                    step => i128::from(last) + i128::from(step),
                },
            };
            let index = i32::try_from(index).map_err(|_| CodecError::Invalid("bucket"))?;
            if index != 0 && !(LOWEST..=HIGHEST).contains(&index.saturating_abs()) {
                return Err(CodecError::Invalid("bucket"));
            }
            let count = count::decode(input)?;
            if count == 0 {
                return Err(CodecError::Invalid("bucket: empty"));
            }
            buckets.insert(index, count);
            last = Some(index);
        }
        Ok(Histogram { buckets })
    }

    /// How many values there are.
    pub fn count(&self) -> u128 {
        self.buckets.values().map(|&count| u128::from(count)).sum()
    }

    /// The quantiles, in the order asked for; `None` where there is no value. The q-quantile of n values is the one of
    /// rank floor(q * (n - 1)), counted from 0 in ascending order. `scale`: the decimal places of the units, else 0.
    pub fn finish(&self, quantiles: &[f64], scale: u8) -> Vec<Option<f64>> {
        let count = self.count();
        let value = |q: f64| {
            let rank = (q.clamp(0.0, 1.0) * count.saturating_sub(1) as f64) as u128;
            let mut below = 0;
            let holds_rank = |(_, number): &(&i32, &u64)| {
                below += u128::from(**number);
                below > rank
            };
            self.buckets.iter().find(holds_rank).map(|(&index, _)| from_units(middle(index), scale))
        };
        quantiles.iter().map(|&q| value(q)).collect()
    }
}

/// The column of a quantile: `p50` for 0.5, `p99_9` for 0.999.
///
/// Names live as long as the program; there are as many as catalogs name quantiles.
pub fn column_name(q: f64) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    // The shortest decimal form, its point moved by two digits: multiplying by 100 would give 56.99999999999999.
    let text = format!("{q}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let digits = format!("{whole}{fraction:0<2}");
    let (percent, rest) = digits.split_at(whole.len() + 2);
    let percent = percent.trim_start_matches('0');
    let percent = if percent.is_empty() { "0" } else { percent };
    let name = if rest.is_empty() { format!("p{percent}") } else { format!("p{percent}_{rest}") };
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    match names.get(name.as_str()) {
        Some(known) => known,
        None => {
            let name: &'static str = Box::leak(name.into_boxed_str());
            names.insert(name);
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_named_in_percent() {
        for (q, name) in [
            (0.0, "p0"),
            (0.05, "p5"),
            (0.5, "p50"),
            (0.57, "p57"),
            (0.999, "p99_9"),
            (0.9999, "p99_99"),
            (0.005, "p0_5"),
            (1.0, "p100"),
        ] {
            assert_eq!(column_name(q), name);
        }
    }

    #[test]
    fn extremes_fall_into_the_outermost_buckets() {
        assert_eq!((bucket(0.0), bucket(1e-300), bucket(-1e-300)), (0, 0, 0));
        assert_eq!((bucket(f64::MAX), bucket(-f64::MAX)), (HIGHEST, -HIGHEST));
        assert_eq!(bucket(2f64.powi(-64)), LOWEST);
        assert!(bucket(i64::MAX as f64) < HIGHEST && bucket(i64::MIN as f64) > -HIGHEST);
    }

    proptest! {
        #[test]
        fn a_quantile_is_near_the_value_of_its_rank(mut values in prop::collection::vec(-1e15..1e15f64, 1..200), q in 0.0..=1.0f64) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.add(&Value::Float(value)));
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64) as usize];
            let found = histogram.finish(&[q], 0)[0].expect("there are values");
            prop_assert!((found - exact).abs() <= RELATIVE_ERROR * exact.abs(), "{found} for {exact}");
        }
    }
}
