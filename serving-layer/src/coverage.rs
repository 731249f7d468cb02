//! What an answer reaches: for each group that was read, whether it adds anything to the batch view, and what the
//! answer must then say of itself.
//!
//! A group counts only where it places the tidemark's boundary at the tidemark's own offset. Whatever can't be
//! promised becomes a reason; an answer without reasons is complete up to its `as_of`.

use crate::batch_view::Lost;
use crate::realtime_view::Group;
use shared_model::catalog::{Catalog, Stream};
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Reach, Tidemark, reach};
use shared_model::time::Millis;
use shared_model::view::{Header, Mark};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What has been found so far.
#[derive(Debug, Default)]
pub struct Coverage {
    partitions: BTreeMap<TopicPartition, Reached>,
    /// Of each topic, how many offsets back repeats were recognised, where that is less than its stream asks for.
    horizons: BTreeMap<Arc<str>, i64>,
    reasons: Reasons,
    /// How many groups added cells.
    pub groups: u64,
    /// How many cells were merged from the realtime view.
    pub cells: u64,
}

/// How far one partition is read.
#[derive(Debug, Clone, Copy)]
struct Reached {
    as_of: Millis,
    /// How far the batch view alone reaches.
    below: Millis,
    watermark: Option<Millis>,
    caught_up: bool,
}

impl Coverage {
    /// Notes a reason why the answer can't be called complete.
    pub fn doubt(&mut self, reason: impl Into<String>) {
        self.reasons.note(reason.into(), String::new());
    }

    /// Notes a reason that concerns one of several like things: they are counted, the first few named.
    pub fn doubt_of(&mut self, reason: impl Into<String>, which: impl ToString) {
        self.reasons.note(reason.into(), which.to_string());
    }

    /// The header of a group, if there is one that can be read; what of the group can't be read is noted.
    pub fn header<'a>(&mut self, tp: &TopicPartition, group: Option<&'a Group>) -> Option<&'a Header> {
        let group = group?;
        if !group.unknown.is_empty() {
            self.doubt_of("groups of the realtime view hold fields of an unknown layout", tp);
        }
        if let Err(error) = &group.header {
            self.doubt_of(format!("headers of the realtime view can't be decoded: {error}"), tp);
        }
        group.header.as_ref().ok()
    }

    /// Notes the topics of metrics' streams of which no partition is among `known`.
    pub fn unknown_topics(
        &mut self,
        catalog: &Catalog,
        metrics: &[&Metric],
        known: &BTreeSet<TopicPartition>,
    ) {
        for stream in metrics.iter().flat_map(|metric| catalog.streams_of(metric)) {
            if !known.iter().any(|tp| tp.topic == stream.topic) {
                self.doubt(format!("no partition of topic {} is known yet", stream.topic));
            }
        }
    }

    /// Judges one group against its partition's cut, for the metrics that are asked of it. Whether its cells from the
    /// cut's epoch on are to be merged.
    pub fn judge(
        &mut self,
        catalog: &Catalog,
        tp: &TopicPartition,
        header: Option<&Header>,
        tidemark: &Tidemark,
        metrics: &[&Metric],
    ) -> bool {
        let (below, cut) = (batch_reach(catalog, tp, tidemark), &tidemark.cut(tp));
        // A group that is being rebuilt may not have reached the cut yet: its panes start earlier.
        let there = header.filter(|header| header.to >= cut.offset);
        let reach = there.map_or(Reach::Below, |header| reach(&header.cuts, header.to, cut));
        let (Some(header), Reach::Covers) = (header, reach) else {
            if reach == Reach::Differs {
                let why = "the realtime view was not cut where the tidemark is, and is left out until the speed \
                           layer has rebuilt it";
                self.doubt_of(why, tp);
            }
            self.reached(tp, below);
            return false;
        };
        for metric in metrics {
            let reason = match header.metrics.get(&metric.version) {
                Some(from) if *from <= cut.offset => continue,
                Some(_) => "is in the realtime view only from above the tidemark",
                None => "is not in the realtime view in the catalog's version",
            };
            self.doubt_of(format!("metric {} {reason}", metric.name), tp);
        }
        for (from, to) in header.gaps.iter().filter(|(_, to)| *to > cut.offset) {
            self.doubt_of(format!("the log had lost offsets {from} to {to} before they were read"), tp);
        }
        self.group(catalog, tp, header, below, cut.offset);
        true
    }

    /// Notes a group whose panes are read.
    pub fn live(&mut self, catalog: &Catalog, tp: &TopicPartition, header: &Header, tidemark: &Tidemark) {
        self.group(catalog, tp, header, batch_reach(catalog, tp, tidemark), 0);
    }

    /// Takes in how far a group reaches, and how far back repeats were recognised among its records from an offset on.
    fn group(&mut self, catalog: &Catalog, tp: &TopicPartition, header: &Header, below: Reached, from: i64) {
        let as_of = header.clock.max(below.below);
        self.reached(tp, Reached { as_of, watermark: header.watermark, ..below });
        self.groups += 1;
        let Some(stream) = catalog.stream_of_topic(&tp.topic) else { return };
        let (asked, found) = (stream.dedup_horizon, header.horizon_from(from, stream.dedup_horizon));
        if found < asked {
            let known = self.horizons.entry(tp.topic.clone()).or_insert(found);
            *known = found.min(*known);
        }
    }

    /// How many offsets back a repeat of a stream is recognised in this answer, before the batch run that covers it.
    pub fn horizon(&self, stream: &Stream) -> i64 {
        self.horizons.get(&stream.topic).copied().unwrap_or(stream.dedup_horizon)
    }

    /// Notes a partition of which only the batch view is read.
    pub fn batch_alone(&mut self, catalog: &Catalog, tp: &TopicPartition, tidemark: &Tidemark) {
        self.reached(tp, batch_reach(catalog, tp, tidemark));
    }

    /// Notes that only the batch view is read for metrics: each partition that feeds them is reached up to its cut.
    pub fn reach_of_batch(&mut self, catalog: &Catalog, metrics: &[&Metric], tidemark: &Tidemark) {
        for tp in tidemark.cuts.keys().filter(|tp| feeds(catalog, metrics, tp)) {
            self.batch_alone(catalog, tp, tidemark);
        }
    }

    /// Takes in which offsets of the partitions that feed metrics never reached the archive.
    pub fn lost(&mut self, catalog: &Catalog, metrics: &[&Metric], lost: &[Lost]) {
        for Lost { tp, range, cause } in lost.iter().filter(|lost| feeds(catalog, metrics, &lost.tp)) {
            let which = format!("{tp} offsets {} to {}: {cause}", range.from, range.to);
            self.doubt_of("the log had lost records before they were archived", which);
        }
    }

    /// Takes in what the owners last said of their partitions. Beyond the tidemark nothing is promised that was appended
    /// since the topic was last seen to have no further partition.
    pub fn marks(&mut self, marks: &BTreeMap<TopicPartition, Mark>) {
        for (tp, reached) in &mut self.partitions {
            let mark = marks.get(tp);
            reached.caught_up = mark.is_some_and(|mark| mark.caught_up);
            let looked = mark.and_then(|mark| mark.looked).map_or(Millis::MIN, |looked| looked.clock);
            reached.as_of = reached.as_of.min(looked.max(reached.below));
        }
    }

    /// Ends the answer at an ingest time: what was appended from there on is left out, so that more of any span may be
    /// known than is answered.
    pub fn until(&mut self, boundary: Millis) {
        for reached in self.partitions.values_mut() {
            reached.as_of = reached.as_of.min(boundary);
            (reached.watermark, reached.caught_up) = (None, false);
        }
    }

    fn reached(&mut self, tp: &TopicPartition, new: Reached) {
        let reached = self.partitions.entry(tp.clone()).or_insert(new);
        reached.as_of = reached.as_of.min(new.as_of);
        reached.below = reached.below.min(new.below);
        reached.watermark = reached.watermark.min(new.watermark);
    }

    /// How far the answer reaches, in ingest time: the slowest group's reach. `None` where no partition is known.
    pub fn as_of(&self) -> Option<Millis> {
        self.partitions.values().map(|reached| reached.as_of).min()
    }

    /// Why the answer is not complete; empty: it is.
    pub fn reasons(&self) -> Vec<String> {
        self.reasons.texts()
    }

    /// The event time up to which every partition is believed whole. A quiet partition holds nothing back: one that
    /// is read to its end, that ticks (its clock is within two epochs of the newest), and that another has passed.
    pub fn watermark(&self, catalog: &Catalog) -> Option<Millis> {
        let newest = self.partitions.values().map(|reached| reached.as_of).max()?;
        let slack = 2 * catalog.layout.epoch.0;
        let quiet = |reached: &Reached| reached.caught_up && reached.as_of >= newest - slack;
        let foremost = |topic: &str| {
            let of_topic = self.partitions.iter().filter(|(tp, _)| &*tp.topic == topic);
            of_topic.filter_map(|(_, reached)| reached.watermark).max()
        };
        let believed = |(tp, reached): (&TopicPartition, &Reached)| match quiet(reached) {
            true => foremost(&tp.topic),
            false => reached.watermark,
        };
        self.partitions.iter().map(believed).min().flatten()
    }
}

/// How far the batch view alone reaches in a partition.
fn batch_reach(catalog: &Catalog, tp: &TopicPartition, tidemark: &Tidemark) -> Reached {
    let lateness = catalog.stream_of_topic(&tp.topic).map_or(0, |stream| stream.lateness);
    let below = catalog.layout.epoch.boundary(tidemark.epoch(tp));
    Reached {
        as_of: below,
        below,
        watermark: tidemark.cut(tp).trusted.newest.map(|newest| newest - lateness),
        caught_up: false,
    }
}

/// The partitions that metrics are fed from, as far as anyone knows: the tidemark's, the marked ones, and those that the
/// owners of others have seen.
pub fn partitions(
    catalog: &Catalog,
    metrics: &[&Metric],
    tidemark: &Tidemark,
    marks: &BTreeMap<TopicPartition, Mark>,
) -> BTreeSet<TopicPartition> {
    let marked = marks.iter().filter(|(tp, _)| feeds(catalog, metrics, tp));
    // Of each topic, the most that any owner has seen: all others have seen some of the same.
    let mut seen: BTreeMap<&Arc<str>, i32> = BTreeMap::new();
    for (tp, mark) in marked.clone() {
        let most = seen.entry(&tp.topic).or_default();
        *most = mark.looked.map_or(0, |looked| looked.partitions).max(*most);
    }
    let seen = seen.into_iter().flat_map(|(topic, partitions)| {
        (0..partitions).map(move |partition| TopicPartition { topic: topic.clone(), partition })
    });
    let cut = tidemark.cuts.keys().filter(|tp| feeds(catalog, metrics, tp));
    cut.chain(marked.map(|(tp, _)| tp)).cloned().chain(seen).collect()
}

/// Whether marks are of the same partitions, and their owners have seen as many: then others make no difference to
/// [`partitions`].
pub fn same_partitions(a: &BTreeMap<TopicPartition, Mark>, b: &BTreeMap<TopicPartition, Mark>) -> bool {
    let seen = |mark: &Mark| mark.looked.map(|looked| looked.partitions);
    a.len() == b.len() && a.iter().zip(b).all(|((a, x), (b, y))| a == b && seen(x) == seen(y))
}

/// Whether a partition's records feed any of some metrics.
pub fn feeds(catalog: &Catalog, metrics: &[&Metric], tp: &TopicPartition) -> bool {
    let Some(stream) = catalog.stream_of_topic(&tp.topic) else { return false };
    metrics.iter().flat_map(|metric| &metric.bindings).any(|binding| binding.stream == stream.name)
}

/// Reasons, like ones together.
#[derive(Debug, Default)]
struct Reasons(BTreeMap<String, BTreeMap<String, usize>>);

impl Reasons {
    fn note(&mut self, reason: String, which: String) {
        *self.0.entry(reason).or_default().entry(which).or_default() += 1;
    }

    fn texts(&self) -> Vec<String> {
        const NAMED: usize = 4;
        let text = |(reason, which): (&String, &BTreeMap<String, usize>)| {
            let mut named: Vec<&str> =
                which.keys().map(String::as_str).filter(|which| !which.is_empty()).collect();
            let more = named.len().saturating_sub(NAMED);
            named.truncate(NAMED);
            match (named.is_empty(), more) {
                (true, _) => reason.clone(),
                (false, 0) => format!("{reason} ({})", named.join(", ")),
                (false, more) => format!("{reason} ({} and {more} more)", named.join(", ")),
            }
        };
        self.0.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::tidemark::Cut;
    use shared_model::view::{Forgotten, Looked};

    fn header(cuts: &[(i64, i64)], from: i64, gaps: &[(i64, i64)]) -> Header {
        let version = shared_model::metric::MetricVersion(7);
        Header {
            v: 1,
            incarnation: 1,
            to: 100,
            clock: 95_000,
            trusted: Default::default(),
            watermark: Some(1_000),
            panes_from: None,
            pane_holes: Vec::new(),
            cuts: cuts.to_vec(),
            metrics: [(version, from)].into(),
            seq: 0,
            gaps: gaps.to_vec(),
            forgotten: Vec::new(),
        }
    }

    #[test]
    fn a_group_counts_only_where_it_reaches_back_to_the_cut() {
        let catalog = crate::tests::catalog();
        let mut metric = (**catalog.metric("user_view_cnt").unwrap()).clone();
        metric.version = shared_model::metric::MetricVersion(7);
        let tp = TopicPartition::new("page_views", 0);
        let cut = Cut { epoch: 5, ..Cut::start(40) };
        let tidemark = Tidemark { cuts: [(tp.clone(), cut)].into(), ..Tidemark::default() };
        // Whether its cells are merged, whether the answer is complete, and how far it then reaches.
        let check = |header: Option<Header>, expected: (bool, bool, Millis)| {
            let mut coverage = Coverage::default();
            let merged = coverage.judge(&catalog, &tp, header.as_ref(), &tidemark, &[&metric]);
            let found = (merged, coverage.reasons().is_empty(), coverage.as_of().unwrap());
            assert_eq!(found, expected, "{header:?}");
        };
        let (cut_time, end) = (50_000, 95_000);
        check(None, (false, true, cut_time));
        // It ends at 100, beyond the cut's 40, and has no boundary there.
        check(Some(header(&[(3, 20)], 20, &[])), (false, false, cut_time));
        check(Some(Header { to: 40, ..header(&[(3, 20)], 20, &[]) }), (false, true, cut_time));
        check(Some(Header { to: 39, ..header(&[(5, 41)], 20, &[]) }), (false, true, cut_time));
        check(Some(header(&[(3, 20), (5, 40)], 20, &[])), (true, true, end));
        check(Some(header(&[(3, 20), (8, 40)], 20, &[])), (true, true, end));
        check(Some(header(&[(3, 20), (5, 41)], 20, &[])), (false, false, cut_time));
        check(Some(header(&[(6, 60)], 60, &[])), (false, false, cut_time));
        check(Some(header(&[(5, 40)], 41, &[])), (true, false, end));
        check(Some(header(&[(5, 40)], 40, &[(10, 40)])), (true, true, end));
        check(Some(header(&[(5, 40)], 40, &[(39, 41)])), (true, false, end));
    }

    #[test]
    fn an_answer_reaches_no_further_than_partitions_were_looked_for() {
        let catalog = crate::tests::catalog();
        let metric = catalog.metric("user_view_cnt").unwrap();
        let tp = |partition| TopicPartition::new("page_views", partition);
        let cut = Cut { epoch: 5, ..Cut::start(40) };
        let tidemark = Tidemark { cuts: [(tp(0), cut)].into(), ..Tidemark::default() };
        let mut header = header(&[(5, 40)], 40, &[]);
        header.metrics = [(metric.version, 40)].into();
        // Of one partition, read to 95 s; how far its answer reaches, and which partitions it is about.
        let check = |looked: Option<(i32, Millis)>, expected: (Millis, i32)| {
            let looked = looked.map(|(partitions, clock)| Looked { partitions, clock });
            let mark = Mark {
                trusted: None,
                watermark: None,
                clock: 95_000,
                caught_up: true,
                generation: 1,
                looked,
            };
            let marks = [(tp(0), mark)].into();
            let mut coverage = Coverage::default();
            let known = partitions(&catalog, &[metric], &tidemark, &marks);
            for tp in &known {
                let header = (tp.partition == 0).then_some(&header);
                coverage.judge(&catalog, tp, header, &tidemark, &[metric]);
            }
            coverage.marks(&marks);
            let found = (coverage.as_of().unwrap(), known.len() as i32);
            assert_eq!((found, coverage.reasons()), (expected, vec![]), "{looked:?}");
        };
        check(Some((1, 95_000)), (95_000, 1));
        check(Some((1, 94_000)), (94_000, 1));
        // A partition that the tidemark doesn't know and that nobody has read yet.
        check(Some((2, 94_000)), (50_000, 2));
        check(None, (50_000, 1));
    }

    #[test]
    fn partitions_are_those_that_anyone_knows_of() {
        let catalog = crate::tests::catalog();
        let metric = catalog.metric("user_view_cnt").unwrap();
        let tps = |partitions: &[i32]| -> BTreeSet<TopicPartition> {
            partitions.iter().map(|&partition| TopicPartition::new("page_views", partition)).collect()
        };
        // By partition, how many its owner has seen.
        let marks = |seen: &[(i32, Option<i32>)]| -> BTreeMap<TopicPartition, Mark> {
            let mark = |&(partition, seen): &(i32, Option<i32>)| {
                let looked = seen.map(|partitions| Looked { partitions, clock: 0 });
                let (trusted, watermark) = (None, None);
                let mark = Mark { trusted, watermark, clock: 0, caught_up: true, generation: 1, looked };
                (TopicPartition::new("page_views", partition), mark)
            };
            seen.iter().map(mark).collect()
        };
        let check = |cuts: &[i32], seen: &[(i32, Option<i32>)], expected: &[i32]| {
            let cuts = tps(cuts).into_iter().map(|tp| (tp, Cut::start(0))).collect();
            let tidemark = Tidemark { cuts, ..Tidemark::default() };
            let mut marks = marks(seen);
            // Of a topic that doesn't feed it.
            let other = TopicPartition::new("elsewhere", 7);
            marks.extend(marks.values().next().copied().map(|mark| (other, mark)));
            assert_eq!(partitions(&catalog, &[metric], &tidemark, &marks), tps(expected), "{seen:?}");
        };
        check(&[], &[], &[]);
        check(&[0, 3], &[], &[0, 3]);
        check(&[0], &[(0, Some(2)), (5, Some(3))], &[0, 1, 2, 5]);
        check(&[4], &[(1, None)], &[1, 4]);
        let same = |a: &[(i32, Option<i32>)], b: &[(i32, Option<i32>)]| same_partitions(&marks(a), &marks(b));
        assert!(same(&[(0, Some(2)), (1, None)], &[(0, Some(2)), (1, None)]));
        assert!(!same(&[(0, Some(2))], &[(0, Some(3))]));
        assert!(!same(&[(0, Some(2))], &[(1, Some(2))]));
        assert!(!same(&[(0, Some(2))], &[(0, Some(2)), (1, Some(2))]));
    }

    #[test]
    fn an_answer_states_how_far_back_repeats_were_recognised() {
        let catalog = crate::tests::catalog();
        let stream = catalog.stream_of_topic("page_views").unwrap();
        let check = |forgotten: &[(i64, i64)], cut: i64, expected: i64| {
            let until = |known| known + stream.dedup_horizon;
            let entry = |&(known, from)| Forgotten { known, from, until: until(known) };
            let forgotten: Vec<_> = forgotten.iter().map(entry).collect();
            let header = Header { forgotten, ..header(&[(5, cut)], cut, &[]) };
            let mut coverage = Coverage::default();
            let below = Reached { as_of: 0, below: 0, watermark: None, caught_up: true };
            coverage.group(&catalog, &TopicPartition::new("page_views", 0), &header, below, cut);
            assert_eq!(coverage.horizon(stream), expected, "{:?} at {cut}", header.forgotten);
        };
        check(&[], 40, stream.dedup_horizon);
        check(&[(30, 35)], 20, 5);
        check(&[(30, 35)], 90, 60);
        check(&[(30, 35), (80, 82)], 90, 10);
        check(&[(30, 35)], 30 + stream.dedup_horizon, stream.dedup_horizon);
    }

    #[test]
    fn a_quiet_partition_holds_the_watermark_back_only_if_it_may_be_dead() {
        let catalog = crate::tests::catalog();
        let partitions = |reached: [(Millis, Option<Millis>, bool); 2]| {
            let mut coverage = Coverage::default();
            for (i, (as_of, watermark, caught_up)) in reached.into_iter().enumerate() {
                let tp = TopicPartition::new("page_views", i as i32);
                coverage.partitions.insert(tp, Reached { as_of, below: 0, watermark, caught_up });
            }
            coverage.watermark(&catalog)
        };
        let busy = (500_000, Some(900), false);
        assert_eq!(partitions([busy, (500_000, Some(100), false)]), Some(100));
        assert_eq!(partitions([busy, (495_000, Some(100), true)]), Some(900));
        assert_eq!(partitions([busy, (495_000, None, true)]), Some(900));
        assert_eq!(partitions([busy, (495_000, None, false)]), None);
        // It doesn't tick any more.
        assert_eq!(partitions([busy, (300_000, Some(100), true)]), Some(100));
    }
}
