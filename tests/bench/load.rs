//! Asks as often as it is answered, or at a rate, and tells how long answers took and what they cost.

use crate::Args;
use crate::process::cpu;
use crate::world::World;
use anyhow::ensure;
use futures::future::BoxFuture;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// One request under way, until it is answered; an answer that is wrong is an error.
pub(crate) type Call = BoxFuture<'static, anyhow::Result<()>>;

/// What is asked, each time about what is drawn.
pub(crate) type Ask = Arc<dyn Fn(&mut SmallRng) -> Call + Send + Sync>;

/// How many answers came.
pub(crate) struct Rates {
    /// For each second.
    pub(crate) per_second: f64,
    /// For each CPU-second of the serving layer.
    pub(crate) per_serving: f64,
    /// For each CPU-second of Redis.
    pub(crate) per_redis: f64,
}

/// How long answers took, in milliseconds.
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Latency {
    pub(crate) fn of(mut taken: Vec<Duration>) -> anyhow::Result<Latency> {
        ensure!(!taken.is_empty(), "no answer came in time");
        taken.sort_unstable();
        let last = taken.len() - 1;
        let place = |part: f64| 1e3 * taken[((taken.len() as f64 * part) as usize).min(last)].as_secs_f64();
        Ok(Latency { p50: place(0.5), p99: place(0.99) })
    }
}

/// A load generator in this process.
pub(crate) struct Load {
    /// How long a load lasts.
    pub(crate) time: Duration,
    abreast: usize,
    seed: u64,
    /// The processes whose CPU-seconds are looked at.
    serving: i32,
    redis: Vec<i32>,
}

impl Load {
    pub(crate) fn new(args: &Args, world: &World) -> Load {
        Load {
            time: Duration::from_secs(args.seconds),
            abreast: args.abreast,
            seed: args.seed,
            serving: world.process.pid(),
            redis: world.stack.redis.pids().collect(),
        }
    }

    fn spent(&self) -> anyhow::Result<[f64; 2]> {
        Ok([cpu([self.serving])?, cpu(self.redis.iter().copied())?])
    }

    /// As many requests as are answered, so many of them at once as are to be abreast.
    pub(crate) async fn closed(&self, ask: &Ask, time: Duration) -> anyhow::Result<Rates> {
        let (before, begun) = (self.spent()?, Instant::now());
        let mut tasks = JoinSet::new();
        for task in 0..self.abreast {
            let (ask, mut random) = (ask.clone(), SmallRng::seed_from_u64(self.seed + task as u64));
            tasks.spawn(async move {
                let mut answers = 0u64;
                while begun.elapsed() < time {
                    ask(&mut random).await?;
                    answers += 1;
                }
                anyhow::Ok(answers)
            });
        }
        let mut answers = 0;
        while let Some(task) = tasks.join_next().await {
            answers += task??;
        }
        let (elapsed, after) = (begun.elapsed().as_secs_f64(), self.spent()?);
        ensure!(answers > 0, "no answer came in time");
        let answers = answers as f64;
        Ok(Rates {
            per_second: answers / elapsed,
            per_serving: answers / (after[0] - before[0]),
            per_redis: answers / (after[1] - before[1]),
        })
    }

    /// Requests at even distances, however long the answers take, until something is over; how long each took, and what
    /// came of that.
    pub(crate) async fn open<T>(
        &self,
        ask: &Ask,
        rate: f64,
        during: impl Future<Output = T>,
    ) -> anyhow::Result<(Vec<Duration>, T)> {
        let mut during = std::pin::pin!(during);
        let mut random = SmallRng::seed_from_u64(self.seed);
        let (mut tasks, mut taken) = (JoinSet::new(), Vec::new());
        let (mut number, begun) = (0u64, Instant::now());
        let came = loop {
            let at = begun + Duration::from_secs_f64(number as f64 / rate);
            tokio::select! {
                came = &mut during => break came,
                () = tokio::time::sleep_until(at.into()) => number += 1,
            }
            let call = ask(&mut random);
            tasks.spawn(async move {
                call.await?;
                // What the generator itself is late by counts too: the timer's millisecond, and want of a core.
                anyhow::Ok(at.elapsed())
            });
            while let Some(task) = tasks.try_join_next() {
                taken.push(task??);
            }
        };
        while let Some(task) = tasks.join_next().await {
            taken.push(task??);
        }
        Ok((taken, came))
    }

    /// Each once in turn, one at a time, each so many times a second; how long they took from when they were asked. At a low
    /// rate none waits for another, and the timer's millisecond would hide what they differ by.
    pub(crate) async fn in_turn<const N: usize>(
        &self,
        asks: [&Ask; N],
        rate: f64,
    ) -> anyhow::Result<[Vec<Duration>; N]> {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let mut taken: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::new());
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / (rate * N as f64)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let begun = Instant::now();
        while begun.elapsed() < self.time {
            for (ask, taken) in asks.iter().zip(&mut taken) {
                ticks.tick().await;
                let asked = Instant::now();
                ask(&mut random).await?;
                taken.push(asked.elapsed());
            }
        }
        Ok(taken)
    }
}
