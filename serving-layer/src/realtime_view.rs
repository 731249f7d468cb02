//! The realtime view as the serving layer reads it: whole groups, each in one read-only call.
//!
//! Nothing here writes. A group is read as one piece, so its header describes exactly the segments beside it.

mod memory;
mod redis;

pub use self::redis::{Address, RedisRealtimeView};
pub use memory::MemoryRealtimeView;
pub use shared_model::view::Group;

use futures::future::BoxFuture;
use shared_model::offsets::TopicPartition;
use shared_model::view::Mark;
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

/// Where groups are read from.
pub trait RealtimeView: Send + Sync {
    /// Reads one group by its key; `None` where there is none.
    fn group<'a>(&'a self, key: &'a str, want: Want) -> BoxFuture<'a, Result<Option<Group>, RealtimeError>>;

    /// What the owners last said of their partitions. Entries that can't be read are left out.
    fn marks(&self) -> BoxFuture<'_, Result<BTreeMap<TopicPartition, Mark>, RealtimeError>>;
}
