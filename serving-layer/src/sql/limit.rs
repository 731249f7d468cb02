//! A statement's end: once it has worked for too long (what its client takes to read the rows doesn't count), once its
//! rows take more memory than there is, or when its client takes it back.

use datafusion::arrow::array::{Array, AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::timeout;

/// Puts a plan under a limit of time.
#[derive(Debug)]
pub(super) struct WithinLimit {
    pub(super) limit: Duration,
    /// Wakes the statement that is to end.
    pub(super) cancel: Arc<Notify>,
    /// What rows take that wait to be sent.
    pub(super) held: Arc<Held>,
}

/// What a session's rows take that wait to be sent: of a message whose rows are collected first, all of them until it is
/// dealt with. Others are sent as they come.
#[derive(Debug)]
pub(super) struct Held {
    rows: MemoryReservation,
    collects: AtomicBool,
}

impl Held {
    pub(super) fn new(memory: &Arc<dyn MemoryPool>) -> Held {
        Held { rows: MemoryConsumer::new("rows").register(memory), collects: AtomicBool::new(false) }
    }

    /// A message is begun.
    pub(super) fn begin(&self, collects: bool) {
        self.collects.store(collects, Ordering::Relaxed);
    }

    /// It is dealt with.
    pub(super) fn end(&self) {
        self.rows.free();
    }

    /// So many bytes of rows are sent, or collected.
    fn pass(&self, bytes: usize) -> Result<()> {
        if self.collects.load(Ordering::Relaxed) { self.rows.try_grow(bytes) } else { Ok(()) }
    }
}

impl PhysicalOptimizerRule for WithinLimit {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let WithinLimit { limit, cancel, held } = self;
        Ok(Arc::new(Limited { input: plan, limit: *limit, cancel: cancel.clone(), held: held.clone() }))
    }

    fn name(&self) -> &str {
        "within_limit"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A plan that ends with an error once it has worked for too long.
#[derive(Debug)]
struct Limited {
    input: Arc<dyn ExecutionPlan>,
    limit: Duration,
    cancel: Arc<Notify>,
    held: Arc<Held>,
}

impl DisplayAs for Limited {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limited: {} s", self.limit.as_secs_f64())
    }
}

impl ExecutionPlan for Limited {
    fn name(&self) -> &str {
        "Limited"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| self.input.clone());
        let Limited { limit, cancel, held, .. } = &*self;
        Ok(Arc::new(Limited { input, limit: *limit, cancel: cancel.clone(), held: held.clone() }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, limit) = (self.schema(), self.limit);
        let waiting = Waiting {
            in_hand: MemoryConsumer::new("rows in hand").register(context.memory_pool()),
            rows: self.input.execute(partition, context)?,
            // From now on: also between two rows, while the client takes its time.
            cancelled: Box::pin(self.cancel.clone().notified_owned()),
            held: self.held.clone(),
            left: Some(limit),
        };
        let next = move |mut waiting: Waiting| async move {
            let left = waiting.left?;
            let begun = Instant::now();
            let next = tokio::select! {
                biased;
                () = &mut waiting.cancelled => Some(Err(taken_back())),
                next = timeout(left, waiting.rows.next()) => next.unwrap_or_else(|_| Some(Err(too_long(limit)))),
            };
            let next = next?.and_then(|batch| {
                waiting.held.pass(waiting.in_hand.free())?;
                waiting.in_hand.try_grow(size(&batch)?)?;
                Ok(batch)
            });
            waiting.left = next.is_ok().then(|| left.saturating_sub(begun.elapsed()));
            Some((next, waiting))
        };
        let rows = futures::stream::unfold(waiting, next);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Rows to come.
struct Waiting {
    rows: SendableRecordBatchStream,
    /// The client has taken the statement back.
    cancelled: Pin<Box<OwnedNotified>>,
    /// The batch that came last, as long as there may be more: a portal or cursor keeps it.
    in_hand: MemoryReservation,
    held: Arc<Held>,
    /// For how long the statement may work on; `None` once it has failed.
    left: Option<Duration>,
}

/// What a row takes beside its values, once it waits to be sent, and what each of its values does beside its bytes.
const ROW: usize = 64;
const VALUE: usize = 24;

/// What a batch's rows take: of its buffers just the part that is theirs, since batches may be slices of one.
fn size(batch: &RecordBatch) -> Result<usize> {
    let values = batch.columns().iter().map(|column| {
        // Texts that lie elsewhere aren't counted with the views of them.
        let texts = match column.data_type() {
            DataType::Utf8View => column.as_string_view().total_buffer_bytes_used(),
            DataType::BinaryView => column.as_binary_view().total_buffer_bytes_used(),
            _ => 0,
        };
        Ok::<_, DataFusionError>(texts + column.to_data().get_slice_memory_size()?)
    });
    Ok(values.sum::<Result<usize>>()? + batch.num_rows() * (ROW + batch.num_columns() * VALUE))
}

fn too_long(limit: Duration) -> DataFusionError {
    DataFusionError::ResourcesExhausted(format!(
        "the statement worked longer than the limit of {} s: narrow its time span or its filters",
        limit.as_secs()
    ))
}

fn taken_back() -> DataFusionError {
    DataFusionError::Execution("canceling statement due to user request".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Int64Array, NullArray, StringViewArray};

    #[test]
    fn rows_take_what_is_sent_of_them_and_no_more() {
        let size = |column: ArrayRef, from: usize, rows: usize| {
            let batch = RecordBatch::try_from_iter_with_nullable([("a", column, true)]).unwrap();
            size(&batch.slice(from, rows)).unwrap()
        };
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000));
        assert_eq!(size(numbers.clone(), 0, 1_000), 1_000 * (8 + ROW + VALUE));
        assert_eq!(size(numbers, 500, 10), 10 * (8 + ROW + VALUE));
        assert_eq!(size(Arc::new(NullArray::new(7)), 0, 7), 7 * (ROW + VALUE));
        let texts: ArrayRef =
            Arc::new(StringViewArray::from_iter_values(["x".repeat(10_000), "y".repeat(500)]));
        assert!(size(texts.clone(), 0, 2) >= 10_500);
        assert!((500..1_000).contains(&size(texts, 1, 1)));
    }
}
