//! The exact sum of integers, or of decimals in their units; `None` until there is a value, as in SQL.
//!
//! The sum of 2^63 values of 64 bits (the bound of a count) is within +-2^126, so an `i128` never overflows: bytes
//! and merges beyond that are refused.

use crate::codec::{self, CodecError};
use crate::event::Value;

/// The greatest magnitude that is stored, read or merged.
pub const LIMIT: i128 = 1 << 126;

/// Adds a value.
#[inline]
pub(super) fn add(sum: &mut Option<i128>, value: &Value) {
    if let Value::Int(value) = value {
        *sum = Some(sum.unwrap_or(0) + i128::from(*value));
    }
}

/// Adds another sum.
#[inline]
pub(super) fn merge(sum: &mut Option<i128>, more: Option<i128>) -> Result<(), CodecError> {
    if let Some(more) = more {
        // Both are within +-2^126 and few values beyond, so that their sum is within i128.
        *sum = bounded(Some(sum.unwrap_or(0).saturating_add(more)))?;
    }
    Ok(())
}

/// Appends 0 for no value; else 1 and a zigzag varint.
pub(super) fn encode(sum: Option<i128>, out: &mut Vec<u8>) {
    match sum {
        None => out.push(0),
        Some(sum) => {
            out.push(1);
            codec::put_zigzag(out, sum);
        }
    }
}

/// Takes what [`encode`] wrote.
pub(super) fn decode(input: &mut &[u8]) -> Result<Option<i128>, CodecError> {
    match codec::take_byte(input, "sum")? {
        0 => Ok(None),
        1 => bounded(Some(codec::take_zigzag(input, "sum")?)),
        _ => Err(CodecError::Invalid("sum")),
    }
}

/// The sum, if it is one that this program could have written.
pub(super) fn bounded(sum: Option<i128>) -> Result<Option<i128>, CodecError> {
    match sum {
        Some(sum) if !(-LIMIT..=LIMIT).contains(&sum) => Err(CodecError::Invalid("sum: beyond 2^126")),
        sum => Ok(sum),
    }
}
