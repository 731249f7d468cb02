//! Answers while the tidemark moves: a run of the batch layer flips under load, beside a calm span as long.
//!
//! Every answer is held against what was sent. A calm span follows each run, once as many records have come as that one
//! took in: as much lies in the realtime view then as when it began. Before both the serving layer reads what has changed, so
//! that neither has these reads.

use crate::figures::line;
use crate::load::{Latency, Load};
use crate::world::World;
use crate::{Args, epochs};
use std::time::{Duration, Instant};

/// So long it is asked before each span that is measured: about keys of all groups.
const WARM_UP: Duration = Duration::from_secs(1);

/// A run of the batch layer under load, and the calm span after it.
struct Flip {
    length: Duration,
    answers: usize,
    moving: Latency,
    calm: Latency,
    /// Answers of the calm span for each CPU-second of the generator, which does nothing else then.
    per_generator: f64,
}

/// Compares answers during runs with others, at half of the highest rate.
pub(crate) async fn measure(args: &Args, world: &mut World) -> anyhow::Result<()> {
    let load = Load::new(args, world);
    let rate = load.closed(&world.counted(), load.time).await?.per_second / 2.0;
    let mut flips = Vec::new();
    for _ in 0..args.flips {
        flips.push(flip(&load, rate, world).await?);
    }
    let answers: usize = flips.iter().map(|flip| flip.answers).sum();
    println!(
        "merged query, one key over all days, {rate:.0} a second while a run moves the tidemark ({answers} right answers):"
    );
    let of = |figure: fn(&Flip) -> f64| -> Vec<f64> { flips.iter().map(figure).collect() };
    line("a run of the batch layer, s", &of(|flip| flip.length.as_secs_f64()), 1);
    line("p50 during the run, ms", &of(|flip| flip.moving.p50), 2);
    line("p50 in a calm span as long, ms", &of(|flip| flip.calm.p50), 2);
    line("p99 during the run, ms", &of(|flip| flip.moving.p99), 2);
    line("p99 in a calm span as long, ms", &of(|flip| flip.calm.p99), 2);
    line("CPU us per request in it, generator", &of(|flip| 1e6 / flip.per_generator), 1);
    line("p99 during / calm", &of(|flip| flip.moving.p99 / flip.calm.p99), 2);
    Ok(())
}

/// One run and its calm span; as many records lie above the tidemark afterwards as before.
async fn flip(load: &Load, rate: f64, world: &mut World) -> anyhow::Result<Flip> {
    let (ends, requests) = (epochs::over(&world.stack).await?, world.counted());
    load.closed(&requests, WARM_UP).await?;
    let begun = Instant::now();
    let run = async { epochs::run(&world.stack, &ends).await.map(|()| begun.elapsed()) };
    let (moving, length) = load.open(&requests, rate, run).await?;
    let length = length?;
    world.more().await?;
    let requests = world.counted();
    load.closed(&requests, WARM_UP).await?;
    let (calm, ()) = load.open(&requests, rate, tokio::time::sleep(length)).await?;
    let (answers, per_generator) = (moving.taken.len() + calm.taken.len(), calm.per_generator);
    let (moving, calm) = (Latency::of(moving.taken)?, Latency::of(calm.taken)?);
    Ok(Flip { length, answers, moving, calm, per_generator })
}
