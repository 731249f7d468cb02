//! Gathers faults while a catalog is validated.
//!
//! What was refused once is not complained about again: a fault at or below a refused key is a consequence.

use super::document::Document;
use super::fault::{Fault, nearest};
use std::collections::BTreeSet;

/// The faults so far.
pub(super) struct Check<'a> {
    document: &'a Document<'a>,
    faults: Vec<Fault>,
    refused: BTreeSet<Vec<String>>,
}

impl<'a> Check<'a> {
    /// No faults yet.
    pub(super) fn new(document: &'a Document<'a>) -> Check<'a> {
        Check { document, faults: Vec::new(), refused: BTreeSet::new() }
    }

    /// Notes a fault at a key, unless the key was refused already.
    pub(super) fn fault(&mut self, path: &[&str], message: impl Into<String>) {
        self.suggest(path, message, None);
    }

    /// Notes that a name is unknown, with the nearest of the known ones.
    pub(super) fn unknown<'k>(
        &mut self,
        path: &[&str],
        message: impl Into<String>,
        name: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) {
        self.suggest(path, message, nearest(name, known));
    }

    /// Notes a fault at a key and counts the key as refused from now on.
    pub(super) fn refuse(&mut self, path: &[&str], message: impl Into<String>, suggestion: Option<String>) {
        self.suggest(path, message, suggestion);
        self.spare(path);
    }

    /// Counts a key as refused without a fault: it is not missing, but misspelt.
    pub(super) fn spare(&mut self, path: &[&str]) {
        self.refused.insert(path.iter().map(|&segment| segment.to_owned()).collect());
    }

    /// Whether a key, or one of its parents, was refused.
    pub(super) fn is_refused(&self, path: &[&str]) -> bool {
        (1..=path.len()).any(|length| {
            self.refused
                .iter()
                .any(|refused| refused.iter().map(String::as_str).eq(path[..length].iter().copied()))
        })
    }

    /// The document.
    pub(super) fn document(&self) -> &'a Document<'a> {
        self.document
    }

    /// How many faults there are.
    pub(super) fn count(&self) -> usize {
        self.faults.len()
    }

    /// All faults, ordered by line, each once.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        self.faults.sort_by(|a, b| (a.line, &a.path, &a.message).cmp(&(b.line, &b.path, &b.message)));
        self.faults.dedup();
        self.faults
    }

    fn suggest(&mut self, path: &[&str], message: impl Into<String>, suggestion: Option<String>) {
        if self.is_refused(path) {
            return;
        }
        let (line, message) = (self.document.line(path), message.into());
        self.faults.push(Fault { line, path: path.join("."), message, suggestion });
    }
}
