//! Keys by slots: small numbers under which lists hold what belongs to a key.
//!
//! A slot is a key's own from when the key comes until it is freed; then it is given to a key that comes later.

use hashbrown::HashTable;
use std::hash::{BuildHasher as _, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Keys of up to so many bytes take no memory of their own.
const SHORT: usize = 22;

enum Key {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl Key {
    fn new(bytes: &[u8]) -> Key {
        let mut short = [0; SHORT];
        match short.get_mut(..bytes.len()) {
            Some(begin) => {
                begin.copy_from_slice(bytes);
                Key::Short(bytes.len() as u8, short)
            }
            None => Key::Long(bytes.into()),
        }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Key::Short(length, bytes) => &bytes[..usize::from(*length)],
            Key::Long(bytes) => bytes,
        }
    }
}

/// Keys that have slots.
pub(super) struct Slots {
    /// Of the hash, so that nobody can choose keys that share one.
    seed: u64,
    table: HashTable<u32>,
    keys: Vec<Key>,
    free: Vec<u32>,
}

impl Default for Slots {
    fn default() -> Slots {
        let (table, keys, free) = (HashTable::new(), Vec::new(), Vec::new());
        Slots { seed: RandomState::new().hash_one(0), table, keys, free }
    }
}

impl Slots {
    /// The slot of a key, and whether it is given to it just now. Slots that were never given before come in order.
    #[inline]
    pub(super) fn take(&mut self, key: &[u8]) -> (u32, bool) {
        let (hash, seed) = (xxh3_64_with_seed(key, self.seed), self.seed);
        let Slots { table, keys, free, .. } = self;
        if let Some(&slot) = table.find(hash, |&slot| keys[slot as usize].bytes() == key) {
            return (slot, false);
        }
        let slot = free.pop().unwrap_or(keys.len() as u32);
        match keys.get_mut(slot as usize) {
            Some(freed) => *freed = Key::new(key),
            None => keys.push(Key::new(key)),
        }
        table.insert_unique(hash, slot, |&slot| xxh3_64_with_seed(keys[slot as usize].bytes(), seed));
        (slot, true)
    }

    /// The key of a slot.
    #[inline]
    pub(super) fn key(&self, slot: u32) -> &[u8] {
        self.keys[slot as usize].bytes()
    }

    /// Lets go of a slot and its key.
    pub(super) fn free(&mut self, slot: u32) {
        let hash = xxh3_64_with_seed(self.key(slot), self.seed);
        if let Ok(entry) = self.table.find_entry(hash, |&other| other == slot) {
            entry.remove();
            self.keys[slot as usize] = Key::new(&[]);
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    proptest::proptest! {
        #[test]
        fn a_slot_is_a_keys_own_until_it_is_freed(
            steps in proptest::collection::vec((proptest::collection::vec(0u8..3, 0..30), proptest::bool::ANY), 0..200),
        ) {
            let (mut slots, mut model) = (Slots::default(), HashMap::<Vec<u8>, u32>::new());
            for (key, frees) in steps {
                if frees {
                    if let Some(slot) = model.remove(&key) {
                        slots.free(slot);
                    }
                    continue;
                }
                let (slot, is_new) = slots.take(&key);
                proptest::prop_assert_eq!(is_new, !model.contains_key(&key));
                proptest::prop_assert!(!is_new || !model.values().any(|&other| other == slot));
                proptest::prop_assert_eq!(*model.entry(key).or_insert(slot), slot);
                for (key, slot) in &model {
                    proptest::prop_assert_eq!(slots.key(*slot), &key[..]);
                }
            }
        }
    }
}
