//! From panes to finished values under plain names: what a reader with `redis-cli` alone gets.
//!
//! Pure. A name is the metric's live name and the key's parts joined by `:`; a key whose value is 0 or nothing has no
//! name at all, so that what has slid out is gone.

use shared_model::aggregate::top_k::rank;
use shared_model::aggregate::{Aggregate, Finished, State};
use shared_model::catalog::Catalog;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::{Metric, MetricVersion};
use shared_model::time::{Interval, Millis};
use shared_model::view::{self, Slice};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

/// What stands under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Published {
    /// A string.
    Text(String),
    /// A sorted set: the items with their counts, best first.
    Ranked(Vec<(String, u64)>),
}

/// All names with their values.
pub(crate) type Names = HashMap<String, Published>;

/// The metrics that are published.
pub(crate) fn published_metrics(catalog: &Catalog) -> Vec<Arc<Metric>> {
    let live =
        |metric: &&Arc<Metric>| metric.publish && metric.window.is_some() && metric.live_name.is_some();
    catalog.metrics.iter().filter(live).cloned().collect()
}

/// The sliding windows of all published metrics at one moment, while groups are merged into them.
pub(crate) struct Live {
    metrics: Vec<(Arc<Metric>, Interval)>,
    cells: HashMap<MetricVersion, HashMap<Box<[u8]>, State>>,
}

impl Live {
    /// The windows at the newest trusted event time.
    pub(crate) fn at(metrics: &[Arc<Metric>], newest: Millis) -> Live {
        let windowed = |metric: &Arc<Metric>| Some((metric.clone(), metric.window?.at(newest)));
        Live { metrics: metrics.iter().filter_map(windowed).collect(), cells: HashMap::new() }
    }

    /// Merges one stored segment, if it is of a pane that is inside a window.
    pub(crate) fn merge(&mut self, slice: Slice, segment: &[u8]) -> Result<(), CodecError> {
        let Slice::Pane(start) = slice else { return Ok(()) };
        let Live { metrics, cells } = self;
        let inside = |version| {
            let mut inside =
                metrics.iter().filter(|(metric, window)| metric.version == version && window.contains(start));
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
                        if let Some(text) = text(&state.finish(&metric.aggregate)) {
                            names.insert(name(metric, &mut &key[..])?, Published::Text(text));
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
        let mut rest = &key[..];
        let name = name(metric, &mut rest)?;
        let item = Value::decode(&mut rest)?;
        if let State::Count(count) = state {
            sets.entry(name).or_default().push((item, *count));
        }
    }
    for (name, items) in sets {
        let ranked = rank(items, k).into_iter().map(|(item, count)| (show(&item), count)).collect();
        names.insert(name, Published::Ranked(ranked));
    }
    Ok(())
}

/// The name of a cell; takes the `by` values off the key.
fn name(metric: &Metric, key: &mut &[u8]) -> Result<String, CodecError> {
    let mut name = metric.live_name.clone().unwrap_or_else(|| metric.name.clone());
    for _ in &metric.by {
        name.push(':');
        escape(&Value::decode(key)?, &mut name);
    }
    Ok(name)
}

/// A value as an item of a set: `\N` for NULL.
fn show(value: &Value) -> String {
    match value {
        Value::Null => NULL.to_owned(),
        other => other.to_string(),
    }
}

/// NULL, as in the files that the data comes from.
const NULL: &str = "\\N";

/// Appends a value to a name, percent-encoding what would make it ambiguous or unreadable.
fn escape(value: &Value, name: &mut String) {
    if value.is_null() {
        name.push_str(NULL);
        return;
    }
    for char in value.to_string().chars() {
        if matches!(char, ':' | '%' | '\\') || char.is_control() {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                write!(name, "%{byte:02X}").expect("writing to a string");
            }
        } else {
            name.push(char);
        }
    }
}

/// A value as text; `None` where there is nothing to publish.
fn text(value: &Finished) -> Option<String> {
    match value {
        Finished::Null(()) | Finished::Int(0) => None,
        Finished::Int(value) => Some(value.to_string()),
        Finished::Float(value) => Some(value.to_string()),
        Finished::Text(text) => Some(text.clone()),
        list @ Finished::List(_) => serde_json::to_string(list).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unambiguous() {
        let check = |value: Value, expected: &str| {
            let mut name = String::new();
            escape(&value, &mut name);
            assert_eq!(name, expected);
        };
        check(Value::str("US>CA>807"), "US>CA>807");
        check(Value::str("a:b%c\n"), "a%3Ab%25c%0A");
        check(Value::Null, "\\N");
        check(Value::str("\\N"), "%5CN");
        check(Value::str("%5CN"), "%255CN");
        check(Value::Int(-7), "-7");
    }

    proptest::proptest! {
        #[test]
        fn a_name_is_one_plain_word_and_leads_back_to_its_value(text: String) {
            let mut name = String::new();
            escape(&Value::str(&text), &mut name);
            proptest::prop_assert!(!name.chars().any(|char| char.is_control() || char == ':' || char == '\\'));
            let mut bytes = name.split('%');
            let mut back = bytes.next().unwrap().as_bytes().to_vec();
            for part in bytes {
                back.push(u8::from_str_radix(&part[..2], 16).unwrap());
                back.extend_from_slice(&part.as_bytes()[2..]);
            }
            proptest::prop_assert_eq!(String::from_utf8(back), Ok(text));
        }
    }
}
