//! Brings segments to this machine, so that plans read plain files, and proves them whole on the way: a file that is
//! missing, or not of the length and checksum that its manifest says, is an error and never a smaller result.

use crate::archive::Store;
use crate::archive::manifest::Segment;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

/// The segments that one step reads; downloaded ones are deleted with it.
pub(crate) struct Files {
    store: Store,
    folder: TempDir,
}

impl Files {
    /// None yet.
    pub(crate) fn new(store: Store) -> Result<Files> {
        let folder = tempfile::Builder::new().prefix("tidemark-batch-").tempdir();
        Ok(Files { store, folder: folder.context("a folder for downloaded segments can't be made")? })
    }

    /// The file of a segment on this machine. Local archives are read where they are, by length; downloads are checked
    /// by checksum.
    pub(crate) async fn local(&self, segment: &Segment) -> Result<PathBuf> {
        if let Some(file) = self.store.local_file(&segment.path) {
            let found = tokio::fs::metadata(&file).await;
            let length = found.with_context(|| missing(&segment.path))?.len();
            if length != segment.bytes {
                bail!("segment {} has {length} bytes, its manifest says {}", segment.path, segment.bytes);
            }
            return Ok(file);
        }
        let file = self.folder.path().join(format!("{:016x}.parquet", xxh3_64(segment.path.as_bytes())));
        if tokio::fs::try_exists(&file).await? {
            return Ok(file);
        }
        let bytes = self.store.get(&segment.path).await?.with_context(|| missing(&segment.path))?;
        let checksum = format!("{:016x}", xxh3_64(&bytes));
        if checksum != segment.checksum {
            bail!("segment {} has checksum {checksum}, its manifest says {}", segment.path, segment.checksum);
        }
        let partial = file.with_extension("part");
        tokio::fs::write(&partial, &bytes)
            .await
            .context("a segment can't be written to the temporary folder")?;
        tokio::fs::rename(&partial, &file).await?;
        Ok(file)
    }
}

fn missing(path: &str) -> String {
    format!("segment {path} is in the ledger but not in the archive; restore it, or mark it removed")
}
