//! Reads a value from text, as a cell of a CSV file holds it: strict, the same rules as for JSON.

use super::{FieldType, Value};

impl FieldType {
    /// The value that `text` spells; `Err` says what the type expected. NULL has no spelling here: it is the file
    /// format's to say (`\N` in Outbrain's files).
    pub fn read_text(self, text: &str) -> Result<Value, String> {
        let refuse = || {
            let shown: String = text.chars().take(64).collect();
            format!("expected {}, found {shown:?}", self.name())
        };
        match self {
            FieldType::String => Ok(Value::str(text)),
            FieldType::Int => match text.as_bytes() {
                // `parse` alone would take a plus sign, which JSON doesn't.
                [b'0'..=b'9' | b'-', ..] => text.parse().map(Value::Int).map_err(|_| refuse()),
                _ => Err(refuse()),
            },
            FieldType::Float => match text.parse::<f64>() {
                Ok(float) if float.is_finite() => Ok(Value::Float(float + 0.0)),
                _ => Err(refuse()),
            },
            FieldType::Bool => match text {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(refuse()),
            },
            FieldType::Decimal(scale) => super::json::decimal(text, scale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_strictly() {
        let check = |ty: FieldType, text: &str, expected: Option<Value>| {
            assert_eq!(ty.read_text(text).ok(), expected, "{ty:?} {text:?}");
        };
        check(FieldType::String, "", Some(Value::str("")));
        check(FieldType::Int, "-7", Some(Value::Int(-7)));
        check(FieldType::Int, "9223372036854775807", Some(Value::Int(i64::MAX)));
        for text in ["", "+7", " 7", "7.0", "-", "9223372036854775808", "0x7"] {
            check(FieldType::Int, text, None);
        }
        check(FieldType::Float, "-0", Some(Value::Float(0.0)));
        for text in ["NaN", "inf", "1e999", "1,5"] {
            check(FieldType::Float, text, None);
        }
        check(FieldType::Bool, "true", Some(Value::Bool(true)));
        check(FieldType::Bool, "1", None);
        check(FieldType::Decimal(2), "1.5", Some(Value::Int(150)));
        check(FieldType::Decimal(2), "1.555", None);
    }
}
