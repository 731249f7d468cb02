//! The lease of the one worker that publishes, renewed by a task of its own, however long a pass takes.
//!
//! A *term* lasts as long as the lease is held without a break, and the connection by which it sends: where that broke, Redis
//! may have come back from an older copy, in which the lease still is ours and what was sent last isn't. The holder that
//! publishes every pane also tells how far it has come, for as long as it holds: workers don't go far beyond, and let no pane
//! expire that it still needs.

use crate::redis::{Redis, explain, is_of_the_connection};
use ::redis::{RedisError, RedisResult, cmd};
use shared_model::failpoint;
use shared_model::time::Millis;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

/// The key of the lease.
const LEASE: &str = "tm1:publisher";
/// How long a lease lasts without renewal.
const LASTS: Duration = Duration::from_secs(5);
const RENEWAL: Duration = Duration::from_secs(1);
/// How long it is believed how far a publisher has come that says no more: another takes over meanwhile.
const BELIEVED: Duration = Duration::from_secs(15);
/// The lease was ours and is renewed.
const HELD: u8 = 1;
/// The lease was nobody's and is ours now; or it was ours, and one who didn't know has sent something too.
const TAKEN: u8 = 2;

/// A candidate's lease.
pub(crate) struct Lease {
    pub(crate) redis: Redis,
    pub(crate) token: String,
    /// The number of the term, while it is held.
    pub(crate) term: watch::Sender<Option<u64>>,
    /// How far every pane is published, by this worker.
    pub(crate) published: watch::Receiver<Option<Millis>>,
}

impl Lease {
    /// Takes it when it is free and renews it until the stop; then lets it go.
    pub(crate) async fn keep(mut self, stop: CancellationToken) {
        let mut renewal = tokio::time::interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut terms, mut renewed) = (0, Instant::now());
        // Whether we may have sent something not knowing that it was another's; as yet, or now that nothing more is sent.
        let (mut sends, mut sent) = (false, false);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = renewal.tick() => {}
                Ok(()) = self.published.changed() => {
                    if renewed.elapsed() < LASTS {
                        self.tell().await;
                    }
                    continue;
                }
            }
            let (asked, holds) = (Instant::now(), self.term.borrow().is_some());
            match timeout(RENEWAL, self.ask(LASTS, sent)).await {
                Ok(Ok(HELD)) if holds => renewed = asked,
                // Nobody held it, or not for sure even we: we are new, were late, or Redis was emptied.
                Ok(Ok(HELD | TAKEN)) => {
                    renewed = asked;
                    terms += 1;
                    (sends, sent) = (true, false);
                    self.term.send_replace(Some(terms));
                }
                Ok(Ok(_)) => {
                    self.term.send_replace(None);
                    sent = std::mem::take(&mut sends);
                }
                failed => {
                    if let Ok(Err(error)) = failed {
                        self.failed("the publisher's lease is not renewed", &error);
                    }
                    if holds && renewed.elapsed() + RENEWAL >= LASTS {
                        self.term.send_replace(None);
                    }
                }
            }
            self.tell().await;
        }
        let holds = self.term.borrow().is_some();
        // Not let go of in vain: it runs out by itself too.
        if holds && let Err(error) = self.ask(Duration::from_millis(1), false).await {
            tracing::debug!("the publisher's lease was not released: {}", explain(&error));
        }
    }

    /// Takes or renews the lease: [`HELD`], [`TAKEN`], or another's, who is to begin anew where we have `sent` something.
    async fn ask(&self, lasts: Duration, sent: bool) -> RedisResult<u8> {
        let (millis, sent) = (lasts.as_millis() as u64, u8::from(sent));
        let mut lease = cmd("FCALL");
        lease.arg("tm1_lease").arg(1).arg(LEASE).arg(&self.token).arg(millis).arg(sent);
        failpoint::hit("speed.lease.before");
        let reply = self.redis.ask(&lease).await;
        failpoint::hit("speed.lease.after");
        reply
    }

    /// Tells how far every pane is published.
    async fn tell(&self) {
        let (holds, to) = (self.term.borrow().is_some(), *self.published.borrow());
        // The next renewal isn't to wait for an answer that doesn't come.
        if let Some(to) = to.filter(|_| holds)
            && let Ok(Err(error)) = timeout(RENEWAL, tell(&self.redis, to)).await
        {
            self.failed("how far every pane is published is not told", &error);
        }
    }

    /// Ends the term where the connection broke.
    fn failed(&self, what: &str, error: &RedisError) {
        tracing::debug!("{what}: {}", explain(error));
        if is_of_the_connection(error) {
            self.term.send_replace(None);
        }
    }
}

/// Tells how far every pane is published.
pub(crate) async fn tell(redis: &Redis, to: Millis) -> RedisResult<()> {
    redis.set_published_to(to, BELIEVED).await
}
