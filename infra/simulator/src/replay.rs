//! Sends records to Kafka in event-time order, at a chosen pace.

pub mod pace;
pub mod send;

pub use send::{SendError, Sender};
