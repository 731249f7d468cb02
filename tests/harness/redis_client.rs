//! Asking a test's Redis by hand: what no layer does, such as losing data or moving slots.

use redis::aio::MultiplexedConnection;

/// A connection to one server.
///
/// # Panics
/// Where there is none.
pub async fn connect(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).expect("redis url");
    client.get_multiplexed_async_connection().await.expect("redis")
}

/// What a command answers.
///
/// # Panics
/// With the command and its error.
pub async fn ask<T: redis::FromRedisValue>(connection: &mut MultiplexedConnection, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(connection).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}
