//! Validates formulas: metrics of one key and grain, side by side.

use super::check::Check;
use super::literal::{is_name, show_duration};
use super::raw::RawFormula;
use super::streams::{bad_name, column_problem};
use super::validate::Known;
use crate::aggregate::Aggregate;
use crate::event::FieldType;
use crate::metric::{Formula, KeyColumn, Metric};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Validates all formulas; a faulty one is left out.
pub(super) fn validate(
    raw: &BTreeMap<String, RawFormula>,
    metrics: &[Known<'_, Metric>],
    check: &mut Check<'_>,
) -> Vec<Arc<Formula>> {
    raw.iter().filter_map(|(name, raw)| formula(name, raw, metrics, check).map(Arc::new)).collect()
}

fn formula(
    name: &str,
    raw: &RawFormula,
    metrics: &[Known<'_, Metric>],
    check: &mut Check<'_>,
) -> Option<Formula> {
    if !is_name(name) {
        check.fault(&["formulas", name], bad_name(name));
    }
    let path = ["formulas", name, "columns"];
    let columns = raw.columns.as_ref().filter(|columns| !columns.is_empty());
    if columns.is_none() && !check.is_refused(&path) {
        check.fault(&["formulas", name], "columns is missing; add columns = { name = \"metric\" }");
    }
    let columns = columns?;
    let mut first: Option<Arc<Metric>> = None;
    let mut valid = Vec::new();
    for column in check.document().order(&path) {
        let Some(named) = columns.get(&column) else { continue };
        let path = ["formulas", name, "columns", &column];
        if let Some(problem) = column_problem(&column) {
            check.fault(&path, problem);
        }
        let Some(known) = metrics.iter().find(|known| known.name == named) else {
            if !check.is_refused(&["metrics"]) && !check.is_refused(&["metrics", named]) {
                let known = metrics.iter().map(|known| known.name);
                check.unknown(&path, format!("unknown metric {named:?}"), named, known);
            }
            continue;
        };
        let Some(metric) = &known.valid else { continue };
        let first = first.get_or_insert_with(|| Arc::clone(metric));
        if let Some(problem) = misfit(&column, metric, first) {
            check.fault(&path, problem);
        }
        valid.push((column, named.clone()));
    }
    let first = first?;
    Some(Formula {
        name: name.to_owned(),
        by: first.by.clone(),
        grain: first.grain,
        columns: valid,
        description: raw.description.clone().unwrap_or_default(),
    })
}

/// Why a metric can't stand beside the first one of its formula.
fn misfit(column: &str, metric: &Metric, first: &Metric) -> Option<String> {
    let (name, other) = (&metric.name, &first.name);
    let number = match &metric.aggregate {
        Aggregate::Count
        | Aggregate::Distinct
        | Aggregate::Sum(_)
        | Aggregate::Mean(_)
        | Aggregate::Sessions { .. } => true,
        Aggregate::Min(ty) | Aggregate::Max(ty) => !matches!(ty, FieldType::String | FieldType::Bool),
        Aggregate::TopK { .. } | Aggregate::Quantile { .. } => false,
    };
    if !number {
        return Some(format!("metric {name} has no single number as its value"));
    }
    if metric.by != first.by {
        let by = |key: &[KeyColumn]| key.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(", ");
        return Some(format!(
            "metric {name} is by ({}), metric {other} by ({})",
            by(&metric.by),
            by(&first.by)
        ));
    }
    if metric.grain != first.grain {
        let (grain, others) = (show_duration(metric.grain.width()), show_duration(first.grain.width()));
        return Some(format!("metric {name} has grain {grain}, metric {other} has {others}"));
    }
    let taken = metric.by.iter().any(|key| key.name == column);
    taken.then(|| format!("{column:?} is a column of the key already"))
}
