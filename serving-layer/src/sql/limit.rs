//! A statement's end: once it has worked for too long (what its client takes to read the rows doesn't count), once its
//! rows take more memory than there is, or when its client takes it back.

use datafusion::arrow::array::RecordBatch;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
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
}

impl PhysicalOptimizerRule for WithinLimit {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Limited { input: plan, limit: self.limit, cancel: self.cancel.clone() }))
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
        Ok(Arc::new(Limited { input, limit: self.limit, cancel: self.cancel.clone() }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, limit) = (self.schema(), self.limit);
        let waiting = Waiting {
            rows: self.input.execute(partition, context.clone())?,
            // From now on: also between two rows, while the client takes its time.
            cancelled: Box::pin(self.cancel.clone().notified_owned()),
            held: MemoryConsumer::new("rows").register(context.memory_pool()),
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
                waiting.held.try_grow(size(&batch)?)?;
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
    /// What came takes so much; of a statement whose rows are asked for all at once, all of them wait to be sent.
    held: MemoryReservation,
    /// For how long the statement may work on; `None` once it has failed.
    left: Option<Duration>,
}

/// What a row takes beside its values, once it waits to be sent.
const ROW: usize = 64;

/// What a batch's rows take: of its buffers just the part that is theirs, since batches may be slices of one.
fn size(batch: &RecordBatch) -> Result<usize> {
    let values = batch.columns().iter().map(|column| column.to_data().get_slice_memory_size());
    Ok(values.sum::<std::result::Result<usize, _>>()? + batch.num_rows() * ROW)
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
