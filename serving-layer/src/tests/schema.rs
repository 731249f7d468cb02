//! A judge of JSON by a schema of the document: the part of JSON Schema 2020-12 that the document uses, and nothing else.
//!
//! A keyword that it doesn't know is a panic: it can't be lax without a word.

use regex::Regex;
use serde_json::Value as Json;
use std::cell::RefCell;
use std::collections::HashMap;

/// The keywords that say nothing of a value.
const NOTES: [&str; 8] =
    ["description", "examples", "default", "title", "format", "if", "contentMediaType", "contentSchema"];

/// A judge by the schemas of one document.
pub(crate) struct Judge<'a> {
    pub(crate) document: &'a Json,
    /// Whether objects may have no properties but those that their schema names: what a reply has, the document has.
    pub(crate) closed: bool,
}

impl Judge<'_> {
    /// What is wrong with a value, by the schema of a name.
    pub(crate) fn of(&self, name: &str, value: &Json) -> Result<(), String> {
        self.judge(&serde_json::json!({ "$ref": format!("#/components/schemas/{name}") }), value, name)
    }

    /// What is wrong with a value that stands at a place.
    pub(crate) fn judge(&self, schema: &Json, value: &Json, at: &str) -> Result<(), String> {
        let schema = match schema {
            Json::Bool(true) => return Ok(()),
            Json::Bool(false) => return Err(format!("{at}: nothing may stand here")),
            Json::Object(schema) => schema,
            other => panic!("{other} is no schema"),
        };
        for (keyword, with) in schema {
            let holds = match keyword.as_str() {
                "$ref" => {
                    let pointer = with.as_str().unwrap().strip_prefix('#').unwrap();
                    let there =
                        self.document.pointer(pointer).unwrap_or_else(|| panic!("{with} leads nowhere"));
                    self.judge(there, value, at)?;
                    true
                }
                "type" => types(with).any(|ty| is(ty, value)),
                "enum" => with.as_array().unwrap().contains(value),
                "const" => with == value,
                "minimum" => value.as_f64().is_none_or(|value| value >= with.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|value| value <= with.as_f64().unwrap()),
                "minLength" => {
                    value.as_str().is_none_or(|text| text.chars().count() as u64 >= with.as_u64().unwrap())
                }
                "maxLength" => {
                    value.as_str().is_none_or(|text| text.chars().count() as u64 <= with.as_u64().unwrap())
                }
                "pattern" => value.as_str().is_none_or(|text| matches(with.as_str().unwrap(), text)),
                "minItems" => {
                    size(value.as_array().map(Vec::len)).is_none_or(|n| n >= with.as_u64().unwrap())
                }
                "maxItems" => {
                    size(value.as_array().map(Vec::len)).is_none_or(|n| n <= with.as_u64().unwrap())
                }
                "minProperties" => {
                    size(value.as_object().map(|o| o.len())).is_none_or(|n| n >= with.as_u64().unwrap())
                }
                "maxProperties" => {
                    size(value.as_object().map(|o| o.len())).is_none_or(|n| n <= with.as_u64().unwrap())
                }
                "uniqueItems" => {
                    value.as_array().is_none_or(|list| (1..list.len()).all(|i| !list[..i].contains(&list[i])))
                }
                "required" => value.as_object().is_none_or(|value| {
                    with.as_array().unwrap().iter().all(|name| value.contains_key(name.as_str().unwrap()))
                }),
                "contains" => value
                    .as_array()
                    .is_none_or(|list| list.iter().any(|item| self.judge(with, item, at).is_ok())),
                "anyOf" => with.as_array().unwrap().iter().any(|one| self.judge(one, value, at).is_ok()),
                "oneOf" => {
                    with.as_array().unwrap().iter().filter(|one| self.judge(one, value, at).is_ok()).count()
                        == 1
                }
                "then" | "else" => {
                    if self.judge(&schema["if"], value, at).is_ok() == (keyword == "then") {
                        self.judge(with, value, at)?;
                    }
                    true
                }
                "items" => {
                    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.judge(with, item, &format!("{at}[{i}]"))?;
                    }
                    true
                }
                "properties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        match with.get(name) {
                            Some(with) => self.judge(with, value, &format!("{at}.{name}"))?,
                            None if self.closed && !schema.contains_key("additionalProperties") => {
                                return Err(format!("{at}.{name}: not in the document"));
                            }
                            None => {}
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    let known = schema.get("properties").and_then(Json::as_object);
                    for (name, value) in value.as_object().into_iter().flatten() {
                        if known.is_none_or(|known| !known.contains_key(name)) {
                            self.judge(with, value, &format!("{at}.{name}"))?;
                        }
                    }
                    true
                }
                "propertyNames" => {
                    for name in value.as_object().into_iter().flat_map(|value| value.keys()) {
                        self.judge(with, &Json::from(name.as_str()), &format!("{at}.{name}"))?;
                    }
                    true
                }
                "dependentSchemas" => {
                    for (name, schema) in with.as_object().unwrap() {
                        if value.get(name).is_some() {
                            self.judge(schema, value, at)?;
                        }
                    }
                    true
                }
                note if NOTES.contains(&note) => true,
                other => panic!("{at}: the keyword {other} is not known here"),
            };
            if !holds {
                return Err(format!("{at}: {value} is not as {keyword} says: {with}"));
            }
        }
        Ok(())
    }
}

/// Each pattern is compiled once.
fn matches(pattern: &str, text: &str) -> bool {
    thread_local!(static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default());
    COMPILED.with_borrow_mut(|compiled| {
        let entry = compiled.entry(pattern.to_owned());
        entry.or_insert_with(|| Regex::new(pattern).unwrap()).is_match(text)
    })
}

fn size(length: Option<usize>) -> Option<u64> {
    length.map(|length| length as u64)
}

fn types(ty: &Json) -> impl Iterator<Item = &str> {
    ty.as_array().map_or(std::slice::from_ref(ty), Vec::as_slice).iter().filter_map(Json::as_str)
}

fn is(ty: &str, value: &Json) -> bool {
    match ty {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}
