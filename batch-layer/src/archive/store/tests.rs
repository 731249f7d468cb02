//! The store against stores that lose answers, fail, or overwrite what they must not.

use super::*;
use crate::archive::samples::Unreliable;

/// Runs one create against scripted faults and tells what came of it and what lies there.
async fn check(
    faults: &[&'static str],
    before: Option<&'static str>,
    expected: Result<Created, &str>,
    kept: &str,
) {
    let inner = Arc::new(InMemory::new());
    if let Some(before) = before {
        inner.put(&"x".into(), before.into()).await.unwrap();
    }
    let store = Store::from_object_store(Arc::new(Unreliable::new(inner, faults)));
    let created = store.create("x", Bytes::from_static(b"ours"), |found| found == b"ours").await;
    match (created, expected) {
        (Ok(created), Ok(expected)) => assert_eq!(created, expected, "{faults:?}"),
        (Err(error), Err(expected)) => {
            assert!(format!("{error:#}").contains(expected), "{faults:?}: {error:#}")
        }
        (created, _) => panic!("{faults:?}: {created:?}"),
    }
    let found = store.get("x").await.unwrap();
    assert_eq!(found.as_deref().unwrap_or_default(), kept.as_bytes(), "{faults:?}");
}

#[tokio::test]
async fn what_lies_there_decides_whatever_the_answer_was() {
    let theirs = || Ok(Created::Exists(Bytes::from_static(b"theirs")));
    check(&[], None, Ok(Created::Won), "ours").await;
    check(&[], Some("theirs"), theirs(), "theirs").await;
    check(&["fail"], None, Ok(Created::Won), "ours").await;
    check(&["lose the answer"], None, Ok(Created::Won), "ours").await;
    check(&["fail", "lose the answer"], None, Ok(Created::Won), "ours").await;
    check(&["fail"], Some("theirs"), theirs(), "theirs").await;
    check(&["refuse"], None, Err("x can't be written"), "").await;
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused_at_the_start() {
    let probe = async |faults: &[&'static str]| {
        let store = Store::from_object_store(Arc::new(Unreliable::new(Arc::new(InMemory::new()), faults)));
        let probed = store.probe_put_if_absent().await;
        assert_eq!(store.list("probe").await.unwrap(), [], "the probe stays behind");
        probed
    };
    probe(&[]).await.unwrap();
    let error = probe(&["ok", "overwrite"]).await.unwrap_err().to_string();
    assert!(error.contains("ignores put-if-absent"), "{error}");
    assert!(probe(&["refuse"]).await.is_err());
}

#[tokio::test]
async fn a_folder_is_made_and_its_objects_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("a b/archive");
    for url in [inside.to_string_lossy().into_owned(), Url::from_file_path(&inside).unwrap().to_string()] {
        let store = Store::open(&url).unwrap();
        store.probe_put_if_absent().await.unwrap();
        store.put("data/stream=s/event_day=2016-06-14/f.parquet", Bytes::from_static(b"x")).await.unwrap();
        let listed = store.list("data").await.unwrap();
        assert_eq!(listed[0].location.as_ref(), "data/stream=s/event_day=2016-06-14/f.parquet");
        let file = store.local_file(listed[0].location.as_ref()).unwrap();
        assert_eq!(std::fs::read(file).unwrap(), b"x");
        assert_eq!(store.get("data/none").await.unwrap(), None);
    }
    let error = format!("{:#}", Store::open_with("nope://x/y", []).err().unwrap());
    assert!(error.contains("archive url nope://x/y can't be opened"), "{error}");
}

#[tokio::test]
async fn a_prefix_holds_the_whole_archive() {
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = Store { prefix: Path::from("deep/er"), ..Store::from_object_store(inner.clone()) };
    store.put("manifests/t/0/2.json", Bytes::new()).await.unwrap();
    store.put("manifests/t/0/1.json", Bytes::new()).await.unwrap();
    assert_eq!(store.first("manifests/t/0/").await.unwrap().as_deref(), Some("manifests/t/0/1.json"));
    assert!(inner.head(&"deep/er/manifests/t/0/1.json".into()).await.is_ok());
    store.delete("manifests/t/0/1.json").await.unwrap();
    store.delete("manifests/t/0/1.json").await.unwrap();
    assert_eq!(store.list("manifests").await.unwrap()[0].location.as_ref(), "manifests/t/0/2.json");
}

#[tokio::test]
async fn a_long_file_goes_in_parts_and_comes_back_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let local = Store::open(&folder.path().join("archive").to_string_lossy()).unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    for store in [Store::in_memory(), local] {
        for length in [0, 5, PART, PART + 7, 2 * PART] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            std::fs::write(&from, &bytes).unwrap();
            store.put_file("data/file", &from).await.unwrap();
            assert_eq!(store.size("data/file").await.unwrap(), Some(length as u64));
            let checksum = store.download("data/file", &to).await.unwrap();
            assert_eq!(checksum, Some(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes))));
            assert!(std::fs::read(&to).unwrap() == bytes, "{length} bytes");
        }
        assert_eq!(store.size("data/none").await.unwrap(), None);
        assert_eq!(store.download("data/none", &to).await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_upload_whose_last_part_fails_is_given_up_and_tried_again() {
    let (inner, file) = (Arc::new(InMemory::new()), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(&file, vec![7; PART + 7]).unwrap();
    let unreliable = Arc::new(Unreliable::new(inner, &["cut", "cut"]));
    let store = Store::from_object_store(unreliable.clone());
    store.put_file("data/file", file.path()).await.unwrap();
    assert_eq!(store.size("data/file").await.unwrap(), Some(PART as u64 + 7));
    assert_eq!(unreliable.aborted.load(std::sync::atomic::Ordering::SeqCst), 2);
}
