//! How an answer's time axis is cut: one bucket for all, even widths, or what a time zone's clocks and calendar say.
//!
//! Every boundary inside the span is a multiple of the grain, so that no cell of the views ever lies across one: all
//! time zones are answered from one set of stored rows, or refused.

use super::zone;
use chrono_tz::Tz;
use shared_model::time::{DAY, Interval, Millis};

/// Widths up to this are spans of time, longer ones what the clock and the calendar say.
pub(super) const HOUR: Millis = 3_600_000;
/// 1970-01-01 was a Thursday.
const MONDAY: Millis = 4 * DAY;

/// What the request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// One bucket for the whole span.
    Total,
    /// Buckets of `width` on the zone's clock, of which one begins when the clock shows `from`.
    Width {
        /// Milliseconds.
        width: Millis,
        /// Milliseconds since 1970 on the clock.
        from: Millis,
    },
    /// So many calendar months; counted from January.
    Months(i32),
}

impl Granularity {
    /// Buckets of a width, counted from 1970 on the zone's clock.
    pub fn width(width: Millis) -> Granularity {
        Granularity::Width { width, from: 0 }
    }

    /// Reads `none`, `total`, a unit (`second` to `year`), or a number with `ms`, `s`, `m`, `h`, `d` or `w`.
    pub fn parse(text: &str) -> Option<Granularity> {
        if matches!(text, "none" | "total") {
            return Some(Granularity::Total);
        }
        if let Some(unit) = Granularity::unit(text) {
            return Some(unit);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let unit = match &text[digits..] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => HOUR,
            "d" => DAY,
            "w" => 7 * DAY,
            _ => return None,
        };
        let width = text[..digits].parse::<i64>().ok()?.checked_mul(unit)?;
        let from = if unit == 7 * DAY { MONDAY } else { 0 };
        (0 < width && width < zone::YEARS.end).then_some(Granularity::Width { width, from })
    }

    /// One unit of the clock or the calendar: `second` to `year`. Weeks begin on Monday.
    pub fn unit(name: &str) -> Option<Granularity> {
        Some(match name {
            "second" => Granularity::width(1_000),
            "minute" => Granularity::width(60_000),
            "hour" => Granularity::width(HOUR),
            "day" => Granularity::width(DAY),
            "week" => Granularity::Width { width: 7 * DAY, from: MONDAY },
            "month" => Granularity::Months(1),
            "quarter" => Granularity::Months(3),
            "year" => Granularity::Months(12),
            _ => return None,
        })
    }

    /// The bucket that holds an instant; `None` outside the calendar.
    pub fn around(self, zone: Tz, instant: Millis) -> Option<Interval> {
        let starts = starts(self, zone, Interval { start: instant, end: instant + 1 }).ok()?;
        Some(Interval { start: *starts.first()?, end: self.start_after(zone, instant)? })
    }

    /// The first start of a bucket after an instant; `None` outside the calendar.
    ///
    /// Where the clock is put back, buckets of up to an hour begin at what it shows again as well. Longer ones begin once,
    /// so that a day is a day.
    fn start_after(self, zone: Tz, instant: Millis) -> Option<Millis> {
        let wall = zone::wall(zone, instant)?;
        let mut label = self.label_after(wall)?;
        if !matches!(self, Granularity::Width { width, .. } if width <= HOUR) {
            // Of what the clock shows again, the first time may be long past.
            loop {
                match zone::instant(zone, label)? {
                    start if start > instant => return Some(start),
                    _ => label = self.label_after(label)?,
                }
            }
        }
        let start = instant + (label - wall);
        if zone::wall(zone, start)? == label {
            return Some(start);
        }
        let change = zone::change(zone, Interval { start: instant, end: start })?;
        let shown = zone::wall(zone, change)?;
        let begins = shown >= label || self.label_of(shown)? == shown;
        if begins { Some(change) } else { self.start_after(zone, change) }
    }

    /// The clock's time at which the bucket begins that holds another.
    fn label_of(self, wall: Millis) -> Option<Millis> {
        match self {
            Granularity::Total => None,
            Granularity::Width { width, from } => Some((wall - from).div_euclid(width) * width + from),
            Granularity::Months(months) => {
                let date = chrono::DateTime::from_timestamp_millis(wall)?.date_naive();
                let month = chrono::Datelike::year(&date) * 12 + chrono::Datelike::month0(&date) as i32;
                zone::months_on(0, month.div_euclid(months) * months - 1970 * 12)
            }
        }
    }

    /// The clock's time at which the next bucket begins.
    fn label_after(self, wall: Millis) -> Option<Millis> {
        let label = self.label_of(wall)?;
        match self {
            Granularity::Months(months) => zone::months_on(label, months),
            Granularity::Width { width, .. } => label.checked_add(width),
            Granularity::Total => None,
        }
    }
}

/// The buckets of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Buckets {
    /// One, that starts here.
    One(Millis),
    /// Of even width; one of them starts at `origin`.
    Even {
        /// Milliseconds.
        width: Millis,
        /// Milliseconds since 1970 UTC.
        origin: Millis,
    },
    /// Ascending starts; the first is at or before the span's start.
    Starts(Vec<Millis>),
}

/// The most buckets that are listed for one answer: some 270 years of days.
pub const MAX_STARTS: usize = 100_000;

impl Buckets {
    /// The buckets of a span as a time zone's clock shows it.
    ///
    /// # Errors
    /// A message where a boundary is no multiple of `grain` (milliseconds), or where there are too many buckets.
    pub fn new(granularity: Granularity, zone: Tz, span: Interval, grain: Millis) -> Result<Buckets, String> {
        let buckets = match granularity {
            Granularity::Total => return Ok(Buckets::One(span.start)),
            Granularity::Width { width, from } if zone == Tz::UTC => Buckets::Even { width, origin: from },
            uneven => evened(starts(uneven, zone, span)?, span.end),
        };
        match granularity {
            Granularity::Width { width, .. } if width % grain != 0 => {
                Err(format!("must be a multiple of the grain, {}", show_width(grain)))
            }
            _ => buckets.on_grain(zone, span, grain).map(|()| buckets),
        }
    }

    /// Whether every boundary inside the span is a multiple of the grain.
    ///
    /// # Errors
    /// A message that names the first that is none, and the grain.
    pub fn on_grain(&self, zone: Tz, span: Interval, grain: Millis) -> Result<(), String> {
        let odd = match self {
            Buckets::One(_) => None,
            Buckets::Even { width, origin } if width % grain == 0 && origin % grain == 0 => None,
            Buckets::Even { width, .. } => Some(self.start_of(span.start) + width),
            Buckets::Starts(starts) => {
                starts.iter().find(|start| **start > span.start && **start % grain != 0).copied()
            }
        };
        match odd.filter(|start| *start < span.end) {
            None => Ok(()),
            Some(start) => Err(format!(
                "the boundary at {} ({zone}) is no multiple of the grain, {}: ask in a time zone whose offset is",
                zone::show(zone, start),
                show_width(grain)
            )),
        }
    }

    /// The start of the bucket that holds a time of the span.
    pub fn start_of(&self, time: Millis) -> Millis {
        match self {
            Buckets::One(start) => *start,
            Buckets::Even { width, origin } => (time - origin).div_euclid(*width) * width + origin,
            Buckets::Starts(starts) => {
                let after = starts.partition_point(|start| *start <= time);
                starts.get(after.saturating_sub(1)).copied().unwrap_or(time)
            }
        }
    }

    /// The starts of all buckets of a span, ascending.
    ///
    /// # Errors
    /// A message where there are more than [`MAX_STARTS`].
    pub fn starts(&self, span: Interval) -> Result<Vec<Millis>, String> {
        match self {
            Buckets::One(start) => Ok(vec![*start]),
            Buckets::Starts(starts) => Ok(starts.clone()),
            Buckets::Even { width, .. } => {
                let first = self.start_of(span.start);
                let count = (span.end - 1 - first).div_euclid(*width) as usize + 1;
                let starts = (0..).map(|i| first + i * width).take_while(|start| *start < span.end);
                if count <= MAX_STARTS { Ok(starts.collect()) } else { Err(too_many()) }
            }
        }
    }
}

/// A width for people: `20m`, `1h`, `1d`.
pub fn show_width(width: Millis) -> String {
    let units = [(DAY, "d"), (HOUR, "h"), (60_000, "m"), (1_000, "s")];
    match units.iter().find(|(unit, _)| width % unit == 0) {
        Some((unit, name)) => format!("{}{name}", width / unit),
        None => format!("{width}ms"),
    }
}

/// The starts of the buckets that a span touches.
fn starts(granularity: Granularity, zone: Tz, span: Interval) -> Result<Vec<Millis>, String> {
    let out_of_range = || "the span lies outside the calendar".to_owned();
    let wall = zone::wall(zone, span.start).ok_or_else(out_of_range)?;
    let label = granularity.label_of(wall).ok_or_else(out_of_range)?;
    let before = granularity.label_of(label - 1).ok_or_else(out_of_range)?;
    // From one bucket earlier by what the clock shows now: the first one is no longer than that, though the clock was put
    // back in it.
    let mut start = span.start - (wall - before);
    let mut starts = Vec::new();
    loop {
        start = granularity.start_after(zone, start).ok_or_else(out_of_range)?;
        if start >= span.end {
            return Ok(starts);
        }
        if start <= span.start {
            starts.clear();
        }
        starts.push(start);
        if starts.len() > MAX_STARTS {
            return Err(too_many());
        }
    }
}

fn too_many() -> String {
    format!("more than {MAX_STARTS} buckets: ask for wider ones or a shorter span")
}

/// Starts at even distances as a width, if its next boundary isn't inside the span: between two changes of its clocks,
/// every zone's are.
fn evened(starts: Vec<Millis>, end: Millis) -> Buckets {
    if let [first, second, ..] = starts[..]
        && let width = second - first
        && starts.windows(2).all(|two| two[1] - two[0] == width)
        && starts.last().is_some_and(|last| last + width >= end)
    {
        return Buckets::Even { width, origin: first };
    }
    Buckets::Starts(starts)
}

#[cfg(test)]
mod tests;
