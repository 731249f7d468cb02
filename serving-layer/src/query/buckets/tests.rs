//! Buckets by example, and held against a calendar that looks at each minute by itself.

use super::*;
use chrono::{Datelike, TimeZone, Timelike};
use proptest::prelude::*;

const MINUTE: Millis = 60_000;

fn at(text: &str) -> Millis {
    chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
}

fn bucket(granularity: &str, zone: Tz, grain: Millis, time: &str) -> Result<String, String> {
    let time = at(time);
    let span = Interval { start: time.div_euclid(DAY) * DAY - 3 * DAY, end: time + 3 * DAY };
    let granularity = Granularity::parse(granularity).unwrap();
    let buckets = Buckets::new(granularity, zone, span, grain)?;
    Ok(shared_model::time::show(buckets.start_of(time)).replace(":00.000Z", ""))
}

#[test]
fn a_bucket_starts_where_its_calendar_says() {
    let time = "2016-06-16T13:21:00Z";
    let cases = [
        ("total", Tz::UTC, "2016-06-13T00:00"),
        ("20m", Tz::UTC, "2016-06-16T13:20"),
        ("1h", Tz::UTC, "2016-06-16T13:00"),
        ("day", Tz::UTC, "2016-06-16T00:00"),
        ("week", Tz::UTC, "2016-06-13T00:00"),
        ("2w", Tz::UTC, "2016-06-06T00:00"),
        ("month", Tz::UTC, "2016-06-01T00:00"),
        ("quarter", Tz::UTC, "2016-04-01T00:00"),
        ("year", Tz::UTC, "2016-01-01T00:00"),
        ("day", Tz::America__New_York, "2016-06-16T04:00"),
        ("week", Tz::Europe__Berlin, "2016-06-12T22:00"),
        ("month", Tz::Europe__Berlin, "2016-05-31T22:00"),
        ("6h", Tz::Europe__Berlin, "2016-06-16T10:00"),
    ];
    for (granularity, zone, expected) in cases {
        let found = bucket(granularity, zone, 20 * MINUTE, time);
        assert_eq!(found.as_deref(), Ok(expected), "{granularity} {zone}");
    }
    // The hour of a zone begins when its clock shows it.
    let quarter = bucket("hour", Tz::Asia__Kathmandu, 5 * MINUTE, time);
    assert_eq!(quarter.as_deref(), Ok("2016-06-16T13:15"));
}

#[test]
fn boundaries_that_no_grain_meets_are_refused() {
    let time = "2016-06-16T13:21:00Z";
    for (granularity, zone, grain, why) in [
        ("30m", Tz::UTC, 20 * MINUTE, "multiple of the grain, 20m"),
        ("day", Tz::Asia__Kolkata, 20 * MINUTE, "Asia/Kolkata"),
        ("1h", Tz::Asia__Kathmandu, HOUR, "no multiple of the grain, 1h"),
        ("1h", Tz::UTC, DAY, "1d"),
        ("day", Tz::Europe__Berlin, DAY, "no multiple of the grain, 1d"),
    ] {
        let error = bucket(granularity, zone, grain, time).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(bucket("day", Tz::Asia__Kolkata, 10 * MINUTE, time).as_deref(), Ok("2016-06-15T18:30"));
    for wrong in ["fortnight", "0m", "99999999999999999d", "", "m", "-1h", "9000000000000000000ms"] {
        assert_eq!(Granularity::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn a_day_on_which_the_clocks_change_is_cut_by_what_they_show() {
    let hours = |zone: Tz, from: &str, to: &str, granularity: &str| {
        let span = Interval { start: at(from), end: at(to) };
        let granularity = Granularity::parse(granularity).unwrap();
        let buckets = Buckets::new(granularity, zone, span, MINUTE).unwrap();
        let starts = buckets.starts(span).unwrap();
        let ends = starts.iter().skip(1).copied().chain([span.end]);
        starts.iter().zip(ends).map(|(start, end)| (end - start) / MINUTE).collect::<Vec<_>>()
    };
    let new_york = Tz::America__New_York;
    assert_eq!(hours(new_york, "2016-03-13T05:00:00Z", "2016-03-14T04:00:00Z", "hour"), [60; 23]);
    assert_eq!(hours(new_york, "2016-11-06T04:00:00Z", "2016-11-07T05:00:00Z", "hour"), [60; 25]);
    let six = hours(new_york, "2016-11-06T04:00:00Z", "2016-11-07T05:00:00Z", "6h");
    assert_eq!(six, [420, 360, 360, 360]);
    let days = hours(new_york, "2016-03-12T05:00:00Z", "2016-03-15T04:00:00Z", "day");
    assert_eq!(days, [24 * 60, 23 * 60, 24 * 60]);
    let lord_howe = hours(Tz::Australia__Lord_Howe, "2016-04-02T13:00:00Z", "2016-04-02T17:30:00Z", "hour");
    assert_eq!(lord_howe, [60, 90, 60, 60]);
    let half = hours(Tz::Australia__Lord_Howe, "2016-04-02T13:00:00Z", "2016-04-02T17:30:00Z", "30m");
    assert_eq!(half, [30; 9]);
    // Samoa had no 30 December 2011.
    let apia = hours(Tz::Pacific__Apia, "2011-12-29T10:00:00Z", "2011-12-31T10:00:00Z", "day");
    assert_eq!(apia, [24 * 60; 2]);
}

#[test]
fn a_span_may_begin_and_end_within_an_hour_that_comes_twice() {
    let starts = |granularity: &str, from: &str, to: &str| {
        let span = Interval {
            start: at(&format!("2016-11-06T{from}:00Z")),
            end: at(&format!("2016-11-06T{to}:00Z")),
        };
        let granularity = Granularity::parse(granularity).unwrap();
        let buckets = Buckets::new(granularity, Tz::America__New_York, span, MINUTE).unwrap();
        let starts = buckets.starts(span).unwrap();
        starts.iter().map(|start| shared_model::time::show(*start)[11..16].to_owned()).collect::<Vec<_>>()
    };
    // 01:45 EDT is 05:45 UTC, and 01:00 EST is 06:00.
    let quarters = ["05:45", "06:00", "06:15", "06:30", "06:45", "07:00"];
    assert_eq!(starts("15m", "05:45", "07:15"), quarters);
    assert_eq!(starts("15m", "05:50", "06:20"), quarters[..3]);
    assert_eq!(starts("15m", "05:15", "05:50"), ["05:15", "05:30", "05:45"]);
    assert_eq!(starts("15m", "06:35", "06:50"), ["06:30", "06:45"]);
    assert_eq!(starts("hour", "05:45", "07:15"), ["05:00", "06:00", "07:00"]);
    assert_eq!(starts("6h", "06:30", "12:00"), ["04:00", "11:00"]);
    // 45 minutes from 00:45 and 01:30: what is left of them where the clock is put back isn't begun anew.
    assert_eq!(starts("45m", "05:45", "07:30"), ["05:30", "06:30", "07:15"]);
    let minute = |time: &str| {
        let period = Granularity::width(MINUTE).around(Tz::America__New_York, at(time)).unwrap();
        (shared_model::time::show(period.start)[11..16].to_owned(), period.end - period.start)
    };
    assert_eq!(minute("2016-11-06T05:59:30Z"), ("05:59".to_owned(), MINUTE));
    assert_eq!(minute("2016-11-06T06:30:30Z"), ("06:30".to_owned(), MINUTE));
}

fn zones() -> impl Strategy<Value = Tz> {
    proptest::sample::select(&chrono_tz::TZ_VARIANTS[..])
}

/// Minutes since 1970, three of four less than 90 from a change of the zone's clock, where it has one later on.
fn minute(zone: Tz) -> impl Strategy<Value = Millis> {
    let years = at("1975-01-01T00:00:00Z") / MINUTE..at("2030-01-01T00:00:00Z") / MINUTE;
    (years.clone(), proptest::option::weighted(0.75, -90..90i64)).prop_map(move |(minute, near)| {
        let weeks = (minute..years.end).step_by(7 * 24 * 60).map(|minute| minute * MINUTE);
        let offset = |time: Millis| zone::wall(zone, time).unwrap() - time;
        let changed = weeks.clone().zip(weeks.skip(1)).find(|(a, b)| offset(*a) != offset(*b));
        near.zip(changed).map_or(minute, |(near, (start, end))| {
            zone::change(zone, Interval { start, end }).unwrap() / MINUTE + near
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    /// What a clock shows, looked at every minute, gives the same buckets: one begins where the day, week or month that it
    /// shows comes for the first time, and wherever the hour or quarter of an hour changes.
    #[test]
    fn buckets_are_what_the_clock_shows(
        (zone, from) in zones().prop_flat_map(|zone| (Just(zone), minute(zone))),
        minutes in 1..4_000i64,
        granularity in proptest::sample::select(&["15m", "hour", "day", "week", "month"][..]),
    ) {
        let within_hours = ["15m", "hour"].contains(&granularity);
        let span = Interval { start: from * MINUTE, end: (from + minutes) * MINUTE };
        let parsed = Granularity::parse(granularity).unwrap();
        let buckets = Buckets::new(parsed, zone, span, 1).unwrap();
        let shown = |time: Millis| {
            let at = zone.timestamp_millis_opt(time).unwrap();
            let date = at.date_naive();
            let label = match granularity {
                "15m" => (date, at.hour(), at.minute() / 15),
                "hour" => (date, at.hour(), 0),
                "day" => (date, 0, 0),
                "week" => (date.week(chrono::Weekday::Mon).first_day(), 0, 0),
                _ => (date.with_day(1).unwrap(), 0, 0),
            };
            (label, chrono::Offset::fix(at.offset()).local_minus_utc())
        };
        // A clock that was put back over midnight shows the day before again.
        let (mut greatest, mut last) = (shown(span.start - 4 * HOUR).0, shown(span.start - 4 * HOUR));
        for time in (span.start - 4 * HOUR..span.end).step_by(MINUTE as usize) {
            let now = shown(time);
            let begins = match within_hours {
                false => Some(now.0 > greatest),
                // What it shows where it changes is in the examples.
                true => (now.1 == last.1).then_some(now.0 != last.0),
            };
            if let Some(begins) = begins.filter(|_| time > span.start) {
                let another = buckets.start_of(time) != buckets.start_of(time - MINUTE);
                prop_assert_eq!(another, begins, "at {}", shared_model::time::show(time));
            }
            prop_assert!(time < span.start || buckets.start_of(time) <= time);
            (greatest, last) = (greatest.max(now.0), now);
        }
    }

    #[test]
    fn around_is_the_bucket_that_holds_the_instant(
        (zone, minute) in zones().prop_flat_map(|zone| (Just(zone), minute(zone))),
        granularity in proptest::sample::select(&["minute", "15m", "hour", "day", "week", "month", "quarter", "year"][..]),
    ) {
        let instant = minute * MINUTE + 1;
        let granularity = Granularity::parse(granularity).unwrap();
        let period = granularity.around(zone, instant).unwrap();
        prop_assert!(period.contains(instant));
        let span = Interval { start: period.start - 1, end: period.end + 1 };
        let buckets = Buckets::new(granularity, zone, span, 1).unwrap();
        prop_assert_eq!(buckets.start_of(instant), period.start);
        prop_assert_eq!(buckets.start_of(period.end - 1), period.start);
        prop_assert_eq!(buckets.start_of(period.end), period.end);
    }
}
