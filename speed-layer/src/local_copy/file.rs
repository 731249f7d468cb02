//! The files of a local copy: for each group a log of what Redis has confirmed of it, appended to and never synced.
//!
//! A log's first line names the group. Then come entries, each behind its length, the xxh3 of that, and the entry's own
//! xxh3 (64 bits each, little-endian). An entry is one change of the group: its header's JSON, or nothing while the copy
//! lacks a segment of it; the fields deleted; the fields stored, each with its bytes; numbers and lengths as varints. So
//! whatever beginning of a log a machine that died has left is an older state of the group; what follows the first entry
//! that isn't whole is cut off.

use anyhow::{Context as _, ensure};
use shared_model::codec::{put_bytes, put_varint, take_bytes, take_count};
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, Header, Slice};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// A segment's name.
pub(super) type Name = (Slice, u64);

/// A log is written anew when it is this much larger than twice what it is to hold.
const GARBAGE: u64 = if cfg!(test) { 1 << 10 } else { 4 << 20 };
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
    /// Where in the log.
    at: u64,
    /// How many.
    pub(super) length: usize,
    /// Their xxh3.
    sum: u64,
}

/// The logs of one partition, which no other process has open.
#[derive(Debug)]
pub(super) struct CopyFiles {
    logs: Vec<Log>,
    /// Held as long as they are open.
    _lock: File,
}

/// The log of one group.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    title: String,
    length: u64,
    copied: Copied,
}

impl CopyFiles {
    /// Opens a partition's logs in a folder of its own, or makes them; one that isn't of its group, as its first line says, is
    /// emptied, and whatever else lies there removed. `None`: another process has them open. Blocks.
    pub(super) fn open(folder: &Path, tp: &TopicPartition, groups: u32) -> anyhow::Result<Option<CopyFiles>> {
        let folder = folder.join(format!("{}-{}", tp.topic, tp.partition));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let lock = folder.join("lock");
        let held = File::options().write(true).create(true).truncate(false).open(&lock)?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let paths: Vec<PathBuf> = (0..groups).map(|group| folder.join(format!("{group}.copy"))).collect();
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path != lock && !paths.contains(&path) {
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        let log = |(path, group): (PathBuf, u32)| {
            let title = format!("tidemark local copy 1 {}\n", view::group_key(tp, group, groups));
            let failed = format!("reading {}", path.display());
            Log::open(path, title).context(failed)
        };
        let logs = paths.into_iter().zip(0..).map(log).collect::<anyhow::Result<_>>()?;
        Ok(Some(CopyFiles { logs, _lock: held }))
    }

    /// The copies, by group.
    pub(super) fn groups(&self) -> impl ExactSizeIterator<Item = &Copied> {
        self.logs.iter().map(|log| &log.copied)
    }

    /// The copy of a group.
    pub(super) fn group(&self, group: usize) -> &Copied {
        &self.logs[group].copied
    }

    /// A segment's bytes. Blocks.
    pub(super) fn read(&self, group: usize, name: Name) -> anyhow::Result<Vec<u8>> {
        self.logs[group].read(name)
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
        let log = &mut self.logs[group];
        log.append(header, deletes, segments)?;
        log.tidy()
    }

    /// Lets go of all that the copies hold. Blocks.
    pub(super) fn clear(&mut self) -> anyhow::Result<()> {
        self.logs.iter_mut().try_for_each(|log| log.cut(0))
    }
}

impl Log {
    fn open(path: PathBuf, title: String) -> anyhow::Result<Log> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut log = Log { path, file, title, length: 0, copied: Copied::default() };
        log.read_back()?;
        Ok(log)
    }

    /// Takes in what the file holds, as far as it is whole.
    fn read_back(&mut self) -> anyhow::Result<()> {
        let end = self.file.metadata()?.len();
        let mut input = BufReader::with_capacity(1 << 20, &self.file);
        let mut title = vec![0; self.title.len()];
        let is_ours = input.read_exact(&mut title).is_ok() && title == self.title.as_bytes();
        let (mut copied, mut length) = (Copied::default(), 0);
        if is_ours {
            length = title.len() as u64;
            while let Some(entry) = next_entry(&mut input, end - length)? {
                let Some(change) = Change::decode(&entry) else { break };
                change.apply(&mut copied, length + FRAME as u64);
                length += (FRAME + entry.len()) as u64;
            }
        }
        drop(input);
        self.cut(length)?;
        self.copied = copied;
        Ok(())
    }

    /// Cuts the file off, and forgets what it holds.
    fn cut(&mut self, length: u64) -> anyhow::Result<()> {
        self.file.set_len(length)?;
        self.file.seek(SeekFrom::End(0))?;
        if length == 0 {
            self.file.write_all(self.title.as_bytes())?;
        }
        self.length = length.max(self.title.len() as u64);
        self.copied = Copied::default();
        Ok(())
    }

    fn append(
        &mut self,
        header: Option<&Header>,
        deletes: &[Name],
        segments: &[(Name, Vec<u8>)],
    ) -> anyhow::Result<()> {
        let mut entry = vec![0; FRAME];
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
        self.file.write_all(&entry).with_context(|| format!("writing {}", self.path.display()))?;
        let change = Change::decode(&entry[FRAME..]).context("an entry that was just made")?;
        change.apply(&mut self.copied, self.length + FRAME as u64);
        self.length += entry.len() as u64;
        Ok(())
    }

    fn read(&self, name: Name) -> anyhow::Result<Vec<u8>> {
        let field = || view::segment_field(name.0, name.1);
        let segment = self.copied.segments.get(&name);
        let &Segment { at, length, sum } = segment.with_context(|| format!("no copy of {}", field()))?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        ensure!(xxh3_64(&bytes) == sum, "{}: {} is damaged", self.path.display(), field());
        Ok(bytes)
    }

    /// Writes the log anew where most of it is of no use any more.
    fn tidy(&mut self) -> anyhow::Result<()> {
        let live: u64 = self.copied.segments.values().map(|segment| segment.length as u64).sum();
        if self.length < GARBAGE + 2 * live {
            return Ok(());
        }
        let mut anew = Log::open(self.path.with_extension("new"), self.title.clone())?;
        anew.cut(0)?;
        for names in chunks(&self.copied.segments) {
            let read = |name| Ok((name, self.read(name)?));
            let segments = names.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
            anew.append(None, &[], &segments)?;
        }
        anew.append(self.copied.header.as_ref(), &[], &[])?;
        std::fs::rename(&anew.path, &self.path)?;
        anew.path.clone_from(&self.path);
        *self = anew;
        Ok(())
    }
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
    header: Option<Header>,
    deletes: Vec<Name>,
    /// Each with its place in the entry.
    segments: Vec<(Name, Segment)>,
}

impl Change {
    /// `None` for what no version of ours has written.
    fn decode(entry: &[u8]) -> Option<Change> {
        let mut rest = entry;
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
        rest.is_empty().then_some(Change { header, deletes, segments })
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
