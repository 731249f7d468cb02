//! The mean of integers or decimals: an exact sum and the number of values, divided only when read.
//!
//! The bounds are those of `sum` and `count`; no values means the sum is 0.

use super::{count, from_units, sum};
use crate::codec::{self, CodecError};
use crate::event::Value;

/// Adds a value.
#[inline]
pub(super) fn add(sum: &mut i128, count: &mut u64, value: &Value) {
    if let Value::Int(value) = value {
        *sum += i128::from(*value);
        count::add(count);
    }
}

/// Adds another sum and count.
#[inline]
pub(super) fn merge(sum: &mut i128, count: &mut u64, more: i128, records: u64) -> Result<(), CodecError> {
    let (mut both, mut number) = (Some(*sum), *count);
    sum::merge(&mut both, Some(more))?;
    count::merge(&mut number, records)?;
    (*sum, *count) = (both.unwrap_or(0), number);
    Ok(())
}

/// Appends the count, then the sum unless there is no value.
pub(super) fn encode(sum: i128, count: u64, out: &mut Vec<u8>) {
    count::encode(count, out);
    if count > 0 {
        codec::put_zigzag(out, sum);
    }
}

/// Takes what [`encode`] wrote.
pub(super) fn decode(input: &mut &[u8]) -> Result<(i128, u64), CodecError> {
    match count::decode(input)? {
        0 => Ok((0, 0)),
        count => bounded(codec::take_zigzag(input, "sum of a mean")?, count),
    }
}

/// The sum and count, if this program could have written them.
pub(super) fn bounded(sum: i128, count: u64) -> Result<(i128, u64), CodecError> {
    sum::bounded(Some(sum))?;
    if count == 0 && sum != 0 {
        return Err(CodecError::Invalid("mean: a sum of no values"));
    }
    Ok((sum, count))
}

/// The mean; `None` without values. `scale`: the decimal places of the units, else 0.
pub(super) fn finish(sum: i128, count: u64, scale: u8) -> Option<f64> {
    (count > 0).then(|| from_units(sum as f64 / count as f64, scale))
}
