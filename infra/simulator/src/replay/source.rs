//! Which files there are to replay: their stream, platform and event day are told by their paths.
//!
//! No file is opened here; a file that certainly holds nothing wanted is left out.

use anyhow::{Context, bail, ensure};
use shared_model::catalog::{Catalog, Stream};
use shared_model::time::{EventDay, Interval, Millis};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::prepare::input::Location;
use crate::prepare::write::HIVE_NULL;

/// A file of one stream.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Where it is.
    pub location: Location,
    /// Whose rows it holds.
    pub stream: Arc<Stream>,
    /// Whether it is Parquet; CSV otherwise.
    pub parquet: bool,
    /// From a folder `platform=`, as it is written there.
    pub platform: Option<String>,
    /// From a folder `event_date=`.
    pub day: Option<EventDay>,
}

impl SourceFile {
    /// No row is earlier than this, as far as its path says.
    pub fn not_before(&self) -> Millis {
        self.day.map_or(Millis::MIN, |day| day.interval().start)
    }
}

/// Which rows are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Values of the field `platform`; `\N` is NULL. Empty: all.
    pub platforms: Vec<String>,
    /// Event times.
    pub span: Interval,
}

impl Filter {
    /// Everything.
    pub fn all() -> Filter {
        Filter { platforms: Vec::new(), span: Interval { start: Millis::MIN, end: Millis::MAX } }
    }

    /// Whether a file may hold wanted rows.
    pub fn may_take(&self, file: &SourceFile) -> bool {
        let by_day = file.day.is_none_or(|day| day.interval().overlaps(&self.span));
        // Only plain names are compared: an escaped one is decided row by row.
        let plain = |name: &str| !name.contains('%') && name.len() < 100;
        let by_platform = file.platform.as_deref().filter(|name| plain(name)).is_none_or(|name| match name {
            HIVE_NULL => self.takes_platform(None) || self.takes_platform(Some("")),
            name => self.takes_platform(Some(name)),
        });
        by_day && by_platform
    }

    /// Whether rows of a platform are wanted.
    pub fn takes_platform(&self, platform: Option<&str>) -> bool {
        self.platforms.is_empty() || self.platforms.iter().any(|wanted| wanted == platform.unwrap_or("\\N"))
    }
}

/// The files that `inputs` name, ordered by stream and path: folders (searched to the bottom, hidden ones left out),
/// single files, URLs of CSV files, each perhaps with `STREAM=` before it.
pub fn discover(inputs: &[String], catalog: &Catalog) -> anyhow::Result<Vec<SourceFile>> {
    let mut found = Vec::new();
    for input in inputs {
        let named = input.split_once('=').and_then(|(name, rest)| Some((catalog.stream(name)?, rest)));
        let (stream, text) = named.map_or((None, input.as_str()), |(stream, rest)| (Some(stream), rest));
        let before = found.len();
        match Location::of(text) {
            Location::Local(path) if path.is_dir() => {
                walk(&path, &mut |file| {
                    if is_parquet(file) || is_csv(file) {
                        found.push(source(Location::Local(file.to_owned()), file, stream, catalog)?);
                    }
                    Ok(())
                })?;
                ensure!(found.len() > before, "no .parquet, .csv or .csv.gz files in {}", path.display());
            }
            Location::Local(path) => {
                ensure!(path.exists(), "{} is not there", path.display());
                found.push(source(Location::Local(path.clone()), &path, stream, catalog)?);
            }
            remote => {
                let path = PathBuf::from(remote.file_name());
                found.push(source(remote, &path, stream, catalog)?);
            }
        }
    }
    found.sort_by(|a, b| {
        (&a.stream.name, a.location.to_string()).cmp(&(&b.stream.name, b.location.to_string()))
    });
    Ok(found)
}

fn walk(folder: &Path, take: &mut dyn FnMut(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if name.starts_with('.') || name == "rejects.csv" {
            continue;
        }
        if path.is_dir() { walk(&path, take)? } else { take(&path)? }
    }
    Ok(())
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
}

fn is_csv(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("").to_ascii_lowercase();
    name.ends_with(".csv") || name.ends_with(".csv.gz")
}

fn source(
    location: Location,
    path: &Path,
    stream: Option<&Arc<Stream>>,
    catalog: &Catalog,
) -> anyhow::Result<SourceFile> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let Some(stream) = stream.or_else(|| stream_of(&parts, catalog)) else {
        let known: Vec<&str> = catalog.streams.iter().map(|stream| stream.name.as_str()).collect();
        bail!("which stream is {location}? write STREAM={location}, with one of {}", known.join(", "));
    };
    let value = |key: &str| parts.iter().rev().find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
    let day = value("event_date").and_then(|date| date.parse().ok()).map(EventDay::from_date);
    let (stream, platform) = (stream.clone(), value("platform").map(str::to_owned));
    Ok(SourceFile { location, stream, parquet: is_parquet(path), platform, day })
}

/// The stream that the file's name begins with, or that a folder is called as.
fn stream_of<'a>(parts: &[&str], catalog: &'a Catalog) -> Option<&'a Arc<Stream>> {
    let (file, folders) = parts.split_last()?;
    let begins = |stream: &&Arc<Stream>| {
        file.strip_prefix(stream.name.as_str())
            .is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_ascii_alphanumeric()))
    };
    let by_file = catalog.streams.iter().filter(begins).max_by_key(|stream| stream.name.len());
    by_file.or_else(|| folders.iter().rev().find_map(|folder| catalog.stream(folder)))
}
