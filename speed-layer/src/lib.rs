//! The speed layer: from Kafka to exact sliding counters and the realtime view in Redis.
//!
//! A record is folded into exactly one segment of one group, and a segment is written only at the log position where
//! the last one ended: whatever is killed or retried, a group holds the fold of exactly its range of the log.

mod config;
mod consume;
mod decode;
mod dedup;
mod window;
mod counters;
mod deltas;
mod compaction;
mod group;
mod flush;
mod partition;
mod round;
mod redis;
mod dead_letters;
mod tidemark_source;
mod look;
mod local_copy;
mod claim;
mod worker;
mod live;
mod publish;
mod health;
mod telemetry;
mod verify;
#[doc(hidden)]
pub mod twin;
mod service;
#[cfg(test)]
mod laws;

pub use config::{Args, Command, DeadLettersCommand, LetterArgs, LogFormat, ReplayArgs, RunArgs, VerifyArgs};
pub use service::{execute, run};
pub use telemetry::start_logging;
