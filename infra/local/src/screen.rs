//! What the local stack shows of itself: a few lines, redrawn at a terminal, printed now and then elsewhere.

use crate::oracle::{Logged, METRICS, Oracle};
use crate::probe::{Probe, Serving};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use shared_model::offsets::TopicPartition;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const PRINT_EVERY: Duration = Duration::from_secs(5);

/// Lines to try, for a person.
pub fn invitation(url: &str, redis: &str) -> String {
    let redis = shared_model::secret::shown(redis);
    let port = redis.rsplit(':').next().unwrap_or("6379");
    format!(
        "\nTry, in another terminal:\n\
         \x20 curl {url}/api/v1/metrics\n\
         \x20 curl {url}/api/v1/live/geo_top_5m\n\
         \x20 curl {url}/api/v1/live/active_user_5m\n\
         \x20 curl {url}/api/v1/query -H 'content-type: application/json' -d '{{\"metrics\": [\"user_view_cnt\"], \
         \"group_by\": [\"uuid\"], \"granularity\": \"1h\", \"from\": \"2016-06-14T00:00:00Z\", \
         \"to\": \"2016-06-15T00:00:00Z\", \"limit\": 5}}'\n\
         \x20 redis-cli -p {port} ZREVRANGE geo_top_5m 0 9 WITHSCORES\n"
    )
}

/// The live view.
pub struct Screen {
    probe: Probe,
    serving: Serving,
    oracle: Oracle,
    read: BTreeMap<TopicPartition, i64>,
    last: Option<(Instant, i64)>,
    lines: usize,
    printed: Option<Instant>,
}

impl Screen {
    /// A view of a running stack.
    pub fn new(probe: Probe, serving: Serving) -> Screen {
        let (oracle, read) = (Oracle::default(), BTreeMap::new());
        Screen { probe, serving, oracle, read, last: None, lines: 0, printed: None }
    }

    /// Looks again and shows what it sees.
    pub async fn refresh(&mut self) {
        let lines = match self.look().await {
            Ok(lines) => lines,
            Err(error) => vec![format!("can't look just now: {error:#}")],
        };
        let mut out = std::io::stdout().lock();
        // Nothing can be done about a terminal that is gone.
        let _ = if out.is_terminal() {
            let up = if self.lines > 0 { format!("\x1b[{}A", self.lines) } else { String::new() };
            self.lines = lines.len();
            let cleared: Vec<String> = lines.into_iter().map(|line| format!("\x1b[2K{line}")).collect();
            writeln!(out, "{up}{}", cleared.join("\n"))
        } else if self.printed.is_none_or(|printed| printed.elapsed() >= PRINT_EVERY) {
            self.printed = Some(Instant::now());
            writeln!(out, "{}", lines.join("\n"))
        } else {
            Ok(())
        };
        let _ = out.flush();
    }

    async fn look(&mut self) -> Result<Vec<String>> {
        self.take_log().await?;
        let total: i64 = self.read.values().sum();
        let rate = self.last.map_or(0.0, |(at, before)| (total - before) as f64 / at.elapsed().as_secs_f64());
        self.last = Some((Instant::now(), total));
        let lag = self.probe.lag(&self.read).await?;
        let before = self.page_views()?;
        let query = json!({
            "metrics": ["user_view_cnt"], "granularity": "none",
            "from": "2016-06-13T00:00:00Z", "to": "2016-07-01T00:00:00Z",
        });
        let merged = self.serving.query(&query).await?;
        let answered = merged["rows"][0]["values"]["user_view_cnt"].as_i64().unwrap_or(0);
        // Events come while it answers.
        self.take_log().await?;
        let after = self.page_views()?;
        let top = self.serving.live("geo_top_5m", &[]).await?;
        Ok(vec![
            format!("log        {total} records, {rate:.0}/s, realtime view {lag} behind"),
            format!(
                "tidemark   generation {}, as of {}, complete: {}",
                merged["tidemark"]["generation"],
                plain(&merged["as_of"]),
                merged["complete"]
            ),
            format!(
                "page views {answered} merged ({} batch rows + {} realtime cells), \
                 oracle {before} just before, {after} just after",
                merged["parts"]["batch"]["rows"], merged["parts"]["realtime"]["cells"]
            ),
            format!("top places {} (5 min to {})", ranking(&top["items"]), plain(&top["window_end"])),
        ])
    }

    /// How many the log holds, naively.
    fn page_views(&self) -> Result<i64> {
        let views = METRICS.iter().find(|metric| metric.name == "user_view_cnt");
        let views = views.context("a shipped metric")?;
        Ok(self.oracle.count(views, i64::MIN, i64::MAX, i64::MAX).values().sum())
    }

    async fn take_log(&mut self) -> Result<()> {
        let (probe, read) = (self.probe.clone(), std::mem::take(&mut self.read));
        let (ends, records) = tokio::task::spawn_blocking(move || {
            let mut records: Vec<Logged> = Vec::new();
            let ends = probe.read_log(&read, |record| records.push(record));
            ends.map(|ends| (ends, records))
        })
        .await??;
        records.iter().for_each(|record| self.oracle.take(record));
        self.read = ends;
        Ok(())
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn ranking(items: &Value) -> String {
    let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
    // An item is an object of its one column.
    let name =
        |item: &Value| item.as_object().and_then(|item| item.values().next().map(plain)).unwrap_or_default();
    let shown: Vec<String> =
        items.iter().take(4).map(|item| format!("{} {}", name(&item["item"]), item["value"])).collect();
    if shown.is_empty() { "none yet".to_owned() } else { shown.join(", ") }
}
