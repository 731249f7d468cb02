//! What the plays amounted to: how often each thing happened.

use std::collections::BTreeMap;
use std::fmt;

/// Counts by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn add(&mut self, what: &'static str, many: u64) {
        *self.0.entry(what).or_default() += many;
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        other.0.into_iter().for_each(|(what, many)| self.add(what, many));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(what, many)| format!("{many} {what}")).collect();
        write!(f, "{}", each.join(", "))
    }
}
