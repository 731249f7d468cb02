//! Top-k over a window: sets of items by their totals, of which only those that were touched are ranked again.
//!
//! Of a large set few items are ever near the top: those that rank before a floor, an item with its total, which is chosen
//! so that they are a few times k. As long as there are k of them, the top k are among them, whatever the others are; and
//! what touches only others changes nothing. Nor does what ranks behind the last of the top k, before and after.

use super::changes::{Changes, Ranking};
use super::slots::{NONE, Slots};
use super::totals::Totals;
use crate::live;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::Metric;
use std::cmp::{Ordering, Reverse};
use std::mem::{replace, take};

/// How many times k items rank before a floor that is chosen.
const NEAR: usize = 4;

/// Where an item is.
#[derive(Clone, Copy)]
pub(super) struct Item {
    set: u32,
    /// Its place among the set's members.
    member: u32,
    /// Its place among those near the top.
    near: u32,
}

impl Default for Item {
    fn default() -> Item {
        Item { set: NONE, member: NONE, near: NONE }
    }
}

/// An item near the top.
struct Near {
    total: u64,
    item: Value,
    slot: u32,
}

impl Near {
    /// The highest total first, then by item.
    fn by_rank(&self, other: &Near) -> Ordering {
        other.total.cmp(&self.total).then_with(|| by_item(&self.item, &other.item))
    }
}

/// The order of items: in most sets they are integers, which are compared right here.
#[inline]
fn by_item(one: &Value, other: &Value) -> Ordering {
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => one.cmp(other),
        _ => one.cmp(other),
    }
}

/// The items of one key.
#[derive(Default)]
struct Set {
    /// The slots of all its items.
    members: Vec<u32>,
    /// Those that rank before the floor.
    near: Vec<Near>,
    /// The total and the item that come next; `None` where all items are near.
    floor: Option<(u64, Value)>,
    /// Whether something near the top is another since it was ranked.
    is_touched: bool,
    /// Whether the top k may be others.
    is_due: bool,
    /// The items that are published with their counts, by item.
    published: Vec<(Value, u64)>,
    /// The one of them that ranks last, where they are k.
    last: Option<(u64, Value)>,
}

impl Set {
    /// Whether an item ranks before the floor; before none does what is in the window at all.
    fn is_near_top(
        &self,
        total: u64,
        item: impl FnOnce() -> Result<Value, CodecError>,
    ) -> Result<bool, CodecError> {
        match &self.floor {
            Some((count, floor)) if total == *count => Ok(by_item(&item()?, floor).is_lt()),
            Some((count, _)) => Ok(total > *count),
            None => Ok(total > 0),
        }
    }

    /// Whether an item of this total is among the top k as they are published, or would come among them.
    fn is_of_the_top(&self, total: u64, item: &Value) -> bool {
        let is_of =
            |(count, last): &(u64, Value)| total > *count || total == *count && by_item(item, last).is_le();
        self.last.as_ref().is_none_or(is_of)
    }
}

/// The sets of a metric.
pub(super) struct Ranked {
    k: usize,
    /// Of how many values a set's key is.
    by: usize,
    pub(super) totals: Totals<Item>,
    sets: Slots<Set>,
    /// The sets that a pass touches, and the places of those near the top of one: lists that are used again.
    touched: Vec<u32>,
    order: Vec<u32>,
}

impl Ranked {
    pub(super) fn new(metric: &Metric, k: usize) -> Ranked {
        let (totals, sets, touched, order) = Default::default();
        Ranked { k, by: metric.by.len(), totals, sets, touched, order }
    }

    /// Adds to the totals of items, whose keys begin with their sets'. Hands on each slot with what was added.
    pub(super) fn add(
        &mut self,
        cells: &[(&[u8], u64)],
        mut each: impl FnMut(u32, u64),
    ) -> Result<(), CodecError> {
        let Ranked { by, totals, sets, .. } = self;
        // The set that was last, and its key: in a segment a set's items come one after the other.
        let mut known: Option<(&[u8], u32)> = None;
        totals.add(cells, |slot, key, count, item| {
            if item.set == NONE {
                let set = match known {
                    Some((begin, set)) if key.starts_with(begin) => set,
                    _ => {
                        let mut rest = key;
                        for _ in 0..*by {
                            Value::decode(&mut rest)?;
                        }
                        let begin = &key[..key.len() - rest.len()];
                        known.insert((begin, sets.take(begin))).1
                    }
                };
                let members = &mut sets.of_mut(set).members;
                (item.set, item.member) = (set, members.len() as u32);
                members.push(slot);
            }
            each(slot, count);
            Ok(())
        })
    }

    /// Writes what differs from what is published.
    ///
    /// # Errors
    /// Where a key isn't one of the metric's.
    pub(super) fn changes(&mut self, metric: &Metric, out: &mut Changes) -> Result<(), CodecError> {
        let (mut slots, mut sets) = (take(&mut self.totals.touched), take(&mut self.touched));
        for &slot in &slots {
            if let Some(set) = self.see(slot)? {
                sets.push(set);
            }
        }
        for set in sets.drain(..) {
            self.narrow(set)?;
            self.rank(metric, set, out)?;
        }
        for slot in slots.drain(..) {
            if self.totals.slots.of(slot).total == 0 {
                self.leave(slot);
            }
        }
        (self.totals.touched, self.touched) = (slots, sets);
        Ok(())
    }

    /// Takes in that a total was touched. Gives the set where it is the first of it that changes anything near the top: one
    /// that neither was there nor is now doesn't.
    fn see(&mut self, slot: u32) -> Result<Option<u32>, CodecError> {
        let Ranked { totals, sets, .. } = self;
        let (key, held) = totals.slots.both(slot);
        held.is_touched = false;
        let (total, number, place) = (held.total, held.of.set, held.of.near as usize);
        let (by, set) = sets.both(number);
        let item = || Value::decode(&mut &key[by.len()..]);
        if let Some(near) = set.near.get_mut(place) {
            let was = replace(&mut near.total, total);
            if was == total {
                return Ok(None);
            }
            let near = &set.near[place];
            set.is_due |= set.is_of_the_top(was, &near.item) || set.is_of_the_top(total, &near.item);
            if !set.is_near_top(total, || Ok(near.item.clone()))? {
                held.of.near = NONE;
                set.near.swap_remove(place);
                if let Some(moved) = set.near.get(place) {
                    totals.slots.of_mut(moved.slot).of.near = place as u32;
                }
            }
        } else if set.is_near_top(total, item)? {
            let item = item()?;
            set.is_due |= set.is_of_the_top(total, &item);
            held.of.near = set.near.len() as u32;
            set.near.push(Near { total, item, slot });
        } else {
            return Ok(None);
        }
        Ok((!replace(&mut set.is_touched, true)).then_some(number))
    }

    /// Where too few are near the top of a set to tell the top k, or too many, chooses another floor.
    fn narrow(&mut self, number: u32) -> Result<(), CodecError> {
        let (k, most, slots) = (self.k, NEAR * self.k, &mut self.totals.slots);
        let (by, set) = self.sets.both(number);
        if set.near.len() < k && set.floor.is_some() {
            set.near.clear();
            let totals = set.members.iter().map(|&slot| slots.of(slot).total).filter(|&total| total > 0);
            let mut totals: Vec<u64> = totals.collect();
            // Only those that may be before the floor, and those that are level with it, are looked at.
            let level = match totals.len() > most {
                true => *totals.select_nth_unstable_by_key(most, |&total| Reverse(total)).1,
                false => 1,
            };
            for &slot in &set.members {
                let (key, held) = slots.both(slot);
                held.of.near = NONE;
                if held.total >= level {
                    let item = Value::decode(&mut &key[by.len()..])?;
                    set.near.push(Near { total: held.total, item, slot });
                }
            }
        } else if set.near.len() <= 2 * most {
            return Ok(());
        }
        set.floor = None;
        if set.near.len() > most {
            set.near.select_nth_unstable_by(most, Near::by_rank);
            set.near[most..].iter().for_each(|near| slots.of_mut(near.slot).of.near = NONE);
            let Near { total, item, .. } = set.near.swap_remove(most);
            set.floor = Some((total, item));
            set.near.truncate(most);
            set.near.shrink_to(2 * most);
        }
        for (place, near) in (0..).zip(&set.near) {
            slots.of_mut(near.slot).of.near = place;
        }
        Ok(())
    }

    /// Ranks a set, if that is due, and writes what differs from what is published.
    fn rank(&mut self, metric: &Metric, number: u32, out: &mut Changes) -> Result<(), CodecError> {
        let Ranked { k, sets, order, .. } = self;
        let (mut by, set) = sets.both(number);
        set.is_touched = false;
        if !replace(&mut set.is_due, false) {
            return Ok(());
        }
        let near = |place: &u32| &set.near[*place as usize];
        order.clear();
        // Most often k of them rank no later than the last that is published: then these are all to choose from.
        let is_of_the_top = |place: &u32| set.is_of_the_top(near(place).total, &near(place).item);
        order.extend((0..set.near.len() as u32).filter(is_of_the_top));
        if order.len() < *k {
            order.clear();
            order.extend(0..set.near.len() as u32);
        }
        if *k < order.len() {
            order.select_nth_unstable_by(*k, |a, b| near(a).by_rank(near(b)));
            order.truncate(*k);
        }
        order.sort_unstable_by(|a, b| by_item(&near(a).item, &near(b).item));
        let best = || order.iter().map(near);
        let is_same = |(near, (item, count)): (&Near, &(Value, u64))| {
            near.total == *count && by_item(&near.item, item).is_eq()
        };
        if order.len() == set.published.len() && best().zip(&set.published).all(is_same) {
            return Ok(());
        }
        let last = best().max_by(|a, b| a.by_rank(b)).filter(|_| order.len() == *k);
        let last = last.map(|near| (near.total, near.item.clone()));
        let best: Vec<(Value, u64)> = best().map(|near| (near.item.clone(), near.total)).collect();
        let known = replace(&mut set.published, best);
        set.last = last;
        if set.published.is_empty() {
            live::name(metric, &mut by, out.drops.next())?;
            out.drops.end();
            return Ok(());
        }
        let (first, texts) = (out.members.len(), &mut out.members);
        live::name(metric, &mut by, texts.next())?;
        texts.end();
        let find = |list: &[(Value, u64)], item: &Value| {
            list.binary_search_by(|(other, _)| by_item(other, item)).ok().map(|at| list[at].1)
        };
        for (item, _) in known.iter().filter(|(item, _)| find(&set.published, item).is_none()) {
            live::item(item, texts.next());
            texts.end();
        }
        let put = texts.len();
        for (item, count) in set.published.iter().filter(|(item, count)| find(&known, item) != Some(*count)) {
            live::count(*count, texts.next());
            texts.end();
            live::item(item, texts.next());
            texts.end();
        }
        let end = texts.len();
        out.rankings.push(Ranking { anew: known.is_empty(), first, put, end });
        Ok(())
    }

    /// Lets go of an item whose total is 0.
    fn leave(&mut self, slot: u32) {
        let slots = &mut self.totals.slots;
        let Item { set: number, member, .. } = slots.of(slot).of;
        let set = self.sets.of_mut(number);
        set.members.swap_remove(member as usize);
        if let Some(&moved) = set.members.get(member as usize) {
            slots.of_mut(moved).of.member = member;
        }
        if set.members.is_empty() {
            self.sets.free(number);
        }
        slots.free(slot);
    }
}
