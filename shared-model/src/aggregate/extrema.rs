//! The least and the greatest value, by the order of [`Value`]; NULL until there is one.
//!
//! All values of a metric have one type, which stored forms are held to.

use super::{Aggregate, Column, ColumnType, Finished, from_units};
use crate::codec::CodecError;
use crate::event::{FieldType, Value};

/// Keeps the lesser.
#[inline]
pub(super) fn add_min(least: &mut Value, value: &Value) {
    if !value.is_null() && (least.is_null() || value < least) {
        *least = value.clone();
    }
}

/// Keeps the greater.
#[inline]
pub(super) fn add_max(greatest: &mut Value, value: &Value) {
    // NULL comes first in the order, so it neither stays nor enters.
    if value > greatest {
        *greatest = value.clone();
    }
}

/// Takes a value's bytes.
pub(super) fn decode(ty: FieldType, input: &mut &[u8]) -> Result<Value, CodecError> {
    typed(Value::decode(input)?, ty)
}

/// The Postgres type of a value.
pub(super) fn column_type(ty: FieldType) -> ColumnType {
    match ty {
        FieldType::String => ColumnType::Text,
        FieldType::Int | FieldType::Decimal(_) => ColumnType::BigInt,
        FieldType::Float => ColumnType::Double,
        FieldType::Bool => ColumnType::Bool,
    }
}

/// The stored column of a value, decimals in their units.
pub(super) fn to_column(value: &Value, aggregate: &Aggregate) -> Column {
    match value {
        Value::Bool(value) => Column::Bool(Some(*value)),
        Value::Int(value) => Column::BigInt(Some(*value)),
        Value::Float(value) => Column::Double(Some(*value)),
        Value::Str(value) => Column::Text(Some(value.to_string())),
        Value::Null => match aggregate.columns()[0].1 {
            ColumnType::BigInt => Column::BigInt(None),
            ColumnType::Numeric => Column::Numeric(None),
            ColumnType::Double => Column::Double(None),
            ColumnType::Text => Column::Text(None),
            ColumnType::Bool => Column::Bool(None),
            ColumnType::Bytes => Column::Bytes(None),
        },
    }
}

/// The value of a stored column.
pub(super) fn from_column(column: Column, ty: FieldType) -> Result<Value, CodecError> {
    let value = match column {
        Column::BigInt(value) => value.map(Value::Int),
        Column::Double(value) => value.map(Value::Float),
        Column::Text(value) => value.map(|text| Value::str(&text)),
        Column::Bool(value) => value.map(Value::Bool),
        Column::Numeric(_) | Column::Bytes(_) => return Err(CodecError::Invalid("stored column of a value")),
    };
    typed(value.unwrap_or(Value::Null), ty)
}

/// The value for a reader. `scale`: the decimal places of its units, else 0.
pub(super) fn finish(value: &Value, scale: u8) -> Finished {
    match value {
        Value::Null => Finished::Null(()),
        Value::Int(value) if scale == 0 => Finished::Int(*value),
        Value::Int(units) => Finished::Float(from_units(*units as f64, scale)),
        Value::Float(value) => Finished::Float(*value),
        Value::Bool(value) => Finished::Text(value.to_string()),
        Value::Str(value) => Finished::Text(value.to_string()),
    }
}

/// The value, if it is of the type and canonical.
fn typed(value: Value, ty: FieldType) -> Result<Value, CodecError> {
    let fits = match (&value, ty) {
        (Value::Null, _)
        | (Value::Bool(_), FieldType::Bool)
        | (Value::Int(_), FieldType::Int | FieldType::Decimal(_))
        | (Value::Str(_), FieldType::String) => true,
        (Value::Float(float), FieldType::Float) => {
            float.is_finite() && (*float != 0.0 || float.is_sign_positive())
        }
        _ => false,
    };
    if fits { Ok(value) } else { Err(CodecError::Invalid("value: not of the metric's type")) }
}
