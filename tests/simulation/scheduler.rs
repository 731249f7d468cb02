//! Picks what happens next: an actor's move, or something in the world around.

use crate::batch;
use crate::reader;
use crate::speed::{self, Process};
use crate::tally::Tally;
use crate::world::World;
use batch_layer::twin::{Order, Outcome};
use futures::task::noop_waker;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Tidemark;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::task::{Context, Poll};

/// So often actors are polled at each move.
const POLLS: usize = 6;
/// Moves of one seed.
pub(crate) const MOVES: usize = 2_500;
/// Speed processes.
pub(crate) const PROCESSES: usize = 3;

/// What an actor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Speed(usize, TopicPartition),
    Batch,
    /// It takes one in so many of its turns.
    Reader(usize),
}

/// Someone who moves.
pub(crate) struct Actor {
    pub(crate) kind: Kind,
    pub(crate) future: Pin<Box<dyn Future<Output = ()>>>,
}

/// A seed's play.
pub(crate) struct Scheduler {
    pub(crate) world: World,
    pub(crate) actors: Vec<Actor>,
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
    let mut scheduler = Scheduler { world, actors: Vec::new() };
    scheduler.rebalance();
    (0..PROCESSES).for_each(|process| scheduler.learn(process));
    scheduler
}

impl Scheduler {
    pub(crate) fn below(&self, n: usize) -> usize {
        self.world.state().random.below(n)
    }

    pub(crate) fn one_in(&self, n: usize) -> bool {
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
        let mut state = self.world.state();
        let logs = state.broker.logs.values().map(|log| log.records.len() as u64).sum();
        state.tally.add("records", logs);
        std::mem::take(&mut state.tally)
    }

    /// One actor moves.
    pub(crate) fn poll_one(&mut self) {
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

    pub(crate) fn poll(&mut self, at: usize) {
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

    pub(crate) fn any_partition(&self) -> TopicPartition {
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

    pub(crate) fn see(&self, process: usize, newest: Tidemark) {
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
        let world = self.world.clone();
        let future = async move {
            let complete = reader::ask(world.clone(), metric, true).await.is_empty();
            world.count(if complete { "answers complete" } else { "answers not complete" });
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
        let world = self.world.clone();
        let future = async move {
            match batch::run(world.clone(), order, ignores_lock).await {
                Some(Outcome::Flipped(_)) => world.count("flips"),
                Some(Outcome::Refused(_)) => world.count("flips refused"),
                None => world.count("runs failed"),
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
                self.world.count("crashes");
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
        self.world.count("crashes");
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
    pub(crate) fn learn(&mut self, process: usize) {
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
}
