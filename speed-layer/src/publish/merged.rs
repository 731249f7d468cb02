//! States over a window that can't be taken off again: each key has its states of every pane, and what is touched is merged
//! anew.

use super::changes::Changes;
use super::sliding::SegmentId;
use super::slots::Slots;
use super::totals::touch;
use crate::live;
use shared_model::aggregate::{Aggregate, State};
use shared_model::codec::CodecError;
use shared_model::metric::Metric;
use shared_model::time::Millis;
use std::collections::BTreeMap;

/// A key's states of one pane.
#[derive(Default)]
struct Pane {
    states: BTreeMap<SegmentId, State>,
    /// Where there are several, they as one, as long as they are the same.
    merged: Option<State>,
}

impl Pane {
    fn merged(&mut self, aggregate: &Aggregate) -> Result<&State, CodecError> {
        if self.states.len() == 1
            && let Some(only) = self.states.values().next()
        {
            return Ok(only);
        }
        let merged = match self.merged.take() {
            Some(merged) => merged,
            None => {
                let mut merged = State::empty(aggregate);
                self.states.values().try_for_each(|state| merged.merge(state))?;
                merged
            }
        };
        Ok(self.merged.insert(merged))
    }
}

/// A key.
#[derive(Default)]
struct Cell {
    panes: BTreeMap<Millis, Pane>,
    published: Option<String>,
    is_touched: bool,
}

/// The states of keys.
#[derive(Default)]
pub(super) struct Merged {
    slots: Slots<Cell>,
    touched: Vec<u32>,
}

impl Merged {
    /// Adds a segment's state of a key. Gives its slot.
    pub(super) fn add(&mut self, key: &[u8], id: SegmentId, state: State) -> Result<u32, CodecError> {
        let slot = self.slots.take(key);
        let pane = self.slots.of_mut(slot).panes.entry(id.pane).or_default();
        pane.merged = None;
        match pane.states.get_mut(&id) {
            Some(known) => known.merge(&state)?,
            None => _ = pane.states.insert(id, state),
        }
        self.touch(slot);
        Ok(slot)
    }

    /// Takes a segment's state out again.
    pub(super) fn take_out(&mut self, slot: u32, id: SegmentId) {
        let panes = &mut self.slots.of_mut(slot).panes;
        if let Some(pane) = panes.get_mut(&id.pane) {
            pane.states.remove(&id);
            pane.merged = None;
            if pane.states.is_empty() {
                panes.remove(&id.pane);
            }
        }
        self.touch(slot);
    }

    fn touch(&mut self, slot: u32) {
        touch(slot, &mut self.slots.of_mut(slot).is_touched, &mut self.touched);
    }

    /// Whether a key was touched since the last pass.
    pub(super) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Writes what differs from what is published.
    pub(super) fn changes(&mut self, metric: &Metric, out: &mut Changes) -> Result<(), CodecError> {
        for slot in std::mem::take(&mut self.touched) {
            let (mut key, cell) = self.slots.both(slot);
            cell.is_touched = false;
            let mut whole = State::empty(&metric.aggregate);
            for pane in cell.panes.values_mut() {
                whole.merge(pane.merged(&metric.aggregate)?)?;
            }
            let text = live::text(&whole.finish(&metric.aggregate));
            match &text {
                _ if text == cell.published => {}
                None => {
                    live::name(metric, &mut key, out.drops.next())?;
                    out.drops.end();
                }
                Some(text) => {
                    live::name(metric, &mut key, out.puts.next())?;
                    out.puts.end();
                    out.puts.push(text);
                }
            }
            cell.published = text;
            if cell.panes.is_empty() {
                self.slots.free(slot);
            }
        }
        Ok(())
    }
}
