//! Holds the tree to its own rules: the top level, the README's code map, module docs, names and who may depend on
//! whom.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace").to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// All files below a folder, as paths from the root, but for build output and dot-folders.
fn files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the tree") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else {
            let inside = path.strip_prefix(root()).expect("below the root");
            found.insert(inside.to_string_lossy().into_owned());
        }
    }
}

fn tree() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    files(&root(), &mut found);
    found
}

#[test]
fn the_top_level_is_exactly_as_laid_out() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "speed-layer",
        "batch-layer",
        "serving-layer",
        "shared-model",
        "infra",
        "tests",
        "target",
    ];
    for entry in std::fs::read_dir(root()).expect("the root") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        assert!(name.starts_with('.') || allowed.contains(&name.as_str()), "{name} is not of the layout");
    }
}

#[test]
fn the_code_map_lists_every_source_file_and_nothing_else() {
    let readme = read("README.md");
    let map: BTreeSet<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(path, _)| path.to_owned())
        .filter(|path| path.ends_with(".rs") || path.ends_with(".lua") || path.ends_with(".sql"))
        .collect();
    let sources: BTreeSet<String> = tree()
        .into_iter()
        .filter(|path| path.ends_with(".rs") || path.ends_with(".lua") || path.ends_with(".sql"))
        .collect();
    let missing: Vec<_> = sources.difference(&map).collect();
    let stale: Vec<_> = map.difference(&sources).collect();
    assert!(missing.is_empty() && stale.is_empty(), "not in the code map: {missing:#?}\nstale: {stale:#?}");
}

#[test]
fn every_module_opens_with_what_it_is_for() {
    for path in tree().iter().filter(|path| path.ends_with(".rs")) {
        let text = read(path);
        let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        assert!(first.is_some_and(|line| line.starts_with("//! ")), "{path} doesn't open with //!");
    }
}

#[test]
fn no_file_is_named_for_nothing() {
    for path in tree() {
        let stem = Path::new(&path).file_stem().expect("a name").to_string_lossy().into_owned();
        let banned = ["mod", "utils", "util", "common", "manager", "helper", "helpers", "misc"];
        assert!(!(path.ends_with(".rs") && banned.contains(&stem.as_str())), "{path}");
    }
}

#[test]
fn no_layer_depends_on_another_nor_on_the_simulator() {
    for layer in ["speed-layer", "batch-layer", "serving-layer", "shared-model"] {
        let manifest: toml::Table = read(format!("{layer}/Cargo.toml")).parse().expect("a manifest");
        for section in ["dependencies", "dev-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(|section| section.as_table()) else {
                continue;
            };
            for other in ["speed-layer", "batch-layer", "serving-layer", "simulator", "local"] {
                assert!(!dependencies.contains_key(other), "{layer} depends on {other}");
            }
        }
    }
}
