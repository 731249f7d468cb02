//! What many ask at once is asked together: whoever comes while a round is under way joins the next one.
//!
//! A round is asked only once nobody can join it any more, so that each is told what was so after it had come. One of those
//! who wait for a round asks for all of them; where that one leaves, another asks again. One that stays, and does something
//! else meanwhile, holds up all others: nobody may.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// How long a round waits for the one before it, which is longer under way only where the server stands still. A timer that
/// ends before all others wakes tokio's driver, by a system call: this one ends behind that of the next look at both views,
/// each second, and nearly always is dropped soon.
const WAIT: Duration = Duration::from_secs(1);

/// Rounds, one after the other, each of which is told a `T`.
pub(super) struct Rounds<T> {
    /// The one that can be joined.
    open: Mutex<Option<Arc<Round<T>>>>,
    turn: tokio::sync::Mutex<()>,
}

struct Round<T> {
    /// What is asked about; once the round is under way, nothing is added.
    keys: Mutex<BTreeSet<String>>,
    told: OnceCell<T>,
}

impl<T: Clone> Rounds<T> {
    /// None yet.
    pub(super) fn new() -> Rounds<T> {
        Rounds { open: Mutex::new(None), turn: tokio::sync::Mutex::new(()) }
    }

    /// What is told about some keys, and those of whoever else joins the round.
    pub(super) async fn join<F: Future<Output = T>>(
        &self,
        keys: impl IntoIterator<Item = String>,
        ask: impl FnOnce(BTreeSet<String>) -> F,
    ) -> T {
        let joined = self.joined(keys);
        let (rounds, round) = (self, &joined);
        let asked = || async move {
            let _turn = timeout(WAIT, rounds.turn.lock()).await;
            ask(rounds.closed(round)).await
        };
        joined.told.get_or_init(asked).await.clone()
    }

    /// The round that can be joined, and now asks about some keys, too.
    fn joined(&self, keys: impl IntoIterator<Item = String>) -> Arc<Round<T>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let round =
            open.get_or_insert_with(|| Arc::new(Round { keys: Mutex::default(), told: OnceCell::new() }));
        round.keys.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        round.clone()
    }

    /// What a round asks about, which nobody joins any more.
    fn closed(&self, round: &Arc<Round<T>>) -> BTreeSet<String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().is_some_and(|open| Arc::ptr_eq(open, round)) {
            *open = None;
        }
        round.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{join, poll};
    use tokio::sync::Semaphore;

    /// Answers to each question with its number, once there is a permit.
    struct Server {
        asked: Mutex<Vec<String>>,
        permits: Semaphore,
        rounds: Rounds<usize>,
    }

    impl Server {
        fn new() -> Server {
            Server { asked: Mutex::default(), permits: Semaphore::new(0), rounds: Rounds::new() }
        }

        async fn ask(&self, keys: BTreeSet<String>) -> usize {
            let keys: Vec<String> = keys.into_iter().collect();
            let number = {
                let mut asked = self.asked.lock().unwrap();
                asked.push(keys.join(" "));
                asked.len()
            };
            self.permits.acquire().await.unwrap().forget();
            number
        }

        async fn join(&self, key: &str) -> usize {
            self.rounds.join([key.to_owned()], |keys| self.ask(keys)).await
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn who_comes_while_a_round_is_under_way_is_told_by_the_next() {
        let server = Server::new();
        let [mut first, mut second, mut third] = ["a", "c", "b"].map(|key| Box::pin(server.join(key)));
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut third).is_pending());
        assert_eq!(server.asked(), ["a"]);
        server.permits.add_permits(2);
        assert_eq!(join!(first, second, third), (1, 2, 2));
        assert_eq!(server.asked(), ["a", "b c"]);
    }

    #[tokio::test]
    async fn where_who_asks_leaves_another_asks_again() {
        let server = Server::new();
        let [mut first, mut second, mut third] = ["a", "b", "c"].map(|key| Box::pin(server.join(key)));
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut third).is_pending());
        drop(first);
        assert!(poll!(&mut second).is_pending());
        assert_eq!(server.asked(), ["a", "b c"]);
        drop(second);
        server.permits.add_permits(1);
        assert_eq!(third.await, 3);
        assert_eq!(server.asked(), ["a", "b c", "b c"]);
    }

    #[tokio::test]
    async fn a_round_that_is_stuck_holds_up_the_next_for_a_while_only() {
        let server = Server::new();
        let [mut first, second] = ["a", "b"].map(|key| Box::pin(server.join(key)));
        assert!(poll!(&mut first).is_pending());
        assert!(timeout(WAIT * 2, second).await.is_err(), "an answer without a permit");
        assert_eq!(server.asked(), ["a", "b"]);
    }
}
