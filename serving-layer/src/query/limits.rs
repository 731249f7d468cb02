//! What one request may cost.

use std::time::Duration;

/// What one request may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most rows of one answer; also what `limit` may not exceed.
    pub max_rows: usize,
    /// Rows of an answer whose request names no limit.
    pub default_rows: usize,
    /// The most cells (groups by buckets, and items of a top-k) that all answers of a request may hold in
    /// memory together.
    pub max_cells: usize,
    /// The longest body in bytes.
    pub max_body: usize,
    /// The longest that a request may take.
    pub time_limit: Duration,
    /// How many requests are answered at once.
    pub at_once: usize,
    /// How long a request waits for its turn.
    pub patience: Duration,
    /// How many groups are read from Redis at once.
    pub redis_reads: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_rows: 100_000,
            default_rows: 10_000,
            max_cells: 1_000_000,
            max_body: 1 << 20,
            time_limit: Duration::from_secs(30),
            at_once: 16,
            patience: Duration::from_secs(3),
            redis_reads: 32,
        }
    }
}
