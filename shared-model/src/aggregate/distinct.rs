//! How many distinct values: exact up to [`EXACT_LIMIT`], an HLL sketch beyond.
//!
//! A value is hashed to a 64-bit *item*. Up to the limit the state is the sorted set of items; with one more it
//! becomes 4,096 HLL registers, each the maximum over its items. Which of the two depends on the number of distinct
//! items alone, and both forms merge by union or maximum, so the state is a pure function of the set of values.
//!
//! Hashing and registers are those of Apache DataSketches (HLL, lgK 12, seed 9001), so [`Distinct::to_datasketches`]
//! gives a sketch that the C++, Java and Python libraries and Spark's `hll_union` merge with their own of the same
//! values: text by its UTF-8 bytes, ints (and decimals' units) as 64-bit integers, floats by their bits. Truth values,
//! which those libraries don't take, are the integers 0 and 1. One difference: here an empty text is a value, as in
//! SQL, and they pass over it.

mod murmur;
mod sketch;

use crate::codec::{self, CodecError};
use crate::event::Value;
use datasketches::hll::HllSketch;
use std::fmt;

/// Up to so many distinct values are counted exactly. It is where DataSketches, too, gives up its list of coupons at
/// this size of sketch; the set takes 3 KiB then, the registers 4.
pub const EXACT_LIMIT: usize = 384;

/// Registers of the sketch, and their number's logarithm.
pub const REGISTERS: usize = 1 << LG_REGISTERS;
const LG_REGISTERS: u8 = 12;

/// The greatest value of a register: 6 bits, less the one that tells an empty coupon.
const HIGHEST_REGISTER: u8 = 63;

const SEED: u64 = 9001;

/// The state of a distinct count.
#[derive(Clone, PartialEq, Eq)]
pub struct Distinct(Form);

#[derive(Clone, PartialEq, Eq)]
enum Form {
    /// Ascending, without repeats, at most [`EXACT_LIMIT`].
    Exact(Vec<u64>),
    Registers(Box<[u8; REGISTERS]>),
}

/// The item of hashed bytes. The low half is the DataSketches coupon (26 bits of register address, 6 of register
/// value), all that the sketch needs; the high half are further bits of the hash, so that sets stay exact: two of 384
/// distinct values share an item in one set of 10^13.
fn item(bytes: &[u8]) -> u64 {
    let (low, high) = murmur::hash(bytes, SEED);
    let register = high.leading_zeros().min(62) as u64 + 1;
    (low & 0xffff_ffff_0000_0000) | register << 26 | (low & 0x03ff_ffff)
}

fn item_of(value: &Value) -> Option<u64> {
    match value {
        Value::Null => None,
        Value::Bool(value) => Some(item(&i64::from(*value).to_le_bytes())),
        Value::Int(value) => Some(item(&value.to_le_bytes())),
        Value::Float(value) => Some(item(&value.to_le_bytes())),
        Value::Str(value) => Some(item(value.as_bytes())),
    }
}

#[inline]
fn raise(registers: &mut [u8; REGISTERS], item: u64) {
    let register = &mut registers[item as usize & (REGISTERS - 1)];
    *register = (*register).max((item as u32 >> 26) as u8);
}

impl Distinct {
    /// The relative standard error of an estimate (exact counts have none): 1.04 / sqrt(4096).
    pub const STANDARD_ERROR: f64 = 0.01624;

    /// The error that an answer quotes for an estimate: three standard errors, within which 99.7 % of estimates lie.
    pub const ERROR_BOUND: f64 = 3.0 * Distinct::STANDARD_ERROR;

    /// Adds a value; NULL is passed over.
    pub fn add(&mut self, value: &Value) {
        if let Some(item) = Distinct::item(value) {
            self.add_item(item);
        }
    }

    /// What a state keeps of a value, for [`Distinct::add_item`], never 0; `None` of NULL. Whoever adds a value to many
    /// states hashes it once.
    pub fn item(value: &Value) -> Option<u64> {
        item_of(value)
    }

    /// Adds a value by its [`Distinct::item`].
    #[inline]
    pub fn add_item(&mut self, item: u64) {
        match &mut self.0 {
            Form::Registers(registers) => raise(registers, item),
            Form::Exact(items) => {
                if let Err(place) = items.binary_search(&item) {
                    items.insert(place, item);
                    self.settle();
                }
            }
        }
    }

    /// Adds all of another's values.
    pub fn merge(&mut self, other: &Distinct) {
        match (&mut self.0, &other.0) {
            (Form::Registers(registers), Form::Registers(others)) => {
                registers.iter_mut().zip(others.iter()).for_each(|(mine, other)| *mine = (*mine).max(*other));
            }
            (Form::Registers(registers), Form::Exact(items)) => {
                items.iter().for_each(|item| raise(registers, *item));
            }
            (Form::Exact(items), Form::Exact(others)) => {
                *items = union(items, others);
                self.settle();
            }
            (Form::Exact(items), Form::Registers(others)) => {
                let mut registers = others.clone();
                items.iter().for_each(|item| raise(&mut registers, *item));
                self.0 = Form::Registers(registers);
            }
        }
    }

    /// How many distinct values: exact if [`Distinct::is_exact`], else from the registers alone (the composite
    /// estimator), so that it is the same for equal states, whatever their history.
    pub fn estimate(&self) -> u64 {
        match &self.0 {
            Form::Exact(items) => items.len() as u64,
            Form::Registers(registers) => {
                let sketch = HllSketch::deserialize(&sketch::of_registers(registers));
                sketch.expect("written in the library's own form").composite_estimate().round() as u64
            }
        }
    }

    /// Whether the count is exact.
    pub fn is_exact(&self) -> bool {
        matches!(self.0, Form::Exact(_))
    }

    /// The relative error that an answer quotes for this state: 0 if exact.
    pub fn error_bound(&self) -> f64 {
        if self.is_exact() { 0.0 } else { Distinct::ERROR_BOUND }
    }

    /// The state as a DataSketches HLL sketch (HLL_8, lgK 12) in its standard bytes.
    pub fn to_datasketches(&self) -> Vec<u8> {
        match &self.0 {
            Form::Registers(registers) => sketch::of_registers(registers),
            Form::Exact(items) => {
                let mut coupons: Vec<u32> = items.iter().map(|item| *item as u32).collect();
                coupons.sort_unstable();
                coupons.dedup();
                sketch::of_coupons(&coupons)
            }
        }
    }

    /// Appends 0, the number of items and each (8 bytes, big endian, ascending); or 1 and the 4,096 registers.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Form::Exact(items) => {
                out.push(0);
                codec::put_varint(out, items.len() as u128);
                out.reserve(8 * items.len());
                items.iter().for_each(|item| out.extend(item.to_be_bytes()));
            }
            Form::Registers(registers) => {
                out.push(1);
                out.extend_from_slice(&registers[..]);
            }
        }
    }

    /// Takes what [`Distinct::encode`] wrote.
    pub fn decode(input: &mut &[u8]) -> Result<Distinct, CodecError> {
        match codec::take_byte(input, "distinct form")? {
            0 => decode_items(input).map(|items| Distinct(Form::Exact(items))),
            1 => {
                let (registers, rest) =
                    input.split_first_chunk::<REGISTERS>().ok_or(CodecError::Truncated("registers"))?;
                let highest = registers.iter().max().copied().unwrap_or(0);
                if !(1..=HIGHEST_REGISTER).contains(&highest) {
                    return Err(CodecError::Invalid("registers"));
                }
                *input = rest;
                Ok(Distinct(Form::Registers(Box::new(*registers))))
            }
            _ => Err(CodecError::Invalid("distinct form")),
        }
    }

    /// Turns a set that has outgrown the limit into registers.
    fn settle(&mut self) {
        if let Form::Exact(items) = &self.0
            && items.len() > EXACT_LIMIT
        {
            let mut registers = Box::new([0; REGISTERS]);
            items.iter().for_each(|item| raise(&mut registers, *item));
            self.0 = Form::Registers(registers);
        }
    }
}

fn decode_items(input: &mut &[u8]) -> Result<Vec<u64>, CodecError> {
    let count = codec::take_count(input, "number of items")?;
    if count > EXACT_LIMIT {
        return Err(CodecError::Invalid("number of items"));
    }
    let (bytes, rest) = input.split_at_checked(8 * count).ok_or(CodecError::Truncated("items"))?;
    let items: Vec<u64> = bytes.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
    let no_register = items.iter().any(|item| (*item as u32 >> 26) == 0);
    if no_register || !items.is_sorted_by(|a, b| a < b) {
        return Err(CodecError::Invalid("items"));
    }
    *input = rest;
    Ok(items)
}

/// The union of two ascending sets, ascending.
fn union(left: &[u64], right: &[u64]) -> Vec<u64> {
    let mut both = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left, right);
    while let (Some((a, after_a)), Some((b, after_b))) = (left.split_first(), right.split_first()) {
        both.push(*a.min(b));
        if a <= b {
            left = after_a;
        }
        if b <= a {
            right = after_b;
        }
    }
    both.extend_from_slice(left);
    both.extend_from_slice(right);
    both
}

impl Default for Distinct {
    fn default() -> Distinct {
        Distinct(Form::Exact(Vec::new()))
    }
}

impl fmt::Debug for Distinct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Exact(items) => write!(f, "exactly {} distinct {items:x?}", items.len()),
            Form::Registers(registers) => {
                let hash = xxhash_rust::xxh3::xxh3_64(&registers[..]);
                write!(f, "about {} distinct, registers {hash:016x}", self.estimate())
            }
        }
    }
}

#[cfg(test)]
mod tests;
