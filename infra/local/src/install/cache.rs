//! The folder for downloads, and locks between processes.
//!
//! Invariant: what lies in the cache can be deleted at any time that no server runs, at the cost of fetching it
//! again; a folder of it appears whole or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// The cache folder, made if need be: `TIDEMARK_CACHE`; else `tidemark-servers` in the cargo target folder that
/// this program lies in, or in the workspace's; else `tidemark` in the user's cache folder.
pub(super) fn locate() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().unwrap_or_default();
    let target = exe
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file())
        .map(Path::to_owned)
        .or_else(workspace_target);
    let folder = choose(&|name| std::env::var_os(name).filter(|value| !value.is_empty()), target)
        .context("no folder for downloads: set TIDEMARK_CACHE to one")?;
    std::fs::create_dir_all(&folder).with_context(|| format!("can't make the cache {}", folder.display()))?;
    folder.canonicalize().with_context(|| format!("can't resolve {}", folder.display()))
}

/// `target` of the workspace that this was built from, if it is still there.
fn workspace_target() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.parent()?;
    root.join("Cargo.toml").is_file().then(|| root.join("target"))
}

fn choose(env: &dyn Fn(&str) -> Option<OsString>, target: Option<PathBuf>) -> Option<PathBuf> {
    env("TIDEMARK_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(target?.join("tidemark-servers")))
        .or_else(|| Some(PathBuf::from(env("XDG_CACHE_HOME")?).join("tidemark")))
        .or_else(|| Some(PathBuf::from(env("HOME")?).join(".cache/tidemark")))
}

/// Makes a folder of the cache, unless it is there: `fill` is given an empty one beside it, under a lock, which is then
/// renamed. Its name must say what it is made of, and have no dot.
pub(crate) fn once(
    folder: &Path,
    say: &mut dyn FnMut(&str),
    fill: impl FnOnce(&Path, &mut dyn FnMut(&str)) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let _one_at_a_time = FileLock::wait(&folder.with_extension("lock"), say)?;
    // Another session may have made it meanwhile.
    if folder.is_dir() {
        return Ok(());
    }
    let partial = folder.with_extension("partial");
    match std::fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("can't empty {}", partial.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("can't make {}", partial.display()))?;
    fill(&partial, say)?;
    std::fs::rename(&partial, folder).with_context(|| format!("can't rename to {}", folder.display()))
}

/// An exclusive lock among processes, held until dropped (or until the process ends).
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits for the lock; says so if it must.
    pub(super) fn wait(path: &Path, say: &mut dyn FnMut(&str)) -> anyhow::Result<FileLock> {
        let file = File::create(path).with_context(|| format!("can't open the lock {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            say(&format!("waiting for another session that holds {}", path.display()));
            rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
                .with_context(|| format!("can't lock {}", path.display()))?;
        }
        Ok(FileLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_once_and_only_whole() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("made-0123");
        let failed = once(&folder, &mut |_| {}, |partial, _| {
            std::fs::write(partial.join("half"), "")?;
            anyhow::bail!("no more")
        });
        assert!(failed.is_err() && !folder.exists());
        once(&folder, &mut |_| {}, |partial, _| {
            std::fs::write(partial.join("whole"), "")?;
            Ok(())
        })
        .unwrap();
        let names: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["whole"]);
        once(&folder, &mut |_| {}, |_, _| panic!("it is there")).unwrap();
    }

    #[test]
    fn order_of_choice() {
        let check = |vars: &[(&str, &str)], target: Option<&str>, expected: Option<&str>| {
            let env = |name: &str| vars.iter().find(|var| var.0 == name).map(|var| OsString::from(var.1));
            assert_eq!(choose(&env, target.map(PathBuf::from)), expected.map(PathBuf::from));
        };
        let home = [("HOME", "/h")];
        let all = [("TIDEMARK_CACHE", "/t"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        check(&all, Some("/w/target"), Some("/t"));
        check(&all[1..], Some("/w/target"), Some("/w/target/tidemark-servers"));
        check(&all[1..], None, Some("/x/tidemark"));
        check(&home, None, Some("/h/.cache/tidemark"));
        check(&[], None, None);
    }
}
