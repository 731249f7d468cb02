//! Up to which ingest clock it is known how many partitions a topic has.
//!
//! A partition that is added later holds nothing that was appended before: so an answer that reaches no further than the
//! clock at which the topic was last looked at, and has read all the partitions found, lacks none. The clock is one
//! that was read before the look began; it is the broker's, so this holds to within the difference of its leaders'
//! clocks.

use crate::consume::Log;
use shared_model::time::Millis;
use shared_model::view::Looked;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often topics are looked at: `as_of` is as much behind at most twice.
const POLL: Duration = Duration::from_millis(500);

/// What one partition's owner knows of its topic. `I`: an instant of its process.
#[derive(Debug)]
pub(crate) struct Looking<I> {
    /// A clock that was reached, and when; the next look that begins later speaks for it.
    reached: Option<(I, Millis)>,
    known: Looked,
}

impl<I: PartialOrd + Copy> Looking<I> {
    /// Starts with a look that began when the partition's clock stood as given.
    pub(crate) fn new(known: Looked) -> Looking<I> {
        Looking { reached: None, known }
    }

    /// Takes in the newest look at the topic (when it began, and how many partitions there were) and, after it, where
    /// the partition's clock stands now. What is known by then.
    pub(crate) fn see(&mut self, look: Option<(I, i32)>, now: I, clock: Millis) -> Looked {
        if let (Some((asked, partitions)), Some((at, clock))) = (look, self.reached)
            && at < asked
        {
            self.known = Looked { partitions, clock };
            self.reached = None;
        }
        self.reached.get_or_insert((now, clock));
        self.known
    }
}

/// When the newest look at each topic began, and how many partitions there were.
pub(crate) type Looks = BTreeMap<Arc<str>, (Instant, i32)>;

/// Looks at all topics until the stop.
pub(crate) async fn follow(
    log: Log,
    topics: Vec<Arc<str>>,
    looks: watch::Sender<Looks>,
    stop: CancellationToken,
) {
    loop {
        let asked = Instant::now();
        // What goes wrong is told by those who read.
        if let Ok(found) = log.partitions(topics.clone()).await {
            let found = found.into_iter().map(|(topic, partitions)| (topic, (asked, partitions)));
            looks.send_modify(|looks| looks.extend(found));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_speaks_for_what_was_reached_before_it_began() {
        let known = |partitions, clock| Looked { partitions, clock };
        let mut looking = Looking::new(known(2, 50));
        assert_eq!(looking.see(None, 1, 100), known(2, 50));
        // It had begun before the clock was looked at.
        assert_eq!(looking.see(Some((0, 3)), 2, 200), known(2, 50));
        assert_eq!(looking.see(Some((5, 3)), 6, 300), known(3, 100));
        assert_eq!(looking.see(Some((5, 3)), 7, 400), known(3, 100));
        assert_eq!(looking.see(Some((8, 4)), 9, 500), known(4, 300));
    }
}
