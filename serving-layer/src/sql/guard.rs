//! What stands before every statement: it must only read, its key must still be of use and not ask too often, and who
//! asked what is logged.

use super::table::Options;
use crate::access::{Pending, Scoped};
use crate::error::ServeError;
use async_trait::async_trait;
use datafusion::common::ParamValues;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{Declare, Query, Set, SetExpr, Statement};
use datafusion_postgres::QueryHook;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::ClientInfo;
use datafusion_postgres::pgwire::api::results::{Response, Tag};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Where a session's options begin.
const OURS: &str = "tidemark.";
/// Where those of the engine do, which are not the clients' to change.
const ENGINE: &str = "datafusion.";

/// One connection's guard.
#[derive(Default)]
pub(super) struct Guard {
    scoped: OnceLock<Scoped>,
    /// The log's entry of the last statement, which is over when the next comes.
    under_way: Mutex<Pending>,
}

/// What statements pass through, in order.
pub(super) fn hooks(guard: Arc<Guard>) -> Vec<Arc<dyn QueryHook>> {
    vec![guard, Arc::new(CursorStatementHook), Arc::new(SetShowHook), Arc::new(TransactionStatementHook)]
}

/// What is done with a statement.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// It reads, and is counted and logged.
    Read,
    /// It says something of the session.
    Pass,
    /// It sets an option of ours.
    Set(String, String),
    /// It lets go of what the session has prepared.
    Discard,
    Refuse(&'static str),
}

fn way(statement: &Statement) -> Way {
    match statement {
        Statement::Query(query) if reads(query) => Way::Read,
        Statement::Explain { statement, .. } => match way(statement) {
            Way::Read => Way::Read,
            _ => Way::Refuse(READ_ONLY),
        },
        Statement::Declare { stmts } => {
            let reads = |one: &Declare| one.for_query.as_ref().is_some_and(|query| reads(query));
            if stmts.iter().all(reads) { Way::Read } else { Way::Refuse(READ_ONLY) }
        }
        Statement::Fetch { .. } => Way::Read,
        Statement::Set(set) => self::set(set),
        Statement::Discard { .. } => Way::Discard,
        Statement::ShowVariable { .. }
        | Statement::ShowStatus { .. }
        | Statement::ShowCatalogs { .. }
        | Statement::StartTransaction { .. }
        | Statement::Commit { .. }
        | Statement::Rollback { .. }
        | Statement::Close { .. }
        | Statement::Deallocate { .. } => Way::Pass,
        _ => Way::Refuse(READ_ONLY),
    }
}

const READ_ONLY: &str = "metrics are read-only: SELECT, EXPLAIN, SHOW, SET and transactions alone are served";

/// Whether a query writes nothing, not even to a table of its session.
fn reads(query: &Query) -> bool {
    let within = query.with.iter().flat_map(|with| &with.cte_tables);
    body_reads(&query.body) && within.into_iter().all(|table| reads(&table.query))
}

fn body_reads(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => select.into.is_none(),
        SetExpr::Query(query) => reads(query),
        SetExpr::SetOperation { left, right, .. } => body_reads(left) && body_reads(right),
        SetExpr::Values(_) | SetExpr::Table(_) => true,
        _ => false,
    }
}

fn set(set: &Set) -> Way {
    if let Set::SingleAssignment { variable, values, .. } = set {
        let name = variable.to_string().to_ascii_lowercase();
        if let (Some(name), [value]) = (name.strip_prefix(OURS), &values[..]) {
            let value = value.to_string();
            return Way::Set(name.to_owned(), value.trim_matches(['\'', '"']).to_ascii_lowercase());
        }
    }
    match set.to_string().to_ascii_lowercase() {
        text if text.contains(ENGINE) => Way::Refuse("the engine's own options can't be changed here"),
        text if text.contains(OURS) => Way::Refuse("expected SET tidemark.<option> = <value>"),
        _ => Way::Pass,
    }
}

impl Guard {
    /// Whose statements these are, from now on.
    pub(super) fn open(&self, scoped: Scoped) {
        // A client lets itself in once.
        let _ = self.scoped.set(scoped);
    }

    /// `None`: the statement goes on.
    fn pass(&self, statement: &Statement, context: &SessionContext) -> Option<PgWireResult<Response>> {
        match way(statement) {
            Way::Pass => None,
            Way::Read => self.count(statement).err().map(|error| Err(refused(error))),
            Way::Set(name, value) => Some(option(&name, &value, context)),
            Way::Discard => Some(Ok(Response::Execution(Tag::new("DISCARD ALL")))),
            Way::Refuse(why) => Some(Err(refusal("25006", why.to_owned()))),
        }
    }

    fn count(&self, statement: &Statement) -> Result<(), ServeError> {
        let scoped = self.scoped.get().ok_or(ServeError::NoKey)?;
        let pending = scoped.asks("SQL", SQL, &statement.to_string())?;
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *under_way, pending).end(200);
        drop(under_way);
        scoped.count()
    }
}

/// Where statements come in, as the log names it.
const SQL: &str = "sql";

impl Drop for Guard {
    fn drop(&mut self) {
        let under_way = self.under_way.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(under_way).end(200);
    }
}

/// Sets an option of a session.
fn option(name: &str, value: &str, context: &SessionContext) -> PgWireResult<Response> {
    let value = match (name, value) {
        ("strict", "true" | "on" | "1") => true,
        ("strict", "false" | "off" | "0") => false,
        ("strict", other) => {
            return Err(refusal(
                "22023",
                format!("tidemark.strict can't be {other:?}: expected true or false"),
            ));
        }
        _ => {
            return Err(refusal(
                "42704",
                format!("there is no option tidemark.{name}: expected tidemark.strict"),
            ));
        }
    };
    let state = context.state_ref();
    let mut state = state.write();
    if let Some(options) = state.config_mut().options_mut().extensions.get_mut::<Options>() {
        options.strict = value;
    }
    Ok(Response::Execution(Tag::new("SET")))
}

/// What a client is told whose statement isn't let pass.
fn refused(error: ServeError) -> PgWireError {
    error.note();
    let code = match &error {
        ServeError::NoKey => "28000",
        ServeError::Rate { .. } => "53400",
        _ => "57P03",
    };
    refusal(code, error.line())
}

fn refusal(code: &str, message: String) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message)))
}

#[async_trait]
impl QueryHook for Guard {
    async fn handle_simple_query(
        &self,
        statement: &Statement,
        context: &SessionContext,
        _: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        self.pass(statement, context)
    }

    async fn handle_extended_parse_query(
        &self,
        statement: &Statement,
        _: &SessionContext,
        _: &(dyn ClientInfo + Send + Sync),
    ) -> Option<PgWireResult<LogicalPlan>> {
        match way(statement) {
            Way::Refuse(why) => Some(Err(refusal("25006", why.to_owned()))),
            _ => None,
        }
    }

    async fn handle_extended_query(
        &self,
        statement: &Statement,
        _: &LogicalPlan,
        _: &ParamValues,
        context: &SessionContext,
        _: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        self.pass(statement, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    #[test]
    fn only_what_reads_is_let_pass() {
        let check = |sql: &str, expected: &Way| {
            let parsed = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
            assert_eq!(&way(&parsed[0]), expected, "{sql}");
        };
        for sql in [
            "select 1",
            "with a as (select 1) select * from a union all values (2)",
            "explain select * from doc_cnt",
            "declare c cursor for select 1",
        ] {
            check(sql, &Way::Read);
        }
        for sql in ["begin", "commit", "show search_path", "set datestyle = 'ISO'", "close c"] {
            check(sql, &Way::Pass);
        }
        for sql in [
            "insert into doc_cnt values (1)",
            "with a as (insert into doc_cnt values (1) returning *) select * from a",
            "select 1 into t",
            "declare c cursor for select 1 into t",
            "update doc_cnt set value = 1",
            "delete from doc_cnt",
            "create table t (a int)",
            "create view v as select 1",
            "drop table doc_cnt",
            "copy doc_cnt to '/tmp/x'",
            "explain delete from doc_cnt",
        ] {
            check(sql, &Way::Refuse(READ_ONLY));
        }
        check("set tidemark.strict = off", &Way::Set("strict".to_owned(), "off".to_owned()));
        check("set tidemark.strict to 'false'", &Way::Set("strict".to_owned(), "false".to_owned()));
        for sql in ["set datafusion.runtime.memory_limit = '1T'", "set local \"datafusion.x\" = 1"] {
            assert!(matches!(
                way(&Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap()[0]),
                Way::Refuse(_)
            ));
        }
    }
}
