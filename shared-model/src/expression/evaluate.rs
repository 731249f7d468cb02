//! Evaluates an expression for one record: the reference that every other evaluator is held against.
//!
//! Total: a tree of any shape over any values gives a value. Values of another type than declared count as NULL.

use super::cast::{cast, finite};
use super::{BinaryOp, Expression, Node};
use crate::event::Value;
use std::borrow::Cow;
use std::cmp::Ordering;

/// The value of an expression over a record's fields, lent where it stands there already.
#[inline]
pub(super) fn value<'a>(expression: &'a Expression, values: &'a [Value]) -> Cow<'a, Value> {
    match &expression.node {
        Node::Field(at) => Cow::Borrowed(values.get(*at).unwrap_or(&Value::Null)),
        Node::Literal(value) => Cow::Borrowed(value),
        _ => Cow::Owned(evaluate(expression, values)),
    }
}

/// The value of an expression over a record's fields.
pub(super) fn evaluate(expression: &Expression, values: &[Value]) -> Value {
    match &expression.node {
        Node::Field(_) | Node::Literal(_) => value(expression, values).into_owned(),
        Node::Binary { op: BinaryOp::And, left, right } => junction(false, [left, right], values),
        Node::Binary { op: BinaryOp::Or, left, right } => junction(true, [left, right], values),
        Node::Binary { op, left, right } => binary(*op, &value(left, values), &value(right, values)),
        Node::Not(inner) => match evaluate(inner, values) {
            Value::Bool(truth) => Value::Bool(!truth),
            _ => Value::Null,
        },
        Node::IsNull(inner) => Value::Bool(evaluate(inner, values).is_null()),
        Node::In { value, list } => within(&evaluate(value, values), list, values),
        Node::Like { value, pattern } => {
            text(&evaluate(value, values), |text| Value::Bool(pattern.matches(text)))
        }
        Node::Case { branches, otherwise } => {
            let holds = |condition| evaluate(condition, values) == Value::Bool(true);
            let taken = branches.iter().find(|(condition, _)| holds(condition));
            evaluate(taken.map_or(otherwise, |(_, result)| result), values)
        }
        Node::Cast(inner) => cast(&evaluate(inner, values), expression.ty),
        Node::Coalesce(list) => {
            let mut found = list.iter().map(|each| evaluate(each, values));
            found.find(|value| !value.is_null()).unwrap_or(Value::Null)
        }
        Node::Lower(inner) => text(&evaluate(inner, values), lower),
        Node::Upper(inner) => text(&evaluate(inner, values), upper),
        Node::SplitPart { value, delimiter, part } => {
            let nth = (*part as usize).saturating_sub(1);
            let part = |text: &str| Value::str(text.split(delimiter.as_str()).nth(nth).unwrap_or(""));
            text(&evaluate(value, values), part)
        }
    }
}

fn text(value: &Value, then: impl Fn(&str) -> Value) -> Value {
    match value {
        Value::Str(text) => then(text),
        _ => Value::Null,
    }
}

/// Not `str::to_lowercase`: that writes a sigma at the end of a word differently, and engines differ on what that is.
fn lower(text: &str) -> Value {
    Value::str(&text.chars().flat_map(char::to_lowercase).collect::<String>())
}

fn upper(text: &str) -> Value {
    Value::str(&text.chars().flat_map(char::to_uppercase).collect::<String>())
}

/// `and` (decided by false) and `or` (decided by true): one deciding side decides, else a NULL makes NULL.
fn junction(decisive: bool, sides: [&Expression; 2], values: &[Value]) -> Value {
    let mut unknown = false;
    for side in sides {
        match evaluate(side, values) {
            Value::Bool(truth) if truth == decisive => return Value::Bool(decisive),
            Value::Bool(_) => {}
            _ => unknown = true,
        }
    }
    if unknown { Value::Null } else { Value::Bool(!decisive) }
}

fn within(value: &Value, list: &[Expression], values: &[Value]) -> Value {
    let mut unknown = false;
    for each in list {
        match binary(BinaryOp::Eq, value, &evaluate(each, values)) {
            Value::Bool(true) => return Value::Bool(true),
            Value::Bool(false) => {}
            _ => unknown = true,
        }
    }
    if unknown { Value::Null } else { Value::Bool(false) }
}

fn binary(op: BinaryOp, left: &Value, right: &Value) -> Value {
    // Most are texts of which it is asked whether they are equal: mostly their lengths tell.
    if let (BinaryOp::Eq, Value::Str(a), Value::Str(b)) = (op, left, right) {
        return Value::Bool(a == b);
    }
    let holds: fn(Ordering) -> bool = match op {
        BinaryOp::Eq => Ordering::is_eq,
        BinaryOp::Ne => Ordering::is_ne,
        BinaryOp::Lt => Ordering::is_lt,
        BinaryOp::Le => Ordering::is_le,
        BinaryOp::Gt => Ordering::is_gt,
        BinaryOp::Ge => Ordering::is_ge,
        _ => return arithmetic(op, left, right),
    };
    compare(left, right).map_or(Value::Null, |ordering| Value::Bool(holds(ordering)))
}

fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Str(a), Value::Str(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

fn arithmetic(op: BinaryOp, left: &Value, right: &Value) -> Value {
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => {
            let result = match op {
                BinaryOp::Add => a.checked_add(*b),
                BinaryOp::Sub => a.checked_sub(*b),
                BinaryOp::Mul => a.checked_mul(*b),
                BinaryOp::Div => a.checked_div(*b),
                // The least int % -1 is 0, though its quotient overflows.
                BinaryOp::Rem if *b != 0 => Some(a.wrapping_rem(*b)),
                _ => None,
            };
            result.map_or(Value::Null, Value::Int)
        }
        (Value::Float(a), Value::Float(b)) => match op {
            BinaryOp::Add => finite(a + b),
            BinaryOp::Sub => finite(a - b),
            BinaryOp::Mul => finite(a * b),
            BinaryOp::Div => finite(a / b),
            _ => Value::Null,
        },
        _ => Value::Null,
    }
}
