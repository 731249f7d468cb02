//! Keys by slots: small numbers under which is held what belongs to a key.
//!
//! A slot is a key's own from when the key comes until it is freed; then it is given to a key that comes later. A key lies
//! beside what is held of it, and half of its hash beside its slot: it is found by two looks at memory, others' bytes are
//! hardly ever looked at, and keys that are looked for together wait for memory together. What memory was taken stays taken
//! for keys that come later.

use hashbrown::HashTable;
use shared_model::interner::spread;
use std::hash::{BuildHasher as _, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// No slot's number.
pub(super) const NONE: u32 = u32::MAX;

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

struct Held<T> {
    key: Key,
    of: T,
}

/// Keys that have slots, with what is held of each; of one that has just come, the default.
pub(super) struct Slots<T> {
    /// Of the hash, so that nobody can choose keys that share one.
    seed: u64,
    /// Half of the hash, and the slot.
    table: HashTable<(u32, u32)>,
    held: Vec<Held<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        let (table, held, free) = (HashTable::new(), Vec::new(), Vec::new());
        Slots { seed: RandomState::new().hash_one(0), table, held, free }
    }
}

impl<T: Default> Slots<T> {
    /// The slot of a key, which is given to it if it has none.
    #[inline]
    pub(super) fn take(&mut self, key: &[u8]) -> u32 {
        self.take_by(self.hash(key), key)
    }

    /// Finds the slots of keys, each behind half of its key's hash. As [`Slots::take`] of one after the other, but sooner,
    /// of some dozens at once: most of what it takes to find a key among many is the wait for memory.
    pub(super) fn take_all<'k>(
        &mut self,
        keys: impl Iterator<Item = &'k [u8]> + Clone,
        found: &mut Vec<(u32, u32)>,
    ) {
        found.clear();
        found.extend(keys.clone().map(|key| (self.hash(key), NONE)));
        for (hash, slot) in found.iter_mut() {
            let alike = self.table.find(spread(*hash), |(other, _)| *other == *hash);
            *slot = alike.map_or(NONE, |(_, slot)| *slot);
        }
        // A look at each, so that they are in the cache when they are compared: to compare takes too much between two.
        let looked = found.iter().filter(|(_, slot)| {
            self.held.get(*slot as usize).is_some_and(|held| matches!(held.key, Key::Short(..)))
        });
        std::hint::black_box(looked.count());
        for ((hash, slot), key) in found.iter_mut().zip(keys) {
            if self.held.get(*slot as usize).is_none_or(|held| held.key.bytes() != key) {
                *slot = self.take_by(*hash, key);
            }
        }
    }

    fn take_by(&mut self, hash: u32, key: &[u8]) -> u32 {
        let Slots { table, held, free, .. } = self;
        let same = |&(other, slot): &(u32, u32)| other == hash && held[slot as usize].key.bytes() == key;
        if let Some(&(_, slot)) = table.find(spread(hash), same) {
            return slot;
        }
        let slot = free.pop().unwrap_or(held.len() as u32);
        let fresh = Held { key: Key::new(key), of: T::default() };
        match held.get_mut(slot as usize) {
            Some(freed) => *freed = fresh,
            None => held.push(fresh),
        }
        table.insert_unique(spread(hash), (hash, slot), |&(hash, _)| spread(hash));
        slot
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u32 {
        (xxh3_64_with_seed(key, self.seed) >> 32) as u32
    }

    /// The key of a slot.
    #[inline]
    pub(super) fn key(&self, slot: u32) -> &[u8] {
        self.held[slot as usize].key.bytes()
    }

    /// What is held of it.
    #[inline]
    pub(super) fn of(&self, slot: u32) -> &T {
        &self.held[slot as usize].of
    }

    /// The same, to be changed.
    #[inline]
    pub(super) fn of_mut(&mut self, slot: u32) -> &mut T {
        &mut self.held[slot as usize].of
    }

    /// Both.
    #[inline]
    pub(super) fn both(&mut self, slot: u32) -> (&[u8], &mut T) {
        let Held { key, of } = &mut self.held[slot as usize];
        (key.bytes(), of)
    }

    /// Lets go of a slot, its key and what is held of it.
    pub(super) fn free(&mut self, slot: u32) {
        let hash = self.hash(self.key(slot));
        if let Ok(entry) = self.table.find_entry(spread(hash), |&(_, other)| other == slot) {
            entry.remove();
            self.held[slot as usize] = Held { key: Key::new(&[]), of: T::default() };
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Their bytes tell them apart.
    #[test]
    fn keys_whose_hashes_are_alike_have_slots_of_their_own() {
        let (mut slots, mut by_hash, mut found) = (Slots::<u32>::default(), HashMap::new(), Vec::new());
        let alike = (0u32..).map(u32::to_be_bytes).find_map(|key| {
            let other = by_hash.insert(slots.hash(&key), key)?;
            Some((other, key))
        });
        let (one, other) = alike.expect("32 bits are shared by two of some 100,000 keys");
        let first = slots.take(&one);
        slots.take_all([&other[..], &one[..], &other[..]].into_iter(), &mut found);
        let second = found[0].1;
        assert_ne!(first, second);
        assert_eq!(found.iter().map(|(_, slot)| *slot).collect::<Vec<u32>>(), [second, first, second]);
        slots.free(first);
        assert_eq!((slots.take(&other), slots.key(second)), (second, &other[..]));
    }

    proptest! {
        /// Keys come alone and together, some of them twice at once.
        #[test]
        fn a_slot_is_a_keys_own_until_it_is_freed(
            steps in vec((vec(0u8..40, 1..8), any::<bool>()), 0..200),
        ) {
            let (mut slots, mut model) = (Slots::<u32>::default(), HashMap::<Vec<u8>, (u32, u32)>::new());
            for ((keys, frees), step) in steps.into_iter().zip(1..) {
                let keys: Vec<Vec<u8>> = keys.into_iter().map(|key| vec![key; usize::from(key)]).collect();
                if frees {
                    keys.iter().filter_map(|key| model.remove(key)).for_each(|(slot, _)| slots.free(slot));
                    continue;
                }
                let mut found = Vec::new();
                match &keys[..] {
                    [key] => found.push((0, slots.take(key))),
                    keys => slots.take_all(keys.iter().map(Vec::as_slice), &mut found),
                }
                prop_assert_eq!(found.len(), keys.len());
                for (key, (_, slot)) in keys.into_iter().zip(found) {
                    let is_anothers = model.iter().any(|(other, held)| held.0 == slot && *other != key);
                    prop_assert!(!is_anothers);
                    let known = model.entry(key).or_insert((slot, 0));
                    prop_assert_eq!((slot, *slots.of(slot)), *known);
                    (known.1, *slots.of_mut(slot)) = (step, step);
                }
                for (key, (slot, held)) in &model {
                    let (its_key, of) = slots.both(*slot);
                    prop_assert_eq!((its_key, *of), (&key[..], *held));
                }
            }
        }
    }
}
