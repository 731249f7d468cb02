//! Redis: the function library that guards the groups, standalone and on a cluster by the same code.
//!
//! Every command names one key, so that a cluster routes it; commands of one round are sent together on multiplexed
//! connections. What an error means for a write is decided here: refused, stored, or unknown.

use crate::flush::Answer;
use crate::group::{Claimed, Write};
use ::redis::aio::{ConnectionLike as _, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use ::redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value, cmd};
use anyhow::{Context as _, anyhow, bail};
use shared_model::failpoint;
use shared_model::redis_address::Address;
use shared_model::time::Millis;
use shared_model::view::{self, Header, MARKS_KEY, Mark, Slice};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// The function library.
pub(crate) const LIBRARY: &str = include_str!("flush.lua");
/// The key that says how far every pane is published, as long as somebody does that.
const PUBLISHED_TO: &str = "tm1:published_to";
const CONNECT: Duration = Duration::from_secs(3);
const RESPONSE: Duration = Duration::from_secs(15);

/// A connection to one server or to a cluster; clones share it.
#[derive(Clone)]
pub(crate) enum Redis {
    /// One server.
    Single(ConnectionManager),
    /// A cluster.
    Cluster(Arc<Cluster>),
}

/// A cluster's connection, made anew where it is found broken, or an answer did not come in time: the client may come to a
/// stand for good, while a master fails over (its refresh of the slots waits for requests that wait for it) and when all
/// nodes are away at once (it goes on to look for the slots at none; both seen with redis 1.8).
pub(crate) struct Cluster(Mutex<Connected>);

struct Connected {
    /// How often it was tried to make it anew.
    number: u64,
    connection: ClusterConnection,
    /// With the nodes that it found.
    address: Address,
}

impl Connected {
    async fn new(number: u64, address: &Address) -> anyhow::Result<Connected> {
        let client =
            address.cluster().connection_timeout(CONNECT).response_timeout(RESPONSE).retries(3).build()?;
        let mut connection = client.get_async_connection().await?;
        let nodes: String = cmd("CLUSTER").arg("NODES").query_async(&mut connection).await?;
        Ok(Connected { number, connection, address: address.with_nodes(&nodes) })
    }
}

impl Cluster {
    /// Sends a command to a node, or to the one that has its key.
    async fn send(&self, cmd: &Cmd, node: Option<SingleNodeRoutingInfo>) -> RedisResult<Value> {
        let (number, mut connection) = {
            let held = self.0.lock().await;
            (held.number, held.connection.clone())
        };
        let is_of_a_node = node.is_some();
        let answer = match node {
            None => connection.req_packed_command(cmd).await,
            Some(node) => connection.route_command(cmd.clone(), RoutingInfo::SingleNode(node)).await,
        };
        // A node by a name that the client doesn't know says nothing of the others.
        let is_unknown =
            |error: &RedisError| is_of_a_node && error.kind() == ErrorKind::ClusterConnectionNotFound;
        if answer.as_ref().is_err_and(|error| is_of_the_connection(error) && !is_unknown(error)) {
            self.renew(number).await;
        }
        answer
    }

    /// Connects anew, once for all whose requests failed on the connection of a number: they share what comes of it.
    async fn renew(&self, number: u64) {
        let mut held = self.0.lock().await;
        if held.number == number {
            held.number += 1;
            match tokio::time::timeout(RESPONSE, Connected::new(number + 1, &held.address)).await {
                Ok(Ok(fresh)) => *held = fresh,
                Ok(Err(error)) => tracing::warn!("no new connection to redis: {error:#}"),
                Err(_) => tracing::warn!("no new connection to redis in {RESPONSE:?}"),
            }
        }
    }
}

impl Redis {
    /// Connects to the first server that answers, and finds out whether it is part of a cluster.
    pub(crate) async fn connect(address: &Address) -> anyhow::Result<Redis> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(RESPONSE))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_secs(1));
        let mut answer = Err(anyhow!("no redis url"));
        for client in address.clients() {
            answer = ConnectionManager::new_with_config(client?, config.clone()).await.map_err(Into::into);
            if answer.is_ok() {
                break;
            }
        }
        let single = Redis::Single(answer?);
        let info: String = single.ask(cmd("INFO").arg("cluster")).await?;
        if !info.contains("cluster_enabled:1") {
            return Ok(single);
        }
        let connected = Connected::new(0, address).await?;
        Ok(Redis::Cluster(Arc::new(Cluster(Mutex::new(connected)))))
    }

    /// Refuses a server that may evict, since a group may only be lost as a whole and be noticed.
    pub(crate) async fn check_policy(&self) -> anyhow::Result<Result<(), String>> {
        let found: Value = match self.ask(cmd("CONFIG").arg("GET").arg("maxmemory-policy")).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("cannot read redis' maxmemory-policy ({error}): it must be noeviction");
                return Ok(Ok(()));
            }
        };
        let mut texts = Vec::new();
        flatten(&found, &mut texts);
        let policies = texts.chunks(2).filter_map(|pair| pair.get(1));
        Ok(match policies.into_iter().find(|policy| *policy != "noeviction") {
            None => Ok(()),
            Some(policy) => Err(format!(
                "redis has maxmemory-policy {policy}, which may silently evict counters: it must be noeviction \
                 (redis-cli config set maxmemory-policy noeviction, and in redis.conf)"
            )),
        })
    }

    /// Loads the function library, replacing an older one of the same version. Where memory is full it can't be loaded:
    /// whether it is there already the next call tells.
    pub(crate) async fn load_library(&self) -> RedisResult<()> {
        failpoint::hit("speed.library.before");
        let loaded = self.ask(cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(LIBRARY)).await;
        failpoint::hit("speed.library.after");
        loaded.or_else(|error: RedisError| if error.code() == Some("OOM") { Ok(()) } else { Err(error) })
    }

    /// Makes us the owner of a group and says what is there.
    pub(crate) async fn claim(&self, key: &str, token: &str) -> anyhow::Result<Claimed> {
        type Reply = (Option<Vec<u8>>, Option<String>, Vec<Value>);
        failpoint::hit("speed.claim.before");
        let reply: RedisResult<Reply> =
            self.ask(cmd("FCALL").arg("tm1_claim").arg(1).arg(key).arg(token)).await;
        failpoint::hit("speed.claim.after");
        if reply.as_ref().is_err_and(is_library_missing) {
            self.load_library().await?;
        }
        let (header, fence, fields) = reply.with_context(|| format!("cannot claim {key}"))?;
        let mut lengths = Vec::with_capacity(fields.len() / 2);
        for pair in fields.chunks(2) {
            let [field, length] = pair else { bail!("redis' answer to the claim of {key} is cut short") };
            lengths
                .push((String::from_redis_value(field.clone())?, usize::from_redis_value(length.clone())?));
        }
        Ok(Claimed::of(header.as_deref(), fence.as_deref(), &lengths))
    }

    /// Empties a group that is to be built anew. Refused (`NotOwner`) if another has claimed it since.
    pub(crate) async fn reset(&self, key: &str, token: &str) -> Answer {
        failpoint::hit("speed.reset.before");
        let reply = self.ask(cmd("FCALL").arg("tm1_reset").arg(1).arg(key).arg(token)).await;
        failpoint::hit("speed.reset.after");
        answer(reply)
    }

    /// Puts segments back into a group that was emptied, which has no header until it is restored.
    pub(crate) async fn put(&self, key: &str, token: &str, segments: &[((Slice, u64), Vec<u8>)]) -> Answer {
        let mut call = cmd("FCALL");
        call.arg("tm1_put").arg(1).arg(key).arg(token);
        for ((slice, seq), bytes) in segments {
            call.arg(view::segment_field(*slice, *seq)).arg(&bytes[..]);
        }
        failpoint::hit("speed.put.before");
        let reply = self.ask(&call).await;
        failpoint::hit("speed.put.after");
        answer(reply)
    }

    /// Makes a group of exactly these segments, which were put back, by its header.
    pub(crate) async fn restore(
        &self,
        key: &str,
        token: &str,
        header: &Header,
        segments: impl Iterator<Item = (Slice, u64)>,
    ) -> Answer {
        let mut call = cmd("FCALL");
        call.arg("tm1_restore").arg(1).arg(key).arg(token).arg(header.fence()).arg(header.to_json());
        segments.for_each(|(slice, seq)| _ = call.arg(view::segment_field(slice, seq)));
        failpoint::hit("speed.restore.before");
        let reply = self.ask(&call).await;
        failpoint::hit("speed.restore.after");
        answer(reply)
    }

    /// Stores a write, if the group is where it follows.
    pub(crate) async fn flush(&self, key: &str, token: &str, write: &Write) -> Answer {
        let call = store("tm1_flush", key, token, write);
        failpoint::hit("speed.flush.before");
        let reply = self.ask(&call).await;
        failpoint::hit("speed.flush.after");
        answer(reply)
    }

    /// Stores a write that only deletes, which is admitted when memory is full.
    pub(crate) async fn trim(&self, key: &str, token: &str, write: &Write) -> Answer {
        let call = store("tm1_trim", key, token, write);
        failpoint::hit("speed.trim.before");
        let reply = self.ask(&call).await;
        failpoint::hit("speed.trim.after");
        answer(reply)
    }

    /// Whether a group still is as we stored it: nothing is written. Answered when memory is full, too.
    pub(crate) async fn probe(&self, key: &str, token: &str, header: &Header) -> Answer {
        let (fence, mut call) = (header.fence(), cmd("FCALL"));
        call.arg("tm1_trim").arg(1).arg(key).arg(token).arg("lost").arg(fence).arg("").arg(0);
        answer(self.ask(&call).await)
    }

    /// Segments of a group, in the order asked for; `None` for one that isn't there.
    pub(crate) async fn segments(
        &self,
        key: &str,
        slice: Slice,
        seqs: &[u64],
    ) -> RedisResult<Option<Vec<Vec<u8>>>> {
        let mut call = cmd("HMGET");
        call.arg(key);
        for &seq in seqs {
            call.arg(view::segment_field(slice, seq));
        }
        let found: Vec<Option<Vec<u8>>> = self.ask(&call).await?;
        Ok(found.into_iter().collect())
    }

    /// Publishes a partition's mark.
    pub(crate) async fn set_mark(&self, partition: &str, mark: &Mark) -> RedisResult<()> {
        let json = serde_json::to_string(mark).expect("a mark is plain data");
        failpoint::hit("speed.mark.before");
        let stored = self.ask(cmd("HSET").arg(MARKS_KEY).arg(partition).arg(json)).await;
        failpoint::hit("speed.mark.after");
        stored
    }

    /// All partitions' marks; those that can't be read are left out.
    pub(crate) async fn marks(&self) -> RedisResult<BTreeMap<String, Mark>> {
        let found: BTreeMap<String, String> = self.ask(cmd("HGETALL").arg(MARKS_KEY)).await?;
        Ok(found.into_iter().filter_map(|(tp, json)| Some((tp, serde_json::from_str(&json).ok()?))).collect())
    }

    /// How far every pane is published: the end of the newest window, where somebody does that.
    pub(crate) async fn published_to(&self) -> RedisResult<Option<Millis>> {
        self.ask(cmd("GET").arg(PUBLISHED_TO)).await
    }

    /// Says how far every pane is published; after a while it isn't believed any more.
    pub(crate) async fn set_published_to(&self, to: Millis, believed: Duration) -> RedisResult<()> {
        self.ask(cmd("SET").arg(PUBLISHED_TO).arg(to).arg("PX").arg(believed.as_millis() as u64)).await
    }

    /// Whether keys lie on several nodes, so that a command can't name many.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Redis::Cluster(_))
    }

    /// All keys that match a pattern, over all nodes.
    pub(crate) async fn scan(&self, pattern: &str) -> RedisResult<Vec<String>> {
        let mut keys = Vec::new();
        for node in self.masters().await? {
            let mut cursor: u64 = 0;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(2_000);
                let (next, found): (u64, Vec<String>) = match (self, &node) {
                    (Redis::Cluster(cluster), Some((host, port))) => {
                        let to = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                        FromRedisValue::from_redis_value(cluster.send(&scan, Some(to)).await?)?
                    }
                    _ => self.ask(&scan).await?,
                };
                keys.extend(found);
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(keys)
    }

    /// The addresses of a cluster's masters; for one server, one without address.
    async fn masters(&self) -> RedisResult<Vec<Option<(String, u16)>>> {
        if let Redis::Single(_) = self {
            return Ok(vec![None]);
        }
        let nodes: String = self.ask(cmd("CLUSTER").arg("NODES")).await?;
        let master = |line: &str| {
            let mut words = line.split(' ').skip(1);
            let (address, flags) = (words.next()?, words.next()?);
            let (host, port) = address.split(['@', ',']).next()?.rsplit_once(':')?;
            let master = flags.split(',').any(|flag| flag == "master") && !flags.contains("fail");
            if master { Some((host.to_owned(), port.parse().ok()?)) } else { None }
        };
        Ok(nodes.lines().filter_map(master).map(Some).collect())
    }

    /// Sends a command and reads its answer.
    pub(crate) async fn ask<T: FromRedisValue>(&self, cmd: &Cmd) -> RedisResult<T> {
        let value = match self {
            Redis::Single(single) => single.clone().req_packed_command(cmd).await,
            Redis::Cluster(cluster) => cluster.send(cmd, None).await,
        }?;
        Ok(T::from_redis_value(value.extract_error()?)?)
    }
}

/// Whether it is the connection that failed, or that an answer did not come.
pub(crate) fn is_of_the_connection(error: &RedisError) -> bool {
    error.is_unrecoverable_error() || error.is_connection_refusal() || error.is_timeout()
}

/// Whether something failed because the function library isn't there, or is an older one.
pub(crate) fn lacks_library(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<RedisError>()).any(is_library_missing)
}

fn is_library_missing(error: &RedisError) -> bool {
    error.to_string().contains("Function not found")
}

/// The call that stores a write.
fn store(function: &str, key: &str, token: &str, write: &Write) -> ::redis::Cmd {
    let (header, fields) = (write.header.to_json(), write.segments.len() + write.deletes.len());
    let bytes: usize = write.segments.iter().map(|(_, bytes)| bytes.len()).sum();
    // With room for all: grown, the segments would be copied once more.
    let mut call =
        Cmd::with_capacity(9 + fields + write.segments.len(), bytes + header.len() + 64 * (9 + fields));
    call.arg("FCALL").arg(function).arg(1).arg(key).arg(token).arg(&write.expected).arg(write.header.fence());
    call.arg(header).arg(write.segments.len());
    for (slice, bytes) in &write.segments {
        call.arg(view::segment_field(*slice, write.header.seq)).arg(&bytes[..]);
    }
    for &(slice, seq) in &write.deletes {
        call.arg(view::segment_field(slice, seq));
    }
    call
}

/// What an answer to a guarded write means.
fn answer(reply: RedisResult<String>) -> Answer {
    match reply {
        Ok(text) => Answer::of(&text),
        Err(error) if is_library_missing(&error) => Answer::NoLibrary,
        Err(error) if error.code() == Some("OOM") => Answer::Full(explain(&error)),
        Err(error) => Answer::Unknown(explain(&error)),
    }
}

/// An error for people; what passes by itself says so.
pub(crate) fn explain(error: &RedisError) -> String {
    match (error.kind(), error.code()) {
        (_, Some("OOM")) => {
            "redis is out of memory (maxmemory): reading pauses until there is room again".into()
        }
        (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => "redis is loading its data".into(),
        (ErrorKind::Server(ServerErrorKind::ReadOnly), _) => "redis is a read-only replica".into(),
        _ => error.to_string(),
    }
}

fn flatten(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::Array(values) | Value::Set(values) => values.iter().for_each(|value| flatten(value, texts)),
        Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
            flatten(key, texts);
            flatten(value, texts);
        }),
        other => texts.extend(String::from_redis_value(other.clone())),
    }
}
