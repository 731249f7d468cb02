//! Processes that die, stand still, join and leave. One program, whose tests run side by side.

#[path = "kills.rs"]
mod kills;
#[path = "workers.rs"]
mod workers;
