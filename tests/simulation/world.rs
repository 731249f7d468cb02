//! What all actors share: the clock, the log, Redis, the ledger, the archive and chance; and the points at which an
//! actor can be left standing.
//!
//! An actor is a future that is polled by the scheduler alone. Each of its effects happens at once; before and after
//! each it waits to be polled again, and there it may be dropped (a crash), left for long (a zombie), or overtaken.

use crate::fact;
use crate::log::{Broker, START};
use crate::random::Random;
use crate::speed::Process;
use crate::tally::Tally;
use batch_layer::twin::{MemoryLedger, Store};
use serving_layer::batch_view::{Lost, MemoryBatchView, MemoryVersion};
use serving_layer::merge;
use shared_model::catalog::Catalog;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use speed_layer::twin::{Call, MemoryRedis};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// How many of the last steps a failure shows.
const TRACE: usize = 80;

/// A fault that is built in on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Redis takes every write for one that follows its stored fence.
    FenceIgnored,
    /// Redis stores a write's header without one of its segments.
    WriteTorn,
    /// A restarted worker doesn't re-read the horizon.
    DedupForgotten,
    /// A worker passes over a record now and then.
    RecordSkipped,
    /// The archive's cuts lie elsewhere than the log's.
    CutsMoved,
    /// The archiver passes over a record now and then.
    ArchiveSkips,
    /// A worker claims to have looked for partitions all the time.
    LooksClaimed,
    /// A group doesn't say that the log had lost some of its dedup horizon.
    HorizonUnsaid,
}

/// What may happen in a seed's world beside crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    /// One in so many calls to Redis and the archive meets a fault; 0: none.
    pub(crate) faults: usize,
    /// At one in so many moves something is killed.
    pub(crate) crashes: usize,
    /// At one in so many moves Redis loses something.
    pub(crate) losses: usize,
    /// The log may lose records before they are read.
    pub(crate) log_loss: bool,
    /// A leader's clock may be a day ahead.
    pub(crate) far_clock: bool,
}

/// The state of the world.
pub(crate) struct State {
    pub(crate) random: Random,
    pub(crate) now: Millis,
    pub(crate) weather: Weather,
    pub(crate) broker: Broker,
    pub(crate) redis: MemoryRedis,
    /// Earlier states of it.
    pub(crate) snapshots: Vec<MemoryRedis>,
    /// Calls that were made once and will come again.
    pub(crate) late: Vec<Call>,
    pub(crate) processes: Vec<Process>,
    /// Who owns what, by the consumer group.
    pub(crate) assignment: BTreeMap<TopicPartition, usize>,
    /// Whether the log lost records before they were read, by partition.
    pub(crate) losses: bool,
    pub(crate) sabotage: Option<Sabotage>,
    /// A flip has just been shown to readers.
    pub(crate) flipped: bool,
    pub(crate) tally: Tally,
    trace: VecDeque<String>,
    pub(crate) steps: usize,
}

impl State {
    /// Notes what happens, for the trace of a failure.
    pub(crate) fn note(&mut self, what: impl Display) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        let line = format!("{:>6} {:>7} ms  {what}", self.steps, self.now - START);
        self.trace.push_back(line);
    }
}

/// A handle on the world.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

struct Inner {
    catalog: Arc<Catalog>,
    state: Mutex<State>,
    ledger: MemoryLedger,
    batch: Arc<MemoryBatchView>,
    store: Store,
}

impl World {
    pub(crate) fn new(seed: u64, archive: impl FnOnce(&Weak) -> Store) -> World {
        let mut random = Random::new(seed);
        let weather = Weather {
            faults: *random.of(&[0, 100, 20]),
            crashes: *random.of(&[60, 300, 1_000]),
            losses: *random.of(&[80, 400, 2_000]),
            log_loss: random.one_in(6),
            far_clock: random.one_in(6),
        };
        let mut broker = Broker::default();
        [("views", 0), ("views", 1), ("clicks", 0)].into_iter().for_each(|(topic, p)| broker.add(topic, p));
        let catalog = fact::catalog();
        let state = State {
            random,
            now: START,
            weather,
            broker,
            redis: MemoryRedis::default(),
            snapshots: Vec::new(),
            late: Vec::new(),
            processes: Vec::new(),
            assignment: BTreeMap::new(),
            losses: false,
            sabotage: None,
            flipped: false,
            tally: Tally::default(),
            trace: VecDeque::new(),
            steps: 0,
        };
        World(Arc::new_cyclic(|weak| Inner {
            state: Mutex::new(state),
            ledger: MemoryLedger::default(),
            batch: Arc::new(MemoryBatchView::new(&catalog.layout)),
            store: archive(&Weak(weak.clone())),
            catalog,
        }))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn catalog(&self) -> &Arc<Catalog> {
        &self.0.catalog
    }

    pub(crate) fn ledger(&self) -> &MemoryLedger {
        &self.0.ledger
    }

    pub(crate) fn batch(&self) -> &Arc<MemoryBatchView> {
        &self.0.batch
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// The time since the beginning.
    pub(crate) fn clock(&self) -> Duration {
        Duration::from_millis((self.state().now - START).unsigned_abs())
    }

    /// Waits to be polled again.
    pub(crate) fn step(&self) -> Step {
        Step(false)
    }

    /// Notes what happens, for the trace of a failure.
    pub(crate) fn note(&self, what: impl Display) {
        self.state().note(what);
    }

    /// Counts something that happened.
    pub(crate) fn count(&self, what: &'static str) {
        self.state().tally.add(what, 1);
    }

    /// The last steps.
    pub(crate) fn trace(&self) -> String {
        let state = self.state();
        let lines: String = state.trace.iter().map(|line| format!("{line}\n")).collect();
        format!("{:?}\n{lines}", state.weather)
    }

    /// Shows readers what flips have published: each flip and what is shown of it is one step.
    pub(crate) fn show_flips(&self) {
        for flip in self.0.ledger.take_published() {
            let version = |(version, day, cells): (_, _, Vec<batch_layer::twin::Cell>)| {
                let metric = self.0.catalog.metrics.iter().find(|metric| metric.version == version);
                let by = metric.expect("a metric of the catalog").by.len();
                let cell = |cell: batch_layer::twin::Cell| {
                    let (by, item) = (cell.key[..by].to_vec(), cell.key.get(by).cloned());
                    merge::Cell { by, item, bucket: cell.bucket, state: cell.state }
                };
                MemoryVersion { version, day, run: flip.run, cells: cells.into_iter().map(cell).collect() }
            };
            let versions = flip.versions.into_iter().map(version).collect();
            self.0.batch.flip(flip.tidemark, flip.run, flip.days, versions);
            self.state().flipped = true;
            for (tp, range, cause) in flip.lost {
                self.0.batch.lose(Lost { tp, range, cause });
            }
        }
    }

    /// Whether this fault was built in.
    pub(crate) fn is_sabotaged(&self, by: Sabotage) -> bool {
        self.state().sabotage == Some(by)
    }

    /// Whether a call meets a fault.
    pub(crate) fn fault(&self) -> bool {
        let mut state = self.state();
        let faults = state.weather.faults;
        faults > 0 && state.random.one_in(faults)
    }
}

/// A handle that doesn't keep the world.
#[derive(Clone)]
pub(crate) struct Weak(std::sync::Weak<Inner>);

impl Weak {
    pub(crate) fn world(&self) -> World {
        World(self.0.upgrade().expect("the world outlives its actors"))
    }
}

/// Ready at the second poll.
pub(crate) struct Step(bool);

impl Future for Step {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        // For those that poll several at once and only the awake.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
