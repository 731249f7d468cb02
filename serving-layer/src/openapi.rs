//! The description of the API: an OpenAPI 3.1 document and a page for people, both made from the code for the catalog that
//! is served.
//!
//! Replies are described by the types that they are written from (`schemars` reads what `serde` writes), requests by the
//! parser's own lists of fields, words and limits. Tests hold the document against every request and reply of theirs.

mod operations;
mod page;
mod request;
pub(crate) mod shapes;

use crate::catalog_reply::CatalogReply;
use crate::error::{Code, ErrorReply, Readiness};
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
    let meanings = schemas.get("Code").cloned().unwrap_or_default();
    let about = |code: Code| meaning(&meanings, &code.name());
    schemas.append(&mut request::schemas(catalog, limits));
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
        "tags": [
            { "name": "queries", "description": "Metrics over a span of time." },
            { "name": "live", "description": "Sliding counters, now." },
            { "name": "catalog", "description": "What can be asked for." },
            { "name": "health", "description": "How the service and its views are." },
            { "name": "documentation", "description": "What this is." },
        ],
        "paths": operations::paths(catalog, &about),
        "components": {
            "schemas": schemas,
            "parameters": operations::parameters(),
            "headers": operations::header_components(),
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
    generator.subschema_for::<LiveReply>();
    generator.subschema_for::<CatalogReply>();
    generator.subschema_for::<ErrorReply>();
    generator.subschema_for::<Readiness>();
    generator.subschema_for::<shapes::FirstLine>();
    generator.subschema_for::<shapes::Audits>();
    generator.take_definitions(true)
}

/// What the schema of error codes says of one.
fn meaning(codes: &Json, name: &str) -> String {
    let mut each = codes["oneOf"].as_array().into_iter().flatten();
    let found = each.find(|each| each["const"] == name).and_then(|each| each["description"].as_str());
    found.unwrap_or_default().to_owned()
}
