//! The command line: `serving-layer serve`, `export` and `keys`, connections also by environment variables.

use crate::push::PushLimits;
use crate::query::Limits;
use crate::telemetry::LogFormat;
use axum::http::HeaderValue;
use clap::{Parser, Subcommand};
use shared_model::redis_address::{Address, AddressFault, Given};
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
    /// Write a query's answer to object storage, as CSV or Parquet.
    Export(ExportArgs),
    /// Make, list and revoke the API keys that `serve --access` asks for.
    Keys(KeysArgs),
}

/// Where the views are, and what one request of them may cost.
#[derive(Debug, Clone, clap::Args)]
pub struct ViewsArgs {
    /// The catalog: one definition for all layers.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// Redis.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// Postgres, the primary: postgres://user:password@host:port/database; or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Secret,
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
    /// The most memory that groups of the realtime view are kept in, and what was counted of them for top-ks, in MiB: of
    /// those that are asked for again, only what has changed is read.
    #[arg(long, default_value_t = 256)]
    pub cache: u32,
}

/// Flags of `export`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    /// The views.
    #[command(flatten)]
    pub views: ViewsArgs,
    /// A file with the query, as a request's body has it; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub query: PathBuf,
    /// The object to write, in one piece: s3://bucket/file.parquet, gs://bucket/file.csv, az://container/file or
    /// file:///folder/file. What is there under that name is replaced. Credentials and endpoint come from the environment
    /// (AWS_ENDPOINT, AWS_SECRET_ACCESS_KEY, ...; @/path of a file is read there too).
    #[arg(long, value_name = "URL")]
    pub to: url::Url,
    /// The form of the object; by its name's ending unless given.
    #[arg(long = "as", value_enum)]
    pub form: Option<ExportForm>,
}

/// The form of an exported answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportForm {
    /// As the API writes it.
    Csv,
    /// Apache Parquet, compressed by zstd, with the envelope in its metadata.
    Parquet,
}

/// Flags of `serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// The views.
    #[command(flatten)]
    pub views: ViewsArgs,
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, env = "TIDEMARK_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
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
    /// Postgres with the API keys and the saved boards, as the role tidemark_access: from then on every request needs a key
    /// (`serving-layer keys`); or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_ACCESS", hide_env_values = true)]
    pub access: Option<Secret>,
    /// How long the log of who asked what (access.log, beside the keys) is kept, such as 90d.
    #[arg(long, default_value = "90d", value_parser = humantime::parse_duration)]
    pub access_log_kept: Duration,
    /// Where no keys are asked for: Postgres in which saved boards are kept, as the role tidemark_access; everyone who can
    /// connect may change them. Or @/path of a file that holds it.
    #[arg(long, env = "TIDEMARK_BOARDS", hide_env_values = true, conflicts_with = "access")]
    pub boards: Option<Secret>,
    /// Serve everyone who can connect on an address that is not this machine's alone: without it, and without --access, that
    /// is refused.
    #[arg(long, env = "TIDEMARK_WITHOUT_KEYS")]
    pub without_keys: bool,
    /// The origins whose pages may ask from a browser (CORS), such as `https://app.example`; several with commas between, or *.
    #[arg(long, env = "TIDEMARK_CORS_ORIGINS", value_delimiter = ',', value_parser = origin)]
    pub cors_origins: Vec<HeaderValue>,
    /// Merged metrics by SQL.
    #[command(flatten)]
    pub sql: SqlArgs,
}

/// Flags of SQL, which a program has that is built with `--features sql`.
#[derive(Debug, Clone, clap::Args)]
pub struct SqlArgs {
    /// The address on which Postgres' protocol is spoken, such as 127.0.0.1:5433: each metric is a table whose rows merge
    /// both views. With --access a key is the password, which crosses the wire as it is: beyond this machine put it behind
    /// a proxy that speaks TLS. Refused by a program that is built without SQL (--features sql).
    #[arg(long, env = "TIDEMARK_SQL_LISTEN")]
    pub sql_listen: Option<String>,
    /// The most connections for SQL.
    #[arg(long, default_value_t = 64)]
    pub sql_connections: usize,
    /// The most memory that statements take together for rows read, sorting, joining, grouping and rows to be sent, in MiB.
    #[arg(long, default_value_t = 256)]
    pub sql_memory: usize,
}

/// An origin as browsers send it, or `*`.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let said = || HeaderValue::from_str(text).map_err(|error| error.to_string());
    match url::Url::parse(text) {
        _ if text == "*" => said(),
        Ok(url) if url.origin().ascii_serialization() == text && url.host().is_some() => said(),
        Ok(url) if url.host().is_some() => Err(format!(
            "an origin has no path and no slash at its end: {}",
            url.origin().ascii_serialization()
        )),
        _ => Err("expected an origin such as https://app.example, or *".to_owned()),
    }
}

/// Flags of `keys`.
#[derive(Debug, Clone, clap::Args)]
pub struct KeysArgs {
    /// Postgres with the API keys, as the role tidemark_access; or @/path of a file that holds the URL.
    #[arg(long, env = "TIDEMARK_ACCESS", hide_env_values = true)]
    pub access: Secret,
    /// What to do.
    #[command(subcommand)]
    pub command: KeysCommand,
}

/// What is done with keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Make a key and print its token, once.
    Create(NewKey),
    /// List all keys: id, name, times, what they may do.
    List,
    /// End a key.
    Revoke {
        /// Its id: 16 hexadecimal digits, the first part of its token.
        id: String,
    },
}

/// A key to be made.
#[derive(Debug, Clone, clap::Args)]
pub struct NewKey {
    /// Whose it is, for lists and the log.
    pub name: String,
    /// The catalog that is served.
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: PathBuf,
    /// A metric that it may query; tag:NAME for those that have a tag in the catalog, * for all. May be given again.
    #[arg(long)]
    pub read: Vec<String>,
    /// A metric of which it may see the audits, too, as for --read; of * also the process' own figures (/metrics).
    #[arg(long)]
    pub admin: Vec<String>,
    /// The rows that it may see alone, as a query's filters: [{"dimension": "document_id", "op": "in", "values": [1, 2]}]; all
    /// must hold. A metric whose key doesn't have these columns it may not query.
    #[arg(long)]
    pub rows: Option<String>,
    /// The most requests a second (of each serving process); any number without it.
    #[arg(long)]
    pub rate: Option<f64>,
    /// How long it is valid, such as 90d; until it is revoked without it.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub expires: Option<Duration>,
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

impl ViewsArgs {
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
}

#[cfg(feature = "sql")]
impl SqlArgs {
    /// What SQL may cost.
    pub(crate) fn limits(&self) -> crate::sql::SqlLimits {
        crate::sql::SqlLimits { connections: self.sql_connections, memory: self.sql_memory << 20 }
    }
}

impl ServeArgs {
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
