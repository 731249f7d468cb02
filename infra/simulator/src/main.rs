//! The `simulator` program: reads the command line, sets up logging and the stop signal, runs the job.

use clap::Parser;
use simulator::cli::Args;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// The only place that reads the clock.
#[allow(clippy::disallowed_methods)]
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// Ctrl-C, or SIGTERM where there is one.
async fn stop_signal() {
    let interrupt = async { tokio::signal::ctrl_c().await.is_ok() };
    let terminate = async {
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        match signal {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt => {}
        _ = terminate => {}
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    simulator::start_logging();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        stop_signal().await;
        stop.cancel();
        // Asked again: whoever asks doesn't want to wait for a broker that is gone.
        stop_signal().await;
        std::process::exit(130);
    });
    let job = tokio::task::spawn_blocking(move || simulator::execute(args, now, &shutdown));
    match job.await.unwrap_or_else(|error| Err(error.into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
