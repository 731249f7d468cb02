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
    if value < 0x80 {
        // Most are lengths and small counts.
        out.push(value as u8);
    } else if value < 1 << 56 {
        // Nearly all others.
        let value = value as u64;
        let length = (u64::BITS - value.leading_zeros()).div_ceil(7);
        let follows = !(u64::MAX << (8 * (length - 1))) & FOLLOWS;
        out.extend_from_slice(&(spread(value) | follows).to_le_bytes());
        out.truncate(out.len() - 8 + length as usize);
    } else {
        put_any(out, value);
    }
}

/// Appends one of any length.
fn put_any(out: &mut Vec<u8>, value: u128) {
    let mut rest = value;
    while rest > u128::from(u64::MAX) {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    // 128-bit shifts are slow.
    let mut rest = rest as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// The bits of 8 bytes that say that another follows.
const FOLLOWS: u64 = 0x8080_8080_8080_8080;

/// Spreads 56 bits over the lower 7 of each of 8 bytes.
#[inline]
fn spread(bits: u64) -> u64 {
    let bits = (bits & 0x0fff_ffff) | (bits & 0x00ff_ffff_f000_0000) << 4;
    let bits = (bits & 0x0000_3fff_0000_3fff) | (bits & 0x0fff_c000_0fff_c000) << 2;
    (bits & 0x007f_007f_007f_007f) | (bits & 0x3f80_3f80_3f80_3f80) << 1
}

/// Gathers the lower 7 bits of each of 8 bytes, without the highest.
#[inline]
fn gather(bytes: u64) -> u64 {
    let bits = (bytes & 0x007f_007f_007f_007f) | (bytes & 0x7f00_7f00_7f00_7f00) >> 1;
    let bits = (bits & 0x0000_3fff_0000_3fff) | (bits & 0x3fff_0000_3fff_0000) >> 2;
    (bits & 0x0fff_ffff) | (bits & 0x0fff_ffff_0000_0000) >> 4
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
    // Most are lengths and small counts.
    if let Some((&byte, rest)) = input.split_first()
        && byte < 0x80
    {
        *input = rest;
        return Ok(u128::from(byte));
    }
    // Nearly all others end within 8 bytes.
    if let Some(bytes) = input.first_chunk() {
        let bytes = u64::from_le_bytes(*bytes);
        let length = (!bytes & FOLLOWS).trailing_zeros() / 8 + 1;
        if length <= 8 {
            let bytes = bytes & u64::MAX >> (64 - 8 * length);
            if bytes >> (8 * (length - 1)) == 0 {
                return Err(CodecError::Invalid(what));
            }
            *input = &input[length as usize..];
            return Ok(u128::from(gather(bytes)));
        }
    }
    take_any(input, what)
}

/// Takes one of any length.
fn take_any(input: &mut &[u8], what: &'static str) -> Result<u128, CodecError> {
    // 128-bit shifts are slow.
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

        /// Of each length, at the end of the input and before more.
        #[test]
        fn varints_are_as_defined(
            bits: u128,
            length in 0u32..=128,
            after in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let value = bits.checked_shr(128 - length).unwrap_or(0);
            let (mut expected, mut rest) = (Vec::new(), value);
            while rest >= 0x80 {
                expected.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            expected.push(rest as u8);
            let mut bytes = vec![7];
            put_varint(&mut bytes, value);
            prop_assert_eq!(&bytes[1..], &expected);
            for cut in 0..expected.len() {
                prop_assert_eq!(take_varint(&mut &expected[..cut], "n"), Err(CodecError::Truncated("n")));
            }
            bytes.extend(&after);
            let mut input = &bytes[1..];
            prop_assert_eq!(take_varint(&mut input, "n"), Ok(value));
            prop_assert_eq!(input, after);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let mut input = &bytes[..];
            while take_varint(&mut input, "x").is_ok() && take_bytes(&mut input, "y").is_ok() {}
        }
    }

    #[test]
    fn numbers_about_powers_of_two_take_a_byte_for_each_seven_bits() {
        for power in (0..128).map(|shift| 1u128 << shift) {
            for value in [power - 1, power] {
                let mut bytes = Vec::new();
                put_varint(&mut bytes, value);
                assert_eq!(
                    bytes.len() as u32,
                    (u128::BITS - value.leading_zeros()).div_ceil(7).max(1),
                    "{value}"
                );
                let mut input = &bytes[..];
                assert_eq!(take_varint(&mut input, "n"), Ok(value));
                assert!(input.is_empty(), "{value}");
            }
        }
    }

    #[test]
    fn longer_forms_of_a_number_are_refused() {
        assert_eq!(take_varint(&mut &[0x80, 0x00][..], "n"), Err(CodecError::Invalid("n")));
        for length in 1..18 {
            let longer = [vec![0x81; length], vec![0; 9]].concat();
            assert_eq!(take_varint(&mut &longer[..], "n"), Err(CodecError::Invalid("n")), "{length}");
        }
        assert_eq!(take_varint(&mut &[0x80][..], "n"), Err(CodecError::Truncated("n")));
        assert_eq!(take_varint(&mut &[0xff; 30][..], "n"), Err(CodecError::Invalid("n")));
    }
}
