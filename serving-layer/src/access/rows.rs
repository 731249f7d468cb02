//! Which rows a key may see: tests on key columns, all of which must hold, of every query and every live counter.
//!
//! They are added to a query that is valid already, beside what it asks for itself, so that nothing in a request can take
//! them away; what is compared with, ranked, shared or totalled is counted of the same rows.

use crate::query::filter::{Condition, Filter};
use crate::query::{Part, Query, lone_test};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use shared_model::event::{FieldType, Value};
use shared_model::metric::{KeyColumn, Metric};

/// Tests on key columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Json>", into = "Vec<Json>")]
pub struct RowFilter {
    /// As they were given: a query's filters, without and, or, not.
    given: Vec<Json>,
    filters: Vec<Typed>,
}

/// A test, and the type that its column must have; `None` where it is about any.
#[derive(Debug, Clone, PartialEq)]
struct Typed {
    filter: Filter,
    ty: Option<FieldType>,
}

impl TryFrom<Vec<Json>> for RowFilter {
    type Error = String;

    /// Reads tests as a query's `filters` write them: `[{"dimension", "op", "value"/"values"}]`.
    fn try_from(given: Vec<Json>) -> Result<RowFilter, String> {
        let filters =
            given.iter().enumerate().map(|(i, node)| typed(node).map_err(|why| format!("test {i}: {why}")));
        Ok(RowFilter { filters: filters.collect::<Result<_, _>>()?, given })
    }
}

impl From<RowFilter> for Vec<Json> {
    fn from(rows: RowFilter) -> Vec<Json> {
        rows.given
    }
}

fn typed(node: &Json) -> Result<Typed, String> {
    let name = node["dimension"].as_str().ok_or("it has no dimension: the name of a key column")?;
    let values = node.get("value").or(node.get("values"));
    let first = values.and_then(|values| values.as_array().map_or(Some(values), |list| list.first()));
    let ty = match first {
        None | Some(Json::Null) => None,
        Some(Json::String(_)) => Some(FieldType::String),
        Some(Json::Bool(_)) => Some(FieldType::Bool),
        Some(Json::Number(_)) => Some(FieldType::Int),
        Some(other) => return Err(format!("{other} is no value of a key column")),
    };
    let column = KeyColumn { name: name.to_owned(), ty: ty.unwrap_or(FieldType::String) };
    Ok(Typed { filter: Filter { dimension: name.to_owned(), test: lone_test(node, &column)? }, ty })
}

impl RowFilter {
    /// Whether every row may be seen.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Whether a metric's rows can be told apart by it: its key has all the columns, of the tests' types.
    pub fn fits(&self, metric: &Metric) -> bool {
        self.filters.iter().all(|typed| place(typed, metric).is_some())
    }

    /// Whether the row of a metric's key may be seen. One of a metric that it doesn't fit may not.
    pub fn admits(&self, metric: &Metric, by: &[Value]) -> bool {
        let passes = |typed: &Typed| {
            let value = place(typed, metric).and_then(|place| by.get(place));
            value.is_some_and(|value| typed.filter.test.admits(value) == Some(true))
        };
        self.filters.iter().all(passes)
    }

    /// Adds it to a query, and to what that is compared with.
    pub fn restrict(&self, query: &mut Query) {
        if self.is_empty() {
            return;
        }
        if let Some(compared) = &mut query.compared {
            self.restrict(&mut compared.query);
        }
        // Side by side with what must hold anyway: each of these that Postgres can test by itself is left to it.
        let mut all = match std::mem::replace(&mut query.condition, Condition::All(Vec::new())) {
            Condition::All(parts) => parts,
            one => vec![one],
        };
        for typed in &self.filters {
            let places: Option<Vec<usize>> =
                query.columns.iter().map(|column| place(typed, &column.metric)).collect();
            let Some(places) = places else {
                // A metric that it doesn't fit is not in the catalog that the query was read by. Nothing is true of it.
                all.push(Condition::Any(Vec::new()));
                continue;
            };
            for (column, place) in query.columns.iter_mut().zip(places) {
                column.tested.push(Part::By(place));
            }
            all.push(Condition::Test(query.filters.len()));
            query.filters.push(typed.filter.clone());
        }
        query.condition = Condition::All(all);
    }
}

fn place(typed: &Typed, metric: &Metric) -> Option<usize> {
    let is_it = |column: &KeyColumn| {
        column.name == typed.filter.dimension && typed.ty.is_none_or(|ty| column.ty == ty)
    };
    metric.by.iter().position(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::filter::Test;
    use serde_json::json;

    fn rows(given: Json) -> Result<RowFilter, String> {
        serde_json::from_value(given).map_err(|error| error.to_string())
    }

    #[test]
    fn tests_are_read_as_a_querys_filters_and_written_as_they_were_given() {
        let given = json!([{ "dimension": "document_id", "op": "in", "values": [1, 2] },
                           { "dimension": "geo", "op": "is_not_null" }]);
        let read = rows(given.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), given);
        assert_eq!(read.filters[0].ty, Some(FieldType::Int));
        assert_eq!((read.filters[1].ty, &read.filters[1].filter.test), (None, &Test::IsNotNull));
        let wrong = |given: Json, says: &str| {
            let why = rows(given).unwrap_err();
            assert!(why.contains(says), "{why}");
        };
        wrong(json!([{ "op": "=", "value": 1 }]), "test 0: it has no dimension");
        wrong(json!([{ "dimension": "a", "op": "in", "values": [1, "x"] }]), "is no int like the column a");
        wrong(json!([{ "dimension": "a", "op": "~", "value": 1 }]), "unknown operator");
        wrong(json!([{ "dimension": "a", "value": 1, "vlaue": 2 }]), "unknown field");
        wrong(json!([{ "or": [] }]), "it has no dimension");
    }
}
