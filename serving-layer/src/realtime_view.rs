//! The realtime view as the serving layer reads it: group by group.
//!
//! Nothing here writes. A group is read as one piece, so its header describes exactly the segments beside it; what is
//! answered was so at a moment after it was asked.

mod group;
mod held;
mod kept;
mod memory;
mod places;
mod reads;
mod redis;
mod rounds;
mod tally;

pub use self::redis::RedisRealtimeView;
pub use group::{Found, Group, Segment, Sought};
pub use memory::MemoryRealtimeView;
pub use tally::{Tally, TallyOf};

use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use shared_model::offsets::TopicPartition;
use shared_model::view::Mark;
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// Why the realtime view could not be read: the cause, for the log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the realtime view can't be read: {0}")]
pub struct RealtimeError(pub String);

/// Which segments of a group are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// The view cells, by epoch.
    Epochs,
    /// The pane cells.
    Panes,
}

/// Groups in the order in which they were asked for, where they are there.
pub type Groups = Vec<Option<Arc<Group>>>;

/// What the owners of partitions said of them.
pub type Marks = BTreeMap<TopicPartition, Mark>;

/// How many groups are read at once for a live answer.
const ABREAST: usize = 32;

/// Where groups are read from.
pub trait RealtimeView: Send + Sync {
    /// Reads one group by its key; `None` where there is none.
    fn group<'a>(
        &'a self,
        key: &'a str,
        want: Want,
    ) -> BoxFuture<'a, Result<Option<Arc<Group>>, RealtimeError>>;

    /// What the owners last said of their partitions. Entries that can't be read are left out.
    fn marks(&self) -> BoxFuture<'_, Result<Marks, RealtimeError>>;

    /// Those of some groups of which nothing need be read, since they are as they were; the others are left out, to be read
    /// one by one.
    fn standing<'a>(
        &'a self,
        keys: &'a [String],
        _want: Want,
    ) -> BoxFuture<'a, Result<Groups, RealtimeError>> {
        Box::pin(async { Ok(vec![None; keys.len()]) })
    }

    /// Reads the panes of groups, by their keys, and after them the marks.
    fn live<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<(Groups, Arc<Marks>), RealtimeError>> {
        Box::pin(one_by_one(self, keys))
    }

    /// What was kept of a key's items, of whichever segments.
    fn tally(&self, _of: &TallyOf) -> Option<Arc<Tally>> {
        None
    }

    /// Keeps it, perhaps, in place of what was kept of the same.
    fn keep_tally(&self, _of: TallyOf, _tally: Arc<Tally>) {}
}

/// Reads the panes of groups, each by itself, and after them the marks.
async fn one_by_one<V: RealtimeView + ?Sized>(
    view: &V,
    keys: &[String],
) -> Result<(Groups, Arc<Marks>), RealtimeError> {
    let reads: Vec<_> = keys.iter().map(|key| view.group(key, Want::Panes)).collect();
    let groups = futures::stream::iter(reads).buffered(ABREAST).try_collect().await?;
    Ok((groups, Arc::new(view.marks().await?)))
}
