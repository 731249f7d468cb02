//! What differs between two replies, as a JSON Patch (RFC 6902).
//!
//! Objects are compared member by member, lists item by item at the same place. The patch, applied to the one, gives the
//! other to the last bit: numbers are the same only where they are written alike.

use serde::Serialize;
use serde_json::Value as Json;
use std::fmt::Write as _;

/// One operation of a patch; a path is a JSON Pointer.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Operation<'a> {
    /// A member, or an item at the end of a list.
    Add { path: String, value: &'a Json },
    /// What is not there any more.
    Remove { path: String },
    /// Another value at the same place.
    Replace { path: String, value: &'a Json },
}

/// The operations that make `after` of `before`, in the order in which they are to be applied.
pub(super) fn between<'a>(before: &Json, after: &'a Json) -> Vec<Operation<'a>> {
    let (mut at, mut patch) = (String::new(), Vec::new());
    compare(before, after, &mut at, &mut patch);
    patch
}

fn compare<'a>(before: &Json, after: &'a Json, at: &mut String, patch: &mut Vec<Operation<'a>>) {
    match (before, after) {
        (Json::Object(old), Json::Object(new)) => {
            for name in old.keys().filter(|name| !new.contains_key(*name)) {
                inside(at, name, |at| patch.push(Operation::Remove { path: at.clone() }));
            }
            for (name, value) in new {
                inside(at, name, |at| match old.get(name) {
                    Some(old) => compare(old, value, at, patch),
                    None => patch.push(Operation::Add { path: at.clone(), value }),
                });
            }
        }
        (Json::Array(old), Json::Array(new)) => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                inside(at, &i.to_string(), |at| compare(old, new, at, patch));
            }
            // From the end, so that the places before stay what they are.
            for i in (new.len()..old.len()).rev() {
                patch.push(Operation::Remove { path: format!("{at}/{i}") });
            }
            for (i, value) in new.iter().enumerate().skip(old.len()) {
                patch.push(Operation::Add { path: format!("{at}/{i}"), value });
            }
        }
        _ if same(before, after) => {}
        _ => patch.push(Operation::Replace { path: at.clone(), value: after }),
    }
}

/// Whether two values, at most one of them an object or a list, are written alike: 0.0 and -0.0 are not.
fn same(before: &Json, after: &Json) -> bool {
    let bits = |value: &Json| value.as_f64().map(f64::to_bits);
    before == after && bits(before) == bits(after)
}

/// Does something at a member of a place.
fn inside(at: &mut String, name: &str, act: impl FnOnce(&mut String)) {
    let length = at.len();
    at.push('/');
    for character in name.chars() {
        let _ = match character {
            '~' => at.write_str("~0"),
            '/' => at.write_str("~1"),
            other => at.write_char(other),
        };
    }
    act(at);
    at.truncate(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(before: Json, after: Json, expected: Json) {
        let patch = serde_json::to_value(between(&before, &after)).unwrap();
        assert_eq!(patch, expected, "{before} to {after}");
    }

    #[test]
    fn a_patch_names_what_differs_and_nothing_else() {
        check(json!({ "a": 1, "b": 2 }), json!({ "a": 1, "b": 2 }), json!([]));
        check(
            json!({ "a": 1, "b": { "c": 2 } }),
            json!({ "a": 1, "b": { "c": 3 } }),
            json!([{ "op": "replace", "path": "/b/c", "value": 3 }]),
        );
        check(
            json!({ "gone": 1 }),
            json!({ "a/b": null, "c~d": [] }),
            json!([{ "op": "remove", "path": "/gone" }, { "op": "add", "path": "/a~1b", "value": null },
                   { "op": "add", "path": "/c~0d", "value": [] }]),
        );
        check(
            json!([1, 2, 3, 4]),
            json!([1, 5]),
            json!([{ "op": "replace", "path": "/1", "value": 5 }, { "op": "remove", "path": "/3" },
                   { "op": "remove", "path": "/2" }]),
        );
        check(
            json!([[]]),
            json!([[], {}, 7]),
            json!([{ "op": "add", "path": "/1", "value": {} }, { "op": "add", "path": "/2", "value": 7 }]),
        );
        check(json!([]), json!({}), json!([{ "op": "replace", "path": "", "value": {} }]));
        check(json!(0.0), json!(-0.0), json!([{ "op": "replace", "path": "", "value": -0.0 }]));
        check(json!(1), json!(1.0), json!([{ "op": "replace", "path": "", "value": 1.0 }]));
    }

    /// Any JSON, of few names and values, so that two of them have much in common.
    pub(crate) fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            (0..3i64).prop_map(Json::from),
            Just(json!(0.0)),
            Just(json!(-0.0)),
            any::<f64>().prop_map(|float| json!(float)),
            "[a-c~/\"\n]{0,2}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                proptest::collection::btree_map("[a-c~/]{0,2}", inner, 0..4)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        /// By an applier that isn't ours.
        #[test]
        fn a_patch_applied_gives_the_other(before in any_json(), after in any_json()) {
            let text = serde_json::to_string(&between(&before, &after)).unwrap();
            let mut found = before.clone();
            let patch: Vec<Json> = between(&before, &after).iter().map(|op| serde_json::to_value(op).unwrap()).collect();
            let patch: json_patch::Patch = serde_json::from_value(patch.into()).unwrap();
            json_patch::patch(&mut found, &patch).unwrap_or_else(|error| panic!("{text}: {error}"));
            // As texts, since -0.0 equals 0.0.
            prop_assert_eq!(found.to_string(), after.to_string(), "{}", text);
        }
    }
}
