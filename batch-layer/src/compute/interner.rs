//! Numbers for byte strings: 0, 1, 2, ... as they first come. So a row holds four bytes of each key, and strings are
//! compared once a string, not once a row.

use hashbrown::HashTable;
use std::cmp::Ordering;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Byte strings by number.
pub(super) struct Interner {
    /// Of the hash, so that nobody can choose keys that share one. What is computed doesn't depend on it.
    seed: u64,
    /// Half of the hash, and the number: most others are told apart without a look at their bytes.
    table: HashTable<(u32, u32)>,
    bytes: Vec<u8>,
    /// Where each string ends in `bytes`; it begins where the one before ends.
    ends: Vec<usize>,
}

impl Default for Interner {
    fn default() -> Interner {
        Interner { seed: rand::random(), table: HashTable::new(), bytes: Vec::new(), ends: Vec::new() }
    }
}

impl Interner {
    /// The number of a string.
    #[inline]
    pub(super) fn intern(&mut self, string: &[u8]) -> u32 {
        let short = (xxh3_64_with_seed(string, self.seed) >> 32) as u32;
        let Interner { table, bytes, ends, .. } = self;
        let same = |(hash, number): &(u32, u32)| *hash == short && at(bytes, ends, *number) == string;
        if let Some((_, number)) = table.find(spread(short), same) {
            return *number;
        }
        let number = ends.len() as u32;
        bytes.extend_from_slice(string);
        ends.push(bytes.len());
        table.insert_unique(spread(short), (short, number), |(hash, _)| spread(*hash));
        number
    }

    /// The string of a number.
    #[inline]
    pub(super) fn get(&self, number: u32) -> &[u8] {
        at(&self.bytes, &self.ends, number)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// About how many bytes they take, and take once they are put in order.
    pub(super) fn size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * 8 + self.table.capacity() * 10 + self.ends.len() * 20
    }

    /// The numbers in the order of their strings, of which the first byte decides least where the next eight are
    /// equal, as in [`super::name`]: 0 has none behind it.
    pub(super) fn order(&self) -> Vec<u32> {
        let prefix = |number: u32| {
            let mut prefix = [0; 8];
            let string = self.get(number).get(1..).unwrap_or_default();
            let length = string.len().min(8);
            prefix[..length].copy_from_slice(&string[..length]);
            u64::from_be_bytes(prefix)
        };
        order(self.len(), prefix, |a, b| self.get(a).cmp(self.get(b)))
    }
}

/// The numbers below `len` in an order: by a prefix that never contradicts it, then by itself.
pub(super) fn order(
    len: usize,
    prefix: impl Fn(u32) -> u64,
    compare: impl Fn(u32, u32) -> Ordering,
) -> Vec<u32> {
    let mut numbers: Vec<(u64, u32)> = (0..len as u32).map(|number| (prefix(number), number)).collect();
    numbers.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| compare(a.1, b.1)));
    numbers.into_iter().map(|(_, number)| number).collect()
}

/// The rank of each number in an order.
pub(super) fn ranks(order: &[u32]) -> Vec<u32> {
    let mut ranks = vec![0; order.len()];
    for (rank, number) in (0..).zip(order) {
        ranks[*number as usize] = rank;
    }
    ranks
}

fn at<'a>(bytes: &'a [u8], ends: &[usize], number: u32) -> &'a [u8] {
    let number = number as usize;
    let start = number.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[start..ends[number]]
}

/// Spreads 32 bits over 64: a table looks at the highest and the lowest.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::name;
    use shared_model::event::Value;

    #[test]
    fn numbers_lead_back_to_their_strings_and_order_follows_names() {
        let mut values: Vec<Value> = vec![Value::Null, Value::Int(i64::MIN), Value::Int(0), Value::Int(-1)];
        values.extend((0..1_000).map(|at| Value::Int(at * 7_919 % 4_099)));
        let mut interner = Interner::default();
        let bytes = |value: &Value| {
            let mut bytes = Vec::new();
            name::put(value, &mut bytes);
            bytes
        };
        for _ in 0..2 {
            for value in &values {
                let number = interner.intern(&bytes(value));
                assert_eq!(interner.get(number), bytes(value));
            }
        }
        let order = interner.order();
        values.sort();
        values.dedup();
        assert_eq!(interner.len(), values.len());
        let ordered: Vec<&[u8]> = order.iter().map(|number| interner.get(*number)).collect();
        assert_eq!(ordered, values.iter().map(bytes).collect::<Vec<_>>());
        let ranks = ranks(&order);
        assert!(order.iter().enumerate().all(|(rank, number)| ranks[*number as usize] as usize == rank));
    }
}
