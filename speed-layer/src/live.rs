//! Finished values under plain names: what a reader with `redis-cli` alone gets.
//!
//! Pure. A name is the metric's live name and the key's parts joined by `:`; a key whose value is 0 or nothing has no
//! name at all, so that what has slid out is gone.

use shared_model::aggregate::Finished;
use shared_model::catalog::Catalog;
use shared_model::codec::CodecError;
use shared_model::event::Value;
use shared_model::metric::Metric;
use std::fmt::Write as _;
use std::sync::Arc;

/// The metrics that are published.
pub(crate) fn published_metrics(catalog: &Catalog) -> Vec<Arc<Metric>> {
    let live =
        |metric: &&Arc<Metric>| metric.publish && metric.window.is_some() && metric.live_name.is_some();
    catalog.metrics.iter().filter(live).cloned().collect()
}

/// The name that a metric's keys begin with.
pub(crate) fn live_name(metric: &Metric) -> &str {
    metric.live_name.as_ref().unwrap_or(&metric.name)
}

/// Appends the name of a cell; takes the `by` values off the key.
pub(crate) fn name(metric: &Metric, key: &mut &[u8], name: &mut String) -> Result<(), CodecError> {
    name.push_str(live_name(metric));
    for _ in &metric.by {
        name.push(':');
        part(key, name)?;
    }
    Ok(())
}

/// Appends a key's next value.
fn part(key: &mut &[u8], name: &mut String) -> Result<(), CodecError> {
    match Value::decode_text(key)? {
        Some(text) => escape(text, name),
        None => item(&Value::decode(key)?, name),
    }
    Ok(())
}

/// Appends a count that isn't 0, as [`text`] has it.
pub(crate) fn count(count: u64, text: &mut String) {
    match i64::try_from(count) {
        Ok(count) => number(count, text),
        Err(_) => write!(text, "{}", count as f64).expect("writing to a string"),
    }
}

fn number(number: i64, text: &mut String) {
    text.push_str(itoa::Buffer::new().format(number));
}

/// Appends a value as an item of a set: `\N` for NULL, which no text is, since one that begins with `\` has another before it.
pub(crate) fn item(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str(NULL),
        Value::Int(int) => number(*int, text),
        Value::Str(item) => {
            if item.starts_with('\\') {
                text.push('\\');
            }
            text.push_str(item);
        }
        other => write!(text, "{other}").expect("writing to a string"),
    }
}

/// NULL, as in the files that the data comes from.
const NULL: &str = "\\N";

/// Appends a text to a name, percent-encoding what would make it ambiguous or unreadable. Other values have nothing to
/// encode.
fn escape(text: &str, name: &mut String) {
    if is_plain(text) { name.push_str(text) } else { encode(text, name) }
}

/// Whether a text has nothing that would be encoded, at a glance: many bytes at once.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |is_plain, byte| {
        let is_named = byte == b':' || byte == b'%' || byte == b'\\';
        is_plain & (b' '..=b'~').contains(&byte) & !is_named
    })
}

fn encode(text: &str, name: &mut String) {
    for char in text.chars() {
        if matches!(char, ':' | '%' | '\\') || char.is_control() {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                write!(name, "%{byte:02X}").expect("writing to a string");
            }
        } else {
            name.push(char);
        }
    }
}

/// A value as text; `None` where there is nothing to publish.
pub(crate) fn text(value: &Finished) -> Option<String> {
    match value {
        Finished::Null(()) | Finished::Int(0) => None,
        Finished::Int(value) => Some(value.to_string()),
        Finished::Float(value) => Some(value.to_string()),
        Finished::Text(text) => Some(text.clone()),
        list @ Finished::List(_) => serde_json::to_string(list).ok(),
    }
}

#[cfg(test)]
pub(crate) mod naive;

#[cfg(test)]
mod tests {
    use super::*;

    fn part_of(value: &Value) -> String {
        let (mut key, mut name) = (Vec::new(), String::new());
        value.encode(&mut key);
        let mut rest = &key[..];
        part(&mut rest, &mut name).expect("a value");
        assert!(rest.is_empty(), "all of it is taken");
        name
    }

    #[test]
    fn names_are_unambiguous() {
        let check = |value: Value, expected: &str| assert_eq!(part_of(&value), expected);
        check(Value::str("US>CA>807"), "US>CA>807");
        check(Value::str("a:b%c\n"), "a%3Ab%25c%0A");
        check(Value::Null, "\\N");
        check(Value::str("\\N"), "%5CN");
        check(Value::str("%5CN"), "%255CN");
        check(Value::Int(-7), "-7");
        check(Value::Bool(true), "true");
    }

    #[test]
    fn no_text_is_the_item_that_null_is() {
        let check = |value: Value, expected: &str| {
            let mut text = String::new();
            item(&value, &mut text);
            assert_eq!(text, expected);
        };
        check(Value::Null, "\\N");
        check(Value::str("\\N"), "\\\\N");
        check(Value::str("a\\N"), "a\\N");
        check(Value::Int(-7), "-7");
    }

    proptest::proptest! {
        #[test]
        fn a_name_is_one_plain_word_and_leads_back_to_its_value(text: String) {
            let name = part_of(&Value::str(&text));
            proptest::prop_assert!(!name.chars().any(|char| char.is_control() || char == ':' || char == '\\'));
            let mut bytes = name.split('%');
            let mut back = bytes.next().unwrap().as_bytes().to_vec();
            for part in bytes {
                back.push(u8::from_str_radix(&part[..2], 16).unwrap());
                back.extend_from_slice(&part.as_bytes()[2..]);
            }
            proptest::prop_assert_eq!(String::from_utf8(back), Ok(text));
        }
    }
}
