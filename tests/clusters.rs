//! Clusters: two brokers, and three masters of Redis. One program, whose tests run side by side.

#[path = "log_cluster.rs"]
mod log_cluster;
#[path = "redis_cluster.rs"]
mod redis_cluster;
