//! How many answers the serving layer gives for a CPU-second, how soon, what of that time it adds to its calls, and what a
//! flip and ten times as much change.
//!
//! `cargo bench --workspace --bench serving -- --help`. Servers are real. Thirty days lie in the batch view, the last hour
//! in the realtime view; answers are held against naive counts of the records, and one that differs fails the bench.

mod bare;
mod epochs;
mod events;
mod figures;
mod flip;
mod growth;
mod load;
mod log;
mod machine;
mod overhead;
mod peer;
mod process;
mod questions;
mod requests;
mod traffic;
mod world;

use clap::{Parser, ValueEnum};
use figures::Figures;
use growth::Growth;
use load::{Latency, Load};
use requests::Requests;
use std::sync::Arc;
use std::time::Duration;
use world::{USUAL, World};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

/// Measures answers, with a load generator (hyper, in a thread of this process) on the same machine.
#[derive(Parser)]
struct Args {
    /// Records of the thirty days.
    #[arg(long, default_value_t = 1_000_000)]
    history: u64,
    /// Records of the last hour.
    #[arg(long, default_value_t = 3_000_000)]
    recent: u64,
    /// Partitions of the log.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// What is measured of that many records; all of it where neither this nor --grow names anything.
    #[arg(long, value_enum, value_delimiter = ',')]
    measure: Vec<Measure>,
    /// What there is ten times as much of, each in servers of its own: latency and answers per CPU-second are then
    /// printed beside those of the usual records in the same run.
    #[arg(long, value_enum, value_delimiter = ',')]
    grow: Vec<Growth>,
    /// How many requests are under way at once where as many are asked as are answered.
    #[arg(long, default_value_t = 32)]
    abreast: usize,
    /// How long each load lasts.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measured runs of each load.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Requests a second where each is made when no other is under way.
    #[arg(long, default_value_t = 50.0)]
    low_rate: f64,
    /// Runs of the batch layer under load. As many records as those of the last hour come after each.
    #[arg(long, default_value_t = 3)]
    flips: usize,
    /// How much of the realtime view the serving layer may keep, in MiB: of what it keeps it asks whether that has changed,
    /// and no more.
    #[arg(long, default_value_t = 1_024)]
    cache: u32,
    /// The seed of the records and of the requests.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The program that is run as the layers, to compare with another build.
    #[arg(long, default_value = LAYERS)]
    layers: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn measures(&self, what: Measure) -> bool {
        if self.measure.is_empty() { self.grow.is_empty() } else { self.measure.contains(&what) }
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// How many requests are answered at most, for a CPU-second too, and how soon they are at half of that rate.
    Load,
    /// How long a request takes at a low rate, beside the calls to Redis and Postgres that it is made of, alone and behind
    /// bare HTTP.
    Overhead,
    /// How soon answers are while a run of the batch layer moves the tidemark, beside a calm span as long; each is held
    /// against what was sent.
    Flip,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("{}", machine::described().await);
    println!(
        "{} records of 30 days in the batch view, {} of the last hour in the realtime view (seed {}); {} runs of {} s; \
         median (min to max)",
        args.history, args.recent, args.seed, args.runs, args.seconds
    );
    let mut world = World::start(&args, USUAL).await?;
    if args.measures(Measure::Load) {
        loads(&args, &world).await?;
    }
    if args.measures(Measure::Overhead) {
        overhead::measure(&args, &world).await?;
    }
    // Before the flips, after which more lies in the batch view.
    let usual = if args.grow.is_empty() { None } else { Some(growth::usual(&args, &world).await?) };
    if args.measures(Measure::Flip) {
        flip::measure(&args, &mut world).await?;
    }
    world.end().await?;
    if let Some(usual) = usual {
        for &growth in &args.grow {
            growth::measure(&args, growth, &usual).await?;
        }
    }
    Ok(())
}

/// How much is answered at most, and how soon at half of that.
async fn loads(args: &Args, world: &World) -> anyhow::Result<()> {
    let (load, questions) = (Load::new(args, world), world.questions());
    let asked = [
        ("live counter of one key", questions.live()),
        ("live top 10 of the hottest place", questions.top()),
        ("merged query, one key over 30 days", questions.one_key(30)),
        ("merged query, 1,000 keys over 7 days", questions.thousand_keys(7)),
    ];
    for (name, requests) in asked {
        measure(args, &load, name, &requests).await?;
    }
    Ok(())
}

/// As many requests as are answered, for the rates; then half as many, evenly, for the latencies.
async fn measure(args: &Args, load: &Load, name: &str, requests: &Arc<Requests>) -> anyhow::Result<()> {
    load.closed(requests, Duration::from_secs(1)).await?;
    let mut figures = Figures::default();
    for _ in 0..args.runs {
        let highest = load.closed(requests, load.time).await?;
        let half = highest.per_second / 2.0;
        let (evenly, ()) = load.open(requests, half, tokio::time::sleep(load.time)).await?;
        let latency = Latency::of(evenly.taken)?;
        figures.add("answers/s", highest.per_second, 0);
        figures.add("answers per CPU-second, serving", highest.per_serving, 0);
        figures.add("answers per CPU-second, redis", highest.per_redis, 0);
        figures.add("CPU us per request, generator", 1e6 / highest.per_generator, 1);
        figures.add("p50 at half of that rate, ms", latency.p50, 2);
        figures.add("p99 at half of that rate, ms", latency.p99, 2);
        figures.add("CPU us per request at half, generator", 1e6 / evenly.per_generator, 1);
    }
    println!("{name}:");
    figures.print();
    Ok(())
}
