//! Validates streams: fields, event time, identity, bounds and dimensions.

use super::check::Check;
use super::literal::{NAME_LENGTH, field_type, instant, is_field_name, is_name, is_topic, show_duration};
use super::raw::{RawBounds, RawStream, RawUnit};
use super::validate::{Known, duration_of};
use super::{Bounds, Dimension, EventTimeField, Field, Stream, TimeUnit, version};
use crate::event::FieldType;
use crate::expression::{self, Expression, ExpressionError};
use crate::time::{DAY, Interval, Millis};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most days that fixed bounds may span: the most days that a stream can ever make dirty.
const MOST_DAYS: Millis = 3_660;

/// Validates all streams.
pub(super) fn validate<'a>(
    raw: &'a BTreeMap<String, RawStream>,
    check: &mut Check<'_>,
) -> Vec<Known<'a, Stream>> {
    let mut topics: BTreeMap<&str, &str> = BTreeMap::new();
    let mut known = Vec::new();
    for (name, raw) in raw {
        if let Some(topic) = raw.topic.as_deref() {
            if let Some(other) = topics.get(topic) {
                let message =
                    format!("topic {topic:?} is that of stream {other:?} already; a topic is one stream");
                check.fault(&["streams", name, "topic"], message);
            }
            topics.insert(topic, name);
        }
        let before = check.count();
        let stream = Reading { name, raw, check }.stream();
        let whole = check.count() == before && !check.is_refused(&["streams", name]);
        known.push(Known { name, valid: stream.filter(|_| whole).map(Arc::new) });
    }
    known
}

/// The type of a field that isn't the record's own: when the broker appended it, ms since 1970.
const APPEND_TIME: &str = "append_time";

struct Reading<'a, 'c, 'd> {
    name: &'a str,
    raw: &'a RawStream,
    check: &'c mut Check<'d>,
}

impl Reading<'_, '_, '_> {
    fn stream(&mut self) -> Option<Stream> {
        let (name, raw) = (self.name, self.raw);
        if !is_name(name) {
            self.check.fault(&["streams", name], bad_name(name));
        }
        let topic = self.topic();
        let (fields, recorded) = self.fields();
        let carried = &fields[..recorded];
        let event_time = self.event_time(carried);
        let identity = self.identity(carried, event_time.as_ref());
        let message_key = self.message_key(carried, &identity);
        let dimensions = self.dimensions(&fields);
        let bounds = self.bounds();
        let lateness = self.path(&["lateness"], |path, check| {
            duration_of(raw.lateness.as_deref(), 60_000, path, 0..=30 * DAY, check)
        });
        let dedup_horizon = self.number("dedup_horizon", raw.dedup_horizon, 1_000_000, 0, 100_000_000);
        // Without identity fields each record is an event of its own: there are no repeats to look for.
        let dedup_horizon = if identity.is_empty() { 0 } else { dedup_horizon };
        let max_record_bytes = self.number("max_record_bytes", raw.max_record_bytes, 1 << 20, 1, 64 << 20);
        let max_text_bytes = self.number("max_text_bytes", raw.max_text_bytes, 4_096, 1, 1 << 20);
        let mut stream = Stream {
            name: name.to_owned(),
            topic: topic?.into(),
            fields,
            recorded,
            dimensions,
            event_time: event_time?,
            identity,
            message_key,
            dedup_horizon,
            lateness,
            bounds: bounds?,
            max_record_bytes: max_record_bytes as usize,
            max_text_bytes: max_text_bytes as usize,
            facts: raw.facts.unwrap_or(false),
            version: 0,
        };
        stream.version = version::of_stream(&stream);
        Some(stream)
    }

    fn path<T>(&mut self, rest: &[&str], then: impl FnOnce(&[&str], &mut Check<'_>) -> T) -> T {
        let path = [&["streams", self.name], rest].concat();
        then(&path, self.check)
    }

    fn fault(&mut self, rest: &[&str], message: impl Into<String>) {
        self.path(rest, |path, check| check.fault(path, message));
    }

    /// A key that must be given.
    fn required<'v, T>(&mut self, key: &str, value: &'v Option<T>, example: &str) -> Option<&'v T> {
        let refused = self.path(&[key], |path, check| check.is_refused(path));
        if value.is_none() && !refused {
            self.fault(&[], format!("{key} is missing; add {example}"));
        }
        value.as_ref()
    }

    fn number(&mut self, key: &str, value: Option<i64>, default: i64, least: i64, most: i64) -> i64 {
        let value = value.unwrap_or(default);
        if !(least..=most).contains(&value) {
            self.fault(&[key], format!("{value} is not within {least} and {most}"));
        }
        value.clamp(least, most)
    }

    fn topic(&mut self) -> Option<String> {
        let topic = self.required("topic", &self.raw.topic, "topic = \"...\"")?;
        if !is_topic(topic) {
            let message = format!("{topic:?} is no topic; 1 to 236 letters, digits, '.', '_' or '-'");
            self.fault(&["topic"], message);
        }
        if topic.ends_with(".dead-letters") {
            self.fault(&["topic"], "a topic must not end with \".dead-letters\": such topics hold rejects");
        }
        Some(topic.clone())
    }

    /// The fields, and how many of them a record carries; the others come last.
    fn fields(&mut self) -> (Vec<Field>, usize) {
        let Some(raw) = self.required("fields", &self.raw.fields, "fields = { name = \"string\" }") else {
            return (Vec::new(), 0);
        };
        let (mut fields, mut appended) = (Vec::<Field>::new(), Vec::new());
        let document = self.check.document();
        for name in document.order(&["streams", self.name, "fields"]) {
            let Some(text) = raw.get(&name) else { continue };
            if !is_field_name(&name) {
                let message =
                    format!("a field's name is a letter, then letters, digits or '_', {NAME_LENGTH} at most");
                self.fault(&["fields", &name], message);
            }
            let mut others = fields.iter().chain(&appended);
            if let Some(other) = others.find(|other| other.name.eq_ignore_ascii_case(&name)) {
                let message = format!("differs from field {:?} by capitals only", other.name);
                self.fault(&["fields", &name], message);
            }
            match field_type(text) {
                _ if text == APPEND_TIME => appended.push(Field { name, ty: FieldType::Int }),
                Some(ty) => fields.push(Field { name, ty }),
                None => self.path(&["fields", &name], |path, check| {
                    let known = ["string", "int", "float", "bool", "decimal(2)", APPEND_TIME];
                    let message = format!(
                        "unknown type {text:?}; types are string, int, float, bool, decimal(n) with n up to 18, and \
                         {APPEND_TIME}"
                    );
                    let suggestion = super::fault::nearest(text, known);
                    check.refuse(path, message, suggestion);
                }),
            }
        }
        let recorded = fields.len();
        fields.append(&mut appended);
        (fields, recorded)
    }

    /// The index of a field that is named at a key, which copies of an event must have in common: one that a record carries.
    fn field(&mut self, fields: &[Field], named: &str, at: &[&str]) -> Option<usize> {
        let found = fields.iter().position(|field| field.name == named);
        let declared = self.raw.fields.as_ref().and_then(|fields| fields.get(named));
        if declared.is_some_and(|text| text == APPEND_TIME) {
            let message = format!("field {named:?} is an append time, in which copies of an event differ");
            self.fault(at, message);
            return None;
        }
        let refused = self.path(&["fields", named], |path, check| check.is_refused(path));
        if found.is_none() && !refused {
            let message = format!("unknown field {named:?} of stream {}", self.name);
            let known: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
            self.path(at, |path, check| check.unknown(path, message, named, known));
        }
        found
    }

    fn event_time(&mut self, fields: &[Field]) -> Option<EventTimeField> {
        let raw = self.required("event_time", &self.raw.event_time, "event_time = { field = \"...\" }")?;
        let named = match &raw.field {
            Some(named) => named,
            None => {
                self.fault(&["event_time", "field"], "field is missing; name the field with the event time");
                return None;
            }
        };
        let field = self.field(fields, named, &["event_time", "field"])?;
        if fields[field].ty != FieldType::Int {
            let message = format!("field {named:?} is {}; an event time is an int", fields[field].ty.name());
            self.fault(&["event_time", "field"], message);
        }
        let unit = match raw.unit.unwrap_or(RawUnit::Ms) {
            RawUnit::S => TimeUnit::Seconds,
            RawUnit::Ms => TimeUnit::Millis,
            RawUnit::Us => TimeUnit::Micros,
        };
        Some(EventTimeField { field, unit, offset: raw.offset.unwrap_or(0) })
    }

    fn identity(&mut self, fields: &[Field], event_time: Option<&EventTimeField>) -> Vec<usize> {
        let mut identity = Vec::new();
        let named = self.raw.identity.as_deref().unwrap_or_default();
        for name in named {
            let Some(field) = self.field(fields, name, &["identity"]) else { continue };
            if identity.contains(&field) {
                self.fault(&["identity"], format!("names field {name:?} twice"));
            }
            identity.push(field);
        }
        if let Some(event_time) = event_time
            && identity.len() == named.len()
            && !identity.is_empty()
            && !identity.contains(&event_time.field)
        {
            let name = &fields[event_time.field].name;
            let message = format!(
                "must contain the event time {name:?}: copies of an event have one event time; or leave identity out"
            );
            self.fault(&["identity"], message);
        }
        identity
    }

    fn message_key(&mut self, fields: &[Field], identity: &[usize]) -> Option<usize> {
        let named = self.raw.message_key.as_deref()?;
        let field = self.field(fields, named, &["message_key"])?;
        let whole = self.raw.identity.as_ref().is_some_and(|named| named.len() == identity.len());
        if whole && !identity.is_empty() && !identity.contains(&field) {
            let message =
                format!("{named:?} is not in identity: repeats of an event must meet in one partition");
            self.fault(&["message_key"], message);
        }
        Some(field)
    }

    fn dimensions(&mut self, fields: &[Field]) -> Vec<Dimension> {
        let mut dimensions = Vec::new();
        let document = self.check.document();
        for name in document.order(&["streams", self.name, "dimensions"]) {
            let Some(sql) = self.raw.dimensions.get(&name) else { continue };
            if let Some(problem) = column_problem(&name) {
                self.fault(&["dimensions", &name], problem);
            }
            if fields.iter().any(|field| field.name.eq_ignore_ascii_case(&name)) {
                self.fault(&["dimensions", &name], "a field has this name already");
            }
            match expression::parse(sql, &|name| field_expression(fields, name)) {
                Ok(expression) => dimensions.push(Dimension { name, sql: sql.clone(), expression }),
                Err(error) => self.refuse_dimension(fields, &name, &error),
            }
        }
        dimensions
    }

    fn refuse_dimension(&mut self, fields: &[Field], name: &str, error: &ExpressionError) {
        let mut message = error.to_string();
        let mut suggestion = None;
        if let ExpressionError::UnknownField(named) = error {
            let refused = self.path(&["fields", named], |path, check| check.is_refused(path));
            if refused {
                return;
            }
            message = format!("{message} of stream {}", self.name);
            suggestion = super::fault::nearest(named, fields.iter().map(|field| field.name.as_str()));
            if self.raw.dimensions.contains_key(named) {
                message =
                    format!("{named:?} is a dimension, and a dimension can't refer to another; write it out");
                suggestion = None;
            }
        }
        self.path(&["dimensions", name], |path, check| check.refuse(path, message, suggestion));
    }

    fn bounds(&mut self) -> Option<Bounds> {
        let default = RawBounds::default();
        let raw = self.raw.bounds.as_ref().unwrap_or(&default);
        let fixed = raw.from.is_some() || raw.to.is_some();
        if fixed && (raw.past.is_some() || raw.future.is_some()) {
            self.fault(&["bounds"], "has both kinds; use { past, future } or { from, to }");
            return None;
        }
        if !fixed {
            let limits = 1_000..=MOST_DAYS * DAY;
            let past = self.path(&["bounds", "past"], |path, check| {
                duration_of(raw.past.as_deref(), 30 * DAY, path, limits.clone(), check)
            });
            let future = self.path(&["bounds", "future"], |path, check| {
                duration_of(raw.future.as_deref(), 300_000, path, 1_000..=30 * DAY, check)
            });
            return Some(Bounds::Relative { past, future });
        }
        let start = self.instant("from", raw.from.as_deref());
        let end = self.instant("to", raw.to.as_deref());
        let span = Interval { start: start?, end: end? };
        if span.start >= span.end {
            self.fault(&["bounds"], "from is not before to");
        } else if span.end.saturating_sub(span.start) > MOST_DAYS * DAY {
            let most = show_duration(MOST_DAYS * DAY);
            self.fault(&["bounds"], format!("spans more than {most}, and each day may have to be computed"));
        }
        Some(Bounds::Fixed(span))
    }

    fn instant(&mut self, key: &str, text: Option<&str>) -> Option<Millis> {
        match text.map(instant) {
            Some(Ok(time)) => return Some(time),
            Some(Err(problem)) => self.fault(&["bounds", key], problem),
            None => {
                self.fault(&["bounds", key], format!("{key} is missing; fixed bounds are {{ from, to }}"))
            }
        }
        None
    }
}

/// What is wrong with the name of a dimension or column, if anything.
pub(super) fn column_problem(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("the name {name:?} is reserved: the views have a column of this name"));
    }
    (!is_name(name)).then(|| bad_name(name))
}

/// Names that every view's own columns and Postgres have taken; those of single aggregates are refused where used.
const RESERVED: [&str; 9] =
    ["bucket", "value", "version_id", "tableoid", "xmin", "xmax", "cmin", "cmax", "ctid"];

/// Says what a name must be.
pub(super) fn bad_name(name: &str) -> String {
    format!("{name:?} is no name; a small letter, then small letters, digits or '_', {NAME_LENGTH} at most")
}

/// A bare field by its name.
pub(super) fn field_expression(fields: &[Field], name: &str) -> Option<Expression> {
    let at = fields.iter().position(|field| field.name == name)?;
    Some(Expression::field(at, fields[at].ty))
}
