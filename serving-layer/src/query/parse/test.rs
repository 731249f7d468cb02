//! One test of a request: its operator, and its values of the type of the column that it is about.

use super::fields::{Faults, Fields};
use super::{MAX_TEXT, MAX_VALUES};
use crate::error::{FaultKind, ServeError};
use crate::query::filter::Test;
use serde_json::{Map, Value as Json};
use shared_model::event::{FieldType, Value};
use shared_model::expression::like::LikePattern;
use shared_model::metric::KeyColumn;
use std::cmp::Ordering;

/// The operators.
pub(crate) const OPS: [&str; 11] =
    ["=", "!=", "in", "<", "<=", ">", ">=", "between", "like", "is_null", "is_not_null"];

/// The name of what a test is about, which stands in a field of it; the fields that a test can't have are refused.
pub(super) fn named<'a>(
    at: &str,
    node: &'a Map<String, Json>,
    field: &str,
    faults: &mut Faults,
) -> Option<&'a str> {
    let place = format!("{at}.");
    Fields::new(node, &place).refuse_unknown(&[field, "op", "value", "values"], faults);
    node.get(field).and_then(Json::as_str)
}

/// The test on a column.
pub(super) fn test(
    at: &str,
    node: &Map<String, Json>,
    column: &KeyColumn,
    faults: &mut Faults,
) -> Option<Test> {
    let op = match node.get("op").map(Json::as_str) {
        None => "=",
        Some(Some(op)) if OPS.contains(&op) => op,
        Some(_) => {
            let allowed = OPS.map(str::to_owned).to_vec();
            faults.with(FaultKind::Malformed, format!("{at}.op"), "unknown operator", allowed);
            return None;
        }
    };
    let values = match (node.get("value"), node.get("values")) {
        (Some(_), Some(_)) => Err("give value or values, not both".to_owned()),
        (None, None) => Ok(Vec::new()),
        (Some(Json::Array(values)), None) | (None, Some(Json::Array(values)))
            if values.len() > MAX_VALUES =>
        {
            Err(format!("{} values are more than the limit of {MAX_VALUES}", values.len()))
        }
        (Some(Json::Array(values)), None) | (None, Some(Json::Array(values))) => {
            values.iter().map(|value| typed(column, value)).collect()
        }
        (Some(value), None) | (None, Some(value)) => typed(column, value).map(|value| vec![value]),
    };
    match values.and_then(|values| applied(op, column, values)) {
        Ok(test) => Some(test),
        Err(message) => {
            faults.malformed(format!("{at}.value"), message);
            None
        }
    }
}

/// A test that stands alone, not in a request.
///
/// # Errors
/// All its faults, in one text.
pub(crate) fn lone_test(node: &Json, column: &KeyColumn) -> Result<Test, String> {
    let mut faults = Faults::default();
    let read = node.as_object().and_then(|node| {
        named("it", node, "dimension", &mut faults);
        test("it", node, column, &mut faults)
    });
    faults.or(read).map_err(|error| match error {
        ServeError::Invalid(faults) if !faults.is_empty() => {
            let each: Vec<String> =
                faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
            each.join("; ")
        }
        _ => format!("{node} is no object of dimension, op and value"),
    })
}

fn applied(op: &str, column: &KeyColumn, values: Vec<Value>) -> Result<Test, String> {
    use Ordering::{Equal, Greater, Less};
    let one = |values: Vec<Value>| match <[Value; 1]>::try_from(values) {
        Ok([value]) => Ok(value),
        Err(values) => Err(format!("{op} takes one value, not {}", values.len())),
    };
    let compare = |is, values| Ok(Test::Compare { is, with: one(values)? });
    match op {
        "=" => Ok(Test::In([one(values)?].into())),
        "!=" => Ok(Test::Not(one(values)?)),
        "in" if values.is_empty() => Err("in takes a list of at least one value".to_owned()),
        "in" => Ok(Test::In(values.into_iter().collect())),
        "<" => compare(&[Less], values),
        "<=" => compare(&[Less, Equal], values),
        ">" => compare(&[Greater], values),
        ">=" => compare(&[Greater, Equal], values),
        "between" => match <[Value; 2]>::try_from(values) {
            Ok([low, high]) => Ok(Test::Between(low, high)),
            Err(values) => Err(format!("between takes two values, [low, high], not {}", values.len())),
        },
        "like" => match one(values)? {
            Value::Str(pattern) => LikePattern::new(&pattern).map(Test::Like).ok_or_else(|| {
                format!("{pattern:?} ends with a lone backslash: write two for one that is meant")
            }),
            _ => Err(format!("like needs a string column, and {} is none", column.name)),
        },
        "is_null" | "is_not_null" if !values.is_empty() => Err(format!("{op} takes no value")),
        "is_null" => Ok(Test::IsNull),
        "is_not_null" => Ok(Test::IsNotNull),
        _ => Err(format!("{op} is no operator")),
    }
}

/// A JSON value of a column's type.
fn typed(column: &KeyColumn, value: &Json) -> Result<Value, String> {
    let found = match (column.ty, value) {
        (_, Json::String(text)) if text.len() > MAX_TEXT => {
            return Err(format!("a text of {} bytes is longer than the limit of {MAX_TEXT}", text.len()));
        }
        (FieldType::String, Json::String(text)) => Some(Value::str(text)),
        (FieldType::Int, Json::Number(number)) => number.as_i64().map(Value::Int),
        (FieldType::Bool, Json::Bool(value)) => Some(Value::Bool(*value)),
        // There is one zero.
        (FieldType::Float, Json::Number(number)) => number.as_f64().map(|float| Value::Float(float + 0.0)),
        (_, Json::Null) => return Err("null compares with nothing: use the operator is_null".to_owned()),
        _ => None,
    };
    found.ok_or_else(|| format!("{value} is no {} like the column {}", type_name(column.ty), column.name))
}

/// The name of a column's type in the API.
pub(crate) fn type_name(ty: FieldType) -> &'static str {
    match ty {
        FieldType::String => "string",
        FieldType::Int => "int",
        FieldType::Float => "float",
        FieldType::Bool => "bool",
        FieldType::Decimal(_) => "decimal",
    }
}
