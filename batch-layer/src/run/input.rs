//! What a run reads: the segments that it takes in, and all segments of a day.

use crate::archive::Sealed;
use crate::archive::manifest::{ImportManifest, Segment};
use crate::compute::Source;
use crate::files::Files;
use crate::ledger::{self, Entry};
use crate::run::Context;
use anyhow::{Context as _, Result};
use shared_model::catalog::Catalog;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Tidemark;
use shared_model::time::EventDay;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::Xxh3;

/// What lies below the next tidemark and not below the present one, and the imports that the ledger doesn't have.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// Segments with rows.
    pub(crate) entries: Vec<Entry>,
    /// Topic, partition, from, to and cause of what the log had lost.
    pub(crate) gaps: Vec<(String, i32, i64, i64, String)>,
    /// Ids of the imports.
    pub(crate) imports: Vec<String>,
}

impl Fresh {
    /// From manifests and imports.
    pub(crate) fn collect<'a>(
        sealed: impl Iterator<Item = &'a Sealed>,
        imports: Vec<ImportManifest>,
    ) -> Fresh {
        let mut fresh = Fresh::default();
        for Sealed { manifest, .. } in sealed {
            let entry = |segment: &Segment| Entry {
                stream: manifest.stream.clone(),
                tp: manifest.topic_partition(),
                import: None,
                segment: segment.clone(),
                compacted: None,
                is_known: false,
            };
            fresh.entries.extend(manifest.segments.iter().map(entry));
            fresh.gaps.extend(manifest.gaps.iter().map(|gap| {
                (manifest.topic.clone(), manifest.partition, gap.from, gap.to, gap.cause.clone())
            }));
        }
        for manifest in imports {
            let entry = |segment: &Segment| Entry {
                stream: manifest.stream.clone(),
                tp: TopicPartition::new(&manifest.topic(), 0),
                import: Some(manifest.import_id.clone()),
                segment: segment.clone(),
                compacted: None,
                is_known: false,
            };
            fresh.entries.extend(manifest.segments.iter().map(entry));
            fresh.imports.push(manifest.import_id.clone());
        }
        fresh
    }

    /// Whether a flip has anything to say beside versions.
    pub(crate) fn moves(&self, current: &Tidemark, next: &Tidemark) -> bool {
        next.cuts != current.cuts || next.held != current.held || !self.is_empty()
    }

    /// Whether there is nothing to take in.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.gaps.is_empty()
    }

    /// The days with new rows.
    pub(crate) fn days(&self) -> BTreeSet<EventDay> {
        self.entries.iter().map(|entry| entry.segment.event_day).collect()
    }

    /// The streams of the catalog that bring new rows to each day.
    pub(crate) fn streams_by_day(&self, catalog: &Catalog) -> BTreeMap<EventDay, BTreeSet<String>> {
        let mut days: BTreeMap<EventDay, BTreeSet<String>> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| catalog.stream(&entry.stream).is_some()) {
            days.entry(entry.segment.event_day).or_default().insert(entry.stream.clone());
        }
        days
    }
}

/// The imports in the archive that the ledger doesn't have.
pub(crate) async fn new_imports(
    context: &Context,
    connection: &mut PgConnection,
) -> Result<Vec<ImportManifest>> {
    let known = ledger::imports(connection).await?;
    let mut found = Vec::new();
    for object in context.store.list("imports").await? {
        let path = object.location.to_string();
        let id = path.rsplit('/').next().and_then(|name| name.strip_suffix(".json")).unwrap_or_default();
        if known.contains(id) {
            continue;
        }
        let bytes = context.store.get(&path).await?.with_context(|| format!("import {path} vanished"))?;
        let manifest = ImportManifest::from_json(&path, &bytes)?;
        if !manifest.segments.is_empty() && context.catalog.stream(&manifest.stream).is_some() {
            found.push(manifest);
        }
    }
    found.sort_by(|a, b| a.import_id.cmp(&b.import_id));
    Ok(found)
}

/// How a metric's day is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From all its segments that are there; `partial` where others are gone.
    Whole {
        /// Whether some are gone.
        partial: bool,
    },
    /// New rows are merged into the live version, since older files are gone.
    OntoLive,
    /// Not at all: older files are gone and nothing is new.
    Refused,
}

impl Way {
    /// Whether what comes of it is not computed from the whole day.
    pub(crate) fn is_partial(self) -> bool {
        self != Way::Whole { partial: false }
    }
}

/// What one day is computed from.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The day.
    pub(crate) day: EventDay,
    /// All its segments that are there, with whether each is new.
    entries: Vec<(Entry, bool)>,
    /// Whether segments of the day were removed from the archive: new rows are merged into the live version.
    pub(crate) partial: bool,
    /// The streams of which.
    pub(crate) broken: BTreeSet<String>,
    /// The hash of the segments' paths as manifests name them: that rows were rewritten into other files changes nothing.
    pub(crate) hash: String,
}

impl Inputs {
    /// From the ledger and what is new.
    pub(crate) async fn of_day(
        context: &Context,
        connection: &mut PgConnection,
        day: EventDay,
        fresh: &Fresh,
    ) -> Result<Inputs> {
        Ok(Inputs::of(&context.catalog, day, ledger::day(connection, day).await?, fresh))
    }

    /// From what the ledger has of a day (its files that are there, the streams of those that are not) and what is new.
    pub(crate) fn of(
        catalog: &Catalog,
        day: EventDay,
        (known, broken): (Vec<Entry>, BTreeSet<String>),
        fresh: &Fresh,
    ) -> Inputs {
        let new = fresh.entries.iter().filter(|entry| entry.segment.event_day == day).cloned();
        let mut entries: Vec<(Entry, bool)> =
            known.into_iter().map(|entry| (entry, false)).chain(new.map(|entry| (entry, true))).collect();
        entries.retain(|(entry, _)| catalog.stream(&entry.stream).is_some());
        entries.sort_by(|(a, _), (b, _)| a.segment.path.cmp(&b.segment.path));
        let mut hasher = Xxh3::new();
        for (entry, _) in &entries {
            hasher.update(entry.segment.path.as_bytes());
            hasher.update(&[0]);
        }
        let hash = format!("{:016x}", hasher.digest());
        Inputs { day, entries, partial: !broken.is_empty(), broken, hash }
    }

    /// What of it is of some streams.
    pub(crate) fn of_streams(mut self, wanted: impl Fn(&str) -> bool) -> Inputs {
        self.entries.retain(|(entry, _)| wanted(&entry.stream));
        self.broken.retain(|stream| wanted(stream));
        self
    }

    /// How a metric of the day is to be computed.
    pub(crate) fn way(&self, metric: &Metric, has_live: bool) -> Way {
        // A metric of streams whose files are all there is computed as ever.
        let broken = metric.bindings.iter().any(|binding| self.broken.contains(&binding.stream));
        match (broken, has_live) {
            (false, _) => Way::Whole { partial: false },
            (true, false) => Way::Whole { partial: true },
            (true, true) if self.any_new() => Way::OntoLive,
            (true, true) => Way::Refused,
        }
    }

    /// All segments, each with whether it is new.
    pub(crate) fn entries(&self) -> &[(Entry, bool)] {
        &self.entries
    }

    /// How many segments there are, and how many of them are new.
    pub(crate) fn segments(&self) -> (usize, usize) {
        (self.entries.len(), self.entries.iter().filter(|(_, new)| *new).count())
    }

    /// Whether any of it is new.
    pub(crate) fn any_new(&self) -> bool {
        self.entries.iter().any(|(_, new)| *new)
    }

    /// The streams that had files of the day before.
    pub(crate) fn known_streams(&self) -> BTreeSet<String> {
        let known = self.entries.iter().filter(|(_, new)| !new);
        known.map(|(entry, _)| entry.stream.clone()).collect()
    }

    /// All rows.
    pub(crate) fn rows(&self) -> u64 {
        self.entries.iter().map(|(entry, _)| entry.segment.rows).sum()
    }

    /// The files by stream, brought to this machine; the new ones alone, or all.
    pub(crate) async fn sources(
        &self,
        context: &Context,
        files: &Files,
        new_only: bool,
    ) -> Result<Vec<Source>> {
        let mut wanted: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for (entry, _) in self.entries.iter().filter(|(_, new)| *new || !new_only) {
            wanted.entry(&entry.stream).or_default().push(entry);
        }
        let mut sources = Vec::new();
        for (stream, entries) in wanted {
            let Some(stream) = context.catalog.stream(stream) else { continue };
            let rows = entries.iter().map(|entry| entry.segment.rows).sum();
            let files = files.rows_of(&entries).await?;
            sources.push(Source { stream: stream.clone(), files, rows });
        }
        Ok(sources)
    }
}
