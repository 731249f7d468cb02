//! How fast files are prepared and replayed: beside DuckDB on the same lines within the same memory, and a bare producer
//! of the same records.
//!
//! `cargo bench --workspace --bench simulator -- --help`. DuckDB is a Python package (`--python`). A run that loses or adds a row fails
//! the bench.

mod figures;
mod machine;
mod process;
mod watched;

use anyhow::{Context as _, ensure};
use clap::Parser;
use figures::Figures;
use local::layers::Layer;
use local::servers::{Kafka, KafkaOptions};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use shared_model::catalog::OUTBRAIN;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tidemark_tests::simulator::{Simulator, number};
use tidemark_tests::stack;
use watched::{Took, watched};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// The partitions of a topic.
const PARTITIONS: i32 = 4;
/// Sorts and partitions as `prepare` does.
const DUCKDB: &str = "
import duckdb, sys, time
source, out, memory = sys.argv[1:]
connection = duckdb.connect()
connection.execute(f\"set memory_limit = '{memory}'\")
connection.execute(f\"set temp_directory = '{out}.temp'\")
connection.execute('set enable_progress_bar = false')
begun = time.time()
connection.execute(f\"\"\"
    copy (select *, (timestamp + 1465876799998) // 86400000 as day from read_csv('{source}', nullstr = '\\\\N') order by timestamp)
    to '{out}' (format parquet, compression zstd, partition_by (platform, day), overwrite_or_ignore)
\"\"\")
print(time.time() - begun)
";

/// Measures `simulator prepare` and `simulator replay --speed max`.
#[derive(Parser)]
struct Args {
    /// Lines of CSV.
    #[arg(long, default_value_t = 10_000_000)]
    lines: u64,
    /// Measured runs.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The memory within which they are prepared.
    #[arg(long, default_value = "512MB")]
    memory: String,
    /// The seed of the records.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// A Python that has the package duckdb.
    #[arg(long, default_value = "python3")]
    python: String,
    /// The program that is run as the simulator, to compare with another build.
    #[arg(long, default_value = LAYERS)]
    layers: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folder = local::servers::scratch()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let simulator = Simulator::new(&args.layers, folder.path(), Vec::new());
    println!("{}", machine::described().await);
    println!(
        "{} lines (seed {}), {}; median (min to max) of {}",
        args.lines, args.seed, args.memory, args.runs
    );
    let (lines, seed) = (args.lines.to_string(), args.seed.to_string());
    let generate =
        ["generate", "--records", &lines, "--seed", &seed, "--malformed", "0", "--out", &path("csv")];
    simulator.run(&generate).await;
    let csv = path("csv/page_views.csv");
    let bytes = std::fs::metadata(&csv)?.len() as f64;
    let kafka = KafkaOptions { heap_mb: 1_024, quick: false, ..KafkaOptions::default() };
    let kafka = Kafka::start(&stack::found().await, &folder.path().join("kafka"), kafka).await?;
    kafka.create_topic("bare", PARTITIONS, &[]).await?;
    let mut figures = Figures::default();
    for run in 0..args.runs {
        let prepare = ["prepare", &csv, "--out", &path("out"), "--memory", &args.memory];
        let (preparing, prepared) = timed(simulator.start(&prepare)).await?;
        let (rows, read) = (number(&prepared.said, "rows"), number(&prepared.said, "lines"));
        ensure!(rows == read, "{read} lines, {rows} rows");
        let duckdb = duckdb(&args, &csv, Path::new(&path("duckdb")))?;
        let (replaying, replayed) =
            replay(&simulator, &kafka, &path(&format!("catalog-{run}.toml")), &path("out"), run).await?;
        let values = values(&kafka, &topic(run))?;
        ensure!(values.len() as f64 == rows, "{} records of {rows} rows", values.len());
        let bare = produce(&kafka, &values)?;
        println!(
            "  run {}: {rows} lines ({:.0} MB) prepared in {:.1} s ({:.1} CPU-s), DuckDB {duckdb:.1} s; replayed in {:.1} s, \
             bare producer {bare:.1} s",
            run + 1,
            bytes / 1e6,
            preparing,
            prepared.cpu,
            replaying
        );
        figures.add("prepare, lines/s", rows / preparing, 0);
        figures.add("prepare, peak memory, MB", prepared.peak, 0);
        figures.add("prepare / DuckDB within the same memory, speed", duckdb / preparing, 2);
        figures.add("replay, records/s", rows / replaying, 0);
        figures.add("replay, peak memory, MB", replayed.peak, 0);
        figures.add("replay, records per CPU-second", rows / replayed.cpu, 0);
        figures.add("bare producer, records/s", rows / bare, 0);
        figures.add("replay / bare producer, speed", bare / replaying, 2);
    }
    figures.print();
    Ok(())
}

/// The seconds until a process has ended, and what else it took.
async fn timed(process: Layer) -> anyhow::Result<(f64, Took)> {
    let begun = Instant::now();
    let took = watched(process).await?;
    Ok((begun.elapsed().as_secs_f64(), took))
}

/// The seconds that DuckDB takes, started and imported.
fn duckdb(args: &Args, csv: &str, out: &Path) -> anyhow::Result<f64> {
    let out = out.display().to_string();
    let done = Command::new(&args.python).args(["-c", DUCKDB, csv, &out, &args.memory]).output();
    let done = done.with_context(|| format!("{} can't be started (--python)", args.python))?;
    ensure!(
        done.status.success(),
        "it needs a Python with the package duckdb (--python):\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(String::from_utf8_lossy(&done.stdout).trim().parse()?)
}

fn topic(run: usize) -> String {
    format!("run{run}.page_views")
}

async fn replay(
    simulator: &Simulator,
    kafka: &Kafka,
    catalog: &str,
    prepared: &str,
    run: usize,
) -> anyhow::Result<(f64, Took)> {
    std::fs::write(catalog, OUTBRAIN.replace("\ntopic = \"", &format!("\ntopic = \"run{run}.")))?;
    let (bootstrap, partitions) = (kafka.bootstrap(), PARTITIONS.to_string());
    let command =
        ["replay", prepared, "--catalog", catalog, "--kafka", &bootstrap, "--create-topics", &partitions];
    timed(simulator.start(&[&command[..], &["--speed", "max"]].concat())).await
}

/// All values of a topic, with their partitions.
fn values(kafka: &Kafka, topic: &str) -> anyhow::Result<Vec<(i32, Vec<u8>)>> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "bench")
        // A commit's event would end a poll with nothing.
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    let (mut values, mut ended) = (Vec::new(), 0);
    while ended < PARTITIONS {
        match consumer.poll(Duration::from_secs(30)).context("the broker is silent")? {
            Ok(message) => values.push((message.partition(), message.payload().unwrap_or_default().to_vec())),
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(values)
}

/// The seconds that a producer takes that does nothing else.
fn produce(kafka: &Kafka, values: &[(i32, Vec<u8>)]) -> anyhow::Result<f64> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("queue.buffering.max.messages", "1000000")
        .create()?;
    let begun = Instant::now();
    for (partition, value) in values {
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to("bare").partition(*partition).payload(value);
        while let Err((error, back)) = producer.send(record) {
            ensure!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
            producer.poll(Duration::from_millis(20));
            record = back;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(begun.elapsed().as_secs_f64())
}
