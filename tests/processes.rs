//! Processes that die, stand still, join and leave, and an archive that is rewritten meanwhile. One program, whose tests
//! run side by side.

#[path = "compaction.rs"]
mod compaction;
#[path = "kills.rs"]
mod kills;
#[path = "workers.rs"]
mod workers;
