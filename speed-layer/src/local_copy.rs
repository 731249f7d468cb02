//! A local copy of a partition's groups, from which they are put back where Redis has lost them: a matter of their size,
//! not of how many records lie above the tidemark.
//!
//! The copy follows Redis: it takes in what Redis has confirmed, in that order, and is never asked while Redis has the
//! group. So a copy that is whole is a state that the group once had in Redis, and putting it back is what Redis does when
//! it comes up from an older snapshot: the claim goes on from there, or builds the group anew, by the same rules. The
//! copy is never needed: whatever fails, it is thrown away, and made anew from Redis.

mod file;

use crate::flush::Answer;
use crate::group::{Claimed, Group, Write};
use crate::redis::Redis;
use anyhow::{Context as _, bail};
use file::{Copied, CopyFile, Name, chunks};
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
/// How many bytes that the copy lacks one round reads from Redis.
const FETCH: usize = 8 << 20;

/// The local copy of one partition.
pub(crate) struct LocalCopy {
    /// Where copies are kept; `None`: none is wanted.
    folder: Option<PathBuf>,
    tp: TopicPartition,
    state: State,
    /// By group, the stored segments that the copy lacks.
    missing: Vec<BTreeSet<Name>>,
    /// The groups that were put back since the last claim.
    restored: Vec<String>,
}

enum State {
    /// Not before then.
    Closed(Instant),
    Open(CopyFile),
    /// Until it is written.
    Writing(JoinHandle<anyhow::Result<CopyFile>>),
}

/// One change of a group that Redis has confirmed.
struct Entry {
    group: usize,
    header: Option<Header>,
    deletes: Vec<Name>,
    segments: Vec<(Name, Vec<u8>)>,
}

impl LocalCopy {
    /// Of a partition, in a folder, if one is wanted.
    pub(crate) fn new(folder: Option<PathBuf>, tp: &TopicPartition) -> LocalCopy {
        let state = State::Closed(Instant::now());
        LocalCopy { folder, tp: tp.clone(), state, missing: Vec::new(), restored: Vec::new() }
    }

    /// The headers of the groups that the copy has whole, by group.
    pub(crate) async fn headers(&mut self, groups: usize) -> BTreeMap<usize, Header> {
        self.restored.clear();
        let Some(file) = self.open(groups).await else { return BTreeMap::new() };
        let copied = file.groups().iter().enumerate();
        copied.filter_map(|(at, copied)| Some((at, copied.header.clone()?))).collect()
    }

    /// Puts a group that the copy has whole back into Redis, in place of what is there, and says what a claim would then
    /// find.
    ///
    /// # Errors
    /// Where the copy can't be read, or Redis refuses: then the group is without a header, which the next claim sees.
    pub(crate) async fn put_back(
        &mut self,
        redis: &Redis,
        key: &str,
        token: &str,
        group: usize,
    ) -> anyhow::Result<Result<Claimed, Answer>> {
        self.restored.push(key.to_owned());
        let file = self.file().await.context("the local copy is gone")?;
        let Copied { header: Some(header), segments } = file.groups()[group].clone() else {
            bail!("the local copy of {key} isn't whole")
        };
        let answer = redis.reset(key, token).await;
        if answer != Answer::Stored {
            return Ok(Err(answer));
        }
        for names in chunks(&segments) {
            let part = names.iter().map(|&name| Ok((name, file.read(group, name)?)));
            let part = part.collect::<anyhow::Result<Vec<_>>>()?;
            let answer = redis.put(key, token, &part).await;
            if answer != Answer::Stored {
                return Ok(Err(answer));
            }
        }
        let last = Write { expected: String::new(), header, segments: Vec::new(), deletes: Vec::new() };
        let answer = redis.flush(key, token, &last).await;
        if answer != Answer::Stored {
            return Ok(Err(answer));
        }
        let lengths = segments.iter().map(|(&(slice, seq), &(_, length))| (slice, seq, length));
        Ok(Ok(Claimed { found: crate::flush::Found::Group(last.header.into()), segments: lengths.collect() }))
    }

    /// Brings the copy to what Redis has, as a claim found it and left it: lets go of the rest, and notes what it lacks.
    pub(crate) async fn follow(&mut self, groups: &[Group]) {
        let Some(file) = self.open(groups.len()).await else { return };
        let mut entries = Vec::new();
        let mut missing = Vec::with_capacity(groups.len());
        for (at, (group, copied)) in groups.iter().zip(file.groups()).enumerate() {
            let (deletes, lacks) = differences(copied, group);
            let header = (group.is_stored() && lacks.is_empty()).then(|| group.header());
            if !deletes.is_empty() || copied.header.as_ref().map(Header::fence) != header.map(Header::fence) {
                entries.push(Entry { group: at, header: header.cloned(), deletes, segments: Vec::new() });
            }
            missing.push(lacks);
        }
        self.missing = missing;
        self.append(entries).await;
    }

    /// Takes in what Redis has confirmed since the last time, in that order, and then as much as one round may of what
    /// the copy lacks. Gives the number of groups that it had whole before, all of it written.
    pub(crate) async fn take(
        &mut self,
        redis: &Redis,
        groups: &[Group],
        stored: Vec<(usize, Write)>,
    ) -> usize {
        let Some(file) = self.file().await else {
            self.follow(groups).await;
            return 0;
        };
        let whole = file.groups().iter().filter(|copied| copied.header.is_some()).count();
        let mut entries: Vec<Entry> = stored.into_iter().map(|(at, write)| self.entry(at, write)).collect();
        entries.extend(self.fetch(redis, groups).await);
        self.append(entries).await;
        whole
    }

    /// What a confirmed write changes.
    fn entry(&mut self, group: usize, write: Write) -> Entry {
        let missing = &mut self.missing[group];
        missing.retain(|name| !write.deletes.contains(name));
        let header = missing.is_empty().then_some(write.header.clone());
        let named = write.segments.into_iter().map(|(slice, bytes)| ((slice, write.header.seq), bytes));
        Entry { group, header, deletes: write.deletes, segments: named.collect() }
    }

    /// Some of what the copy lacks, from Redis; a group of which nothing is lacking then has its header.
    async fn fetch(&mut self, redis: &Redis, groups: &[Group]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (at, group) in groups.iter().enumerate() {
            let mut segments = Vec::new();
            while bytes < FETCH
                && let Some(&(slice, seq)) = self.missing[at].first()
            {
                // That it can't be read now is no fault of the copy: the next round asks again.
                let Ok(Some(found)) = redis.segments(&group.key, slice, &[seq]).await else { return entries };
                self.missing[at].remove(&(slice, seq));
                let found: Vec<u8> = found.concat();
                bytes += found.len();
                segments.push(((slice, seq), found));
            }
            let whole = self.missing[at].is_empty();
            if !segments.is_empty() {
                let header = whole.then(|| group.header().clone());
                entries.push(Entry { group: at, header, deletes: Vec::new(), segments });
            }
        }
        entries
    }

    /// Writes entries, on a thread of its own: what comes next is taken in meanwhile.
    async fn append(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() || self.file().await.is_none() {
            return;
        }
        let closed = State::Closed(Instant::now());
        let State::Open(mut file) = std::mem::replace(&mut self.state, closed) else { return };
        self.state = State::Writing(spawn_blocking(move || {
            for Entry { group, header, deletes, segments } in entries {
                file.append(group, header.as_ref(), &deletes, &segments)?;
            }
            file.tidy()?;
            Ok(file)
        }));
    }

    /// The file, opened if it is time for that.
    async fn open(&mut self, groups: usize) -> Option<&mut CopyFile> {
        if let (State::Closed(until), Some(folder)) = (&self.state, &self.folder)
            && Instant::now() >= *until
        {
            let (folder, tp) = (folder.clone(), self.tp.clone());
            let opened = spawn_blocking(move || CopyFile::open(&folder, &tp, groups)).await;
            match opened.map_err(anyhow::Error::from).flatten() {
                Ok(Some(file)) => self.state = State::Open(file),
                Ok(None) => {
                    self.state = State::Closed(Instant::now() + PAUSE);
                    tracing::info!("{}: another process has the local copy open: going on without", self.tp);
                }
                Err(error) => self.failed(&error),
            }
        }
        self.file().await
    }

    /// Waits until all that was taken in is written.
    pub(crate) async fn settle(&mut self) {
        self.file().await;
    }

    /// The file, once it is written; `None` while there is none.
    async fn file(&mut self) -> Option<&mut CopyFile> {
        if let State::Writing(writing) = &mut self.state {
            match writing.await.map_err(anyhow::Error::from).flatten() {
                Ok(file) => self.state = State::Open(file),
                Err(error) => self.failed(&error),
            }
        }
        match &mut self.state {
            State::Open(file) => Some(file),
            _ => None,
        }
    }

    /// Says what went wrong, and goes on without for a while.
    fn failed(&mut self, error: &anyhow::Error) {
        tracing::warn!(
            "{}: no local copy, for {PAUSE:?} at least: {}; what Redis loses now is replayed from the log",
            self.tp,
            Causes(error.as_ref())
        );
        self.state = State::Closed(Instant::now() + PAUSE);
    }

    /// Takes back what was put into Redis in this spell of ownership, and throws the copy away: it is of another log.
    pub(crate) async fn renounce(&mut self, redis: &Redis, token: &str) {
        for key in std::mem::take(&mut self.restored) {
            let answer = redis.reset(&key, token).await;
            tracing::warn!(
                "{key}: what was put back from the local copy is of another log: emptied ({answer:?})"
            );
        }
        self.discard().await;
    }

    /// Throws the copy away: what it holds is of no use.
    pub(crate) async fn discard(&mut self) {
        if self.file().await.is_none() {
            return;
        }
        let closed = State::Closed(Instant::now());
        if let State::Open(file) = std::mem::replace(&mut self.state, closed)
            && let Err(error) = file.delete()
        {
            self.failed(&error);
        }
    }
}

/// What a copy has that the group doesn't, and what it lacks.
fn differences(copied: &Copied, group: &Group) -> (Vec<Name>, BTreeSet<Name>) {
    let stored: BTreeMap<Name, usize> = group.segments().collect();
    let has = |name: &Name, length| copied.segments.get(name).is_some_and(|&(_, copied)| copied == length);
    let lacks = stored.iter().filter(|&(name, &length)| !has(name, length)).map(|(name, _)| *name).collect();
    let deletes = copied.segments.keys().filter(|name| !stored.contains_key(name)).copied().collect();
    (deletes, lacks)
}
