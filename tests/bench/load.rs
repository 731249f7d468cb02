//! Asks as often as it is answered, or at a rate, and tells how long answers took and what they cost.
//!
//! The generator has a thread of its own, so that its tasks wake none but each other. At a rate another thread tells it when
//! a request is due, and a request waits from then on, whatever keeps the generator.

use crate::Args;
use crate::process::cpu;
use crate::requests::{Connection, Request, Requests};
use crate::world::World;
use anyhow::ensure;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::MissedTickBehavior;

/// So many requests at most are under way where they come at a rate; more wait for one of them, and that counts.
const CONNECTIONS: usize = 256;

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
    /// For each CPU-second of the generator.
    pub(crate) per_generator: f64,
}

/// The answers to requests that came at a rate.
pub(crate) struct Evenly {
    /// How long each took.
    pub(crate) taken: Vec<Duration>,
    /// How many came for each CPU-second of the generator.
    pub(crate) per_generator: f64,
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

    /// The CPU-seconds of the serving layer, of Redis, and of this process, which does little else under a load.
    fn spent(&self) -> anyhow::Result<[f64; 3]> {
        let myself = std::process::id() as i32;
        Ok([cpu([self.serving])?, cpu(self.redis.iter().copied())?, cpu([myself])?])
    }

    /// As many requests as are answered, so many of them at once as are to be abreast.
    pub(crate) async fn closed(&self, requests: &Arc<Requests>, time: Duration) -> anyhow::Result<Rates> {
        let (requests, abreast, seed) = (requests.clone(), self.abreast, self.seed);
        let before = self.spent()?;
        let (answers, elapsed) =
            alone(move || async move { abreast_for(&requests, abreast, seed, time).await }).await?;
        let after = self.spent()?;
        ensure!(answers > 0, "no answer came in time");
        let answers = answers as f64;
        let [per_serving, per_redis, per_generator] =
            std::array::from_fn(|of| answers / (after[of] - before[of]));
        Ok(Rates { per_second: answers / elapsed.as_secs_f64(), per_serving, per_redis, per_generator })
    }

    /// Requests at even distances, however long the answers take, until something is over; what came of that too.
    pub(crate) async fn open<T>(
        &self,
        requests: &Arc<Requests>,
        rate: f64,
        during: impl Future<Output = T>,
    ) -> anyhow::Result<(Evenly, T)> {
        let (requests, seed, over) = (requests.clone(), self.seed, Arc::new(AtomicBool::new(false)));
        let is_over = over.clone();
        let load = alone(move || async move { evenly(&requests, seed, rate, is_over).await });
        let during = async {
            let came = during.await;
            over.store(true, Ordering::Relaxed);
            anyhow::Ok(came)
        };
        let before = self.spent()?;
        let (taken, came) = futures::future::try_join(load, during).await?;
        let per_generator = taken.len() as f64 / (self.spent()?[2] - before[2]);
        Ok((Evenly { taken, per_generator }, came))
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

/// Runs a load in a thread of its own, in a runtime that has no other.
async fn alone<T: Send + 'static, F: Future<Output = anyhow::Result<T>>>(
    load: impl FnOnce() -> F + Send + 'static,
) -> anyhow::Result<T> {
    let run = move || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(load());
    tokio::task::spawn_blocking(run).await?
}

async fn connections(requests: &Requests, count: usize) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(Connection::open(requests).await?);
    }
    Ok(connections)
}

/// Asks over each connection as often as it is answered; how many answers came, and in which time.
async fn abreast_for(
    requests: &Requests,
    abreast: usize,
    seed: u64,
    time: Duration,
) -> anyhow::Result<(u64, Duration)> {
    let (connections, mut under_way) = (connections(requests, abreast).await?, FuturesUnordered::new());
    let begun = Instant::now();
    for (mut connection, seed) in connections.into_iter().zip(seed..) {
        let mut random = SmallRng::seed_from_u64(seed);
        under_way.push(async move {
            let mut answers = 0u64;
            while begun.elapsed() < time {
                connection.ask(requests.draw(&mut random)).await?;
                answers += 1;
            }
            anyhow::Ok(answers)
        });
    }
    let mut answers = 0;
    while let Some(more) = under_way.try_next().await? {
        answers += more;
    }
    Ok((answers, begun.elapsed()))
}

/// Asks at even distances until it is over; how long each request took from when it was due.
async fn evenly(
    requests: &Requests,
    seed: u64,
    rate: f64,
    is_over: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Duration>> {
    // The one that was last in use is the next: no more are in use than are needed.
    let mut idle = connections(requests, CONNECTIONS).await?;
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut waiting, mut under_way, mut taken) = (VecDeque::new(), FuturesUnordered::new(), Vec::new());
    let mut times = times(rate, is_over);
    loop {
        while let Some(&due) = waiting.front()
            && let Some(connection) = idle.pop()
        {
            waiting.pop_front();
            under_way.push(answered(connection, requests.draw(&mut random), due));
        }
        tokio::select! {
            Some(due) = times.recv() => waiting.push_back(due),
            Some(answer) = under_way.next() => {
                let (connection, took) = answer?;
                idle.push(connection);
                taken.push(took);
            }
            else => return Ok(taken),
        }
    }
}

/// Asks what is due; how long it took since then: what the generator itself is late by, for want of a core, counts too.
async fn answered(
    mut connection: Connection,
    request: Request,
    due: Instant,
) -> anyhow::Result<(Connection, Duration)> {
    connection.ask(request).await?;
    Ok((connection, due.elapsed()))
}

/// Times at even distances, each when it has come, until it is over. A thread's sleep is finer than the timer of tasks, which
/// wakes once in a millisecond: a dozen requests would come in a burst.
fn times(rate: f64, is_over: Arc<AtomicBool>) -> UnboundedReceiver<Instant> {
    let (send, times) = mpsc::unbounded_channel();
    let begun = Instant::now();
    std::thread::spawn(move || {
        let at = |number: u64| begun + Duration::from_secs_f64(number as f64 / rate);
        for at in (0..).map(at) {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if is_over.load(Ordering::Relaxed) || send.send(at).is_err() {
                break;
            }
        }
    });
    times
}
