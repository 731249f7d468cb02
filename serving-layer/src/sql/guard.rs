//! What stands before every statement: it must only read, its key must still be of use and not ask too often, and who
//! asked what is logged.

use super::connection::MAX_FETCHED;
use super::table::Options;
use crate::access::{Pending, Scoped};
use crate::error::ServeError;
use async_trait::async_trait;
use datafusion::common::{DFSchema, ParamValues};
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{
    Declare, FetchDirection, ObjectName, Query, Set, SetExpr, Statement, Value, ValueWithSpan,
    visit_relations,
};
use datafusion_postgres::QueryHook;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::ClientInfo;
use datafusion_postgres::pgwire::api::results::{Response, Tag};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Where a session's options begin.
const OURS: &str = "tidemark.";
/// Where those of the engine do, which are not the clients' to change.
const ENGINE: &str = "datafusion.";

/// One connection's guard.
#[derive(Default)]
pub(super) struct Guard {
    scoped: OnceLock<Scoped>,
    /// The log's entries of the statements of the message that is under way.
    under_way: Mutex<Vec<Pending>>,
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
    /// The session begins anew.
    Discard,
    /// A statement is let go of, which ends with the connection anyway.
    Deallocate,
    Refuse(&'static str),
}

fn way(statement: &Statement) -> Way {
    let mut named = 0;
    let _ = visit_relations(statement, |_| {
        named += 1;
        ControlFlow::<()>::Continue(())
    });
    match statement {
        _ if named > MAX_NAMED => Way::Refuse(TOO_WIDE),
        Statement::Query(query) if reads(query) => Way::Read,
        Statement::Explain { statement, .. } => match way(statement) {
            Way::Read => Way::Read,
            _ => Way::Refuse(READ_ONLY),
        },
        Statement::Declare { stmts } => {
            let reads = |one: &Declare| one.for_query.as_ref().is_some_and(|query| reads(query));
            if stmts.iter().all(reads) { Way::Read } else { Way::Refuse(READ_ONLY) }
        }
        Statement::Fetch { direction, .. } if most(direction) > MAX_FETCHED => Way::Refuse(TOO_MANY),
        Statement::Fetch { .. } => Way::Read,
        Statement::Set(set) => self::set(set),
        Statement::Discard { .. } => Way::Discard,
        Statement::Deallocate { .. } => Way::Deallocate,
        Statement::ShowVariable { .. }
        | Statement::ShowStatus { .. }
        | Statement::ShowCatalogs { .. }
        | Statement::StartTransaction { .. }
        | Statement::Commit { .. }
        | Statement::Rollback { .. }
        | Statement::Close { .. } => Way::Pass,
        _ => Way::Refuse(READ_ONLY),
    }
}

const TOO_MANY: &str = "FETCH takes 1,000,000 rows at once at most";
/// The most tables that a statement may name, however often: to join them is planned in time by the square of their columns.
const MAX_NAMED: usize = 64;
const TOO_WIDE: &str = "a statement names at most 64 tables";

/// How many rows a cursor is asked for.
fn most(direction: &FetchDirection) -> u64 {
    let count = |limit: &ValueWithSpan| match &limit.value {
        Value::Number(digits, _) => digits.parse().unwrap_or(u64::MAX),
        _ => u64::MAX,
    };
    match direction {
        FetchDirection::Count { limit } => count(limit),
        FetchDirection::Forward { limit: Some(limit) } => count(limit),
        FetchDirection::Next | FetchDirection::First => 1,
        // The library reads these as it likes, or not at all.
        _ => u64::MAX,
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
    // Of however many parts a name is written, and whatever is in quotes.
    let name = |name: &ObjectName| {
        let parts =
            name.0.iter().map(|part| part.as_ident().map_or(String::new(), |ident| ident.value.clone()));
        parts.collect::<Vec<_>>().join(".").to_ascii_lowercase()
    };
    match set {
        Set::SingleAssignment { variable, values, .. } => match (name(variable), &values[..]) {
            (name, _) if name.starts_with(ENGINE) => Way::Refuse(NOT_YOURS),
            (name, [value]) if name.starts_with(OURS) => {
                let value = value.to_string();
                let value = value.trim_matches(['\'', '"']).to_ascii_lowercase();
                Way::Set(name[OURS.len()..].to_owned(), value)
            }
            _ => Way::Pass,
        },
        Set::MultipleAssignments { .. } | Set::ParenthesizedAssignments { .. } => Way::Refuse(ONE_AT_A_TIME),
        _ => Way::Pass,
    }
}

const NOT_YOURS: &str = "the engine's own options can't be changed here";
const ONE_AT_A_TIME: &str = "SET takes one option at a time";

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
            Way::Discard => {
                let strict = option("strict", "true", context);
                Some(strict.map(|_| Response::Execution(Tag::new("DISCARD ALL"))))
            }
            Way::Deallocate => Some(Ok(Response::Execution(Tag::new("DEALLOCATE")))),
            Way::Refuse(why) => Some(Err(refusal("25006", why.to_owned()))),
        }
    }

    fn count(&self, statement: &Statement) -> Result<(), ServeError> {
        let scoped = self.scoped.get().ok_or(ServeError::NoKey)?;
        scoped.count()?;
        let pending = scoped.asks("SQL", SQL, &statement.to_string())?;
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).push(pending);
        Ok(())
    }

    /// Whether a client was let in.
    pub(super) fn is_open(&self) -> bool {
        self.scoped.get().is_some()
    }

    /// Notes in the log how the message's statements ended, of which the last may have failed.
    pub(super) fn end(&self, well: bool) {
        let mut ended = std::mem::take(&mut *self.under_way.lock().unwrap_or_else(PoisonError::into_inner));
        let last = ended.pop();
        ended.into_iter().for_each(|pending| pending.end(200));
        last.into_iter().for_each(|pending| pending.end(if well { 200 } else { 400 }));
    }
}

/// Where statements come in, as the log names it.
const SQL: &str = "sql";

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
            _ if !self.is_open() => Some(Err(refused(ServeError::NoKey))),
            Way::Refuse(why) => Some(Err(refusal("25006", why.to_owned()))),
            // To plan is work, too, and tells which tables there are.
            Way::Read => self.count(statement).err().map(|error| Err(refused(error))),
            Way::Discard | Way::Deallocate => {
                let schema = Arc::new(DFSchema::empty());
                Some(Ok(LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema })))
            }
            Way::Pass | Way::Set(..) => None,
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
        check("fetch 100 from c", &Way::Read);
        check("fetch forward 100000000000 from c", &Way::Refuse(TOO_MANY));
        check("fetch all from c", &Way::Refuse(TOO_MANY));
        check("discard all", &Way::Discard);
        check("deallocate all", &Way::Deallocate);
        check(&format!("select * from t{}", ", t".repeat(MAX_NAMED)), &Way::Refuse(TOO_WIDE));
        for sql in [
            "set datafusion.runtime.memory_limit = '1T'",
            "set \"datafusion\".\"runtime\".\"memory_limit\" = '1T'",
            "set session DataFusion.runtime.temp_directory = '/tmp'",
            "set local \"datafusion.x\" = 1",
        ] {
            check(sql, &Way::Refuse(NOT_YOURS));
        }
    }
}
