//! Puts a prepared stream's folder in its place in an object store, instead of what was there.
//!
//! A store can't rename: from before the first change until after the last a mark lies beside the objects, and no
//! replay takes what is so marked. An object appears only when all of it has been stored. Memory is a few parts of
//! the files that are under way, 45 MB at the most.

use crate::location::{Location, Object};
use crate::progress::Progress;
use anyhow::{Context, bail};
use futures::stream::{self, StreamExt};
use object_store::ObjectStoreExt;
use object_store::buffered::BufWriter;
use std::collections::BTreeSet;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::bytes::BytesMut;
use tokio_util::sync::CancellationToken;

/// The mark's name.
pub const MARK: &str = "_preparing";

const MARKED: &str =
    "the objects beside this one are being replaced, or that was interrupted: prepare them again\n";
const FILES_AT_ONCE: usize = 3;
/// The least that S3 takes as a part.
const PART: usize = 5 << 20;

/// Uploads all files of `folder` below `target` and removes what else is there. Stopped or failed, it leaves the mark.
/// One at a time may work on a target.
pub fn upload(
    folder: &Path,
    target: &Object,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let files = Location::Local(folder.to_owned()).below()?.unwrap_or_default();
    let halt = stop.child_token();
    let work = async {
        let mark = target.join(Path::new(MARK))?;
        let old = target.list().await?;
        put_mark(&mark).await?;
        let sent = stream::iter(&files).map(|file| {
            let halt = &halt;
            async move {
                let sent = send(file.path(), folder, target, progress, halt).await;
                // The first failure ends the others.
                sent.inspect_err(|_| halt.cancel())
            }
        });
        let sent: Vec<anyhow::Result<Object>> = sent.buffer_unordered(FILES_AT_ONCE).collect().await;
        let new: BTreeSet<String> = sent
            .into_iter()
            .map(|object| object.map(|object| object.to_string()))
            .collect::<anyhow::Result<_>>()?;
        for object in old.iter().filter(|object| !new.contains(&object.to_string())) {
            remove(object).await?;
        }
        remove(&mark).await
    };
    target.wait_to_the_end(work).with_context(|| format!("{target} is not whole; prepare it again"))
}

async fn put_mark(mark: &Object) -> anyhow::Result<()> {
    let (store, key) = mark.parts();
    store.put(&key, MARKED.into()).await.with_context(|| format!("cannot write {mark}"))?;
    Ok(())
}

async fn remove(object: &Object) -> anyhow::Result<()> {
    let (store, key) = object.parts();
    match store.delete(&key).await {
        // It was the mark of an interrupted one, or somebody else has removed it.
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {object}")),
    }
}

async fn send(
    file: &Path,
    folder: &Path,
    target: &Object,
    progress: &Progress,
    halt: &CancellationToken,
) -> anyhow::Result<Object> {
    let object = target.join(file.strip_prefix(folder)?)?;
    let (store, key) = object.parts();
    let mut writer = BufWriter::with_capacity(store, key, PART).with_max_concurrency(1);
    let sent = copy(file, &mut writer, progress, halt).await;
    if sent.is_err() {
        // Parts of an object that never comes are to go; where that fails, the store's own rules remove them.
        let _ = writer.abort().await;
        return sent.map(|()| object);
    }
    writer.shutdown().await.with_context(|| format!("cannot write {object}"))?;
    Ok(object)
}

async fn copy(
    file: &Path,
    writer: &mut BufWriter,
    progress: &Progress,
    halt: &CancellationToken,
) -> anyhow::Result<()> {
    let in_file = || format!("cannot read {}", file.display());
    let mut source = tokio::fs::File::open(file).await.with_context(in_file)?;
    loop {
        let mut bytes = BytesMut::with_capacity(1 << 20);
        if source.read_buf(&mut bytes).await.with_context(in_file)? == 0 {
            return Ok(());
        }
        if halt.is_cancelled() {
            bail!("stopped before the end");
        }
        progress.advance(bytes.len() as u64);
        writer.put(bytes.freeze()).await.context("cannot upload")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::Stores;
    use crate::prepare::tests::{catalog, prepared};
    use crate::replay::tests::records;
    use crate::replay::{Filter, Record, sources};
    use object_store::ObjectStore;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    fn all(folder: Location) -> anyhow::Result<Vec<Record>> {
        let files = sources(folder.below()?.unwrap_or_default(), None, &catalog())?;
        records(&files, &Filter::all())
    }

    #[test]
    fn a_result_in_a_store_replaces_the_old_one_and_is_refused_until_it_is_whole() {
        let stop = CancellationToken::new();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let object = |stop: &CancellationToken| {
            let stores = Stores::start(stop).expect("threads");
            stores.object(store.clone(), "out/page_views".into(), "mem://out/page_views".to_owned())
        };
        let put = |rows: &str, stop: &CancellationToken| {
            let folder = prepared("page_views", rows);
            let folder = folder.path().join("out/page_views");
            let local = all(Location::Local(folder.clone())).expect("prepared");
            (local, upload(&folder, &object(stop), &Progress::silent(), stop))
        };
        let there = || all(Location::Remote(object(&CancellationToken::new())));
        let names = || {
            let below = Location::Remote(object(&CancellationToken::new())).below().expect("listed");
            below.unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>()
        };

        let (local, uploaded) = put("u,1,5,1,US,1\nv,1,3,\\N,US,1\n", &stop);
        uploaded.expect("uploaded");
        assert_eq!((there().expect("whole"), local.len()), (local, 2));
        assert_eq!(names().len(), 3, "{:?}", names());

        // Told to stop: the mark stays, and says so to whoever would replay.
        stop.cancel();
        let (_, stopped) = put("w,1,7,2,US,1\n", &stop);
        let error = format!("{:#}", stopped.expect_err("stopped"));
        assert!(error.contains("not whole") && error.contains("stopped"), "{error}");
        let error = there().expect_err("not whole").to_string();
        assert!(error.contains(MARK) && error.contains("prepare it again"), "{error}");

        let (local, uploaded) = put("w,1,7,2,US,1\n", &CancellationToken::new());
        uploaded.expect("uploaded");
        assert_eq!((there().expect("whole"), local.len()), (local, 1));
        let part = "mem://out/page_views/platform=2/event_date=2016-06-14/part-0.parquet";
        assert_eq!(names(), [part, "mem://out/page_views/rejects.csv"]);
    }
}
