//! One worker of one partition, as the real one works: claim, take, write, call by call.

use super::{Call, Outcome, Reply};
use crate::counters::Plan;
use crate::decode::{Payload, Record};
use crate::flush::{Answer, Next};
use crate::group::{Claimed, Expired, Merge};
use crate::look::Looking;
use crate::partition::{self, Partition, Taken};
use crate::round::{Round, ToMerge};
use crate::tidemark_source::Tidemarks;
use shared_model::catalog::{Catalog, Stream};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::{Cut, Tidemark};
use shared_model::time::Millis;
use shared_model::view::{self, Looked, Mark};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The way to Redis.
pub trait Wire {
    /// Makes one call; `None` where no answer came, whether it was done or not.
    fn call(&self, call: Call) -> impl Future<Output = Option<Reply>>;
}

/// What a worker finds out after its claim, before it reads.
#[derive(Debug, Clone)]
pub struct Begin {
    /// The tidemark's cut.
    pub cut: Cut,
    /// An older cut, from which panes are folded.
    pub panes: Cut,
    /// Whether that one is the very first.
    pub panes_are_first: bool,
    /// The first offset that the log has, and the next that it will give.
    pub log: (i64, i64),
    /// How many partitions the topic has.
    pub partitions: i32,
}

/// How a round of writes went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spell {
    /// All is stored: read on.
    Stored,
    /// Not all is known to be stored: the same round is to be tried again before anything else.
    Retry,
    /// A group is not as it was stored: claim anew.
    Again,
    /// Another worker owns it.
    NotOwner,
}

/// What a process knows of the tidemark, by its own polling.
#[derive(Clone)]
pub struct Follower {
    tidemarks: Tidemarks,
    /// Where its clock stood at zero.
    zero: Instant,
    grace: Duration,
}

impl Follower {
    /// A process that starts: it sees the newest two, oldest first, both as of now.
    pub fn start(newest: Vec<Tidemark>, now: Duration, grace: Duration) -> Follower {
        let zero = Instant::now();
        let seen = newest.into_iter().map(|tidemark| (Arc::new(tidemark), zero + now)).collect();
        Follower { tidemarks: Tidemarks::new(seen), zero, grace }
    }

    /// It polls and finds this one.
    pub fn see(&mut self, tidemark: Tidemark, now: Duration) {
        if tidemark != **self.tidemarks.current() {
            self.tidemarks.see(tidemark, self.zero + now, self.grace);
        }
    }

    /// The newest that it knows.
    pub fn current(&self) -> &Arc<Tidemark> {
        self.tidemarks.current()
    }

    /// The cut below which nothing of a partition is needed any more.
    pub fn floor(&self, tp: &TopicPartition, now: Duration) -> Option<Cut> {
        self.tidemarks.floor(tp, self.zero + now, self.grace)
    }

    /// The cut from which panes are folded, and whether it is the very first, out of all generations, oldest first:
    /// what `TidemarkSource` asks of Postgres.
    pub fn pane_start(
        catalog: &Catalog,
        history: &[Tidemark],
        tp: &TopicPartition,
        cut: &Cut,
        log_start: i64,
    ) -> (Cut, bool) {
        let Some(stream) = catalog.stream_of_topic(&tp.topic) else { return (cut.clone(), false) };
        let longest = crate::counters::longest_window(catalog);
        let before = partition::panes_before(cut, stream, longest, catalog.layout.pane);
        let fits = |(at, tidemark): (usize, &Tidemark)| {
            let found =
                tidemark.cuts.get(tp).filter(|found| (log_start..=cut.offset).contains(&found.offset));
            let whole = |found: &&Cut| at == 0 || found.trusted.newest.is_some_and(|newest| newest < before);
            Some((found.filter(whole)?.clone(), at == 0))
        };
        let found = history.iter().enumerate().rev().find_map(fits);
        found.unwrap_or_else(|| (cut.clone(), false))
    }
}

/// A worker that owns a partition, as far as it knows.
pub struct Worker<W> {
    tp: TopicPartition,
    wire: W,
    token: String,
    partition: Partition,
    log_start: i64,
    looking: Looking<Duration>,
    round: Option<Round>,
}

impl<W: Wire> Worker<W> {
    /// Claims all groups of a partition, decides how each starts, and empties those that are built anew. `begin` is
    /// asked once the claims are through. `None`: a call failed or was refused; try anew.
    pub async fn claim(
        catalog: &Catalog,
        stream: &Arc<Stream>,
        tp: &TopicPartition,
        wire: W,
        begin: impl FnOnce() -> Begin,
        random: impl FnMut() -> u64,
    ) -> Option<Worker<W>> {
        Worker::claim_with(Arc::new(Plan::new(catalog, stream)), tp, wire, begin, random).await
    }

    pub(super) async fn claim_with(
        plan: Arc<Plan>,
        tp: &TopicPartition,
        wire: W,
        begin: impl FnOnce() -> Begin,
        mut random: impl FnMut() -> u64,
    ) -> Option<Worker<W>> {
        let token = format!("{:016x}", random());
        let groups = plan.layout.groups;
        let keys: Vec<String> = (0..groups).map(|group| view::group_key(tp, group, groups)).collect();
        let mut claimed = Vec::new();
        for key in &keys {
            match wire.call(Call::Claim { key: key.clone(), token: token.clone() }).await? {
                Reply::Claimed(header, fence, fields) => {
                    claimed.push(Claimed::of(header.as_deref(), fence.as_deref(), &fields));
                }
                _ => return None,
            }
        }
        let Begin { cut, panes, panes_are_first, log: (log_start, log_end), partitions } = begin();
        let panes = partition::pane_start(panes, panes_are_first, &plan.stream, plan.layout.pane);
        let (partition, rebuilt) = Partition::start(tp, &plan, claimed, &cut, &panes, log_start, random);
        if partition.position().to > log_end {
            return None;
        }
        for (group, _) in rebuilt {
            let reset = Call::Reset { key: keys[group].clone(), token: token.clone() };
            if said(wire.call(reset).await) != Answer::Stored {
                return None;
            }
        }
        let looking = Looking::new(Looked { partitions, clock: partition.position().clock });
        Some(Worker { tp: tp.clone(), wire, token, partition, log_start, looking, round: None })
    }

    /// The offset to read from.
    pub fn reads_from(&self) -> i64 {
        self.partition.read_from(self.log_start)
    }

    /// Takes in the next record; `None` is a tick.
    pub fn take(&mut self, offset: i64, append_time: Millis, value: Option<&[u8]>) -> Outcome {
        let payload = value.map_or(Payload::Tick, |bytes| Payload::Value(Some(bytes)));
        match self.partition.take(&Record { offset, append_time: Some(append_time), payload }) {
            Taken::Counted => Outcome::Counted,
            Taken::Rejected { .. } => Outcome::Rejected,
            Taken::OtherLog => Outcome::OtherLog,
            Taken::Below | Taken::Tick | Taken::Repeat => Outcome::Passed,
        }
    }

    /// One try of a round of writes. Epochs below `floor` and panes below `oldest_pane` are dropped; `quiet`: all
    /// groups are looked at.
    pub async fn round(&mut self, floor: Option<&Cut>, oldest_pane: Option<Millis>, quiet: bool) -> Spell {
        let mut round = match self.round.take() {
            Some(round) => round,
            None => {
                self.partition.expire_panes(oldest_pane);
                let epochs_below = floor.map(|cut| (cut.epoch, cut.offset));
                let expired = Expired { panes_below: oldest_pane, epochs_below };
                let (round, merges) = Round::begin(&mut self.partition, expired, quiet);
                let merged = self.read_back(merges).await;
                round.build(&mut self.partition, merged).expect("states that we wrote merge");
                round
            }
        };
        let groups = self.partition.groups();
        let mut writes = Vec::new();
        for &group in round.writes() {
            let write = groups[group].in_flight().expect("built");
            writes.push(said(self.wire.call(Call::flush(&groups[group].key, &self.token, write)).await));
        }
        let mut probes = Vec::new();
        for &group in round.probes() {
            let probe = Call::probe(&groups[group].key, &self.token, groups[group].header());
            probes.push(said(self.wire.call(probe).await));
        }
        match round.answered(self.partition.groups_mut(), &writes, &probes) {
            Next::Continue => Spell::Stored,
            Next::Retry(_) | Next::Trim(_) | Next::LoadLibrary => {
                self.round = Some(round);
                Spell::Retry
            }
            Next::Reclaim => Spell::Again,
            Next::GiveUp => Spell::NotOwner,
        }
    }

    async fn read_back(&self, merges: Vec<ToMerge>) -> BTreeMap<usize, Merge> {
        let mut merged = BTreeMap::new();
        for ToMerge { group, slice, seqs } in merges {
            let key = self.partition.groups()[group].key.clone();
            let fields = seqs.iter().map(|&seq| view::segment_field(slice, seq)).collect();
            if let Some(Reply::Values(Some(stored))) = self.wire.call(Call::Segments { key, fields }).await {
                merged.insert(group, Merge { slice, seqs, stored });
            }
        }
        merged
    }

    /// Whether its cuts differ from a tidemark's, upon which it claims anew.
    pub fn differs(&self, cut: &Cut) -> bool {
        self.partition.differs(cut).is_some()
    }

    /// Publishes where it stands. `look`: when the newest look at the topic began, and how many partitions it had.
    pub async fn publish_mark(
        &mut self,
        caught_up: bool,
        generation: i64,
        look: Option<(Duration, i32)>,
        now: Duration,
    ) {
        let position = self.partition.position();
        let (trusted, watermark, clock) = (position.trusted.newest, position.watermark, position.clock);
        let looked = Some(self.looking.see(look, now, clock));
        let mark = Mark { trusted, watermark, clock, caught_up, generation, looked };
        self.wire.call(Call::Mark { partition: self.tp.to_string(), mark }).await;
    }
}

fn said(reply: Option<Reply>) -> Answer {
    match reply {
        Some(Reply::Said(text)) => Answer::of(text),
        Some(_) => Answer::Unknown("another call's answer".to_owned()),
        None => Answer::Unknown("no answer".to_owned()),
    }
}
