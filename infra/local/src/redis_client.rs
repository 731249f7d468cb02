//! A client of Redis by its URL, be that one server or nodes of a Cluster.
//!
//! Invariant: a command goes to where its key is, and one that names no key but means all of them (FLUSHALL, KEYS) to
//! every master, so that who asks needn't know which it is.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, Value};
use std::time::Duration;

const ANSWER_IN: Duration = Duration::from_secs(30);

/// A connection to one server, or to all masters of a Cluster.
#[derive(Clone)]
pub enum Connection {
    /// One server.
    Server(MultiplexedConnection),
    /// A Cluster.
    Cluster(ClusterConnection),
}

/// Connects to the first that answers of one or more URLs, divided by commas, and finds out whether it is part of a
/// Cluster.
///
/// # Errors
/// When nobody answers.
pub async fn connect(urls: &str) -> Result<Connection, RedisError> {
    let mut failed = RedisError::from((ErrorKind::InvalidClientConfig, "no Redis URL"));
    for url in urls.split(',') {
        match connect_one(url).await {
            Ok((_, true)) => {
                let client = ClusterClient::builder(urls.split(',')).response_timeout(ANSWER_IN).retries(3);
                return Ok(Connection::Cluster(client.build()?.get_async_connection().await?));
            }
            Ok((connection, false)) => return Ok(Connection::Server(connection)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Connects to just this server, and says whether it is a node of a Cluster.
///
/// # Errors
/// When it doesn't answer.
pub async fn connect_one(url: &str) -> Result<(MultiplexedConnection, bool), RedisError> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_IN));
    let mut connection = Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
    let info: String = redis::cmd("INFO").arg("cluster").query_async(&mut connection).await?;
    Ok((connection, info.contains("cluster_enabled:1")))
}

impl Connection {
    fn inner(&mut self) -> &mut (dyn ConnectionLike + Send) {
        match self {
            Connection::Server(connection) => connection,
            Connection::Cluster(connection) => connection,
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.inner().req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.inner().req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        // A Cluster has no other, and nobody here chooses one.
        0
    }
}
