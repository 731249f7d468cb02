//! A client of the serving layer, generated when this crate is built: see `build.rs`.
#![allow(clippy::all, rustdoc::all, unused, missing_docs, unreachable_pub)]

/// What is sent and received.
pub mod types {
    include!(concat!(env!("OUT_DIR"), "/types.rs"));
}

/// The calls.
pub mod client {
    include!(concat!(env!("OUT_DIR"), "/client.rs"));
}
