//! Where CSV comes from: a local file or an object-store URL, plain or gzip, read as one stream of bytes.
//!
//! At most one chunk of a remote object is held at a time. Gzip is known by its first bytes, not by its name.

use crate::progress::Progress;
use anyhow::{Context, bail};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// On this machine.
    Local(PathBuf),
    /// In an object store: `s3://bucket/key`, `gs://`, `az://`, `http://`, `file://`.
    Remote(String),
}

impl Location {
    /// A path, or a URL where a scheme stands before `://`.
    pub fn of(text: &str) -> Location {
        match text.split_once("://") {
            Some((scheme, _))
                if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !scheme.is_empty() =>
            {
                Location::Remote(text.to_owned())
            }
            _ => Location::Local(PathBuf::from(text)),
        }
    }

    /// The last part of the path, without folders.
    pub fn file_name(&self) -> &str {
        let path = match self {
            Location::Local(path) => path.as_path(),
            Location::Remote(url) => Path::new(url.split(['?', '#']).next().unwrap_or(url)),
        };
        path.file_name().and_then(|name| name.to_str()).unwrap_or("")
    }

    /// Its size in bytes as stored.
    pub fn size(&self, runtime: &Handle) -> anyhow::Result<u64> {
        match self {
            Location::Local(path) => {
                let found = std::fs::metadata(path).with_context(|| format!("cannot read {self}"))?;
                if found.is_dir() {
                    bail!("{self} is a folder; name its files");
                }
                Ok(found.len())
            }
            Location::Remote(url) => {
                let (store, path) = store(url)?;
                let found =
                    runtime.block_on(store.head(&path)).with_context(|| format!("cannot read {self}"))?;
                Ok(found.size)
            }
        }
    }

    /// Its text, gzip undone; the bytes as stored are counted as progress.
    pub fn open<'a>(&self, runtime: &Handle, progress: &'a Progress) -> anyhow::Result<Box<dyn Read + 'a>> {
        let source: Box<dyn Read + 'a> = match self {
            Location::Local(path) => {
                Box::new(File::open(path).with_context(|| format!("cannot read {self}"))?)
            }
            Location::Remote(url) => {
                let (store, path) = store(url)?;
                let found = runtime
                    .block_on(store.get_opts(&path, GetOptions::default()))
                    .with_context(|| format!("cannot read {self}"))?;
                Box::new(Remote {
                    chunks: found.into_stream(),
                    chunk: Vec::new().into(),
                    runtime: runtime.clone(),
                })
            }
        };
        let mut stored = BufReader::with_capacity(1 << 18, Counted { source, progress });
        let gzip =
            stored.fill_buf().with_context(|| format!("cannot read {self}"))?.starts_with(&[0x1f, 0x8b]);
        Ok(if gzip { Box::new(MultiGzDecoder::new(stored)) } else { Box::new(stored) })
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Location::Local(path) => write!(f, "{}", path.display()),
            // Never with what may be a password.
            Location::Remote(url) => match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, host))) => write!(f, "{scheme}://{host}"),
                _ => write!(f, "{url}"),
            },
        }
    }
}

/// The store of a URL, configured by the environment (`AWS_...`, `GOOGLE_...`, `AZURE_...`).
fn store(url: &str) -> anyhow::Result<(Arc<dyn ObjectStore>, object_store::path::Path)> {
    let parsed = url::Url::parse(url).with_context(|| "not a URL")?;
    // Other variables, such as a `TOKEN` or `TIMEOUT` of another program, would be taken as the store's own.
    let settings = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|of| name.starts_with(of)));
    let (store, path) = object_store::parse_url_opts(&parsed, settings)
        .with_context(|| format!("no object store for {}", Location::of(url)))?;
    Ok((store.into(), path))
}

/// Counts the bytes that pass.
struct Counted<'a, R> {
    source: R,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(into)?;
        self.progress.advance(read as u64);
        Ok(read)
    }
}

/// An object's chunks as a blocking reader.
struct Remote {
    chunks: BoxStream<'static, object_store::Result<bytes::Bytes>>,
    chunk: bytes::Bytes,
    runtime: Handle,
}

impl Read for Remote {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.chunks.next()) {
                Some(chunk) => self.chunk = chunk.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let part = self.chunk.split_to(self.chunk.len().min(into.len()));
        into[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_told_apart_and_secrets_are_not_shown() {
        assert_eq!(Location::of("a/b.csv"), Location::Local("a/b.csv".into()));
        assert_eq!(Location::of("s3://b/dir/page_views.csv.gz").file_name(), "page_views.csv.gz");
        assert_eq!(Location::of("https://u:secret@host/x.csv").to_string(), "https://host/x.csv");
    }
}
