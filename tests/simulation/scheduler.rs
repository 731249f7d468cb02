//! Picks what happens next: an actor's move, or something in the world around.

use crate::batch;
use crate::log::{Log, START};
use crate::reader;
use crate::speed::{self, Process, show};
use crate::world::World;
use batch_layer::twin::{Order, Outcome};
use futures::task::noop_waker;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Tidemark;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// So often actors are polled at each move.
const POLLS: usize = 6;
/// Moves of one seed.
pub(crate) const MOVES: usize = 2_500;
/// Speed processes.
const PROCESSES: usize = 3;
/// Rounds within which all must have become quiet.
const PATIENCE: usize = 20_000;

/// What one seed's play amounted to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) records: usize,
    pub(crate) flips: usize,
    pub(crate) overtaken: usize,
    pub(crate) complete: usize,
    pub(crate) incomplete: usize,
    pub(crate) crashes: usize,
    pub(crate) losses: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.records += other.records;
        self.flips += other.flips;
        self.overtaken += other.overtaken;
        self.complete += other.complete;
        self.incomplete += other.incomplete;
        self.crashes += other.crashes;
        self.losses += other.losses;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} records, {} flips and {} refused, {} answers complete and {} not, {} crashes, {} losses of redis",
            self.records,
            self.flips,
            self.overtaken,
            self.complete,
            self.incomplete,
            self.crashes,
            self.losses
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Speed(usize, TopicPartition),
    Batch,
    /// It takes one in so many of its turns.
    Reader(usize),
}

struct Actor {
    kind: Kind,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

/// A seed's play.
pub(crate) struct Scheduler {
    world: World,
    actors: Vec<Actor>,
    tally: Rc<RefCell<Tally>>,
}

/// Sets a seed's world up.
pub(crate) fn play(seed: u64) -> Scheduler {
    let world = World::new(seed, batch::archive);
    batch::prepare(&world);
    let history = world.ledger().history();
    for _ in 0..PROCESSES {
        let process = Process::start(&history, world.clock());
        world.state().processes.push(process);
    }
    let mut scheduler = Scheduler { world, actors: Vec::new(), tally: Rc::default() };
    scheduler.rebalance();
    (0..PROCESSES).for_each(|process| scheduler.learn(process));
    scheduler
}

impl Scheduler {
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    fn below(&self, n: usize) -> usize {
        self.world.state().random.below(n)
    }

    fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// So many moves, then quiet.
    pub(crate) fn run(&mut self, moves: usize) -> Tally {
        for _ in 0..moves {
            self.world.state().steps += 1;
            self.happen();
            for _ in 0..POLLS {
                self.poll_one();
            }
        }
        self.settle();
        let mut tally = *self.tally.borrow();
        tally.records = self.world.state().broker.logs.values().map(|log| log.records.len()).sum();
        tally
    }

    /// One actor moves.
    fn poll_one(&mut self) {
        let awake: Vec<usize> = {
            let state = self.world.state();
            let frozen =
                |kind: &Kind| matches!(kind, Kind::Speed(process, _) if state.processes[*process].frozen);
            (0..self.actors.len()).filter(|&at| !frozen(&self.actors[at].kind)).collect()
        };
        if !awake.is_empty() {
            let at = awake[self.below(awake.len())];
            if let Kind::Reader(slow) = self.actors[at].kind
                && !self.one_in(slow)
            {
                return;
            }
            self.poll(at);
        }
    }

    fn poll(&mut self, at: usize) {
        let waker = noop_waker();
        let polled = self.actors[at].future.as_mut().poll(&mut Context::from_waker(&waker));
        if polled == Poll::Ready(()) {
            drop(self.actors.swap_remove(at));
        }
    }

    /// Something happens around the actors.
    fn happen(&mut self) {
        let pause = match self.below(40) {
            0 => self.below(1_200),
            _ => self.below(20),
        };
        self.world.state().now += pause as i64;
        let weather = self.world.state().weather;
        if self.one_in(weather.crashes) {
            self.crash();
        }
        let flipped = std::mem::take(&mut self.world.state().flipped);
        if self.one_in(weather.losses) || flipped && self.one_in(3) {
            self.lose();
        }
        match self.below(100) {
            0..30 => self.produce(),
            30..38 => self.follow(),
            38..44 => self.ask(),
            44..48 => self.begin_run(),
            48..50 => self.rebalance(),
            50..60 => {
                let process = self.below(PROCESSES);
                self.learn(process);
            }
            60..62 => self.freeze(),
            62..64 => self.remember(),
            64..68 => self.come_late(),
            68..70 => self.change_leader(),
            70..72 => self.transaction(),
            72..74 => self.retain(),
            74 => self.add_partition(),
            _ => {}
        }
    }

    fn any_partition(&self) -> TopicPartition {
        let mut state = self.world.state();
        let all: Vec<TopicPartition> = state.broker.logs.keys().cloned().collect();
        state.random.of(&all).clone()
    }

    fn produce(&self) {
        let tp = self.any_partition();
        let mut state = self.world.state();
        // One partition is often idle.
        let idle = tp.partition == 1 && !state.random.one_in(8);
        let many = if idle { 0 } else { state.random.below(4) };
        for _ in 0..many {
            let crate::world::State { broker, random, now, .. } = &mut *state;
            broker.produce(&tp, *now, random);
        }
    }

    /// A process polls the tidemark, or looks at the marks.
    fn follow(&self) {
        let process = self.below(PROCESSES);
        if self.one_in(2) {
            speed::look_at_marks(&self.world, process);
            return;
        }
        let newest = self.world.ledger().history().last().expect("prepared").clone();
        self.see(process, newest);
    }

    fn see(&self, process: usize, newest: Tidemark) {
        let clock = self.world.clock();
        self.world.state().processes[process].follower.see(newest, clock);
    }

    fn ask(&mut self) {
        let readers = self.actors.iter().filter(|actor| matches!(actor.kind, Kind::Reader(_))).count();
        if readers >= 4 {
            return;
        }
        let metrics = &self.world.catalog().metrics;
        let metric = metrics[self.below(metrics.len())].clone();
        let (world, tally) = (self.world.clone(), self.tally.clone());
        let future = async move {
            let complete = reader::ask(world, metric, true).await.is_empty();
            let mut tally = tally.borrow_mut();
            *(if complete { &mut tally.complete } else { &mut tally.incomplete }) += 1;
        };
        // Some are slow, and see several flips pass.
        let kind = Kind::Reader(if self.one_in(2) { 1 } else { 12 });
        self.actors.push(Actor { kind, future: Box::pin(future) });
    }

    fn begin_run(&mut self) {
        let runs = self.actors.iter().filter(|actor| actor.kind == Kind::Batch).count();
        if runs < 2 {
            let order = if self.one_in(5) { Order::Backfill } else { Order::Run };
            let ignores_lock = self.one_in(2);
            self.start_run(order, ignores_lock);
        }
    }

    fn start_run(&mut self, order: Order, ignores_lock: bool) {
        let (world, tally) = (self.world.clone(), self.tally.clone());
        let future = async move {
            match batch::run(world, order, ignores_lock).await {
                Some(Outcome::Flipped(_)) => tally.borrow_mut().flips += 1,
                Some(Outcome::Refused(_)) => tally.borrow_mut().overtaken += 1,
                _ => {}
            }
        };
        self.actors.push(Actor { kind: Kind::Batch, future: Box::pin(future) });
    }

    /// A process is killed: all that it held is gone.
    fn crash(&mut self) {
        if self.one_in(2) {
            let runs = self.actors.iter().filter(|actor| actor.kind == Kind::Batch).count();
            if runs > 0 {
                self.world.note("a batch run is killed");
                self.tally.borrow_mut().crashes += 1;
                let at = self.actors.iter().position(|actor| actor.kind == Kind::Batch).expect("counted");
                drop(self.actors.swap_remove(at));
            }
            return;
        }
        let process = self.below(PROCESSES);
        self.kill(process);
        self.learn(process);
    }

    fn kill(&mut self, process: usize) {
        self.world.note(format_args!("process {process} is killed"));
        self.tally.borrow_mut().crashes += 1;
        self.actors.retain(|actor| !matches!(actor.kind, Kind::Speed(of, _) if of == process));
        let mut history = self.world.ledger().history();
        // A standby that is a little behind may answer.
        if history.len() > 1 && self.one_in(4) {
            history.pop();
        }
        let started = Process::start(&history, self.world.clock());
        self.world.state().processes[process] = started;
    }

    /// The group deals the partitions anew.
    fn rebalance(&self) {
        let mut state = self.world.state();
        let all: Vec<TopicPartition> = state.broker.logs.keys().cloned().collect();
        for tp in all {
            let process = state.random.below(PROCESSES);
            state.assignment.insert(tp, process);
        }
    }

    /// A process learns what it owns.
    fn learn(&mut self, process: usize) {
        let owns: BTreeSet<TopicPartition> = {
            let mut state = self.world.state();
            if state.processes[process].frozen {
                return;
            }
            let owns = state.assignment.iter().filter(|(_, of)| **of == process);
            let owns: BTreeSet<TopicPartition> = owns.map(|(tp, _)| tp.clone()).collect();
            state.processes[process].owns = owns.clone();
            owns
        };
        for tp in owns {
            let kind = Kind::Speed(process, tp.clone());
            if !self.actors.iter().any(|actor| actor.kind == kind) {
                let future = Box::pin(speed::own(self.world.clone(), process, tp));
                self.actors.push(Actor { kind, future });
            }
        }
    }

    /// A process stands still past its session, and others get what it owns; or it goes on, knowing nothing.
    fn freeze(&mut self) {
        let process = self.below(PROCESSES);
        let mut state = self.world.state();
        let frozen = !state.processes[process].frozen;
        state.processes[process].frozen = frozen;
        if frozen {
            let others: Vec<usize> = (0..PROCESSES).filter(|&other| other != process).collect();
            let lost: Vec<TopicPartition> = state.processes[process].owns.iter().cloned().collect();
            for tp in lost {
                let other = *state.random.of(&others);
                state.assignment.insert(tp, other);
            }
        }
        drop(state);
        self.world
            .note(format_args!("process {process} {}", if frozen { "stands still" } else { "goes on" }));
    }

    fn remember(&self) {
        let mut state = self.world.state();
        let redis = state.redis.clone();
        if state.snapshots.len() == 3 {
            state.snapshots.remove(0);
        }
        state.snapshots.push(redis);
    }

    /// Redis loses a group, or everything, or goes back to an earlier state as a whole or in one group.
    fn lose(&self) {
        let mut state = self.world.state();
        let state = &mut *state;
        let keys: Vec<String> = state.redis.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        self.tally.borrow_mut().losses += 1;
        let key = state.random.of(&keys).clone();
        let before =
            if state.snapshots.is_empty() { None } else { Some(state.random.of(&state.snapshots).clone()) };
        let what = match (state.random.below(6), before) {
            (5, _) => {
                state.redis.lose_marks();
                "the marks are lost".to_owned()
            }
            (0, _) => {
                state.redis = Default::default();
                "redis is emptied".to_owned()
            }
            (1, Some(before)) => {
                state.redis = before;
                "redis goes back".to_owned()
            }
            (2, Some(before)) if before.fields(&key).is_some() => {
                state.redis.put(&key, before.fields(&key).expect("looked at").clone());
                format!("{key} goes back")
            }
            _ => {
                state.redis.remove(&key);
                format!("{key} is lost")
            }
        };
        state.note(format_args!("{what} ***"));
    }

    /// A call that was made before comes once more.
    fn come_late(&self) {
        let mut state = self.world.state();
        if state.late.is_empty() {
            return;
        }
        let many = state.late.len();
        let at = state.random.below(many);
        let call = state.late.swap_remove(at);
        let reply = state.redis.call(&call);
        state.note(format!("once more: {} -> {reply:?}", show(&call)));
    }

    /// Another leader, with another clock.
    fn change_leader(&self) {
        let tp = self.any_partition();
        let mut state = self.world.state();
        let far = state.weather.far_clock && state.random.one_in(4);
        let skew = if far { 86_400_000 } else { *state.random.of(&[0, 0, -2_500, 1_200, 400]) };
        state.broker.log_mut(&tp).skew = skew;
        state.broker.far_ahead = skew.max(state.broker.far_ahead);
        state.note(format!("{tp}: a leader {skew} ms ahead"));
    }

    /// A transaction opens, or ends.
    fn transaction(&self) {
        let tp = self.any_partition();
        let mut state = self.world.state();
        let log = state.broker.log_mut(&tp);
        log.hidden = if log.hidden.is_some() { None } else { Some(log.end) };
    }

    /// Retention takes the head of a log: below what is needed, or, in bad weather, more than that.
    fn retain(&self) {
        let tp = self.any_partition();
        let history = self.world.ledger().history();
        let mut state = self.world.state();
        let state = &mut *state;
        let log = state.broker.log_mut(&tp);
        if state.weather.log_loss && state.random.one_in(6) && log.visible_end() == log.end {
            let low = log.low + state.random.below((log.end - log.low) as usize + 1) as i64;
            log.low = low;
            state.losses = true;
            state.note(format!("{tp}: the log begins at {low} now ***"));
            return;
        }
        // Older generations may still be a process's newest.
        let Some(before) = history.len().checked_sub(4).map(|at| &history[at]) else { return };
        let needed = before.cuts.get(&tp).map_or(0, |cut| cut.offset) - crate::fact::HORIZON;
        log.low = log.low.max(needed);
    }

    fn add_partition(&mut self) {
        let process = self.below(PROCESSES);
        let mut state = self.world.state();
        if state.broker.logs.len() > 3 || state.now < START + 5_000 {
            return;
        }
        state.broker.add("views", 2);
        state.assignment.insert(TopicPartition::new("views", 2), process);
        state.note("a partition is added ***".to_owned());
    }

    /// No more faults; everyone catches up; then every answer must be complete and right.
    fn settle(&mut self) {
        {
            let mut state = self.world.state();
            state.note("quiet ***".to_owned());
            state.weather.faults = 0;
            state.processes.iter_mut().for_each(|process| process.frozen = false);
            state.broker.logs.values_mut().for_each(|log| log.hidden = None);
        }
        self.actors.retain(|actor| matches!(actor.kind, Kind::Speed(..)));
        self.catch_up();
        self.ask_all();
        // A run that nobody disturbs takes in all that has closed; what is left is still in the realtime view.
        self.world.state().now += 10_000;
        self.run_alone(Order::Run);
        self.catch_up();
        self.ask_all();
        // Computed once more from all that is there, nothing differs; what was missing had no rows.
        let hashes = self.world.ledger().live_hashes();
        self.run_alone(Order::Backfill);
        let again = self.world.ledger().live_hashes();
        assert!(
            hashes.iter().all(|(name, hash)| again.get(name) == Some(hash)),
            "a backfill changed what runs made"
        );
        assert_eq!(self.run_alone(Order::Backfill), Some(Outcome::Nothing));
        self.ask_all();
    }

    /// Runs a batch run to its end, time passing.
    fn run_alone(&mut self, order: Order) -> Option<Outcome> {
        let outcome = Rc::new(RefCell::new(None));
        let (world, done) = (self.world.clone(), outcome.clone());
        let future = async move { *done.borrow_mut() = Some(batch::run(world, order, false).await) };
        self.actors.push(Actor { kind: Kind::Batch, future: Box::pin(future) });
        for _ in 0..PATIENCE {
            let Some(at) = self.actors.iter().position(|actor| actor.kind == Kind::Batch) else { break };
            self.world.state().now += 1;
            self.poll(at);
        }
        outcome.borrow_mut().take().expect("a run that nobody disturbs ends")
    }

    /// All processes know all, until every group is at its log's end.
    fn catch_up(&mut self) {
        for round in 0..PATIENCE {
            if round % 50 == 0 {
                let newest = self.world.ledger().history().last().expect("prepared").clone();
                for process in 0..PROCESSES {
                    self.see(process, newest.clone());
                    speed::look_at_marks(&self.world, process);
                    self.learn(process);
                }
                if round > 0 && self.is_caught_up() {
                    return;
                }
            }
            self.world.state().now += 1;
            self.poll_one();
        }
        panic!("not caught up after {PATIENCE} rounds");
    }

    fn is_caught_up(&self) -> bool {
        let state = self.world.state();
        let groups = self.world.catalog().layout.groups;
        let at_end = |tp: &TopicPartition, log: &Log, group: u32| {
            let key = shared_model::view::group_key(tp, group, groups);
            let header =
                state.redis.fields(&key).and_then(|fields| fields.get(shared_model::view::HEADER_FIELD));
            let header = header.and_then(|json| shared_model::view::Header::from_json(json).ok());
            let end = log.records.last().map_or(0, |record| record.offset + 1);
            header.is_some_and(|header| header.to >= end)
        };
        let mut logs = state.broker.logs.iter();
        logs.all(|(tp, log)| (0..groups).all(|group| at_end(tp, log, group)))
    }

    fn ask_all(&mut self) {
        for metric in self.world.catalog().metrics.clone() {
            let reasons = futures::executor::block_on(reader::ask(self.world.clone(), metric.clone(), false));
            let lost = self.world.state().losses;
            assert!(reasons.is_empty() || lost, "quiet, but {} is not complete: {reasons:?}", metric.name);
        }
    }
}
