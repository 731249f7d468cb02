//! What a stream's records feed: for each metric, what a record adds to which cell of which group.

use shared_model::aggregate::Aggregate;
use shared_model::catalog::{Catalog, Layout, Stream};
use shared_model::codec::CodecError;
use shared_model::event::{Event, Value};
use shared_model::expression::Expression;
use shared_model::metric::{Binding, Metric, MetricVersion};
use shared_model::time::{Millis, common_step};
use shared_model::view::{self, CellId, Cells};
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
    /// The metrics, each with its binding to this stream, by ascending version.
    metrics: Vec<(Arc<Metric>, Binding)>,
    /// What each metric has in common with others.
    feeds: Vec<Feeds>,
    /// How many ways there are in which metrics slice time.
    slicings: usize,
    /// The longest step of event time of which panes and the buckets of all metrics are made.
    pub(crate) step: Millis,
    /// The expressions that metrics' keys are made of, each list once, as many metrics are of the same key. The first is
    /// [`EMPTY_PART`].
    parts: Vec<Vec<Expression>>,
    aggregates: HashMap<MetricVersion, Aggregate>,
}

/// The part that is made of no expressions, before all others: the same in all records.
pub(crate) const EMPTY_PART: usize = 0;

/// What a metric has in common with others, so that it is looked at once a record.
#[derive(Clone, Copy)]
pub(crate) struct Feeds {
    /// The parts that its key is made of: its `by`, and its item ([`EMPTY_PART`] where it has none).
    pub(crate) by: usize,
    pub(crate) item: usize,
    /// The way in which it slices time: those of one grain that have a window or have none.
    pub(crate) slicing: usize,
}

/// A metric that a record feeds.
#[derive(Clone, Copy)]
pub(crate) struct Counted<'a> {
    /// Its number in the plan; of two, the one with the lower version has the lower number.
    pub(crate) number: usize,
    /// It.
    pub(crate) metric: &'a Metric,
    /// How the stream feeds it.
    pub(crate) binding: &'a Binding,
}

impl Plan {
    /// The metrics of a catalog that a stream feeds.
    pub(crate) fn new(catalog: &Catalog, stream: &Arc<Stream>) -> Plan {
        let bound = |metric: &Arc<Metric>| {
            let mut bindings = metric.bindings.iter().filter(|binding| binding.stream == stream.name);
            bindings.next().map(|binding| (metric.clone(), binding.clone()))
        };
        let mut metrics: Vec<(Arc<Metric>, Binding)> = catalog.metrics.iter().filter_map(bound).collect();
        metrics.sort_by_key(|(metric, _)| metric.version);
        let (mut parts, mut slicings) = (vec![Vec::new()], Vec::new());
        let feeds = |(metric, binding): &(Arc<Metric>, Binding)| Feeds {
            by: place_of(binding.by.clone(), &mut parts),
            item: place_of(binding.item.iter().cloned().collect(), &mut parts),
            slicing: place_of((metric.grain, metric.window.is_some()), &mut slicings),
        };
        let feeds = metrics.iter().map(feeds).collect();
        let aggregates = metrics.iter().map(|(m, _)| (m.version, m.aggregate.clone())).collect();
        let longest_window = longest_window(catalog);
        let (stream, layout, slicings) = (stream.clone(), catalog.layout, slicings.len());
        let step = metrics.iter().map(|(metric, _)| metric.grain.width()).fold(layout.pane, common_step);
        Plan { stream, layout, longest_window, metrics, feeds, slicings, step, parts, aggregates }
    }

    /// The versions of all its metrics.
    pub(crate) fn versions(&self) -> impl Iterator<Item = MetricVersion> + Clone + '_ {
        self.metrics.iter().map(|(metric, _)| metric.version)
    }

    /// The aggregate of a version.
    pub(crate) fn aggregate(&self, version: MetricVersion) -> Option<&Aggregate> {
        self.aggregates.get(&version)
    }

    /// A metric, by its number.
    pub(crate) fn metric(&self, number: usize) -> &Metric {
        &self.metrics[number].0
    }

    /// The metrics that admit a record.
    pub(crate) fn counted<'a>(&'a self, values: &'a [Value]) -> impl Iterator<Item = (Counted<'a>, Feeds)> {
        let metrics = self.metrics.iter().zip(&self.feeds).enumerate();
        let admitted = metrics.filter(|(_, ((_, binding), _))| binding.admits(values));
        admitted.map(|(number, ((metric, binding), feeds))| (Counted { number, metric, binding }, *feeds))
    }

    /// How many parts keys are made of.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// How many ways there are in which metrics slice time.
    pub(crate) fn slicings(&self) -> usize {
        self.slicings
    }

    /// Appends a part of a record's keys.
    pub(crate) fn part(&self, part: usize, values: &[Value], key: &mut Vec<u8>) {
        self.parts[part].iter().for_each(|expression| expression.value(values).encode(key));
    }

    /// Names, for each metric that admits the event, the group, what is counted, and the cell's key.
    pub(crate) fn fold(
        &self,
        event: &Event,
        key: &mut Vec<u8>,
        mut each: impl FnMut(u32, Counted<'_>, &[u8]),
    ) {
        for (number, (metric, binding)) in self.metrics.iter().enumerate() {
            if binding.admits(&event.values) {
                let by = binding.key(&event.values, key);
                let group = view::group_of(&key[..by], self.layout.groups);
                each(group, Counted { number, metric, binding }, key);
            }
        }
    }
}

/// Where something stands in a list, to which it is added where it isn't there yet.
fn place_of<T: PartialEq>(what: T, list: &mut Vec<T>) -> usize {
    list.iter().position(|known| *known == what).unwrap_or_else(|| {
        list.push(what);
        list.len() - 1
    })
}

/// The longest sliding window of a catalog; 0 where nothing is served live.
pub(crate) fn longest_window(catalog: &Catalog) -> Millis {
    catalog.metrics.iter().filter_map(|metric| metric.window).map(|window| window.width).max().unwrap_or(0)
}

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
