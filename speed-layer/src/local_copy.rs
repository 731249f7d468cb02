//! A local copy of a partition's groups, from which they are put back where Redis has lost them: a matter of their size,
//! not of how many records lie above the tidemark.
//!
//! The copy follows Redis: it takes in what Redis has confirmed, in that order. So a copy that is whole is a state that the
//! group once had in Redis (its header may say more of what the log has lost since), and putting it back is what Redis
//! does when it comes up from an older snapshot: the claim goes on from there, or builds the group anew, by the same
//! rules. The copy is never needed, and nothing that is stored or read waits for the disk: where that is too slow, or fails,
//! the copy is let go of, and later brought up to what Redis has.

mod file;

use crate::flush::{Answer, Found};
use crate::group::{Claimed, Group, Write};
use crate::redis::Redis;
use anyhow::anyhow;
use file::{Copied, CopyFiles, Name, chunks};
use shared_model::causes::Causes;
use shared_model::offsets::TopicPartition;
use shared_model::view::Header;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

/// How long after a failure the copy is tried again.
const PAUSE: Duration = Duration::from_secs(30);
/// The same while the file is open elsewhere: by a worker that is about to let go of the partition.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// How long a claim waits for the disk.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many bytes may wait for the disk.
const WAITING: usize = 16 << 20;
/// How many bytes that the copy lacks one round reads from Redis.
const FETCH: usize = 4 << 20;

/// The local copy of one partition.
pub(crate) struct LocalCopy {
    /// Where copies are kept; `None`: none is wanted.
    folder: Option<PathBuf>,
    tp: TopicPartition,
    state: State,
    /// Whether the file has, since the last claim, all that Redis has but for what waits and what is missing.
    in_step: bool,
    /// Changes that are not in the file yet.
    waiting: Vec<Entry>,
    /// By group, the stored segments that the copy lacks.
    missing: Vec<BTreeSet<Name>>,
    /// How many groups the file has whole, and as Redis has them.
    whole: usize,
    /// The groups that were put back and that no record has come to since.
    restored: Vec<String>,
}

enum State {
    /// Not before then.
    Closed(Instant),
    /// Opened, or written to, by a thread that may block; `None`: it is open elsewhere.
    Busy(JoinHandle<anyhow::Result<Option<CopyFiles>>>),
    Open(CopyFiles),
}

/// One change of a group that Redis has confirmed.
struct Entry {
    group: usize,
    header: Option<Header>,
    deletes: Vec<Name>,
    segments: Vec<(Name, Vec<u8>)>,
}

/// What came of putting a group back.
pub(crate) enum PutBack {
    /// It is there: what a claim would find.
    Done(Claimed),
    /// The copy can't be read; it is thrown away.
    Unreadable,
    /// Redis has refused: the group has no header now.
    Refused(Answer),
}

impl LocalCopy {
    /// Of a partition, in a folder, if one is wanted.
    pub(crate) fn new(folder: Option<PathBuf>, tp: &TopicPartition) -> LocalCopy {
        LocalCopy {
            folder,
            tp: tp.clone(),
            state: State::Closed(Instant::now()),
            in_step: false,
            waiting: Vec::new(),
            missing: Vec::new(),
            whole: 0,
            restored: Vec::new(),
        }
    }

    /// At a claim, the headers of the groups that the copy has whole, by group. A file that isn't open yet is read only if
    /// `some_are_lost`.
    pub(crate) async fn headers(&mut self, groups: u32, some_are_lost: bool) -> BTreeMap<usize, Header> {
        self.in_step = false;
        self.waiting.clear();
        if some_are_lost {
            if let State::Closed(until) = &mut self.state {
                *until = Instant::now();
            }
            self.open(groups);
            self.settle().await;
        }
        let State::Open(file) = &self.state else { return BTreeMap::new() };
        let copied = file.groups().enumerate();
        copied.filter_map(|(at, copied)| Some((at, copied.header.clone()?))).collect()
    }

    /// Puts a group that the copy has whole back into Redis, in place of what is there. Its header comes last, and only
    /// over exactly its segments, whatever was lost or repeated on the way.
    pub(crate) async fn put_back(&mut self, redis: &Redis, key: &str, token: &str, group: usize) -> PutBack {
        let State::Open(file) = &self.state else { return PutBack::Unreadable };
        let Copied { header: Some(header), segments } = file.group(group).clone() else {
            return PutBack::Unreadable;
        };
        self.restored.push(key.to_owned());
        let answer = redis.reset(key, token).await;
        if answer != Answer::Stored {
            return PutBack::Refused(answer);
        }
        for names in chunks(&segments) {
            let part = names.iter().map(|&name| Ok((name, file.read(group, name)?)));
            let part = match tokio::task::block_in_place(|| part.collect::<anyhow::Result<Vec<_>>>()) {
                Ok(part) => part,
                Err(error) => {
                    let error = error.context("it can't be read, and is thrown away");
                    self.discard().await;
                    self.failed(&error);
                    return PutBack::Unreadable;
                }
            };
            let answer = redis.put(key, token, &part).await;
            if answer != Answer::Stored {
                return PutBack::Refused(answer);
            }
        }
        let answer = redis.restore(key, token, &header, segments.keys().copied()).await;
        if answer != Answer::Stored {
            return PutBack::Refused(answer);
        }
        let lengths = segments.iter().map(|(&(slice, seq), segment)| (slice, seq, segment.length));
        PutBack::Done(Claimed { found: Found::Group(header.into()), segments: lengths.collect() })
    }

    /// Takes in what Redis has confirmed since the last time, in that order, and as much as one round may of what the copy
    /// lacks. Gives the number of groups that the file has whole. Doesn't wait for the disk.
    pub(crate) async fn take(
        &mut self,
        redis: &Redis,
        groups: &[Group],
        stored: Vec<(usize, Write)>,
    ) -> usize {
        self.open(groups.len() as u32);
        if matches!(&self.state, State::Busy(busy) if busy.is_finished()) {
            self.settle().await;
        }
        self.count();
        if stored.iter().any(|(_, write)| !write.segments.is_empty()) {
            self.restored.clear();
        }
        if self.in_step {
            for (group, write) in stored {
                let entry = self.entry(group, write);
                self.waiting.push(entry);
            }
        }
        if let State::Open(file) = &self.state {
            if !self.in_step {
                (self.waiting, self.missing) = behind(file, groups);
                self.in_step = true;
            } else {
                self.fetch(redis, groups).await;
            }
        }
        self.write();
        self.count();
        self.whole
    }

    /// Counts the groups that the file has whole, once nothing is being done to it.
    fn count(&mut self) {
        if !self.in_step {
            self.whole = 0;
        } else if let State::Open(file) = &self.state {
            self.whole = file.groups().filter(|copied| copied.header.is_some()).count();
        }
    }

    /// What a confirmed write changes.
    fn entry(&mut self, group: usize, write: Write) -> Entry {
        let missing = &mut self.missing[group];
        missing.retain(|name| !write.deletes.contains(name));
        let header = missing.is_empty().then(|| write.header.clone());
        let named = write.segments.into_iter().map(|(slice, bytes)| ((slice, write.header.seq), bytes));
        Entry { group, header, deletes: write.deletes, segments: named.collect() }
    }

    /// Some of what the copy lacks, from Redis; a group of which nothing is lacking then has its header.
    async fn fetch(&mut self, redis: &Redis, groups: &[Group]) {
        let mut bytes = 0;
        for (at, group) in groups.iter().enumerate() {
            while bytes < FETCH
                && let Some(&(slice, _)) = self.missing[at].first()
            {
                let names: Vec<Name> =
                    self.missing[at].iter().take_while(|name| name.0 == slice).copied().collect();
                let seqs: Vec<u64> = names.iter().map(|name| name.1).collect();
                // That they can't be read now is no fault of the copy: a later round asks again.
                let Ok(Some(found)) = redis.segments(&group.key, slice, &seqs).await else { return };
                bytes += found.iter().map(Vec::len).sum::<usize>();
                names.iter().for_each(|name| _ = self.missing[at].remove(name));
                let header = self.missing[at].is_empty().then(|| group.header().clone());
                let segments = names.into_iter().zip(found).collect();
                self.waiting.push(Entry { group: at, header, deletes: Vec::new(), segments });
            }
        }
    }

    /// Has what waits written, unless the file is busy; lets go of the copy where too much waits.
    fn write(&mut self) {
        let bytes = self.waiting.iter().flat_map(|entry| &entry.segments).map(|(_, bytes)| bytes.len());
        if matches!(self.state, State::Busy(_)) && bytes.sum::<usize>() > WAITING {
            self.failed(&anyhow!("the disk is too slow for it"));
        }
        if self.waiting.is_empty() || !matches!(self.state, State::Open(_)) {
            return;
        }
        let entries = std::mem::take(&mut self.waiting);
        let closed = State::Closed(Instant::now());
        if let State::Open(mut file) = std::mem::replace(&mut self.state, closed) {
            self.state = State::Busy(spawn_blocking(move || {
                for Entry { group, header, deletes, segments } in entries {
                    file.append(group, header.as_ref(), &deletes, &segments)?;
                }
                Ok(Some(file))
            }));
        }
    }

    /// Has the file opened, if it is time for that.
    fn open(&mut self, groups: u32) {
        if let (State::Closed(until), Some(folder)) = (&self.state, &self.folder)
            && Instant::now() >= *until
        {
            let (folder, tp) = (folder.clone(), self.tp.clone());
            self.state = State::Busy(spawn_blocking(move || CopyFiles::open(&folder, &tp, groups)));
            self.in_step = false;
        }
    }

    /// Waits until nothing is done to the file, for so long as a claim may.
    async fn settle(&mut self) {
        let State::Busy(busy) = &mut self.state else { return };
        let done = tokio::time::timeout(PATIENCE, busy).await;
        let done = done.map_err(|_| anyhow!("the disk takes longer than {PATIENCE:?}"));
        match done.and_then(|joined| joined?) {
            Ok(Some(file)) => self.state = State::Open(file),
            Ok(None) => {
                tracing::debug!("{}: the local copy is open elsewhere", self.tp);
                self.close(ELSEWHERE);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Says what went wrong, and goes on without for a while.
    fn failed(&mut self, error: &anyhow::Error) {
        tracing::warn!(
            "{}: no local copy, for {PAUSE:?} at least: {}; what redis loses now is folded from the log again",
            self.tp,
            Causes(error.as_ref())
        );
        self.close(PAUSE);
    }

    fn close(&mut self, pause: Duration) {
        self.state = State::Closed(Instant::now() + pause);
        self.in_step = false;
        self.waiting.clear();
    }

    /// Takes back what was put into Redis and not gone on from, and throws the copy away: it is of another log.
    pub(crate) async fn renounce(&mut self, redis: &Redis, token: &str) {
        for key in std::mem::take(&mut self.restored) {
            let answer = redis.reset(&key, token).await;
            tracing::warn!(
                "{key}: what was put back from the local copy is of another log: emptied ({answer:?})"
            );
        }
        self.discard().await;
    }

    /// Throws away what the copy holds: it is of no use.
    pub(crate) async fn discard(&mut self) {
        self.settle().await;
        self.in_step = false;
        self.waiting.clear();
        if let State::Open(file) = &mut self.state
            && let Err(error) = file.clear()
        {
            self.failed(&error);
        }
    }
}

/// What brings a file to what Redis has: what it is to let go of, by group, and what it lacks.
fn behind(file: &CopyFiles, groups: &[Group]) -> (Vec<Entry>, Vec<BTreeSet<Name>>) {
    let mut entries = Vec::new();
    let mut missing = Vec::with_capacity(groups.len());
    for (at, (group, copied)) in groups.iter().zip(file.groups()).enumerate() {
        let stored: BTreeMap<Name, usize> = group.segments().collect();
        let has =
            |name: &Name, length| copied.segments.get(name).is_some_and(|segment| segment.length == length);
        let lacks: BTreeSet<Name> =
            stored.iter().filter(|&(name, &length)| !has(name, length)).map(|(name, _)| *name).collect();
        let deletes: Vec<Name> =
            copied.segments.keys().filter(|name| !stored.contains_key(name)).copied().collect();
        let header = (group.is_stored() && lacks.is_empty()).then(|| group.header());
        if !deletes.is_empty() || copied.header.as_ref().map(Header::fence) != header.map(Header::fence) {
            entries.push(Entry { group: at, header: header.cloned(), deletes, segments: Vec::new() });
        }
        missing.push(lacks);
    }
    (entries, missing)
}
