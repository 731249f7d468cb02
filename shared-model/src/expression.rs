//! The closed subset of SQL in which dimensions, filters and values are written.
//!
//! An [`Expression`] is well typed once it exists, and evaluating it is total: it never panics, overflow and division
//! by zero give NULL, and NULL follows SQL. All evaluators mean the same per record.

use crate::event::{FieldType, Value};

/// A typed expression over a stream's fields.
#[derive(Debug, Clone)]
pub struct Expression {
    /// The type of its value (which may always be NULL).
    pub ty: FieldType,
    /// What it computes.
    pub node: Node,
}

/// A node of an expression.
#[derive(Debug, Clone)]
pub enum Node {
    /// A field, by its index.
    Field(usize),
    /// A constant.
    Literal(Value),
}

impl Expression {
    /// The value for one record: `values` are the stream's fields in the catalog's order.
    pub fn evaluate(&self, values: &[Value]) -> Value {
        match &self.node {
            Node::Field(at) => values[*at].clone(),
            Node::Literal(value) => value.clone(),
        }
    }
}
