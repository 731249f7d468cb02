//! Parses and type-checks an expression: SQL text -> sqlparser's tree -> [`Expression`], or a refusal that names what
//! is refused and what is allowed instead.

mod functions;
mod types;

use super::{BinaryOp, Expression, Node, like::LikePattern};
use crate::event::{FieldType, Value};
use sqlparser::ast::{self, Expr};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;
use thiserror::Error;
use types::{comparable, expect, unify};

/// The longest text of an expression in bytes.
pub const MAX_LENGTH: usize = 4_096;
/// The deepest nesting of an expression's own nodes; inlined dimensions come below.
pub const MAX_DEPTH: usize = 64;
/// The most nodes, those of inlined dimensions included.
pub const MAX_NODES: usize = 4_096;

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExpressionError {
    /// Not SQL.
    #[error("not a valid expression: {0}")]
    Syntax(String),
    /// SQL, but outside the subset.
    #[error("{what} is not allowed in an expression; {allowed}")]
    Refused {
        /// What was found.
        what: String,
        /// What may be used instead.
        allowed: &'static str,
    },
    /// A name that the scope doesn't know.
    #[error("unknown field {0:?}")]
    UnknownField(String),
    /// Operands of types that don't fit.
    #[error("{0}")]
    Type(String),
    /// A constant that its type can't hold.
    #[error("the constant {0} does not fit 64 bits")]
    Constant(String),
    /// The text is too long.
    #[error("the expression has {length} bytes; at most {MAX_LENGTH} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Nested too deep.
    #[error("the expression is nested deeper than {MAX_DEPTH}; write long alternatives as in (...)")]
    TooDeep,
    /// Too many nodes.
    #[error("the expression has more than {MAX_NODES} nodes, its dimensions written out")]
    TooLarge,
}

/// All that an expression may use, for refusals.
const ALLOWED: &str = "allowed are comparison, and, or, not, in, between, like, is null, + - * / %, case, cast, \
                       coalesce, lower, upper and split_part";

type Parsed = Result<Expression, ExpressionError>;

/// Parses an expression. `scope` resolves a name to a bare field, or to a dimension's expression, which is inlined.
///
/// # Errors
/// The first fault found, from left to right.
pub fn parse(sql: &str, scope: &dyn Fn(&str) -> Option<Expression>) -> Parsed {
    if sql.len() > MAX_LENGTH {
        return Err(ExpressionError::TooLong { length: sql.len() });
    }
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(sql).map_err(syntax)?;
    let tree = parser.parse_expr().map_err(syntax)?;
    let rest = parser.next_token();
    if rest.token != Token::EOF {
        let problem = format!("expected its end, found {}{}", rest.token, rest.span.start);
        return Err(ExpressionError::Syntax(place(&problem)));
    }
    let mut lowering = Lowering { scope, nodes: 0, depth: 0 };
    lowering.lower(&tree)
}

fn syntax(error: sqlparser::parser::ParserError) -> ExpressionError {
    use sqlparser::parser::ParserError::{ParserError, RecursionLimitExceeded, TokenizerError};
    match error {
        RecursionLimitExceeded => ExpressionError::TooDeep,
        TokenizerError(text) | ParserError(text) => ExpressionError::Syntax(place(&text)),
    }
}

/// An expression is one line to its author: the parser's " at Line: 1, Column: 3" is "at character 3".
fn place(text: &str) -> String {
    text.replace(" at Line: 1, Column: ", " at character ").replace("Expected: ", "expected ")
}

/// Turns the parser's tree into ours, from the leaves up.
struct Lowering<'a> {
    scope: &'a dyn Fn(&str) -> Option<Expression>,
    nodes: usize,
    depth: usize,
}

impl Lowering<'_> {
    fn lower(&mut self, tree: &Expr) -> Parsed {
        if self.depth == MAX_DEPTH {
            return Err(ExpressionError::TooDeep);
        }
        self.depth += 1;
        self.count(1)?;
        let lowered = self.lower_node(tree);
        self.depth -= 1;
        lowered
    }

    fn count(&mut self, nodes: usize) -> Result<(), ExpressionError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES { Err(ExpressionError::TooLarge) } else { Ok(()) }
    }

    fn lower_node(&mut self, tree: &Expr) -> Parsed {
        match tree {
            Expr::Nested(inner) => self.lower(inner),
            Expr::Identifier(name) => self.name(&name.value),
            Expr::Value(value) => constant(&value.value, ""),
            Expr::UnaryOp { op, expr } => self.unary(*op, expr),
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right),
            Expr::IsNull(inner) => Ok(bool_node(Node::IsNull(Box::new(self.lower(inner)?)))),
            Expr::IsNotNull(inner) => Ok(not(bool_node(Node::IsNull(Box::new(self.lower(inner)?))))),
            Expr::InList { expr, list, negated } => Ok(negate(*negated, self.within(expr, list)?)),
            Expr::Between { expr, negated, low, high } => {
                let value = self.lower(expr)?;
                let (low, high) = (self.lower(low)?, self.lower(high)?);
                self.count(value.size())?;
                let above = compare(BinaryOp::Ge, value.clone(), low)?;
                let below = compare(BinaryOp::Le, value, high)?;
                Ok(negate(*negated, node(FieldType::Bool, BinaryOp::And, above, below)))
            }
            Expr::Like { negated, any: false, expr, pattern, escape_char: None } => {
                let value = expect(FieldType::String, self.lower(expr)?, "like")?;
                let pattern = like_pattern(pattern)?;
                Ok(negate(*negated, bool_node(Node::Like { value: Box::new(value), pattern })))
            }
            Expr::Like { .. } => Err(refused(
                "like with any or escape",
                "use a backslash before %, _ or \\ to mean the character",
            )),
            Expr::ILike { .. } => Err(refused("ilike", "use lower(x) like '...'")),
            Expr::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            Expr::Cast {
                kind: ast::CastKind::Cast | ast::CastKind::DoubleColon,
                expr,
                data_type,
                format: None,
            } => {
                let inner = self.lower(expr)?;
                types::cast(inner, data_type)
            }
            Expr::Function(function) => self.function(function),
            other => Err(refused(&shown(other), ALLOWED)),
        }
    }

    fn name(&mut self, name: &str) -> Parsed {
        let found = (self.scope)(name).ok_or_else(|| ExpressionError::UnknownField(name.to_owned()))?;
        self.count(found.size() - 1)?;
        Ok(found)
    }

    fn unary(&mut self, op: ast::UnaryOperator, inner: &Expr) -> Parsed {
        match (op, inner) {
            (ast::UnaryOperator::Not, _) => Ok(not(expect(FieldType::Bool, self.lower(inner)?, "not")?)),
            (ast::UnaryOperator::Minus, Expr::Value(value)) => constant(&value.value, "-"),
            (ast::UnaryOperator::Minus, _) => {
                let inner = self.lower(inner)?;
                arithmetic(BinaryOp::Sub, Expression::literal(FieldType::Int, Value::Int(0)), inner)
            }
            (ast::UnaryOperator::Plus, _) => {
                let inner = self.lower(inner)?;
                arithmetic(BinaryOp::Add, Expression::literal(FieldType::Int, Value::Int(0)), inner)
            }
            (op, _) => Err(refused(&format!("the operator {op}"), ALLOWED)),
        }
    }

    fn binary(&mut self, left: &Expr, op: &ast::BinaryOperator, right: &Expr) -> Parsed {
        use ast::BinaryOperator as Sql;
        let op = match op {
            Sql::Eq => BinaryOp::Eq,
            Sql::NotEq => BinaryOp::Ne,
            Sql::Lt => BinaryOp::Lt,
            Sql::LtEq => BinaryOp::Le,
            Sql::Gt => BinaryOp::Gt,
            Sql::GtEq => BinaryOp::Ge,
            Sql::And => BinaryOp::And,
            Sql::Or => BinaryOp::Or,
            Sql::Plus => BinaryOp::Add,
            Sql::Minus => BinaryOp::Sub,
            Sql::Multiply => BinaryOp::Mul,
            Sql::Divide => BinaryOp::Div,
            Sql::Modulo => BinaryOp::Rem,
            other => return Err(refused(&format!("the operator {other}"), ALLOWED)),
        };
        let (left, right) = (self.lower(left)?, self.lower(right)?);
        match op {
            BinaryOp::And | BinaryOp::Or => {
                let left = expect(FieldType::Bool, left, op.sql())?;
                let right = expect(FieldType::Bool, right, op.sql())?;
                Ok(node(FieldType::Bool, op, left, right))
            }
            BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge => {
                compare(op, left, right)
            }
            _ => arithmetic(op, left, right),
        }
    }

    fn within(&mut self, value: &Expr, list: &[Expr]) -> Parsed {
        let mut all = vec![self.lower(value)?];
        for each in list {
            all.push(self.lower(each)?);
        }
        let (ty, mut all) = unify(all, "in")?;
        comparable(ty, "in")?;
        let list = all.split_off(1);
        let value = Box::new(all.remove(0));
        if list.is_empty() {
            return Err(refused("an empty list after in", "give at least one value"));
        }
        Ok(bool_node(Node::In { value, list }))
    }

    fn case(&mut self, operand: Option<&Expr>, whens: &[ast::CaseWhen], otherwise: Option<&Expr>) -> Parsed {
        let operand = operand.map(|operand| self.lower(operand)).transpose()?;
        let mut conditions = Vec::new();
        let mut results = Vec::new();
        for when in whens {
            let condition = self.lower(&when.condition)?;
            conditions.push(match &operand {
                Some(operand) => {
                    self.count(operand.size())?;
                    compare(BinaryOp::Eq, operand.clone(), condition)?
                }
                None => expect(FieldType::Bool, condition, "when")?,
            });
            results.push(self.lower(&when.result)?);
        }
        results.push(match otherwise {
            Some(otherwise) => self.lower(otherwise)?,
            None => Expression::literal(FieldType::String, Value::Null),
        });
        let (ty, mut results) = unify(results, "case")?;
        let otherwise = Box::new(results.remove(results.len() - 1));
        let branches = conditions.into_iter().zip(results).collect();
        Ok(Expression { ty, node: Node::Case { branches, otherwise } })
    }
}

fn constant(value: &ast::Value, sign: &str) -> Parsed {
    match value {
        ast::Value::Number(digits, false) => number(&format!("{sign}{digits}")),
        ast::Value::SingleQuotedString(text) if sign.is_empty() => {
            Ok(Expression::literal(FieldType::String, Value::str(text)))
        }
        ast::Value::Boolean(truth) if sign.is_empty() => {
            Ok(Expression::literal(FieldType::Bool, Value::Bool(*truth)))
        }
        ast::Value::Null if sign.is_empty() => Ok(Expression::literal(FieldType::String, Value::Null)),
        other => Err(refused(
            &format!("the constant {sign}{other}"),
            "constants are numbers, 'text', true, false and null",
        )),
    }
}

fn number(digits: &str) -> Parsed {
    let beyond = || ExpressionError::Constant(digits.to_owned());
    if digits.contains(['.', 'e', 'E']) {
        let float: f64 = digits.parse().map_err(|_| beyond())?;
        return match super::cast::finite(float) {
            Value::Null => Err(beyond()),
            float => Ok(Expression::literal(FieldType::Float, float)),
        };
    }
    let int = digits.parse().map_err(|_| beyond())?;
    Ok(Expression::literal(FieldType::Int, Value::Int(int)))
}

fn like_pattern(pattern: &Expr) -> Result<LikePattern, ExpressionError> {
    let Expr::Value(ast::ValueWithSpan { value: ast::Value::SingleQuotedString(text), .. }) = pattern else {
        return Err(refused(&format!("the pattern {}", shown(pattern)), "like takes a constant 'text'"));
    };
    LikePattern::new(text)
        .ok_or_else(|| refused("a pattern that ends with a backslash", "write \\\\ for a backslash"))
}

fn compare(op: BinaryOp, left: Expression, right: Expression) -> Parsed {
    let (ty, [left, right]) = types::unify_two(left, right, op.sql())?;
    comparable(ty, op.sql())?;
    Ok(node(FieldType::Bool, op, left, right))
}

fn arithmetic(op: BinaryOp, left: Expression, right: Expression) -> Parsed {
    let (ty, [left, right]) = types::unify_numbers(left, right, op.sql())?;
    if op == BinaryOp::Rem && ty == FieldType::Float {
        return Err(ExpressionError::Type("% takes two ints, not floats".to_owned()));
    }
    Ok(node(ty, op, left, right))
}

fn node(ty: FieldType, op: BinaryOp, left: Expression, right: Expression) -> Expression {
    Expression { ty, node: Node::Binary { op, left: Box::new(left), right: Box::new(right) } }
}

fn bool_node(node: Node) -> Expression {
    Expression { ty: FieldType::Bool, node }
}

fn not(inner: Expression) -> Expression {
    bool_node(Node::Not(Box::new(inner)))
}

fn negate(negated: bool, inner: Expression) -> Expression {
    if negated { not(inner) } else { inner }
}

fn refused(what: &str, allowed: &'static str) -> ExpressionError {
    ExpressionError::Refused { what: what.to_owned(), allowed }
}

/// A tree as SQL, cut where it is long.
fn shown(tree: &Expr) -> String {
    let text = tree.to_string();
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short}...") } else { short }
}
