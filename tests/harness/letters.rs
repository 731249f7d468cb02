//! Dead letters as they lie in their topic.

use local::probe::Probe;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use std::collections::BTreeMap;

/// A dead letter as it lies in its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The reason's code.
    pub reason: String,
    /// Where its record lies.
    pub position: String,
    /// The record's bytes, or what is kept of them.
    pub value: Option<Vec<u8>>,
    /// How many bytes the record had, where not all are kept.
    pub truncated_from: Option<usize>,
}

/// All dead letters of a topic, by key, and the keys of the marks of replays.
pub fn letters(probe: &Probe, topic: &str) -> (BTreeMap<String, Letter>, usize) {
    let (mut found, mut marks) = (BTreeMap::new(), 0);
    let take = |message: &BorrowedMessage<'_>| {
        let headers = message.headers().expect("headers");
        let header = |name: &str| {
            let value = headers.iter().find(|header| header.key == name)?.value?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let key = String::from_utf8_lossy(message.key().expect("a key")).into_owned();
        if header("replayed_as").is_some() {
            marks += 1;
            return;
        }
        let part = |name: &str| header(name).unwrap_or_else(|| panic!("{key} has no header {name}"));
        let position = format!("{}/{}/{}", part("topic"), part("partition"), part("offset"));
        let value = message.payload().map(<[u8]>::to_vec);
        let truncated_from = header("truncated_from").map(|size| size.parse().expect("a size"));
        let letter = Letter { reason: part("reason"), position, value, truncated_from };
        assert_eq!(letter.position, key);
        if let Some(copy) = found.insert(key.clone(), letter.clone()) {
            // Only the reason may be another, where it was read again under a mended catalog.
            assert!(copy.value == letter.value, "the bytes of copies of {key} differ");
        }
    };
    probe.read_topic(&format!("{topic}.dead-letters"), take).expect("the dead letters");
    (found, marks)
}
