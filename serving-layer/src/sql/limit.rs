//! A statement's end: once it has worked for too long (what its client takes to read the rows doesn't count), once its
//! rows take more memory than there is, or when its client takes it back.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::StreamExt as _;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
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

impl Limited {
    fn over(&self, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Arc<dyn ExecutionPlan> {
        let input = children.pop().unwrap_or_else(|| self.input.clone());
        Arc::new(Limited { input, limit: self.limit, cancel: self.cancel.clone() })
    }
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

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self.over(children))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self.over(children))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, limit, cancel) = (self.schema(), self.limit, self.cancel.clone());
        // Rows wait in this process until their client has taken them.
        let held = MemoryConsumer::new("rows").register(context.memory_pool());
        let rows = self.input.execute(partition, context)?;
        let next = move |(mut rows, held, left): Waiting| {
            let cancel = cancel.clone();
            async move {
                let left = left?;
                let begun = Instant::now();
                let next = tokio::select! {
                    next = timeout(left, rows.next()) => next.unwrap_or_else(|_| Some(Err(too_long(limit)))),
                    () = cancel.notified() => Some(Err(taken_back())),
                };
                let next =
                    next?.and_then(|batch| held.try_grow(batch.get_array_memory_size()).map(|()| batch));
                let left = next.is_ok().then(|| left.saturating_sub(begun.elapsed()));
                Some((next, (rows, held, left)))
            }
        };
        let rows = futures::stream::unfold((rows, held, Some(limit)), next);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Rows to come, the memory of those that came, and for how long the statement may work on; `None` once it has failed.
type Waiting = (SendableRecordBatchStream, MemoryReservation, Option<Duration>);

fn too_long(limit: Duration) -> DataFusionError {
    DataFusionError::ResourcesExhausted(format!(
        "the statement worked longer than the limit of {} s: narrow its time span or its filters",
        limit.as_secs()
    ))
}

fn taken_back() -> DataFusionError {
    DataFusionError::Execution("canceling statement due to user request".to_owned())
}
