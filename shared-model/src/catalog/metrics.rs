//! Validates metrics: resolves each against all of its streams.

mod aggregate;

use super::check::Check;
use super::fault::nearest;
use super::literal::{is_name, show_duration};
use super::raw::{RawAggregate, RawMetric};
use super::streams::{bad_name, column_problem, field_expression};
use super::validate::{Known, duration_of};
use super::{Layout, Stream, version};
use crate::aggregate::Aggregate;
use crate::event::FieldType;
use crate::expression::{self, Expression, ExpressionError};
use crate::metric::{Binding, KeyColumn, Metric, MetricVersion};
use crate::time::{DAY, Grain, SlidingWindow};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most columns of a key.
const MOST_COLUMNS: usize = 8;

/// Validates all metrics.
pub(super) fn validate<'a>(
    raw: &'a BTreeMap<String, RawMetric>,
    streams: &[Known<'_, Stream>],
    layout: &Layout,
    check: &mut Check<'_>,
) -> Vec<Known<'a, Metric>> {
    let mut known = Vec::new();
    for (name, raw) in raw {
        let before = check.count();
        let metric = Reading { name, raw, streams, layout, check }.metric();
        let whole = check.count() == before;
        known.push(Known { name, valid: metric.filter(|_| whole).map(Arc::new) });
    }
    known
}

struct Reading<'a, 'c, 'd> {
    name: &'a str,
    raw: &'a RawMetric,
    streams: &'a [Known<'a, Stream>],
    layout: &'a Layout,
    check: &'c mut Check<'d>,
}

impl Reading<'_, '_, '_> {
    fn metric(&mut self) -> Option<Metric> {
        let (name, raw) = (self.name, self.raw);
        if !is_name(name) {
            self.fault(None, bad_name(name));
        }
        let grain = self.grain();
        let window = self.window();
        if raw.publish == Some(true) && raw.window.is_none() {
            self.fault(Some("publish"), "there is nothing to publish without a window");
        }
        let fed = self.fed_by();
        let by = self.by(fed.as_deref());
        let item = self.item(fed.as_deref());
        let mut bindings = Vec::new();
        let mut value_type = None;
        for stream in fed.iter().flatten() {
            bindings.push(self.binding(stream, &by, item.as_ref(), &mut value_type));
        }
        let aggregate = self.aggregate(value_type, fed.as_deref());
        self.distinct_columns(&by, aggregate.as_ref());
        let mut metric = Metric {
            name: name.to_owned(),
            live_name: window.map(|window| format!("{name}_{}", show_duration(window.width))),
            version: MetricVersion(0),
            by,
            item,
            aggregate: aggregate?,
            bindings,
            window,
            grain: grain?,
            publish: raw.publish.unwrap_or(false),
            description: raw.description.clone().unwrap_or_default(),
            owner: raw.owner.clone().unwrap_or_default(),
            unit: raw.unit.clone().unwrap_or_default(),
            tags: self.tags(),
        };
        // Without all of its streams there is no metric; their faults were reported.
        let fed = fed?;
        metric.version = version::of_metric(&metric, &fed);
        Some(metric)
    }

    fn fault(&mut self, key: Option<&str>, message: impl Into<String>) {
        match key {
            Some(key) => self.check.fault(&["metrics", self.name, key], message),
            None => self.check.fault(&["metrics", self.name], message),
        }
    }

    fn is_refused(&self, key: &str) -> bool {
        self.check.is_refused(&["metrics", self.name, key])
    }

    fn tags(&mut self) -> Vec<String> {
        let mut tags = self.raw.tags.clone();
        if let Some(wrong) = tags.iter().find(|tag| !is_name(tag)) {
            self.fault(Some("tags"), bad_name(wrong));
        }
        tags.sort();
        tags.dedup();
        tags
    }

    fn grain(&mut self) -> Option<Grain> {
        let Some(text) = self.raw.grain.as_deref() else {
            if !self.is_refused("grain") {
                self.fault(None, "grain is missing; add the bucket width of its views, like grain = \"20m\"");
            }
            return None;
        };
        let width = duration_of(Some(text), DAY, &["metrics", self.name, "grain"], 1_000..=DAY, self.check);
        let grain = Grain::new(width);
        if grain.is_none() {
            self.fault(
                Some("grain"),
                format!("{text} does not divide a day; take 5m, 20m, 1h or 1d, for example"),
            );
        }
        grain
    }

    fn window(&mut self) -> Option<SlidingWindow> {
        let text = self.raw.window.as_deref()?;
        let pane = self.layout.pane;
        let width = duration_of(Some(text), pane, &["metrics", self.name, "window"], pane..=DAY, self.check);
        if width % pane != 0 {
            self.fault(Some("window"), format!("{text} is no multiple of the pane, {}", show_duration(pane)));
        }
        Some(SlidingWindow { width, pane })
    }

    /// The streams that feed it, ordered by name; `None` if one is unknown or faulty.
    fn fed_by(&mut self) -> Option<Vec<Arc<Stream>>> {
        let (key, mut names) = match (&self.raw.stream, &self.raw.streams) {
            (Some(_), Some(_)) => {
                self.fault(Some("streams"), "give stream or streams, not both");
                return None;
            }
            (Some(one), None) => ("stream", vec![one.as_str()]),
            (None, Some(many)) => ("streams", many.iter().map(String::as_str).collect()),
            (None, None) => ("stream", Vec::new()),
        };
        if names.is_empty() {
            if !self.is_refused("stream") && !self.is_refused("streams") {
                self.fault(
                    None,
                    "stream is missing; add the stream that feeds it, like stream = \"page_views\"",
                );
            }
            return None;
        }
        names.sort_unstable();
        let mut fed = Some(Vec::new());
        for (nth, name) in names.iter().enumerate() {
            if nth > 0 && names[nth - 1] == *name {
                self.fault(Some(key), format!("names stream {name:?} twice"));
            }
            let known = self.streams.iter().find(|known| known.name == *name);
            if known.is_none()
                && !self.check.is_refused(&["streams"])
                && !self.check.is_refused(&["streams", name])
            {
                let known = self.streams.iter().map(|known| known.name);
                let message = format!("unknown stream {name:?}");
                self.check.unknown(&["metrics", self.name, key], message, name, known);
            }
            fed = match (fed, known.and_then(|known| known.valid.clone())) {
                (Some(mut fed), Some(stream)) => {
                    fed.push(stream);
                    Some(fed)
                }
                _ => None,
            };
        }
        fed
    }

    /// The type of a field or dimension that all streams have, as a key column.
    fn column(&mut self, key: &str, name: &str, fed: Option<&[Arc<Stream>]>) -> Option<KeyColumn> {
        if let Some(problem) = column_problem(name) {
            self.fault(Some(key), format!("{problem}; name a dimension for it"));
            return None;
        }
        let mut found: Option<(FieldType, &str)> = None;
        for stream in fed? {
            let Some(ty) = in_scope(stream, name).map(|expression| expression.ty) else {
                let message = format!("unknown field {name:?} of stream {}", stream.name);
                self.check.unknown(&["metrics", self.name, key], message, name, names_of(stream));
                return None;
            };
            match found {
                Some((other, of)) if other != ty => {
                    let (other, ty) = (other.name(), ty.name());
                    let message =
                        format!("{name:?} is {other} in stream {of} and {ty} in stream {}", stream.name);
                    self.fault(Some(key), message);
                    return None;
                }
                _ => found = Some((ty, &stream.name)),
            }
        }
        let (ty, _) = found?;
        if matches!(ty, FieldType::Float | FieldType::Decimal(_)) {
            let message = format!("{name:?} is {}; a key is string, int or bool", ty.name());
            self.fault(Some(key), message);
            return None;
        }
        Some(KeyColumn { name: name.to_owned(), ty })
    }

    fn by(&mut self, fed: Option<&[Arc<Stream>]>) -> Vec<KeyColumn> {
        let names = &self.raw.by;
        if names.len() > MOST_COLUMNS {
            self.fault(Some("by"), format!("has {} columns; {MOST_COLUMNS} at most", names.len()));
        }
        for (nth, name) in names.iter().enumerate() {
            if names[..nth].contains(name) {
                self.fault(Some("by"), format!("names {name:?} twice"));
            }
        }
        names.iter().filter_map(|name| self.column("by", name, fed)).collect()
    }

    fn item(&mut self, fed: Option<&[Arc<Stream>]>) -> Option<KeyColumn> {
        let name = self.raw.item.as_deref()?;
        if self.raw.by.iter().any(|by| by == name) {
            self.fault(Some("item"), format!("{name:?} is in by already: each key would have one item"));
        }
        self.column("item", name, fed)
    }

    /// A key column must not be named like one of the columns that store the aggregate.
    fn distinct_columns(&mut self, by: &[KeyColumn], aggregate: Option<&Aggregate>) {
        let Some(aggregate) = aggregate else { return };
        let own = aggregate.columns();
        for column in by.iter().filter(|column| own.iter().any(|(name, _)| *name == column.name)) {
            let message = format!(
                "{:?} is a column of this aggregate's own; name another dimension for it",
                column.name
            );
            self.fault(Some("by"), message);
        }
    }

    fn binding(
        &mut self,
        stream: &Stream,
        by: &[KeyColumn],
        item: Option<&KeyColumn>,
        value_type: &mut Option<FieldType>,
    ) -> Binding {
        let filter = self.expression("filter", self.raw.filter.as_deref(), stream);
        if let Some(filter) = filter.as_ref().filter(|filter| filter.ty != FieldType::Bool) {
            self.fault(
                Some("filter"),
                format!("is {}; a filter is bool, like platform = 1", filter.ty.name()),
            );
        }
        let value = match self.raw.aggregate {
            Some(RawAggregate::Sessions) => {
                field_expression(&stream.fields, &stream.fields[stream.event_time.field].name)
            }
            _ => self.expression("value", self.raw.value.as_deref(), stream),
        };
        if let Some(value) = &value {
            match *value_type {
                Some(other) if other != value.ty => {
                    let (other, ty) = (other.name(), value.ty.name());
                    let message =
                        format!("is {ty} in stream {} and {other} in another; cast it", stream.name);
                    self.fault(Some("value"), message);
                }
                _ => *value_type = Some(value.ty),
            }
        }
        let column = |column: &KeyColumn| in_scope(stream, &column.name);
        Binding {
            stream: stream.name.clone(),
            by: by.iter().filter_map(column).collect(),
            item: item.and_then(column),
            filter,
            value,
        }
    }

    fn expression(&mut self, key: &str, sql: Option<&str>, stream: &Stream) -> Option<Expression> {
        let error = match expression::parse(sql?, &|name| in_scope(stream, name)) {
            Ok(expression) => return Some(expression),
            Err(error) => error,
        };
        let (mut message, mut suggestion) = (error.to_string(), None);
        if let ExpressionError::UnknownField(name) = &error {
            message = format!("{message} of stream {}", stream.name);
            suggestion = nearest(name, names_of(stream));
        }
        self.check.refuse(&["metrics", self.name, key], message, suggestion);
        None
    }
}

/// A field or dimension of a stream.
fn in_scope(stream: &Stream, name: &str) -> Option<Expression> {
    let dimension = stream.dimensions.iter().find(|dimension| dimension.name == name);
    dimension.map(|found| found.expression.clone()).or_else(|| field_expression(&stream.fields, name))
}

fn names_of(stream: &Stream) -> impl Iterator<Item = &str> {
    let dimensions = stream.dimensions.iter().map(|dimension| dimension.name.as_str());
    stream.fields.iter().map(|field| field.name.as_str()).chain(dimensions)
}
