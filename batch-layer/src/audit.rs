//! The audit: what a reader would have had just before a move of the tidemark, against what the batch view says of the
//! same records. Pure; what it compares is read in [`measure`].
//!
//! For every touched cell, merge(batch at T0, realtime [T0, T1)) must be merge(batch at T1, healed), where *healed* are
//! the deliveries that the realtime view counted and the batch view doesn't: repeats from beyond the dedup horizon,
//! from the other side of T0, or from another partition. They are known from the archive alone, delivery by delivery,
//! so whatever else differs has no explanation and is an error.

mod figures;
mod seam;
mod realtime;
mod measure;
mod record;
#[cfg(test)]
mod laws;

pub(crate) use figures::{Audit, Figures, Refused, Repeats};
pub(crate) use measure::{Move, Options, audit};
pub(crate) use record::store;

use crate::compute::Cell;
use anyhow::{Result, ensure};
use futures::StreamExt as _;
use futures::stream::{BoxStream, Fuse};
use shared_model::aggregate::State;
use shared_model::event::Value;
use shared_model::metric::Metric;
use shared_model::time::Millis;

/// Names a cell of a metric: its key, then its bucket. Cells are in this order everywhere.
type Name = (Vec<Value>, Millis);

/// What the records between two tidemarks bring to a cell, beside what the batch view holds.
#[derive(Debug, Clone, Default, PartialEq)]
struct Touched {
    /// What a reader merges with the batch view at T0: the realtime view of [T0, T1), and imports that T1 takes in.
    read: Option<State>,
    /// What a reader counted that the batch view at T1 doesn't.
    healed: Option<State>,
}

/// The cells of one metric and day, in order, each once.
pub(crate) type CellStream<'a> = BoxStream<'a, Result<Cell>>;

/// The four sides of a comparison.
pub(crate) struct Sides<'a> {
    /// The batch view at T0.
    pub(crate) before: CellStream<'a>,
    /// What a reader merges with it: the realtime view of [T0, T1), and imports that T1 takes in.
    pub(crate) read: CellStream<'a>,
    /// The batch view at T1.
    pub(crate) after: CellStream<'a>,
    /// Deliveries that a reader counted and that it doesn't.
    pub(crate) healed: CellStream<'a>,
}

/// Compares one metric. Only what is touched is counted: cells that were read or healed, and those that differ between
/// the two batch views. Holds one cell of each side.
///
/// # Errors
/// Where a stream fails or is not in order, or where states don't merge.
pub(crate) async fn compare(metric: &Metric, sides: Sides<'_>) -> Result<Figures> {
    let mut figures = Figures::default();
    let Sides { before, read, after, healed } = sides;
    let mut sides = [before, read, after, healed].map(Ordered::new);
    loop {
        let mut first: Option<&Name> = None;
        for side in &mut sides {
            first = first.into_iter().chain(side.peek().await?).min();
        }
        let Some(name) = first.cloned() else { return Ok(figures) };
        let [before, read, after, healed] = sides.each_mut().map(|side| side.take(&name));
        figures.take(metric, &name, before, after, Touched { read, healed })?;
    }
}

/// Cells of which the next can be looked at; fails where they are not in order.
struct Ordered<'a> {
    cells: Fuse<CellStream<'a>>,
    next: Option<(Name, State)>,
    last: Option<Name>,
}

impl<'a> Ordered<'a> {
    fn new(cells: CellStream<'a>) -> Ordered<'a> {
        Ordered { cells: cells.fuse(), next: None, last: None }
    }

    /// The name of the next cell, if there is one.
    async fn peek(&mut self) -> Result<Option<&Name>> {
        if self.next.is_none() {
            let next = self.cells.next().await.transpose()?;
            self.next = next.map(|cell| ((cell.key, cell.bucket), cell.state));
            if let Some((name, _)) = &self.next {
                let in_order = self.last.replace(name.clone()).is_none_or(|last| last < *name);
                ensure!(in_order, "cells of the batch view come out of order");
            }
        }
        Ok(self.next.as_ref().map(|(name, _)| name))
    }

    /// The state of the next cell, if it has this name, which is the least of all that are left.
    fn take(&mut self, name: &Name) -> Option<State> {
        self.next.take_if(|(next, _)| next == name).map(|(_, state)| state)
    }
}
