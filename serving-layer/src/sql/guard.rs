//! What stands before every statement: it must only read, its key must still be of use and not ask too often, and who
//! asked what is logged.

use super::connection::MAX_FETCHED;
use super::kept::Kept;
use super::limit::Held;
use super::table::Options;
use super::untold;
use crate::access::{Pending, Scoped};
use crate::error::ServeError;
use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, ParamValues};
use datafusion::logical_expr::{EmptyRelation, LogicalPlan, Sort, placeholder};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{
    CloseCursor, DataType as SqlType, Declare, Expr, FetchDirection, ObjectName, Query, Set, SetExpr,
    Statement, Value, ValueWithSpan, visit_expressions, visit_relations,
};
use datafusion_postgres::QueryHook;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::ClientInfo;
use datafusion_postgres::pgwire::api::Type;
use datafusion_postgres::pgwire::api::results::{FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::store::PortalStore as _;
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::response::TransactionStatus;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Where a session's options begin.
const OURS: &str = "tidemark.";
/// Where those of the engine do, which are not the clients' to change.
const ENGINE: &str = "datafusion.";

/// One connection's guard.
pub(super) struct Guard {
    scoped: OnceLock<Scoped>,
    log: Mutex<Statements>,
    kept: Mutex<Kept>,
    /// What rows take that wait to be sent.
    held: Arc<Held>,
}

/// The log's entries of statements that have not ended.
#[derive(Default)]
struct Statements {
    /// Those of the message that is under way.
    under_way: Vec<Pending>,
    /// Those of texts that were prepared and not run since: to prepare them was counted, to run them then isn't again.
    prepared: HashMap<String, Pending>,
    /// The text that the message prepares.
    preparing: Option<String>,
}

/// The most texts that wait to be run; of others it is forgotten that they were counted.
const MAX_PREPARED: usize = 64;

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
    /// A point within a transaction is kept, let go of or gone back to: nothing was written since.
    Savepoint(&'static str),
    /// A prepared statement is let go of; without a name all are.
    Deallocate(Option<String>),
    Refuse(&'static str),
}

fn way(statement: &Statement) -> Way {
    let mut named = 0;
    let _ = visit_relations(statement, |_| {
        named += 1;
        ControlFlow::<()>::Continue(())
    });
    let casts_to_length = visit_expressions(statement, |expression| match expression {
        Expr::Cast { data_type, .. } if has_length(data_type) => ControlFlow::Break(()),
        Expr::TypedString(text) if has_length(&text.data_type) => ControlFlow::Break(()),
        Expr::Convert { data_type: Some(data_type), .. } if has_length(data_type) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    match statement {
        _ if named > MAX_NAMED => Way::Refuse(TOO_WIDE),
        _ if casts_to_length.is_break() => Way::Refuse(TO_LENGTH),
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
        Statement::Deallocate { name, .. } => {
            let is_all = name.quote_style.is_none() && name.value.eq_ignore_ascii_case("all");
            Way::Deallocate((!is_all).then(|| name.value.clone()))
        }
        Statement::Savepoint { .. } => Way::Savepoint("SAVEPOINT"),
        Statement::ReleaseSavepoint { .. } => Way::Savepoint("RELEASE"),
        Statement::Rollback { savepoint: Some(_), .. } => Way::Savepoint("ROLLBACK"),
        Statement::ShowVariable { variable } if variable.is_empty() => Way::Refuse(SHOW_WHAT),
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

const SHOW_WHAT: &str = "SHOW needs the name of an option";
const TO_LENGTH: &str = "arrays have no fixed length here: cast to bigint[], say";

/// Whether a type is, or has in it, an array of a length, which a cast would fill up.
fn has_length(data_type: &SqlType) -> bool {
    let text = data_type.to_string();
    text.split('[').skip(1).any(|behind| behind.starts_with(|first: char| first.is_ascii_digit()))
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
    /// A guard of statements that are nobody's yet.
    pub(super) fn new(held: Arc<Held>) -> Guard {
        Guard { scoped: OnceLock::new(), log: Mutex::default(), kept: Mutex::default(), held }
    }

    /// Whose statements these are, from now on.
    pub(super) fn open(&self, scoped: Scoped) {
        // A client lets itself in once.
        let _ = self.scoped.set(scoped);
    }

    /// `None`: the statement goes on.
    fn pass(
        &self,
        statement: &Statement,
        context: &SessionContext,
        client: &dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        match way(statement) {
            Way::Pass => {
                if let Statement::Close { cursor } = statement {
                    self.kept().close(match cursor {
                        CloseCursor::All => None,
                        CloseCursor::Specific { name } => Some(&name.value),
                    });
                }
                None
            }
            Way::Read => {
                if let Err(why) = self.declare(statement) {
                    return Some(Err(refusal("54000", why)));
                }
                // A cursor's rows are collected before any is sent.
                if matches!(statement, Statement::Fetch { .. }) {
                    self.held.collect(true);
                }
                self.count(statement).err().map(|error| Err(refused(error)))
            }
            Way::Set(name, value) => Some(option(&name, &value, context)),
            Way::Discard => {
                self.deallocate(None, client);
                let strict = option("strict", "true", context);
                Some(strict.map(|_| Response::Execution(Tag::new("DISCARD ALL"))))
            }
            // What failed before it is forgotten, and the transaction goes on.
            Way::Savepoint("ROLLBACK") => Some(Ok(Response::TransactionStart(Tag::new("ROLLBACK")))),
            Way::Savepoint(tag) => Some(Ok(Response::Execution(Tag::new(tag)))),
            Way::Deallocate(name) => {
                self.deallocate(name.as_deref(), client);
                Some(Ok(Response::Execution(Tag::new("DEALLOCATE"))))
            }
            Way::Refuse(why) => Some(Err(refusal("25006", why.to_owned()))),
        }
    }

    /// Takes in the cursors of a statement that declares some.
    fn declare(&self, statement: &Statement) -> Result<(), String> {
        let Statement::Declare { stmts } = statement else { return Ok(()) };
        let names = stmts.iter().flat_map(|one| &one.names);
        let bytes = statement.to_string().len();
        names.into_iter().try_for_each(|name| self.kept().declare(&name.value, bytes))
    }

    fn deallocate(&self, name: Option<&str>, client: &dyn HookClient) {
        for name in self.kept().deallocate(name) {
            client.portal_store().rm_statement(&name);
        }
    }

    /// What the client keeps under names.
    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Statements> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a statement, and begins its entry in the log.
    fn begin(&self, text: &str) -> Result<Pending, ServeError> {
        let scoped = self.scoped.get().ok_or(ServeError::NoKey)?;
        scoped.count()?;
        scoped.asks("SQL", SQL, text)
    }

    /// Counts a statement that is run, unless that was done when it was prepared.
    fn count(&self, statement: &Statement) -> Result<(), ServeError> {
        let text = statement.to_string();
        let mut log = self.log();
        let pending = log.prepared.remove(&text).map_or_else(|| self.begin(&text), Ok)?;
        log.under_way.push(pending);
        Ok(())
    }

    /// Counts a statement that is only prepared: to plan is work, too, and tells which tables there are.
    fn prepare(&self, statement: &Statement) -> Result<(), ServeError> {
        let text = statement.to_string();
        let pending = self.begin(&text)?;
        let mut log = self.log();
        if log.prepared.len() >= MAX_PREPARED {
            log.prepared.drain().for_each(|(_, pending)| pending.end(200));
        }
        if let Some(before) = log.prepared.insert(text.clone(), pending) {
            before.end(200);
        }
        log.preparing = Some(text);
        Ok(())
    }

    /// Whether a client was let in.
    pub(super) fn is_open(&self) -> bool {
        self.scoped.get().is_some()
    }

    /// Notes in the log how the message's statements ended, of which the last may have failed.
    pub(super) fn end(&self, well: bool) {
        let mut log = self.log();
        let mut ended = std::mem::take(&mut log.under_way);
        if let Some(text) = log.preparing.take().filter(|_| !well) {
            ended.extend(log.prepared.remove(&text));
        }
        let last = ended.pop();
        ended.into_iter().for_each(|pending| pending.end(200));
        last.into_iter().for_each(|pending| pending.end(if well { 200 } else { 400 }));
    }

    /// When the client's key is of no use any more.
    pub(super) async fn key_ended(&self) {
        match self.scoped.get() {
            Some(scoped) => scoped.ended().await,
            None => std::future::pending().await,
        }
    }
}

/// What was prepared and never run is in the log, too.
impl Drop for Guard {
    fn drop(&mut self) {
        self.log().prepared.drain().for_each(|(_, pending)| pending.end(200));
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

/// What marks a plan of no rows, in its schema's metadata.
const NOTHING: &str = "tidemark.nothing";

/// A plan of no rows, sorted by its parameters: a Describe tells those that stand in a plan.
fn nothing(columns: Vec<String>, parameters: Vec<String>) -> PgWireResult<LogicalPlan> {
    let fields = columns.into_iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let mark = HashMap::from([(NOTHING.to_owned(), String::new())]);
    let schema = DFSchema::from_unqualified_fields(fields, mark);
    let schema = schema.map_err(|error| PgWireError::ApiError(error.into()))?;
    let none = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::new(schema) });
    if parameters.is_empty() {
        return Ok(none);
    }
    let expr = parameters.into_iter().map(|name| placeholder(name).sort(true, false)).collect();
    Ok(LogicalPlan::Sort(Sort { expr, input: Arc::new(none), fetch: None }))
}

/// An answer of no rows.
fn no_rows(columns: Vec<String>) -> Response {
    let field = |name: String| FieldInfo::new(name, None, None, Type::TEXT, FieldFormat::Text);
    let fields = Arc::new(columns.into_iter().map(field).collect());
    Response::Query(QueryResponse::new(fields, futures::stream::empty()))
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

/// An error of a code of Postgres'.
pub(super) fn refusal(code: &str, message: String) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message)))
}

#[async_trait]
impl QueryHook for Guard {
    async fn handle_simple_query(
        &self,
        statement: &Statement,
        context: &SessionContext,
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        if let Some(answer) = self.pass(statement, context, client) {
            return Some(answer);
        }
        if client.transaction_status() == TransactionStatus::Error {
            return None;
        }
        untold::columns(statement, context).await.map(|columns| Ok(no_rows(columns)))
    }

    async fn handle_extended_parse_query(
        &self,
        statement: &Statement,
        context: &SessionContext,
        client: &(dyn ClientInfo + Send + Sync),
    ) -> Option<PgWireResult<LogicalPlan>> {
        match way(statement) {
            _ if !self.is_open() => Some(Err(refused(ServeError::NoKey))),
            Way::Refuse(why) => Some(Err(refusal("25006", why.to_owned()))),
            Way::Read => match self.prepare(statement) {
                Err(error) => Some(Err(refused(error))),
                Ok(()) if client.transaction_status() == TransactionStatus::Error => None,
                Ok(()) => {
                    let columns = untold::columns(statement, context).await?;
                    Some(nothing(columns, untold::parameters(statement)))
                }
            },
            Way::Discard | Way::Deallocate(_) | Way::Savepoint(_) => Some(nothing(Vec::new(), Vec::new())),
            Way::Pass | Way::Set(..) => None,
        }
    }

    async fn handle_extended_query(
        &self,
        statement: &Statement,
        plan: &LogicalPlan,
        _: &ParamValues,
        context: &SessionContext,
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        if let Some(answer) = self.pass(statement, context, client) {
            return Some(answer);
        }
        let (schema, status) = (plan.schema(), client.transaction_status());
        if status == TransactionStatus::Error || !schema.metadata().contains_key(NOTHING) {
            return None;
        }
        // Whatever its parameters are: to put them in fails for a NULL of no type.
        let columns = schema.fields().iter().map(|field| field.name().clone());
        Some(Ok(no_rows(columns.collect())))
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
        check("savepoint a", &Way::Savepoint("SAVEPOINT"));
        check("release savepoint a", &Way::Savepoint("RELEASE"));
        check("rollback to savepoint a", &Way::Savepoint("ROLLBACK"));
        check("discard all", &Way::Discard);
        check("deallocate all", &Way::Deallocate(None));
        check("deallocate prepare \"all\"", &Way::Deallocate(Some("all".to_owned())));
        check("show", &Way::Refuse(SHOW_WHAT));
        for sql in [
            "select array[1]::bigint[2000000000]",
            "select try_cast(array[array[1]] as bigint[7][])",
            "explain select a from (select cast(array[1] as bigint[9]) as a) as t",
        ] {
            check(sql, &Way::Refuse(TO_LENGTH));
        }
        check("select array[1]::bigint[], 'a'::varchar(9), array[1, 2][1]", &Way::Read);
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

    #[test]
    fn what_finds_nothing_has_its_columns_and_parameters() {
        let sql = "select relname from pg_class where oid = $2 and relkind in ($1, $2) limit $3";
        let parsed = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
        let plan = nothing(vec!["relname".to_owned()], untold::parameters(&parsed[0])).unwrap();
        let mut parameters: Vec<String> = plan.get_parameter_names().unwrap().into_iter().collect();
        parameters.sort();
        assert_eq!(parameters, ["$1", "$2", "$3"]);
        assert_eq!(plan.schema().field_names(), ["relname"]);
        assert!(plan.schema().metadata().contains_key(NOTHING));
        assert!(nothing(Vec::new(), Vec::new()).unwrap().get_parameter_names().unwrap().is_empty());
    }
}
