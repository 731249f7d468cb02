//! A group as it was read. A key's cells are found without going through those of other keys.

use super::places::{Places, hash, room};
use shared_model::aggregate::State;
use shared_model::codec::{CodecError, take_bytes};
use shared_model::event::Value;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::time::Millis;
use shared_model::view::{self, Header, Sections, Slice, take_cell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One group, as it stood at one moment.
#[derive(Debug)]
pub struct Group {
    /// What it says of itself, if that can be read.
    pub header: Result<Header, CodecError>,
    /// The segments wanted, perhaps others too; always the same ones.
    pub segments: Vec<Arc<Segment>>,
    /// Fields that no known layout has.
    pub unknown: Vec<String>,
    /// Where the cells of each key stand in them.
    pub(super) places: Places,
}

impl From<view::Group> for Group {
    fn from(read: view::Group) -> Group {
        let segment = |(slice, bytes)| Arc::new(Segment::new(slice, 0, bytes));
        let segments = read.segments.into_iter().map(segment).collect();
        Group::new(Header::from_json(&read.header), segments, read.unknown, None)
    }
}

/// A cell's key, bucket and state, or why there is something that can't be decoded.
pub type Found<'a> = Result<(&'a [u8], Millis, State), CodecError>;

impl Group {
    /// A group; `before`: the same when it was read last, of which the places of segments that it still has stay known.
    pub(super) fn new(
        header: Result<Header, CodecError>,
        segments: Vec<Arc<Segment>>,
        unknown: Vec<String>,
        before: Option<&Group>,
    ) -> Group {
        let places = before.map(|before| before.places.carried(&before.segments, &segments));
        let places = places.unwrap_or_default();
        Group { header, segments, unknown, places }
    }

    /// Hands a metric's cells of some keys, key by key, to `each`: those in segments of the slices wanted. Of each of these
    /// segments that can't be decoded it is handed why not, once.
    ///
    /// # Errors
    /// What `each` refuses.
    pub fn find<'a, E>(
        &'a self,
        metric: &Metric,
        keys: &[Sought<'_>],
        wanted: impl Fn(Slice) -> bool,
        mut each: impl FnMut(Found<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let places = self.places.of(metric, &self.segments);
        for (_, error) in places.broken().iter().filter(|(slice, _)| wanted(*slice)) {
            each(Err(error.clone()))?;
        }
        for sought in keys {
            for (part, at) in places.find(sought.hash).filter(|(part, _)| wanted(part.slice)) {
                let mut rest = &self.segments[part.segment].bytes[part.cells.clone()][at..];
                while begins_with(sought.by, rest) {
                    let cell = take_cell(&metric.aggregate, &mut rest);
                    let is_broken = cell.is_err();
                    each(cell)?;
                    if is_broken {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether there is another cell, and it is one of a key.
fn begins_with(by: &[u8], mut cells: &[u8]) -> bool {
    take_bytes(&mut cells, "cell key").is_ok_and(|key| key.starts_with(by))
}

/// One segment of a group.
#[derive(Debug)]
pub struct Segment {
    /// The slice that it belongs to.
    pub slice: Slice,
    /// Its number within the group, where that is known.
    pub(super) number: u64,
    serial: u64,
    bytes: Vec<u8>,
    sections: Result<Vec<Section>, CodecError>,
    /// Bytes of memory that it takes, the places of all its keys included.
    pub(super) size: usize,
}

/// One metric's cells.
#[derive(Debug)]
struct Section {
    version: MetricVersion,
    count: u64,
    cells: Range<usize>,
}

/// A key that is looked for in many segments: all `by` values, encoded.
#[derive(Debug)]
pub struct Sought<'a> {
    by: &'a [u8],
    hash: u32,
}

impl<'a> Sought<'a> {
    /// Of a key's bytes.
    pub fn new(by: &'a [u8]) -> Sought<'a> {
        Sought { by, hash: hash(by) }
    }
}

impl Segment {
    pub(super) fn new(slice: Slice, number: u64, bytes: Vec<u8>) -> Segment {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let sections = sections(&bytes);
        // No cell takes less than a byte, whatever the section says.
        let cells = |section: &Section| section.cells.len().min(section.count as usize);
        let taken = |section: &Section| size_of::<Section>() + room(cells(section));
        let taken: usize = sections.iter().flatten().map(taken).sum();
        let size = size_of::<Segment>() + bytes.capacity() + taken;
        Segment { slice, number, serial, bytes, sections, size }
    }

    /// A number that no other segment read by this process has.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What is stored.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Hands a metric's cells to `each` (key, bucket, state).
    ///
    /// # Errors
    /// Where the bytes are no segment, and what `each` refuses.
    pub fn cells<'a, E: From<CodecError>>(
        &'a self,
        metric: &Metric,
        mut each: impl FnMut(&'a [u8], Millis, State) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(section) = self.section(metric.version)? else { return Ok(()) };
        let (count, cells) = (section.count, &self.bytes[section.cells.clone()]);
        view::each_cell(&metric.aggregate, count, cells, |_, key, bucket, state| each(key, bucket, state))
    }

    /// Where a metric's cells stand in the bytes, if it has some; in those that are no segment, at an empty place.
    pub(super) fn place_of(&self, version: MetricVersion) -> Option<Range<usize>> {
        match self.section(version) {
            Ok(section) => Some(section?.cells.clone()),
            Err(_) => Some(0..0),
        }
    }

    /// Hands each key of a metric (the `by` values), and where its cells begin, to `each`; they stand together.
    pub(super) fn each_key(
        &self,
        metric: &Metric,
        mut each: impl FnMut(&[u8], u32),
    ) -> Result<(), CodecError> {
        let Some(section) = self.section(metric.version)? else { return Ok(()) };
        let (cells, mut last) = (&self.bytes[section.cells.clone()], None);
        view::each_cell(&metric.aggregate, section.count, cells, |at, key, _, _| {
            let by = by_of(metric, key)?;
            if last.replace(by) != Some(by) {
                each(by, u32::try_from(at).map_err(|_| CodecError::Invalid("section length"))?);
            }
            Ok(())
        })
    }

    fn section(&self, version: MetricVersion) -> Result<Option<&Section>, CodecError> {
        let sections = self.sections.as_ref().map_err(CodecError::clone)?;
        Ok(sections.iter().find(|section| section.version == version))
    }
}

fn sections(bytes: &[u8]) -> Result<Vec<Section>, CodecError> {
    let (mut sections, mut found) = (Sections::of(bytes)?, Vec::new());
    while let Some((version, count, cells)) = sections.take()? {
        let from = cells.as_ptr() as usize - bytes.as_ptr() as usize;
        found.push(Section { version, count, cells: from..from + cells.len() });
    }
    found.shrink_to_fit();
    Ok(found)
}

/// The part of a cell's key that is the `by` values: what no other key begins with.
fn by_of<'a>(metric: &Metric, key: &'a [u8]) -> Result<&'a [u8], CodecError> {
    let mut rest = key;
    metric.by.iter().try_for_each(|_| Value::decode(&mut rest).map(drop))?;
    Ok(&key[..key.len() - rest.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::catalog;
    use proptest::prelude::*;
    use shared_model::view::{CellId, Cells, pack, unpack};
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    /// Cells of all counts of the catalog: few keys, so that they have several buckets and items each.
    fn cells() -> impl Strategy<Value = Cells> {
        let catalog = catalog();
        let counts = catalog.metrics.iter().filter(|m| State::empty(&m.aggregate) == State::Count(0));
        let counts: Vec<Metric> = counts.map(|metric| (**metric).clone()).collect();
        let cell = (0..counts.len(), 0..6i64, 0..4i64, 0..3i64, 1..9u64);
        proptest::collection::vec(cell, 0..80).prop_map(move |cells| {
            let cell = |(metric, by, item, bucket, count): (usize, i64, i64, i64, u64)| {
                let metric: &Metric = &counts[metric];
                let mut key = Vec::new();
                metric.by.iter().for_each(|_| Value::Int(by).encode(&mut key));
                metric.item.iter().for_each(|_| Value::Int(item).encode(&mut key));
                (CellId { version: metric.version, key: key.into(), bucket }, State::Count(count))
            };
            cells.into_iter().map(cell).collect()
        })
    }

    proptest! {
        #[test]
        fn looking_for_keys_finds_what_going_through_all_does(cells in cells(), wanted in proptest::collection::btree_set(0..8i64, 0..4)) {
            let bytes = pack(&cells);
            let segment = Arc::new(Segment::new(Slice::Epoch(1), 1, bytes.clone()));
            let group = Group::new(Err(CodecError::Invalid("header")), vec![segment.clone()], Vec::new(), None);
            for metric in &catalog().metrics {
                let keys: BTreeSet<Vec<u8>> = wanted.iter().map(|&by| {
                    let mut key = Vec::new();
                    metric.by.iter().for_each(|_| Value::Int(by).encode(&mut key));
                    key
                }).collect();
                let keys: Vec<Vec<u8>> = keys.into_iter().collect();
                let sought: Vec<Sought<'_>> = keys.iter().map(|key| Sought::new(key)).collect();
                let (mut all, mut expected) = (Vec::new(), Vec::new());
                unpack(&bytes, |version| (version == metric.version).then_some(&metric.aggregate), |_, key, bucket, state| {
                    all.push((key.to_vec(), bucket, state));
                    Ok(())
                }).unwrap();
                expected.extend(all.iter().filter(|(key, ..)| keys.iter().any(|by| key.starts_with(by))).cloned());
                let (mut gone_through, mut found) = (Vec::new(), Vec::new());
                segment.cells(metric, |key, bucket, state| {
                    gone_through.push((key.to_vec(), bucket, state));
                    Ok::<(), CodecError>(())
                }).unwrap();
                group.find(metric, &sought, |_| true, |cell| {
                    let (key, bucket, state) = cell?;
                    found.push((key.to_vec(), bucket, state));
                    Ok::<(), CodecError>(())
                }).unwrap();
                found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
                prop_assert_eq!(gone_through, all);
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_key_is_not_taken_for_another_of_the_same_hash() {
        let metric = catalog().live("user_view_cnt_5m").expect("a count").clone();
        let keys: [Vec<u8>; 2] = [1, 2].map(|by| {
            let mut key = Vec::new();
            Value::Int(by).encode(&mut key);
            key
        });
        let id = CellId { version: metric.version, key: keys[0].clone().into(), bucket: 0 };
        let bytes = pack(&Cells::from([(id, State::Count(1))]));
        let segments = vec![Arc::new(Segment::new(Slice::Epoch(1), 1, bytes))];
        let group = Group::new(Err(CodecError::Invalid("header")), segments, Vec::new(), None);
        let found = keys.each_ref().map(|by| {
            let (mut found, sought) = (0, [Sought { by, hash: hash(&keys[0]) }]);
            let each = |_: Found<'_>| {
                found += 1;
                Ok::<(), Infallible>(())
            };
            let Ok(()) = group.find(&metric, &sought, |_| true, each);
            found
        });
        assert_eq!(found, [1, 0]);
    }
}
