//! What a client may keep, and how it asks whether that has changed: entity tags.
//!
//! A tag names one answer, byte for byte before it is compressed; so all tags are weak, and a compressed answer has the tag
//! of the plain one. `304` is said in two cases, each of which proves that the whole answer would be the one tagged:
//!
//! - *Before a row is read*, of an answer as of a run (`at_run`). Such an answer is a function of: the request as it was
//!   understood, with its relative times resolved, its metrics and its format; the catalog's streams, the limits, and the
//!   form of replies, which the OpenAPI document has and [`ANSWERS`] counts; the tidemark that the run left; for each metric
//!   and day the version that was live then, with the hash of its rows, which are never written again, and the days that
//!   have none; and what the log had lost by then. The tag is a hash of all these, read in one snapshot: an import, a
//!   backfill, a run or a copy of Postgres put back changes some of them, or nothing of the answer. What is known to be
//!   dropped by now is an error, not `304`.
//! - *After it is made*, of every other answer in JSON: the tag is a hash of its bytes. Since the envelope is among them, such
//!   an answer has mostly moved on (`as_of`, `parts`), `final` or not: a record may come later than any watermark said.
//!
//! CSV and NDJSON are written while they are sent, and have a tag as of a run alone. Live answers, errors and whatever else
//! has no tag may not be stored. A `POST` has none: no cache asks about it, and HTTP gives `If-None-Match` another meaning
//! there; the same query can be asked by `GET`.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::fmt;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// To be raised whenever the same inputs give another answer than before: other values, other words.
pub const ANSWERS: u32 = 1;

/// Names one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u128);

impl Tag {
    /// The tag of a text.
    pub fn of(bytes: &[u8]) -> Tag {
        Tag(xxh3_128(bytes))
    }

    /// The tag of what some parts are, each as `Debug` writes it out; what is written is hashed and not kept.
    pub fn of_parts(parts: &[&dyn fmt::Debug]) -> Tag {
        struct Hash(Xxh3);
        impl fmt::Write for Hash {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.update(text.as_bytes());
                Ok(())
            }
        }
        let mut hash = Hash(Xxh3::new());
        for part in parts {
            // Neither is refused: and a separator is nothing that `Debug` writes.
            let _ = fmt::Write::write_fmt(&mut hash, format_args!("{part:?}\0"));
        }
        Tag(hash.0.digest128())
    }

    /// What a client is told that has the answer of this tag.
    pub fn unchanged(self) -> Response {
        self.put_on(StatusCode::NOT_MODIFIED.into_response())
    }

    /// Puts it on an answer, which then may be kept, and asked about each time before it is used.
    pub fn put_on(self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(&self.to_string()) {
            headers.insert(header::ETAG, tag);
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        response
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "W/\"{:032x}\"", self.0)
    }
}

/// The tags of the answers that a client has. `*` is none of an answer, and passed over.
#[derive(Debug, Default)]
pub struct Held(Vec<String>);

impl Held {
    /// Those that a request names.
    pub fn new(headers: &HeaderMap) -> Held {
        let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let tags = values.flat_map(|value| value.split(',')).map(opaque);
        Held(tags.map(str::to_owned).collect())
    }

    /// Whether it has the answer of a tag. Whether a tag is called weak makes no difference, as for any `GET`.
    pub fn has(&self, tag: &Tag) -> bool {
        self.0.iter().any(|held| held == opaque(&tag.to_string()))
    }
}

/// What stands between the quotes, with them.
fn opaque(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Whatever says nothing else may not be stored.
pub(crate) fn no_store(response: &mut Response) {
    let unsaid = HeaderValue::from_static("no-store");
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(unsaid);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_among_those_that_a_client_has() {
        let (tag, other) = (Tag::of(b"a"), Tag::of(b"b"));
        let strong = tag.to_string().replace("W/", "");
        let check = |values: &[&str], expected: bool| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_NONE_MATCH, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(Held::new(&headers).has(&tag), expected, "{values:?}");
        };
        check(&[&tag.to_string()], true);
        check(&[&strong], true);
        check(&[&format!("{other}, {tag}")], true);
        check(&[&other.to_string(), &format!(" {tag} ")], true);
        check(&[], false);
        check(&["*"], false);
        check(&[&other.to_string()], false);
        check(&[&strong[1..strong.len() - 1]], false);
        check(&["", ",,", "W/", "\""], false);
    }

    #[test]
    fn parts_of_a_tag_are_told_apart() {
        assert_ne!(Tag::of_parts(&[&"ab", &"c"]), Tag::of_parts(&[&"a", &"bc"]));
    }
}
