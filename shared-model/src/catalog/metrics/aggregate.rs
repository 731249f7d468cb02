//! Validates what a metric computes, and which of value, item, k and quantiles go with it.

use super::{Reading, duration_of};
use crate::aggregate::Aggregate;
use crate::catalog::raw::RawAggregate;
use crate::catalog::{Stream, TimeUnit};
use crate::event::FieldType;
use crate::time::DAY;
use std::sync::Arc;

impl Reading<'_, '_, '_> {
    /// The aggregate; `value` is the type of the value, if that is known, and `fed` the streams, if they are.
    pub(super) fn aggregate(
        &mut self,
        value: Option<FieldType>,
        fed: Option<&[Arc<Stream>]>,
    ) -> Option<Aggregate> {
        let Some(aggregate) = self.raw.aggregate else {
            if !self.is_refused("aggregate") {
                self.fault(None, "aggregate is missing; add what is computed, like aggregate = \"count\"");
            }
            return None;
        };
        self.belongs(aggregate);
        match aggregate {
            RawAggregate::Count => Some(Aggregate::Count),
            RawAggregate::TopK => Some(Aggregate::TopK { k: self.k() }),
            RawAggregate::Distinct => Some(Aggregate::Distinct),
            RawAggregate::Min => Some(Aggregate::Min(value?)),
            RawAggregate::Max => Some(Aggregate::Max(value?)),
            RawAggregate::Sum => Some(Aggregate::Sum(self.exact(value?, "sum"))),
            RawAggregate::Mean => Some(Aggregate::Mean(self.exact(value?, "mean"))),
            RawAggregate::Quantile => {
                let ty = value?;
                if matches!(ty, FieldType::String | FieldType::Bool) {
                    self.fault(Some("value"), format!("is {}; a quantile is of a number", ty.name()));
                }
                Some(Aggregate::Quantile { ty, quantiles: self.quantiles() })
            }
            RawAggregate::Sessions => self.sessions(fed?),
        }
    }

    /// Which other keys must and which must not stand beside an aggregate.
    fn belongs(&mut self, aggregate: RawAggregate) {
        use RawAggregate::{Count, Quantile, Sessions, TopK};
        let raw = self.raw;
        let keys = [
            ("value", raw.value.is_some(), !matches!(aggregate, Count | TopK | Sessions), true),
            ("item", raw.item.is_some(), aggregate == TopK, true),
            ("k", raw.k.is_some(), aggregate == TopK, false),
            ("quantiles", raw.quantiles.is_some(), aggregate == Quantile, false),
            ("of", raw.of.is_some(), aggregate == Sessions, true),
            ("idle", raw.idle.is_some(), aggregate == Sessions, false),
        ];
        for (key, given, belongs, required) in keys {
            if given && !belongs {
                self.fault(Some(key), format!("{key} does not go with this aggregate; take it out"));
            } else if belongs && required && !given && !self.is_refused(key) {
                self.fault(None, format!("{key} is missing; this aggregate is taken of it"));
            }
        }
    }

    fn exact(&mut self, ty: FieldType, aggregate: &str) -> FieldType {
        if !matches!(ty, FieldType::Int | FieldType::Decimal(_)) {
            let message = format!(
                "is {}; a {aggregate} is of int or decimal: sums of floats depend on their order",
                ty.name()
            );
            self.fault(Some("value"), message);
        }
        ty
    }

    /// Sessions are told by event times as their streams write them, which must do so alike.
    fn sessions(&mut self, fed: &[Arc<Stream>]) -> Option<Aggregate> {
        let (idle, of) = (self.raw.idle.as_deref(), self.raw.of.as_deref()?);
        let path = ["metrics", self.name, "idle"];
        let idle = duration_of(idle, 1_800_000, &path, 1_000..=DAY, self.check);
        let place = self.raw.by.iter().position(|by| by == of);
        if place.is_none() {
            self.fault(
                Some("of"),
                format!("{of:?} is no column of by; add it there: sessions are each one's own"),
            );
        }
        let clock = |stream: &Arc<Stream>| (stream.event_time.unit, stream.event_time.offset);
        let (unit, _) = fed.first().map(clock)?;
        if fed.iter().any(|stream| clock(stream) != clock(&fed[0])) {
            let message = "the event times of these streams have other units or offsets than each other; give each a metric";
            self.fault(Some("streams"), message);
        }
        let idle = match unit {
            TimeUnit::Seconds => idle / 1_000,
            TimeUnit::Millis => idle,
            TimeUnit::Micros => idle * 1_000,
        };
        Some(Aggregate::Sessions { of: place?, idle })
    }

    fn k(&mut self) -> usize {
        let k = self.raw.k.unwrap_or(10);
        if !(1..=1000).contains(&k) {
            self.fault(Some("k"), format!("{k} is not within 1 and 1000"));
        }
        k.clamp(1, 1000) as usize
    }

    fn quantiles(&mut self) -> Vec<f64> {
        let quantiles = self.raw.quantiles.clone().unwrap_or_else(|| vec![0.5, 0.95, 0.99]);
        if quantiles.is_empty() || quantiles.len() > 20 {
            self.fault(Some("quantiles"), format!("has {} entries; 1 to 20", quantiles.len()));
        }
        if let Some(wrong) = quantiles.iter().find(|quantile| !(0.0..=1.0).contains(*quantile)) {
            self.fault(Some("quantiles"), format!("{wrong} is not within 0 and 1"));
        }
        quantiles
    }
}
