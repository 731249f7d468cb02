//! `cast(x as type)`: the one definition that all evaluators must match. NULL stays NULL; what can't be cast is NULL.
//!
//! | from \ to | string | int | float | bool |
//! | --- | --- | --- | --- | --- |
//! | string | | [`INT_TEXT`] within 64 bits | [`FLOAT_TEXT`], nearest, finite | exactly `true` or `false` |
//! | int | decimal digits, `-` if negative | | nearest | is not 0 |
//! | float | refused: engines write floats differently | truncated towards zero, within 64 bits | | is not 0 |
//! | bool | `true` or `false` | 1 or 0 | 1 or 0 | |
//!
//! No blank is trimmed. Nearest is to even on a tie. A float that comes out as -0 is 0. A decimal can't be cast.

use crate::event::{FieldType, Value};

/// The texts that may be an int, as a regular expression: a sign and ASCII digits.
pub const INT_TEXT: &str = r"\A[+-]?[0-9]+\z";

/// The texts that may be a float, as a regular expression. No `inf`, no `nan`.
pub const FLOAT_TEXT: &str = r"\A[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\z";

/// Whether a cast exists.
pub fn exists(from: FieldType, to: FieldType) -> bool {
    use FieldType::{Bool, Float, Int, String};
    let scalar = |ty| matches!(ty, String | Int | Float | Bool);
    scalar(from) && scalar(to) && (from, to) != (Float, String)
}

/// Casts one value.
pub(super) fn cast(value: &Value, to: FieldType) -> Value {
    match (value, to) {
        (Value::Str(text), FieldType::String) => Value::Str(text.clone()),
        (Value::Str(text), FieldType::Int) => text.parse().map_or(Value::Null, Value::Int),
        (Value::Str(text), FieldType::Float) => float_of_text(text),
        (Value::Str(text), FieldType::Bool) => match &**text {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => Value::Null,
        },
        (Value::Int(int), FieldType::String) => Value::str(&int.to_string()),
        (Value::Int(int), FieldType::Int) => Value::Int(*int),
        (Value::Int(int), FieldType::Float) => Value::Float(*int as f64),
        (Value::Int(int), FieldType::Bool) => Value::Bool(*int != 0),
        (Value::Float(float), FieldType::Int) => int_of_float(*float),
        (Value::Float(float), FieldType::Float) => finite(*float),
        (Value::Float(float), FieldType::Bool) => Value::Bool(*float != 0.0),
        (Value::Bool(truth), FieldType::String) => Value::str(if *truth { "true" } else { "false" }),
        (Value::Bool(truth), FieldType::Int) => Value::Int(i64::from(*truth)),
        (Value::Bool(truth), FieldType::Float) => Value::Float(f64::from(u8::from(*truth))),
        (Value::Bool(truth), FieldType::Bool) => Value::Bool(*truth),
        _ => Value::Null,
    }
}

/// A float as a value: NULL where it isn't finite, 0 for -0.
pub(super) fn finite(float: f64) -> Value {
    if float.is_finite() { Value::Float(float + 0.0) } else { Value::Null }
}

fn int_of_float(float: f64) -> Value {
    // 2^63 is the first float beyond; -2^63 is itself an int.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if (-BEYOND..BEYOND).contains(&float) { Value::Int(float as i64) } else { Value::Null }
}

fn float_of_text(text: &str) -> Value {
    // Rust also reads "inf", "infinity" and "nan"; digits, point, sign and exponent are all that FLOAT_TEXT allows.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
    if plain { text.parse().map_or(Value::Null, finite) } else { Value::Null }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FieldType::{Bool, Float, Int, String};

    #[test]
    fn casts_are_as_the_table_says() {
        let text = Value::str;
        let cases = [
            (text("-7"), Int, Value::Int(-7)),
            (text("+007"), Int, Value::Int(7)),
            (text("-0"), Int, Value::Int(0)),
            (text(" 7"), Int, Value::Null),
            (text("7.0"), Int, Value::Null),
            (text("١"), Int, Value::Null),
            (text("9223372036854775807"), Int, Value::Int(i64::MAX)),
            (text("9223372036854775808"), Int, Value::Null),
            (text("1.5e2"), Float, Value::Float(150.0)),
            (text("-.5"), Float, Value::Float(-0.5)),
            (text("5."), Float, Value::Float(5.0)),
            (text("-0"), Float, Value::Float(0.0)),
            (text("."), Float, Value::Null),
            (text("e5"), Float, Value::Null),
            (text("inf"), Float, Value::Null),
            (text("NaN"), Float, Value::Null),
            (text("1e999"), Float, Value::Null),
            (text("true"), Bool, Value::Bool(true)),
            (text("TRUE"), Bool, Value::Null),
            (Value::Int(i64::MIN), String, text("-9223372036854775808")),
            (Value::Int(i64::MAX), Float, Value::Float(9_223_372_036_854_775_808.0)),
            (Value::Int(-3), Bool, Value::Bool(true)),
            (Value::Float(-1.9), Int, Value::Int(-1)),
            (Value::Float(-9_223_372_036_854_775_808.0), Int, Value::Int(i64::MIN)),
            (Value::Float(9_223_372_036_854_775_808.0), Int, Value::Null),
            (Value::Float(0.5), Bool, Value::Bool(true)),
            (Value::Bool(true), Int, Value::Int(1)),
            (Value::Bool(false), String, text("false")),
            (Value::Null, Int, Value::Null),
        ];
        for (value, ty, expected) in cases {
            assert_eq!(cast(&value, ty), expected, "cast({value:?} as {})", ty.name());
        }
        assert!(!exists(Float, String) && !exists(FieldType::Decimal(2), Int) && exists(String, Bool));
    }
}
