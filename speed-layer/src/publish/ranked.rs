//! Top-k over a window: sets of items by their totals, of which only those that were touched are ranked again.
//!
//! Of a large set few items are ever near the top: those that rank before a floor, an item with its total, which is chosen
//! so that they are a few times k. As long as there are k of them, the top k are among them, whatever the others are; and
//! what touches only others changes nothing.

use super::changes::{Changes, Ranking};
use super::slots::Slots;
use super::totals::Totals;
use crate::live;
use shared_model::aggregate::top_k::rank;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::Metric;
use std::cmp::Reverse;
use std::mem::{replace, take};

/// How many times k items rank before a floor that is chosen.
const NEAR: usize = 4;

/// The items of one key.
#[derive(Default)]
struct Set {
    /// The slots of all its items.
    members: Vec<u32>,
    /// Those that rank before the floor; until the set is ranked, others too.
    near: Vec<u32>,
    /// The total and the item that come next; `None` where all items are near.
    floor: Option<(u64, Value)>,
    is_touched: bool,
    /// The items that are published with their counts, by item.
    published: Vec<(Value, u64)>,
}

/// The sets of a metric.
pub(super) struct Ranked {
    k: usize,
    /// Of how many values a set's key is.
    by: usize,
    pub(super) totals: Totals,
    /// Of each item's slot: the set, and the place among its members.
    places: Vec<(u32, u32)>,
    is_near: Vec<bool>,
    names: Slots,
    sets: Vec<Set>,
}

impl Ranked {
    pub(super) fn new(metric: &Metric, k: usize) -> Ranked {
        let (totals, places, is_near, names, sets) = Default::default();
        Ranked { k, by: metric.by.len(), totals, places, is_near, names, sets }
    }

    /// Adds to the total of an item, whose key begins with its set's. Gives its slot.
    pub(super) fn add(&mut self, key: &[u8], count: u64) -> Result<u32, CodecError> {
        let (slot, is_new) = self.totals.add(key, count)?;
        if is_new {
            let mut item = key;
            for _ in 0..self.by {
                Value::decode(&mut item)?;
            }
            self.join(slot, &key[..key.len() - item.len()]);
        }
        Ok(slot)
    }

    fn join(&mut self, slot: u32, by: &[u8]) {
        let (set, _) = self.names.take(by);
        if set as usize == self.sets.len() {
            self.sets.push(Set::default());
        }
        if slot as usize == self.places.len() {
            self.places.push((0, 0));
            self.is_near.push(false);
        }
        let members = &mut self.sets[set as usize].members;
        self.places[slot as usize] = (set, members.len() as u32);
        members.push(slot);
    }

    /// Writes what differs from what is published.
    ///
    /// # Errors
    /// Where a key isn't one of the metric's.
    pub(super) fn changes(&mut self, metric: &Metric, out: &mut Changes) -> Result<(), CodecError> {
        let touched = self.totals.take_touched();
        let mut sets = Vec::new();
        for &slot in &touched {
            let (number, _) = self.places[slot as usize];
            let set = &self.sets[number as usize];
            // One that neither was near the top nor is now changes nothing there.
            let was_near = self.is_near[slot as usize];
            if !was_near && !self.is_near_top(number, slot, set.floor.as_ref())? {
                continue;
            }
            self.is_near[slot as usize] = true;
            let set = &mut self.sets[number as usize];
            if !was_near {
                set.near.push(slot);
            }
            if !replace(&mut set.is_touched, true) {
                sets.push(number);
            }
        }
        for set in sets {
            self.narrow(set)?;
            self.rank(metric, set, out)?;
        }
        for slot in touched {
            if self.totals.of(slot) == 0 {
                self.leave(slot);
            }
        }
        Ok(())
    }

    /// Whether a set's item ranks before a floor; before none does what is in the window at all.
    fn is_near_top(&self, set: u32, slot: u32, floor: Option<&(u64, Value)>) -> Result<bool, CodecError> {
        let total = self.totals.of(slot);
        match floor {
            Some((count, item)) if total == *count => Ok(self.item(set, slot)? < *item),
            Some((count, _)) => Ok(total > *count),
            None => Ok(total > 0),
        }
    }

    /// The item of a slot in a set.
    fn item(&self, set: u32, slot: u32) -> Result<Value, CodecError> {
        Value::decode(&mut &self.totals.slots.key(slot)[self.names.key(set).len()..])
    }

    /// Leaves those near the top of a set that rank before its floor; where they are too few to tell the top k, or too many,
    /// another floor is chosen.
    fn narrow(&mut self, number: u32) -> Result<(), CodecError> {
        let set = &mut self.sets[number as usize];
        let (before, floor) = (take(&mut set.near), set.floor.take());
        let mut near = Vec::with_capacity(before.len());
        for slot in before {
            let stays = self.is_near_top(number, slot, floor.as_ref())?;
            self.is_near[slot as usize] = stays;
            near.extend(stays.then_some(slot));
        }
        let most = NEAR * self.k;
        let floor = if near.len() < self.k && floor.is_some() {
            near.clear();
            near.extend_from_slice(&self.sets[number as usize].members);
            near.retain(|&slot| self.totals.of(slot) > 0);
            self.cut(number, &mut near, most)?
        } else if near.len() > 2 * most {
            self.cut(number, &mut near, most)?
        } else {
            floor
        };
        let set = &mut self.sets[number as usize];
        (set.near, set.floor) = (near, floor);
        Ok(())
    }

    /// Leaves so many of a set's slots, those that rank first; gives the floor that they rank before.
    fn cut(
        &mut self,
        number: u32,
        slots: &mut Vec<u32>,
        most: usize,
    ) -> Result<Option<(u64, Value)>, CodecError> {
        let mut floor = None;
        if slots.len() > most {
            let by_total = |slot: &u32| Reverse(self.totals.of(*slot));
            slots.select_nth_unstable_by_key(most, by_total);
            let level = self.totals.of(slots[most]);
            // Only of those that are level there the items are looked at.
            let mut level_items = Vec::new();
            for &slot in slots.iter().filter(|&&slot| self.totals.of(slot) == level) {
                level_items.push((self.item(number, slot)?, slot));
            }
            for &slot in slots.iter() {
                self.is_near[slot as usize] = false;
            }
            slots.retain(|&slot| self.totals.of(slot) > level);
            let room = most - slots.len();
            level_items.select_nth_unstable(room);
            slots.extend(level_items[..room].iter().map(|(_, slot)| *slot));
            floor = Some((level, level_items.swap_remove(room).0));
        }
        for &slot in slots.iter() {
            self.is_near[slot as usize] = true;
        }
        Ok(floor)
    }

    /// Ranks a set, and writes what differs from what is published.
    fn rank(&mut self, metric: &Metric, number: u32, out: &mut Changes) -> Result<(), CodecError> {
        let Ranked { k, totals, names, sets, .. } = self;
        let (set, mut by) = (&mut sets[number as usize], names.key(number));
        set.is_touched = false;
        let mut counts: Vec<u64> = set.near.iter().map(|&slot| totals.of(slot)).collect();
        // Only items that may be among the k, and those that are level with the last of them, are looked at.
        let least = match k.checked_sub(1) {
            Some(last) if last < counts.len() => *counts.select_nth_unstable_by(last, |a, b| b.cmp(a)).1,
            _ => 0,
        };
        let best = set.near.iter().filter(|&&slot| totals.of(slot) >= least).map(
            |&slot| -> Result<(Value, u64), CodecError> {
                let mut item = &totals.slots.key(slot)[by.len()..];
                Ok((Value::decode(&mut item)?, totals.of(slot)))
            },
        );
        let best: Vec<(Value, u64)> = best.collect::<Result<_, CodecError>>()?;
        let mut best = rank(best, *k);
        best.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if best == set.published {
            return Ok(());
        }
        let known = replace(&mut set.published, best);
        let best = &set.published;
        if best.is_empty() {
            live::name(metric, &mut by, out.drops.next())?;
            out.drops.end();
            return Ok(());
        }
        let mut name = String::new();
        live::name(metric, &mut by, &mut name)?;
        let find = |list: &[(Value, u64)], item: &Value| {
            list.binary_search_by(|(other, _)| other.cmp(item)).ok().map(|at| list[at].1)
        };
        let put = best.iter().filter(|(item, count)| find(&known, item) != Some(*count));
        let put = put.map(|(item, count)| (live::show(item), *count)).collect();
        let gone = known.iter().filter(|(item, _)| find(best, item).is_none());
        let gone = gone.map(|(item, _)| live::show(item)).collect();
        out.rankings.push(Ranking { name, anew: known.is_empty(), put, gone });
        Ok(())
    }

    /// Lets go of an item whose total is 0.
    fn leave(&mut self, slot: u32) {
        let (number, place) = self.places[slot as usize];
        let set = &mut self.sets[number as usize];
        set.members.swap_remove(place as usize);
        if let Some(&moved) = set.members.get(place as usize) {
            self.places[moved as usize].1 = place;
        }
        if set.members.is_empty() {
            *set = Set::default();
            self.names.free(number);
        }
        self.totals.slots.free(slot);
    }
}
