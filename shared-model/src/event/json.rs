//! Reads a record's declared fields out of JSON text without building a tree.
//!
//! Exactly the declared fields are read; others are skipped, but must be JSON. A declared field that appears twice
//! is refused: which one counts would be a guess.

mod plain;

use super::{FieldType, Reject, Value};
use crate::catalog::Field;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// The values of `fields` in a JSON object, NULL where a field is missing.
pub(super) fn read(fields: &[Field], bytes: &[u8]) -> Result<Vec<Value>, Reject> {
    // Of a record that is text throughout, no part need be checked again. One that isn't may be so where nobody looks.
    match std::str::from_utf8(bytes) {
        Ok(text) => match plain::read(fields, text) {
            Some(values) => Ok(values),
            None => read_from(fields, serde_json::Deserializer::from_str(text)),
        },
        Err(_) => read_from(fields, serde_json::Deserializer::from_slice(bytes)),
    }
}

fn read_from<'de, R: serde_json::de::Read<'de>>(
    fields: &[Field],
    mut json: serde_json::Deserializer<R>,
) -> Result<Vec<Value>, Reject> {
    let mut problem = None;
    let record = Record { fields, problem: &mut problem };
    let values = record.deserialize(&mut json).and_then(|values| json.end().map(|()| values));
    match (values, problem) {
        (_, Some(reject)) => Err(reject),
        (Ok(values), None) => Ok(values),
        (Err(error), None) => Err(Reject::NotJson(error.to_string())),
    }
}

/// The place of a name among the declared fields. `expected`: the one that is looked at first.
fn place(fields: &[Field], name: &str, expected: usize) -> Option<usize> {
    if fields.get(expected).is_some_and(|field| field.name == name) {
        return Some(expected);
    }
    fields.iter().position(|field| field.name == name)
}

struct Record<'a> {
    fields: &'a [Field],
    /// Set when a field's value is refused, so that the reason keeps its shape through serde's error type.
    problem: &'a mut Option<Reject>,
}

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = Vec<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Value>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = Vec<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Value>, A::Error> {
        let mut values: Vec<Option<Value>> = vec![None; self.fields.len()];
        let mut expected = 0;
        while let Some(name) = map.next_key_seed(Name { fields: self.fields, expected })? {
            let Some(at) = name else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            expected = at + 1;
            let field = &self.fields[at];
            let value = map.next_value_seed(Scalar { ty: field.ty })?;
            let problem = match value {
                Err(problem) => problem,
                Ok(_) if values[at].is_some() => "appears twice".to_owned(),
                Ok(value) => {
                    values[at] = Some(value);
                    continue;
                }
            };
            *self.problem = Some(Reject::Field { field: field.name.clone(), problem });
            return Err(A::Error::custom("refused field"));
        }
        Ok(values.into_iter().map(|value| value.unwrap_or(Value::Null)).collect())
    }
}

/// Finds a key's place among the declared fields.
struct Name<'a> {
    fields: &'a [Field],
    /// The one that is looked at first: a producer writes its fields in one order.
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(place(self.fields, name, self.expected))
    }
}

/// Reads one value of a declared type; what the type can't hold is an `Err` with what was found.
struct Scalar {
    ty: FieldType,
}

type Read = Result<Value, String>;

impl Scalar {
    fn integer(&self, found: i128) -> Read {
        let refuse = || Err(format!("{found} is out of range for {}", self.ty.name()));
        match self.ty {
            FieldType::Int => i64::try_from(found).map_or_else(|_| refuse(), |int| Ok(Value::Int(int))),
            FieldType::Float => Ok(Value::Float(found as f64)),
            FieldType::Decimal(scale) => {
                let units = found.checked_mul(10i128.pow(u32::from(scale)));
                let units = units.and_then(|units| i64::try_from(units).ok());
                units.map_or_else(refuse, |units| Ok(Value::Int(units)))
            }
            _ => self.mismatch(&found),
        }
    }

    fn mismatch(&self, found: &dyn fmt::Display) -> Read {
        let shown: String = found.to_string().chars().take(64).collect();
        Err(format!("expected {}, found {shown}", self.ty.name()))
    }
}

impl FieldType {
    /// The catalog's word for the type.
    pub fn name(self) -> String {
        match self {
            FieldType::String => "string".into(),
            FieldType::Int => "int".into(),
            FieldType::Float => "float".into(),
            FieldType::Bool => "bool".into(),
            FieldType::Decimal(scale) => format!("decimal({scale})"),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Read, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value")
    }

    fn visit_unit<E>(self) -> Result<Read, E> {
        Ok(Ok(Value::Null))
    }

    fn visit_bool<E>(self, found: bool) -> Result<Read, E> {
        Ok(if self.ty == FieldType::Bool { Ok(Value::Bool(found)) } else { self.mismatch(&found) })
    }

    fn visit_i64<E>(self, found: i64) -> Result<Read, E> {
        Ok(self.integer(i128::from(found)))
    }

    fn visit_u64<E>(self, found: u64) -> Result<Read, E> {
        Ok(self.integer(i128::from(found)))
    }

    fn visit_f64<E>(self, found: f64) -> Result<Read, E> {
        Ok(match self.ty {
            // Adding 0 turns -0 into 0, so that equal numbers have equal bytes.
            FieldType::Float if found.is_finite() => Ok(Value::Float(found + 0.0)),
            FieldType::Decimal(scale) => decimal(&found.to_string(), scale),
            _ => self.mismatch(&found),
        })
    }

    fn visit_str<E>(self, found: &str) -> Result<Read, E> {
        Ok(match self.ty {
            FieldType::String => Ok(Value::str(found)),
            FieldType::Decimal(scale) => decimal(found, scale),
            _ => self.mismatch(&format!("the text {found:?}")),
        })
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Read, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.mismatch(&"an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.mismatch(&"an object"))
    }
}

/// A decimal number's text as units of 10^-scale; digits beyond the scale are refused, never rounded away.
pub(crate) fn decimal(text: &str, scale: u8) -> Read {
    let refuse = || {
        let shown: String = text.chars().take(64).collect();
        Err(format!("{shown:?} is no decimal number with at most {scale} digits after the point"))
    };
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > usize::from(scale)
    {
        return refuse();
    }
    let units = format!("{whole}{fraction:0<width$}", width = usize::from(scale)).parse::<i64>();
    units.map_or_else(|_| refuse(), |units| Ok(Value::Int(if negative { -units } else { units })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<&[Value], &str>) {
        let field = |name: &str, ty| Field { name: name.into(), ty };
        let fields = [
            field("s", FieldType::String),
            field("i", FieldType::Int),
            field("f", FieldType::Float),
            field("d", FieldType::Decimal(2)),
        ];
        match (read(&fields, json.as_bytes()), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{json}"),
            (Err(found), Err(part)) => assert!(found.to_string().contains(part), "{json}: {found}"),
            (found, expected) => panic!("{json}: {found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn declared_fields_are_read_and_everything_doubtful_is_refused() {
        use Value::{Float, Int, Null};
        check("{}", Ok(&[Null, Null, Null, Null]));
        check(
            r#"{"x":[{}],"i":-5,"s":"a","f":2,"d":1.25}"#,
            Ok(&[Value::str("a"), Int(-5), Float(2.0), Int(125)]),
        );
        check(r#"{"s":null,"d":"-3.5"}"#, Ok(&[Null, Null, Null, Int(-350)]));
        check(r#"{"i":1.0}"#, Err("field i: expected int, found 1"));
        check(r#"{"i":9223372036854775808}"#, Err("out of range"));
        check(r#"{"i":"7"}"#, Err("expected int, found the text"));
        check(r#"{"s":7}"#, Err("expected string, found 7"));
        check(r#"{"s":{"a":[1]}}"#, Err("found an object"));
        check(r#"{"i":1,"i":1}"#, Err("field i: appears twice"));
        check(r#"{"d":1.255}"#, Err("at most 2 digits"));
        check(r#"{"s":"\ud800"}"#, Err("not a valid JSON object"));
        check(r#"{"f":NaN}"#, Err("not a valid JSON object"));
        check(r#"{"f":1e999}"#, Err("not a valid JSON object"));
        check("[1]", Err("not a valid JSON object"));
        check("{} x", Err("not a valid JSON object"));
        check("", Err("not a valid JSON object"));
        // Undeclared fields are passed over without recursion, however deep; declared ones aren't descended into.
        let deep = |name| format!("{{\"{name}\":{}{}}}", "[".repeat(9_999), "]".repeat(9_999));
        check(&deep("x"), Ok(&[Null, Null, Null, Null]));
        check(&deep("s"), Err("found an array"));
        check(&deep("x").replace("]}", "}"), Err("not a valid JSON object"));
    }
}
