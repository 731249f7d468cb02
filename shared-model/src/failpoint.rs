//! Named points, before and after each external effect of a layer, at which a test ends the process: as a kill -9
//! there would, with nothing flushed and nothing dropped.
//!
//! `TIDEMARK_FAILPOINT=speed.flush.after:3` ends it at the third time; without the variable a point is one load.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// The point that is armed, and how often it may still be passed.
static ARMED: LazyLock<Option<(String, AtomicI64)>> = LazyLock::new(|| {
    let text = std::env::var("TIDEMARK_FAILPOINT").ok()?;
    let (name, times) = text.rsplit_once(':')?;
    Some((name.to_owned(), AtomicI64::new(times.parse().ok()?)))
});

/// Ends the process if this point is armed and has been passed often enough.
pub fn hit(name: &str) {
    if let Some((armed, left)) = &*ARMED
        && armed == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}
