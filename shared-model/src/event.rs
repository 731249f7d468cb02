//! Records and what they mean: decoding is a pure function of (bytes, append time, stream), the same in the speed
//! layer and in the archive.
//!
//! A record is an event or it is rejected with a reason; nothing is guessed, and no input makes it panic.

mod json;
mod text;

use crate::catalog::Stream;
use crate::codec::{self, CodecError};
use crate::offsets::TopicPartition;
use crate::time::{self, Millis};
use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use thiserror::Error;

/// The type of a field, a dimension or an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// UTF-8 text.
    String,
    /// A 64-bit signed integer.
    Int,
    /// A finite 64-bit float. Can be compared and put into quantiles, but not grouped by nor summed.
    Float,
    /// A truth value.
    Bool,
    /// A fixed-point number: an integer of units of 10^-scale.
    Decimal(u8),
}

/// One value of a record. NULL equals NULL and comes first in this order, which is that of keys, not of SQL.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Value {
    /// SQL's NULL: a missing field, or JSON null.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer, or a decimal in its units.
    Int(i64),
    /// A finite float, never -0.
    Float(f64),
    /// Text.
    Str(CompactString),
}

impl Value {
    /// Text.
    pub fn str(text: &str) -> Value {
        Value::Str(text.into())
    }

    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Bool(_) => 1,
            Value::Int(_) => 2,
            Value::Float(_) => 3,
            Value::Str(_) => 4,
        }
    }

    /// Appends the canonical bytes: a tag, then the value. Self-delimiting, so values can be framed by juxtaposition.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => out.push(0),
            Value::Bool(false) => out.push(1),
            Value::Bool(true) => out.push(2),
            Value::Int(int) => {
                out.push(3);
                codec::put_zigzag(out, i128::from(*int));
            }
            Value::Float(float) => {
                out.push(4);
                out.extend_from_slice(&float.to_be_bytes());
            }
            Value::Str(text) => {
                out.push(TEXT);
                codec::put_bytes(out, text.as_bytes());
            }
        }
    }

    /// Takes one value's canonical bytes.
    pub fn decode(input: &mut &[u8]) -> Result<Value, CodecError> {
        Ok(match codec::take_byte(input, "value")? {
            0 => Value::Null,
            1 => Value::Bool(false),
            2 => Value::Bool(true),
            3 => Value::Int(codec::take_i64(input, "integer value")?),
            4 => {
                let (bytes, rest) =
                    input.split_first_chunk::<8>().ok_or(CodecError::Truncated("float value"))?;
                *input = rest;
                Value::Float(f64::from_be_bytes(*bytes))
            }
            TEXT => Value::str(take_text(input)?),
            _ => return Err(CodecError::Invalid("value tag")),
        })
    }

    /// Takes a text without copying it; `None`, and nothing is taken, where what comes is another value.
    ///
    /// # Errors
    /// Where its bytes are no text.
    #[inline]
    pub fn decode_text<'a>(input: &mut &'a [u8]) -> Result<Option<&'a str>, CodecError> {
        match input.split_first() {
            Some((&TEXT, rest)) => {
                *input = rest;
                take_text(input).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// The tag of a text's canonical bytes.
const TEXT: u8 = 5;

#[inline]
fn take_text<'a>(input: &mut &'a [u8]) -> Result<&'a str, CodecError> {
    let text = codec::take_bytes(input, "text value")?;
    std::str::from_utf8(text).map_err(|_| CodecError::Invalid("text value"))
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.rank().hash(hasher);
        match self {
            Value::Null => {}
            Value::Bool(truth) => truth.hash(hasher),
            Value::Int(int) => int.hash(hasher),
            // As they are compared: by their bits.
            Value::Float(float) => float.to_bits().hash(hasher),
            Value::Str(text) => text.hash(hasher),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Value) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
            (Value::Str(a), Value::Str(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Null => write!(f, "NULL"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(value) => write!(f, "{value}"),
            Value::Float(value) => write!(f, "{value}"),
            Value::Str(value) => write!(f, "{value}"),
        }
    }
}

/// The name of the header that makes an empty record a tick.
pub const TICK_HEADER: &str = "tidemark-tick";

/// The name of the header with the time at which the producer made the record (ASCII decimal, ms since 1970).
pub const PRODUCED_HEADER: &str = "act_prod_time";

/// What makes two deliveries the same event: a 128-bit keyed hash over the framed identity fields, or over the
/// record's position where the stream has no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u128);

impl Identity {
    /// Of a stream's record, by its values and its place in the log.
    pub fn of_record(stream: &Stream, tp: &TopicPartition, offset: i64, values: &[Value]) -> Identity {
        match stream.identity.is_empty() {
            true => Identity::of_position(tp, offset),
            false => Identity::of_values(&stream.name, stream.identity.iter().map(|&field| &values[field])),
        }
    }

    /// Of a stream's identity values, in the catalog's order.
    pub fn of_values<'a>(stream: &str, values: impl Iterator<Item = &'a Value>) -> Identity {
        let mut framed = Vec::with_capacity(64);
        codec::put_bytes(&mut framed, stream.as_bytes());
        values.for_each(|value| value.encode(&mut framed));
        Identity(xxhash_rust::xxh3::xxh3_128_with_seed(&framed, IDENTITY_SEED))
    }

    /// Of a record without identity fields: each delivery is an event of its own.
    pub fn of_position(tp: &TopicPartition, offset: i64) -> Identity {
        let mut framed = Vec::with_capacity(64);
        codec::put_bytes(&mut framed, tp.topic.as_bytes());
        codec::put_zigzag(&mut framed, i128::from(tp.partition));
        codec::put_zigzag(&mut framed, i128::from(offset));
        Identity(xxhash_rust::xxh3::xxh3_128_with_seed(&framed, IDENTITY_SEED))
    }
}

const IDENTITY_SEED: u64 = 0x7469_6465_6d61_726b;

/// A valid record: one delivery of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Event time in ms since 1970, the stream's unit and offset applied.
    pub time: Millis,
    /// One value for each of the stream's fields, in the catalog's order.
    pub values: Vec<Value>,
    /// What makes it the same event as another delivery.
    pub identity: Identity,
}

/// Why a record can't be counted. The text is shown to people; `code` is what metrics and files are labelled with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Reject {
    /// Not a JSON object, or not JSON at all.
    #[error("not a valid JSON object: {0}")]
    NotJson(String),
    /// A field has a value of another type, or one that its type can't hold.
    #[error("field {field}: {problem}")]
    Field {
        /// The field's name.
        field: String,
        /// What is wrong, with the value.
        problem: String,
    },
    /// The event time is missing.
    #[error("field {0} is the event time and must not be null")]
    NoEventTime(String),
    /// The event time lies outside the stream's bounds.
    #[error("event time {event_time} is outside the stream's bounds {bounds}")]
    OutOfBounds {
        /// The event time, readable.
        event_time: String,
        /// The bounds that applied, readable.
        bounds: String,
    },
    /// The record has no value and is no tick.
    #[error("the record is empty and carries no tick header")]
    Empty,
    /// The record is longer than the stream allows.
    #[error("the record has {size} bytes; the stream allows {limit} (max_record_bytes)")]
    TooLarge {
        /// Its length.
        size: usize,
        /// The stream's limit.
        limit: usize,
    },
}

impl Reject {
    /// A short, stable name of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            Reject::NotJson(_) => "not_json",
            Reject::Field { .. } => "bad_field",
            Reject::NoEventTime(_) => "no_event_time",
            Reject::OutOfBounds { .. } => "event_time_out_of_bounds",
            Reject::Empty => "empty",
            Reject::TooLarge { .. } => "too_large",
        }
    }
}

/// Decodes and validates one record of a stream. `append_time` is the broker's LogAppendTime of this very record.
pub fn decode(
    stream: &Stream,
    tp: &TopicPartition,
    offset: i64,
    append_time: Millis,
    value: Option<&[u8]>,
) -> Result<Event, Reject> {
    let (time, values) = decode_values(stream, append_time, value)?;
    let identity = Identity::of_record(stream, tp, offset, &values);
    Ok(Event { time, values, identity })
}

/// As [`decode`], but gives the event's time and values alone, for those to whom its identity doesn't matter: it takes a
/// while to make.
pub fn decode_values(
    stream: &Stream,
    append_time: Millis,
    value: Option<&[u8]>,
) -> Result<(Millis, Vec<Value>), Reject> {
    let bytes = value.ok_or(Reject::Empty)?;
    if bytes.len() > stream.max_record_bytes {
        return Err(Reject::TooLarge { size: bytes.len(), limit: stream.max_record_bytes });
    }
    validate(stream, Some(append_time), json::read(stream.recorded(), bytes)?)
}

fn text_problem(text: &str, limit: usize) -> Option<String> {
    if text.len() > limit {
        return Some(format!(
            "the text has {} bytes; the stream allows {limit} (max_text_bytes)",
            text.len()
        ));
    }
    let nul = text.contains('\0');
    nul.then(|| "the text contains U+0000, which the batch view can't store".to_owned())
}

/// Validates the values of one row (one per field that a record carries, already of the fields' types) and adds the
/// append time where it is a field: the part of decoding that an import shares with the log. `append_time` is `None`
/// for rows that no broker stamped: only fixed bounds apply.
pub fn from_values(
    stream: &Stream,
    tp: &TopicPartition,
    offset: i64,
    append_time: impl Into<Option<Millis>>,
    values: Vec<Value>,
) -> Result<Event, Reject> {
    let (time, values) = validate(stream, append_time.into(), values)?;
    let identity = Identity::of_record(stream, tp, offset, &values);
    Ok(Event { time, values, identity })
}

/// The event time and all values of a valid row.
fn validate(
    stream: &Stream,
    append_time: Option<Millis>,
    mut values: Vec<Value>,
) -> Result<(Millis, Vec<Value>), Reject> {
    debug_assert_eq!(values.len(), stream.recorded, "one value for each field that a record carries");
    values.resize(stream.fields.len(), append_time.map_or(Value::Null, Value::Int));
    for (field, value) in stream.fields.iter().zip(&values) {
        if let Value::Str(text) = value
            && let Some(problem) = text_problem(text, stream.max_text_bytes)
        {
            return Err(Reject::Field { field: field.name.clone(), problem });
        }
    }
    let time_field = &stream.fields[stream.event_time.field];
    let time = match &values[stream.event_time.field] {
        Value::Null => return Err(Reject::NoEventTime(time_field.name.clone())),
        Value::Int(raw) => stream.event_time.to_millis(*raw).ok_or_else(|| Reject::Field {
            field: time_field.name.clone(),
            problem: format!("{raw} is no time that a calendar can hold"),
        })?,
        other => {
            return Err(Reject::Field {
                field: time_field.name.clone(),
                problem: format!("expected an integer time, found {other}"),
            });
        }
    };
    if let Some(bounds) = stream.bounds.refuse(time, append_time) {
        let bounds = format!("[{}, {})", time::show(bounds.start), time::show(bounds.end));
        return Err(Reject::OutOfBounds { event_time: time::show(time), bounds });
    }
    Ok((time, values))
}
