//! Catalog expressions as Polars expressions.
//!
//! Both mean the same per record, NULLs included. What Polars has with exactly our meaning is translated; the rest
//! (casts of text, division, arithmetic of floats, cases of letters, parts of texts) is evaluated row by row by the
//! reference itself, so that the two can't drift apart. No operand is written twice, so a plan is no larger than its
//! expression. A property test holds the two against each other.

use polars::prelude::*;
use shared_model::catalog::Stream;
use shared_model::event::{FieldType, Value};
use shared_model::expression::{BinaryOp, Expression, Node};

/// The longest list, and the longest pattern, that Polars gets; longer ones are evaluated row by row, since a plan
/// of hundreds of comparisons and a regular expression of thousands of states cost more than they save.
const SHORT_LIST: usize = 8;
const SHORT_PATTERN: usize = 100;

/// The Polars type of a value: decimals are integers of their units.
pub(crate) fn data_type(ty: FieldType) -> DataType {
    match ty {
        FieldType::String => DataType::String,
        FieldType::Int | FieldType::Decimal(_) => DataType::Int64,
        FieldType::Float => DataType::Float64,
        FieldType::Bool => DataType::Boolean,
    }
}

/// An expression over a stream's columns.
pub(crate) fn translate(stream: &Stream, expression: &Expression) -> Expr {
    if expression.fields().is_empty() {
        return literal(&expression.evaluate(&[]), expression.ty);
    }
    native(stream, expression).unwrap_or_else(|| by_row(stream, expression))
}

/// The node as Polars has it with our meaning, if it does.
fn native(stream: &Stream, expression: &Expression) -> Option<Expr> {
    let of = |inner: &Expression| translate(stream, inner);
    Some(match &expression.node {
        Node::Field(at) => col(stream.fields[*at].name.as_str()),
        Node::Binary { op, left, right } => binary(*op, left.ty, || (of(left), of(right)))?,
        Node::Not(inner) => of(inner).not(),
        Node::IsNull(inner) => of(inner).is_null(),
        Node::In { value, list } if matches!(value.node, Node::Field(_)) && list.len() <= SHORT_LIST => {
            list.iter().map(|item| of(value).eq(of(item))).reduce(Expr::or)?
        }
        Node::Like { value, pattern } if pattern.text().len() <= SHORT_PATTERN => {
            of(value).str().contains(lit(pattern.regex()), true)
        }
        Node::Case { branches, otherwise } => {
            branches.iter().rev().fold(of(otherwise), |rest, (condition, result)| {
                when(of(condition)).then(of(result)).otherwise(rest)
            })
        }
        Node::Coalesce(list) => coalesce(&list.iter().map(of).collect::<Vec<_>>()),
        Node::Cast(inner) => match (inner.ty, expression.ty) {
            (from, to) if from == to && from != FieldType::Float => of(inner),
            (FieldType::Int, FieldType::Float) | (FieldType::Bool, FieldType::Int) => {
                of(inner).cast(data_type(expression.ty))
            }
            _ => return None,
        },
        _ => return None,
    })
}

fn literal(value: &Value, ty: FieldType) -> Expr {
    match value {
        Value::Null => lit(NULL).cast(data_type(ty)),
        Value::Bool(truth) => lit(*truth),
        Value::Int(int) => lit(*int),
        Value::Float(float) => lit(*float),
        Value::Str(text) => lit(text.to_string()),
    }
}

/// An operator that Polars has with our meaning.
fn binary(op: BinaryOp, ty: FieldType, sides: impl FnOnce() -> (Expr, Expr)) -> Option<Expr> {
    let compute: fn(Expr, Expr) -> Expr = match (op, ty) {
        (BinaryOp::Eq, _) => Expr::eq,
        (BinaryOp::Ne, _) => Expr::neq,
        (BinaryOp::Lt, _) => Expr::lt,
        (BinaryOp::Le, _) => Expr::lt_eq,
        (BinaryOp::Gt, _) => Expr::gt,
        (BinaryOp::Ge, _) => Expr::gt_eq,
        (BinaryOp::And, _) => Expr::and,
        (BinaryOp::Or, _) => Expr::or,
        // In 128 bits nothing overflows; what 64 bits can't hold becomes NULL in the cast back.
        (BinaryOp::Add, FieldType::Int) => |left, right| narrow(wide(left) + wide(right)),
        (BinaryOp::Sub, FieldType::Int) => |left, right| narrow(wide(left) - wide(right)),
        (BinaryOp::Mul, FieldType::Int) => |left, right| narrow(wide(left) * wide(right)),
        _ => return None,
    };
    let (left, right) = sides();
    Some(compute(left, right))
}

fn wide(expr: Expr) -> Expr {
    expr.cast(DataType::Int128)
}

fn narrow(expr: Expr) -> Expr {
    expr.cast(DataType::Int64)
}

/// Evaluates a node by the reference: its operands by Polars (constants stay in place), the node itself row by row.
fn by_row(stream: &Stream, expression: &Expression) -> Expr {
    let mut node = expression.clone();
    let mut operands: Vec<Expression> = Vec::new();
    for operand in operands_of(&mut node.node) {
        if !matches!(operand.node, Node::Literal(_)) {
            let bare = Expression::field(operands.len(), operand.ty);
            operands.push(std::mem::replace(operand, bare));
        }
    }
    let types: Vec<FieldType> = operands.iter().map(|operand| operand.ty).collect();
    let inputs: Vec<Expr> = operands.iter().map(|operand| translate(stream, operand)).collect();
    // Shown in plans by what it computes.
    let shown = node.canonical(&|at| format!("{at}"));
    let ty = data_type(node.ty);
    let function = move |columns: &mut [Column]| evaluate(&node, &types, columns);
    let output = move |_: &Schema, fields: &[Field]| {
        Ok(Field::new(fields.first().map_or(PlSmallStr::EMPTY, |field| field.name().clone()), ty.clone()))
    };
    match map_multiple(function, inputs, output) {
        Expr::AnonymousFunction { input, function, options, .. } => {
            Expr::AnonymousFunction { input, function, options, fmt_str: Box::new(shown.into()) }
        }
        other => other,
    }
}

/// The operands of a node, to be exchanged.
fn operands_of(node: &mut Node) -> Vec<&mut Expression> {
    match node {
        Node::Field(_) | Node::Literal(_) => Vec::new(),
        Node::Binary { left, right, .. } => vec![&mut **left, &mut **right],
        Node::Not(inner) | Node::IsNull(inner) | Node::Cast(inner) => vec![&mut **inner],
        Node::Lower(inner) | Node::Upper(inner) => vec![&mut **inner],
        Node::Like { value, .. } | Node::SplitPart { value, .. } => vec![&mut **value],
        Node::In { value, list } => std::iter::once(&mut **value).chain(list).collect(),
        Node::Coalesce(list) => list.iter_mut().collect(),
        Node::Case { branches, otherwise } => {
            let branches = branches.iter_mut().flat_map(|(condition, result)| [condition, result]);
            branches.chain(std::iter::once(&mut **otherwise)).collect()
        }
    }
}

fn evaluate(node: &Expression, types: &[FieldType], columns: &mut [Column]) -> PolarsResult<Column> {
    let operands: Vec<Vec<Value>> =
        columns.iter().zip(types).map(|(column, ty)| values(column, *ty)).collect::<PolarsResult<_>>()?;
    // An operand that is the same for all rows may come as a column of one.
    let rows =
        if operands.iter().any(Vec::is_empty) { 0 } else { operands.iter().map(Vec::len).max().unwrap_or(0) };
    let mut row = vec![Value::Null; operands.len()];
    let results = (0..rows).map(|at| {
        for (slot, operand) in row.iter_mut().zip(&operands) {
            *slot = operand[if operand.len() == 1 { 0 } else { at }].clone();
        }
        node.evaluate(&row)
    });
    let results: Vec<Value> = results.collect();
    let name = columns.first().map_or(PlSmallStr::EMPTY, |column| column.name().clone());
    Ok(column(name, node.ty, &results))
}

/// The values of a column of a type.
pub(crate) fn values(column: &Column, ty: FieldType) -> PolarsResult<Vec<Value>> {
    let series = column.as_materialized_series().cast(&data_type(ty))?;
    let or_null = |value: Option<Value>| value.unwrap_or(Value::Null);
    Ok(match ty {
        FieldType::String => series.str()?.iter().map(|v| or_null(v.map(Value::str))).collect(),
        FieldType::Int | FieldType::Decimal(_) => {
            series.i64()?.iter().map(|v| or_null(v.map(Value::Int))).collect()
        }
        FieldType::Float => series.f64()?.iter().map(|v| or_null(v.map(Value::Float))).collect(),
        FieldType::Bool => series.bool()?.iter().map(|v| or_null(v.map(Value::Bool))).collect(),
    })
}

/// A column of a type from values; one of another type counts as NULL.
pub(crate) fn column(name: PlSmallStr, ty: FieldType, values: &[Value]) -> Column {
    match ty {
        FieldType::String => {
            let texts = values.iter().map(|v| if let Value::Str(text) = v { Some(&**text) } else { None });
            StringChunked::from_iter_options(name, texts).into_column()
        }
        FieldType::Int | FieldType::Decimal(_) => {
            let ints = values.iter().map(|v| if let Value::Int(int) = v { Some(*int) } else { None });
            Int64Chunked::from_iter_options(name, ints).into_column()
        }
        FieldType::Float => {
            let floats = values.iter().map(|v| if let Value::Float(float) = v { Some(*float) } else { None });
            Float64Chunked::from_iter_options(name, floats).into_column()
        }
        FieldType::Bool => {
            let bools = values.iter().map(|v| if let Value::Bool(truth) = v { Some(*truth) } else { None });
            BooleanChunked::from_iter_options(name, bools).into_column()
        }
    }
}
