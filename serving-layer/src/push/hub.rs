//! A hub: looks for all its subscribers, and keeps what was found for them.
//!
//! Whatever a look ends with, an error too, is told, and the next look begins. Should a hub's task end by itself, the hub is
//! gone with it, and its subscribers are told that there will be no more.

use super::history::{Found, History, Teller};
use super::look::Look;
use super::{Charge, Push};
use crate::access::Scoped;
use crate::error::ServeError;
use crate::telemetry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// After an error the next look waits for so many intervals.
const AFTER_ERROR: u32 = 10;

/// What a hub's task and its subscribers share.
pub(super) struct Hub {
    /// Of its look.
    pub(super) key: Arc<str>,
    pub(super) history: watch::Sender<History>,
    /// How many there are. Changes under the lock of all hubs.
    subscribers: watch::Sender<usize>,
    /// When there will be no more events.
    pub(super) over: CancellationToken,
    incarnation: u64,
}

impl Hub {
    pub(super) fn new(key: Arc<str>, over: CancellationToken) -> Hub {
        let incarnation = rand::random();
        let history = watch::Sender::new(History::new(incarnation));
        Hub { key, history, subscribers: watch::Sender::new(0), over, incarnation }
    }

    pub(super) fn is_idle(&self) -> bool {
        *self.subscribers.borrow() == 0
    }

    /// One subscriber more. The first gets what is found from now on.
    pub(super) fn join(&self) {
        if self.is_idle() {
            self.history.send_modify(History::doubt);
        }
        self.subscribers.send_modify(|count| *count += 1);
    }

    /// One less.
    pub(super) fn leave(&self) {
        self.subscribers.send_modify(|count| *count -= 1);
    }
}

/// The task of a hub.
pub(super) struct Keeper {
    push: Push,
    hub: Arc<Hub>,
    look: Look,
    scoped: Scoped,
    teller: Teller,
    charge: Charge,
}

impl Keeper {
    pub(super) fn new(push: Push, hub: Arc<Hub>, look: Look, scoped: Scoped) -> Keeper {
        let (teller, charge) = (Teller::new(hub.incarnation), Charge { push: push.clone(), bytes: 0 });
        Keeper { push, hub, look, scoped, teller, charge }
    }

    /// Looks while there are subscribers. Ends when there have been none for a while, or when all is over.
    pub(super) async fn keep(mut self) {
        let (over, linger) = (self.hub.over.clone(), self.push.limits().linger);
        let mut count = self.hub.subscribers.subscribe();
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                came = tokio::time::timeout(linger, becomes(&mut count, |count| count > 0)) => {
                    if came.is_err() && self.push.forget_idle(&self.hub) {
                        return;
                    }
                }
            }
            tokio::select! {
                () = over.cancelled() => return,
                // What is being looked for ends with whoever wanted it.
                () = becomes(&mut count, |count| count == 0) => {}
                () = self.look_on() => {}
            }
        }
    }

    /// Looks again and again, for as long as it is waited for.
    async fn look_on(&mut self) {
        let interval = self.push.limits().interval;
        loop {
            let begun = Instant::now();
            let found = self.look().await;
            // What takes long is done for half of the time at most.
            let pause = if found.is_err() { interval * AFTER_ERROR } else { interval };
            let next = begun + pause.max(begun.elapsed() * 2).max(Duration::from_millis(1));
            self.tell(found);
            tokio::time::sleep_until(next).await;
        }
    }

    /// Looks once, when it is this hub's turn.
    async fn look(&self) -> Result<Found, ServeError> {
        let shared = &self.push.0;
        let turns = match &self.look {
            Look::Live { .. } => &shared.live_looks,
            Look::Query(_) => &shared.query_looks,
        };
        // Whoever waits for it is told that it takes too long, as by plain HTTP.
        let limits = &self.scoped.service.views.limits;
        let turn = tokio::time::timeout(limits.time_limit, turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(ServeError::Busy(limits.at_once)) };
        self.look.taken(&self.scoped).await
    }

    /// Tells what was found, where that is news.
    fn tell(&mut self, found: Result<Found, ServeError>) {
        let found = found.and_then(|found| {
            let bytes = if let Found::Reply(text, _) = &found { text.len() } else { 0 };
            self.charge.set(bytes).map(|()| found)
        });
        let (found, error) = match found {
            Ok(found) => (found, None),
            Err(error) => {
                // To let go of what it has never fails.
                let _ = self.charge.set(0);
                (Found::Error(serde_json::to_string(&error.reply()).unwrap_or_default()), Some(error))
            }
        };
        telemetry::looked(error.is_none());
        match self.teller.tell(found) {
            Some(news) => {
                error.iter().for_each(ServeError::note);
                self.hub.history.send_modify(|history| history.add(news));
            }
            None => {
                self.hub.history.send_if_modified(History::confirm);
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        Push::remove(&mut self.push.hubs(), &self.hub);
        self.hub.over.cancel();
    }
}

/// Waits until a count is as is wanted.
async fn becomes(count: &mut watch::Receiver<usize>, wanted: impl Fn(usize) -> bool) {
    // It is never closed while its hub is there.
    let _ = count.wait_for(|count| wanted(*count)).await.map(drop);
}
