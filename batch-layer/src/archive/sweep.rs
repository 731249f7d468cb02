//! Removes files that no manifest names: what a killed or outrun archiver left behind, probes included, and compacted files
//! of which no compaction tells.
//!
//! A file is removed only if it is older than any archiver's work can be, and if the one manifest that could name
//! it, by its own name, doesn't; of a compacted file, if the ledger doesn't read it, none of its day's compactions names it and
//! none of those is missing. What was replaced by a compaction is named all the same: it goes by the ledger, not by a sweep.

use crate::archive::compaction::{self, parse_compacted_path};
use crate::archive::manifest::{ImportManifest, Manifest, import_path, manifest_folder, manifest_path};
use crate::archive::segment::{NamedRange, parse_file_name};
use crate::archive::store::Store;
use anyhow::Result;
use shared_model::offsets::TopicPartition;
use shared_model::time::{EventDay, Millis};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tracing::{info, warn};

/// What a sweep found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Orphans: removed, or to be removed where the sweep was only tried.
    pub orphans: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
    /// Files whose names this program did not give; left alone.
    pub strange: Vec<String>,
}

/// Removes the orphans that were last written before `older_than` (ms since 1970; give it a day at least, an
/// archiver that works longer on one epoch would lose its files). With `dry_run` nothing is removed. The compacted files that
/// a ledger reads (`read`) stay, though the archive may have lost what tells of them.
pub async fn sweep(
    store: &Store,
    older_than: Millis,
    read: &BTreeSet<String>,
    dry_run: bool,
) -> Result<Swept> {
    let mut swept = Swept::default();
    let mut named = Named::default();
    for folder in ["data", "rejects", "probe"] {
        for object in store.list(folder).await? {
            let path = object.location.to_string();
            if object.last_modified.timestamp_millis() >= older_than {
                continue;
            }
            if folder == "probe" {
                swept.bytes += object.size;
                swept.orphans.push(path);
                continue;
            }
            if let Some((stream, day)) = parse_compacted_path(&path) {
                if !read.contains(&path) && !named.names_compacted(store, stream, day, &path).await? {
                    swept.bytes += object.size;
                    swept.orphans.push(path);
                }
                continue;
            }
            match (stream_of(&path), path.rsplit('/').next().and_then(parse_file_name)) {
                (Some(stream), Some(range)) if !named.names(store, stream, &range, &path).await? => {
                    swept.bytes += object.size;
                    swept.orphans.push(path);
                }
                (Some(_), Some(_)) => {}
                _ => swept.strange.push(path),
            }
        }
    }
    if !dry_run {
        for path in &swept.orphans {
            store.delete(path).await?;
            info!(path, "removed: no manifest names it");
        }
    }
    Ok(swept)
}

fn stream_of(path: &str) -> Option<&str> {
    path.split('/').nth(1)?.strip_prefix("stream=")
}

/// What the manifests read so far name.
#[derive(Default)]
struct Named {
    /// The offsets at which a partition's manifests begin, as they were listed.
    chains: BTreeMap<TopicPartition, BTreeSet<i64>>,
    /// The manifests that were looked for, each with the offset at which it ends, where there is one.
    read: HashMap<String, Option<i64>>,
    paths: HashSet<String>,
    /// The numbers of the compactions, as they were listed.
    listed: Option<BTreeMap<(String, EventDay), BTreeSet<u64>>>,
    /// The days whose compactions are read, each with whether all are there.
    compacted: HashMap<(String, EventDay), bool>,
}

impl Named {
    async fn names(&mut self, store: &Store, stream: &str, range: &NamedRange, path: &str) -> Result<bool> {
        if self.paths.contains(path) {
            return Ok(true);
        }
        if let Some(id) = range.topic.strip_prefix("import_") {
            self.read(store, &import_path(stream, id)).await?;
        }
        let tp = TopicPartition::new(&range.topic, range.partition);
        let mut begin = self.listed(store, &tp, range.from).await?;
        while let Some(at) = begin {
            let end = self.read(store, &manifest_path(&tp, at)).await?;
            // A listing may lag behind what there is, a look by name doesn't.
            begin = end.filter(|end| at < *end && *end <= range.from);
        }
        Ok(self.paths.contains(path))
    }

    async fn names_compacted(
        &mut self,
        store: &Store,
        stream: &str,
        day: EventDay,
        path: &str,
    ) -> Result<bool> {
        let of_day = (stream.to_owned(), day);
        if !self.compacted.contains_key(&of_day) {
            let is_whole = self.read_compactions(store, stream, day).await?;
            self.compacted.insert(of_day.clone(), is_whole);
        }
        Ok(!self.compacted[&of_day] || self.paths.contains(path))
    }

    /// Takes in what a day's compactions name; gives whether none is missing.
    async fn read_compactions(&mut self, store: &Store, stream: &str, day: EventDay) -> Result<bool> {
        if self.listed.is_none() {
            self.listed = Some(compaction::listed(store).await?);
        }
        let listed = self.listed.as_ref().and_then(|listed| listed.get(&(stream.to_owned(), day)));
        let all = compaction::all(store, stream, day, &listed.cloned().unwrap_or_default()).await?;
        let is_whole = (0..).zip(&all).all(|(number, compaction)| compaction.number == number);
        if !is_whole {
            warn!(stream, %day, "a compaction of the day is missing: restore it; meanwhile the day's files stay");
        }
        self.paths.extend(all.into_iter().map(|compaction| compaction.file.path));
        Ok(is_whole)
    }

    /// Takes in what a manifest names; gives the offset at which it ends.
    async fn read(&mut self, store: &Store, path: &str) -> Result<Option<i64>> {
        if let Some(end) = self.read.get(path) {
            return Ok(*end);
        }
        let Some(json) = store.get(path).await? else {
            self.read.insert(path.to_owned(), None);
            return Ok(None);
        };
        let (segments, rejects, end) = if path.starts_with("imports/") {
            let found = ImportManifest::from_json(path, &json)?;
            (found.segments, found.rejects, None)
        } else {
            let found = Manifest::from_json(path, &json)?;
            (found.segments, found.rejects, Some(found.to.offset))
        };
        self.paths.extend(segments.into_iter().map(|segment| segment.path));
        self.paths.extend(rejects.into_iter().flat_map(|rejects| rejects.paths));
        self.read.insert(path.to_owned(), end);
        Ok(end)
    }

    /// Where the last manifest begins, of those listed, that begins at or below an offset.
    async fn listed(&mut self, store: &Store, tp: &TopicPartition, offset: i64) -> Result<Option<i64>> {
        if !self.chains.contains_key(tp) {
            let listed = store.list(&manifest_folder(tp)).await?;
            let begin = |name: &str| name.strip_suffix(".json")?.parse::<i64>().ok();
            let begins = listed.iter().filter_map(|object| begin(object.location.filename()?)).collect();
            self.chains.insert(tp.clone(), begins);
        }
        Ok(self.chains[tp].range(..=offset).next_back().copied())
    }
}
