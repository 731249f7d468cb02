//! The realtime part of answers: the cells of every group that can hold some of them, each group read once for all.

use super::{Asked, Views, over_limit};
use crate::coverage;
use crate::error::ServeError;
use crate::merge::{Cell, Fold, FoldError};
use crate::query::Query;
use crate::realtime_view::{Found, Group, RealtimeError, Sought, Want};
use futures::future::try_join_all;
use shared_model::aggregate::State;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Tidemark;
use shared_model::view::{self, Slice};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Adds what the realtime view has from the tidemark on, of the epochs before `until`. Where it can't be read, the answers are the batch view's alone,
/// and say so.
pub(super) async fn add(
    views: &Views,
    tidemark: &Tidemark,
    until: i64,
    asked: &mut [Asked<'_>],
) -> Result<(), ServeError> {
    let marks = match views.realtime.marks().await {
        Ok(marks) => marks,
        Err(error) => {
            out_of_reach(views, tidemark, asked, &error);
            return Ok(());
        }
    };
    let (mut by_query, mut partitions) = (Vec::new(), Vec::new());
    for asked in &mut *asked {
        let metrics = asked.metrics();
        let known = coverage::partitions(&views.catalog, &metrics, tidemark, &marks);
        asked.coverage.unknown_topics(&views.catalog, &metrics, &known);
        by_query.push(by_group(views, asked.query));
        partitions.push(known);
    }
    let mut wanted: BTreeMap<(TopicPartition, u32), Vec<Wanted<'_>>> = BTreeMap::new();
    for (place, asked) in asked.iter().enumerate() {
        want(views, asked.query, place, &by_query[place], &partitions[place], &mut wanted);
    }
    let groups = views.catalog.layout.groups;
    let keys: Vec<String> = wanted.keys().map(|(tp, group)| view::group_key(tp, *group, groups)).collect();
    let standing = match views.realtime.standing(&keys, Want::Epochs).await {
        Ok(standing) => standing,
        Err(error) => {
            out_of_reach(views, tidemark, asked, &error);
            return Ok(());
        }
    };
    // A query holds no more of the view than it reads at once: what gives way to other groups meanwhile is read anew.
    let standing = standing.into_iter().map(|group| group.as_ref().map(Arc::downgrade));
    let mut reads = Vec::new();
    for (key, standing) in keys.iter().zip(standing) {
        reads.push(async move {
            match standing.and_then(|group| group.upgrade()) {
                Some(group) => Ok(Some(group)),
                None => views.realtime.group(key, Want::Epochs).await,
            }
        });
    }
    // Other requests may wait for what is read here: nothing is, while cells are added, which may take long.
    let (mut reads, mut wanted) = (reads.into_iter(), wanted.into_iter());
    while !reads.as_slice().is_empty() {
        let abreast = reads.by_ref().take(views.limits.redis_reads.max(1));
        let groups = match try_join_all(abreast).await {
            Ok(groups) => groups,
            Err(error) => {
                out_of_reach(views, tidemark, asked, &error);
                return Ok(());
            }
        };
        for (group, ((tp, _), wanted)) in groups.into_iter().zip(&mut wanted) {
            for wanted in &wanted {
                let (epochs, group) = (tidemark.cut(&tp).epoch..until, group.as_deref());
                add_group(views, &tp, wanted, tidemark, epochs, group, &mut asked[wanted.query])?;
            }
        }
    }
    asked.iter_mut().for_each(|asked| asked.coverage.marks(&marks));
    Ok(())
}

/// Half of the realtime view is no answer: none of it is used.
fn out_of_reach(views: &Views, tidemark: &Tidemark, asked: &mut [Asked<'_>], error: &RealtimeError) {
    tracing::warn!(%error, "answering from the batch view alone");
    for asked in asked {
        asked.folds.iter_mut().for_each(|fold| fold.restart());
        asked.coverage = Default::default();
        asked.reach_of_batch(&views.catalog, tidemark);
        asked
            .coverage
            .doubt("the realtime view can't be read at the moment: the answer ends at the tidemark");
    }
}

/// The keys that are wanted of a value column, by their groups; `None`: all of all groups.
type Keys = Option<BTreeMap<u32, Vec<Vec<u8>>>>;

fn by_group(views: &Views, query: &Query) -> Vec<Keys> {
    let groups = views.catalog.layout.groups;
    let by_group = |keys: Vec<Vec<u8>>| {
        let mut by_group: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        keys.into_iter().for_each(|key| by_group.entry(view::group_of(&key, groups)).or_default().push(key));
        by_group
    };
    query.columns.iter().map(|column| query.keys_of(column).map(by_group)).collect()
}

/// What one query wants of a group.
struct Wanted<'k> {
    /// The query's place among those asked.
    query: usize,
    /// The value columns that the group can add to, each with the keys that are wanted of it; `None`: all.
    columns: Vec<(usize, Option<&'k [Vec<u8>]>)>,
}

fn want<'k>(
    views: &Views,
    query: &Query,
    place: usize,
    keys: &'k [Keys],
    partitions: &BTreeSet<TopicPartition>,
    wanted: &mut BTreeMap<(TopicPartition, u32), Vec<Wanted<'k>>>,
) {
    for tp in partitions {
        for group in 0..views.catalog.layout.groups {
            let of_group = |(i, keys): (usize, &'k Keys)| match keys {
                None => Some((i, None)),
                Some(keys) => Some((i, Some(&keys.get(&group)?[..]))),
            };
            let feeds = |i: usize| coverage::feeds(&views.catalog, &[&query.columns[i].metric], tp);
            let columns = keys.iter().enumerate().filter_map(of_group);
            let columns: Vec<_> = columns.filter(|(i, _)| feeds(*i)).collect();
            if !columns.is_empty() {
                wanted.entry((tp.clone(), group)).or_default().push(Wanted { query: place, columns });
            }
        }
    }
}

/// Adds one group's cells of the epochs from the cut's on, if it reaches back to the cut.
fn add_group(
    views: &Views,
    tp: &TopicPartition,
    wanted: &Wanted<'_>,
    tidemark: &Tidemark,
    epochs: Range<i64>,
    group: Option<&Group>,
    asked: &mut Asked<'_>,
) -> Result<(), ServeError> {
    let Asked { query, folds, coverage, .. } = asked;
    let header = coverage.header(tp, group);
    let metrics: Vec<&Metric> = wanted.columns.iter().map(|(i, _)| &*query.columns[*i].metric).collect();
    if !coverage.judge(&views.catalog, tp, header, tidemark, &metrics) {
        return Ok(());
    }
    for ((column, keys), metric) in wanted.columns.iter().zip(&metrics) {
        let mut reading = Reading::new(metric, folds.len());
        let mut take = |found| match reading.take(found, *column, folds) {
            Ok(added) => {
                coverage.cells += added;
                Ok(())
            }
            Err(FoldError::Undecodable(error)) => {
                coverage.doubt_of(format!("segments of the realtime view can't be decoded: {error}"), tp);
                Ok(())
            }
            Err(limit) => Err(limit),
        };
        cells(metric, *keys, &epochs, group, &mut take).map_err(|limit| over_limit(query, limit))?;
    }
    Ok(())
}

/// Hands a group's cells of some epochs to `take`: those of some keys, or all.
fn cells<'a>(
    metric: &Metric,
    keys: Option<&[Vec<u8>]>,
    epochs: &Range<i64>,
    group: Option<&'a Group>,
    take: &mut impl FnMut(Found<'a>) -> Result<(), FoldError>,
) -> Result<(), FoldError> {
    let Some(group) = group else { return Ok(()) };
    let above = |slice| matches!(slice, Slice::Epoch(epoch) if epochs.contains(&epoch));
    if let Some(keys) = keys {
        let sought: Vec<Sought<'_>> = keys.iter().map(|key| Sought::new(key)).collect();
        return group.find(metric, &sought, above, take);
    }
    for segment in group.segments.iter().filter(|segment| above(segment.slice)) {
        match segment.cells(metric, |key, bucket, state| take(Ok((key, bucket, state)))) {
            Err(FoldError::Undecodable(error)) => take(Err(error))?,
            read => read?,
        }
    }
    Ok(())
}

/// The cells of a metric, one after the other. A key is decoded, and tested, once for all cells in a row that have it.
struct Reading<'a> {
    metric: &'a Metric,
    /// The key of the cell, encoded.
    key: Option<&'a [u8]>,
    cell: Cell,
    /// Which of the folds admit the key.
    admitted: Vec<bool>,
}

impl<'a> Reading<'a> {
    fn new(metric: &'a Metric, folds: usize) -> Reading<'a> {
        let (by, state) = (Vec::with_capacity(metric.by.len()), State::empty(&metric.aggregate));
        let cell = Cell { by, item: None, bucket: 0, state };
        Reading { metric, key: None, cell, admitted: vec![false; folds] }
    }

    /// Adds a cell to folds; how many of them took it in.
    fn take(&mut self, found: Found<'a>, column: usize, folds: &mut [Fold<'_>]) -> Result<u64, FoldError> {
        let (key, bucket, state) = found?;
        let Reading { metric, key: last, cell, admitted } = self;
        (cell.bucket, cell.state) = (bucket, state);
        if *last != Some(key) {
            *last = None;
            decode_key(metric, key, cell)?;
            for (admitted, fold) in admitted.iter_mut().zip(&*folds) {
                *admitted = fold.admits(column, &cell.by, cell.item.as_ref());
            }
            *last = Some(key);
        }
        let mut added = 0;
        for (_, fold) in admitted.iter().zip(folds).filter(|(admitted, _)| **admitted) {
            added += u64::from(fold.add_admitted(column, cell)?);
        }
        Ok(added)
    }
}

/// Decodes a cell's key into it.
fn decode_key(metric: &Metric, key: &[u8], cell: &mut Cell) -> Result<(), CodecError> {
    let mut input = key;
    cell.by.clear();
    for _ in &metric.by {
        cell.by.push(Value::decode(&mut input)?);
    }
    cell.item = metric.item.as_ref().map(|_| Value::decode(&mut input)).transpose()?;
    if input.is_empty() { Ok(()) } else { Err(CodecError::Invalid("cell key")) }
}

/// A cell, its key decoded.
#[cfg(test)]
pub(crate) fn cell(metric: &Metric, key: &[u8], bucket: i64, state: State) -> Result<Cell, CodecError> {
    let mut cell = Cell { by: Vec::new(), item: None, bucket, state };
    decode_key(metric, key, &mut cell)?;
    Ok(cell)
}
