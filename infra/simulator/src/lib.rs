//! Outbrain's events for Tidemark: prepared from CSV, replayed into Kafka, or generated from a seed.
//!
//! No layer depends on this crate. Every job runs in a stated, bounded memory, stops cleanly when its token is
//! cancelled, and reads the clock only through what it is given.

pub mod cli;
pub mod generate;
pub mod location;
pub mod prepare;
pub mod progress;
pub mod replay;
mod run;
mod telemetry;

pub use run::execute;
pub use telemetry::start_logging;
