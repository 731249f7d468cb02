//! The session of one connection, on the engine that all share: its tables, which are those that its key may read, and nothing else.

use super::limit::{Held, WithinLimit};
use super::scan::OneTidemark;
use super::system::{self, System};
use super::table::{Options, tables};
use crate::access::Scoped;
use anyhow::Result;
use datafusion::catalog::{
    CatalogProvider as _, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
    MemorySchemaProvider, SchemaProvider as _, TableProvider as _,
};
use datafusion::common::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
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
const BOUNDLESS: [&str; 9] = [
    "repeat",
    "lpad",
    "rpad",
    "array_repeat",
    "array_resize",
    "range",
    "generate_series",
    // To lists of a length, of which there are no other casts (`guard`).
    "arrow_cast",
    "arrow_try_cast",
];

/// The database, whatever a client calls it.
pub(super) const DATABASE: &str = "tidemark";
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
            // A pool whose errors do not tell of what others ask.
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
            .with_disk_manager_builder(disk)
            .build_arc()?;
        // One thread a statement: many connections share a few.
        let mut config = SessionConfig::new()
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
        system::functions().into_iter().for_each(|function| context.register_udf(function));
        Ok(Engine { model: context.state(), system: Arc::new(PgCatalogStaticTables::try_new()?) })
    }
}

/// A connection's session; it has no table until it is opened to a key.
pub(super) struct Session {
    context: Arc<SessionContext>,
    database: Arc<MemoryCatalogProvider>,
    tables: Arc<MemorySchemaProvider>,
    information: Arc<MemorySchemaProvider>,
    held: Arc<Held>,
}

impl Session {
    /// A session whose statements may each work for so long, and end when they are told to.
    ///
    /// # Errors
    /// Where the library refuses it.
    pub(super) fn new(engine: &Engine, limit: Duration, cancel: Arc<Notify>) -> Result<Session> {
        let databases: Arc<dyn CatalogProviderList> = Arc::new(MemoryCatalogProviderList::new());
        let database = Arc::new(MemoryCatalogProvider::new());
        let [tables, information] = [(); 2].map(|()| Arc::new(MemorySchemaProvider::new()));
        database.register_schema(SCHEMA, tables.clone())?;
        database.register_schema("information_schema", information.clone())?;
        let system =
            PgCatalogSchemaProvider::try_new(databases.clone(), engine.system.clone(), EmptyContextProvider)?;
        database.register_schema(SYSTEM, Arc::new(System::new(system)?))?;
        databases.register_catalog(DATABASE.to_owned(), database.clone());
        let held = Arc::new(Held::new(&engine.model.runtime_env().memory_pool));
        let within_limit = WithinLimit { limit, cancel, held: held.clone() };
        let state = SessionStateBuilder::new_from_existing(engine.model.clone())
            .with_catalog_list(databases)
            .with_physical_optimizer_rule(Arc::new(within_limit))
            .build();
        let context = SessionContext::new_with_state(state);
        BOUNDLESS.iter().for_each(|name| context.deregister_udf(name));
        Ok(Session { context: Arc::new(context), database, tables, information, held })
    }

    pub(super) fn context(&self) -> Arc<SessionContext> {
        self.context.clone()
    }

    /// What its rows take that wait to be sent.
    pub(super) fn held(&self) -> Arc<Held> {
        self.held.clone()
    }

    /// Opens it to a key: with the tables of what it may read.
    ///
    /// # Errors
    /// Where a metric can't be a table.
    pub(super) fn open(&self, scoped: &Scoped, main: &Handle) -> Result<(), DataFusionError> {
        let mut listed = Vec::new();
        for (name, table) in tables(scoped, main)? {
            listed.push((name.clone(), table.schema()));
            self.tables.register_table(name, table)?;
        }
        system::information_schema(&self.information, &listed)
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
