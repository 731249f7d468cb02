//! The realtime view in Redis or Valkey, standalone or Cluster, by the same code.
//!
//! Only read-only commands are sent, to the primary of each key. A connection is made when first needed, and again
//! after it broke: by then it may lead to another kind of server.

mod address;

pub use address::Address;

use super::{Group, RealtimeError, RealtimeView, Want};
use futures::future::BoxFuture;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster_async::ClusterConnection;
use redis::{Client, Cmd, FromRedisValue, RedisError};
use shared_model::offsets::TopicPartition;
use shared_model::view::{MARKS_KEY, Mark};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

const CONNECT: Duration = Duration::from_secs(5);
const RESPOND: Duration = Duration::from_secs(10);

/// The realtime view behind one or several Redis URLs.
pub struct RedisRealtimeView {
    address: Address,
    connection: Mutex<Option<Connection>>,
    /// Whether the speed layer's function library was found missing: panes are then read with whole groups.
    without_library: AtomicBool,
}

impl std::fmt::Debug for RedisRealtimeView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisRealtimeView({:?})", self.address)
    }
}

#[derive(Clone)]
enum Connection {
    One(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Connection {
    async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        match self {
            Connection::One(connection) => command.query_async(connection).await,
            Connection::Cluster(connection) => command.query_async(connection).await,
        }
    }
}

impl RedisRealtimeView {
    /// Of the servers at an address; nothing is connected yet.
    pub fn new(address: Address) -> RedisRealtimeView {
        RedisRealtimeView { address, connection: Mutex::default(), without_library: AtomicBool::default() }
    }

    async fn connection(&self) -> Result<Connection, RedisError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let connection = connect(&self.address).await?;
        self.without_library.store(false, Ordering::Relaxed);
        Ok(held.insert(connection).clone())
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let result = match self.connection().await {
            Ok(mut connection) => connection.query(command).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &result
            && (error.is_unrecoverable_error() || error.is_connection_refusal())
        {
            *self.connection.lock().await = None;
        }
        result
    }

    async fn panes(&self, key: &str) -> Result<Option<Group>, RedisError> {
        let mut command = redis::cmd("FCALL_RO");
        command.arg("tm1_read").arg(1).arg(key).arg("p");
        let found: Vec<Option<Vec<u8>>> = self.query(&command).await?;
        let mut parts = found.into_iter();
        let Some(Some(header)) = parts.next() else { return Ok(None) };
        let mut fields = vec![(b"h".to_vec(), header)];
        while let (Some(Some(field)), Some(Some(value))) = (parts.next(), parts.next()) {
            fields.push((field, value));
        }
        Ok(Group::from_fields(fields))
    }

    async fn whole(&self, key: &str) -> Result<Option<Group>, RedisError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(key);
        let fields: HashMap<Vec<u8>, Vec<u8>> = self.query(&command).await?;
        Ok(Group::from_fields(fields))
    }
}

impl RealtimeView for RedisRealtimeView {
    fn group<'a>(&'a self, key: &'a str, want: Want) -> BoxFuture<'a, Result<Option<Group>, RealtimeError>> {
        Box::pin(async move {
            if want == Want::Panes && !self.without_library.load(Ordering::Relaxed) {
                match self.panes(key).await {
                    Err(error) if error.to_string().contains("Function not found") => {
                        self.without_library.store(true, Ordering::Relaxed);
                    }
                    other => return other.map_err(unavailable),
                }
            }
            self.whole(key).await.map_err(unavailable)
        })
    }

    fn marks(&self) -> BoxFuture<'_, Result<BTreeMap<TopicPartition, Mark>, RealtimeError>> {
        Box::pin(async move {
            let mut command = redis::cmd("HGETALL");
            command.arg(MARKS_KEY);
            let fields: HashMap<String, Vec<u8>> = self.query(&command).await.map_err(unavailable)?;
            // The speed layer loads its library when it starts: look for it again now and then.
            self.without_library.store(false, Ordering::Relaxed);
            let mark = |(name, json): (String, Vec<u8>)| {
                Some((TopicPartition::parse(&name)?, serde_json::from_slice(&json).ok()?))
            };
            Ok(fields.into_iter().filter_map(mark).collect())
        })
    }
}

/// Connects, and finds out whether the server is part of a cluster.
async fn connect(address: &Address) -> Result<Connection, RedisError> {
    let mut last = None;
    for client in address.clients() {
        match connect_one(client?).await {
            Err(error) => last = Some(error),
            Ok((_, true)) => {
                let client =
                    address.cluster().connection_timeout(CONNECT).response_timeout(RESPOND).build()?;
                return Ok(Connection::Cluster(client.get_async_connection().await?));
            }
            Ok((connection, false)) => return Ok(Connection::One(connection)),
        }
    }
    Err(last.unwrap_or_else(|| RedisError::from((redis::ErrorKind::InvalidClientConfig, "no Redis URL"))))
}

async fn connect_one(client: Client) -> Result<(ConnectionManager, bool), RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(RESPOND))
        .set_number_of_retries(1);
    let mut connection = ConnectionManager::new_with_config(client, config).await?;
    let mut command = redis::cmd("INFO");
    command.arg("cluster");
    let info: String = command.query_async(&mut connection).await?;
    Ok((connection, info.contains("cluster_enabled:1")))
}

fn unavailable(error: RedisError) -> RealtimeError {
    RealtimeError(error.to_string())
}
