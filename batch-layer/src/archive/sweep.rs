//! Removes files that no manifest names: what a killed or outrun archiver left behind, probes included.
//!
//! A file is removed only if it is older than any archiver's work can be, and if the one manifest that could name
//! it, by its own name, doesn't.

use crate::archive::manifest::{ImportManifest, Manifest, import_path, manifest_folder};
use crate::archive::segment::{NamedRange, parse_file_name};
use crate::archive::store::Store;
use anyhow::Result;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use std::collections::{BTreeMap, HashSet};
use tracing::info;

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
/// archiver that works longer on one epoch would lose its files). With `dry_run` nothing is removed.
pub async fn sweep(store: &Store, older_than: Millis, dry_run: bool) -> Result<Swept> {
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
    /// The offsets at which a partition's manifests begin, ascending.
    chains: BTreeMap<TopicPartition, Vec<i64>>,
    read: HashSet<String>,
    paths: HashSet<String>,
}

impl Named {
    async fn names(&mut self, store: &Store, stream: &str, range: &NamedRange, path: &str) -> Result<bool> {
        if self.paths.contains(path) {
            return Ok(true);
        }
        let import = range.topic.strip_prefix("import_").map(|id| import_path(stream, id));
        let sealing = self.sealing(store, range).await?;
        for manifest in import.into_iter().chain(sealing) {
            if !self.read.insert(manifest.clone()) {
                continue;
            }
            let Some(json) = store.get(&manifest).await? else { continue };
            let (segments, rejects) = if manifest.starts_with("imports/") {
                let found = ImportManifest::from_json(&manifest, &json)?;
                (found.segments, found.rejects)
            } else {
                let found = Manifest::from_json(&manifest, &json)?;
                (found.segments, found.rejects)
            };
            self.paths.extend(segments.into_iter().map(|segment| segment.path));
            self.paths.extend(rejects.into_iter().flat_map(|rejects| rejects.paths));
        }
        Ok(self.paths.contains(path))
    }

    /// The manifest that covers an offset: the last that begins at or below it.
    async fn sealing(&mut self, store: &Store, range: &NamedRange) -> Result<Option<String>> {
        let tp = TopicPartition::new(&range.topic, range.partition);
        if !self.chains.contains_key(&tp) {
            let listed = store.list(&manifest_folder(&tp)).await?;
            let offset = |name: &str| name.strip_suffix(".json")?.parse::<i64>().ok();
            let mut begins: Vec<i64> =
                listed.iter().filter_map(|object| offset(object.location.filename()?)).collect();
            begins.sort_unstable();
            self.chains.insert(tp.clone(), begins);
        }
        let begins = &self.chains[&tp];
        let at = begins.partition_point(|begin| *begin <= range.from);
        Ok(at.checked_sub(1).map(|at| super::manifest::manifest_path(&tp, begins[at])))
    }
}
