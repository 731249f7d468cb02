//! What the program says of itself: a log on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts the log at level info, or as `RUST_LOG` says. Once in a program.
pub fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
