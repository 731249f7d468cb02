//! The batch layer: archives the log's closed epochs and recomputes the batch view from them.

pub mod archive;
pub mod import;
