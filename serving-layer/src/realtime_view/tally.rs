//! The items of a key that were counted most often, kept: who asks again is answered without counting again.
//!
//! A tally names the segments that it was counted from. As long as a window has exactly those it is what counting them again
//! would give; a segment never changes, and another one has another number.

use super::{Group, Segment, Sought};
use hashbrown::HashMap;
use shared_model::aggregate::{State, top_k};
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::view::Slice;
use std::sync::Arc;

/// So many items are kept, however few are asked for.
const KEPT: usize = 1_000;

/// What a tally is of: the version of a top-k, and a key of it, encoded.
pub type TallyOf = (MetricVersion, Vec<u8>);

/// The items counted most often of some segments' cells.
#[derive(Debug, PartialEq)]
pub struct Tally {
    /// The numbers of the segments, see [`Segment::serial`].
    of: Vec<u64>,
    /// The best, best first.
    ranked: Vec<(Value, u64)>,
    /// Whether these are all that there are.
    all: bool,
    /// How many cells were merged.
    pub cells: u64,
}

impl Tally {
    /// Counts a key's items in those segments of groups that are of the slices wanted, for a top `k`; `None` where something of
    /// them can't be decoded or merged, so that it isn't all there.
    pub fn count<'a>(
        metric: &Metric,
        key: &[u8],
        k: usize,
        groups: impl Iterator<Item = &'a Group>,
        wanted: impl Fn(Slice) -> bool,
    ) -> Option<Tally> {
        let (mut of, mut cells) = (Vec::new(), 0);
        let mut merged: HashMap<&[u8], State> = HashMap::new();
        let sought = [Sought::new(key)];
        for group in groups {
            let segments = group.segments.iter().filter(|segment| wanted(segment.slice));
            of.extend(segments.map(|segment| segment.serial()));
            let read = group.find(metric, &sought, &wanted, |found| {
                let (name, _, state) = found?;
                cells += 1;
                match merged.get_mut(&name[key.len()..]) {
                    Some(held) => held.merge(&state),
                    None => {
                        merged.insert(&name[key.len()..], state);
                        Ok::<(), CodecError>(())
                    }
                }
            });
            read.ok()?;
        }
        let counted = merged.into_iter().map(|(mut item, state)| match (Value::decode(&mut item), state) {
            (Ok(value), State::Count(count)) if item.is_empty() => Some((value, count)),
            _ => None,
        });
        let counted = counted.collect::<Option<Vec<_>>>()?;
        let (most, there) = (k.max(KEPT), counted.len());
        let mut ranked = top_k::rank(counted, most);
        ranked.shrink_to_fit();
        of.shrink_to_fit();
        let all = there <= most || ranked.len() < most;
        Some(Tally { of, ranked, all, cells })
    }

    /// Whether it is of exactly these segments.
    pub fn is_of<'a>(&self, segments: impl Iterator<Item = &'a Arc<Segment>>) -> bool {
        segments.map(|segment| segment.serial()).eq(self.of.iter().copied())
    }

    /// The best `k`, best first; `None` where it keeps fewer than there are.
    pub fn best(&self, k: usize) -> Option<&[(Value, u64)]> {
        (self.all || k <= self.ranked.len()).then(|| &self.ranked[..k.min(self.ranked.len())])
    }

    /// Bytes of memory that it takes.
    pub(super) fn size(&self) -> usize {
        let beside = |value: &Value| match value {
            Value::Str(text) if text.is_heap_allocated() => text.capacity(),
            _ => 0,
        };
        let texts: usize = self.ranked.iter().map(|(item, _)| beside(item)).sum();
        size_of::<Tally>() + size_of_val(&self.of[..]) + size_of_val(&self.ranked[..]) + texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::catalog;
    use proptest::prelude::*;
    use shared_model::view::{CellId, Cells, pack, unpack};
    use std::collections::BTreeMap;

    fn metric() -> Arc<Metric> {
        catalog().live("geo_top_doc_5m").expect("a top-k").clone()
    }

    fn encoded(value: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        Value::Int(value).encode(&mut bytes);
        bytes
    }

    /// Cells as bytes: key, item and count of each.
    fn packed(metric: &Metric, cells: &[(i64, i64, u64)]) -> Vec<u8> {
        let cell = |&(by, item, count): &(i64, i64, u64)| {
            let key = [encoded(by), encoded(item)].concat();
            (CellId { version: metric.version, key: key.into(), bucket: 0 }, State::Count(count))
        };
        pack(&cells.iter().map(cell).collect::<Cells>())
    }

    fn segment(bytes: Vec<u8>) -> Arc<Segment> {
        Arc::new(Segment::new(Slice::Pane(0), 1, bytes))
    }

    /// Counts in segments, of one group.
    fn count(metric: &Metric, key: &[u8], k: usize, segments: &[Arc<Segment>]) -> Option<Tally> {
        let group = Group::new(Err(CodecError::Invalid("header")), segments.to_vec(), Vec::new(), None);
        Tally::count(metric, key, k, [&group].into_iter(), |_| true)
    }

    /// What happens to the segments of a window.
    #[derive(Debug, Clone)]
    enum Event {
        Come(Vec<(i64, i64, u64)>),
        Leave(usize),
        /// One is read again, as it was.
        Again(usize),
        Ask(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        let cells = proptest::collection::vec((0..3i64, 0..30i64, 0..9u64), 0..30);
        prop_oneof![
            2 => cells.prop_map(Event::Come),
            1 => any::<usize>().prop_map(Event::Leave),
            1 => any::<usize>().prop_map(Event::Again),
            4 => (0..40usize).prop_map(Event::Ask),
        ]
    }

    /// The best of a key, counted naively.
    fn best(metric: &Metric, key: &[u8], k: usize, segments: &[Arc<Segment>]) -> Vec<(Value, u64)> {
        let mut counts: BTreeMap<Value, u64> = BTreeMap::new();
        for segment in segments {
            let aggregate = |version: MetricVersion| (version == metric.version).then_some(&metric.aggregate);
            let each = |_, name: &[u8], _, state| {
                if let (Some(mut item), State::Count(count)) = (name.strip_prefix(key), state) {
                    *counts.entry(Value::decode(&mut item)?).or_default() += count;
                }
                Ok::<(), CodecError>(())
            };
            unpack(segment.bytes(), aggregate, each).expect("cells of ours");
        }
        let mut ranked: Vec<(Value, u64)> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        ranked.sort_by(|(a, left), (b, right)| right.cmp(left).then_with(|| a.cmp(b)));
        ranked.truncate(k);
        ranked
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_counting_anew_gives(events in proptest::collection::vec(event(), 1..60)) {
            let (metric, key) = (metric(), encoded(1));
            let mut segments: Vec<Arc<Segment>> = Vec::new();
            let mut kept: Option<Tally> = None;
            for event in events {
                match event {
                    Event::Come(cells) => segments.push(segment(packed(&metric, &cells))),
                    Event::Leave(which) if !segments.is_empty() => {
                        segments.remove(which % segments.len());
                    }
                    Event::Again(which) if !segments.is_empty() => {
                        let place = which % segments.len();
                        segments[place] = segment(segments[place].bytes().to_vec());
                        prop_assert!(!kept.as_ref().is_some_and(|kept| kept.is_of(segments.iter())));
                    }
                    Event::Leave(_) | Event::Again(_) => {}
                    Event::Ask(k) => {
                        let stands = kept.take().filter(|kept| kept.is_of(segments.iter()));
                        let tally = match stands {
                            Some(tally) => tally,
                            None => count(&metric, &key, k, &segments).expect("cells of ours"),
                        };
                        let expected = best(&metric, &key, k, &segments);
                        prop_assert_eq!(tally.best(k), Some(&expected[..]));
                        kept = Some(tally);
                    }
                }
            }
        }
    }

    #[test]
    fn who_asks_for_more_than_is_kept_has_it_counted() {
        let (metric, key) = (metric(), encoded(1));
        let cells: Vec<_> = (0..2 * KEPT as i64).map(|item| (1, item, 1 + item as u64 % 7)).collect();
        let segments = [segment(packed(&metric, &cells))];
        let tally = |k| count(&metric, &key, k, &segments).expect("cells of ours");
        let check = |asked: usize, k: usize, is_kept: bool| {
            let expected = best(&metric, &key, k, &segments);
            assert_eq!(tally(asked).best(k), is_kept.then_some(&expected[..]), "{asked}, then {k}");
        };
        check(10, KEPT, true);
        check(10, KEPT + 1, false);
        check(KEPT + 1, KEPT + 1, true);
        check(2 * KEPT, usize::MAX, true);
    }

    #[test]
    fn what_cannot_be_decoded_has_no_tally() {
        let metric = metric();
        let mut bytes = packed(&metric, &[(1, 1, 1)]);
        bytes.pop();
        assert_eq!(count(&metric, &encoded(1), 10, &[segment(bytes)]), None);
    }
}
