//! The published values of one moment, by a naive fold over all segments: what tests hold the publisher against.

use super::{item, name, text};
use shared_model::aggregate::top_k::rank;
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::time::{Interval, Millis};
use shared_model::view;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What stands under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Published {
    /// A string.
    Text(String),
    /// A sorted set: the items with their counts.
    Ranked(BTreeMap<String, u64>),
}

/// All names with their values.
pub(crate) type Names = BTreeMap<String, Published>;

/// The sliding windows of metrics, each of a version of its own, that end at one time, while segments are merged into them.
pub(crate) struct Live {
    metrics: Vec<(Arc<Metric>, Interval)>,
    cells: HashMap<MetricVersion, HashMap<Box<[u8]>, State>>,
}

impl Live {
    pub(crate) fn ending_at(metrics: &[Arc<Metric>], end: Millis) -> Live {
        let windowed = |metric: &Arc<Metric>| {
            Some((metric.clone(), Interval { start: end - metric.window?.width, end }))
        };
        Live { metrics: metrics.iter().filter_map(windowed).collect(), cells: HashMap::new() }
    }

    /// Merges one stored segment of a pane, as far as that is inside a window.
    pub(crate) fn merge(&mut self, pane: Millis, segment: &[u8]) -> Result<(), CodecError> {
        let Live { metrics, cells } = self;
        let inside = |version| {
            let mut inside =
                metrics.iter().filter(|(metric, window)| metric.version == version && window.contains(pane));
            inside.next().map(|(metric, _)| &metric.aggregate)
        };
        view::unpack(segment, inside, |version, key, _, state| {
            let cells = cells.entry(version).or_default();
            match cells.get_mut(key) {
                Some(cell) => cell.merge(&state)?,
                None => {
                    cells.insert(key.into(), state);
                }
            }
            Ok(())
        })
    }

    /// The finished values under their names.
    pub(crate) fn finish(self) -> Result<Names, CodecError> {
        let mut names = Names::new();
        for (metric, _) in &self.metrics {
            let Some(cells) = self.cells.get(&metric.version) else { continue };
            match metric.aggregate {
                Aggregate::TopK { k } => rank_all(metric, k, cells, &mut names)?,
                _ => {
                    for (key, state) in cells {
                        let mut named = String::new();
                        name(metric, &mut &key[..], &mut named)?;
                        if let Some(text) = text(&state.finish(&metric.aggregate)) {
                            names.insert(named, Published::Text(text));
                        }
                    }
                }
            }
        }
        Ok(names)
    }
}

fn rank_all(
    metric: &Metric,
    k: usize,
    cells: &HashMap<Box<[u8]>, State>,
    names: &mut Names,
) -> Result<(), CodecError> {
    let mut sets: BTreeMap<String, Vec<(Value, u64)>> = BTreeMap::new();
    for (key, state) in cells {
        let (mut rest, mut named) = (&key[..], String::new());
        name(metric, &mut rest, &mut named)?;
        let value = Value::decode(&mut rest)?;
        if let State::Count(count) = state {
            sets.entry(named).or_default().push((value, *count));
        }
    }
    for (name, items) in sets {
        let shown = |(value, count)| {
            let mut shown = String::new();
            item(&value, &mut shown);
            (shown, count)
        };
        let ranked = rank(items, k).into_iter().map(shown).collect();
        names.insert(name, Published::Ranked(ranked));
    }
    Ok(())
}
