//! Tests on an answer's finished values: what is kept of its rows.

use super::OrderBy;
use super::filter::Test;
use crate::finish::Row;
use shared_model::aggregate::{Aggregate, Finished};
use shared_model::event::{FieldType, Value};

/// A test on one value column.
#[derive(Debug, Clone, PartialEq)]
pub struct Having {
    /// A value column, of this period or of the one that is compared with.
    pub column: OrderBy,
    /// The type that its values are compared as.
    pub ty: FieldType,
    /// The test.
    pub test: Test,
}

impl Having {
    /// Whether a row passes; `None` where SQL would say NULL.
    pub fn admits(&self, row: &Row) -> Option<bool> {
        let value = match self.column {
            OrderBy::Value(place) => row.values.get(place),
            OrderBy::Previous(place) => row.previous.get(place),
            _ => None,
        };
        self.test.admits(&typed(value?, self.ty))
    }
}

/// The type that an aggregate's values are compared as; `None` where they are lists.
pub fn type_of(aggregate: &Aggregate) -> Option<FieldType> {
    match aggregate {
        Aggregate::Count | Aggregate::Distinct | Aggregate::TopK { .. } | Aggregate::Sessions { .. } => {
            Some(FieldType::Int)
        }
        Aggregate::Mean(_) => Some(FieldType::Float),
        Aggregate::Sum(ty) | Aggregate::Min(ty) | Aggregate::Max(ty) => Some(match ty {
            FieldType::Decimal(0) => FieldType::Int,
            FieldType::Decimal(_) => FieldType::Float,
            FieldType::Bool => FieldType::String,
            other => *other,
        }),
        Aggregate::Quantile { .. } => None,
    }
}

/// A finished value as one of the type that it is compared and computed as.
pub(super) fn typed(value: &Finished, ty: FieldType) -> Value {
    match (value, ty) {
        (Finished::Int(value), FieldType::Float) => Value::Float(*value as f64),
        (Finished::Int(value), _) => Value::Int(*value),
        // A sum beyond 64 bits is beyond every whole number that it can be compared with.
        (Finished::Float(value), FieldType::Int) => Value::Int(*value as i64),
        // There is one zero.
        (Finished::Float(value), _) => Value::Float(*value + 0.0),
        (Finished::Text(text), _) => Value::str(text),
        (Finished::Null(()) | Finished::List(_), _) => Value::Null,
    }
}
