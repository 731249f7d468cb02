//! Where the tidemark may move: the decision that makes one boundary out of what each partition has sealed.
//!
//! No cut moves back, and every cut is one that the partition's chain has. All partitions that aren't held take
//! their first cut at or above the same boundary.

use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Tidemark};
use std::collections::BTreeMap;

/// The next generation's tidemark from the cuts that each partition's chain reached (ascending, from the current cut
/// on) and the partitions that are held, with their reasons.
///
/// The boundary is the newest that all partitions that aren't held have sealed. A held partition that lies below it
/// takes its newest cut and is named; one that reached it is like any other. If all are held, the boundary is the
/// newest of any.
pub fn next_tidemark(
    current: &Tidemark,
    reached: &BTreeMap<TopicPartition, Vec<Cut>>,
    held: &BTreeMap<TopicPartition, String>,
) -> Tidemark {
    let newest = |(tp, cuts): (&TopicPartition, &Vec<Cut>)| Some((held.contains_key(tp), cuts.last()?.epoch));
    let free = reached.iter().filter_map(newest).filter(|(held, _)| !held).map(|(_, epoch)| epoch);
    let any = reached.iter().filter_map(newest).map(|(_, epoch)| epoch);
    let boundary = free.min().or(any.max());

    let mut next = Tidemark { generation: current.generation + 1, ..Tidemark::default() };
    next.cuts = current.cuts.clone();
    for (tp, cuts) in reached {
        let taken = cuts.iter().find(|cut| Some(cut.epoch) >= boundary).or(cuts.last());
        let behind = |cut: &&Cut| current.cuts.get(tp).is_some_and(|old| cut.offset < old.offset);
        if let Some(cut) = taken.filter(|cut| !behind(cut)) {
            next.cuts.insert(tp.clone(), cut.clone());
        }
    }
    for (tp, cut) in &next.cuts {
        if boundary.is_none_or(|boundary| cut.epoch < boundary) {
            let unknown = || "the partition was not read: its topic is not there".to_owned();
            next.held.insert(tp.clone(), held.get(tp).cloned().unwrap_or_else(unknown));
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(epoch: i64, offset: i64) -> Cut {
        Cut { epoch, ..Cut::start(offset) }
    }

    fn tp(partition: i32) -> TopicPartition {
        TopicPartition::new("t", partition)
    }

    /// `reached`: per partition its (epoch, offset) cuts; `held`: partitions; expected: (epoch, offset, held).
    fn check(reached: &[&[(i64, i64)]], held: &[i32], expected: &[(i64, i64, bool)]) {
        let cuts =
            |list: &&[(i64, i64)]| list.iter().map(|&(epoch, offset)| cut(epoch, offset)).collect::<Vec<_>>();
        let reached: BTreeMap<_, _> = (0..).map(tp).zip(reached.iter().map(cuts)).collect();
        let current = reached.iter().map(|(tp, cuts)| (tp.clone(), cuts[0].clone())).collect();
        let current = Tidemark { generation: 4, cuts: current, ..Tidemark::default() };
        let held = held.iter().map(|&p| (tp(p), "idle".to_owned())).collect();
        let next = next_tidemark(&current, &reached, &held);
        let found: Vec<_> =
            next.cuts.iter().map(|(tp, cut)| (cut.epoch, cut.offset, next.held.contains_key(tp))).collect();
        assert_eq!(found, expected);
        assert_eq!(next.generation, 5);
    }

    #[test]
    fn all_take_their_first_cut_at_the_boundary_that_all_have_sealed() {
        check(&[&[(0, 0), (5, 10), (6, 20)], &[(0, 0), (5, 7)]], &[], &[(5, 10, false), (5, 7, false)]);
        // An epoch without records: the boundary falls on the next cut.
        check(&[&[(0, 0), (4, 10), (9, 20)], &[(0, 0), (6, 7)]], &[], &[(9, 20, false), (6, 7, false)]);
        // One that has not moved keeps all others, unless it is held.
        check(&[&[(3, 5), (6, 20)], &[(3, 8)]], &[], &[(3, 5, false), (3, 8, false)]);
        check(&[&[(3, 5), (6, 20)], &[(3, 8)]], &[1], &[(6, 20, false), (3, 8, true)]);
        // A held one that reached the boundary all the same is not named.
        check(&[&[(3, 5), (6, 20)], &[(3, 8), (6, 9)]], &[1], &[(6, 20, false), (6, 9, false)]);
        check(&[&[(3, 5), (6, 20)], &[(3, 8)]], &[0, 1], &[(6, 20, false), (3, 8, true)]);
        check(&[], &[], &[]);
    }

    #[test]
    fn a_partition_that_was_not_read_stays_and_is_named() {
        let current =
            Tidemark { cuts: [(tp(0), cut(3, 5)), (tp(1), cut(3, 8))].into(), ..Tidemark::default() };
        let reached = [(tp(0), vec![cut(3, 5), cut(7, 9)])].into();
        let next = next_tidemark(&current, &reached, &BTreeMap::new());
        assert_eq!(next.cuts[&tp(1)], cut(3, 8));
        assert!(next.held[&tp(1)].contains("not there"));
    }

    proptest! {
        #[test]
        fn cuts_lie_on_the_chains_never_move_back_and_the_free_ones_are_at_one_boundary(
            chains in prop::collection::vec((prop::collection::vec((1i64..4, 1i64..9), 1..6), any::<bool>()), 1..6),
        ) {
            let mut reached = BTreeMap::new();
            let mut held = BTreeMap::new();
            for (partition, (steps, stuck)) in (0..).zip(&chains) {
                let sum = |at: &mut (i64, i64), step: &(i64, i64)| {
                    *at = (at.0 + step.0, at.1 + step.1);
                    Some(cut(at.0, at.1))
                };
                reached.insert(tp(partition), steps.iter().scan((0, 0), sum).collect::<Vec<_>>());
                if *stuck {
                    held.insert(tp(partition), "idle".to_owned());
                }
            }
            let current = reached.iter().map(|(tp, cuts)| (tp.clone(), cuts[0].clone())).collect();
            let next = next_tidemark(&Tidemark { cuts: current, ..Tidemark::default() }, &reached, &held);
            prop_assert!(next.held.keys().all(|tp| held.contains_key(tp)));
            let free = || reached.iter().filter(|(tp, _)| !held.contains_key(tp));
            let boundary = free().filter_map(|(_, cuts)| cuts.last()).map(|cut| cut.epoch).min();
            for (tp, cuts) in &reached {
                let at = cuts.iter().position(|cut| *cut == next.cuts[tp]);
                prop_assert!(at.is_some(), "{tp} took a cut that its chain hasn't");
                if let (Some(boundary), false) = (boundary, next.held.contains_key(tp)) {
                    prop_assert!(next.cuts[tp].epoch >= boundary);
                    prop_assert!(at == Some(0) || cuts[at.unwrap() - 1].epoch < boundary, "{tp} is not the first");
                }
            }
        }
    }
}
