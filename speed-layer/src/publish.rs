//! Publishes finished sliding values as plain keys, for readers with no code of ours.
//!
//! One worker does it, the holder of a lease. It keeps the windows of all published metrics, follows what the groups hold,
//! and writes what changes: of the newest window at most once a second and once a pane of event time, or, asked for every
//! pane, of each window in turn, while the changes of those before are still being sent, in their order. What has slid out is
//! deleted. After an error, or when the lease was lost or another one has written, it begins anew with what then stands.
//! Values here are for convenience: the serving layer never reads them.
//!
//! Publishing every pane, it goes as far as no partition that feeds a published metric is still to bring records, but late
//! ones; so that none is skipped, workers let no pane expire that is still to be published, and wait where they are far
//! ahead (see [`window::paced`]).
//!
//! Memory: see [`sliding`] and [`feed`]; and the texts of what four passes change, one that is sent, two that wait and one that
//! is made: of the first that is all that stands, beside the names that stood before.

mod changes;
mod feed;
mod lease;
mod merged;
mod ranked;
mod read;
mod sliding;
mod slots;
mod stock;
mod totals;
mod write;

use crate::redis::Redis;
use crate::{counters, live, redis, window};
use anyhow::{Context as _, bail};
use changes::Changes;
pub(crate) use feed::Feed;
use lease::Lease;
use read::{News, Reader};
use shared_model::catalog::Catalog;
use shared_model::causes::Causes;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::time::{Millis, show};
use shared_model::view::Mark;
use sliding::{SegmentId, Sliding};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use stock::Stock;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// The shortest time between two passes over one window, and between two windows where not all are published.
const PACE: Duration = Duration::from_secs(1);
/// How often it is looked whether there is another pane, where all are published.
const LOOK: Duration = Duration::from_millis(50);
/// How many passes wait to be sent: so Redis has work while one is made that takes longer than others, and the other way.
const WAITING: usize = 2;

/// All partitions' marks, by name.
type Marks = BTreeMap<String, Mark>;

/// A candidate for publishing.
pub(crate) struct Publisher {
    /// A connection of its own, for the lease and all that is sent: one comes behind the other.
    pub(crate) redis: Redis,
    /// The connection by which it reads: that doesn't wait behind what is sent.
    pub(crate) reads: Redis,
    /// What this worker stores.
    pub(crate) feed: Feed,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) token: String,
    /// Whether every pane is published.
    pub(crate) every_pane: bool,
    /// How far every pane is published, while this worker does it.
    pub(crate) published: watch::Sender<Option<Millis>>,
}

impl Publisher {
    /// Publishes while it holds the lease, until the stop; then lets the lease go.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (term, mut terms) = watch::channel(None);
        let (redis, token) = (self.redis.clone(), self.token.clone());
        let (done, published) = (CancellationToken::new(), self.published.subscribe());
        let lease = tokio::spawn(Lease { redis, token, term, published }.keep(done.clone()));
        let mut is_failing = false;
        while !stop.is_cancelled() {
            let ended = self.term(&mut terms, &mut is_failing, &stop).await;
            self.published.send_replace(None);
            if let Err(error) = ended {
                self.failed(&error, is_failing).await;
                is_failing = true;
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(PACE) => {}
                }
            }
        }
        done.cancel();
        if lease.await.is_err() {
            tracing::warn!("the publisher's lease broke off");
        }
    }

    /// Publishes from when the lease is held until it is lost, the stop, or an error. Nothing is sent any more after that.
    async fn term(
        &self,
        terms: &mut watch::Receiver<Option<u64>>,
        is_failing: &mut bool,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let begins = async { terms.wait_for(Option::is_some).await.map(|term| *term) };
        let term = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            term = begins => term,
        };
        let Ok(term) = term else {
            stop.cancelled().await;
            return Ok(());
        };
        let lost = async { terms.wait_for(|now| *now != term).await.is_ok() };
        let mut windows = Windows::new(self);
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            _ = lost => {
                tracing::info!("another may publish finished values now");
                Ok(())
            }
            ended = windows.publish(is_failing) => ended,
        };
        // What is sent tells how far it came: not after it was said that nobody does.
        windows.sending.shutdown().await;
        ended
    }

    /// Says why nothing is published, once, and mends what can be.
    async fn failed(&self, error: &anyhow::Error, again: bool) {
        let causes = Causes(error.as_ref()).to_string();
        if again {
            tracing::debug!("finished values are not published: {causes}");
        } else {
            tracing::warn!("finished values are not published: {causes}; it is tried again");
        }
        if redis::lacks_library(error)
            && let Err(error) = self.redis.load_library().await
        {
            tracing::debug!("the function library is not loaded: {}", redis::explain(&error));
        }
    }
}

/// What a pass changes.
struct Pass {
    changes: Changes,
    /// Live names of which nothing stands any more when that is done.
    stale: Vec<String>,
    /// Where its windows end.
    end: Millis,
    /// How many panes are published with it, where every one is.
    panes: Option<u64>,
}

/// Sends passes, one behind the other, until an error.
struct Sender {
    redis: Redis,
    passes: mpsc::Receiver<Pass>,
    /// How far every pane is published.
    published: watch::Sender<Option<Millis>>,
    /// Whether a pass was sent.
    sent: watch::Sender<bool>,
}

impl Sender {
    async fn run(mut self) -> anyhow::Result<()> {
        while let Some(Pass { changes, stale, end, panes }) = self.passes.recv().await {
            write::send(&self.redis, &changes).await.context("writing plain keys")?;
            stock::forget(&self.redis, &stale).await.context("forgetting what is published no more")?;
            if let Some(panes) = panes {
                metrics::counter!("tidemark_speed_published_panes_total").increment(panes);
                self.published.send_replace(Some(end));
            }
            self.sent.send_replace(true);
        }
        Ok(())
    }
}

/// The windows of all published metrics, during a term.
struct Windows<'a> {
    of: &'a Publisher,
    metrics: Vec<Arc<Metric>>,
    /// Whether every pane is published. Where no metric is, there is only to clear away what stands.
    every_pane: bool,
    pane: Millis,
    /// The width of the widest window that is published, and of the widest of all.
    widest: Millis,
    longest: Millis,
    /// By group number.
    groups: Vec<Sliding>,
    reader: Reader,
    /// What stood before, until the first pass.
    stock: Option<Stock>,
    /// What sends the passes that are made: it ends by an error alone.
    sending: JoinSet<anyhow::Result<()>>,
    passes: mpsc::Sender<Pass>,
    /// Whether it has sent one.
    sent: watch::Receiver<bool>,
    /// Where the windows end that were published last.
    end: Option<Millis>,
    /// The marks at the last pass, when that was, and whether they were the same at the one before.
    marks: Marks,
    passed: Instant,
    settled: bool,
    /// Where another left off that published every pane until just now.
    left_off: Option<Millis>,
    /// No pane had expired since the first records when all were first kept for us.
    from_the_first: bool,
    /// Whether others are held back from the start: not for who did nothing but fail before.
    holds: bool,
}

impl<'a> Windows<'a> {
    fn new(of: &'a Publisher) -> Windows<'a> {
        let (layout, metrics) = (of.catalog.layout, live::published_metrics(&of.catalog));
        let width = |metric: &Arc<Metric>| metric.window.map(|window| window.width);
        let every_pane = of.every_pane && !metrics.is_empty();
        // The newest window is to be published as it stands, not behind others.
        let (made, passes) = mpsc::channel(if every_pane { WAITING } else { 1 });
        let (done, sent) = watch::channel(false);
        let (redis, published) = (of.redis.clone(), of.published.clone());
        let mut sending = JoinSet::new();
        sending.spawn(Sender { redis, passes, published, sent: done }.run());
        Windows {
            of,
            every_pane,
            pane: layout.pane,
            widest: metrics.iter().filter_map(width).max().unwrap_or(0),
            longest: counters::longest_window(&of.catalog),
            groups: (0..layout.groups).map(|_| Sliding::new(&metrics, layout.pane)).collect(),
            reader: Reader::new(of.reads.clone(), of.feed.clone(), layout.groups),
            stock: None,
            sending,
            passes: made,
            sent,
            end: None,
            marks: Marks::new(),
            passed: Instant::now(),
            settled: false,
            left_off: None,
            from_the_first: false,
            holds: false,
            metrics,
        }
    }

    /// Publishes until an error.
    async fn publish(&mut self, is_failing: &mut bool) -> anyhow::Result<()> {
        if self.every_pane {
            self.holds = !*is_failing;
            let told = self.of.redis.published_to().await.context("where another left off")?;
            self.left_off = told.filter(|to| *to > Millis::MIN);
            // It goes on to be told meanwhile, so that no pane expires that was left to us.
            self.of.published.send_replace(self.left_off.filter(|_| self.holds));
        }
        let stock = Stock::take(&self.of.redis, &self.metrics).await;
        self.stock = Some(stock.context("taking stock of published keys")?);
        if !*is_failing {
            tracing::info!("publishing finished values from this worker");
        }
        let pane = Duration::from_millis(self.pane.unsigned_abs());
        let pace = (pane / 4).clamp(Duration::from_millis(100), PACE);
        let mut round = tokio::time::interval(if self.every_pane { LOOK } else { pace });
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            round.tick().await;
            if let Some(ended) = self.sending.try_join_next() {
                return ended.context("sending broke off")?;
            }
            *is_failing &= !*self.sent.borrow();
            match self.every_pane {
                true => self.every_pane().await?,
                false => self.newest().await?,
            }
        }
    }

    /// A round in which the newest window is published, if it is time.
    async fn newest(&mut self) -> anyhow::Result<()> {
        let marks = self.of.reads.marks().await.context("the marks")?;
        let Some(newest) = marks.values().filter_map(|mark| mark.trusted).max() else { return Ok(()) };
        let end = window::pane_after(newest, self.pane);
        if self.end.is_some_and(|known| end < known) {
            bail!("the newest event time has gone back");
        }
        // While one waits to be sent, no other is made: it is newer later.
        if self.passes.capacity() > 0 && self.is_due(&marks, end) {
            let passed = Instant::now();
            self.read(&marks, end, end).await?;
            self.pass(end).await?;
            self.passed(marks, passed);
        }
        Ok(())
    }

    /// A round in which each window is published that can be and wasn't yet.
    async fn every_pane(&mut self) -> anyhow::Result<()> {
        let is_told = self.of.published.borrow().is_some();
        if self.end.is_none() && self.holds && !is_told {
            // From now on no pane expires, until it is known where to begin.
            lease::tell(&self.of.redis, Millis::MIN).await.context("keeping panes from expiring")?;
        }
        let marks = self.of.reads.marks().await.context("the marks")?;
        let limit = self.publishable(&marks);
        if self.end.is_none() {
            self.begin(&marks, limit).await?;
        }
        let (Some(limit), Some(mut end), passed) = (limit, self.end, Instant::now()) else { return Ok(()) };
        if limit > end {
            self.read(&marks, end + self.pane, limit).await?;
            while end < limit {
                end = self.next(end, limit);
                self.pass(end).await?;
            }
            self.passed(marks, passed);
        } else if self.is_due(&marks, end) {
            self.read(&marks, end, end).await?;
            self.pass(end).await?;
            self.passed(marks, passed);
        }
        Ok(())
    }

    /// Begins where another left off; else at the first window all of whose panes are there. The marks are of after panes
    /// were held.
    async fn begin(&mut self, marks: &Marks, limit: Option<Millis>) -> anyhow::Result<()> {
        let of_ours = self.partitions(marks).map(|(_, mark)| mark).collect::<Vec<_>>();
        let newest = of_ours.iter().filter_map(|mark| mark.trusted).max();
        let oldest = window::oldest_pane(of_ours.into_iter(), self.pane, self.longest);
        let (Some(oldest), Some(newest)) = (oldest, newest) else {
            self.from_the_first = true;
            return Ok(());
        };
        let Some(limit) = limit else {
            // What others read isn't published: nobody is to wait.
            self.from_the_first = true;
            self.of.published.send_replace(Some(oldest + self.longest));
            return Ok(());
        };
        let before = match self.left_off {
            Some(left_off) => left_off.min(window::pane_after(newest, self.pane)),
            None if self.from_the_first => {
                self.read(marks, Millis::MIN, limit).await?;
                let first = self.groups.iter().filter_map(Sliding::earliest).min();
                first.map_or(limit, |first| first.min(limit))
            }
            None => oldest + self.widest - self.pane,
        };
        tracing::info!("publishing every pane, first the window that ends at {}", show(before + self.pane));
        self.end = Some(before);
        self.of.published.send_replace(self.end.filter(|_| self.holds));
        Ok(())
    }

    /// Our partitions, with their marks.
    fn partitions<'m>(&self, marks: &'m Marks) -> impl Iterator<Item = (TopicPartition, &'m Mark)> {
        let parsed = marks.iter().filter_map(|(name, mark)| Some((TopicPartition::parse(name)?, mark)));
        parsed.filter(move |(tp, _)| self.of.catalog.stream_of_topic(&tp.topic).is_some())
    }

    /// Whether a partition feeds a published metric.
    fn feeds(&self, tp: &TopicPartition) -> bool {
        self.of.catalog.stream_of_topic(&tp.topic).is_some_and(|stream| {
            self.metrics.iter().flat_map(|metric| &metric.bindings).any(|of| of.stream == stream.name)
        })
    }

    /// The end of the newest window that can be published.
    fn publishable(&self, marks: &Marks) -> Option<Millis> {
        let newest = self.partitions(marks).filter_map(|(_, mark)| mark.trusted).max()?;
        let feeding: Vec<&Mark> =
            self.partitions(marks).filter(|(tp, _)| self.feeds(tp)).map(|(_, mark)| mark).collect();
        window::publishable(feeding.into_iter(), newest, self.pane)
    }

    /// The end after `end` to publish next: those in between, where nothing changes, are published with it.
    fn next(&self, end: Millis, limit: Millis) -> Millis {
        let changes = self.groups.iter().filter_map(Sliding::next).min().unwrap_or(limit);
        let next = if self.stock.is_some() { end } else { changes.min(limit) };
        next.max(end + self.pane)
    }

    /// Whether a pass is due over the windows that end there: they are others, or something has moved since the last.
    fn is_due(&self, marks: &Marks, end: Millis) -> bool {
        let pane = Duration::from_millis(self.pane.unsigned_abs());
        let (since, moved, still) = (self.passed.elapsed(), self.end != Some(end), *marks == self.marks);
        let due = !(self.settled && still) && since >= pane.min(PACE) && (moved || since >= pane);
        due || self.end.is_none()
    }

    /// Takes in that passes were made by these marks.
    fn passed(&mut self, marks: Marks, at: Instant) {
        // One more pass after the last movement has seen everything.
        self.settled = marks == self.marks;
        (self.marks, self.passed) = (marks, at);
    }

    /// Reads what is new for windows that end from `first` to `last`.
    async fn read(&mut self, marks: &Marks, first: Millis, last: Millis) -> anyhow::Result<()> {
        let feeding: Vec<TopicPartition> =
            self.partitions(marks).map(|(tp, _)| tp).filter(|tp| self.feeds(tp)).collect();
        feeding.into_iter().for_each(|tp| self.reader.follow(tp));
        let (groups, from) = (&mut self.groups, first.saturating_sub(self.widest));
        let take_in = |News { group, source, gone, come }: News| -> anyhow::Result<()> {
            for (pane, seq) in gone {
                groups[group].remove(SegmentId { pane, source, seq });
            }
            for ((pane, seq), segment) in come {
                groups[group].add(SegmentId { pane, source, seq }, segment)?;
            }
            Ok(())
        };
        self.reader.read(from, last, take_in).await
    }

    /// Moves the windows on to an end, and hands on what changes, when there is room, to be sent.
    async fn pass(&mut self, end: Millis) -> anyhow::Result<()> {
        let mut changes = Changes::default();
        for group in &mut self.groups {
            group.advance(end, &mut changes)?;
            // Others have their turn.
            tokio::task::yield_now().await;
        }
        let stale = self.stock.take().map(|stock| stock.goes_with(&mut changes)).unwrap_or_default();
        // A pass over the same windows again, or over the first, is no more panes, or one.
        let panes = self.end.map_or(0, |before| (end - before) / self.pane);
        let panes = self.every_pane.then_some(panes.unsigned_abs());
        if self.passes.send(Pass { changes, stale, end, panes }).await.is_err() {
            // Nobody takes it: why, is told there.
            while let Some(ended) = self.sending.join_next().await {
                ended.context("sending broke off")??;
            }
            bail!("sending broke off");
        }
        self.end = Some(end);
        Ok(())
    }
}
