//! Statements over nothing but the system catalog that the engine can't run: they find nothing, since of what it knows
//! nothing (keys, indexes, functions, privileges of columns) there is nothing, so that the tools that ask go on.

use super::session::{DATABASE, SCHEMA};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as Parsed;
use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Query, SelectItem, SetExpr, Statement, visit_relations,
};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// The columns of a statement over the system catalog that can't be run; `None` of any other.
pub(super) async fn columns(statement: &Statement, context: &SessionContext) -> Option<Vec<String>> {
    let Statement::Query(query) = statement else { return None };
    let tables = context.catalog(DATABASE)?.schema(SCHEMA)?;
    if !is_of_system(query, |name| tables.table_exist(name)) {
        return None;
    }
    let columns = of_query(query)?;
    let state = context.state();
    let error = match state.statement_to_plan(Parsed::Statement(Box::new(statement.clone()))).await {
        Err(error) => error,
        // What its parameters are is not known yet.
        Ok(plan) if !plan.get_parameter_names().is_ok_and(|names| names.is_empty()) => {
            state.optimize(&plan).err()?
        }
        Ok(plan) => state.create_physical_plan(&plan).await.err()?,
    };
    tracing::info!(%statement, "the system catalog doesn't tell, nothing is found: {error}");
    Some(columns)
}

/// Whether a query reads some relation of the system catalog, and no other, least of all a table of the session.
fn is_of_system(query: &Query, is_table: impl Fn(&str) -> bool) -> bool {
    let (mut some, mut others) = (false, false);
    let own: HashSet<&str> = query
        .with
        .iter()
        .flat_map(|with| &with.cte_tables)
        .map(|cte| cte.alias.name.value.as_str())
        .collect();
    let _ = visit_relations(query, |name: &ObjectName| {
        let parts: Vec<&str> =
            name.0.iter().filter_map(|part| part.as_ident()).map(|ident| ident.value.as_str()).collect();
        match &parts[..] {
            [name] if is_table(name) => others = true,
            [.., "pg_catalog" | "information_schema", _] => some = true,
            [name] if name.starts_with("pg_") => some = true,
            [name] if own.contains(name) => {}
            // Functions of tables stand among them.
            ["generate_series" | "unnest" | "string_to_array"] => {}
            _ => others = true,
        }
        ControlFlow::<()>::Continue(())
    });
    some && !others
}

/// What a query's columns are called, each by a name of its own; `None` where only the engine knows.
fn of_query(query: &Query) -> Option<Vec<String>> {
    let mut body = &*query.body;
    let select = loop {
        body = match body {
            SetExpr::Select(select) => break select,
            SetExpr::Query(query) => &query.body,
            SetExpr::SetOperation { left, .. } => left,
            _ => return None,
        };
    };
    let mut seen = HashSet::new();
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(alias.value.clone()),
        SelectItem::UnnamedExpr(expression) => Some(called(expression)),
        _ => None,
    };
    let unique = |name: String| {
        let further = (2..).map(|at| format!("{name}_{at}"));
        std::iter::once(name.clone()).chain(further).find(|name| seen.insert(name.clone())).unwrap_or(name)
    };
    Some(select.projection.iter().map(name).collect::<Option<Vec<_>>>()?.into_iter().map(unique).collect())
}

/// As Postgres calls a column that has no name.
fn called(expression: &Expr) -> String {
    match expression {
        Expr::Identifier(ident) => ident.value.clone(),
        Expr::CompoundIdentifier(parts) => parts.last().map(|part| part.value.clone()).unwrap_or_default(),
        Expr::Function(function) => {
            let last = function.name.0.last().and_then(|part| part.as_ident());
            last.map(|ident| ident.value.clone()).unwrap_or_default()
        }
        Expr::Cast { expr, .. } | Expr::Nested(expr) => called(expr),
        Expr::Case { .. } => "case".to_owned(),
        _ => "?column?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    fn query(sql: &str) -> Query {
        match Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0) {
            Statement::Query(query) => *query,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_system_catalog_is_told_from_tables_and_its_columns_have_names() {
        for (sql, expected) in [
            ("select c.relname, 1 from pg_catalog.pg_class c join pg_type t on true", true),
            ("with a as (select 1 from pg_class) select * from a", true),
            ("select * from information_schema.columns", true),
            ("select c.conkey[n] from pg_constraint c, generate_series(1, 32) as at(n)", true),
            ("select 1", false),
            ("select * from doc_cnt", false),
            ("select * from pg_class where oid in (select value from doc_cnt)", false),
            ("select * from metrics.pg_class", false),
            ("select * from pg_hits", false),
            ("with pg_hits as (select oops from pg_hits) select * from pg_hits, pg_class", false),
        ] {
            assert_eq!(is_of_system(&query(sql), |name| name == "pg_hits"), expected, "{sql}");
        }
        let names = |sql| of_query(&query(sql));
        let sql = "select c.relname, null, null, f(a)::text, (a), case a when 1 then 2 end, b as \"B\" from c union select 1";
        let expected = ["relname", "?column?", "?column?_2", "f", "a", "case", "B"].map(str::to_owned);
        assert_eq!(names(sql), Some(expected.into()));
        assert_eq!(names("select * from c"), None);
    }
}
