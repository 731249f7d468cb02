//! From the raw catalog to the valid one: the only way to a [`Catalog`].

use super::check::Check;
use super::document::Document;
use super::fault::Fault;
use super::literal::{duration, show_duration};
use super::raw::{RawCatalog, RawLayout};
use super::{Catalog, Layout, formulas, metrics, streams};
use crate::epoch::EpochLength;
use crate::time::{DAY, Millis};

/// Validates a catalog's text.
pub(super) fn validate(text: &str) -> Result<Catalog, Vec<Fault>> {
    let document = Document::parse(text)?;
    let mut check = Check::new(&document);
    let raw: RawCatalog = document.read(&mut check);
    let layout = layout(&raw.layout, &mut check);
    let streams = streams::validate(&raw.streams, &mut check);
    let metrics = metrics::validate(&raw.metrics, &streams, &layout, &mut check);
    let formulas = formulas::validate(&raw.formulas, &metrics, &mut check);
    if raw.streams.is_empty() && !check.is_refused(&["streams"]) && check.count() == 0 {
        check.fault(&[], "the catalog has no stream; add [streams.<name>]");
    }
    let names = raw.metrics.keys().map(|name| ["metrics", name]);
    unique_names(
        names.chain(raw.formulas.keys().map(|name| ["formulas", name])).collect(),
        &metrics,
        &mut check,
    );
    let faults = check.into_faults();
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Catalog {
        layout,
        streams: streams.into_iter().flat_map(|known| known.valid).collect(),
        metrics: metrics.into_iter().flat_map(|known| known.valid).collect(),
        formulas,
    })
}

/// Something of a name that the catalog has; `valid` unless it has a fault that was reported.
pub(super) struct Known<'a, T> {
    pub(super) name: &'a str,
    pub(super) valid: Option<std::sync::Arc<T>>,
}

fn layout(raw: &RawLayout, check: &mut Check<'_>) -> Layout {
    let epoch = duration_of(raw.epoch.as_deref(), 600_000, &["layout", "epoch"], 1_000..=DAY, check);
    let pane = duration_of(raw.pane.as_deref(), 10_000, &["layout", "pane"], 100..=DAY, check);
    if DAY % pane != 0 {
        check.fault(&["layout", "pane"], format!("a pane of {} does not divide a day", show_duration(pane)));
    }
    let groups = raw.groups.unwrap_or(16);
    if !(1..=1024).contains(&groups) {
        check.fault(&["layout", "groups"], format!("{groups} is not within 1 and 1024"));
    }
    Layout { epoch: EpochLength(epoch), groups: groups.clamp(1, 1024) as u32, pane }
}

/// A duration within limits, or its default; after a fault it is the default too.
pub(super) fn duration_of(
    text: Option<&str>,
    default: Millis,
    path: &[&str],
    limits: std::ops::RangeInclusive<Millis>,
    check: &mut Check<'_>,
) -> Millis {
    let Some(text) = text else { return default };
    match duration(text) {
        Ok(millis) if limits.contains(&millis) => return millis,
        Ok(_) => {
            let (least, most) = (show_duration(*limits.start()), show_duration(*limits.end()));
            check.fault(path, format!("{text} is not within {least} and {most}"));
        }
        Err(problem) => check.fault(path, problem),
    }
    default
}

/// Metrics, live names and formulas are asked for in one place, so their names are one namespace.
fn unique_names(
    sections: Vec<[&str; 2]>,
    metrics: &[Known<'_, crate::metric::Metric>],
    check: &mut Check<'_>,
) {
    let mut seen: Vec<&str> = Vec::new();
    for path in &sections {
        if seen.contains(&path[1]) {
            check.fault(path, format!("there is a metric named {:?} already", path[1]));
        }
        seen.push(path[1]);
    }
    let mut lives: Vec<(&str, &str)> = Vec::new();
    for metric in metrics.iter().filter_map(|known| known.valid.as_deref()) {
        let Some(live) = metric.live_name.as_deref() else { continue };
        let path = ["metrics", &metric.name, "window"];
        if seen.contains(&live) {
            check.fault(&path, format!("its live name {live:?} is the name of a metric or formula"));
        } else if let Some((_, other)) = lives.iter().find(|(taken, _)| *taken == live) {
            check.fault(&path, format!("its live name {live:?} is that of metric {other:?} too"));
        }
        lives.push((live, &metric.name));
    }
}
