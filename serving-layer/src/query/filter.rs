//! Filters over key columns. They follow SQL: a comparison with NULL is never true.
//!
//! The same test decides for rows of both views; what Postgres evaluates besides is only there to read fewer rows.

use shared_model::event::Value;
use shared_model::expression::like::LikePattern;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// A test on one key column, its values already of the column's type and never NULL.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// `=`, or `in`: equal to one of them.
    In(BTreeSet<Value>),
    /// `!=`
    Not(Value),
    /// `<`, `<=`, `>`, `>=`: how the column's value may compare with the given one.
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

/// A filter: only cells whose column passes the test are answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The key column, or the item's column of a top-k.
    pub dimension: String,
    /// The test.
    pub test: Test,
}

impl Test {
    /// Whether a value passes.
    pub fn admits(&self, value: &Value) -> bool {
        match self {
            Test::IsNull => value.is_null(),
            Test::IsNotNull => !value.is_null(),
            _ if value.is_null() => false,
            Test::In(values) => values.contains(value),
            Test::Not(other) => value != other,
            Test::Compare { is, with } => is.contains(&value.cmp(with)),
            Test::Between(low, high) => low <= value && value <= high,
            Test::Like(pattern) => match value {
                Value::Str(text) => pattern.matches(text),
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_passes_no_test_but_is_null() {
        let one = Value::Int(1);
        let tests = [
            Test::In([one.clone()].into()),
            Test::Not(one.clone()),
            Test::Compare { is: &[Ordering::Less], with: one.clone() },
            Test::Between(one.clone(), one.clone()),
            Test::Like(LikePattern::new("%").unwrap()),
            Test::IsNotNull,
        ];
        assert!(tests.iter().all(|test| !test.admits(&Value::Null)));
        assert!(Test::IsNull.admits(&Value::Null) && !Test::IsNull.admits(&one));
        assert!(Test::Not(one).admits(&Value::Int(2)));
    }
}
