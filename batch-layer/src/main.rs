//! The batch layer's program: reads arguments, starts the log, turns signals into a stop, and runs.

use clap::Parser as _;
use shared_model::causes::Causes;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let args = batch_layer::Args::parse();
    batch_layer::start_logging(args.log);
    batch_layer::settle_resources(args.nice);
    work(args)
}

#[tokio::main]
async fn work(args: batch_layer::Args) -> ExitCode {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        stop.cancel();
    });
    match batch_layer::execute(args, shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", Causes(error.as_ref()));
            ExitCode::from(batch_layer::exit_code(&error))
        }
    }
}
