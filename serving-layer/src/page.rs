//! The page: files that are part of the program, for whoever asks, with a key or without.
//!
//! They tell nothing of catalog or data, which the page then asks for as any other client does; they need nothing from
//! elsewhere, and take less than 300 KB together.

use crate::documents::Text;
use crate::error::ServeError;
use crate::service::Service;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::Response;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// The page itself, which is sent with a policy.
static INDEX: LazyLock<Text> =
    LazyLock::new(|| Text::new("text/html; charset=utf-8", include_str!("page/index.html").as_bytes()));

/// What it loads, by name.
static FILES: LazyLock<BTreeMap<&str, Text>> = LazyLock::new(|| {
    let files = [
        ("style.css", STYLE, include_str!("page/style.css")),
        ("app.js", SCRIPT, include_str!("page/app.js")),
        ("api.js", SCRIPT, include_str!("page/api.js")),
        ("behind.js", SCRIPT, include_str!("page/behind.js")),
        ("boards.js", SCRIPT, include_str!("page/boards.js")),
        ("catalog.js", SCRIPT, include_str!("page/catalog.js")),
        ("charts.js", SCRIPT, include_str!("page/charts.js")),
        ("controls.js", SCRIPT, include_str!("page/controls.js")),
        ("dom.js", SCRIPT, include_str!("page/dom.js")),
        ("editor.js", SCRIPT, include_str!("page/editor.js")),
        ("health.js", SCRIPT, include_str!("page/health.js")),
        ("menu.js", SCRIPT, include_str!("page/menu.js")),
        ("request.js", SCRIPT, include_str!("page/request.js")),
        ("state.js", SCRIPT, include_str!("page/state.js")),
        // uPlot 1.6.32, as it is published.
        ("uplot.js", SCRIPT, include_str!("page/vendor/uplot.js")),
        ("uplot.css", STYLE, include_str!("page/vendor/uplot.css")),
        ("uplot.LICENSE", "text/plain; charset=utf-8", include_str!("page/vendor/uplot.LICENSE")),
    ];
    files.into_iter().map(|(name, media, text)| (name, Text::new(media, text.as_bytes()))).collect()
});

/// `GET /`
pub(crate) async fn index(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let mut reply = INDEX.reply(&headers);
    if let Ok(policy) = HeaderValue::from_str(&policy(&service.origins)) {
        reply.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    reply
}

/// `GET /page/{file}`
pub(crate) async fn file(
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ServeError> {
    let file = FILES.get(name.as_str()).ok_or_else(|| ServeError::NoRoute(uri.path().to_owned()))?;
    Ok(file.reply(&headers))
}

/// What the page may load, and which pages may have it in a frame: those that may ask.
fn policy(origins: &[HeaderValue]) -> String {
    let around: Vec<&str> = origins.iter().filter_map(|origin| origin.to_str().ok()).collect();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'self' {}",
        around.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_each_of_its_files_is_there() {
        let bytes: usize = FILES.values().chain([&*INDEX]).map(|file| file.bytes.len()).sum();
        assert!(bytes < 300_000, "{bytes}");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/page");
        let names = |folder: &std::path::Path| {
            let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
            let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
            files.map(|file| file.file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        for name in names(&folder).into_iter().chain(names(&folder.join("vendor"))) {
            assert!(FILES.contains_key(name.as_str()) || name == "index.html", "{name} isn't served");
        }
    }

    #[test]
    fn the_page_names_nothing_from_elsewhere() {
        let own = FILES.iter().filter(|(name, _)| !name.starts_with("uplot"));
        for (name, file) in own.chain([(&"index.html", &*INDEX)]) {
            let text = String::from_utf8(file.bytes.to_vec()).unwrap();
            assert!(!text.contains("://") && !text.contains("innerHTML"), "{name}");
        }
    }
}
