//! Faults of what keeps the views: full disks, and Postgres. One program, whose tests run side by side.

#[path = "full_disks.rs"]
mod full_disks;
#[path = "postgres_faults.rs"]
mod postgres_faults;
