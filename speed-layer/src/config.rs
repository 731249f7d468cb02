//! Arguments of the program. What may hold a secret can come from the environment or a file, so that none need be on a
//! command line.

use clap::{Parser, Subcommand, ValueEnum};
use shared_model::offsets::{OffsetRange, TopicPartition};
use shared_model::redis_address::{Address, AddressFault, Given};
use shared_model::secret::Secret;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Keeps sliding counters and the realtime view in Redis exact, from Kafka.
#[derive(Debug, Parser)]
#[command(name = "speed-layer", version)]
pub struct Args {
    /// How log lines are written.
    #[arg(long, env = "TIDEMARK_LOG", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log: LogFormat,
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

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reads the streams' topics and keeps Redis up to date until it is told to stop.
    Run(Box<RunArgs>),
    /// Re-reads the log and compares: each group in Redis must equal the naive fold of exactly its range.
    Verify(Box<VerifyArgs>),
    /// Shows the records that could not be counted, and replays them once they can be.
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        command: DeadLettersCommand,
    },
}

/// What can be done with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// Lists dead letters: position, reason, size, the bytes' beginning; at the end how many of each reason.
    List(Box<LetterArgs>),
    /// Produces the original bytes to the original topic and partition again, of each dead letter that the catalog now
    /// admits. Do it once the workers run with the mended catalog. A record is replayed once however often this is
    /// called; one that counts already (it lay above the tidemark when the catalog was mended) is recognised by its
    /// identity, as any repeat.
    Replay(Box<ReplayArgs>),
}

/// Which dead letters.
#[derive(Debug, Clone, clap::Args)]
pub struct LetterArgs {
    /// The catalog (TOML): streams, metrics and layout.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// Kafka's bootstrap servers, host:port, comma-separated.
    #[arg(long, env = "TIDEMARK_KAFKA")]
    pub kafka: String,
    /// Further librdkafka properties, key=value;key=value (TLS, SASL, ...), or one a line of a file, @/path; may be
    /// repeated.
    #[arg(long, env = "TIDEMARK_KAFKA_PROPERTIES", hide_env_values = true)]
    pub kafka_property: Vec<Secret>,
    /// Only records of this topic; may be repeated.
    #[arg(long)]
    pub topic: Vec<String>,
    /// Only records of this partition; may be repeated.
    #[arg(long)]
    pub partition: Vec<i32>,
    /// Only records refused for this reason (not_json, bad_field, no_event_time, event_time_out_of_bounds, empty,
    /// too_large); may be repeated.
    #[arg(long)]
    pub reason: Vec<String>,
    /// Only records at these offsets of their own topic: FROM..TO, without TO; either may be left out.
    #[arg(long, value_parser = offsets)]
    pub offsets: Option<OffsetRange>,
}

/// Arguments of `dead-letters replay`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReplayArgs {
    /// Which.
    #[command(flatten)]
    pub letters: LetterArgs,
    /// Says what would be replayed, and writes nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Clone, clap::Args)]
pub struct VerifyArgs {
    /// The catalog (TOML): streams, metrics and layout.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// Kafka's bootstrap servers, host:port, comma-separated.
    #[arg(long, env = "TIDEMARK_KAFKA")]
    pub kafka: String,
    /// Further librdkafka properties, key=value;key=value (TLS, SASL, ...), or one a line of a file, @/path; may be
    /// repeated.
    #[arg(long, env = "TIDEMARK_KAFKA_PROPERTIES", hide_env_values = true)]
    pub kafka_property: Vec<Secret>,
    /// Redis.
    #[command(flatten)]
    pub redis: RedisArgs,
}

/// Arguments of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// The catalog (TOML): streams, metrics and layout.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// Kafka's bootstrap servers, host:port, comma-separated.
    #[arg(long, env = "TIDEMARK_KAFKA")]
    pub kafka: String,
    /// Further librdkafka properties, key=value;key=value (TLS, SASL, ...), or one a line of a file, @/path; may be
    /// repeated.
    #[arg(long, env = "TIDEMARK_KAFKA_PROPERTIES", hide_env_values = true)]
    pub kafka_property: Vec<Secret>,
    /// Redis.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// Postgres, where the tidemark is: postgres://user:password@host:port/database; or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Secret,
    /// The consumer group that shares the partitions, and under which offsets are committed for lag tools.
    #[arg(long, env = "TIDEMARK_GROUP_ID", default_value = "tidemark-speed")]
    pub group_id: String,
    /// Own exactly these partitions (topic/partition, comma-separated) instead of sharing in a group.
    #[arg(long, env = "TIDEMARK_ASSIGN", value_delimiter = ',', value_parser = partition)]
    pub assign: Vec<TopicPartition>,
    /// How often changed cells are written.
    #[arg(long, env = "TIDEMARK_FLUSH_INTERVAL", default_value = "250ms", value_parser = humantime::parse_duration)]
    pub flush_interval: Duration,
    /// How many changes of cells in one partition may wait before they are written at once, when catching up: a record
    /// makes one for each metric that it feeds.
    #[arg(long, default_value_t = 100_000)]
    pub pending_cells: usize,
    /// How long epochs below the last tidemark but one are kept after a flip: longer than the longest query.
    #[arg(long, env = "TIDEMARK_EPOCH_GRACE", default_value = "60s", value_parser = humantime::parse_duration)]
    pub epoch_grace: Duration,
    /// A folder on a local disk for a copy of what Redis holds of the partitions that this worker owns. Should Redis lose
    /// it, it is put back at once, instead of being folded from the log again. To have the realtime view built anew from
    /// the log, empty this folder too.
    #[arg(long, env = "TIDEMARK_LOCAL_COPY")]
    pub local_copy: Option<PathBuf>,
    /// Where /healthz, /readyz and /metrics are served; port 0 takes a free one and logs it.
    #[arg(long, env = "TIDEMARK_LISTEN", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Don't publish finished values as plain keys from this worker.
    #[arg(long)]
    pub no_publish: bool,
    /// Publish finished values at every pane, each in its turn, while catching up too; without it, the newest at most once
    /// a second. All workers of a group are to do it: one that reads waits for the one that publishes.
    #[arg(long, env = "TIDEMARK_PUBLISH_PANES")]
    pub publish_panes: bool,
}

/// Where Redis is, and how to trust it.
#[derive(Debug, Clone, clap::Args)]
pub struct RedisArgs {
    /// Redis or Valkey: redis://user:password@host:port[/db], rediss:// for TLS; or @/path of a file that holds it. A
    /// cluster is recognised; several of its nodes are separated by commas.
    #[arg(long, env = "TIDEMARK_REDIS", hide_env_values = true)]
    pub redis: Secret,
    /// A PEM file with the authorities that may have signed Redis' certificate; without it, the system's.
    #[arg(long, env = "TIDEMARK_REDIS_CA")]
    pub redis_ca: Option<PathBuf>,
    /// A PEM file with the certificate that we show to Redis, and those that lead to its authority.
    #[arg(long, env = "TIDEMARK_REDIS_CERT", requires = "redis_key")]
    pub redis_cert: Option<PathBuf>,
    /// A PEM file with that certificate's private key.
    #[arg(long, env = "TIDEMARK_REDIS_KEY", requires = "redis_cert")]
    pub redis_key: Option<PathBuf>,
}

impl RedisArgs {
    /// The address that they give.
    ///
    /// # Errors
    /// Where a file can't be read or the key's is no PEM, a URL is none, or certificates are given without `rediss://`.
    pub(crate) fn address(&self) -> Result<Address, AddressFault> {
        let given = Given {
            urls: &self.redis,
            ca: self.redis_ca.as_deref(),
            cert: self.redis_cert.as_deref(),
            key: self.redis_key.as_deref(),
        };
        Address::new(given, |path| std::fs::read(path))
    }
}

fn partition(text: &str) -> Result<TopicPartition, String> {
    TopicPartition::parse(text).ok_or_else(|| format!("{text:?} is not topic/partition, as in page_views/0"))
}

fn offsets(text: &str) -> Result<OffsetRange, String> {
    let end = |text: &str, open: i64| if text.is_empty() { Some(open) } else { text.parse().ok() };
    let range = text
        .split_once("..")
        .and_then(|(from, to)| Some(OffsetRange { from: end(from, 0)?, to: end(to, i64::MAX)? }));
    range.filter(|range| !range.is_empty()).ok_or_else(|| format!("{text:?} is not FROM..TO, as in 100..200"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
        assert_eq!(partition("a/3"), Ok(TopicPartition::new("a", 3)));
        assert!(partition("a").is_err());
        assert_eq!(offsets("3..5"), Ok(OffsetRange { from: 3, to: 5 }));
        assert_eq!(offsets("..5"), Ok(OffsetRange { from: 0, to: 5 }));
        assert_eq!(offsets("3.."), Ok(OffsetRange { from: 3, to: i64::MAX }));
        ["3", "5..5", "a..b"].iter().for_each(|text| assert!(offsets(text).is_err()));
    }
}
