//! The archive over a live S3 API: conditional writes decide, failures are tried again, and the whole path gives the
//! oracle's answers.

use batch_layer::archive::Store;
use batch_layer::archive::compaction::Compaction;
use batch_layer::archive::store::Created;
use local::layers::Layer;
use local::probe::Serving;
use simulator::generate::{Delivery, Generator, Options};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use tidemark_tests::s3::{ARCHIVE, Api, Behaviour};
use tidemark_tests::stack::Stack;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

async fn create(store: &Store, path: &str, text: &'static str) -> Created {
    let ours = move |bytes: &[u8]| bytes == text.as_bytes();
    store.create(path, text.as_bytes().into(), ours).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_of_one_manifest_exactly_one_wins_and_the_other_reads_it() {
    let api = Api::start(Behaviour::default()).await;
    one_of_two_writers_wins(&api.store(), &api.store()).await;
}

async fn one_of_two_writers_wins(left: &Store, right: &Store) {
    for round in 0..40 {
        let path = format!("manifests/events/0/{round:020}.json");
        let (a, b) = tokio::join!(create(left, &path, "left's"), create(right, &path, "right's"));
        let lies = left.get(&path).await.expect("read").expect("written");
        let expected = match &lies[..] {
            b"left's" => (Created::Won, Created::Exists(lies)),
            b"right's" => (Created::Exists(lies), Created::Won),
            other => panic!("{other:?}"),
        };
        assert_eq!((a, b), expected, "round {round}");
    }
    assert_eq!(left.list("manifests/events/0").await.expect("listed").len(), 40);
    let first = right.first("manifests/events/0").await.expect("listed");
    assert_eq!(first.as_deref(), Some("manifests/events/0/00000000000000000000.json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_taken_only_if_it_honours_put_if_absent() {
    let honest = Api::start(Behaviour::default()).await;
    honest.store().probe_put_if_absent().await.expect("a store that honours it");
    assert_eq!(honest.store().list("probe").await.expect("listed").len(), 0, "the probe is gone");

    let careless = Api::start(Behaviour { ignores_conditions: true, ..Behaviour::default() }).await;
    let refused = careless.store().probe_put_if_absent().await.expect_err("refused");
    let said = format!("{refused:#}");
    assert!(said.contains("put-if-absent") && said.contains("conditional writes"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_said_and_no_secret_with_them() {
    let api = Api::start(Behaviour::default()).await;
    let options = api.environment_of("tester", "a wrong one");
    let store = Store::open_with(ARCHIVE, options).expect("opened without a request");
    let refused = store.probe_put_if_absent().await.expect_err("refused");
    let said = format!("{refused:#}");
    assert!(said.contains(ARCHIVE) && said.contains("403"), "{said}");
    assert!(!said.contains("a wrong one"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_or_whose_answer_is_lost_is_tried_again_and_counts_once() {
    let api = Api::start(Behaviour::default()).await;
    let store = api.store();
    for (refusals, lost_answers) in [(2, 0), (0, 1), (1, 2)] {
        api.behaviour.refusals.store(refusals, Ordering::SeqCst);
        api.behaviour.lost_answers.store(lost_answers, Ordering::SeqCst);
        let path = format!("manifests/events/1/{refusals}{lost_answers}.json");
        assert_eq!(
            create(&store, &path, "ours").await,
            Created::Won,
            "{refusals} refused, {lost_answers} lost"
        );
        assert_eq!(create(&store, &path, "theirs").await, Created::Exists("ours".into()));

        api.behaviour.refusals.store(refusals, Ordering::SeqCst);
        api.behaviour.lost_answers.store(lost_answers, Ordering::SeqCst);
        store.put(&format!("data/{refusals}{lost_answers}.parquet"), "rows".into()).await.expect("written");
    }
    api.behaviour.failed_reads.store(2, Ordering::SeqCst);
    assert_eq!(store.get("data/20.parquet").await.expect("read"), Some("rows".into()));
    assert_eq!(store.get("data/none.parquet").await.expect("read"), None);
    assert_eq!(store.list("data").await.expect("listed").len(), 3);
}

fn deliveries() -> Vec<Delivery> {
    let options = Options {
        records: 4_000,
        span: 3_600_000,
        users: 150,
        documents: 80,
        displays: 100,
        geos: 15,
        near_repeats: 0.05,
        disorder: 0.2,
        late: 0.01,
        malformed: 0.01,
        ..Options::default()
    };
    Generator::new(options, 21).collect()
}

/// A stack with its archive elsewhere, and what leads the layers there; after a first run, with a worker and the
/// serving layer.
async fn start(archive: &str, environment: Vec<(String, String)>) -> (Stack, (Layer, Layer, Serving)) {
    let mut stack = Stack::start(LAYERS, 2).await;
    stack.archive = archive.to_owned();
    stack.environment.extend(environment);
    let layers = stack.layers().await;
    (stack, layers)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_path_with_its_archive_in_s3_equals_the_oracle() {
    let api = Api::start(Behaviour::default()).await;
    let (stack, (_speed, _process, serving)) = start(ARCHIVE, api.environment()).await;
    let all = deliveries();
    let (first, second) = all.split_at(all.len() / 2);
    stack.send(first);
    // The store fails now and then while the run archives, and some answers get lost.
    api.behaviour.refusals.store(3, Ordering::SeqCst);
    api.behaviour.lost_answers.store(3, Ordering::SeqCst);
    stack.batch(&["run"]).await;
    assert_eq!(api.behaviour.refusals.load(Ordering::SeqCst), 0, "the store was written to");
    stack.send(second);
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "half in the archive").await;
    stack.batch(&["run"]).await;
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after the run").await;
    let (named, stored) = segments(&api.store()).await;
    assert!(!named.is_empty() && named == stored, "named {named:#?}\nstored {stored:#?}");
    assert!(api.folder().join("archive").is_dir(), "the prefix is kept");
}

/// Every manifest of the archive, by partition and ascending.
async fn manifests(store: &Store) -> Vec<batch_layer::archive::Manifest> {
    let mut found = Vec::new();
    for listed in store.list("manifests").await.expect("listed") {
        let path = listed.location.to_string();
        let bytes = store.get(&path).await.expect("read").expect("listed above");
        found.push(batch_layer::archive::Manifest::from_json(&path, &bytes).expect("a manifest"));
    }
    found.sort_by_key(|manifest| (manifest.topic.clone(), manifest.partition, manifest.from.offset));
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_cut_conflicts_kills_and_listings_that_lag_leave_no_half_of_a_segment() {
    let api = Api::start(Behaviour::default()).await;
    let (stack, (_speed, _process, serving)) = start(ARCHIVE, api.environment()).await;
    let (mut kills, mut most_orphans, mut misbehaved) = (0, 0, 0);
    // Between a segment and its manifest, and before and after others: each is come by in any run that seals an epoch
    // of two partitions.
    let points = ["create.before:2", "put.after:1", "create.after:1", "put.before:2", "create.before:1"];
    let all = deliveries();
    for (round, part) in all.chunks(all.len().div_ceil(points.len())).enumerate() {
        stack.send(part);
        stack.settle().await;
        let point = [("TIDEMARK_FAILPOINT".to_owned(), format!("batch.{}", points[round]))];
        let connections = ["catalog", "kafka", "postgres", "archive"];
        // A run within the epoch of the records leaves that open, and may not come by.
        for _ in 0..6 {
            let run = stack.process_in("batch-layer", &["run"], &connections, &point);
            if run.ended().await == -1 {
                kills += 1;
                break;
            }
        }
        let (named, stored) = segments(&api.store()).await;
        most_orphans = most_orphans.max(stored.difference(&named).count());
        stack.becomes(&serving, &stack.oracle(), &format!("after a kill at {}", points[round])).await;

        for count in [&api.behaviour.cut_uploads, &api.behaviour.conflicts, &api.behaviour.refusals] {
            count.store(2, Ordering::SeqCst);
            misbehaved += 2;
        }
        api.behaviour.lost_answers.store(2, Ordering::SeqCst);
        misbehaved += 2;
        stack.run_past_the_end().await;
        assert_eq!(api.behaviour.left(), 0, "the store has misbehaved");
        stack.settle().await;
        stack.compare(&serving, &stack.oracle(), &format!("round {round}")).await;
        // From the second round on listings don't know of the newest manifests: what they name isn't taken for orphans.
        if api.behaviour.lags.swap(true, Ordering::SeqCst) {
            let before = segments_by_name(&stack, &api.store()).await;
            stack.batch(&["sweep", "--older-than", "0s"]).await;
            assert_eq!(segments_by_name(&stack, &api.store()).await, before, "a sweep removed what is named");
        }
    }
    assert_eq!(kills, points.len());
    assert!(most_orphans > 0, "no kill left an orphan");
    api.behaviour.lags.store(false, Ordering::SeqCst);
    stack.batch(&["sweep", "--older-than", "0s"]).await;
    let (named, stored) = segments(&api.store()).await;
    assert_eq!(named, stored, "orphans are found and removed");
    let manifests = manifests(&api.store()).await;
    for pair in manifests
        .windows(2)
        .filter(|pair| (&pair[0].topic, pair[0].partition) == (&pair[1].topic, pair[1].partition))
    {
        assert_eq!(pair[0].to, pair[1].from, "one chain, without overlap or hole");
        assert!(pair[0].to.epoch > pair[0].from.epoch, "one manifest an epoch: {:?}", pair[0]);
    }
    println!(
        "{kills} kills and {misbehaved} uploads cut, refused, in conflict or without an answer: {} manifests in one chain \
         a partition name {} segments, all whole; {most_orphans} orphans at most at once, 0 after a sweep",
        manifests.len(),
        named.len()
    );
}

/// The segments below the tidemark, as Postgres knows them, each of which must be in the store.
async fn segments_by_name(stack: &Stack, store: &Store) -> BTreeSet<String> {
    let pool = sqlx::PgPool::connect(&stack.database).await.expect("postgres");
    let sql = "select path from tidemark.segment where removed_at is null";
    let paths: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("the segments");
    for path in &paths {
        assert!(store.get(path).await.expect("read").is_some(), "{path} is gone");
    }
    paths.into_iter().collect()
}

/// The Parquet files that manifests and compactions name, each by exactly one and with its length; and those that there
/// are. What a compaction has replaced is kept for longer than these tests take.
async fn segments(store: &Store) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut named = BTreeSet::new();
    for segment in manifests(store).await.into_iter().flat_map(|manifest| manifest.segments) {
        let found = store.get(&segment.path).await.expect("read").expect("its segment is there");
        assert_eq!(found.len() as u64, segment.bytes, "{}", segment.path);
        assert!(named.insert(segment.path.clone()), "{} is named twice", segment.path);
    }
    for listed in store.list("compactions").await.expect("listed") {
        let path = listed.location.to_string();
        let bytes = store.get(&path).await.expect("read").expect("listed above");
        let file = Compaction::from_json(&path, &bytes).expect("a compaction").file;
        assert_eq!(store.size(&file.path).await.expect("looked for"), Some(file.bytes), "{}", file.path);
        assert!(named.insert(file.path.clone()), "{} is named twice", file.path);
    }
    let stored = store.list("data").await.expect("listed");
    (named, stored.into_iter().map(|meta| meta.location.to_string()).collect())
}

/// Any store, as the layers take it: `TIDEMARK_ARCHIVE`, and `AWS_*`, `GOOGLE_*` or `AZURE_*`. What it writes, below a
/// folder of its own, stays.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an object store, by TIDEMARK_ARCHIVE and its credentials"]
async fn a_store_given_by_url_holds_the_whole_path_with_two_archivers_at_once() {
    let given = std::env::var("TIDEMARK_ARCHIVE").expect("TIDEMARK_ARCHIVE");
    let url = format!("{}/{:016x}", given.trim_end_matches('/'), rand::random::<u64>());
    let open = |folder: &str| Store::open(&format!("{url}/{folder}")).expect("a store");
    open("probe").probe_put_if_absent().await.expect("put-if-absent is honoured");
    one_of_two_writers_wins(&open("writers"), &open("writers")).await;

    let (stack, (_speed, _process, serving)) = start(&format!("{url}/archive"), Vec::new()).await;
    let mut lost = 0;
    for part in deliveries().chunks(1_500) {
        stack.send(part);
        let archivers = [(); 2].map(|()| stack.batch_process(&["archive"]));
        for archiver in &archivers {
            assert_eq!(archiver.ended().await, 0, "{}", archiver.logged());
        }
        // They share a log; that of the first is both's.
        lost += archivers[0].logged().matches("another archiver has sealed this already").count();
        stack.settle().await;
        stack.compare(&serving, &stack.oracle(), "archived, not yet run").await;
        stack.batch(&["run"]).await;
    }
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after the run").await;
    let (named, stored) = segments(&open("archive")).await;
    assert!(!named.is_empty() && named.is_subset(&stored), "named {named:#?}\nstored {stored:#?}");
    println!("{given}: {} segments, {lost} of the seals were lost to the other archiver", named.len());
}
