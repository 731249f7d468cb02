//! How soon a record shows at a subscriber, and whether a thousand others who subscribe make it later.
//!
//! `cargo bench --workspace --bench push -- --help`. Servers are real. Views of one user come at a steady rate while a client
//! is subscribed to that user's sliding counter; half of the rounds with many more subscribers to it.

mod figures;
mod machine;
mod process;

use anyhow::{Context as _, ensure};
use clap::Parser;
use figures::Figures;
use process::{cpu, peak_memory};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use std::time::Duration;
use tidemark_tests::stack::Stack;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// The first event time, as the stream's records have it.
const START: i64 = 1_000_000;
/// Nothing is waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures how soon records show at a subscriber, without and with many others.
#[derive(Parser)]
struct Args {
    /// How many other subscribers there are.
    #[arg(long, default_value_t = 1_000)]
    subscribers: usize,
    /// Records a second: the counter changes at every look.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// How long a round lasts.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Measured runs, each of a round without and one with other subscribers.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The program that is run as the layers, to compare with another build.
    #[arg(long, default_value = LAYERS)]
    layers: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one round took.
struct Round {
    /// Milliseconds from a record's append to the event that counts it.
    p50: f64,
    p99: f64,
    /// The fewest events that another subscriber got, each second.
    updates: f64,
    /// Of the serving layer, each second.
    cpu: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("{}", machine::described().await);
    println!(
        "{} records/s for {} s a round, without and with {} other subscribers; median (min to max) of {} runs",
        args.rate, args.seconds, args.subscribers, args.runs
    );
    let stack = Stack::start(&args.layers, 2).await;
    stack.batch(&["run"]).await;
    let _speed = stack.speed();
    let (process, serving) = stack.serving().await;
    let bench = Bench {
        args: &args,
        bootstrap: stack.kafka.bootstrap(),
        url: serving.url.clone(),
        pid: process.pid(),
    };
    let mut figures = Figures::default();
    for run in 0..args.runs {
        let without = bench.round(2 * run, 0).await?;
        let with = bench.round(2 * run + 1, args.subscribers).await?;
        for (name, round) in [("without", &without), ("with", &with)] {
            figures.add(&format!("{name}: p50, ms"), round.p50, 2);
            figures.add(&format!("{name}: p99, ms"), round.p99, 2);
            figures.add(&format!("{name}: serving layer's CPU-s a second"), round.cpu, 2);
        }
        figures.add("events/s of the subscriber that got fewest", with.updates, 2);
        figures.add("p99 with others / without, in the same run", with.p99 / without.p99, 2);
    }
    figures.print();
    println!("serving layer's peak memory: {:.0} MB", peak_memory(process.pid())?);
    process.stop().await;
    Ok(())
}

struct Bench<'a> {
    args: &'a Args,
    bootstrap: String,
    url: String,
    pid: i32,
}

impl Bench<'_> {
    /// Sends views of one user to one who is subscribed, and to others.
    async fn round(&self, number: usize, others: usize) -> anyhow::Result<Round> {
        let user = format!("user-{number}");
        let path = format!("/api/v1/live/user_view_cnt_5m/events?uuid={user}");
        let (over, mut reading) = (CancellationToken::new(), JoinSet::new());
        for _ in 0..others {
            let connection = opened(&self.url, &path).await?;
            reading.spawn(counted(connection, over.clone()));
        }
        let observer = reqwest::get(format!("{}{path}", self.url)).await?.error_for_status()?;
        let (before, begun) = (cpu([self.pid])?, Instant::now());
        let total = u64::from(self.args.rate * self.args.seconds);
        let (appended, seen) = tokio::try_join!(self.send(number, &user, total), observed(observer, total))?;
        let (after, lasted) = (cpu([self.pid])?, begun.elapsed().as_secs_f64());
        over.cancel();
        let mut fewest = u64::MAX;
        while let Some(count) = reading.join_next().await {
            fewest = fewest.min(count??);
        }
        let mut delays = Vec::new();
        let mut seen = seen.into_iter().peekable();
        for (record, appended) in (1..).zip(&appended) {
            while seen.next_if(|(value, _)| *value < record).is_some() {}
            let (_, at) = seen.peek().context("a record that no event counts")?;
            delays.push((at - appended) as f64);
        }
        delays.sort_by(f64::total_cmp);
        let at = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize];
        let updates = if others == 0 { 0.0 } else { fewest as f64 / lasted };
        Ok(Round { p50: at(0.5), p99: at(0.99), updates, cpu: (after - before) / lasted })
    }

    /// Sends views at a steady rate; when each was appended.
    async fn send(&self, number: usize, user: &str, total: u64) -> anyhow::Result<Vec<i64>> {
        let mut config = ClientConfig::new();
        let producer: FutureProducer =
            config.set("bootstrap.servers", &self.bootstrap).set("linger.ms", "0").create()?;
        let first = START + number as i64 * i64::from(self.args.seconds) * 1_000;
        let (begun, mut appended) = (Instant::now(), Vec::new());
        for n in 0..total {
            let due = Duration::from_secs_f64(n as f64 / f64::from(self.args.rate));
            tokio::time::sleep_until(begun + due).await;
            let view = json!({
                "uuid": user, "document_id": 7, "timestamp": first + due.as_millis() as i64, "platform": 1,
                "geo_location": "XX>YY", "traffic_source": n,
            });
            let (view, within) = (view.to_string(), Duration::from_secs(10));
            let sent = producer.send(FutureRecord::to("page_views").key(user).payload(&view), within).await;
            let sent = sent.map_err(|(error, _)| error)?;
            appended.push(sent.timestamp.to_millis().context("no append time")?);
        }
        Ok(appended)
    }
}

/// The values that a subscriber is told of, and when, until all records count.
async fn observed(mut response: reqwest::Response, total: u64) -> anyhow::Result<Vec<(u64, i64)>> {
    let (mut text, mut seen) = (String::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE * 2;
    while seen.last().is_none_or(|(value, _)| *value < total) {
        let chunk = tokio::time::timeout_at(deadline, response.chunk()).await;
        let chunk = chunk.with_context(|| format!("last: {:?} of {total}", seen.last()))??;
        text.push_str(std::str::from_utf8(&chunk.context("the stream has ended")?)?);
        while let Some((block, rest)) = text.split_once("\n\n") {
            let data = block.lines().find_map(|line| line.strip_prefix("data: "));
            let data: Value = data.map_or(Ok(Value::Null), serde_json::from_str)?;
            ensure!(data.get("error").is_none(), "{data}");
            seen.extend(value(&data).map(|value| (value, now())));
            text = rest.to_owned();
        }
    }
    Ok(seen)
}

/// The value that an event brings: a snapshot's, or a patch's.
fn value(data: &Value) -> Option<u64> {
    let patched = data.as_array().into_iter().flatten().find(|operation| operation["path"] == "/value");
    patched.unwrap_or(data)["value"].as_u64()
}

/// A subscriber's connection, which has got its snapshot.
async fn opened(url: &str, path: &str) -> anyhow::Result<TcpStream> {
    let address = url.strip_prefix("http://").context("an address")?;
    let connected = TcpStream::connect(address).await;
    let mut connection =
        connected.context("each subscriber needs a file descriptor here and there: ulimit -n")?;
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    let (mut buffer, mut events) = (vec![0; 16 << 10], Events::default());
    while events.count == 0 {
        let read = tokio::time::timeout(PATIENCE, connection.read(&mut buffer)).await??;
        ensure!(read > 0, "a subscriber is refused");
        events.take(&buffer[..read]);
    }
    Ok(connection)
}

/// How many events come, until it is over.
async fn counted(mut connection: TcpStream, over: CancellationToken) -> anyhow::Result<u64> {
    let (mut buffer, mut events) = (vec![0; 16 << 10], Events::default());
    loop {
        tokio::select! {
            () = over.cancelled() => return Ok(events.count),
            read = connection.read(&mut buffer) => {
                let read = read?;
                ensure!(read > 0, "a subscriber's stream has ended");
                events.take(&buffer[..read]);
            }
        }
    }
}

/// Counts events in a stream that comes in pieces.
#[derive(Default)]
struct Events {
    count: u64,
    /// How much of the mark stood at the end of what came.
    matched: usize,
}

impl Events {
    fn take(&mut self, bytes: &[u8]) {
        const MARK: &[u8] = b"\nevent: ";
        for &byte in bytes {
            self.matched = match byte == MARK[self.matched] {
                true => self.matched + 1,
                false => usize::from(byte == MARK[0]),
            };
            if self.matched == MARK.len() {
                (self.count, self.matched) = (self.count + 1, 0);
            }
        }
    }
}

/// The clock of the machine, which the broker stamps by too.
#[allow(clippy::disallowed_methods)]
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
