//! Which files there are to replay: their stream, platform and event day are told by their paths.
//!
//! No file is opened here; a file that certainly holds nothing wanted is left out.

use crate::location::{Location, Stores};
use crate::prepare::REJECTS;
use crate::prepare::upload::MARK;
use crate::prepare::write::HIVE_NULL;
use anyhow::{bail, ensure};
use shared_model::catalog::{Catalog, Stream};
use shared_model::time::{EventDay, Interval, Millis};
use std::sync::Arc;

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

/// The files that `inputs` name, ordered by stream and path: files and folders (searched to the bottom, hidden ones left
/// out), on this machine or by URL, each perhaps with `STREAM=` before it.
pub fn discover(inputs: &[String], catalog: &Catalog, stores: &Stores) -> anyhow::Result<Vec<SourceFile>> {
    let mut found = Vec::new();
    for input in inputs {
        let named = input.split_once('=').and_then(|(name, rest)| Some((catalog.stream(name)?, rest)));
        let (stream, text) = named.map_or((None, input.as_str()), |(stream, rest)| (Some(stream), rest));
        let location = stores.locate(text)?;
        let is_file = matches!(location, Location::Remote(_)) && (is_parquet(&location) || is_csv(&location));
        match if is_file { None } else { location.below()? } {
            None => found.push(source(location, stream, catalog)?),
            Some(files) => {
                let before = found.len();
                found.extend(sources(files, stream, catalog)?);
                ensure!(found.len() > before, "no .parquet, .csv or .csv.gz files in {location}");
            }
        }
    }
    found.sort_by(|a, b| {
        (&a.stream.name, a.location.to_string()).cmp(&(&b.stream.name, b.location.to_string()))
    });
    Ok(found)
}

/// Those of a folder's files that hold rows.
pub fn sources(
    files: Vec<Location>,
    stream: Option<&Arc<Stream>>,
    catalog: &Catalog,
) -> anyhow::Result<Vec<SourceFile>> {
    if let Some(mark) = files.iter().find(|file| file.file_name() == MARK) {
        bail!("{mark} says that what lies beside it is not whole; prepare it again");
    }
    let holds_rows = |file: &Location| is_parquet(file) || is_csv(file) && file.file_name() != REJECTS;
    files.into_iter().filter(holds_rows).map(|file| source(file, stream, catalog)).collect()
}

fn is_parquet(file: &Location) -> bool {
    file.path().extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
}

fn is_csv(file: &Location) -> bool {
    let name = file.file_name().to_ascii_lowercase();
    name.ends_with(".csv") || name.ends_with(".csv.gz")
}

fn source(location: Location, stream: Option<&Arc<Stream>>, catalog: &Catalog) -> anyhow::Result<SourceFile> {
    let parts: Vec<&str> = location.path().iter().filter_map(|part| part.to_str()).collect();
    let Some(stream) = stream.or_else(|| stream_of(&parts, catalog)) else {
        let known: Vec<&str> = catalog.streams.iter().map(|stream| stream.name.as_str()).collect();
        bail!("which stream is {location}? write STREAM={location}, with one of {}", known.join(", "));
    };
    let value = |key: &str| parts.iter().rev().find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
    let day = value("event_date").and_then(|date| date.parse().ok()).map(EventDay::from_date);
    let (stream, platform) = (stream.clone(), value("platform").map(str::to_owned));
    let parquet = is_parquet(&location);
    Ok(SourceFile { location, stream, parquet, platform, day })
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
