//! External sort: rows gather in a buffer of fixed size, go to disk as sorted runs, and come back merged.
//!
//! The order is (partition, event time, row bytes), so the result depends neither on the buffer's size nor on which
//! thread read which row. A merge opens no more runs than it is told.

use super::row;
use shared_model::time::Millis;
use std::cmp::Ordering;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempPath;

/// Rows in memory, until they are spilled.
#[derive(Debug)]
pub struct Buffer {
    rows: Vec<u8>,
    entries: Vec<Entry>,
    most_bytes: usize,
    most_entries: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    partition: u32,
    length: u32,
    time: Millis,
    at: usize,
}

impl Buffer {
    /// A buffer that never holds more than `bytes`, but for one row that is larger alone.
    pub fn new(bytes: usize) -> Buffer {
        let most_entries = (bytes * 2 / 5 / size_of::<Entry>()).max(1);
        let most_bytes = bytes * 3 / 5;
        // Reserved at once, so that growing never needs the double; untouched pages cost nothing.
        let (rows, entries) = (Vec::with_capacity(most_bytes), Vec::with_capacity(most_entries));
        Buffer { rows, entries, most_bytes, most_entries }
    }

    /// Whether a row must wait until the buffer has been spilled.
    pub fn is_full_for(&self, row: &[u8]) -> bool {
        !self.entries.is_empty()
            && (self.entries.len() >= self.most_entries || self.rows.len() + row.len() > self.most_bytes)
    }

    /// Takes in a row.
    pub fn push(&mut self, partition: u32, time: Millis, row: &[u8]) {
        self.entries.push(Entry { partition, length: row.len() as u32, time, at: self.rows.len() });
        self.rows.extend_from_slice(row);
    }

    /// Writes all rows, sorted, as a run in `folder` and empties the buffer; `None` where there are none.
    pub fn spill(&mut self, folder: &Path) -> io::Result<Option<Run>> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        let rows = &self.rows;
        let row = |entry: &Entry| &rows[entry.at..entry.at + entry.length as usize];
        self.entries.sort_unstable_by(|a, b| {
            (a.partition, a.time).cmp(&(b.partition, b.time)).then_with(|| row(a).cmp(row(b)))
        });
        let mut writer = RunWriter::new(folder)?;
        for entry in &self.entries {
            writer.push(entry.partition, entry.time, row(entry))?;
        }
        self.entries.clear();
        self.rows.clear();
        self.rows.shrink_to(self.most_bytes);
        writer.finish().map(Some)
    }
}

/// A sorted run on disk; its file goes when it is dropped.
#[derive(Debug)]
pub struct Run {
    path: TempPath,
    sections: Vec<Section>,
}

/// One partition's rows in a run.
#[derive(Debug, Clone, Copy)]
struct Section {
    partition: u32,
    start: u64,
    end: u64,
}

struct RunWriter {
    out: BufWriter<File>,
    path: TempPath,
    sections: Vec<Section>,
    at: u64,
    last: Millis,
    head: Vec<u8>,
}

impl RunWriter {
    fn new(folder: &Path) -> io::Result<RunWriter> {
        let (file, path) = tempfile::Builder::new().prefix("run-").tempfile_in(folder)?.into_parts();
        let out = BufWriter::with_capacity(1 << 18, file);
        Ok(RunWriter { out, path, sections: Vec::new(), at: 0, last: 0, head: Vec::new() })
    }

    fn push(&mut self, partition: u32, time: Millis, row: &[u8]) -> io::Result<()> {
        if self.sections.last().is_none_or(|section| section.partition != partition) {
            self.sections.push(Section { partition, start: self.at, end: self.at });
            self.last = 0;
        }
        self.head.clear();
        row::put_varint(&mut self.head, row::zigzag(time.wrapping_sub(self.last)));
        row::put_varint(&mut self.head, row.len() as u64);
        self.last = time;
        self.out.write_all(&self.head)?;
        self.out.write_all(row)?;
        self.at += (self.head.len() + row.len()) as u64;
        if let Some(section) = self.sections.last_mut() {
            section.end = self.at;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<Run> {
        self.out.flush()?;
        Ok(Run { path: self.path, sections: self.sections })
    }
}

/// Runs opened for reading.
#[derive(Debug)]
pub struct OpenRuns(Vec<(Arc<File>, Vec<Section>)>);

impl OpenRuns {
    /// Opens all of `runs`.
    pub fn open(runs: &[Run]) -> io::Result<OpenRuns> {
        let open = |run: &Run| Ok((Arc::new(File::open(&run.path)?), run.sections.clone()));
        runs.iter().map(open).collect::<io::Result<_>>().map(OpenRuns)
    }

    /// All partitions, in order.
    pub fn partitions(&self) -> BTreeSet<u32> {
        self.0.iter().flat_map(|(_, sections)| sections.iter().map(|section| section.partition)).collect()
    }

    /// One partition's rows in order, through a buffer of so many bytes for each run.
    pub fn merge(&self, partition: u32, buffer: usize) -> io::Result<Merge> {
        let mut heads = BinaryHeap::new();
        for (file, sections) in &self.0 {
            if let Ok(at) = sections.binary_search_by_key(&partition, |section| section.partition) {
                let Section { start, end, .. } = sections[at];
                let reader = SectionReader {
                    file: file.clone(),
                    next: start,
                    end,
                    buffer: Vec::new(),
                    used: 0,
                    size: buffer,
                };
                let mut head = Head { time: 0, row: Vec::new(), reader };
                if head.advance()? {
                    heads.push(head);
                }
            }
        }
        Ok(Merge { heads })
    }
}

/// Merges runs into fewer until no more than `most` are left, never opening more than `most` at once. Now and then it
/// asks whether to go on.
pub fn reduce<E: From<io::Error>>(
    mut runs: Vec<Run>,
    most: usize,
    buffer: usize,
    folder: &Path,
    go_on: impl Fn() -> Result<(), E>,
) -> Result<Vec<Run>, E> {
    let most = most.max(2);
    while runs.len() > most {
        let some = runs.drain(..most.min(runs.len() - most + 1)).collect::<Vec<_>>();
        let open = OpenRuns::open(&some)?;
        let mut writer = RunWriter::new(folder)?;
        for partition in open.partitions() {
            let mut rows = 0;
            open.merge(partition, buffer)?.for_each(|time, row| {
                if rows % 4_096 == 0 {
                    go_on()?;
                }
                rows += 1;
                Ok::<(), E>(writer.push(partition, time, row)?)
            })?;
        }
        runs.push(writer.finish()?);
    }
    Ok(runs)
}

/// One partition's rows out of several runs.
#[derive(Debug)]
pub struct Merge {
    heads: BinaryHeap<Head>,
}

impl Merge {
    /// Hands each row with its event time, in order, to `take`.
    pub fn for_each<E: From<io::Error>>(
        mut self,
        mut take: impl FnMut(Millis, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(mut head) = self.heads.peek_mut() {
            take(head.time, &head.row)?;
            if !head.advance()? {
                PeekMut::pop(head);
            }
        }
        Ok(())
    }
}

/// The next row of one run. The least is the greatest, as the heap wants it.
#[derive(Debug)]
struct Head {
    time: Millis,
    row: Vec<u8>,
    reader: SectionReader,
}

impl Head {
    fn advance(&mut self) -> io::Result<bool> {
        let Some(step) = self.reader.varint()? else { return Ok(false) };
        self.time = self.time.wrapping_add(row::unzigzag(step));
        let length = self.reader.varint()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.row.clear();
        self.reader.copy(length as usize, &mut self.row)?;
        Ok(true)
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Head) -> Ordering {
        (other.time, &other.row).cmp(&(self.time, &self.row))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

/// Reads a section through a buffer of its own, at positions of its own: the file may be shared.
#[derive(Debug)]
struct SectionReader {
    file: Arc<File>,
    next: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
    size: usize,
}

impl SectionReader {
    /// Refills the buffer where it is used up; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.used == self.buffer.len() {
            let length = (self.end - self.next).min(self.size as u64);
            self.buffer.resize(length as usize, 0);
            self.file.read_exact_at(&mut self.buffer, self.next)?;
            self.next += length;
            self.used = 0;
        }
        Ok(!self.buffer.is_empty())
    }

    fn varint(&mut self) -> io::Result<Option<u64>> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            if !self.fill()? {
                return if shift == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let byte = self.buffer[self.used];
            self.used += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(Some(value));
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn copy(&mut self, mut length: usize, out: &mut Vec<u8>) -> io::Result<()> {
        while length > 0 {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = length.min(self.buffer.len() - self.used);
            out.extend_from_slice(&self.buffer[self.used..self.used + part]);
            self.used += part;
            length -= part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_buffer_and_any_fan_in_give_the_naive_order(
            rows in prop::collection::vec((0u32..4, -5i64..5, prop::collection::vec(any::<u8>(), 0..40)), 0..200),
            bytes in 1usize..2_000,
            most in 2usize..5,
            buffer in 1usize..50,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let mut sorter = Buffer::new(bytes);
            let mut runs = Vec::new();
            for (partition, time, row) in &rows {
                if sorter.is_full_for(row) {
                    runs.extend(sorter.spill(folder.path()).expect("spilled"));
                }
                sorter.push(*partition, *time, row);
            }
            runs.extend(sorter.spill(folder.path()).expect("spilled"));
            let runs = reduce(runs, most, buffer, folder.path(), || io::Result::Ok(())).expect("reduced");
            prop_assert!(runs.len() <= most);
            let open = OpenRuns::open(&runs).expect("opened");
            let mut found = Vec::new();
            for partition in open.partitions() {
                let merge = open.merge(partition, buffer).expect("merged");
                merge.for_each(|time, row| {
                    found.push((partition, time, row.to_vec()));
                    io::Result::Ok(())
                }).expect("read");
            }
            let mut naive = rows;
            naive.sort();
            prop_assert_eq!(found, naive);
        }
    }
}
