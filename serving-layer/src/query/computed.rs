//! Columns that a request computes of others: expressions over an answer's finished values, and shares of their sum.
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
    /// What it is.
    pub of: Of,
}

/// What a column is computed of.
#[derive(Debug, Clone, PartialEq)]
pub enum Of {
    /// The values of its row.
    Row(Formula),
    /// A value column, by its place, as a part of its sum over all rows of the bucket.
    Share(usize),
}

/// An expression over the values of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Formula {
    /// Its fields are the value columns, by their places.
    pub expression: Expression,
    /// The types that the value columns are computed with; `None` for lists, which it doesn't use.
    pub types: Vec<Option<FieldType>>,
}

impl Computed {
    /// The places of the value columns that it is computed of.
    pub fn columns(&self) -> Vec<usize> {
        match &self.of {
            Of::Row(formula) => formula.expression.fields(),
            Of::Share(column) => vec![*column],
        }
    }

    /// The type that its values are compared as.
    pub fn ty(&self) -> FieldType {
        match &self.of {
            Of::Row(Formula { expression, .. }) if expression.ty == FieldType::Bool => FieldType::String,
            Of::Row(Formula { expression, .. }) => expression.ty,
            Of::Share(_) => FieldType::Float,
        }
    }
}

impl Formula {
    /// Its value, of the finished values of a row.
    pub fn value(&self, values: &[Finished]) -> Finished {
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
}

/// What a row's value is of a sum; NULL where there is none of either, or the sum is 0.
pub fn share(value: &Finished, sum: Option<f64>) -> Finished {
    let of = |value: f64| {
        sum.filter(|sum| *sum != 0.0).map_or(Finished::Null(()), |sum| Finished::Float(value / sum))
    };
    match value {
        Finished::Int(value) => of(*value as f64),
        Finished::Float(value) => of(*value),
        _ => Finished::Null(()),
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
        let half = Formula { expression, types };
        assert_eq!(half.value(&[Finished::Int(9)]), Finished::Int(4));
        assert_eq!(half.value(&[Finished::Float(2e19)]), Finished::Null(()));
    }
}
