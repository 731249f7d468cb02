//! How long the realtime view takes to be exact and live again when Redis is emptied, while records go on to come.
//!
//! `cargo bench --workspace --bench recovery -- --help`. Servers are real; in the end the answers are held against a naive fold of
//! all records, and a run that differs fails the bench.

mod answers;
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
use process::{cpu, peak_memory};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// The event time at which the records begin: 2016-06-14T04:02:00Z.
const START: i64 = 1_465_876_920_000;

/// Measures how long a realtime view that was lost takes to come back.
#[derive(Parser)]
struct Args {
    /// Records a second that come while it does; as many came before in each of the seconds that the tidemark is old.
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// How old the tidemark is, in seconds.
    #[arg(long, default_value_t = 1_200)]
    age: u64,
    /// For how many seconds of each run records go on to come after that.
    #[arg(long, default_value_t = 90)]
    seconds: u64,
    /// Measured runs: Redis is emptied at the beginning of each.
    #[arg(long, default_value_t = 5)]
    runs: u64,
    /// Partitions of the log.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// The seed of the records.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The worker keeps no local copy: the log is folded again.
    #[arg(long)]
    no_local_copy: bool,
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
    let (before, of_a_run) = (args.rate * args.age, args.rate * args.seconds);
    let all = before + of_a_run * args.runs;
    println!("{}", machine::described().await);
    println!(
        "{before} records since the tidemark, then {} a second (seed {}), {} partitions, {} local copy; median (min to max) \
         of {} runs of {} s",
        args.rate,
        args.seed,
        args.partitions,
        if args.no_local_copy { "no" } else { "a" },
        args.runs,
        args.seconds
    );
    let stack = peer::started(&args.layers, &peer::USUAL.catalog(), args.partitions).await?;
    let idle = stack.redis.dataset().await as f64;
    let copies = local::servers::scratch()?;
    let folder = copies.path().display().to_string();
    let mut command = vec!["run", "--listen", "127.0.0.1:0"];
    if !args.no_local_copy {
        command.extend(["--local-copy", &folder]);
    }
    let worker = stack.process("speed-layer", &command, &["catalog", "kafka", "redis", "postgres"]);

    // What came before is sent as fast as it goes, the rest at its rate from the moment on that all is taken in.
    let (sent, goes_on) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let records = Records {
        count: all,
        start: START,
        length: ((args.age + args.seconds * args.runs) * 1_000) as i64,
        partitions: args.partitions as u64,
        keys: 1,
        seed: args.seed,
    };
    let begun = Instant::now();
    let sending = tokio::task::spawn_blocking({
        let (bootstrap, sent, goes_on) = (stack.kafka.bootstrap(), sent.clone(), goes_on.clone());
        let (rate, mut since) = (args.rate, None);
        move || {
            log::send(&bootstrap, "events", records, |_| {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                if number < before || !number.is_multiple_of((rate / 200).max(1)) {
                    return;
                }
                while !goes_on.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let due = Duration::from_secs_f64((number - before) as f64 / rate as f64);
                let early = due.checked_sub(since.get_or_insert_with(Instant::now).elapsed());
                early.into_iter().for_each(std::thread::sleep);
            })
        }
    });
    // How long it takes from now until so many are sent, and no more than a second's records wait.
    let live = async |least: u64, within: u64| -> anyhow::Result<f64> {
        let begun = Instant::now();
        loop {
            ensure!(worker.exited().is_none(), "the worker ended:\n{}", worker.logged());
            ensure!(begun.elapsed() < Duration::from_secs(3_600), "not live after an hour");
            if sent.load(Ordering::Relaxed) >= least
                && stack.probe.lag(&stack.probe.ends()?).await? <= within as i64
            {
                return Ok(begun.elapsed().as_secs_f64());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let taken_in = live(before, args.rate).await;
    // Whatever came of it: the sender is not to wait for ever.
    goes_on.store(true, Ordering::Relaxed);
    taken_in?;
    println!("sent and taken in after {:.0?}", begun.elapsed());
    let mut figures = Figures::default();
    for run in 0..args.runs {
        live(before + run * of_a_run, args.rate).await?;
        let dataset = stack.redis.dataset().await as f64 - idle;
        let spent = cpu([worker.pid()])?;
        stack.redis.empty().await;
        let took = live(before, args.rate).await?;
        let spent = cpu([worker.pid()])? - spent;
        println!(
            "  run {}: {:.0} MB in redis, emptied: live again after {took:.1} s, {spent:.1} CPU-s of the worker",
            run + 1,
            dataset / 1e6
        );
        ensure!(
            sent.load(Ordering::Relaxed) < all,
            "no record came any more in the end: more --seconds are needed"
        );
        figures.add("data in redis when it is emptied, MB", dataset / 1e6, 0);
        figures.add("live again after, s", took, 1);
        figures.add("worker's CPU-s until then", spent, 1);
    }
    figures.print();
    println!("worker's peak memory: {:.0} MB", peak_memory(worker.pid())?);
    let totals = sending.await??;
    live(all, 0).await?;
    answers::check(&stack, &totals, Some(20)).await.with_context(|| worker.logged())?;
    println!("{all} records; the answers of 20 keys a metric are as their naive fold");
    Ok(())
}
