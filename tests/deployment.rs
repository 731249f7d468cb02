//! Checks the deployment by parsing it: `infra/compose.yaml` has every part, pins every image, and starts each layer
//! with a command line that the layer itself accepts.

use clap::Parser;
use saphyr::{LoadableYamlNode, Yaml};

const COMPOSE: &str = include_str!("../infra/compose.yaml");

fn services() -> Vec<(String, Yaml<'static>)> {
    let documents = Yaml::load_from_str(COMPOSE).expect("infra/compose.yaml is YAML");
    let services = documents[0].as_mapping_get("services").and_then(Yaml::as_mapping).expect("services");
    services
        .iter()
        .map(|(name, service)| (name.as_str().expect("a name").to_owned(), service.clone()))
        .collect()
}

fn service(name: &str) -> Yaml<'static> {
    services().into_iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no service {name}")).1
}

#[test]
fn every_part_is_there_and_every_image_is_pinned() {
    let parts = [
        "kafka",
        "redis",
        "postgres",
        "minio",
        "speed-layer",
        "batch-layer",
        "serving-layer",
        "prometheus",
        "grafana",
        "kafka-exporter",
    ];
    parts.iter().for_each(|part| drop(service(part)));
    for (name, service) in services() {
        // A layer's image comes by a merge key (`<<`), which this parser leaves as it is.
        let image = service
            .as_mapping_get("image")
            .or(service.as_mapping_get("<<").and_then(|l| l.as_mapping_get("image")));
        let image = image.and_then(Yaml::as_str).unwrap_or_else(|| panic!("{name} has no image"));
        let tag = image.rsplit_once(':').unwrap_or_else(|| panic!("{name}: {image} has no tag")).1;
        assert!(tag != "latest" && tag.chars().any(|c| c.is_ascii_digit()), "{name}: {image} is not pinned");
    }
}

/// The command line of a layer's service, with what it takes from the environment as flags.
fn command_line(name: &str) -> Vec<String> {
    let service = service(name);
    let command = service.as_mapping_get("command").and_then(Yaml::as_sequence).expect("a command");
    let mut words: Vec<String> =
        command.iter().map(|word| word.as_str().expect("a word").to_owned()).collect();
    let layer = service.as_mapping_get("<<").expect("the settings that layers share");
    let shared = layer.as_mapping_get("environment").and_then(Yaml::as_mapping).expect("environment");
    let own = service.as_mapping_get("environment").and_then(Yaml::as_mapping).expect("its environment");
    let role =
        own.iter().find(|(name, _)| name.as_str() == Some("TIDEMARK_POSTGRES")).expect("its role").1.as_str();
    let named = format!("postgres://tidemark_{}:", name.trim_end_matches("-layer"));
    assert!(role.is_some_and(|url| url.starts_with(&named)), "{name} connects as {role:?}");
    let environment = shared.iter().chain(own.iter().filter(|(name, _)| name.as_str() != Some("<<")));
    let uses: &[&str] = match name {
        "speed-layer" => &["KAFKA", "REDIS", "POSTGRES"],
        "batch-layer" => &["KAFKA", "REDIS", "POSTGRES", "ARCHIVE"],
        _ => &["REDIS", "POSTGRES"],
    };
    for (variable, value) in environment {
        let variable = variable.as_str().expect("a variable").trim_start_matches("TIDEMARK_");
        if uses.contains(&variable) {
            words.push(format!("--{}", variable.to_lowercase()));
            words.push(value.as_str().expect("a value").to_owned());
        }
    }
    words.extend(["--catalog".to_owned(), "catalog.toml".to_owned()]);
    words
}

#[test]
fn each_layer_accepts_its_command_line() {
    speed_layer::Args::try_parse_from(command_line("speed-layer")).expect("speed-layer");
    batch_layer::Args::try_parse_from(command_line("batch-layer")).expect("batch-layer");
    serving_layer::Args::try_parse_from(command_line("serving-layer")).expect("serving-layer");
}

#[test]
fn the_shipped_catalog_is_where_the_image_expects_it() {
    let dockerfile = include_str!("../infra/Dockerfile");
    assert!(dockerfile.contains("TIDEMARK_CATALOG=/etc/tidemark/catalog/outbrain.toml"));
    assert!(dockerfile.contains("COPY infra/catalog /etc/tidemark/catalog"));
}

/// The dashboard asks the data sources that are provisioned, for figures that the layers have.
#[test]
fn grafana_has_what_its_dashboard_asks() {
    let sources = include_str!("../infra/grafana/provisioning/datasources/tidemark.yaml");
    let sources = Yaml::load_from_str(sources).expect("YAML");
    let sources = sources[0].as_mapping_get("datasources").and_then(Yaml::as_sequence).expect("data sources");
    let text = |source: &Yaml<'_>, name: &str| {
        source.as_mapping_get(name).and_then(Yaml::as_str).expect("a text").to_owned()
    };
    let known: Vec<[String; 2]> = sources.iter().map(|of| [text(of, "type"), text(of, "uid")]).collect();
    let dashboard = include_str!("../infra/grafana/dashboards/tidemark.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).expect("JSON");
    let code = [
        include_str!("../speed-layer/src/telemetry.rs"),
        include_str!("../batch-layer/src/telemetry.rs"),
        include_str!("../serving-layer/src/telemetry.rs"),
    ]
    .concat();
    let panels = dashboard["panels"].as_array().expect("panels").iter().filter(|of| of["type"] != "row");
    let (mut asked, mut figures) = (Vec::new(), 0);
    for panel in panels {
        let source =
            ["type", "uid"].map(|name| panel["datasource"][name].as_str().expect("a text").to_owned());
        assert!(known.contains(&source), "{source:?} is not provisioned");
        assert_eq!(panel["targets"][0]["datasource"], panel["datasource"]);
        asked.push(source);
        let words = panel["targets"][0]["expr"].as_str().unwrap_or_default();
        for word in words.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()) {
            if word.starts_with("tidemark_") {
                figures += 1;
                assert!(
                    code.contains(&format!("\"{}\"", word.trim_end_matches("_bucket"))),
                    "no layer has {word}"
                );
            }
        }
    }
    assert!(known.iter().all(|source| asked.contains(source)) && figures > 5);
    let grafana = service("grafana");
    let mounted = grafana.as_mapping_get("volumes").and_then(Yaml::as_sequence).expect("volumes");
    assert!(mounted.iter().any(|of| of.as_str() == Some("./grafana/dashboards:/etc/grafana/dashboards:ro")));
    let provider = include_str!("../infra/grafana/provisioning/dashboards/tidemark.yaml");
    assert!(provider.contains("/etc/grafana/dashboards"));
}
