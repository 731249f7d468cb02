//! How fast the speed layer catches up, on the peer's records and metrics, and what it costs.
//!
//! `cargo bench --workspace --bench speed -- --help`. Servers are real; every run's answers are held against a naive fold of the
//! records, and a run that differs fails the bench.

mod events;
mod log;
mod process;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use events::{Records, Totals};
use local::layers::Layer;
use local::probe::Serving;
use local::servers::KafkaOptions;
use process::{cpu, machine, peak_memory};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tidemark_tests::stack::{Servers, Stack};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const CATALOG: &str = include_str!("peer.toml");
const MB: f64 = 1_048_576.0;
const MINUTE: i64 = 60_000;
/// The event time at which the records begin: 2016-06-14T04:02:00Z.
const START: i64 = 1_465_876_920_000;

/// Measures how fast the speed layer catches up with a log that is there already.
#[derive(Parser)]
struct Args {
    /// Records in the log.
    #[arg(long, default_value_t = 10_000_000)]
    records: u64,
    /// Partitions of the log.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Measured runs of each mode.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Workers that share the partitions.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// What is measured; all of them where none is named.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// The seed of the records.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The width of a pane, which is the slide of the windows.
    #[arg(long, default_value = "10s")]
    pane: String,
    /// The minutes of event time over which the records are spread.
    #[arg(long, default_value_t = 60)]
    minutes: i64,
    /// The workers keep local copies; when they have caught up, Redis is emptied, and it is measured how long it takes
    /// until it has all again.
    #[arg(long)]
    local_copy: bool,
    /// Further arguments of the worker, separated by spaces.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    worker: String,
    /// The program that is run as the layers, to compare with another build.
    #[arg(long, default_value = LAYERS)]
    layers: String,
    /// A command that runs beside each measured run, with the first worker's process id as its last argument (a
    /// profiler).
    #[arg(long)]
    beside: Option<String>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Cells packed in groups, finished when read; repeats aren't looked for.
    Packed,
    /// The same, and repeats are left out.
    PackedDedup,
    /// Finished values are published as plain keys; repeats aren't looked for.
    Plain,
    /// The same, and repeats are left out.
    PlainDedup,
}

impl Mode {
    fn catalog(self, pane: &str) -> String {
        let dedup = matches!(self, Mode::PackedDedup | Mode::PlainDedup);
        let identity = r#"["uuid", "document_id", "display_id", "ad_id", "ts"]"#;
        CATALOG
            .replace("IDENTITY", if dedup { identity } else { "[]" })
            .replace("PUBLISH", if matches!(self, Mode::Plain | Mode::PlainDedup) { "true" } else { "false" })
            .replace("pane = \"10s\"", &format!("pane = \"{pane}\""))
    }

    fn name(self) -> String {
        self.to_possible_value().expect("no mode is hidden").get_name().to_owned()
    }
}

/// What one run took.
struct Run {
    seconds: f64,
    /// CPU-seconds of the workers, Redis and Kafka.
    cpu: [f64; 3],
    /// The workers' most memory, in MB.
    peak: f64,
    /// The data in Redis at the end, in MB.
    dataset: f64,
    /// The seconds until a Redis that was emptied had all again.
    put_back: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let modes = if args.mode.is_empty() { Mode::value_variants().to_vec() } else { args.mode.clone() };
    println!("{}", machine());
    println!(
        "{} records (seed {}), {} partitions, {} workers, {} runs a mode; median (min to max)",
        args.records, args.seed, args.partitions, args.workers, args.runs
    );
    for mode in modes {
        measure(&args, mode).await.with_context(|| mode.name())?;
    }
    Ok(())
}

async fn measure(args: &Args, mode: Mode) -> anyhow::Result<()> {
    // A broker as it is run for real, not one that is there quickly.
    let kafka = KafkaOptions { heap_mb: 1_024, quick: false, ..KafkaOptions::default() };
    let servers = Servers { kafka, ..Servers::default() };
    let stack = Stack::without_topics(&args.layers, &mode.catalog(&args.pane), servers).await;
    stack.kafka.create_topic("events", args.partitions, &[]).await?;
    stack.batch(&["run"]).await;
    let bootstrap = stack.kafka.bootstrap();
    let (count, partitions, seed) = (args.records, args.partitions as u64, args.seed);
    let records = Records { count, start: START, length: args.minutes * MINUTE, partitions, seed };
    let begun = Instant::now();
    let totals = tokio::task::spawn_blocking(move || log::send(&bootstrap, records, |_| ())).await??;
    println!("{}: log written in {:.0?}", mode.name(), begun.elapsed());
    let idle = stack.redis.dataset().await as f64;
    let mut runs = Vec::new();
    for number in 0..args.runs {
        let mut run = catch_up(&stack, args).await?;
        run.dataset -= idle / MB;
        println!("  run {}: {:.1} s", number + 1, run.seconds);
        runs.push(run);
        check(&stack, &totals).await?;
    }
    report(args, mode, &runs);
    Ok(())
}

/// Empties Redis, starts the workers, and waits until all that the log holds is stored.
async fn catch_up(stack: &Stack, args: &Args) -> anyhow::Result<Run> {
    stack.redis.empty().await;
    let ends = stack.probe.ends()?;
    let kafka = stack.kafka.pid().context("kafka has ended")? as i32;
    let before = [cpu(stack.redis.pids())?, cpu([kafka])?];
    let copies = local::servers::scratch()?;
    let folder = copies.path().display().to_string();
    let mut command = vec!["run", "--listen", "127.0.0.1:0"];
    if args.local_copy {
        command.extend(["--local-copy", &folder]);
    }
    command.extend(args.worker.split_whitespace());
    let begun = Instant::now();
    let start = |number: usize| {
        let connections = ["catalog", "kafka", "redis", "postgres"];
        stack.process_named("speed-layer", &format!("speed-{number}"), &command, &connections)
    };
    let workers: Vec<Layer> = (0..args.workers).map(start).collect();
    let beside = args.beside.as_ref().map(|beside| {
        let mut words = beside.split_whitespace();
        let mut command = std::process::Command::new(words.next().unwrap_or_default());
        command.args(words).arg(workers[0].pid().to_string()).spawn()
    });
    let caught_up = async |begun: Instant| -> anyhow::Result<f64> {
        loop {
            for worker in &workers {
                ensure!(worker.exited().is_none(), "a worker ended:\n{}", worker.logged());
            }
            ensure!(begun.elapsed() < Duration::from_secs(1_800), "not caught up after half an hour");
            if stack.probe.lag(&ends).await? == 0 {
                return Ok(begun.elapsed().as_secs_f64());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let seconds = caught_up(begun).await?;
    let cpu_of =
        |workers: &[Layer]| workers.iter().map(|worker| cpu([worker.pid()])).sum::<anyhow::Result<f64>>();
    let cpu = [cpu_of(&workers)?, cpu(stack.redis.pids())? - before[0], cpu([kafka])? - before[1]];
    let mut put_back = 0.0;
    if args.local_copy {
        let begun = Instant::now();
        stack.redis.empty().await;
        put_back = caught_up(begun).await?;
    }
    let peak = workers.iter().map(|worker| peak_memory(worker.pid())).sum::<anyhow::Result<f64>>()?;
    for worker in workers {
        worker.stop().await;
    }
    if let Some(beside) = beside {
        beside?.wait()?;
    }
    Ok(Run { seconds, cpu, peak, dataset: stack.redis.dataset().await as f64 / MB, put_back })
}

/// Holds what the serving layer answers against the totals.
async fn check(stack: &Stack, totals: &Totals) -> anyhow::Result<()> {
    let (_process, serving) = stack.serving().await;
    let number = |counts: &[u32]| -> HashMap<String, u64> {
        let counted = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(key, &count)| (key.to_string(), u64::from(count))).collect()
    };
    let by_user = |of: usize| -> HashMap<String, u64> {
        let counted = totals.users.iter().enumerate().filter(|(_, counts)| counts[of] > 0);
        counted.map(|(user, counts)| (events::uuid(user), u64::from(counts[of]))).collect()
    };
    for (metric, key, expected) in [
        ("user_click_cnt", "uuid", by_user(0)),
        ("user_view_cnt", "uuid", by_user(1)),
        ("doc_cnt", "document_id", number(&totals.documents)),
        ("display_cnt", "display_id", number(&totals.displays)),
    ] {
        let answer = ask(&serving, metric, &[key], json!([])).await?;
        let rows = answer["rows"].as_array().context("rows")?;
        ensure!(rows.len() == expected.len(), "{metric}: {} rows, not {}", rows.len(), expected.len());
        for row in rows {
            let name = match &row["key"][key] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let found = row["values"][metric].as_u64();
            ensure!(found == expected.get(&name).copied(), "{metric} of {name}: {found:?}");
        }
    }
    // All places would be more items than one answer may hold.
    let mut places: HashMap<String, Vec<u64>> = HashMap::new();
    for (&(place, _), &count) in totals.geo_documents.iter().filter(|((place, _), _)| place % 50 == 0) {
        places.entry(events::geo(place as usize)).or_default().push(u64::from(count));
    }
    let named: Vec<&String> = places.keys().collect();
    let filters = json!([{ "dimension": "geo", "op": "in", "values": named }]);
    let answer = ask(&serving, "geo_top_doc", &["geo"], filters).await?;
    let mut found: HashMap<String, Vec<u64>> = HashMap::new();
    for row in answer["rows"].as_array().context("rows")? {
        let place = row["key"]["geo"].as_str().context("a place")?.to_owned();
        found.entry(place).or_default().extend(row["values"]["geo_top_doc"].as_u64());
    }
    for (place, counts) in &mut places {
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.truncate(10);
        ensure!(
            found.get(place) == Some(counts),
            "geo_top_doc of {place}: {:?}, not {counts:?}",
            found.get(place)
        );
    }
    ensure!(found.len() == places.len(), "geo_top_doc: {} places, not {}", found.len(), places.len());
    let users = totals.users.iter().filter(|counts| counts[0] + counts[1] > 0).count() as f64;
    let answer = ask(&serving, "active_user", &[], json!([])).await?;
    let estimate = answer["rows"][0]["values"]["active_user"].as_f64().context("an estimate")?;
    ensure!((estimate / users - 1.0).abs() < 0.05, "active_user: {estimate}, not about {users}");
    Ok(())
}

/// All that a metric counted, by its keys, over all time.
async fn ask(serving: &Serving, metric: &str, by: &[&str], filters: Value) -> anyhow::Result<Value> {
    let query = json!({
        "metrics": [metric], "group_by": by, "filters": filters, "granularity": "none", "strict": true, "limit": 1_000_000,
        "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z",
    });
    serving.query(&query).await
}

fn report(args: &Args, mode: Mode, runs: &[Run]) {
    let of = |what: &dyn Fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(what).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let line = |name: &str, what: &dyn Fn(&Run) -> f64, digits: usize| {
        let (median, min, max) = of(what);
        println!("  {name:<34} {median:>12.digits$} ({min:.digits$} to {max:.digits$})");
    };
    let records = args.records as f64;
    println!("{}:", mode.name());
    line("records/s", &|run| records / run.seconds, 0);
    line("records per CPU-second, all", &|run| records / run.cpu.iter().sum::<f64>(), 0);
    line("records per CPU-second, worker", &|run| records / run.cpu[0], 0);
    line("CPU us per record, worker", &|run| 1e6 * run.cpu[0] / records, 3);
    line("CPU us per record, redis", &|run| 1e6 * run.cpu[1] / records, 3);
    line("CPU us per record, kafka", &|run| 1e6 * run.cpu[2] / records, 3);
    line("worker's peak memory, MB", &|run| run.peak, 0);
    line("data in redis, MB", &|run| run.dataset, 0);
    if args.local_copy {
        line("emptied, all put back after, s", &|run| run.put_back, 1);
    }
}
