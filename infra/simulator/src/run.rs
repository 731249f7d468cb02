//! Carries out what the command line asks for.

use crate::cli::{Args, Command, GenerateArgs, KafkaArgs, PaceArgs};
use crate::generate::{Generator, Stream};
use crate::progress::Progress;
use crate::replay::Sender;
use crate::replay::pace::Pace;
use anyhow::{Context, ensure};
use shared_model::time::Millis;
use std::fs::File;
use std::io::BufWriter;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Does one job and returns when it is done, or soon after `shutdown` is cancelled. It blocks: call it outside of
/// async code or in `spawn_blocking`. `clock` gives ms since 1970 and stamps the records.
pub fn execute(args: Args, clock: fn() -> Millis, shutdown: &CancellationToken) -> anyhow::Result<()> {
    match args.command {
        Command::Generate(args) => generate(args, clock, shutdown),
    }
}

fn generate(args: GenerateArgs, clock: fn() -> Millis, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let generator = Generator::new(args.options.clone(), args.seed);
    let progress = Progress::of_records("generating", Some(args.options.records));
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
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
        ensure!(!shutdown.is_cancelled(), "stopped after {} lines; the files are not whole", lines[0] + lines[1]);
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

/// Connects, and makes or requires the topics.
fn connect(kafka: &KafkaArgs, topics: &[&str], clock: fn() -> Millis) -> anyhow::Result<Sender> {
    let servers = kafka.kafka.as_deref().context("--kafka is missing: where to send to, such as 127.0.0.1:9092")?;
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
    tracing::info!(records = progress.done(), acknowledged = sender.acknowledged(), seconds, per_second, stopped, "sent");
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
