//! The clocks that a partition's log carries: the ingest clock, which slices it into epochs, and the newest trusted
//! event time, which places the sliding windows.
//!
//! Both are folds over the log alone: whoever folds the same records from the same stored start gets the same
//! values, and neither ever goes back (but for the provisional event time of a log's first few records).

use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// The length of an epoch in milliseconds of ingest clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EpochLength(pub Millis);

impl EpochLength {
    /// The epoch in which an ingest clock stands.
    pub fn epoch(self, clock: Millis) -> i64 {
        clock.div_euclid(self.0)
    }

    /// The ingest time at which an epoch begins: its lower boundary.
    pub fn boundary(self, epoch: i64) -> Millis {
        epoch * self.0
    }
}

/// The ingest clock of a partition: the running maximum of the broker's append times. `0` before any record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IngestClock(pub Millis);

impl IngestClock {
    /// Takes in a record's append time and returns the clock at that record.
    pub fn observe(&mut self, append_time: Millis) -> Millis {
        self.0 = self.0.max(append_time);
        self.0
    }
}

/// How a stream's event times relate to its append times, which decides what may move the sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventClockRule {
    /// Event time is near append time: an event time counts up to its own append time, and ticks move it on too.
    Live,
    /// A replay: event time is unrelated to append time. A step of more than `leap` milliseconds ahead is believed
    /// only when [`CONFIRMATIONS`] distinct event times lie beyond it.
    Replay {
        /// The longest step ahead that one record alone may make.
        leap: Millis,
    },
}

/// How many distinct event times must lie beyond a leap before it is believed.
pub const CONFIRMATIONS: usize = 8;

/// The newest trusted event time of a partition: one record from the future does not move it.
///
/// Fed with every valid record of the log, repeats included (a repeat has the same event time and changes nothing),
/// and with every tick.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedTime {
    /// The newest event time that is believed; `None` before the first record.
    pub newest: Option<Millis>,
    /// Distinct event times beyond a leap that wait for confirmation, ascending, fewer than [`CONFIRMATIONS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaps: Vec<Millis>,
    /// Whether `newest` can no longer be corrected downwards: set once [`CONFIRMATIONS`] distinct times were seen.
    #[serde(default)]
    pub settled: bool,
}

impl TrustedTime {
    /// Takes in a valid record.
    pub fn observe(&mut self, rule: EventClockRule, event_time: Millis, append_time: Millis) {
        match rule {
            EventClockRule::Live => self.advance(event_time.min(append_time)),
            EventClockRule::Replay { leap } if self.settled => {
                if self.newest.is_none_or(|newest| event_time <= newest.saturating_add(leap)) {
                    self.advance(event_time);
                } else {
                    self.hold(event_time);
                    if self.leaps.len() >= CONFIRMATIONS {
                        self.advance(self.leaps[0]);
                    }
                }
                self.absorb(leap);
            }
            EventClockRule::Replay { leap } => {
                // The first distinct times of a log: the chain of small steps from the lowest is believed, so that
                // a first record from the future is corrected by the next.
                self.hold(event_time);
                self.newest = self
                    .leaps
                    .iter()
                    .copied()
                    .reduce(|chain, next| if next <= chain.saturating_add(leap) { next } else { chain });
                if self.leaps.len() >= CONFIRMATIONS {
                    self.settled = true;
                    self.absorb(leap);
                }
            }
        }
    }

    /// Takes in a tick, which moves the window of a live stream when all is silent.
    pub fn observe_tick(&mut self, rule: EventClockRule, append_time: Millis) {
        if rule == EventClockRule::Live {
            self.advance(append_time);
        }
    }

    fn advance(&mut self, time: Millis) {
        self.newest = Some(self.newest.map_or(time, |newest| newest.max(time)));
    }

    fn hold(&mut self, time: Millis) {
        if let Err(at) = self.leaps.binary_search(&time) {
            self.leaps.insert(at, time);
        }
    }

    /// Lets go of held times that the newest trusted one has come within a leap of.
    fn absorb(&mut self, leap: Millis) {
        while let (Some(newest), Some(&first)) = (self.newest, self.leaps.first()) {
            if first > newest.saturating_add(leap) {
                break;
            }
            self.advance(first);
            self.leaps.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLAY: EventClockRule = EventClockRule::Replay { leap: 100 };

    fn fold(rule: EventClockRule, times: &[Millis]) -> TrustedTime {
        let mut trusted = TrustedTime::default();
        times.iter().for_each(|&time| trusted.observe(rule, time, 1_000));
        trusted
    }

    #[test]
    fn one_record_from_the_future_moves_nothing_wherever_it_stands() {
        let calm: Vec<Millis> = (0..20).map(|i| i * 10).collect();
        for at in 0..=calm.len() {
            let mut times = calm.clone();
            times.insert(at, 9_999_999);
            assert_eq!(fold(REPLAY, &times).newest, Some(190), "at {at}");
            // Repeats of it are the same event time and confirm nothing.
            times.splice(at..at, [9_999_999; 20]);
            if at > 0 {
                assert_eq!(fold(REPLAY, &times).newest, Some(190), "repeated at {at}");
            }
        }
    }

    #[test]
    fn a_gap_in_a_replay_is_crossed_when_enough_records_confirm_it() {
        let mut times: Vec<Millis> = (0..10).map(|i| i * 10).collect();
        times.extend((0..CONFIRMATIONS as i64 - 1).map(|i| 50_000 + i));
        assert_eq!(fold(REPLAY, &times).newest, Some(90));
        times.push(50_040);
        let crossed = fold(REPLAY, &times);
        assert_eq!(crossed.newest, Some(50_040));
        assert!(crossed.leaps.is_empty());
    }

    #[test]
    fn a_live_stream_believes_nothing_beyond_its_own_append_time_and_ticks_move_it() {
        let mut trusted = fold(EventClockRule::Live, &[900, 5_000]);
        assert_eq!(trusted.newest, Some(1_000));
        trusted.observe_tick(EventClockRule::Live, 7_000);
        assert_eq!(trusted.newest, Some(7_000));
        let mut replay = fold(REPLAY, &[900]);
        replay.observe_tick(REPLAY, 7_000);
        assert_eq!(replay.newest, Some(900));
    }

    #[test]
    fn the_ingest_clock_never_goes_back() {
        let mut clock = IngestClock::default();
        assert_eq!([5, 3, 9].map(|t| clock.observe(t)), [5, 5, 9]);
        assert_eq!(EpochLength(10).epoch(19), 1);
        assert_eq!(EpochLength(10).boundary(2), 20);
    }
}
