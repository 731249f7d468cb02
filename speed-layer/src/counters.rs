//! Folds events into cells that are not yet written: for each metric of a stream, what a record adds to which group.
//!
//! What is held here is a delta: the fold of the records since the last flush alone. Merged with what is stored it is
//! the fold of both, in any grouping.

use shared_model::aggregate::{Aggregate, State};
use shared_model::catalog::{Catalog, Layout, Stream};
use shared_model::codec::CodecError;
use shared_model::event::Event;
use shared_model::metric::{Binding, Metric, MetricVersion};
use shared_model::time::Millis;
use shared_model::view::{self, CellId, Cells, Slice};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// What one stream's records feed.
pub(crate) struct Plan {
    /// The stream.
    pub(crate) stream: Arc<Stream>,
    /// How the log is sliced and groups are laid out.
    pub(crate) layout: Layout,
    /// The longest sliding window of the whole catalog; 0 where nothing is served live.
    pub(crate) longest_window: Millis,
    /// The metrics, each with its binding to this stream.
    metrics: Vec<(Arc<Metric>, Binding)>,
    aggregates: HashMap<MetricVersion, Aggregate>,
}

impl Plan {
    /// The metrics of a catalog that a stream feeds.
    pub(crate) fn new(catalog: &Catalog, stream: &Arc<Stream>) -> Plan {
        let bound = |metric: &Arc<Metric>| {
            let mut bindings = metric.bindings.iter().filter(|binding| binding.stream == stream.name);
            bindings.next().map(|binding| (metric.clone(), binding.clone()))
        };
        let metrics: Vec<(Arc<Metric>, Binding)> = catalog.metrics.iter().filter_map(bound).collect();
        let aggregates = metrics.iter().map(|(m, _)| (m.version, m.aggregate.clone())).collect();
        let longest_window = longest_window(catalog);
        Plan { stream: stream.clone(), layout: catalog.layout, longest_window, metrics, aggregates }
    }

    /// The versions of all its metrics.
    pub(crate) fn versions(&self) -> impl Iterator<Item = MetricVersion> + '_ {
        self.metrics.iter().map(|(metric, _)| metric.version)
    }

    /// The aggregate of a version.
    pub(crate) fn aggregate(&self, version: MetricVersion) -> Option<&Aggregate> {
        self.aggregates.get(&version)
    }

    /// Names, for each metric that admits the event, the group and the cell key, and what adds the event to a state.
    pub(crate) fn fold(
        &self,
        event: &Event,
        key: &mut Vec<u8>,
        mut each: impl FnMut(u32, &Metric, &Binding, &[u8]),
    ) {
        for (metric, binding) in &self.metrics {
            if binding.admits(&event.values) {
                let by = binding.key(&event.values, key);
                each(view::group_of(&key[..by], self.layout.groups), metric, binding, key);
            }
        }
    }
}

/// The longest sliding window of a catalog; 0 where nothing is served live.
pub(crate) fn longest_window(catalog: &Catalog) -> Millis {
    catalog.metrics.iter().filter_map(|metric| metric.window).map(|window| window.width).max().unwrap_or(0)
}

/// Cells that are not yet written, by slice.
#[derive(Default)]
pub(crate) struct Deltas {
    slices: HashMap<Slice, Packed>,
    hash: FastHash,
    cells: usize,
    bytes: usize,
}

/// Cells of one slice: `version (8 BE), bucket (8 BE), key` to state.
type Packed = HashMap<Box<[u8]>, State, FastHash>;

impl Deltas {
    /// The state of a cell, empty where it is new. `name` is room to build its name in.
    pub(crate) fn cell<'a>(
        &'a mut self,
        slice: Slice,
        metric: &Metric,
        bucket: Millis,
        key: &[u8],
        name: &mut Vec<u8>,
    ) -> &'a mut State {
        name.clear();
        name.extend_from_slice(&metric.version.0.to_be_bytes());
        name.extend_from_slice(&bucket.to_be_bytes());
        name.extend_from_slice(key);
        let hash = self.hash.clone();
        let packed = self.slices.entry(slice).or_insert_with(|| HashMap::with_hasher(hash));
        if !packed.contains_key(name.as_slice()) {
            self.cells += 1;
            self.bytes += name.len() + CELL_OVERHEAD;
            packed.insert(name.as_slice().into(), State::empty(&metric.aggregate));
        }
        packed.get_mut(name.as_slice()).expect("inserted above")
    }

    /// How many cells wait.
    pub(crate) fn len(&self) -> usize {
        self.cells
    }

    /// About how much memory they take, sketches not counted in full.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes all cells, slice by slice, in the canonical order.
    pub(crate) fn take(&mut self) -> Vec<(Slice, Cells)> {
        (self.cells, self.bytes) = (0, 0);
        let named = |(name, state): (Box<[u8]>, State)| {
            let (version, rest) = name.split_first_chunk::<8>().expect("built with 16 bytes in front");
            let (bucket, key) = rest.split_first_chunk::<8>().expect("built with 16 bytes in front");
            let version = MetricVersion(u64::from_be_bytes(*version));
            (CellId { version, key: key.into(), bucket: i64::from_be_bytes(*bucket) }, state)
        };
        let mut slices: Vec<(Slice, Cells)> = self
            .slices
            .drain()
            .map(|(slice, cells)| (slice, cells.into_iter().map(named).collect()))
            .collect();
        slices.sort_unstable_by_key(|(slice, _)| *slice);
        slices
    }
}

/// What a cell takes beside its name: map entry, allocation, state.
const CELL_OVERHEAD: usize = 96;

/// Merges stored segments and cells into one canonical set of cells. Versions that the plan doesn't know are left out.
pub(crate) fn merge_segments<'a>(
    plan: &Plan,
    segments: impl Iterator<Item = &'a [u8]>,
    cells: &mut Cells,
) -> Result<(), CodecError> {
    for segment in segments {
        view::unpack(
            segment,
            |version| plan.aggregate(version),
            |version, key, bucket, state| {
                let id = CellId { version, key: key.into(), bucket };
                match cells.get_mut(&id) {
                    Some(cell) => cell.merge(&state),
                    None => {
                        cells.insert(id, state);
                        Ok(())
                    }
                }
            },
        )?;
    }
    Ok(())
}

/// xxh3 with a seed drawn per map family, for maps whose keys come from outside.
#[derive(Clone)]
pub(crate) struct FastHash(u64);

impl Default for FastHash {
    fn default() -> FastHash {
        FastHash(std::collections::hash_map::RandomState::new().hash_one(0))
    }
}

impl BuildHasher for FastHash {
    type Hasher = Xxh3;

    fn build_hasher(&self) -> Xxh3 {
        Xxh3(self.0)
    }
}

/// One xxh3 over each piece that is written, chained by its seed.
pub(crate) struct Xxh3(u64);

impl Hasher for Xxh3 {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }

    fn write_usize(&mut self, length: usize) {
        self.0 = self.0.rotate_left(5) ^ length as u64;
    }
}
