//! The serving layer: answers queries by merging the batch view below the tidemark with the realtime view above it.
//!
//! It only reads. Every answer says what it can't promise: `complete`, `as_of`, `final`, and why not.

pub mod answer;
pub mod batch_view;
pub mod caching;
pub mod catalog_reply;
mod clock;
pub mod config;
mod connection;
pub mod coverage;
pub mod documents;
pub mod error;
pub mod finish;
mod http;
pub mod live;
pub mod merge;
pub mod openapi;
pub mod push;
pub mod query;
pub mod realtime_view;
pub mod reply;
mod rolled;
pub mod router;
pub mod service;
pub mod table;
pub mod telemetry;
#[cfg(test)]
mod tests;

pub use config::{Args, Command, ServeArgs};
pub use service::{Service, run};
pub use telemetry::{LogFormat, start_logging};

use answer::Views;
use anyhow::Context;
use batch_view::PostgresBatchView;
use realtime_view::{Address, RedisRealtimeView};
use shared_model::secret::POSTGRES;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Does what the command line says, until done or told to stop.
///
/// # Errors
/// Where the catalog, a URL or the address is wrong, or the stored layout is not the catalog's.
pub async fn execute(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Command::Serve(args) = args.command;
    let catalog = Arc::new(service::read_catalog(&args.catalog)?);
    let batch = args.postgres.reveal_url(&POSTGRES, |path| std::fs::read_to_string(path)).and_then(|url| {
        PostgresBatchView::new(&url, args.postgres_connections).map_err(|_| POSTGRES.refused())
    });
    let batch = batch.context("--postgres (TIDEMARK_POSTGRES)")?;
    let realtime = RedisRealtimeView::new(Address::new(&args.redis)?, u64::from(args.cache) << 20);
    let views =
        Views { catalog, batch: Arc::new(batch), realtime: Arc::new(realtime), limits: args.limits() };
    let listener = TcpListener::bind(&args.listen)
        .await
        .with_context(|| format!("listening on {} (--listen)", args.listen))?;
    run(listener, Service::new(views, clock::now).with_push(args.push()), shutdown).await
}
