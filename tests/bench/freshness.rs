//! How soon an answer holds a record: from the moment at which the broker appended it.
//!
//! `cargo bench --workspace --bench freshness -- --help`. Servers are real. A steady stream of records comes while records
//! of users of their own are sent now and then, each asked for until an answer counts it.

mod events;
mod figures;
mod log;
mod machine;
mod peer;
mod process;

use anyhow::{Context as _, ensure};
use clap::Parser;
use events::Records;
use figures::Figures;
use local::probe::Serving;
use process::{cpu, peak_memory};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tidemark_tests::stack::Stack;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// The event time at which the records begin: 2016-06-14T04:02:00Z.
const START: i64 = 1_465_876_920_000;
/// So many records that are asked for are under way at once.
const ASKERS: u64 = 4;

/// Measures how soon a record shows in an answer, while others come at a steady rate.
#[derive(Parser)]
struct Args {
    /// Records a second.
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// How long a run lasts.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Measured runs.
    #[arg(long, default_value_t = 5)]
    runs: u64,
    /// Partitions of the log.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// The seed of the records.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The program that is run as the layers, to compare with another build.
    #[arg(long, default_value = LAYERS)]
    layers: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("{}", machine::described().await);
    println!(
        "{} records/s for {} s (seed {}), {} partitions; median (min to max) of {} runs",
        args.rate, args.seconds, args.seed, args.partitions, args.runs
    );
    let stack = peer::started(&args.layers, &peer::USUAL.catalog(), args.partitions).await?;
    let worker = ["run", "--listen", "127.0.0.1:0"];
    let worker = stack.process("speed-layer", &worker, &["catalog", "kafka", "redis", "postgres"]);
    let (_process, serving) = stack.serving().await;
    let serving = Arc::new(serving);
    let mut figures = Figures::default();
    for number in 0..args.runs {
        let before = cpu([worker.pid()])?;
        let mut delays = run(&stack, &serving, &args, number).await?;
        let taken = (cpu([worker.pid()])? - before) / args.seconds as f64;
        delays.sort_unstable();
        let at = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize] as f64;
        println!(
            "  run {}: {} records asked for, p50 {} ms, p99 {} ms, worst {} ms; worker {taken:.2} CPU-s a second",
            number + 1,
            delays.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
        figures.add("p50, ms", at(0.5), 0);
        figures.add("p99, ms", at(0.99), 0);
        figures.add("worker's CPU-s a second", taken, 2);
    }
    println!("worker's peak memory: {:.0} MB", peak_memory(worker.pid())?);
    figures.print();
    Ok(())
}

/// The milliseconds from append to answer of the records that were asked for.
async fn run(stack: &Stack, serving: &Arc<Serving>, args: &Args, number: u64) -> anyhow::Result<Vec<i64>> {
    let length = (args.seconds * 1_000) as i64;
    let records = Records {
        count: args.rate * args.seconds,
        start: START + number as i64 * length,
        length,
        partitions: args.partitions as u64,
        keys: 1,
        seed: args.seed + number,
    };
    let (bootstrap, rate, begun) = (stack.kafka.bootstrap(), args.rate, Instant::now());
    let over = Arc::new(AtomicBool::new(false));
    let stream = tokio::task::spawn_blocking({
        let over = over.clone();
        move || {
            let (mut sent, mut late) = (0, Duration::ZERO);
            let written = log::send(&bootstrap, "events", records, |_| {
                sent += 1;
                if sent % (rate / 200).max(1) == 0 {
                    let due = Duration::from_secs_f64(sent as f64 / rate as f64);
                    match due.checked_sub(begun.elapsed()) {
                        Some(early) => std::thread::sleep(early),
                        None => late = late.max(begun.elapsed() - due),
                    }
                }
            });
            over.store(true, Ordering::Relaxed);
            written.map(|_| late)
        }
    });
    let mut askers = tokio::task::JoinSet::new();
    for asker in 0..ASKERS {
        let (serving, over, bootstrap) = (serving.clone(), over.clone(), stack.kafka.bootstrap());
        askers.spawn(async move {
            let producer: FutureProducer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).set("linger.ms", "0").create()?;
            let mut delays = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let uuid = format!("asked-{number}-{asker}-{}", delays.len());
                let time = START + number as i64 * length + begun.elapsed().as_millis() as i64;
                delays.push(seen(&serving, &producer, &uuid, time).await?);
            }
            anyhow::Ok(delays)
        });
    }
    let mut delays = Vec::new();
    while let Some(asked) = askers.join_next().await {
        delays.extend(asked??);
    }
    let late = stream.await??;
    ensure!(
        late < Duration::from_secs(5),
        "the generator fell {late:?} behind: it can't send so many records a second"
    );
    Ok(delays)
}

/// Sends a view of a user and asks until an answer counts it; gives the milliseconds from its append.
async fn seen(serving: &Serving, producer: &FutureProducer, uuid: &str, time: i64) -> anyhow::Result<i64> {
    let record = format!(
        r#"{{"event_type":"view","uuid":"{uuid}","document_id":1,"display_id":1,"ad_id":1,"platform":1,"geo":"US","ts":{time}}}"#
    );
    let sent =
        producer.send(FutureRecord::to("events").key(uuid).payload(&record), Duration::from_secs(10)).await;
    let appended = sent.map_err(|(error, _)| error)?.timestamp.to_millis().context("no append time")?;
    let begun = Instant::now();
    loop {
        let answer = serving.live("user_view_cnt", &[("uuid", uuid.to_owned())]).await?;
        if answer["value"] == 1 {
            return Ok(now() - appended);
        }
        ensure!(begun.elapsed() < Duration::from_secs(30), "{uuid} doesn't show: {answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The clock of the machine, which the broker stamps by too.
#[allow(clippy::disallowed_methods)]
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
