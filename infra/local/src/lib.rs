//! Everything that runs Tidemark on one machine: finding or installing Redis, Postgres and Kafka, and running
//! them on free loopback ports.
//!
//! Invariant: what is started here dies with its handle, or with this process however it ends; nothing that
//! was running before is touched, and two sessions never share a folder or a port.

pub mod install;
pub mod servers;
pub mod layers;
pub mod oracle;
pub mod probe;
pub mod redis_client;
pub mod compare;
pub mod cli;
pub mod stack;
pub mod screen;

mod ask;
mod ports;
mod process;
