//! Columns that a request computes of others: expressions over an answer's finished values.
//!
//! They mean what the catalog's expressions mean: NULL follows SQL, whole numbers divide to whole numbers, and what has no
//! result, such as a division by zero or a sum beyond 64 bits, is NULL. Nothing of them is merged: they are computed of what was.

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
        let value = |(value, ty): (&Finished, &Option<FieldType>)| match (value, ty) {
            // A sum beyond 64 bits can be compared with whole numbers, but not computed with as one.
            (Finished::Float(_), Some(FieldType::Int)) | (_, None) => Value::Null,
            (value, Some(ty)) => typed(value, *ty),
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::expression::{BinaryOp, Node};

    #[test]
    fn a_sum_beyond_64_bits_is_not_computed_with_as_a_whole_number() {
        let whole = |node| Box::new(Expression { ty: FieldType::Int, node });
        let half = Node::Binary {
            op: BinaryOp::Div,
            left: whole(Node::Field(0)),
            right: whole(Node::Literal(Value::Int(2))),
        };
        let (expression, types) = (Expression { ty: FieldType::Int, node: half }, vec![Some(FieldType::Int)]);
        let computed = Computed { name: "half".to_owned(), expression, types };
        assert_eq!(computed.of(&[Finished::Int(9)]), Finished::Int(4));
        assert_eq!(computed.of(&[Finished::Float(2e19)]), Finished::Null(()));
    }
}
