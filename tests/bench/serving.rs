//! How many answers the serving layer gives for a CPU-second, and how soon.
//!
//! `cargo bench --workspace --bench serving -- --help`. Servers are real. Thirty days lie in the batch view, the last hour
//! in the realtime view; answers are held against naive counts of the records, and one that differs fails the bench.

mod events;
mod log;
mod process;

use anyhow::{Context as _, ensure};
use clap::Parser;
use events::{Records, Totals, geo, uuid};
use local::probe::Serving;
use local::servers::KafkaOptions;
use process::{cpu, machine, peak_memory};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemark_tests::stack::{Servers, Stack};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const CATALOG: &str = include_str!("peer.toml");
/// The end of all records: 2016-07-01T00:00:00Z.
const END: i64 = 1_467_331_200_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const WINDOW: i64 = 300_000;
const PANE: i64 = 10_000;

/// Measures answers, with a load generator (reqwest, in this process) on the same machine.
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
    /// How many requests are under way at once where as many are asked as are answered.
    #[arg(long, default_value_t = 32)]
    abreast: usize,
    /// How long each load lasts.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measured runs of each load.
    #[arg(long, default_value_t = 5)]
    runs: usize,
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

/// What is asked.
type Ask = Arc<dyn Fn(&mut SmallRng) -> reqwest::Request + Send + Sync>;

/// What one load took.
#[derive(Clone, Copy)]
struct Run {
    /// Answers for each second, each CPU-second of the serving layer, and each CPU-second of Redis.
    rates: [f64; 3],
    /// Milliseconds.
    p50: f64,
    p99: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("{}", machine());
    println!(
        "{} records of 30 days in the batch view, {} of the last hour in the realtime view (seed {}); {} runs of {} s; \
         median (min to max)",
        args.history, args.recent, args.seed, args.runs, args.seconds
    );
    // A broker as it is run for real, not one that is there quickly.
    let kafka = KafkaOptions { heap_mb: 1_024, quick: false, ..KafkaOptions::default() };
    let catalog = CATALOG
        .replace("IDENTITY", "[]")
        .replace("PUBLISH", "false")
        // The tidemark is to pass the thirty days at once.
        .replace("epoch = \"10m\"", "epoch = \"1m\"")
        .replace("2016-06-13", "2016-05-31")
        .replace("to = \"2016-07-01\"", "to = \"2016-07-02\"");
    let stack = Stack::without_topics(&args.layers, &catalog, Servers { kafka, ..Servers::default() }).await;
    stack.kafka.create_topic("events", args.partitions, &[]).await?;
    stack.batch(&["run"]).await;
    let _speed = stack.speed();
    let (totals, window) = fill(&stack, &args).await?;
    let (process, serving) = stack.serving().await;
    check(&serving, &totals, &window, args.seed).await?;
    println!("answers are right");
    let load = Load { args: &args, stack: &stack, pid: process.pid(), client: reqwest::Client::new() };
    let users: Vec<String> = window.keys().cloned().collect();
    let url = serving.url.clone();
    let live = {
        let (client, url) = (load.client.clone(), url.clone());
        move |random: &mut SmallRng| {
            let user = &users[random.random_range(0..users.len())];
            client
                .get(format!("{url}/api/v1/live/user_view_cnt?strict=true&uuid={user}"))
                .build()
                .expect("a request")
        }
    };
    load.measure("live counter of one key", Arc::new(live)).await?;
    let top = {
        let (client, url) = (load.client.clone(), url.clone());
        let hottest = geo(0);
        move |_: &mut SmallRng| {
            let request = client
                .get(format!("{url}/api/v1/live/geo_top_doc"))
                .query(&[("geo", hottest.as_str()), ("strict", "true")]);
            request.build().expect("a request")
        }
    };
    load.measure("live top 10 of the hottest place", Arc::new(top)).await?;
    let one = {
        let (client, url) = (load.client.clone(), url.clone());
        move |random: &mut SmallRng| {
            let user = uuid(random.random_range(0..1_000));
            let body = request("user_view_cnt", 30, &[], json!([{ "dimension": "uuid", "value": user }]));
            client.post(format!("{url}/api/v1/query")).json(&body).build().expect("a request")
        }
    };
    load.measure("merged query, one key over 30 days", Arc::new(one)).await?;
    let thousand = {
        let client = load.client.clone();
        let documents: Vec<usize> = (1..=1_000).collect();
        let filters = json!([{ "dimension": "document_id", "op": "in", "values": documents }]);
        let body = request("doc_cnt", 7, &["document_id"], filters);
        move |_: &mut SmallRng| {
            client.post(format!("{url}/api/v1/query")).json(&body).build().expect("a request")
        }
    };
    load.measure("merged query, 1,000 keys over 7 days", Arc::new(thousand)).await?;
    println!("serving layer's peak memory: {:.0} MB", peak_memory(process.pid())?);
    process.stop().await;
    Ok(())
}

/// Each user's views in the last window.
type Window = HashMap<String, u64>;

/// What a record says.
#[derive(serde::Deserialize)]
struct Event<'a> {
    event_type: &'a str,
    uuid: &'a str,
    ts: i64,
}

/// Brings thirty days into the batch view and an hour into the realtime view; what both add up to.
async fn fill(stack: &Stack, args: &Args) -> anyhow::Result<([Totals; 2], Window)> {
    let bootstrap = stack.kafka.bootstrap();
    let (partitions, seed) = (args.partitions as u64, args.seed);
    let recent = Records { count: args.recent, start: END - HOUR, length: HOUR, partitions, seed };
    let days = Records { count: args.history, start: END - 30 * DAY, length: 30 * DAY - HOUR, ..recent };
    let to = bootstrap.clone();
    let history = tokio::task::spawn_blocking(move || log::send(&to, days, |_| ())).await??;
    stack.settle().await;
    println!("{} records sent", args.history);
    stack.run_past_the_end().await;
    println!("computed");
    let last = move || {
        let (mut views, mut newest, mut fault) = (Vec::new(), i64::MIN, None);
        let totals = log::send(&bootstrap, recent, |record| match serde_json::from_slice::<Event>(record) {
            Ok(event) => {
                newest = newest.max(event.ts);
                if event.event_type == "view" && event.ts >= END - 2 * WINDOW {
                    views.push((event.uuid.to_owned(), event.ts));
                }
            }
            Err(error) => fault = Some(error),
        })?;
        ensure!(fault.is_none(), "a record can't be read: {fault:?}");
        let end = newest.div_euclid(PANE) * PANE + PANE;
        let mut window = Window::new();
        for (user, _) in views.into_iter().filter(|(_, time)| (end - WINDOW..end).contains(time)) {
            *window.entry(user).or_default() += 1;
        }
        Ok((totals, window))
    };
    let (recent, window) = tokio::task::spawn_blocking(last).await??;
    stack.settle().await;
    println!("{} records sent", args.recent);
    Ok(([history, recent], window))
}

fn request(metric: &str, days: i64, by: &[&str], filters: Value) -> Value {
    let from = shared_model::time::show(END - days * DAY);
    json!({
        "metrics": [metric], "group_by": by, "filters": filters, "granularity": "none", "strict": true,
        "from": from, "to": shared_model::time::show(END),
    })
}

/// Holds answers against the records.
async fn check(serving: &Serving, totals: &[Totals; 2], window: &Window, seed: u64) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let users: Vec<&String> = window.keys().collect();
    for _ in 0..100 {
        let user = users[random.random_range(0..users.len())];
        let answer = serving.live("user_view_cnt", &[("uuid", user.clone())]).await?;
        ensure!(answer["value"] == window[user] && answer["complete"] == true, "live of {user}: {answer}");
    }
    for user in (0..100).map(|n| n * 7) {
        let filters = json!([{ "dimension": "uuid", "value": uuid(user) }]);
        // All but the records that are late at the very beginning, which lie before the thirty days.
        let mut asked = request("user_view_cnt", 30, &[], filters);
        asked["from"] = json!("2016-05-31T00:00:00Z");
        let answer = serving.query(&asked).await?;
        let expected: u64 = totals.iter().map(|totals| u64::from(totals.users[user][1])).sum();
        ensure!(answer["rows"][0]["values"]["user_view_cnt"] == expected, "views of {user}: {answer}");
    }
    let documents: Vec<usize> = (1..=1_000).collect();
    let filters = json!([{ "dimension": "document_id", "op": "in", "values": documents }]);
    let mut asked = request("doc_cnt", 30, &["document_id"], filters);
    asked["from"] = json!("2016-05-31T00:00:00Z");
    let answer = serving.query(&asked).await?;
    let rows = answer["rows"].as_array().context("rows")?;
    let count = |document: usize| totals.iter().map(|of| u64::from(of.documents[document])).sum::<u64>();
    let there = documents.iter().filter(|&&document| count(document) > 0).count();
    ensure!(rows.len() == there, "{} documents, not {there}", rows.len());
    for row in rows {
        let document = row["key"]["document_id"].as_u64().context("a document")? as usize;
        ensure!(row["values"]["doc_cnt"] == count(document), "events of {document}: {row}");
    }
    Ok(())
}

struct Load<'a> {
    args: &'a Args,
    stack: &'a Stack,
    pid: i32,
    client: reqwest::Client,
}

impl Load<'_> {
    /// As many requests as are answered, for the rates; then half as many, evenly, for the latencies.
    async fn measure(&self, name: &str, ask: Ask) -> anyhow::Result<()> {
        self.closed(&ask, Duration::from_secs(1)).await?;
        let (mut full, mut half) = (Vec::new(), Vec::new());
        for _ in 0..self.args.runs {
            let run = self.closed(&ask, Duration::from_secs(self.args.seconds)).await?;
            half.push(self.open(&ask, run.rates[0] / 2.0).await?);
            full.push(run);
        }
        println!("{name}:");
        line("answers/s", &full, |run| run.rates[0], 0);
        line("answers per CPU-second, serving", &full, |run| run.rates[1], 0);
        line("answers per CPU-second, redis", &full, |run| run.rates[2], 0);
        line("p50 at half of that rate, ms", &half, |run| run.p50, 2);
        line("p99 at half of that rate, ms", &half, |run| run.p99, 2);
        Ok(())
    }

    fn spent(&self) -> anyhow::Result<[f64; 2]> {
        Ok([cpu([self.pid])?, cpu(self.stack.redis.pids())?])
    }

    async fn closed(&self, ask: &Ask, time: Duration) -> anyhow::Result<Run> {
        let (before, begun) = (self.spent()?, Instant::now());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..self.args.abreast {
            let (client, ask) = (self.client.clone(), ask.clone());
            let mut random = SmallRng::seed_from_u64(self.args.seed + task as u64);
            tasks.spawn(async move {
                let mut taken = Vec::new();
                while begun.elapsed() < time {
                    let asked = Instant::now();
                    answer(&client, ask(&mut random)).await?;
                    taken.push(asked.elapsed());
                }
                anyhow::Ok(taken)
            });
        }
        let mut taken = Vec::new();
        while let Some(task) = tasks.join_next().await {
            taken.extend(task??);
        }
        self.run(taken, begun, before)
    }

    /// Requests at even distances, however long the answers take.
    async fn open(&self, ask: &Ask, rate: f64) -> anyhow::Result<Run> {
        let (before, begun) = (self.spent()?, Instant::now());
        let count = (rate * self.args.seconds as f64) as u64;
        let mut random = SmallRng::seed_from_u64(self.args.seed);
        let mut tasks = tokio::task::JoinSet::new();
        let mut taken = Vec::new();
        for n in 0..count {
            let at = begun + Duration::from_secs_f64(n as f64 / rate);
            tokio::time::sleep_until(at.into()).await;
            let (client, request) = (self.client.clone(), ask(&mut random));
            tasks.spawn(async move {
                answer(&client, request).await?;
                // What the generator itself is late by counts too: the timer's millisecond, and want of a core.
                anyhow::Ok(at.elapsed())
            });
            while let Some(task) = tasks.try_join_next() {
                taken.push(task??);
            }
        }
        while let Some(task) = tasks.join_next().await {
            taken.push(task??);
        }
        self.run(taken, begun, before)
    }

    fn run(&self, mut taken: Vec<Duration>, begun: Instant, before: [f64; 2]) -> anyhow::Result<Run> {
        let (elapsed, after) = (begun.elapsed().as_secs_f64(), self.spent()?);
        ensure!(!taken.is_empty(), "no answer came in time");
        taken.sort_unstable();
        let count = taken.len() as f64;
        let place = |part: f64| 1e3 * taken[((count * part) as usize).min(taken.len() - 1)].as_secs_f64();
        let rates = [count / elapsed, count / (after[0] - before[0]), count / (after[1] - before[1])];
        Ok(Run { rates, p50: place(0.5), p99: place(0.99) })
    }
}

async fn answer(client: &reqwest::Client, request: reqwest::Request) -> anyhow::Result<()> {
    let answer = client.execute(request).await?;
    let status = answer.status();
    let body = answer.bytes().await?;
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}

fn line(name: &str, runs: &[Run], of: impl Fn(&Run) -> f64, digits: usize) {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let (median, min, max) = (values[values.len() / 2], values[0], values[values.len() - 1]);
    println!("  {name:<34} {median:>12.digits$} ({min:.digits$} to {max:.digits$})");
}
