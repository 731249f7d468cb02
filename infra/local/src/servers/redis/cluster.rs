//! A Redis Cluster of three masters on loopback, for showing that code works on one.
//!
//! Invariant: handed out only when every node says that all slots are served. The nodes know one another by
//! port, and ports are new in each session, so a cluster lives in a fresh folder and for one session.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

use super::{Redis, RedisOptions};
use crate::install::Found;
use crate::ports::Lease;
use crate::servers::{GRACE, LOOK_EVERY};

/// First and last slot of each node.
const SLOTS: [(u16, u16); 3] = [(0, 5_460), (5_461, 10_922), (10_923, 16_383)];

/// A running cluster; ended when dropped.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    _bus: Vec<Lease>,
}

impl RedisCluster {
    /// Starts three masters with their data in folders under `folder`, which must be fresh, joins them, and
    /// waits until all slots are served. The options are each node's.
    ///
    /// # Errors
    /// When the folder holds a cluster already, a node doesn't come up, or they don't agree.
    pub async fn start(found: &Found, folder: &Path, options: RedisOptions) -> anyhow::Result<RedisCluster> {
        let mut nodes = Vec::new();
        let mut bus = Vec::new();
        for index in 0..SLOTS.len() {
            let home = folder.join(format!("node-{index}"));
            ensure!(!home.exists(), "{} holds a cluster already; choose a fresh folder", folder.display());
            let lease = Lease::take()?;
            let mut options = options.clone();
            let ours = [("cluster-enabled", "yes".to_owned()), ("cluster-port", lease.port().to_string())];
            if options.tls.is_some() {
                options.settings.push(("tls-cluster".to_owned(), "yes".to_owned()));
            }
            options.settings.extend(ours.map(|(name, value)| (name.to_owned(), value)));
            nodes.push(Redis::start(found, &home, options).await?);
            bus.push(lease);
        }
        join(&nodes, &bus).await.context("the redis nodes can't be joined to a cluster")?;
        let cluster = RedisCluster { nodes, _bus: bus };
        cluster.wait_until_whole().await?;
        Ok(cluster)
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The nodes, each to be stopped, killed and restarted by itself.
    pub fn nodes_mut(&mut self) -> &mut [Redis] {
        &mut self.nodes
    }

    /// Waits until all slots are served, as after nodes came back.
    ///
    /// # Errors
    /// When a node doesn't answer, or they don't agree.
    pub async fn wait_until_whole(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + GRACE;
        for node in &self.nodes {
            let mut connection = node.client()?.get_multiplexed_async_connection().await?;
            loop {
                let info: String = cluster("INFO").query_async(&mut connection).await?;
                if is_whole(&info) {
                    break;
                }
                if Instant::now() >= deadline {
                    bail!("not whole after {GRACE:?}: {}", info.replace("\r\n", " "));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }
}

async fn join(nodes: &[Redis], bus: &[Lease]) -> anyhow::Result<()> {
    for (node, (epoch, (first, last))) in nodes.iter().zip((1..).zip(SLOTS)) {
        let mut connection = node.client()?.get_multiplexed_async_connection().await?;
        // Own epochs from the start spare them from settling a collision.
        let () = cluster("SET-CONFIG-EPOCH").arg(epoch).query_async(&mut connection).await?;
        let () = cluster("ADDSLOTSRANGE").arg(first).arg(last).query_async(&mut connection).await?;
    }
    let mut first = nodes[0].client()?.get_multiplexed_async_connection().await?;
    for (node, lease) in nodes.iter().zip(bus).skip(1) {
        let mut meet = cluster("MEET");
        meet.arg("127.0.0.1").arg(node.port()).arg(lease.port());
        let () = meet.query_async(&mut first).await?;
    }
    Ok(())
}

fn cluster(subcommand: &str) -> redis::Cmd {
    let mut command = redis::cmd("CLUSTER");
    command.arg(subcommand);
    command
}

fn is_whole(info: &str) -> bool {
    ["cluster_state:ok", "cluster_known_nodes:3", "cluster_slots_ok:16384"]
        .iter()
        .all(|fact| info.lines().any(|line| line.trim_end() == *fact))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_cut_without_gap() {
        assert_eq!((SLOTS[0].0, SLOTS[2].1), (0, 16_383));
        assert!(SLOTS.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
    }

    #[test]
    fn whole_only_with_all_nodes_and_slots() {
        let info = "cluster_state:ok\r\ncluster_slots_ok:16384\r\ncluster_known_nodes:3\r\n";
        assert!(is_whole(info));
        assert!(!is_whole(&info.replace(":ok", ":fail")));
        assert!(!is_whole(&info.replace("nodes:3", "nodes:2")));
    }
}
