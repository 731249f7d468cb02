//! Owns one partition: claims its groups, reads its log from where they end, folds, and writes round by round.
//!
//! Sequential on purpose: while a write isn't confirmed nothing is read, so memory is bounded and a refusal can drop
//! everything held, since whatever isn't stored is in the log.

use crate::claim;
use crate::consume::{Log, Member, Records};
use crate::counters::Plan;
use crate::dead_letters::{DeadLetter, DeadLetters};
use crate::decode;
use crate::flush::{self, Answer, Next};
use crate::group::{Expired, Merge, Position, Write};
use crate::health::Health;
use crate::local_copy::LocalCopy;
use crate::look::{Looking, Looks};
use crate::partition::{Partition, Taken};
use crate::publish::Feed;
use crate::redis::Redis;
use crate::round::{Round, ToMerge};
use crate::telemetry::PartitionMetrics;
use crate::tidemark_source::{TidemarkSource, Tidemarks};
use ::redis::RedisResult;
use anyhow::bail;
use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use shared_model::causes::Causes;
use shared_model::failpoint;
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use shared_model::view::{Looked, Mark};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How many records are folded before other tasks get their turn.
const TURN: usize = 512;
/// How often a quiet group's position is written, and each group's presence is verified.
const QUIET: Duration = Duration::from_secs(1);
/// How long cells may wait while more is fetched than can be taken in: the more records a write holds, the less each
/// costs.
const CATCHING_UP: Duration = Duration::from_secs(1);
/// How many dead letters may wait for a flush.
const DEAD_LETTERS: usize = 2_000;
/// How many bytes of waiting cells, or of dead letters, force a flush.
const PENDING_BYTES: usize = 64 << 20;

/// What all partitions' workers share.
pub(crate) struct Shared {
    pub(crate) log: Log,
    pub(crate) member: Option<Member>,
    pub(crate) redis: Redis,
    /// By which the publisher learns of what is stored.
    pub(crate) feed: Feed,
    pub(crate) source: TidemarkSource,
    pub(crate) tidemarks: watch::Receiver<Tidemarks>,
    /// The newest looks at the topics.
    pub(crate) looks: watch::Receiver<Looks>,
    /// The oldest pane that is still in a window.
    pub(crate) oldest_pane: watch::Receiver<Option<Millis>>,
    /// Whether reading is to wait, for who publishes every pane to come closer.
    pub(crate) waits: watch::Receiver<bool>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) health: Health,
    pub(crate) flush_interval: Duration,
    pub(crate) pending_cells: usize,
    pub(crate) epoch_grace: Duration,
    /// Where local copies of partitions are kept, if they are.
    pub(crate) local_copy: Option<PathBuf>,
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to; all that it could store is stored.
    Stopped,
    /// Another worker has claimed the partition.
    NotOwner,
}

/// Why one spell of ownership ended.
enum Spell {
    Ended(Ended),
    /// Claim anew and re-read.
    Again(String),
}

/// Another log lies under the name of one that was read before.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log of {0} is not the one that was read before: the topic was deleted and made anew; start with empty views and \
     a new archive, give the new log a topic name of its own, or restore the topic"
)]
struct OtherLog(TopicPartition);

/// Owns a partition until the stop, or until another worker claims it.
pub(crate) async fn own(
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    tp: TopicPartition,
    stop: CancellationToken,
) -> Ended {
    let name = tp.to_string();
    let mut pause = Duration::from_millis(50);
    let mut copy = LocalCopy::new(shared.local_copy.clone(), &tp);
    loop {
        let begun = Instant::now();
        let why = match spell(&shared, &plan, &tp, &mut copy, &stop).await {
            Ok(Spell::Ended(ended)) => {
                return ended;
            }
            Ok(Spell::Again(why)) => why,
            Err(error) => Causes(error.as_ref()).to_string(),
        };
        if begun.elapsed() > Duration::from_secs(30) {
            pause = Duration::from_millis(50);
        }
        shared.health.set(&name, Some(why));
        tokio::select! {
            () = stop.cancelled() => return Ended::Stopped,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// One spell: from the claim until the stop or a refusal.
async fn spell(
    shared: &Arc<Shared>,
    plan: &Arc<Plan>,
    tp: &TopicPartition,
    copy: &mut LocalCopy,
    stop: &CancellationToken,
) -> anyhow::Result<Spell> {
    let replaced = shared.log.replaced(&tp.topic);
    let token = format!("{:016x}", claim::random());
    let claimed = tokio::select! {
        () = stop.cancelled() => return Ok(Spell::Ended(Ended::Stopped)),
        claimed = claim::claim(shared, plan, tp, &token, copy) => claimed?,
    };
    let Some((partition, read_from, partitions)) = claimed else {
        return Ok(Spell::Ended(Ended::NotOwner));
    };
    let records = shared.log.open(tp, read_from).await?;
    let clock = partition.position().clock;
    let mut owner = Owner {
        looking: Looking::new(Looked { partitions, clock }),
        metrics: PartitionMetrics::new(tp),
        partition,
        replaced,
        shared: shared.clone(),
        token: token.clone(),
        letters: Vec::new(),
        letter_bytes: 0,
        caught_up: false,
        end_seen: true,
        flushed: Instant::now(),
        quiet_since: Instant::now(),
        mark: None,
        took: [0; 3],
        copy,
        stored: Vec::new(),
    };
    let ended = owner.run(&records, stop).await;
    drop(records);
    if ended.as_ref().is_err_and(|error| error.is::<OtherLog>()) {
        copy.renounce(&shared.redis, &token).await;
    }
    shared.log.close(tp).await?;
    ended
}

/// The running state of one spell.
struct Owner<'a> {
    shared: Arc<Shared>,
    partition: Partition,
    token: String,
    /// How often the topic had been replaced when the spell began.
    replaced: u64,
    metrics: PartitionMetrics,
    /// Dead letters that are not written yet.
    letters: Vec<DeadLetter>,
    /// About how much memory they take.
    letter_bytes: usize,
    /// Whether the end of the log was seen since the last record.
    caught_up: bool,
    /// Whether it, or that of what was fetched, was seen since the last flush: we keep up.
    end_seen: bool,
    /// When the last flush began.
    flushed: Instant,
    /// When quiet groups were last written.
    quiet_since: Instant,
    mark: Option<Mark>,
    looking: Looking<Instant>,
    /// Counted, repeated, ticks since the last flush.
    took: [u64; 3],
    copy: &'a mut LocalCopy,
    /// Writes that Redis has confirmed and the copy hasn't taken in.
    stored: Vec<(usize, Write)>,
}

/// Goes on, or breaks off the spell.
type Flow = anyhow::Result<ControlFlow<Spell>>;

const ON: Flow = Ok(ControlFlow::Continue(()));

impl Owner<'_> {
    async fn run(&mut self, records: &Records, stop: &CancellationToken) -> anyhow::Result<Spell> {
        let mut messages = records.stream();
        let (mut tidemarks, mut waits) = (self.shared.tidemarks.clone(), self.shared.waits.clone());
        let mut round = tokio::time::interval(self.shared.flush_interval);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What isn't taken stays with the client, which fetches no more than it has room for.
            let waiting = *waits.borrow_and_update();
            let flow = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let never = CancellationToken::new();
                    let last = self.flush(true, &never);
                    return Ok(match tokio::time::timeout(Duration::from_secs(5), last).await {
                        Ok(Ok(ControlFlow::Break(ended @ Spell::Ended(_)))) => ended,
                        _ => Spell::Ended(Ended::Stopped),
                    });
                }
                _ = round.tick() => match self.end_seen || waiting || self.flushed.elapsed() >= CATCHING_UP {
                    true => self.flush(false, stop).await?,
                    false => ControlFlow::Continue(()),
                },
                Ok(()) = tidemarks.changed() => self.compare(&tidemarks.borrow_and_update().clone()),
                Ok(()) = waits.changed() => ControlFlow::Continue(()),
                Some(message) = messages.next(), if !waiting => {
                    self.take(message)?;
                    for _ in 0..TURN {
                        let Some(Some(message)) = messages.next().now_or_never() else {
                            // All that was fetched is taken in: what comes is new, or fetching is what takes its time.
                            self.end_seen = true;
                            break;
                        };
                        self.take(message)?;
                    }
                    self.after_turn(stop).await?
                }
            };
            if let ControlFlow::Break(spell) = flow {
                return Ok(spell);
            }
        }
    }

    fn take(&mut self, message: Result<BorrowedMessage<'_>, KafkaError>) -> anyhow::Result<()> {
        let message = match message {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(_)) => {
                (self.caught_up, self.end_seen) = (true, true);
                return Ok(());
            }
            Err(KafkaError::MessageConsumption(
                code @ (RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset),
            )) => bail!("the log of {} no longer has the offset to be read next ({code})", self.partition.tp),
            Err(error) => {
                // Transport trouble: librdkafka goes on by itself.
                tracing::debug!("{}: {error}", self.partition.tp);
                return Ok(());
            }
        };
        self.caught_up = false;
        let record = decode::record(&message);
        match self.partition.take(&record) {
            Taken::Below => {}
            Taken::OtherLog => bail!(OtherLog(self.partition.tp.clone())),
            Taken::Counted => self.took[0] += 1,
            Taken::Repeat => self.took[1] += 1,
            Taken::Tick => self.took[2] += 1,
            Taken::Rejected { reject, report } => {
                self.metrics.rejected(reject.code());
                if report {
                    let value = match record.payload {
                        decode::Payload::Value(value) => value.map(<[u8]>::to_vec),
                        decode::Payload::Tick => None,
                    };
                    let (offset, append_time) = (record.offset, record.append_time);
                    let (key, produced) = (message.key().map(<[u8]>::to_vec), decode::produced(&message));
                    let letter = DeadLetter { offset, append_time, reject, key, produced, value };
                    self.letter_bytes += letter.bytes();
                    self.letters.push(letter);
                }
            }
        }
        Ok(())
    }

    /// After some records: writes early where too much waits.
    async fn after_turn(&mut self, stop: &CancellationToken) -> Flow {
        let (cells, bytes) = self.partition.pending();
        let letters = self.letters.len() >= DEAD_LETTERS || self.letter_bytes >= PENDING_BYTES;
        if cells >= self.shared.pending_cells || bytes >= PENDING_BYTES || letters {
            return self.flush(false, stop).await;
        }
        tokio::task::yield_now().await;
        ON
    }

    /// Our cut must be the tidemark's: looked at when it moves, and now and then, since we may come to its boundary
    /// later only.
    fn compare(&mut self, tidemarks: &Tidemarks) -> ControlFlow<Spell> {
        let cut = tidemarks.current().cut(&self.partition.tp);
        if let Some(group) = self.partition.differs(&cut) {
            let (epoch, offset) = (cut.epoch, cut.offset);
            tracing::error!(
                "{}: the tidemark has the boundary of epoch {epoch} at offset {offset}, we have cuts {:?}",
                group.key,
                group.cuts()
            );
            self.metrics.refused("cut");
            return ControlFlow::Break(Spell::Again("a cut differs from the tidemark's".into()));
        }
        ControlFlow::Continue(())
    }

    /// One round: dead letters first, then every group that has something to say, then the mark.
    async fn flush(&mut self, last: bool, stop: &CancellationToken) -> Flow {
        let begun = Instant::now();
        (self.flushed, self.end_seen) = (begun, self.caught_up);
        if self.shared.log.replaced(&self.partition.tp.topic) != self.replaced {
            // Nothing of the new log is stored: the claim finds out whether the old one is really gone.
            return Ok(ControlFlow::Break(Spell::Again("the topic was deleted and made anew".to_owned())));
        }
        if self.write_dead_letters(stop).await?.is_break() {
            return Ok(ControlFlow::Break(Spell::Ended(Ended::Stopped)));
        }
        let (position, expired) = (self.partition.position(), self.expired());
        let (waiting, _) = self.partition.pending();
        let quiet = last || self.quiet_since.elapsed() >= QUIET;
        let (round, merges) = Round::begin(&mut self.partition, expired, quiet);
        let merged = self.read_back(merges).await;
        round.build(&mut self.partition, merged)?;
        let bytes = round.writes().iter().filter_map(|&group| self.partition.groups()[group].in_flight());
        let bytes = bytes.flat_map(|write| &write.segments).map(|(_, bytes)| bytes.len()).sum();
        let wrote = !round.writes().is_empty();
        if let ControlFlow::Break(spell) = self.write(round, stop).await? {
            return Ok(ControlFlow::Break(spell));
        }
        if wrote {
            self.metrics.flushed(begun.elapsed(), bytes);
        }
        self.metrics.took(self.took[0], self.took[1], self.took[2]);
        self.took = [0; 3];
        if quiet {
            self.quiet_since = begun;
            let tidemarks = self.shared.tidemarks.borrow().clone();
            if let ControlFlow::Break(spell) = self.compare(&tidemarks) {
                return Ok(ControlFlow::Break(spell));
            }
            self.commit();
            let event_time = position.trusted.newest;
            self.metrics.stands(waiting, self.partition.remembered(), position.clock, event_time);
        }
        // Where nothing else is to be written, this alone tells that redis takes no writes.
        let refused = self.publish_mark(&position, quiet).await.err();
        let trouble = refused.map(|error| crate::redis::explain(&error));
        self.shared.health.set(&self.partition.tp.to_string(), trouble);
        let stored = std::mem::take(&mut self.stored);
        let copied = self.copy.take(&self.shared.redis, self.partition.groups(), stored).await;
        self.metrics.copied(copied);
        ON
    }

    fn expired(&mut self) -> Expired {
        let oldest_pane = *self.shared.oldest_pane.borrow();
        self.partition.expire_panes(oldest_pane);
        let grace = self.shared.epoch_grace;
        let floor = self.shared.tidemarks.borrow().floor(&self.partition.tp, Instant::now(), grace);
        Expired { panes_below: oldest_pane, epochs_below: floor.map(|cut| (cut.epoch, cut.offset)) }
    }

    /// Reads back what a round merges. A failed or partial read only puts a merge off: the write itself will find out what
    /// is wrong.
    async fn read_back(&self, merges: Vec<ToMerge>) -> BTreeMap<usize, Merge> {
        let (redis, groups) = (&self.shared.redis, self.partition.groups());
        let read = merges.into_iter().map(|ToMerge { group, slice, seqs }| async move {
            let stored = redis.segments(&groups[group].key, slice, &seqs).await.ok()??;
            Some((group, Merge { slice, seqs, stored }))
        });
        join_all(read).await.into_iter().flatten().collect()
    }

    /// Sends a round's writes until all are stored.
    async fn write(&mut self, mut round: Round, stop: &CancellationToken) -> Flow {
        let mut pause = Duration::from_millis(50);
        while round.is_open() {
            let (redis, token, groups) = (&self.shared.redis, &self.token, self.partition.groups());
            let writes = round.writes().iter().map(|&group| {
                let write = groups[group].in_flight().expect("built");
                redis.flush(&groups[group].key, token, write)
            });
            let probes = round.probes().iter();
            let probes = probes.map(|&group| redis.probe(&groups[group].key, token, groups[group].header()));
            let (answers, probes) = futures::join!(join_all(writes), join_all(probes));
            let next = round.answered(self.partition.groups_mut(), &answers, &probes);
            round.take_stored().into_iter().for_each(|(group, write)| self.has_stored(group, write));
            match next {
                Next::Continue => continue,
                Next::GiveUp | Next::Reclaim => return Ok(ControlFlow::Break(self.lost(&next))),
                Next::LoadLibrary => {
                    self.metrics.refused("library");
                    if let Err(error) = self.shared.redis.load_library().await {
                        self.unwell(crate::redis::explain(&error));
                    }
                }
                Next::Trim(why) => {
                    self.metrics.refused("full");
                    self.unwell(why);
                    let next = self.trim().await;
                    if matches!(next, Next::GiveUp | Next::Reclaim) {
                        return Ok(ControlFlow::Break(self.lost(&next)));
                    }
                }
                Next::Retry(why) => {
                    self.metrics.refused("unknown");
                    self.unwell(why);
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(ControlFlow::Break(Spell::Ended(Ended::Stopped))),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        ON
    }

    /// Takes in that a group's write is stored.
    fn has_stored(&mut self, group: usize, write: Write) {
        self.shared.feed.stored(&self.partition.groups()[group].key, &write);
        self.stored.push((group, write));
    }

    /// What a refusal for good comes to.
    fn lost(&self, next: &Next) -> Spell {
        if *next == Next::GiveUp {
            self.metrics.refused("owner");
            return Spell::Ended(Ended::NotOwner);
        }
        self.metrics.refused("fence");
        Spell::Again("a group in redis is not as it was stored (emptied or rolled back)".into())
    }

    /// Makes room in a full Redis: deletes what has expired since the refused writes were built. What the answers mean:
    /// as long as memory is full nobody else finds out that a group is another's or elsewhere.
    async fn trim(&mut self) -> Next {
        let expired = self.expired();
        let groups = self.partition.groups_mut().iter_mut().enumerate();
        let writes: Vec<(usize, Write)> =
            groups.filter_map(|(at, group)| Some((at, group.trimming(&expired)?))).collect();
        let (redis, token, groups) = (&self.shared.redis, &self.token, self.partition.groups());
        let trims = writes.iter().map(|(at, write)| redis.trim(&groups[*at].key, token, write));
        let answers = join_all(trims).await;
        let stored = writes.into_iter().zip(&answers).filter(|(_, answer)| **answer == Answer::Stored);
        for ((at, write), _) in stored {
            self.has_stored(at, write.clone());
            self.partition.groups_mut()[at].trimmed(write, &expired);
        }
        flush::next(answers.iter())
    }

    /// Writes all waiting dead letters, however long it takes; breaks at the stop.
    async fn write_dead_letters(&mut self, stop: &CancellationToken) -> anyhow::Result<ControlFlow<()>> {
        while !self.letters.is_empty() {
            failpoint::hit("speed.dead_letters.before");
            let written = self.shared.dead_letters.write(&self.partition.tp, &self.letters).await;
            failpoint::hit("speed.dead_letters.after");
            match written {
                Ok(()) => {
                    self.letters.clear();
                    self.letter_bytes = 0;
                }
                Err(error) => {
                    self.unwell(Causes(error.as_ref()).to_string());
                    tokio::select! {
                        () = stop.cancelled() => return Ok(ControlFlow::Break(())),
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn unwell(&self, why: String) {
        self.shared.health.set(&self.partition.tp.to_string(), Some(why));
    }

    fn commit(&self) {
        let stored = self.partition.stored_to();
        failpoint::hit("speed.commit.before");
        match &self.shared.member {
            Some(member) => member.commit(&self.partition.tp, stored),
            None => self.shared.log.commit(&self.partition.tp, stored),
        }
        failpoint::hit("speed.commit.after");
    }

    /// Publishes where the partition stands, when it has changed and at least every second.
    async fn publish_mark(&mut self, position: &Position, quiet: bool) -> RedisResult<()> {
        let look = self.shared.looks.borrow().get(&self.partition.tp.topic).copied();
        let mark = Mark {
            trusted: position.trusted.newest,
            watermark: position.watermark,
            clock: position.clock,
            caught_up: self.caught_up,
            generation: self.shared.tidemarks.borrow().current().generation,
            looked: Some(self.looking.see(look, Instant::now(), position.clock)),
        };
        if quiet || self.mark != Some(mark) {
            let stored = self.shared.redis.set_mark(&self.partition.tp.to_string(), &mark).await;
            self.mark = stored.is_ok().then_some(mark);
            return stored;
        }
        Ok(())
    }
}
