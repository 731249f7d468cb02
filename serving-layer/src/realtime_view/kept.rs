//! What is kept in memory of the realtime view, all within one bound: groups as they were read, and tallies of what they hold.

use super::Want;
use super::held::Held;
use super::tally::{Tally, TallyOf};
use hashbrown::Equivalent;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Options, OptionsBuilder, Weighter};
use shared_model::metric::MetricVersion;
use std::sync::Arc;

/// A part of a group: its key, and which segments.
pub(super) type Place = (String, Want);

/// Groups and tallies, those that were asked for of late.
pub(super) struct Kept(Cache<Name, Thing, Size>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Name {
    Group(String, Want),
    Tally(MetricVersion, Vec<u8>),
}

/// A name that is looked for: hashed as [`Name`] is, whose variants stand in the same order.
#[derive(Hash)]
enum Sought<'a> {
    Group(&'a str, Want),
    Tally(MetricVersion, &'a [u8]),
}

#[derive(Clone)]
enum Thing {
    Group(Arc<Held>),
    Tally(Arc<Tally>),
}

#[derive(Clone)]
struct Size;

/// Bytes that a place takes, whatever stands there: its name, and what finds it.
const PLACE: usize = size_of::<Name>() + size_of::<Thing>() + 64;

impl Equivalent<Name> for Sought<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        match (self, name) {
            (Sought::Group(key, want), Name::Group(held, part)) => key == held && want == part,
            (Sought::Tally(version, key), Name::Tally(of, held)) => version == of && *key == held.as_slice(),
            _ => false,
        }
    }
}

impl Weighter<Name, Thing> for Size {
    fn weight(&self, name: &Name, thing: &Thing) -> u64 {
        let named = match name {
            Name::Group(key, _) => key.len(),
            Name::Tally(_, key) => key.len(),
        };
        let size = match thing {
            Thing::Group(held) => held.size,
            Thing::Tally(tally) => tally.size(),
        };
        (PLACE + named + size) as u64
    }
}

/// So much room for all, in one piece: a group may take all of it.
fn room(memory: u64) -> Options {
    let mut options = OptionsBuilder::new();
    options.shards(1).estimated_items_capacity(1_024).weight_capacity(memory);
    options.build().expect("both capacities are set")
}

impl Kept {
    /// Nothing yet, and at most so many bytes.
    pub(super) fn new(memory: u64) -> Kept {
        let (hash, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Kept(Cache::with_options(room(memory), Size, hash, lifecycle))
    }

    /// A part of a group as it was read.
    pub(super) fn group(&self, key: &str, want: Want) -> Option<Arc<Held>> {
        match self.0.get(&Sought::Group(key, want))? {
            Thing::Group(held) => Some(held),
            Thing::Tally(_) => None,
        }
    }

    /// Keeps a part of a group.
    pub(super) fn keep_group(&self, (key, want): Place, held: Arc<Held>) {
        self.0.insert(Name::Group(key, want), Thing::Group(held));
    }

    /// Lets go of a part of a group.
    pub(super) fn forget_group(&self, (key, want): &Place) {
        self.0.remove(&Sought::Group(key, *want));
    }

    /// A key's tally.
    pub(super) fn tally(&self, (version, key): &TallyOf) -> Option<Arc<Tally>> {
        match self.0.get(&Sought::Tally(*version, key))? {
            Thing::Tally(tally) => Some(tally),
            Thing::Group(_) => None,
        }
    }

    /// Keeps a key's tally.
    pub(super) fn keep_tally(&self, (version, key): TallyOf, tally: Arc<Tally>) {
        self.0.insert(Name::Tally(version, key), Thing::Tally(tally));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime_view::held::{Taken, Told, header, take};

    #[test]
    fn groups_and_tallies_are_found_by_their_own_names_within_one_bound() {
        let kept = Kept::new(1 << 20);
        let told = Told { header: header().to_json().into_bytes(), fields: Vec::new() };
        let Taken::Held(held) = take(told, None) else { panic!("it can be read") };
        let metric = crate::tests::catalog().live("geo_top_5m").expect("a top-k").clone();
        let of = |key: &str| (metric.version, key.as_bytes().to_vec());
        let counted = || Tally::count(&metric, b"", 10, std::iter::empty(), |_| true);
        let tally = || Arc::new(counted().expect("nothing is counted"));
        kept.keep_group(("a".to_owned(), Want::Panes), Arc::new(held));
        assert!(kept.group("a", Want::Panes).is_some());
        assert!(kept.group("a", Want::Epochs).is_none() && kept.group("b", Want::Panes).is_none());
        assert!(kept.tally(&of("a")).is_none());
        kept.keep_tally(of("a"), tally());
        assert!(kept.tally(&of("a")).is_some() && kept.tally(&of("b")).is_none());
        // They are counted in the bound: it holds fewer of the same size than come.
        (0..20_000).for_each(|key| kept.keep_tally(of(&key.to_string()), tally()));
        let there = (0..20_000).filter(|key| kept.tally(&of(&key.to_string())).is_some()).count();
        assert!((1..20_000).contains(&there), "{there}");
        kept.forget_group(&("a".to_owned(), Want::Panes));
        assert!(kept.group("a", Want::Panes).is_none());
    }
}
