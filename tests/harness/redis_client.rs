//! Asking a test's Redis by hand: what no layer does, such as losing data or moving slots.

pub use local::redis_client::Connection;
use redis::aio::{ConnectionLike, MultiplexedConnection};

/// A connection to all that is there: to one server, or to a Cluster.
///
/// # Panics
/// Where nobody answers.
pub async fn connect(urls: &str) -> Connection {
    local::redis_client::connect(urls).await.expect("redis")
}

/// A connection to this server alone, also where it is a node of a Cluster.
///
/// # Panics
/// Where it doesn't answer.
pub async fn connect_one(url: &str) -> MultiplexedConnection {
    local::redis_client::connect_one(url).await.expect("redis").0
}

/// What a command answers.
///
/// # Panics
/// With the command and its error.
pub async fn ask<T: redis::FromRedisValue>(connection: &mut impl ConnectionLike, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(connection).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}
