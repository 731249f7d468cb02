//! What goes wrong around the actors: processes that stand still, a Redis that loses or forgets, calls that come once more,
//! leaders' clocks, transactions, a log that loses its head, and a partition more.

use crate::fact::HORIZON;
use crate::log::START;
use crate::scheduler::{PROCESSES, Scheduler};
use crate::speed::show;
use shared_model::offsets::TopicPartition;

impl Scheduler {
    /// A process stands still past its session, and others get what it owns; or it goes on, knowing nothing.
    pub(crate) fn freeze(&mut self) {
        let process = self.below(PROCESSES);
        let mut state = self.world.state();
        let frozen = !state.processes[process].frozen;
        state.processes[process].frozen = frozen;
        if frozen {
            state.tally.add("zombies", 1);
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

    pub(crate) fn remember(&self) {
        let mut state = self.world.state();
        let redis = state.redis.clone();
        if state.snapshots.len() == 3 {
            state.snapshots.remove(0);
        }
        state.snapshots.push(redis);
    }

    /// Redis loses a group, or everything, or goes back to an earlier state as a whole or in one group.
    pub(crate) fn lose(&self) {
        let mut state = self.world.state();
        let state = &mut *state;
        let keys: Vec<String> = state.redis.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        state.tally.add("losses of redis", 1);
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
    pub(crate) fn come_late(&self) {
        let mut state = self.world.state();
        if state.late.is_empty() {
            return;
        }
        let many = state.late.len();
        let at = state.random.below(many);
        let call = state.late.swap_remove(at);
        let reply = state.redis.call(&call);
        state.tally.add("late copies of calls", 1);
        state.note(format!("once more: {} -> {reply:?}", show(&call)));
    }

    /// Another leader, with another clock.
    pub(crate) fn change_leader(&self) {
        let tp = self.any_partition();
        let mut state = self.world.state();
        let far = state.weather.far_clock && state.random.one_in(4);
        let skew = if far { 86_400_000 } else { *state.random.of(&[0, 0, -2_500, 1_200, 400]) };
        state.broker.log_mut(&tp).skew = skew;
        state.broker.far_ahead = skew.max(state.broker.far_ahead);
        state.tally.add("clock steps", 1);
        state.note(format!("{tp}: a leader {skew} ms ahead"));
    }

    /// A transaction opens, or ends.
    pub(crate) fn transaction(&self) {
        let tp = self.any_partition();
        let mut state = self.world.state();
        let log = state.broker.log_mut(&tp);
        log.hidden = if log.hidden.is_some() { None } else { Some(log.end) };
    }

    /// Retention takes the head of a log: below what is needed, or, in bad weather, more than that.
    pub(crate) fn retain(&self) {
        let tp = self.any_partition();
        let history = self.world.ledger().history();
        let mut state = self.world.state();
        let state = &mut *state;
        let log = state.broker.log_mut(&tp);
        if state.weather.log_loss && state.random.one_in(6) && log.visible_end() == log.end {
            let low = log.low + state.random.below((log.end - log.low) as usize + 1) as i64;
            log.low = low;
            state.losses = true;
            state.tally.add("heads of logs lost", 1);
            state.note(format!("{tp}: the log begins at {low} now ***"));
            return;
        }
        // Older generations may still be a process's newest.
        let Some(before) = history.len().checked_sub(4).map(|at| &history[at]) else { return };
        let needed = before.cuts.get(&tp).map_or(0, |cut| cut.offset) - HORIZON;
        log.low = log.low.max(needed);
    }

    pub(crate) fn add_partition(&mut self) {
        let process = self.below(PROCESSES);
        let mut state = self.world.state();
        if state.broker.logs.len() > 3 || state.now < START + 5_000 {
            return;
        }
        state.broker.add("views", 2);
        state.assignment.insert(TopicPartition::new("views", 2), process);
        state.tally.add("partitions added", 1);
        state.note("a partition is added ***".to_owned());
    }
}
