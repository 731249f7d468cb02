//! The peer's catalog, one topic of clicks and views and eight metrics over it, and servers for it.

use local::servers::KafkaOptions;
use tidemark_tests::stack::{Servers, Stack};

const TEXT: &str = include_str!("peer.toml");

/// What a bench chooses of it.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    /// Repeats are left out.
    pub(crate) dedup: bool,
    /// Finished values are published as plain keys.
    pub(crate) publish: bool,
    /// So many of its metrics, in their order; beyond all of them, copies under other names.
    pub(crate) metrics: usize,
}

/// All its metrics, without dedup and publication.
pub(crate) const USUAL: Peer = Peer { dedup: false, publish: false, metrics: 8 };

impl Peer {
    /// As TOML.
    pub(crate) fn catalog(self) -> String {
        let identity =
            if self.dedup { r#"["uuid", "document_id", "display_id", "ad_id", "ts"]"# } else { "[]" };
        let text = TEXT.replace("IDENTITY", identity);
        let text = text.replace("PUBLISH", if self.publish { "true" } else { "false" });
        let mut parts = text.split("[metrics.");
        let mut catalog = parts.next().unwrap_or_default().to_owned();
        let metrics: Vec<&str> = parts.collect();
        for number in 0..self.metrics {
            let (metric, copy) = (metrics[number % metrics.len()], 1 + number / metrics.len());
            let named = if copy == 1 { "]\n".to_owned() } else { format!("_{copy}]\n") };
            catalog.push_str("[metrics.");
            catalog.push_str(&metric.replacen("]\n", &named, 1));
        }
        catalog
    }
}

/// Servers for a catalog of this kind, with a broker as it is run for real, not one that is there quickly; the topic, and the
/// first tidemark, below which nothing lies.
pub(crate) async fn started(layers: &str, catalog: &str, partitions: i32) -> anyhow::Result<Stack> {
    let kafka = KafkaOptions { heap_mb: 1_024, quick: false, ..KafkaOptions::default() };
    let servers = Servers { kafka, ..Servers::default() };
    let stack = Stack::without_topics(layers, catalog, servers).await;
    stack.kafka.create_topic("events", partitions, &[]).await?;
    stack.batch(&["run"]).await;
    Ok(stack)
}
