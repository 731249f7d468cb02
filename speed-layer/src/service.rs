//! The service: waits for what it needs, then owns the partitions that it is given until it is told to stop.

use crate::claim;
use crate::config::{Args, Command, DeadLettersCommand, RunArgs};
use crate::consume::{self, Log, Member, Membership};
use crate::counters::{self, Plan};
use crate::dead_letters::{self, DeadLetters};
use crate::health::{self, Health};
use crate::look::{self, Looks};
use crate::publish::{Feed, Publisher};
use crate::redis::{self, Redis};
use crate::telemetry;
use crate::tidemark_source::TidemarkSource;
use crate::verify;
use crate::window;
use crate::worker::{self, Ended, Shared};
use anyhow::{Context as _, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use shared_model::catalog::Catalog;
use shared_model::causes::Causes;
use shared_model::offsets::TopicPartition;
use shared_model::redis_address::Address;
use shared_model::time::Millis;
use shared_model::view::Mark;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_millis(500);
const TIDEMARK_POLL: Duration = Duration::from_secs(1);
/// How long a partition that another worker has claimed is left to it, before the group's word is taken.
const CONTEST: Duration = Duration::from_secs(15);
/// What a worker says that was away for longer than a session, until it is given partitions again.
const LOST: &str = "no sign of this worker for a session: its partitions were given to others";
const MARKS_POLL: Duration = Duration::from_millis(500);
/// The same where there may be a publisher to wait for.
const PACED_POLL: Duration = Duration::from_millis(200);

/// Runs the command until it is done or told to stop.
///
/// # Errors
/// What can't be waited out: a wrong argument, a catalog at fault, servers configured so that exactness can't be kept.
pub async fn execute(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    match args.command {
        Command::Run(run_args) => {
            let listener = TcpListener::bind(run_args.listen).await;
            let listener = listener.with_context(|| format!("cannot listen on {}", run_args.listen))?;
            let catalog = read_catalog(&run_args.catalog)?;
            run(*run_args, Arc::new(catalog), listener, shutdown).await
        }
        Command::Verify(verify_args) => {
            let catalog = read_catalog(&verify_args.catalog)?;
            tokio::select! {
                () = shutdown.cancelled() => bail!("interrupted"),
                verified = verify::verify(*verify_args, &catalog) => verified,
            }
        }
        Command::DeadLetters { command } => tokio::select! {
            () = shutdown.cancelled() => bail!("interrupted; what was replayed is marked, the rest can be replayed later"),
            done = dead_letters(command) => done,
        },
    }
}

async fn dead_letters(command: DeadLettersCommand) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match command {
        DeadLettersCommand::List(args) => {
            let catalog = read_catalog(&args.catalog)?;
            dead_letters::letters::list(&args, &catalog, &mut out).await
        }
        DeadLettersCommand::Replay(args) => {
            let catalog = read_catalog(&args.letters.catalog)?;
            dead_letters::replay::replay(&args, &catalog, &mut out).await
        }
    }
}

fn read_catalog(path: &Path) -> anyhow::Result<Catalog> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read the catalog {}", path.display()))?;
    Catalog::from_toml(&text).with_context(|| format!("catalog {}", path.display()))
}

/// Runs the service on a bound listener until the stop: then flushes, leaves the group and returns.
///
/// # Errors
/// As [`execute`].
pub async fn run(
    args: RunArgs,
    catalog: Arc<Catalog>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // Everything beside the partitions outlives them, so that their last flush finds it working.
    let behind = CancellationToken::new();
    let health = Health::default();
    health.set("start", Some("starting".into()));
    telemetry::metrics();
    tracing::info!("listening on http://{}", listener.local_addr()?);
    let server = tokio::spawn(health::serve(listener, health.clone(), behind.clone()));
    let served = serve(&args, &catalog, &health, &shutdown, &behind).await;
    behind.cancel();
    server.await.context("the http server broke off")?.context("the http server failed")?;
    served
}

async fn serve(
    args: &RunArgs,
    catalog: &Arc<Catalog>,
    health: &Health,
    shutdown: &CancellationToken,
    behind: &CancellationToken,
) -> anyhow::Result<()> {
    let kafka = consume::client_config(&args.kafka, &args.kafka_property)?;
    let log = Log::new(&kafka, &args.group_id)?;
    tokio::spawn({
        let (log, behind) = (log.clone(), behind.clone());
        async move { log.serve(behind).await }
    });
    let source = TidemarkSource::new(&args.postgres)?;
    let Some(redis) = wait_for_redis(&args.redis.address()?, health, shutdown).await? else {
        return Ok(());
    };
    let Some(tidemarks) = source.wait(catalog, health, shutdown).await? else { return Ok(()) };
    let Some(topics) = wait_for_topics(&log, &kafka, catalog, health, shutdown).await? else { return Ok(()) };
    let (moves, tidemarks) = watch::channel(tidemarks);
    tokio::spawn(source.clone().follow(
        moves,
        TIDEMARK_POLL,
        args.epoch_grace,
        health.clone(),
        behind.clone(),
    ));
    let (look, looks) = watch::channel(Looks::new());
    tokio::spawn(look::follow(log.clone(), topics.keys().cloned().collect(), look, behind.clone()));
    let (panes, oldest_pane) = watch::channel(None);
    let (wait, waits) = watch::channel(false);
    let (published, publishes) = watch::channel(None);
    let every_pane = args.publish_panes;
    let pacing = every_pane.then_some(Pacing { wait, publishes });
    tokio::spawn(follow_marks(redis.clone(), catalog.clone(), panes, pacing, behind.clone()));
    let feed = Feed::default();
    if !args.no_publish {
        // A connection of its own: what others ask doesn't wait behind what is published.
        let Some(sends) = wait_for_redis(&args.redis.address()?, health, shutdown).await? else {
            return Ok(());
        };
        let (catalog, token) = (catalog.clone(), format!("{:016x}", claim::random()));
        let (reads, feed) = (redis.clone(), feed.clone());
        let publisher = Publisher { redis: sends, reads, feed, catalog, token, every_pane, published };
        tokio::spawn(publisher.run(behind.clone()));
    }
    let (decide, decisions) = mpsc::unbounded_channel();
    let member = if args.assign.is_empty() {
        let names: Vec<Arc<str>> = topics.keys().cloned().collect();
        Some(Member::join(&kafka, &args.group_id, &names, decide)?)
    } else {
        check_assignment(&args.assign, &topics)?;
        decide.send(Membership::Assigned(args.assign.clone()))?;
        None
    };
    let shared = Arc::new(Shared {
        log,
        member,
        redis,
        feed,
        source,
        tidemarks,
        looks,
        oldest_pane,
        waits,
        dead_letters: DeadLetters::new(&kafka)?,
        health: health.clone(),
        flush_interval: args.flush_interval,
        pending_cells: args.pending_cells,
        epoch_grace: args.epoch_grace,
        local_copy: args.local_copy.clone(),
    });
    health.set("group", Some("waiting for partitions".into()));
    health.set("start", None);
    let owned = own_partitions(&shared, catalog, decisions, shutdown).await;
    if let Some(Shared { member: Some(member), .. }) = Arc::into_inner(shared) {
        member.leave().await;
    }
    owned
}

/// Owns what the group (or the fixed assignment) decides, until the stop.
async fn own_partitions(
    shared: &Arc<Shared>,
    catalog: &Arc<Catalog>,
    mut decisions: mpsc::UnboundedReceiver<Membership>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut owned: BTreeMap<TopicPartition, CancellationToken> = BTreeMap::new();
    let mut workers: JoinSet<(TopicPartition, Ended)> = JoinSet::new();
    let mut failed = Ok(());
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(decision) = decisions.recv() => match decision {
                Membership::Assigned(partitions) => {
                    for tp in partitions {
                        let Some(stream) = catalog.stream_of_topic(&tp.topic) else { continue };
                        tracing::info!("{tp}: ours");
                        shared.health.set(&tp.to_string(), Some("not read yet".into()));
                        let stop = CancellationToken::new();
                        owned.insert(tp.clone(), stop.clone());
                        let (shared, plan) = (shared.clone(), Arc::new(Plan::new(catalog, stream)));
                        workers.spawn(async move { (tp.clone(), worker::own(shared, plan, tp, stop).await) });
                    }
                    shared.health.set("group", None);
                }
                Membership::Lost => shared.health.set("group", Some(LOST.into())),
                Membership::Revoked(partitions, done) => {
                    let mut stopping: Vec<TopicPartition> = Vec::new();
                    for tp in partitions {
                        if let Some(stop) = owned.remove(&tp) {
                            tracing::info!("{tp}: given up");
                            stop.cancel();
                            stopping.push(tp);
                        }
                    }
                    while !stopping.is_empty() && let Some(ended) = workers.join_next().await {
                        let (tp, _) = ended.context("a partition's worker broke off")?;
                        shared.health.forget(&tp.to_string());
                        stopping.retain(|other| *other != tp);
                    }
                    drop(done);
                }
            },
            Some(ended) = workers.join_next() => match ended.context("a partition's worker broke off")? {
                (tp, Ended::Stopped) => drop(owned.remove(&tp)),
                (tp, Ended::NotOwner) if shared.member.is_none() => {
                    failed = Err(anyhow::anyhow!("another worker has claimed {tp}, which --assign gives to this one"));
                    break;
                }
                (tp, Ended::NotOwner) => {
                    // The group decides: it takes the partition from us soon, or it is ours and the other a zombie.
                    shared.health.set(&tp.to_string(), Some("another worker has claimed it".into()));
                    if let (Some(stop), Some(stream)) = (owned.get(&tp).cloned(), catalog.stream_of_topic(&tp.topic)) {
                        let (shared, plan) = (shared.clone(), Arc::new(Plan::new(catalog, stream)));
                        workers.spawn(async move {
                            tokio::select! {
                                () = stop.cancelled() => return (tp, Ended::Stopped),
                                () = tokio::time::sleep(CONTEST) => {}
                            }
                            (tp.clone(), worker::own(shared, plan, tp, stop).await)
                        });
                    }
                }
            },
        }
    }
    owned.values().for_each(CancellationToken::cancel);
    while let Some(ended) = workers.join_next().await {
        ended.context("a partition's worker broke off")?;
    }
    failed
}

async fn pause(stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(WAIT) => true,
    }
}

async fn wait_for_redis(
    address: &Address,
    health: &Health,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Redis>> {
    loop {
        let connected = async {
            let redis = Redis::connect(address).await?;
            if let Err(refused) = redis.check_policy().await? {
                return Ok(Err(refused));
            }
            redis.load_library().await.map_err(|error| anyhow::anyhow!(redis::explain(&error)))?;
            anyhow::Ok(Ok(redis))
        };
        match connected.await {
            Ok(Ok(redis)) => {
                health.set("redis", None);
                return Ok(Some(redis));
            }
            Ok(Err(refused)) => bail!(refused),
            Err(error) => health.set("redis", Some(format!("waiting for redis: {}", Causes(error.as_ref())))),
        }
        if !pause(stop).await {
            return Ok(None);
        }
    }
}

/// Waits until every stream's topic exists, refuses those on which exactness can't be kept, and makes the topics of
/// dead letters.
async fn wait_for_topics(
    log: &Log,
    kafka: &ClientConfig,
    catalog: &Catalog,
    health: &Health,
    stop: &CancellationToken,
) -> anyhow::Result<Option<BTreeMap<Arc<str>, i32>>> {
    let wanted: Vec<Arc<str>> = catalog.streams.iter().map(|stream| stream.topic.clone()).collect();
    let admin: AdminClient<DefaultClientContext> =
        kafka.create().context("cannot make the kafka admin client")?;
    loop {
        let trouble = match log.partitions(wanted.clone()).await {
            Ok(found) => {
                let missing: Vec<&str> =
                    wanted.iter().filter(|&topic| !found.contains_key(topic)).map(|topic| &**topic).collect();
                if missing.is_empty() {
                    match check_topics(&admin, &found).await {
                        Ok(Ok(())) => {
                            make_dead_letter_topics(&admin, log, &wanted).await;
                            health.set("kafka", None);
                            return Ok(Some(found));
                        }
                        Ok(Err(refused)) => bail!(refused),
                        Err(error) => format!("waiting for kafka: {}", Causes(error.as_ref())),
                    }
                } else {
                    format!("waiting for topics: {}", missing.join(", "))
                }
            }
            Err(error) => format!("waiting for kafka: {}", Causes(error.as_ref())),
        };
        health.set("kafka", Some(trouble));
        if !pause(stop).await {
            return Ok(None);
        }
    }
}

async fn check_topics(
    admin: &AdminClient<DefaultClientContext>,
    topics: &BTreeMap<Arc<str>, i32>,
) -> anyhow::Result<Result<(), String>> {
    let named: Vec<ResourceSpecifier<'_>> =
        topics.keys().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let described =
        admin.describe_configs(&named, &AdminOptions::new().request_timeout(Some(WAIT * 20))).await?;
    let mut faults = Vec::new();
    for (topic, described) in topics.keys().zip(described) {
        let config =
            described.map_err(|code| anyhow::anyhow!("cannot read the settings of topic {topic}: {code}"))?;
        let value = |name: &str| config.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
        let alter = |setting: &str| {
            format!(
                "kafka-configs.sh --bootstrap-server SERVER --alter --entity-type topics --entity-name {topic} \
                     --add-config {setting}"
            )
        };
        let stamped = value("message.timestamp.type");
        if stamped != "LogAppendTime" {
            faults.push(format!(
                "topic {topic} has message.timestamp.type={stamped}; the ingest clock needs LogAppendTime: {}",
                alter("message.timestamp.type=LogAppendTime")
            ));
        }
        let policy = value("cleanup.policy");
        if policy.contains("compact") {
            faults.push(format!(
                "topic {topic} has cleanup.policy={policy}, which removes records: {}",
                alter("cleanup.policy=delete")
            ));
        }
    }
    Ok(if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) })
}

/// Makes the topics of dead letters that don't exist. Where that fails it is tried again when there is something to
/// write, or they are made by hand.
async fn make_dead_letter_topics(admin: &AdminClient<DefaultClientContext>, log: &Log, topics: &[Arc<str>]) {
    let names: Vec<Arc<str>> = topics.iter().map(|topic| dead_letters::topic_of(topic).into()).collect();
    let there = log.partitions(names.clone()).await.unwrap_or_default();
    let missing: Vec<&str> =
        names.iter().filter(|name| !there.contains_key(*name)).map(|name| &**name).collect();
    if !missing.is_empty() {
        dead_letters::make_topics(admin, &missing).await;
    }
}

fn check_assignment(assigned: &[TopicPartition], topics: &BTreeMap<Arc<str>, i32>) -> anyhow::Result<()> {
    for tp in assigned {
        match topics.get(&tp.topic) {
            Some(&partitions) if (0..partitions).contains(&tp.partition) => {}
            Some(partitions) => {
                bail!("--assign {tp}: the topic has {partitions} partitions, numbered from 0")
            }
            None => bail!("--assign {tp}: no stream of the catalog has this topic"),
        }
    }
    Ok(())
}

/// What a worker that is to let every pane be published follows, beside the marks.
struct Pacing {
    /// Whether those who read are to wait.
    wait: watch::Sender<bool>,
    /// How far every pane is published, where it is this worker that does it; where it isn't, Redis tells.
    publishes: watch::Receiver<Option<Millis>>,
}

/// Follows all partitions' marks and hands on the oldest pane that is still in a window, or still to be published. It
/// never goes back.
async fn follow_marks(
    redis: Redis,
    catalog: Arc<Catalog>,
    panes: watch::Sender<Option<Millis>>,
    mut pacing: Option<Pacing>,
    stop: CancellationToken,
) {
    let (pane, longest) = (catalog.layout.pane, counters::longest_window(&catalog));
    let lateness = catalog.streams.iter().map(|stream| stream.lateness).max().unwrap_or(0);
    // A publisher stays behind the newest times by the lateness, and by a pane that is open.
    let allowed = (longest / 2).max(2 * pane) + lateness;
    loop {
        if let Ok((marks, published)) = marks_and_published(&redis, pacing.as_ref()).await {
            let ours = |name: &String| {
                TopicPartition::parse(name).is_some_and(|tp| catalog.stream_of_topic(&tp.topic).is_some())
            };
            let marks: Vec<_> =
                marks.into_iter().filter(|(name, _)| ours(name)).map(|(_, mark)| mark).collect();
            let oldest = window::oldest_pane(marks.iter(), pane, longest);
            let (oldest, waits) = window::paced(oldest, published, longest, allowed);
            panes.send_if_modified(|known| {
                oldest > *known && {
                    *known = oldest;
                    true
                }
            });
            if let Some(Pacing { wait, .. }) = &pacing {
                metrics::gauge!("tidemark_speed_waiting").set(f64::from(u8::from(waits)));
                wait.send_if_modified(|known| std::mem::replace(known, waits) != waits);
            }
        }
        let poll = if pacing.is_some() { PACED_POLL } else { MARKS_POLL };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(poll) => {}
            () = moved(&mut pacing) => {}
        }
    }
}

/// The marks, and then how far every pane is published: who publishes has panes kept first, and then looks at the marks.
async fn marks_and_published(
    redis: &Redis,
    pacing: Option<&Pacing>,
) -> ::redis::RedisResult<(BTreeMap<String, Mark>, Option<Millis>)> {
    let marks = redis.marks().await?;
    let published = match pacing.map(|pacing| *pacing.publishes.borrow()) {
        None => None,
        Some(None) => redis.published_to().await?,
        ours => ours.flatten(),
    };
    Ok((marks, published))
}

/// Waits until this worker has published another pane.
async fn moved(pacing: &mut Option<Pacing>) {
    if let Some(Pacing { publishes, .. }) = pacing
        && publishes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
