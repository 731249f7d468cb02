//! The catalog as clients see it: what can be asked for, and by which names.

use crate::query::buckets::show_width;
use crate::query::type_name;
use schemars::JsonSchema;
use serde::Serialize;
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::metric::{Formula, KeyColumn, Metric};

/// The reply to `GET /api/v1/metrics`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CatalogReply {
    /// All metrics.
    pub metrics: Vec<MetricEntry>,
    /// All formulas.
    pub formulas: Vec<FormulaEntry>,
}

/// A metric of the catalog.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MetricEntry {
    /// What queries call it.
    pub name: String,
    /// What it is served live as; null where it isn't.
    pub live_name: Option<String>,
    /// What it says.
    pub description: String,
    /// Whom to ask about it.
    pub owner: String,
    /// The unit of its values.
    pub unit: String,
    /// What it belongs to.
    pub tags: Vec<String>,
    /// The streams that feed it.
    pub streams: Vec<String>,
    /// Its key columns.
    pub by: Vec<ColumnEntry>,
    /// Of a top-k: what is ranked.
    pub item: Option<ColumnEntry>,
    /// How records are folded.
    pub aggregate: &'static str,
    /// Of a top-k: how many items an answer has unless it asks for another number.
    pub k: Option<usize>,
    /// Of a quantile metric: which.
    pub quantiles: Option<Vec<f64>>,
    /// The width that its views are kept at, such as `20m`.
    pub grain: String,
    /// The width of its sliding window; null where it isn't served live.
    pub window: Option<String>,
    /// The step of its sliding window.
    pub pane: Option<String>,
    /// Whether the records behind its values can be read: a stream of it keeps them.
    pub facts: bool,
    /// Whether its sliding counters are written as plain keys, too.
    pub published: bool,
    /// Hash of all that its values depend on.
    pub version: String,
}

/// A formula of the catalog.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FormulaEntry {
    /// What queries call it.
    pub name: String,
    /// What it says.
    pub description: String,
    /// Its key columns.
    pub by: Vec<ColumnEntry>,
    /// The width of its buckets.
    pub grain: String,
    /// Its value columns.
    pub columns: Vec<FormulaColumn>,
}

/// A value column of a formula.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FormulaColumn {
    /// Its name in answers.
    pub name: String,
    /// The metric that it shows.
    pub metric: String,
}

/// A key column.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ColumnEntry {
    /// Its name.
    pub name: String,
    /// Its type: `string`, `int`, `float`, `bool` or `decimal`.
    #[serde(rename = "type")]
    pub ty: &'static str,
}

impl CatalogReply {
    /// The reply for a catalog.
    pub fn new(catalog: &Catalog) -> CatalogReply {
        let metrics = catalog.metrics.iter().map(|of| metric(catalog, of)).collect();
        let formulas = catalog.formulas.iter().map(|of| formula(of)).collect();
        CatalogReply { metrics, formulas }
    }
}

fn metric(catalog: &Catalog, metric: &Metric) -> MetricEntry {
    let (aggregate, k, quantiles) = match &metric.aggregate {
        Aggregate::Count => ("count", None, None),
        Aggregate::Sum(_) => ("sum", None, None),
        Aggregate::Min(_) => ("min", None, None),
        Aggregate::Max(_) => ("max", None, None),
        Aggregate::Mean(_) => ("mean", None, None),
        Aggregate::Distinct => ("distinct", None, None),
        Aggregate::TopK { k } => ("top_k", Some(*k), None),
        Aggregate::Quantile { quantiles, .. } => ("quantile", None, Some(quantiles.clone())),
        Aggregate::Sessions { .. } => ("sessions", None, None),
    };
    MetricEntry {
        name: metric.name.clone(),
        live_name: metric.live_name.clone(),
        description: metric.description.clone(),
        owner: metric.owner.clone(),
        unit: metric.unit.clone(),
        tags: metric.tags.clone(),
        streams: metric.bindings.iter().map(|binding| binding.stream.clone()).collect(),
        by: columns(&metric.by),
        item: metric.item.as_ref().map(column),
        aggregate,
        k,
        quantiles,
        grain: show_width(metric.grain.width()),
        window: metric.window.map(|window| show_width(window.width)),
        pane: metric.window.map(|window| show_width(window.pane)),
        facts: catalog.keeps_records(metric),
        published: metric.publish,
        version: metric.version.to_string(),
    }
}

fn formula(formula: &Formula) -> FormulaEntry {
    let of = |(name, metric): &(String, String)| FormulaColumn { name: name.clone(), metric: metric.clone() };
    FormulaEntry {
        name: formula.name.clone(),
        description: formula.description.clone(),
        by: columns(&formula.by),
        grain: show_width(formula.grain.width()),
        columns: formula.columns.iter().map(of).collect(),
    }
}

fn columns(columns: &[KeyColumn]) -> Vec<ColumnEntry> {
    columns.iter().map(column).collect()
}

fn column(column: &KeyColumn) -> ColumnEntry {
    ColumnEntry { name: column.name.clone(), ty: type_name(column.ty) }
}
