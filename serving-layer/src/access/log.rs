//! The log of who asked what: an entry for each request that came with a valid key and wasn't turned away for its rate.
//!
//! No request is answered for which there is no room left to log it: entries wait in memory, at most [`WAITING`] of them, for
//! a task that writes them to the database of keys, and while they are too many, requests are refused. An entry is made when
//! the request's future ends, however it does. What waits when the process is killed is lost; at a stop it is written first,
//! if the database takes it within [`AT_STOP`].

use super::{ANSWERED_WITHIN, Store, StoreError};
use crate::error::ServeError;
use shared_model::time::Millis;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// The most entries that wait, of at most some 8 KiB each.
pub const WAITING: usize = 10_000;
/// The most bytes of what was asked.
const ASKED: usize = 8_192;
/// The most entries that are written at once.
const AT_ONCE: usize = 1_000;
/// How long what waits may take to be written when the process is to stop.
const AT_STOP: Duration = Duration::from_secs(10);
/// The most bytes of a method; those of HTTP are shorter.
const METHOD: usize = 16;

/// One request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// When it came, ms since 1970.
    pub at: Millis,
    /// Its id, as in the answer's header.
    pub query_id: String,
    /// The key's id.
    pub key: String,
    /// The key's name.
    pub name: String,
    /// The HTTP method.
    pub method: String,
    /// The path as the router knows it.
    pub route: String,
    /// The body, or the path with its parameters; of what is put, both.
    pub asked: String,
    /// The status of the answer.
    pub status: u16,
    /// How long it took to begin the answer.
    pub took: Duration,
}

/// The status of a request that nobody waited for.
const LEFT: u16 = 499;

/// Takes entries.
#[derive(Clone)]
pub struct Log(mpsc::Sender<Entry>);

/// Writes entries.
pub struct Writing {
    entries: mpsc::Receiver<Entry>,
    kept: Option<Duration>,
    clock: fn() -> Millis,
}

impl Log {
    /// A log with room for so many entries that wait, and what writes it: entries older than `kept` are deleted.
    pub fn new(waiting: usize, kept: Option<Duration>, clock: fn() -> Millis) -> (Log, Writing) {
        let (sender, entries) = mpsc::channel(waiting);
        (Log(sender), Writing { entries, kept, clock })
    }

    /// Makes room for a request's entry.
    ///
    /// # Errors
    /// [`ServeError::Unavailable`] where there is none.
    pub(super) fn begin(&self, entry: Entry) -> Result<Pending, ServeError> {
        let room = self.0.clone().try_reserve_owned();
        let room = room.map_err(|_| {
            ServeError::Unavailable("the log of requests can't be written at the moment".to_owned())
        })?;
        Ok(Pending { room: Some(room), entry, begun: Some(Instant::now()) })
    }
}

/// An entry whose request is under way; by default none, where nothing is logged.
#[derive(Default)]
pub(crate) struct Pending {
    room: Option<mpsc::OwnedPermit<Entry>>,
    entry: Entry,
    begun: Option<Instant>,
}

/// The beginning of a text, without U+0000, which Postgres doesn't have; no more than that is held.
fn beginning(text: &str, most: usize) -> String {
    let mut beginning = text[..text.floor_char_boundary(most)].replace('\0', "\u{fffd}");
    beginning.truncate(beginning.floor_char_boundary(most));
    beginning.shrink_to_fit();
    beginning
}

impl Entry {
    /// With what was asked: by which method, on which route, and its text.
    pub(super) fn with(self, method: &str, route: &str, asked: &str) -> Entry {
        let [method, asked] = [beginning(method, METHOD), beginning(asked, ASKED)];
        Entry { method, route: route.to_owned(), asked, ..self }
    }
}

impl Pending {
    /// What was asked is known by now: a body.
    pub(super) fn asks(&mut self, body: &[u8]) {
        self.entry.asked.clear();
        self.puts(body);
    }

    /// What was put where is known by now: a body, beside the path.
    pub(super) fn puts(&mut self, body: &[u8]) {
        let asked = &mut self.entry.asked;
        if !asked.is_empty() {
            asked.push(' ');
        }
        asked.push_str(&String::from_utf8_lossy(&body[..body.len().min(ASKED)]));
        self.entry.asked = beginning(&self.entry.asked, ASKED);
    }

    /// The request was answered.
    pub(crate) fn end(mut self, status: u16) {
        self.entry.status = status;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(room) = self.room.take() {
            self.entry.took = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
            if self.entry.status == 0 {
                self.entry.status = LEFT;
            }
            room.send(std::mem::take(&mut self.entry));
        }
    }
}

impl Writing {
    /// The entry that waits longest.
    #[cfg(test)]
    pub(crate) fn next_waiting(&mut self) -> Option<Entry> {
        self.entries.try_recv().ok()
    }

    /// Writes what comes, until told to stop and all is written.
    pub(super) async fn run(mut self, store: Store, stop: CancellationToken) {
        let forgetting = self.kept.map(|kept| tokio::spawn(forget(store.clone(), kept, self.clock)));
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                taken = self.entries.recv_many(&mut batch, AT_ONCE) => if taken == 0 { break },
                () = stop.cancelled(), if !self.entries.is_closed() => {
                    self.entries.close();
                    continue;
                }
            }
            let given_up = async {
                stop.cancelled().await;
                tokio::time::sleep(AT_STOP).await;
            };
            let lost = tokio::select! {
                () = write(&store, &batch) => false,
                () = given_up => true,
            };
            if lost {
                self.entries.close();
                let mut entries = batch.len();
                while self.entries.recv().await.is_some() {
                    entries += 1;
                }
                tracing::error!(
                    entries,
                    "entries of the log of requests are lost: the database of keys doesn't take them"
                );
                break;
            }
            batch.clear();
        }
        forgetting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Writes entries, again and again where it fails.
async fn write(store: &Store, batch: &[Entry]) {
    let mut failed = false;
    loop {
        let written = timeout(ANSWERED_WITHIN, store.append(batch)).await.unwrap_or(Err(StoreError::slow()));
        match written {
            Ok(()) => return,
            Err(error) if !failed => {
                tracing::warn!(%error, "the log of requests can't be written: they will be refused soon");
            }
            Err(_) => {}
        }
        failed = true;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Deletes what is too old once an hour, beside the writing.
async fn forget(store: Store, kept: Duration, clock: fn() -> Millis) {
    const HOUR: Duration = Duration::from_secs(3_600);
    // The first time soon, but not before the schema is made.
    let mut hourly = tokio::time::interval_at(Instant::now() + Duration::from_secs(60), HOUR);
    loop {
        hourly.tick().await;
        match store.forget(clock() - kept.as_millis() as Millis).await {
            Ok(0) => {}
            Ok(entries) => tracing::info!(entries, "old entries of the log of requests are deleted"),
            Err(error) => tracing::warn!(%error, "old entries of the log of requests can't be deleted"),
        }
    }
}
