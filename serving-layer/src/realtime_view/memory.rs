//! The realtime view in memory: the reference that tests hold the real one against.

use super::{Group, Marks, RealtimeError, RealtimeView, Tally, TallyOf, Want};
use futures::future::BoxFuture;
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, Header, Mark, Slice};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Groups by key, and marks; `None`: out of reach.
#[derive(Debug)]
pub struct MemoryRealtimeView(Mutex<Option<Held>>);

#[derive(Debug, Default, Clone)]
struct Held {
    groups: BTreeMap<String, Arc<Group>>,
    marks: Marks,
    tallies: HashMap<TallyOf, Arc<Tally>>,
}

impl Default for MemoryRealtimeView {
    fn default() -> MemoryRealtimeView {
        MemoryRealtimeView(Mutex::new(Some(Held::default())))
    }
}

impl MemoryRealtimeView {
    fn with<T>(&self, read: impl FnOnce(&mut Option<Held>) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a group with its segments.
    pub fn put(&self, key: &str, header: &Header, segments: Vec<(Slice, Vec<u8>)>) {
        let header = header.to_json().into_bytes();
        self.put_group(key, view::Group { header, segments, unknown: Vec::new() });
    }

    /// Puts a group as it is, valid or not.
    pub fn put_group(&self, key: &str, group: view::Group) {
        self.with(|held| held.get_or_insert_default().groups.insert(key.to_owned(), Arc::new(group.into())));
    }

    /// Puts a partition's mark.
    pub fn put_mark(&self, tp: &TopicPartition, mark: Mark) {
        self.with(|held| held.get_or_insert_default().marks.insert(tp.clone(), mark));
    }

    /// Puts it out of reach.
    pub fn fail(&self) {
        self.with(|held| *held = None);
    }
}

impl RealtimeView for MemoryRealtimeView {
    fn group<'a>(
        &'a self,
        key: &'a str,
        _want: Want,
    ) -> BoxFuture<'a, Result<Option<Arc<Group>>, RealtimeError>> {
        let found = self.with(|held| held.as_ref().map(|held| held.groups.get(key).cloned()));
        Box::pin(async move { found.ok_or_else(out_of_reach) })
    }

    fn marks(&self) -> BoxFuture<'_, Result<Marks, RealtimeError>> {
        let found = self.with(|held| held.as_ref().map(|held| held.marks.clone()));
        Box::pin(async move { found.ok_or_else(out_of_reach) })
    }

    fn tally(&self, of: &TallyOf) -> Option<Arc<Tally>> {
        self.with(|held| held.as_ref()?.tallies.get(of).cloned())
    }

    fn keep_tally(&self, of: TallyOf, tally: Arc<Tally>) {
        self.with(|held| {
            if let Some(held) = held {
                held.tallies.insert(of, tally);
            }
        });
    }
}

fn out_of_reach() -> RealtimeError {
    RealtimeError("it was put out of reach".to_owned())
}
