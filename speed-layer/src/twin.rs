//! The speed layer without Kafka and Redis: the same claim, fold, flush and merge against a Redis in memory, so that
//! tests can drive workers through any interleaving of records, calls, crashes and losses.
//!
//! Nothing is decided here: every decision is `flush`'s, `group`'s, `round`'s or `partition`'s, as in the worker. The
//! Redis in memory is held to the real one's function library by `tests/conformance.rs`.

mod memory;
mod worker;

pub use memory::{Call, MemoryRedis, Reply};
pub use worker::{Begin, Follower, Spell, Wire, Worker};

use crate::counters::{self, Plan};
use crate::window;
use futures::executor::block_on;
use shared_model::catalog::{Catalog, Stream};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use shared_model::time::Millis;
use shared_model::view::{self, Header, Mark, Slice};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The function library of the real Redis.
pub const LIBRARY: &str = crate::redis::LIBRARY;

/// What became of a record: the name of its outcome, where a test has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Folded into the groups that it belongs to, unless they had it already.
    Counted,
    /// A repeat, a tick, or below all groups.
    Passed,
    /// Refused as invalid.
    Rejected,
    /// Not a record of the log that the tidemark was cut from.
    OtherLog,
}

/// The start of the oldest pane that is still in a window, by all partitions' marks.
pub fn oldest_pane<'a>(catalog: &Catalog, marks: impl Iterator<Item = &'a Mark> + Clone) -> Option<Millis> {
    window::oldest_pane(marks, catalog.layout.pane, counters::longest_window(catalog))
}

/// A group as Redis holds it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its header.
    pub header: Header,
    /// Its segments, by slice and number.
    pub segments: BTreeMap<(Slice, u64), Vec<u8>>,
    /// Its fields.
    fields: BTreeMap<String, Vec<u8>>,
}

/// One partition with its worker and its stored groups; every call is answered at once.
pub struct Twin {
    tp: TopicPartition,
    plan: Arc<Plan>,
    redis: Local,
    worker: Option<Worker<Local>>,
    drawn: u64,
}

/// A Redis in this process, of which some groups are out of reach.
#[derive(Clone, Default)]
struct Local(Arc<Mutex<(MemoryRedis, Vec<String>)>>);

impl Local {
    fn with<T>(&self, look: impl FnOnce(&mut (MemoryRedis, Vec<String>)) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Wire for Local {
    async fn call(&self, call: Call) -> Option<Reply> {
        self.with(|(redis, lost)| {
            if call.key().is_some_and(|key| lost.iter().any(|lost| lost == key)) {
                return None;
            }
            Some(redis.call(&call))
        })
    }
}

impl Twin {
    /// A partition of a stream, with nothing stored and no worker.
    pub fn new(catalog: &Catalog, stream: &Arc<Stream>, tp: &TopicPartition) -> Twin {
        let plan = Arc::new(Plan::new(catalog, stream));
        Twin { tp: tp.clone(), plan, redis: Local::default(), worker: None, drawn: 0 }
    }

    /// A worker claims the partition at a tidemark's cut, whatever went before, and reads from the returned offset
    /// on. A group that must be built anew folds panes from `panes` on, an older cut (of the first tidemark, where
    /// `is_first`).
    pub fn claim(&mut self, cut: &Cut, panes: &Cut, is_first: bool, log_start: i64) -> i64 {
        let begin = || Begin {
            cut: cut.clone(),
            panes: panes.clone(),
            panes_are_first: is_first,
            log: (log_start, i64::MAX),
            partitions: 1,
        };
        let drawn = &mut self.drawn;
        let random = || {
            *drawn += 1;
            *drawn
        };
        let claimed = Worker::claim_with(self.plan.clone(), &self.tp, self.redis.clone(), begin, random);
        let worker = block_on(claimed).expect("nothing is out of reach at a claim");
        let from = worker.reads_from();
        self.worker = Some(worker);
        from
    }

    /// The worker takes in the next record; `None` is a tick.
    pub fn take(&mut self, offset: i64, append_time: Millis, value: Option<&[u8]>) -> Outcome {
        self.worker.as_mut().expect("claimed").take(offset, append_time, value)
    }

    /// One round of writes; those of the groups that `reaches` refuses don't reach the store and stay in flight.
    /// Epochs below `floor` are dropped.
    ///
    /// # Errors
    /// Where the store refuses a write (the group was lost meanwhile): the worker has to claim anew.
    pub fn flush(&mut self, floor: Option<&Cut>, reaches: impl Fn(usize) -> bool) -> Result<(), Spell> {
        let groups = 0..self.plan.layout.groups as usize;
        let lost = groups.filter(|&group| !reaches(group)).map(|group| self.key(group)).collect();
        self.redis.with(|(_, out_of_reach)| *out_of_reach = lost);
        let worker = self.worker.as_mut().expect("claimed");
        let ended = block_on(worker.round(floor, None, true));
        self.redis.with(|(_, out_of_reach)| out_of_reach.clear());
        match ended {
            Spell::Stored | Spell::Retry => Ok(()),
            ended => Err(ended),
        }
    }

    /// Whether the worker's cuts differ from a tidemark's, upon which it claims anew.
    pub fn differs(&self, cut: &Cut) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.differs(cut))
    }

    /// The store loses one group, or goes back to an earlier state of it.
    pub fn lose(&mut self, group: usize, earlier: Option<Stored>) {
        let key = self.key(group);
        self.redis.with(|(redis, _)| match earlier {
            Some(earlier) => redis.put(&key, earlier.fields),
            None => redis.remove(&key),
        });
    }

    /// A group as stored.
    pub fn group(&self, group: usize) -> Option<Stored> {
        let fields = self.redis.with(|(redis, _)| redis.fields(&self.key(group)).cloned())?;
        let header = Header::from_json(fields.get(view::HEADER_FIELD)?).expect("a header of ours");
        let segment = |(field, bytes): (&String, &Vec<u8>)| {
            view::parse_segment_field(field).map(|name| (name, bytes.clone()))
        };
        Some(Stored { header, segments: fields.iter().filter_map(segment).collect(), fields })
    }

    fn key(&self, group: usize) -> String {
        view::group_key(&self.tp, group as u32, self.plan.layout.groups)
    }
}
