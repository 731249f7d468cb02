//! The tidemark T: for every partition, the cut below which the batch view holds everything and from which the
//! realtime view does.
//!
//! T is an exclusive upper bound of the batch view and the inclusive lower bound of the realtime view. Each move
//! makes a new generation, one higher than the last; T never moves back.

use crate::epoch::{EpochLength, TrustedTime};
use crate::offsets::TopicPartition;
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where an epoch boundary falls in one partition's log, with the folds over the log below it, so that whoever
/// starts reading there has the same clocks as one who read from the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The epoch that begins here: every record below has a lower epoch, every record from here on this or a higher
    /// one. `0` for the start of the log.
    pub epoch: i64,
    /// The first offset at or above the boundary.
    pub offset: i64,
    /// The ingest clock just below the cut; `0` where no record is below.
    pub clock: Millis,
    /// The newest trusted event time just below the cut.
    pub trusted: TrustedTime,
    /// xxh3 of the last record's value below the cut: tells a topic that was deleted and made anew. `None` where no
    /// record with a value is below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<u64>,
}

impl Cut {
    /// The start of a log whose first offset is `offset`.
    pub fn start(offset: i64) -> Cut {
        Cut { epoch: 0, offset, clock: 0, trusted: TrustedTime::default(), fingerprint: None }
    }

    /// The ingest clock with which reading from here on begins: at the boundary, even where the log has lost the
    /// record that had reached it, so that no epoch goes back.
    pub fn clock_from(&self, epochs: EpochLength) -> Millis {
        self.clock.max(epochs.boundary(self.epoch))
    }
}

/// How the reason of a held partition begins whose log is gone or another one: what it held beyond the cut can't be
/// read any more.
pub const LOG_LOST: &str = "the log that was archived is gone";

/// A tidemark: a cut for each partition of each topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tidemark {
    /// 0 for the first, one more at each flip.
    pub generation: i64,
    /// The cut of each partition.
    pub cuts: BTreeMap<TopicPartition, Cut>,
    /// Partitions that stayed at an older cut than the others, each with the reason: named in every answer.
    pub held: BTreeMap<TopicPartition, String>,
}

/// How one stored position of the realtime view relates to a tidemark's cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It holds everything from the cut up to its own end.
    Covers,
    /// It ends at or below the cut, or isn't there: it adds nothing, and nothing before the cut is missing.
    Below,
    /// It places the boundary at another offset, or starts above the cut: it can't be used at this tidemark.
    Differs,
}

/// Decides whether a position that ends at `to`, with `cuts` (epoch, first offset of that epoch or a higher one;
/// ascending, the first being where the position starts), reaches back to exactly `cut`.
///
/// An epoch without records has no entry of its own: its boundary falls where the next higher entry's does. One that
/// ends above the cut without having come by the boundary was folded from another log, or from one with a gap there.
pub fn reach(cuts: &[(i64, i64)], to: i64, cut: &Cut) -> Reach {
    match cuts.iter().find(|(epoch, _)| *epoch >= cut.epoch) {
        None if to > cut.offset => Reach::Differs,
        None => Reach::Below,
        Some(&(_, offset)) if offset == cut.offset => Reach::Covers,
        Some(_) => Reach::Differs,
    }
}

/// A tidemark's cuts as they are stored (a JSON array in Postgres): one entry a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCut {
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
    /// The cut itself.
    #[serde(flatten)]
    pub cut: Cut,
    /// Why the partition stayed behind, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

impl Tidemark {
    /// The stored form of the cuts, ordered by partition.
    pub fn to_stored(&self) -> Vec<StoredCut> {
        let stored = |(tp, cut): (&TopicPartition, &Cut)| StoredCut {
            topic: tp.topic.to_string(),
            partition: tp.partition,
            cut: cut.clone(),
            held: self.held.get(tp).cloned(),
        };
        self.cuts.iter().map(stored).collect()
    }

    /// The tidemark of a generation from its stored cuts.
    pub fn from_stored(generation: i64, stored: Vec<StoredCut>) -> Tidemark {
        let mut tidemark = Tidemark { generation, ..Tidemark::default() };
        for StoredCut { topic, partition, cut, held } in stored {
            let tp = TopicPartition::new(&topic, partition);
            if let Some(why) = held {
                tidemark.held.insert(tp.clone(), why);
            }
            tidemark.cuts.insert(tp, cut);
        }
        tidemark
    }

    /// The epoch below which all of a partition's records lie below this tidemark. A partition that is newer than the
    /// tidemark holds nothing that was appended before the boundary: the run looked for partitions after it had read.
    pub fn epoch(&self, tp: &TopicPartition) -> i64 {
        let free = self.cuts.iter().filter(|(tp, _)| !self.held.contains_key(tp)).map(|(_, cut)| cut.epoch);
        let boundary = || free.min().or(self.cuts.values().map(|cut| cut.epoch).min()).unwrap_or(0);
        self.cuts.get(tp).map_or_else(boundary, |cut| cut.epoch)
    }

    /// The cut of a partition; the very start of the log for one that is newer than this tidemark.
    pub fn cut(&self, tp: &TopicPartition) -> Cut {
        self.cuts.get(tp).cloned().unwrap_or_else(|| Cut::start(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(epoch: i64, offset: i64) -> Cut {
        Cut { epoch, ..Cut::start(offset) }
    }

    #[test]
    fn a_position_covers_a_cut_only_where_both_place_the_boundary_at_the_same_offset() {
        let cuts = [(0, 0), (5, 40), (9, 70)];
        assert_eq!(reach(&cuts, 90, &cut(0, 0)), Reach::Covers);
        assert_eq!(reach(&cuts, 90, &cut(5, 40)), Reach::Covers);
        // Epochs 6, 7 and 8 hold nothing: their boundaries fall at the next record.
        assert_eq!(reach(&cuts, 90, &cut(7, 70)), Reach::Covers);
        assert_eq!(reach(&cuts, 90, &cut(7, 69)), Reach::Differs);
        assert_eq!(reach(&cuts, 90, &cut(10, 90)), Reach::Below);
        assert_eq!(reach(&[], 0, &cut(0, 0)), Reach::Below);
        // It went past the boundary and saw none.
        assert_eq!(reach(&cuts, 91, &cut(10, 90)), Reach::Differs);
        // Started above the cut.
        assert_eq!(reach(&[(5, 40)], 50, &cut(3, 20)), Reach::Differs);
    }
}
