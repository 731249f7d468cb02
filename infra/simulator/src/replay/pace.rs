//! When a record is due: a pure function of its place and its event time.
//!
//! Event time only ever slows the sending down; a step back in it means "at once".

use crate::cli::Speed;
use shared_model::time::Millis;
use std::time::Duration;

/// The pace of one run.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    speed: Speed,
    rate: Option<f64>,
    first: Option<Millis>,
    sent: u64,
}

impl Pace {
    /// A pace by event time, by a most number of records per second, or both.
    pub fn new(speed: Speed, rate: Option<f64>) -> Pace {
        Pace { speed, rate: rate.filter(|rate| *rate > 0.0), first: None, sent: 0 }
    }

    /// How long after the start of the run the next record is due, whose event time (or present) is `moment`.
    pub fn due(&mut self, moment: Millis) -> Duration {
        let first = *self.first.get_or_insert(moment);
        let by_time = match self.speed {
            Speed::Max => Duration::ZERO,
            Speed::Times(times) => seconds((moment.saturating_sub(first)) as f64 / 1_000.0 / times),
        };
        let by_rate = self.rate.map_or(Duration::ZERO, |rate| seconds(self.sent as f64 / rate));
        self.sent += 1;
        by_time.max(by_rate)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times() {
        let check = |speed, rate, moments: &[Millis], expected: &[u64]| {
            let mut pace = Pace::new(speed, rate);
            let due: Vec<u64> = moments.iter().map(|&moment| pace.due(moment).as_millis() as u64).collect();
            assert_eq!(due, expected);
        };
        check(Speed::Max, None, &[5, 900_000], &[0, 0]);
        check(Speed::Times(10.0), None, &[1_000, 2_000, 1_500, 500, 11_000], &[0, 100, 50, 0, 1_000]);
        check(Speed::Max, Some(100.0), &[0, 0, 0], &[0, 10, 20]);
        check(Speed::Times(1.0), Some(100.0), &[0, 0, 500], &[0, 10, 500]);
        check(Speed::Times(1e-300), None, &[0, i64::MAX], &[0, Duration::MAX.as_millis() as u64]);
    }
}
