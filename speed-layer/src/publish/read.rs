//! Follows what the groups hold of panes: what has come since the last look, and what is there no more.
//!
//! A segment's name stands for the same bytes for ever, so each is fetched once. Segments are replaced by their merge in
//! one step: what is gone and what has come instead is handed on together, or neither. Where nothing of a pane is left, it
//! has expired: what was read of it stays, until no window asks for it. What this worker has stored itself comes by the feed,
//! and only the fence is looked at then.

use super::feed::{Feed, Stored};
use crate::redis::Redis;
use ::redis::cmd;
use anyhow::{Context as _, bail};
use futures::{StreamExt as _, stream};
use shared_model::offsets::TopicPartition;
use shared_model::time::Millis;
use shared_model::view::{self, Slice};
use std::collections::{BTreeMap, BTreeSet};

/// How many groups are read at once: to wait for an answer takes longer than to give it, where all processors are busy.
const ABREAST: usize = 64;
/// How often a group is looked at again that changes while it is read.
const TRIES: usize = 20;

/// A pane's start and a segment's number.
pub(crate) type Segment = (Millis, u64);

/// What is new of a group.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// The group's number.
    pub(crate) group: usize,
    /// The partition's.
    pub(crate) source: u32,
    /// Segments that are there no more.
    pub(crate) gone: Vec<Segment>,
    /// Segments that are.
    pub(crate) come: Vec<(Segment, Vec<u8>)>,
}

/// What is known of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// The fence at the last look, or since the last write that followed.
    fence: Vec<u8>,
    read: BTreeSet<Segment>,
    /// Of what was read, what is there no more, nor is anything of its pane: until something is.
    expired: BTreeSet<Segment>,
    /// What is there and wasn't asked for yet.
    unread: BTreeSet<Segment>,
}

impl Known {
    /// What is known after a look that found these fields of panes, and what of what was read is gone. Panes that start
    /// before `from` are of no interest.
    fn after(&self, fence: &[u8], fields: &[Vec<u8>], from: Millis) -> (Known, Vec<Segment>) {
        let segment = |field: &Vec<u8>| match view::parse_segment_field(std::str::from_utf8(field).ok()?)? {
            (Slice::Pane(start), seq) => Some((start, seq)),
            (Slice::Epoch(_), _) => None,
        };
        let there: BTreeSet<Segment> = fields.iter().filter_map(segment).collect();
        let mut known = Known {
            fence: fence.to_vec(),
            read: self.read.clone(),
            expired: &self.read - &there,
            unread: &there - &self.read,
        };
        let anew = incarnation(fence) != incarnation(&self.fence);
        let gone = known.settle(anew, from);
        (known, gone)
    }

    /// Takes in a write that follows what is known, as a look at what it left would. Gives what of what was read is gone.
    fn follow(&mut self, fence: &str, come: &[Segment], deleted: &[Segment], from: Millis) -> Vec<Segment> {
        self.fence = fence.as_bytes().to_vec();
        self.unread.extend(come);
        for segment in deleted {
            if !self.unread.remove(segment) && self.read.contains(segment) {
                self.expired.insert(*segment);
            }
        }
        self.settle(false, from)
    }

    /// Lets go of what is gone, and gives it: of what was read and is there no more, that of whose pane something is, or all
    /// of it where the group was built `anew`. Nothing is kept of panes that start before `from`.
    fn settle(&mut self, anew: bool, from: Millis) -> Vec<Segment> {
        let stands = |pane: Millis| {
            let of_it = (pane, 0)..=(pane, u64::MAX);
            self.unread.range(of_it.clone()).next().is_some()
                || self.read.range(of_it).any(|segment| !self.expired.contains(segment))
        };
        let is_gone = |segment: &Segment| anew || stands(segment.0);
        let gone: Vec<Segment> = self.expired.iter().copied().filter(is_gone).collect();
        for segment in &gone {
            self.read.remove(segment);
            self.expired.remove(segment);
        }
        for segments in [&mut self.read, &mut self.expired, &mut self.unread] {
            *segments = segments.split_off(&(from, 0));
        }
        gone
    }
}

/// What a fence says of the group's incarnation.
fn incarnation(fence: &[u8]) -> &[u8] {
    fence.split(|byte| *byte == b':').next().unwrap_or_default()
}

/// One group of one partition.
struct Followed {
    group: usize,
    source: u32,
    key: String,
    known: Known,
    /// What the feed has brought of what is unread: packed bytes of panes that are still to be asked for.
    held: BTreeMap<Segment, Vec<u8>>,
    /// What is gone and wasn't handed on yet.
    gone: Vec<Segment>,
}

impl Followed {
    /// Takes in what is new of the panes that start at or after `from` and before `to`.
    async fn read(&mut self, redis: &Redis, feed: &Feed, from: Millis, to: Millis) -> anyhow::Result<News> {
        let (group, source) = (self.group, self.source);
        feed.take(&self.key).into_iter().for_each(|stored| self.follow(stored, from));
        let mut seen = self.known.fence.clone();
        for _ in 0..TRIES {
            let mut look = cmd("FCALL_RO");
            look.arg("tm1_panes").arg(1).arg(&self.key).arg(&seen[..]);
            let found: Vec<Vec<u8>> =
                redis.ask(&look).await.with_context(|| format!("looking at {}", self.key))?;
            let Some((fence, fields)) = found.split_first() else {
                // Without a fence it is not there, or being put back: what was read of it stays.
                return Ok(News { group, source, ..News::default() });
            };
            let (news, gone) = match *fence == seen {
                true => (None, Vec::new()),
                false => {
                    let (known, gone) = self.known.after(fence, fields, from);
                    (Some(known), gone)
                }
            };
            let known = news.as_ref().unwrap_or(&self.known);
            let wanted: Vec<Segment> = known.unread.range(..(to, 0)).copied().collect();
            let lacking = wanted.iter().filter(|segment| !self.held.contains_key(*segment)).copied();
            let lacking: Vec<Segment> = lacking.collect();
            let Some(fetched) = fetch(redis, &self.key, &lacking).await? else {
                // One was merged since the look: what it became is looked for.
                seen.clear();
                continue;
            };
            if let Some(known) = news {
                self.known = known;
            }
            for segment in &wanted {
                self.known.unread.remove(segment);
            }
            self.known.read.extend(&wanted);
            let (mut all_gone, mut fetched) = (std::mem::take(&mut self.gone), fetched.into_iter());
            all_gone.extend(gone);
            let bytes = |segment: Segment| {
                let bytes = self.held.remove(&segment).or_else(|| fetched.next())?;
                Some((segment, bytes))
            };
            let come = wanted.into_iter().filter_map(bytes).collect();
            self.held.retain(|segment, _| self.known.unread.contains(segment));
            return Ok(News { group, source, gone: all_gone, come });
        }
        bail!("{} changes whenever it is read", self.key)
    }

    /// Takes in what was stored, if it follows what is known. What was looked at since is known, and what comes behind a
    /// write that was missed isn't.
    fn follow(&mut self, stored: Stored, from: Millis) {
        let Stored { expected, fence, come, gone } = stored;
        if !expected.is_empty() && expected.as_bytes() == self.known.fence {
            let names: Vec<Segment> = come.iter().map(|(segment, _)| *segment).collect();
            self.gone.append(&mut self.known.follow(&fence, &names, &gone, from));
            self.held.extend(come);
            gone.iter().for_each(|segment| _ = self.held.remove(segment));
        }
    }
}

/// The bytes of segments; `None` where one of them is gone.
async fn fetch(redis: &Redis, key: &str, wanted: &[Segment]) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
    if wanted.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut call = cmd("HMGET");
    call.arg(key);
    for &(pane, seq) in wanted {
        call.arg(view::segment_field(Slice::Pane(pane), seq));
    }
    let found: Vec<Option<Vec<u8>>> = redis.ask(&call).await.with_context(|| format!("reading {key}"))?;
    Ok(found.into_iter().collect())
}

/// All groups that are followed.
pub(crate) struct Reader {
    redis: Redis,
    feed: Feed,
    /// Of each partition.
    groups: u32,
    sources: BTreeMap<TopicPartition, u32>,
    followed: Vec<Followed>,
}

impl Reader {
    pub(crate) fn new(redis: Redis, feed: Feed, groups: u32) -> Reader {
        Reader { redis, feed, groups, sources: BTreeMap::new(), followed: Vec::new() }
    }

    /// Follows the groups of a partition from now on, if they aren't yet.
    pub(crate) fn follow(&mut self, tp: TopicPartition) {
        let source = self.sources.len() as u32;
        if self.sources.contains_key(&tp) {
            return;
        }
        for group in 0..self.groups {
            let key = view::group_key(&tp, group, self.groups);
            self.feed.follow(&key);
            let (known, held, gone) = Default::default();
            self.followed.push(Followed { group: group as usize, source, key, known, held, gone });
        }
        // All partitions' groups of a number one after the other, since their cells go to the same windows.
        self.followed.sort_by_key(|followed| (followed.group, followed.source));
        self.sources.insert(tp, source);
    }

    /// Hands on what is new of the panes that start at or after `from` and before `to`; neither is ever before the last
    /// time's. After an error nothing is known of what was handed on.
    pub(crate) async fn read(
        &mut self,
        from: Millis,
        to: Millis,
        mut each: impl FnMut(News) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let reads = std::mem::take(&mut self.followed).into_iter().map(|mut followed| {
            let (redis, feed) = (self.redis.clone(), self.feed.clone());
            async move {
                let news = followed.read(&redis, &feed, from, to).await;
                (followed, news)
            }
        });
        let mut reads = stream::iter(reads).buffered(ABREAST);
        let mut followed = Vec::new();
        while let Some((group, news)) = reads.next().await {
            each(news?)?;
            followed.push(group);
            // Taking in is work: let others have their turn.
            tokio::task::yield_now().await;
        }
        drop(reads);
        self.followed = followed;
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segments(segments: &[Segment]) -> BTreeSet<Segment> {
        segments.iter().copied().collect()
    }

    #[test]
    fn what_was_merged_is_replaced_and_what_has_expired_stays() {
        let check = |before: &[Segment],
                     fence: &str,
                     fields: &[&str],
                     gone: &[Segment],
                     unread: &[Segment]| {
            let known = Known { fence: b"a:5:7".to_vec(), read: segments(before), ..Known::default() };
            let fields: Vec<Vec<u8>> = fields.iter().map(|field| field.as_bytes().to_vec()).collect();
            let (after, found) = known.after(fence.as_bytes(), &fields, 10);
            assert_eq!((found.as_slice(), &after.unread), (gone, &segments(unread)), "{fence} {fields:?}");
            let stay = before.iter().filter(|segment| !gone.contains(segment) && segment.0 >= 10);
            assert_eq!(after.read, stay.copied().collect::<BTreeSet<_>>());
        };
        check(&[], "a:9:8", &["p10:8", "p0:3", "h", "p20:8"], &[], &[(10, 8), (20, 8)]);
        check(&[(10, 1), (10, 2)], "a:9:8", &["p10:1", "p10:2", "p10:8"], &[], &[(10, 8)]);
        // Two became one.
        check(&[(10, 1), (10, 2)], "a:9:8", &["p10:8"], &[(10, 1), (10, 2)], &[(10, 8)]);
        check(&[(10, 1), (10, 2), (20, 2)], "a:9:8", &["p10:2", "p20:2"], &[(10, 1)], &[]);
        // Of the pane nothing is left.
        check(&[(10, 1), (20, 1)], "a:9:8", &["p20:1"], &[], &[]);
        check(&[(0, 1), (20, 1)], "a:9:8", &["p20:1"], &[], &[]);
        // Built anew.
        check(&[(10, 1), (20, 1)], "b:2:90", &["p20:90"], &[(10, 1), (20, 1)], &[(20, 90)]);
    }

    proptest! {
        /// In each write segments come of some panes, expired ones too, one pane's may become one, and the oldest expire;
        /// then some are read.
        #[test]
        fn a_write_that_follows_is_taken_in_as_by_a_look(
            writes in prop::collection::vec(
                (prop::collection::btree_set(-2i64..6, 0..4), prop::option::of(0i64..6), 0i64..3, 0i64..7),
                1..20,
            ),
        ) {
            let known = Known { fence: b"a:0:0".to_vec(), ..Known::default() };
            let (mut one, mut other) = (known.clone(), known);
            let (mut there, mut oldest, mut to) = (BTreeSet::<Segment>::new(), 0, 0);
            for ((panes, merged, expire, read), seq) in writes.into_iter().zip(1u64..) {
                oldest += expire;
                to = (oldest + read).max(to);
                let mut come: BTreeSet<Segment> = panes.into_iter().map(|pane| (oldest + pane, seq)).collect();
                let merges = |pane: Millis| merged.is_some_and(|merged| pane == oldest + merged);
                let is_gone = |&(pane, _): &Segment| pane < oldest || merges(pane);
                let gone: Vec<Segment> = there.iter().copied().filter(is_gone).collect();
                come.extend(gone.iter().filter(|(pane, _)| *pane >= oldest).map(|(pane, _)| (*pane, seq)));
                there.retain(|segment| !gone.contains(segment));
                there.extend(&come);
                let field = |&(pane, seq): &Segment| view::segment_field(Slice::Pane(pane), seq).into_bytes();
                let fields: Vec<Vec<u8>> = there.iter().map(field).collect();
                let (fence, come) = (format!("a:0:{seq}"), come.into_iter().collect::<Vec<Segment>>());
                let followed = one.follow(&fence, &come, &gone, oldest - 2);
                let (looked, found) = other.after(fence.as_bytes(), &fields, oldest - 2);
                other = looked;
                prop_assert_eq!(segments(&followed), segments(&found));
                prop_assert_eq!(&one, &other);
                for known in [&mut one, &mut other] {
                    let read: Vec<Segment> = known.unread.range(..(to, 0)).copied().collect();
                    read.iter().for_each(|segment| _ = known.unread.remove(segment));
                    known.read.extend(&read);
                }
            }
        }
    }

    /// A write whose reply was lost was read; Redis has lost it since, and is sent it again.
    #[test]
    fn what_was_rolled_back_comes_again_in_place_of_itself() {
        let of = segments(&[(10, 2)]);
        let fence = b"a:1:1".to_vec();
        let mut known = Known { fence, read: of.clone(), expired: of.clone(), ..Known::default() };
        assert_eq!(known.follow("a:2:2", &[(10, 2)], &[], 0), [(10, 2)]);
        assert_eq!(known, Known { fence: b"a:2:2".to_vec(), unread: of, ..Known::default() });
    }

    #[test]
    fn what_is_behind_a_missed_write_is_not_followed() {
        let mut group = Followed {
            group: 0,
            source: 0,
            key: String::new(),
            known: Known { fence: b"a:1:1".to_vec(), ..Known::default() },
            held: BTreeMap::new(),
            gone: Vec::new(),
        };
        let mut write = |expected: &str, fence: &str, segment: Segment| {
            let (expected, fence) = (expected.to_owned(), fence.to_owned());
            group.follow(Stored { expected, fence, come: vec![(segment, vec![1])], gone: Vec::new() }, 0);
            (group.known.fence.clone(), group.held.keys().copied().collect::<Vec<Segment>>())
        };
        // Of before the look, after it, and after another that didn't come; and what begins a group anew.
        assert_eq!(write("a:0:0", "a:1:1", (0, 1)), (b"a:1:1".to_vec(), vec![]));
        assert_eq!(write("a:1:1", "a:2:2", (0, 2)), (b"a:2:2".to_vec(), vec![(0, 2)]));
        assert_eq!(write("a:3:3", "a:4:4", (0, 4)), (b"a:2:2".to_vec(), vec![(0, 2)]));
        assert_eq!(write("", "b:0:9", (0, 9)), (b"a:2:2".to_vec(), vec![(0, 2)]));
    }
}
