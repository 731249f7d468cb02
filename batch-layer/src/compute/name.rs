//! Names of cells as bytes: the key's values, then the bucket. Bytes compare as the names do: by key, then bucket.
//!
//! A value is a byte 0 for NULL; or a byte 1 and then, by its type: a truth value as one byte; an integer as 8 bytes,
//! the highest first, its sign turned; a float likewise, a negative one with all bits turned (the order of
//! `f64::total_cmp`); a text as its bytes, each 0 followed by 255, and two bytes 0 at its end.

use anyhow::{Context, Result, bail};
use shared_model::event::{FieldType, Value};
use shared_model::time::Millis;
use shared_model::view::key_begin;
use std::borrow::Cow;

const SIGN: u64 = 1 << 63;

/// A value that lies elsewhere: a text isn't copied, unless a name holds it in other bytes, as it does one with a 0.
pub(crate) enum ValueRef<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Cow<'a, str>),
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> ValueRef<'a> {
        match value {
            Value::Null => ValueRef::Null,
            Value::Bool(truth) => ValueRef::Bool(*truth),
            Value::Int(int) => ValueRef::Int(*int),
            Value::Float(float) => ValueRef::Float(*float),
            Value::Str(text) => ValueRef::Str(Cow::Borrowed(text.as_str())),
        }
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Value {
        match value {
            ValueRef::Null => Value::Null,
            ValueRef::Bool(truth) => Value::Bool(truth),
            ValueRef::Int(int) => Value::Int(int),
            ValueRef::Float(float) => Value::Float(float),
            ValueRef::Str(text) => Value::str(&text),
        }
    }
}

/// Appends a value.
pub(super) fn put(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(0),
        Value::Bool(truth) => out.extend([1, u8::from(*truth)]),
        Value::Int(int) => put_int(*int, out),
        Value::Float(float) => put_float(*float, out),
        Value::Str(text) => put_text(text, out),
    }
}

/// Appends an integer.
pub(super) fn put_int(int: i64, out: &mut Vec<u8>) {
    out.push(1);
    put_bucket(int, out);
}

/// Appends a float.
pub(super) fn put_float(float: f64, out: &mut Vec<u8>) {
    let bits = float.to_bits();
    out.push(1);
    out.extend_from_slice(&(if bits & SIGN == 0 { bits | SIGN } else { !bits }).to_be_bytes());
}

/// Appends a text.
pub(super) fn put_text(text: &str, out: &mut Vec<u8>) {
    out.push(1);
    let mut rest = text.as_bytes();
    while let Some(end) = memchr::memchr(0, rest) {
        out.extend_from_slice(&rest[..end]);
        out.extend_from_slice(&[0, 255]);
        rest = &rest[end + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0, 0]);
}

/// Appends a bucket's start.
pub(super) fn put_bucket(bucket: Millis, out: &mut Vec<u8>) {
    out.extend_from_slice(&(bucket as u64 ^ SIGN).to_be_bytes());
}

/// What tells most values' bytes apart: those after the first, which decides least. It never contradicts their order, as 0
/// has none behind it.
pub(super) fn prefix(value: &[u8]) -> u128 {
    key_begin(value.get(1..).unwrap_or_default())
}

/// Parts a name into the key's values and the bucket's start.
#[inline]
pub(super) fn split(name: &[u8]) -> Result<(&[u8], Millis)> {
    let (key, bucket) = name.split_last_chunk::<8>().context(CUT)?;
    Ok((key, (u64::from_be_bytes(*bucket) ^ SIGN) as i64))
}

/// Takes a value of a type.
pub(super) fn take(ty: FieldType, input: &mut &[u8]) -> Result<Value> {
    Ok(take_ref(ty, input)?.into())
}

/// Takes a value of a type, without copying it.
#[inline]
pub(super) fn take_ref<'a>(ty: FieldType, input: &mut &'a [u8]) -> Result<ValueRef<'a>> {
    if bytes(input, 1)? == [0] {
        return Ok(ValueRef::Null);
    }
    Ok(match ty {
        FieldType::Bool => ValueRef::Bool(bytes(input, 1)? == [1]),
        FieldType::Int | FieldType::Decimal(_) => ValueRef::Int((word(input)? ^ SIGN) as i64),
        FieldType::Float => {
            let bits = word(input)?;
            ValueRef::Float(f64::from_bits(if bits & SIGN == 0 { !bits } else { bits ^ SIGN }))
        }
        FieldType::String => ValueRef::Str(take_text(input)?),
    })
}

fn take_text<'a>(input: &mut &'a [u8]) -> Result<Cow<'a, str>> {
    let mut text: Cow<'a, [u8]> = Cow::Borrowed(&[]);
    loop {
        let end = memchr::memchr(0, input).context(CUT)?;
        let part = bytes(input, end)?;
        match text.is_empty() {
            true => text = Cow::Borrowed(part),
            false => text.to_mut().extend_from_slice(part),
        }
        if bytes(input, 2)? == [0, 0] {
            break;
        }
        text.to_mut().push(0);
    }
    Ok(match text {
        Cow::Borrowed(text) => Cow::Borrowed(std::str::from_utf8(text)?),
        Cow::Owned(text) => Cow::Owned(String::from_utf8(text)?),
    })
}

fn word(input: &mut &[u8]) -> Result<u64> {
    Ok(u64::from_be_bytes(bytes(input, 8)?.try_into()?))
}

fn bytes<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    match input.split_at_checked(count) {
        Some((taken, rest)) => {
            *input = rest;
            Ok(taken)
        }
        None => bail!(CUT),
    }
}

const CUT: &str = "the name of a cell is cut off";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

    fn pairs() -> impl Strategy<Value = (FieldType, Value, Value)> {
        fn two<V: Strategy<Value = Value> + Clone>(
            ty: FieldType,
            some: V,
        ) -> impl Strategy<Value = (FieldType, Value, Value)> {
            let value = prop_oneof![1 => Just(Value::Null), 6 => some];
            (Just(ty), value.clone(), value)
        }
        let floats = prop_oneof![Just(0.0), Just(-0.0), Just(f64::NAN), Just(f64::MIN), any::<f64>()];
        let ints = prop_oneof![Just(i64::MIN), Just(i64::MAX), -3..3i64, any::<i64>()];
        prop_oneof![
            two(FieldType::Bool, any::<bool>().prop_map(Value::Bool)),
            two(FieldType::Int, ints.prop_map(Value::Int)),
            two(FieldType::Float, floats.prop_map(Value::Float)),
            two(FieldType::String, "[a\\x00\\x01é]{0,4}".prop_map(|text| Value::str(&text))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bytes_compare_as_names_do((ty, a, b) in pairs(), first: i64, second: i64) {
            let name = |value: &Value, bucket: Millis| {
                let mut bytes = Vec::new();
                put(value, &mut bytes);
                put_bucket(bucket, &mut bytes);
                bytes
            };
            let (one, other) = (name(&a, first), name(&b, second));
            assert_eq!(one.cmp(&other), a.cmp(&b).then(first.cmp(&second)));
            let prefix = |name: &[u8]| prefix(&name[..name.len() - 8]);
            assert!(prefix(&one) == prefix(&other) || prefix(&one).cmp(&prefix(&other)) == a.cmp(&b));
            let (mut key, bucket) = split(&one).unwrap();
            assert_eq!((take(ty, &mut key).unwrap(), bucket), (a, first));
            assert!(key.is_empty());
        }
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let mut name = Vec::new();
        put(&Value::str("a"), &mut name);
        for end in 0..name.len() {
            assert!(take(FieldType::String, &mut &name[..end]).is_err());
        }
        assert!(split(&[0; 7]).is_err());
    }
}
