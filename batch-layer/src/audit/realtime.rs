//! The realtime view as the audit reads it: the packed segments between two tidemarks, group by group, each group in one
//! read-only call.
//!
//! Memory: packed segments are held up to a limit, group number after group number over all partitions; one more pass
//! reads the next ones. A pass has at least one group number, so the least is one group of each partition (a group is
//! some MB at most).

use super::seam::{Span, Unfit};
use crate::compute::{Cell, Sorter};
use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, FromRedisValue, RedisError, RedisResult};
use shared_model::catalog::Catalog;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::redis_address::Address;
use shared_model::time::{EventDay, Millis};
use shared_model::view::{self, Group, HEADER_FIELD, Header};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

const CONNECT: Duration = Duration::from_secs(5);
const RESPOND: Duration = Duration::from_secs(10);
/// How many groups are read at once.
const READS: usize = 16;
/// How often a group that has not come so far is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Redis, standalone or Cluster.
#[derive(Clone)]
pub(crate) enum Realtime {
    /// One server.
    One(ConnectionManager),
    /// A cluster.
    Cluster(redis::cluster_async::ClusterConnection),
}

/// What one pass over the realtime view holds.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// The numbers of its groups.
    pub(crate) groups: Range<u32>,
    /// Packed segments, each with its group's number.
    parts: Vec<(u32, Vec<u8>)>,
    /// Groups that can't be compared for a metric.
    left_out: BTreeSet<(u32, MetricVersion)>,
    /// Why.
    pub(crate) not_audited: BTreeSet<String>,
    /// Boundaries that are elsewhere than the manifests'.
    pub(crate) cuts: BTreeSet<String>,
}

impl Realtime {
    /// Connects, and finds out whether the server is part of a cluster.
    ///
    /// # Errors
    /// Where none answers.
    pub(crate) async fn connect(address: &Address) -> RedisResult<Realtime> {
        let mut last = None;
        for client in address.clients() {
            match Realtime::connect_one(client?).await {
                Err(error) => last = Some(error),
                Ok((_, true)) => {
                    let builder = address.cluster().connection_timeout(CONNECT).response_timeout(RESPOND);
                    return Ok(Realtime::Cluster(builder.build()?.get_async_connection().await?));
                }
                Ok((connection, false)) => return Ok(Realtime::One(connection)),
            }
        }
        Err(last.unwrap_or_else(|| RedisError::from((redis::ErrorKind::InvalidClientConfig, "no Redis URL"))))
    }

    async fn connect_one(client: Client) -> RedisResult<(ConnectionManager, bool)> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(RESPOND))
            .set_number_of_retries(1);
        let mut connection = ConnectionManager::new_with_config(client, config).await?;
        let info: String = redis::cmd("INFO").arg("cluster").query_async(&mut connection).await?;
        Ok((connection, info.contains("cluster_enabled:1")))
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self.clone() {
            Realtime::One(mut connection) => command.query_async(&mut connection).await,
            Realtime::Cluster(mut connection) => command.query_async(&mut connection).await,
        }
    }

    async fn header(&self, key: &str) -> Result<Option<Header>> {
        let json: Option<Vec<u8>> = self.ask(redis::cmd("HGET").arg(key).arg(HEADER_FIELD)).await?;
        Ok(json.map(|json| Header::from_json(&json)).transpose()?)
    }

    async fn group(&self, key: &str) -> Result<Option<(Header, Group)>> {
        let fields: HashMap<Vec<u8>, Vec<u8>> = self.ask(redis::cmd("HGETALL").arg(key)).await?;
        let group = Group::from_fields(fields);
        group.map(|group| Ok((Header::from_json(&group.header)?, group))).transpose()
    }

    /// Reads one group, as soon as it holds a partition's span; looks once more after the deadline, and no later.
    async fn read(
        &self,
        key: &str,
        span: &Span,
        deadline: Instant,
    ) -> Result<Result<(Header, Group), Unfit>> {
        loop {
            let late = Instant::now() >= deadline;
            match span.judge(self.header(key).await?.as_ref()) {
                Err(Unfit::NotYet(_)) if !late => tokio::time::sleep(LOOK).await,
                Err(unfit) => return Ok(Err(unfit)),
                // What is read must be what was judged.
                Ok(()) => match self.group(key).await? {
                    Some((header, group)) => {
                        return Ok(span.judge(Some(&header)).map(|()| (header, group)));
                    }
                    None if late => return Ok(Err(Unfit::NotYet(None))),
                    None => {}
                },
            }
        }
    }

    /// Reads the groups from a number on, until `limit` bytes are held or all are read.
    ///
    /// # Errors
    /// Where Redis can't be read.
    pub(crate) async fn pass(
        &self,
        catalog: &Catalog,
        spans: &[Span],
        from: u32,
        deadline: Instant,
        limit: usize,
    ) -> Result<Pass> {
        let groups = catalog.layout.groups;
        let mut pass = Pass { groups: from..from, ..Pass::default() };
        let mut held = 0;
        while pass.groups.end < groups && (pass.groups.is_empty() || held < limit) {
            let number = pass.groups.end;
            let reads = spans.iter().map(|span| async move {
                let key = view::group_key(&span.tp, number, groups);
                let read = self.read(&key, span, deadline).await;
                (span, read.with_context(|| format!("reading {key}")))
            });
            let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
            while let Some((span, read)) = reads.next().await {
                held += pass.take(catalog, span, number, read?);
            }
            pass.groups.end += 1;
        }
        Ok(pass)
    }
}

impl Pass {
    /// Takes in one group; gives how many bytes it adds.
    fn take(
        &mut self,
        catalog: &Catalog,
        span: &Span,
        number: u32,
        read: Result<(Header, Group), Unfit>,
    ) -> usize {
        let versions = versions(catalog, &span.tp.topic);
        let (header, group) = match read {
            Ok(read) => read,
            Err(unfit) => {
                let why = unfit.say(span, number);
                if matches!(unfit, Unfit::Differs(..)) {
                    self.cuts.insert(why.clone());
                }
                self.not_audited.insert(why);
                self.left_out.extend(versions.into_iter().map(|version| (number, version)));
                return 0;
            }
        };
        for version in span.lacks(&header, &versions) {
            let name = catalog.metrics.iter().find(|metric| metric.version == version);
            let name = name.map_or("?", |metric| &metric.name);
            self.not_audited.insert(format!(
                "metric {name} is not in {} group {number} from the last tidemark on",
                span.tp
            ));
            self.left_out.insert((number, version));
        }
        let wanted = group.segments.into_iter().filter(|(slice, _)| span.has(*slice));
        let mut bytes = 0;
        for (_, segment) in wanted {
            bytes += segment.len();
            self.parts.push((number, segment));
        }
        bytes
    }

    /// Whether a cell of a metric is compared in this pass: its key's group is, in every partition.
    pub(crate) fn covers(&self, metric: &Metric, key: &[Value], groups: u32) -> bool {
        let mut by = Vec::new();
        key.iter().take(metric.by.len()).for_each(|value| value.encode(&mut by));
        let group = view::group_of(&by, groups);
        self.groups.contains(&group) && !self.left_out.contains(&(group, metric.version))
    }

    /// The event days of each metric that the segments touch.
    ///
    /// # Errors
    /// Where a segment can't be decoded.
    pub(crate) fn days(&self, catalog: &Catalog) -> Result<BTreeMap<EventDay, BTreeSet<MetricVersion>>> {
        let mut days: BTreeMap<EventDay, BTreeSet<MetricVersion>> = BTreeMap::new();
        for metric in &catalog.metrics {
            self.each(metric, |_, bucket, _| {
                days.entry(EventDay::of(bucket)).or_default().insert(metric.version);
                Ok(())
            })?;
        }
        Ok(days)
    }

    /// Pushes the cells of a metric on a day. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be decoded, or the disk for cells is full.
    pub(crate) fn cells(&self, metric: &Metric, day: EventDay, cells: &mut Sorter) -> Result<()> {
        let mut failed = None;
        let read = self.each(metric, |mut key, bucket, state| {
            if EventDay::of(bucket) != day {
                return Ok(());
            }
            let columns = metric.by.len() + usize::from(metric.item.is_some());
            let values = (0..columns).map(|_| Value::decode(&mut key)).collect::<Result<_, _>>()?;
            if !key.is_empty() {
                return Err(CodecError::Invalid("cell key"));
            }
            let pushed = cells.push(Cell { key: values, bucket, state });
            pushed.map_err(|error| {
                failed = Some(error);
                CodecError::Invalid("cell")
            })
        });
        failed.map_or(read, Err)
    }

    fn each(
        &self,
        metric: &Metric,
        mut each: impl FnMut(&[u8], Millis, shared_model::aggregate::State) -> Result<(), CodecError>,
    ) -> Result<()> {
        for (group, segment) in &self.parts {
            if self.left_out.contains(&(*group, metric.version)) {
                continue;
            }
            let aggregate = |version| (version == metric.version).then_some(&metric.aggregate);
            view::unpack(segment, aggregate, |_, key, bucket, state| each(key, bucket, state))
                .with_context(|| format!("a segment of the realtime view, metric {}", metric.name))?;
        }
        Ok(())
    }
}

/// The metrics that a topic's records feed.
fn versions(catalog: &Catalog, topic: &str) -> BTreeSet<MetricVersion> {
    let Some(stream) = catalog.stream_of_topic(topic) else { return BTreeSet::new() };
    let fed = |metric: &&std::sync::Arc<Metric>| metric.bindings.iter().any(|b| b.stream == stream.name);
    catalog.metrics.iter().filter(fed).map(|metric| metric.version).collect()
}
