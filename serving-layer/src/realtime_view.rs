//! The realtime view as the serving layer reads it: whole groups, each in one read-only call.
//!
//! Nothing here writes. A group is read as one piece, so its header describes exactly the segments beside it.

mod memory;
mod redis;

pub use self::redis::{Address, RedisRealtimeView};
pub use memory::MemoryRealtimeView;

use futures::future::BoxFuture;
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, Mark, Slice};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why the realtime view could not be read: the cause, for the log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the realtime view can't be read: {0}")]
pub struct RealtimeError(pub String);

/// Which segments of a group are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The view cells, by epoch.
    Epochs,
    /// The pane cells.
    Panes,
}

/// One group, undecoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// The header's JSON.
    pub header: Vec<u8>,
    /// The segments wanted, perhaps others too.
    pub segments: Vec<(Slice, Vec<u8>)>,
    /// Fields that no known layout has.
    pub unknown: Vec<String>,
}

impl Group {
    /// The group that a hash's fields are; `None` where there is no header, as before its first flush.
    pub fn from_fields(fields: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Option<Group> {
        let mut group = Group::default();
        let mut header = None;
        for (field, value) in fields {
            let name = String::from_utf8_lossy(&field);
            match (&*name, view::parse_segment_field(&name)) {
                (view::HEADER_FIELD, _) => header = Some(value),
                (view::FENCE_FIELD | view::OWNER_FIELD, _) => {}
                (_, Some((slice, _))) => group.segments.push((slice, value)),
                (_, None) => group.unknown.push(name.into_owned()),
            }
        }
        group.header = header?;
        Some(group)
    }
}

/// Where groups are read from.
pub trait RealtimeView: Send + Sync {
    /// Reads one group by its key; `None` where there is none.
    fn group<'a>(&'a self, key: &'a str, want: Want) -> BoxFuture<'a, Result<Option<Group>, RealtimeError>>;

    /// What the owners last said of their partitions. Entries that can't be read are left out.
    fn marks(&self) -> BoxFuture<'_, Result<BTreeMap<TopicPartition, Mark>, RealtimeError>>;
}
