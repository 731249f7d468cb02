//! A group as it was read. A key's cells are found in a segment without going through those of other keys.

use hashbrown::{DefaultHashBuilder, HashTable};
use shared_model::aggregate::State;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::time::Millis;
use shared_model::view::{self, Header, Sections, Slice, take_cell};
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

/// One group, as it stood at one moment.
#[derive(Debug, Clone)]
pub struct Group {
    /// What it says of itself, if that can be read.
    pub header: Result<Header, CodecError>,
    /// The segments wanted, perhaps others too.
    pub segments: Vec<Arc<Segment>>,
    /// Fields that no known layout has.
    pub unknown: Vec<String>,
}

impl From<view::Group> for Group {
    fn from(read: view::Group) -> Group {
        let segment = |(slice, bytes)| Arc::new(Segment::new(slice, 0, bytes));
        Group {
            header: Header::from_json(&read.header),
            segments: read.segments.into_iter().map(segment).collect(),
            unknown: read.unknown,
        }
    }
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
    /// Whose cells each section has: close together, since this is looked through for every key.
    versions: Vec<MetricVersion>,
    /// Bytes of memory that it takes, the places of all its keys included.
    pub(super) size: usize,
}

/// Bytes that a key's place takes at most, and what a section takes beside them.
const PLACE: usize = 12;
const SECTION: usize = size_of::<Section>() + size_of::<MetricVersion>() + 64;

/// One metric's cells.
#[derive(Debug)]
struct Section {
    version: MetricVersion,
    count: u64,
    cells: Range<usize>,
    /// Found out when a key is first looked for.
    starts: OnceLock<Result<Starts, CodecError>>,
}

/// Where each key's cells begin in a section; they stand together.
#[derive(Debug, Default)]
struct Starts {
    places: HashTable<u32>,
}

/// How keys are hashed, in all segments the same way.
static HASH: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);

/// A key that is looked for in many segments: all `by` values, encoded.
#[derive(Debug)]
pub struct Sought<'a> {
    by: &'a [u8],
    hash: u64,
}

impl<'a> Sought<'a> {
    /// Of a key's bytes.
    pub fn new(by: &'a [u8]) -> Sought<'a> {
        Sought { by, hash: HASH.hash_one(by) }
    }
}

impl Segment {
    pub(super) fn new(slice: Slice, number: u64, bytes: Vec<u8>) -> Segment {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let sections = sections(&bytes);
        let places = |section: &Section| SECTION + PLACE * section.count as usize;
        let places: usize = sections.iter().flatten().map(places).sum();
        let size = size_of::<Segment>() + bytes.capacity() + places;
        let versions = sections.iter().flatten().map(|section| section.version).collect();
        Segment { slice, number, serial, bytes, sections, versions, size }
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

    /// Hands a metric's cells to `each` (key, bucket, state): those of the given keys, or all of them.
    ///
    /// # Errors
    /// Where the bytes are no segment, and what `each` refuses.
    pub fn cells<'a, E: From<CodecError>>(
        &'a self,
        metric: &Metric,
        keys: Option<&[Sought<'_>]>,
        mut each: impl FnMut(&'a [u8], Millis, State) -> Result<(), E>,
    ) -> Result<(), E> {
        let sections = self.sections.as_ref().map_err(CodecError::clone)?;
        let place = self.versions.iter().position(|version| *version == metric.version);
        let Some(section) = place.and_then(|place| sections.get(place)) else { return Ok(()) };
        let cells = &self.bytes[section.cells.clone()];
        let Some(keys) = keys else {
            let each = |_, key, bucket, state| each(key, bucket, state);
            return view::each_cell(&metric.aggregate, section.count, cells, each);
        };
        let starts = section.starts.get_or_init(|| Starts::of(metric, section.count, cells));
        let starts = starts.as_ref().map_err(CodecError::clone)?;
        for sought in keys {
            let Some(start) = starts.find(sought, cells) else { continue };
            let mut rest = &cells[start..];
            while !rest.is_empty() {
                let (key, bucket, state) = take_cell(&metric.aggregate, &mut rest)?;
                if !key.starts_with(sought.by) {
                    break;
                }
                each(key, bucket, state)?;
            }
        }
        Ok(())
    }
}

fn sections(bytes: &[u8]) -> Result<Vec<Section>, CodecError> {
    let (mut sections, mut found) = (Sections::of(bytes)?, Vec::new());
    while let Some((version, count, cells)) = sections.take()? {
        let from = cells.as_ptr() as usize - bytes.as_ptr() as usize;
        found.push(Section { version, count, cells: from..from + cells.len(), starts: OnceLock::new() });
    }
    found.shrink_to_fit();
    Ok(found)
}

impl Starts {
    fn of(metric: &Metric, count: u64, cells: &[u8]) -> Result<Starts, CodecError> {
        let (mut places, mut last) = (HashTable::new(), None);
        view::each_cell(&metric.aggregate, count, cells, |at, key, _, _| {
            let by = by_of(metric, key)?;
            if last.replace(by) != Some(by) {
                let at = u32::try_from(at).map_err(|_| CodecError::Invalid("section length"))?;
                let again = |&place: &u32| {
                    let key = key_at(cells, place).and_then(|key| by_of(metric, key).ok());
                    HASH.hash_one(key.unwrap_or_default())
                };
                places.insert_unique(HASH.hash_one(by), at, again);
            }
            Ok::<(), CodecError>(())
        })?;
        Ok(Starts { places })
    }

    /// Where the cells of a key begin.
    fn find(&self, sought: &Sought<'_>, cells: &[u8]) -> Option<usize> {
        let same = |&place: &u32| key_at(cells, place).is_some_and(|key| key.starts_with(sought.by));
        self.places.find(sought.hash, same).map(|&place| place as usize)
    }
}

fn key_at(cells: &[u8], place: u32) -> Option<&[u8]> {
    shared_model::codec::take_bytes(&mut &cells[place as usize..], "cell key").ok()
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
            let segment = Segment::new(Slice::Epoch(1), 1, bytes.clone());
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
                let found = |keys: Option<&[Sought<'_>]>| {
                    let mut found = Vec::new();
                    segment.cells(metric, keys, |key, bucket, state| {
                        found.push((key.to_vec(), bucket, state));
                        Ok::<(), CodecError>(())
                    }).unwrap();
                    found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
                    found
                };
                prop_assert_eq!(found(None), all);
                prop_assert_eq!(found(Some(&sought)), expected);
            }
        }
    }
}
