//! What is told of the catalog and the API: each text is made once, and is the same for as long as the process runs.

use crate::access::Scoped;
use crate::caching::{Held, Tag};
use crate::catalog_reply::CatalogReply;
use crate::openapi;
use crate::query::Limits;
use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use shared_model::catalog::Catalog;

/// The texts.
#[derive(Debug)]
pub struct Documents {
    /// The catalog, as JSON.
    pub catalog: Text,
    /// The OpenAPI document, as JSON.
    pub openapi: Text,
    /// The page of it, as HTML.
    pub page: Text,
}

/// A text with its type and its tag.
#[derive(Debug)]
pub struct Text {
    media: &'static str,
    /// As it is sent, before it is compressed.
    pub bytes: Bytes,
    /// What names just this text.
    pub tag: Tag,
}

impl Documents {
    /// The texts of a catalog, under these limits.
    pub fn new(catalog: &Catalog, limits: &Limits) -> Documents {
        let document = openapi::document(catalog, limits);
        let json =
            |value: serde_json::Result<Vec<u8>>| Text::new("application/json", value.unwrap_or_default());
        Documents {
            catalog: json(serde_json::to_vec(&CatalogReply::new(catalog))),
            page: Text::new("text/html; charset=utf-8", openapi::page(&document).into_bytes()),
            openapi: json(serde_json::to_vec(&document)),
        }
    }
}

impl Text {
    /// A text of a media type.
    pub(crate) fn new(media: &'static str, bytes: impl Into<Bytes>) -> Text {
        let bytes = bytes.into();
        Text { media, tag: Tag::of(&bytes), bytes }
    }

    /// The text, or that it is the one that the client has.
    pub(crate) fn reply(&self, headers: &HeaderMap) -> Response {
        if Held::new(headers).has(&self.tag) {
            return self.tag.unchanged();
        }
        self.tag.put_on(([(header::CONTENT_TYPE, self.media)], self.bytes.clone()).into_response())
    }
}

/// `GET /api/v1/metrics`
pub(crate) async fn catalog(scoped: Scoped, headers: HeaderMap) -> Response {
    scoped.service.documents().catalog.reply(&headers)
}

/// `GET /api/v1/openapi.json`
pub(crate) async fn openapi(scoped: Scoped, headers: HeaderMap) -> Response {
    scoped.service.documents().openapi.reply(&headers)
}

/// `GET /api/docs`: it needs nothing but its own style.
pub(crate) async fn page(scoped: Scoped, headers: HeaderMap) -> Response {
    let mut reply = scoped.service.documents().page.reply(&headers);
    let policy = axum::http::HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    reply.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    reply
}
