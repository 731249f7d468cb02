//! The standard bytes of a DataSketches HLL sketch (HLL_8, lgK 12), which its C++, Java, Python and Rust libraries
//! and Spark's `hll_union` read and merge.
//!
//! Always marked "out of order", so that every reader estimates from the registers and none from a history of
//! updates, which merged states don't have.

use super::{LG_REGISTERS, REGISTERS};

const SERIAL_VERSION: u8 = 1;
const FAMILY: u8 = 7;
/// HLL_8 as the target type, in the bits of the mode byte above the mode.
const TARGET_HLL_8: u8 = 2 << 2;
const LIST: u8 = 0;
const SET: u8 = 1;
const HLL: u8 = 2;
const EMPTY: u8 = 4;
const COMPACT: u8 = 8;
const OUT_OF_ORDER: u8 = 16;
/// The most coupons that the libraries keep as a list, and the shortest table (lg 5) of a set.
const LIST_COUPONS: usize = 7;
const LG_SHORTEST_SET: u8 = 5;

/// A sketch of coupons, sorted and without repeats; at most [`super::EXACT_LIMIT`], as the libraries do it.
pub(super) fn of_coupons(coupons: &[u32]) -> Vec<u8> {
    let count = coupons.len();
    let mut out = Vec::with_capacity(12 + 4 * count);
    if count <= LIST_COUPONS {
        let flags = if count == 0 { COMPACT | EMPTY } else { COMPACT };
        out.extend([2, SERIAL_VERSION, FAMILY, LG_REGISTERS, 3, flags, count as u8, LIST | TARGET_HLL_8]);
    } else {
        // The table is at most three quarters full.
        let lg_table = (LG_SHORTEST_SET..).find(|lg| 4 * count <= 3 << lg).unwrap_or(LG_SHORTEST_SET);
        out.extend([3, SERIAL_VERSION, FAMILY, LG_REGISTERS, lg_table, COMPACT, 0, SET | TARGET_HLL_8]);
        out.extend((count as u32).to_le_bytes());
    }
    coupons.iter().for_each(|coupon| out.extend(coupon.to_le_bytes()));
    out
}

/// A sketch of registers.
pub(super) fn of_registers(registers: &[u8; REGISTERS]) -> Vec<u8> {
    let mut out = Vec::with_capacity(40 + REGISTERS);
    out.extend([10, SERIAL_VERSION, FAMILY, LG_REGISTERS, 0, OUT_OF_ORDER, 0, HLL | TARGET_HLL_8]);
    // The sums of 2^-register, of small and of large ones. Both are sums of a few thousand powers of two not more
    // than 32 bits apart, so they are exact, and the same in any order of adding.
    let sum = |large: bool| -> f64 {
        let chosen = registers.iter().filter(|&&register| (register >= 32) == large);
        chosen.fold(0.0, |sum, &register| sum + f64::from_bits((1023 - u64::from(register)) << 52))
    };
    let zeros = registers.iter().filter(|&&register| register == 0).count();
    let history = 0f64;
    out.extend(history.to_le_bytes());
    out.extend(sum(false).to_le_bytes());
    out.extend(sum(true).to_le_bytes());
    out.extend((zeros as u32).to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(registers);
    out
}
