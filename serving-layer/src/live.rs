//! Live answers: the sliding counter of one key, from the panes in the realtime view.
//!
//! A window is the merge of its panes over all partitions; it ends with the pane of the newest event time that any
//! partition trusts, so that a quiet stream's counters fall to 0. A top-k is counted again only where its window has other
//! segments. No request waits for Postgres: the tidemark, which says what a missing group means, is the one that was last
//! seen.

use crate::answer::Views;
use crate::batch_view::Position;
use crate::coverage::{self, Coverage};
use crate::error::{Fault, FaultKind, ServeError};
use crate::finish::error_bound_of;
use crate::query::{MAX_FAULTS, MAX_TEXT, type_name};
use crate::realtime_view::{Found, Group, Marks, RealtimeError, Sought, Tally};
use crate::reply::{Envelope, Key, LiveReply, RankedReply};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use shared_model::aggregate::{Aggregate, State, top_k};
use shared_model::codec::CodecError;
use shared_model::event::{FieldType, Value};
use shared_model::metric::{KeyColumn, Metric};
use shared_model::offsets::TopicPartition;
use shared_model::time::{Interval, SlidingWindow, show};
use shared_model::view::{self, Header, Slice};
use std::convert::Infallible;
use std::sync::Arc;

/// What is known without asking: refreshed once a second.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Where the batch view stands; `None` before its first run.
    pub position: Option<Position>,
    /// What the partitions' owners last said.
    pub marks: Marks,
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
    /// The key as cells have it.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        self.by.iter().for_each(|value| value.encode(&mut key));
        key
    }

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
        let columns = metric.by.iter().map(|column| column.name.as_str());
        let allowed = columns.chain(["strict"]).chain(of_metric.map(|_| "k"));
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: String| {
            if faults.len() >= MAX_FAULTS {
                return;
            }
            let allowed = allowed.clone().map(str::to_owned).collect();
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
    let (key, groups) = (request.key(), views.catalog.layout.groups);
    let group = view::group_of(&key, groups);
    let partitions = coverage::partitions(&views.catalog, &[metric], &position.current, &known.marks);
    let mut coverage = Coverage::default();
    coverage.unknown_topics(&views.catalog, &[metric], &partitions);
    let keys: Vec<String> = partitions.iter().map(|tp| view::group_key(tp, group, groups)).collect();
    // Panes expire by what the marks said when a group was written. Marks that are read after the groups are no older,
    // so that no pane of the window they place can have expired in what was read.
    let (found, marks) = views.realtime.live(&keys).await.map_err(unavailable)?;
    let read: Vec<Read> = partitions.into_iter().zip(found).collect();
    let headers: Vec<Option<&Header>> =
        read.iter().map(|(tp, group)| coverage.header(tp, group.as_deref())).collect();
    if !coverage::same_partitions(&known.marks, &marks) {
        for tp in coverage::partitions(&views.catalog, &[metric], &position.current, &marks) {
            if !read.iter().any(|(there, _)| *there == tp) {
                coverage.batch_alone(&views.catalog, &tp, &position.current);
            }
        }
    }
    let trusted = headers.iter().filter_map(|header| (*header)?.trusted.newest);
    let newest = marks.values().filter_map(|mark| mark.trusted).chain(trusted).max();
    let window = newest.map(|newest| window.at(newest));
    for ((tp, _), header) in read.iter().zip(headers) {
        reach(views, position, metric, tp, header, window, &mut coverage);
    }
    let value = match kept(views, metric, &key, request.k, window, &read) {
        Some(tally) => {
            coverage.cells += tally.cells;
            let best = tally.best(request.k).unwrap_or_default();
            Counted::Ranked(best.to_vec())
        }
        None if metric.item.is_some() => {
            let merged = merge(metric, &key, window, &read, &mut coverage);
            Counted::Ranked(ranked(request.k, merged, &mut coverage))
        }
        None => Counted::One(total(metric, &key, window, &read, &mut coverage)),
    };
    coverage.marks(&marks);
    Ok(reply(views, position, metric, request, window, value, &coverage))
}

/// A partition's group, if it is there.
type Read = (TopicPartition, Option<Arc<Group>>);

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

/// Whether a slice is one of the window's panes.
fn inside(window: Option<Interval>) -> impl Fn(Slice) -> bool + Copy {
    move |slice| matches!((slice, window), (Slice::Pane(start), Some(w)) if w.contains(start))
}

/// The groups that are there and can be read, each with its partition.
fn readable(groups: &[Read]) -> impl Iterator<Item = (&TopicPartition, &Group)> + Clone {
    let there = groups.iter().filter_map(|(tp, group)| Some((tp, group.as_deref()?)));
    there.filter(|(_, group)| group.header.is_ok())
}

/// The tally of a top-k, which is counted anew only where the window has other segments than the one that is kept; `None` of
/// any other metric, and where something can't be decoded.
fn kept(
    views: &Views,
    metric: &Metric,
    key: &[u8],
    k: usize,
    window: Option<Interval>,
    groups: &[Read],
) -> Option<Arc<Tally>> {
    metric.item.as_ref()?;
    let of = (metric.version, key.to_vec());
    let groups = readable(groups).map(|(_, group)| group);
    let segments = groups.clone().flat_map(|group| &group.segments);
    let segments = segments.filter(|segment| inside(window)(segment.slice));
    let stands = |tally: &Arc<Tally>| tally.best(k).is_some() && tally.is_of(segments);
    if let Some(tally) = views.realtime.tally(&of).filter(stands) {
        return Some(tally);
    }
    let tally = Arc::new(Tally::count(metric, key, k, groups, inside(window))?);
    views.realtime.keep_tally(of, tally.clone());
    Some(tally)
}

/// Hands the names and states of a key's cells in the window to `merge`; what can't be decoded or merged is noted.
fn each<'a>(
    metric: &Metric,
    key: &[u8],
    window: Option<Interval>,
    groups: &'a [Read],
    coverage: &mut Coverage,
    mut merge: impl FnMut(&'a [u8], State) -> Result<(), CodecError>,
) {
    let sought = [Sought::new(key)];
    for (tp, group) in readable(groups) {
        let Ok(()) = group.find(metric, &sought, inside(window), |found: Found<'a>| {
            coverage.cells += u64::from(found.is_ok());
            if let Err(error) = found.and_then(|(name, _, state)| merge(name, state)) {
                coverage.doubt_of(UNDECODABLE, format!("{tp}: {error}"));
            }
            Ok::<(), Infallible>(())
        });
    }
}

/// The merged state of the key.
fn total(
    metric: &Metric,
    key: &[u8],
    window: Option<Interval>,
    groups: &[Read],
    coverage: &mut Coverage,
) -> State {
    let mut total = State::empty(&metric.aggregate);
    each(metric, key, window, groups, coverage, |name, state| {
        if name.len() > key.len() {
            return Err(CodecError::Invalid("cell key"));
        }
        total.merge(&state)
    });
    total
}

/// The merged states of the key's items, by their bytes.
fn merge<'a>(
    metric: &Metric,
    key: &[u8],
    window: Option<Interval>,
    groups: &'a [Read],
    coverage: &mut Coverage,
) -> HashMap<&'a [u8], State> {
    let mut merged: HashMap<&[u8], State> = HashMap::new();
    each(metric, key, window, groups, coverage, |name, state| match merged.entry(&name[key.len()..]) {
        Entry::Occupied(mut held) => held.get_mut().merge(&state),
        Entry::Vacant(place) => {
            place.insert(state);
            Ok(())
        }
    });
    merged
}

/// What a live answer says of the key.
enum Counted {
    /// Its state.
    One(State),
    /// The items counted most often, best first.
    Ranked(Vec<(Value, u64)>),
}

/// The items counted most often, best first.
fn ranked(k: usize, merged: HashMap<&[u8], State>, coverage: &mut Coverage) -> Vec<(Value, u64)> {
    let counted =
        merged.into_iter().filter_map(|(mut item, state)| match (Value::decode(&mut item), state) {
            (Ok(value), State::Count(count)) if item.is_empty() => Some((value, count)),
            _ => {
                coverage.doubt(UNDECODABLE);
                None
            }
        });
    top_k::rank(counted, k)
}

const UNDECODABLE: &str = "segments of the realtime view can't be decoded";

fn reply(
    views: &Views,
    position: &Position,
    metric: &Metric,
    request: &LiveRequest,
    window: Option<Interval>,
    counted: Counted,
    coverage: &Coverage,
) -> LiveReply {
    let mut envelope = Envelope::new(&views.catalog, &[metric], &position.current, coverage);
    let watermark = coverage.watermark(&views.catalog);
    envelope.window_start = window.map(|window| show(window.start));
    envelope.window_end = window.map(|window| show(window.end));
    envelope.is_final =
        envelope.complete && window.zip(watermark).is_some_and(|(window, watermark)| watermark >= window.end);
    let (mut value, mut items, mut bound) = (None, None, 0.0);
    match counted {
        Counted::One(state) => {
            bound = error_bound_of(&state);
            value = Some(state.finish(&metric.aggregate));
        }
        Counted::Ranked(best) => {
            let column = metric.item.as_slice();
            let ranked = |(i, (item, count)): (usize, (Value, u64))| RankedReply {
                rank: i + 1,
                item: json(&Key(column, &[item])),
                value: State::Count(count).finish(&Aggregate::Count),
            };
            items = Some(best.into_iter().enumerate().map(ranked).collect());
        }
    }
    let live_name = metric.live_name.clone().unwrap_or_else(|| metric.name.clone());
    envelope.error_bound.insert(live_name.clone(), Some(bound));
    LiveReply { live_name, key: json(&Key(&metric.by, &request.by)), value, items, envelope }
}

fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or(serde_json::Value::Null)
}
