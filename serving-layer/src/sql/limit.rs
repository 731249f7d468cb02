//! The limit of a statement's time: what it works, not what its client takes to read the rows.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
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

/// Puts a plan under a limit of time.
#[derive(Debug)]
pub(super) struct WithinLimit(pub(super) Duration);

impl PhysicalOptimizerRule for WithinLimit {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Limited { input: plan, limit: self.0 }))
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
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| self.input.clone());
        Ok(Arc::new(Limited { input, limit: self.limit }))
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| self.input.clone());
        Ok(Arc::new(Limited { input, limit: self.limit }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, limit) = (self.schema(), self.limit);
        let rows = self.input.execute(partition, context)?;
        let next = move |(mut rows, left): (SendableRecordBatchStream, Option<Duration>)| async move {
            let left = left?;
            let begun = Instant::now();
            match tokio::time::timeout(left, rows.next()).await {
                Ok(Some(batch)) => Some((batch, (rows, Some(left.saturating_sub(begun.elapsed()))))),
                Ok(None) => None,
                Err(_) => {
                    let why = format!(
                        "the statement worked longer than the limit of {} s: narrow its time span or its filters",
                        limit.as_secs()
                    );
                    Some((Err(DataFusionError::ResourcesExhausted(why)), (rows, None)))
                }
            }
        };
        let rows = futures::stream::unfold((rows, Some(limit)), next);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}
