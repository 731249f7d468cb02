//! Whoever asks for the same part of a group at once waits for one read of it, and shares what that finds.
//!
//! What is shared was so after it was asked for: it was read since then, or stands behind the fence that was seen since then.

use super::Group;
use super::held::Held;
use super::kept::Place;
use super::rounds::Rounds;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// What came of a read; `None`: there is no such group.
type Found<E> = Result<Option<Arc<Group>>, E>;

/// The reads of each part of a group that was read so far: there are no more of them than such parts.
pub(super) struct Reads<E>(Mutex<HashMap<Place, Arc<Rounds<Found<E>>>>>);

impl<E: Clone> Reads<E> {
    /// None yet.
    pub(super) fn new() -> Reads<E> {
        Reads(Mutex::default())
    }

    /// A part of a group, behind a fence that was `seen`, if anyone looked. What is `held` is read on once for all who wait
    /// for it, and not at all where another has done so meanwhile: they all have seen its fence.
    pub(super) async fn join<F: Future<Output = Found<E>>>(
        &self,
        place: &Place,
        seen: Option<String>,
        held: impl FnOnce() -> Option<Arc<Held>>,
        read: impl FnOnce(Option<Arc<Held>>) -> F,
    ) -> Found<E> {
        let ask = |seen: BTreeSet<String>| async move {
            match held() {
                Some(held) if seen.iter().all(|fence| *fence == held.fence) => Ok(Some(held.group.clone())),
                held => read(held).await,
            }
        };
        // No group has an empty fence.
        self.of(place).join([seen.unwrap_or_default()], ask).await
    }

    fn of(&self, place: &Place) -> Arc<Rounds<Found<E>>> {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rounds) = reads.get(place) {
            return rounds.clone();
        }
        reads.entry(place.clone()).or_insert_with(|| Arc::new(Rounds::new())).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime_view::Want;
    use crate::realtime_view::held::{Taken, Told, header, take};
    use futures::future::join_all;
    use futures::poll;
    use proptest::prelude::*;
    use shared_model::view::Header;
    use std::convert::Infallible;
    use std::task::Poll;
    use tokio::sync::Semaphore;

    /// A group that is read once there is a permit.
    struct Store {
        /// Up to where each read comes, all further ones as far as the last.
        to: Mutex<Vec<i64>>,
        read: Mutex<usize>,
        permits: Semaphore,
        held: Mutex<Option<Arc<Held>>>,
        reads: Reads<Infallible>,
    }

    fn up_to(to: i64) -> Header {
        Header { to, ..header() }
    }

    impl Store {
        fn new(to: &[i64]) -> Store {
            Store {
                to: Mutex::new(to.to_vec()),
                read: Mutex::default(),
                permits: Semaphore::new(0),
                held: Mutex::default(),
                reads: Reads::new(),
            }
        }

        /// Up to where it is read for who has seen the fence behind which it is up to an offset, if any.
        async fn ask(&self, seen: Option<i64>) -> i64 {
            let place = ("a group".to_owned(), Want::Panes);
            let held = || self.held.lock().unwrap().clone();
            let seen = seen.map(|to| up_to(to).fence());
            let Ok(group) = self.reads.join(&place, seen, held, |_| self.read()).await;
            group.unwrap().header.as_ref().unwrap().to
        }

        async fn read(&self) -> Found<Infallible> {
            let to = {
                let (to, mut read) = (self.to.lock().unwrap(), self.read.lock().unwrap());
                *read += 1;
                to[to.len().min(*read) - 1]
            };
            self.permits.acquire().await.unwrap().forget();
            let told = Told { header: up_to(to).to_json().into_bytes(), fields: Vec::new() };
            let Taken::Held(held) = take(told, None) else { panic!("it can be read") };
            let group = held.group.clone();
            *self.held.lock().unwrap() = Some(Arc::new(held));
            Ok(Some(group))
        }
    }

    /// Those who ask while the first read is under way, each with what it has seen; how far each read reaches; and what each
    /// is told then.
    async fn check(seen: &[Option<i64>], reads: &[i64], expected: &[i64]) {
        let store = Store::new(reads);
        let mut asking: Vec<_> = seen.iter().map(|seen| Box::pin(store.ask(*seen))).collect();
        for asking in &mut asking {
            assert!(poll!(asking).is_pending());
        }
        assert_eq!(*store.read.lock().unwrap(), 1, "{seen:?}");
        store.permits.add_permits(reads.len());
        assert_eq!(join_all(asking).await, expected, "{seen:?}");
        assert_eq!(*store.read.lock().unwrap(), reads.len(), "{seen:?}");
    }

    #[tokio::test]
    async fn those_who_ask_at_once_share_what_was_so_after_each_had_asked() {
        check(&[Some(1), Some(1), Some(1), Some(1)], &[1], &[1, 1, 1, 1]).await;
        // It was written between the look and the read: what is held may be older than who asks.
        check(&[Some(1), Some(1), Some(1), Some(1)], &[2, 2], &[2, 2, 2, 2]).await;
        check(&[Some(1), Some(1), Some(2)], &[1, 2], &[1, 2, 2]).await;
        // Who has seen nothing is told what was read since.
        check(&[None, None, None, None], &[1, 2], &[1, 2, 2, 2]).await;
        check(&[Some(1), None], &[1, 1], &[1, 1]).await;
    }

    /// What happens while some ask.
    #[derive(Debug, Clone)]
    enum Event {
        /// The group is written.
        Write,
        /// One more asks, who has looked or not.
        Ask { looked: bool },
        /// A read is answered.
        Answer,
        /// One of them leaves.
        Leave(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => Just(Event::Write),
            4 => any::<bool>().prop_map(|looked| Event::Ask { looked }),
            3 => Just(Event::Answer),
            1 => any::<usize>().prop_map(Event::Leave),
        ]
    }

    /// Each who asks and stays is told, and nothing that is older than its question.
    async fn live_through(events: Vec<Event>) {
        let store = Store::new(&[1]);
        let mut asking = Vec::new();
        for event in events {
            match event {
                Event::Write => store.to.lock().unwrap()[0] += 1,
                Event::Ask { looked } => {
                    let now = store.to.lock().unwrap()[0];
                    asking.push((now, Box::pin(store.ask(looked.then_some(now)))));
                }
                Event::Answer => store.permits.add_permits(1),
                Event::Leave(_) if asking.is_empty() => {}
                Event::Leave(who) => drop(asking.swap_remove(who % asking.len())),
            }
            let mut waiting = Vec::new();
            for (asked, mut told) in asking {
                match poll!(&mut told) {
                    Poll::Ready(to) => assert!(to >= asked, "up to {to}, asked at {asked}"),
                    Poll::Pending => waiting.push((asked, told)),
                }
            }
            asking = waiting;
        }
        store.permits.add_permits(asking.len());
        let (asked, told): (Vec<i64>, Vec<_>) = asking.into_iter().unzip();
        for (to, asked) in join_all(told).await.into_iter().zip(asked) {
            assert!(to >= asked, "up to {to}, asked at {asked}");
        }
    }

    proptest! {
        #[test]
        fn nobody_is_told_what_is_older_than_its_question(events in proptest::collection::vec(event(), 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            // No task is made to give way here, which would look as if it waited.
            runtime.block_on(tokio::task::coop::unconstrained(live_through(events)));
        }
    }
}
