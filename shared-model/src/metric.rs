//! Metrics and formulas as the layers use them: what a record adds to which cell.
//!
//! A metric's version is a hash of all that its values depend on; only states of equal versions may be merged.

use crate::aggregate::{Aggregate, State};
use crate::event::{FieldType, Value};
use crate::expression::Expression;
use crate::time::{Grain, SlidingWindow};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// The version of a metric: xxh3 over its streams' versions, filter, dimensions, aggregate, grain and codec.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MetricVersion(pub u64);

impl fmt::Display for MetricVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for MetricVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<MetricVersion> for String {
    fn from(version: MetricVersion) -> String {
        version.to_string()
    }
}

impl TryFrom<String> for MetricVersion {
    type Error = String;

    fn try_from(text: String) -> Result<MetricVersion, String> {
        let parsed = u64::from_str_radix(&text, 16).map(MetricVersion);
        parsed.map_err(|_| format!("metric version {text:?} is not 16 hexadecimal digits"))
    }
}

/// A named column of a metric's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// The field's or dimension's name.
    pub name: String,
    /// Its type: string, int or bool (floats and decimals can't be grouped by).
    pub ty: FieldType,
}

/// A metric, valid.
#[derive(Debug, Clone)]
pub struct Metric {
    /// Its name: `user_view_cnt`.
    pub name: String,
    /// The name of its sliding counter, where it has a window: `user_view_cnt_5m`.
    pub live_name: Option<String>,
    /// Hash of all that its values depend on.
    pub version: MetricVersion,
    /// The key's columns: the `by` of the catalog. Empty: one cell for all.
    pub by: Vec<KeyColumn>,
    /// The item's column of a top-k, which is one more key column of each cell.
    pub item: Option<KeyColumn>,
    /// What is computed.
    pub aggregate: Aggregate,
    /// How each of its streams feeds it, ordered by stream name.
    pub bindings: Vec<Binding>,
    /// The sliding window, if it is served live.
    pub window: Option<SlidingWindow>,
    /// The bucket width of its views.
    pub grain: Grain,
    /// Whether finished live values are published as plain Redis keys.
    pub publish: bool,
    /// For people.
    pub description: String,
    /// Who answers for it.
    pub owner: String,
    /// The unit of its values.
    pub unit: String,
    /// What it belongs to, for whoever grants access by tag; sorted.
    pub tags: Vec<String>,
}

impl Metric {
    /// The columns of its cells' keys: those that it is by, the item's last.
    pub fn key_columns(&self) -> impl Iterator<Item = &KeyColumn> {
        self.by.iter().chain(&self.item)
    }
}

/// How one stream feeds a metric. Expressions are resolved to indices into the stream's fields.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The stream's name.
    pub stream: String,
    /// One expression per key column.
    pub by: Vec<Expression>,
    /// The item of a top-k.
    pub item: Option<Expression>,
    /// Only records for which this is true count.
    pub filter: Option<Expression>,
    /// What sum, min, max, mean, distinct and quantile are taken of.
    pub value: Option<Expression>,
}

impl Binding {
    /// Whether a record counts at all.
    #[inline]
    pub fn admits(&self, values: &[Value]) -> bool {
        self.filter.as_ref().is_none_or(|filter| matches!(*filter.value(values), Value::Bool(true)))
    }

    /// Writes the cell key of a record into `key` (cleared first): the encoded `by` values, then the item's. Returns
    /// the length of the `by` part, which alone decides the group.
    pub fn key(&self, values: &[Value], key: &mut Vec<u8>) -> usize {
        key.clear();
        self.by.iter().for_each(|by| by.value(values).encode(key));
        let by = key.len();
        if let Some(item) = &self.item {
            item.value(values).encode(key);
        }
        by
    }

    /// What a record adds to a cell's state; NULL where that is no value.
    pub fn value_of<'a>(&'a self, values: &'a [Value]) -> Cow<'a, Value> {
        self.value.as_ref().map_or(Cow::Borrowed(&Value::Null), |value| value.value(values))
    }

    /// Adds a record's value to a cell's state.
    pub fn add(&self, values: &[Value], state: &mut State) {
        state.add(&self.value_of(values));
    }
}

/// A formula over metrics of equal key and grain: a full outer join of them by key and bucket, missing = 0.
#[derive(Debug, Clone)]
pub struct Formula {
    /// Its name.
    pub name: String,
    /// The key's columns, equal in all its metrics.
    pub by: Vec<KeyColumn>,
    /// The bucket width, equal in all its metrics.
    pub grain: Grain,
    /// Column name and metric name, in the catalog's order.
    pub columns: Vec<(String, String)>,
    /// For people.
    pub description: String,
}
