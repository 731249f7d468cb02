//! Which rows of the answer are wanted, by their values.

use super::condition::condition;
use super::fields::{Faults, Fields};
use super::test;
use super::values::Values;
use crate::error::FaultKind;
use crate::query::filter::Condition;
use crate::query::having::Having;
use serde_json::{Map, Value as Json};
use shared_model::metric::KeyColumn;

/// The condition on the rows' values; `None` where there is none.
pub(super) fn having(
    request: &Fields<'_>,
    values: &Values,
    faults: &mut Faults,
) -> Option<Condition<Having>> {
    request.get("having")?;
    let mut leaf = |at: &str, node: &Map<String, Json>, faults: &mut Faults| {
        let name = test::named(at, node, "column", faults).unwrap_or_default();
        let field = format!("{at}.column");
        let Some(column) = values.find(name) else {
            if !values.columns.is_empty() {
                let message =
                    format!("{name:?} is no value column of the answer; key columns stand in filters");
                faults.with(FaultKind::Unanswerable, field, message, values.names());
            }
            return None;
        };
        let Some(ty) = values.type_of(column) else {
            faults.unanswerable(field, format!("the values of {name} are lists, which compare with nothing"));
            return None;
        };
        let test = test::test(at, node, &KeyColumn { name: name.to_owned(), ty }, faults)?;
        Some(Having { column, ty, test })
    };
    Some(condition(request, "having", &mut leaf, faults))
}
