//! Conditions: tests joined by and, or and not. They follow SQL: a comparison with NULL is neither true nor false, and
//! what a condition is not true for is left out.
//!
//! The same condition decides for rows of both views; what Postgres evaluates besides is only there to read fewer rows.

use shared_model::event::Value;
use shared_model::expression::like::LikePattern;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// A condition over tests.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition<T> {
    /// One test.
    Test(T),
    /// `and`; of none it is true.
    All(Vec<Condition<T>>),
    /// `or`; of none it is false.
    Any(Vec<Condition<T>>),
    /// `not`
    Not(Box<Condition<T>>),
}

impl<T> Condition<T> {
    /// Whether it holds, where each test says so by itself; `None` is SQL's NULL.
    pub fn holds(&self, test: &mut impl FnMut(&T) -> Option<bool>) -> Option<bool> {
        let (parts, decides) = match self {
            Condition::Test(one) => return test(one),
            Condition::Not(inner) => return inner.holds(test).map(|holds| !holds),
            Condition::All(parts) => (parts, false),
            Condition::Any(parts) => (parts, true),
        };
        let mut joined = Some(!decides);
        for part in parts {
            match part.holds(test) {
                Some(holds) if holds == decides => return Some(decides),
                Some(_) => {}
                None => joined = None,
            }
        }
        joined
    }
}

/// A test of one value, those that it is compared with already of the value's type and never NULL.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// `=`, or `in`: equal to one of them.
    In(BTreeSet<Value>),
    /// `!=`
    Not(Value),
    /// `<`, `<=`, `>`, `>=`: how the value may compare with the given one.
    Compare {
        /// The orderings for which it is true.
        is: &'static [Ordering],
        /// What is compared with.
        with: Value,
    },
    /// `between`: both ends included.
    Between(Value, Value),
    /// `like`: `%` any text, `_` any one character, `\` takes the next one literally.
    Like(LikePattern),
    /// `is_null`
    IsNull,
    /// `is_not_null`
    IsNotNull,
}

/// A filter: a test on a key column.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The key column, or the item's column of a top-k.
    pub dimension: String,
    /// The test.
    pub test: Test,
}

impl Test {
    /// Whether a value passes; `None` where SQL would say NULL.
    pub fn admits(&self, value: &Value) -> Option<bool> {
        Some(match self {
            Test::IsNull => value.is_null(),
            Test::IsNotNull => !value.is_null(),
            _ if value.is_null() => return None,
            Test::In(values) => values.contains(value),
            Test::Not(other) => value != other,
            Test::Compare { is, with } => is.contains(&value.cmp(with)),
            Test::Between(low, high) => low <= value && value <= high,
            Test::Like(pattern) => match value {
                Value::Str(text) => pattern.matches(text),
                _ => false,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_null_a_test_says_neither_true_nor_false() {
        let one = Value::Int(1);
        let tests = [
            Test::In([one.clone()].into()),
            Test::Not(one.clone()),
            Test::Compare { is: &[Ordering::Less], with: one.clone() },
            Test::Between(one.clone(), one.clone()),
            Test::Like(LikePattern::new("%").unwrap()),
        ];
        assert!(tests.iter().all(|test| test.admits(&Value::Null).is_none()));
        assert_eq!((Test::IsNull.admits(&Value::Null), Test::IsNull.admits(&one)), (Some(true), Some(false)));
        assert_eq!(Test::IsNotNull.admits(&Value::Null), Some(false));
        assert_eq!(Test::Not(one).admits(&Value::Int(2)), Some(true));
    }

    #[test]
    fn conditions_are_three_valued() {
        use Condition::{All, Any, Not, Test};
        let check = |condition: Condition<Option<bool>>, expected: Option<bool>| {
            assert_eq!(condition.holds(&mut |test| *test), expected, "{condition:?}");
        };
        let (yes, no, null) = (|| Test(Some(true)), || Test(Some(false)), || Test(None));
        check(All(vec![]), Some(true));
        check(Any(vec![]), Some(false));
        check(All(vec![yes(), null()]), None);
        check(All(vec![null(), no()]), Some(false));
        check(Any(vec![no(), null()]), None);
        check(Any(vec![null(), yes()]), Some(true));
        check(Not(Box::new(null())), None);
        check(Not(Box::new(All(vec![yes(), no()]))), Some(true));
        check(Any(vec![All(vec![yes(), yes()]), no()]), Some(true));
    }
}
