//! Cells as rows of a binary COPY, each value and column by its type.
//!
//! In a dense table a row goes on with the further cells of its key: cells come in their canonical order, in which those of one
//! key are neighbours and lie by bucket.

use crate::compute::RawCell;
use crate::replace::copy::{BinaryCopy, Elements};
use crate::replace::names;
use anyhow::Result;
use shared_model::dense;
use shared_model::metric::Metric;

/// Rows of one version's table.
pub(crate) struct Rows<'a> {
    metric: &'a Metric,
    version: i64,
    /// How many of them a row has.
    fields: usize,
    copy: BinaryCopy,
    further: Option<Further>,
}

/// The further cells of a row.
struct Further {
    /// The row's key, while it is open.
    key: Vec<u8>,
    open: bool,
    /// How many there may be.
    most: usize,
    cells: usize,
    buckets: Elements,
    columns: Vec<Elements>,
}

impl<'a> Rows<'a> {
    /// None yet.
    pub(crate) fn new(metric: &'a Metric, version: i64, dense: bool) -> Rows<'a> {
        let further = dense.then(|| Further {
            key: Vec::new(),
            open: false,
            most: dense::further(metric),
            cells: 0,
            buckets: Elements::timestamps(),
            columns: metric.aggregate.columns().into_iter().map(|(_, ty)| Elements::columns(ty)).collect(),
        });
        let arrays = if dense { names::arrays(metric).len() } else { 0 };
        let fields = names::columns(metric).len() + arrays;
        Rows { metric, version, fields, copy: BinaryCopy::new(), further }
    }

    /// Takes the next cell.
    ///
    /// # Errors
    /// Where its bytes are not of the metric's kind.
    #[inline]
    pub(crate) fn push(&mut self, cell: &RawCell<'_>) -> Result<()> {
        let Rows { metric, version, fields, copy, further } = self;
        if let Some(further) = further {
            if further.takes(cell) {
                return further.push(metric, cell);
            }
            further.close(copy);
            further.begin(cell);
        }
        copy.row(*fields);
        copy.bigint(Some(*version));
        copy.timestamp(Some(cell.bucket));
        cell.each_value(|value| copy.value(value))?;
        cell.state()?.each_column(&metric.aggregate, |column| copy.column(&column));
        Ok(())
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.copy.len()
    }

    /// Takes the bytes so far, to be sent.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.copy.take()
    }

    /// The last bytes, with the trailer.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if let Some(further) = &mut self.further {
            further.close(&mut self.copy);
        }
        self.copy.finish()
    }
}

impl Further {
    /// Whether a cell is one more of the open row.
    fn takes(&self, cell: &RawCell<'_>) -> bool {
        self.open && self.cells < self.most && self.key == cell.key()
    }

    fn push(&mut self, metric: &Metric, cell: &RawCell<'_>) -> Result<()> {
        self.cells += 1;
        self.buckets.push(|copy| copy.timestamp(Some(cell.bucket)));
        let mut columns = self.columns.iter_mut();
        cell.state()?.each_column(&metric.aggregate, |column| {
            if let Some(elements) = columns.next() {
                elements.push(|copy| copy.column(&column));
            }
        });
        Ok(())
    }

    fn begin(&mut self, cell: &RawCell<'_>) {
        self.key.clear();
        self.key.extend_from_slice(cell.key());
        (self.open, self.cells) = (true, 0);
    }

    /// Ends the open row, if one is, with its arrays.
    fn close(&mut self, copy: &mut BinaryCopy) {
        if self.open {
            copy.array(&mut self.buckets);
            self.columns.iter_mut().for_each(|elements| copy.array(elements));
            self.open = false;
        }
    }
}
