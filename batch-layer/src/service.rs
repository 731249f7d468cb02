//! The commands: each opens what it needs, does its work and says in a line what came of it.

use crate::archive::{self, Store, Until};
use crate::config::{
    Args, AuditArgs, BaseArgs, CatalogCommand, Command, ImportArgs, RetentionArgs, RollbackArgs, RunsArgs,
    ScheduleArgs, SweepArgs, WorkArgs,
};
use crate::run::{self, Order, Outcome};
use crate::schedule::Plan;
use crate::telemetry::Health;
use crate::{audit, compact, grafana, history, ledger, preview, replace, retention};
use anyhow::{Context as _, Result, anyhow};
use rdkafka::ClientConfig;
use shared_model::catalog::Catalog;
use shared_model::causes::Causes;
use shared_model::secret::{POSTGRES, Secret};
use shared_model::time::Millis;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgPool};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a command until it is done or told to stop.
///
/// # Errors
/// One that a person can read in a line: what failed, and what to do.
pub async fn execute(args: Args, shutdown: CancellationToken) -> Result<()> {
    match args.command {
        Command::Run(args) => {
            let order = Order::Run { day: args.day };
            once(&args.base, &args.audit, shutdown, &order, args.dry_run).await
        }
        Command::Backfill(args) => {
            let order = Order::Backfill { from: args.from, to: args.to, metrics: args.metric };
            once(&args.base, &AuditArgs::default(), shutdown, &order, args.dry_run).await
        }
        Command::Retry(args) => {
            once(&args.base, &args.audit, shutdown, &Order::Retry { run: args.run }, args.dry_run).await
        }
        Command::Preview(args) => {
            let context = open(&args.base, shutdown).await?;
            say(&preview::preview(&context, &args.metric, args.day, args.rows).await?.to_string())
        }
        Command::Rollback(args) => rollback(args, shutdown).await,
        Command::Schedule(args) => scheduled(args, shutdown).await,
        Command::Archive(args) => archive_only(&args.base, shutdown).await,
        Command::Import(args) => import_files(args, shutdown).await,
        Command::Runs(args) => runs(args).await,
        Command::Sweep(args) => sweep(args, shutdown).await,
        Command::Retention(args) => retain(args, shutdown).await,
        Command::Catalog(args) => catalog(&args.command).await,
    }
}

/// Settles with the system what the process gets: a priority for the processor that is lower by so much, for
/// [`Args::nice`], and as many open files as it may have. To be called before the runtime starts: Linux gives each thread
/// the priority that the one that starts it has.
pub fn settle_resources(nice: u8) {
    lower_priority(nice);
    allow_open_files();
}

fn lower_priority(by: u8) {
    if let Err(error) = rustix::process::nice(i32::from(by)) {
        tracing::warn!(%error, by, "--nice (TIDEMARK_NICE) has no effect, the system refuses it");
    }
}

/// Allows the program as many open files as it may allow itself: where nothing else is said, a process has 1,024, however
/// many the system would let it have.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // It goes on with what it has: a run that needs more says so.
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
}

/// The exit code for an error: 3 where another run is at work, 4 where another run moved the tidemark first, 5 where the
/// audit let nothing be published, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<run::Busy>() {
        3
    } else if error.is::<replace::flip::Overtaken>() {
        4
    } else if error.is::<audit::Refused>() {
        5
    } else {
        1
    }
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output is closed")
}

fn now() -> Millis {
    crate::clock::now()
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("catalog {} can't be read", path.display()))
}

/// The catalog of a text that comes from `place`.
fn parse(text: &str, place: &str) -> Result<Catalog> {
    Catalog::from_toml(text).map_err(|mut faults| {
        faults.file = place.to_owned();
        anyhow!("{faults}")
    })
}

fn load(path: &Path) -> Result<Catalog> {
    parse(&read(path)?, &path.display().to_string())
}

async fn connect(given: &Secret, connections: u32) -> Result<PgPool> {
    let url = given.reveal_url(&POSTGRES, |path| std::fs::read_to_string(path));
    let server = url.and_then(|url| url.parse::<PgConnectOptions>().map_err(|_| POSTGRES.refused()));
    let server = server.context("--postgres (TIDEMARK_POSTGRES)")?;
    // One connection first: a pool would only say that it waited.
    let refused = "postgres can't be reached by --postgres (TIDEMARK_POSTGRES)";
    let first = tokio::time::timeout(PATIENCE, sqlx::PgConnection::connect_with(&server)).await;
    first.context("no answer within 10 s").and_then(|first| Ok(first?)).context(refused)?.close().await?;
    let options = PgPoolOptions::new().max_connections(connections).acquire_timeout(PATIENCE);
    options.connect_with(server).await.context(refused)
}

fn archive(given: &Secret) -> Result<Store> {
    let url = given.reveal(|path| std::fs::read_to_string(path));
    Store::open(&url.context("--archive (TIDEMARK_ARCHIVE)")?)
}

async fn open(base: &BaseArgs, stop: CancellationToken) -> Result<run::Context> {
    let text = read(&base.catalog)?;
    let catalog = parse(&text, &base.catalog.display().to_string())?;
    Ok(context(catalog, text, servers(&base.work).await?, &base.work, stop))
}

/// The archive, Kafka's settings and Postgres: one connection for each worker, and some for the run itself.
async fn servers(work: &WorkArgs) -> Result<(Store, ClientConfig, PgPool)> {
    let (store, kafka) = (archive(&work.archive)?, work.kafka()?);
    Ok((store, kafka, connect(&work.postgres, u32::from(work.workers) + 3).await?))
}

fn context(
    catalog: Catalog,
    catalog_text: String,
    (store, kafka, pool): (Store, ClientConfig, PgPool),
    work: &WorkArgs,
    stop: CancellationToken,
) -> run::Context {
    let (catalog, options) = (Arc::new(catalog), work.clone());
    run::Context {
        catalog,
        catalog_text,
        pool,
        store,
        kafka,
        options,
        audit: audit::Options::default(),
        now,
        compaction_failures: compact::Failures::default(),
        stop,
    }
}

async fn once(
    base: &BaseArgs,
    audit: &AuditArgs,
    stop: CancellationToken,
    order: &Order,
    dry_run: bool,
) -> Result<()> {
    let audit = audit::Options::new(audit)?;
    let context = run::Context { audit, ..open(base, stop).await? };
    run_once(context, order, dry_run).await
}

async fn run_once(context: run::Context, order: &Order, dry_run: bool) -> Result<()> {
    context.prepare().await?;
    let outcome = run::run(&context, order, dry_run).await?;
    report(&outcome)
}

/// Runs by the catalog that is stored with the run, unless another is given.
async fn rollback(args: RollbackArgs, stop: CancellationToken) -> Result<()> {
    let (store, kafka, pool) = servers(&args.work).await?;
    ledger::migrate(&pool).await?;
    let (text, catalog) = match &args.catalog {
        Some(path) => (read(path)?, load(path)?),
        None => {
            let text = history::catalog(&pool, args.run).await?;
            let catalog = parse(&text, &format!("catalog of run {}", args.run)).with_context(|| {
                format!(
                    "the catalog of run {} can't be read by this build: give one that can be by --catalog, or roll \
                     back with the build that it ran with",
                    args.run
                )
            })?;
            (text, catalog)
        }
    };
    let order = Order::Rollback { run: args.run };
    run_once(context(catalog, text, (store, kafka, pool), &args.work, stop), &order, args.dry_run).await
}

fn report(outcome: &Outcome) -> Result<()> {
    if outcome.run.is_none() {
        for day in &outcome.days {
            let (segments, new) = day.segments;
            let metrics = day.metrics.join(", ");
            say(&format!(
                "day {}: {segments} segments ({new} new), {} rows, metrics {metrics}",
                day.day, day.rows
            ))?;
        }
        return say(&format!(
            "dry run: {} days would be computed; nothing was published",
            outcome.days.len()
        ));
    }
    for (tp, why) in &outcome.held {
        say(&format!("held back: {tp}: {why}"))?;
    }
    if let Some(audit) = &outcome.audit {
        say(&audit.to_string())?;
    }
    match (outcome.run, outcome.generation) {
        (Some(run), Some(generation)) => say(&format!(
            "run {run}: tidemark generation {generation}; {} days computed, {} versions with {} rows published",
            outcome.days.len(),
            outcome.published,
            outcome.rows
        )),
        _ => say("nothing new"),
    }
}

async fn scheduled(args: ScheduleArgs, stop: CancellationToken) -> Result<()> {
    let plan = match (&args.cron, args.every) {
        (_, Some(every)) => Plan::Every(every),
        (Some(expression), None) => Plan::cron(expression, args.time_zone)?,
        (None, None) => return Err(anyhow!("say when: --cron or --every")),
    };
    let audit = audit::Options::new(&args.audit)?;
    let context = run::Context { audit, ..open(&args.base, stop.clone()).await? };
    let health = Health::new();
    let server = tokio::spawn(health.clone().serve(args.listen, stop.clone()));
    let mut first = true;
    while let Some(wait) = plan.wait(now(), first) {
        first = false;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => break,
        }
        let began = Instant::now();
        let outcome = async {
            context.prepare().await?;
            run::run(&context, &Order::Run { day: None }, false).await
        };
        // A failed run is tried again at the next slot; it has changed nothing.
        match outcome.await {
            Ok(outcome) => {
                health.ran(began.elapsed().as_secs_f64(), true, outcome.generation, outcome.rows);
                tracing::info!(
                    run = outcome.run,
                    generation = outcome.generation,
                    days = outcome.days.len(),
                    rows = outcome.rows,
                    held = outcome.held.len(),
                    seconds = began.elapsed().as_secs_f64(),
                    "run finished"
                );
            }
            Err(_) if stop.is_cancelled() => break,
            Err(error) => {
                health.ran(began.elapsed().as_secs_f64(), false, None, 0);
                tracing::error!("run failed: {}", Causes(error.as_ref()));
            }
        }
    }
    stop.cancel();
    server.await?
}

async fn archive_only(base: &BaseArgs, stop: CancellationToken) -> Result<()> {
    let context = open(base, stop).await?;
    context.prepare().await?;
    let mut connection = context.pool.acquire().await?;
    let current = ledger::tidemark(&mut connection).await?;
    let until = Until { patience: base.work.patience, ..Until::at(now()) };
    let advanced = archive::advance(&context.archiver(), &current.cuts, until).await?;
    for (tp, why) in &advanced.held {
        say(&format!("held back: {tp}: {why}"))?;
    }
    let rows: u64 = advanced.sealed.iter().map(|sealed| sealed.manifest.rows()).sum();
    say(&format!("{} manifests with {rows} rows beyond the tidemark", advanced.sealed.len()))
}

async fn import_files(args: ImportArgs, stop: CancellationToken) -> Result<()> {
    let catalog = load(&args.catalog)?;
    let store = archive(&args.archive)?;
    store.probe_put_if_absent().await?;
    let bar = indicatif::ProgressBar::new_spinner().with_style(
        indicatif::ProgressStyle::with_template("{spinner} {human_pos} rows read ({per_sec})")
            .context("the progress bar's template")?,
    );
    let shown = bar.clone();
    let progress = Arc::new(move |rows| shown.inc(rows)) as Arc<dyn Fn(u64) + Send + Sync>;
    let options =
        crate::import::Options { stop, progress: Some(progress), ..crate::import::Options::at(now()) };
    let imported = crate::import::import(&store, &catalog, &args.stream, &args.files, &options).await;
    bar.finish_and_clear();
    for file in imported?.files {
        let (source, id, rows, rejects) = (&file.source, &file.import_id, file.rows, file.rejects);
        let done = if file.already_imported { "already imported" } else { "imported" };
        say(&format!("{source}: {done}, {rows} rows, {rejects} rejected (import {id})"))?;
        file.reject_paths.iter().try_for_each(|path| say(&format!("  rejects: {path}")))?;
    }
    say("the next run takes imports in")
}

async fn runs(args: RunsArgs) -> Result<()> {
    let pool = connect(&args.postgres, 1).await?;
    ledger::migrate(&pool).await?;
    let records = history::list(&pool, args.limit).await?;
    if !args.json {
        say(history::HEADING)?;
    }
    records.iter().try_for_each(|record| say(&if args.json { record.json() } else { record.line() }))
}

async fn sweep(args: SweepArgs, stop: CancellationToken) -> Result<()> {
    let context = open(&args.base, stop).await?;
    context.prepare().await?;
    let time = now();
    let older_than = time.saturating_sub(i64::try_from(args.older_than.as_millis()).unwrap_or(i64::MAX));
    let mut connection = context.pool.acquire().await?;
    let read = ledger::compacted_files(&mut connection).await?;
    let swept = archive::sweep::sweep(&context.store, older_than, &read, false).await?;
    catch_up(&context, time).await?;
    let grace = i64::try_from(args.base.work.version_grace.as_millis()).unwrap_or(i64::MAX);
    let dropped = replace::retire::sweep(&mut connection, time.saturating_sub(grace), time).await?;
    say(&format!(
        "{} orphaned files with {} bytes removed, {dropped} versions dropped, {} files with strange names left alone",
        swept.orphans.len(),
        swept.bytes,
        swept.strange.len()
    ))
}

/// Has the ledger know what the archive says of rewritten files: one that was restored from a backup may not.
async fn catch_up(context: &run::Context, now: Millis) -> Result<()> {
    let mut connection = context.pool.acquire().await?;
    let days = compact::behind(&mut connection, &context.store).await?;
    drop(connection);
    if days.is_empty() {
        return Ok(());
    }
    let mut connection = match run::lock(&context.pool).await {
        Ok(connection) => connection,
        Err(error) if error.is::<run::Busy>() => {
            return say("another run is at work: compactions that the ledger lacks are not taken in");
        }
        Err(error) => return Err(error),
    };
    let begun = Instant::now();
    let is_enough = || compact::is_over(context, begun);
    let (looked, known) = compact::catch_up(&mut connection, &context.store, &days, now, is_enough).await;
    say(&format!("of {} days the ledger lacked compactions, and of {known} it has all now", days.len()))?;
    match days.len() - looked {
        0 => Ok(()),
        left => say(&format!(
            "{left} of them were not looked at, so that runs wait no longer: another sweep goes on there"
        )),
    }
}

async fn retain(args: RetentionArgs, stop: CancellationToken) -> Result<()> {
    let context = open(&args.base, stop).await?;
    context.prepare().await?;
    let mut connection = run::lock(&context.pool).await?;
    if let Some(before) = args.archive_before {
        let (files, bytes) = retention::archive(&mut connection, &context.store, None, before, now()).await?;
        say(&format!(
            "{files} files with {bytes} bytes of event days before {before} removed from the archive"
        ))?;
    }
    if let Some(before) = args.facts_before {
        let dropped = retention::facts(&mut connection, None, before).await?;
        say(&format!("{dropped} partitions of facts before {before} dropped"))?;
    }
    Ok(())
}

async fn catalog(command: &CatalogCommand) -> Result<()> {
    match command {
        CatalogCommand::Of(args) => {
            let pool = connect(&args.postgres, 1).await?;
            ledger::migrate(&pool).await?;
            say(&history::catalog(&pool, args.run).await?)
        }
        CatalogCommand::Schema => say(&shared_model::catalog::json_schema()),
        CatalogCommand::Grafana { catalog } => say(&format!("{:#}", grafana::dashboard(&load(catalog)?))),
        CatalogCommand::Validate { catalog } => {
            let valid = load(catalog)?;
            let (streams, metrics) = (valid.streams.len(), valid.metrics.len());
            say(&format!("valid: {streams} streams, {metrics} metrics, {} formulas", valid.formulas.len()))
        }
    }
}
