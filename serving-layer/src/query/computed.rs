//! Columns that a request computes of others: expressions over an answer's finished values.
//!
//! They mean what the catalog's expressions mean: NULL follows SQL, whole numbers divide to whole numbers, and what has no
//! result, such as a division by zero, is NULL. Nothing of them is merged: they are computed of what was.

use super::having::typed;
use shared_model::aggregate::Finished;
use shared_model::event::{FieldType, Value};
use shared_model::expression::Expression;

/// A column computed of the value columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Computed {
    /// Its name in the answer.
    pub name: String,
    /// What it is; its fields are the value columns, by their places.
    pub expression: Expression,
    /// The types that the value columns are computed with; `None` for lists, which it doesn't use.
    pub types: Vec<Option<FieldType>>,
}

impl Computed {
    /// Its value, of the finished values of a row.
    pub fn of(&self, values: &[Finished]) -> Finished {
        let value =
            |(value, ty): (&Finished, &Option<FieldType>)| ty.map_or(Value::Null, |ty| typed(value, ty));
        let values: Vec<Value> = values.iter().zip(&self.types).map(value).collect();
        match self.expression.evaluate(&values) {
            Value::Null => Finished::Null(()),
            Value::Int(value) => Finished::Int(value),
            Value::Float(value) => Finished::Float(value),
            Value::Str(text) => Finished::Text(text.to_string()),
            Value::Bool(truth) => Finished::Text(truth.to_string()),
        }
    }

    /// The type that its values are compared as.
    pub fn ty(&self) -> FieldType {
        if self.expression.ty == FieldType::Bool { FieldType::String } else { self.expression.ty }
    }
}
