//! The batch layer: archives the log's closed epochs and recomputes the batch view from them.
//!
//! Every flip publishes versions computed from exactly what lies below the tidemark that it leaves in force.

pub mod archive;
pub mod compute;
pub mod import;
mod plan;
