//! Files that are rewritten hold each row once, and whoever asks for the rows of some segments is given just those, wherever
//! they lie by now and whatever the ledger knows of it.

use super::rewrite::{bring, seal, write};
use super::*;
use crate::archive::compaction::{Compacted, Compaction};
use crate::archive::merge::Part;
use crate::archive::sweep::sweep;
use crate::archive::{Batch, Files as Writer, Row, samples};
use crate::ledger::Entry;
use polars::prelude::{DataFrame, ParquetReader, SerReader as _};
use proptest::prelude::*;
use shared_model::catalog::Stream;
use shared_model::event::{Event, FieldType, Identity, Value};
use shared_model::offsets::TopicPartition;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DAY: EventDay = EventDay(3);

fn row(offset: i64, fields: usize) -> Row {
    let time = DAY.interval().start + offset;
    let mut values =
        vec![Value::str("u"), Value::Int(time), Value::Int(2), Value::Float(0.5), Value::Bool(true)];
    values.truncate(fields);
    let event = Event { time, values, identity: Identity(offset as u128) };
    Row { offset, ingest_time: Some(9), produced: None, event }
}

/// Writes segments of a partition, of so many rows each; between two rows an offset is missing, as ticks leave it.
async fn written(store: &Store, stream: &Arc<Stream>, tp: &TopicPartition, counts: &[usize]) -> Vec<Entry> {
    let (mut writer, mut at) = (Writer::new(store.clone(), stream.clone(), tp.clone()), 0);
    for &count in counts {
        let rows = (0..count as i64).map(|number| row(at + 2 * number, stream.recorded)).collect();
        at += 2 * count as i64 + 3;
        writer.write(Batch::Rows(DAY, rows)).await.unwrap();
    }
    let entry = |segment| Entry {
        stream: "clicks".into(),
        tp: tp.clone(),
        import: None,
        segment,
        compacted: None,
        is_known: true,
    };
    writer.take().0.into_iter().map(entry).collect()
}

fn read(file: &Path) -> DataFrame {
    ParquetReader::new(std::fs::File::open(file).unwrap()).finish().unwrap()
}

/// Where the rows of files stood, in their order.
fn positions(files: &[PathBuf]) -> Vec<(String, i32, i64)> {
    let mut found = Vec::new();
    for frame in files.iter().map(|file| read(file)) {
        let topics = frame.column("_topic").unwrap().str().unwrap();
        let partitions = frame.column("_partition").unwrap().i32().unwrap();
        let offsets = frame.column("_offset").unwrap().i64().unwrap();
        let rows = topics.iter().zip(partitions.iter()).zip(offsets.iter());
        found.extend(rows.map(|((topic, partition), offset)| {
            (topic.unwrap().to_owned(), partition.unwrap(), offset.unwrap())
        }));
    }
    found
}

/// What is read of some segments, in order.
async fn found(store: &Store, entries: &[&Entry]) -> Result<Vec<(String, i32, i64)>> {
    let files = Files::new(store.clone())?;
    let mut found = positions(&files.rows_of(entries).await?);
    found.sort_unstable();
    Ok(found)
}

fn of_segment(entry: Entry) -> Live {
    let (path, bytes) = (entry.segment.path.clone(), entry.segment.bytes);
    Live { entries: vec![entry], path, bytes }
}

/// Rewrites files and seals that; the compaction, and its file as one that could be rewritten again.
async fn rewrite(store: &Store, number: u64, files: &[&Live]) -> Result<(Compaction, Live)> {
    let here = Files::new(store.clone())?;
    let parts = bring(&here, files).await?.concat();
    let compaction = write(store, &here, ("clicks", DAY, number), (files, parts), 5).await?;
    seal(store, &compaction).await?;
    let entries = files.iter().flat_map(|file| file.entries.iter().cloned());
    let entries = entries.map(|entry| Entry { compacted: Some(compaction.file.clone()), ..entry }).collect();
    let (path, bytes) = (compaction.file.path.clone(), compaction.file.bytes);
    Ok((compaction, Live { entries, path, bytes }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn rows_are_found_wherever_they_lie(
        counts in prop::collection::vec(prop::collection::vec(1..8usize, 1..5), 1..4),
        wanted in prop::collection::vec(any::<bool>(), 16),
        first in 1..12usize,
    ) {
        tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
            let (store, stream) = (Store::in_memory(), samples::stream());
            let mut entries = Vec::new();
            for (at, counts) in (0..).zip(&counts) {
                // Two topics, one of them an import's.
                let topic = if at == 1 { "import:00ff" } else { "clicks" };
                entries.extend(written(&store, &stream, &TopicPartition::new(topic, at), counts).await);
            }
            let wanted: Vec<bool> = wanted.into_iter().cycle().take(entries.len()).collect();
            let of = |entries: &[Entry]| -> Vec<Entry> {
                let chosen = entries.iter().zip(&wanted).filter(|(_, wanted)| **wanted);
                chosen.map(|(entry, _)| entry.clone()).collect()
            };
            let (chosen, all): (Vec<Entry>, Vec<&Entry>) = (of(&entries), entries.iter().collect());
            let expected = found(&store, &chosen.iter().collect::<Vec<_>>()).await.unwrap();
            let whole = found(&store, &all).await.unwrap();

            // The first ones are rewritten, then the rest with what came of them.
            let first = first.min(entries.len());
            let lives: Vec<Live> = entries.iter().cloned().map(of_segment).collect();
            let (one, once) = rewrite(&store, 0, &lives[..first].iter().collect::<Vec<_>>()).await.unwrap();
            let rest: Vec<&Live> = std::iter::once(&once).chain(&lives[first..]).collect();
            let (two, _) = rewrite(&store, 1, &rest).await.unwrap();
            assert_eq!(two.file.rows as usize, whole.len());
            assert_eq!(two.segments.len(), entries.len());
            let knows = |upto: usize, file: &Compacted| -> Vec<Entry> {
                let compacted = |at| (at < upto).then(|| file.clone());
                let entries = entries.iter().cloned().enumerate();
                entries.map(|(at, entry)| Entry { compacted: compacted(at), ..entry }).collect()
            };
            let ledgers = [entries.clone(), knows(first, &one.file), knows(entries.len(), &two.file)];
            for cleared in [false, true] {
                if cleared {
                    for path in entries.iter().map(|entry| &entry.segment.path).chain([&one.file.path]) {
                        if *path != two.file.path {
                            store.delete(path).await.unwrap();
                        }
                    }
                }
                for ledger in &ledgers {
                    let all: Vec<&Entry> = ledger.iter().collect();
                    assert_eq!(found(&store, &all).await.unwrap(), whole);
                    let chosen = of(ledger);
                    assert_eq!(found(&store, &chosen.iter().collect::<Vec<_>>()).await.unwrap(), expected);
                }
            }
            // In the file the rows stand in the order of the log.
            let files = Files::new(store.clone()).unwrap();
            let all: Vec<&Entry> = ledgers[2].iter().collect();
            let file = files.rows_of(&all).await.unwrap();
            assert_eq!(file.len(), 1);
            assert_eq!(positions(&file), whole);
        });
    }
}

#[tokio::test]
async fn what_nobody_holds_is_an_error_that_names_it() {
    let (store, stream) = (Store::in_memory(), samples::stream());
    let entries = written(&store, &stream, &TopicPartition::new("clicks", 0), &[3, 4]).await;
    let lost = &entries[1].segment.path;
    store.delete(lost).await.unwrap();
    let error = found(&store, &[&entries[0], &entries[1]]).await.unwrap_err().to_string();
    assert!(error.contains(lost) && error.contains("restore it"), "{error}");
    assert!(error.contains(&format!("set removed_at = now() where path = '{lost}'")), "{error}");
    // Of one that a run is taking in the ledger has no row to change.
    let fresh = Entry { is_known: false, ..entries[1].clone() };
    let error = found(&store, &[&fresh]).await.unwrap_err().to_string();
    assert!(
        error.contains(lost) && error.contains("is named by a manifest but not in the archive"),
        "{error}"
    );
    assert!(!error.contains("update"), "{error}");
    // One that is there, and not as it was written.
    store.put(lost, "x".into()).await.unwrap();
    let error = found(&store, &[&entries[1]]).await.unwrap_err().to_string();
    assert!(error.contains("has checksum"), "{error}");
}

#[tokio::test]
async fn a_field_that_came_later_is_null_in_the_rows_before_it() {
    let (store, now) = (Store::in_memory(), samples::stream());
    let before = Arc::new(Stream { fields: now.fields[..3].to_vec(), recorded: 3, ..(*now).clone() });
    let tp = TopicPartition::new("clicks", 0);
    let old = written(&store, &before, &tp, &[3]).await;
    let new = written(&store, &now, &TopicPartition::new("clicks", 1), &[4]).await;
    let lives: Vec<Live> = old.into_iter().chain(new).map(of_segment).collect();
    let (_, rewritten) = rewrite(&store, 0, &lives.iter().collect::<Vec<_>>()).await.unwrap();
    let files = Files::new(store.clone()).unwrap();
    let file = files.rows_of(&rewritten.entries.iter().collect::<Vec<_>>()).await.unwrap();
    let frame = read(&file[0]);
    let names: Vec<String> = frame.get_column_names().iter().map(ToString::to_string).collect();
    assert_eq!(names[..5], ["uuid", "at", "price", "share", "paid"]);
    let paid: Vec<Option<bool>> = frame.column("paid").unwrap().bool().unwrap().iter().collect();
    assert_eq!(paid, [None, None, None, Some(true), Some(true), Some(true), Some(true)]);
}

#[tokio::test]
async fn files_in_which_a_field_has_another_type_are_told_apart() {
    let (store, now) = (Store::in_memory(), samples::stream());
    let mut fields = now.fields.clone();
    fields[2].ty = FieldType::Float;
    let retyped = Arc::new(Stream { fields, ..(*now).clone() });
    let fewer = Arc::new(Stream { fields: now.fields[..2].to_vec(), recorded: 2, ..(*now).clone() });
    let mut lives = Vec::new();
    for (at, stream) in (0..).zip([&now, &retyped, &fewer, &now, &retyped]) {
        lives.extend(written(&store, stream, &TopicPartition::new("clicks", at), &[2]).await);
    }
    let lives: Vec<Live> = lives.into_iter().map(of_segment).collect();
    let files = Files::new(store.clone()).unwrap();
    let parts = bring(&files, &lives.iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(merge::alike(&parts).unwrap(), [vec![0, 2, 3], vec![1, 4]]);
    let error = rewrite(&store, 0, &[&lives[0], &lives[1]]).await.err().unwrap();
    assert!(format!("{error:#}").contains("field price is"), "{error:#}");
    rewrite(&store, 0, &[&lives[1], &lives[4]]).await.unwrap();
}

#[tokio::test]
async fn a_lost_file_s_rows_are_taken_from_whatever_had_them_and_rewritten_from_there() {
    let (store, stream) = (Store::in_memory(), samples::stream());
    let entries = written(&store, &stream, &TopicPartition::new("clicks", 0), &[3, 4, 5, 2]).await;
    let all: Vec<&Entry> = entries.iter().collect();
    let whole = found(&store, &all).await.unwrap();
    let lives: Vec<Live> = entries.iter().cloned().map(of_segment).collect();
    let (one, once) = rewrite(&store, 0, &[&lives[0], &lives[1]]).await.unwrap();
    let (two, twice) = rewrite(&store, 1, &[&once, &lives[2]]).await.unwrap();
    for gone in [&entries[0].segment.path, &entries[1].segment.path, &two.file.path] {
        store.delete(gone).await.unwrap();
    }
    // Two segments in the file before, one in its own still, and one that was never rewritten.
    let known: Vec<&Entry> = twice.entries.iter().chain([&entries[3]]).collect();
    assert_eq!(found(&store, &known).await.unwrap(), whole);
    assert_eq!(found(&store, &all).await.unwrap(), whole);
    let (three, thrice) = rewrite(&store, 2, &[&twice, &lives[3]]).await.unwrap();
    assert_eq!((three.file.rows, three.segments.len()), (14, 4));
    assert_eq!(three.replaced, [two.file.path.clone(), entries[3].segment.path.clone()]);
    assert_eq!(found(&store, &thrice.entries.iter().collect::<Vec<_>>()).await.unwrap(), whole);

    for gone in [&one.file.path, &three.file.path] {
        store.delete(gone).await.unwrap();
    }
    let error = found(&store, &[&thrice.entries[0]]).await.unwrap_err().to_string();
    let statement = format!("set removed_at = now() where compacted = '{}'", three.file.path);
    assert!(error.contains(&statement) && error.contains(&entries[0].segment.path), "{error}");
}

#[tokio::test]
async fn without_a_compaction_s_manifest_what_is_there_still_is_read() {
    let (store, stream) = (Store::in_memory(), samples::stream());
    let entries = written(&store, &stream, &TopicPartition::new("clicks", 0), &[3, 4]).await;
    let lives: Vec<Live> = entries.iter().cloned().map(of_segment).collect();
    let whole = found(&store, &entries.iter().collect::<Vec<_>>()).await.unwrap();
    let (one, once) = rewrite(&store, 0, &lives.iter().collect::<Vec<_>>()).await.unwrap();
    store.delete(&compaction_path("clicks", DAY, 0)).await.unwrap();
    let known: Vec<&Entry> = once.entries.iter().collect();
    assert_eq!(found(&store, &known).await.unwrap(), whole);
    store.delete(&one.file.path).await.unwrap();
    assert_eq!(found(&store, &known).await.unwrap(), whole);
}

#[tokio::test]
async fn rows_are_taken_out_of_a_file_once() {
    let (store, stream) = (Store::in_memory(), samples::stream());
    let entries = written(&store, &stream, &TopicPartition::new("clicks", 0), &[3, 4]).await;
    let lives: Vec<Live> = entries.iter().cloned().map(of_segment).collect();
    rewrite(&store, 0, &lives.iter().collect::<Vec<_>>()).await.unwrap();
    store.delete(&entries[0].segment.path).await.unwrap();
    let files = Files::new(store).unwrap();
    let taken = files.rows_of(&[&entries[0]]).await.unwrap();
    let written = std::fs::metadata(&taken[0]).unwrap().modified().unwrap();
    files.forget(DAY);
    assert_eq!(files.rows_of(&[&entries[0]]).await.unwrap(), taken);
    assert_eq!(std::fs::metadata(&taken[0]).unwrap().modified().unwrap(), written);
    assert_eq!(files.moved(), BTreeSet::from([("clicks".to_owned(), DAY)]));
}

#[tokio::test]
async fn of_two_who_compact_a_day_at_once_one_wins_and_the_loser_s_file_is_swept() {
    let (store, stream) = (Store::in_memory(), samples::stream());
    let entries = written(&store, &stream, &TopicPartition::new("clicks", 0), &[3, 4, 5]).await;
    let lives: Vec<Live> = entries.iter().cloned().map(of_segment).collect();
    let (won, _) = rewrite(&store, 0, &[&lives[0], &lives[1]]).await.unwrap();
    let error = rewrite(&store, 0, &[&lives[1], &lives[2]]).await.err().unwrap().to_string();
    assert!(error.contains("another has compacted the day"), "{error}");
    let stored = async || {
        let listed = store.list("data").await.unwrap();
        listed.into_iter().map(|object| object.location.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(stored().await.len(), 5);
    assert_eq!(sweep(&store, 0, &BTreeSet::new(), false).await.unwrap().orphans.len(), 0, "young");
    // No manifest names the segments of this test.
    let swept = sweep(&store, i64::MAX, &BTreeSet::new(), false).await.unwrap();
    assert_eq!((swept.orphans.len(), swept.strange), (4, vec![]));
    assert_eq!(stored().await, [won.file.path]);
}

#[tokio::test]
async fn nothing_is_sealed_behind_a_hole_in_a_chain_nor_into_it_and_no_file_is_swept_beside_one() {
    let (store, stream) = (Store::in_memory(), samples::stream());
    ensure_unbroken(&store, "clicks", DAY, 0).await.unwrap();
    let error = ensure_unbroken(&store, "clicks", DAY, 1).await.unwrap_err().to_string();
    assert!(error.contains("0000000000.json is in the ledger but not in the archive"), "{error}");

    let entries = written(&store, &stream, &TopicPartition::new("clicks", 0), &[3, 4, 5, 2]).await;
    let lives: Vec<Live> = entries.iter().cloned().map(of_segment).collect();
    let (first, _) = rewrite(&store, 0, &[&lives[0], &lives[1]]).await.unwrap();
    let (second, _) = rewrite(&store, 1, &[&lives[2], &lives[3]]).await.unwrap();
    ensure_unbroken(&store, "clicks", DAY, 2).await.unwrap();
    // A ledger that is older, or new, finds no hole before its own end, only one behind.
    let error = ensure_unbroken(&store, "clicks", DAY, 1).await.unwrap_err().to_string();
    assert!(error.contains("0000000001.json is missing"), "{error}");
    store.delete(&compaction_path("clicks", DAY, 0)).await.unwrap();
    let error = ensure_unbroken(&store, "clicks", DAY, 0).await.unwrap_err().to_string();
    assert!(error.contains("0000000000.json is missing in the archive, which has later ones"), "{error}");
    // Another day's are none of this one's, nor is what isn't called as one.
    ensure_unbroken(&store, "clicks", EventDay(DAY.0 + 1), 0).await.unwrap();
    store.put("compactions/clicks/1970-01-05/notes", "x".into()).await.unwrap();
    ensure_unbroken(&store, "clicks", EventDay(DAY.0 + 1), 0).await.unwrap();
    // What is lost may be the one that names them.
    assert_eq!(sweep(&store, i64::MAX, &BTreeSet::new(), false).await.unwrap().orphans.len(), entries.len());
    for file in [&first.file, &second.file] {
        assert_eq!(store.size(&file.path).await.unwrap(), Some(file.bytes));
    }
    // Nor does the end of a chain show that more was there.
    store.delete(&compaction_path("clicks", DAY, 1)).await.unwrap();
    let read = BTreeSet::from([second.file.path.clone()]);
    assert_eq!(sweep(&store, i64::MAX, &read, false).await.unwrap().orphans, [first.file.path]);
}

#[test]
fn rows_that_are_not_those_of_the_parts_are_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let (store, stream) = (Store::in_memory(), samples::stream());
    let tp = TopicPartition::new("clicks", 0);
    let entries = runtime.block_on(written(&store, &stream, &tp, &[6, 7]));
    let files = Files::new(store).unwrap();
    let parts: Vec<Part> = entries
        .iter()
        .map(|entry| {
            let file = runtime.block_on(files.rows_of(&[entry])).unwrap().remove(0);
            Part { file, from: 0, place: entry.place() }
        })
        .collect();
    let merged = |change: fn(&mut Vec<Part>)| {
        let mut parts = parts.clone();
        change(&mut parts);
        merge::merge(&parts, &tempfile::tempfile().unwrap()).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(merged(|_| ()).map(|merged| merged.rows), Ok(13));
    let refused = |change: fn(&mut Vec<Part>), expected: &str| {
        let error = merged(change).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    refused(|parts| parts[1].place.partition = 1, "stands where one of segment");
    refused(|parts| parts[0].place.to_offset = 4, "stands where one of segment");
    refused(|parts| parts[1].from = 1, "fewer rows");
    refused(|parts| parts[1].file = parts[0].file.clone(), "stands where one of segment");
    // The same rows twice.
    refused(|parts| parts.insert(0, parts[0].clone()), "overlap");
}
