//! How an answer's time axis is cut: one bucket for all, fixed widths, or calendar days, weeks and months.
//!
//! Every boundary is a multiple of the grain, so that no cell of the views ever lies across one.

use chrono::{Datelike, Days, Months, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use shared_model::time::{DAY, Interval, Millis};

/// What the request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// One bucket for the whole span.
    Total,
    /// Buckets of this many milliseconds, counted from 1970 UTC.
    Fixed(Millis),
    /// Calendar days.
    Day,
    /// Calendar weeks, from Monday.
    Week,
    /// Calendar months.
    Month,
}

impl Granularity {
    /// Reads `none`, `total`, `day`, `week`, `month`, or a number with `s`, `m`, `h`, `d` or `w`.
    pub fn parse(text: &str) -> Option<Granularity> {
        match text {
            "none" | "total" => return Some(Granularity::Total),
            "hour" => return Some(Granularity::Fixed(3_600_000)),
            "day" | "1d" => return Some(Granularity::Day),
            "week" | "1w" => return Some(Granularity::Week),
            "month" => return Some(Granularity::Month),
            _ => {}
        }
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let unit = match &text[digits..] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => DAY,
            "w" => 7 * DAY,
            _ => return None,
        };
        let width = text[..digits].parse::<i64>().ok()?.checked_mul(unit)?;
        (width > 0).then_some(Granularity::Fixed(width))
    }
}

/// The buckets of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Buckets {
    /// One, that starts here.
    One(Millis),
    /// Fixed widths from 1970 UTC.
    Fixed(Millis),
    /// Ascending starts; the first is at or before the span's start.
    Starts(Vec<Millis>),
}

/// The most calendar buckets of one answer: some 270 years of days.
const MAX_STARTS: usize = 100_000;

impl Buckets {
    /// The buckets of a span, in a time zone where they follow a calendar.
    ///
    /// # Errors
    /// A message where a boundary is no multiple of `grain` (milliseconds), or where there are too many buckets.
    pub fn new(granularity: Granularity, zone: Tz, span: Interval, grain: Millis) -> Result<Buckets, String> {
        let buckets = match granularity {
            Granularity::Total => return Ok(Buckets::One(span.start)),
            Granularity::Fixed(width) => Buckets::Fixed(width),
            Granularity::Day if zone == Tz::UTC => Buckets::Fixed(DAY),
            calendar => Buckets::Starts(starts(calendar, zone, span)?),
        };
        let odd = match &buckets {
            Buckets::Starts(starts) => starts.iter().find(|start| *start % grain != 0).copied(),
            Buckets::Fixed(width) => Some(*width).filter(|width| width % grain != 0),
            Buckets::One(_) => None,
        };
        match odd {
            None => Ok(buckets),
            Some(_) if matches!(buckets, Buckets::Fixed(_)) => {
                Err(format!("must be a multiple of the grain, {}", show_width(grain)))
            }
            Some(start) => Err(format!(
                "the boundary at {} ({zone}) is no multiple of the grain, {}: ask in a time zone whose offset is",
                shared_model::time::show(start),
                show_width(grain)
            )),
        }
    }

    /// The start of the bucket that holds a time of the span.
    pub fn start_of(&self, time: Millis) -> Millis {
        match self {
            Buckets::One(start) => *start,
            Buckets::Fixed(width) => time.div_euclid(*width) * width,
            Buckets::Starts(starts) => {
                let after = starts.partition_point(|start| *start <= time);
                starts.get(after.saturating_sub(1)).copied().unwrap_or(time)
            }
        }
    }
}

/// A width for people: `20m`, `1h`, `1d`.
pub fn show_width(width: Millis) -> String {
    let units = [(DAY, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.iter().find(|(unit, _)| width % unit == 0) {
        Some((unit, name)) => format!("{}{name}", width / unit),
        None => format!("{width}ms"),
    }
}

fn starts(granularity: Granularity, zone: Tz, span: Interval) -> Result<Vec<Millis>, String> {
    let out_of_range = || "the span lies outside the calendar".to_owned();
    let at = zone.timestamp_millis_opt(span.start).single().ok_or_else(out_of_range)?;
    let mut date = at.date_naive();
    date = match granularity {
        Granularity::Week => date
            .checked_sub_days(Days::new(date.weekday().num_days_from_monday().into()))
            .ok_or_else(out_of_range)?,
        Granularity::Month => date.with_day(1).ok_or_else(out_of_range)?,
        _ => date,
    };
    let mut starts = Vec::new();
    loop {
        let start = midnight(zone, date).ok_or_else(out_of_range)?;
        if start >= span.end && !starts.is_empty() {
            return Ok(starts);
        }
        starts.push(start);
        if starts.len() > MAX_STARTS {
            return Err(format!("more than {MAX_STARTS} buckets: ask for wider ones or a shorter span"));
        }
        date = match granularity {
            Granularity::Week => date.checked_add_days(Days::new(7)),
            Granularity::Month => date.checked_add_months(Months::new(1)),
            _ => date.succ_opt(),
        }
        .ok_or_else(out_of_range)?;
    }
}

/// The first instant of a local day: where the clocks are put forward at midnight, the first that exists.
fn midnight(zone: Tz, date: NaiveDate) -> Option<Millis> {
    let midnight = NaiveDateTime::new(date, NaiveTime::MIN);
    (0..=8).find_map(|quarters| {
        let local = midnight + TimeDelta::minutes(quarters * 15);
        zone.from_local_datetime(&local).earliest().map(|at| at.timestamp_millis())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Millis = 60_000;

    fn at(text: &str) -> Millis {
        chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
    }

    fn bucket(granularity: &str, zone: Tz, grain: Millis, time: &str) -> Result<String, String> {
        let span = Interval { start: at("2016-03-01T00:00:00Z"), end: at("2016-07-01T00:00:00Z") };
        let granularity = Granularity::parse(granularity).unwrap();
        let buckets = Buckets::new(granularity, zone, span, grain)?;
        Ok(shared_model::time::show(buckets.start_of(at(time))).replace(":00.000Z", ""))
    }

    #[test]
    fn a_bucket_starts_where_its_calendar_says() {
        let time = "2016-06-16T13:21:00Z";
        let cases = [
            ("total", Tz::UTC, "2016-03-01T00:00"),
            ("20m", Tz::UTC, "2016-06-16T13:20"),
            ("1h", Tz::UTC, "2016-06-16T13:00"),
            ("day", Tz::UTC, "2016-06-16T00:00"),
            ("week", Tz::UTC, "2016-06-13T00:00"),
            ("month", Tz::UTC, "2016-06-01T00:00"),
            ("day", Tz::America__New_York, "2016-06-16T04:00"),
            ("week", Tz::Europe__Berlin, "2016-06-12T22:00"),
            ("month", Tz::Europe__Berlin, "2016-05-31T22:00"),
        ];
        for (granularity, zone, expected) in cases {
            let found = bucket(granularity, zone, 20 * MINUTE, time);
            assert_eq!(found.as_deref(), Ok(expected), "{granularity} {zone}");
        }
    }

    #[test]
    fn boundaries_that_no_grain_meets_are_refused() {
        let time = "2016-06-16T13:21:00Z";
        for (granularity, zone, grain, why) in [
            ("30m", Tz::UTC, 20 * MINUTE, "multiple of the grain, 20m"),
            ("day", Tz::Asia__Kolkata, 20 * MINUTE, "Asia/Kolkata"),
            ("1h", Tz::UTC, DAY, "1d"),
        ] {
            let error = bucket(granularity, zone, grain, time).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(bucket("day", Tz::Asia__Kolkata, 10 * MINUTE, time).as_deref(), Ok("2016-06-15T18:30"));
        assert_eq!(Granularity::parse("fortnight"), None);
        assert_eq!(Granularity::parse("0m"), None);
        assert_eq!(Granularity::parse("99999999999999999d"), None);
    }
}
