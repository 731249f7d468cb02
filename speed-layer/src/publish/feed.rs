//! What this worker stores of panes, handed on to the publisher in the same process, which so needn't read back from Redis
//! what was just written there.
//!
//! A group's writes come in their order, each with the fence that it follows: who knows the group as it was at that fence
//! knows it as it is after the write. Where one is missing, as are others' all, the group is looked at in Redis.
//!
//! Memory: 64 MiB at most, of groups that are followed; what would be more is let go of, and looked at in Redis.

use super::read::Segment;
use crate::group::Write;
use shared_model::view::Slice;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many bytes may wait to be taken.
const BYTES: usize = 64 << 20;
/// About what a write takes, and each of its segments, beside the bytes of these.
const EACH: usize = 100;

/// What a write has changed of a group's panes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The fence that it followed; empty: none.
    pub(crate) expected: String,
    /// The fence since.
    pub(crate) fence: String,
    /// Segments that have come.
    pub(crate) come: Vec<(Segment, Vec<u8>)>,
    /// Segments that were deleted.
    pub(crate) gone: Vec<Segment>,
}

impl Stored {
    /// Of a write.
    pub(crate) fn of(write: &Write) -> Stored {
        let pane = |slice: Slice, seq: u64| match slice {
            Slice::Pane(start) => Some((start, seq)),
            Slice::Epoch(_) => None,
        };
        let come = write.segments.iter();
        let come = come.filter_map(|(slice, bytes)| Some((pane(*slice, write.header.seq)?, bytes.clone())));
        let gone = write.deletes.iter().filter_map(|&(slice, seq)| pane(slice, seq));
        Stored {
            expected: write.expected.clone(),
            fence: write.header.fence(),
            come: come.collect(),
            gone: gone.collect(),
        }
    }

    fn bytes(&self) -> usize {
        self.come.iter().map(|(_, bytes)| bytes.len() + EACH).sum::<usize>() + EACH
    }
}

/// What waits to be taken.
#[derive(Default)]
struct Waiting {
    /// By the keys of the groups that are followed.
    of: HashMap<String, Vec<Stored>>,
    bytes: usize,
}

/// From those who write groups to the one who follows them.
#[derive(Clone, Default)]
pub(crate) struct Feed(Arc<Mutex<Waiting>>);

impl Feed {
    /// Hands on from now on what is stored of a group.
    pub(crate) fn follow(&self, key: &str) {
        self.lock().of.entry(key.to_owned()).or_default();
    }

    /// Hands on nothing any more.
    pub(crate) fn stop(&self) {
        *self.lock() = Waiting::default();
    }

    /// Hands on a write of a group that is stored, if the group is followed.
    pub(crate) fn stored(&self, key: &str, write: &Write) {
        let mut waiting = self.lock();
        let Waiting { of, bytes } = &mut *waiting;
        let Some(writes) = of.get_mut(key) else { return };
        let stored = Stored::of(write);
        *bytes += stored.bytes();
        writes.push(stored);
        if *bytes > BYTES {
            *bytes = 0;
            of.values_mut().for_each(|writes| *writes = Vec::new());
        }
    }

    /// Takes what was stored of a group since the last time, in its order.
    pub(crate) fn take(&self, key: &str) -> Vec<Stored> {
        let mut waiting = self.lock();
        let Some(writes) = waiting.of.get_mut(key) else { return Vec::new() };
        let writes = std::mem::take(writes);
        waiting.bytes = waiting.bytes.saturating_sub(writes.iter().map(Stored::bytes).sum());
        writes
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::epoch::TrustedTime;
    use shared_model::view::{HEADER_VERSION, Header};

    fn write(seq: u64, bytes: usize) -> Write {
        let header = Header {
            v: HEADER_VERSION,
            incarnation: 1,
            to: 7,
            clock: 0,
            trusted: TrustedTime::default(),
            watermark: None,
            panes_from: None,
            pane_holes: Vec::new(),
            cuts: Vec::new(),
            metrics: Default::default(),
            seq,
            gaps: Vec::new(),
            forgotten: Vec::new(),
        };
        let segments = vec![(Slice::Pane(10), vec![0; bytes]), (Slice::Epoch(3), vec![0; 5])];
        let deletes = vec![(Slice::Pane(0), 1), (Slice::Epoch(3), 1)];
        Write { expected: "before".to_owned(), header, segments, deletes }
    }

    #[test]
    fn what_is_stored_of_panes_waits_for_who_follows_and_never_too_much() {
        let feed = Feed::default();
        feed.stored("a", &write(2, 5));
        assert!(feed.take("a").is_empty());
        feed.follow("a");
        feed.follow("b");
        feed.stored("a", &write(2, 5));
        let fence = write(2, 5).header.fence();
        let come = vec![((10, 2), vec![0; 5])];
        let stored = Stored { expected: "before".to_owned(), fence, come, gone: vec![(0, 1)] };
        assert_eq!(feed.take("a"), [stored]);
        assert!(feed.take("a").is_empty());
        assert_eq!(feed.lock().bytes, 0);
        feed.stored("a", &write(2, BYTES / 2));
        feed.stored("b", &write(3, BYTES / 2));
        assert!(feed.take("a").is_empty() && feed.take("b").is_empty());
        feed.stored("b", &write(4, 5));
        assert_eq!(feed.take("b").len(), 1);
        feed.stop();
        feed.stored("b", &write(5, 5));
        assert!(feed.take("b").is_empty());
    }
}
