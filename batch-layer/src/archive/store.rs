//! The object store that holds the archive: one prefix of a local folder, an S3 API, GCS or Azure.
//!
//! Nothing is ever overwritten: files with data have names made of their content, and manifests are written only
//! where none is. A store that can't do the latter is refused at the start.

use crate::archive::checksum::Checksum;
use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use shared_model::failpoint;
use shared_model::secret;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tracing::warn;
use url::Url;

/// A file that is longer than this is written in parts of so many bytes.
const PART: usize = 16 << 20;
/// How many parts of a file are on their way at once.
const PARTS: usize = 2;

/// How often a write is tried before it fails, beyond the client's own retries.
const ATTEMPTS: u32 = 5;

/// An archive's place in an object store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    url: Arc<str>,
    /// The folder, where the store is one on this machine.
    folder: Option<Arc<std::path::Path>>,
}

/// What became of a write of something that must not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is there now, and it is ours.
    Won,
    /// Something else was there first: its bytes.
    Exists(Bytes),
}

impl Store {
    /// Opens the store of a URL: `file:///folder` or a plain path (the folder is created), `s3://bucket/prefix`,
    /// `gs://bucket/prefix`, `az://container/prefix`, `memory:///` for tests. Credentials, endpoint and region come
    /// from the environment, by the names that `object_store` knows (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`,
    /// `AWS_ALLOW_HTTP`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`, ...).
    pub fn open(url: &str) -> Result<Store> {
        Store::open_with(url, environment()?)
    }

    /// Opens the store of a URL with options given by name, as [`Store::open`] takes them from the environment.
    pub fn open_with(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Store> {
        let refused = || {
            format!(
                "archive url {} can't be opened (expected file:///folder, s3://bucket/prefix, gs://... or az://...)",
                secret::shown(url)
            )
        };
        let parsed = if url.contains("://") {
            Url::parse(url).with_context(refused)?
        } else {
            let absolute = std::path::absolute(url).with_context(refused)?;
            Url::from_file_path(&absolute).map_err(|()| anyhow!("{}", refused()))?
        };
        if parsed.scheme() == "file" {
            let folder = parsed.to_file_path().map_err(|()| anyhow!("{}", refused()))?;
            return Store::in_folder(&folder, url);
        }
        let (inner, prefix) = open_url(&parsed, options).with_context(refused)?;
        Ok(Store { inner: inner.into(), prefix, url: url.into(), folder: None })
    }

    /// A store in memory, for tests.
    pub fn in_memory() -> Store {
        Store::from_object_store(Arc::new(InMemory::new()))
    }

    /// An archive at the root of any object store, for tests.
    pub fn from_object_store(inner: Arc<dyn ObjectStore>) -> Store {
        Store { inner, prefix: Path::default(), url: "memory:///".into(), folder: None }
    }

    fn in_folder(folder: &std::path::Path, url: &str) -> Result<Store> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("archive folder {} can't be created", folder.display()))?;
        let inner = LocalFileSystem::new_with_prefix(folder)
            .with_context(|| format!("archive folder {} can't be opened", folder.display()))?;
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        Ok(Store {
            inner: Arc::new(inner),
            prefix: Path::default(),
            url: url.into(),
            folder: Some(folder.into()),
        })
    }

    /// The URL that it was opened with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file on this machine that holds an object; `None` where the store is elsewhere.
    pub fn local_file(&self, path: &str) -> Option<std::path::PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(path))
    }

    /// Writes a probe twice and refuses a store that lets the second write pass: without put-if-absent two
    /// archivers could seal the same epoch differently.
    pub async fn probe_put_if_absent(&self) -> Result<()> {
        let path = format!("probe/{}", crate::archive::nonce());
        let first = self.create_once(&path, Bytes::from_static(b"first")).await;
        first.with_context(|| format!("archive {}: a probe can't be written", self.url))?;
        let second = self.create_once(&path, Bytes::from_static(b"second")).await;
        let kept = self.get(&path).await;
        if let Err(error) = self.delete(&path).await {
            warn!(path, "the probe stays behind: {error:#}");
        }
        match (second, kept?) {
            (Err(Error::AlreadyExists { .. } | Error::Precondition { .. }), Some(bytes))
                if bytes == "first" =>
            {
                Ok(())
            }
            _ => bail!(
                "archive {}: the store ignores put-if-absent (If-None-Match: *), so a sealed epoch could be \
                 overwritten; use a store that supports conditional writes",
                self.url
            ),
        }
    }

    /// Reads an object; `None` where there is none.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>> {
        let failed = || format!("archive {}: {path} can't be read", self.url);
        match self.inner.get(&self.at(path)).await {
            Ok(found) => Ok(Some(found.bytes().await.with_context(failed)?)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error).with_context(failed),
        }
    }

    /// Writes an object whose name is made of its content: writing it again changes nothing.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        let mut attempt = 1;
        loop {
            failpoint::hit("batch.put.before");
            let put = self.inner.put(&self.at(path), bytes.clone().into()).await;
            failpoint::hit("batch.put.after");
            match put {
                Ok(_) => return self.make_durable(path).await,
                Err(error) if attempt < ATTEMPTS && may_pass(&error) => {
                    self.back_off(path, &mut attempt, &error).await
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("archive {}: {path} can't be written", self.url));
                }
            }
        }
    }

    /// Writes a file under a name that is made of its content: writing it again changes nothing. Three of its parts are
    /// in memory at a time, whatever its length.
    pub async fn put_file(&self, path: &str, file: &std::path::Path) -> Result<()> {
        let failed = || format!("archive {}: {path} can't be written", self.url);
        let length = tokio::fs::metadata(file).await.with_context(failed)?.len();
        if length <= PART as u64 {
            return self.put(path, tokio::fs::read(file).await.with_context(failed)?.into()).await;
        }
        let mut attempt = 1;
        loop {
            failpoint::hit("batch.put.before");
            let put = self.put_parts(path, file).await;
            failpoint::hit("batch.put.after");
            match put {
                Ok(()) => return self.make_durable(path).await,
                Err(error) if attempt < ATTEMPTS && may_pass(&error) => {
                    self.back_off(path, &mut attempt, &error).await
                }
                Err(error) => return Err(error).with_context(failed),
            }
        }
    }

    async fn put_parts(&self, path: &str, file: &std::path::Path) -> Result<(), Error> {
        let unreadable = |source: std::io::Error| Error::Generic { store: "file", source: source.into() };
        let mut file = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let mut upload = self.inner.put_multipart(&self.at(path)).await?;
        let mut sending = JoinSet::new();
        let sent: Result<(), Error> = async {
            loop {
                let mut part = Vec::with_capacity(PART);
                (&mut file).take(PART as u64).read_to_end(&mut part).await.map_err(unreadable)?;
                let most = if part.is_empty() { 0 } else { PARTS - 1 };
                while sending.len() > most
                    && let Some(sent) = sending.join_next().await
                {
                    sent??;
                }
                if part.is_empty() {
                    return upload.complete().await.map(|_| ());
                }
                sending.spawn(upload.put_part(part.into()));
            }
        }
        .await;
        if sent.is_err() {
            sending.shutdown().await;
            // What is there of it would be kept, and paid for.
            if let Err(error) = upload.abort().await {
                warn!(path, "parts of an upload stay behind: {error}");
            }
        }
        sent
    }

    /// The length of an object; `None` where there is none.
    pub async fn size(&self, path: &str) -> Result<Option<u64>> {
        match self.inner.head(&self.at(path)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("archive {}: {path} can't be looked for", self.url))
            }
        }
    }

    /// Copies an object to a file of this machine, piece by piece, and gives the checksum of its bytes; `None` where there is
    /// none.
    pub async fn download(&self, path: &str, to: &std::path::Path) -> Result<Option<String>> {
        let failed = || format!("archive {}: {path} can't be read", self.url);
        let found = match self.inner.get(&self.at(path)).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error).with_context(failed),
        };
        let unwritable = "a file of the archive can't be written to the temporary folder (TMPDIR)";
        let mut file = tokio::fs::File::create(to).await.context(unwritable)?;
        let (mut pieces, mut sum) = (found.into_stream(), Checksum::new());
        while let Some(piece) = pieces.next().await {
            let piece = piece.with_context(failed)?;
            sum.take(&piece);
            file.write_all(&piece).await.context(unwritable)?;
        }
        file.flush().await.context(unwritable)?;
        Ok(Some(sum.finish().1))
    }

    /// Writes an object that must not exist yet. `ours` tells, from the bytes found in its place, whether they are
    /// this very write, whose answer was lost.
    pub async fn create(&self, path: &str, bytes: Bytes, ours: impl Fn(&[u8]) -> bool) -> Result<Created> {
        let mut attempt = 1;
        loop {
            let error = match self.create_once(path, bytes.clone()).await {
                Ok(()) => return self.make_durable(path).await.map(|()| Created::Won),
                Err(error) => error,
            };
            // Whatever the answer was: what counts is what lies there now.
            match self.get(path).await {
                Ok(Some(found)) if ours(&found) => return Ok(Created::Won),
                Ok(Some(found)) => return Ok(Created::Exists(found)),
                Ok(None) | Err(_) if attempt < ATTEMPTS && may_pass(&error) => {
                    self.back_off(path, &mut attempt, &error).await;
                }
                _ => {
                    return Err(error)
                        .with_context(|| format!("archive {}: {path} can't be written", self.url));
                }
            }
        }
    }

    /// Lists the objects below a folder, in no order.
    pub async fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>> {
        let listed = self.inner.list(Some(&self.at(folder)));
        let listed = listed.map_ok(|meta| ObjectMeta { location: self.below(&meta.location), ..meta });
        listed.try_collect().await.with_context(|| format!("archive {}: {folder} can't be listed", self.url))
    }

    /// The path of the object that comes first by name in a folder; `None` where it is empty.
    pub async fn first(&self, folder: &str) -> Result<Option<String>> {
        let mut first: Option<String> = None;
        let listed = self.inner.list(Some(&self.at(folder)));
        let mut listed = listed.map_ok(|meta| self.below(&meta.location).to_string());
        while let Some(name) = listed.next().await {
            let name = name.with_context(|| format!("archive {}: {folder} can't be listed", self.url))?;
            if first.as_ref().is_none_or(|first| name < *first) {
                first = Some(name);
            }
        }
        Ok(first)
    }

    /// Deletes an object; one that isn't there is no error.
    pub async fn delete(&self, path: &str) -> Result<()> {
        failpoint::hit("batch.delete.before");
        let deleted = self.inner.delete(&self.at(path)).await;
        failpoint::hit("batch.delete.after");
        match deleted {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("archive {}: {path} can't be deleted", self.url))
            }
        }
    }

    async fn create_once(&self, path: &str, bytes: Bytes) -> Result<(), Error> {
        let options = PutOptions::from(PutMode::Create);
        failpoint::hit("batch.create.before");
        let created = self.inner.put_opts(&self.at(path), bytes.into(), options).await;
        failpoint::hit("batch.create.after");
        created.map(|_| ())
    }

    async fn back_off(&self, path: &str, attempt: &mut u32, error: &Error) {
        warn!(archive = %self.url, path, attempt, "a write failed and is tried again: {error}");
        tokio::time::sleep(Duration::from_millis(100 << *attempt)).await;
        *attempt += 1;
    }

    /// Makes a file in a local folder outlive a power cut, as an object store's are: the database that will say of it
    /// that it is there does so too.
    async fn make_durable(&self, path: &str) -> Result<()> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let file = folder.join(path);
        let failed = format!("archive {}: {path} can't be synced to disk", self.url);
        let sync = move || -> std::io::Result<()> {
            // Its folders may be new too.
            for entry in file.ancestors().take_while(|entry| entry.starts_with(&folder)) {
                std::fs::File::open(entry)?.sync_all()?;
            }
            Ok(())
        };
        tokio::task::spawn_blocking(sync).await.context("a sync to disk died")?.context(failed)
    }

    fn at(&self, path: &str) -> Path {
        self.prefix.parts().chain(Path::from(path).parts()).collect()
    }

    fn below(&self, location: &Path) -> Path {
        location.prefix_match(&self.prefix).map_or_else(|| location.clone(), |parts| parts.collect())
    }
}

/// The store that a URL names, and the path in it. What is wrong is said without what may be secret.
pub(crate) fn open_url(
    url: &Url,
    options: impl IntoIterator<Item = (String, String)>,
) -> Result<(Box<dyn ObjectStore>, Path)> {
    // Its client logs the url. A user alone is no secret: Azure's container stands there.
    if url.password().is_some() || url.query().is_some() {
        bail!("it holds a password or parameters; take them out: credentials come from the environment");
    }
    let opened = object_store::parse_url_opts(url, options);
    opened.map_err(|error| anyhow!(secret::shown_in(&error.to_string(), url.as_str())))
}

/// The environment, as the clients of object stores read their options from it; a value `@/path` is that of a file.
///
/// # Errors
/// Where such a file can't be read.
pub(crate) fn environment() -> Result<Vec<(String, String)>> {
    Ok(secret::of_object_stores(std::env::vars_os(), |path| std::fs::read_to_string(path))?)
}

/// Whether the same write may pass when it is tried again.
fn may_pass(error: &Error) -> bool {
    !matches!(
        error,
        Error::NotImplemented { .. }
            | Error::NotSupported { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::InvalidPath { .. }
            | Error::UnknownConfigurationKey { .. }
    )
}

#[cfg(test)]
mod tests;
