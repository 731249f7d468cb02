//! Push: whoever subscribes to a request is given its reply, and then each change of it.
//!
//! All subscribers of equal requests share one *hub*, which asks for them, by the same calls as plain HTTP, at most once an
//! interval, and writes each change once. What waits for a subscriber is a number, the version that it has; what it hasn't
//! is in the hub's history, or it is given the newest version whole. So a slow client costs what a fast one does, and holds
//! nobody up.
//!
//! A hub lives a while longer than its subscribers, so that who comes back can go on from the version that it has. While it
//! has none, it doesn't look. The map of hubs and the count of each one's subscribers change under one lock: nobody joins a
//! hub that has gone.

mod history;
mod hub;
mod look;
mod message;
mod patch;
pub(crate) mod socket;
pub(crate) mod sse;

use crate::access::Scoped;
use crate::error::ServeError;
use crate::telemetry;
use history::{Event, History, Kind};
use hub::{Hub, Keeper};
use look::Look;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// How many live values are looked at at once.
const LIVE_LOOKS: usize = 32;
/// Of the requests for queries that may be answered at once, one in so many may be a hub's.
const SHARE_OF_TURNS: usize = 4;

/// What push may cost, and how fast it is.
#[derive(Debug, Clone)]
pub struct PushLimits {
    /// From one look of a hub to the next, at least.
    pub interval: Duration,
    /// The most subscriptions, and connections that can have some, together.
    pub subscribers: usize,
    /// The most different requests that are subscribed to.
    pub hubs: usize,
    /// The most bytes of all their replies together.
    pub memory: usize,
    /// After so much silence there is a sign of life.
    pub heartbeat: Duration,
    /// How long a hub waits for subscribers to come back.
    pub linger: Duration,
    /// How long a connection may take nothing of what is there for it.
    pub stalled: Duration,
}

impl Default for PushLimits {
    fn default() -> PushLimits {
        PushLimits {
            interval: Duration::from_millis(100),
            subscribers: 10_000,
            hubs: 1_000,
            memory: 64 << 20,
            heartbeat: Duration::from_secs(15),
            linger: Duration::from_secs(30),
            stalled: Duration::from_secs(30),
        }
    }
}

/// All hubs of a service.
#[derive(Clone)]
pub struct Push(Arc<Shared>);

struct Shared {
    limits: PushLimits,
    hubs: Mutex<HashMap<Arc<str>, Arc<Hub>>>,
    places: Arc<Semaphore>,
    live_looks: Semaphore,
    query_looks: Semaphore,
    /// Bytes of replies that hubs hold.
    held: AtomicUsize,
    stop: CancellationToken,
}

impl Push {
    /// No hubs yet, for a service that answers so many requests for queries at once.
    pub fn new(limits: PushLimits, at_once: usize) -> Push {
        Push(Arc::new(Shared {
            hubs: Mutex::default(),
            places: Arc::new(Semaphore::new(limits.subscribers.min(Semaphore::MAX_PERMITS))),
            live_looks: Semaphore::new(LIVE_LOOKS),
            query_looks: Semaphore::new((at_once / SHARE_OF_TURNS).max(1)),
            held: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            limits,
        }))
    }

    /// What it may cost.
    pub fn limits(&self) -> &PushLimits {
        &self.0.limits
    }

    /// Ends all subscriptions, for good.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// When that is.
    fn stopped(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Waits until whoever had a place has left, for so long; whether all have.
    pub async fn left(&self, within: Duration) -> bool {
        let all = u32::try_from(self.0.limits.subscribers).unwrap_or(u32::MAX);
        tokio::time::timeout(within, self.0.places.acquire_many(all)).await.is_ok()
    }

    /// How many hubs there are.
    #[cfg(test)]
    pub(crate) fn hub_count(&self) -> usize {
        self.hubs().len()
    }

    /// A place for a subscription, or for a connection that can have some.
    ///
    /// # Errors
    /// [`ServeError::Subscriptions`] where all are taken.
    fn place(&self) -> Result<Place, ServeError> {
        let limit = self.0.limits.subscribers;
        let taken = self.0.places.clone().try_acquire_owned();
        let taken = taken.map_err(|_| ServeError::Subscriptions {
            what: "subscriptions and connections for them",
            limit,
            option: "--max-subscribers",
        })?;
        telemetry::subscribers(1.0);
        Ok(Place { _taken: taken })
    }

    /// Subscribes, from the version on that the client has, where it is known.
    ///
    /// # Errors
    /// [`ServeError::Subscriptions`] where there are as many as may be.
    fn subscribe(scoped: &Scoped, look: Look, last: Option<&str>) -> Result<Subscription, ServeError> {
        let push = scoped.service.push.clone();
        let place = push.place()?;
        let hub = push.join(scoped, look)?;
        let news = hub.history.subscribe();
        let at = last.and_then(|last| news.borrow().number_of(last));
        Ok(Subscription { scoped: scoped.clone(), push, hub, news, at, _place: place })
    }

    fn hubs(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Hub>>> {
        self.0.hubs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the hub of a look, which is made where there is none.
    fn join(&self, scoped: &Scoped, look: Look) -> Result<Arc<Hub>, ServeError> {
        // Who may see the same is answered the same.
        let key: Arc<str> = format!("{} {}", scoped.scope(), look.key()).into();
        let mut hubs = self.hubs();
        if let Some(hub) = hubs.get(&key) {
            hub.join();
            return Ok(hub.clone());
        }
        self.make_room(&mut hubs)?;
        let hub = Arc::new(Hub::new(key.clone(), self.0.stop.child_token()));
        hub.join();
        hubs.insert(key, hub.clone());
        telemetry::hubs(hubs.len());
        // A task that isn't taken any more is dropped at once, and takes this lock.
        drop(hubs);
        tokio::spawn(Keeper::new(self.clone(), hub.clone(), look, scoped.clone()).keep());
        Ok(hub)
    }

    /// Lets go of a hub that nobody is subscribed to, where there are as many as may be.
    fn make_room(&self, hubs: &mut HashMap<Arc<str>, Arc<Hub>>) -> Result<(), ServeError> {
        let limit = self.0.limits.hubs;
        if hubs.len() < limit {
            return Ok(());
        }
        let idle = hubs.values().find(|hub| hub.is_idle()).cloned();
        let idle = idle.ok_or(ServeError::Subscriptions {
            what: "different requests that are subscribed to",
            limit,
            option: "--max-hubs",
        })?;
        hubs.remove(&idle.key);
        idle.over.cancel();
        Ok(())
    }

    /// Lets go of a hub, if nobody is subscribed to it by now; whether it has gone.
    fn forget_idle(&self, hub: &Arc<Hub>) -> bool {
        let mut hubs = self.hubs();
        let idle = hub.is_idle();
        if idle {
            Push::remove(&mut hubs, hub);
        }
        idle
    }

    /// Removes a hub, and not another one that has come in its place.
    fn remove(hubs: &mut HashMap<Arc<str>, Arc<Hub>>, hub: &Arc<Hub>) {
        if hubs.get(&hub.key).is_some_and(|there| Arc::ptr_eq(there, hub)) {
            hubs.remove(&hub.key);
            telemetry::hubs(hubs.len());
        }
    }
}

/// A place among those that may subscribe; given back when dropped.
#[derive(Debug)]
struct Place {
    _taken: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        telemetry::subscribers(-1.0);
    }
}

/// What one client is told of one hub, for as long as its key is of use.
struct Subscription {
    scoped: Scoped,
    push: Push,
    hub: Arc<Hub>,
    news: watch::Receiver<History>,
    /// The number of the version that the client has.
    at: Option<u64>,
    _place: Place,
}

impl Subscription {
    /// The next event; `None`: there will be no more. Nothing is lost where it is no longer waited for.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.hub.over.is_cancelled() || self.scoped.has_ended() {
                return None;
            }
            let event = self.news.borrow_and_update().after(self.at);
            if let Some(event) = event {
                let number = event.version.number;
                telemetry::pushed(event.kind.name());
                if event.kind != Kind::Change && self.at.is_some_and(|at| number > at + 1) {
                    telemetry::slow_subscriber();
                }
                self.at = Some(number);
                return Some(event);
            }
            tokio::select! {
                () = self.hub.over.cancelled() => return None,
                () = self.scoped.ended() => return None,
                changed = self.news.changed() => changed.ok()?,
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _hubs = self.push.hubs();
        self.hub.leave();
    }
}

/// What of the memory for all replies one hub's takes; given back when dropped.
struct Charge {
    push: Push,
    bytes: usize,
}

impl Charge {
    /// Takes so much from now on; where there isn't room for it, all is as before.
    ///
    /// # Errors
    /// [`ServeError::Limit`] where all together would be too much.
    fn set(&mut self, bytes: usize) -> Result<(), ServeError> {
        let Shared { held, limits, .. } = &*self.push.0;
        let changed = |all: usize| {
            let all = all - self.bytes + bytes;
            (bytes <= self.bytes || all <= limits.memory).then_some(all)
        };
        if held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed).is_err() {
            return Err(ServeError::Limit(format!(
                "all that is pushed would be more than {} MiB of replies: ask for less at once, or raise --push-memory",
                limits.memory >> 20
            )));
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.push.0.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
