//! Rolling and running values: a bucket that counts what lies within a window that ends where the bucket does.
//!
//! A window is cut as a range of time is: the week of a day ends with that day and has seven by the zone's clock, hours are
//! as long as they are. Where a clock makes a bucket longer than its window, the window is the bucket. What is read is the
//! span widened by the first window, in pieces such that each window is made of whole ones.

use super::buckets::Buckets;
use super::range::{Shift, back};
use super::zone;
use chrono_tz::Tz;
use shared_model::time::{Interval, Millis};

/// How far a bucket's window reaches back from the bucket's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// So far.
    Back(Shift),
    /// To the start of the span.
    Span,
}

/// The windows of a query's buckets.
#[derive(Debug, Clone)]
pub struct Rolling {
    /// How far they reach.
    pub reach: Reach,
    /// What is read: the span and what the first window has before it.
    pub span: Interval,
    /// How it is read: a piece ends wherever a window begins or ends.
    pub pieces: Buckets,
    /// Each bucket's start with its window; ascending, neither end ever going back.
    pub windows: Vec<(Millis, Interval)>,
    /// Whether some window is as long as it should be, and not its bucket instead.
    fits: bool,
}

/// The most pieces of a window that moves on: a merge of the states of each to its end is held at a time. A week of
/// buckets of 5 minutes has 2,016.
const MAX_PIECES: usize = 5_000;

impl Rolling {
    /// The windows of a span's buckets.
    ///
    /// # Errors
    /// A message where a window begins between two cells of `grain` (milliseconds) or lies outside the calendar, and where
    /// there are too many, or too many pieces in one.
    pub fn new(
        reach: Reach,
        zone: Tz,
        span: Interval,
        buckets: &Buckets,
        grain: Millis,
    ) -> Result<Rolling, String> {
        let outside = || "a window lies outside the calendar".to_owned();
        let starts = buckets.starts(span)?;
        let ends = starts.iter().skip(1).copied().chain([span.end]);
        let mut windows: Vec<(Millis, Interval)> = Vec::with_capacity(starts.len());
        let mut fits = false;
        for (&start, end) in starts.iter().zip(ends) {
            let from = match reach {
                Reach::Span => span.start,
                Reach::Back(shift) => back(zone, end, shift).ok_or_else(outside)?,
            };
            let whole = start.max(span.start);
            fits |= from <= whole;
            let from = from.min(whole);
            // Where a clock is put back, what it shows twice ends a window that begins no earlier than the one before.
            let from = windows.last().map_or(from, |(_, before)| before.start.max(from));
            windows.push((start, Interval { start: from, end }));
        }
        let first = windows.first().map_or(span.start, |(_, window)| window.start);
        let read = Interval { start: first, end: span.end };
        if !zone::in_years(read) {
            return Err(outside());
        }
        let mut pieces: Vec<Millis> = windows
            .iter()
            .flat_map(|(_, window)| [window.start, window.end])
            .filter(|at| *at < span.end)
            .collect();
        pieces.sort_unstable();
        pieces.dedup();
        if matches!(reach, Reach::Back(_)) {
            let within = |window: &Interval| {
                pieces.partition_point(|at| *at < window.end)
                    - pieces.partition_point(|at| *at < window.start)
            };
            if windows.iter().any(|(_, window)| within(window) > MAX_PIECES) {
                return Err(format!("a window of more than {MAX_PIECES} buckets: ask for wider ones"));
            }
        }
        let pieces = Buckets::Starts(pieces);
        pieces.on_grain(zone, Interval { start: first - 1, end: span.end }, grain)?;
        Ok(Rolling { reach, span: read, pieces, windows, fits })
    }

    /// Refuses windows all of which would be shorter than their buckets.
    pub(super) fn wide_enough(self) -> Result<Rolling, String> {
        if self.fits { Ok(self) } else { Err("must reach back over a whole bucket at least".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::buckets::Granularity;
    use crate::query::range;
    use shared_model::time::DAY;

    const HOUR: Millis = 3_600_000;

    fn windows(
        zone: Tz,
        granularity: &str,
        from: &str,
        to: &str,
        reach: Reach,
    ) -> Result<Vec<String>, String> {
        let at = |text: &str| range::end(&text.into(), zone).unwrap();
        let span = Interval { start: at(from), end: at(to) };
        let granularity = Granularity::parse(granularity).unwrap();
        let buckets = Buckets::new(granularity, zone, span, HOUR).unwrap();
        let rolling = Rolling::new(reach, zone, span, &buckets, HOUR)?.wide_enough()?;
        let shown = |at: Millis| zone::show(zone, at)[5..16].to_owned();
        let window = |(start, window): &(Millis, Interval)| {
            format!("{}: {} {}", shown(*start), shown(window.start), shown(window.end))
        };
        Ok(rolling.windows.iter().map(window).collect())
    }

    #[test]
    fn a_window_ends_with_its_bucket_and_is_as_long_as_the_clock_says() {
        let check = |zone, granularity, from, to, reach, expected: &[&str]| {
            let found = windows(zone, granularity, from, to, reach);
            assert_eq!(found.unwrap(), expected, "{granularity} {from} {to} {reach:?}");
        };
        let days = |days: i64| Reach::Back(Shift::Wall(days * DAY));
        let week = ["06-14T00:00: 06-08T00:00 06-15T00:00", "06-15T00:00: 06-09T00:00 06-16T00:00"];
        check(Tz::UTC, "day", "2016-06-14", "2016-06-16", days(7), &week);
        let running = ["06-14T00:00: 06-14T00:00 06-15T00:00", "06-15T00:00: 06-14T00:00 06-16T00:00"];
        check(Tz::UTC, "day", "2016-06-14", "2016-06-16", Reach::Span, &running);
        let total = ["06-14T00:00: 05-16T00:00 06-16T00:00"];
        check(Tz::UTC, "none", "2016-06-14", "2016-06-16", Reach::Back(Shift::Months(1)), &total);
        // A week in which the clock is put forward has seven days all the same.
        let forward = ["03-13T00:00: 03-07T00:00 03-14T00:00"];
        check(Tz::America__New_York, "day", "2016-03-13", "2016-03-14", days(7), &forward);
        // Where it is put back, the hour that comes twice ends two windows.
        let hour = Reach::Back(Shift::Wall(2 * DAY));
        let back = [
            "11-06T00:00: 11-04T01:00 11-06T01:00",
            "11-06T01:00: 11-04T01:00 11-06T01:00",
            "11-06T01:00: 11-04T02:00 11-06T02:00",
        ];
        check(Tz::America__New_York, "hour", "2016-11-06", "2016-11-06T02:00", hour, &back);
        // A day of 25 hours is no shorter for a window of 24.
        let long = ["11-06T00:00: 11-06T00:00 11-07T00:00", "11-07T00:00: 11-07T00:00 11-08T00:00"];
        let hours = Reach::Back(Shift::Time(DAY));
        check(Tz::America__New_York, "day", "2016-11-06", "2016-11-08", hours, &long);
    }

    #[test]
    fn what_cant_be_cut_is_refused() {
        let refused = |reach| windows(Tz::UTC, "day", "2016-06-14", "2016-06-16", reach).unwrap_err();
        assert!(refused(Reach::Back(Shift::Time(HOUR))).contains("over a whole bucket"));
        let odd = refused(Reach::Back(Shift::Time(DAY + HOUR / 2)));
        assert!(odd.contains("is no multiple of the grain, 1h"), "{odd}");
        let minutes = Interval { start: 0, end: 100 * HOUR };
        let fine = Buckets::new(Granularity::width(60_000), Tz::UTC, minutes, 60_000).unwrap();
        let many =
            Rolling::new(Reach::Back(Shift::Time(90 * HOUR)), Tz::UTC, minutes, &fine, 60_000).unwrap_err();
        assert!(many.contains("a window of more than 5000 buckets"), "{many}");
        assert!(refused(Reach::Back(Shift::Months(900_000))).contains("outside the calendar"));
    }
}
