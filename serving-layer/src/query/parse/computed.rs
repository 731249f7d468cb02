//! The formulas and shares of a request: columns computed of its value columns.

use super::MAX_METRICS;
use super::fields::{Faults, Fields, MAX_NAME};
use super::values::Values;
use crate::error::FaultKind;
use crate::query::computed::{Computed, Formula, Of};
use serde_json::{Map, Value as Json};
use shared_model::aggregate::Aggregate;
use shared_model::expression::{self, Expression};
use shared_model::metric::{KeyColumn, Metric};
use std::sync::Arc;

/// How long all formulas of a query may be: they are computed for each of its rows.
const MAX_FORMULAS: usize = 1_000;
/// Names that other columns of an answer have.
const TAKEN: [&str; 3] = ["bucket", "rank", "item"];

/// The elements of `metrics` that are objects: `{"name", "formula"}`, or `{"name", "share_of"}`.
pub(super) fn computed(
    request: &Fields<'_>,
    metrics: &[(String, Arc<Metric>)],
    group_by: &[KeyColumn],
    values: &Values,
    faults: &mut Faults,
) -> Vec<Computed> {
    let Some((at, Json::Array(list))) = request.get("metrics") else { return Vec::new() };
    if list.len() > MAX_METRICS {
        faults.unanswerable(at, format!("{} are more than the limit of {MAX_METRICS}", list.len()));
        return Vec::new();
    }
    let objects = list.iter().filter_map(Json::as_object);
    let texts = objects.filter_map(|element| element.get("formula")?.as_str());
    let length: usize = texts.map(str::len).sum();
    if length > MAX_FORMULAS {
        let message = format!("formulas of {length} bytes in all are more than the limit of {MAX_FORMULAS}");
        faults.unanswerable(at, message);
        return Vec::new();
    }
    let mut found: Vec<Computed> = Vec::new();
    for (i, element) in list.iter().enumerate() {
        let Json::Object(element) = element else { continue };
        let Some(one) = one(&format!("{at}[{i}]."), element, metrics, values, faults) else { continue };
        let is_taken = TAKEN.contains(&one.name.as_str())
            || values.find(&one.name).is_some()
            || group_by.iter().any(|column| column.name == one.name)
            || found.iter().any(|other| other.name == one.name);
        if is_taken {
            faults.malformed(
                format!("{at}[{i}].name"),
                format!("{} is a column of the answer already", one.name),
            );
        }
        found.push(one);
    }
    found
}

fn one(
    at: &str,
    element: &Map<String, Json>,
    metrics: &[(String, Arc<Metric>)],
    values: &Values,
    faults: &mut Faults,
) -> Option<Computed> {
    let fields = Fields::new(element, at);
    fields.refuse_unknown(&["name", "formula", "share_of"], faults);
    let shares = fields.has("share_of");
    if shares && fields.has("formula") {
        faults.malformed(fields.at("formula"), "give formula or share_of, not both");
    }
    let mut text = |name: &str| {
        let text = fields.get(name).and_then(|(_, value)| value.as_str()).filter(|text| !text.is_empty());
        if text.is_none() {
            faults.malformed(fields.at(name), "expected a text");
        }
        text
    };
    let (name, of) = (text("name"), text(if shares { "share_of" } else { "formula" }));
    let (name, of) = (name?, of?);
    if name.len() > MAX_NAME {
        let message = format!("a name of {} bytes is longer than the limit of {MAX_NAME}", name.len());
        faults.malformed(fields.at("name"), message);
        return None;
    }
    if shares {
        return Some(Computed { name: name.to_owned(), of: Of::Share(share(&fields, of, metrics, faults)?) });
    }
    let scope = |name: &str| {
        let place = values.columns.iter().position(|(own, _)| own == name)?;
        Some(Expression::field(place, values.columns[place].1?))
    };
    match expression::parse(of, &scope) {
        Ok(expression) => {
            let types = values.columns.iter().map(|(_, ty)| *ty).collect();
            Some(Computed { name: name.to_owned(), of: Of::Row(Formula { expression, types }) })
        }
        // Without its metrics, which have a fault of their own, no name is known.
        Err(_) if values.columns.is_empty() => None,
        Err(error) => {
            faults.malformed(fields.at("formula"), error.to_string());
            None
        }
    }
}

/// The value column that a share is of, by its place: one whose values add up, in rows that are all there.
fn share(
    fields: &Fields<'_>,
    of: &str,
    metrics: &[(String, Arc<Metric>)],
    faults: &mut Faults,
) -> Option<usize> {
    let adds = |metric: &Metric| matches!(metric.aggregate, Aggregate::Count | Aggregate::Sum(_));
    let found = metrics.iter().position(|(name, metric)| name == of && adds(metric));
    if found.is_none() && !metrics.is_empty() {
        let allowed =
            metrics.iter().filter(|(_, metric)| adds(metric)).map(|(name, _)| name.clone()).collect();
        let message = format!("{of:?} is no count or sum of this query");
        faults.with(FaultKind::Unanswerable, fields.at("share_of"), message, allowed);
    }
    found
}
