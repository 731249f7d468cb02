//! The bytes of a segment: packed cells in their canonical order, each name once.
//!
//! A version byte, then a section per metric version: `version (8 bytes BE), count, length, (key, bucket, state)*`. The
//! order makes merging segments a pass over their bytes.

use super::CellId;
use crate::aggregate::{Aggregate, State};
use crate::codec::{self, CodecError};
use crate::metric::MetricVersion;
use crate::time::Millis;
use std::cmp::Ordering;

pub(super) const SEGMENT_VERSION: u8 = 1;
/// The most bytes that a section takes beside its cells: its version, and two numbers.
const HEAD: usize = 8 + 2 * 10;

/// Packs cells that come in the canonical order of [`CellId`], each name once.
#[derive(Default)]
pub struct Packer {
    /// Each section's version, how many cells it has, and where they begin in `cells`.
    sections: Vec<(MetricVersion, u64, usize)>,
    cells: Vec<u8>,
    /// The bucket of the last cell: most have that of the one before.
    bucket: Bucket,
}

/// A bucket's bytes.
struct Bucket {
    start: Millis,
    /// Filled up, so that what is appended is one store.
    bytes: [u8; 16],
    length: usize,
}

impl Default for Bucket {
    fn default() -> Bucket {
        // Zero is one zero byte.
        Bucket { start: 0, bytes: [0; 16], length: 1 }
    }
}

impl Bucket {
    /// Appends the bytes of the bucket that starts at `start`, which it then is.
    #[inline]
    fn put(&mut self, start: Millis, out: &mut Vec<u8>) {
        let at = out.len();
        if self.start == start {
            out.extend_from_slice(&self.bytes);
            out.truncate(at + self.length);
        } else {
            codec::put_zigzag(out, i128::from(start));
            (self.start, self.length) = (start, out.len() - at);
            self.bytes[..self.length].copy_from_slice(&out[at..]);
        }
    }
}

impl Packer {
    /// Takes the next cell.
    #[inline]
    pub fn push(&mut self, version: MetricVersion, key: &[u8], bucket: Millis, state: &State) {
        self.begin(version);
        codec::put_bytes(&mut self.cells, key);
        self.bucket.put(bucket, &mut self.cells);
        state.encode(&mut self.cells);
    }

    /// Takes the bytes of the next cell.
    #[inline]
    fn push_bytes(&mut self, version: MetricVersion, cell: &[u8]) {
        self.begin(version);
        self.cells.extend_from_slice(cell);
    }

    /// Begins a cell, whose bytes go behind those of all before.
    #[inline]
    fn begin(&mut self, version: MetricVersion) {
        match self.sections.last_mut() {
            Some((last, count, _)) if *last == version => *count += 1,
            _ => self.sections.push((version, 1, self.cells.len())),
        }
    }

    /// The segment; of no cells, 1 byte. The next cell begins another.
    pub fn finish(&mut self) -> Vec<u8> {
        // Made at its size: grown, it would be copied several times, and half of it be room that nobody needs.
        let mut out = Vec::with_capacity(1 + self.cells.len() + self.sections.len() * HEAD);
        out.push(SEGMENT_VERSION);
        let ends = self.sections.iter().skip(1).map(|&(.., begin)| begin).chain([self.cells.len()]);
        for (&(version, count, begin), end) in self.sections.iter().zip(ends) {
            out.extend_from_slice(&version.0.to_be_bytes());
            codec::put_varint(&mut out, u128::from(count));
            codec::put_bytes(&mut out, &self.cells[begin..end]);
        }
        self.sections.clear();
        self.cells.clear();
        out
    }
}

/// Packs cells, which come in their canonical order and each name once, as from a [`super::Cells`].
pub fn pack<'a>(cells: impl IntoIterator<Item = (&'a CellId, &'a State)>) -> Vec<u8> {
    let mut packer = Packer::default();
    for (id, state) in cells {
        packer.push(id.version, &id.key, id.bucket, state);
    }
    packer.finish()
}

/// One metric's cells in a segment: its version, how many they are, and their bytes.
pub type Section<'a> = (MetricVersion, u64, &'a [u8]);

/// Whether a segment has no cells.
pub fn is_empty(segment: &[u8]) -> bool {
    segment.len() <= 1
}

/// The sections of a segment.
pub struct Sections<'a>(&'a [u8]);

impl<'a> Sections<'a> {
    /// Of a segment's bytes.
    ///
    /// # Errors
    /// Where they are of a version that isn't known.
    pub fn of(mut segment: &'a [u8]) -> Result<Sections<'a>, CodecError> {
        match codec::take_byte(&mut segment, "segment version")? {
            SEGMENT_VERSION => Ok(Sections(segment)),
            found => Err(CodecError::Version { what: "segment", found, known: SEGMENT_VERSION }),
        }
    }

    /// The next one, if there is one.
    ///
    /// # Errors
    /// Where the bytes are no section.
    pub fn take(&mut self) -> Result<Option<Section<'a>>, CodecError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (version, rest) =
            self.0.split_first_chunk::<8>().ok_or(CodecError::Truncated("metric version"))?;
        self.0 = rest;
        let version = MetricVersion(u64::from_be_bytes(*version));
        let count = codec::take_u64(&mut self.0, "cell count")?;
        Ok(Some((version, count, codec::take_bytes(&mut self.0, "section")?)))
    }
}

/// Takes one cell of a section: its key, bucket and state.
///
/// # Errors
/// Where the bytes are no cell of the aggregate.
#[inline]
pub fn take_cell<'a>(
    aggregate: &Aggregate,
    cells: &mut &'a [u8],
) -> Result<(&'a [u8], Millis, State), CodecError> {
    let (key, bucket) = take_name(cells)?;
    Ok((key, bucket, State::decode(aggregate, cells)?))
}

/// Takes a cell's key and bucket, behind which its state is.
#[inline]
fn take_name<'a>(cells: &mut &'a [u8]) -> Result<(&'a [u8], Millis), CodecError> {
    Ok((codec::take_bytes(cells, "cell key")?, codec::take_i64(cells, "cell bucket")?))
}

/// Hands each of a section's `count` cells to `each`: where it begins, its key, bucket and state.
///
/// # Errors
/// Where the bytes are not so many cells of the aggregate, and what `each` refuses.
pub fn each_cell<'a, E: From<CodecError>>(
    aggregate: &Aggregate,
    count: u64,
    cells: &'a [u8],
    mut each: impl FnMut(usize, &'a [u8], Millis, State) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = cells;
    for _ in 0..count {
        let at = cells.len() - rest.len();
        let (key, bucket, state) = take_cell(aggregate, &mut rest)?;
        each(at, key, bucket, state)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(CodecError::Invalid("section length").into()) }
}

/// Unpacks a segment, handing each cell of the metrics that `aggregate` knows to `each`; sections of other versions
/// are passed over unread.
pub fn unpack<'a>(
    bytes: &[u8],
    aggregate: impl Fn(MetricVersion) -> Option<&'a Aggregate>,
    mut each: impl FnMut(MetricVersion, &[u8], Millis, State) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    let mut sections = Sections::of(bytes)?;
    while let Some((version, count, cells)) = sections.take()? {
        if let Some(aggregate) = aggregate(version) {
            each_cell(aggregate, count, cells, |_, key, bucket, state| each(version, key, bucket, state))?;
        }
    }
    Ok(())
}

/// How many of a key's first bytes are looked at at once.
const BEGIN: usize = size_of::<u128>();

/// The first bytes of a cell's key, which tell most apart, the key and the bucket.
type Name<'a> = (u128, &'a [u8], Millis);

/// The order of names.
#[inline]
pub(super) fn compare(
    (begin, key, bucket): Name<'_>,
    (other_begin, other, other_bucket): Name<'_>,
) -> Ordering {
    // Keys that begin alike and are no longer than that are the same where they have one length.
    let is_same = || key.len() == other.len() && key.len() <= BEGIN;
    let rest = || if is_same() { Ordering::Equal } else { key.cmp(other) };
    begin.cmp(&other_begin).then_with(rest).then(bucket.cmp(&other_bucket))
}

/// One section that is being merged with others: its first cell, and the bytes after it.
struct Cursor<'a> {
    /// The cell's bytes.
    cell: &'a [u8],
    begin: u128,
    key: &'a [u8],
    bucket: Millis,
    state: State,
    left: u64,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// At the first of `count` cells; `None` where there is none.
    fn of(aggregate: &Aggregate, count: u64, cells: &'a [u8]) -> Result<Option<Cursor<'a>>, CodecError> {
        let state = State::Count(0);
        let mut cursor = Cursor { cell: &[], begin: 0, key: &[], bucket: 0, state, left: count, rest: cells };
        Ok(cursor.take(aggregate)?.then_some(cursor))
    }

    /// Whether there is another cell, at which it then is.
    fn take(&mut self, aggregate: &Aggregate) -> Result<bool, CodecError> {
        let cells = self.rest;
        if self.left == 0 {
            return if cells.is_empty() { Ok(false) } else { Err(CodecError::Invalid("section length")) };
        }
        (self.key, self.bucket) = take_name(&mut self.rest)?;
        self.state = State::decode(aggregate, &mut self.rest)?;
        self.cell = &cells[..cells.len() - self.rest.len()];
        self.begin = key_begin(self.key);
        self.left -= 1;
        Ok(true)
    }

    /// On to the next cell, which must come after this one. Whether there is another.
    fn advance(&mut self, aggregate: &Aggregate) -> Result<bool, CodecError> {
        let before = self.name();
        let goes_on = self.take(aggregate)?;
        if goes_on && compare(self.name(), before).is_le() {
            return Err(CodecError::Invalid("order of cells"));
        }
        Ok(goes_on)
    }

    fn name(&self) -> Name<'a> {
        (self.begin, self.key, self.bucket)
    }
}

/// A key's first 16 bytes, filled up with zeros: it never contradicts the order of keys.
#[inline]
pub fn key_begin(key: &[u8]) -> u128 {
    if let Some(begin) = key.first_chunk() {
        return u128::from_be_bytes(*begin);
    }
    // Not by a copy of so many bytes: to load what was just stored in pieces takes long.
    let missing = 8 * (BEGIN - key.len()) as u32;
    match (key.first_chunk(), key.last_chunk()) {
        (Some(first), Some(last)) => {
            // Where they overlap they say the same.
            u128::from(u64::from_be_bytes(*first)) << 64 | u128::from(u64::from_be_bytes(*last)) << missing
        }
        _ => {
            let bits = key.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            u128::from(bits).unbounded_shl(missing)
        }
    }
}

/// Merges segments into one. Sections of versions that `aggregate` doesn't know are left out.
pub fn merge<'a>(
    segments: &[&[u8]],
    aggregate: impl Fn(MetricVersion) -> Option<&'a Aggregate>,
) -> Result<Vec<u8>, CodecError> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    for segment in segments {
        let mut of = Sections::of(segment)?;
        while let Some(section) = of.take()? {
            sections.push(section);
        }
    }
    sections.sort_by_key(|(version, ..)| *version);
    let mut packer = Packer::default();
    for sections in sections.chunk_by(|(a, ..), (b, ..)| a == b) {
        let version = sections[0].0;
        if let Some(aggregate) = aggregate(version) {
            merge_sections(version, aggregate, sections, &mut packer)?;
        }
    }
    Ok(packer.finish())
}

/// Sections that are merged: each at a cell of its own.
struct Cursors<'a> {
    all: Vec<Cursor<'a>>,
    /// Those that are not through, by their cells' names, the least last: how its key begins, and which one.
    order: Vec<(u128, usize)>,
}

impl<'a> Cursors<'a> {
    fn of(aggregate: &Aggregate, sections: &[Section<'a>]) -> Result<Cursors<'a>, CodecError> {
        let all = sections.iter().map(|&(_, count, cells)| Cursor::of(aggregate, count, cells).transpose());
        let all: Vec<Cursor<'a>> = all.flatten().collect::<Result<_, _>>()?;
        let mut order: Vec<(u128, usize)> = all.iter().map(|cursor| cursor.begin).zip(0..).collect();
        order.sort_by(|&(_, a), &(_, b)| compare(all[b].name(), all[a].name()));
        Ok(Cursors { all, order })
    }

    /// The one at the cell that comes next.
    fn least(&mut self) -> Option<&mut Cursor<'a>> {
        Some(&mut self.all[self.order.last()?.1])
    }

    /// Whether another is at a cell of that name.
    fn is_shared(&self) -> bool {
        let [.., (next, other), (begin, least)] = self.order[..] else { return false };
        next == begin && compare(self.all[other].name(), self.all[least].name()).is_eq()
    }

    /// On beyond that cell.
    fn advance(&mut self, aggregate: &Aggregate) -> Result<(), CodecError> {
        let Some((_, at)) = self.order.pop() else { return Ok(()) };
        if self.all[at].advance(aggregate)? {
            let name = self.all[at].name();
            // There are few. To count them is quicker than to search, which would have to guess the way at each step.
            let mut place = self.order.iter().filter(|(begin, _)| *begin > name.0).count();
            // Only where keys begin alike is there more to look at.
            while let Some(&(begin, other)) = self.order.get(place)
                && begin == name.0
                && compare(self.all[other].name(), name).is_gt()
            {
                place += 1;
            }
            self.order.insert(place, (name.0, at));
        }
        Ok(())
    }
}

fn merge_sections(
    version: MetricVersion,
    aggregate: &Aggregate,
    sections: &[Section<'_>],
    packer: &mut Packer,
) -> Result<(), CodecError> {
    let mut cursors = Cursors::of(aggregate, sections)?;
    loop {
        let is_shared = cursors.is_shared();
        let Some(least) = cursors.least() else { return Ok(()) };
        if is_shared {
            let (key, bucket) = (least.key, least.bucket);
            let mut state = std::mem::replace(&mut least.state, State::Count(0));
            while cursors.is_shared() {
                cursors.advance(aggregate)?;
                if let Some(more) = cursors.least() {
                    state.merge(&more.state)?;
                }
            }
            packer.push(version, key, bucket, &state);
        } else {
            packer.push_bytes(version, least.cell);
        }
        cursors.advance(aggregate)?;
    }
}
