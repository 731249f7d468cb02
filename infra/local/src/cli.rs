//! The command line of the local stack.

use clap::Parser;
use shared_model::secret::Secret;
use std::path::PathBuf;

/// Starts the whole of Tidemark on this machine, on free loopback ports: Kafka, Redis and Postgres (found, or
/// installed, or taken by URL), the three layers as separate processes, and generated events with repeats, disorder,
/// late and malformed records. Ctrl-C stops all that it started, and only that.
#[derive(Debug, Clone, Parser)]
#[command(name = "tidemark", version)]
pub struct Args {
    /// Run to the end, compare every metric with a naive count, and exit 0 where all are equal, else 1
    #[arg(long)]
    pub once: bool,
    /// Install missing servers without asking
    #[arg(long)]
    pub yes: bool,
    /// Use this Kafka (host:port) instead of starting one; its topics must be stamped LogAppendTime
    #[arg(long, env = "TIDEMARK_KAFKA")]
    pub kafka: Option<String>,
    /// Use this Redis (redis://host:port, or @/path of a file that holds it) instead of starting one
    #[arg(long, env = "TIDEMARK_REDIS", hide_env_values = true)]
    pub redis: Option<Secret>,
    /// Use this Postgres (postgres://user:password@host:port/database, or @/path of a file that holds it)
    /// instead of starting one
    #[arg(long, env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Option<Secret>,
    /// Send your own Outbrain files from this folder (page_views.csv, events.csv, plain or .gz) instead of generated
    /// events
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// How many distinct events are generated [default: 40,000 with --once, else 2,000,000]
    #[arg(long)]
    pub records: Option<u64>,
    /// Events a second while it shows itself (with --once they are sent as fast as they can be)
    #[arg(long, default_value_t = 2_000)]
    pub rate: u64,
    /// The seed of the generated events
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Partitions of each topic
    #[arg(long, default_value_t = 4)]
    pub partitions: i32,
    /// The port that the serving layer is to listen on; another is taken where it is busy
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Where servers, archive and logs are kept while it runs; emptied at each start [default: target/tidemark-local]
    #[arg(long)]
    pub folder: Option<PathBuf>,
}
