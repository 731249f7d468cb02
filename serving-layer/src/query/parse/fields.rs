//! The fields of a request's object, each with its place in the request, and the faults that are found in them.

use crate::error::{Fault, FaultKind, ServeError};
use serde_json::{Map, Value as Json};

/// The longest name in bytes.
pub(crate) const MAX_NAME: usize = 200;
/// The most faults that are reported of one request.
pub(crate) const MAX_FAULTS: usize = 100;

/// Collects faults.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, kind: FaultKind, field: impl Into<String>, message: impl Into<String>) {
        self.with(kind, field, message, Vec::new());
    }

    pub(super) fn with(
        &mut self,
        kind: FaultKind,
        field: impl Into<String>,
        message: impl Into<String>,
        allowed: Vec<String>,
    ) {
        let fault = Fault { kind, field: field.into(), message: message.into(), allowed };
        // What several queries have in common is found anew with each of them.
        if self.0.len() < MAX_FAULTS && !self.0.contains(&fault) {
            self.0.push(fault);
        }
    }

    pub(super) fn malformed(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(FaultKind::Malformed, field, message);
    }

    pub(super) fn unanswerable(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(FaultKind::Unanswerable, field, message);
    }

    /// What was read, where it has no fault.
    pub(super) fn or<T>(self, read: Option<T>) -> Result<T, ServeError> {
        match read {
            Some(read) if self.0.is_empty() => Ok(read),
            _ => Err(ServeError::Invalid(self.0)),
        }
    }
}

/// An object of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    own: &'a Map<String, Json>,
    /// Where it stands: empty, or such as `queries.views.`.
    at: &'a str,
    /// What stands for fields that it doesn't have itself, at the top of the request.
    common: Option<&'a Map<String, Json>>,
}

/// A field and its place, for faults.
pub(super) type Field<'a> = (String, &'a Json);

impl<'a> Fields<'a> {
    pub(super) fn new(own: &'a Map<String, Json>, at: &'a str) -> Fields<'a> {
        Fields { own, at, common: None }
    }

    /// The same with fields that stand for those it doesn't have itself.
    pub(super) fn or_common(self, common: &'a Map<String, Json>) -> Fields<'a> {
        Fields { common: Some(common), ..self }
    }

    /// The fields that it has itself.
    pub(super) fn alone(self) -> Fields<'a> {
        Fields { common: None, ..self }
    }

    /// The fields that stand for those it doesn't have itself.
    pub(super) fn common(&self) -> Option<Fields<'a>> {
        self.common.map(|common| Fields::new(common, ""))
    }

    /// Whether it has a field itself.
    pub(super) fn has(&self, name: &str) -> bool {
        self.own.get(name).is_some_and(|value| !value.is_null())
    }

    /// The place of a field of this object.
    pub(super) fn at(&self, name: &str) -> String {
        format!("{}{name}", self.at)
    }

    /// A field; `None` where it is missing or null.
    pub(super) fn get(&self, name: &str) -> Option<Field<'a>> {
        match self.own.get(name).filter(|value| !value.is_null()) {
            Some(value) => Some((self.at(name), value)),
            None => self.common()?.get(name),
        }
    }

    /// Refuses fields that are none of those known.
    pub(super) fn refuse_unknown(&self, known: &[&str], faults: &mut Faults) {
        for name in self.own.keys().filter(|name| !known.contains(&name.as_str())) {
            let allowed = known.iter().map(|name| (*name).to_owned()).collect();
            faults.with(FaultKind::Malformed, self.at(name), "unknown field", allowed);
        }
    }

    /// A list of names, or one alone.
    pub(super) fn names(&self, name: &str, faults: &mut Faults) -> Vec<(String, &'a str)> {
        let Some((at, value)) = self.get(name) else { return Vec::new() };
        let list = match value {
            Json::Array(list) => list.iter().map(Json::as_str).collect::<Option<Vec<_>>>(),
            one => one.as_str().map(|one| vec![one]),
        };
        let Some(list) = list else {
            faults.malformed(at, "expected a list of names");
            return Vec::new();
        };
        if let Some(long) = list.iter().find(|one| one.len() > MAX_NAME) {
            let message = format!("a name of {} bytes is longer than the limit of {MAX_NAME}", long.len());
            faults.malformed(at, message);
            return Vec::new();
        }
        list.into_iter().enumerate().map(|(i, one)| (format!("{at}[{i}]"), one)).collect()
    }

    /// A whole number from 0.
    pub(super) fn count(&self, name: &str, faults: &mut Faults) -> Option<usize> {
        let (at, value) = self.get(name)?;
        let count = value.as_u64().filter(|count| i64::try_from(*count).is_ok());
        if count.is_none() {
            faults.malformed(at, format!("{value} is no whole number from 0"));
        }
        count.map(|count| count as usize)
    }

    /// True or false; false where it is missing.
    pub(super) fn flag(&self, name: &str, faults: &mut Faults) -> bool {
        match self.get(name) {
            None => false,
            Some((_, Json::Bool(flag))) => *flag,
            Some((at, value)) => {
                faults.malformed(at, format!("{value} is neither true nor false"));
                false
            }
        }
    }

    /// One of some words.
    pub(super) fn word<T>(&self, name: &str, words: &[(&str, T)], faults: &mut Faults) -> Option<T>
    where
        T: Copy,
    {
        let (at, value) = self.get(name)?;
        let found = words.iter().find(|(word, _)| value.as_str() == Some(word));
        if found.is_none() {
            let allowed = words.iter().map(|(word, _)| (*word).to_owned()).collect();
            let message = format!("{value} is none of what may stand here");
            faults.with(FaultKind::Malformed, at, message, allowed);
        }
        found.map(|(_, meant)| *meant)
    }
}
