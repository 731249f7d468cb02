//! What the tests stand on: real servers and layers as real processes, seeded events, and the oracle that every
//! answer must equal.
//!
//! Nothing waits for a time to pass: every wait is for something to become true, with a limit after which it fails
//! and says what it saw.

pub mod brokers;
pub mod browser;
pub mod events;
pub mod grafana;
pub mod kafka;
pub mod letters;
pub mod load;
pub mod naughty;
pub mod s3;
pub mod simulator;
pub mod shop;
pub mod preload;
pub mod proxy;
pub mod redis_client;
pub mod redis_servers;
pub mod stack;
pub mod torture;
pub mod watch;

use std::time::{Duration, Instant};

/// The longest wait for anything to become true.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The present: what a test compares brokers' stamps with, and what it calls the time of an event.
#[allow(clippy::disallowed_methods)]
pub fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// A number from the environment: how long a long form runs, or the seed of a failure.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Waits until `look` gives a value.
///
/// # Panics
/// After [`PATIENCE`], with what `look` last said instead.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if started.elapsed() > PATIENCE => {
                panic!("{what}: not within {PATIENCE:?}; last: {seen}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
