//! The file of a local copy: a log of what Redis has confirmed of a partition's groups, appended to and never synced.
//!
//! Its first line names the partition and how many groups there are. Then come entries, each behind its length, the xxh3
//! of that, and the entry's own xxh3 (64 bits each, little-endian). An entry is one change of one group: the group's number; its
//! header's JSON, or nothing while the copy lacks a segment of it; the fields deleted; the fields stored, each with its
//! bytes; numbers and lengths as varints. So whatever beginning of the log a machine that died has left, each group of
//! it is an older state of that group; what follows the first entry that isn't whole is cut off.

use anyhow::{Context as _, ensure};
use shared_model::codec::{put_bytes, put_varint, take_bytes, take_count, take_u64};
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, Header, Slice};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{BufReader, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// A segment's name.
pub(super) type Name = (Slice, u64);

/// The log is written anew when it is this much larger than what it is to hold, and twice as large.
const GARBAGE: u64 = if cfg!(test) { 1 << 10 } else { 64 << 20 };
/// So many bytes of segments are written, and put back, at once (or a single larger one).
pub(super) const CHUNK: usize = if cfg!(test) { 64 } else { 4 << 20 };
/// What stands before an entry.
const FRAME: usize = 24;

/// The copy of one group.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Copied {
    /// Its header; `None` while segments are lacking.
    pub(super) header: Option<Header>,
    /// Its segments.
    pub(super) segments: BTreeMap<Name, Segment>,
}

/// Where a segment's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where in the file.
    at: u64,
    /// How many.
    pub(super) length: usize,
    /// Their xxh3.
    sum: u64,
}

/// The open file of one partition, which no other process has open.
#[derive(Debug)]
pub(super) struct CopyFile {
    path: PathBuf,
    file: File,
    title: String,
    length: u64,
    groups: Vec<Copied>,
}

impl CopyFile {
    /// Opens a partition's file, or makes it; one that isn't of this partition and layout is emptied. `None`: another
    /// process has it open. Blocks.
    pub(super) fn open(
        folder: &Path,
        tp: &TopicPartition,
        groups: usize,
    ) -> anyhow::Result<Option<CopyFile>> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}-{}.copy", tp.topic, tp.partition));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // Whoever had it open may have put another in its place.
        if std::fs::metadata(&path).map(|found| found.ino()).ok() != Some(file.metadata()?.ino()) {
            return Ok(None);
        }
        if let Err(error) = std::fs::remove_file(anew(&path))
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let title = format!("tidemark local copy 1 {tp} {groups}\n");
        let mut copy = CopyFile { path, file, title, length: 0, groups: vec![Copied::default(); groups] };
        copy.read_back().with_context(|| format!("reading {}", copy.path.display()))?;
        Ok(Some(copy))
    }

    /// Takes in what the file holds, as far as it is whole.
    fn read_back(&mut self) -> anyhow::Result<()> {
        let end = self.file.metadata()?.len();
        let mut input = BufReader::with_capacity(1 << 20, &self.file);
        let mut title = vec![0; self.title.len()];
        let is_ours = input.read_exact(&mut title).is_ok() && title == self.title.as_bytes();
        let mut groups = vec![Copied::default(); self.groups.len()];
        let mut length = 0;
        if is_ours {
            length = title.len() as u64;
            while let Some(entry) = next_entry(&mut input, end - length)? {
                let Some(change) = Change::decode(&entry) else { break };
                let Some(group) = groups.get_mut(change.group) else { break };
                change.apply(group, length + FRAME as u64);
                length += (FRAME + entry.len()) as u64;
            }
        }
        drop(input);
        (self.groups, self.length) = (groups, length);
        self.file.set_len(length)?;
        self.file.seek(SeekFrom::End(0))?;
        if length == 0 {
            self.file.write_all(self.title.as_bytes())?;
            self.length = self.title.len() as u64;
        }
        Ok(())
    }

    /// The copies, by group.
    pub(super) fn groups(&self) -> &[Copied] {
        &self.groups
    }

    /// Appends one change of a group: its header after it (`None`: the copy lacks segments), what is deleted, what is
    /// stored. Blocks.
    pub(super) fn append(
        &mut self,
        group: usize,
        header: Option<&Header>,
        deletes: &[Name],
        segments: &[(Name, Vec<u8>)],
    ) -> anyhow::Result<()> {
        let mut entry = vec![0; FRAME];
        put_varint(&mut entry, group as u128);
        put_bytes(&mut entry, header.map(Header::to_json).unwrap_or_default().as_bytes());
        put_varint(&mut entry, deletes.len() as u128);
        deletes.iter().for_each(|&(slice, seq)| {
            put_bytes(&mut entry, view::segment_field(slice, seq).as_bytes());
        });
        put_varint(&mut entry, segments.len() as u128);
        for ((slice, seq), bytes) in segments {
            put_bytes(&mut entry, view::segment_field(*slice, *seq).as_bytes());
            put_bytes(&mut entry, bytes);
        }
        let (frame, body) = entry.split_at_mut(FRAME);
        let length = (body.len() as u64).to_le_bytes();
        for (place, number) in [body.len() as u64, xxh3_64(&length), xxh3_64(body)].into_iter().enumerate() {
            frame[8 * place..][..8].copy_from_slice(&number.to_le_bytes());
        }
        self.file.write_all(&entry)?;
        let change = Change::decode(&entry[FRAME..]).context("an entry that was just made")?;
        change.apply(&mut self.groups[group], self.length + FRAME as u64);
        self.length += entry.len() as u64;
        Ok(())
    }

    /// A segment's bytes. Blocks.
    pub(super) fn read(&self, group: usize, name: Name) -> anyhow::Result<Vec<u8>> {
        let field = || view::segment_field(name.0, name.1);
        let segment = self.groups[group].segments.get(&name);
        let &Segment { at, length, sum } = segment.with_context(|| format!("no copy of {}", field()))?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        ensure!(xxh3_64(&bytes) == sum, "{}: {} is damaged", self.path.display(), field());
        Ok(bytes)
    }

    /// Writes the log anew where most of it is of no use any more. Blocks.
    pub(super) fn tidy(&mut self) -> anyhow::Result<()> {
        let segments = self.groups.iter().flat_map(|group| group.segments.values());
        let live: u64 = segments.map(|segment| segment.length as u64).sum();
        if self.length < GARBAGE + 2 * live {
            return Ok(());
        }
        let path = anew(&self.path);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.lock()?;
        let groups = vec![Copied::default(); self.groups.len()];
        let (title, length) = (self.title.clone(), self.title.len() as u64);
        let mut anew = CopyFile { path, file, title, length, groups };
        anew.file.write_all(anew.title.as_bytes())?;
        for (group, copied) in self.groups.iter().enumerate() {
            for names in chunks(&copied.segments) {
                let read = |name| Ok((name, self.read(group, name)?));
                let segments = names.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
                anew.append(group, None, &[], &segments)?;
            }
            anew.append(group, copied.header.as_ref(), &[], &[])?;
        }
        std::fs::rename(&anew.path, &self.path)?;
        anew.path.clone_from(&self.path);
        *self = anew;
        Ok(())
    }

    /// Deletes the file. Blocks.
    pub(super) fn delete(self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(&self.path)?)
    }
}

/// Where the log is written anew.
fn anew(path: &Path) -> PathBuf {
    path.with_extension("copy-new")
}

/// The names of segments in parts of about [`CHUNK`] bytes.
pub(super) fn chunks(segments: &BTreeMap<Name, Segment>) -> Vec<Vec<Name>> {
    let mut chunks: Vec<(usize, Vec<Name>)> = Vec::new();
    for (&name, &Segment { length, .. }) in segments {
        match chunks.last_mut() {
            Some((bytes, names)) if *bytes + length <= CHUNK => {
                *bytes += length;
                names.push(name);
            }
            _ => chunks.push((length, vec![name])),
        }
    }
    chunks.into_iter().map(|(_, names)| names).collect()
}

/// The next entry's body; `None` where none follows that is whole. `left`: how many bytes the file has yet.
fn next_entry(input: &mut impl std::io::Read, left: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut frame = [0; FRAME];
    if left < FRAME as u64 {
        return Ok(None);
    }
    input.read_exact(&mut frame)?;
    let numbers = frame.as_chunks::<8>().0;
    let [length, sum_of_length, sum] = [0, 1, 2].map(|at: usize| u64::from_le_bytes(numbers[at]));
    if xxh3_64(&numbers[0]) != sum_of_length || length > left - FRAME as u64 {
        return Ok(None);
    }
    let mut entry = vec![0; length as usize];
    input.read_exact(&mut entry)?;
    Ok((xxh3_64(&entry) == sum).then_some(entry))
}

/// What an entry says.
struct Change {
    group: usize,
    header: Option<Header>,
    deletes: Vec<Name>,
    /// Each with its place in the entry.
    segments: Vec<(Name, Segment)>,
}

impl Change {
    /// `None` for what no version of ours has written.
    fn decode(entry: &[u8]) -> Option<Change> {
        let mut rest = entry;
        let group = usize::try_from(take_u64(&mut rest, "group").ok()?).ok()?;
        let header = match take_bytes(&mut rest, "header").ok()? {
            [] => None,
            json => Some(Header::from_json(json).ok()?),
        };
        let name = |rest: &mut &[u8]| -> Option<Name> {
            let field: &[u8] = take_bytes(rest, "field").ok()?;
            view::parse_segment_field(std::str::from_utf8(field).ok()?)
        };
        let deleted = take_count(&mut rest, "deleted fields").ok()?;
        let deletes = (0..deleted).map(|_| name(&mut rest)).collect::<Option<_>>()?;
        let stored = take_count(&mut rest, "fields").ok()?;
        let segments = (0..stored).map(|_| {
            let name = name(&mut rest)?;
            let bytes = take_bytes(&mut rest, "segment").ok()?;
            let (at, length) = (entry.len() - rest.len() - bytes.len(), bytes.len());
            Some((name, Segment { at: at as u64, length, sum: xxh3_64(bytes) }))
        });
        let segments = segments.collect::<Option<_>>()?;
        rest.is_empty().then_some(Change { group, header, deletes, segments })
    }

    /// `at`: where the entry's body begins in the file.
    fn apply(self, group: &mut Copied, at: u64) {
        for name in &self.deletes {
            group.segments.remove(name);
        }
        let placed = |(name, segment): (Name, Segment)| (name, Segment { at: at + segment.at, ..segment });
        group.segments.extend(self.segments.into_iter().map(placed));
        group.header = self.header;
    }
}

#[cfg(test)]
mod tests;
