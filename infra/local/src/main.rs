//! The local stack's program; re-executed by itself as each layer.

use clap::Parser as _;
use local::cli::Args;
use local::{layers, stack};
use shared_model::causes::Causes;
use std::process::ExitCode;

/// The only place that reads the clock.
#[allow(clippy::disallowed_methods)]
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

fn main() -> ExitCode {
    let done = match layers::run_as(std::env::args_os().collect(), now) {
        Some(done) => done.map(|()| true),
        None => run_stack(Args::parse()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", Causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run_stack(args: Args) -> anyhow::Result<bool> {
    stack::run(args, now).await
}
