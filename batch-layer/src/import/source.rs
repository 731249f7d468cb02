//! Where an import's bytes come from: files on this machine, folders of them, single objects by URL.
//!
//! What is imported is a local file whose hash was taken over exactly the bytes that are then read.

use crate::archive::store::{environment, open_url};
use anyhow::{Context, Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use object_store::ObjectStoreExt;
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;
use url::Url;
use xxhash_rust::xxh3::Xxh3;

/// The endings that make a file in a folder an input.
const ENDINGS: [&str; 3] = [".csv", ".csv.gz", ".parquet"];

/// What a file holds, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// CSV, plain or gzip.
    Csv,
    /// Parquet.
    Parquet,
}

/// A local file with the hash of its bytes.
pub(super) struct Staged {
    file: Local,
    /// The hash, 32 hex digits.
    pub(super) import_id: String,
}

enum Local {
    Given(PathBuf),
    /// Removed when it is dropped.
    Fetched(NamedTempFile),
}

impl Staged {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        match &self.file {
            Local::Given(path) => path,
            Local::Fetched(file) => file.path(),
        }
    }

    /// What it holds.
    pub(super) fn format(&self) -> Result<Format> {
        Ok(if magic(&mut self.open()?)? == *b"PAR1" { Format::Parquet } else { Format::Csv })
    }

    /// Its text, unpacked where it is gzip.
    pub(super) fn reader(&self) -> Result<Box<dyn std::io::BufRead>> {
        let mut file = self.open()?;
        let packed = magic(&mut file)?.starts_with(&[0x1f, 0x8b]);
        file.rewind().context("can't be read")?;
        const BUFFER: usize = 1 << 20;
        Ok(match packed {
            true => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(BufReader::new(file)))),
            false => Box::new(BufReader::with_capacity(BUFFER, file)),
        })
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("{} can't be opened", self.path().display()))
    }
}

/// The first four bytes, or zeros behind a shorter file's end.
fn magic(file: &mut File) -> Result<[u8; 4]> {
    let mut bytes = Vec::with_capacity(4);
    file.take(4).read_to_end(&mut bytes).context("can't be read")?;
    bytes.resize(4, 0);
    Ok([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The single files of all inputs: folders are replaced by the files below them, in the order of their names.
pub(super) fn expand(inputs: &[String]) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for input in inputs {
        if Path::new(input).is_dir() {
            let before = files.len();
            walk(Path::new(input), &mut files)?;
            if files.len() == before {
                bail!("folder {input} has no file that ends in {}", ENDINGS.join(", "));
            }
        } else {
            files.push(input.clone());
        }
    }
    Ok(files)
}

fn walk(folder: &Path, files: &mut Vec<String>) -> Result<()> {
    let failed = || format!("folder {} can't be listed", folder.display());
    let entries = std::fs::read_dir(folder).with_context(failed)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>().with_context(failed)?;
    paths.sort();
    for path in paths {
        let name = path.to_string_lossy();
        if path.is_dir() {
            walk(&path, files)?;
        } else if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            files.push(name.into_owned());
        }
    }
    Ok(())
}

/// Makes an input a local file and takes its hash.
pub(super) async fn stage(input: &str, stop: &CancellationToken) -> Result<Staged> {
    let url = if input.contains("://") { Some(Url::parse(input).context("not a url")?) } else { None };
    let path = match url {
        Some(url) if url.scheme() == "file" => url.to_file_path().map_err(|()| anyhow!("not a file url"))?,
        Some(url) => return fetch(&url, stop).await,
        None => PathBuf::from(input),
    };
    let stop = stop.clone();
    let hash = move || -> Result<Staged> {
        let mut file = File::open(&path).with_context(|| format!("{} can't be opened", path.display()))?;
        let mut hash = Xxh3::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut buffer).with_context(|| format!("{} can't be read", path.display()))?;
            if read == 0 {
                return Ok(Staged { file: Local::Given(path), import_id: id(&hash) });
            }
            if stop.is_cancelled() {
                bail!("stopped");
            }
            hash.update(&buffer[..read]);
        }
    };
    tokio::task::spawn_blocking(hash).await.context("the reader of the input died")?
}

async fn fetch(url: &Url, stop: &CancellationToken) -> Result<Staged> {
    let options = environment()?;
    let (store, path) = open_url(url, options).context("the url can't be opened")?;
    let mut file =
        NamedTempFile::with_prefix("tidemark-import-").context("a temporary file can't be made")?;
    let mut hash = Xxh3::new();
    let mut chunks = store.get(&path).await.context("the object can't be read")?.into_stream();
    while let Some(chunk) = chunks.next().await {
        if stop.is_cancelled() {
            bail!("stopped");
        }
        let chunk = chunk.context("the object can't be read")?;
        hash.update(&chunk);
        file.write_all(&chunk)
            .with_context(|| format!("{} can't be written (disk full?)", file.path().display()))?;
    }
    file.flush().context("the temporary file can't be written")?;
    Ok(Staged { file: Local::Fetched(file), import_id: id(&hash) })
}

fn id(hash: &Xxh3) -> String {
    format!("{:032x}", hash.digest128())
}
