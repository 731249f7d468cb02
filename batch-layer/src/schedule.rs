//! When the next run starts. Pure: the time is passed in.
//!
//! A run covers everything since the tidemark, so slots that pass while a run is at work, or while the program is down,
//! are not made up for: they collapse into the next one.

use anyhow::{Result, anyhow};
use chrono::TimeZone as _;
use chrono_tz::Tz;
use cron::Schedule;
use shared_model::time::Millis;
use std::str::FromStr as _;
use std::time::Duration;

/// When runs start.
#[derive(Debug, Clone)]
pub(crate) enum Plan {
    /// At the times of a cron expression in a time zone.
    Cron(Box<Schedule>, Tz),
    /// So long after each run's end; the first at once.
    Every(Duration),
}

impl Plan {
    /// Of a cron expression of 5 fields, or of 6 with the seconds first (or 7, with the year last).
    pub(crate) fn cron(expression: &str, zone: Tz) -> Result<Plan> {
        let fields = expression.split_whitespace().count();
        let full = if fields == 5 { format!("0 {}", numbered(expression)) } else { expression.to_owned() };
        let schedule = Schedule::from_str(&full).map_err(|error| {
            // The crate points at the fault over several lines; ours is one.
            let why = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
            anyhow!(
                "--cron {expression:?} is no cron expression ({why}); write 5 fields like \"*/10 * * * *\""
            )
        })?;
        Ok(Plan::Cron(Box::new(schedule), zone))
    }

    /// How long to wait at `now` for the next run; `None` where there is none. `first`: nothing ran yet.
    pub(crate) fn wait(&self, now: Millis, first: bool) -> Option<Duration> {
        match self {
            Plan::Every(pause) => Some(if first { Duration::ZERO } else { *pause }),
            Plan::Cron(schedule, zone) => {
                let at = zone.timestamp_millis_opt(now).single()?;
                let next = schedule.after(&at).next()?;
                u64::try_from(next.timestamp_millis() - now).ok().map(Duration::from_millis)
            }
        }
    }
}

/// Five-field crons number the days of the week from Sunday = 0; the cron crate from Sunday = 1. Names mean the same.
fn numbered(expression: &str) -> String {
    let mut fields: Vec<String> = expression.split_whitespace().map(str::to_owned).collect();
    if let Some(days) = fields.last_mut() {
        let renumber = |number: &str| match number.parse::<u32>() {
            Ok(day @ 0..=7) => (day % 7 + 1).to_string(),
            _ => number.to_owned(),
        };
        let part = |part: &str| {
            let (range, step) =
                part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
            // Saturday to Sunday as 6-7 would run backwards: a lone 7 is Sunday, a range's end of 7 stays Saturday.
            let range = match range.split_once('-') {
                Some((from, "7")) => format!("{}-7,1", renumber(from)),
                Some((from, to)) => format!("{}-{}", renumber(from), renumber(to)),
                None => renumber(range),
            };
            step.map_or(range.clone(), |step| format!("{range}/{step}"))
        };
        *days = days.split(',').map(part).collect::<Vec<_>>().join(",");
    }
    fields.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(expression: &str, zone: Tz, now: &str) -> String {
        let now = chrono::DateTime::parse_from_rfc3339(now).unwrap().timestamp_millis();
        let wait = Plan::cron(expression, zone).unwrap().wait(now, false).unwrap();
        shared_model::time::show(now + wait.as_millis() as i64)
    }

    #[test]
    fn the_next_slot_is_always_after_now_so_missed_ones_collapse() {
        let (utc, berlin) = (Tz::UTC, Tz::Europe__Berlin);
        let cases = [
            ("*/10 * * * *", utc, "2026-11-21T07:03:59Z", "2026-11-21T07:10:00.000Z"),
            ("*/10 * * * *", utc, "2026-11-21T07:10:00Z", "2026-11-21T07:20:00.000Z"),
            ("*/15 * * * * *", utc, "2026-11-21T07:10:01Z", "2026-11-21T07:10:15.000Z"),
            ("0 3 * * *", berlin, "2026-11-21T07:00:00Z", "2026-11-22T02:00:00.000Z"),
            // The hour that summer time skips: the slot isn't there that day.
            ("30 2 * * *", berlin, "2026-03-28T12:00:00Z", "2026-03-30T00:30:00.000Z"),
            // Sunday is 0 and 7, Monday 1, as cron has it.
            ("0 0 * * 1", utc, "2026-11-21T07:00:00Z", "2026-11-23T00:00:00.000Z"),
            ("0 0 * * 0", utc, "2026-11-21T07:00:00Z", "2026-11-22T00:00:00.000Z"),
            ("0 0 * * 7", utc, "2026-11-21T07:00:00Z", "2026-11-22T00:00:00.000Z"),
            ("0 0 * * Mon-Fri", utc, "2026-11-21T07:00:00Z", "2026-11-23T00:00:00.000Z"),
        ];
        for (expression, zone, now, expected) in cases {
            assert_eq!(next(expression, zone, now), expected, "{expression} in {zone} at {now}");
        }
        assert!(Plan::cron("every day", utc).is_err());
        let every = Plan::Every(Duration::from_secs(5));
        assert_eq!(every.wait(0, true), Some(Duration::ZERO));
        assert_eq!(every.wait(0, false), Some(Duration::from_secs(5)));
    }
}
