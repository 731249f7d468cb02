//! What lies in stores while they fail, fill up, and are read by another catalog. One program, whose tests run side by side.

#[path = "catalog_changes.rs"]
mod catalog_changes;
#[path = "compaction.rs"]
mod compaction;
#[path = "full_disks.rs"]
mod full_disks;
#[path = "object_store.rs"]
mod object_store;
