//! The canonical text of an expression: prefix form, fully bracketed, every constant with its type.
//!
//! Equal trees have equal texts and different trees different ones; a change of this form is a new metric version
//! for everyone, so it must not change.

use super::{Expression, Node};
use crate::event::Value;

/// The text of a tree.
pub(super) fn canonical(expression: &Expression, name: &dyn Fn(usize) -> String) -> String {
    let head = match &expression.node {
        Node::Field(at) => return format!("field({})", framed(&name(*at))),
        Node::Literal(value) => return literal(value, &expression.ty.name()),
        Node::Binary { op, .. } => op.sql().to_owned(),
        Node::Not(_) => "not".to_owned(),
        Node::IsNull(_) => "is_null".to_owned(),
        Node::In { .. } => "in".to_owned(),
        Node::Like { pattern, .. } => format!("like {}", framed(&pattern.text())),
        Node::Case { .. } => "case".to_owned(),
        Node::Cast(_) => format!("cast {}", expression.ty.name()),
        Node::Coalesce(_) => "coalesce".to_owned(),
        Node::Lower(_) => "lower".to_owned(),
        Node::Upper(_) => "upper".to_owned(),
        Node::SplitPart { delimiter, part, .. } => format!("split_part {} {part}", framed(delimiter)),
    };
    let operands = expression.children().into_iter().map(|child| format!(" {}", canonical(child, name)));
    format!("({head}{})", operands.collect::<String>())
}

fn literal(value: &Value, ty: &str) -> String {
    match value {
        Value::Null => format!("null({ty})"),
        Value::Bool(truth) => format!("{truth}"),
        Value::Int(int) => format!("int({int})"),
        Value::Float(float) => format!("float({:016x})", float.to_bits()),
        Value::Str(text) => format!("string({})", framed(text)),
    }
}

/// A text behind its length in bytes, so that nothing in it needs escaping.
fn framed(text: &str) -> String {
    format!("{}:{text}", text.len())
}
