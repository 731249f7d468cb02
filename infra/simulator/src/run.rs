//! Carries out what the command line asks for.

use crate::cli::{
    Args, CatalogArgs, Command, GenerateArgs, KafkaArgs, LimitArgs, PaceArgs, PrepareArgs, ReplayArgs,
};
use crate::generate::{Generator, Stream};
use crate::prepare::{Job, Limits, prepare};
use crate::progress::Progress;
use crate::replay::pace::Pace;
use crate::replay::{Filter, Merged, Record, Sender, discover, sort_csv, total_bytes};
use anyhow::{Context, ensure};
use shared_model::catalog::Catalog;
use shared_model::time::{Interval, Millis, show};
use std::fs::File;
use std::io::BufWriter;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Does one job and returns when it is done, or soon after `shutdown` is cancelled. It blocks: call it outside of
/// async code or in `spawn_blocking`. `clock` gives ms since 1970 and stamps the records.
pub fn execute(args: Args, clock: fn() -> Millis, shutdown: &CancellationToken) -> anyhow::Result<()> {
    match args.command {
        Command::Generate(args) => generate(args, clock, shutdown),
        Command::Prepare(args) => prepare_all(args, shutdown),
        Command::Replay(args) => replay(args, clock, shutdown),
    }
}

fn generate(args: GenerateArgs, clock: fn() -> Millis, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let generator = Generator::new(args.options.clone(), args.seed);
    let progress = Progress::of_records("generating", Some(args.options.records));
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let open = |stream: Stream| {
            let path = folder.join(format!("{}.csv", stream.name()));
            let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(BufWriter::with_capacity(1 << 20, file))
        };
        let (mut views, mut clicks) = (open(Stream::PageViews)?, open(Stream::Events)?);
        let lines = generator
            .write_csv(&mut views, &mut clicks, |done| {
                if done % 1_024 == 0 {
                    progress.advance(done - progress.done());
                }
                !shutdown.is_cancelled()
            })
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        ensure!(
            !shutdown.is_cancelled(),
            "stopped after {} lines; the files are not whole",
            lines[0] + lines[1]
        );
        tracing::info!(page_views = lines[0], events = lines[1], folder = %folder.display(), "generated");
        return Ok(());
    }
    let sender = connect(&args.kafka, &Stream::ALL.map(Stream::name), clock)?;
    let mut pacer = Pacer::new(args.pace, shutdown);
    for delivery in generator {
        if !pacer.wait(delivery.moment, &sender) {
            break;
        }
        sender.send(&delivery)?;
        progress.advance(1);
    }
    finish(&sender, &progress, shutdown)
}

fn prepare_all(args: PrepareArgs, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let catalog = load(&args.catalog)?;
    let runtime = runtime()?;
    let files = discover(&args.inputs, &catalog)?;
    for file in &files {
        ensure!(!file.parquet, "{} is parquet; prepare reads CSV", file.location);
    }
    for stream in &catalog.streams {
        let of_stream = files.iter().filter(|file| file.stream.name == stream.name);
        let files: Vec<_> = of_stream.map(|file| file.location.clone()).collect();
        if files.is_empty() {
            continue;
        }
        let job = Job { stream: stream.clone(), files, out: args.out.clone(), limits: limits(args.limits) };
        let progress = Progress::of_bytes(&stream.name, total_bytes(&job, runtime.handle())?);
        let summary = prepare(&job, runtime.handle(), &progress, shutdown)
            .with_context(|| format!("stream {} was not prepared", stream.name))?;
        let seconds = progress.seconds();
        drop(progress);
        let folder = args.out.join(&stream.name);
        tracing::info!(
            stream = stream.name, lines = summary.lines, rows = summary.rows, rejects = summary.rejects,
            partitions = summary.partitions, files = summary.files, seconds, folder = %folder.display(), "prepared"
        );
        if summary.rejects > 0 {
            tracing::warn!(rejects = summary.rejects, file = %folder.join("rejects.csv").display(), "not all lines are rows");
        }
    }
    Ok(())
}

fn replay(args: ReplayArgs, clock: fn() -> Millis, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let catalog = load(&args.catalog)?;
    let runtime = runtime()?;
    let files = discover(&args.inputs, &catalog)?;
    let mut topics: Vec<&str> = files.iter().map(|file| &*file.stream.topic).collect();
    topics.dedup();
    // Before any sorting, so that a wrong address is said at once.
    let sender = connect(&args.kafka, &topics, clock)?;
    let span = Interval { start: args.start.unwrap_or(Millis::MIN), end: args.end.unwrap_or(Millis::MAX) };
    ensure!(span.start < span.end, "--start {} is not before --end {}", show(span.start), show(span.end));
    let filter = Filter { platforms: args.platform.clone(), span };
    let folder = args.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
    let sorted = sort_csv(files.clone(), &catalog, limits(args.limits), &folder, runtime.handle(), shutdown)?;
    let progress = Progress::of_records("replaying", None);
    loop {
        let before = progress.done();
        let mut merged = Merged::new(&sorted.files, &filter);
        send_all(&mut merged, &sender, args.pace, &progress, shutdown)?;
        if progress.done() == before && !shutdown.is_cancelled() {
            tracing::warn!("no rows were wanted; look at --platform, --start and --end");
        }
        if !args.again || shutdown.is_cancelled() || progress.done() == before {
            break;
        }
    }
    finish(&sender, &progress, shutdown)
}

fn send_all(
    merged: &mut Merged,
    sender: &Sender,
    pace: PaceArgs,
    progress: &Progress,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut pacer = Pacer::new(pace, shutdown);
    let mut record = Record::default();
    while merged.next(&mut record)? && pacer.wait(record.time, sender) {
        sender.send_to(&record.topic, record.key.as_deref(), &record.value)?;
        progress.advance(1);
        if progress.done() % 4_096 == 1 {
            progress.note(&show(record.time));
        }
    }
    Ok(())
}

/// The catalog that is given, or the shipped one.
fn load(args: &CatalogArgs) -> anyhow::Result<Catalog> {
    let Some(path) = &args.catalog else {
        return Catalog::from_toml(SHIPPED).context("the shipped catalog");
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the catalog {}", path.display()))?;
    Catalog::from_toml(&text).with_context(|| format!("the catalog {} is not valid", path.display()))
}

const SHIPPED: &str = include_str!("../../catalog/outbrain.toml");

fn limits(args: LimitArgs) -> Limits {
    let processors = || std::thread::available_parallelism().map_or(2, usize::from);
    Limits::within(args.memory, args.threads.unwrap_or_else(processors))
}

/// Object stores are asynchronous; all else here is not.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("no threads")
}

/// Connects, and makes or requires the topics.
fn connect(kafka: &KafkaArgs, topics: &[&str], clock: fn() -> Millis) -> anyhow::Result<Sender> {
    let servers =
        kafka.kafka.as_deref().context("--kafka is missing: where to send to, such as 127.0.0.1:9092")?;
    let sender = Sender::connect(servers, &kafka.properties, clock)?;
    if let Some(partitions) = kafka.create_topics {
        for topic in sender.create_topics(topics.iter().copied(), partitions)? {
            tracing::info!(topic, partitions, "topic created");
        }
    }
    sender.require_topics(topics.iter().copied())?;
    Ok(sender)
}

/// Flushes and says what was sent.
fn finish(sender: &Sender, progress: &Progress, shutdown: &CancellationToken) -> anyhow::Result<()> {
    sender.flush()?;
    let seconds = progress.seconds();
    let per_second = (progress.done() as f64 / seconds.max(0.001)) as u64;
    let stopped = shutdown.is_cancelled();
    tracing::info!(
        records = progress.done(),
        acknowledged = sender.acknowledged(),
        seconds,
        per_second,
        stopped,
        "sent"
    );
    Ok(())
}

/// Waits until a record is due.
struct Pacer<'a> {
    pace: Pace,
    started: Instant,
    shutdown: &'a CancellationToken,
}

/// The longest sleep between two looks at the shutdown token.
const NAP: Duration = Duration::from_millis(50);

impl<'a> Pacer<'a> {
    fn new(pace: PaceArgs, shutdown: &'a CancellationToken) -> Pacer<'a> {
        Pacer { pace: Pace::new(pace.speed, pace.rate), started: Instant::now(), shutdown }
    }

    /// False where it was told to stop.
    fn wait(&mut self, moment: Millis, sender: &Sender) -> bool {
        let due = self.pace.due(moment);
        while !self.shutdown.is_cancelled() {
            let left = due.saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return true;
            }
            sender.poll();
            std::thread::sleep(left.min(NAP));
        }
        false
    }
}
