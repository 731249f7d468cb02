//! Type rules: which operands fit together, and where an int becomes a float.

use super::{ExpressionError, Parsed};
use crate::event::{FieldType, Value};
use crate::expression::{Expression, Node, cast as casts};
use sqlparser::ast::DataType;

/// Takes an operand of a type, or the constant NULL.
pub(super) fn expect(ty: FieldType, operand: Expression, operator: &str) -> Parsed {
    if operand.ty == ty || is_null(&operand) {
        return Ok(Expression { ty, ..operand });
    }
    let (wanted, found) = (ty.name(), operand.ty.name());
    Err(ExpressionError::Type(format!("{operator} takes {wanted}, found {found}")))
}

/// Whether it is the constant NULL, which takes on any type.
fn is_null(operand: &Expression) -> bool {
    operand.node == Node::Literal(Value::Null)
}

/// Brings operands to one type: theirs, or float where ints meet floats. Decimals fit nothing.
pub(super) fn unify(
    operands: Vec<Expression>,
    operator: &str,
) -> Result<(FieldType, Vec<Expression>), ExpressionError> {
    let mut ty: Option<FieldType> = None;
    for operand in operands.iter().filter(|operand| !is_null(operand)) {
        if let FieldType::Decimal(_) = operand.ty {
            let found = operand.ty.name();
            return Err(ExpressionError::Type(format!(
                "{operator} does not take {found}: a decimal can only be used by itself"
            )));
        }
        ty = match (ty, operand.ty) {
            (None, found) => Some(found),
            (Some(known), found) if known == found => Some(known),
            (Some(FieldType::Int | FieldType::Float), FieldType::Int | FieldType::Float) => {
                Some(FieldType::Float)
            }
            (Some(known), found) => {
                let (known, found) = (known.name(), found.name());
                return Err(ExpressionError::Type(format!(
                    "{operator} takes values of one type, found {known} and {found}; cast one of them"
                )));
            }
        };
    }
    // All are NULL: what the first was cast to, if it was.
    let ty = ty.or(operands.first().map(|null| null.ty)).unwrap_or(FieldType::String);
    let as_type = |operand: Expression| match operand {
        null if is_null(&null) => Expression { ty, ..null },
        same if same.ty == ty => same,
        int => to_float(int),
    };
    Ok((ty, operands.into_iter().map(as_type).collect()))
}

/// An int as a float, a constant at once.
fn to_float(int: Expression) -> Expression {
    let node = match int.node {
        Node::Literal(value) => Node::Literal(casts::cast(&value, FieldType::Float)),
        _ => Node::Cast(Box::new(int)),
    };
    Expression { ty: FieldType::Float, node }
}

/// Brings two operands to one type.
pub(super) fn unify_two(
    left: Expression,
    right: Expression,
    operator: &str,
) -> Result<(FieldType, [Expression; 2]), ExpressionError> {
    let (ty, both) = unify(vec![left, right], operator)?;
    let both = both.try_into().expect("two operands stay two");
    Ok((ty, both))
}

/// Brings two operands to int or float.
pub(super) fn unify_numbers(
    left: Expression,
    right: Expression,
    operator: &str,
) -> Result<(FieldType, [Expression; 2]), ExpressionError> {
    let (ty, [left, right]) = unify_two(left, right, operator)?;
    match ty {
        FieldType::Int | FieldType::Float => Ok((ty, [left, right])),
        _ if is_null(&left) && is_null(&right) => {
            let int = |null: Expression| Expression { ty: FieldType::Int, ..null };
            Ok((FieldType::Int, [int(left), int(right)]))
        }
        other => Err(ExpressionError::Type(format!("{operator} takes numbers, found {}", other.name()))),
    }
}

/// Refuses what can't be compared.
pub(super) fn comparable(ty: FieldType, operator: &str) -> Result<(), ExpressionError> {
    match ty {
        FieldType::Decimal(_) => Err(ExpressionError::Type(format!("{operator} does not take decimals"))),
        _ => Ok(()),
    }
}

/// A cast to a type written in SQL; to an operand's own type it is the operand.
pub(super) fn cast(operand: Expression, to: &DataType) -> Parsed {
    let to = match to {
        DataType::BigInt(None) | DataType::Int(None) | DataType::Integer(None) => FieldType::Int,
        DataType::Float(sqlparser::ast::ExactNumberInfo::None) => FieldType::Float,
        DataType::Double(sqlparser::ast::ExactNumberInfo::None) => FieldType::Float,
        DataType::DoublePrecision => FieldType::Float,
        DataType::Text | DataType::String(None) | DataType::Varchar(None) => FieldType::String,
        DataType::Bool | DataType::Boolean => FieldType::Bool,
        other => {
            let what = format!("a cast to {other}");
            let allowed = "cast to int (64 bits), float (64 bits), string or bool";
            return Err(ExpressionError::Refused { what, allowed });
        }
    };
    if is_null(&operand) {
        return Ok(Expression { ty: to, ..operand });
    }
    if operand.ty == to {
        return Ok(operand);
    }
    if !casts::exists(operand.ty, to) {
        let (from, to) = (operand.ty.name(), to.name());
        let what = format!("a cast of {from} to {to}");
        let allowed = "floats have no one text, and a decimal can only be used by itself";
        return Err(ExpressionError::Refused { what, allowed });
    }
    Ok(Expression { ty: to, node: Node::Cast(Box::new(operand)) })
}
