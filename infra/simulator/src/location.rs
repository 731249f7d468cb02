//! Where files are: on this machine, or in an object store that a URL names.
//!
//! All that is read of an object is of one version: an object that is replaced meanwhile is an error, never a mixture.
//! Whoever waits for a store stops waiting when the job is stopped. What is shown of a URL holds no user, password or
//! query.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use shared_model::secret::of_object_stores;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use url::Url;

/// A file or a folder.
#[derive(Debug, Clone)]
pub enum Location {
    /// On this machine.
    Local(PathBuf),
    /// In an object store.
    Remote(Object),
}

impl Location {
    /// The last part of the path, without folders.
    pub fn file_name(&self) -> &str {
        self.path().file_name().and_then(|name| name.to_str()).unwrap_or("")
    }

    /// Its path: on this machine, or in its store.
    pub fn path(&self) -> &Path {
        match self {
            Location::Local(path) => path,
            Location::Remote(object) => Path::new(object.key.as_ref()),
        }
    }

    /// A file's size in bytes as stored.
    pub fn size(&self) -> anyhow::Result<u64> {
        match self {
            Location::Local(path) => {
                let found = std::fs::metadata(path).with_context(|| format!("cannot read {self}"))?;
                ensure!(!found.is_dir(), "{self} is a folder; name its files");
                Ok(found.len())
            }
            Location::Remote(object) => Ok(object.look()?.size),
        }
    }

    /// The files below a folder, hidden ones left out; `None` where it is a file.
    pub fn below(&self) -> anyhow::Result<Option<Vec<Location>>> {
        match self {
            Location::Local(path) if path.is_dir() => {
                let mut files = Vec::new();
                walk(path, &mut files)?;
                Ok(Some(files))
            }
            Location::Local(path) => {
                ensure!(path.exists(), "{self} is not there");
                Ok(None)
            }
            Location::Remote(object) => {
                let files = object.wait(object.list())?;
                // A store knows no folders: what has nothing below it may be a file.
                Ok((!files.is_empty()).then(|| files.into_iter().map(Location::Remote).collect()))
            }
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Location::Local(path) => write!(f, "{}", path.display()),
            Location::Remote(object) => write!(f, "{object}"),
        }
    }
}

fn walk(folder: &Path, files: &mut Vec<Location>) -> anyhow::Result<()> {
    let context = || format!("cannot read {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if is_hidden(name) => {}
            _ if path.is_dir() => walk(&path, files)?,
            _ => files.push(Location::Local(path)),
        }
    }
    Ok(())
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

/// Makes locations of what users write. Object stores are asynchronous and all else here is not: it holds the threads
/// on which they run, and what stops the waiting for them.
#[derive(Debug, Clone)]
pub struct Stores {
    runtime: Arc<Runtime>,
    stop: CancellationToken,
}

impl Stores {
    /// Starts the threads. Not to be dropped in async code.
    pub fn start(stop: &CancellationToken) -> anyhow::Result<Stores> {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        let runtime = threads.worker_threads(1).enable_all().build().context("cannot start threads")?;
        Ok(Stores { runtime: Arc::new(runtime), stop: stop.clone() })
    }

    /// A path; or, where a scheme stands before `://`, a URL. Its store is configured by the environment (`AWS_...`,
    /// `GOOGLE_...`, `AZURE_...`) and not asked for anything yet.
    pub fn locate(&self, text: &str) -> anyhow::Result<Location> {
        let is_scheme = |scheme: &str| {
            !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+')
        };
        if !text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
            return Ok(Location::Local(PathBuf::from(text)));
        }
        let url = Url::parse(text).context("an input or output is no URL that can be read")?;
        if url.password().is_some() || url.query().is_some() {
            let scheme = url.scheme();
            bail!(
                "a URL with {scheme}:// holds a password or parameters, which no store takes from there: take them out; \
                 credentials come from the environment"
            );
        }
        let url = without_user(url);
        let shown = url.as_str().trim_end_matches('/').to_owned();
        if url.scheme() == "file" {
            let path = url.to_file_path();
            return path
                .map(Location::Local)
                .map_err(|()| anyhow::anyhow!("{shown}: write file:///FOLDER/FILE"));
        }
        let settings = of_object_stores(std::env::vars_os(), |path| std::fs::read_to_string(path))?;
        // Who writes http:// means it.
        let unsecured = (url.scheme() == "http").then(|| ("ALLOW_HTTP".to_owned(), "true".to_owned()));
        let (store, key) = object_store::parse_url_opts(&url, settings.into_iter().chain(unsecured))
            .with_context(|| {
                format!("no object store for {shown}; give s3://, gs://, az://, http:// or a path")
            })?;
        Ok(Location::Remote(self.object(store.into(), key, shown)))
    }

    pub(crate) fn object(&self, store: Arc<dyn ObjectStore>, key: Key, shown: String) -> Object {
        Object { store, key, shown, stores: self.clone() }
    }
}

/// No store takes a user from its URL, so it is dropped before anything can show it. Only Azure's abfs:// has something
/// else, its container, there.
fn without_user(mut url: Url) -> Url {
    url.set_fragment(None);
    if !url.scheme().starts_with("abfs") {
        // Where a URL can't have one, it has none.
        let _ = url.set_username("");
    }
    url
}

/// An object in a store, or all those below a key.
#[derive(Clone)]
pub struct Object {
    store: Arc<dyn ObjectStore>,
    key: Key,
    shown: String,
    stores: Stores,
}

/// Bytes fetched at once while an object is read from beginning to end, and how many such pieces are under way.
const CHUNK: u64 = 2 << 20;
const CHUNKS_AHEAD: usize = 2;
/// Ranges of an object that are fetched at once.
const RANGES_AT_ONCE: usize = 8;

impl Object {
    /// Its store and its key there.
    pub(crate) fn parts(&self) -> (Arc<dyn ObjectStore>, Key) {
        (self.store.clone(), self.key.clone())
    }

    /// What lies below it under a relative path.
    pub fn join(&self, relative: &Path) -> anyhow::Result<Object> {
        let relative = relative.to_str().with_context(|| format!("{} is not UTF-8", relative.display()))?;
        // Parsed, not converted: a folder's name keeps its escapes as they are.
        let key = Key::parse(format!("{}/{relative}", self.key))?;
        Ok(self.stores.object(self.store.clone(), key, format!("{self}/{relative}")))
    }

    /// Waits for work of its store; an error where the job is stopped meanwhile.
    pub fn wait<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.stores.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                () = self.stores.stop.cancelled() => bail!("stopped before the end"),
            }
        })
    }

    /// Waits for work that looks itself whether the job is stopped.
    pub(crate) fn wait_to_the_end<T>(&self, work: impl Future<Output = T>) -> T {
        self.stores.runtime.block_on(work)
    }

    /// Size and version.
    pub fn look(&self) -> anyhow::Result<ObjectMeta> {
        self.wait(async { self.store.head(&self.key).await.with_context(|| format!("cannot read {self}")) })
    }

    /// The objects below it, hidden ones left out.
    pub async fn list(&self) -> anyhow::Result<Vec<Object>> {
        let found: Vec<ObjectMeta> = self
            .store
            .list(Some(&self.key))
            .try_collect()
            .await
            .with_context(|| format!("cannot list {self}"))?;
        let object = |meta: ObjectMeta| {
            let parts: Vec<_> = meta.location.prefix_match(&self.key)?.collect();
            let relative: Vec<&str> = parts.iter().map(|part| part.as_ref()).collect();
            let visible = !relative.is_empty() && !relative.iter().any(|name| is_hidden(name));
            let shown = format!("{self}/{}", relative.join("/"));
            visible.then(|| self.stores.object(self.store.clone(), meta.location.clone(), shown))
        };
        Ok(found.into_iter().filter_map(object).collect())
    }

    /// The bytes of some ranges of a version.
    pub fn read(&self, version: &ObjectMeta, ranges: &[Range<u64>]) -> anyhow::Result<Vec<Bytes>> {
        let parts = ranges.iter().map(|range| self.part(version, range.clone()));
        self.wait(stream::iter(parts).buffered(RANGES_AT_ONCE).try_collect())
    }

    /// All its bytes, in order, a few MB at a time.
    pub fn chunks(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Bytes>> + use<>> {
        let version = self.look()?;
        let (object, all) = (self.clone(), 0..version.size);
        let part = move |start: u64| object.part(&version, start..(start + CHUNK).min(version.size));
        let mut parts = stream::iter(all.step_by(CHUNK as usize)).map(part).buffered(CHUNKS_AHEAD).boxed();
        let object = self.clone();
        Ok(std::iter::from_fn(move || object.wait(parts.try_next()).transpose()))
    }

    fn part(
        &self,
        version: &ObjectMeta,
        range: Range<u64>,
    ) -> impl Future<Output = anyhow::Result<Bytes>> + use<> {
        let options = GetOptions::new().with_range(Some(range)).with_if_match(version.e_tag.clone());
        let (store, key, shown) = (self.store.clone(), self.key.clone(), self.shown.clone());
        async move {
            let bytes = async { store.get_opts(&key, options).await?.bytes().await };
            bytes.await.with_context(|| format!("cannot read {shown}"))
        }
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Without the store: its settings hold secrets.
impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    fn stores() -> Stores {
        Stores::start(&CancellationToken::new()).expect("threads")
    }

    fn put(object: &Object, bytes: Vec<u8>) {
        let (store, key) = object.parts();
        object.wait(async { Ok(store.put(&key, bytes.into()).await?) }).expect("put");
    }

    #[test]
    fn paths_and_urls_are_told_apart_and_secrets_are_not_shown() {
        let check = |text: &str, name: &str, expected: &str| {
            let location = stores().locate(text).expect("a location");
            assert_eq!((location.file_name(), location.to_string().as_str()), (name, expected), "{text}");
        };
        check("a/b.csv", "b.csv", "a/b.csv");
        check("file:///a/b.csv", "b.csv", "/a/b.csv");
        check("http://user@host/x.csv", "x.csv", "http://host/x.csv");
        check("s3://b/dir/page_views.csv.gz", "page_views.csv.gz", "s3://b/dir/page_views.csv.gz");
        check("s3://user@b/x@y.csv", "x@y.csv", "s3://b/x@y.csv");
        for refused in [
            "ftp://u:secret@host/x.csv",
            "s3://u:secret@/x",
            "s3://u:secret@b/x.csv",
            "http://u:secret@host:x/?secret",
            "http://host/x.csv?key=secret",
        ] {
            let error = format!("{:#}", stores().locate(refused).expect_err("refused"));
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_object_is_read_whole_in_one_version_and_listed_without_what_is_hidden() {
        let stores = stores();
        let folder = stores.object(Arc::new(InMemory::new()), "in/here".into(), "mem://in/here".to_owned());
        let bytes: Vec<u8> = (0..CHUNK as usize * 3 + 5).map(|at| (at % 251) as u8).collect();
        let object = folder.join(Path::new("platform=%2E/a.csv")).expect("a key");
        put(&object, bytes.clone());
        put(&folder.join(Path::new(".x/b.csv")).expect("a key"), vec![1]);
        let listed = Location::Remote(folder).below().expect("listed").expect("a folder");
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].to_string(), "mem://in/here/platform=%2E/a.csv");
        assert_eq!(listed[0].size().expect("a size"), bytes.len() as u64);
        assert!(Location::Remote(object.clone()).below().expect("listed").is_none());

        let chunks: Vec<Bytes> = object.chunks().expect("found").map(|chunk| chunk.expect("read")).collect();
        assert_eq!(chunks.concat(), bytes);
        let version = object.look().expect("found");
        let parts = object.read(&version, &[1..3, 0..1]).expect("read");
        assert_eq!(parts, [&bytes[1..3], &bytes[0..1]]);
        let mut chunks = object.chunks().expect("found");
        put(&object, bytes);
        assert!(object.read(&version, std::slice::from_ref(&(0..1))).is_err(), "of another version");
        assert!(chunks.next().is_some_and(|chunk| chunk.is_err()), "of another version");
    }

    #[test]
    fn nobody_waits_for_a_store_when_stopped() {
        let stop = CancellationToken::new();
        let stores = Stores::start(&stop).expect("threads");
        let object = stores.object(Arc::new(InMemory::new()), "x".into(), "mem://x".to_owned());
        stop.cancel();
        let error = object.wait(std::future::pending::<anyhow::Result<()>>()).expect_err("stopped");
        assert!(error.to_string().contains("stopped"), "{error}");
    }
}
