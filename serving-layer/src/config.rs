//! The command line: `serving-layer serve`, each flag also an environment variable.

use crate::push::PushLimits;
use crate::query::Limits;
use crate::telemetry::LogFormat;
use clap::{Parser, Subcommand};
use shared_model::secret::Secret;
use std::path::PathBuf;
use std::time::Duration;

/// Serves Tidemark's metrics over HTTP: each answer merges the batch view (Postgres) and the realtime view (Redis).
#[derive(Debug, Clone, Parser)]
#[command(name = "serving-layer", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The form of log lines (the level is set by RUST_LOG).
    #[arg(long, global = true, value_enum, default_value = "text", env = "TIDEMARK_LOG")]
    pub log: LogFormat,
}

/// What the program does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Answer queries over HTTP until stopped.
    Serve(ServeArgs),
}

/// Flags of `serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// The catalog: one definition for all layers.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// Redis.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// Postgres, the primary: postgres://user:password@host:port/database; or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Secret,
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, env = "TIDEMARK_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
    /// The most connections to Postgres: also how many requests for queries are answered at once; more wait for up to 3 s.
    #[arg(long, default_value_t = 16)]
    pub postgres_connections: u32,
    /// The longest that a request may take, such as 30s.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub time_limit: Duration,
    /// The most rows of one answer.
    #[arg(long, default_value_t = Limits::default().max_rows)]
    pub max_rows: usize,
    /// The most cells (groups by buckets, items of a top_k) that one request may hold in memory.
    #[arg(long, default_value_t = Limits::default().max_cells)]
    pub max_cells: usize,
    /// The longest request body in bytes.
    #[arg(long, default_value_t = Limits::default().max_body)]
    pub max_body: usize,
    /// How many groups of the realtime view one query reads at once.
    #[arg(long, default_value_t = Limits::default().redis_reads)]
    pub redis_reads: usize,
    /// The most memory that groups of the realtime view are kept in, in MiB: of those that are asked for again, only what
    /// has changed is read.
    #[arg(long, default_value_t = 256)]
    pub cache: u32,
    /// How often is looked at most at what is subscribed to, such as 100ms: once for all subscribers of equal requests.
    #[arg(long, default_value = "100ms", value_parser = humantime::parse_duration)]
    pub push_interval: Duration,
    /// The most subscriptions, each WebSocket's connection counted too.
    #[arg(long, default_value_t = PushLimits::default().subscribers)]
    pub max_subscribers: usize,
    /// The most different requests that are subscribed to.
    #[arg(long, default_value_t = PushLimits::default().hubs)]
    pub max_hubs: usize,
    /// The most that the newest replies to all that is subscribed to may take together, as JSON, in MiB. In memory it is
    /// several times as much.
    #[arg(long, default_value_t = 64)]
    pub push_memory: u32,
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

impl ServeArgs {
    /// What one request may cost.
    pub fn limits(&self) -> Limits {
        Limits {
            max_rows: self.max_rows,
            max_cells: self.max_cells,
            max_body: self.max_body,
            time_limit: self.time_limit,
            at_once: self.postgres_connections.max(1) as usize,
            redis_reads: self.redis_reads,
            ..Limits::default()
        }
    }

    /// What push may cost.
    pub fn push(&self) -> PushLimits {
        PushLimits {
            interval: self.push_interval,
            subscribers: self.max_subscribers,
            hubs: self.max_hubs,
            memory: (self.push_memory as usize) << 20,
            ..PushLimits::default()
        }
    }
}
