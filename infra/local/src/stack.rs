//! The local stack: servers, layers and events, started in order and stopped in the reverse one.
//!
//! Everything that is started here is a child of this process and ends with it; servers given by URL are used as they
//! are and never stopped.

mod files;

use crate::cli::Args;
use crate::install::Need;
use crate::layers::{self, Layer};
use crate::oracle::Oracle;
use crate::probe::{Probe, Serving};
use crate::screen::Screen;
use crate::servers::{Kafka, KafkaOptions, Postgres, PostgresOptions, Redis, RedisOptions};
use crate::{ask, compare, screen};
use anyhow::{Context, Result, bail, ensure};
use shared_model::catalog::{Catalog, OUTBRAIN};
use shared_model::offsets::TopicPartition;
use shared_model::secret::{POSTGRES, REDIS, Secret, shown};
use simulator::generate::{Generator, Options};
use simulator::replay::Sender;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Epochs of seconds, so that the tidemark is seen to move.
const LAYOUT: &str = "epoch = \"2s\"\ngroups = 4\npane = \"10s\"";
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts everything, shows it or compares it, and stops it. `false` where a comparison failed.
///
/// # Errors
/// Where something can't be started or ends by itself: with the end of its log.
pub async fn run(args: Args, clock: fn() -> i64) -> Result<bool> {
    let stop = layers::stop_signal();
    let started = async {
        let stack = Stack::start(&args, &stop).await?;
        let equal = if args.once { Some(stack.once(&args, clock).await?) } else { None };
        anyhow::Ok((stack, equal))
    };
    // Dropping the work ends every process that it has started.
    let (stack, equal) = tokio::select! {
        started = started => started?,
        () = stop.cancelled() => {
            say("stopped before the end");
            return Ok(false);
        }
    };
    let done = match equal {
        Some(equal) => Ok(equal),
        None => stack.show(&args, clock, &stop).await,
    };
    say("stopping all that was started");
    stack.stop().await;
    done
}

fn say(what: &str) {
    println!("• {what}");
}

/// The catalog with its `[layout]` section replaced.
pub fn with_layout(catalog: &str, layout: &str) -> String {
    let mut kept = Vec::new();
    let mut inside = false;
    for line in catalog.lines() {
        if line.starts_with('[') {
            inside = line.trim() == "[layout]";
        }
        if !inside {
            kept.push(line);
        }
    }
    format!("{}\n[layout]\n{layout}\n", kept.join("\n"))
}

/// What runs.
struct Stack {
    // Layers first: they end before the servers that they use.
    serving_layer: Layer,
    speed_layer: Layer,
    serving: Serving,
    probe: Probe,
    catalog: Catalog,
    connections: Vec<(String, String)>,
    folder: PathBuf,
    program: PathBuf,
    _redis: Option<Redis>,
    _postgres: Option<Postgres>,
    _kafka: Option<Kafka>,
}

impl Stack {
    async fn start(args: &Args, stop: &CancellationToken) -> Result<Stack> {
        let folder = fresh_folder(args.folder.as_deref())?;
        let program = std::env::current_exe().context("can't find this program's own file")?;
        let mut needed = Vec::new();
        needed.extend(args.redis.is_none().then_some(Need::Redis));
        needed.extend(args.postgres.is_none().then_some(Need::Postgres));
        needed.extend(args.kafka.is_none().then_some(Need::Kafka));
        let found = ask::servers(needed, args.yes, stop.clone(), say).await?;
        say(&format!("everything is kept in {} (emptied at each start)", folder.display()));

        let started = Instant::now();
        let kafka = async {
            let options = KafkaOptions { quick: false, ..KafkaOptions::default() };
            anyhow::Ok(match args.kafka {
                Some(_) => None,
                None => Some(Kafka::start(&found, &folder.join("kafka"), options).await.context("kafka")?),
            })
        };
        let redis = async {
            anyhow::Ok(match args.redis {
                Some(_) => None,
                None => Some(Redis::start(&found, &folder.join("redis"), RedisOptions::default()).await?),
            })
        };
        let postgres = async {
            anyhow::Ok(match args.postgres {
                Some(_) => None,
                None => {
                    let server =
                        Postgres::start(&found, &folder.join("postgres"), PostgresOptions::default()).await?;
                    let url = server.create_database("tidemark").await?;
                    Some((server, url))
                }
            })
        };
        let (kafka, redis, postgres) = tokio::try_join!(kafka, redis, postgres)?;
        let (postgres, database) = postgres.unzip();
        let given = |url: Option<&Secret>, kind| match url {
            Some(url) => url.reveal_url(kind, |path| std::fs::read_to_string(path)).map(Some),
            None => Ok(None),
        };
        let bootstrap = args.kafka.clone().or(kafka.as_ref().map(Kafka::bootstrap)).unwrap_or_default();
        let redis_url = given(args.redis.as_ref(), &REDIS).context("--redis (TIDEMARK_REDIS)")?;
        let redis_url = redis_url.or(redis.as_ref().map(Redis::url)).unwrap_or_default();
        let of_postgres =
            given(args.postgres.as_ref(), &POSTGRES).context("--postgres (TIDEMARK_POSTGRES)")?;
        let database = of_postgres.or(database).unwrap_or_default();
        say(&format!("kafka at {bootstrap}"));
        say(&format!("redis at {}", shown(&redis_url)));
        say(&format!("postgres at {}", shown(&database)));
        say(&format!("servers answer after {:.1} s", started.elapsed().as_secs_f64()));

        let text = with_layout(OUTBRAIN, LAYOUT);
        let catalog = Catalog::from_toml(&text).context("the shipped catalog")?;
        let catalog_file = folder.join("catalog.toml");
        std::fs::write(&catalog_file, text).with_context(|| format!("writing {}", catalog_file.display()))?;
        let topics: Vec<String> = catalog.streams.iter().map(|stream| stream.topic.to_string()).collect();
        make_topics(&bootstrap, &topics, args.partitions).await?;
        say(&format!("topics {} with {} partitions each", topics.join(" and "), args.partitions));

        let archive = folder.join("archive");
        let connections = [
            ("CATALOG", catalog_file.display().to_string()),
            ("KAFKA", bootstrap.clone()),
            ("REDIS", redis_url.clone()),
            ("BOARDS", database.clone()),
            ("POSTGRES", database),
            ("ARCHIVE", format!("file://{}", archive.display())),
        ];
        let connections = connections.map(|(name, value)| (format!("TIDEMARK_{name}"), value)).to_vec();
        let probe = Probe { kafka: bootstrap, topics, redis: redis_url, groups: catalog.layout.groups };
        let address = format!("127.0.0.1:{}", free_port(args.port)?);
        let start = |name: &'static str, command: &[&str]| {
            say(&format!("starting {name} {} (log: {name}.log)", command.join(" ")));
            start_layer(&program, name, command, &connections, &folder)
        };
        let first = start("batch-layer", &["run"])?;
        ensure!(first.ended().await == 0, "the first batch run failed: {}", first.logged());
        let copies = folder.join("local-copy").display().to_string();
        let speed_layer = ["run", "--listen", "127.0.0.1:0", "--epoch-grace", "10s", "--local-copy", &copies];
        let speed_layer = start("speed-layer", &speed_layer)?;
        let serving_layer =
            start("serving-layer", &["serve", "--listen", &address, "--max-rows", "1000000"])?;
        let stack = Stack {
            serving_layer,
            speed_layer,
            serving: Serving::at(format!("http://{address}")),
            probe,
            catalog,
            connections,
            folder,
            program,
            _redis: redis,
            _postgres: postgres,
            _kafka: kafka,
        };
        stack.until("the serving layer is ready", async || stack.serving.ready().await).await?;
        say(&format!("to be looked at in a browser: {}/", stack.serving.url));
        Ok(stack)
    }

    async fn stop(self) {
        self.serving_layer.stop().await;
        self.speed_layer.stop().await;
    }

    fn layer(&self, name: &'static str, command: &[&str]) -> Result<Layer> {
        start_layer(&self.program, name, command, &self.connections, &self.folder)
    }

    fn batch(&self, command: &[&str]) -> Result<Layer> {
        self.layer("batch-layer", command)
    }

    async fn batch_run(&self) -> Result<()> {
        let run = self.batch(&["run"])?;
        ensure!(run.ended().await == 0, "the batch run failed: {}", run.logged());
        Ok(())
    }

    /// Waits until something holds; fails when a layer ends meanwhile.
    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let started = Instant::now();
        while let Err(reason) = holds().await {
            for (name, layer) in [("speed", &self.speed_layer), ("serving", &self.serving_layer)] {
                if let Some(code) = layer.exited() {
                    bail!("the {name} layer ended with {code}: {}", layer.logged());
                }
            }
            ensure!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}: {reason:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Lets the epoch that is open now come to its end: a run takes in closed epochs only.
    async fn epoch_ends(&self) {
        tokio::time::sleep(Duration::from_millis(self.catalog.layout.epoch.0 as u64)).await;
    }

    async fn settle(&self) -> Result<()> {
        let ends = self.ends().await?;
        let caught_up = async || match self.probe.lag(&ends).await? {
            0 => Ok(()),
            lag => bail!("it is {lag} records behind"),
        };
        self.until("the speed layer has taken in the whole log", caught_up).await
    }

    async fn oracle(&self) -> Result<Oracle> {
        let probe = self.probe.clone();
        tokio::task::spawn_blocking(move || {
            let mut oracle = Oracle::default();
            probe.read_log(&BTreeMap::new(), |record| oracle.take(&record))?;
            Ok(oracle)
        })
        .await?
    }

    async fn compare(&self, when: &str) -> Result<bool> {
        let oracle = self.oracle().await?;
        let grain = |name: &str| self.catalog.metric(name).map_or(1, |metric| metric.grain.width());
        let compared = compare::all(&self.serving, &oracle, grain).await?;
        println!("\n{when}: {} distinct events\n{}\n", oracle.facts().len(), compare::table(&compared));
        Ok(compared.iter().all(compare::Comparison::is_right))
    }

    /// Sends all events in two halves with a batch run between, and compares before and after the last run.
    async fn once(&self, args: &Args, clock: fn() -> i64) -> Result<bool> {
        let records = args.records.unwrap_or(40_000);
        match &args.data {
            Some(data) => self.send_files(data).await?,
            None => {
                say(&format!("sending {records} events with repeats, disorder, late and malformed ones"));
                let (first, second) = halves(records, args.seed);
                self.send(first, clock).await?;
                say("a batch run moves the tidemark to the middle");
                self.epoch_ends().await;
                self.batch_run().await?;
                self.send(second, clock).await?;
            }
        }
        self.settle().await?;
        let mixed = self.compare("With part of the data still in the realtime view").await?;
        say("the last batch run");
        self.epoch_ends().await;
        self.batch_run().await?;
        self.settle().await?;
        let after = self.compare("After the last batch run").await?;
        say(if mixed && after { "every metric equals the naive count, twice" } else { "SOMETHING DIFFERS" });
        Ok(mixed && after)
    }

    /// Shows itself until it is told to stop.
    async fn show(&self, args: &Args, clock: fn() -> i64, stop: &CancellationToken) -> Result<bool> {
        let batch = self.batch(&["schedule", "--every", "5s", "--listen", "127.0.0.1:0"])?;
        say("started batch-layer schedule --every 5s (log: batch-layer.log)");
        let source = match &args.data {
            Some(data) => {
                let replay = self.replay(data, ["--speed", "600"])?;
                say(&format!(
                    "replaying the files in {} at 600 x real time (log: simulator.log)",
                    data.display()
                ));
                tokio::spawn(async move { files::ended(&replay).await })
            }
            None => {
                let (rate, options) = (args.rate, options(args.records.unwrap_or(2_000_000)));
                say(&format!(
                    "sending {rate} events a second, with repeats, disorder, late and malformed ones"
                ));
                let (kafka, seed, stop) = (self.probe.kafka.clone(), args.seed, stop.clone());
                tokio::task::spawn_blocking(move || {
                    paced(&kafka, Generator::new(options, seed), rate, clock, &stop)
                })
            }
        };
        println!("{}", screen::invitation(&self.serving.url, &self.probe.redis));
        let mut screen = Screen::new(self.probe.clone(), self.serving.clone());
        while !stop.is_cancelled() {
            for (name, layer) in
                [("speed", &self.speed_layer), ("serving", &self.serving_layer), ("batch", &batch)]
            {
                if let Some(code) = layer.exited() {
                    bail!("the {name} layer ended with {code}: {}", layer.logged());
                }
            }
            screen.refresh().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        println!();
        batch.stop().await;
        source.abort();
        Ok(true)
    }

    async fn ends(&self) -> Result<BTreeMap<TopicPartition, i64>> {
        let probe = self.probe.clone();
        tokio::task::spawn_blocking(move || probe.ends()).await?
    }

    async fn send(&self, deliveries: Vec<simulator::generate::Delivery>, clock: fn() -> i64) -> Result<()> {
        let kafka = self.probe.kafka.clone();
        tokio::task::spawn_blocking(move || {
            let sender = Sender::connect(&kafka, &[], clock)?;
            deliveries.iter().try_for_each(|delivery| sender.send(delivery))?;
            sender.flush()?;
            Ok(())
        })
        .await?
    }
}

fn options(records: u64) -> Options {
    Options {
        records,
        near_repeats: 0.03,
        disorder: 0.2,
        late: 0.01,
        malformed: 0.005,
        future: 3,
        ..Options::default()
    }
}

fn halves(
    records: u64,
    seed: u64,
) -> (Vec<simulator::generate::Delivery>, Vec<simulator::generate::Delivery>) {
    let mut first: Vec<_> = Generator::new(options(records), seed).collect();
    let second = first.split_off(first.len() / 2);
    (first, second)
}

/// Sends deliveries at a steady rate until they end or the stop comes.
fn paced(
    kafka: &str,
    deliveries: impl Iterator<Item = simulator::generate::Delivery>,
    rate: u64,
    clock: fn() -> i64,
    stop: &CancellationToken,
) -> Result<()> {
    let sender = Sender::connect(kafka, &[], clock)?;
    let started = Instant::now();
    for (sent, delivery) in (0u32..).zip(deliveries) {
        let due = Duration::from_secs(1) * sent / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
        if let Some(early) = due.checked_sub(started.elapsed()).filter(|early| early.as_millis() > 5) {
            sender.poll();
            std::thread::sleep(early);
        }
        if stop.is_cancelled() {
            break;
        }
        sender.send(&delivery)?;
    }
    sender.flush()?;
    Ok(())
}

/// The connections go by the environment: a URL may hold a password, and anyone may list processes.
fn start_layer(
    program: &Path,
    name: &'static str,
    command: &[&str],
    connections: &[(String, String)],
    folder: &Path,
) -> Result<Layer> {
    let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
    Layer::start_in(program, name, &command, connections, &folder.join(format!("{name}.log")))
}

async fn make_topics(kafka: &str, topics: &[String], partitions: i32) -> Result<()> {
    let (kafka, topics) = (kafka.to_owned(), topics.to_vec());
    tokio::task::spawn_blocking(move || {
        let sender = Sender::connect(&kafka, &[], || 0)?;
        sender.create_topics(topics.iter().map(String::as_str), partitions)?;
        Ok(())
    })
    .await?
}

/// The folder, empty. Leftovers of a killed run are stopped by the servers themselves when they claim their folders.
fn fresh_folder(wanted: Option<&Path>) -> Result<PathBuf> {
    let folder = match wanted {
        Some(folder) => folder.to_owned(),
        None => PathBuf::from("target/tidemark-local"),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    for inside in ["archive", "kafka", "redis", "postgres"] {
        let path = folder.join(inside);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("emptying {}", path.display()))?;
        }
    }
    Ok(folder)
}

/// The wanted port, or a free one where it is busy.
fn free_port(wanted: u16) -> Result<u16> {
    let bind = |port| std::net::TcpListener::bind(("127.0.0.1", port));
    if let Err(error) = bind(wanted) {
        let port = bind(0)?.local_addr()?.port();
        say(&format!("port {wanted} can't be had ({error}); the serving layer takes {port}"));
        return Ok(port);
    }
    Ok(wanted)
}
