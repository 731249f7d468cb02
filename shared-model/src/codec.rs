//! The byte forms that all stored states and keys are made of: LEB128 varints, zigzag integers and framed bytes.
//!
//! Every value has exactly one byte form (canonical), and a reader never reads beyond its input nor panics on it.

use thiserror::Error;

/// Stored bytes that can't be what they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The bytes end inside a value.
    #[error("stored bytes end inside {0}")]
    Truncated(&'static str),
    /// The bytes hold something that no writer of this version writes.
    #[error("stored bytes hold an invalid {0}")]
    Invalid(&'static str),
    /// Written by a newer version than this program knows.
    #[error("stored bytes of {what} have version {found}; this program reads up to {known}: upgrade it")]
    Version {
        /// What was read.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The newest version known.
        known: u8,
    },
}

/// Appends an unsigned LEB128 varint: 1 byte below 128, 10 at most (19 for `u128`).
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: u128) {
    let mut rest = value;
    while rest > u128::from(u64::MAX) {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    // Nearly all numbers come here at once: 128-bit shifts are slow.
    let mut rest = rest as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a signed integer, zigzag then varint.
#[inline]
pub fn put_zigzag(out: &mut Vec<u8>, value: i128) {
    match i64::try_from(value) {
        Ok(value) => put_varint(out, u128::from(((value << 1) ^ (value >> 63)) as u64)),
        Err(_) => put_varint(out, ((value << 1) ^ (value >> 127)) as u128),
    }
}

/// Appends bytes behind their length.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u128);
    out.extend_from_slice(bytes);
}

/// Takes one byte.
#[inline]
pub fn take_byte(input: &mut &[u8], what: &'static str) -> Result<u8, CodecError> {
    let (&first, rest) = input.split_first().ok_or(CodecError::Truncated(what))?;
    *input = rest;
    Ok(first)
}

/// Takes an unsigned varint; refuses forms longer than needed.
#[inline]
pub fn take_varint(input: &mut &[u8], what: &'static str) -> Result<u128, CodecError> {
    match input.split_first() {
        // Most numbers are lengths.
        Some((&byte, rest)) if byte < 0x80 => {
            *input = rest;
            Ok(u128::from(byte))
        }
        _ => take_long_varint(input, what),
    }
}

fn take_long_varint(input: &mut &[u8], what: &'static str) -> Result<u128, CodecError> {
    // Nearly all numbers end in here: 128-bit shifts are slow.
    let mut low = 0u64;
    for shift in (0..63).step_by(7) {
        let byte = take_byte(input, what)?;
        low |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            let is_longer = byte == 0 && shift > 0;
            return if is_longer { Err(CodecError::Invalid(what)) } else { Ok(u128::from(low)) };
        }
    }
    let mut value = u128::from(low);
    for shift in (63..128).step_by(7) {
        let byte = take_byte(input, what)?;
        let bits = u128::from(byte & 0x7f);
        if (bits << shift) >> shift != bits || byte == 0 {
            return Err(CodecError::Invalid(what));
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(CodecError::Invalid(what))
}

/// Takes an unsigned varint that must fit 64 bits.
#[inline]
pub fn take_u64(input: &mut &[u8], what: &'static str) -> Result<u64, CodecError> {
    u64::try_from(take_varint(input, what)?).map_err(|_| CodecError::Invalid(what))
}

/// Takes a length or count that must fit the memory of this machine; each counted thing takes at least one byte, so
/// a count above the bytes left is refused before anything is allocated for it.
#[inline]
pub fn take_count(input: &mut &[u8], what: &'static str) -> Result<usize, CodecError> {
    let count = usize::try_from(take_varint(input, what)?).map_err(|_| CodecError::Invalid(what))?;
    if count > input.len() { Err(CodecError::Truncated(what)) } else { Ok(count) }
}

/// Takes a zigzag integer.
#[inline]
pub fn take_zigzag(input: &mut &[u8], what: &'static str) -> Result<i128, CodecError> {
    let raw = take_varint(input, what)?;
    Ok((raw >> 1) as i128 ^ -((raw & 1) as i128))
}

/// Takes a zigzag integer that must fit 64 bits.
#[inline]
pub fn take_i64(input: &mut &[u8], what: &'static str) -> Result<i64, CodecError> {
    i64::try_from(take_zigzag(input, what)?).map_err(|_| CodecError::Invalid(what))
}

/// Takes bytes behind their length, without copying.
#[inline]
pub fn take_bytes<'a>(input: &mut &'a [u8], what: &'static str) -> Result<&'a [u8], CodecError> {
    let length = take_count(input, what)?;
    let (bytes, rest) = input.split_at(length);
    *input = rest;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_round_trip(unsigned: u128, signed: i128) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, unsigned);
            put_zigzag(&mut bytes, signed);
            let mut input = &bytes[..];
            prop_assert_eq!(take_varint(&mut input, "a"), Ok(unsigned));
            prop_assert_eq!(take_zigzag(&mut input, "b"), Ok(signed));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let mut input = &bytes[..];
            while take_varint(&mut input, "x").is_ok() && take_bytes(&mut input, "y").is_ok() {}
        }
    }

    #[test]
    fn longer_forms_of_a_number_are_refused() {
        assert_eq!(take_varint(&mut &[0x80, 0x00][..], "n"), Err(CodecError::Invalid("n")));
        assert_eq!(take_varint(&mut &[0x80][..], "n"), Err(CodecError::Truncated("n")));
        assert_eq!(take_varint(&mut &[0xff; 30][..], "n"), Err(CodecError::Invalid("n")));
    }
}
