//! Speed processes: each owns what the group gives it, follows the tidemark by its own polling, and can crash, be
//! frozen and resume.

use crate::fact::HORIZON;
use crate::world::{Sabotage, World};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Tidemark;
use shared_model::time::Millis;
use shared_model::view::FENCE_FIELD;
use speed_layer::twin::{self, Begin, Call, Follower, MemoryRedis, Outcome, Reply, Spell, Wire, Worker};
use std::collections::BTreeSet;
use std::time::Duration;

/// Epochs are dropped so long after the flip that made them unneeded; no query takes as long.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// One process.
pub(crate) struct Process {
    pub(crate) follower: Follower,
    pub(crate) oldest_pane: Option<Millis>,
    /// What it believes that the group gave it.
    pub(crate) owns: BTreeSet<TopicPartition>,
    pub(crate) frozen: bool,
}

impl Process {
    pub(crate) fn start(history: &[Tidemark], now: Duration) -> Process {
        let newest = history[history.len().saturating_sub(2)..].to_vec();
        let follower = Follower::start(newest, now, GRACE);
        Process { follower, oldest_pane: None, owns: BTreeSet::new(), frozen: false }
    }
}

/// The way to Redis, on which calls and answers get lost, and calls come twice.
#[derive(Clone)]
pub(crate) struct Net(pub World);

impl Wire for Net {
    async fn call(&self, call: Call) -> Option<Reply> {
        let world = &self.0;
        world.step().await;
        let (lost_before, lost_after, again) = (world.fault(), world.fault(), world.fault());
        if lost_before {
            world.note(format_args!("a call is lost: {}", show(&call)));
            world.count("calls lost");
            world.step().await;
            return None;
        }
        let reply = {
            let mut state = world.state();
            if again {
                state.late.push(call.clone());
            }
            let done = sabotaged(state.sabotage, &call, &state.redis);
            state.redis.call(&done)
        };
        // What nothing comes of is not worth a line.
        let dull = matches!(call, Call::Segments { .. } | Call::Mark { .. }) || reply == Reply::Said("DONE");
        if !dull {
            world.note(format_args!("{} -> {}", show(&call), shown(&reply)));
        }
        world.step().await;
        if lost_after {
            world.note(format_args!("its answer is lost: {}", show(&call)));
            world.count("answers lost");
            return None;
        }
        Some(reply)
    }
}

/// What a faulty Redis does instead.
fn sabotaged(sabotage: Option<Sabotage>, call: &Call, redis: &MemoryRedis) -> Call {
    let mut call = call.clone();
    let stored = |key: &str, field: &str| {
        let value = redis.fields(key).and_then(|fields| fields.get(field));
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    if let Call::Flush { key, expected, fields, .. } = &mut call
        && expected != "lost"
    {
        match sabotage {
            Some(Sabotage::FenceIgnored) => *expected = stored(key, FENCE_FIELD).unwrap_or_default(),
            Some(Sabotage::WriteTorn) if fields.len() > 2 => drop(fields.pop()),
            _ => {}
        }
    }
    call
}

/// A call in a line.
pub(crate) fn show(call: &Call) -> String {
    match call {
        Call::Claim { key, .. } => format!("claim {key}"),
        Call::Reset { key, .. } => format!("reset {key}"),
        Call::Flush { key, expected, fence, .. } if expected == "lost" => format!("probe {key} at {fence}"),
        Call::Flush { key, expected, fence, fields, .. } => {
            format!("flush {key} {expected:?} -> {fence} ({} segments)", fields.len())
        }
        Call::Segments { key, .. } => format!("segments {key}"),
        Call::Mark { partition, .. } => format!("mark {partition}"),
    }
}

fn shown(reply: &Reply) -> String {
    match reply {
        Reply::Claimed(_, fence, _) => fence.clone().unwrap_or_else(|| "nothing".to_owned()),
        Reply::Said(text) => (*text).to_owned(),
        Reply::Values(values) => format!("{} values", values.iter().flatten().count()),
    }
}

/// Owns a partition as long as the process believes that it does.
pub(crate) async fn own(world: World, process: usize, tp: TopicPartition) {
    let believes = || world.state().processes[process].owns.contains(&tp);
    loop {
        world.step().await;
        if !believes() {
            return;
        }
        let spell = spell(&world, process, &tp).await;
        world.note(format_args!("process {process}, {tp}: {spell:?}"));
        if spell == Spell::NotOwner {
            // The group decides: it takes the partition from us soon, or it is ours and the other a zombie.
            for _ in 0..20 {
                world.step().await;
            }
        }
    }
}

async fn spell(world: &World, process: usize, tp: &TopicPartition) -> Spell {
    let stream = world.catalog().stream_of_topic(&tp.topic).expect("a stream's topic").clone();
    let begin = || {
        let history = world.ledger().history();
        let state = world.state();
        let log = state.broker.log(tp);
        let cut = state.processes[process].follower.current().cut(tp);
        let (panes, panes_are_first) = Follower::pane_start(world.catalog(), &history, tp, &cut, log.low);
        let partitions = state.broker.count(&tp.topic);
        Begin { cut, panes, panes_are_first, log: (log.low, log.visible_end()), partitions }
    };
    let random = || world.state().random.number();
    let claimed = Worker::claim(world.catalog(), &stream, tp, Net(world.clone()), begin, random).await;
    let Some(mut worker) = claimed else { return Spell::Again };
    let mut at = worker.reads_from();
    if world.is_sabotaged(Sabotage::DedupForgotten) {
        at += HORIZON;
    }
    world.note(format_args!("process {process}, {tp}: reads from {at}"));
    let (mut generation, mut caught_up, mut look) = (-1, false, None);
    loop {
        world.step().await;
        let stops = !world.state().processes[process].owns.contains(tp);
        let current = world.state().processes[process].follower.current().clone();
        if current.generation != generation {
            generation = current.generation;
            if worker.differs(&current.cut(tp)) {
                return Spell::Again;
            }
        }
        if !stops && !world.state().random.one_in(3) {
            let many = world.state().random.below(8) + 1;
            for _ in 0..many {
                let state = world.state();
                if state.broker.log(tp).low > at {
                    drop(state);
                    world.note(format_args!("process {process}, {tp}: offset {at} is gone"));
                    return Spell::Again;
                }
                let record = state.broker.log(tp).at(at).cloned();
                drop(state);
                caught_up = record.is_none();
                let Some(record) = record else { break };
                at = record.offset + 1;
                if world.is_sabotaged(Sabotage::RecordSkipped) && world.state().random.one_in(100) {
                    continue;
                }
                if worker.take(record.offset, record.append, record.value.as_deref()) == Outcome::OtherLog {
                    panic!("{tp} is taken for another log at offset {}", record.offset);
                }
            }
            continue;
        }
        let quiet = stops || world.state().random.one_in(2);
        loop {
            let clock = world.clock();
            let (floor, oldest) = {
                let state = world.state();
                let process = &state.processes[process];
                (process.follower.floor(tp, clock), process.oldest_pane)
            };
            match worker.round(floor.as_ref(), oldest, quiet).await {
                Spell::Stored => break,
                Spell::Retry => world.step().await,
                ended => return ended,
            }
        }
        // It may come to the tidemark's boundary later than the tidemark does.
        if quiet && worker.differs(&world.state().processes[process].follower.current().cut(tp)) {
            return Spell::Again;
        }
        if world.state().random.one_in(2) {
            let asked = world.clock();
            world.step().await;
            look = Some((asked, world.state().broker.count(&tp.topic)));
        }
        worker.publish_mark(caught_up, generation, look, world.clock()).await;
        if stops {
            return Spell::Stored;
        }
    }
}

/// A process looks at the marks of all partitions.
pub(crate) fn look_at_marks(world: &World, process: usize) {
    let mut state = world.state();
    let marks: Vec<_> = state.redis.marks().values().copied().collect();
    let oldest = twin::oldest_pane(world.catalog(), marks.iter());
    let known = &mut state.processes[process].oldest_pane;
    *known = (*known).max(oldest);
}
