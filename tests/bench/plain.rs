//! Holds the plain keys in Redis against a naive count of the last window's records.

use anyhow::{Context as _, ensure};
use local::layers::Layer;
use redis::aio::MultiplexedConnection;
use std::collections::{HashMap, HashSet};
use tidemark_tests::redis_client::ask;
use tidemark_tests::stack::Stack;

/// The width of the window.
const WIDTH: i64 = 300_000;
/// How many keys are asked for at once.
const KEYS: usize = 5_000;

/// What a record says.
#[derive(serde::Deserialize)]
struct Event<'a> {
    event_type: &'a str,
    uuid: &'a str,
    document_id: u64,
    display_id: u64,
    geo: &'a str,
}

/// Counts of a set's items.
type Items = HashMap<String, u64>;

/// The last window's counts.
pub(crate) struct Window {
    /// Where it ends.
    pub(crate) end: i64,
    counts: HashMap<String, u64>,
    sets: HashMap<String, Items>,
    users: HashSet<String>,
}

impl Window {
    /// With nothing in it.
    pub(crate) fn new(end: i64) -> Window {
        Window { end, counts: HashMap::new(), sets: HashMap::new(), users: HashSet::new() }
    }

    /// Counts a record, if it is in the window.
    pub(crate) fn see(&mut self, record: &[u8]) {
        let text = std::str::from_utf8(record).expect("a text");
        let (_, time) = text.rsplit_once(':').expect("the event time comes last");
        let time: i64 = time.trim_end_matches('}').parse().expect("a time");
        if !(self.end - WIDTH..self.end).contains(&time) {
            return;
        }
        let Event { event_type, uuid, document_id, display_id, geo } =
            serde_json::from_str(text).expect("a record");
        let user = format!("user_{event_type}_cnt_5m:{uuid}");
        for name in [user, format!("doc_cnt_5m:{document_id}"), format!("display_cnt_5m:{display_id}")] {
            *self.counts.entry(name).or_default() += 1;
        }
        let mut count = |set: String, item: String| {
            *self.sets.entry(set).or_default().entry(item).or_default() += 1;
        };
        count("geo_top_5m".to_owned(), geo.to_owned());
        count(format!("geo_top_doc_5m:{geo}"), document_id.to_string());
        count(format!("geo_top_display_5m:{geo}"), display_id.to_string());
        self.users.insert(uuid.to_owned());
    }

    /// Whether it was published.
    pub(crate) async fn is_published(&self, stack: &Stack) -> anyhow::Result<bool> {
        let mut redis = connection(stack).await?;
        let to: Option<i64> = ask(&mut redis, &["GET", "tm1:published_to"]).await;
        Ok(to.is_some_and(|to| to >= self.end))
    }

    /// Holds the counts that are published, each under a name of its own, against it.
    pub(crate) async fn check_counts(&self, stack: &Stack) -> anyhow::Result<()> {
        let mut redis = connection(stack).await?;
        let mut found = 0;
        for metric in ["user_click_cnt_5m", "user_view_cnt_5m", "doc_cnt_5m", "display_cnt_5m"] {
            for names in scan(&mut redis, metric).await.chunks(KEYS) {
                let command: Vec<&str> =
                    ["MGET"].into_iter().chain(names.iter().map(String::as_str)).collect();
                let values: Vec<Option<u64>> = ask(&mut redis, &command).await;
                for (name, value) in names.iter().zip(values) {
                    let expected = self.counts.get(name).copied();
                    ensure!(value == expected, "{name} is {value:?}, not {expected:?}");
                    found += 1;
                }
            }
        }
        ensure!(found == self.counts.len(), "{found} counts are published of {}", self.counts.len());
        Ok(())
    }

    /// Holds all that is published against it.
    pub(crate) async fn check(&self, stack: &Stack) -> anyhow::Result<()> {
        self.check_counts(stack).await?;
        let mut redis = connection(stack).await?;
        let mut sets = vec!["geo_top_5m".to_owned()];
        for metric in ["geo_top_doc_5m", "geo_top_display_5m"] {
            sets.append(&mut scan(&mut redis, metric).await);
        }
        ensure!(sets.len() == self.sets.len(), "{} sets are published of {}", sets.len(), self.sets.len());
        for name in sets {
            let items = self.sets.get(&name).with_context(|| format!("{name} is published"))?;
            let found: Vec<(String, u64)> =
                ask(&mut redis, &["ZREVRANGE", &name, "0", "-1", "WITHSCORES"]).await;
            ensure!(is_top(&found, items), "{name} is {found:?}");
        }
        let active: Option<f64> = ask(&mut redis, &["GET", "active_user_5m"]).await;
        let (active, users) = (active.context("no active_user_5m")?, self.users.len() as f64);
        ensure!((active / users - 1.0).abs() < 0.05, "active_user_5m is {active}, not about {users}");
        Ok(())
    }
}

/// Whether these are the ten greatest counts, each of its item; which of equal ones is left open.
fn is_top(found: &[(String, u64)], items: &Items) -> bool {
    let mut best: Vec<u64> = items.values().copied().collect();
    best.sort_unstable_by(|a, b| b.cmp(a));
    best.truncate(10);
    let counts: Vec<u64> = found.iter().map(|(_, count)| *count).collect();
    counts == best && found.iter().all(|(item, count)| items.get(item) == Some(count))
}

/// The plain keys of a metric.
async fn scan(redis: &mut MultiplexedConnection, metric: &str) -> Vec<String> {
    let (mut names, mut cursor, pattern) = (Vec::new(), "0".to_owned(), format!("{metric}:*"));
    loop {
        let (next, mut found): (String, Vec<String>) =
            ask(redis, &["SCAN", &cursor, "MATCH", &pattern, "COUNT", "10000"]).await;
        names.append(&mut found);
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    // A name may be found twice.
    names.sort_unstable();
    names.dedup();
    names
}

async fn connection(stack: &Stack) -> anyhow::Result<MultiplexedConnection> {
    stack.redis.connections().await.pop().context("no redis")
}

/// How many plain keys a worker has written or deleted, as it tells itself.
pub(crate) async fn writes(worker: &Layer) -> anyhow::Result<f64> {
    let log = worker.logged();
    let (_, url) = log.split_once("listening on ").context("the worker listens nowhere")?;
    let url = format!("{}/metrics", url.split_whitespace().next().unwrap_or_default());
    let told = reqwest::get(&url).await?.text().await?;
    let line = told.lines().find_map(|line| line.strip_prefix("tidemark_speed_published_total "));
    Ok(line.map(str::parse).transpose()?.unwrap_or(0.0))
}
