//! Finds the rows of a stream's day that must go: of equal identities one delivery survives, that of the lowest topic,
//! partition and offset.
//!
//! Each row becomes one number: what tells the low half of its identity from most others, then the row's place in the
//! day. Put in order, these bring rows together whose identities may be equal, and say which rows they are; of these
//! alone the whole identity and the position are looked at. The low half is read again with them, since a number lacks
//! its last bits: to keep it would take as much memory again as all numbers.
//!
//! Memory: what both take is bounded by cutting identities into slices, one after the other, and a slice's rows that may
//! be repeats into batches; that changes nothing but how often the columns are read. The deliveries of one identity are
//! looked at together, however many: they are bounded by how often one was sent.

use crate::compute::rows::{Chunk, Rows};
use crate::plan::{IDENTITY, POSITION};
use anyhow::{Context, Result, anyhow};
use polars::prelude::{DataFrame, col};
use std::sync::{Mutex, PoisonError};

/// Bytes that a row's number takes: twice itself, since vectors grow by doubling.
const BYTES_OF_NUMBER: u64 = 16;
/// Bytes that a row takes whose identity may have others: its number in a batch, and a delivery, twice likewise.
const BYTES_OF_CONTENDER: u64 = (size_of::<u64>() + size_of::<Delivery>()) as u64 * 2;

/// A slice's numbers are put in order in so many parts, which several threads share; of most days the cache of a core
/// holds one.
const PARTS: u64 = 256;

/// By chunk a bit for each row, set where it must go; empty where none must.
pub(super) type Gone = Vec<Vec<u64>>;

/// Whether a row of a chunk must go.
pub(super) fn is_gone(gone: &[u64], row: usize) -> bool {
    gone.get(row / 64).is_some_and(|bits| bits >> (row % 64) & 1 == 1)
}

/// A delivery whose identity may have others.
#[derive(Clone, Copy)]
struct Delivery {
    identity: (u64, u64),
    /// Its topic's place among those met.
    topic: u32,
    partition: i32,
    offset: i64,
    chunk: u32,
    row: u32,
}

/// Finds them, in about `memory` bytes.
pub(super) fn find(rows: &Rows, memory: u64) -> Result<Gone> {
    let mut gone: Gone = vec![Vec::new(); rows.chunks.len()];
    let places = Places::of(rows);
    let slices = rows.count().saturating_mul(BYTES_OF_NUMBER).div_ceil(memory.max(1)).clamp(1, 4096);
    for slice in 0..slices {
        let parts = alike(rows, &places, slice, slices)?;
        let found = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let most = memory.saturating_sub(found * size_of::<u64>() as u64) / BYTES_OF_CONTENDER;
        let mut batch = Vec::new();
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            batch.extend(part);
            if parts.peek().is_none_or(|next| (batch.len() + next.len()) as u64 > most) {
                batch.sort_unstable();
                contenders(rows, &places, &batch)?.all_but_first(rows, &mut gone);
                batch.clear();
            }
        }
    }
    Ok(gone)
}

/// The places of a day's rows: numbers through all chunks.
struct Places {
    /// Of each chunk's first row.
    first: Vec<u64>,
    /// The bits that a place takes.
    mask: u64,
}

impl Places {
    fn of(rows: &Rows) -> Places {
        let first = rows.chunks.iter().scan(0, |next, chunk| {
            let first = *next;
            *next += chunk.rows;
            Some(first)
        });
        Places { first: first.collect(), mask: rows.count().next_power_of_two() - 1 }
    }

    /// Those in a chunk, of some that are in order.
    fn within<'p>(&self, at: usize, chunk: &Chunk, places: &'p [u64]) -> &'p [u64] {
        let below = |end: u64| places.partition_point(|place| *place < end);
        &places[below(self.first[at])..below(self.first[at] + chunk.rows)]
    }
}

/// In which of so many parts half of an identity lies, and where in it: equal ones alike, and of all that there may be
/// each part has as many.
#[inline]
fn split(half: u64, parts: u64) -> (u64, u64) {
    let product = u128::from(half) * u128::from(parts);
    ((product >> 64) as u64, product as u64)
}

/// The places of a slice's rows whose identities may be equal to others', by part: all of one identity are in one.
fn alike(rows: &Rows, places: &Places, slice: u64, slices: u64) -> Result<Vec<Vec<u64>>> {
    let expected = rows.count() / slices / PARTS;
    let room = (expected + expected / 16) as usize;
    let parts: Vec<Mutex<Vec<u64>>> = (0..PARTS).map(|_| Mutex::new(Vec::with_capacity(room))).collect();
    let (mask, from, all) = (places.mask, slice * PARTS, slices * PARTS);
    rows.each(|at, chunk| {
        let frame = rows.read(chunk, vec![col(IDENTITY[1])])?;
        let mut found: Vec<Vec<u64>> = vec![Vec::new(); PARTS as usize];
        for (place, low) in (places.first[at]..).zip(frame.column(IDENTITY[1])?.u64()?.iter()) {
            let Some(low) = low else { continue };
            let (part, rest) = split(low, all);
            // Of another slice it is below, or beyond the last.
            if let Some(found) = found.get_mut(part.wrapping_sub(from) as usize) {
                found.push(rest & !mask | place);
            }
        }
        for (part, found) in parts.iter().zip(found) {
            part.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        }
        Ok(())
    })?;
    let parts = parts.into_iter().map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner));
    let mut parts: Vec<Vec<u64>> = parts.collect();
    let each = parts.len().div_ceil(rows.threads);
    std::thread::scope(|scope| {
        let sort = move |part: &mut Vec<u64>| *part = several(std::mem::take(part), mask);
        let threads =
            parts.chunks_mut(each).map(|parts| scope.spawn(move || parts.iter_mut().for_each(sort)));
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a sorter of identities died")))
    })?;
    Ok(parts)
}

/// The places of numbers that aren't alone with what is above the mask.
fn several(mut numbers: Vec<u64>, mask: u64) -> Vec<u64> {
    numbers.sort_unstable();
    let several = numbers.chunk_by(|a, b| (a ^ b) & !mask == 0).filter(|same| same.len() > 1);
    let mut several: Vec<u64> = several.flatten().map(|number| number & mask).collect();
    several.shrink_to_fit();
    several
}

/// What decides between the rows at some places, which are in order.
fn contenders(rows: &Rows, places: &Places, found: &[u64]) -> Result<Contenders> {
    let all = Mutex::new(Contenders::default());
    rows.each(|at, chunk| {
        let found = places.within(at, chunk, found);
        if !found.is_empty() {
            let found = found.iter().map(|place| (place - places.first[at]) as usize);
            let contenders = Contenders::read(rows, at as u32, chunk, found)?;
            all.lock().unwrap_or_else(PoisonError::into_inner).append(contenders);
        }
        Ok(())
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

#[derive(Default)]
struct Contenders {
    topics: Vec<String>,
    deliveries: Vec<Delivery>,
}

impl Contenders {
    /// Of the rows `found` of a chunk.
    fn read(rows: &Rows, at: u32, chunk: &Chunk, found: impl Iterator<Item = usize>) -> Result<Contenders> {
        let columns = IDENTITY.iter().chain(&POSITION).map(|name| col(*name)).collect();
        let frame: DataFrame = rows.read(chunk, columns)?;
        let column = |name: &str| frame.column(name);
        let (hi, lo) = (column(IDENTITY[0])?.u64()?, column(IDENTITY[1])?.u64()?);
        let (topics, partitions) = (column(POSITION[0])?.str()?, column(POSITION[1])?.i32()?);
        let offsets = column(POSITION[2])?.i64()?;
        let mut contenders = Contenders::default();
        for row in found {
            let missing = "the archive has a row without identity or position";
            let topic = contenders.topic(topics.get(row).context(missing)?);
            contenders.deliveries.push(Delivery {
                identity: hi.get(row).zip(lo.get(row)).context(missing)?,
                topic,
                partition: partitions.get(row).context(missing)?,
                offset: offsets.get(row).context(missing)?,
                chunk: at,
                row: row as u32,
            });
        }
        Ok(contenders)
    }

    fn topic(&mut self, name: &str) -> u32 {
        let known = self.topics.iter().rposition(|topic| topic == name);
        let at = known.unwrap_or_else(|| {
            self.topics.push(name.to_owned());
            self.topics.len() - 1
        });
        at as u32
    }

    fn append(&mut self, other: Contenders) {
        let topics: Vec<u32> = other.topics.iter().map(|topic| self.topic(topic)).collect();
        let deliveries = other.deliveries.into_iter();
        self.deliveries.extend(deliveries.map(|one| Delivery { topic: topics[one.topic as usize], ..one }));
    }

    fn all_but_first(mut self, rows: &Rows, gone: &mut Gone) {
        let topics = &self.topics;
        self.deliveries.sort_unstable_by(|a, b| {
            let position = |one: &Delivery| (one.partition, one.offset, one.chunk, one.row);
            let by_topic = || topics[a.topic as usize].cmp(&topics[b.topic as usize]);
            a.identity.cmp(&b.identity).then_with(by_topic).then_with(|| position(a).cmp(&position(b)))
        });
        for same in self.deliveries.chunk_by(|a, b| a.identity == b.identity) {
            for one in &same[1..] {
                let (chunk, row) = (one.chunk as usize, one.row as usize);
                gone[chunk].resize(rows.chunks[chunk].rows.div_ceil(64) as usize, 0);
                gone[chunk][row / 64] |= 1 << (row % 64);
            }
        }
    }
}

/// What rows have that aren't gone.
pub(super) fn left<T>(values: impl Iterator<Item = T>, gone: &[u64]) -> impl Iterator<Item = T> {
    values.enumerate().filter(move |(row, _)| !is_gone(gone, *row)).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Budget;
    use crate::plan::Segments;
    use polars::prelude::{Column, ParquetWriter};
    use proptest::prelude::{ProptestConfig, prop, proptest};
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Identity, topic, partition and offset.
    type Row = ((u64, u64), &'static str, i32, i64);

    fn write(path: &Path, rows: &[Row]) {
        let columns = vec![
            Column::new(IDENTITY[0].into(), rows.iter().map(|row| row.0.0).collect::<Vec<u64>>()),
            Column::new(IDENTITY[1].into(), rows.iter().map(|row| row.0.1).collect::<Vec<u64>>()),
            Column::new(POSITION[0].into(), rows.iter().map(|row| row.1).collect::<Vec<&str>>()),
            Column::new(POSITION[1].into(), rows.iter().map(|row| row.2).collect::<Vec<i32>>()),
            Column::new(POSITION[2].into(), rows.iter().map(|row| row.3).collect::<Vec<i64>>()),
        ];
        let mut frame = DataFrame::new(rows.len(), columns).unwrap();
        ParquetWriter::new(std::fs::File::create(path).unwrap()).finish(&mut frame).unwrap();
    }

    /// By their places, from files of so many rows.
    fn found(rows: &[Row], each: usize, memory: u64, threads: usize) -> BTreeSet<u64> {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, mut groups) = (Vec::new(), Vec::new());
        for (at, rows) in rows.chunks(each).enumerate() {
            files.push(folder.path().join(format!("{at}.parquet")));
            write(&files[at], rows);
            groups.push(vec![rows.len() as u64]);
        }
        let segments = vec![Segments { files, groups, row_bytes: 0, missing: Vec::new() }];
        let rows = Rows::new(segments, Budget { memory: 0, threads });
        let (gone, places) = (find(&rows, memory).unwrap(), Places::of(&rows));
        let of_chunk = |at: usize| {
            let gone = &gone[at];
            let rows = (0..rows.chunks[at].rows).filter(|row| is_gone(gone, *row as usize));
            rows.map(|row| places.first[at] + row).collect::<Vec<u64>>()
        };
        (0..gone.len()).flat_map(of_chunk).collect()
    }

    /// The same, one by one.
    fn expected(rows: &[Row]) -> BTreeSet<u64> {
        let mut order: Vec<(Row, u64)> = rows.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let mut known = BTreeSet::new();
        order.iter().filter(|(row, _)| !known.insert(row.0)).map(|(_, place)| *place).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

        /// Low halves that differ in their last bits alone, which a number doesn't have: with more than 256 rows. One
        /// slice and several, of one batch and of several.
        #[test]
        fn all_but_the_first_of_each_identity_go(
            rows in prop::collection::vec(
                (
                    (0..2u64, prop::sample::select(vec![0, 1, 2, 1u64 << 63, (1 << 63) + 1, u64::MAX - 1, u64::MAX])),
                    prop::sample::select(vec!["b", "a", "import:0"]),
                    0..2i32,
                    0..300i64,
                ),
                1..300,
            ),
            distinct in 0..200u64,
            memory in prop::sample::select(vec![u64::MAX, 4_000, 1_500]),
            threads in 1..4usize,
        ) {
            // Some of no other's identity, whichever those of the rest are.
            let far = (0..distinct).map(|at| ((9, at.wrapping_mul(0x9e37_79b9_7f4a_7c15)), "a", 0, at as i64));
            let rows: Vec<Row> = rows.into_iter().chain(far).collect();
            assert_eq!(found(&rows, 150, memory, threads), expected(&rows));
        }
    }

    #[test]
    fn parts_are_in_order_and_alike_large() {
        for parts in [1, 256, 3 * 256, 4096 * 256] {
            assert_eq!(split(0, parts), (0, 0));
            assert_eq!(split(u64::MAX, parts).0, parts - 1);
            let within = |half| split(half, parts).0;
            let halves = (0..10_000u64).map(|at| at * (u64::MAX / 10_000));
            assert!(halves.clone().zip(halves.skip(1)).all(|(a, b)| within(a) <= within(b)));
        }
        let mut rows = [0; 3];
        (0..3_000).for_each(|at| rows[split(at * (u64::MAX / 3_000), 3).0 as usize] += 1);
        assert!(rows.iter().all(|rows| (999..=1_001).contains(rows)), "{rows:?}");
    }

    #[test]
    fn numbers_that_are_alone_are_left_out() {
        let mask = 0b111;
        let number = |value: u64, place: u64| value << 3 | place;
        let numbers =
            vec![number(5, 1), number(6, 3), number(5, 0), number(7, 7), number(6, 2), number(5, 6)];
        assert_eq!(several(numbers, mask), [0, 1, 6, 2, 3]);
        assert!(several(Vec::new(), mask).is_empty());
        assert!(several(vec![number(u64::MAX >> 3, 7), number(0, 7)], mask).is_empty());
    }
}
