//! An error with its causes on one line, each said once.
//!
//! Some libraries write their cause into their own message and name it as their cause too; a plain chain would say it
//! twice.

use std::error::Error;
use std::fmt;

/// Shows an error and its causes, but for those that the message before already ends with.
#[derive(Debug, Clone, Copy)]
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("{says}")]
    struct Saying {
        says: &'static str,
        source: Option<Box<Saying>>,
    }

    #[test]
    fn each_cause_is_said_once() {
        let check = |messages: &[&'static str], expected: &str| {
            let chain =
                messages.iter().rev().fold(None, |source, says| Some(Box::new(Saying { says, source })));
            assert_eq!(Causes(&*chain.expect("a message")).to_string(), expected);
        };
        check(&["a"], "a");
        check(&["a", "b", "c"], "a: b: c");
        check(&["a: b", "b", "c"], "a: b: c");
        check(&["a: b: c", "b: c", "c", "d"], "a: b: c: d");
        check(&["a", "b: c", "c"], "a: b: c");
    }
}
