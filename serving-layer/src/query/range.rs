//! The span of event time that a request asks for: two ends, or a range counted from now, by a time zone's clock.
//!
//! `today` and `previous month` are what the zone's calendar says. `last 6 hours` ends with the grain's bucket that holds
//! the present, and both of its ends are whole buckets: it may reach a little further back than it says, never less.

use super::buckets::{Granularity, HOUR};
use super::zone;
use chrono_tz::Tz;
use shared_model::time::{Interval, Millis};

/// What a range may be, for whoever wrote another.
pub(crate) const FORMS: [&str; 6] =
    ["last 6 hours", "last 7 days", "today", "yesterday", "this week so far", "previous month"];

const UNITS: &str = "second, minute, hour, day, week, month, quarter, year";

/// Reads a range, as of `now`, for metrics kept at `grain` (milliseconds).
///
/// # Errors
/// A message that says what a range may be.
pub(super) fn relative(text: &str, zone: Tz, now: Millis, grain: Millis) -> Result<Interval, String> {
    let outside = || format!("{text:?} lies outside the calendar");
    let words: Vec<&str> = text.split_whitespace().collect();
    let period = |unit: &str| {
        let unit = Granularity::unit(unit).ok_or_else(|| format!("{unit:?} is no unit: expected {UNITS}"))?;
        unit.around(zone, now).map(|period| (unit, period)).ok_or_else(outside)
    };
    let open = now.div_euclid(grain) * grain + grain;
    let span = match words[..] {
        ["today"] => period("day")?.1,
        ["this", unit] => period(unit)?.1,
        ["today", "so", "far"] => Interval { end: open, ..period("day")?.1 },
        ["this", unit, "so", "far"] => Interval { end: open, ..period(unit)?.1 },
        ["yesterday"] | ["previous", _] => {
            let (unit, period) = period(words.get(1).copied().unwrap_or("day"))?;
            unit.around(zone, period.start - 1).ok_or_else(outside)?
        }
        ["last", ref length @ ..] if !length.is_empty() => {
            let start = back(zone, open, shift(length, "after last")?).ok_or_else(outside)?;
            Interval { start: start.div_euclid(grain) * grain, end: open }
        }
        _ => return Err(format!("{text:?} is no range of time: expected one like {}", FORMS.join(", "))),
    };
    if zone::in_years(span) { Ok(span) } else { Err(outside()) }
}

/// Reads a length of time, such as `7 days` or `month`.
///
/// # Errors
/// A message that says what a length may be.
pub(super) fn length(text: &str) -> Result<Shift, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    shift(&words, "of units")
        .map_err(|message| format!("{text:?} is no length of time like 7 days: {message}"))
}

/// A number of units, or one: spans of time up to an hour, beyond that what the clock and the calendar say.
fn shift(words: &[&str], place: &str) -> Result<Shift, String> {
    let (number, units) = match words {
        [unit] => (Some(1), *unit),
        [number, units] => (number.parse::<i32>().ok(), units.strip_suffix('s').unwrap_or(units)),
        _ => return Err(format!("expected a number and a unit: {UNITS}")),
    };
    let number = number.filter(|number| (1..=1_000_000).contains(number));
    let number = number.ok_or_else(|| format!("expected a whole number from 1 to 1000000 {place}"))?;
    match Granularity::unit(units) {
        Some(Granularity::Width { width, .. }) if width <= HOUR => Ok(Shift::Time(i64::from(number) * width)),
        Some(Granularity::Width { width, .. }) => Ok(Shift::Wall(i64::from(number) * width)),
        // No calendar has as many: as good as beyond its end.
        Some(Granularity::Months(months)) => Ok(Shift::Months(months.saturating_mul(number))),
        _ => Err(format!("{units:?} is no unit: expected {UNITS}")),
    }
}

/// How far back on a zone's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// So many milliseconds, whatever the clock does.
    Time(Millis),
    /// So many milliseconds on the clock: a day is what the clock calls one.
    Wall(Millis),
    /// So many months.
    Months(i32),
}

/// An instant so much earlier: by the clock, the first one at which it shows that. `None` outside the calendar.
pub(super) fn back(zone: Tz, instant: Millis, shift: Shift) -> Option<Millis> {
    let wall = zone::wall(zone, instant)?;
    let earlier = match shift {
        Shift::Time(by) => return instant.checked_sub(by),
        Shift::Wall(by) => wall.checked_sub(by)?,
        Shift::Months(by) => zone::months_on(wall, -by)?,
    };
    zone::instant(zone, earlier)
}

/// Reads one end: RFC 3339, the zone's own `2016-06-14T04:00` or `2016-06-14` (its first instant), or milliseconds
/// since 1970.
pub(super) fn end(value: &serde_json::Value, zone: Tz) -> Result<Millis, String> {
    use serde_json::Value as Json;
    let parsed = match value {
        Json::Number(number) => number.as_i64(),
        Json::String(text) => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(at) => Some(at.timestamp_millis()),
            Err(_) => local(text).and_then(|wall| zone::instant(zone, wall)),
        },
        _ => None,
    };
    let years = zone::YEARS.start..=zone::YEARS.end;
    let wanted =
        "2016-06-14T04:00:00Z, 2016-06-14T04:00 or 2016-06-14 in the time zone, or milliseconds since 1970";
    parsed.filter(|time| years.contains(time)).ok_or_else(|| format!("{value} is no time: expected {wanted}"))
}

/// A time without an offset, as a clock shows it.
fn local(text: &str) -> Option<Millis> {
    let date = |text: &str| text.parse::<chrono::NaiveDate>().ok()?.and_hms_opt(0, 0, 0);
    let minutes = |text: &str| chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M").ok();
    let wall = date(text).or_else(|| minutes(text)).or_else(|| text.parse().ok())?;
    Some(wall.and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Millis = 60_000;

    fn at(text: &str) -> Millis {
        chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
    }

    #[test]
    fn a_range_is_counted_from_now_by_the_zones_clock() {
        let now = at("2016-06-16T13:21:30Z");
        let check = |text: &str, zone: Tz, start: &str, end: &str| {
            let expected = Interval { start: at(start), end: at(end) };
            assert_eq!(relative(text, zone, now, 20 * MINUTE), Ok(expected), "{text} in {zone}");
        };
        let open = "2016-06-16T13:40:00Z";
        check("last 6 hours", Tz::UTC, "2016-06-16T07:40:00Z", open);
        check("last hour", Tz::Asia__Kolkata, "2016-06-16T12:40:00Z", open);
        check("last 30 minutes", Tz::UTC, "2016-06-16T13:00:00Z", open);
        check("last 7 days", Tz::Europe__Berlin, "2016-06-09T13:40:00Z", open);
        // Over a change of the clocks seven days are an hour longer.
        check("last 90 days", Tz::America__New_York, "2016-03-18T13:40:00Z", open);
        check("last 100 days", Tz::America__New_York, "2016-03-08T14:40:00Z", open);
        check("last 3 months", Tz::UTC, "2016-03-16T13:40:00Z", open);
        check("today", Tz::UTC, "2016-06-16T00:00:00Z", "2016-06-17T00:00:00Z");
        check("today", Tz::Asia__Tokyo, "2016-06-15T15:00:00Z", "2016-06-16T15:00:00Z");
        check("today so far", Tz::Europe__Berlin, "2016-06-15T22:00:00Z", open);
        check("yesterday", Tz::Europe__Berlin, "2016-06-14T22:00:00Z", "2016-06-15T22:00:00Z");
        check("this week", Tz::Europe__Berlin, "2016-06-12T22:00:00Z", "2016-06-19T22:00:00Z");
        check("this week so far", Tz::UTC, "2016-06-13T00:00:00Z", open);
        check("previous month", Tz::UTC, "2016-05-01T00:00:00Z", "2016-06-01T00:00:00Z");
        check("previous quarter", Tz::UTC, "2016-01-01T00:00:00Z", "2016-04-01T00:00:00Z");
        check("  this   hour ", Tz::UTC, "2016-06-16T13:00:00Z", "2016-06-16T14:00:00Z");
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for (text, why) in [
            ("", "expected one like last 6 hours"),
            ("tomorrow", "no range of time"),
            ("last 6 fortnights", "\"fortnight\" is no unit"),
            ("last 0 hours", "whole number from 1"),
            ("last 99999999999 hours", "whole number from 1"),
            ("last 1000000 years", "outside the calendar"),
            ("last 1000000 weeks", "outside the calendar"),
            ("this total", "\"total\" is no unit"),
        ] {
            let error = relative(text, Tz::UTC, at("2016-06-16T13:21:30Z"), MINUTE).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_end_without_an_offset_is_what_the_zones_clock_shows() {
        let check = |value: serde_json::Value, zone: Tz, expected: &str| {
            assert_eq!(end(&value, zone), Ok(at(expected)), "{value} in {zone}");
        };
        check("2016-06-14".into(), Tz::UTC, "2016-06-14T00:00:00Z");
        check("2016-06-14".into(), Tz::Europe__Berlin, "2016-06-13T22:00:00Z");
        check("2016-06-14T04:30".into(), Tz::Asia__Kolkata, "2016-06-13T23:00:00Z");
        check("2016-06-14T04:30:10".into(), Tz::UTC, "2016-06-14T04:30:10Z");
        check("2016-06-14T04:00:00+01:00".into(), Tz::Asia__Kolkata, "2016-06-14T03:00:00Z");
        check(1_465_862_400_000_i64.into(), Tz::Asia__Kolkata, "2016-06-14T00:00:00Z");
        check("2016-10-16".into(), Tz::America__Sao_Paulo, "2016-10-16T03:00:00Z");
        for wrong in ["yesterday", "2016-13-01", "2016-06-14T25:00", "+99999-01-01", ""] {
            assert!(end(&wrong.into(), Tz::UTC).unwrap_err().contains("is no time"), "{wrong}");
        }
    }
}
