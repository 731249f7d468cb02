//! The small texts of a catalog: names, durations, dates, field types.

use crate::event::FieldType;
use crate::time::{DAY, EventDay, Millis};

/// The longest name: with a version of 16 digits behind it, it is a table's name, which Postgres cuts after 63 bytes.
pub(super) const NAME_LENGTH: usize = 40;

/// Whether it is a name: a small letter, then small letters, digits and underscores.
pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= NAME_LENGTH
        && bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Whether it is a field's name: as a name, with capitals too, since producers choose it.
pub(super) fn is_field_name(text: &str) -> bool {
    is_name(&text.to_ascii_lowercase())
}

/// Whether Kafka takes it as a topic, with room for the name of its dead-letter topic.
pub(super) fn is_topic(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=236).contains(&text.len()) && text.bytes().all(legal) && text != "." && text != ".."
}

const UNITS: [(&str, Millis); 5] = [("d", DAY), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration: a whole number and its unit, `20m`.
pub(super) fn duration(text: &str) -> Result<Millis, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let millis = unit.and_then(|(_, unit)| number.parse::<Millis>().ok()?.checked_mul(*unit));
    millis.ok_or_else(|| {
        format!("{text:?} is no duration; write a whole number and ms, s, m, h or d, like \"20m\"")
    })
}

/// A duration in its largest whole unit: 300,000 is `5m`.
pub(super) fn show_duration(millis: Millis) -> String {
    let (name, unit) = UNITS.iter().find(|(_, unit)| millis % unit == 0).unwrap_or(&UNITS[4]);
    format!("{}{name}", millis / unit)
}

/// Reads a UTC date or time: `2016-06-13` or `2016-06-13T04:00:00Z`.
pub(super) fn instant(text: &str) -> Result<Millis, String> {
    if let Ok(date) = text.parse::<chrono::NaiveDate>() {
        return Ok(EventDay::from_date(date).interval().start);
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_millis());
    time.map_err(|_| format!("{text:?} is no date; write \"2016-06-13\" or \"2016-06-13T04:00:00Z\""))
}

/// Reads a field's type.
pub(super) fn field_type(text: &str) -> Option<FieldType> {
    match text {
        "string" => Some(FieldType::String),
        "int" => Some(FieldType::Int),
        "float" => Some(FieldType::Float),
        "bool" => Some(FieldType::Bool),
        other => {
            let scale = other.strip_prefix("decimal(")?.strip_suffix(')')?;
            let scale =
                scale.parse::<u8>().ok().filter(|parsed| *parsed <= 18 && parsed.to_string() == scale)?;
            Some(FieldType::Decimal(scale))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_show() {
        let cases =
            [("5m", Some(300_000), "5m"), ("300s", Some(300_000), "5m"), ("90s", Some(90_000), "90s")];
        for (text, millis, shown) in cases {
            assert_eq!(duration(text).ok(), millis);
            assert_eq!(millis.map(show_duration).as_deref(), Some(shown));
        }
        for text in
            ["", "5", "m", "-5m", "5 m", "1.5h", "5M", "99999999999999999999d", "9223372036854775807d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_types_and_dates_are_strict() {
        assert!(is_name("user_view_cnt") && !is_name("User") && !is_name("1a") && !is_name(""));
        assert!(is_field_name("userId") && !is_field_name("_topic") && !is_field_name("é"));
        assert_eq!(field_type("decimal(2)"), Some(FieldType::Decimal(2)));
        for text in ["decimal(19)", "decimal(+1)", "decimal", "Int", "integer"] {
            assert_eq!(field_type(text), None, "{text}");
        }
        assert_eq!(instant("2016-06-13"), Ok(1_465_776_000_000));
        assert_eq!(instant("2016-06-13T01:00:00+01:00"), Ok(1_465_776_000_000));
        assert!(instant("13.06.2016").is_err());
    }
}
