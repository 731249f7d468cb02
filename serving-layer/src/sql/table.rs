//! Metrics and formulas as tables: a row for each key and bucket, merged of both views.
//!
//! A table's columns are those of the view of the same name in Postgres that people read (`metrics.<metric>`), less what
//! only programs read, and behind them what is promised of the rows: `as_of` and `complete`. Its schema is that of an answer
//! without rows, so that it can't differ from what an answer fills it with.

use super::condition::{Asked, BUCKET};
use super::scan::MergedScan;
use crate::access::Scoped;
use crate::error::ServeError;
use crate::export::parquet;
use crate::finish::Row;
use crate::query::{Limits, Query, Request};
use crate::table::{Format, titles};
use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampMillisecondArray};
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use serde_json::{Value as Json, json};
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::metric::KeyColumn;
use shared_model::time::{Interval, Millis};
use std::fmt;
use std::sync::Arc;
use tokio::runtime::Handle;

/// The columns of what is promised, behind all others, and whether they may be NULL.
const PROMISED: [(&str, bool); 2] = [("as_of", true), ("complete", false)];

datafusion::common::extensions_options! {
    /// The options of a session: `SET tidemark.strict = false`.
    pub struct Options {
        /// Whether a statement fails that can't be answered completely; without, column `complete` says so.
        pub strict: bool, default = true
    }
}

impl datafusion::common::config::ConfigExtension for Options {
    const PREFIX: &'static str = "tidemark";
}

/// What a table is made of.
#[derive(Debug)]
pub(super) struct Shape {
    /// The metric's or formula's name, and the table's.
    pub(super) name: String,
    /// The key columns, of a top-k with the item.
    keys: Vec<KeyColumn>,
    grain: Millis,
    /// Which of an answer's columns are the table's.
    places: Vec<usize>,
    pub(super) schema: SchemaRef,
}

/// A table, as one session sees it.
pub(super) struct Merged {
    shape: Arc<Shape>,
    scoped: Scoped,
    /// Where the views are read.
    main: Handle,
}

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merged").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// The tables of a session: one for each metric and formula that its key may read.
///
/// # Errors
/// Where a metric can't be asked for at all, which would be a fault of ours.
pub(super) fn tables(scoped: &Scoped, main: &Handle) -> Result<Vec<(String, Arc<Merged>)>> {
    let views = &scoped.service.views;
    let catalog = &views.catalog;
    let metrics = catalog.metrics.iter().map(|metric| {
        let keys = metric.key_columns().cloned().collect();
        Shape::new(&metric.name, keys, metric.grain.width(), catalog, &views.limits)
    });
    let formulas = catalog.formulas.iter().map(|formula| {
        Shape::new(&formula.name, formula.by.clone(), formula.grain.width(), catalog, &views.limits)
    });
    let table = |shape: Shape| {
        let (name, shape) = (shape.name.clone(), Arc::new(shape));
        (name, Arc::new(Merged { shape, scoped: scoped.clone(), main: main.clone() }))
    };
    metrics.chain(formulas).map(|shape| shape.map(table)).collect()
}

impl Shape {
    fn new(
        name: &str,
        keys: Vec<KeyColumn>,
        grain: Millis,
        catalog: &Catalog,
        limits: &Limits,
    ) -> Result<Shape> {
        let span = Interval { start: 0, end: grain };
        let request = request(name, &keys, span, Vec::new(), catalog, limits).map_err(failed)?;
        let query = &request.queries[0];
        let ranked = query.ranked();
        let (mut places, mut fields) = (Vec::new(), Vec::new());
        let columns =
            parquet::columns(query, &[]).map_err(|error| DataFusionError::External(error.into()))?;
        for (place, (title, column)) in titles(query).into_iter().zip(&columns).enumerate() {
            // Of all items there are, the order by value tells the rank.
            if ranked && title == "rank" {
                continue;
            }
            places.push(place);
            let ty = column.data_type().clone();
            let nullable = title != BUCKET;
            fields.push(Field::new(shown(query, title), ty, nullable));
        }
        for ((title, nullable), column) in PROMISED.iter().zip(promised(None, false, 0)) {
            // A key of that name comes first.
            let has = keys.iter().any(|key| key.name == *title);
            let title = if has { format!("tidemark_{title}") } else { (*title).to_owned() };
            fields.push(Field::new(title, column.data_type().clone(), *nullable));
        }
        Ok(Shape { name: name.to_owned(), keys, grain, places, schema: Arc::new(Schema::new(fields)) })
    }

    /// The table's rows of an answer.
    ///
    /// # Errors
    /// Where a sum lies beyond 64 bits, which the column's type can't hold.
    pub(super) fn batch(
        &self,
        query: &Query,
        rows: &[Row],
        as_of: Option<Millis>,
        complete: bool,
    ) -> Result<RecordBatch> {
        let columns =
            parquet::columns(query, rows).map_err(|error| DataFusionError::External(error.into()))?;
        let mut columns: Vec<ArrayRef> = self.places.iter().map(|place| columns[*place].clone()).collect();
        columns.extend(promised(as_of, complete, rows.len()));
        for (field, column) in self.schema.fields().iter().zip(&columns) {
            if field.data_type() != column.data_type() {
                return Err(DataFusionError::Execution(format!(
                    "{}.{} has a value beyond 64 bits: ask for fewer keys, or by the HTTP API, where it is a float",
                    self.name,
                    field.name()
                )));
            }
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// A value column's name as in the view in Postgres.
fn shown(query: &Query, title: String) -> String {
    let column = &query.columns[0];
    if query.formula.is_some() || !title.starts_with(&column.name) {
        return title;
    }
    if let Some(part) = title.strip_prefix(&format!("{}.", column.name)) {
        return part.to_owned();
    }
    let is_key = query.group_by.iter().any(|key| key.name == title);
    match &column.metric.aggregate {
        _ if is_key || title != column.name => title,
        Aggregate::Distinct => "estimate".to_owned(),
        Aggregate::Sessions { .. } => "sessions".to_owned(),
        _ => "value".to_owned(),
    }
}

fn promised(as_of: Option<Millis>, complete: bool, rows: usize) -> [ArrayRef; 2] {
    let as_of: TimestampMillisecondArray = std::iter::repeat_n(as_of, rows).collect();
    [Arc::new(as_of.with_timezone("UTC")), Arc::new(BooleanArray::from(vec![complete; rows]))]
}

/// The request for all keys of a metric in a span.
fn request(
    name: &str,
    keys: &[KeyColumn],
    span: Interval,
    filters: Vec<Json>,
    catalog: &Catalog,
    limits: &Limits,
) -> Result<Request, ServeError> {
    // The item of a top-k is ranked, not grouped by.
    let item = catalog.metric(name).and_then(|metric| metric.item.as_ref());
    let by: Vec<&str> = keys.iter().filter(|key| Some(*key) != item).map(|key| key.name.as_str()).collect();
    let json = json!({
        "metrics": [name], "group_by": by, "granularity": "grain", "from": span.start, "to": span.end, "filters": filters,
    });
    let mut request = Request::read(&json, Format::Json, catalog, limits, span.start)?;
    for query in &mut request.queries {
        // All rows there are: what an answer may hold is limited by its cells.
        (query.limit, query.k) = (usize::MAX, usize::MAX);
    }
    Ok(request)
}

/// An error of the API as the engine's.
pub(super) fn failed(error: ServeError) -> DataFusionError {
    error.note();
    let hint = match &error {
        ServeError::Incomplete(_) => {
            " (SET tidemark.strict = false reads what there is; column complete tells)"
        }
        _ => "",
    };
    DataFusionError::Execution(format!("{}{hint}", error.line()))
}

#[async_trait]
impl TableProvider for Merged {
    fn schema(&self) -> SchemaRef {
        self.shape.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let used = |filter: &&Expr| match Asked::uses(filter, &self.shape.keys) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(used).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Shape { name, keys, grain, schema, .. } = &*self.shape;
        let asked = Asked::new(filters, keys, *grain);
        let schema = match projection {
            Some(columns) => Arc::new(schema.project(columns)?),
            None => schema.clone(),
        };
        let Some(span) = asked.span else { return Ok(Arc::new(EmptyExec::new(schema))) };
        let views = &self.scoped.service.views;
        let request = request(name, keys, span, asked.filters, &views.catalog, &views.limits);
        let mut request = self.scoped.restricted(request).map_err(failed)?;
        let options = session.config_options().extensions.get::<Options>();
        request.strict = options.is_none_or(|options| options.strict);
        Ok(Arc::new(MergedScan::new(
            (self.scoped.clone(), self.main.clone()),
            request,
            self.shape.clone(),
            projection.cloned(),
            schema,
        )))
    }
}
