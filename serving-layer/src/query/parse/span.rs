//! The time of a request: its zone, its span, and how that is cut.

use super::Time;
use super::fields::{Faults, Fields};
use crate::query::buckets::{Buckets, Granularity, show_width};
use crate::query::rolling::Reach;
use crate::query::{range, zone};
use chrono_tz::Tz;
use serde_json::Value as Json;
use shared_model::time::{Interval, Millis};

/// The time zone; UTC where none is named.
pub(super) fn time_zone(request: &Fields<'_>, faults: &mut Faults) -> Tz {
    let Some((at, value)) = request.get("time_zone") else { return Tz::UTC };
    value.as_str().and_then(|name| name.parse().ok()).unwrap_or_else(|| {
        faults.malformed(at, format!("{value} is no IANA time zone such as Europe/Berlin"));
        Tz::UTC
    })
}

/// The span and its buckets, for metrics that are kept at `grain` (milliseconds).
pub(super) fn time(request: &Fields<'_>, now: Millis, grain: Millis, faults: &mut Faults) -> Option<Time> {
    let zone = time_zone(request, faults);
    let span = span(request, zone, now, grain, faults);
    let buckets = buckets(request, zone, span, grain, faults);
    Some(Time { zone, span: span?, buckets: buckets? })
}

fn span(request: &Fields<'_>, zone: Tz, now: Millis, grain: Millis, faults: &mut Faults) -> Option<Interval> {
    let now = match request.get("now").map(|(at, value)| (at, range::end(value, zone))) {
        None => now,
        Some((_, Ok(now))) => now,
        Some((at, Err(message))) => {
            faults.malformed(at, message);
            now
        }
    };
    // A query with a span of its own has no use for the common one.
    let own = ["from", "to", "time_range"].iter().any(|name| request.has(name));
    let request = &if own { request.alone() } else { *request };
    let Some((at, range)) = request.get("time_range") else {
        return ends(request, zone, grain, faults);
    };
    for name in ["from", "to"] {
        if let Some((at, _)) = request.get(name) {
            faults.malformed(at, "give from and to, or time_range, not both");
        }
    }
    let range = range.as_str().ok_or_else(|| {
        format!("{range} is no range of time: expected a text like {}", range::FORMS.join(", "))
    });
    match range.and_then(|text| range::relative(text, zone, now, grain)) {
        Ok(span) => {
            on_grain(&at, span.start, zone, grain, faults);
            on_grain(&at, span.end, zone, grain, faults);
            Some(span)
        }
        Err(message) => {
            faults.malformed(at, message);
            None
        }
    }
}

fn ends(request: &Fields<'_>, zone: Tz, grain: Millis, faults: &mut Faults) -> Option<Interval> {
    let mut end = |name: &str| {
        let Some((at, value)) = request.get(name) else {
            let message = "missing: a time in RFC 3339 or in milliseconds since 1970; or give a time_range";
            faults.malformed(request.at(name), message);
            return None;
        };
        match range::end(value, zone) {
            Ok(time) => {
                on_grain(&at, time, zone, grain, faults);
                Some(time)
            }
            Err(message) => {
                faults.malformed(at, message);
                None
            }
        }
    };
    let (from, to) = (end("from"), end("to"));
    let (start, end) = (from?, to?);
    if start >= end {
        faults.malformed(request.at("to"), "must be later than from, which is included; to is not");
        return None;
    }
    Some(Interval { start, end })
}

/// A span ends between cells, never in one.
fn on_grain(at: &str, time: Millis, zone: Tz, grain: Millis, faults: &mut Faults) {
    if time % grain != 0 {
        let (below, width) = (time.div_euclid(grain) * grain, show_width(grain));
        let message = format!(
            "{} is no multiple of the grain, {width}: the nearest are {} and {}",
            zone::show(zone, time),
            zone::show(zone, below),
            zone::show(zone, below + grain)
        );
        faults.unanswerable(at, message);
    }
}

/// How far each bucket's window reaches, where the request wants more than the bucket itself, and where it says so.
pub(super) fn reach(request: &Fields<'_>, faults: &mut Faults) -> Option<(String, Reach)> {
    let cumulative = request.flag("cumulative", faults).then(|| (request.at("cumulative"), Reach::Span));
    let Some((at, value)) = request.get("rolling") else { return cumulative };
    if cumulative.is_some() {
        faults.malformed(at, "give rolling or cumulative, not both");
        return None;
    }
    let text =
        value.as_str().ok_or_else(|| format!("{value} is no length of time: expected a text like 7 days"));
    match text.and_then(range::length) {
        Ok(shift) => Some((at, Reach::Back(shift))),
        Err(message) => {
            faults.malformed(at, message);
            None
        }
    }
}

fn buckets(
    request: &Fields<'_>,
    zone: Tz,
    span: Option<Interval>,
    grain: Millis,
    faults: &mut Faults,
) -> Option<Buckets> {
    let (at, granularity) = match request.get("granularity") {
        None => (String::new(), Granularity::Total),
        Some((at, Json::String(text))) if text == "grain" => (at, Granularity::width(grain)),
        Some((at, value)) => match value.as_str().and_then(Granularity::parse) {
            Some(granularity) => (at, granularity),
            None => {
                let message = format!(
                    "{value} is no granularity: expected none, grain, 20m, 1h, hour, day, week, month, quarter, year"
                );
                faults.malformed(at, message);
                return None;
            }
        },
    };
    match Buckets::new(granularity, zone, span?, grain) {
        Ok(buckets) => Some(buckets),
        Err(message) => {
            faults.unanswerable(at, message);
            None
        }
    }
}
