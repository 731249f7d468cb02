//! What says that small files were rewritten as one: the chain of compactions of one stream's event day.
//!
//! A compaction's file holds all rows of the segments that it names and no others, in the order in which it names them: by
//! topic, partition, offset. Manifests are never changed: they go on naming segments, whatever became of their files, and
//! whoever finds a segment's own file gone finds its rows here. A compaction is written once, with put-if-absent, under the
//! next number of its stream and day, and made of whole files as the chain before it left them: of two compactions of a
//! chain, the later one holds all segments of the earlier, or none.

use crate::archive::manifest::{day, parse};
use crate::archive::store::Store;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use shared_model::time::{EventDay, Millis};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The newest form that this program reads and writes.
pub const COMPACTION_VERSION: u8 = 1;

/// How the names of compacted files begin; such a name has no dash, which every segment's has.
const PREFIX: &str = "compacted_";

/// A file that holds the rows of several segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// Its path below the archive's root.
    pub path: String,
    /// How many rows it has.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// xxh3 of its bytes, 16 hex digits.
    pub checksum: String,
}

/// A segment whose rows lie in a compacted file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The path that its manifest names.
    pub path: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset of its first row.
    pub from_offset: i64,
    /// One more than the offset of its last row.
    pub to_offset: i64,
    /// How many rows it has.
    pub rows: u64,
}

impl Place {
    /// What segments are put in order by.
    pub(crate) fn position(&self) -> (&str, i32, i64) {
        (&self.topic, self.partition, self.from_offset)
    }
}

/// One rewriting of several files of a stream's event day into one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compaction {
    /// The form's version.
    pub v: u8,
    /// The stream's name in the catalog.
    pub stream: String,
    /// The event day of all rows.
    #[serde(with = "day")]
    pub event_day: EventDay,
    /// Its place in the chain, from 0.
    pub number: u64,
    /// What was written.
    pub file: Compacted,
    /// The lowest event time.
    pub min_event_time: Millis,
    /// The highest event time.
    pub max_event_time: Millis,
    /// The segments whose rows it holds, in the order of its rows.
    pub segments: Vec<Place>,
    /// The files that were read for it, which nobody needs once it is there: segments, and earlier compacted files.
    pub replaced: Vec<String>,
    /// Drawn by the writer: tells its own manifest from a rival's.
    pub nonce: String,
    /// When it was written, in ms since 1970, by the writer's clock.
    pub written_at: Millis,
}

impl Compaction {
    /// The compaction from its stored JSON. Refuses a newer form, and one that doesn't add up.
    pub fn from_json(path: &str, json: &[u8]) -> Result<Compaction> {
        let compaction: Compaction = parse(path, json, COMPACTION_VERSION)?;
        let rows: u64 = compaction.segments.iter().map(|place| place.rows).sum();
        if rows != compaction.file.rows {
            let of = compaction.file.rows;
            bail!(
                "manifest {path} names segments of {rows} rows and a file of {of}: the archive is damaged there"
            );
        }
        Ok(compaction)
    }

    /// The JSON to store.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a compaction has no map with keys that JSON can't have")
    }
}

/// Where a compaction of a stream's event day lies.
pub fn compaction_path(stream: &str, day: EventDay, number: u64) -> String {
    format!("compactions/{stream}/{day}/{number:010}.json")
}

/// Where a compacted file lies.
pub(crate) fn compacted_path(stream: &str, day: EventDay, checksum: &str) -> String {
    format!("data/stream={stream}/event_day={day}/{PREFIX}{checksum}.parquet")
}

/// The stream and event day of a compacted file, by its path; `None` of any other file.
pub(crate) fn parse_compacted_path(path: &str) -> Option<(&str, EventDay)> {
    let mut parts = path.strip_prefix("data/stream=")?.split('/');
    let (stream, day, name) = (parts.next()?, parts.next()?.strip_prefix("event_day=")?, parts.next()?);
    let checksum = name.strip_prefix(PREFIX)?.strip_suffix(".parquet")?;
    let is_checksum = checksum.len() == 16 && checksum.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_checksum && parts.next().is_none()).then_some((stream, EventDay::from_date(day.parse().ok()?)))
}

/// One compaction of a stream's event day; `None` where there is none of that number. It is looked for by name: a listing may
/// lag behind what there is.
pub async fn read(store: &Store, stream: &str, day: EventDay, number: u64) -> Result<Option<Compaction>> {
    let path = compaction_path(stream, day, number);
    let Some(json) = store.get(&path).await? else { return Ok(None) };
    let compaction = Compaction::from_json(&path, &json)?;
    if (compaction.stream.as_str(), compaction.event_day, compaction.number) != (stream, day, number) {
        bail!("manifest {path} is not what its name says: the archive is damaged there");
    }
    Ok(Some(compaction))
}

/// The compactions of a stream's event day, up to the first number of which there is none.
pub async fn chain(store: &Store, stream: &str, day: EventDay) -> Result<Vec<Compaction>> {
    let mut found = Vec::new();
    for number in 0.. {
        let Some(compaction) = read(store, stream, day, number).await? else { break };
        found.push(compaction);
    }
    Ok(found)
}

/// All compactions of a stream's event day, those behind a hole in the chain, too: by name, and by their numbers where a
/// listing has them.
pub(crate) async fn all(
    store: &Store,
    stream: &str,
    day: EventDay,
    listed: &BTreeSet<u64>,
) -> Result<Vec<Compaction>> {
    let (mut found, mut next) = (Vec::new(), Some(0));
    while let Some(number) = next {
        next = match read(store, stream, day, number).await? {
            Some(compaction) => {
                found.push(compaction);
                Some(number + 1)
            }
            None => listed.range(number + 1..).next().copied(),
        };
    }
    Ok(found)
}

/// The numbers of compactions by stream and event day, as one listing of the archive has them.
pub(crate) async fn listed(store: &Store) -> Result<BTreeMap<(String, EventDay), BTreeSet<u64>>> {
    let mut found: BTreeMap<(String, EventDay), BTreeSet<u64>> = BTreeMap::new();
    for object in store.list("compactions").await? {
        if let Some((stream, day, number)) = parse_compaction_path(object.location.as_ref()) {
            found.entry((stream.to_owned(), day)).or_default().insert(number);
        }
    }
    Ok(found)
}

/// The last of the compactions of a stream's event day by number, as a listing of the archive has them.
pub(crate) async fn last_listed(store: &Store, stream: &str, day: EventDay) -> Result<Option<u64>> {
    let listed = store.list(&format!("compactions/{stream}/{day}")).await?;
    let numbers = listed.iter().filter_map(|object| parse_compaction_path(object.location.as_ref()));
    Ok(numbers.map(|(_, _, number)| number).max())
}

fn parse_compaction_path(path: &str) -> Option<(&str, EventDay, u64)> {
    let mut parts = path.strip_prefix("compactions/")?.split('/');
    let (stream, day, name) = (parts.next()?, parts.next()?, parts.next()?);
    let day = EventDay::from_date(day.parse().ok()?);
    let number = name.strip_suffix(".json")?.parse().ok()?;
    (compaction_path(stream, day, number) == path).then_some((stream, day, number))
}

/// Which files of a day's chain have each segment's rows.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    files: Vec<Compacted>,
    /// By the path that a segment's manifest names: where its rows lie in which of the files, oldest first.
    places: HashMap<String, Vec<(usize, u64)>>,
}

impl Holders {
    /// Of a chain, from its begin.
    ///
    /// # Errors
    /// Where a compaction holds some segments of an earlier one and not all: such a chain was not made of whole files.
    pub(crate) fn new(chain: Vec<Compaction>) -> Result<Holders> {
        let (mut holders, mut counts) = (Holders::default(), Vec::<usize>::new());
        for Compaction { stream, event_day, number, file, segments, .. } in chain {
            let (at, count, mut from) = (holders.files.len(), segments.len(), 0);
            let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
            for place in segments {
                let places = holders.places.entry(place.path).or_default();
                if let Some((earlier, _)) = places.last() {
                    *taken.entry(*earlier).or_default() += 1;
                }
                places.push((at, from));
                from += place.rows;
            }
            for (earlier, taken) in taken {
                let of = counts[earlier];
                ensure!(
                    taken == of,
                    "{} holds {taken} of {of} segments that lay in {}: the archive is damaged there",
                    compaction_path(&stream, event_day, number),
                    holders.files[earlier].path
                );
            }
            counts.push(count);
            holders.files.push(file);
        }
        Ok(holders)
    }

    /// The files that have a segment's rows, the newest first, each with how many other rows stand before them.
    pub(crate) fn of(&self, path: &str) -> impl Iterator<Item = (&Compacted, u64)> {
        let places = self.places.get(path).into_iter().flatten().rev();
        places.map(|(file, from)| (&self.files[*file], *from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compaction(number: u64, segments: &[&str]) -> Compaction {
        let place = |(at, path): (i64, &&str)| Place {
            path: (*path).to_owned(),
            topic: "clicks".into(),
            partition: 0,
            from_offset: at,
            to_offset: at + 1,
            rows: 1,
        };
        let rows = segments.len() as u64;
        Compaction {
            v: COMPACTION_VERSION,
            stream: "clicks".into(),
            event_day: EventDay(7),
            number,
            file: Compacted { path: format!("f{number}"), rows, bytes: 5, checksum: "00".into() },
            min_event_time: 1,
            max_event_time: 2,
            segments: (0..).zip(segments).map(place).collect(),
            replaced: segments.iter().map(|path| (*path).to_owned()).collect(),
            nonce: "n".into(),
            written_at: 5,
        }
    }

    #[tokio::test]
    async fn a_chain_is_read_by_name_to_its_end_and_the_last_that_holds_a_segment_has_its_rows() {
        let store = Store::in_memory();
        let all = [compaction(0, &["a", "b"]), compaction(1, &["c", "d"]), compaction(2, &["a", "b", "e"])];
        for one in &all {
            store
                .put(&compaction_path("clicks", EventDay(7), one.number), one.to_json().into())
                .await
                .unwrap();
        }
        assert_eq!(chain(&store, "clicks", EventDay(7)).await.unwrap(), all);
        assert_eq!(chain(&store, "clicks", EventDay(8)).await.unwrap(), []);
        assert_eq!(read(&store, "clicks", EventDay(7), 2).await.unwrap().as_ref(), Some(&all[2]));
        let holders = Holders::new(all.into()).unwrap();
        let held = |path| -> Vec<(&str, u64)> {
            holders.of(path).map(|(file, from)| (file.path.as_str(), from)).collect()
        };
        assert_eq!(held("b"), [("f2", 1), ("f0", 1)]);
        assert_eq!(held("d"), [("f1", 1)]);
        assert_eq!(held("e"), [("f2", 2)]);
        assert!(held("none").is_empty());
    }

    #[test]
    fn a_chain_that_was_not_made_of_whole_files_is_refused() {
        let refused = |chain: &[Compaction]| Holders::new(chain.to_vec()).unwrap_err().to_string();
        let error = refused(&[compaction(0, &["a", "b"]), compaction(1, &["b", "c"])]);
        assert!(error.contains("0000000001.json holds 1 of 2 segments that lay in f0"), "{error}");
        let all = [compaction(0, &["a"]), compaction(1, &["a", "b"]), compaction(2, &["a", "c"])];
        assert!(Holders::new(all[..2].to_vec()).is_ok());
        assert!(refused(&all).contains("holds 1 of 2 segments that lay in f1"));
    }

    #[tokio::test]
    async fn what_is_damaged_or_newer_is_refused() {
        let check = async |change: fn(&mut Compaction), expected: &str| {
            let (store, mut one) = (Store::in_memory(), compaction(0, &["a"]));
            change(&mut one);
            store.put(&compaction_path("clicks", EventDay(7), 0), one.to_json().into()).await.unwrap();
            let error = chain(&store, "clicks", EventDay(7)).await.unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        };
        check(|one| one.v = 2, "upgrade it").await;
        check(|one| one.number = 1, "not what its name says").await;
        check(|one| one.segments[0].rows = 9, "segments of 9 rows and a file of 1").await;
    }

    #[test]
    fn a_compacted_file_is_told_by_its_name_and_no_segment_is_taken_for_one() {
        let day = EventDay(17_000);
        let path = compacted_path("clicks", day, "00112233445566ff");
        assert_eq!(parse_compacted_path(&path), Some(("clicks", day)));
        for other in [
            "data/stream=clicks/event_day=2016-06-14/compacted_00112233445566ff-0-1-2-00ff.parquet",
            "data/stream=clicks/event_day=2016-06-14/compacted_0011.parquet",
            "data/stream=clicks/event_day=2016-06-14/deeper/compacted_00112233445566ff.parquet",
            "data/stream=clicks/event_day=never/compacted_00112233445566ff.parquet",
            "rejects/stream=clicks/compacted_00112233445566ff.parquet",
        ] {
            assert_eq!(parse_compacted_path(other), None, "{other}");
        }
        assert!(compaction_path("clicks", day, 9) < compaction_path("clicks", day, 10));
        assert_eq!(parse_compaction_path(&compaction_path("clicks", day, 9)), Some(("clicks", day, 9)));
        assert_eq!(parse_compaction_path("compactions/clicks/2016-06-14/9.json"), None);
    }
}
