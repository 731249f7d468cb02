//! The clocks of a time zone: which wall-clock time an instant has, and at which instants a clock shows a time.
//!
//! Wall-clock times are milliseconds since 1970-01-01T00:00 on that clock, so that calendar arithmetic is arithmetic. A
//! clock that is put back shows some times twice; one that is put forward leaves some out, and then the first instant
//! after them stands for all of them.

use chrono::{DateTime, Datelike, FixedOffset, MappedLocalTime, NaiveDateTime, Offset, TimeZone};
use chrono_tz::Tz;
use shared_model::time::{DAY, Interval, Millis};

/// Instants that calendars and databases agree on: the years 1 to 9999.
pub(super) const YEARS: Interval = Interval { start: -62_135_596_800_000, end: 253_402_300_800_000 };

/// Whether a span lies within them.
pub(super) fn in_years(span: Interval) -> bool {
    YEARS.start <= span.start && span.end <= YEARS.end
}

/// No clock differs from UTC by more.
const FARTHEST: Millis = 26 * 3_600_000;

fn naive(wall: Millis) -> Option<NaiveDateTime> {
    DateTime::from_timestamp_millis(wall).map(|at| at.naive_utc())
}

/// How far a zone's clock is ahead of UTC at an instant.
fn offset(zone: Tz, instant: Millis) -> Option<FixedOffset> {
    Some(zone.offset_from_utc_datetime(&naive(instant)?).fix())
}

/// What the clock shows at an instant; `None` outside the calendar.
pub(super) fn wall(zone: Tz, instant: Millis) -> Option<Millis> {
    Some(instant + i64::from(offset(zone, instant)?.local_minus_utc()) * 1_000)
}

/// The first instant at which the clock shows a time, or shows a later one because it leaves that time out. `None` outside
/// the calendar.
pub(super) fn instant(zone: Tz, wall: Millis) -> Option<Millis> {
    match zone.from_local_datetime(&naive(wall)?) {
        MappedLocalTime::Single(at) => Some(at.timestamp_millis()),
        MappedLocalTime::Ambiguous(a, b) => Some(a.timestamp_millis().min(b.timestamp_millis())),
        MappedLocalTime::None => first_after(zone, wall),
    }
}

/// The first instant of a span, its end included, from which the clock has another offset than at its start.
pub(super) fn change(zone: Tz, span: Interval) -> Option<Millis> {
    let before = offset(zone, span.start)?;
    first(span, |at| Some(offset(zone, at)? != before))
}

/// The instant at which the clock leaps over a time.
fn first_after(zone: Tz, left_out: Millis) -> Option<Millis> {
    let span = Interval { start: left_out - FARTHEST, end: left_out + FARTHEST };
    first(span, |at| Some(wall(zone, at)? >= left_out))
}

/// The first instant of a span from which something holds, which it does at its end.
fn first(span: Interval, holds: impl Fn(Millis) -> Option<bool>) -> Option<Millis> {
    let Interval { start: mut before, end: mut after } = span;
    while before < after {
        let middle = before + (after - before).div_euclid(2);
        if holds(middle)? {
            after = middle;
        } else {
            before = middle + 1;
        }
    }
    Some(after)
}

/// A wall-clock time, months away. A day that its month doesn't have is the first of the next month, as a time that a
/// clock leaves out is the first after it.
pub(super) fn months_on(wall: Millis, months: i32) -> Option<Millis> {
    let at = naive(wall)?;
    let month = at.year().checked_mul(12)? + at.month0() as i32 + months;
    let of = |month: i32, day: u32| {
        chrono::NaiveDate::from_ymd_opt(month.div_euclid(12), month.rem_euclid(12) as u32 + 1, day)
    };
    let date = of(month, at.day()).or_else(|| of(month + 1, 1))?;
    Some(i64::from(date.to_epoch_days()) * DAY + wall.rem_euclid(DAY))
}

/// An instant as the zone's clock shows it, in RFC 3339: `2016-06-15T00:00:00.000+02:00`; with `Z` in UTC, and where the
/// offset has seconds, for which RFC 3339 has no place.
pub fn show(zone: Tz, instant: Millis) -> String {
    let at = DateTime::from_timestamp_millis(instant).zip(offset(zone, instant));
    match at.filter(|(_, offset)| zone != Tz::UTC && offset.local_minus_utc() % 60 == 0) {
        Some((at, offset)) => at.with_timezone(&offset).to_rfc3339_opts(chrono::SecondsFormat::Millis, false),
        None => shared_model::time::show(instant),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Millis {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
    }

    #[test]
    fn a_wall_clock_time_is_its_first_instant_or_the_one_after_it() {
        let check = |zone: Tz, wall: &str, expected: &str| {
            let found = instant(zone, at(&format!("{wall}Z")));
            assert_eq!(found, Some(at(expected)), "{wall} in {zone}");
        };
        check(Tz::Asia__Kolkata, "2016-06-15T00:00:00", "2016-06-14T18:30:00Z");
        check(Tz::Asia__Kathmandu, "2016-06-15T00:00:00", "2016-06-14T18:15:00Z");
        check(Tz::America__New_York, "2016-03-13T02:30:00", "2016-03-13T07:00:00Z");
        check(Tz::America__New_York, "2016-11-06T01:30:00", "2016-11-06T05:30:00Z");
        // Half an hour back, a midnight that isn't there, and a whole day that never was.
        check(Tz::Australia__Lord_Howe, "2016-04-03T01:45:00", "2016-04-02T14:45:00Z");
        check(Tz::America__Sao_Paulo, "2016-10-16T00:00:00", "2016-10-16T03:00:00Z");
        check(Tz::Pacific__Apia, "2011-12-30T12:00:00", "2011-12-30T10:00:00Z");
    }

    #[test]
    fn months_on_is_the_same_day_or_the_one_after_the_month() {
        for (from, months, expected) in [
            ("2016-03-28T10:00:00Z", -1, "2016-02-28T10:00:00Z"),
            ("2016-03-31T10:00:00Z", -1, "2016-03-01T10:00:00Z"),
            ("2016-01-31T00:00:00Z", 1, "2016-03-01T00:00:00Z"),
            ("2016-01-01T00:00:00Z", -1, "2015-12-01T00:00:00Z"),
            ("2016-02-29T00:00:00Z", -12, "2015-03-01T00:00:00Z"),
        ] {
            assert_eq!(months_on(at(from), months), Some(at(expected)), "{from} {months}");
        }
    }

    #[test]
    fn an_instant_is_shown_as_itself() {
        for (zone, time, expected) in [
            (Tz::Asia__Kolkata, "2016-06-14T18:30:00Z", "2016-06-15T00:00:00.000+05:30"),
            (Tz::UTC, "2016-06-14T18:30:00Z", "2016-06-14T18:30:00.000Z"),
            // Half a minute beside three quarters of an hour behind UTC, until 1972.
            (Tz::Africa__Monrovia, "1971-06-14T18:30:00Z", "1971-06-14T18:30:00.000Z"),
            (Tz::Africa__Monrovia, "2016-06-14T18:30:00Z", "2016-06-14T18:30:00.000+00:00"),
        ] {
            assert_eq!(show(zone, at(time)), expected, "{time} in {zone}");
            assert_eq!(at(&show(zone, at(time))), at(time));
        }
    }
}
