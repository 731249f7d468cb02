//! What the rows are sorted by, and how many are kept of each group.

use super::fields::{Faults, Fields};
use super::values::Values;
use super::{MAX_FILTERS, names};
use crate::error::FaultKind;
use crate::query::{LimitBy, Order, OrderBy};
use serde_json::Value as Json;
use shared_model::metric::KeyColumn;

/// The sort keys of a request.
pub(super) fn order(
    request: &Fields<'_>,
    group_by: &[KeyColumn],
    values: &Values,
    ranked: bool,
    faults: &mut Faults,
) -> Vec<Order> {
    let (at, list) = match request.get("order") {
        None => return Vec::new(),
        Some((at, Json::Array(list))) => (at, list.as_slice()),
        Some((at, one)) => (at, std::slice::from_ref(one)),
    };
    if list.len() > MAX_FILTERS {
        faults.unanswerable(at, format!("{} are more than the limit of {MAX_FILTERS}", list.len()));
        return Vec::new();
    }
    let mut allowed = vec!["bucket".to_owned()];
    allowed.extend(names(group_by));
    allowed.extend(values.names());
    allowed.extend(ranked.then_some(["rank", "item"].map(str::to_owned)).into_iter().flatten());
    let mut read = |(i, order): (usize, &Json)| {
        let field = format!("{at}[{i}]");
        let by = order.get("by").and_then(Json::as_str);
        let (Some(by), Some(object)) = (by, order.as_object()) else {
            faults.malformed(field, "expected {\"by\": column, \"desc\": true or false}");
            return None;
        };
        let field = format!("{field}.");
        let fields = Fields::new(object, &field);
        fields.refuse_unknown(&["by", "desc"], faults);
        let desc = fields.flag("desc", faults);
        let by_key = group_by.iter().position(|column| column.name == by).map(OrderBy::Key);
        let found = by_key.or_else(|| values.find(by)).or(match by {
            "bucket" => Some(OrderBy::Bucket),
            "rank" if ranked => Some(OrderBy::Rank),
            "item" if ranked => Some(OrderBy::Item),
            _ => None,
        });
        match found {
            Some(by) => Some(Order { by, desc }),
            None => {
                let message = format!("{by:?} is no column of the answer");
                faults.with(FaultKind::Unanswerable, fields.at("by"), message, allowed.clone());
                None
            }
        }
    };
    list.iter().enumerate().filter_map(&mut read).collect()
}

/// How many rows are kept of each group.
pub(super) fn limit_by(request: &Fields<'_>, group_by: &[KeyColumn], faults: &mut Faults) -> Option<LimitBy> {
    let (at, value) = request.get("limit_by")?;
    let Some(object) = value.as_object() else {
        faults.malformed(at, "expected {\"columns\": [column], \"limit\": number}");
        return None;
    };
    let at = format!("{at}.");
    let fields = Fields::new(object, &at);
    fields.refuse_unknown(&["columns", "limit"], faults);
    let limit = fields.count("limit", faults);
    if limit.is_none_or(|limit| limit == 0) {
        faults.malformed(fields.at("limit"), "expected a whole number from 1");
    }
    let mut found = LimitBy { bucket: false, keys: Vec::new(), limit: limit.unwrap_or(1) };
    let columns = fields.names("columns", faults);
    if columns.is_empty() {
        faults.malformed(fields.at("columns"), "expected a list of columns: bucket, or of group_by");
    }
    for (field, name) in columns {
        match group_by.iter().position(|column| column.name == name) {
            Some(place) if found.keys.contains(&place) => {
                faults.malformed(field, format!("{name} is named twice"))
            }
            Some(place) => found.keys.push(place),
            None if name == "bucket" && found.bucket => faults.malformed(field, "bucket is named twice"),
            None if name == "bucket" => found.bucket = true,
            None => {
                let allowed = std::iter::once("bucket".to_owned()).chain(names(group_by)).collect();
                let message = format!("{name:?} is neither bucket nor a column of group_by");
                faults.with(FaultKind::Unanswerable, field, message, allowed);
            }
        }
    }
    Some(found)
}
