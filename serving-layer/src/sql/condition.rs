//! From a statement's conditions to what the views are asked for: a span of time, and filters on keys.
//!
//! The views are asked for every row that the conditions are true for, and maybe for more: the engine tests each row
//! again. So a condition that can't be written as a filter, or would pass a request's limits, is merely left to the engine.

use crate::query::form::{MAX_FILTERS, MAX_TEXT, MAX_VALUES};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{InList, Like};
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};
use serde_json::{Value as Json, json};
use shared_model::event::FieldType;
use shared_model::metric::KeyColumn;
use shared_model::time::{Interval, Millis};

/// The column of times.
pub(super) const BUCKET: &str = "bucket";
/// The years 1 to 9999, which are asked for where nothing is said of time.
const EVER: Interval = Interval { start: -62_135_596_800_000, end: 253_402_300_800_000 };
/// What the views are asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    /// The span, on boundaries of the grain; `None`: no bucket can be wanted.
    pub(super) span: Option<Interval>,
    /// Filters, as a request has them; all must hold.
    pub(super) filters: Vec<Json>,
}

impl Asked {
    /// Of conditions that must all hold, over buckets of a grain (milliseconds) and key columns.
    pub(super) fn new(conditions: &[Expr], keys: &[KeyColumn], grain: Millis) -> Asked {
        let floor = |time: Millis| time.div_euclid(grain) * grain;
        let ceil = |time: Millis| -floor(time.saturating_neg());
        let (mut start, mut end) = (ceil(EVER.start), floor(EVER.end));
        let (mut filters, mut tests) = (Vec::new(), 0);
        for condition in conditions {
            if let Some((first, last)) = times(condition) {
                start = start.max(first.map_or(start, ceil));
                end = end.min(last.map_or(end, |last| floor(last).saturating_add(grain)));
            } else if let Some((filter, count)) = filter(condition, keys)
                && tests + count <= MAX_FILTERS
            {
                tests += count;
                filters.push(filter);
            }
        }
        Asked { span: (start < end).then_some(Interval { start, end }), filters }
    }

    /// Whether a condition is made use of.
    pub(super) fn uses(condition: &Expr, keys: &[KeyColumn]) -> bool {
        times(condition).is_some() || filter(condition, keys).is_some()
    }
}

/// The first and the last time that a condition on the bucket lets pass, to the millisecond.
fn times(condition: &Expr) -> Option<(Option<Millis>, Option<Millis>)> {
    match condition {
        // As the engine writes lists of a few.
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let ((first, last), (or_first, or_last)) = (times(left)?, times(right)?);
            let earliest = first.zip(or_first).map(|(a, b)| a.min(b));
            Some((earliest, last.zip(or_last).map(|(a, b)| a.max(b))))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (op, [floor, ceil]) = match (is_bucket(left), is_bucket(right)) {
                (true, false) => (*op, time(right)?),
                (false, true) => (op.swap()?, time(left)?),
                _ => return None,
            };
            match op {
                Operator::Eq => Some((Some(ceil), Some(floor))),
                Operator::Gt => Some((Some(floor.checked_add(1)?), None)),
                Operator::GtEq => Some((Some(ceil), None)),
                Operator::Lt => Some((None, Some(ceil.checked_sub(1)?))),
                Operator::LtEq => Some((None, Some(floor))),
                _ => None,
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_bucket(expr) => {
            let ([_, first], [last, _]) = (time(low)?, time(high)?);
            Some((Some(first), Some(last)))
        }
        Expr::InList(InList { expr, list, negated: false }) if is_bucket(expr) => {
            let times = list.iter().map(time).collect::<Option<Vec<_>>>()?;
            let (first, last) =
                (times.iter().map(|[_, ceil]| ceil).min()?, times.iter().map(|[floor, _]| floor).max()?);
            Some((Some(*first), Some(*last)))
        }
        _ => None,
    }
}

/// Whether an expression is the bucket, or that in another unit of time.
fn is_bucket(expr: &Expr) -> bool {
    match expr {
        Expr::Column(column) => column.name == BUCKET,
        // Seconds would cut off what grains may have.
        Expr::Cast(cast) => match cast.field.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) | DataType::Timestamp(_, None) => false,
            DataType::Timestamp(..) => is_bucket(&cast.expr),
            _ => false,
        },
        _ => false,
    }
}

/// A time that is written out, in milliseconds since 1970: rounded down, and up.
fn time(expr: &Expr) -> Option<[Millis; 2]> {
    let Expr::Literal(value, _) = expr else { return None };
    let units = |time: i64, of_one: i64| {
        let floor = time.div_euclid(of_one);
        [floor, floor + i64::from(time.rem_euclid(of_one) > 0)]
    };
    match value {
        ScalarValue::TimestampSecond(Some(time), Some(_)) => time.checked_mul(1_000).map(|time| [time; 2]),
        ScalarValue::TimestampMillisecond(Some(time), Some(_)) => Some([*time; 2]),
        ScalarValue::TimestampMicrosecond(Some(time), Some(_)) => Some(units(*time, 1_000)),
        ScalarValue::TimestampNanosecond(Some(time), Some(_)) => Some(units(*time, 1_000_000)),
        _ => None,
    }
}

/// A condition on keys as a filter, and how many tests it has.
fn filter(condition: &Expr, keys: &[KeyColumn]) -> Option<(Json, usize)> {
    let test = |expr: &Expr, op: &str, values: Vec<Json>| {
        Some((json!({ "dimension": key(expr, keys)?.name, "op": op, "values": values }), 1))
    };
    let negated = |negated: bool, filter: (Json, usize)| match negated {
        true => (json!({ "not": filter.0 }), filter.1),
        false => filter,
    };
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let ((left, some), (right, more)) = (filter(left, keys)?, filter(right, keys)?);
            let join = if *op == Operator::And { "and" } else { "or" };
            Some((json!({ join: [left, right] }), some + more))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, literal) = match key(left, keys) {
                Some(_) => (left, *op, right),
                None => (right, op.swap()?, left),
            };
            let op = match op {
                Operator::Eq => "=",
                Operator::NotEq => "!=",
                Operator::Lt => "<",
                Operator::LtEq => "<=",
                Operator::Gt => ">",
                Operator::GtEq => ">=",
                _ => return None,
            };
            test(column, op, vec![value(literal, key(column, keys)?)?])
        }
        Expr::Between(Between { expr, negated: is_negated, low, high }) => {
            let column = key(expr, keys)?;
            let ends = vec![value(low, column)?, value(high, column)?];
            Some(negated(*is_negated, test(expr, "between", ends)?))
        }
        Expr::InList(InList { expr, list, negated: is_negated }) if list.len() <= MAX_VALUES => {
            let column = key(expr, keys)?;
            let values = list.iter().map(|one| value(one, column)).collect::<Option<Vec<_>>>()?;
            Some(negated(*is_negated, test(expr, "in", values)?))
        }
        // Both take a backslash before a sign literally; at the end of a pattern they differ.
        Expr::Like(Like {
            negated: is_negated,
            expr,
            pattern,
            escape_char: None,
            case_insensitive: false,
        }) => {
            let column = key(expr, keys)?;
            let pattern = value(pattern, column)?;
            let plain = pattern.as_str().is_some_and(|pattern| !pattern.contains('\\'));
            plain.then(|| Some(negated(*is_negated, test(expr, "like", vec![pattern])?)))?
        }
        Expr::IsNull(expr) => test(expr, "is_null", Vec::new()),
        Expr::IsNotNull(expr) => test(expr, "is_not_null", Vec::new()),
        Expr::Not(inner) => Some(negated(true, filter(inner, keys)?)),
        // A truth value is a condition by itself.
        Expr::Column(_) => {
            key(condition, keys).filter(|key| key.ty == FieldType::Bool)?;
            test(condition, "=", vec![true.into()])
        }
        _ => None,
    }
}

/// The key column that an expression is.
fn key<'a>(expr: &Expr, keys: &'a [KeyColumn]) -> Option<&'a KeyColumn> {
    let Expr::Column(column) = expr else { return None };
    keys.iter().find(|key| key.name == column.name)
}

/// A value that is written out, of a column's type.
fn value(expr: &Expr, column: &KeyColumn) -> Option<Json> {
    let Expr::Literal(value, _) = expr else { return None };
    match (column.ty, value) {
        (FieldType::Int, ScalarValue::Int64(Some(value))) => Some((*value).into()),
        (FieldType::Bool, ScalarValue::Boolean(Some(value))) => Some((*value).into()),
        (
            FieldType::String,
            ScalarValue::Utf8(Some(text))
            | ScalarValue::LargeUtf8(Some(text))
            | ScalarValue::Utf8View(Some(text)),
        ) if text.len() <= MAX_TEXT => Some(text.as_str().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, lit};

    const GRAIN: Millis = 300_000;
    const T: Millis = 1_465_948_800_000;

    fn keys() -> Vec<KeyColumn> {
        let key = |(name, ty): (&str, FieldType)| KeyColumn { name: name.to_owned(), ty };
        [("geo", FieldType::String), ("document_id", FieldType::Int), ("is_new", FieldType::Bool)]
            .map(key)
            .to_vec()
    }

    fn at(time: Millis) -> Expr {
        lit(ScalarValue::TimestampNanosecond(Some(time * 1_000_000), Some("+00:00".into())))
    }

    #[test]
    fn times_become_a_span_of_whole_buckets() {
        let span = |conditions: &[Expr]| {
            let span = Asked::new(conditions, &keys(), GRAIN).span;
            span.map(|span| (span.start - T, span.end - T))
        };
        let bucket = || col(BUCKET);
        let cast = |expr, unit| {
            let ty = DataType::Timestamp(unit, Some("UTC".into()));
            Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(expr), ty))
        };
        assert_eq!(span(&[bucket().gt_eq(at(T)), bucket().lt(at(T + GRAIN))]), Some((0, GRAIN)));
        assert_eq!(span(&[bucket().gt(at(T)), bucket().lt_eq(at(T + GRAIN))]), Some((GRAIN, 2 * GRAIN)));
        assert_eq!(span(&[at(T - 1).lt_eq(bucket()), at(T + 2).gt(bucket())]), Some((0, GRAIN)));
        let nanos = |time: i64| lit(ScalarValue::TimestampNanosecond(Some(time), Some("UTC".into())));
        let (before, behind) = (nanos(T * 1_000_000 - 1), nanos(T * 1_000_000 + 1));
        assert_eq!(span(&[bucket().gt(before), bucket().lt(behind.clone())]), Some((0, GRAIN)));
        assert_eq!(span(&[bucket().eq(behind)]), None);
        assert_eq!(span(&[cast(bucket(), TimeUnit::Nanosecond).eq(at(T + GRAIN))]), Some((GRAIN, 2 * GRAIN)));
        assert_eq!(span(&[bucket().between(at(T), at(T + 1))]), Some((0, GRAIN)));
        assert_eq!(span(&[bucket().in_list(vec![at(T + GRAIN), at(T)], false)]), Some((0, 2 * GRAIN)));
        let either = bucket().eq(at(T)).or(bucket().eq(at(T + 2 * GRAIN)));
        assert_eq!(span(&[either]), Some((0, 3 * GRAIN)));
        assert_eq!(span(&[bucket().gt(at(T + GRAIN)), bucket().lt(at(T))]), None);
        // What isn't understood narrows nothing.
        let ever = span(&[]);
        assert!(ever.is_some_and(|(start, end)| start % GRAIN == -T % GRAIN && end > 200 * 365 * 86_400_000));
        assert_eq!(span(&[cast(bucket(), TimeUnit::Second).eq(at(T))]), ever);
        assert_eq!(span(&[bucket().not_eq(at(T)), bucket().in_list(vec![at(T)], true)]), ever);
        assert_eq!(span(&[bucket().lt(at(T)).or(bucket().gt(at(T + GRAIN)))]), ever);
    }

    #[test]
    fn conditions_on_keys_become_filters() {
        let check = |condition: Expr, expected: Option<Json>| {
            let found = Asked::new(std::slice::from_ref(&condition), &keys(), GRAIN).filters.pop();
            assert_eq!(found, expected, "{condition}");
            assert_eq!(Asked::uses(&condition, &keys()), expected.is_some(), "{condition}");
        };
        let of =
            |name: &str, op: &str, values: Json| json!({ "dimension": name, "op": op, "values": values });
        let us = of("geo", "=", json!(["US"]));
        check(col("geo").eq(lit("US")), Some(us.clone()));
        check(lit("US").eq(col("geo")), Some(us.clone()));
        check(lit(7_i64).lt(col("document_id")), Some(of("document_id", ">", json!([7]))));
        check(col("is_new"), Some(of("is_new", "=", json!([true]))));
        check(Expr::Not(Box::new(col("is_new"))), Some(json!({ "not": of("is_new", "=", json!([true])) })));
        check(col("geo").is_null(), Some(of("geo", "is_null", json!([]))));
        check(col("geo").like(lit("US>%")), Some(of("geo", "like", json!(["US>%"]))));
        check(
            col("document_id").in_list(vec![lit(1_i64), lit(2_i64)], true),
            Some(json!({ "not": of("document_id", "in", json!([1, 2])) })),
        );
        check(
            col("geo").eq(lit("US")).or(col("document_id").between(lit(1_i64), lit(3_i64))),
            Some(json!({ "or": [us, of("document_id", "between", json!([1, 3]))] })),
        );
        // Left to the engine: another column, another type, another form.
        check(col("value").gt(lit(1_i64)), None);
        check(col("document_id").gt(lit(1.5)), None);
        check(col("geo").eq(lit("x".repeat(MAX_TEXT + 1))), None);
        check(col("geo").like(lit("100\\%")), None);
        check(col("geo").ilike(lit("us%")), None);
        check(col("geo").eq(lit("US")).or(col("value").gt(lit(1_i64))), None);
        check(col("geo").eq(col("geo")), None);
    }

    #[test]
    fn more_tests_than_a_request_may_have_are_left_to_the_engine() {
        let conditions = vec![col("geo").eq(lit("US")); MAX_FILTERS + 5];
        assert_eq!(Asked::new(&conditions, &keys(), GRAIN).filters.len(), MAX_FILTERS);
    }
}
