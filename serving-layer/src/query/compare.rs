//! What a query is compared with: the same query over an earlier span, its buckets set beside those of the query.
//!
//! A bucket is compared with what the zone's clock showed between the same times of the earlier period. Every moment of
//! that period lies beside exactly one bucket, so that nothing of it is lost or counted twice: where a clock has since been
//! put back or forward, or a month is shorter, some buckets lie beside more or less than their own width, or nothing. Of
//! what a clock shows twice, the second time is compared.

use super::Query;
use super::buckets::Buckets;
use super::range::{Shift, back};
use super::rolling::Rolling;
use super::zone;
use shared_model::time::{DAY, Interval, Millis};

/// What a query is compared with.
#[derive(Debug, Clone)]
pub struct Compared {
    /// The query of the earlier period.
    pub query: Query,
    /// Each bucket's start in it, and the start of the query's own that it lies beside; both ascending.
    starts: Vec<(Millis, Millis)>,
}

/// A period to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Right before the span and as long: on the zone's clock where that is whole days, else in time.
    Previous,
    /// So much earlier.
    Back(Shift),
}

impl Compared {
    /// What a query is compared with.
    ///
    /// # Errors
    /// A message where a boundary of the earlier period is no multiple of `grain` (milliseconds), where that period is
    /// empty, or where there are too many buckets.
    pub fn new(query: &Query, period: Period, grain: Millis) -> Result<Compared, String> {
        let outside = || "the period to compare with lies outside the calendar".to_owned();
        let (zone, own) = (query.zone, query.span);
        let shift = match period {
            Period::Back(shift) => shift,
            Period::Previous => {
                let wall = |at| zone::wall(zone, at).ok_or_else(outside);
                match wall(own.end)? - wall(own.start)? {
                    days if days > 0 && days % DAY == 0 => Shift::Wall(days),
                    // Hours are as long as they are, whatever the clock does in them.
                    _ => Shift::Time(own.end - own.start),
                }
            }
        };
        let back = |at| back(zone, at, shift).ok_or_else(outside);
        let end = if period == Period::Previous { own.start } else { back(own.end)? };
        let span = Interval { start: back(own.start)?, end };
        if !zone::in_years(span) {
            return Err(outside());
        }
        if span.start >= span.end {
            return Err("the period to compare with is empty: its clock or calendar leaves these times out"
                .to_owned());
        }
        let mut starts = Vec::new();
        // From the last one on, so that each ends where the next one begins: one that would begin later lies beside nothing.
        let mut end = span.end;
        for start in query.buckets.starts(own)?.into_iter().rev() {
            // What begins before the span is compared from where the other begins.
            let beside = if start <= own.start { span.start } else { back(start)?.max(span.start) };
            if beside < end {
                starts.push((beside, start));
                end = beside;
            }
        }
        starts.reverse();
        let buckets = match query.buckets {
            Buckets::One(_) => Buckets::One(span.start),
            _ => Buckets::Starts(starts.iter().map(|(start, _)| *start).collect()),
        };
        let ends = Buckets::Starts(vec![span.start, span.end]);
        let whole = Interval { start: span.start - 1, end: span.end + 1 };
        ends.on_grain(zone, whole, grain)?;
        buckets.on_grain(zone, span, grain)?;
        let rolled = |rolling: &Rolling| Rolling::new(rolling.reach, zone, span, &buckets, grain);
        let rolling = query.rolling.as_ref().map(rolled).transpose()?;
        Ok(Compared { query: Query { span, buckets, rolling, ..query.clone() }, starts })
    }

    /// The start of the query's own bucket beside which one of the earlier period lies.
    pub fn own(&self, start: Millis) -> Option<Millis> {
        let place = self.starts.binary_search_by_key(&start, |(start, _)| *start).ok()?;
        Some(self.starts[place].1)
    }

    /// Whether anything of the earlier period lies beside a bucket of the query's own.
    pub fn reaches(&self, own: Millis) -> bool {
        self.starts.binary_search_by_key(&own, |(_, own)| *own).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use crate::query::{Limits, Request, zone};
    use serde_json::json;
    use shared_model::time::Millis;

    /// The buckets of the compared span as the zone's clock shows them, each with the one that it lies beside.
    fn beside(granularity: &str, compare: &str, from: &str, to: &str) -> Result<Vec<String>, String> {
        let request = json!({
            "metrics": ["doc_cnt"], "from": from, "to": to, "granularity": granularity, "compare": compare,
            "time_zone": "America/New_York",
        });
        let catalog = crate::tests::catalog();
        let parsed = Request::parse(
            request.to_string().as_bytes(),
            Default::default(),
            &catalog,
            &Limits::default(),
            0,
        );
        let query = parsed.map_err(|error| format!("{error:?}"))?.queries.remove(0);
        let compared = query.compared.unwrap();
        let shown = |at: Millis| zone::show(query.zone, at).replace(":00.000-0", "-0")[5..].to_owned();
        Ok(compared.starts.iter().map(|(start, own)| format!("{} {}", shown(*start), shown(*own))).collect())
    }

    #[test]
    fn a_bucket_lies_beside_what_the_clock_showed_in_the_earlier_period() {
        let check = |granularity, compare, from, to, expected: &[&str]| {
            let found = beside(granularity, compare, from, to).unwrap();
            assert_eq!(found, expected, "{granularity} {compare} {from} {to}");
        };
        let days = ["06-13T00:00-04:00 06-14T00:00-04:00", "06-14T00:00-04:00 06-15T00:00-04:00"];
        check("day", "previous_day", "2016-06-14", "2016-06-16", &days);
        let before = ["06-12T00:00-04:00 06-14T00:00-04:00", "06-13T00:00-04:00 06-15T00:00-04:00"];
        check("day", "previous_period", "2016-06-14", "2016-06-16", &before);
        check("none", "previous_week", "2016-06-14", "2016-06-16", &["06-07T00:00-04:00 06-14T00:00-04:00"]);
        // Put forward since: the hour that isn't there had one on the day before, which lies beside the hour before it.
        let forward = [
            "03-12T00:00-05:00 03-13T00:00-05:00",
            "03-12T01:00-05:00 03-13T01:00-05:00",
            "03-12T03:00-05:00 03-13T03:00-04:00",
        ];
        check("hour", "previous_day", "2016-03-13", "2016-03-13T04:00", &forward);
        // Put back since: of the hour that comes twice the second is compared.
        let back = [
            "11-05T00:00-04:00 11-06T00:00-04:00",
            "11-05T01:00-04:00 11-06T01:00-05:00",
            "11-05T02:00-04:00 11-06T02:00-05:00",
        ];
        check("hour", "previous_day", "2016-11-06", "2016-11-06T03:00", &back);
        // Put back then: both of the hours lie beside the one.
        let then = [
            "11-06T00:00-04:00 11-07T00:00-05:00",
            "11-06T01:00-04:00 11-07T01:00-05:00",
            "11-06T02:00-05:00 11-07T02:00-05:00",
        ];
        check("hour", "previous_day", "2016-11-07", "2016-11-07T03:00", &then);
        // Of quarters of an hour as well, wherever the span begins: its first ones lie beside nothing.
        let quarters = ["11-05T01:40-04:00 11-06T01:30-05:00", "11-05T01:45-04:00 11-06T01:45-05:00"];
        check("15m", "previous_day", "2016-11-06T05:40:00Z", "2016-11-06T07:00:00Z", &quarters);
        let quarters = [
            "11-05T00:45-04:00 11-06T00:45-04:00",
            "11-05T01:00-04:00 11-06T01:00-05:00",
            "11-05T01:15-04:00 11-06T01:15-05:00",
        ];
        check("15m", "previous_day", "2016-11-06T04:45:00Z", "2016-11-06T06:30:00Z", &quarters);
        // The period before is as long: an hour where the clock is put back or forward, or in days a day.
        let hour = ["11-06T00:20-04:00 11-06T01:20-04:00"];
        check("none", "previous_period", "2016-11-06T05:20:00Z", "2016-11-06T06:20:00Z", &hour);
        let hour = ["03-13T00:20-05:00 03-13T01:20-05:00"];
        check("none", "previous_period", "2016-03-13T06:20:00Z", "2016-03-13T07:20:00Z", &hour);
        let day = ["11-05T00:00-04:00 11-06T00:00-04:00"];
        check("none", "previous_period", "2016-11-06", "2016-11-07", &day);
        // A shorter month ends where its next one begins.
        let months = ["02-28T00:00-05:00 03-28T00:00-04:00", "02-29T00:00-05:00 03-29T00:00-04:00"];
        check("day", "previous_month", "2016-03-28", "2016-04-01", &months);
    }

    #[test]
    fn what_has_no_earlier_period_is_refused() {
        let refused = beside("day", "previous_month", "2016-03-30", "2016-03-31").unwrap_err();
        assert!(refused.contains("the period to compare with is empty"), "{refused}");
        for (compare, from, to) in [
            ("previous_year", "0001-06-01T00:00:00Z", "0001-06-02T00:00:00Z"),
            ("previous_period", "0001-01-02T00:00:00Z", "9999-12-31T00:00:00Z"),
        ] {
            let refused = beside("none", compare, from, to).unwrap_err();
            let outside =
                "field: \"compare\", message: \"the period to compare with lies outside the calendar\"";
            assert!(refused.contains(outside), "{refused}");
        }
    }
}
