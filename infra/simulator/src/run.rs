//! Carries out what the command line asks for.

use crate::cli::{
    Args, CatalogArgs, Command, GenerateArgs, KafkaArgs, LimitArgs, PaceArgs, PrepareArgs, ReplayArgs,
};
use crate::generate::{Generator, Stream};
use crate::location::{Location, Stores};
use crate::prepare::upload::upload;
use crate::prepare::{Job, Limits, REJECTS, prepare};
use crate::progress::Progress;
use crate::replay::pace::Pace;
use crate::replay::{Filter, Merged, Record, SendError, Sender, discover, sort_csv, total_bytes};
use anyhow::{Context, ensure};
use shared_model::catalog::{self, Catalog};
use shared_model::secret::KafkaProperties;
use shared_model::time::{Interval, Millis, show};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
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
    let mut options = args.options.clone();
    if args.until_now {
        options.start = clock() - options.span;
    }
    let streams = options.data.streams();
    let generator = Generator::new(options, args.seed);
    let progress = Progress::of_records("generating", Some(args.options.records));
    if let Some(folder) = &args.out {
        return generate_files(generator, streams, folder, &progress, shutdown);
    }
    let topics: Vec<&str> = streams.iter().map(|stream| stream.name()).collect();
    let sender = connect(&args.kafka, &topics, clock, shutdown)?;
    let mut pacer = Pacer::new(args.pace, shutdown);
    for delivery in generator {
        if !pacer.wait(delivery.moment, &sender) {
            break;
        }
        if !was_sent(sender.send(&delivery))? {
            break;
        }
        progress.advance(1);
    }
    finish(&sender, &progress, shutdown)
}

/// Writes the files; they get their names when all are whole.
fn generate_files(
    generator: Generator,
    streams: &[Stream],
    folder: &Path,
    progress: &Progress,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let in_folder = || format!("cannot write to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(in_folder)?;
    let create = || {
        let readable = std::fs::Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().prefix(".generating-").permissions(readable).tempfile_in(folder);
        anyhow::Ok(BufWriter::with_capacity(1 << 20, file.with_context(in_folder)?))
    };
    let mut files: Vec<_> = streams.iter().map(|_| create()).collect::<anyhow::Result<_>>()?;
    let lines = generator
        .write_csv(&mut files, |done| {
            if done % 1_024 == 0 {
                progress.advance(done - progress.done());
            }
            !shutdown.is_cancelled()
        })
        .with_context(in_folder)?;
    ensure!(!shutdown.is_cancelled(), "stopped before the end; nothing was written");
    let mut counts = Vec::new();
    for ((file, stream), lines) in files.into_iter().zip(streams).zip(lines) {
        let (file, name) = (file.into_inner().with_context(in_folder)?, stream.name());
        file.persist(folder.join(format!("{name}.csv"))).with_context(in_folder)?;
        counts.push(format!("{name}={lines}"));
    }
    tracing::info!(folder = %folder.display(), "generated {}", counts.join(" "));
    Ok(())
}

fn prepare_all(args: PrepareArgs, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let catalog = load(&args.catalog)?;
    let stores = Stores::start(shutdown)?;
    let files = discover(&args.inputs, &catalog, &stores)?;
    for file in &files {
        ensure!(!file.parquet, "{} is parquet; prepare reads CSV", file.location);
    }
    let out = stores.locate(&args.out)?;
    for stream in &catalog.streams {
        let of_stream = files.iter().filter(|file| file.stream.name == stream.name);
        let files: Vec<_> = of_stream.map(|file| file.location.clone()).collect();
        if !files.is_empty() {
            prepare_stream(stream, files, &out, &args.limits, shutdown)
                .with_context(|| format!("stream {} was not prepared", stream.name))?;
        }
    }
    Ok(())
}

/// Prepares one stream's files. What goes to an object store is made whole on this machine first.
fn prepare_stream(
    stream: &Arc<catalog::Stream>,
    files: Vec<Location>,
    out: &Location,
    args: &LimitArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let temporary = match out {
        Location::Local(_) => None,
        Location::Remote(_) => Some(temporary(args, "simulator-prepare-")?),
    };
    let folder = temporary.as_ref().map_or(out.path(), TempDir::path).to_owned();
    let job = Job { stream: stream.clone(), files, out: folder.clone(), limits: limits(args) };
    let progress = Progress::of_bytes(&stream.name, total_bytes(&job.files)?);
    let summary = prepare(&job, &progress, shutdown)?;
    let mut seconds = progress.seconds();
    drop(progress);
    if let Location::Remote(target) = out {
        let name = Path::new(&stream.name);
        let whole = folder.join(name);
        let files = Location::Local(whole.clone()).below()?.unwrap_or_default();
        let progress = Progress::of_bytes(&format!("uploading {}", stream.name), total_bytes(&files)?);
        upload(&whole, &target.join(name)?, &progress, shutdown)?;
        seconds += progress.seconds();
    }
    tracing::info!(
        stream = stream.name, lines = summary.lines, rows = summary.rows, rejects = summary.rejects,
        partitions = summary.partitions, files = summary.files, seconds, %out, "prepared"
    );
    if summary.rejects > 0 {
        let file = format!("{out}/{}/{REJECTS}", stream.name);
        tracing::warn!(rejects = summary.rejects, file, "not all lines are rows");
    }
    Ok(())
}

fn replay(args: ReplayArgs, clock: fn() -> Millis, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let catalog = load(&args.catalog)?;
    let stores = Stores::start(shutdown)?;
    let files = discover(&args.inputs, &catalog, &stores)?;
    let mut topics: Vec<&str> = files.iter().map(|file| &*file.stream.topic).collect();
    topics.dedup();
    // Before any sorting, so that a wrong address is said at once.
    let sender = connect(&args.kafka, &topics, clock, shutdown)?;
    let span = Interval { start: args.start.unwrap_or(Millis::MIN), end: args.end.unwrap_or(Millis::MAX) };
    ensure!(span.start < span.end, "--start {} is not before --end {}", show(span.start), show(span.end));
    let filter = Filter { platforms: args.platform.clone(), span };
    let folder = temporary(&args.limits, "simulator-replay-")?;
    let sorted = sort_csv(files.clone(), &catalog, limits(&args.limits), folder.path(), shutdown)?;
    let progress = Progress::of_records("replaying", None);
    loop {
        let before = progress.done();
        let mut merged = Merged::new(&sorted, &filter);
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

/// A folder that goes when it is dropped.
fn temporary(args: &LimitArgs, prefix: &str) -> anyhow::Result<TempDir> {
    let parent = args.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
    let made = tempfile::Builder::new().prefix(prefix).tempdir_in(&parent);
    made.with_context(|| format!("cannot make a temporary folder in {}", parent.display()))
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
    while next(merged, &mut record, shutdown)? && pacer.wait(record.time, sender) {
        if !was_sent(sender.send_to(&record.topic, record.key.as_deref(), &record.value))? {
            break;
        }
        progress.advance(1);
        if progress.done() % 4_096 == 1 {
            progress.note(&show(record.time));
        }
    }
    Ok(())
}

/// Goes to the next record; false at the end, or where reading ended because it was told to stop.
fn next(merged: &mut Merged, record: &mut Record, shutdown: &CancellationToken) -> anyhow::Result<bool> {
    merged.next(record).or_else(|error| if shutdown.is_cancelled() { Ok(false) } else { Err(error) })
}

/// False where it was told to stop instead.
fn was_sent(sent: Result<(), SendError>) -> anyhow::Result<bool> {
    match sent {
        Ok(()) => Ok(true),
        Err(SendError::Stopped) => Ok(false),
        Err(error) => Err(error.into()),
    }
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

fn limits(args: &LimitArgs) -> Limits {
    let processors = || std::thread::available_parallelism().map_or(2, usize::from);
    Limits::within(args.memory, args.threads.unwrap_or_else(processors))
}

/// Connects, and makes or requires the topics.
fn connect(
    kafka: &KafkaArgs,
    topics: &[&str],
    clock: fn() -> Millis,
    shutdown: &CancellationToken,
) -> anyhow::Result<Sender> {
    let servers =
        kafka.kafka.as_deref().context("--kafka is missing: where to send to, such as 127.0.0.1:9092")?;
    let properties = KafkaProperties::read(&kafka.properties, |path| std::fs::read_to_string(path));
    let properties = properties.context("--kafka-property (TIDEMARK_KAFKA_PROPERTIES)")?;
    let sender = Sender::connect(servers, properties.pairs(), clock)?.until(shutdown);
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
    /// When the first record was due.
    started: Option<Instant>,
    shutdown: &'a CancellationToken,
}

/// The longest sleep between two looks at the shutdown token.
const NAP: Duration = Duration::from_millis(50);

impl<'a> Pacer<'a> {
    fn new(pace: PaceArgs, shutdown: &'a CancellationToken) -> Pacer<'a> {
        Pacer { pace: Pace::new(pace.speed, pace.rate), started: None, shutdown }
    }

    /// False where it was told to stop.
    fn wait(&mut self, moment: Millis, sender: &Sender) -> bool {
        let due = self.pace.due(moment);
        let started = *self.started.get_or_insert_with(Instant::now);
        while !self.shutdown.is_cancelled() {
            let left = due.saturating_sub(started.elapsed());
            if left.is_zero() {
                return true;
            }
            sender.poll();
            std::thread::sleep(left.min(NAP));
        }
        false
    }
}
