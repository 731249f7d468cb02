//! What is kept of groups that were read, so that only what has changed is read again.
//!
//! A group has a fence, which every write changes: while it stands, so does what was read. A segment's number stands for
//! the same bytes as long as its group's incarnation lasts (see `Header::seq`), whatever Redis has lost meanwhile.

use super::group::{Group, Segment};
use shared_model::view::{self, Header};
use std::collections::HashMap;
use std::sync::Arc;

/// A group as Redis told it: the header's JSON, and its fields, of which the bytes may be left out.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) header: Vec<u8>,
    pub(super) fields: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A group that was read, its header too.
#[derive(Debug)]
pub(super) struct Held {
    /// The fence behind which it was read.
    pub(super) fence: String,
    /// Bytes of memory that it takes.
    pub(super) size: usize,
    pub(super) group: Arc<Group>,
}

impl Held {
    /// The number of its newest segment; 0: nothing is known of it.
    pub(super) fn newest(&self) -> u64 {
        self.group.header.as_ref().map_or(0, |header| header.seq)
    }
}

/// What became of what Redis told.
#[derive(Debug)]
pub(super) enum Taken {
    /// To be kept.
    Held(Held),
    /// Its header can't be read: nothing tells when it changes.
    Once(Arc<Group>),
    /// Bytes were left out that aren't held.
    Short,
}

/// Makes a group of what was told, with the segments that are held already.
pub(super) fn take(told: Told, before: Option<&Held>) -> Taken {
    let (header, length) = (Header::from_json(&told.header), told.header.len());
    let incarnation = |header: &Result<Header, _>| header.as_ref().map(|header| header.incarnation).ok();
    let same = |held: &&Held| incarnation(&held.group.header) == incarnation(&header);
    let before = before.filter(same).map(|held| &*held.group);
    let known: HashMap<_, _> = before
        .into_iter()
        .flat_map(|group| &group.segments)
        .map(|segment| ((segment.slice, segment.number), segment))
        .collect();
    let (mut segments, mut unknown) = (Vec::new(), Vec::new());
    for (field, bytes) in told.fields {
        let name = String::from_utf8_lossy(&field);
        match (view::parse_segment_field(&name), bytes) {
            (Some(named), bytes) => match (known.get(&named), bytes) {
                (Some(&held), _) => segments.push(held.clone()),
                (None, Some(bytes)) => segments.push(Arc::new(Segment::new(named.0, named.1, bytes))),
                (None, None) => return Taken::Short,
            },
            (None, _) => unknown.push(name.into_owned()),
        }
    }
    let fence = header.as_ref().map(Header::fence).ok();
    let group = Arc::new(Group::new(header, segments, unknown, before));
    let Some(fence) = fence else { return Taken::Once(group) };
    // A header in memory is no larger than its JSON and a kilobyte.
    let size = group.segments.iter().map(|segment| segment.size).sum::<usize>() + length + 1_024;
    Taken::Held(Held { fence, size, group })
}

/// The header of a group in which nothing is yet.
#[cfg(test)]
pub(super) fn header() -> Header {
    Header {
        v: view::HEADER_VERSION,
        incarnation: 1,
        to: 0,
        clock: 0,
        trusted: Default::default(),
        watermark: None,
        panes_from: None,
        pane_holes: Vec::new(),
        cuts: vec![(0, 0)],
        metrics: Default::default(),
        seq: 0,
        gaps: Vec::new(),
        forgotten: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared_model::view::Slice;
    use std::collections::BTreeMap;

    /// What happens to a group in Redis.
    #[derive(Debug, Clone)]
    enum Event {
        /// A write adds segments to some slices, in whose place those there may go.
        Write { slices: Vec<i64>, merge: bool },
        /// Another owner begins.
        Claim { leap: u32 },
        /// It is built anew.
        Rebuild,
        /// Redis keeps what there is.
        Snapshot,
        /// Redis is rolled back to what it kept; an owner begins.
        RollBack { leap: u32 },
        /// Somebody reads it.
        Read,
    }

    fn event() -> impl Strategy<Value = Event> {
        let slices = proptest::collection::vec(0..4i64, 1..3);
        prop_oneof![
            4 => (slices, any::<bool>()).prop_map(|(slices, merge)| Event::Write { slices, merge }),
            1 => any::<u32>().prop_map(|leap| Event::Claim { leap }),
            1 => Just(Event::Rebuild),
            1 => Just(Event::Snapshot),
            1 => any::<u32>().prop_map(|leap| Event::RollBack { leap }),
            4 => Just(Event::Read),
        ]
    }

    #[derive(Debug, Clone)]
    struct Stored {
        header: Header,
        segments: BTreeMap<(Slice, u64), Vec<u8>>,
    }

    impl Stored {
        fn told(&self, known: u64) -> Told {
            let field = |(&(slice, number), bytes): (&(Slice, u64), &Vec<u8>)| {
                let name = view::segment_field(slice, number).into_bytes();
                (name, (number > known).then(|| bytes.clone()))
            };
            Told {
                header: self.header.to_json().into_bytes(),
                fields: self.segments.iter().map(field).collect(),
            }
        }
    }

    /// Reads on as the realtime view does.
    fn read(stored: &Stored, held: &mut Option<Held>) {
        if held.as_ref().is_some_and(|held| held.fence == stored.header.fence()) {
            return;
        }
        let before = held.take();
        let known = before.as_ref().map_or(0, Held::newest);
        let taken = match take(stored.told(known), before.as_ref()) {
            Taken::Short => take(stored.told(0), None),
            taken => taken,
        };
        let Taken::Held(now) = taken else { panic!("{taken:?}") };
        *held = Some(now);
    }

    proptest! {
        #[test]
        fn what_is_held_is_what_is_there(events in proptest::collection::vec(event(), 1..60)) {
            let mut stored = Stored { header: header(), segments: BTreeMap::new() };
            let (mut kept, mut held) = (stored.clone(), None);
            let (mut leap, mut writes, mut incarnation) = (0u64, 0u32, 1);
            for event in events {
                match event {
                    Event::Write { slices, merge } => {
                        stored.header.seq += 1 + std::mem::take(&mut leap);
                        writes += 1;
                        for slice in slices.into_iter().map(Slice::Pane) {
                            if merge {
                                stored.segments.retain(|(of, _), _| *of != slice);
                            }
                            let bytes = writes.to_be_bytes().to_vec();
                            stored.segments.insert((slice, stored.header.seq), bytes);
                        }
                    }
                    Event::Claim { leap: by } => leap = by.into(),
                    Event::Rebuild => {
                        incarnation += 1;
                        stored = Stored { header: Header { incarnation, ..header() }, segments: BTreeMap::new() };
                        leap = 0;
                    }
                    Event::Snapshot => kept = stored.clone(),
                    Event::RollBack { leap: by } => (stored, leap) = (kept.clone(), by.into()),
                    Event::Read => {
                        read(&stored, &mut held);
                        let group = &held.as_ref().expect("read").group;
                        let found: BTreeMap<_, _> = group.segments.iter().map(|segment| {
                            ((segment.slice, segment.number), segment.bytes().to_vec())
                        }).collect();
                        prop_assert_eq!(&found, &stored.segments);
                        prop_assert_eq!(group.header.as_ref(), Ok(&stored.header));
                    }
                }
            }
        }
    }

    #[test]
    fn a_header_that_cannot_be_read_is_not_kept() {
        assert!(matches!(take(Told { header: b"{".to_vec(), fields: Vec::new() }, None), Taken::Once(_)));
    }
}
