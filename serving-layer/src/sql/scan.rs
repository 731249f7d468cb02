//! What a statement reads of its tables, and when: all of them at once, at one tidemark, when its first row is wanted.
//!
//! A plan's scans are bound together before it runs ([`OneTidemark`]), so that a statement that joins metrics joins what was
//! counted of the same records. Nothing is read for a plan that isn't run.

use super::table::{Shape, failed};
use crate::access::Scoped;
use crate::answer::{Answer, answer};
use crate::error::ServeError;
use crate::http::heads;
use crate::query::form::MAX_QUERIES;
use crate::query::{At, Query, Request};
use crate::reply::Head;
use crate::table::Format;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::TryStreamExt as _;
use shared_model::time::show;
use std::fmt;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

/// One query of a statement, and the table that it fills.
#[derive(Debug, Clone)]
struct Part {
    query: Query,
    shape: Arc<Shape>,
}

/// What a statement asks of the views.
struct Statement {
    scoped: Scoped,
    /// Where the views are read: not on the threads that statements compute on.
    main: Handle,
    parts: Vec<Part>,
    strict: bool,
    /// The rows of each part, or why there are none.
    answered: OnceCell<Result<Answered, Arc<DataFusionError>>>,
}

/// The rows of a statement's parts.
struct Answered {
    batches: Vec<RecordBatch>,
    /// As long as the statement is there, all of its rows are.
    _held: MemoryReservation,
}

impl Statement {
    /// The rows of a part; the first that asks reads those of all, into that memory.
    async fn rows(self: &Arc<Self>, part: usize, memory: &Arc<dyn MemoryPool>) -> Result<RecordBatch> {
        let answer = || async {
            let statement = self.clone();
            // Whoever stops waiting ends it.
            let read = self.main.spawn(async move { statement.answer().await });
            let read = AbortOnDropHandle::new(read).await;
            let batches = read.unwrap_or_else(|died| Err(DataFusionError::External(died.into())))?;
            let held = MemoryConsumer::new("merged rows").register(memory);
            held.try_grow(batches.iter().map(RecordBatch::get_array_memory_size).sum())?;
            Ok(Answered { batches, _held: held })
        };
        let answered = self.answered.get_or_init(|| async { answer().await.map_err(Arc::new) }).await;
        match answered {
            Ok(answered) => Ok(answered.batches[part].clone()),
            Err(error) => Err(DataFusionError::Shared(error.clone())),
        }
    }

    async fn answer(&self) -> Result<Vec<RecordBatch>> {
        // A cursor may have outlived its key.
        if self.scoped.has_ended() {
            return Err(failed(ServeError::NoKey));
        }
        let service = &self.scoped.service;
        let queries = self.parts.iter().map(|part| part.query.clone()).collect();
        let (names, at, format) = (None, At::Now, Format::Json);
        let request = Request { queries, names, strict: self.strict, at, format };
        let work = answer(&service.views, &request.queries, request.at);
        let answers = service.in_turn(work).await.map_err(failed)?;
        let heads = heads(&self.scoped, &request, &answers).map_err(failed)?;
        let batch = |((part, head), answer): ((&Part, Head), Answer)| {
            let as_of = answer.coverage.as_of();
            part.shape.batch(&part.query, &answer.rows.rows, as_of, head.envelope.complete)
        };
        self.parts.iter().zip(heads).zip(answers).map(batch).collect()
    }
}

/// The rows of a table that a statement wants.
#[derive(Clone)]
pub(super) struct MergedScan {
    statement: Arc<Statement>,
    /// Which part of the statement it is.
    part: usize,
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl MergedScan {
    /// A scan of a statement of its own, which is one until it is bound to others.
    pub(super) fn new(
        (scoped, main): (Scoped, Handle),
        request: Request,
        shape: Arc<Shape>,
        projection: Option<Vec<usize>>,
        schema: SchemaRef,
    ) -> MergedScan {
        let Request { queries, strict, .. } = request;
        let parts = queries.into_iter().map(|query| Part { query, shape: shape.clone() }).collect();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let statement = Arc::new(Statement { scoped, main, parts, strict, answered: OnceCell::new() });
        MergedScan { statement, part: 0, projection, properties: Arc::new(properties) }
    }

    fn asked(&self) -> &Part {
        &self.statement.parts[self.part]
    }
}

impl fmt::Debug for MergedScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for MergedScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Part { query, shape } = self.asked();
        let (from, to) = (show(query.span.start), show(query.span.end));
        write!(f, "MergedScan: {}, buckets=[{from}, {to}), tests={}", shape.name, query.filters.len())
    }
}

impl ExecutionPlan for MergedScan {
    fn name(&self) -> &str {
        "MergedScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let scan = self.clone();
        let most = context.session_config().batch_size();
        let read = async move {
            let mut rows = scan.statement.rows(scan.part, context.memory_pool()).await?;
            if let Some(columns) = &scan.projection {
                rows = rows.project(columns)?;
            }
            let starts = (0..rows.num_rows()).step_by(most);
            let pieces = starts.map(move |start| {
                // As long as there are pieces to come, all rows are there.
                let _ = &scan.statement;
                Ok(rows.slice(start, most.min(rows.num_rows() - start)))
            });
            Ok::<_, DataFusionError>(futures::stream::iter(pieces))
        };
        let rows = futures::stream::once(read).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// Binds the scans of a plan into one statement, answered at one tidemark.
#[derive(Debug)]
pub(super) struct OneTidemark;

impl PhysicalOptimizerRule for OneTidemark {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let mut scans: Vec<MergedScan> = Vec::new();
        plan.apply(|node| {
            scans.extend(node.downcast_ref::<MergedScan>().cloned());
            Ok(TreeNodeRecursion::Continue)
        })?;
        let Some(first) = scans.first() else { return Ok(plan) };
        if scans.len() > MAX_QUERIES {
            let why =
                format!("{} tables in one statement are more than the limit of {MAX_QUERIES}", scans.len());
            return Err(failed(ServeError::Limit(why)));
        }
        let statement = Arc::new(Statement {
            scoped: first.statement.scoped.clone(),
            main: first.statement.main.clone(),
            parts: scans.iter().map(|scan| scan.asked().clone()).collect(),
            strict: scans.iter().any(|scan| scan.statement.strict),
            answered: OnceCell::new(),
        });
        let mut parts = 0..scans.len();
        let bound = plan.transform_down(|node| {
            let Some(scan) = node.downcast_ref::<MergedScan>() else { return Ok(Transformed::no(node)) };
            let Some(part) = parts.next() else { return Ok(Transformed::no(node)) };
            let scan = MergedScan { statement: statement.clone(), part, ..scan.clone() };
            Ok(Transformed::yes(Arc::new(scan) as Arc<dyn ExecutionPlan>))
        });
        bound.data()
    }

    fn name(&self) -> &str {
        "one_tidemark"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
