//! The catalog as clients see it: what can be asked for, and by which names.

use crate::query::buckets::show_width;
use crate::query::type_name;
use serde::Serialize;
use serde_json::{Value as Json, json};
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::metric::{Formula, KeyColumn, Metric};

/// The reply to `GET /api/v1/metrics`.
#[derive(Debug, Serialize)]
pub struct CatalogReply {
    /// All metrics.
    pub metrics: Vec<Json>,
    /// All formulas.
    pub formulas: Vec<Json>,
}

impl CatalogReply {
    /// The reply for a catalog.
    pub fn new(catalog: &Catalog) -> CatalogReply {
        let metrics = catalog.metrics.iter().map(|of| metric(of)).collect();
        let formulas = catalog.formulas.iter().map(|of| formula(of)).collect();
        CatalogReply { metrics, formulas }
    }
}

fn metric(metric: &Metric) -> Json {
    let streams: Vec<&str> = metric.bindings.iter().map(|binding| binding.stream.as_str()).collect();
    let (aggregate, k, quantiles) = match &metric.aggregate {
        Aggregate::Count => ("count", None, None),
        Aggregate::Sum(_) => ("sum", None, None),
        Aggregate::Min(_) => ("min", None, None),
        Aggregate::Max(_) => ("max", None, None),
        Aggregate::Mean(_) => ("mean", None, None),
        Aggregate::Distinct => ("distinct", None, None),
        Aggregate::TopK { k } => ("top_k", Some(*k), None),
        Aggregate::Quantile { quantiles, .. } => ("quantile", None, Some(quantiles)),
    };
    json!({
        "name": metric.name,
        "live_name": metric.live_name,
        "description": metric.description,
        "owner": metric.owner,
        "unit": metric.unit,
        "streams": streams,
        "by": columns(&metric.by),
        "item": metric.item.as_ref().map(column),
        "aggregate": aggregate,
        "k": k,
        "quantiles": quantiles,
        "grain": show_width(metric.grain.width()),
        "window": metric.window.map(|window| show_width(window.width)),
        "pane": metric.window.map(|window| show_width(window.pane)),
        "published": metric.publish,
        "version": metric.version,
    })
}

fn formula(formula: &Formula) -> Json {
    let of = |(name, metric): &(String, String)| json!({ "name": name, "metric": metric });
    json!({
        "name": formula.name,
        "description": formula.description,
        "by": columns(&formula.by),
        "grain": show_width(formula.grain.width()),
        "columns": formula.columns.iter().map(of).collect::<Vec<_>>(),
    })
}

fn columns(columns: &[KeyColumn]) -> Vec<Json> {
    columns.iter().map(column).collect()
}

fn column(column: &KeyColumn) -> Json {
    json!({ "name": column.name, "type": type_name(column.ty) })
}
