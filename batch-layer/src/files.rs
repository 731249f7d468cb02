//! Brings segments to this machine, so that plans read plain files, and proves them whole on the way: rows that are missing,
//! or a file not of the length and checksum that its manifest says, are an error and never a smaller result.
//!
//! Rows may have been rewritten into a larger file, with those of other segments. That is read where all segments that it
//! holds are wanted; of any other just the rows that are wanted are taken out, so that none is read that lies above the
//! tidemark, whatever the ledger knows of the rewriting. Where the ledger's file isn't there, the day's chain of compactions
//! says where else rows lie: in the newest of its files that is there, or in the segment's own.
//!
//! Memory: one [`merge`] at a time takes rows out; and of the days at work whose files aren't where the ledger has them, the
//! paths of all segments.

use crate::archive::Store;
use crate::archive::compaction::{self, Compacted, Holders, Place};
use crate::archive::merge::{self, Part};
use crate::ledger::Entry;
use anyhow::{Context, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use shared_model::time::EventDay;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// So many files of the archive are asked for at once.
pub(crate) const AT_ONCE: usize = 16;

/// The segments that one step reads; downloaded ones are deleted with it.
pub(crate) struct Files {
    store: Store,
    folder: TempDir,
    moved: Mutex<Moved>,
    /// Held while rows are taken out of a file.
    extracting: tokio::sync::Mutex<()>,
}

/// What lay elsewhere than the ledger knew.
#[derive(Default)]
struct Moved {
    /// Of which streams and days.
    days: BTreeSet<(String, EventDay)>,
    /// Where it lies, of those that are at work.
    holders: BTreeMap<(String, EventDay), Arc<Holders>>,
}

/// Segments in a file, each with how many rows stand there before its own.
type Wanted<'a> = Vec<(u64, &'a Entry)>;

/// A file on this machine that holds the rows of some segments and no others.
#[derive(Debug)]
pub(crate) struct Held {
    /// The file.
    pub(crate) file: PathBuf,
    /// The segments, in the order of its rows.
    pub(crate) places: Vec<Place>,
}

impl Held {
    fn new(file: PathBuf, entries: &[&Entry]) -> Held {
        let mut places: Vec<Place> = entries.iter().map(|entry| entry.place()).collect();
        places.sort_by(|a, b| a.position().cmp(&b.position()));
        Held { file, places }
    }
}

impl Files {
    /// None yet.
    pub(crate) fn new(store: Store) -> Result<Files> {
        let folder = tempfile::Builder::new().prefix("tidemark-batch-").tempdir();
        let folder = folder.context("a folder for downloaded files can't be made (TMPDIR)")?;
        Ok(Files { store, folder, moved: Mutex::default(), extracting: tokio::sync::Mutex::default() })
    }

    /// The streams and days of which rows lay elsewhere than the ledger knew.
    pub(crate) fn moved(&self) -> BTreeSet<(String, EventDay)> {
        self.known().days.clone()
    }

    /// Lets go of what is known of where a day's rows lie: it isn't at work any more.
    pub(crate) fn forget(&self, day: EventDay) {
        self.known().holders.retain(|(_, of), _| *of != day);
    }

    fn known(&self) -> MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder of its own, for files that are made of others.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Files on this machine that hold just the rows of some segments of one stream's event day, each once.
    ///
    /// # Errors
    /// As [`Files::held`].
    pub(crate) async fn rows_of(&self, entries: &[&Entry]) -> Result<Vec<PathBuf>> {
        Ok(self.held(entries).await?.into_iter().map(|held| held.file).collect())
    }

    /// The same, with what each file holds.
    ///
    /// # Errors
    /// Where rows are neither in their own file nor in one that it was rewritten into, or a file is not what it should be.
    pub(crate) async fn held(&self, entries: &[&Entry]) -> Result<Vec<Held>> {
        let mut files: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for &entry in entries {
            files.entry(entry.path()).or_default().push(entry);
        }
        let look = files.into_values().map(async |entries| {
            let file = self.as_known(&entries).await?;
            anyhow::Ok((file, entries))
        });
        let looked: Vec<_> = futures::stream::iter(look).buffered(AT_ONCE).try_collect().await?;
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        for (file, entries) in looked {
            match file {
                Some(file) => found.push(Held::new(file, &entries)),
                None => gone.extend(entries),
            }
        }
        if !gone.is_empty() {
            found.extend(self.elsewhere(&gone).await?);
        }
        Ok(found)
    }

    /// The file in which the ledger has some segments; `None` where it isn't there, or holds other segments, too.
    async fn as_known(&self, entries: &[&Entry]) -> Result<Option<PathBuf>> {
        let Some(first) = entries.first() else { return Ok(None) };
        match &first.compacted {
            Some(file) if rows(entries) == file.rows => self.compacted(file).await,
            Some(_) => Ok(None),
            None => self.own(first).await,
        }
    }

    /// The rows of segments that aren't there as the ledger has them, out of what the day's chain leads to.
    async fn elsewhere(&self, entries: &[&Entry]) -> Result<Vec<Held>> {
        let Some(first) = entries.first() else { return Ok(Vec::new()) };
        let holders = self.holders(&first.stream, first.segment.event_day).await?;
        let mut looked: BTreeMap<&str, Option<PathBuf>> = BTreeMap::new();
        let mut wanted: BTreeMap<&str, (&Compacted, Wanted<'_>)> = BTreeMap::new();
        let mut found = Vec::new();
        'entries: for &entry in entries {
            for (file, from) in holders.of(&entry.segment.path) {
                let path = file.path.as_str();
                if !looked.contains_key(path) {
                    looked.insert(path, self.compacted(file).await?);
                }
                if looked[path].is_some() {
                    wanted.entry(path).or_insert_with(|| (file, Vec::new())).1.push((from, entry));
                    continue 'entries;
                }
            }
            let own = self.own(entry).await?.with_context(|| missing(entry))?;
            found.push(Held::new(own, &[entry]));
        }
        for (path, (file, mut wanted)) in wanted {
            let Some(here) = looked.get(path).cloned().flatten() else { continue };
            wanted.sort_unstable_by_key(|(from, _)| *from);
            let entries: Vec<&Entry> = wanted.iter().map(|(_, entry)| *entry).collect();
            let here = match rows(&entries) == file.rows {
                true => here,
                false => {
                    let failed = || format!("rows can't be taken out of {path}");
                    self.extract(&here, &wanted).await.with_context(failed)?
                }
            };
            found.push(Held::new(here, &entries));
        }
        Ok(found)
    }

    /// What the chain of a stream's day says, read once while the day is at work.
    async fn holders(&self, stream: &str, day: EventDay) -> Result<Arc<Holders>> {
        let of_day = (stream.to_owned(), day);
        let known = self.known().holders.get(&of_day).cloned();
        if let Some(holders) = known {
            return Ok(holders);
        }
        let chain = compaction::chain(&self.store, stream, day).await?;
        let holders = Arc::new(Holders::new(chain)?);
        let mut known = self.known();
        known.days.insert(of_day.clone());
        known.holders.insert(of_day, holders.clone());
        Ok(holders)
    }

    /// The rows of some segments out of a file that holds those of more.
    async fn extract(&self, file: &Path, wanted: &[(u64, &Entry)]) -> Result<PathBuf> {
        let mut name = Xxh3::new();
        for (_, entry) in wanted {
            name.update(entry.segment.path.as_bytes());
            name.update(&[0]);
        }
        let to = self.folder.path().join(format!("{:016x}.part.parquet", name.digest()));
        let _one = self.extracting.lock().await;
        if tokio::fs::try_exists(&to).await? {
            return Ok(to);
        }
        let part =
            |(from, entry): &(u64, &Entry)| Part { file: file.to_owned(), from: *from, place: entry.place() };
        let parts: Vec<Part> = wanted.iter().map(part).collect();
        let (folder, target) = (self.folder.path().to_owned(), to.clone());
        let write = move || -> Result<()> {
            let full = "a file can't be made in the temporary folder (TMPDIR)";
            let part = tempfile::NamedTempFile::new_in(folder).context(full)?;
            merge::merge(&parts, part.as_file())?;
            part.persist(target).context(full)?;
            Ok(())
        };
        tokio::task::spawn_blocking(write).await??;
        Ok(to)
    }

    /// A segment's own file on this machine; `None` where the archive doesn't have it.
    async fn own(&self, entry: &Entry) -> Result<Option<PathBuf>> {
        let segment = &entry.segment;
        self.find(&segment.path, segment.bytes, &segment.checksum).await
    }

    /// A compacted file on this machine; `None` where the archive doesn't have it.
    async fn compacted(&self, file: &Compacted) -> Result<Option<PathBuf>> {
        self.find(&file.path, file.bytes, &file.checksum).await
    }

    /// A file of the archive on this machine; `None` where there is none. Local archives are read where they are, by
    /// length; downloads are checked by checksum.
    async fn find(&self, path: &str, bytes: u64, checksum: &str) -> Result<Option<PathBuf>> {
        if let Some(file) = self.store.local_file(path) {
            let length = match tokio::fs::metadata(&file).await {
                Ok(found) => found.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => {
                    return Err(error).with_context(|| format!("file {path} of the archive can't be read"));
                }
            };
            if length != bytes {
                bail!("file {path} of the archive has {length} bytes, its manifest says {bytes}");
            }
            return Ok(Some(file));
        }
        let file = self.folder.path().join(format!("{:016x}.parquet", xxh3_64(path.as_bytes())));
        if tokio::fs::try_exists(&file).await? {
            return Ok(Some(file));
        }
        // Two that fetch the same at once don't write into one another's.
        let part = tempfile::Builder::new().suffix(".part").tempfile_in(self.folder.path());
        let part = part
            .context("a file of the archive can't be written to the temporary folder (TMPDIR)")?
            .into_temp_path();
        let Some(found) = self.store.download(path, &part).await? else { return Ok(None) };
        if found != checksum {
            bail!("file {path} of the archive has checksum {found}, its manifest says {checksum}");
        }
        part.persist(&file)
            .context("a file of the archive can't be written to the temporary folder (TMPDIR)")?;
        Ok(Some(file))
    }
}

fn rows(entries: &[&Entry]) -> u64 {
    entries.iter().map(|entry| entry.segment.rows).sum()
}

fn missing(entry: &Entry) -> String {
    let (file, segment) = (entry.path(), &entry.segment.path);
    // There is no row of it to mark.
    if !entry.is_known {
        return format!(
            "{file} is named by a manifest but not in the archive, and no other file has its rows: restore it"
        );
    }
    let column = if entry.compacted.is_some() { "compacted" } else { "path" };
    format!(
        "{file} is in the ledger but not in the archive, and no other file has the rows of segment {segment}: restore it, or \
         go on without what it holds: update tidemark.segment set removed_at = now() where {column} = '{file}'"
    )
}
