//! A shop of the tests' own: live streams, and over them every aggregate, grain and kind of expression that a catalog
//! may have, with seeded events and an oracle.
//!
//! The oracle is a naive fold over the events that it parses itself out of the log's bytes; it shares no code with the
//! layers.

pub mod ask;
pub mod events;
pub mod metrics;
pub mod oracle;

/// The shop's catalog.
pub const CATALOG: &str = include_str!("shop.toml");
