//! Event time: half-open intervals, days, grains, panes and sliding windows, all in milliseconds since 1970 UTC.
//!
//! Every interval is half-open, `[start, end)`; every bucket start is a multiple of its width counted from 1970, so
//! a grain that divides a day never lets a bucket cross midnight UTC.

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z. Event time and ingest time are both kept so.
pub type Millis = i64;

/// One UTC day in milliseconds.
pub const DAY: Millis = 86_400_000;

/// A half-open span of time, `[start, end)`, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// The first millisecond inside.
    pub start: Millis,
    /// The first millisecond after.
    pub end: Millis,
}

impl Interval {
    /// Whether `time` lies inside.
    pub fn contains(&self, time: Millis) -> bool {
        self.start <= time && time < self.end
    }

    /// Whether the two spans share a millisecond.
    pub fn overlaps(&self, other: &Interval) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The event days that the span touches, in order; none for an empty span.
    pub fn days(&self) -> impl Iterator<Item = EventDay> + use<> {
        let (first, end) = (self.start.div_euclid(DAY), self.end.saturating_add(DAY - 1).div_euclid(DAY));
        let end = if self.start < self.end { end } else { first };
        (first..end).map(|day| EventDay(day as i32))
    }
}

/// A UTC day of event time, as days since 1970-01-01: the unit of recomputation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventDay(pub i32);

impl EventDay {
    /// The day that holds an event time.
    pub fn of(time: Millis) -> EventDay {
        EventDay(time.div_euclid(DAY) as i32)
    }

    /// The day's span.
    pub fn interval(self) -> Interval {
        let start = i64::from(self.0) * DAY;
        Interval { start, end: start + DAY }
    }

    /// The calendar date.
    pub fn date(self) -> chrono::NaiveDate {
        chrono::NaiveDate::from_epoch_days(self.0).unwrap_or(chrono::NaiveDate::MAX)
    }

    /// The day of a calendar date.
    pub fn from_date(date: chrono::NaiveDate) -> EventDay {
        EventDay(date.to_epoch_days())
    }
}

impl std::fmt::Display for EventDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.date())
    }
}

/// The bucket width at which a metric's view is kept. It divides one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grain(Millis);

impl Grain {
    /// A grain of `width` milliseconds, or `None` where it doesn't divide a day.
    pub fn new(width: Millis) -> Option<Grain> {
        (width > 0 && DAY % width == 0).then_some(Grain(width))
    }

    /// The width in milliseconds.
    pub fn width(self) -> Millis {
        self.0
    }

    /// The start of the bucket that holds `time`.
    #[inline]
    pub fn bucket(self, time: Millis) -> Millis {
        time.div_euclid(self.0) * self.0
    }
}

/// A sliding window made of panes. `width` is a multiple of `pane`, and `pane` divides a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlidingWindow {
    /// Width of the window in milliseconds.
    pub width: Millis,
    /// Width of one pane in milliseconds: the window's slide.
    pub pane: Millis,
}

impl SlidingWindow {
    /// The start of the pane that holds `time`.
    pub fn pane_of(&self, time: Millis) -> Millis {
        time.div_euclid(self.pane) * self.pane
    }

    /// The window whose newest pane holds `trusted`, the newest trusted event time: the open pane is included.
    pub fn at(&self, trusted: Millis) -> Interval {
        let end = self.pane_of(trusted) + self.pane;
        Interval { start: end - self.width, end }
    }
}

/// The longest step of which two widths are made: their greatest common divisor.
pub fn common_step(one: Millis, other: Millis) -> Millis {
    if other == 0 { one } else { common_step(other, one % other) }
}

/// `2016-06-14T04:00:00.000Z` for a person; the number itself where no calendar has it.
pub fn show(time: Millis) -> String {
    match chrono::DateTime::from_timestamp_millis(time) {
        Some(at) => at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        None => time.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_windows_are_half_open_and_floor_before_1970() {
        let grain = Grain::new(1_200_000).expect("20 min divides a day");
        assert_eq!(grain.bucket(1_199_999), 0);
        assert_eq!(grain.bucket(1_200_000), 1_200_000);
        assert_eq!(grain.bucket(-1), -1_200_000);
        assert_eq!(Grain::new(7_000_000), None);
        let window = SlidingWindow { width: 300_000, pane: 10_000 };
        assert_eq!(window.at(1_009_999), Interval { start: 710_000, end: 1_010_000 });
        assert_eq!(EventDay::of(-1), EventDay(-1));
    }

    #[test]
    fn an_interval_lists_each_day_that_it_touches() {
        let days = |start, end| Interval { start, end }.days().map(|d| d.0).collect::<Vec<_>>();
        assert_eq!(days(0, DAY), [0]);
        assert_eq!(days(DAY - 1, DAY + 1), [0, 1]);
        assert_eq!(days(5, 5), Vec::<i32>::new());
    }
}
