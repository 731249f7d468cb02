//! The engine of one connection: its tables, which are those that its key may read, and nothing else.

use super::limit::WithinLimit;
use super::scan::OneTidemark;
use super::table::{Options, tables};
use crate::access::Scoped;
use anyhow::Result;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider as _,
};
use datafusion::common::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// Functions that make as much of a few bytes as they are told to, beside the memory that statements are given.
const BOUNDLESS: [&str; 7] =
    ["repeat", "lpad", "rpad", "array_repeat", "array_resize", "range", "generate_series"];

/// The database, whatever a client calls it.
const DATABASE: &str = "tidemark";
/// The schema of the tables: the one that the views in Postgres have.
pub(super) const SCHEMA: &str = "metrics";

/// A connection's engine; it has no table until it is opened to a key.
pub(super) struct Session {
    context: Arc<SessionContext>,
    tables: Arc<MemorySchemaProvider>,
}

/// What all sessions share: the memory that statements may take. They write nothing to disk.
///
/// # Errors
/// Where the library refuses it.
pub(super) fn engine(memory: usize) -> Result<Arc<RuntimeEnv>> {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    Ok(RuntimeEnvBuilder::new().with_memory_limit(memory, 1.0).with_disk_manager_builder(disk).build_arc()?)
}

impl Session {
    /// A session whose statements may each work for so long, and end when they are told to.
    ///
    /// # Errors
    /// Where the library refuses it.
    pub(super) fn new(engine: Arc<RuntimeEnv>, limit: Duration, cancel: Arc<Notify>) -> Result<Session> {
        // One thread a statement: many connections share a few.
        let mut config = SessionConfig::new()
            .with_information_schema(true)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(DATABASE, SCHEMA)
            .with_target_partitions(1);
        config.options_mut().extensions.insert(Options::default());
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(engine)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(OneTidemark))
            .with_physical_optimizer_rule(Arc::new(WithinLimit { limit, cancel }))
            .build();
        let context = SessionContext::new_with_state(state);
        let (database, tables) = (MemoryCatalogProvider::new(), Arc::new(MemorySchemaProvider::new()));
        database.register_schema(SCHEMA, tables.clone())?;
        context.register_catalog(DATABASE, Arc::new(database));
        setup_pg_catalog(&context, DATABASE, EmptyContextProvider).map_err(|error| *error)?;
        BOUNDLESS.iter().for_each(|name| context.deregister_udf(name));
        Ok(Session { context: Arc::new(context), tables })
    }

    pub(super) fn context(&self) -> Arc<SessionContext> {
        self.context.clone()
    }

    /// Opens it to a key: with the tables of what it may read.
    ///
    /// # Errors
    /// Where a metric can't be a table.
    pub(super) fn open(&self, scoped: &Scoped, main: &Handle) -> Result<(), DataFusionError> {
        for (name, table) in tables(scoped, main)? {
            self.tables.register_table(name, table)?;
        }
        Ok(())
    }
}
