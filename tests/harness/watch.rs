//! A reader that never pauses: while something happens to the servers, every answer that says it is complete is kept, and
//! then held against the log.

use local::oracle;
use local::probe::{Probe, Serving};
use rdkafka::message::{BorrowedMessage, Message as _};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Asks without pause, and holds every answer that says it is complete against the log: nothing that was appended
/// before its `as_of` may be missing.
pub struct Watch {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Vec<Seen>>,
}

#[derive(Debug, Clone)]
struct Seen {
    complete: bool,
    as_of: Option<i64>,
    views: i64,
}

impl Watch {
    /// Starts asking.
    pub fn start(serving: &Serving) -> Watch {
        let (serving, stop) = (serving.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let query = json!({
                "metrics": ["user_view_cnt"], "granularity": "none",
                "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z",
            });
            let mut seen = Vec::new();
            while !stopped.is_cancelled() {
                // While Redis is away there are no answers, which is no wrong answer.
                if let Ok(answer) = serving.query(&query).await {
                    let as_of = answer["as_of"].as_str();
                    let as_of = as_of.and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
                    seen.push(Seen {
                        complete: answer["complete"] == true,
                        as_of: as_of.map(|time| time.timestamp_millis()),
                        views: answer["rows"][0]["values"]["user_view_cnt"].as_i64().unwrap_or(0),
                    });
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            seen
        });
        Watch { stop, task }
    }

    /// Ends the watch. Gives how many answers said that they are complete, and how many that they are not.
    ///
    /// # Panics
    /// On the first complete answer that is short.
    pub async fn end(self, probe: &Probe) -> (usize, usize) {
        self.stop.cancel();
        let seen = self.task.await.expect("the watch");
        let log = views(probe);
        for answer in seen.iter().filter(|answer| answer.complete) {
            let as_of = answer.as_of.expect("a complete answer says how far it reaches");
            let (mut least, mut identities) = (0, BTreeSet::new());
            for (_, identity) in log.iter().filter(|(append, _)| *append < as_of) {
                least += i64::from(identities.insert(identity));
            }
            assert!(answer.views >= least, "short: {answer:?}, of {least} views appended before");
        }
        let complete = seen.iter().filter(|answer| answer.complete).count();
        (complete, seen.len() - complete)
    }
}

/// Every valid view in the log: when it was appended, and what it is.
fn views(probe: &Probe) -> Vec<(i64, String)> {
    let mut found = Vec::new();
    let take = |message: &BorrowedMessage<'_>| {
        if let Some(fact) = message.payload().and_then(|value| oracle::parse("page_views", value)) {
            let time = message.timestamp().to_millis().expect("an append time");
            found.push((time, format!("{:?} {:?} {}", fact.uuid, fact.document, fact.time)));
        }
    };
    probe.read_topic("page_views", take).expect("the views");
    found
}
