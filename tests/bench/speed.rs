//! How fast the speed layer catches up, on the peer's records and metrics, what it costs and holds, beside what the servers
//! can do at most.
//!
//! `cargo bench --workspace --bench speed -- --help`. Servers are real; every run's answers are held against a naive fold of the
//! records, and a run that differs fails the bench.

mod answers;
mod by_metrics;
mod ceiling;
mod epochs;
mod events;
mod figures;
mod flink;
mod footprint;
mod log;
mod machine;
mod passing;
mod peer;
mod plain;
mod process;

use anyhow::{Context as _, ensure};
use ceiling::Ceiling;
use clap::{Parser, ValueEnum};
use events::{Records, Totals};
use figures::Figures;
use local::layers::Layer;
use peer::Peer;
use plain::Window;
use process::{cpu, peak_memory};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tidemark_tests::stack::Stack;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const MB: f64 = 1_048_576.0;
const HOUR: i64 = 3_600_000;
/// A run that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(1_800);
/// The event time at which the hour of records begins: 2016-06-14T04:02:00Z.
const START: i64 = 1_465_876_920_000;
/// Where they end.
const END: i64 = START + HOUR;
/// So many bytes of Redis a live cell may take.
const CELL: f64 = 100.0;

/// Measures how fast the speed layer catches up with a log that is there already; or what is named instead, each with servers
/// of its own.
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
    /// Measure what a record costs with so many metrics: a part of the eight, all of them, or copies beside them.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    metrics: Vec<u64>,
    /// Measure what is left in Redis when the windows have passed and runs of the batch layer have taken the records in.
    #[arg(long)]
    pass: bool,
    /// Have Flink's job take the same records in turn with each run without dedup: a folder with the job, compiled, in
    /// `jobout`, its libraries in `flink-libs`, and its `log4j2.properties`. `java` must be there.
    #[arg(long)]
    flink: Option<PathBuf>,
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
    /// The peer's catalog with so many metrics, and panes of this width.
    fn catalog(self, metrics: usize, pane: &str) -> String {
        let catalog = Peer { dedup: self.dedups(), publish: self.is_plain(), metrics }.catalog();
        catalog.replace("pane = \"10s\"", &format!("pane = \"{pane}\""))
    }

    fn dedups(self) -> bool {
        matches!(self, Mode::PackedDedup | Mode::PlainDedup)
    }

    fn is_plain(self) -> bool {
        matches!(self, Mode::Plain | Mode::PlainDedup)
    }

    fn name(self) -> String {
        self.to_possible_value().expect("no mode is hidden").get_name().to_owned()
    }
}

/// What one run took: of workers, or of Flink in their place.
struct Run {
    seconds: f64,
    /// CPU-seconds of the workers, Redis and Kafka.
    cpu: [f64; 3],
    /// The most memory of the workers, in MB.
    peak: f64,
    /// The data in Redis at the end, in bytes.
    dataset: f64,
    /// Plain keys written or deleted.
    writes: f64,
}

impl Run {
    /// CPU-microseconds of all of them for each of so many records.
    fn for_each(&self, records: u64) -> f64 {
        1e6 * self.cpu.iter().sum::<f64>() / records as f64
    }

    /// Adds what it took for so many records, under the name of what ran.
    fn add_to(&self, figures: &mut Figures, name: &str, records: u64) {
        let (all, records) = (1e6 / self.for_each(records), records as f64);
        let of = if name == "worker" { String::new() } else { format!(" of {name}") };
        figures.add(&format!("records/s{of}"), records / self.seconds, 0);
        figures.add(&format!("records per CPU-second, all{of}"), all, 0);
        figures.add(&format!("records per CPU-second, {name}"), records / self.cpu[0], 0);
        for (whose, seconds) in [name, "redis", "kafka"].into_iter().zip(self.cpu) {
            let of = if whose == name { "" } else { &of };
            figures.add(&format!("CPU us per record, {whose}{of}"), 1e6 * seconds / records, 3);
        }
        figures.add(&format!("{name}'s peak memory, MB"), self.peak, 0);
    }
}

/// What was measured of a run, and beside it.
struct Measured {
    run: Run,
    /// Cells in Redis at the end.
    cells: usize,
    ceiling: Ceiling,
    /// The run of Flink that came behind it.
    flink: Option<Run>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let modes = if args.mode.is_empty() { Mode::value_variants().to_vec() } else { args.mode.clone() };
    println!("{}", machine::described().await);
    println!(
        "{} records (seed {}), {} partitions, {} workers, {} runs a mode; median (min to max)",
        args.records, args.seed, args.partitions, args.workers, args.runs
    );
    for mode in modes {
        if args.metrics.is_empty() && !args.pass {
            measure(&args, mode).await.with_context(|| mode.name())?;
        }
        if !args.metrics.is_empty() {
            by_metrics::measure(&args, mode).await.with_context(|| mode.name())?;
        }
        if args.pass {
            passing::measure(&args, mode).await.with_context(|| mode.name())?;
        }
    }
    Ok(())
}

async fn measure(args: &Args, mode: Mode) -> anyhow::Result<()> {
    let catalog = mode.catalog(peer::USUAL.metrics, &args.pane);
    let stack = peer::started(&args.layers, &catalog, args.partitions).await?;
    let (totals, window) = fill(&stack, args, "events", END).await?;
    let published = mode.is_plain().then_some(&window);
    let flink = match args.flink.as_ref().filter(|_| !mode.dedups()) {
        Some(folder) => {
            stack.kafka.create_topic(flink::TOPIC, args.partitions, &[]).await?;
            Some((folder, fill(&stack, args, flink::TOPIC, END - flink::BEHIND).await?.1))
        }
        None => None,
    };
    let idle = stack.redis.dataset().await as f64;
    let mut runs = Vec::new();
    for number in 0..args.runs {
        // Before, so that the broker, which has just been started, has been read from once.
        let ceiling = Ceiling::measure(&stack, args.partitions, args.records).await?;
        let mut run = catch_up(&stack, args, published).await?;
        run.dataset -= idle;
        let (all, own) = (run.for_each(args.records), 1e6 * run.cpu[0] / args.records as f64);
        let (name, number, seconds) = (mode.name(), number + 1, run.seconds);
        println!(
            "  {name}, run {number}: {seconds:.1} s, {all:.2} us of CPU a record, {own:.2} of it the worker's"
        );
        answers::check(&stack, &totals, None).await?;
        let cells = footprint::live_cells(&stack).await?;
        let flink = match &flink {
            Some((folder, window)) => Some(flink::run(folder, &stack, window).await?),
            None => None,
        };
        runs.push(Measured { run, cells, ceiling, flink });
    }
    println!("{}:", mode.name());
    report(args, mode, &runs)
}

/// Writes the records into a topic; gives what they come to, in all and in the window that ends at `end`.
async fn fill(stack: &Stack, args: &Args, topic: &'static str, end: i64) -> anyhow::Result<(Totals, Window)> {
    let (bootstrap, begun) = (stack.kafka.bootstrap(), Instant::now());
    let (count, partitions, seed) = (args.records, args.partitions as u64, args.seed);
    let records = Records { count, start: START, length: HOUR, partitions, keys: 1, seed };
    let sent = tokio::task::spawn_blocking(move || {
        let mut window = Window::new(end);
        let totals = log::send(&bootstrap, topic, records, |record| window.see(record))?;
        anyhow::Ok((totals, window))
    });
    let sent = sent.await??;
    println!("log written in {:.0?}", begun.elapsed());
    Ok(sent)
}

/// Starts the workers, with further arguments beside those that the bench was given.
fn workers(stack: &Stack, args: &Args, further: &[&str]) -> Vec<Layer> {
    let mut command = vec!["run", "--listen", "127.0.0.1:0"];
    command.extend(args.worker.split_whitespace());
    command.extend(further);
    let connections = ["catalog", "kafka", "redis", "postgres"];
    let start = |number: usize| {
        stack.process_named("speed-layer", &format!("speed-{number}"), &command, &connections)
    };
    (0..args.workers).map(start).collect()
}

/// Waits until all that the log holds now is stored.
async fn caught_up(stack: &Stack, workers: &[Layer]) -> anyhow::Result<()> {
    let (ends, begun) = (stack.probe.ends()?, Instant::now());
    loop {
        for worker in workers {
            ensure!(worker.exited().is_none(), "a worker ended:\n{}", worker.logged());
        }
        ensure!(begun.elapsed() < LONGEST, "not caught up after half an hour");
        if stack.probe.lag(&ends).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Empties Redis, starts the workers, and waits until all that the log holds is stored, and what is named published.
async fn catch_up(stack: &Stack, args: &Args, published: Option<&Window>) -> anyhow::Result<Run> {
    stack.redis.empty().await;
    let kafka = stack.kafka.pid().context("kafka has ended")? as i32;
    let before = [cpu(stack.redis.pids())?, cpu([kafka])?];
    let begun = Instant::now();
    let further: &[&str] = if published.is_some() { &["--publish-panes"] } else { &[] };
    let workers = workers(stack, args, further);
    let beside = args.beside.as_ref().map(|beside| {
        let mut words = beside.split_whitespace();
        let mut command = std::process::Command::new(words.next().unwrap_or_default());
        command.args(words).arg(workers[0].pid().to_string()).spawn()
    });
    caught_up(stack, &workers).await?;
    while let Some(window) = published
        && !window.is_published(stack).await?
    {
        ensure!(begun.elapsed() < LONGEST, "the last pane isn't published after half an hour");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (mut work, mut peak, mut writes) = (0.0, 0.0, 0.0);
    for worker in &workers {
        work += cpu([worker.pid()])?;
        peak += peak_memory(worker.pid())?;
    }
    let cpu = [work, cpu(stack.redis.pids())? - before[0], cpu([kafka])? - before[1]];
    if let Some(window) = published {
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
    Ok(Run { seconds, cpu, peak, dataset: stack.redis.dataset().await as f64, writes })
}

/// Prints the figures; cells that take too much of Redis are an error.
fn report(args: &Args, mode: Mode, runs: &[Measured]) -> anyhow::Result<()> {
    let (mut figures, records, mut worst) = (Figures::default(), args.records as f64, 0.0);
    for Measured { run, cells, ceiling, flink } in runs {
        let rate = records / run.seconds;
        run.add_to(&mut figures, "worker", args.records);
        figures.add("data in redis, MB", run.dataset / MB, 0);
        figures.add("cells in redis", *cells as f64, 0);
        if mode.is_plain() {
            figures.add("plain keys written per record", run.writes / records, 2);
        } else {
            let bytes = run.dataset / *cells as f64;
            figures.add("bytes of redis per cell", bytes, 1);
            worst = bytes.max(worst);
        }
        for (name, reached) in [
            ("bare consumer", &ceiling.consume),
            ("HINCRBY in pipelines of 256", &ceiling.hincrby),
            ("SET EX in pipelines of 256", &ceiling.set),
        ] {
            figures.add(&format!("{name}, 1/s"), reached.per_second, 0);
            figures.add(&format!("{name}, CPU us each"), reached.cpu, 3);
            figures.add(&format!("records/s / {name}"), rate / reached.per_second, 2);
        }
        if let Some(flink) = flink {
            let cpu = |run: &Run| run.for_each(args.records);
            flink.add_to(&mut figures, "Flink", args.records);
            figures.add("keys that Flink writes per record", flink.writes / records, 2);
            figures.add("records/s / Flink's", flink.seconds / run.seconds, 2);
            figures.add("records per CPU-second, all / Flink's", cpu(flink) / cpu(run), 2);
            figures.add("peak memory / Flink's", run.peak / flink.peak, 2);
        }
    }
    figures.print();
    ensure!(worst <= CELL, "a cell takes {worst:.1} bytes of redis, more than {CELL}");
    Ok(())
}
