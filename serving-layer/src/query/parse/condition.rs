//! Tests joined by and, or and not, as a request writes them.

use super::MAX_FILTERS;
use super::fields::{Faults, Fields};
use crate::query::filter::Condition;
use serde_json::{Map, Value as Json};

/// Reads one test of a condition.
type Leaf<'a, T> = &'a mut dyn FnMut(&str, &Map<String, Json>, &mut Faults) -> Option<T>;

/// A condition: a list of tests and of `{"and": [...]}`, `{"or": [...]}` and `{"not": ...}`, all of which must hold; or
/// one of them alone.
pub(super) fn condition<T>(
    request: &Fields<'_>,
    name: &str,
    leaf: Leaf<'_, T>,
    faults: &mut Faults,
) -> Condition<T> {
    let Some((at, value)) = request.get(name) else { return Condition::All(Vec::new()) };
    let tests = count_tests(value);
    if tests > MAX_FILTERS {
        faults.unanswerable(at, format!("{tests} are more than the limit of {MAX_FILTERS}"));
        return Condition::All(Vec::new());
    }
    match value {
        Json::Array(list) => Condition::All(conditions(&at, list, leaf, faults)),
        one => one_condition(&at, one, leaf, faults).unwrap_or(Condition::All(Vec::new())),
    }
}

fn count_tests(value: &Json) -> usize {
    match value {
        Json::Array(list) => list.iter().map(count_tests).sum(),
        Json::Object(node) => match JOINED.iter().find_map(|join| node.get(*join)) {
            Some(inner) => count_tests(inner),
            None => 1,
        },
        _ => 1,
    }
}

/// What joins conditions.
const JOINED: [&str; 3] = ["and", "or", "not"];

fn conditions<T>(at: &str, list: &[Json], leaf: Leaf<'_, T>, faults: &mut Faults) -> Vec<Condition<T>> {
    let read = |(i, node): (usize, &Json)| one_condition(&format!("{at}[{i}]"), node, leaf, faults);
    list.iter().enumerate().filter_map(read).collect()
}

fn one_condition<T>(at: &str, node: &Json, leaf: Leaf<'_, T>, faults: &mut Faults) -> Option<Condition<T>> {
    let Json::Object(node) = node else {
        let joined = "{\"and\": [...]}, {\"or\": [...]}, {\"not\": ...}";
        faults.malformed(
            at,
            format!("expected a test such as {{\"op\": \"=\", \"value\": 1}}, or one of {joined}"),
        );
        return None;
    };
    let Some((join, inner)) = JOINED.iter().find_map(|join| Some((*join, node.get(*join)?))) else {
        return leaf(at, node, faults).map(Condition::Test);
    };
    let before = format!("{at}.");
    Fields::new(node, &before).refuse_unknown(&[join], faults);
    let at = format!("{at}.{join}");
    match (join, inner) {
        ("not", inner) => Some(Condition::Not(Box::new(one_condition(&at, inner, leaf, faults)?))),
        (join, Json::Array(list)) if !list.is_empty() => {
            let parts = conditions(&at, list, leaf, faults);
            Some(if join == "and" { Condition::All(parts) } else { Condition::Any(parts) })
        }
        _ => {
            faults.malformed(at, "expected a list of at least one");
            None
        }
    }
}
