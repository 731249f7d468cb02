//! The chain of manifests of one partition, and how records become its next links.
//!
//! A seal is won or adopted, never forced: where a rival has sealed the same offsets, its manifest counts, and this
//! writer's files stay unnamed until a sweep removes them.

use crate::archive::buffer::Limits;
use crate::archive::fold::{Action, Closing, Fold, Record};
use crate::archive::manifest::{MANIFEST_VERSION, Manifest, manifest_path};
use crate::archive::segment::{Files, Form};
use crate::archive::store::{Created, Store};
use crate::archive::{Sealed, nonce};
use anyhow::{Result, bail};
use metrics::counter;
use shared_model::catalog::Stream;
use shared_model::epoch::EpochLength;
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use shared_model::time::Millis;
use std::sync::Arc;
use tracing::info;

/// The manifests of a partition from a cut on, and the cuts between them.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    /// The partition.
    pub(crate) tp: TopicPartition,
    /// The manifests, ascending.
    pub(crate) sealed: Vec<Sealed>,
    /// Where it begins, then each manifest's end; never empty. Where the first two have one offset, the log begins
    /// there and the second tells its first epoch.
    pub(crate) cuts: Vec<Cut>,
}

impl Chain {
    /// The newest cut.
    pub(crate) fn end(&self) -> &Cut {
        self.cuts.last().expect("a chain has the cut at which it begins")
    }

    fn push(&mut self, sealed: Sealed) {
        self.learn(sealed.manifest.from.clone());
        self.cuts.push(sealed.manifest.to.clone());
        self.sealed.push(sealed);
    }

    /// Takes in where the open slice begins: a log's first record tells the epoch of its start.
    fn learn(&mut self, from: Cut) {
        if from.offset == self.end().offset && from.epoch > self.end().epoch {
            self.cuts.push(from);
        }
    }
}

/// Follows a partition's manifests from a cut to their end.
pub(crate) async fn walk(store: &Store, tp: TopicPartition, start: Cut) -> Result<Chain> {
    let mut chain = Chain { tp, sealed: Vec::new(), cuts: vec![start] };
    loop {
        let path = manifest_path(&chain.tp, chain.end().offset);
        let Some(json) = store.get(&path).await? else { return Ok(chain) };
        let manifest = Manifest::from_json(&path, &json)?;
        chain.push(Sealed { manifest, path });
    }
}

/// Turns a partition's records into the next manifests of its chain.
pub(crate) struct Sealer {
    store: Store,
    chain: Chain,
    fold: Fold,
    writer: Writer,
}

impl Sealer {
    /// Goes on at the chain's end. `now` is what new manifests say of when they were written.
    pub(crate) fn new(
        store: Store,
        stream: Arc<Stream>,
        epochs: EpochLength,
        chain: Chain,
        limits: Limits,
        now: Millis,
    ) -> Sealer {
        let (tp, from) = (chain.tp.clone(), chain.end().clone());
        let fold = Fold::new(stream.clone(), tp.clone(), epochs, from, limits);
        let files = Files::new(store.clone(), stream, tp);
        let writer = Writer { files, now };
        Sealer { store, chain, fold, writer }
    }

    /// Writes its files in another form.
    pub(crate) fn written_as(mut self, form: Form) -> Sealer {
        self.writer.files = self.writer.files.written_as(form);
        self
    }

    /// The chain so far.
    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The epoch in which the partition's clock stands.
    pub(crate) fn epoch(&self) -> i64 {
        self.fold.epoch()
    }

    /// Takes in that the log has no records at `[from, to)` any more.
    pub(crate) fn gap(&mut self, from: i64, to: i64) {
        self.fold.gap(from, to);
    }

    /// Takes in the next record. Returns the offset to go on from, where a rival's manifest ends elsewhere than ours.
    pub(crate) async fn record(&mut self, record: Record<'_>) -> Result<Option<i64>> {
        for action in self.fold.record(record) {
            let closing = match action {
                Action::Write(batch) => {
                    self.writer.files.write(batch).await?;
                    continue;
                }
                Action::Seal(closing) => closing,
            };
            let ours = closing.to.clone();
            self.chain.push(self.writer.seal(closing).await?);
            let end = self.chain.end();
            if end.offset != ours.offset || end.epoch != ours.epoch {
                return self.adopt().await.map(Some);
            }
        }
        Ok(None)
    }

    /// Goes on where a rival's manifests end.
    async fn adopt(&mut self) -> Result<i64> {
        // It may have gone further meanwhile.
        let rest = walk(&self.store, self.chain.tp.clone(), self.chain.end().clone()).await?;
        rest.sealed.into_iter().for_each(|sealed| self.chain.push(sealed));
        self.fold.resume(self.chain.end().clone());
        Ok(self.chain.end().offset)
    }

    /// The chain as it is sealed; what is open is dropped, to be read again.
    pub(crate) fn finish(mut self) -> Chain {
        self.chain.learn(self.fold.from().clone());
        self.chain
    }
}

/// Writes the manifests.
struct Writer {
    /// Written since the last seal.
    files: Files,
    now: Millis,
}

impl Writer {
    /// Seals what was written since the last seal, or adopts the manifest that a rival put there first.
    async fn seal(&mut self, closing: Closing) -> Result<Sealed> {
        let (segments, rejects) = self.files.take();
        let Files { store, stream, tp, .. } = &self.files;
        let manifest = Manifest {
            v: MANIFEST_VERSION,
            stream: stream.name.clone(),
            stream_version: format!("{:016x}", stream.version),
            topic: tp.topic.to_string(),
            partition: tp.partition,
            from: closing.from,
            to: closing.to,
            segments,
            rejects,
            ticks: closing.ticks,
            gaps: closing.gaps,
            nonce: nonce(),
            written_at: self.now,
        };
        let path = manifest_path(tp, manifest.from.offset);
        let ours =
            |bytes: &[u8]| Manifest::from_json(&path, bytes).is_ok_and(|found| found.nonce == manifest.nonce);
        match store.create(&path, manifest.to_json().into(), ours).await? {
            Created::Won => {
                count(&manifest);
                Ok(Sealed { manifest, path })
            }
            Created::Exists(bytes) => {
                let theirs = Manifest::from_json(&path, &bytes)?;
                if theirs.from.offset != manifest.from.offset || theirs.topic_partition() != *tp {
                    bail!("manifest {path} is not what its name says: the archive is damaged there");
                }
                info!(path, "another archiver has sealed this already: its manifest counts");
                Ok(Sealed { manifest: theirs, path })
            }
        }
    }
}

/// What this process has sealed, for Prometheus.
fn count(manifest: &Manifest) {
    let stream = manifest.stream.clone();
    let bytes = manifest.segments.iter().map(|segment| segment.bytes).sum();
    let rejects = manifest.rejects.as_ref().map_or(0, |rejects| rejects.rows);
    counter!("tidemark_batch_archived_rows_total", "stream" => stream.clone()).increment(manifest.rows());
    counter!("tidemark_batch_archived_bytes_total", "stream" => stream.clone()).increment(bytes);
    counter!("tidemark_batch_archived_rejects_total", "stream" => stream.clone()).increment(rejects);
    counter!("tidemark_batch_archived_gaps_total", "stream" => stream).increment(manifest.gaps.len() as u64);
}
