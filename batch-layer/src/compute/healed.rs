//! What the batch view at T1 makes of deliveries otherwise than a reader did who had the batch view at T0 and the
//! realtime view from there on: found in the archive, delivery by delivery.
//!
//! A reader counted, of each identity, the survivor below T0, and every delivery from T0 on that has no other of its
//! partition within the dedup horizon below. The batch view at T1 counts the survivor alone. Imports that T1 takes in
//! are new to both sides.
//!
//! Memory: the identities of a day are cut into slices, one after the other; what was found lies in files.

use super::fold::Fold;
use super::{Budget, Sorter, Source, collect, segments};
use crate::audit::Repeats;
use crate::plan::{self, IDENTITY, Needs, POSITION, Segments};
use anyhow::{Context, Result};
use polars::prelude::*;
use shared_model::catalog::Stream;
use shared_model::metric::Metric;
use shared_model::time::EventDay;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tempfile::TempPath;

/// A move of the tidemark, as deliveries see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seam {
    /// Topic and partition to the offset below which T0's batch view holds all.
    pub(crate) below: BTreeMap<(String, i32), i64>,
    /// The `_topic`s of the imports that T1 takes in.
    pub(crate) imports: BTreeSet<String>,
    /// The `_topic`s of imports begin so.
    pub(crate) import_prefix: &'static str,
}

/// On which side of a move a delivery lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Below T0, or of an import that was there.
    Below,
    /// From T0 on.
    Above,
    /// Of an import that T1 takes in.
    Imported,
}

impl Seam {
    fn side(&self, topic: &str, partition: i32, offset: i64) -> Side {
        if self.imports.contains(topic) {
            return Side::Imported;
        }
        let below = self.below.get(&(topic.to_owned(), partition));
        let below = topic.starts_with(self.import_prefix) || below.is_some_and(|&cut| offset < cut);
        if below { Side::Below } else { Side::Above }
    }
}

/// One delivery of an identity that has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivery<'a> {
    /// Its topic; of an import's row its pseudo-topic.
    pub(crate) topic: &'a str,
    /// Its partition.
    pub(crate) partition: i32,
    /// Its offset.
    pub(crate) offset: i64,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The batch view at T1 counts it.
    Survives,
    /// Neither it nor a reader counted it.
    Dropped,
    /// A reader counted it: the batch view at T1 doesn't.
    Healed,
}

/// Decides for the deliveries of one identity, ordered by topic, partition and offset.
pub(crate) fn fates(
    deliveries: &[Delivery<'_>],
    seam: &Seam,
    horizon: i64,
    repeats: &mut Repeats,
) -> Vec<Fate> {
    let side = |at: usize| {
        let Delivery { topic, partition, offset } = deliveries[at];
        seam.side(topic, partition, offset)
    };
    let survivor_below = (0..deliveries.len()).find(|&at| side(at) == Side::Below);
    let before = |at: usize| {
        let one = deliveries[at];
        let last = at.checked_sub(1).map(|last| deliveries[last]);
        last.filter(|last| (last.topic, last.partition) == (one.topic, one.partition))
    };
    let mut fates = Vec::with_capacity(deliveries.len());
    for (at, one) in deliveries.iter().enumerate() {
        let recognised = before(at).is_some_and(|last| last.offset >= one.offset - horizon);
        let counted = match side(at) {
            Side::Below => survivor_below == Some(at),
            Side::Above => !recognised,
            Side::Imported => false,
        };
        if side(at) == Side::Above && recognised {
            repeats.within_horizon += 1;
        }
        fates.push(match (at, counted) {
            (0, _) => Fate::Survives,
            (_, true) => Fate::Healed,
            (_, false) => Fate::Dropped,
        });
        if fates[at] == Fate::Healed {
            let same = (deliveries[0].topic, deliveries[0].partition) == (one.topic, one.partition);
            match survivor_below {
                _ if !same => repeats.across_partitions += 1,
                Some(_) => repeats.across_tidemark += 1,
                None => repeats.beyond_horizon += 1,
            }
        }
    }
    fates
}

/// Bytes that a plan takes for a row of its slice.
const BYTES_OF_ROW: u64 = 200;

/// One stream's day at a move of the tidemark.
pub(crate) struct Healed {
    day: EventDay,
    stream: Arc<Stream>,
    all: Vec<Segments>,
    fresh: Vec<Segments>,
    /// By slice.
    found: Vec<Slice>,
    imports: BTreeSet<String>,
    /// The repeats that were found.
    pub(crate) repeats: Repeats,
}

/// What was found in one slice of the day, as files of positions.
#[derive(Default)]
struct Slice {
    /// Healed deliveries.
    healed: Option<TempPath>,
    /// Imported deliveries that don't survive.
    dropped: Option<TempPath>,
}

impl Healed {
    /// Looks for identities of the new files that have several deliveries on the day. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read.
    pub(crate) fn find(
        day: EventDay,
        all: Source,
        fresh: &Source,
        seam: &Seam,
        budget: Budget,
    ) -> Result<Healed> {
        let stream = all.stream;
        let (all, rows) = segments::inspect(&stream, &all.files)?;
        let (fresh, _) = segments::inspect(&stream, &fresh.files)?;
        let imports = seam.imports.clone();
        let (found, repeats) = (Vec::new(), Repeats::default());
        let mut healed = Healed { day, stream, all, fresh, found, imports, repeats };
        let slices = rows.saturating_mul(BYTES_OF_ROW).div_ceil((budget.memory / 2).max(1)).clamp(1, 4096);
        for slice in 0..slices {
            let found = healed.look(slice, slices, seam)?;
            healed.found.push(found);
        }
        Ok(healed)
    }

    fn look(&mut self, slice: u64, slices: u64, seam: &Seam) -> Result<Slice> {
        // Without an identity each delivery is an event of its own.
        if self.stream.identity.is_empty() || self.fresh.is_empty() {
            return Ok(Slice::default());
        }
        let all =
            || Ok::<_, PolarsError>(plan::slice(plan::deliveries(&self.stream, &self.all)?, slice, slices));
        let fresh = plan::slice(plan::deliveries(&self.stream, &self.fresh)?, slice, slices);
        let repeated = collect(plan::repeated_of(fresh, all()?))?;
        if repeated.height() == 0 {
            return Ok(Slice::default());
        }
        let (healed, dropped) = (Positions::default(), Positions::default());
        let mut found =
            Found { seam, horizon: self.stream.dedup_horizon, healed, dropped, repeats: self.repeats };
        found.take(&collect(plan::contenders(all()?, repeated))?)?;
        self.repeats = found.repeats;
        Ok(Slice { healed: found.healed.file()?, dropped: found.dropped.file()? })
    }

    /// Pushes the cells of the healed deliveries. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read, or the disk for cells is full.
    pub(crate) fn healed(&self, metric: &Arc<Metric>, cells: &mut Sorter) -> Result<()> {
        for (slice, found) in (0..).zip(&self.found) {
            let Some(healed) = &found.healed else { continue };
            let rows = plan::deliveries(&self.stream, &self.all)?;
            let rows = plan::slice(rows, slice, self.found.len() as u64);
            let (healed, join) = (plan::scan(&[healed.to_path_buf()])?, JoinArgs::new(JoinType::Semi));
            self.push(metric, rows.join(healed, POSITION.map(col), POSITION.map(col), join), cells)?;
        }
        Ok(())
    }

    /// Pushes the cells of the surviving deliveries of imports that T1 takes in. Blocks.
    ///
    /// # Errors
    /// Where a segment can't be read, or the disk for cells is full.
    pub(crate) fn imported(&self, metric: &Arc<Metric>, cells: &mut Sorter) -> Result<()> {
        if self.imports.is_empty() {
            return Ok(());
        }
        let topics = Column::new(POSITION[0].into(), self.imports.iter().cloned().collect::<Vec<String>>());
        let topics = DataFrame::new(self.imports.len(), vec![topics])?;
        for (slice, found) in (0..).zip(&self.found) {
            let rows = plan::deliveries(&self.stream, &self.fresh)?;
            let rows = plan::slice(rows, slice, self.found.len() as u64);
            let (topics, join) = (topics.clone().lazy(), JoinArgs::new(JoinType::Semi));
            let mut rows = rows.join(topics, [col(POSITION[0])], [col(POSITION[0])], join);
            if let Some(dropped) = &found.dropped {
                rows = plan::survivors(rows, plan::scan(&[dropped.to_path_buf()])?);
            }
            self.push(metric, rows, cells)?;
        }
        Ok(())
    }

    fn push(&self, metric: &Arc<Metric>, rows: LazyFrame, cells: &mut Sorter) -> Result<()> {
        let Some(binding) = metric.bindings.iter().find(|binding| binding.stream == self.stream.name) else {
            return Ok(());
        };
        let needs = Needs::of(std::iter::once((&**metric, binding)));
        // A slice's rows are bounded already.
        let mut fold = Fold::new(self.day, &needs, std::slice::from_ref(metric), u64::MAX);
        fold.take(&collect(needs.select(&self.stream, rows))?, &[])?;
        fold.cells()?.into_iter().try_for_each(|run| cells.push_run(run))
    }
}

/// Positions that gather.
#[derive(Default)]
struct Positions(Vec<String>, Vec<i32>, Vec<i64>);

impl Positions {
    fn push(&mut self, one: Delivery<'_>) {
        self.0.push(one.topic.to_owned());
        self.1.push(one.partition);
        self.2.push(one.offset);
    }

    /// A file of them, if there are any.
    fn file(self) -> Result<Option<TempPath>> {
        let Positions(topics, partitions, offsets) = self;
        let height = topics.len();
        if height == 0 {
            return Ok(None);
        }
        let [topic, partition, offset] = POSITION.map(PlSmallStr::from_static);
        let columns = vec![
            Column::new(topic, topics),
            Column::new(partition, partitions),
            Column::new(offset, offsets),
        ];
        positions_file(DataFrame::new(height, columns)?).map(Some)
    }
}

/// Writes positions of deliveries to a temporary file.
fn positions_file(mut positions: DataFrame) -> Result<TempPath> {
    let file = tempfile::Builder::new().prefix("tidemark-repeats-").tempfile();
    let file = file.context("a temporary file can't be made (TMPDIR)")?;
    let written = ParquetWriter::new(file.as_file()).finish(&mut positions).map_err(anyhow::Error::from);
    written.context("repeats can't be written (TMPDIR)")?;
    Ok(file.into_temp_path())
}

struct Found<'a> {
    seam: &'a Seam,
    horizon: i64,
    healed: Positions,
    dropped: Positions,
    repeats: Repeats,
}

impl Found<'_> {
    /// Takes deliveries, those of one identity together, in order.
    fn take(&mut self, contenders: &DataFrame) -> Result<()> {
        let missing = "the archive has a row without identity or position";
        let column = |name: &str| contenders.column(name);
        let (hi, lo) = (column(IDENTITY[0])?.u64()?, column(IDENTITY[1])?.u64()?);
        let (topics, partitions) = (column(POSITION[0])?.str()?, column(POSITION[1])?.i32()?);
        let offsets = column(POSITION[2])?.i64()?;
        let (mut identity, mut deliveries) = (None, Vec::new());
        for at in 0..contenders.height() {
            let this = hi.get(at).zip(lo.get(at)).context(missing)?;
            if identity.replace(this) != Some(this) {
                self.decide(&deliveries);
                deliveries.clear();
            }
            let (topic, partition) = (topics.get(at).context(missing)?, partitions.get(at).context(missing)?);
            deliveries.push(Delivery { topic, partition, offset: offsets.get(at).context(missing)? });
        }
        self.decide(&deliveries);
        Ok(())
    }

    fn decide(&mut self, deliveries: &[Delivery<'_>]) {
        let fates = fates(deliveries, self.seam, self.horizon, &mut self.repeats);
        for (one, fate) in deliveries.iter().zip(fates) {
            match fate {
                Fate::Survives => {}
                Fate::Healed => self.healed.push(*one),
                Fate::Dropped if self.seam.imports.contains(one.topic) => self.dropped.push(*one),
                Fate::Dropped => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deliveries by (topic, partition, offset), T0 at offset 100 of each partition, a horizon of 10; expected: of each
    /// `s`urvives, `d`ropped or `h`ealed, and the repeats within, beyond, across T, across partitions.
    #[track_caller]
    fn check(deliveries: &[(&str, i32, i64)], expected: &str, counted: [u64; 4]) {
        let below = [0, 1].map(|partition| (("t".to_owned(), partition), 100)).into();
        let seam = Seam { below, imports: ["import:new".to_owned()].into(), import_prefix: "import:" };
        let list = deliveries.iter().map(|&(topic, partition, offset)| Delivery { topic, partition, offset });
        let mut repeats = Repeats::default();
        let fates = fates(&list.collect::<Vec<_>>(), &seam, 10, &mut repeats);
        let letter = |fate: &Fate| match fate {
            Fate::Survives => 's',
            Fate::Dropped => 'd',
            Fate::Healed => 'h',
        };
        assert_eq!(fates.iter().map(letter).collect::<String>(), expected);
        let Repeats { within_horizon, beyond_horizon, across_tidemark, across_partitions } = repeats;
        assert_eq!([within_horizon, beyond_horizon, across_tidemark, across_partitions], counted);
    }

    #[test]
    fn what_a_reader_counted_and_the_batch_view_does_not_is_healed() {
        let t = |partition, offset| ("t", partition, offset);
        // All below: settled already.
        check(&[t(0, 5), t(0, 90)], "sd", [0, 0, 0, 0]);
        check(&[t(0, 5), t(1, 90)], "sd", [0, 0, 0, 0]);
        // Within the horizon nothing was counted, on whichever side of T0; a chain of repeats either.
        check(&[t(0, 95), t(0, 105)], "sd", [1, 0, 0, 0]);
        check(&[t(0, 101), t(0, 111), t(0, 121)], "sdd", [2, 0, 0, 0]);
        check(&[t(0, 94), t(0, 105)], "sh", [0, 0, 1, 0]);
        check(&[t(0, 101), t(0, 112)], "sh", [0, 1, 0, 0]);
        check(&[t(0, 101), t(0, 112), t(0, 120), t(0, 131)], "shdh", [1, 2, 0, 0]);
        // Another partition; where it is the lower one, the survivor below T0 gives way.
        check(&[t(0, 150), t(1, 150)], "sh", [0, 0, 0, 1]);
        check(&[t(0, 150), t(1, 50)], "sh", [0, 0, 0, 1]);
        check(&[t(0, 150), t(1, 50), t(1, 60), t(1, 65)], "shdd", [0, 0, 0, 1]);
        // An import that T1 takes in counts for neither, unless it survives; "import:" comes before "t".
        check(&[("import:new", 0, 3), ("import:new", 0, 7), t(0, 50)], "sdh", [0, 0, 0, 1]);
        check(&[("events", 0, 3), ("import:new", 0, 3)], "sd", [0, 0, 0, 0]);
        check(&[("import:old", 0, 3), t(0, 150)], "sh", [0, 0, 0, 1]);
    }
}
