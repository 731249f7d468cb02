//! Brings segments to this machine, so that plans read plain files, and proves them whole on the way: a file that is
//! missing, or not of the length and checksum that its manifest says, is an error and never a smaller result.
//!
//! Rows may have been rewritten into a larger file, with those of other segments. That is read where all segments that it
//! holds are wanted; of any other just the rows that are wanted are taken out, so that none is read that lies above the
//! tidemark, whatever the ledger knows of the rewriting.

use crate::archive::Store;
use crate::archive::compaction::{self, Compacted, Compaction};
use crate::archive::merge::{self, Part};
use crate::ledger::Entry;
use anyhow::{Context, Result, bail};
use shared_model::time::EventDay;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::TempDir;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The segments that one step reads; downloaded ones are deleted with it.
pub(crate) struct Files {
    store: Store,
    folder: TempDir,
    /// What the archive's chain says of the streams and days of which rows lay elsewhere than the ledger knew.
    moved: Mutex<BTreeMap<(String, EventDay), Arc<[Compaction]>>>,
}

impl Files {
    /// None yet.
    pub(crate) fn new(store: Store) -> Result<Files> {
        let folder = tempfile::Builder::new().prefix("tidemark-batch-").tempdir();
        let folder = folder.context("a folder for downloaded segments can't be made")?;
        Ok(Files { store, folder, moved: Mutex::default() })
    }

    /// The streams and days of which rows lay elsewhere than the ledger knew.
    pub(crate) fn moved(&self) -> BTreeSet<(String, EventDay)> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The folder of its own, for files that are made of others.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Files on this machine that hold just the rows of some segments of one stream's event day, each once.
    ///
    /// # Errors
    /// Where rows are neither in their own file nor in one that it was rewritten into, or a file is not what it should be.
    pub(crate) async fn rows_of(&self, entries: &[&Entry]) -> Result<Vec<PathBuf>> {
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        let mut rewritten: BTreeMap<&str, (&Compacted, Vec<&Entry>)> = BTreeMap::new();
        for &entry in entries {
            if let Some(file) = &entry.compacted {
                rewritten.entry(&file.path).or_insert_with(|| (file, Vec::new())).1.push(entry);
                continue;
            }
            let segment = &entry.segment;
            match self.find(&segment.path, segment.bytes, &segment.checksum).await? {
                Some(file) => found.push(file),
                None => gone.push(entry),
            }
        }
        for (file, entries) in rewritten.into_values() {
            let is_whole = entries.iter().map(|entry| entry.segment.rows).sum::<u64>() == file.rows;
            let here = if is_whole { self.compacted(file).await? } else { None };
            match here {
                Some(file) => found.push(file),
                None => gone.extend(entries),
            }
        }
        if !gone.is_empty() {
            found.extend(self.elsewhere(&gone).await?);
        }
        Ok(found)
    }

    /// The rows of segments whose files aren't there any more, out of those that they were rewritten into.
    async fn elsewhere(&self, entries: &[&Entry]) -> Result<Vec<PathBuf>> {
        let Some(first) = entries.first() else { return Ok(Vec::new()) };
        let chain = self.chain(&first.stream, first.segment.event_day).await?;
        let holders = compaction::holders(&chain);
        let mut wanted: BTreeMap<u64, (&Compaction, Vec<&Entry>)> = BTreeMap::new();
        for &entry in entries {
            let path = entry.segment.path.as_str();
            let holder = *holders.get(path).with_context(|| missing(path))?;
            wanted.entry(holder.number).or_insert_with(|| (holder, Vec::new())).1.push(entry);
        }
        let mut found = Vec::new();
        for (holder, entries) in wanted.into_values() {
            match self.compacted(&holder.file).await? {
                Some(file) if entries.len() == holder.segments.len() => found.push(file),
                Some(file) => found.push(self.extract(holder, &file, &entries).await?),
                // Lost, and the segments' own may not be deleted yet.
                None => {
                    for Entry { segment, .. } in entries {
                        let own = self.find(&segment.path, segment.bytes, &segment.checksum).await?;
                        found.push(own.with_context(|| missing(&holder.file.path))?);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The compactions of a stream's day, read once.
    async fn chain(&self, stream: &str, day: EventDay) -> Result<Arc<[Compaction]>> {
        let of_day = (stream.to_owned(), day);
        let known = self.moved.lock().unwrap_or_else(PoisonError::into_inner).get(&of_day).cloned();
        if let Some(chain) = known {
            return Ok(chain);
        }
        let chain: Arc<[Compaction]> = compaction::chain(&self.store, stream, day).await?.into();
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).insert(of_day, chain.clone());
        Ok(chain)
    }

    /// The rows of some segments out of a file that holds those of more.
    async fn extract(&self, holder: &Compaction, file: &Path, wanted: &[&Entry]) -> Result<PathBuf> {
        let wanted: HashSet<&str> = wanted.iter().map(|entry| entry.segment.path.as_str()).collect();
        let (mut parts, mut from, mut name) = (Vec::new(), 0, Xxh3::new());
        for place in &holder.segments {
            if wanted.contains(place.path.as_str()) {
                name.update(place.path.as_bytes());
                parts.push(Part { file: file.to_owned(), from, place: place.clone() });
            }
            from += place.rows;
        }
        let to = self.folder.path().join(format!("{:016x}.part.parquet", name.digest()));
        let (folder, target) = (self.folder.path().to_owned(), to.clone());
        let write = move || -> Result<()> {
            let full = "a file can't be made in the temporary folder";
            let part = tempfile::NamedTempFile::new_in(folder).context(full)?;
            merge::merge(&parts, part.as_file())?;
            part.persist(target).context(full)?;
            Ok(())
        };
        let failed = || format!("rows can't be taken out of {}", holder.file.path);
        tokio::task::spawn_blocking(write).await?.with_context(failed)?;
        Ok(to)
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
                Err(error) => return Err(error).with_context(|| format!("segment {path} can't be read")),
            };
            if length != bytes {
                bail!("segment {path} has {length} bytes, its manifest says {bytes}");
            }
            return Ok(Some(file));
        }
        let file = self.folder.path().join(format!("{:016x}.parquet", xxh3_64(path.as_bytes())));
        if tokio::fs::try_exists(&file).await? {
            return Ok(Some(file));
        }
        // Two that fetch the same at once don't write into one another's.
        let part = tempfile::Builder::new().suffix(".part").tempfile_in(self.folder.path());
        let part = part.context("a segment can't be written to the temporary folder")?.into_temp_path();
        let Some(found) = self.store.download(path, &part).await? else { return Ok(None) };
        if found != checksum {
            bail!("segment {path} has checksum {found}, its manifest says {checksum}");
        }
        part.persist(&file).context("a segment can't be written to the temporary folder")?;
        Ok(Some(file))
    }
}

fn missing(path: &str) -> String {
    format!(
        "segment {path} is in the ledger but not in the archive, and no compaction of its day holds its rows; restore it, \
         or mark it removed"
    )
}
