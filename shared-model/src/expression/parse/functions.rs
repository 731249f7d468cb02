//! The functions that an expression may call: coalesce, lower, upper and split_part.

use super::types::{expect, unify};
use super::{ALLOWED, ExpressionError, Lowering, Parsed, refused, shown};
use crate::event::{FieldType, Value};
use crate::expression::{Expression, Node};
use sqlparser::ast::{self, Expr, FunctionArg, FunctionArgExpr, FunctionArguments};

impl Lowering<'_> {
    pub(super) fn function(&mut self, function: &ast::Function) -> Parsed {
        let name = function.name.to_string().to_lowercase();
        let arguments = arguments(function)?;
        let mut lowered = Vec::new();
        if !matches!(name.as_str(), "coalesce" | "lower" | "upper" | "split_part") {
            return Err(refused(&format!("the function {name}"), ALLOWED));
        }
        for argument in &arguments {
            lowered.push(self.lower(argument)?);
        }
        match name.as_str() {
            "coalesce" if lowered.is_empty() => Err(arity("coalesce takes at least one value")),
            "coalesce" => {
                let (ty, list) = unify(lowered, "coalesce")?;
                Ok(Expression { ty, node: Node::Coalesce(list) })
            }
            "split_part" => split_part(lowered),
            _ => {
                let [value] = <[Expression; 1]>::try_from(lowered)
                    .map_err(|_| arity(&format!("{name} takes one text")))?;
                let value = Box::new(expect(FieldType::String, value, &name)?);
                let node = if name == "lower" { Node::Lower(value) } else { Node::Upper(value) };
                Ok(Expression { ty: FieldType::String, node })
            }
        }
    }
}

fn split_part(arguments: Vec<Expression>) -> Parsed {
    let [value, delimiter, part] = <[Expression; 3]>::try_from(arguments)
        .map_err(|_| arity("split_part takes a text, a delimiter and a number: split_part(x, '>', 1)"))?;
    let value = Box::new(expect(FieldType::String, value, "split_part")?);
    let Node::Literal(Value::Str(delimiter)) = delimiter.node else {
        return Err(arity("split_part takes a constant text as delimiter"));
    };
    if delimiter.is_empty() {
        return Err(arity("the delimiter of split_part must not be empty"));
    }
    let part = match part.node {
        Node::Literal(Value::Int(part)) => u32::try_from(part).ok().filter(|part| *part >= 1),
        _ => None,
    };
    let part = part.ok_or_else(|| arity("the part of split_part is a constant from 1"))?;
    let delimiter = delimiter.to_string();
    Ok(Expression { ty: FieldType::String, node: Node::SplitPart { value, delimiter, part } })
}

/// The plain arguments of a call; whatever else a call may carry in SQL is refused.
fn arguments(function: &ast::Function) -> Result<Vec<&Expr>, ExpressionError> {
    let FunctionArguments::List(list) = &function.args else {
        return Err(refused(&function.to_string(), "quote a field whose name SQL reserves: \"user\""));
    };
    let plain = !function.uses_odbc_syntax
        && matches!(function.parameters, FunctionArguments::None)
        && function.within_group.is_empty()
        && function.filter.is_none()
        && function.null_treatment.is_none()
        && function.over.is_none()
        && list.duplicate_treatment.is_none()
        && list.clauses.is_empty();
    if !plain {
        return Err(refused(&shown(&Expr::Function(function.clone())), ALLOWED));
    }
    let argument = |argument| match argument {
        &FunctionArg::Unnamed(FunctionArgExpr::Expr(ref plain)) => Ok(plain),
        other => Err(refused(&format!("the argument {other}"), ALLOWED)),
    };
    list.args.iter().map(argument).collect()
}

fn arity(problem: &str) -> ExpressionError {
    ExpressionError::Type(problem.to_owned())
}
