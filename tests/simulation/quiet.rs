//! The end of a play: no more faults, everyone catches up, and then every answer must be complete and right.

use crate::batch;
use crate::log::Log;
use crate::reader;
use crate::scheduler::{Actor, Kind, PROCESSES, Scheduler};
use crate::speed;
use batch_layer::twin::{Order, Outcome};
use shared_model::offsets::TopicPartition;
use shared_model::view::{self, HEADER_FIELD, Header};
use std::cell::RefCell;
use std::rc::Rc;

/// Rounds within which all must have become quiet.
const PATIENCE: usize = 20_000;

impl Scheduler {
    /// No more faults; everyone catches up; then every answer must be complete and right.
    pub(crate) fn settle(&mut self) {
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

    /// All processes know all, until every group is at its log's end, and said to be.
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
            let key = view::group_key(tp, group, groups);
            let header = state.redis.fields(&key).and_then(|fields| fields.get(HEADER_FIELD));
            let header = header.and_then(|json| Header::from_json(json).ok());
            let end = log.records.last().map_or(0, |record| record.offset + 1);
            header.is_some_and(|header| header.to >= end)
        };
        // Answers reach as far as the log, too, unless what moved its clock was lost unread.
        let is_marked = |tp: &TopicPartition, log: &Log| {
            let looked = state.redis.marks().get(&tp.to_string()).and_then(|mark| mark.looked);
            let clock = log.records.last().map_or(0, |record| record.clock);
            looked.is_some_and(|looked| {
                (state.losses || looked.clock >= clock) && looked.partitions == state.broker.count(&tp.topic)
            })
        };
        let mut logs = state.broker.logs.iter();
        logs.all(|(tp, log)| is_marked(tp, log) && (0..groups).all(|group| at_end(tp, log, group)))
    }

    fn ask_all(&mut self) {
        for metric in self.world.catalog().metrics.clone() {
            let reasons = futures::executor::block_on(reader::ask(self.world.clone(), metric.clone(), false));
            let lost = self.world.state().losses;
            assert!(reasons.is_empty() || lost, "quiet, but {} is not complete: {reasons:?}", metric.name);
        }
    }
}
