//! What an audit found: figures for each metric, what could not be compared and why, and whether a run may publish.
//! Pure.
//!
//! An error is relative to what the records between the two tidemarks brought, so that the loss of one in a thousand of
//! them reads 0.001, however much the cells held before.

use super::{Name, Touched};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;
use shared_model::aggregate::State;
use shared_model::metric::Metric;
use shared_model::time;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// How many differing cells of a metric are kept as examples.
const EXAMPLES: usize = 5;
/// How many reasons of one kind are kept.
const REASONS: usize = 50;

/// What the comparison of one metric found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Cells that were touched, and compared.
    pub(crate) cells: u64,
    /// Cells that the batch view has and a reader would not have had.
    pub(crate) missing: u64,
    /// Cells that a reader would have had and the batch view has not.
    pub(crate) extra: u64,
    /// Cells that both have, with other states.
    pub(crate) different: u64,
    /// Cells in which repeats healed; not errors.
    pub(crate) healed: u64,
    /// How far apart the sides are over all cells, in what the metric counts.
    pub(crate) distance: f64,
    /// How much of that was brought between the two tidemarks.
    pub(crate) moved: f64,
    /// The greatest relative error of one cell's value.
    pub(crate) worst: f64,
    /// Some of the cells that differ.
    pub(crate) examples: Vec<serde_json::Value>,
}

impl Figures {
    /// Takes in one cell: the batch view's states at T0 and T1, and what moved between.
    pub(super) fn take(
        &mut self,
        metric: &Metric,
        name: &Name,
        before: Option<State>,
        after: Option<State>,
        touched: Touched,
    ) -> Result<()> {
        if touched == Touched::default() && before == after {
            return Ok(());
        }
        self.cells += 1;
        self.healed += u64::from(touched.healed.is_some());
        let (held, brought) = (amount(before.as_ref()), amount(touched.read.as_ref()));
        let reader = merged(before, touched.read)?;
        let batch = merged(after, touched.healed)?;
        self.moved += brought.max((amount(batch.as_ref()) - held).abs());
        match (&reader, &batch) {
            (reader, batch) if reader == batch => return Ok(()),
            (None, _) => self.missing += 1,
            (_, None) => self.extra += 1,
            _ => self.different += 1,
        }
        let distance = distance(reader.as_ref(), batch.as_ref());
        self.distance += distance;
        self.worst = self.worst.max(distance / amount(batch.as_ref()).max(1.0));
        if self.examples.len() < EXAMPLES {
            let finished =
                |state: &Option<State>| state.as_ref().map(|state| state.finish(&metric.aggregate));
            let key: Vec<String> = name.0.iter().map(|value| value.to_string()).collect();
            let (bucket, reader, batch) = (time::show(name.1), finished(&reader), finished(&batch));
            self.examples.push(json!({ "key": key, "bucket": bucket, "reader": reader, "batch": batch }));
        }
        Ok(())
    }

    /// Adds another part's figures.
    pub(crate) fn add(&mut self, other: Figures) {
        self.cells += other.cells;
        self.missing += other.missing;
        self.extra += other.extra;
        self.different += other.different;
        self.healed += other.healed;
        self.distance += other.distance;
        self.moved += other.moved;
        self.worst = self.worst.max(other.worst);
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    /// How many cells differ.
    pub(crate) fn wrong(&self) -> u64 {
        self.missing + self.extra + self.different
    }

    /// The unexplained error, relative to what was brought: 0 exactly where no cell differs.
    pub(crate) fn error(&self) -> f64 {
        if self.distance > 0.0 { self.distance / self.moved.max(self.distance) } else { 0.0 }
    }
}

fn merged(state: Option<State>, more: Option<State>) -> Result<Option<State>> {
    Ok(match (state, more) {
        (Some(mut state), Some(more)) => {
            state.merge(&more).context("states of one cell don't merge")?;
            Some(state)
        }
        (state, more) => state.or(more),
    })
}

/// How much a state stands for: records, values, distinct values, the size of a sum; 1 for a least or greatest value.
fn amount(state: Option<&State>) -> f64 {
    match state {
        None | Some(State::Sum(None)) => 0.0,
        Some(State::Count(count)) => *count as f64,
        Some(State::Sum(Some(sum))) => sum.unsigned_abs() as f64,
        Some(State::Min(value) | State::Max(value)) => f64::from(u8::from(!value.is_null())),
        Some(State::Mean { count, .. }) => *count as f64,
        Some(State::Distinct(distinct)) => distinct.estimate() as f64,
        Some(State::Quantile(histogram)) => histogram.count() as f64,
        Some(State::Sessions(runs)) => runs.count() as f64,
    }
}

/// How far apart two states that differ are: at least 1, so that none passes for equal.
fn distance(reader: Option<&State>, batch: Option<&State>) -> f64 {
    let signed = |state: Option<&State>| match state {
        Some(State::Sum(Some(sum))) => *sum as f64,
        other => amount(other),
    };
    (signed(reader) - signed(batch)).abs().max(1.0)
}

/// Repeats among the records between two tidemarks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Repeats {
    /// Within the dedup horizon: neither view counted them.
    pub(crate) within_horizon: u64,
    /// Healed: from beyond the horizon, both copies above T0.
    pub(crate) beyond_horizon: u64,
    /// Healed: from beyond the horizon, with copies on both sides of T0.
    pub(crate) across_tidemark: u64,
    /// Healed: from another partition.
    pub(crate) across_partitions: u64,
}

impl Repeats {
    /// How many deliveries the realtime view counted and the batch view doesn't.
    pub(crate) fn healed(&self) -> u64 {
        self.beyond_horizon + self.across_tidemark + self.across_partitions
    }

    /// Adds another part's.
    pub(crate) fn add(&mut self, other: Repeats) {
        self.within_horizon += other.within_horizon;
        self.beyond_horizon += other.beyond_horizon;
        self.across_tidemark += other.across_tidemark;
        self.across_partitions += other.across_partitions;
    }
}

/// What the audit of one move of the tidemark found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Audit {
    /// How often the realtime view was read, a part of its groups each time.
    pub(crate) passes: u32,
    /// By metric.
    pub(crate) metrics: BTreeMap<String, Figures>,
    /// The repeats.
    pub(crate) repeats: Repeats,
    /// What could not be compared, and why.
    pub(crate) not_audited: BTreeSet<String>,
    /// Where the speed layer has an epoch's boundary at another offset than the manifests.
    pub(crate) cuts: BTreeSet<String>,
}

/// A run that may not publish.
#[derive(Debug, Clone, PartialEq, Error)]
#[error(
    "refused by the audit: metric {metric} has an unexplained error of {error:.6}, above --strict-audit {threshold} \
     ({wrong} of {cells} cells); nothing was published: look at `batch-layer runs --json`, and run without \
     --strict-audit to publish all the same"
)]
pub(crate) struct Refused {
    metric: String,
    error: f64,
    threshold: f64,
    wrong: u64,
    cells: u64,
}

impl Audit {
    /// An audit that compared nothing.
    pub(crate) fn none(why: impl Into<String>) -> Audit {
        Audit { not_audited: [why.into()].into(), ..Audit::default() }
    }

    /// Over all metrics.
    pub(crate) fn total(&self) -> Figures {
        let mut total = Figures::default();
        self.metrics.values().for_each(|figures| total.add(figures.clone()));
        total
    }

    /// The greatest unexplained error of a metric.
    pub(crate) fn error(&self) -> f64 {
        self.metrics.values().map(Figures::error).fold(0.0, f64::max)
    }

    /// Whether everything, some or none of what moved was compared.
    pub(crate) fn status(&self) -> &'static str {
        match (self.not_audited.is_empty(), self.total().cells == 0) {
            (true, _) => "whole",
            (false, false) => "partly",
            (false, true) => "none",
        }
    }

    /// Whether an operator must look: cells differ without explanation, or the boundaries do.
    pub(crate) fn alarm(&self) -> bool {
        self.metrics.values().any(|figures| figures.wrong() > 0) || !self.cuts.is_empty()
    }

    /// Why a run may not publish, given the greatest error that it may have.
    ///
    /// # Errors
    /// [`Refused`]. What was not compared refuses nothing: else a speed layer that is down would stop the batch layer.
    pub(crate) fn admit(&self, threshold: f64) -> Result<(), Refused> {
        let worst = self.metrics.iter().max_by(|(_, a), (_, b)| a.error().total_cmp(&b.error()));
        match worst.filter(|(_, figures)| figures.error() > threshold) {
            None => Ok(()),
            Some((metric, figures)) => Err(Refused {
                metric: metric.clone(),
                error: figures.error(),
                threshold,
                wrong: figures.wrong(),
                cells: figures.cells,
            }),
        }
    }

    /// The metrics' figures, as they are stored.
    pub(crate) fn metrics_json(&self) -> serde_json::Value {
        let one = |(name, figures): (&String, &Figures)| {
            let mut json = json!(figures);
            json["error"] = json!(figures.error());
            (name.clone(), json)
        };
        self.metrics.iter().map(one).collect::<serde_json::Map<_, _>>().into()
    }

    /// Reasons as they are stored: the first ones, and how many more there are.
    pub(crate) fn listed(reasons: &BTreeSet<String>) -> Vec<String> {
        let mut listed: Vec<String> = reasons.iter().take(REASONS).cloned().collect();
        if reasons.len() > REASONS {
            listed.push(format!("and {} more", reasons.len() - REASONS));
        }
        listed
    }
}

impl std::fmt::Display for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status() {
            "none" => write!(f, "not audited")?,
            _ => {
                let Figures { cells, missing, extra, different, .. } = self.total();
                let (error, healed, passes) = (self.error(), self.repeats.healed(), self.passes);
                write!(
                    f,
                    "audit: {cells} cells compared in {passes} passes, {missing} missing, {extra} extra, "
                )?;
                write!(f, "{different} different, unexplained error {error:.6}, {healed} repeats healed")?;
            }
        }
        for (what, reasons) in [("not audited", &self.not_audited), ("boundaries differ", &self.cuts)] {
            let more = reasons.len().saturating_sub(1);
            match reasons.first() {
                None => {}
                Some(reason) if more == 0 => write!(f, "; {what}: {reason}")?,
                Some(reason) => write!(f, "; {what}: {reason} and {more} more")?,
            }
        }
        Ok(())
    }
}
