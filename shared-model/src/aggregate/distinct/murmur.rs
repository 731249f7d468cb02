//! MurmurHash3 x64 128 as all DataSketches libraries use it for their sketches.
//!
//! The `datasketches` crate keeps its own private and hands out 32 of the 128 bits; a test holds the two together.

const C1: u64 = 0x87c3_7b91_1142_53d5;
const C2: u64 = 0x4cf5_ad43_2745_937f;

/// The 128 bits of the hash, as two halves.
pub(super) fn hash(bytes: &[u8], seed: u64) -> (u64, u64) {
    let (mut h1, mut h2) = (seed, seed);
    let (blocks, tail) = bytes.as_chunks::<16>();
    for block in blocks {
        let (k1, k2) = halves(block);
        h1 ^= mix_first(k1);
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix_second(k2);
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    // A tail filled up with zeros is mixed as the tail alone, since zero mixes to zero.
    let mut padded = [0; 16];
    padded[..tail.len()].copy_from_slice(tail);
    let (k1, k2) = halves(&padded);
    h1 ^= mix_first(k1) ^ bytes.len() as u64;
    h2 ^= mix_second(k2) ^ bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    (h1, h2) = (avalanche(h1), avalanche(h2));
    h1 = h1.wrapping_add(h2);
    (h1, h2.wrapping_add(h1))
}

fn halves(block: &[u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(*block);
    (both as u64, (both >> 64) as u64)
}

fn mix_first(half: u64) -> u64 {
    half.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

fn mix_second(half: u64) -> u64 {
    half.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

fn avalanche(mut half: u64) -> u64 {
    half ^= half >> 33;
    half = half.wrapping_mul(0xff51_afd7_ed55_8ccd);
    half ^= half >> 33;
    half = half.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    half ^ (half >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datasketches::hash::value::raw_bytes;
    use datasketches::hll::{Coupon, HllSketch, HllType};
    use proptest::prelude::*;

    #[test]
    fn known_hashes() {
        let quick = b"The quick brown fox jumps over the lazy dog";
        assert_eq!(hash(quick, 0), (0xe34b_bc7b_bc07_1b6c, 0x7a43_3ca9_c49a_9347));
        assert_eq!(hash(b"", 0), (0, 0));
    }

    proptest! {
        #[test]
        fn coupons_are_those_of_the_library(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            let mut sketch = HllSketch::new(12, HllType::Hll8).unwrap();
            sketch.update_with_coupon(Coupon::from_value(raw_bytes::from_slice(&bytes)));
            // A sketch of one item is a list: 8 bytes of preamble, then the coupon.
            let coupon = u32::from_le_bytes(sketch.serialize()[8..12].try_into().unwrap());
            prop_assert_eq!(super::super::item(&bytes) as u32, coupon);
        }
    }
}
