//! Live answers: the sliding counter of one key, from the panes in the realtime view.
//!
//! A window is the merge of its panes over all partitions; it ends with the pane of the newest event time that any
//! partition trusts, so that a quiet stream's counters fall to 0. No request waits for Postgres: the tidemark, which says
//! what a missing group means, is the one that was last seen.

use crate::answer::{Views, cell, decode_header};
use crate::batch_view::Position;
use crate::coverage::{self, Coverage};
use crate::error::{Fault, FaultKind, ServeError};
use crate::merge::{error_bound_of, rank};
use crate::query::{MAX_FAULTS, MAX_TEXT, type_name};
use crate::realtime_view::{Group, RealtimeError, Want};
use crate::reply::{Envelope, Key, LiveReply, RankedReply};
use futures::StreamExt;
use shared_model::aggregate::{Aggregate, State};
use shared_model::event::{FieldType, Value};
use shared_model::metric::{KeyColumn, Metric};
use shared_model::offsets::TopicPartition;
use shared_model::time::{Interval, SlidingWindow, show};
use shared_model::view::{self, Header, Mark, Slice};
use std::collections::BTreeMap;

/// What is known without asking: refreshed once a second.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Where the batch view stands; `None` before its first run.
    pub position: Option<Position>,
    /// What the partitions' owners last said.
    pub marks: BTreeMap<TopicPartition, Mark>,
}

/// A valid live request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveRequest {
    /// The key.
    pub by: Vec<Value>,
    /// How many items of a top-k.
    pub k: usize,
    /// Whether an incomplete answer is an error.
    pub strict: bool,
}

impl LiveRequest {
    /// Reads the parameters of a request: one for each key column; NULL is written `\N`. Beside them `strict`, and `k`
    /// for a top-k, unless a key column has that name.
    ///
    /// # Errors
    /// [`ServeError::Invalid`] with every fault.
    pub fn parse(metric: &Metric, parameters: &[(String, String)]) -> Result<LiveRequest, ServeError> {
        let of_metric = match metric.aggregate {
            Aggregate::TopK { k } => Some(k),
            _ => None,
        };
        let mut request =
            LiveRequest { by: vec![Value::Null; metric.by.len()], k: of_metric.unwrap_or(0), strict: false };
        let mut given = vec![false; metric.by.len()];
        let mut allowed: Vec<String> = metric.by.iter().map(|column| column.name.clone()).collect();
        allowed.push("strict".to_owned());
        allowed.extend(of_metric.map(|_| "k".to_owned()));
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: String| {
            if faults.len() >= MAX_FAULTS {
                return;
            }
            let allowed = allowed.clone();
            faults.push(Fault { kind: FaultKind::Malformed, field: field.to_owned(), message, allowed });
        };
        for (name, text) in parameters {
            match metric.by.iter().position(|column| column.name == *name) {
                Some(place) if given[place] => fault(name, "given twice".to_owned()),
                Some(place) => {
                    given[place] = true;
                    match key_value(&metric.by[place], text) {
                        Ok(value) => request.by[place] = value,
                        Err(message) => fault(name, message),
                    }
                }
                None if name == "strict" => match text.as_str() {
                    "true" | "" => request.strict = true,
                    "false" => request.strict = false,
                    _ => fault(name, format!("{text:?} is neither true nor false")),
                },
                None if name == "k" && of_metric.is_some() => match text.parse() {
                    Ok(k) => request.k = k,
                    Err(_) => fault(name, format!("{text:?} is no whole number from 0")),
                },
                None => fault(name, format!("metric {} has no such parameter", metric.name)),
            }
        }
        for (column, _) in metric.by.iter().zip(&given).filter(|(_, given)| !**given) {
            fault(&column.name, "missing: a live answer is about one key (write NULL as \\N)".to_owned());
        }
        if faults.is_empty() { Ok(request) } else { Err(ServeError::Invalid(faults)) }
    }
}

fn key_value(column: &KeyColumn, text: &str) -> Result<Value, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("a text of {} bytes is longer than the limit of {MAX_TEXT}", text.len()));
    }
    let found = match column.ty {
        _ if text == "\\N" => Some(Value::Null),
        FieldType::Int => text.parse().ok().map(Value::Int),
        FieldType::Bool => text.parse().ok().map(Value::Bool),
        _ => Some(Value::str(text)),
    };
    found.ok_or_else(|| format!("{text:?} is no {}", type_name(column.ty)))
}

/// Answers with the value of one key in the window that ends with the newest trusted event time.
///
/// # Errors
/// [`ServeError`] where the realtime view can't be read, or before the first tidemark.
pub async fn live(
    views: &Views,
    known: &Known,
    metric: &Metric,
    window: SlidingWindow,
    request: &LiveRequest,
) -> Result<LiveReply, ServeError> {
    let position = known.position.as_ref().ok_or_else(crate::answer::no_tidemark)?;
    let groups = read_groups(views, known, position, metric, request).await?;
    let mut coverage = Coverage::default();
    let partitions = groups.iter().map(|(tp, _)| tp.clone()).collect();
    for topic in coverage::unknown_topics(&views.catalog, &[metric], &partitions) {
        coverage.doubt(format!("no partition of topic {topic} is known yet"));
    }
    let mut read = Vec::new();
    for (tp, group) in groups {
        let group = group.unwrap_or_default();
        let header = decode_header(&group, &tp, &mut coverage);
        read.push((tp, header, group));
    }
    // Panes expire by what the marks said when a group was written. Marks that are read after the groups are no older,
    // so that no pane of the window they place can have expired in what was read.
    let marks = views.realtime.marks().await.map_err(unavailable)?;
    for tp in coverage::partitions(&views.catalog, &[metric], &position.current, &marks) {
        if !read.iter().any(|(there, _, _)| *there == tp) {
            coverage.batch_alone(&views.catalog, &tp, &position.current);
        }
    }
    let headers = read.iter().filter_map(|(_, header, _)| header.as_ref()?.trusted.newest);
    let newest = marks.values().filter_map(|mark| mark.trusted).chain(headers).max();
    let window = newest.map(|newest| window.at(newest));
    for (tp, header, _) in &read {
        reach(views, position, metric, tp, header.as_ref(), window, &mut coverage);
    }
    let merged = merge(metric, request, window, &read, &mut coverage);
    coverage.marks(&marks);
    Ok(reply(views, position, metric, request, window, merged, coverage))
}

/// The key's group in each partition that feeds the metric.
async fn read_groups(
    views: &Views,
    known: &Known,
    position: &Position,
    metric: &Metric,
    request: &LiveRequest,
) -> Result<Vec<(TopicPartition, Option<Group>)>, ServeError> {
    let groups = views.catalog.layout.groups;
    let mut key = Vec::new();
    request.by.iter().for_each(|value| value.encode(&mut key));
    let group = view::group_of(&key, groups);
    let partitions = coverage::partitions(&views.catalog, &[metric], &position.current, &known.marks);
    let reads = partitions.into_iter().map(|tp| async move {
        let read = views.realtime.group(&view::group_key(&tp, group, groups), Want::Panes).await;
        (tp, read)
    });
    let mut reads = futures::stream::iter(reads).buffered(views.limits.redis_reads.max(1));
    let mut found = Vec::new();
    while let Some((tp, read)) = reads.next().await {
        found.push((tp, read.map_err(unavailable)?));
    }
    Ok(found)
}

fn unavailable(error: RealtimeError) -> ServeError {
    ServeError::View { view: "the realtime view", cause: error.to_string() }
}

/// What one partition's group promises of the window.
fn reach(
    views: &Views,
    position: &Position,
    metric: &Metric,
    tp: &TopicPartition,
    header: Option<&Header>,
    window: Option<Interval>,
    coverage: &mut Coverage,
) {
    let (cut, first) = (position.current.cut(tp), position.first.cut(tp));
    let Some(header) = header else {
        if cut.offset > first.offset {
            coverage.doubt_of("the realtime view is being rebuilt: its groups are not there", tp);
        }
        return coverage.batch_alone(&views.catalog, tp, &position.current);
    };
    let late = |window: &Interval| header.panes_from.is_some_and(|from| from > window.start);
    let holed = |window: &Interval| header.pane_holes.iter().any(|start| window.contains(*start));
    if window.is_some_and(|window| late(&window) || holed(&window)) {
        coverage
            .doubt_of("panes of the window are not whole: the speed layer started above their beginning", tp);
    }
    if !header.metrics.contains_key(&metric.version) {
        let reason = format!("metric {} is not in the realtime view in the catalog's version", metric.name);
        coverage.doubt_of(reason, tp);
    }
    for (from, to) in &header.gaps {
        coverage.doubt_of(format!("the log had lost offsets {from} to {to} before they were read"), tp);
    }
    coverage.live(&views.catalog, tp, header, &position.current);
}

/// The merged state of the key, or of each of its items.
fn merge(
    metric: &Metric,
    request: &LiveRequest,
    window: Option<Interval>,
    groups: &[(TopicPartition, Option<Header>, Group)],
    coverage: &mut Coverage,
) -> BTreeMap<Option<Value>, State> {
    let mut merged = BTreeMap::new();
    let inside =
        |slice: &Slice| matches!((slice, window), (Slice::Pane(start), Some(w)) if w.contains(*start));
    for (tp, header, group) in groups {
        if header.is_none() {
            continue;
        }
        for (_, bytes) in group.segments.iter().filter(|(slice, _)| inside(slice)) {
            let aggregate = |version| (version == metric.version).then_some(&metric.aggregate);
            let read = view::unpack(bytes, aggregate, |_, key, bucket, state| {
                let cell = cell(metric, key, bucket, state)?;
                if cell.by != request.by {
                    return Ok(());
                }
                coverage.cells += 1;
                let held = merged.entry(cell.item).or_insert_with(|| State::empty(&metric.aggregate));
                held.merge(&cell.state)
            });
            if let Err(error) = read {
                coverage.doubt_of(format!("segments of the realtime view can't be decoded: {error}"), tp);
            }
        }
    }
    merged
}

fn reply(
    views: &Views,
    position: &Position,
    metric: &Metric,
    request: &LiveRequest,
    window: Option<Interval>,
    mut merged: BTreeMap<Option<Value>, State>,
    coverage: Coverage,
) -> LiveReply {
    let mut envelope = Envelope::new(&views.catalog, &[metric], &position.current, &coverage);
    let watermark = coverage.watermark(&views.catalog);
    envelope.window_start = window.map(|window| show(window.start));
    envelope.window_end = window.map(|window| show(window.end));
    envelope.is_final =
        envelope.complete && window.zip(watermark).is_some_and(|(window, watermark)| watermark >= window.end);
    let (mut value, mut items, mut bound) = (None, None, 0.0);
    if let Some(column) = &metric.item {
        let counted = merged.into_iter().filter_map(|(item, state)| Some((item?, state))).collect();
        let ranked = |(i, (item, count)): (usize, (Value, u64))| RankedReply {
            rank: i + 1,
            item: json(&Key(std::slice::from_ref(column), &[item])),
            value: State::Count(count).finish(&Aggregate::Count),
        };
        items = Some(rank(counted, request.k).into_iter().enumerate().map(ranked).collect());
    } else {
        let state = merged.remove(&None).unwrap_or_else(|| State::empty(&metric.aggregate));
        bound = error_bound_of(&state);
        value = Some(state.finish(&metric.aggregate));
    }
    let live_name = metric.live_name.clone().unwrap_or_else(|| metric.name.clone());
    envelope.error_bound.insert(live_name.clone(), bound);
    LiveReply { live_name, key: json(&Key(&metric.by, &request.by)), value, items, envelope }
}

fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or(serde_json::Value::Null)
}
