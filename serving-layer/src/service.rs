//! The running service: one task that keeps what is known fresh, and the HTTP server beside it.
//!
//! It is handed its socket and its stop signal, and starts before its servers are there: until they come it answers
//! `503` and says why. Only a layout that differs from the catalog's ends it.

use crate::access::Access;
use crate::answer::Views;
use crate::batch_view::{Position, StoredLayout};
use crate::boards::Boards;
use crate::documents::Documents;
use crate::error::ServeError;
use crate::live::Known;
use crate::push::{Push, PushLimits};
use crate::{connection, router, telemetry};
use anyhow::{Context, bail};
use axum::http::HeaderValue;
use axum::serve::ListenerExt as _;
use shared_model::catalog::{Catalog, Layout};
use shared_model::time::Millis;
use std::future::Future;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How often what is known is refreshed.
const REFRESH: Duration = Duration::from_secs(1);
/// How long subscribers are waited for that are told to leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// A service, ready to run.
#[derive(Clone)]
pub struct Service {
    /// What answers are made from.
    pub views: Views,
    /// What time it is, ms since 1970.
    pub clock: fn() -> Millis,
    /// Who may ask; `None`: everyone who can connect.
    pub access: Option<Access>,
    /// Where saved boards are; `None`: none are kept.
    pub boards: Option<Arc<dyn Boards>>,
    /// The origins whose pages may ask.
    pub origins: Arc<[HeaderValue]>,
    /// Who is told of changes.
    pub push: Push,
    status: Arc<RwLock<Status>>,
    turns: Arc<Semaphore>,
    documents: Arc<OnceLock<Documents>>,
}

/// What was last seen of both views.
#[derive(Debug, Clone, Default)]
struct Status {
    known: Arc<Known>,
    because: Vec<String>,
}

impl Service {
    /// A service over two views, knowing nothing yet.
    pub fn new(views: Views, clock: fn() -> Millis) -> Service {
        let because = vec!["starting: neither view has been looked at yet".to_owned()];
        let status = Arc::new(RwLock::new(Status { because, ..Status::default() }));
        let turns = Arc::new(Semaphore::new(views.limits.at_once.max(1)));
        let push = Push::new(PushLimits::default(), views.limits.at_once);
        let (origins, documents) = (Arc::default(), Arc::default());
        Service { views, clock, access: None, boards: None, origins, push, status, turns, documents }
    }

    /// The same with other limits of push.
    pub fn with_push(self, limits: PushLimits) -> Service {
        let push = Push::new(limits, self.views.limits.at_once);
        Service { push, ..self }
    }

    /// The same service of another catalog, which has some of the metrics.
    pub fn for_catalog(&self, catalog: Catalog) -> Service {
        let views = Views { catalog: Arc::new(catalog), ..self.views.clone() };
        Service { views, documents: Arc::default(), ..self.clone() }
    }

    /// What is told of the catalog and the API: made when it is first asked for.
    pub fn documents(&self) -> &Documents {
        self.documents.get_or_init(|| Documents::new(&self.views.catalog, &self.views.limits))
    }

    /// Does work within the limits of time and of how much is done at once. Whoever stops waiting ends it.
    ///
    /// # Errors
    /// [`ServeError::Busy`], [`ServeError::TimeLimit`], and what the work fails with.
    pub async fn in_turn<T>(
        &self,
        work: impl Future<Output = Result<T, ServeError>>,
    ) -> Result<T, ServeError> {
        let limits = &self.views.limits;
        let turn = tokio::time::timeout(limits.patience, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(ServeError::Busy(limits.at_once)) };
        self.within_limit(work).await
    }

    /// Does work within the limit of time.
    ///
    /// # Errors
    /// [`ServeError::TimeLimit`], and what the work fails with.
    pub async fn within_limit<T>(
        &self,
        work: impl Future<Output = Result<T, ServeError>>,
    ) -> Result<T, ServeError> {
        let limit = self.views.limits.time_limit;
        tokio::time::timeout(limit, work).await.unwrap_or(Err(ServeError::TimeLimit(limit.as_secs())))
    }

    /// What was last known.
    pub fn known(&self) -> Arc<Known> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).known.clone()
    }

    /// Why the service is not ready; empty: it is.
    pub fn unready(&self) -> Vec<String> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).because.clone()
    }

    /// Looks at both views once, and whether the keys are known.
    ///
    /// # Errors
    /// Where the stored layout is not the catalog's: no answer can be right then.
    pub async fn refresh(&self) -> anyhow::Result<()> {
        let known = self.known();
        let (mut because, mut causes) = (Vec::new(), Vec::new());
        let position = match self.views.batch.position(known.position.as_ref()).await {
            Ok(Some(position)) => Some(position),
            Ok(None) => {
                because
                    .push("there is no tidemark yet: the first run of the batch layer writes it".to_owned());
                known.position.clone()
            }
            Err(error) => {
                because.push("the batch view (Postgres) can't be read".to_owned());
                causes.push(error.to_string());
                known.position.clone()
            }
        };
        if let Some(position) = &position {
            compare(&position.layout, &self.views.catalog.layout)?;
        }
        let marks = match self.views.realtime.marks().await {
            Ok(marks) => marks,
            Err(error) => {
                because.push("the realtime view (Redis) can't be read".to_owned());
                causes.push(error.to_string());
                known.marks.clone()
            }
        };
        if self.access.as_ref().is_some_and(|access| !access.is_ready((self.clock)())) {
            because.push("the keys (TIDEMARK_ACCESS) aren't known".to_owned());
        }
        if because != self.unready() {
            match because.is_empty() {
                true => tracing::info!("ready"),
                false => tracing::warn!(?because, ?causes, "not ready"),
            }
        }
        telemetry::seen(position.as_ref().map(|position: &Position| &position.current), because.is_empty());
        let status = Status { known: Arc::new(Known { position, marks }), because };
        *self.status.write().unwrap_or_else(PoisonError::into_inner) = status;
        Ok(())
    }
}

fn compare(stored: &StoredLayout, layout: &Layout) -> anyhow::Result<()> {
    let wanted =
        StoredLayout { epoch_ms: layout.epoch.0, groups: i64::from(layout.groups), pane_ms: layout.pane };
    if *stored != wanted {
        bail!(
            "the stored layout (tidemark.layout) is {stored:?}, the catalog's is {wanted:?}: it is fixed when the \
             first tidemark is written; give the catalog the stored values, or start with empty views"
        );
    }
    Ok(())
}

/// Serves until `shutdown`, then finishes what is under way.
///
/// # Errors
/// Where the socket fails, or the stored layout is not the catalog's.
pub async fn run(listener: TcpListener, service: Service, shutdown: CancellationToken) -> anyhow::Result<()> {
    telemetry::install();
    let address = listener.local_addr().context("reading the address that is listened on")?;
    tracing::info!(%address, "serving");
    let stop = shutdown.child_token();
    let refreshing = tokio::spawn(keep_fresh(service.clone(), stop.clone()));
    let push = service.push.clone();
    let stalled = push.limits().stalled;
    let listener = listener.tap_io(move |stream| connection::set_up(stream, stalled));
    let until = {
        let (stop, push) = (stop.clone(), push.clone());
        async move {
            stop.cancelled().await;
            // A stream of events has no end of its own.
            push.stop();
        }
    };
    // A client that takes its answer byte by byte doesn't keep the process.
    let grace = service.views.limits.time_limit + LEAVE_WITHIN;
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    let serving = axum::serve(listener, router::router(service)).with_graceful_shutdown(until);
    let served = tokio::select! {
        served = serving => served,
        () = too_late => {
            tracing::warn!("the process ends before all answers are sent");
            Ok(())
        }
    };
    stop.cancel();
    push.stop();
    if !push.left(LEAVE_WITHIN).await {
        tracing::warn!("the process ends before all subscribers have left");
    }
    refreshing.await.context("the refreshing task ended early")??;
    served.context("serving HTTP")
}

async fn keep_fresh(service: Service, stop: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            refreshed = service.refresh() => if let Err(error) = refreshed {
                stop.cancel();
                return Err(error);
            },
        }
        telemetry::upkeep();
    }
}

/// Reads a catalog's file.
///
/// # Errors
/// Where it can't be read, or has faults: all of them.
pub fn read_catalog(path: &std::path::Path) -> anyhow::Result<Catalog> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the catalog {}", path.display()))?;
    Catalog::from_toml(&text).map_err(|faults| anyhow::anyhow!("the catalog {}:\n{faults}", path.display()))
}
