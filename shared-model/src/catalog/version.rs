//! Versions: hashes over a canonical text of all that values depend on, and of nothing else.
//!
//! A golden test pins the text and the hash: a change of either makes every view new for everyone.

use super::{Bounds, Stream, TimeUnit};
use crate::aggregate::Aggregate;
use crate::event::FieldType;
use crate::metric::{Binding, KeyColumn, Metric, MetricVersion};
use std::fmt::Write as _;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Raised whenever stored states or keys change their bytes or a record its meaning, so that no old view is merged
/// with a new one.
pub const MEANING: u32 = 1;

/// The version of a stream: what decides whether a record counts and what it says. Not in it: lateness, dedup
/// horizon, message key and facts, which decide when and where, and dimensions, which count where they are used.
pub(super) fn of_stream(stream: &Stream) -> u64 {
    xxh3_64(stream_text(stream).as_bytes())
}

/// The version of a metric over its streams, which are in the order of its bindings. Not in it: window, publishing,
/// k (all are applied when read) and the words for people.
pub(super) fn of_metric(metric: &Metric, streams: &[Arc<Stream>]) -> MetricVersion {
    MetricVersion(xxh3_64(metric_text(metric, streams).as_bytes()))
}

fn stream_text(stream: &Stream) -> String {
    let recorded = stream.recorded().iter().map(|field| format!("{} {}", field.name, field.ty.name()));
    let appended = stream.fields[stream.recorded..].iter().map(|field| format!("{} append_time", field.name));
    let mut fields: Vec<String> = recorded.chain(appended).collect();
    fields.sort();
    let mut identity: Vec<&str> = stream.identity.iter().map(|&at| stream.fields[at].name.as_str()).collect();
    identity.sort_unstable();
    let time = &stream.event_time;
    let unit = match time.unit {
        TimeUnit::Seconds => "s",
        TimeUnit::Millis => "ms",
        TimeUnit::Micros => "us",
    };
    let bounds = match stream.bounds {
        Bounds::Relative { past, future } => format!("relative {past} {future}"),
        Bounds::Fixed(span) => format!("fixed {} {}", span.start, span.end),
    };
    format!(
        "stream {}\ntopic {}\nfields {}\nidentity {}\nevent_time {} {unit} {}\nbounds {bounds}\nmax_record_bytes {}\n\
         max_text_bytes {}\n",
        stream.name,
        stream.topic,
        fields.join(", "),
        identity.join(", "),
        stream.fields[time.field].name,
        time.offset,
        stream.max_record_bytes,
        stream.max_text_bytes,
    )
}

fn metric_text(metric: &Metric, streams: &[Arc<Stream>]) -> String {
    let mut text = format!("meaning {MEANING}\nmetric {}\n", metric.name);
    let columns = metric.by.iter().map(column_text).collect::<Vec<_>>().join(", ");
    let item = metric.item.as_ref().map(column_text).unwrap_or_default();
    let (aggregate, grain) = (aggregate_text(&metric.aggregate), metric.grain.width());
    // Writing to a String can't fail.
    let _ = write!(text, "by {columns}\nitem {item}\naggregate {aggregate}\ngrain {grain}\n");
    for (binding, stream) in metric.bindings.iter().zip(streams) {
        text.push_str(&binding_text(binding, stream));
    }
    text
}

fn column_text(column: &KeyColumn) -> String {
    format!("{} {}", column.name, column.ty.name())
}

fn aggregate_text(aggregate: &Aggregate) -> String {
    let of = |name: &str, ty: &FieldType| format!("{name} {}", ty.name());
    match aggregate {
        Aggregate::Count => "count".to_owned(),
        Aggregate::Sum(ty) => of("sum", ty),
        Aggregate::Min(ty) => of("min", ty),
        Aggregate::Max(ty) => of("max", ty),
        Aggregate::Mean(ty) => of("mean", ty),
        Aggregate::Distinct => "distinct".to_owned(),
        Aggregate::TopK { .. } => "top_k".to_owned(),
        // Which quantiles are served decides the columns of the stored view.
        Aggregate::Quantile { ty, quantiles } => format!("quantile {} {quantiles:?}", ty.name()),
        Aggregate::Sessions { of, idle } => format!("sessions {of} {idle}"),
    }
}

fn binding_text(binding: &Binding, stream: &Stream) -> String {
    let name = |at: usize| stream.fields[at].name.clone();
    let parts = [
        ("by", binding.by.iter().collect::<Vec<_>>()),
        ("item", binding.item.iter().collect()),
        ("filter", binding.filter.iter().collect()),
        ("value", binding.value.iter().collect()),
    ];
    let mut text = format!("binding {:016x}\n", stream.version);
    for (part, expressions) in parts {
        for expression in expressions {
            let _ = writeln!(text, "{part} {}", expression.canonical(&name));
        }
    }
    text
}
