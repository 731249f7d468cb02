//! The TOML document with its places: which line a key is on, in which order keys were written, and reading its
//! sections so that one wrong value hides no other.

use super::MAX_CATALOG_BYTES;
use super::check::Check;
use super::fault::{Fault, nearest};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A parsed document.
pub(super) struct Document<'i> {
    text: &'i str,
    root: Spanned<DeTable<'i>>,
}

impl<'i> Document<'i> {
    /// Parses a document.
    ///
    /// # Errors
    /// All faults of TOML's grammar, or that it is too long.
    pub(super) fn parse(text: &'i str) -> Result<Document<'i>, Vec<Fault>> {
        if text.len() > MAX_CATALOG_BYTES {
            let message =
                format!("{} bytes are more than a catalog may have: {MAX_CATALOG_BYTES}", text.len());
            return Err(vec![Fault { line: 1, path: String::new(), message, suggestion: None }]);
        }
        let (root, errors) = DeTable::parse_recoverable(text);
        let fault = |error: toml::de::Error| Fault {
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            path: String::new(),
            message: format!("not valid TOML: {}", error.message()),
            suggestion: None,
        };
        if errors.is_empty() {
            Ok(Document { text, root })
        } else {
            Err(errors.into_iter().map(fault).collect())
        }
    }

    /// The line of a key, or of the deepest of its parents that exists.
    pub(super) fn line(&self, path: &[&str]) -> usize {
        let mut table = self.root.get_ref();
        let mut at = 0;
        for segment in path {
            let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == segment) else { break };
            at = key.span().start;
            let Some(inner) = value.get_ref().as_table() else { break };
            table = inner;
        }
        line_of(self.text, at)
    }

    /// The keys of a table in the order in which they are written.
    pub(super) fn order(&self, path: &[&str]) -> Vec<String> {
        let mut table = self.root.get_ref();
        for segment in path {
            match table.get(*segment).and_then(|value| value.get_ref().as_table()) {
                Some(inner) => table = inner,
                None => return Vec::new(),
            }
        }
        let mut keys: Vec<_> =
            table.keys().map(|key| (key.span().start, key.get_ref().to_string())).collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// Reads the whole document as a type whose keys are all optional. Each value that doesn't fit is a fault of
    /// its own and is left out.
    pub(super) fn read<T: DeserializeOwned + Default>(&self, check: &mut Check<'_>) -> T {
        let span = self.root.span();
        let mut table = self.root.get_ref().clone();
        loop {
            let value = Spanned::new(span.clone(), DeValue::Table(table.clone()));
            let error = match T::deserialize(ValueDeserializer::from(value)) {
                Ok(read) => return read,
                Err(error) => error,
            };
            let mut path = Vec::new();
            let found = error.span().is_some_and(|span| take_out(&mut table, span.start, &mut path));
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let (message, suggestion) = explain(error.message());
            if let (Some(meant), Some((_, parents))) = (&suggestion, path.split_last()) {
                check.spare(&[parents, &[meant]].concat());
            }
            check.refuse(&path, message, suggestion);
            if !found {
                return T::default();
            }
        }
    }
}

/// Takes the innermost key that covers a place out of a table, noting its path.
fn take_out(table: &mut DeTable<'_>, at: usize, path: &mut Vec<String>) -> bool {
    let Some(key) = table.iter().find(|(key, value)| key.span().contains(&at) || covers(value, at)) else {
        return false;
    };
    let name = key.0.get_ref().to_string();
    path.push(name.clone());
    let on_key = key.0.span().contains(&at);
    if let (false, Some(value)) = (on_key, table.get_mut(name.as_str()))
        && let DeValue::Table(inner) = value.get_mut()
        && take_out(inner, at, path)
    {
        return true;
    }
    table.remove(name.as_str());
    true
}

/// Whether a place lies in a value; the parts of a table may be far from its head.
fn covers(value: &Spanned<DeValue<'_>>, at: usize) -> bool {
    let inside =
        |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| key.span().contains(&at) || covers(value, at);
    value.span().contains(&at) || value.get_ref().as_table().is_some_and(|table| table.iter().any(inside))
}

/// Serde's message for a person: of "unknown field `a`, expected one of `b`, `c`" the nearest is a suggestion.
fn explain(message: &str) -> (String, Option<String>) {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let suggestion = match quoted.split_first() {
        Some((found, known)) => nearest(found, known.iter().copied()),
        None => None,
    };
    let message = message
        .replace('`', "\"")
        .replace("unknown field", "unknown key")
        .replace("unknown variant", "unknown word");
    (message.trim_end().replace('\n', "; "), suggestion)
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}
