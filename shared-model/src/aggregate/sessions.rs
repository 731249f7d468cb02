//! Sessions: what comes with no pause longer than the idle time, by the event times of one visitor's records.
//!
//! The state is the runs of times, each its first and its last, in ascending order, no two of them nearer than the idle
//! time. What joins runs is their distance alone, so that merging is a union: in whatever order and grouping, and however
//! often a record came, the runs are those of all times.

use crate::codec::{self, CodecError};
use crate::event::Value;

/// The runs of one cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// The longest pause within a session, in the unit of the times.
    idle: i64,
    /// First and last time of each, both included.
    runs: Vec<(i64, i64)>,
}

impl Runs {
    /// None, with an idle time of at least 1.
    pub fn new(idle: i64) -> Runs {
        Runs { idle: idle.max(1), runs: Vec::new() }
    }

    /// How many sessions there are.
    pub fn count(&self) -> u64 {
        self.runs.len() as u64
    }

    /// Adds a time.
    pub fn add(&mut self, value: &Value) {
        if let Value::Int(time) = value {
            self.join(*time, *time);
        }
    }

    /// Adds all of others.
    ///
    /// # Errors
    /// Where these have another idle time; nothing is added then.
    pub fn merge(&mut self, other: &Runs) -> Result<(), CodecError> {
        if other.idle != self.idle {
            return Err(CodecError::Invalid("sessions of another idle time"));
        }
        other.runs.iter().for_each(|(first, last)| self.join(*first, *last));
        Ok(())
    }

    /// Adds a run, which joins those that are not farther from it than the idle time.
    fn join(&mut self, first: i64, last: i64) {
        // At the ends of what a number holds nothing lies farther away.
        let before = first.saturating_sub(self.idle);
        let behind = last.saturating_add(self.idle);
        let from = self.runs.partition_point(|run| run.1 < before);
        let to = self.runs.partition_point(|run| run.0 <= behind);
        let joined = self.runs.get(from..to).unwrap_or_default();
        let first = joined.first().map_or(first, |run| run.0.min(first));
        let last = joined.last().map_or(last, |run| run.1.max(last));
        self.runs.splice(from..to.max(from), [(first, last)]);
    }

    /// Appends the number of runs, then of each its distance from the one before (of the first, its time, zigzag) and its
    /// length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        codec::put_varint(out, self.runs.len() as u128);
        let mut before: Option<i64> = None;
        for (first, last) in &self.runs {
            match before {
                None => codec::put_zigzag(out, i128::from(*first)),
                Some(before) => codec::put_varint(out, u128::from(first.abs_diff(before))),
            }
            codec::put_varint(out, u128::from(last.abs_diff(*first)));
            before = Some(*last);
        }
    }

    /// Takes what [`Runs::encode`] wrote of runs with this idle time.
    ///
    /// # Errors
    /// Where these are not the bytes of any.
    pub fn decode(idle: i64, input: &mut &[u8]) -> Result<Runs, CodecError> {
        let mut runs = Runs::new(idle);
        let mut before: Option<i64> = None;
        for _ in 0..codec::take_count(input, "number of sessions")? {
            let first = match before {
                None => codec::take_i64(input, "start of a session")?,
                Some(before) => {
                    let pause = codec::take_u64(input, "pause between sessions")?;
                    if pause <= runs.idle.unsigned_abs() {
                        return Err(CodecError::Invalid("sessions: they are one"));
                    }
                    before.checked_add_unsigned(pause).ok_or(CodecError::Invalid("start of a session"))?
                }
            };
            let length = codec::take_u64(input, "length of a session")?;
            let last = first.checked_add_unsigned(length).ok_or(CodecError::Invalid("end of a session"))?;
            runs.runs.push((first, last));
            before = Some(last);
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(idle: i64, times: &[i64]) -> Runs {
        let mut runs = Runs::new(idle);
        times.iter().for_each(|time| runs.add(&Value::Int(*time)));
        runs
    }

    #[test]
    fn a_pause_longer_than_the_idle_time_ends_a_session() {
        for (times, expected) in [
            (&[][..], 0),
            (&[5], 1),
            (&[0, 30, 60], 1),
            (&[0, 31], 2),
            (&[60, 0, 30], 1),
            (&[0, 60, 30, 30], 1),
            (&[i64::MIN, i64::MAX], 2),
            (&[i64::MAX - 30, i64::MAX, i64::MIN], 2),
        ] {
            assert_eq!(of(30, times).count(), expected, "{times:?}");
        }
        assert!(of(30, &[1]).merge(&of(31, &[2])).is_err());
    }

    proptest! {
        /// The runs are those of the sorted times, in whatever order and grouping they came.
        #[test]
        fn sessions_are_those_of_the_sorted_times(
            mut times in prop::collection::vec(prop_oneof![0..400i64, any::<i64>()], 0..80),
            idle in 1..40i64,
            cut in any::<prop::sample::Index>(),
        ) {
            let (left, right) = times.split_at(cut.index(times.len() + 1));
            let mut merged = of(idle, right);
            merged.merge(&of(idle, left)).expect("the same idle time");
            times.sort_unstable();
            let naive = times.chunk_by(|a, b| b.abs_diff(*a) <= idle.unsigned_abs());
            let naive: Vec<(i64, i64)> = naive.map(|run| (run[0], run[run.len() - 1])).collect();
            prop_assert_eq!(&merged.runs, &naive);
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            let mut input = &bytes[..];
            prop_assert_eq!(Runs::decode(idle, &mut input).expect("its own bytes"), merged);
            prop_assert!(input.is_empty());
        }
    }
}
