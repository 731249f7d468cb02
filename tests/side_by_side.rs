//! Tests that wait for servers more than they compute, as one program, so that they run side by side.

#[path = "catalog_changes.rs"]
mod catalog_changes;
#[path = "dead_letters.rs"]
mod dead_letters;
#[path = "event_times.rs"]
mod event_times;
#[path = "full_disks.rs"]
mod full_disks;
#[path = "hostile.rs"]
mod hostile;
#[path = "large_records.rs"]
mod large_records;
#[path = "least_privilege.rs"]
mod least_privilege;
#[path = "log_cluster.rs"]
mod log_cluster;
#[path = "log_faults.rs"]
mod log_faults;
#[path = "object_store.rs"]
mod object_store;
#[path = "redis_faults.rs"]
mod redis_faults;
#[path = "repeats.rs"]
mod repeats;
#[path = "secrets.rs"]
mod secrets;
#[path = "tls.rs"]
mod tls;
