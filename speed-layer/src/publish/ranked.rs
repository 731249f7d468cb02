//! Top-k over a window: sets of items by their totals, of which only those that were touched are ranked again.
//!
//! Of a large set few items are ever near the top: those whose totals are above a floor, which is chosen so that they are
//! a few times k. As long as k of them are above it, the top k are among them, whatever the others are.

use super::changes::{Changes, Ranking};
use super::slots::Slots;
use super::totals::Totals;
use crate::live;
use shared_model::aggregate::top_k::rank;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::Metric;
use std::mem::replace;

/// How many times k items are above a floor that is chosen.
const NEAR: usize = 4;

/// The items of one key.
#[derive(Default)]
struct Set {
    /// The slots of all its items.
    members: Vec<u32>,
    /// Those whose totals are above the floor; until the set is ranked, others too.
    near: Vec<u32>,
    floor: u64,
    /// With more above it, another floor is chosen.
    limit: usize,
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
    pub(super) fn changes(&mut self, metric: &Metric, out: &mut Changes) -> Result<(), CodecError> {
        let touched = self.totals.take_touched();
        let mut sets = Vec::new();
        for &slot in &touched {
            let (number, _) = self.places[slot as usize];
            let set = &mut self.sets[number as usize];
            if !replace(&mut set.is_touched, true) {
                sets.push(number);
            }
            if self.totals.of(slot) > set.floor && !replace(&mut self.is_near[slot as usize], true) {
                set.near.push(slot);
            }
        }
        for set in sets {
            self.narrow(set);
            self.rank(metric, set, out)?;
        }
        for slot in touched {
            if self.totals.of(slot) == 0 {
                self.leave(slot);
            }
        }
        Ok(())
    }

    /// Leaves those near the top of a set that are above its floor, or above another one where this one no longer tells the
    /// top k, or lets too many through.
    fn narrow(&mut self, set: u32) {
        let Ranked { k, totals, is_near, sets, .. } = self;
        let set = &mut sets[set as usize];
        let floor = set.floor;
        set.near.retain(|&slot| {
            let stays = totals.of(slot) > floor;
            is_near[slot as usize] = stays;
            stays
        });
        if set.near.len() <= set.limit && (floor == 0 || set.near.len() >= *k) {
            return;
        }
        let counts = set.members.iter().map(|&slot| totals.of(slot));
        set.floor = floor_of(counts.filter(|&count| count > 0).collect(), *k);
        set.near.clear();
        for &slot in &set.members {
            let near = totals.of(slot) > set.floor;
            is_near[slot as usize] = near;
            if near {
                set.near.push(slot);
            }
        }
        set.limit = 2 * set.near.len().max(NEAR * *k);
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

/// The floor above which few of these counts lie, but k at least; 0 where they are few.
fn floor_of(mut counts: Vec<u64>, k: usize) -> u64 {
    let near = NEAR * k;
    if counts.len() <= near {
        return 0;
    }
    let floor = *counts.select_nth_unstable_by(near, |a, b| b.cmp(a)).1;
    let above = counts[..near].iter().filter(|&&count| count > floor).count();
    // Where many are level there, they are let through.
    if above < k { floor - 1 } else { floor }
}
