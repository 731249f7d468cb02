//! Boards in memory: the reference that tests hold the database against.

use super::{About, BoardError, Boards, Draft, MAX_LISTED, admit};
use futures::future::{BoxFuture, ready};
use shared_model::time::Millis;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// By owner and name.
type Held = BTreeMap<(String, String), (About, String)>;

/// The boards; out of reach after [`MemoryBoards::fail`].
#[derive(Debug)]
pub struct MemoryBoards(Mutex<Option<Held>>);

impl Default for MemoryBoards {
    fn default() -> MemoryBoards {
        MemoryBoards(Mutex::new(Some(Held::new())))
    }
}

impl MemoryBoards {
    /// Puts them out of reach.
    pub fn fail(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn with<'a, T: Send + 'a>(
        &self,
        work: impl FnOnce(&mut Held) -> Result<T, BoardError>,
    ) -> BoxFuture<'a, Result<T, BoardError>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unreachable = || BoardError::Unavailable("they were put out of reach".to_owned());
        Box::pin(ready(held.as_mut().ok_or_else(unreachable).and_then(work)))
    }
}

impl Boards for MemoryBoards {
    fn list<'a>(&'a self, owner: &'a str) -> BoxFuture<'a, Result<Vec<About>, BoardError>> {
        self.with(|held| {
            let mut meant: BTreeMap<&str, &About> = BTreeMap::new();
            for (about, _) in held.values().filter(|(about, _)| about.shared || about.owner == owner) {
                let named = meant.entry(&about.name).or_insert(about);
                if about.owner == owner {
                    *named = about;
                }
            }
            Ok(meant.into_values().take(MAX_LISTED).cloned().collect())
        })
    }

    fn read<'a>(
        &'a self,
        owner: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<(About, String)>, BoardError>> {
        self.with(|held| {
            let own = held.get(&(owner.to_owned(), name.to_owned()));
            let shared = || held.values().find(|(about, _)| about.shared && about.name == name);
            Ok(own.or_else(shared).cloned())
        })
    }

    fn write<'a>(
        &'a self,
        draft: Draft<'a>,
        read: Option<i64>,
        now: Millis,
    ) -> BoxFuture<'a, Result<About, BoardError>> {
        self.with(|held| {
            let (owner, name) = (draft.owner.to_owned(), draft.name.to_owned());
            let there = held.get(&(owner.clone(), name.clone())).map(|(about, _)| about.version);
            admit(there, read, held.values().filter(|(about, _)| about.owner == owner).count())?;
            let is_other = |about: &About| about.shared && about.name == name && about.owner != owner;
            if draft.shared && held.values().any(|(about, _)| is_other(about)) {
                return Err(BoardError::NameTaken(name));
            }
            let version = there.unwrap_or_default() + 1;
            let about = About { owner, name, shared: draft.shared, version, updated: now };
            let at = (about.owner.clone(), about.name.clone());
            held.insert(at, (about.clone(), draft.board.to_owned()));
            Ok(about)
        })
    }

    fn delete<'a>(
        &'a self,
        owner: &'a str,
        name: &'a str,
        read: i64,
    ) -> BoxFuture<'a, Result<(), BoardError>> {
        self.with(|held| {
            let at = (owner.to_owned(), name.to_owned());
            let there = held.get(&at).map(|(about, _)| about.version);
            let there = there.ok_or_else(|| BoardError::Unknown(name.to_owned()))?;
            admit(Some(there), Some(read), 0)?;
            held.remove(&at);
            Ok(())
        })
    }
}
