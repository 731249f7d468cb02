//! Faults of a catalog: all of them together, each with its line, where it is and what was probably meant.

use std::fmt;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line in the file, from 1.
    pub line: usize,
    /// The key: `metrics.user_view_cnt.by`; empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// The known name that was probably meant.
    pub suggestion: Option<String>,
}

/// All faults of a catalog, ordered by line; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogFaults {
    /// The file's name, for the message.
    pub file: String,
    /// The faults.
    pub faults: Vec<Fault>,
}

impl CatalogFaults {
    /// The same faults under a file's name.
    #[must_use]
    pub fn in_file(mut self, file: impl fmt::Display) -> CatalogFaults {
        self.file = file.to_string();
        self
    }
}

impl fmt::Display for CatalogFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, fault) in self.faults.iter().enumerate() {
            if nth > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}: ", self.file, fault.line)?;
            if !fault.path.is_empty() {
                write!(f, "{}: ", fault.path)?;
            }
            write!(f, "{}", fault.message)?;
            if let Some(suggestion) = &fault.suggestion {
                write!(f, "; did you mean {suggestion:?}?")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for CatalogFaults {}

/// The known name that is nearest to `name`, if one is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let length = name.chars().count();
    if length > 64 {
        return None;
    }
    let near = known.into_iter().map(|known| (distance(name, known), known));
    let (distance, known) = near.min()?;
    (distance <= length.div_ceil(3)).then(|| known.to_owned())
}

/// How many characters must be put in, taken out or replaced to turn one name into the other; neighbours that
/// changed places count as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut next = vec![i + 1];
        for j in 0..b.len() {
            let mut best = (row[j] + usize::from(a[i] != b[j])).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before[j - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_only_if_it_is_near() {
        let known = ["uuid", "document_id", "platform"];
        let cases = [
            ("uuidd", Some("uuid")),
            ("uiud", Some("uuid")),
            ("latform", Some("platform")),
            ("documentid", Some("document_id")),
            ("country", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, known).as_deref(), expected, "{name}");
        }
    }
}
