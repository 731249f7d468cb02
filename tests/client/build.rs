//! Generates the client by `openapi-to-rust`, a generator that takes OpenAPI 3.1, from the document of the shipped
//! catalog, which a test of the serving layer holds against what is served.

use anyhow::Context;
use openapi_to_rust::{CodeGenerator, GeneratorConfig, SchemaAnalyzer};
use std::path::Path;

const DOCUMENT: &str = "../../serving-layer/openapi.json";

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed={DOCUMENT}");
    let document = std::fs::read_to_string(DOCUMENT).context(DOCUMENT)?;
    let mut analysis = SchemaAnalyzer::new(serde_json::from_str(&document)?)?.analyze()?;
    // Of events the bytes: their parser would bring two more crates, of which nothing else has need.
    let config = GeneratorConfig {
        enable_async_client: true,
        enable_sse_client: false,
        tracing_enabled: false,
        ..GeneratorConfig::default()
    };
    let out = std::env::var("OUT_DIR")?;
    for file in CodeGenerator::new(config).generate_all(&mut analysis)?.files {
        // What is included may not have attributes and docs of a whole file.
        let whole = |line: &&str| line.starts_with("#![") || line.starts_with("//!");
        let lines: Vec<&str> = file.content.lines().filter(|line| !whole(line)).collect();
        std::fs::write(Path::new(&out).join(&file.path), lines.join("\n"))?;
    }
    Ok(())
}
