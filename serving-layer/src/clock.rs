//! The one place where this layer reads the wall clock, from which `today` and `last 6 hours` are counted; all else is
//! handed the time.

use shared_model::time::Millis;

/// Now, in ms since 1970.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Millis {
    chrono::Utc::now().timestamp_millis()
}
