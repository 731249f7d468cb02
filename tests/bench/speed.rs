//! How fast the speed layer catches up, on the peer's records and metrics, and what it costs.
//!
//! `cargo bench --workspace --bench speed -- --help`. Servers are real; every run's answers are held against a naive fold of the
//! records, and a run that differs fails the bench.

mod answers;
mod events;
mod figures;
mod log;
mod plain;
mod process;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use events::Records;
use figures::Figures;
use local::layers::Layer;
use local::servers::KafkaOptions;
use plain::Window;
use process::{cpu, machine, peak_memory};
use std::time::{Duration, Instant};
use tidemark_tests::stack::{Servers, Stack};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const CATALOG: &str = include_str!("peer.toml");
const MB: f64 = 1_048_576.0;
const HOUR: i64 = 3_600_000;
/// The event time at which the hour of records begins: 2016-06-14T04:02:00Z.
const START: i64 = 1_465_876_920_000;

/// Measures how fast the speed layer catches up with a log that is there already.
#[derive(Parser)]
struct Args {
    /// Records in the log.
    #[arg(long, default_value_t = 10_000_000)]
    records: u64,
    /// Partitions of the log.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Measured runs of each mode.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Workers that share the partitions.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// What is measured; all of them where none is named.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// The seed of the records.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The width of a pane, which is the slide of the windows.
    #[arg(long, default_value = "10s")]
    pane: String,
    /// Further arguments of the worker, separated by spaces.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    worker: String,
    /// The program that is run as the layers, to compare with another build.
    #[arg(long, default_value = LAYERS)]
    layers: String,
    /// A command that runs beside each measured run, with the first worker's process id as its last argument (a
    /// profiler).
    #[arg(long)]
    beside: Option<String>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Cells packed in groups, finished when read; repeats aren't looked for.
    Packed,
    /// The same, and repeats are left out.
    PackedDedup,
    /// Finished values are published as plain keys at every pane; repeats aren't looked for.
    Plain,
    /// The same, and repeats are left out.
    PlainDedup,
}

impl Mode {
    fn catalog(self, pane: &str) -> String {
        let dedup = matches!(self, Mode::PackedDedup | Mode::PlainDedup);
        let identity = r#"["uuid", "document_id", "display_id", "ad_id", "ts"]"#;
        CATALOG
            .replace("IDENTITY", if dedup { identity } else { "[]" })
            .replace("PUBLISH", if self.is_plain() { "true" } else { "false" })
            .replace("pane = \"10s\"", &format!("pane = \"{pane}\""))
    }

    fn is_plain(self) -> bool {
        matches!(self, Mode::Plain | Mode::PlainDedup)
    }

    fn name(self) -> String {
        self.to_possible_value().expect("no mode is hidden").get_name().to_owned()
    }
}

/// What one run took.
struct Run {
    seconds: f64,
    /// CPU-seconds of the workers, Redis and Kafka.
    cpu: [f64; 3],
    /// The workers' most memory, in MB.
    peak: f64,
    /// The data in Redis at the end, in MB.
    dataset: f64,
    /// Plain keys written or deleted.
    writes: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let modes = if args.mode.is_empty() { Mode::value_variants().to_vec() } else { args.mode.clone() };
    println!("{}", machine());
    println!(
        "{} records (seed {}), {} partitions, {} workers, {} runs a mode; median (min to max)",
        args.records, args.seed, args.partitions, args.workers, args.runs
    );
    for mode in modes {
        measure(&args, mode).await.with_context(|| mode.name())?;
    }
    Ok(())
}

async fn measure(args: &Args, mode: Mode) -> anyhow::Result<()> {
    // A broker as it is run for real, not one that is there quickly.
    let kafka = KafkaOptions { heap_mb: 1_024, quick: false, ..KafkaOptions::default() };
    let servers = Servers { kafka, ..Servers::default() };
    let stack = Stack::without_topics(&args.layers, &mode.catalog(&args.pane), servers).await;
    stack.kafka.create_topic("events", args.partitions, &[]).await?;
    stack.batch(&["run"]).await;
    let bootstrap = stack.kafka.bootstrap();
    let (count, partitions, seed) = (args.records, args.partitions as u64, args.seed);
    let records = Records { count, start: START, length: HOUR, partitions, keys: 1, seed };
    let begun = Instant::now();
    let sent = tokio::task::spawn_blocking(move || {
        let mut window = Window::new(START + HOUR);
        let totals = log::send(&bootstrap, records, |record| window.see(record))?;
        anyhow::Ok((totals, window))
    });
    let (totals, window) = sent.await??;
    println!("{}: log written in {:.0?}", mode.name(), begun.elapsed());
    let idle = stack.redis.dataset().await as f64;
    let mut runs = Vec::new();
    for number in 0..args.runs {
        let mut run = catch_up(&stack, args, mode, &window).await?;
        run.dataset -= idle / MB;
        println!("  run {}: {:.1} s", number + 1, run.seconds);
        runs.push(run);
        answers::check(&stack, &totals, None).await?;
    }
    report(args, mode, &runs);
    Ok(())
}

/// Empties Redis, starts the workers, and waits until all that the log holds is stored, and published.
async fn catch_up(stack: &Stack, args: &Args, mode: Mode, window: &Window) -> anyhow::Result<Run> {
    stack.redis.empty().await;
    let ends = stack.probe.ends()?;
    let kafka = stack.kafka.pid().context("kafka has ended")? as i32;
    let before = [cpu(stack.redis.pids())?, cpu([kafka])?];
    let mut command = vec!["run", "--listen", "127.0.0.1:0"];
    command.extend(mode.is_plain().then_some("--publish-panes"));
    command.extend(args.worker.split_whitespace());
    let begun = Instant::now();
    let start = |number: usize| {
        let connections = ["catalog", "kafka", "redis", "postgres"];
        stack.process_named("speed-layer", &format!("speed-{number}"), &command, &connections)
    };
    let workers: Vec<Layer> = (0..args.workers).map(start).collect();
    let beside = args.beside.as_ref().map(|beside| {
        let mut words = beside.split_whitespace();
        let mut command = std::process::Command::new(words.next().unwrap_or_default());
        command.args(words).arg(workers[0].pid().to_string()).spawn()
    });
    loop {
        for worker in &workers {
            ensure!(worker.exited().is_none(), "a worker ended:\n{}", worker.logged());
        }
        ensure!(begun.elapsed() < Duration::from_secs(1_800), "not caught up after half an hour");
        if stack.probe.lag(&ends).await? == 0 && (!mode.is_plain() || window.is_published(stack).await?) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (mut work, mut peak, mut writes) = (0.0, 0.0, 0.0);
    for worker in &workers {
        work += cpu([worker.pid()])?;
        peak += peak_memory(worker.pid())?;
    }
    let cpu = [work, cpu(stack.redis.pids())? - before[0], cpu([kafka])? - before[1]];
    if mode.is_plain() {
        for worker in &workers {
            writes += plain::writes(worker).await?;
        }
        window.check(stack).await?;
    }
    for worker in workers {
        worker.stop().await;
    }
    if let Some(beside) = beside {
        beside?.wait()?;
    }
    Ok(Run { seconds, cpu, peak, dataset: stack.redis.dataset().await as f64 / MB, writes })
}

fn report(args: &Args, mode: Mode, runs: &[Run]) {
    let (mut figures, records) = (Figures::default(), args.records as f64);
    for run in runs {
        let [worker, redis, kafka] = run.cpu;
        figures.add("records/s", records / run.seconds, 0);
        figures.add("records per CPU-second, all", records / (worker + redis + kafka), 0);
        figures.add("records per CPU-second, worker", records / worker, 0);
        figures.add("CPU us per record, worker", 1e6 * worker / records, 3);
        figures.add("CPU us per record, redis", 1e6 * redis / records, 3);
        figures.add("CPU us per record, kafka", 1e6 * kafka / records, 3);
        figures.add("worker's peak memory, MB", run.peak, 0);
        figures.add("data in redis, MB", run.dataset, 0);
        if mode.is_plain() {
            figures.add("plain keys written per record", run.writes / records, 2);
        }
    }
    println!("{}:", mode.name());
    figures.print();
}
