//! The events that most tests send: an hour of a small town, so that keys, buckets and repeats meet often; and the query
//! for all that a metric has counted of them.

use serde_json::{Value, json};
use simulator::generate::Options;

/// An hour of 200 users in 20 places, a fifth of it out of order. Repeats, lateness and malformed records are the test's
/// own choice.
pub fn town(records: u64) -> Options {
    Options {
        records,
        span: 3_600_000,
        users: 200,
        documents: 100,
        displays: 150,
        geos: 20,
        disorder: 0.2,
        ..Options::default()
    }
}

/// A query for all that a metric has counted.
pub fn total(metric: &str) -> Value {
    json!({ "metrics": [metric], "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z" })
}
