//! Faults of the log, of one broker and of two. One program, whose tests run side by side.

#[path = "log_cluster.rs"]
mod log_cluster;
#[path = "log_faults.rs"]
mod log_faults;
