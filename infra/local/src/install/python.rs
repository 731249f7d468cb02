//! Python with the packages of the notebook, in an environment of its own, made once by pip.
//!
//! Invariant: the environment's name holds Python's version and a hash of the requirements, so others get another one;
//! nothing is compiled, and nothing that the machine has is changed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use xxhash_rust::xxh3::xxh3_64;

use super::cache;
use super::find::PythonAt;
use crate::process::last_lines;

const REQUIREMENTS: &str = include_str!("../../../notebook/requirements.txt");

/// The Python of the environment; made if need be, with packages from where pip is set up to look.
pub(super) fn ensure(cache: &Path, at: &PythonAt, say: &mut dyn FnMut(&str)) -> anyhow::Result<PathBuf> {
    let name = format!("python3{}-{:016x}", at.minor, xxh3_64(REQUIREMENTS.as_bytes()));
    let environment = cache.join(name);
    cache::once(&environment, say, |partial, say| {
        say(&format!("fetching the notebook's packages with pip to {}", environment.display()));
        fill(partial, at)
    })?;
    // It finds its packages by its own place, unlike the scripts beside it, which name the folder that was renamed.
    let python = environment.join("bin/python");
    if !python.exists() {
        bail!("{} leads to a Python that is gone: remove {}", python.display(), environment.display());
    }
    Ok(python)
}

fn fill(folder: &Path, at: &PythonAt) -> anyhow::Result<()> {
    run(&at.python, &["-m", "venv"], folder)?;
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, REQUIREMENTS)
        .with_context(|| format!("can't write {}", requirements.display()))?;
    let install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:", "-r"];
    run(&folder.join("bin/python"), &install, &requirements)
}

fn run(python: &Path, arguments: &[&str], path: &Path) -> anyhow::Result<()> {
    let output = Command::new(python)
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {}", python.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        bail!(
            "{} {} {} failed ({}):\n{}",
            python.display(),
            arguments.join(" "),
            path.display(),
            output.status,
            last_lines(&text, 15)
        );
    }
    Ok(())
}
