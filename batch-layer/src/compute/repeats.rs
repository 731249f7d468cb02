//! Finds the rows of a stream's day that must go: of equal identities one delivery survives, that of the lowest topic,
//! partition and offset.
//!
//! The low halves of all identities are put in order, so that those that repeat stand together; only of these rows the
//! whole identity and the position are read. Memory: what both take is bounded by cutting identities into slices, one
//! after the other; that changes nothing but how often the columns are read.

use crate::compute::rows::{Chunk, Rows};
use crate::plan::{IDENTITY, POSITION};
use anyhow::{Context, Result, anyhow};
use polars::prelude::{DataFrame, col};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Bytes that the low half of an identity takes.
const BYTES_OF_LOW: u64 = 10;
/// Bytes that are taken for a row whose low half repeats: twice itself, since vectors grow by doubling, and its part of
/// the set of such halves.
const BYTES_OF_REPEAT: u64 = size_of::<Delivery>() as u64 * 2 + 16;

/// Low halves are put in order in so many parts; a power of two.
const PARTS: usize = 4;

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
    let slices = rows.count().saturating_mul(BYTES_OF_LOW).div_ceil(memory.max(1)).clamp(1, 4096);
    for slice in 0..slices {
        let (repeated, deliveries) = repeated(rows, rows.count() / slices, &|low| low % slices == slice)?;
        let parts = (deliveries * BYTES_OF_REPEAT).div_ceil(memory.max(1)).clamp(1, 4096);
        for part in (0..parts).filter(|_| !repeated.is_empty()) {
            let wanted = |low: u64| low / slices % parts == part && repeated.contains(&low);
            contenders(rows, &wanted)?.all_but_first(rows, &mut gone);
        }
    }
    Ok(gone)
}

/// The low halves that several rows have, and how many rows.
fn repeated(
    rows: &Rows,
    expected: u64,
    wanted: &(impl Fn(u64) -> bool + Sync),
) -> Result<(HashSet<u64>, u64)> {
    // By their highest bits, so that each part is put in order by a thread of its own.
    let room = (expected + expected / 16) / PARTS as u64;
    let parts: [Mutex<Vec<u64>>; PARTS] =
        std::array::from_fn(|_| Mutex::new(Vec::with_capacity(room as usize)));
    rows.each(|_, chunk| {
        let frame = rows.read(chunk, vec![col(IDENTITY[1])])?;
        let mut found: [Vec<u64>; PARTS] = Default::default();
        for low in frame.column(IDENTITY[1])?.u64()?.iter().flatten().filter(|low| wanted(*low)) {
            found[(low >> (64 - PARTS.ilog2())) as usize].push(low);
        }
        for (part, found) in parts.iter().zip(found) {
            part.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        }
        Ok(())
    })?;
    let (mut repeated, mut deliveries) = (HashSet::new(), 0);
    let several = |part: Mutex<Vec<u64>>| {
        let mut lows = part.into_inner().unwrap_or_else(PoisonError::into_inner);
        lows.sort_unstable();
        let several = lows.chunk_by(|a, b| a == b).filter(|same| same.len() > 1);
        several.map(|same| (same[0], same.len() as u64)).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads = parts.map(|part| scope.spawn(|| several(part)));
        for thread in threads {
            let found = thread.join().map_err(|_| anyhow!("a sorter of identities died"))?;
            deliveries += found.iter().map(|(_, count)| count).sum::<u64>();
            repeated.extend(found.into_iter().map(|(low, _)| low));
        }
        Ok((repeated, deliveries))
    })
}

fn contenders(rows: &Rows, wanted: &(impl Fn(u64) -> bool + Sync)) -> Result<Contenders> {
    let all = Mutex::new(Contenders::default());
    rows.each(|at, chunk| {
        let low = rows.read(chunk, vec![col(IDENTITY[1])])?;
        let lows = low.column(IDENTITY[1])?.u64()?.iter().enumerate();
        let found: Vec<usize> = lows.filter(|(_, low)| low.is_some_and(wanted)).map(|(row, _)| row).collect();
        if !found.is_empty() {
            let contenders = Contenders::read(rows, at as u32, chunk, &found)?;
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
    fn read(rows: &Rows, at: u32, chunk: &Chunk, found: &[usize]) -> Result<Contenders> {
        let columns = IDENTITY.iter().chain(&POSITION).map(|name| col(*name)).collect();
        let frame: DataFrame = rows.read(chunk, columns)?;
        let column = |name: &str| frame.column(name);
        let (hi, lo) = (column(IDENTITY[0])?.u64()?, column(IDENTITY[1])?.u64()?);
        let (topics, partitions) = (column(POSITION[0])?.str()?, column(POSITION[1])?.i32()?);
        let offsets = column(POSITION[2])?.i64()?;
        let mut contenders = Contenders::default();
        for &row in found {
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
