//! Whether a group of the realtime view can be compared: whether it holds exactly the records between two tidemarks, as
//! it says itself. Pure.
//!
//! Its own record of where each epoch began must be the manifests': one boundary elsewhere, and its cells are cells of
//! other records.

use shared_model::metric::MetricVersion;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Reach, Tidemark, reach};
use shared_model::view::{Header, Slice};
use std::collections::{BTreeMap, BTreeSet};

/// What one partition brings from one tidemark to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// The partition.
    pub(crate) tp: TopicPartition,
    /// Its cut at T0.
    pub(crate) from: Cut,
    /// Its cut at T1.
    pub(crate) to: Cut,
    /// The manifests' cuts between.
    pub(crate) between: Vec<Cut>,
}

/// The partitions that bring anything. `reached`: the cuts on each partition's chain of manifests.
pub(crate) fn spans(
    current: &Tidemark,
    next: &Tidemark,
    reached: &BTreeMap<TopicPartition, Vec<Cut>>,
) -> Vec<Span> {
    let span = |(tp, to): (&TopicPartition, &Cut)| {
        let from = current.cut(tp);
        let inside = |cut: &&Cut| from.offset < cut.offset && cut.offset < to.offset;
        let between = reached.get(tp).into_iter().flatten().filter(inside).cloned().collect();
        (from.offset < to.offset).then(|| Span { tp: tp.clone(), from, to: to.clone(), between })
    };
    next.cuts.iter().filter_map(span).collect()
}

/// Why a group can't be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It isn't there, or hasn't come so far: perhaps later.
    NotYet(Option<i64>),
    /// It has a boundary at another offset than the manifests: the epoch and their offset.
    Differs(i64, i64),
    /// The log had lost records before the speed layer read them.
    Gap(i64, i64),
}

impl Span {
    /// Whether a group of the partition holds exactly the records of the span.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn judge(&self, header: Option<&Header>) -> Result<(), Unfit> {
        let Some(header) = header.filter(|header| header.to >= self.to.offset) else {
            return Err(Unfit::NotYet(header.map(|header| header.to)));
        };
        for cut in std::iter::once(&self.from).chain(&self.between).chain([&self.to]) {
            match reach(&header.cuts, header.to, cut) {
                Reach::Covers => {}
                // It ends exactly there: the boundary's record is still to come.
                Reach::Below if header.to == cut.offset => {}
                Reach::Below | Reach::Differs => return Err(Unfit::Differs(cut.epoch, cut.offset)),
            }
        }
        let lost = header.gaps.iter().find(|(from, to)| *to > self.from.offset && *from < self.to.offset);
        lost.map_or(Ok(()), |&(from, to)| Err(Unfit::Gap(from, to)))
    }

    /// Which of these versions the group doesn't hold from the span's start on.
    pub(crate) fn lacks(&self, header: &Header, versions: &BTreeSet<MetricVersion>) -> Vec<MetricVersion> {
        let lacks = |version: &&MetricVersion| {
            header.metrics.get(version).is_none_or(|&from| from > self.from.offset)
        };
        versions.iter().filter(lacks).copied().collect()
    }

    /// Whether a slice's records are the span's.
    pub(crate) fn has(&self, slice: Slice) -> bool {
        matches!(slice, Slice::Epoch(epoch) if self.from.epoch <= epoch && epoch < self.to.epoch)
    }
}

impl Unfit {
    /// For people.
    pub(crate) fn say(&self, span: &Span, group: u32) -> String {
        let (tp, wanted) = (&span.tp, span.to.offset);
        match self {
            Unfit::NotYet(None) => format!("{tp} group {group} is not in redis"),
            Unfit::NotYet(Some(to)) => format!("{tp} group {group} reached only offset {to} of {wanted}"),
            Unfit::Differs(epoch, offset) => format!(
                "{tp} group {group} has not the boundary of epoch {epoch} at offset {offset}, where the manifests have it"
            ),
            Unfit::Gap(from, to) => {
                format!("{tp} group {group} lacks offsets {from} to {to}, which the log had lost")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::view::HEADER_VERSION;

    fn cut(epoch: i64, offset: i64) -> Cut {
        Cut { epoch, ..Cut::start(offset) }
    }

    fn header(to: i64, cuts: &[(i64, i64)]) -> Header {
        Header {
            v: HEADER_VERSION,
            incarnation: 1,
            to,
            clock: 0,
            trusted: Default::default(),
            watermark: None,
            panes_from: None,
            pane_holes: Vec::new(),
            cuts: cuts.to_vec(),
            metrics: [(MetricVersion(7), 10)].into(),
            seq: 0,
            gaps: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    /// From (3, 20) to (9, 60), with a boundary at (5, 40) between.
    fn span() -> Span {
        let tp = TopicPartition::new("t", 0);
        let at = |cut: Cut| Tidemark { cuts: [(tp.clone(), cut)].into(), ..Tidemark::default() };
        let chain = vec![cut(3, 20), cut(5, 40), cut(9, 60), cut(11, 80)];
        let mut spans = spans(&at(cut(3, 20)), &at(cut(9, 60)), &[(tp.clone(), chain)].into());
        assert_eq!(spans[0].between, [cut(5, 40)]);
        spans.remove(0)
    }

    #[test]
    fn a_group_is_compared_only_if_it_cuts_the_log_where_every_manifest_does() {
        let check = |header: Option<Header>, expected: Result<(), Unfit>| {
            assert_eq!(span().judge(header.as_ref()), expected, "{header:?}");
        };
        let all = [(0, 0), (3, 20), (5, 40), (9, 60)];
        check(None, Err(Unfit::NotYet(None)));
        check(Some(header(59, &all[..3])), Err(Unfit::NotYet(Some(59))));
        check(Some(header(60, &all[..3])), Ok(()));
        check(Some(header(61, &all)), Ok(()));
        check(Some(header(90, &all[1..])), Ok(()));
        // Epochs without records have no boundary of their own.
        check(Some(header(90, &[(3, 20), (6, 40), (10, 60)])), Ok(()));
        check(Some(header(90, &[(2, 20), (4, 40), (9, 60)])), Err(Unfit::Differs(3, 20)));
        check(Some(header(90, &[(3, 20), (5, 41), (9, 60)])), Err(Unfit::Differs(5, 40)));
        check(Some(header(90, &[(3, 20), (9, 60)])), Err(Unfit::Differs(5, 40)));
        check(Some(header(90, &all[..3])), Err(Unfit::Differs(9, 60)));
        check(Some(header(90, &all[2..])), Err(Unfit::Differs(3, 20)));
        let with_gap = |gap| Some(Header { gaps: vec![gap], ..header(90, &all) });
        check(with_gap((10, 20)), Ok(()));
        check(with_gap((10, 21)), Err(Unfit::Gap(10, 21)));
        check(with_gap((60, 70)), Ok(()));
    }

    #[test]
    fn only_the_slices_and_versions_between_the_cuts_are_compared() {
        let held = [2, 3, 8, 9].map(|epoch| span().has(Slice::Epoch(epoch)));
        assert_eq!(held, [false, true, true, false]);
        assert!(!span().has(Slice::Pane(5)));
        let versions: BTreeSet<MetricVersion> = [MetricVersion(7), MetricVersion(8)].into();
        assert_eq!(span().lacks(&header(90, &[]), &versions), [MetricVersion(8)]);
        let late = Header { metrics: [(MetricVersion(7), 21)].into(), ..header(90, &[]) };
        assert_eq!(span().lacks(&late, &versions).len(), 2);
    }
}
