//! The command line: what may hold a secret can come from the environment or a file, and is never printed.

use anyhow::{Context as _, Result};
use chrono::NaiveDate;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use shared_model::redis_address::{Address, AddressFault, Given};
use shared_model::secret::{KafkaProperties, Secret, property_refused};
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 another run is at work on the database, \
                          4 another run moved the tidemark first (nothing was published).";

/// Tidemark's batch layer: archives the log's closed epochs, recomputes the event days that they touch, and moves the
/// tidemark.
#[derive(Debug, Clone, Parser)]
#[command(name = "batch-layer", version, after_help = EXIT_CODES)]
pub struct Args {
    /// The form of the log lines.
    #[arg(long, env = "TIDEMARK_LOG", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log: LogFormat,
    /// By how much its priority for the processor is lowered, as nice(1) does it: what it computes then takes cores that
    /// others of the machine, such as a serving layer and Postgres, don't want. 0 for a machine of its own beside others.
    #[arg(long, env = "TIDEMARK_NICE", default_value_t = 10, value_parser = clap::value_parser!(u8).range(..20), global = true)]
    pub nice: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the batch layer does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Archive what the log has, recompute the days that it touches, and flip: once.
    Run(RunArgs),
    /// Run again and again, by a cron expression or at an interval. Missed slots collapse into one run.
    Schedule(ScheduleArgs),
    /// Archive the log's closed epochs, and no more.
    Archive(ArchiveArgs),
    /// Import bulk history (CSV or Parquet) into the archive; the next run takes it in.
    Import(ImportArgs),
    /// Recompute days that lie below the tidemark.
    Backfill(BackfillArgs),
    /// Do a failed run's work again; versions that it had staged from the same input are used as they are.
    Retry(RetryArgs),
    /// Try a metric out before it is published: compute it over one archived day, show its greatest values and what it
    /// costs. Nothing is written.
    Preview(PreviewArgs),
    /// Publish an earlier run's metrics again, by the catalog that it had, computed up to the present tidemark: every day
    /// that it or a later run computed. Set the layers' catalog back too (`catalog of RUN` prints it), or the next run
    /// publishes by theirs.
    Rollback(RollbackArgs),
    /// List runs, the newest first.
    Runs(RunsArgs),
    /// Remove files that no manifest names, and versions that no reader needs; and have a ledger that was restored from a
    /// backup know where the archive's rows lie now.
    Sweep(SweepArgs),
    /// Remove old event days from the archive or from the facts, once; --archive-days and --facts-days do so after every
    /// run. The batch view keeps its rows of them.
    Retention(RetentionArgs),
    /// Look at a catalog.
    Catalog(CatalogArgs),
}

/// Which catalog, and all else.
#[derive(Debug, Clone, ClapArgs)]
pub struct BaseArgs {
    /// The catalog: a TOML file.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// Everything beside it.
    #[command(flatten)]
    pub work: WorkArgs,
}

/// Which servers, and how much of what.
#[derive(Debug, Clone, ClapArgs)]
pub struct WorkArgs {
    /// Postgres: postgres://user:password@host:port/database; or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Secret,
    /// The archive: file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix. Credentials and
    /// endpoint come from the environment (AWS_ENDPOINT, AWS_SECRET_ACCESS_KEY, ...; @/path of a file is read there too).
    #[arg(long, env = "TIDEMARK_ARCHIVE", hide_env_values = true)]
    pub archive: Secret,
    /// Kafka's bootstrap servers, host:port, comma-separated.
    #[arg(long, env = "TIDEMARK_KAFKA")]
    pub kafka: String,
    /// Further librdkafka properties, key=value;key=value (TLS, SASL, ...), or one a line of a file, @/path; may be
    /// repeated.
    #[arg(long, env = "TIDEMARK_KAFKA_PROPERTIES", hide_env_values = true)]
    pub kafka_property: Vec<Secret>,
    /// Don't append ticks to idle partitions; they hold the tidemark back and are named in answers.
    #[arg(long)]
    pub no_ticks: bool,
    /// How long a partition may bring nothing before it is held back and named.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub patience: Duration,
    /// How much memory the process may take while it computes, in MiB; 128, and 32 for each worker, are its own. Cells of a
    /// day that would take more are sorted in the folder for temporary files (TMPDIR); the result is the same.
    #[arg(long = "memory", env = "TIDEMARK_MEMORY", default_value = "1024", value_parser = mebibytes)]
    pub memory: u64,
    /// How many threads compute, and how many tables are written at once, where the memory is enough for so many; each
    /// works on a day of its own where there are enough days. The default is the number of cores.
    #[arg(long, env = "TIDEMARK_WORKERS", default_value_t = cores(), value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: u16,
    /// How long a version that was replaced is kept for readers that still use it.
    #[arg(long, env = "TIDEMARK_VERSION_GRACE", default_value = "10m", value_parser = humantime::parse_duration)]
    pub version_grace: Duration,
    /// How long the versions of metrics that the catalog has no more, since they were changed or removed, are kept for
    /// processes that still work by an older catalog.
    #[arg(long, env = "TIDEMARK_REMOVED_GRACE", default_value = "7d", value_parser = humantime::parse_duration)]
    pub removed_grace: Duration,
    /// A day's small files in the archive are rewritten as larger ones; how long the small ones are kept for readers that
    /// have their names. Runs need no such time.
    #[arg(long, env = "TIDEMARK_COMPACTION_GRACE", default_value = "1h", value_parser = humantime::parse_duration)]
    pub compaction_grace: Duration,
    /// After a run, remove the archive's segments of event days that are more than so many days older than their
    /// stream's newest. Such a day can't be computed anew; the views keep its rows. Without it, all are kept.
    #[arg(long, env = "TIDEMARK_ARCHIVE_DAYS")]
    pub archive_days: Option<u32>,
    /// After a run, drop the facts of event days that are more than so many days older than their stream's newest.
    #[arg(long, env = "TIDEMARK_FACTS_DAYS")]
    pub facts_days: Option<u32>,
}

const PROPERTIES: &str = "--kafka-property (TIDEMARK_KAFKA_PROPERTIES)";

impl WorkArgs {
    /// The Kafka client's settings.
    ///
    /// # Errors
    /// Where a property is none, or librdkafka refuses it.
    pub fn kafka(&self) -> Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka);
        let properties = KafkaProperties::read(&self.kafka_property, |path| std::fs::read_to_string(path));
        let properties = properties.context(PROPERTIES)?;
        for (key, value) in properties.pairs() {
            config.set(key, value);
        }
        match config.create_native_config() {
            // The error would show the value.
            Err(KafkaError::ClientConfig(why, _, key, _)) => {
                let is_known = why != RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
                Err(property_refused(properties.pairs(), &key, is_known)).context(PROPERTIES)
            }
            _ => Ok(config),
        }
    }
}

/// How moves of the tidemark are audited.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct AuditArgs {
    /// Redis, for the audit: what a reader would have had, by the realtime view, is compared with what a run is about to
    /// publish. redis://user:password@host:port (rediss:// for TLS), several nodes of a cluster separated by commas; or
    /// @/path of a file that holds it. Without it runs are not audited. The audit keeps to --memory: it holds an eighth of
    /// it in packed cells at a time, sorts those of one metric and day in the folder for temporary files, and reads the
    /// batch view row by row.
    #[arg(long, env = "TIDEMARK_REDIS", hide_env_values = true)]
    pub redis: Option<Secret>,
    /// A PEM file with the authorities that may have signed Redis' certificate; without it, the system's.
    #[arg(long, env = "TIDEMARK_REDIS_CA")]
    pub redis_ca: Option<PathBuf>,
    /// A PEM file with the certificate that we show to Redis, and those that lead to its authority.
    #[arg(long, env = "TIDEMARK_REDIS_CERT", requires = "redis_key")]
    pub redis_cert: Option<PathBuf>,
    /// A PEM file with that certificate's private key.
    #[arg(long, env = "TIDEMARK_REDIS_KEY", requires = "redis_cert")]
    pub redis_key: Option<PathBuf>,
    /// Don't publish a run in which a metric has a greater unexplained error than this, relative to what the run brings:
    /// 0.0001 for one in ten thousand, 0 for none at all. Such a run exits with 5 and is recorded as refused. What could
    /// not be audited refuses nothing.
    #[arg(long, requires = "redis", value_name = "THRESHOLD", value_parser = share)]
    pub strict_audit: Option<f64>,
    /// How long the audit waits for the realtime view to reach the new tidemark; what hasn't by then is not audited, and
    /// named.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub audit_patience: Duration,
}

impl AuditArgs {
    /// The address of Redis, if one is given.
    ///
    /// # Errors
    /// Where a file can't be read or the key's is no PEM, a URL is none, or certificates are given without `rediss://`.
    pub(crate) fn address(&self) -> Result<Option<Address>, AddressFault> {
        let Some(urls) = &self.redis else { return Ok(None) };
        let given = Given {
            urls,
            ca: self.redis_ca.as_deref(),
            cert: self.redis_cert.as_deref(),
            key: self.redis_key.as_deref(),
        };
        Address::new(given, |path| std::fs::read(path)).map(Some)
    }
}

/// Options of `run`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RunArgs {
    /// Servers and catalog.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The audit.
    #[command(flatten)]
    pub audit: AuditArgs,
    /// Also recompute this event day (2016-06-14), dirty or not.
    #[arg(long)]
    pub day: Option<NaiveDate>,
    /// Show what would be done; write nothing to the view.
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `schedule`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ScheduleArgs {
    /// Servers and catalog.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The audit.
    #[command(flatten)]
    pub audit: AuditArgs,
    /// When: a cron expression of 5 fields (or 6, seconds first), such as "*/10 * * * *".
    #[arg(long, env = "TIDEMARK_CRON", required_unless_present = "every", conflicts_with = "every")]
    pub cron: Option<String>,
    /// The IANA time zone of the expression.
    #[arg(long, env = "TIDEMARK_TIME_ZONE", default_value = "UTC")]
    pub time_zone: chrono_tz::Tz,
    /// Instead of a cron expression: this long after each run's end (5s, 1m ...).
    #[arg(long, value_parser = humantime::parse_duration)]
    pub every: Option<Duration>,
    /// Where /healthz, /readyz and /metrics are served; port 0 takes a free one.
    #[arg(long, env = "TIDEMARK_LISTEN", default_value = "127.0.0.1:0")]
    pub listen: std::net::SocketAddr,
}

/// Options of `archive`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ArchiveArgs {
    /// Servers and catalog.
    #[command(flatten)]
    pub base: BaseArgs,
}

/// Options of `import`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ImportArgs {
    /// The catalog: a TOML file.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// The archive: file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.
    #[arg(long, env = "TIDEMARK_ARCHIVE", hide_env_values = true)]
    pub archive: Secret,
    /// The catalog's stream that the rows belong to.
    #[arg(long)]
    pub stream: String,
    /// CSV (plain or gzip) or Parquet files.
    #[arg(required = true)]
    pub files: Vec<String>,
}

/// Options of `backfill`.
#[derive(Debug, Clone, ClapArgs)]
pub struct BackfillArgs {
    /// Servers and catalog.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The first event day.
    #[arg(long)]
    pub from: NaiveDate,
    /// The last event day, included.
    #[arg(long)]
    pub to: NaiveDate,
    /// Only this metric; may be repeated. All, if none is named.
    #[arg(long)]
    pub metric: Vec<String>,
    /// Show what would be done; write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `preview`.
#[derive(Debug, Clone, ClapArgs)]
pub struct PreviewArgs {
    /// Servers, and the catalog that has the metric: it need not be the one that runs work by.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The metric.
    pub metric: String,
    /// The event day (2016-06-14); the newest in the archive, where none is named.
    #[arg(long)]
    pub day: Option<NaiveDate>,
    /// How many rows to show, those with the greatest values.
    #[arg(long, default_value_t = 20)]
    pub rows: usize,
}

/// Options of `rollback`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RollbackArgs {
    /// Servers.
    #[command(flatten)]
    pub work: WorkArgs,
    /// The run, as `runs` lists it: the last good one.
    pub run: i64,
    /// A catalog to use instead of the one that is stored with the run: a TOML file.
    #[arg(long)]
    pub catalog: Option<PathBuf>,
    /// Show what would be done; write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `retry`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RetryArgs {
    /// Servers and catalog.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The audit, where the tidemark moves.
    #[command(flatten)]
    pub audit: AuditArgs,
    /// The run, as `runs` lists it.
    pub run: i64,
    /// Show what would be done; write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `runs`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RunsArgs {
    /// Postgres: postgres://user:password@host:port/database; or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Secret,
    /// How many.
    #[arg(long, default_value_t = 20)]
    pub limit: i64,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Options of `sweep`.
#[derive(Debug, Clone, ClapArgs)]
pub struct SweepArgs {
    /// Servers and catalog.
    #[command(flatten)]
    pub base: BaseArgs,
    /// Only files older than this are removed: longer than any archive step takes.
    #[arg(long, default_value = "1d", value_parser = humantime::parse_duration)]
    pub older_than: Duration,
}

/// Options of `retention`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RetentionArgs {
    /// Servers and catalog.
    #[command(flatten)]
    pub base: BaseArgs,
    /// Remove the archive's segments of event days before this one (2016-06-14). Such a day can't be computed anew.
    #[arg(long, required_unless_present = "facts_before")]
    pub archive_before: Option<NaiveDate>,
    /// Drop the facts of event days before this one.
    #[arg(long)]
    pub facts_before: Option<NaiveDate>,
}

/// Options of `catalog`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CatalogArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: CatalogCommand,
}

/// What can be done with a catalog.
#[derive(Debug, Clone, Subcommand)]
pub enum CatalogCommand {
    /// Report every fault, with its line and a suggestion.
    Validate {
        /// The catalog: a TOML file.
        #[arg(env = "TIDEMARK_CATALOG")]
        catalog: PathBuf,
    },
    /// Print the JSON Schema of catalogs, for editors.
    Schema,
    /// Print a Grafana dashboard with a panel for each metric and formula.
    Grafana {
        /// The catalog: a TOML file.
        #[arg(env = "TIDEMARK_CATALOG")]
        catalog: PathBuf,
    },
    /// Print the catalog that a run worked with, as it is stored with it.
    Of(CatalogOfArgs),
}

fn cores() -> u16 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(1024) as u16)
}

/// Options of `catalog of`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CatalogOfArgs {
    /// Postgres: postgres://user:password@host:port/database; or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Secret,
    /// The run, as `runs` lists it.
    pub run: i64,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{text} is not between 0 and 1")) }
}

/// A number of MiB as bytes.
fn mebibytes(text: &str) -> Result<u64, String> {
    let number: u64 = text.parse().map_err(|_| format!("{text:?} is no whole number of MiB"))?;
    number.checked_mul(1 << 20).filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text} MiB can't be"))
}
