//! How often a key may ask: a token bucket of one second's requests (and at least one), kept as the time at which it is full
//! again (the generic cell rate algorithm, ITU-T I.371).
//!
//! Each process counts for itself.

use shared_model::time::Millis;
use std::time::Duration;

/// What was counted of one key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rate {
    /// The time that one request takes, in ms.
    each: f64,
    /// The time that a full bucket holds, in ms.
    most: f64,
    /// When the bucket is full again, in ms since 1970.
    full: f64,
}

impl Rate {
    /// A full bucket for so many requests a second.
    pub(super) fn new(per_second: f64) -> Rate {
        let each = 1_000.0 / per_second;
        Rate { each, most: each.max(1_000.0), full: f64::MIN }
    }

    /// Takes one request out; where there is none, says how long to wait.
    pub(super) fn count(&mut self, now: Millis) -> Result<(), Duration> {
        let now = now as f64;
        // A clock that was put back doesn't lock anyone out.
        self.full = self.full.clamp(now, now + self.most);
        let full = self.full + self.each;
        // What rounding loses must not cost a request.
        let early = full - now - self.most;
        if early > self.each * 1e-6 {
            return Err(Duration::from_secs_f64(early / 1_000.0));
        }
        self.full = full;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bucket_holds_a_second_and_fills_as_time_goes() {
        let mut rate = Rate::new(4.0);
        let mut at = |now| rate.count(now);
        (0..4).for_each(|_| assert_eq!(at(0), Ok(())));
        assert_eq!(at(0), Err(Duration::from_millis(250)));
        assert_eq!((at(249).is_err(), at(250), at(250).is_err()), (true, Ok(()), true));
        (0..4).for_each(|_| assert_eq!(at(10_000), Ok(())));
        // The clock is put back.
        assert_eq!(at(0), Err(Duration::from_millis(250)));
        assert_eq!(at(250), Ok(()));
        let mut slow = Rate::new(0.5);
        assert_eq!((slow.count(0), slow.count(1_999).is_err(), slow.count(2_000)), (Ok(()), true, Ok(())));
    }

    proptest! {
        #[test]
        fn no_span_has_more_than_its_share_and_a_bucket(
            per_second in 0.1..500.0f64,
            pauses in proptest::collection::vec(0..400i64, 1..300),
        ) {
            let mut rate = Rate::new(per_second);
            let mut now = 0;
            let mut admitted = Vec::new();
            for pause in pauses {
                now += pause;
                admitted.extend(rate.count(now).is_ok().then_some(now));
            }
            prop_assert!(!admitted.is_empty());
            for (i, from) in admitted.iter().enumerate() {
                for (j, to) in admitted.iter().enumerate().skip(i) {
                    let most = (to - from) as f64 / 1_000.0 * per_second + per_second.max(1.0);
                    prop_assert!((j - i + 1) as f64 <= most + 1e-3, "{} in {} ms", j - i + 1, to - from);
                }
            }
        }
    }
}
