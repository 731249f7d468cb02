//! Redis in memory: what the function library of `flush.lua` does, call by call.
//!
//! A call happens whole or not at all. It is a value, so that a test can lose it, repeat it or let it come late.

use crate::group::Write;
use shared_model::view::{self, FENCE_FIELD, HEADER_FIELD, Header, Mark, OWNER_FIELD, Slice};
use std::collections::BTreeMap;

/// One call, as the worker makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `tm1_claim`.
    Claim {
        /// The group.
        key: String,
        /// The new owner.
        token: String,
    },
    /// `tm1_reset`.
    Reset {
        /// The group.
        key: String,
        /// The owner.
        token: String,
    },
    /// `tm1_flush`; without fields to store, `tm1_trim` too.
    Flush {
        /// The group.
        key: String,
        /// The owner.
        token: String,
        /// The fence that must be stored; empty: none.
        expected: String,
        /// The fence after it.
        fence: String,
        /// The header after it.
        header: String,
        /// Fields to store.
        fields: Vec<(String, Vec<u8>)>,
        /// Fields to delete.
        deletes: Vec<String>,
    },
    /// `HMGET` of segments.
    Segments {
        /// The group.
        key: String,
        /// Their fields.
        fields: Vec<String>,
    },
    /// `HSET` of a partition's mark.
    Mark {
        /// The partition.
        partition: String,
        /// Its mark.
        mark: Mark,
    },
}

/// What Redis says to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A claim's: header, fence, and the segments' fields with their lengths.
    Claimed(Option<Vec<u8>>, Option<String>, Vec<(String, usize)>),
    /// What a guarded write came to.
    Said(&'static str),
    /// Values; `None` where one isn't there.
    Values(Option<Vec<Vec<u8>>>),
}

impl Call {
    /// The group that it concerns.
    pub fn key(&self) -> Option<&str> {
        match self {
            Call::Claim { key, .. }
            | Call::Reset { key, .. }
            | Call::Flush { key, .. }
            | Call::Segments { key, .. } => Some(key),
            Call::Mark { .. } => None,
        }
    }

    /// The call that stores a write.
    pub(crate) fn flush(key: &str, token: &str, write: &Write) -> Call {
        let named = |(slice, bytes): &(Slice, Vec<u8>)| {
            (view::segment_field(*slice, write.header.seq), bytes.clone())
        };
        Call::Flush {
            key: key.to_owned(),
            token: token.to_owned(),
            expected: write.expected.clone(),
            fence: write.header.fence(),
            header: write.header.to_json(),
            fields: write.segments.iter().map(named).collect(),
            deletes: write.deletes.iter().map(|&(slice, seq)| view::segment_field(slice, seq)).collect(),
        }
    }

    /// The call that looks whether a group still is as it was stored, and writes nothing.
    pub(crate) fn probe(key: &str, token: &str, header: &Header) -> Call {
        Call::Flush {
            key: key.to_owned(),
            token: token.to_owned(),
            expected: "lost".to_owned(),
            fence: header.fence(),
            header: String::new(),
            fields: Vec::new(),
            deletes: Vec::new(),
        }
    }
}

/// A Redis; clones are snapshots of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryRedis {
    groups: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    marks: BTreeMap<String, Mark>,
}

impl MemoryRedis {
    /// Does what a call says.
    pub fn call(&mut self, call: &Call) -> Reply {
        match call {
            Call::Claim { key, token } => self.claim(key, token),
            Call::Reset { key, token } => Reply::Said(match self.refusal(key, token) {
                Some(refusal) => refusal,
                None => {
                    self.put(key, [(OWNER_FIELD.to_owned(), token.clone().into_bytes())].into());
                    "OK"
                }
            }),
            Call::Flush { key, token, expected, fence, header, fields, deletes } => {
                if let Some(refusal) = self.refusal(key, token) {
                    return Reply::Said(refusal);
                }
                let group = self.groups.entry(key.clone()).or_default();
                let stored = group.get(FENCE_FIELD).map_or(&b""[..], |stored| stored);
                if stored == fence.as_bytes() {
                    return Reply::Said("DONE");
                }
                if stored != expected.as_bytes() {
                    return Reply::Said("FENCE");
                }
                group.extend(fields.iter().cloned());
                deletes.iter().for_each(|field| drop(group.remove(field)));
                group.insert(HEADER_FIELD.to_owned(), header.clone().into_bytes());
                group.insert(FENCE_FIELD.to_owned(), fence.clone().into_bytes());
                Reply::Said("OK")
            }
            Call::Segments { key, fields } => {
                let group = self.groups.get(key);
                Reply::Values(fields.iter().map(|field| group?.get(field).cloned()).collect())
            }
            Call::Mark { partition, mark } => {
                self.marks.insert(partition.clone(), *mark);
                Reply::Said("OK")
            }
        }
    }

    fn claim(&mut self, key: &str, token: &str) -> Reply {
        let group = self.groups.entry(key.to_owned()).or_default();
        group.insert(OWNER_FIELD.to_owned(), token.as_bytes().to_vec());
        let segments = group.iter().filter(|(field, _)| field.starts_with(['e', 'p']));
        let segments = segments.map(|(field, value)| (field.clone(), value.len())).collect();
        let fence = group.get(FENCE_FIELD).map(|fence| String::from_utf8_lossy(fence).into_owned());
        Reply::Claimed(group.get(HEADER_FIELD).cloned(), fence, segments)
    }

    /// Why a group may not be written by the holder of a token.
    fn refusal(&self, key: &str, token: &str) -> Option<&'static str> {
        match self.groups.get(key).and_then(|group| group.get(OWNER_FIELD)) {
            Some(owner) if owner == token.as_bytes() => None,
            Some(_) => Some("OWNER"),
            None => Some("FENCE"),
        }
    }

    /// All fields of a group.
    pub fn fields(&self, key: &str) -> Option<&BTreeMap<String, Vec<u8>>> {
        self.groups.get(key)
    }

    /// The groups' keys.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.groups.keys()
    }

    /// The partitions' marks.
    pub fn marks(&self) -> &BTreeMap<String, Mark> {
        &self.marks
    }

    /// Sets a group as a whole, as a restore does.
    pub fn put(&mut self, key: &str, fields: BTreeMap<String, Vec<u8>>) {
        self.groups.insert(key.to_owned(), fields);
    }

    /// Loses all marks.
    pub fn lose_marks(&mut self) {
        self.marks.clear();
    }

    /// Loses a group.
    pub fn remove(&mut self, key: &str) {
        self.groups.remove(key);
    }
}
