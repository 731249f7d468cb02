//! Days that couldn't be compacted, for as long as the process lives: each is left alone for twice as long as the time before,
//! so that what stands in its way (a full disk, a lost file) doesn't cost each run the same downloads.

use shared_model::time::{EventDay, Millis};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const FIRST: Millis = 10 * 60_000;
const LONGEST: Millis = 86_400_000;

/// By stream and event day. None at first.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<BTreeMap<(String, EventDay), Failure>>);

#[derive(Debug, Clone, Copy)]
struct Failure {
    at: Millis,
    wait: Millis,
}

impl Failures {
    /// Whether a day is to be left alone for now.
    pub(super) fn is_waiting(&self, of_day: &(String, EventDay), now: Millis) -> bool {
        self.known().get(of_day).is_some_and(|failure| (0..failure.wait).contains(&(now - failure.at)))
    }

    /// Takes in what came of a day.
    pub(super) fn took(&self, of_day: (String, EventDay), is_well: bool, now: Millis) {
        let mut known = self.known();
        let before = known.remove(&of_day);
        if !is_well {
            let wait = before.map_or(FIRST, |before| (2 * before.wait).min(LONGEST));
            known.insert(of_day, Failure { at: now, wait });
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(String, EventDay), Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_that_fails_is_left_alone_for_longer_and_longer_up_to_a_day() {
        let (failures, of_day, mut now) = (Failures::default(), ("clicks".to_owned(), EventDay(7)), 5);
        assert!(!failures.is_waiting(&of_day, now));
        for minutes in [10, 20, 40, 80, 160, 320, 640, 1_280, 1_440, 1_440] {
            failures.took(of_day.clone(), false, now);
            assert!(failures.is_waiting(&of_day, now + minutes * 60_000 - 1), "{minutes}");
            assert!(!failures.is_waiting(&("clicks".to_owned(), EventDay(8)), now));
            now += minutes * 60_000;
            assert!(!failures.is_waiting(&of_day, now), "{minutes}");
        }
        failures.took(of_day.clone(), true, now);
        failures.took(of_day.clone(), false, now);
        assert!(!failures.is_waiting(&of_day, now + FIRST), "well in between");
        assert!(!failures.is_waiting(&of_day, now - 1), "a clock that was put back");
    }
}
