//! An answer: one snapshot of the batch view, the tidemark in it, the realtime view from there on, then the rows.
//!
//! The order matters. The tidemark is read first, so that what the realtime view is asked for is exactly what the
//! snapshot's rows leave out; flips that come later change neither. Both parts go into one fold.

use crate::batch_view::{AtTidemark, BatchView, Scan, Snapshot};
use crate::coverage::{self, Coverage};
use crate::error::ServeError;
use crate::merge::{Cell, Fold, FoldError, Rows};
use crate::query::{Limits, Query};
use crate::realtime_view::{Group, RealtimeView, Want};
use futures::StreamExt;
use shared_model::catalog::Catalog;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Tidemark;
use shared_model::time::{EventDay, Millis};
use shared_model::view::{self, Slice};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What answers are made from.
#[derive(Clone)]
pub struct Views {
    /// The one definition.
    pub catalog: Arc<Catalog>,
    /// What lies below the tidemark.
    pub batch: Arc<dyn BatchView>,
    /// What lies above it.
    pub realtime: Arc<dyn RealtimeView>,
    /// What one request may cost.
    pub limits: Limits,
}

/// An answer, finished.
#[derive(Debug)]
pub struct Answer {
    /// The rows.
    pub rows: Rows,
    /// The tidemark that it is given at.
    pub at: AtTidemark,
    /// What came from the batch view.
    pub batch: BatchPart,
    /// What it reaches, and what it can't promise.
    pub coverage: Coverage,
}

/// What came from the batch view.
#[derive(Debug, Default)]
pub struct BatchPart {
    /// How many rows were merged.
    pub rows: u64,
    /// The runs that made them.
    pub runs: BTreeSet<i64>,
    /// Days whose rows were merged with new ones instead of being computed anew: repeats may count twice there.
    pub partial_days: BTreeSet<EventDay>,
}

/// Answers a query by merging both views.
///
/// # Errors
/// [`ServeError`] where a view can't be read at all or a limit is passed; what is merely not promised is in the
/// answer's coverage.
pub async fn answer(views: &Views, query: &Query) -> Result<Answer, ServeError> {
    let mut snapshot = views.batch.snapshot(views.limits.time_limit).await?;
    let at = snapshot.tidemark(query.at_run).await?.ok_or_else(no_tidemark)?;
    let mut fold = Fold::new(query, views.limits.max_cells);
    let mut coverage = Coverage::default();
    match query.at_run {
        None => add_realtime(views, query, &at.tidemark, &mut fold, &mut coverage).await?,
        Some(_) => reach_of_batch(views, query, &at.tidemark, &mut coverage),
    }
    let mut batch = BatchPart::default();
    let generation = query.at_run.map(|_| at.tidemark.generation);
    for column in 0..query.columns.len() {
        add_batch(&mut *snapshot, query, column, generation, &mut fold, &mut batch, &mut coverage).await?;
    }
    for lost in snapshot.lost(generation).await? {
        coverage.lost(&views.catalog, &query_metrics(query), &lost);
    }
    snapshot.close().await?;
    Ok(Answer { rows: fold.finish(), at, batch, coverage })
}

/// Before the first run there is nothing to answer at.
pub(crate) fn no_tidemark() -> ServeError {
    let why = "there is no tidemark yet: the first run of the batch layer (batch-layer run) writes it";
    ServeError::Unavailable(why.to_owned())
}

/// Adds the rows of one value column's metric.
async fn add_batch(
    snapshot: &mut dyn Snapshot,
    query: &Query,
    place: usize,
    generation: Option<i64>,
    fold: &mut Fold<'_>,
    part: &mut BatchPart,
    coverage: &mut Coverage,
) -> Result<(), ServeError> {
    let column = &query.columns[place];
    let metric = &column.metric;
    let versions = snapshot.versions(metric, query.span, generation).await?;
    for day in &versions.missing {
        let reason = format!(
            "metric {} is not computed yet, in the catalog's version, for days of the archive",
            metric.name
        );
        coverage.doubt_of(reason, day);
    }
    part.runs.extend(versions.days.values().map(|version| version.run));
    part.partial_days
        .extend(versions.days.iter().filter(|(_, version)| version.partial).map(|(day, _)| *day));
    let versions: Vec<_> = versions.days.into_values().filter(|version| version.table.is_some()).collect();
    if versions.is_empty() {
        return Ok(());
    }
    let past = generation.is_some();
    let scan = Scan {
        column,
        versions,
        past,
        span: query.span,
        buckets: &query.buckets,
        filters: &query.filters,
        condition: &query.condition,
    };
    let mut each = |cell: Result<Cell, FoldError>| match cell.and_then(|cell| fold.add(place, &cell)) {
        Ok(added) => {
            part.rows += u64::from(added);
            Ok(())
        }
        Err(FoldError::Undecodable(error)) => {
            coverage.doubt_of(format!("rows of the batch view can't be decoded: {error}"), &metric.name);
            Ok(())
        }
        Err(over) => Err(over),
    };
    snapshot.rows(&scan, &mut each).await?.map_err(over_limit)
}

/// Adds the cells of every group that can hold some of the answer.
async fn add_realtime(
    views: &Views,
    query: &Query,
    tidemark: &Tidemark,
    fold: &mut Fold<'_>,
    coverage: &mut Coverage,
) -> Result<(), ServeError> {
    let marks = match views.realtime.marks().await {
        Ok(marks) => marks,
        Err(error) => {
            reach_of_batch(views, query, tidemark, coverage);
            out_of_reach(coverage, &error);
            return Ok(());
        }
    };
    let metrics = query_metrics(query);
    let partitions = coverage::partitions(&views.catalog, &metrics, tidemark, &marks);
    for topic in coverage::unknown_topics(&views.catalog, &metrics, &partitions) {
        coverage.doubt(format!("no partition of topic {topic} is known yet"));
    }
    let keys = keys(views, query);
    let wanted = wanted(views, query, &keys, &partitions);
    let mut reads = Vec::new();
    for wanted in wanted {
        reads.push(async {
            let key = view::group_key(&wanted.tp, wanted.group, views.catalog.layout.groups);
            let read = views.realtime.group(&key, Want::Epochs).await;
            (wanted, read)
        });
    }
    let mut reads = futures::stream::iter(reads).buffer_unordered(views.limits.redis_reads.max(1));
    while let Some((wanted, read)) = reads.next().await {
        match read {
            Ok(group) => add_group(views, query, &wanted, tidemark, group.as_deref(), fold, coverage)?,
            Err(error) => {
                // Half of the realtime view is no answer: none of it is used.
                drop(reads);
                fold.restart();
                *coverage = Coverage::default();
                reach_of_batch(views, query, tidemark, coverage);
                out_of_reach(coverage, &error);
                return Ok(());
            }
        }
    }
    coverage.marks(&marks);
    Ok(())
}

/// The keys that are wanted of a value column, by their groups; `None`: all of all groups.
type Keys = Option<BTreeMap<u32, Vec<Vec<u8>>>>;

/// One group to read, and the value columns that it can add to, each with the keys that are wanted of it; `None`: all.
struct Wanted<'k> {
    tp: TopicPartition,
    group: u32,
    columns: Vec<(usize, Option<&'k [Vec<u8>]>)>,
}

fn keys(views: &Views, query: &Query) -> Vec<Keys> {
    let groups = views.catalog.layout.groups;
    let by_group = |keys: Vec<Vec<u8>>| {
        let mut by_group: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        keys.into_iter().for_each(|key| by_group.entry(view::group_of(&key, groups)).or_default().push(key));
        by_group
    };
    query.columns.iter().map(|column| query.keys_of(column).map(by_group)).collect()
}

fn wanted<'k>(
    views: &Views,
    query: &Query,
    keys: &'k [Keys],
    partitions: &BTreeSet<TopicPartition>,
) -> Vec<Wanted<'k>> {
    let mut wanted = Vec::new();
    for tp in partitions {
        for group in 0..views.catalog.layout.groups {
            let of_group = |(i, keys): (usize, &'k Keys)| match keys {
                None => Some((i, None)),
                Some(keys) => Some((i, Some(&keys.get(&group)?[..]))),
            };
            let feeds = |i: usize| coverage::feeds(&views.catalog, &query.columns[i].metric, tp);
            let columns = keys.iter().enumerate().filter_map(of_group);
            let columns: Vec<_> = columns.filter(|(i, _)| feeds(*i)).collect();
            if !columns.is_empty() {
                wanted.push(Wanted { tp: tp.clone(), group, columns });
            }
        }
    }
    wanted
}

/// Adds one group's cells from the cut's epoch on, if it reaches back to the cut.
fn add_group(
    views: &Views,
    query: &Query,
    wanted: &Wanted<'_>,
    tidemark: &Tidemark,
    group: Option<&Group>,
    fold: &mut Fold<'_>,
    coverage: &mut Coverage,
) -> Result<(), ServeError> {
    let cut_epoch = tidemark.cut(&wanted.tp).epoch;
    let header = coverage.header(&wanted.tp, group);
    let metrics: Vec<&Metric> = wanted.columns.iter().map(|(i, _)| &*query.columns[*i].metric).collect();
    if !coverage.judge(&views.catalog, &wanted.tp, header, tidemark, &metrics) {
        return Ok(());
    }
    let above = |slice| matches!(slice, Slice::Epoch(epoch) if epoch >= cut_epoch);
    let segments = group.iter().flat_map(|group| &group.segments);
    for segment in segments.filter(|segment| above(segment.slice)) {
        for ((column, keys), metric) in wanted.columns.iter().zip(&metrics) {
            let read = segment.cells(metric, *keys, |key, bucket, state| {
                let added = fold.add(*column, &cell(metric, key, bucket, state)?)?;
                coverage.cells += u64::from(added);
                Ok(())
            });
            match read {
                Ok(()) => {}
                Err(FoldError::Undecodable(error)) => {
                    let reason = format!("segments of the realtime view can't be decoded: {error}");
                    coverage.doubt_of(reason, &wanted.tp);
                }
                Err(limit) => return Err(over_limit(limit)),
            }
        }
    }
    Ok(())
}

/// Decodes a cell's key.
pub(crate) fn cell(
    metric: &Metric,
    key: &[u8],
    bucket: Millis,
    state: shared_model::aggregate::State,
) -> Result<Cell, CodecError> {
    let mut input = key;
    let by = metric.by.iter().map(|_| Value::decode(&mut input)).collect::<Result<Vec<_>, _>>()?;
    let item = metric.item.as_ref().map(|_| Value::decode(&mut input)).transpose()?;
    if !input.is_empty() {
        return Err(CodecError::Invalid("cell key"));
    }
    Ok(Cell { by, item, bucket, state })
}

/// Where only the batch view is read, each partition is reached up to its cut.
fn reach_of_batch(views: &Views, query: &Query, tidemark: &Tidemark, coverage: &mut Coverage) {
    let metrics = query_metrics(query);
    for tp in tidemark.cuts.keys() {
        if metrics.iter().any(|metric| coverage::feeds(&views.catalog, metric, tp)) {
            coverage.batch_alone(&views.catalog, tp, tidemark);
        }
    }
}

fn query_metrics(query: &Query) -> Vec<&Metric> {
    query.columns.iter().map(|column| &*column.metric).collect()
}

fn out_of_reach(coverage: &mut Coverage, error: &crate::realtime_view::RealtimeError) {
    tracing::warn!(%error, "answering from the batch view alone");
    coverage.doubt("the realtime view can't be read at the moment: the answer ends at the tidemark");
}

fn over_limit(error: FoldError) -> ServeError {
    ServeError::Limit(match error {
        FoldError::TooManyCells(limit) => format!(
            "the answer would hold more than {limit} cells (groups by buckets, items of a top_k): filter more, group \
             by fewer columns, or ask for wider buckets or a shorter span"
        ),
        FoldError::Undecodable(error) => format!("stored states can't be decoded: {error}"),
    })
}
