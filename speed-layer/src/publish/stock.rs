//! What stands under plain names when a worker begins to publish, whoever wrote it: what its first pass doesn't write
//! anew goes.

use super::changes::Changes;
use crate::live;
use crate::redis::Redis;
use ::redis::{RedisResult, cmd};
use shared_model::metric::Metric;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The hash of all live names that were ever published and still stand, each with the pattern of its keys that are longer
/// than the name: what tells the keys of a metric that is published no more.
const PUBLISHED: &str = "tm1:published";

/// The names that stand, and the live names whose keys all go, being published no more.
pub(crate) struct Stock {
    names: HashSet<String>,
    stale: Vec<String>,
}

impl Stock {
    /// Looks for what stands, and notes down what will.
    pub(crate) async fn take(redis: &Redis, metrics: &[Arc<Metric>]) -> RedisResult<Stock> {
        let mut named: BTreeMap<String, String> = redis.ask(cmd("HGETALL").arg(PUBLISHED)).await?;
        let pattern = |name: &str| format!("{name}:*");
        let ours = metrics.iter().map(|metric| live::live_name(metric));
        let ours: BTreeMap<String, String> = ours.map(|name| (name.to_owned(), pattern(name))).collect();
        let stale = named.keys().filter(|name| !ours.contains_key(*name)).cloned().collect();
        if !ours.is_empty() {
            let mut note = cmd("HSET");
            note.arg(PUBLISHED);
            ours.iter().for_each(|(name, pattern)| _ = note.arg(name).arg(pattern));
            redis.ask::<()>(&note).await?;
        }
        named.extend(ours);
        let mut names = HashSet::new();
        for name in named.into_keys() {
            // A metric may have had no key before, or one now.
            names.extend(redis.scan(&pattern(&name)).await?);
            names.insert(name);
        }
        Ok(Stock { names, stale })
    }

    /// Adds to a first pass that what it doesn't write goes. Gives the live names to be forgotten when that is done.
    pub(crate) fn goes_with(mut self, first: &mut Changes) -> Vec<String> {
        for at in (0..first.puts.len()).step_by(2) {
            self.names.remove(first.puts.get(at));
        }
        for ranking in &first.rankings {
            self.names.remove(first.members.get(ranking.first));
        }
        self.names.iter().for_each(|name| first.drops.push(name));
        self.stale
    }
}

/// Forgets live names of which nothing stands any more.
pub(crate) async fn forget(redis: &Redis, stale: &[String]) -> RedisResult<()> {
    if stale.is_empty() {
        return Ok(());
    }
    redis.ask(cmd("HDEL").arg(PUBLISHED).arg(stale)).await
}
