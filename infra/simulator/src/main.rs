//! The `simulator` program: reads the command line, sets up logging and the stop signal, runs the job.

use clap::Parser;
use simulator::cli::Args;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The only place that reads the clock.
#[allow(clippy::disallowed_methods)]
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    tokio::task::spawn_blocking(move || simulator::execute(args, now, &shutdown)).await?
}
