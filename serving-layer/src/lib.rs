//! The serving layer: answers queries by merging the batch view below the tidemark with the realtime view above it.
//!
//! Of the views it only reads; what it writes are boards, keys, the log of who asked what, and answers that are exported.
//! Every answer says what it can't promise: `complete`, `as_of`, `final`, and why not.

pub mod access;
pub mod answer;
pub mod batch_view;
pub mod boards;
pub mod caching;
pub mod catalog_reply;
mod clock;
pub mod config;
mod connection;
pub mod coverage;
pub mod documents;
pub mod error;
mod export;
pub mod facts;
pub mod finish;
mod http;
pub mod live;
pub mod merge;
pub mod openapi;
mod page;
pub mod push;
pub mod query;
pub mod realtime_view;
pub mod reply;
mod retained;
mod rolled;
pub mod router;
pub mod service;
#[cfg(feature = "sql")]
mod sql;
pub mod table;
pub mod telemetry;
#[cfg(test)]
mod tests;

pub use config::{Args, Command, ExportArgs, ServeArgs, ViewsArgs};
pub use service::{Service, run};
pub use telemetry::{LogFormat, start_logging};

use access::command::{ACCESS, store};
use access::{Access, Log};
use answer::Views;
use anyhow::{Context, bail};
use batch_view::PostgresBatchView;
use boards::Boards;
use realtime_view::RedisRealtimeView;
use shared_model::secret::POSTGRES;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, lookup_host};
use tokio_util::sync::CancellationToken;

/// Does what the command line says, until done or told to stop.
///
/// # Errors
/// Where the catalog, a URL or the address is wrong, others could reach the address and nothing says who may ask, or the
/// stored layout is not the catalog's.
pub async fn execute(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    match args.command {
        Command::Serve(args) => serve(args, shutdown).await,
        Command::Export(args) => export::export(&args, shutdown).await,
        Command::Keys(args) => access::command::execute(args).await,
    }
}

/// The views that are named, of which nothing is asked yet.
fn open(args: &ViewsArgs) -> anyhow::Result<Views> {
    let catalog = Arc::new(service::read_catalog(&args.catalog)?);
    let batch = args.postgres.reveal_url(&POSTGRES, |path| std::fs::read_to_string(path)).and_then(|url| {
        PostgresBatchView::new(&url, args.postgres_connections).map_err(|_| POSTGRES.refused())
    });
    let batch = batch.context("--postgres (TIDEMARK_POSTGRES)")?;
    let realtime = RedisRealtimeView::new(args.redis.address()?, u64::from(args.cache) << 20);
    Ok(Views { catalog, batch: Arc::new(batch), realtime: Arc::new(realtime), limits: args.limits() })
}

async fn serve(args: ServeArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let views = open(&args.views)?;
    let keys = args.access.as_ref().map(|url| store(url, ACCESS)).transpose()?;
    let boards = args.boards.as_ref().map(|url| store(url, "--boards (TIDEMARK_BOARDS)")).transpose()?;
    let push = args.push();
    if keys.is_some() && args.without_keys {
        bail!(
            "--access (TIDEMARK_ACCESS) asks for keys, and --without-keys for none: leave one of them out; without keys \
             boards are kept by --boards (TIDEMARK_BOARDS)"
        );
    }
    let open = keys.is_some() || args.without_keys;
    let listener = listen(&args.listen, "--listen", open).await?;
    #[cfg(not(feature = "sql"))]
    if args.sql.sql_listen.is_some() {
        bail!(
            "--sql-listen (TIDEMARK_SQL_LISTEN): this program is built without SQL; build it with --features sql"
        );
    }
    #[cfg(feature = "sql")]
    let sql_listener = match &args.sql.sql_listen {
        Some(address) => Some(listen(address, "--sql-listen", open).await?),
        None => None,
    };
    let mut service = Service::new(views, clock::now).with_push(push);
    service.origins = args.cors_origins.into();
    if boards.is_some() {
        tracing::warn!(
            "no keys are asked for, and boards are kept: everyone who can connect may change them"
        );
    }
    let kept = boards.or_else(|| keys.clone());
    service.boards = kept.map(|store| Arc::new(store) as Arc<dyn Boards>);
    // The log is written until the last request is answered.
    let ended = CancellationToken::new();
    let keeping = keys.map(|keys| {
        let (log, writing) = Log::new(access::WAITING, Some(args.access_log_kept), clock::now);
        let access = Access::new(log);
        service.access = Some(access.clone());
        tokio::spawn(access.run(keys, writing, service.clone(), ended.clone()))
    });
    let stop = shutdown.child_token();
    #[cfg(feature = "sql")]
    let sql = match sql_listener {
        Some(listener) => {
            let server = sql::Server::new(listener, service.clone(), args.sql.limits())?;
            Some(tokio::spawn(server.run(stop.clone())))
        }
        None => None,
    };
    let served = run(listener, service, stop.clone()).await;
    stop.cancel();
    #[cfg(feature = "sql")]
    if let Some(sql) = sql {
        sql.await.context("the task that serves SQL ended early")?;
    }
    ended.cancel();
    if let Some(keeping) = keeping {
        keeping.await.context("the task that keeps the keys ended early")??;
    }
    served
}

/// Listens on an address, which others can reach only where it is `open` to them: it is said who may ask.
async fn listen(address: &str, option: &str, open: bool) -> anyhow::Result<TcpListener> {
    let listening = || format!("listening on {address} ({option})");
    let addresses: Vec<SocketAddr> = lookup_host(address).await.with_context(listening)?.collect();
    let reached = addresses.iter().find(|address| !address.ip().is_loopback());
    if let (Some(address), false) = (reached, open) {
        bail!(
            "{address} ({option}) can be reached from elsewhere, and nothing says who may ask: give --access \
             (TIDEMARK_ACCESS) and make keys by `serving-layer keys`, listen on 127.0.0.1, or say --without-keys"
        );
    }
    TcpListener::bind(&addresses[..]).await.with_context(listening)
}
