//! The realtime view in Redis or Valkey, standalone or Cluster, by the same code.
//!
//! Only read-only commands are sent, to the primary of each key. A connection is made when first needed, and again
//! after it broke: by then it may lead to another kind of server. What was read is held, up to a bound; each answer is
//! from behind a fence that stood after it was asked.

use super::held::{self, Held, Taken, Told};
use super::kept::{Kept, Place};
use super::reads::Reads;
use super::rounds::Rounds;
use super::{ABREAST, Group, Groups, Marks, RealtimeError, RealtimeView, Tally, TallyOf, Want};
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster_async::ClusterConnection;
use redis::{Client, Cmd, FromRedisValue, RedisError};
use shared_model::offsets::TopicPartition;
use shared_model::redis_address::Address;
use shared_model::view::{self, FENCE_FIELD, MARKS_KEY};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;

const CONNECT: Duration = Duration::from_secs(5);
const RESPOND: Duration = Duration::from_secs(10);

/// The realtime view behind one or several Redis URLs.
pub struct RedisRealtimeView {
    /// With the nodes that the last connection found.
    address: Mutex<Address>,
    connection: Mutex<Option<Connection>>,
    /// Whether the speed layer's function library was found missing: groups are then read whole, again and again.
    without_library: AtomicBool,
    kept: Kept,
    /// The marks as Redis told them last, and what that says.
    marks: std::sync::Mutex<Option<(redis::Value, Arc<Marks>)>>,
    looks: Rounds<Result<Option<Arc<Look>>, RedisError>>,
    reads: Reads<RedisError>,
}

/// What tells whether groups have changed, and the marks as they were after that, if anyone asked for them.
struct Look {
    /// Each group's, where there is one.
    fences: HashMap<String, String>,
    marks: Option<Arc<Marks>>,
}

impl std::fmt::Debug for RedisRealtimeView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisRealtimeView")
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
    /// Of the servers at an address; nothing is connected yet. What was read is held in at most `memory` bytes.
    pub fn new(address: Address, memory: u64) -> RedisRealtimeView {
        RedisRealtimeView {
            address: Mutex::new(address),
            connection: Mutex::default(),
            without_library: AtomicBool::default(),
            kept: Kept::new(memory),
            marks: std::sync::Mutex::default(),
            looks: Rounds::new(),
            reads: Reads::new(),
        }
    }

    async fn connection(&self) -> Result<Connection, RedisError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let mut address = self.address.lock().await;
        let mut connection = connect(&address).await?;
        if let Connection::Cluster(_) = connection {
            let nodes: String = connection.query(redis::cmd("CLUSTER").arg("NODES")).await?;
            *address = address.with_nodes(&nodes);
        }
        self.without_library.store(false, Ordering::Relaxed);
        Ok(held.insert(connection).clone())
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let result = match self.connection().await {
            Ok(mut connection) => connection.query(command).await,
            Err(error) => Err(error),
        };
        self.noted(result).await
    }

    /// Lets go of a connection that is found broken, or stands still: a cluster's client may for good, while a master
    /// fails over.
    async fn noted<T>(&self, result: Result<T, RedisError>) -> Result<T, RedisError> {
        if let Err(error) = &result
            && (error.is_unrecoverable_error() || error.is_connection_refusal() || error.is_timeout())
        {
            *self.connection.lock().await = None;
        }
        result
    }

    /// A part of a group, of which that fence was `seen`, if anyone looked.
    async fn read(&self, place: Place, mut seen: Option<String>) -> Result<Option<Arc<Group>>, RedisError> {
        // One server's groups are looked at all together: who comes here has done so, and this one has changed.
        if let Some(held) = self.kept.group(&place.0, place.1)
            && let Connection::Cluster(_) = self.connection().await?
        {
            let mut command = redis::cmd("HGET");
            seen = self.query(command.arg(&place.0).arg(FENCE_FIELD)).await?;
            if seen.as_ref() == Some(&held.fence) {
                return Ok(Some(held.group.clone()));
            }
        }
        let held = || self.kept.group(&place.0, place.1);
        self.reads.join(&place, seen, held, |held| self.read_on(place.clone(), held)).await
    }

    /// The panes of groups that are held and unchanged, the others left out, and what tells so: also the marks, as they were
    /// after that. Of a cluster, whose groups lie apart, nothing.
    async fn unchanged(&self, keys: &[String]) -> Result<(Groups, Option<Arc<Look>>), RedisError> {
        let held = keys.iter().map(|key| self.kept.group(key, Want::Panes));
        let held: Vec<Option<Arc<Held>>> = held.collect();
        let none = || (vec![None; keys.len()], None);
        if held.iter().all(Option::is_none) {
            return Ok(none());
        }
        let asked = keys.iter().cloned().chain([MARKS_KEY.to_owned()]);
        let Some(look) = self.looks.join(asked, |keys| self.look(keys)).await? else { return Ok(none()) };
        let standing = |(key, held): (&String, Option<Arc<Held>>)| {
            let fence = look.fences.get(key);
            let same = held.filter(|held| fence == Some(&held.fence)).map(|held| held.group.clone());
            same.or_else(|| self.stands(key, Want::Panes, &look))
        };
        Ok((keys.iter().zip(held).map(standing).collect(), Some(look)))
    }

    /// A group that is held, where a look found it unchanged. It is taken after the look, too: another may have read on
    /// meanwhile, and what has the same fence is the same.
    fn stands(&self, key: &str, want: Want, look: &Look) -> Option<Arc<Group>> {
        let held = self.kept.group(key, want)?;
        (look.fences.get(key) == Some(&held.fence)).then(|| held.group.clone())
    }

    /// The fences of groups, and then the marks if [`MARKS_KEY`] is among the keys, in one go; `None` of a cluster, whose
    /// groups lie apart.
    async fn look(&self, mut keys: BTreeSet<String>) -> Result<Option<Arc<Look>>, RedisError> {
        let Connection::One(mut connection) = self.connection().await? else { return Ok(None) };
        let with_marks = keys.remove(MARKS_KEY);
        let mut all = redis::pipe();
        keys.iter().for_each(|key| _ = all.cmd("HGET").arg(key).arg(FENCE_FIELD));
        if with_marks {
            all.cmd("HGETALL").arg(MARKS_KEY);
        }
        // What is wrong with one group is no fault of the others: it is found by whoever reads that group on.
        all.ignore_errors();
        let mut answers: Vec<redis::Value> = self.noted(all.query_async(&mut connection).await).await?;
        let mut marks = None;
        if with_marks {
            let told = answers.pop().unwrap_or(redis::Value::Nil).extract_error();
            marks = Some(self.told_marks(self.noted(told).await?)?);
        }
        let fence =
            |(key, answer): (String, redis::Value)| Some((key, String::from_redis_value(answer).ok()?));
        let fences = keys.into_iter().zip(answers).filter_map(fence).collect();
        Ok(Some(Arc::new(Look { fences, marks })))
    }

    /// The marks as they were told: most often they are those that were told last.
    fn told_marks(&self, told: redis::Value) -> Result<Arc<Marks>, RedisError> {
        let mut last = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((value, marks)) = &*last
            && *value == told
        {
            return Ok(marks.clone());
        }
        let fields: HashMap<String, Vec<u8>> = HashMap::from_redis_value(told.clone())?;
        let marks = Arc::new(marks(fields));
        *last = Some((told, marks.clone()));
        Ok(marks)
    }

    /// Of groups those that are held and unchanged.
    async fn read_standing(&self, keys: &[String], want: Want) -> Result<Groups, RedisError> {
        let held = keys.iter().filter(|key| self.kept.group(key, want).is_some());
        let held: Vec<String> = held.cloned().collect();
        if held.is_empty() {
            return Ok(vec![None; keys.len()]);
        }
        let look = self.looks.join(held, |keys| self.look(keys)).await?;
        let stands = |key: &String| self.stands(key, want, look.as_deref()?);
        Ok(keys.iter().map(stands).collect())
    }

    /// The marks alone.
    async fn read_marks(&self) -> Result<Arc<Marks>, RedisError> {
        let look = self.looks.join([MARKS_KEY.to_owned()], |keys| self.look(keys)).await?;
        if let Some(marks) = look.and_then(|look| look.marks.clone()) {
            return Ok(marks);
        }
        let fields: HashMap<String, Vec<u8>> = self.query(redis::cmd("HGETALL").arg(MARKS_KEY)).await?;
        Ok(Arc::new(marks(fields)))
    }

    /// Reads what has changed of a group since.
    async fn read_on(
        &self,
        place: Place,
        mut before: Option<Arc<Held>>,
    ) -> Result<Option<Arc<Group>>, RedisError> {
        loop {
            let newest = before.as_ref().map_or(0, |held| held.newest());
            let Some(told) = self.told(&place, newest).await? else {
                self.kept.forget_group(&place);
                return Ok(None);
            };
            match held::take(told, before.as_deref()) {
                Taken::Held(held) => {
                    let group = held.group.clone();
                    self.kept.keep_group(place, Arc::new(held));
                    return Ok(Some(group));
                }
                Taken::Once(group) => return Ok(Some(group)),
                // The group was built anew, or rolled back, since it was read.
                Taken::Short if before.take().is_some() => {}
                Taken::Short => {
                    let what = "a group's segments come without their bytes";
                    return Err(RedisError::from((redis::ErrorKind::UnexpectedReturnType, what)));
                }
            }
        }
    }

    /// A part of a group, without the bytes of segments numbered up to `known`; `None` where there is no group.
    async fn told(&self, (key, want): &Place, known: u64) -> Result<Option<Told>, RedisError> {
        let kind = match want {
            Want::Epochs => "e",
            Want::Panes => "p",
        };
        let mut command = redis::cmd("FCALL_RO");
        command.arg("tm1_read").arg(1).arg(key).arg(kind).arg(known);
        let found: Vec<Option<Vec<u8>>> = self.query(&command).await?;
        let mut parts = found.into_iter();
        let Some(Some(header)) = parts.next() else { return Ok(None) };
        let mut fields = Vec::new();
        while let (Some(Some(field)), Some(value)) = (parts.next(), parts.next()) {
            fields.push((field, value));
        }
        Ok(Some(Told { header, fields }))
    }

    /// A part of a group, of which that fence was `seen`, if anyone looked.
    async fn part(
        &self,
        key: &str,
        want: Want,
        seen: Option<String>,
    ) -> Result<Option<Arc<Group>>, RealtimeError> {
        if !self.without_library.load(Ordering::Relaxed) {
            match self.read((key.to_owned(), want), seen).await {
                Err(error) if error.to_string().contains("Function not found") => {
                    self.without_library.store(true, Ordering::Relaxed);
                }
                other => return other.map_err(unavailable),
            }
        }
        self.whole(key).await.map_err(unavailable)
    }

    /// The panes of groups, of which some are known, and after them the marks.
    async fn with_changed(
        &self,
        keys: &[String],
        known: Groups,
        look: Option<&Look>,
    ) -> Result<(Groups, Arc<Marks>), RealtimeError> {
        let mut reads = Vec::with_capacity(keys.len());
        for (key, known) in keys.iter().zip(known) {
            let seen = look.and_then(|look| look.fences.get(key).cloned());
            reads.push(async move {
                match known {
                    Some(group) => Ok(Some(group)),
                    None => self.part(key, Want::Panes, seen).await,
                }
            });
        }
        let groups = futures::stream::iter(reads).buffered(ABREAST).try_collect().await?;
        Ok((groups, Arc::new(self.marks().await?)))
    }

    async fn whole(&self, key: &str) -> Result<Option<Arc<Group>>, RedisError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(key);
        let fields: HashMap<Vec<u8>, Vec<u8>> = self.query(&command).await?;
        Ok(view::Group::from_fields(fields).map(|group| Arc::new(group.into())))
    }
}

impl RealtimeView for RedisRealtimeView {
    fn group<'a>(
        &'a self,
        key: &'a str,
        want: Want,
    ) -> BoxFuture<'a, Result<Option<Arc<Group>>, RealtimeError>> {
        Box::pin(self.part(key, want, None))
    }

    fn live<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<(Groups, Arc<Marks>), RealtimeError>> {
        Box::pin(async move {
            let (groups, look) = self.unchanged(keys).await.map_err(unavailable)?;
            let marks = look.as_ref().and_then(|look| look.marks.clone());
            match marks {
                Some(marks) if groups.iter().all(Option::is_some) => Ok((groups, marks)),
                _ => self.with_changed(keys, groups, look.as_deref()).await,
            }
        })
    }

    fn tally(&self, of: &TallyOf) -> Option<Arc<Tally>> {
        self.kept.tally(of)
    }

    fn keep_tally(&self, of: TallyOf, tally: Arc<Tally>) {
        self.kept.keep_tally(of, tally);
    }

    fn standing<'a>(
        &'a self,
        keys: &'a [String],
        want: Want,
    ) -> BoxFuture<'a, Result<Groups, RealtimeError>> {
        Box::pin(async move { self.read_standing(keys, want).await.map_err(unavailable) })
    }

    fn marks(&self) -> BoxFuture<'_, Result<Marks, RealtimeError>> {
        Box::pin(async move {
            let marks = self.read_marks().await.map_err(unavailable)?;
            // The speed layer loads its library when it starts: look for it again now and then.
            self.without_library.store(false, Ordering::Relaxed);
            Ok(Arc::unwrap_or_clone(marks))
        })
    }
}

fn marks(fields: HashMap<String, Vec<u8>>) -> Marks {
    let mark = |(name, json): (String, Vec<u8>)| {
        Some((TopicPartition::parse(&name)?, serde_json::from_slice(&json).ok()?))
    };
    fields.into_iter().filter_map(mark).collect()
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
