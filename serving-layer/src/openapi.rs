//! The description of the API: an OpenAPI 3.1 document and a page for people, both made from the code for the catalog that
//! is served.
//!
//! Replies are described by the types that they are written from (`schemars` reads what `serde` writes), requests by the
//! parser's own lists of fields, words and limits. Tests hold the document against every request and reply of theirs.

mod boards;
mod operations;
mod page;
mod request;
pub(crate) mod shapes;

use crate::boards::{BoardAbout, BoardReply, BoardsReply};
use crate::catalog_reply::CatalogReply;
use crate::error::{Code, ErrorReply, Readiness};
use crate::facts::FactsReply;
use crate::query::Limits;
use crate::reply::{LiveReply, QueriesReply, QueryReply};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json, json};
use shared_model::catalog::Catalog;

/// The page for people, as HTML.
pub use page::page;

/// The document for a catalog, under these limits.
pub fn document(catalog: &Catalog, limits: &Limits) -> Json {
    let mut schemas = replies();
    schemas.values_mut().for_each(left_out_not_null);
    let meanings = schemas.get("Code").cloned().unwrap_or_default();
    let about = |code: Code| meaning(&meanings, &code.name());
    schemas.insert("Code".to_owned(), plain_enum(&meanings));
    schemas.append(&mut request::schemas(catalog, limits));
    schemas.insert("BoardBody".to_owned(), boards::body());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemark",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "Metrics over event streams, live and exactly right. Every answer says what it can and can't promise: \
                            `complete`, `as_of`, `final`, the tidemark that it was given at.",
        },
        "servers": [{ "url": "/" }],
        "security": [{}, { "key": [] }],
        "tags": [
            { "name": "queries", "description": "Metrics over a span of time." },
            { "name": "live", "description": "Sliding counters, now." },
            { "name": "push", "description": "Live values and queries, and each change of them: as server-sent events, or over a WebSocket." },
            { "name": "catalog", "description": "What can be asked for." },
            { "name": "boards", "description": "Saved boards, each a JSON object of a page's own." },
            { "name": "health", "description": "How the service and its views are." },
            { "name": "page", "description": "For people." },
            { "name": "documentation", "description": "What this is." },
        ],
        "paths": operations::paths(catalog, &about),
        "components": {
            "schemas": schemas,
            "parameters": operations::parameters(),
            "headers": operations::header_components(),
            "securitySchemes": operations::security_schemes(),
        },
    })
}

/// The schemas of replies, by name, from the types that they are written from.
fn replies() -> Map<String, Json> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator =
        settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator();
    generator.subschema_for::<QueryReply<'_>>();
    generator.subschema_for::<QueriesReply<'_>>();
    generator.subschema_for::<FactsReply>();
    generator.subschema_for::<LiveReply>();
    generator.subschema_for::<CatalogReply>();
    generator.subschema_for::<BoardAbout>();
    generator.subschema_for::<BoardReply>();
    generator.subschema_for::<BoardsReply>();
    generator.subschema_for::<ErrorReply>();
    generator.subschema_for::<Readiness>();
    generator.subschema_for::<shapes::FirstLine>();
    generator.subschema_for::<shapes::Audits>();
    generator.subschema_for::<shapes::Events>();
    generator.take_definitions(true)
}

/// What a reply leaves out where it has none of it is never null in it.
fn left_out_not_null(schema: &mut Json) {
    let required = schema["required"].clone();
    let is_left_out =
        |name: &str| !required.as_array().is_some_and(|names| names.iter().any(|of| of == name));
    let Some(properties) = schema.get_mut("properties").and_then(Json::as_object_mut) else { return };
    for (_, property) in properties.iter_mut().filter(|(name, _)| is_left_out(name)) {
        if let Some([ty, null]) = property["type"].as_array().map(Vec::as_slice)
            && null == "null"
        {
            property["type"] = ty.clone();
        }
        if let Some([one, null]) = property["anyOf"].as_array().map(Vec::as_slice)
            && null["type"] == "null"
        {
            let about = property.get("description").cloned();
            *property = one.clone();
            if let Some(about) = about {
                property["description"] = about;
            }
        }
    }
}

/// The same words as one list, which clients' languages have a type for.
fn plain_enum(words: &Json) -> Json {
    let each = || words["oneOf"].as_array().into_iter().flatten();
    let names: Vec<&Json> = each().map(|word| &word["const"]).collect();
    let names_of = names.iter().filter_map(|name| name.as_str());
    let about: Vec<String> = names_of.map(|name| format!("- `{name}`: {}", meaning(words, name))).collect();
    let title = words["description"].as_str().unwrap_or_default();
    json!({ "type": "string", "enum": names, "description": format!("{title}\n\n{}", about.join("\n")) })
}

/// What the schema of error codes says of one.
fn meaning(codes: &Json, name: &str) -> String {
    let mut each = codes["oneOf"].as_array().into_iter().flatten();
    let found = each.find(|each| each["const"] == name).and_then(|each| each["description"].as_str());
    found.unwrap_or_default().to_owned()
}
