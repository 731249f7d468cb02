//! Who may ask for what: API keys, what each may read, how often, and the log of what they asked.
//!
//! Without a database of keys everything is served to everyone who can connect, which is refused on an address that others
//! can reach unless asked for. With one, nothing but `/healthz` and `/readyz` is answered without a key, and what a key may not
//! read doesn't exist for it: its requests are answered from a catalog that has its metrics alone, from which the parser, the
//! documents and every error are made. Whatever is wrong with a key itself, the answer is the same.
//!
//! Keys, the log and saved boards lie in a schema of their own with a role of its own; the views stay read-only for this layer.
//! Keys are looked at once a second and kept in memory, so that no request waits for that database, a revoked key ends within
//! [`LOOKED_AT`], and where they couldn't be looked at for [`TRUSTED_FOR`] nobody is let in.

pub mod command;
mod grants;
mod guard;
mod key;
mod log;
mod rate;
mod rows;
mod store;

pub use grants::{Grants, Scope};
pub(crate) use guard::{SUBSCRIBE, Scoped, guard};
pub use key::{Key, Token};
#[cfg(feature = "sql")]
pub(crate) use log::Pending;
pub use log::{Entry, Log, WAITING, Writing};
pub use rows::RowFilter;
pub use store::{Known, Store, StoreError};

use crate::error::ServeError;
use crate::service::Service;
use rate::Rate;
use shared_model::catalog::Catalog;
use shared_model::time::Millis;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How often the keys are looked at.
pub const LOOKED_AT: Duration = Duration::from_secs(1);
/// How long the database may take to answer.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// How long keys are believed that can't be looked at any more.
pub const TRUSTED_FOR: Duration = Duration::from_secs(60);

/// The keys as last seen, and the log.
#[derive(Clone)]
pub struct Access {
    seen: Arc<RwLock<Option<Seen>>>,
    log: Log,
}

/// The keys of one look.
struct Seen {
    at: Millis,
    version: Known,
    holders: HashMap<String, Arc<Holder>>,
}

/// A key, and what answers its requests.
pub(crate) struct Holder {
    key: Key,
    /// The service with the catalog of what it may read.
    service: Arc<Service>,
    rate: Option<Mutex<Rate>>,
    /// Its grants, written out.
    scope: String,
    /// When it is of no use any more: for what outlives the request that it came with.
    over: CancellationToken,
}

impl Access {
    /// No key is known yet.
    pub fn new(log: Log) -> Access {
        Access { seen: Arc::default(), log }
    }

    /// Takes the keys of a look at `now`; those that haven't changed keep what was counted of them.
    pub fn look(&self, version: Known, keys: Vec<Key>, service: &Service, now: Millis) {
        let keys = keys.into_iter().filter(|key| key.is_valid(now));
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let before = seen.take().map(|seen| seen.holders).unwrap_or_default();
        let mut services: HashMap<Vec<String>, Arc<Service>> = HashMap::new();
        for held in before.values() {
            services.insert(readable(&held.service.views.catalog), held.service.clone());
        }
        let holder = |key: Key| match before.get(&key.id).filter(|held| held.key == key) {
            Some(held) => (key.id.clone(), held.clone()),
            None => (key.id.clone(), Arc::new(Holder::new(key, service, &mut services))),
        };
        let holders: HashMap<_, _> = keys.map(holder).collect();
        let gone = before
            .values()
            .filter(|held| holders.get(&held.key.id).is_none_or(|now| !Arc::ptr_eq(now, held)));
        gone.for_each(|held| held.over.cancel());
        *seen = Some(Seen { at: now, version, holders });
    }

    /// Says that the keys are still those that were last seen.
    fn unchanged(&self, now: Millis) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        seen.iter_mut().for_each(|seen| seen.at = now);
    }

    /// Lets go of the keys that have expired, and of all where they couldn't be looked at for too long; what goes on with one
    /// ends.
    pub fn let_go(&self, now: Millis) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let Some(Seen { at, holders, .. }) = &mut *seen else { return };
        let trusted = is_trusted(*at, now);
        holders.retain(|_, held| {
            let kept = trusted && held.key.is_valid(now);
            if !kept {
                held.over.cancel();
            }
            kept
        });
        if !trusted {
            *seen = None;
        }
    }

    /// What was last seen of the keys.
    fn version(&self) -> Option<Known> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|seen| seen.version.clone())
    }

    /// Whether the keys are known, so that those who have one are let in.
    pub fn is_ready(&self, now: Millis) -> bool {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().is_some_and(|seen| is_trusted(seen.at, now))
    }

    /// The holder of a key.
    ///
    /// # Errors
    /// [`ServeError::NoKey`] whatever is wrong with it; [`ServeError::Unavailable`] while the keys aren't known.
    fn admit(&self, given: Option<&str>, now: Millis) -> Result<Arc<Holder>, ServeError> {
        let token = given.and_then(Token::parse);
        // Made whatever came, so that all takes as long.
        let hash = token.as_ref().map_or_else(key::hash_of_none, Token::hash);
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let trusted = seen.as_ref().filter(|seen| is_trusted(seen.at, now));
        let seen = trusted.ok_or_else(|| ServeError::Unavailable(UNKNOWN.to_owned()))?;
        let holder = token.as_ref().and_then(|token| seen.holders.get(&token.id));
        let is_its = key::equal(&hash, holder.map_or(&[0; 32], |holder| &holder.key.hash));
        let holder = holder.filter(|holder| is_its && holder.key.is_valid(now));
        holder.cloned().ok_or(ServeError::NoKey)
    }

    /// Looks at the keys until told to stop, then lets the log be written to its end.
    ///
    /// # Errors
    /// Where a task ended early.
    pub async fn run(
        self,
        store: Store,
        writing: Writing,
        service: Service,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let written = tokio::spawn(writing.run(store.clone(), stop.clone()));
        let mut ticks = tokio::time::interval(LOOKED_AT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let looked = tokio::select! {
                () = stop.cancelled() => break,
                looked = timeout(ANSWERED_WITHIN, self.look_again(&store, &service)) => looked,
            };
            let looked = looked.unwrap_or(Err(StoreError::slow()));
            self.let_go((service.clock)());
            match &looked {
                Err(error) if !failing => tracing::warn!(%error, "the keys can't be read"),
                Ok(()) if failing => tracing::info!("the keys can be read again"),
                _ => {}
            }
            failing = looked.is_err();
        }
        Ok(written.await?)
    }

    async fn look_again(&self, store: &Store, service: &Service) -> Result<(), StoreError> {
        if self.version().is_none() {
            store.prepare().await?;
        }
        let version = store.version().await?;
        if self.version().as_ref() == Some(&version) {
            self.unchanged((service.clock)());
            return Ok(());
        }
        // The keys may be newer than the version, and are then read once more.
        let mut keys = Vec::new();
        for key in store.keys().await? {
            match key {
                Ok(key) => keys.push(key),
                Err(error) => tracing::warn!(%error, "a key can't be read: nobody is let in by it"),
            }
        }
        if keys.is_empty() {
            tracing::warn!(
                "there is no key yet, so that nobody is let in: make one by `serving-layer keys create`"
            );
        }
        self.look(version, keys, service, (service.clock)());
        Ok(())
    }
}

/// Whether keys of a look are still believed; a clock that was put back by more doesn't make them so for longer.
fn is_trusted(looked: Millis, now: Millis) -> bool {
    (now - looked).abs() <= TRUSTED_FOR.as_millis() as Millis
}

const UNKNOWN: &str = "the keys can't be looked up at the moment: ask again later";

/// The names of a catalog's metrics.
fn readable(catalog: &Catalog) -> Vec<String> {
    catalog.metrics.iter().map(|metric| metric.name.clone()).collect()
}

impl Holder {
    /// `services` has those of other keys, by what these may read: their documents are made once for all.
    fn new(key: Key, service: &Service, services: &mut HashMap<Vec<String>, Arc<Service>>) -> Holder {
        let catalog = key.grants.restricted(&service.views.catalog);
        let scoped = services.entry(readable(&catalog));
        let service = scoped.or_insert_with(|| Arc::new(service.for_catalog(catalog))).clone();
        let rate = key.rate.map(|rate| Mutex::new(Rate::new(rate)));
        let scope = serde_json::to_string(&key.grants).unwrap_or_default();
        Holder { service, rate, scope, over: CancellationToken::new(), key }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// [`ServeError::Rate`] where it came too early.
    fn count(&self, now: Millis) -> Result<(), ServeError> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let counted = rate.lock().unwrap_or_else(PoisonError::into_inner).count(now);
        counted.map_err(|wait| ServeError::Rate { per_second: self.key.rate.unwrap_or_default(), wait })
    }
}
