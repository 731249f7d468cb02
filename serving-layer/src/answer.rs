//! Answers: one snapshot of the batch view, the tidemark in it, the realtime view from there on, then the rows.
//!
//! The order matters. The tidemark is read first, so that what the realtime view is asked for is exactly what the
//! snapshot's rows leave out; flips that come later change neither. Both parts go into one fold. All queries of a request
//! are answered from the same snapshot and the same groups, each read once: whatever they count, they count of the same
//! records.

mod realtime;

use crate::batch_view::{AtTidemark, BatchView, Lost, Opening, Scan, Snapshot, Versions, Wanted};
use crate::coverage::{self, Coverage};
use crate::error::ServeError;
use crate::finish::{Rows, finish};
use crate::merge::{Budget, Cell, Fold, FoldError};
use crate::query::{At, Limits, Query};
use crate::realtime_view::RealtimeView;
#[cfg(test)]
pub(crate) use realtime::cell;
use shared_model::catalog::Catalog;
use shared_model::metric::Metric;
use shared_model::tidemark::Tidemark;
use shared_model::time::{EventDay, Millis, show};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// What answers are made from.
#[derive(Clone)]
pub struct Views {
    /// The one definition.
    pub catalog: Arc<Catalog>,
    /// What lies below the tidemark.
    pub batch: Arc<dyn BatchView>,
    /// What lies above it.
    pub realtime: Arc<dyn RealtimeView>,
    /// What one request may cost.
    pub limits: Limits,
}

/// An answer, finished.
#[derive(Debug)]
pub struct Answer {
    /// The rows.
    pub rows: Rows,
    /// The tidemark that it is given at.
    pub at: AtTidemark,
    /// What came from the batch view.
    pub batch: BatchPart,
    /// What it reaches, and what it can't promise.
    pub coverage: Coverage,
}

/// What came from the batch view.
#[derive(Debug, Default)]
pub struct BatchPart {
    /// How many rows were merged.
    pub rows: u64,
    /// The runs that made them.
    pub runs: BTreeSet<i64>,
    /// Days whose rows were merged with new ones instead of being computed anew: repeats may count twice there.
    pub partial_days: BTreeSet<EventDay>,
}

/// A query under way: its fold, and behind it that of what it is compared with.
struct Asked<'q> {
    query: &'q Query,
    folds: Vec<Fold<'q>>,
    /// The versions of the batch view to read, for each fold and each of its value columns.
    versions: Vec<Versions>,
    coverage: Coverage,
    batch: BatchPart,
}

impl<'q> Asked<'q> {
    fn new(query: &'q Query, budget: &Arc<Budget>) -> Asked<'q> {
        let queries = std::iter::once(query).chain(query.compared.as_ref().map(|compared| &compared.query));
        let folds = queries.map(|query| Fold::new(query, budget.clone())).collect();
        let (coverage, batch) = (Coverage::default(), BatchPart::default());
        Asked { query, folds, versions: Vec::new(), coverage, batch }
    }

    fn metrics(&self) -> Vec<&'q Metric> {
        self.query.columns.iter().map(|column| &*column.metric).collect()
    }

    /// Notes that only the batch view is read for it.
    fn reach_of_batch(&mut self, catalog: &Catalog, tidemark: &Tidemark) {
        let metrics = self.metrics();
        self.coverage.reach_of_batch(catalog, &metrics, tidemark);
    }
}

/// Answers queries by merging both views, all at one tidemark: as far as they reach, or as of a run or a time.
///
/// # Errors
/// [`ServeError`] where a view can't be read at all or a limit is passed; what is merely not promised is in each answer's
/// coverage.
pub async fn answer(views: &Views, queries: &[Query], at: At) -> Result<Vec<Answer>, ServeError> {
    Begun::new(views, queries, at).await?.answers().await
}

/// Queries under way: the tidemark that they are answered at, and what of the batch view they will read, all of one snapshot.
pub struct Begun<'q> {
    views: &'q Views,
    at: At,
    snapshot: Box<dyn Snapshot>,
    found: AtTidemark,
    lost: Vec<Lost>,
    asked: Vec<Asked<'q>>,
    budget: Arc<Budget>,
}

impl<'q> Begun<'q> {
    /// Begins a snapshot. No row is read yet.
    ///
    /// # Errors
    /// [`ServeError`] where the batch view can't be read, has no tidemark yet, or no longer has what a run made.
    pub async fn new(views: &'q Views, queries: &'q [Query], at: At) -> Result<Begun<'q>, ServeError> {
        let mut snapshot = views.batch.snapshot(views.limits.time_limit).await?;
        let run = if let At::Run(run) = at { Some(run) } else { None };
        let budget = Arc::new(Budget::new(views.limits.max_cells));
        let mut asked: Vec<Asked<'_>> = queries.iter().map(|query| Asked::new(query, &budget)).collect();
        let folded = asked.iter().flat_map(|asked| asked.folds.iter().map(Fold::query));
        let wanted: Vec<Wanted<'_>> = folded.flat_map(wanted).collect();
        let opening = snapshot.open(run, &wanted).await?.ok_or_else(no_tidemark)?;
        let Opening { at: found, versions, lost } = opening;
        let mut versions = versions.into_iter();
        for asked in &mut asked {
            let columns: usize = asked.folds.iter().map(|fold| fold.query().columns.len()).sum();
            asked.versions = versions.by_ref().take(columns).collect();
        }
        Ok(Begun { views, at, snapshot, found, lost, asked, budget })
    }

    /// All that the answers as of a run are made of beside the queries: written out, equal texts are equal answers. `None`
    /// of other answers, which depend on the realtime view too.
    pub fn inputs(&self) -> Option<impl fmt::Debug> {
        let versions: Vec<&[Versions]> = self.asked.iter().map(|asked| &asked.versions[..]).collect();
        matches!(self.at, At::Run(_)).then_some((&self.found, versions, &self.lost))
    }

    /// Ends the snapshot without an answer.
    pub fn leave(self) {
        self.snapshot.close();
    }

    /// The answers.
    ///
    /// # Errors
    /// See [`answer`].
    pub async fn answers(self) -> Result<Vec<Answer>, ServeError> {
        let Begun { views, at, mut snapshot, found, lost, mut asked, budget } = self;
        let tidemark = &found.tidemark;
        match at {
            At::Now => realtime::add(views, tidemark, i64::MAX, &mut asked).await?,
            At::Time(time) => {
                let until = epoch_above(&views.catalog, &asked, tidemark, time)?;
                realtime::add(views, tidemark, until, &mut asked).await?;
                let boundary = views.catalog.layout.epoch.boundary(until);
                asked.iter_mut().for_each(|asked| asked.coverage.until(boundary));
            }
            At::Run(_) => asked.iter_mut().for_each(|asked| asked.reach_of_batch(&views.catalog, tidemark)),
        }
        let past = matches!(at, At::Run(_));
        for asked in &mut asked {
            let Asked { query, folds, versions, batch, coverage } = asked;
            let mut versions = std::mem::take(versions).into_iter();
            for fold in folds {
                for (column, versions) in (0..query.columns.len()).zip(&mut versions) {
                    add_batch(&mut *snapshot, column, versions, past, fold, batch, coverage).await?;
                }
            }
        }
        for asked in &mut asked {
            let metrics = asked.metrics();
            asked.coverage.lost(&views.catalog, &metrics, &lost);
        }
        snapshot.close();
        let finished = |Asked { query, folds, batch, coverage, .. }: Asked<'_>| {
            let rows = finish(query, folds, &budget).map_err(|error| over_limit(query, error))?;
            Ok(Answer { rows, at: found.clone(), batch, coverage })
        };
        asked.into_iter().map(finished).collect()
    }
}

/// What a query reads of the batch view, for each of its value columns.
fn wanted(query: &Query) -> impl Iterator<Item = Wanted<'_>> {
    let (span, _) = query.reads();
    query.columns.iter().map(move |column| {
        let one_key = query.pins_one_key(column);
        Wanted { metric: &column.metric, span, one_key }
    })
}

/// The epoch before which an answer as of a time ends: what was appended before its boundary is the same whenever it is
/// asked for, as long as the tidemark lies below.
fn epoch_above(
    catalog: &Catalog,
    asked: &[Asked<'_>],
    tidemark: &Tidemark,
    time: Millis,
) -> Result<i64, ServeError> {
    let until = catalog.layout.epoch.epoch(time);
    let metrics: Vec<&Metric> = asked.iter().flat_map(Asked::metrics).collect();
    let cuts = tidemark.cuts.iter().filter(|(tp, _)| coverage::feeds(catalog, &metrics, tp));
    let highest = cuts.map(|(_, cut)| cut.epoch).max().unwrap_or(0);
    if highest > until {
        let below = show(catalog.layout.epoch.boundary(highest));
        return Err(ServeError::AsOf(format!(
            "as_of {} lies below the tidemark by now, which has come to {below}: ask as of a later time, or of a run",
            show(time)
        )));
    }
    Ok(until)
}

/// Before the first run there is nothing to answer at.
pub(crate) fn no_tidemark() -> ServeError {
    let why = "there is no tidemark yet: the first run of the batch layer (batch-layer run) writes it";
    ServeError::Unavailable(why.to_owned())
}

/// Adds the rows of one value column's metric.
async fn add_batch(
    snapshot: &mut dyn Snapshot,
    place: usize,
    versions: Versions,
    past: bool,
    fold: &mut Fold<'_>,
    part: &mut BatchPart,
    coverage: &mut Coverage,
) -> Result<(), ServeError> {
    let query = fold.query();
    let column = &query.columns[place];
    let metric = &column.metric;
    let (span, buckets) = query.reads();
    for day in &versions.missing {
        let reason = format!(
            "metric {} is not computed yet, in the catalog's version, for days of the archive",
            metric.name
        );
        coverage.doubt_of(reason, day);
    }
    part.runs.extend(versions.days.values().map(|version| version.run));
    part.partial_days
        .extend(versions.days.iter().filter(|(_, version)| version.partial).map(|(day, _)| *day));
    let versions: Vec<_> = versions.days.into_values().filter(|version| version.table.is_some()).collect();
    if versions.is_empty() {
        return Ok(());
    }
    let one_key = query.pins_one_key(column);
    let (filters, condition) = (&query.filters, &query.condition);
    let scan = Scan { column, versions, past, span, one_key, buckets, filters, condition };
    let mut each = |cell: Result<&Cell, FoldError>| match cell.and_then(|cell| fold.add(place, cell)) {
        Ok(added) => {
            part.rows += u64::from(added);
            Ok(())
        }
        Err(FoldError::Undecodable(error)) => {
            coverage.doubt_of(format!("rows of the batch view can't be decoded: {error}"), &metric.name);
            Ok(())
        }
        Err(over) => Err(over),
    };
    snapshot.rows(&scan, &mut each).await?.map_err(|error| over_limit(query, error))
}

fn over_limit(query: &Query, error: FoldError) -> ServeError {
    let whose = match query.place.as_str() {
        "" => "the answer".to_owned(),
        place => format!("with {place} all answers together"),
    };
    ServeError::Limit(match error {
        FoldError::TooManyCells(limit) => format!(
            "{whose} would hold more than {limit} cells (groups by buckets, items of a top_k): filter more, group by \
             fewer columns, or ask for wider buckets or a shorter span"
        ),
        FoldError::Undecodable(error) => format!("stored states can't be decoded: {error}"),
    })
}
