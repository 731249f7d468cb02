//! Numbers for byte strings: 0, 1, 2, ... as they first come. So what is noted of many records holds four bytes of each
//! string, and strings are compared once each when they are put in order.

use hashbrown::HashTable;
use std::hash::{BuildHasher as _, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Byte strings by number.
pub struct Interner {
    /// Of the hash, so that nobody can choose keys that share one. What is computed doesn't depend on it.
    seed: u64,
    /// Half of the hash, and the number: most others are told apart without a look at their bytes.
    table: HashTable<(u32, u32)>,
    strings: Strings,
    /// Those halves of strings that are looked up at once.
    hashes: Vec<u32>,
}

/// Byte strings by number, one behind the other.
#[derive(Debug, Default)]
pub struct Strings {
    bytes: Vec<u8>,
    /// Where each string ends in `bytes`; it begins where the one before ends.
    ends: Vec<usize>,
}

impl Default for Interner {
    fn default() -> Interner {
        let (table, strings) = (HashTable::new(), Strings::default());
        Interner { seed: RandomState::new().hash_one(0), table, strings, hashes: Vec::new() }
    }
}

impl Interner {
    /// The number of a string.
    #[inline]
    pub fn intern(&mut self, string: &[u8]) -> u32 {
        self.intern_hashed(string, self.hash(string))
    }

    #[inline]
    fn intern_hashed(&mut self, string: &[u8], short: u32) -> u32 {
        let Interner { table, strings, .. } = self;
        let same = |(hash, number): &(u32, u32)| *hash == short && strings.get(*number) == string;
        if let Some((_, number)) = table.find(spread(short), same) {
            return *number;
        }
        let number = strings.push(string);
        table.insert_unique(spread(short), (short, number), |(hash, _)| spread(*hash));
        number
    }

    /// Appends the numbers of strings, of which each ends in `bytes` where one of `ends` says and begins where the one
    /// before ends. As [`Interner::intern`] of one after the other, but sooner, of some dozens at once: most of what it
    /// takes to find a string among many is the wait for memory, and here the strings wait together.
    pub fn intern_all(&mut self, bytes: &[u8], ends: &[usize], numbers: &mut Vec<u32>) {
        let (from, count) = (numbers.len(), ends.len() as u32);
        let mut hashes = std::mem::take(&mut self.hashes);
        hashes.clear();
        hashes.extend((0..count).map(|which| self.hash(at(bytes, ends, which))));
        let alike = |short: &u32| self.table.find(spread(*short), |(hash, _)| hash == short);
        numbers.extend(hashes.iter().map(|short| alike(short).map_or(u32::MAX, |(_, number)| *number)));
        let numbers = &mut numbers[from..];
        // A look at each, so that they are in the cache when they are compared: to compare takes too much between two.
        std::hint::black_box(numbers.iter().fold(0, |all, number| all ^ self.strings.first(*number)));
        for ((number, short), which) in numbers.iter_mut().zip(&hashes).zip(0..) {
            let string = at(bytes, ends, which);
            if *number as usize >= self.len() || self.get(*number) != string {
                *number = self.intern_hashed(string, *short);
            }
        }
        self.hashes = hashes;
    }

    /// Lets go of all strings, and of room for more than twice as many: those that come next lie where these did.
    pub fn clear(&mut self) {
        self.seed = RandomState::new().hash_one(0);
        let Strings { bytes, ends } = &mut self.strings;
        let (many, long) = (2 * ends.len(), 2 * bytes.len());
        self.table.clear();
        self.table.shrink_to(many, |(hash, _)| spread(*hash));
        bytes.clear();
        bytes.shrink_to(long);
        ends.clear();
        ends.shrink_to(many);
    }

    #[inline]
    fn hash(&self, string: &[u8]) -> u32 {
        (xxh3_64_with_seed(string, self.seed) >> 32) as u32
    }

    /// The string of a number.
    #[inline]
    pub fn get(&self, number: u32) -> &[u8] {
        self.strings.get(number)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.strings.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strings.ends.is_empty()
    }

    /// About how many bytes they take.
    pub fn size(&self) -> usize {
        let Strings { bytes, ends } = &self.strings;
        bytes.capacity() + ends.capacity() * size_of::<usize>() + self.table.capacity() * 10
    }

    /// About how many more [`Interner::into_ordered`] takes meanwhile.
    pub fn size_of_order(&self) -> usize {
        self.bytes() + self.len() * 20
    }

    /// How many bytes the strings have.
    pub fn bytes(&self) -> usize {
        self.strings.bytes.len()
    }

    /// The numbers in the order of their strings. `prefix`: what tells most of them apart by its first 96 bits, and never
    /// contradicts their order.
    pub fn order(&self, prefix: impl Fn(&[u8]) -> u128) -> Vec<u32> {
        self.strings.order(prefix)
    }

    /// Copies of the strings, one behind the other in an order of their numbers.
    pub fn ordered(&self, order: &[u32]) -> Strings {
        self.strings.ordered(order)
    }

    /// The strings, by their numbers.
    pub fn into_strings(self) -> Strings {
        self.strings
    }

    /// The strings in their order (`prefix`: as of [`Interner::order`]), and the rank of each number there. Whoever takes
    /// one after the other finds them side by side.
    pub fn into_ordered(self, prefix: impl Fn(&[u8]) -> u128) -> (Strings, Vec<u32>) {
        // Without its table: strings and their copy are there together.
        let strings = self.into_strings();
        let order = strings.order(prefix);
        (strings.ordered(&order), ranks(&order))
    }
}

impl Strings {
    /// The string of a number.
    #[inline]
    pub fn get(&self, number: u32) -> &[u8] {
        at(&self.bytes, &self.ends, number)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The first byte of a string; any where there is no such number.
    #[inline]
    fn first(&self, number: u32) -> u8 {
        let start = self.ends.get((number as usize).wrapping_sub(1)).copied().unwrap_or(0);
        self.bytes.get(start).copied().unwrap_or(0)
    }

    /// Appends a string; gives its number.
    #[inline]
    fn push(&mut self, string: &[u8]) -> u32 {
        let number = self.ends.len() as u32;
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
        number
    }

    fn ordered(&self, order: &[u32]) -> Strings {
        let (bytes, ends) = (Vec::with_capacity(self.bytes.len()), Vec::with_capacity(order.len()));
        let mut ordered = Strings { bytes, ends };
        order.iter().for_each(|number| _ = ordered.push(self.get(*number)));
        ordered
    }

    fn order(&self, prefix: impl Fn(&[u8]) -> u128) -> Vec<u32> {
        // The string's number takes the place of the lowest bits: whole numbers are sorted sooner than what is made of two.
        let begin = |number: u32| prefix(self.get(number)) >> u32::BITS << u32::BITS | u128::from(number);
        let mut begins: Vec<u128> = (0..self.len() as u32).map(begin).collect();
        begins.sort_unstable();
        for alike in begins.chunk_by_mut(|a, b| a >> u32::BITS == b >> u32::BITS) {
            alike.sort_unstable_by(|a, b| self.get(*a as u32).cmp(self.get(*b as u32)));
        }
        begins.into_iter().map(|begin| begin as u32).collect()
    }
}

/// The rank of each number in an order.
pub fn ranks(order: &[u32]) -> Vec<u32> {
    let mut ranks = vec![0; order.len()];
    for (rank, number) in (0..).zip(order) {
        ranks[*number as usize] = rank;
    }
    ranks
}

#[inline]
fn at<'a>(bytes: &'a [u8], ends: &[usize], number: u32) -> &'a [u8] {
    let number = number as usize;
    let start = number.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[start..ends[number]]
}

/// Spreads 32 bits over 64: a table looks at the highest and the lowest.
#[inline]
pub fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_their_strings_and_order_follows_them() {
        let mut strings: Vec<Vec<u8>> = vec![Vec::new(), vec![0], vec![0, 0], vec![255; 40]];
        strings.extend((0..1_000u32).map(|at| (at * 7_919 % 4_099).to_be_bytes().to_vec()));
        // Many have the same, and it begins so far down that not all of it is looked at.
        let first = |string: &[u8]| string.first().map_or(0, |first| u128::from(*first) << 28);
        let mut interner = Interner::default();
        for _ in 0..2 {
            for string in &strings {
                let number = interner.intern(string);
                assert_eq!(interner.get(number), string);
            }
        }
        let order = interner.order(first);
        strings.sort();
        strings.dedup();
        assert_eq!((interner.len(), interner.bytes()), (strings.len(), strings.concat().len()));
        let ordered: Vec<&[u8]> = order.iter().map(|number| interner.get(*number)).collect();
        assert_eq!(ordered, strings);
        let ranks = ranks(&order);
        assert!(order.iter().enumerate().all(|(rank, number)| ranks[*number as usize] as usize == rank));
        let (ordered, found) = interner.into_ordered(first);
        assert_eq!((ordered.len(), found), (strings.len(), ranks));
        assert!((0..).zip(&strings).all(|(rank, string)| ordered.get(rank) == string));
    }

    /// Some come twice in a row, some again far behind.
    #[test]
    fn strings_at_once_have_the_numbers_that_they_have_one_by_one() {
        let strings = (0..2_000u32).map(|at| at / 2).map(|at| vec![at as u8; (at * at % 41) as usize]);
        let strings: Vec<Vec<u8>> = strings.collect();
        let (mut one, mut other, mut numbers) = (Interner::default(), Interner::default(), Vec::new());
        let expected: Vec<u32> = strings.iter().map(|string| one.intern(string)).collect();
        for strings in strings.chunks(64) {
            let ends = strings.iter().scan(0, |end, string| {
                *end += string.len();
                Some(*end)
            });
            other.intern_all(&strings.concat(), &ends.collect::<Vec<usize>>(), &mut numbers);
        }
        assert_eq!((&numbers, other.len()), (&expected, one.len()));
        other.clear();
        assert_eq!((other.len(), other.bytes()), (0, 0));
        numbers.clear();
        for string in &strings {
            other.intern_all(string, &[string.len()], &mut numbers);
        }
        assert_eq!((numbers, other.len()), (expected, one.len()));
    }
}
