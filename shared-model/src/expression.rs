//! The closed subset of SQL in which dimensions, filters and values are written.
//!
//! An [`Expression`] is well typed once it exists, and evaluating it is total: it never panics, overflow and division
//! by zero give NULL, and NULL follows SQL. All evaluators mean the same per record; this is what they must hold to:
//!
//! - *types*: string, int (64 bits, signed), float (finite, never -0), bool. A decimal is used bare or under
//!   `is null`, never in arithmetic or comparison. Where an int meets a float, a [`Node::Cast`] to float stands in the
//!   tree, so both sides of every [`Node::Binary`] are of one type.
//! - *comparison*: NULL if a side is NULL. Texts compare by their UTF-8 bytes, false is less than true.
//! - *and, or, not, in*: three-valued. `x in (a, b)` is `x = a or x = b`.
//! - *arithmetic*: NULL if a side is NULL. Ints: beyond 64 bits is NULL; `/` truncates towards zero; `/` and `%` by zero
//!   are NULL; `%` has the sign of its left side. Floats (no `%`): a result that isn't finite is NULL, -0 is 0.
//! - *like*: `%` is any run of characters, `_` one Unicode character, a backslash makes the next character plain.
//! - *lower, upper*: each character by itself, by Unicode's full, locale-free case mapping (Rust's
//!   `char::to_lowercase` and `to_uppercase`); so a sigma is lowered to `σ` at the end of a word too. Polars' own
//!   `to_lowercase` means the same once each `Σ` has been replaced by `σ`.
//! - *split_part(text, delimiter, n)*: the n-th part from 1, searched from the left; a part that isn't there is `''`.
//! - *case*: the first branch whose condition is true (not NULL); without `else`, NULL. *coalesce*: the first not NULL.
//! - *cast*: see [`cast`]. What can't be cast is NULL.

mod canonical;
pub mod cast;
mod evaluate;
pub mod like;
mod parse;

use crate::event::{FieldType, Value};
use like::LikePattern;
pub use parse::{ExpressionError, MAX_DEPTH, MAX_LENGTH, MAX_NODES, parse};
use std::borrow::Cow;

/// A typed expression over a stream's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// The type of its value (which may always be NULL).
    pub ty: FieldType,
    /// What it computes.
    pub node: Node,
}

/// A node of an expression. Operands have the types that the operator wants: nothing is converted silently.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A field, by its index.
    Field(usize),
    /// A constant.
    Literal(Value),
    /// An operator with two operands of one type.
    Binary {
        /// The operator.
        op: BinaryOp,
        /// Its left side.
        left: Box<Expression>,
        /// Its right side.
        right: Box<Expression>,
    },
    /// The negation of a bool; of NULL it is NULL.
    Not(Box<Expression>),
    /// Whether the operand is NULL; never NULL itself. The operand may be of any type.
    IsNull(Box<Expression>),
    /// `value = a or value = b ...`; all of one type, the list not empty.
    In {
        /// What is looked for.
        value: Box<Expression>,
        /// Among what.
        list: Vec<Expression>,
    },
    /// Whether a text matches a pattern.
    Like {
        /// The text.
        value: Box<Expression>,
        /// The pattern.
        pattern: LikePattern,
    },
    /// The result of the first branch whose condition is true, or `otherwise`.
    Case {
        /// Condition (bool) and result, at least one.
        branches: Vec<(Expression, Expression)>,
        /// The result where no condition is true.
        otherwise: Box<Expression>,
    },
    /// The operand as the type of this expression; from its own type to another one.
    Cast(Box<Expression>),
    /// The first operand that isn't NULL; at least one, all of one type.
    Coalesce(Vec<Expression>),
    /// A text in lower case.
    Lower(Box<Expression>),
    /// A text in upper case.
    Upper(Box<Expression>),
    /// One part of a text.
    SplitPart {
        /// The text.
        value: Box<Expression>,
        /// What separates the parts; not empty.
        delimiter: String,
        /// Which part, from 1.
        part: u32,
    },
}

/// An operator with two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryOp {
    /// `=`, of two of any one type but decimal; so are all comparisons.
    Eq,
    /// `<>`.
    Ne,
    /// `<`.
    Lt,
    /// `<=`.
    Le,
    /// `>`.
    Gt,
    /// `>=`.
    Ge,
    /// Three-valued `and` of two bools.
    And,
    /// Three-valued `or` of two bools.
    Or,
    /// `+` of two ints or two floats; so are the others.
    Add,
    /// `-`.
    Sub,
    /// `*`.
    Mul,
    /// `/`.
    Div,
    /// `%` of two ints.
    Rem,
}

impl BinaryOp {
    /// The operator as SQL writes it.
    pub fn sql(self) -> &'static str {
        match self {
            BinaryOp::Eq => "=",
            BinaryOp::Ne => "<>",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Rem => "%",
        }
    }
}

impl Expression {
    /// A bare field.
    pub fn field(at: usize, ty: FieldType) -> Expression {
        Expression { ty, node: Node::Field(at) }
    }

    /// A constant of a type; NULL is a constant of every type.
    pub fn literal(ty: FieldType, value: Value) -> Expression {
        Expression { ty, node: Node::Literal(value) }
    }

    /// The value for one record: `values` are the stream's fields in the catalog's order.
    pub fn evaluate(&self, values: &[Value]) -> Value {
        evaluate::evaluate(self, values)
    }

    /// The same, lent where it is a field or a constant.
    #[inline]
    pub fn value<'a>(&'a self, values: &'a [Value]) -> Cow<'a, Value> {
        evaluate::value(self, values)
    }

    /// One text for all spellings of the same tree, naming fields by `name`: what versions are hashed over.
    pub fn canonical(&self, name: &dyn Fn(usize) -> String) -> String {
        canonical::canonical(self, name)
    }

    /// The operands, from left to right.
    pub fn children(&self) -> Vec<&Expression> {
        match &self.node {
            Node::Field(_) | Node::Literal(_) => Vec::new(),
            Node::Binary { left, right, .. } => vec![left, right],
            Node::Not(inner) | Node::IsNull(inner) | Node::Cast(inner) => vec![inner],
            Node::Lower(inner) | Node::Upper(inner) => vec![inner],
            Node::Like { value, .. } | Node::SplitPart { value, .. } => vec![value],
            Node::In { value, list } => std::iter::once(&**value).chain(list).collect(),
            Node::Coalesce(list) => list.iter().collect(),
            Node::Case { branches, otherwise } => {
                let branches = branches.iter().flat_map(|(condition, result)| [condition, result]);
                branches.chain(std::iter::once(&**otherwise)).collect()
            }
        }
    }

    /// How many nodes there are.
    pub fn size(&self) -> usize {
        1 + self.children().into_iter().map(Expression::size).sum::<usize>()
    }

    /// How deep the nodes are nested; 1 for a bare field.
    pub fn depth(&self) -> usize {
        1 + self.children().into_iter().map(Expression::depth).max().unwrap_or(0)
    }

    /// Indices of the fields that it reads, ascending, each once.
    pub fn fields(&self) -> Vec<usize> {
        let mut found = match self.node {
            Node::Field(at) => vec![at],
            _ => self.children().into_iter().flat_map(Expression::fields).collect(),
        };
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests;
