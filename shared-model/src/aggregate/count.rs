//! How many records: a `u64`, kept below 2^63 so that it always fits a `bigint`.
//!
//! The bound can't be met by counting (2^63 records at a million a second take 292,000 years); bytes and merges that
//! would pass it are refused, so adding one can't overflow.

use crate::codec::{self, CodecError};

/// The greatest count that is stored, read or merged.
pub const LIMIT: u64 = i64::MAX as u64;

/// One more record.
#[inline]
pub(super) fn add(count: &mut u64) {
    *count += 1;
}

/// Adds another count.
#[inline]
pub(super) fn merge(count: &mut u64, more: u64) -> Result<(), CodecError> {
    *count = bounded(u128::from(*count) + u128::from(more))?;
    Ok(())
}

/// Appends a varint.
#[inline]
pub(super) fn encode(count: u64, out: &mut Vec<u8>) {
    codec::put_varint(out, u128::from(count));
}

/// Takes a varint.
#[inline]
pub(super) fn decode(input: &mut &[u8]) -> Result<u64, CodecError> {
    bounded(codec::take_varint(input, "count")?)
}

#[inline]
fn bounded(count: u128) -> Result<u64, CodecError> {
    match u64::try_from(count) {
        Ok(count) if count <= LIMIT => Ok(count),
        _ => Err(CodecError::Invalid("count: 2^63 or more")),
    }
}
