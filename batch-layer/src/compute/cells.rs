//! Cells of a view, and their canonical order.

use anyhow::{Context, Result};
use shared_model::aggregate::State;
use shared_model::event::Value;
use shared_model::time::Millis;
use std::cmp::Ordering;

/// One cell of a view.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The values of the key's columns, then the item's of a top-k.
    pub key: Vec<Value>,
    /// The start of the bucket.
    pub bucket: Millis,
    /// What is known of it.
    pub state: State,
}

impl Cell {
    /// The canonical order: by key, then bucket.
    fn name_cmp(&self, other: &Cell) -> Ordering {
        self.key.cmp(&other.key).then(self.bucket.cmp(&other.bucket))
    }

    /// Whether it is of the same key and bucket.
    fn same_name(&self, other: &Cell) -> bool {
        self.bucket == other.bucket && self.key == other.key
    }
}

/// Brings cells into the canonical order, by key, then bucket, and merges those of one key and bucket.
///
/// # Errors
/// Where a count or sum would pass its bound, or states are of different kinds.
pub(super) fn canonical(mut cells: Vec<Cell>) -> Result<Vec<Cell>> {
    cells.sort_unstable_by(Cell::name_cmp);
    let mut failed = None;
    cells.dedup_by(|next, kept| {
        let same = next.same_name(kept);
        if same && let Err(error) = kept.state.merge(&next.state) {
            failed = Some(error);
        }
        same
    });
    match failed {
        Some(error) => Err(error).context("cells of one key and bucket can't be merged"),
        None => Ok(cells),
    }
}
