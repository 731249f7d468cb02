//! The batch layer: archives the log's closed epochs and recomputes the batch view from them.
//!
//! Every flip publishes versions computed from exactly what lies below the tidemark that it leaves in force.

mod clock;
mod config;
pub mod archive;
pub mod import;
mod work;
mod files;
mod plan;
pub mod compute;
mod ledger;
mod stored;
mod replace;
mod audit;
mod facts;
mod retention;
mod compact;
mod views;
mod grafana;
mod run;
mod schedule;
mod history;
mod preview;
mod telemetry;
mod service;
#[doc(hidden)]
pub mod twin;

pub use config::{
    ArchiveArgs, Args, AuditArgs, BackfillArgs, BaseArgs, CatalogArgs, CatalogCommand, CatalogOfArgs,
    Command, ImportArgs, LogFormat, PreviewArgs, RetentionArgs, RetryArgs, RollbackArgs, RunArgs, RunsArgs,
    ScheduleArgs, SweepArgs, WorkArgs,
};
pub use service::{execute, exit_code, settle_resources};
pub use telemetry::start_logging;
