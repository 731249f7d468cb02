//! The Redis of a test: one server, or a Cluster of three masters where `TIDEMARK_TEST_REDIS=cluster` says so.
//!
//! Invariant: what a test does to it is done to every master, and what it asks is what all masters hold, so that a
//! test needn't know which it has.

use crate::proxy::Proxy;
use crate::redis_client::{ask, connect_one};
use crate::wait_for;
use local::install::Found;
use local::servers::{Redis, RedisCluster, RedisOptions};
use redis::aio::MultiplexedConnection;
use std::collections::BTreeMap;
use std::path::Path;

/// Which Redis a test has.
#[derive(Debug, Clone, Copy, Default)]
pub enum Topology {
    /// One server; a Cluster where the environment says so.
    #[default]
    Chosen,
    /// One server in any case. Needed by `a_replica_that_is_behind_is_promoted` in `redis_faults.rs` alone: nodes of a
    /// Cluster promote a replica by themselves, which `redis_cluster.rs` has them do.
    Server,
    /// A Cluster in any case.
    Cluster,
}

impl Topology {
    fn is_cluster(self) -> bool {
        match self {
            Topology::Server => false,
            Topology::Cluster => true,
            // Not TIDEMARK_REDIS: that is the URL by which the layers find theirs.
            Topology::Chosen => match std::env::var("TIDEMARK_TEST_REDIS").as_deref() {
                Ok("cluster") => true,
                Ok("" | "server") | Err(_) => false,
                Ok(other) => panic!("TIDEMARK_TEST_REDIS={other} is neither cluster nor server"),
            },
        }
    }
}

/// The running servers; ended when dropped.
#[derive(Debug)]
pub enum RedisServers {
    /// One.
    Server(Box<Redis>),
    /// Three masters.
    Cluster(RedisCluster),
}

impl RedisServers {
    /// Starts them with their data in a fresh folder. The options are each server's.
    ///
    /// # Errors
    /// When one doesn't come up: with the end of its log.
    pub async fn start(
        found: &Found,
        folder: &Path,
        options: RedisOptions,
        topology: Topology,
    ) -> anyhow::Result<RedisServers> {
        Ok(if topology.is_cluster() {
            RedisServers::Cluster(RedisCluster::start(found, folder, options).await?)
        } else {
            RedisServers::Server(Box::new(Redis::start(found, folder, options).await?))
        })
    }

    /// The masters.
    pub fn masters(&self) -> &[Redis] {
        match self {
            RedisServers::Server(server) => std::slice::from_ref(server),
            RedisServers::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// The masters, each to be stopped, killed and restarted by itself.
    pub fn masters_mut(&mut self) -> &mut [Redis] {
        match self {
            RedisServers::Server(server) => std::slice::from_mut(server),
            RedisServers::Cluster(cluster) => cluster.nodes_mut(),
        }
    }

    /// The process ids of those that run.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.masters().iter().filter_map(Redis::pid).map(|pid| pid as i32)
    }

    /// The URL of each master.
    pub fn urls(&self) -> Vec<String> {
        self.masters().iter().map(Redis::url).collect()
    }

    /// What a layer is given as `--redis`.
    pub fn url(&self) -> String {
        self.urls().join(",")
    }

    /// `kill -9` for all.
    pub fn kill(&mut self) {
        self.masters_mut().iter_mut().for_each(Redis::kill);
    }

    /// Ends all as their operator would.
    pub async fn stop(&mut self) {
        for master in self.masters_mut() {
            master.stop().await;
        }
    }

    /// Starts all again on the same ports and folders.
    ///
    /// # Errors
    /// When one doesn't come up: with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        for master in self.masters_mut() {
            master.restart().await?;
        }
        match self {
            RedisServers::Server(_) => Ok(()),
            RedisServers::Cluster(cluster) => cluster.wait_until_whole().await,
        }
    }

    /// A connection to each master.
    pub async fn connections(&self) -> Vec<MultiplexedConnection> {
        let mut connections = Vec::new();
        for url in self.urls() {
            connections.push(connect_one(&url).await);
        }
        connections
    }

    /// What each master answers to a command.
    ///
    /// # Panics
    /// With the command and its error.
    pub async fn ask_each<T: redis::FromRedisValue>(&self, words: &[&str]) -> Vec<T> {
        let mut answers = Vec::new();
        for mut connection in self.connections().await {
            answers.push(ask(&mut connection, words).await);
        }
        answers
    }

    /// Removes all data.
    pub async fn empty(&self) {
        let _: Vec<()> = self.ask_each(&["FLUSHALL"]).await;
    }

    /// The bytes of all data (`dataset.bytes` of MEMORY STATS).
    pub async fn dataset(&self) -> i64 {
        let stats = self.ask_each::<BTreeMap<String, redis::Value>>(&["MEMORY", "STATS"]).await;
        let bytes = |stats: &BTreeMap<String, redis::Value>| -> i64 {
            let bytes = stats.get("dataset.bytes").expect("the data's bytes").clone();
            redis::from_redis_value(bytes).expect("a number")
        };
        stats.iter().map(bytes).sum()
    }

    /// Puts a proxy before each master. The nodes of a Cluster name the proxies to clients from then on, also to those
    /// that found them otherwise.
    pub async fn behind_proxies(&self, seed: u64) -> Vec<Proxy> {
        let mut proxies = Vec::new();
        for (master, seed) in self.masters().iter().zip(seed..) {
            proxies.push(Proxy::start(master.port(), seed).await);
        }
        if let RedisServers::Cluster(_) = self {
            for (mut connection, proxy) in self.connections().await.into_iter().zip(&proxies) {
                let port = proxy.port().to_string();
                let () = ask(&mut connection, &["CONFIG", "SET", "cluster-announce-port", &port]).await;
            }
            wait_for("every node naming the proxies", async || {
                let named = self.ask_each::<String>(&["CLUSTER", "NODES"]).await;
                let all = |nodes: &&String| {
                    proxies.iter().all(|proxy| nodes.contains(&format!(":{}@", proxy.port())))
                };
                if named.iter().filter(all).count() == named.len() { Ok(()) } else { Err(named.join("\n")) }
            })
            .await;
        }
        proxies
    }
}
