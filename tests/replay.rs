//! Replays into a real Kafka, as a user runs them: what was chosen, once each, in event-time order over all streams, at
//! its pace; from files, from an object store, over a broker's death, and until told to stop.

use local::layers::Layer;
use local::servers::{Kafka, KafkaOptions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use shared_model::catalog::OUTBRAIN;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tidemark_tests::s3::{Api, BUCKET, Behaviour};
use tidemark_tests::simulator::{Simulator, number, says, the_error};
use tidemark_tests::{now, stack, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// Outbrain's clock begins here.
const ZERO: i64 = 1_465_876_799_998;
const DAY: i64 = 86_400_000;

/// A line of CSV: what a replay is to send of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    time: i64,
    stream: String,
    json: String,
}

/// A record of the log.
#[derive(Debug, Clone)]
struct Sent {
    row: Row,
    partition: i32,
    key: String,
    produced: i64,
}

/// The rows of generated CSV, read naively; it has no quotes.
fn rows(folder: &Path, wanted: impl Fn(i64, Option<&str>) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for stream in ["page_views", "events"] {
        let text = std::fs::read_to_string(folder.join(format!("{stream}.csv"))).expect("generated");
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().expect("a header").split(',').collect();
        for line in lines {
            let cells: BTreeMap<&str, &str> = names.iter().copied().zip(line.split(',')).collect();
            let value = |(name, cell): (&&str, &&str)| match (*name, *cell) {
                (_, "\\N") => Value::Null,
                ("uuid" | "geo_location", text) => text.into(),
                (_, number) => number.parse::<i64>().expect("a number").into(),
            };
            let object: BTreeMap<&str, Value> = cells.iter().map(|cell| (*cell.0, value(cell))).collect();
            let time = ZERO + object["timestamp"].as_i64().expect("a time");
            if wanted(time, Some(cells["platform"]).filter(|platform| *platform != "\\N")) {
                rows.push(Row { time, stream: stream.to_owned(), json: json!(object).to_string() });
            }
        }
    }
    rows.sort();
    assert!(!rows.is_empty());
    rows
}

/// A broker, and a folder of generated CSV.
struct World {
    kafka: Kafka,
    simulator: Simulator,
    folder: tempfile::TempDir,
}

impl World {
    async fn start(records: u64, span: &str, environment: Vec<(String, String)>) -> World {
        let found = stack::found().await;
        let folder = local::servers::scratch().expect("a folder");
        let kafka = Kafka::start(&found, &folder.path().join("kafka"), KafkaOptions::default()).await;
        let world = World {
            kafka: kafka.expect("kafka"),
            simulator: Simulator::new(LAYERS, folder.path(), environment),
            folder,
        };
        let records = records.to_string();
        let (csv, platforms) =
            (world.path("csv"), ["--nulls", "0.05", "--disorder", "0.3", "--malformed", "0"]);
        let command = ["generate", "--records", &records, "--span", span, "--out", &csv, "--late", "0"];
        let said = world.simulator.run(&[&command[..], &platforms].concat()).await;
        assert!(number(&said, "events") > 10.0, "{said}");
        world
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A catalog whose topics begin with a name of one's own.
    fn catalog(&self, name: &str) -> String {
        let path = self.path(&format!("{name}.toml"));
        std::fs::write(&path, OUTBRAIN.replace("\ntopic = \"", &format!("\ntopic = \"{name}.")))
            .expect("written");
        path
    }

    /// The command that replays `input` into topics of that name, with so many partitions each.
    fn replay(&self, name: &str, partitions: &str, input: &str, more: &[&str]) -> Vec<String> {
        let (catalog, kafka) = (self.catalog(name), self.kafka.bootstrap());
        let all = ["replay", input, "--catalog", &catalog, "--kafka", &kafka, "--create-topics", partitions];
        all.iter().chain(more).map(|part| (*part).to_owned()).collect()
    }

    async fn run(&self, command: Vec<String>) -> String {
        self.simulator.run(&command.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    fn begin(&self, command: &[String]) -> Layer {
        self.simulator.start(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn consumer(&self) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.kafka.bootstrap()).set("group.id", "tests");
        config
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "20")
            .create()
            .expect("a consumer")
    }

    /// How many records the topics of that name hold; none where they aren't there yet.
    fn stored(&self, name: &str) -> i64 {
        let consumer = self.consumer();
        let end = |stream: &str| {
            let ends = consumer.fetch_watermarks(&format!("{name}.{stream}"), 0, Duration::from_secs(10));
            ends.map_or(0, |(_, end)| end)
        };
        end("page_views") + end("events")
    }

    /// All records of the topics of that name, each partition's in its order.
    fn log(&self, name: &str, partitions: i32) -> Vec<Sent> {
        let mut sent = Vec::new();
        for stream in ["page_views", "events"] {
            for partition in 0..partitions {
                let (consumer, mut list) = (self.consumer(), TopicPartitionList::new());
                let topic = format!("{name}.{stream}");
                consumer.fetch_metadata(Some(&topic), Duration::from_secs(10)).expect("metadata");
                list.add_partition_offset(&topic, partition, Offset::Beginning).expect("a partition");
                consumer.assign(&list).expect("assigned");
                loop {
                    match consumer.poll(Duration::from_secs(30)).unwrap_or_else(|| {
                        panic!("{topic}/{partition}: nothing after {} records", sent.len())
                    }) {
                        Ok(message) => sent.push(read(stream, &message)),
                        Err(rdkafka::error::KafkaError::PartitionEOF(_)) => break,
                        Err(error) => panic!("{topic}: {error}"),
                    }
                }
            }
        }
        sent
    }
}

fn read(stream: &str, message: &impl Message) -> Sent {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.expect("bytes").to_vec()).expect("text");
    let value: BTreeMap<String, Value> =
        serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
    let headers = message.headers().expect("headers");
    let produced = headers.iter().find(|header| header.key == "act_prod_time").expect("act_prod_time");
    Sent {
        row: Row {
            time: ZERO + value["timestamp"].as_i64().expect("a time"),
            stream: stream.to_owned(),
            json: json!(value).to_string(),
        },
        partition: message.partition(),
        key: text(message.key()),
        produced: text(produced.value).parse().expect("ms"),
    }
}

/// Every row once, each keyed by its user and stamped, in event-time order in every partition and, by the stamps,
/// across the streams.
fn check(sent: &[Sent], expected: &[Row]) {
    let mut found: Vec<Row> = sent.iter().map(|sent| sent.row.clone()).collect();
    found.sort();
    let missing = || expected.iter().find(|row| !found.contains(row));
    assert!(found == expected, "{} of {} rows; missing: {:?}", found.len(), expected.len(), missing());
    let mut partition_of = BTreeMap::new();
    for record in sent {
        let value: Value = serde_json::from_str(&record.row.json).expect("JSON");
        assert_eq!(value["uuid"], json!(record.key));
        let place = (&record.row.stream, &record.key);
        assert_eq!(*partition_of.entry(place).or_insert(record.partition), record.partition, "{place:?}");
    }
    for (before, after) in sent.iter().zip(&sent[1..]) {
        let same = (&before.row.stream, before.partition) == (&after.row.stream, after.partition);
        assert!(!same || before.row.time <= after.row.time, "{before:?}\n{after:?}");
    }
    let mut all: Vec<&Sent> = sent.iter().collect();
    all.sort_by_key(|sent| (sent.row.time, sent.produced));
    for (before, after) in all.iter().zip(&all[1..]) {
        let same_time = before.row.time == after.row.time;
        assert!(same_time || before.produced <= after.produced, "{before:?}\n{after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_chosen_is_sent_in_order_at_its_pace_and_again_and_again() {
    let world = World::start(3_000, "2d", Vec::new()).await;
    let (csv, prepared) = (world.path("csv"), world.path("prepared"));
    let csv_folder = world.folder.path().join("csv");
    world.simulator.run(&["prepare", &csv, "--out", &prepared, "--memory", "64MB"]).await;
    let all = rows(&csv_folder, |_, _| true);

    // Two days in some seconds: slow enough that the stamps show the order across streams.
    let times = 2.0 * 86_400.0 / 3.0;
    let before = now();
    let said = world.run(world.replay("paced", "3", &prepared, &["--speed", &format!("{times}x")])).await;
    let took = now() - before;
    let sent = world.log("paced", 3);
    check(&sent, &all);
    let first = sent.iter().map(|sent| sent.produced).min().expect("records");
    assert!(before <= first && sent.iter().all(|sent| sent.produced <= before + took));
    for record in &sent {
        let due = first + ((record.row.time - all[0].time) as f64 / times) as i64;
        // The first one's stamp may be some ms late.
        assert!(record.produced >= due - 200, "{record:?} was sent {} ms early", due - record.produced);
    }
    assert_eq!(number(&said, "records"), all.len() as f64, "{said}");
    assert_eq!(number(&said, "acknowledged"), all.len() as f64, "{said}");
    let (seconds, rate) = (number(&said, "seconds"), number(&said, "per_second"));
    assert!(seconds >= 2.9 && (rate - all.len() as f64 / seconds).abs() <= 1.0, "{said}");

    // Platforms, NULL among them, and a span; from Parquet and from CSV.
    let middle = 1_465_876_800_000 + DAY / 2;
    let chosen = rows(&csv_folder, |time, platform| {
        (middle..middle + DAY).contains(&time) && matches!(platform, None | Some("2"))
    });
    assert!(chosen.len() > 100 && chosen.len() < all.len() / 2, "{} rows", chosen.len());
    let span = ["--start", "2016-06-14T16:00:00Z", "--end", "2016-06-15T16:00:00Z"];
    let choice = [&["--platform", "2,\\N"][..], &span].concat();
    for (name, input) in [("chosen", &prepared), ("chosen-csv", &csv)] {
        world.run(world.replay(name, "2", input, &choice)).await;
        check(&world.log(name, 2), &chosen);
    }

    // One file; and a loop: every round is the same but for its stamps.
    let file = format!("{csv}/events.csv");
    let clicks: Vec<Row> = all.iter().filter(|row| row.stream == "events").cloned().collect();
    let command = world.replay("again", "1", &file, &["--loop", "--rate", "4000"]);
    // A topic for the stream that isn't there, for whoever counts records.
    world.kafka.create_topic("again.page_views", 1, &[]).await.expect("a topic");
    let process = world.begin(&command);
    wait_for("three rounds", async || match world.stored("again") {
        stored if stored > 3 * clicks.len() as i64 => Ok(()),
        stored => Err(format!("{stored} records; {}", process.logged())),
    })
    .await;
    process.signal_stop();
    assert_eq!(process.ended().await, 0, "{}", process.logged());
    let sent = world.log("again", 1);
    let said = process.logged();
    assert_eq!(number(&said, "acknowledged"), sent.len() as f64, "{said}");
    assert!(said.contains("stopped=true"), "{said}");
    let rounds: Vec<&[Sent]> = sent.chunks(clicks.len()).collect();
    let json = |round: &[Sent]| round.iter().map(|sent| sent.row.json.clone()).collect::<Vec<_>>();
    for round in &rounds {
        assert_eq!(json(round), json(&rounds[0][..round.len()]));
    }
    check(rounds[2], &clicks);
    assert!(sent.is_sorted_by_key(|sent| sent.produced));

    // What can't be replayed is said in a line.
    let catalog = world.catalog("missing");
    let kafka = world.kafka.bootstrap();
    let fails = async |input: &str, kafka: &str, part: &str| {
        let error = world.simulator.fails(&["replay", input, "--catalog", &catalog, "--kafka", kafka]).await;
        assert!(error.contains(part), "{error}");
    };
    fails(&prepared, &kafka, "give --create-topics PARTITIONS").await;
    fails(&world.path("nowhere"), &kafka, "is not there").await;
    fails(&prepared, "127.0.0.1:1", "no answer from kafka at 127.0.0.1:1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_is_waited_for_and_one_that_stays_away_is_an_error() {
    let mut world = World::start(6_000, "1d", Vec::new()).await;
    let csv = world.path("csv");
    let all = rows(&world.folder.path().join("csv"), |_, _| true);
    let midway = async |world: &World, name: &str, more: &[&str]| {
        let command = world.replay(name, "1", &csv, &[&["--rate", "1500"][..], more].concat());
        let process = world.begin(&command);
        wait_for("a part of the records", async || match world.stored(name) {
            stored if stored > 200 => Ok(()),
            stored => {
                assert_eq!(process.exited(), None, "{}", process.logged());
                Err(format!("{stored} records"))
            }
        })
        .await;
        process
    };
    let alone = "no broker of kafka answers";

    let process = midway(&world, "killed", &[]).await;
    world.kafka.kill();
    says(&process, alone).await;
    world.kafka.restart().await.expect("restarted");
    assert_eq!(process.ended().await, 0, "{}", process.logged());
    check(&world.log("killed", 1), &all);

    // Told to stop while nobody answers: it ends, and says that it couldn't know.
    let process = midway(&world, "stopped", &[]).await;
    world.kafka.kill();
    says(&process, alone).await;
    process.signal_stop();
    let error = the_error(process.ended().await, &process.logged());
    assert!(error.contains("records were still not acknowledged after"), "{error}");

    world.kafka.restart().await.expect("restarted");
    let short = ["--kafka-property", "message.timeout.ms=2000"];
    let process = midway(&world, "gone", &short).await;
    world.kafka.kill();
    let error = the_error(process.ended().await, &process.logged());
    assert!(error.contains("records were not stored; the first: gone."), "{error}");
}

fn gzip(path: &Path) -> Vec<u8> {
    let mut encoder =
        flate2::read::GzEncoder::new(std::fs::File::open(path).expect("generated"), Default::default());
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut encoder, &mut bytes).expect("compressed");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn from_csv_in_s3_to_parquet_in_s3_to_kafka_every_row_comes_once_in_order() {
    let api = Api::start(Behaviour::default()).await;
    let world = World::start(4_000, "2d", api.environment()).await;
    let all = rows(&world.folder.path().join("csv"), |_, _| true);
    let raw = api.folder().join("raw");
    std::fs::create_dir(&raw).expect("a folder");
    std::fs::write(raw.join("page_views.csv.gz"), gzip(&world.folder.path().join("csv/page_views.csv")))
        .expect("written");
    // A line that no record may be as long as makes the rejects an upload of several parts.
    let mut events = std::fs::read(world.folder.path().join("csv/events.csv")).expect("generated");
    events.extend(std::iter::repeat_n(b'x', 12_000_000));
    std::fs::write(raw.join("events.csv"), events).expect("written");

    let temporary = world.path("temporary");
    std::fs::create_dir(&temporary).expect("a folder");
    let (input, out) = (format!("s3://{BUCKET}/raw"), format!("s3://{BUCKET}/prepared"));
    let old = api.folder().join("prepared/events/event_date=1999-01-01/part-0.parquet");
    std::fs::create_dir_all(old.parent().expect("a folder")).expect("a folder");
    std::fs::write(&old, "of an earlier catalog").expect("written");
    api.behaviour.failed_reads.store(3, std::sync::atomic::Ordering::SeqCst);
    let command = ["prepare", &input, "--out", &out, "--memory", "256MB", "--temp-dir", &temporary];
    let said = world.simulator.run(&command).await;
    assert!(said.contains("rejects=1"), "{said}");
    assert_eq!(std::fs::read_dir(&temporary).expect("a folder").count(), 0, "temporary files are left");
    assert!(!old.exists() && !api.folder().join("prepared/events/_preparing").exists());
    let rejects = std::fs::metadata(api.folder().join("prepared/events/rejects.csv")).expect("rejects");
    assert!(rejects.len() > 12_000_000, "{} bytes", rejects.len());

    let speed = (2.0 * 86_400.0 / 2.0).to_string();
    let command = world.replay("s3", "2", &out, &["--speed", &speed, "--temp-dir", &temporary]);
    let said = world.run(command).await;
    assert_eq!(number(&said, "acknowledged"), all.len() as f64, "{said}");
    check(&world.log("s3", 2), &all);

    // A single object; and one that isn't there.
    let file = format!("{out}/events/platform=1/event_date=2016-06-14/part-0.parquet");
    let chosen = rows(&world.folder.path().join("csv"), |time, platform| {
        platform == Some("1") && time < 1_465_862_400_000 + DAY
    });
    let chosen: Vec<Row> = chosen.into_iter().filter(|row| row.stream == "events").collect();
    world.kafka.create_topic("file.page_views", 1, &[]).await.expect("a topic");
    world.run(world.replay("file", "1", &file, &[])).await;
    check(&world.log("file", 1), &chosen);
    let kafka = world.kafka.bootstrap();
    for missing in [format!("{out}/events/no.parquet"), format!("events=s3://{BUCKET}/nothing")] {
        let error =
            world.simulator.fails(&["replay", &missing, "--kafka", &kafka, "--create-topics", "1"]).await;
        assert!(error.contains("cannot read s3://"), "{error}");
    }
}
