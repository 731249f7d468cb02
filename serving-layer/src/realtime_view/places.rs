//! Where each key's cells stand in the segments of a group: a few lookups find them, however many segments there are.
//!
//! Places are held in blocks that never change. Segments that come make a block of their own; a block that is not several times
//! as large as the one behind it is merged with that one, so that blocks are few and no place is written often. What is of
//! a segment that is gone is passed over, and a block with much of it is made again without: what is held stays within what
//! the segments are said to take.

use super::group::Segment;
use hashbrown::{DefaultHashBuilder, HashMap};
use shared_model::codec::CodecError;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::view::Slice;
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// A block is at least so many times as large as the one behind it.
const FACTOR: usize = 4;

/// Bytes that a segment with so many places takes in a block, what finds them included.
fn bytes(places: usize) -> usize {
    size_of::<Of>() + size_of::<Option<Part>>() + places * (size_of::<Place>() + size_of::<u32>())
}

/// Bytes that are held at most for a segment that has so many places: of what is gone there is at most half as much.
pub(super) fn room(places: usize) -> usize {
    bytes(places) * 3 / 2
}

/// How keys are hashed, in all segments the same way.
static HASH: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);

/// The hash of a key's bytes: all its `by` values, encoded.
pub(super) fn hash(by: &[u8]) -> u32 {
    (HASH.hash_one(by) >> 32) as u32
}

/// The places of the metrics that were asked for in a group, each looked for when first asked for.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Vec<(MetricVersion, Arc<Index>)>>);

impl Places {
    /// What is known of a group's segments `before`, of those that it has now.
    pub(super) fn carried(&self, before: &[Arc<Segment>], segments: &[Arc<Segment>]) -> Places {
        let known = self.lock().clone();
        let serial = |segment: &Arc<Segment>| segment.serial();
        if before.iter().map(serial).eq(segments.iter().map(serial)) {
            return Places(Mutex::new(known));
        }
        let carried = known.iter().map(|(version, index)| (*version, index.carried(*version, segments)));
        let carried = carried.filter(|(_, index)| !index.blocks.is_empty());
        Places(Mutex::new(carried.map(|(version, index)| (version, Arc::new(index))).collect()))
    }

    /// One metric's places in all segments of the group, which are always the same ones.
    pub(super) fn of(&self, metric: &Metric, segments: &[Arc<Segment>]) -> Arc<Index> {
        let mut known = self.lock();
        let at = known.iter().position(|(version, _)| *version == metric.version);
        let index = match at {
            Some(at) if known[at].1.left.is_empty() => return known[at].1.clone(),
            Some(at) => known.swap_remove(at).1,
            None => Arc::new(Index::default().carried(metric.version, segments)),
        };
        let whole = Arc::new(Arc::unwrap_or_clone(index).whole(metric, segments));
        known.push((metric.version, whole.clone()));
        whole
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(MetricVersion, Arc<Index>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One metric's places in a group's segments.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// The largest first.
    blocks: Vec<Standing>,
    /// What is in no block yet.
    left: Vec<Part>,
    /// The slices of segments that can't be decoded, and why not.
    broken: Vec<(Slice, CodecError)>,
}

/// One metric's cells in one segment of a group.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The segment's place in the group.
    pub(super) segment: usize,
    /// The slice that it belongs to.
    pub(super) slice: Slice,
    /// The bytes of the cells.
    pub(super) cells: Range<usize>,
}

impl Index {
    fn new(blocks: Vec<Standing>, left: Vec<Part>) -> Index {
        let of = |standing: &Standing| {
            let parts = standing.block.of.iter().zip(&standing.parts);
            let broken = |(of, part): (&Of, &Option<Part>)| {
                Some((part.as_ref()?.slice, of.places.as_ref().err()?.clone()))
            };
            parts.filter_map(broken).collect::<Vec<_>>()
        };
        let broken = blocks.iter().flat_map(of).collect();
        Index { blocks, left, broken }
    }

    /// What it knows of these segments; the others are left.
    fn carried(&self, version: MetricVersion, segments: &[Arc<Segment>]) -> Index {
        let part = |(at, segment): (usize, &Arc<Segment>)| {
            let cells = segment.place_of(version)?;
            Some((segment.serial(), Part { segment: at, slice: segment.slice, cells }))
        };
        let mut parts: HashMap<u64, Part> = segments.iter().enumerate().filter_map(part).collect();
        let mut blocks = Vec::new();
        for standing in &self.blocks {
            push(&mut blocks, Standing::new(standing.block.clone(), |serial| parts.remove(&serial)));
        }
        let mut left: Vec<Part> = parts.into_values().collect();
        left.sort_unstable_by_key(|part| part.segment);
        Index::new(blocks, left)
    }

    /// With what was left.
    fn whole(mut self, metric: &Metric, segments: &[Arc<Segment>]) -> Index {
        push(&mut self.blocks, Standing::read(metric, self.left, segments));
        Index::new(self.blocks, Vec::new())
    }

    /// Where cells begin of keys that have this hash; they stand together.
    pub(super) fn find(&self, hash: u32) -> impl Iterator<Item = (&Part, usize)> {
        self.blocks.iter().flat_map(move |standing| standing.find(hash))
    }

    /// The slices of segments that can't be decoded, and why not.
    pub(super) fn broken(&self) -> &[(Slice, CodecError)] {
        &self.broken
    }
}

/// Puts a block behind others.
fn push(blocks: &mut Vec<Standing>, last: Standing) {
    if last.there == 0 {
        return;
    }
    let gone = last.block.size() - last.there;
    let (mut there, mut several) = (last.there, vec![last]);
    while let Some(before) = blocks.pop_if(|before| before.there < FACTOR * there) {
        there += before.there;
        several.push(before);
    }
    if several.len() > 1 || 2 * gone > there {
        several = vec![Standing::merged(&several)];
    }
    blocks.append(&mut several);
}

/// A block, and which of its segments the group still has.
#[derive(Debug, Clone)]
struct Standing {
    block: Arc<Block>,
    /// For each of its segments; `None`: it is gone.
    parts: Vec<Option<Part>>,
    /// How many of its bytes are of segments that are there.
    there: usize,
}

impl Standing {
    fn new(block: Arc<Block>, part: impl FnMut(u64) -> Option<Part>) -> Standing {
        let parts: Vec<Option<Part>> = block.of.iter().map(|of| of.serial).map(part).collect();
        let there = block.of.iter().zip(&parts).filter(|(_, part)| part.is_some());
        let there = there.map(|(of, _)| of.size()).sum();
        Standing { block, parts, there }
    }

    /// Reads a metric's places in parts of segments.
    fn read(metric: &Metric, parts: Vec<Part>, segments: &[Arc<Segment>]) -> Standing {
        let (mut of, mut places) = (Vec::with_capacity(parts.len()), Vec::new());
        for (number, part) in parts.iter().enumerate() {
            let (segment, before) = (&segments[part.segment], places.len());
            let found = segment.each_key(metric, |by, at| {
                places.push(Place { hash: hash(by), segment: number as u32, at });
            });
            if found.is_err() {
                places.truncate(before);
            }
            of.push(Of { serial: segment.serial(), places: found.map(|()| places.len() - before) });
        }
        let block = Arc::new(Block::new(of, &places));
        Standing { there: block.size(), block, parts: parts.into_iter().map(Some).collect() }
    }

    /// One of several, without what is gone.
    fn merged(several: &[Standing]) -> Standing {
        let (mut of, mut parts, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for Standing { block, parts: before, .. } in several {
            let mut numbers = Vec::with_capacity(before.len());
            for (known, part) in block.of.iter().zip(before) {
                numbers.push(part.is_some().then_some(of.len() as u32));
                if part.is_some() {
                    of.push(known.clone());
                    parts.push(part.clone());
                }
            }
            let kept = |place: &Place| Some(Place { segment: numbers[place.segment as usize]?, ..*place });
            places.extend(block.places.iter().filter_map(kept));
        }
        of.shrink_to_fit();
        parts.shrink_to_fit();
        let block = Arc::new(Block::new(of, &places));
        Standing { there: block.size(), block, parts }
    }

    fn find(&self, hash: u32) -> impl Iterator<Item = (&Part, usize)> {
        let part =
            move |place: &Place| Some((self.parts[place.segment as usize].as_ref()?, place.at as usize));
        self.block.find(hash).filter_map(part)
    }
}

/// The places of some segments, by the hashes of the keys.
#[derive(Debug)]
struct Block {
    of: Vec<Of>,
    /// Those whose hashes fall into one bucket stand together.
    places: Vec<Place>,
    /// Where each bucket's places begin, and at last where they end.
    begins: Vec<u32>,
}

/// One segment of a block.
#[derive(Debug, Clone)]
struct Of {
    serial: u64,
    /// How many places it has, or why it can't be decoded.
    places: Result<usize, CodecError>,
}

impl Of {
    fn size(&self) -> usize {
        bytes(self.places.as_ref().map_or(0, |&places| places))
    }
}

/// Where the cells of a key begin in a segment.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    hash: u32,
    /// Which one of the block.
    segment: u32,
    /// In the bytes of the metric's cells.
    at: u32,
}

impl Block {
    /// Of places in any order.
    fn new(of: Vec<Of>, unsorted: &[Place]) -> Block {
        let buckets = unsorted.len() / 2 + 1;
        let mut begins = vec![0; buckets + 1];
        unsorted.iter().for_each(|place| begins[1 + bucket(place.hash, buckets)] += 1);
        let mut before = 0;
        for begin in &mut begins {
            before += *begin;
            *begin = before;
        }
        let (mut next, mut places) = (begins.clone(), vec![Place::default(); unsorted.len()]);
        for place in unsorted {
            let next: &mut u32 = &mut next[bucket(place.hash, buckets)];
            places[*next as usize] = *place;
            *next += 1;
        }
        Block { of, places, begins }
    }

    /// Bytes that its segments take in it.
    fn size(&self) -> usize {
        self.of.iter().map(Of::size).sum()
    }

    fn find(&self, hash: u32) -> impl Iterator<Item = &Place> {
        let bucket = bucket(hash, self.begins.len() - 1);
        let places = self.begins[bucket] as usize..self.begins[bucket + 1] as usize;
        self.places[places].iter().filter(move |place| place.hash == hash)
    }
}

fn bucket(hash: u32, buckets: usize) -> usize {
    ((u64::from(hash) * buckets as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::super::{Group, Sought};
    use super::*;
    use crate::tests::catalog;
    use proptest::prelude::*;
    use shared_model::aggregate::State;
    use shared_model::event::Value;
    use shared_model::time::Millis;
    use shared_model::view::{CellId, Cells, merge, pack, unpack};

    /// The keys of the test are from 0 to here.
    const KEYS: i64 = 6;
    /// Its panes too.
    const PANES: i64 = 4;

    /// What happens to a group.
    #[derive(Debug, Clone)]
    enum Event {
        /// A segment comes: of a pane, with cells of metrics (the first or the second), keys and items.
        Come(i64, Vec<(bool, i64, i64)>),
        /// One comes that can't be decoded, or not from some cell on.
        Broken(i64, bool),
        /// A pane's segments become one.
        Merge(i64),
        /// A pane slides out.
        Slide(i64),
        /// It is read again without anything of before.
        Anew,
        /// A key is asked for, of a metric, in the panes from one on, up to another.
        Ask(bool, i64, i64, i64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let cells = proptest::collection::vec((any::<bool>(), 0..KEYS, 0..3i64), 0..12);
        prop_oneof![
            8 => (0..PANES, cells).prop_map(|(pane, cells)| Event::Come(pane, cells)),
            1 => (0..PANES, any::<bool>()).prop_map(|(pane, begins)| Event::Broken(pane, begins)),
            2 => (0..PANES).prop_map(Event::Merge),
            2 => (0..PANES).prop_map(Event::Slide),
            1 => Just(Event::Anew),
            8 => (any::<bool>(), 0..KEYS, 0..PANES, 0..=PANES)
                .prop_map(|(first, key, from, to)| Event::Ask(first, key, from, to)),
        ]
    }

    /// A count by one column, and a top-k by one.
    fn metrics() -> [Arc<Metric>; 2] {
        ["user_view_cnt_5m", "geo_top_doc_5m"].map(|name| catalog().live(name).expect("a metric").clone())
    }

    fn encoded(value: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        Value::Int(value).encode(&mut bytes);
        bytes
    }

    fn packed(metrics: &[Arc<Metric>; 2], pane: i64, cells: &[(bool, i64, i64)]) -> Vec<u8> {
        let cell = |&(first, by, item): &(bool, i64, i64)| {
            let metric = &metrics[usize::from(!first)];
            let item = if metric.item.is_some() { encoded(item) } else { Vec::new() };
            let key = [encoded(by), item].concat();
            (CellId { version: metric.version, key: key.into(), bucket: pane }, State::Count(1 + by as u64))
        };
        pack(&cells.iter().map(cell).collect::<Cells>())
    }

    fn segment(pane: i64, bytes: Vec<u8>) -> Arc<Segment> {
        Arc::new(Segment::new(Slice::Pane(pane), 1, bytes))
    }

    fn group(segments: &[Arc<Segment>], before: Option<&Group>) -> Group {
        Group::new(Err(CodecError::Invalid("header")), segments.to_vec(), Vec::new(), before)
    }

    type Cell = (Vec<u8>, Millis, State);

    /// The cells of a key, and how many segments can't be decoded.
    fn found(group: &Group, metric: &Metric, key: &[u8], panes: &Range<i64>) -> (Vec<Cell>, usize) {
        let (mut cells, mut broken) = (Vec::new(), 0);
        let wanted = |slice| matches!(slice, Slice::Pane(pane) if panes.contains(&pane));
        let each = |found: super::super::Found<'_>| {
            match found {
                Ok((key, bucket, state)) => cells.push((key.to_vec(), bucket, state)),
                Err(_) => broken += 1,
            }
            Ok::<(), CodecError>(())
        };
        group.find(metric, &[Sought::new(key)], wanted, each).expect("nothing is refused");
        cells.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
        (cells, broken)
    }

    /// The same, by going through all segments.
    fn naive(
        segments: &[Arc<Segment>],
        metric: &Metric,
        key: &[u8],
        panes: &Range<i64>,
    ) -> (Vec<Cell>, usize) {
        let (mut cells, mut broken) = (Vec::new(), 0);
        for segment in segments {
            if !matches!(segment.slice, Slice::Pane(pane) if panes.contains(&pane)) {
                continue;
            }
            let mut of_segment = Vec::new();
            let aggregate = |version: MetricVersion| (version == metric.version).then_some(&metric.aggregate);
            let read = unpack(segment.bytes(), aggregate, |_, name, bucket, state| {
                of_segment.extend(name.starts_with(key).then(|| (name.to_vec(), bucket, state)));
                Ok(())
            });
            match read {
                Ok(()) => cells.append(&mut of_segment),
                Err(_) => broken += 1,
            }
        }
        cells.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
        (cells, broken)
    }

    /// That blocks are few, and hold no more than there is room for in what the segments are said to take.
    fn holds_little(group: &Group) {
        for (_, index) in group.places.lock().iter() {
            for Standing { block, parts, .. } in &index.blocks {
                let places = size_of_val(&block.places[..]) + size_of_val(&block.begins[2..]);
                let taken = size_of_val(&block.of[..]) + size_of_val(&parts[..]) + places;
                let there = block.of.iter().zip(parts).filter(|(_, part)| part.is_some());
                let allowed = there.map(|(of, _)| room(of.places.as_ref().map_or(0, |&places| places)));
                assert!(taken <= allowed.sum::<usize>(), "{index:?}");
            }
            for pair in index.blocks.windows(2) {
                assert!(pair[0].there >= FACTOR * pair[1].there, "{index:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_a_key_has_the_cells_that_going_through_all_gives(
            events in proptest::collection::vec(event(), 1..80),
        ) {
            let metrics = metrics();
            let mut segments: Vec<Arc<Segment>> = Vec::new();
            let mut held = group(&segments, None);
            for event in events {
                let mut before = Some(&held);
                match event {
                    Event::Come(pane, cells) => segments.push(segment(pane, packed(&metrics, pane, &cells))),
                    Event::Broken(pane, begins) => {
                        let mut bytes = packed(&metrics, pane, &[(true, 1, 1), (false, 1, 1)]);
                        // Without its last byte no section can be told; with another state one can't be read.
                        let last = bytes.pop().expect("cells");
                        bytes.extend(begins.then_some(last | 0x80));
                        segments.push(segment(pane, bytes));
                    }
                    Event::Merge(pane) => {
                        let of_pane = |held: &Arc<Segment>| held.slice == Slice::Pane(pane);
                        let of: Vec<&[u8]> =
                            segments.iter().filter(|held| of_pane(held)).map(|held| held.bytes()).collect();
                        let aggregate = |version: MetricVersion| {
                            metrics.iter().find(|metric| metric.version == version).map(|m| &m.aggregate)
                        };
                        if let Ok(merged) = merge(&of, aggregate) {
                            segments.retain(|held| !of_pane(held));
                            segments.push(segment(pane, merged));
                        }
                    }
                    Event::Slide(pane) => segments.retain(|held| held.slice != Slice::Pane(pane)),
                    Event::Anew => before = None,
                    Event::Ask(first, key, from, to) => {
                        let (metric, key, panes) = (&metrics[usize::from(!first)], encoded(key), from..to);
                        prop_assert_eq!(found(&held, metric, &key, &panes), naive(&segments, metric, &key, &panes));
                        holds_little(&held);
                        continue;
                    }
                }
                held = group(&segments, before);
                holds_little(&held);
            }
        }
    }

    #[test]
    fn of_many_segments_there_are_few_blocks() {
        let metrics = metrics();
        let (mut segments, mut held): (Vec<Arc<Segment>>, _) = (Vec::new(), group(&[], None));
        for flush in 0..300i64 {
            let cells: Vec<_> = (0..8).map(|key| (true, 8 * flush + key, 0)).collect();
            segments.push(segment(flush / 10, packed(&metrics, flush / 10, &cells)));
            segments.retain(|segment| segment.slice >= Slice::Pane(flush / 10 - 20));
            held = group(&segments, Some(&held));
            assert_eq!(found(&held, &metrics[0], &encoded(8 * flush), &(0..100)).0.len(), 1);
            let places = held.places.of(&metrics[0], &held.segments);
            assert!(places.blocks.len() <= 6, "{} of {} segments", places.blocks.len(), segments.len());
        }
        assert_eq!(found(&held, &metrics[0], &encoded(0), &(0..100)), (Vec::new(), 0));
    }
}
