//! The session of one connection, on the engine that all share: its tables, which are those that its key may read, and nothing else.

use super::limit::WithinLimit;
use super::scan::OneTidemark;
use super::table::{Options, tables};
use crate::access::Scoped;
use anyhow::Result;
use datafusion::catalog::{
    CatalogProvider as _, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
    MemorySchemaProvider, SchemaProvider as _,
};
use datafusion::common::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::{
    PgCatalogSchemaProvider, PgCatalogStaticTables, setup_pg_catalog,
};
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
/// The schema of the system catalog, as Postgres calls it.
const SYSTEM: &str = "pg_catalog";

/// What all sessions share: the functions, what the system catalog holds of itself, and the memory that statements may take.
/// They write nothing to disk.
pub(super) struct Engine {
    model: SessionState,
    system: Arc<PgCatalogStaticTables>,
}

impl Engine {
    /// An engine whose statements together take so many bytes.
    ///
    /// # Errors
    /// Where the library refuses it.
    pub(super) fn new(memory: usize) -> Result<Engine> {
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let memory = RuntimeEnvBuilder::new()
            .with_memory_limit(memory, 1.0)
            .with_disk_manager_builder(disk)
            .build_arc()?;
        // One thread a statement: many connections share a few.
        let mut config = SessionConfig::new()
            .with_information_schema(true)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(DATABASE, SCHEMA)
            .with_target_partitions(1);
        config.options_mut().extensions.insert(Options::default());
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(memory)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(OneTidemark))
            .build();
        let context = SessionContext::new_with_state(state);
        context.register_catalog(DATABASE, Arc::new(MemoryCatalogProvider::new()));
        setup_pg_catalog(&context, DATABASE, EmptyContextProvider).map_err(|error| *error)?;
        Ok(Engine { model: context.state(), system: Arc::new(PgCatalogStaticTables::try_new()?) })
    }
}

/// A connection's session; it has no table until it is opened to a key.
pub(super) struct Session {
    context: Arc<SessionContext>,
    database: Arc<MemoryCatalogProvider>,
    tables: Arc<MemorySchemaProvider>,
}

impl Session {
    /// A session whose statements may each work for so long, and end when they are told to.
    ///
    /// # Errors
    /// Where the library refuses it.
    pub(super) fn new(engine: &Engine, limit: Duration, cancel: Arc<Notify>) -> Result<Session> {
        let databases: Arc<dyn CatalogProviderList> = Arc::new(MemoryCatalogProviderList::new());
        let (database, tables) =
            (Arc::new(MemoryCatalogProvider::new()), Arc::new(MemorySchemaProvider::new()));
        database.register_schema(SCHEMA, tables.clone())?;
        let system =
            PgCatalogSchemaProvider::try_new(databases.clone(), engine.system.clone(), EmptyContextProvider)?;
        database.register_schema(SYSTEM, Arc::new(system))?;
        databases.register_catalog(DATABASE.to_owned(), database.clone());
        let state = SessionStateBuilder::new_from_existing(engine.model.clone())
            .with_catalog_list(databases)
            .with_physical_optimizer_rule(Arc::new(WithinLimit { limit, cancel }))
            .build();
        let context = SessionContext::new_with_state(state);
        BOUNDLESS.iter().for_each(|name| context.deregister_udf(name));
        Ok(Session { context: Arc::new(context), database, tables })
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

/// The system catalog lists all schemas, itself among them: a circle, which nothing else would ever free.
impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.database.deregister_schema(SYSTEM, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_session_that_ended_nothing_is_left() {
        let engine = Engine::new(1 << 20).unwrap();
        let session = Session::new(&engine, Duration::from_secs(1), Arc::default()).unwrap();
        let databases = Arc::downgrade(session.context().state().catalog_list());
        assert!(databases.upgrade().is_some());
        drop(session);
        assert!(databases.upgrade().is_none());
    }
}
