//! Filters over key columns. They follow SQL: a comparison with NULL is never true.
//!
//! The same test decides for rows of both views; what Postgres evaluates besides is only there to read fewer rows.

use shared_model::event::Value;
use std::cmp::Ordering;

/// A test on one key column, its values already of the column's type and never NULL.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// `=`, or `in`: equal to one of them.
    In(Vec<Value>),
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
    Like(String),
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
                Value::Str(text) => like(pattern, text),
                _ => false,
            },
        }
    }
}

/// SQL's LIKE with the backslash as escape; a trailing backslash stands for itself.
fn like(pattern: &str, text: &str) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum Part {
        Any,
        One,
        Exactly(char),
    }
    let mut parts = Vec::new();
    let mut chars = pattern.chars();
    while let Some(next) = chars.next() {
        parts.push(match next {
            '%' => Part::Any,
            '_' => Part::One,
            '\\' => Part::Exactly(chars.next().unwrap_or('\\')),
            other => Part::Exactly(other),
        });
    }
    let text: Vec<char> = text.chars().collect();
    // Greedy with one point to go back to, the last `%`: linear but for that, and never recursive.
    let (mut at, mut part, mut back) = (0, 0, None);
    while at < text.len() {
        match parts.get(part) {
            Some(Part::Any) => {
                back = Some((part + 1, at));
                part += 1;
            }
            Some(Part::One) => (at, part) = (at + 1, part + 1),
            Some(Part::Exactly(wanted)) if *wanted == text[at] => (at, part) = (at + 1, part + 1),
            _ => match &mut back {
                Some((after, from)) => {
                    *from += 1;
                    (part, at) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    parts[part..].iter().all(|part| *part == Part::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_is_sqls() {
        let cases = [
            ("", "", true),
            ("%", "", true),
            ("US>%", "US>CA>803", true),
            ("US>%", "GB>US>", false),
            ("%>CA%", "US>CA>803", true),
            ("%a%b", "xaxbxb", true),
            ("%a%b", "xaxbxc", false),
            ("_b", "ab", true),
            ("_b", "b", false),
            ("100\\%", "100%", true),
            ("100\\%", "1000", false),
            ("ü_", "üx", true),
            ("a", "A", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(like(pattern, text), expected, "{text:?} like {pattern:?}");
        }
    }

    #[test]
    fn null_passes_no_test_but_is_null() {
        let one = Value::Int(1);
        let tests = [
            Test::In(vec![one.clone()]),
            Test::Not(one.clone()),
            Test::Compare { is: &[Ordering::Less], with: one.clone() },
            Test::Between(one.clone(), one.clone()),
            Test::Like("%".into()),
            Test::IsNotNull,
        ];
        assert!(tests.iter().all(|test| !test.admits(&Value::Null)));
        assert!(Test::IsNull.admits(&Value::Null) && !Test::IsNull.admits(&one));
        assert!(Test::Not(one).admits(&Value::Int(2)));
    }
}
