//! What was told of a look: its newest version, and the changes that led there.
//!
//! Versions are numbered without a gap. Whoever has one of the last is given the changes since, one by one; anyone else,
//! a client that is too slow too, is given the newest whole. So all that waits for a client is a number.

use super::patch;
use axum::body::Bytes;
use serde_json::Value as Json;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

/// The most changes that are kept.
const CHANGES: usize = 256;
/// How many bytes of changes are kept at least: of a larger reply as many as it has itself, since beyond that it is the
/// shorter way.
const BYTES: usize = 64 << 10;

/// Names one version of what is told, for as long as its hub lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    /// Which hub's: drawn at random.
    pub(super) incarnation: u64,
    /// From 1.
    pub(super) number: u64,
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        let (incarnation, number) = text.split_once('-')?;
        let version =
            Version { incarnation: u64::from_str_radix(incarnation, 16).ok()?, number: number.parse().ok()? };
        (version.to_string() == text).then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.incarnation, self.number)
    }
}

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The whole reply.
    Snapshot,
    /// A JSON Patch of the version before.
    Change,
    /// Why there is no reply at the moment, as HTTP says it. What comes next is a snapshot.
    Error,
}

impl Kind {
    /// As it is written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Snapshot => "snapshot",
            Kind::Change => "change",
            Kind::Error => "error",
        }
    }
}

/// One event, written once for all whom it is given to.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) version: Version,
    /// As server-sent events have it.
    pub(super) frame: Bytes,
    data: Range<usize>,
}

impl Event {
    /// An event of data in JSON, on one line.
    fn new(kind: Kind, version: Version, data: &str) -> Event {
        let head = format!("id: {version}\nevent: {}\ndata: ", kind.name());
        let range = head.len()..head.len() + data.len();
        Event { kind, version, frame: [&head, data, "\n\n"].concat().into(), data: range }
    }

    /// Its data, in JSON.
    pub(super) fn data(&self) -> &str {
        std::str::from_utf8(&self.frame[self.data.clone()]).unwrap_or_default()
    }
}

/// What a look found.
#[derive(Debug)]
pub(super) enum Found {
    /// A reply, as text and as a value.
    Reply(String, Json),
    /// An error's reply.
    Error(String),
}

/// From look to look: makes of what was found what is to be told.
#[derive(Debug)]
pub(super) struct Teller {
    incarnation: u64,
    number: u64,
    /// The newest version whole, and the value of a reply.
    last: Option<(Event, Json)>,
}

/// A version, as it is told.
#[derive(Debug)]
pub(super) struct News {
    /// To who has the version before, where that is the shorter way.
    pub(super) change: Option<Event>,
    /// To all others.
    pub(super) whole: Event,
}

impl Teller {
    pub(super) fn new(incarnation: u64) -> Teller {
        Teller { incarnation, number: 0, last: None }
    }

    /// What is new since the last look; `None`: nothing.
    pub(super) fn tell(&mut self, found: Found) -> Option<News> {
        let (kind, text, value) = match found {
            Found::Reply(text, value) => (Kind::Snapshot, text, value),
            Found::Error(text) => (Kind::Error, text, Json::Null),
        };
        let last = self.last.as_ref();
        if last.is_some_and(|(event, _)| event.kind == kind && event.data() == text) {
            return None;
        }
        let patched = last.filter(|(event, _)| event.kind == Kind::Snapshot && kind == Kind::Snapshot);
        let patch =
            patched.and_then(|(_, before)| serde_json::to_string(&patch::between(before, &value)).ok());
        self.number += 1;
        let version = Version { incarnation: self.incarnation, number: self.number };
        let shorter = patch.filter(|patch| patch.len() < text.len());
        let change = shorter.map(|patch| Event::new(Kind::Change, version, &patch));
        let whole = Event::new(kind, version, &text);
        self.last = Some((whole.clone(), value));
        Some(News { change, whole })
    }
}

/// The newest version, and the changes that led there.
#[derive(Debug)]
pub(super) struct History {
    incarnation: u64,
    whole: Option<Event>,
    /// Each of the version after the one before it, the last one of the newest.
    changes: VecDeque<Event>,
    /// Of the changes' frames.
    bytes: usize,
    /// Whether the newest version was looked at since somebody came.
    fresh: bool,
}

impl History {
    pub(super) fn new(incarnation: u64) -> History {
        History { incarnation, whole: None, changes: VecDeque::new(), bytes: 0, fresh: false }
    }

    /// Adds a version.
    pub(super) fn add(&mut self, News { change, whole }: News) {
        match change {
            Some(change) => {
                self.bytes += change.frame.len();
                self.changes.push_back(change);
            }
            None => {
                self.changes.clear();
                self.bytes = 0;
            }
        }
        let most = whole.frame.len().max(BYTES);
        while self.changes.len() > CHANGES || self.bytes > most {
            self.bytes -= self.changes.pop_front().map_or(0, |oldest| oldest.frame.len());
        }
        self.whole = Some(whole);
        self.fresh = true;
    }

    /// The newest version still holds; whether that wasn't known.
    pub(super) fn confirm(&mut self) -> bool {
        !std::mem::replace(&mut self.fresh, true)
    }

    /// Nobody knows whether the newest version holds: none is told until a look has said so.
    pub(super) fn doubt(&mut self) {
        self.fresh = false;
    }

    /// The number of a version that changes can be given from; `None`: not of this hub, or too old.
    pub(super) fn number_of(&self, version: &str) -> Option<u64> {
        let Version { incarnation, number } = Version::parse(version)?;
        let newest = self.whole.as_ref()?.version.number;
        let oldest = self.changes.front().map_or(newest, |oldest| oldest.version.number - 1);
        (incarnation == self.incarnation && (oldest..=newest).contains(&number)).then_some(number)
    }

    /// What follows the version of a number, or anything; `None`: nothing yet.
    pub(super) fn after(&self, number: Option<u64>) -> Option<Event> {
        let whole = self.whole.as_ref().filter(|_| self.fresh)?;
        let newest = whole.version.number;
        let Some(number) = number else { return Some(whole.clone()) };
        if number == newest {
            return None;
        }
        let back = usize::try_from(newest.checked_sub(number)?).ok()?;
        let next = self.changes.len().checked_sub(back).and_then(|place| self.changes.get(place));
        Some(next.unwrap_or(whole).clone())
    }

    /// How many bytes of frames it holds.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.bytes + self.whole.as_ref().map_or(0, |whole| whole.frame.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn found(value: &Json) -> Found {
        Found::Reply(value.to_string(), value.clone())
    }

    /// What a client makes of events.
    #[derive(Debug, Default)]
    struct Client {
        version: Option<Version>,
        state: Json,
    }

    impl Client {
        fn take(&mut self, event: &Event) {
            let data: Json = serde_json::from_str(event.data()).unwrap();
            match event.kind {
                Kind::Change => {
                    assert_eq!(event.version.number, self.version.unwrap().number + 1);
                    let patch: json_patch::Patch = serde_json::from_value(data).unwrap();
                    json_patch::patch(&mut self.state, &patch).unwrap();
                }
                Kind::Snapshot | Kind::Error => self.state = data,
            }
            self.version = Some(event.version);
        }

        fn catch_up(&mut self, history: &History) {
            while let Some(event) = history.after(self.version.map(|version| version.number)) {
                self.take(&event);
            }
        }
    }

    /// A reply whose values change; whole numbers, so that a text stands for one value.
    fn reply() -> impl Strategy<Value = Option<Json>> {
        let rows = proptest::collection::vec(0..4i64, 0..6);
        let reply = (0..5i64, rows).prop_map(|(value, rows)| {
            json!({ "value": value, "rows": rows, "filler": "so that a patch is mostly the shorter way" })
        });
        proptest::option::weighted(0.9, reply)
    }

    proptest! {
        /// Clients that read always, now and then, and that come back by the version that they have: each has, once it has
        /// read all, the newest reply.
        #[test]
        fn a_snapshot_and_the_changes_in_order_are_the_reply(
            steps in proptest::collection::vec((reply(), any::<bool>()), 1..40),
        ) {
            let (mut teller, mut history) = (Teller::new(7), History::new(7));
            let (mut eager, mut lazy) = (Client::default(), Client::default());
            for (reply, reads) in steps {
                let expected = match &reply {
                    Some(reply) => reply.clone(),
                    None => json!({ "error": "no reply" }),
                };
                let found = match &reply {
                    Some(reply) => found(reply),
                    None => Found::Error(expected.to_string()),
                };
                let before = eager.version;
                match teller.tell(found) {
                    Some(news) => history.add(news),
                    None => prop_assert!(eager.state == expected && !history.confirm()),
                }
                eager.catch_up(&history);
                prop_assert_eq!(&eager.state, &expected);
                prop_assert!(eager.version.unwrap().number <= before.map_or(0, |before| before.number) + 1);
                if reads {
                    let named = lazy.version.and_then(|version| history.number_of(&version.to_string()));
                    lazy.version = lazy.version.filter(|version| named == Some(version.number));
                    lazy.catch_up(&history);
                    prop_assert_eq!(&lazy.state, &expected);
                    prop_assert_eq!(lazy.version, eager.version);
                }
            }
        }
    }

    fn value(n: u64) -> Json {
        json!({ "value": n, "filler": "x".repeat(100) })
    }

    fn told(upto: u64) -> History {
        let (mut teller, mut history) = (Teller::new(7), History::new(7));
        (1..=upto).for_each(|n| history.add(teller.tell(found(&value(n))).unwrap()));
        history
    }

    #[test]
    fn the_last_changes_are_kept_and_who_is_farther_back_gets_the_newest_whole() {
        let last = 1_000;
        let history = told(last);
        let kept = CHANGES as u64;
        assert_eq!(history.after(Some(last)).map(|event| event.version), None);
        for (number, kind, next) in [
            (last - 1, Kind::Change, last),
            (last - kept, Kind::Change, last - kept + 1),
            (last - kept - 1, Kind::Snapshot, last),
            (1, Kind::Snapshot, last),
        ] {
            let event = history.after(Some(number)).unwrap();
            assert_eq!((event.kind, event.version.number), (kind, next), "after {number}");
            let version = Version { incarnation: 7, number };
            let resumed = history.number_of(&version.to_string());
            assert_eq!(resumed, (kind == Kind::Change).then_some(number), "{version}");
        }
        let event = history.after(None).unwrap();
        assert_eq!((event.kind, event.data()), (Kind::Snapshot, &*value(last).to_string()));
        for strange in [
            "",
            "7",
            "7-999",
            "0000000000000007-01000",
            "0000000000000008-1000",
            "0000000000000007-1001",
            "-",
        ] {
            assert_eq!(history.number_of(strange), None, "{strange}");
        }
    }

    #[test]
    fn what_is_kept_has_a_bound_in_bytes_whatever_the_replies_are() {
        let (mut teller, mut history) = (Teller::new(7), History::new(7));
        for n in 0..600u64 {
            // Half of it changes each time.
            let reply = json!({ "still": "x".repeat(10_000), "moves": format!("{n:09000}") });
            history.add(teller.tell(found(&reply)).unwrap());
            let whole = reply.to_string().len() + 200;
            assert!(history.size() <= whole + whole.max(BYTES), "{} bytes", history.size());
        }
        assert!(history.changes.len() > 3);
    }

    #[test]
    fn a_patch_that_is_longer_than_the_reply_is_not_told() {
        let (mut teller, mut history) = (Teller::new(7), History::new(7));
        history.add(teller.tell(found(&json!([1, 2, 3]))).unwrap());
        history.add(teller.tell(found(&json!([4, 5, 6]))).unwrap());
        let event = history.after(Some(1)).unwrap();
        assert_eq!((event.kind, event.data()), (Kind::Snapshot, "[4,5,6]"));
    }

    #[test]
    fn nothing_is_told_of_what_nobody_has_looked_at_since_it_was_in_doubt() {
        let mut history = told(3);
        history.doubt();
        assert!(history.after(None).is_none() && history.after(Some(2)).is_none());
        // What a client names is still known.
        assert_eq!(history.number_of("0000000000000007-2"), Some(2));
        assert!(history.confirm() && !history.confirm());
        assert_eq!(history.after(Some(2)).unwrap().kind, Kind::Change);
    }

    #[test]
    fn a_frame_is_a_server_sent_event() {
        let event = told(1).after(None).unwrap();
        let frame = std::str::from_utf8(&event.frame).unwrap();
        assert_eq!(frame, format!("id: 0000000000000007-1\nevent: snapshot\ndata: {}\n\n", value(1)));
        assert_eq!(serde_json::from_str::<Json>(event.data()).unwrap(), value(1));
    }
}
