//! The layers as the tests start them: this binary, re-executed as each of them.

use shared_model::causes::Causes;
use std::process::ExitCode;

/// The only place that reads the clock.
#[allow(clippy::disallowed_methods)]
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

fn main() -> ExitCode {
    match local::layers::run_as(std::env::args_os().collect(), now) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("error: {}", Causes(error.as_ref()));
            ExitCode::from(batch_layer::exit_code(&error))
        }
        None => {
            eprintln!("error: the first argument must be one of {:?}", local::layers::NAMES);
            ExitCode::FAILURE
        }
    }
}
