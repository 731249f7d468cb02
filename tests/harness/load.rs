//! A steady stream of records beside a test.

use crate::stack::Stack;
use simulator::generate::{Generator, Options};
use simulator::replay::Sender;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Some thousand records a second until it is ended, with repeats, disorder and malformed ones.
pub struct Load {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<(Sender, usize)>,
}

impl Load {
    /// Starts it.
    pub fn start(stack: &Stack, seed: u64) -> Load {
        let (kafka, stop) = (stack.kafka.bootstrap(), CancellationToken::new());
        let stopped = stop.clone();
        let options = Options {
            records: 1_000_000,
            span: 40 * 86_400_000,
            users: 200,
            documents: 100,
            displays: 150,
            geos: 20,
            near_repeats: 0.05,
            disorder: 0.2,
            malformed: 0.001,
            ..Options::default()
        };
        let task = tokio::spawn(async move {
            let sender = Sender::connect(&kafka, &[], || 1_700_000_000_000).expect("a producer");
            let (mut generator, mut sent) = (Generator::new(options, seed), 0);
            while !stopped.is_cancelled() {
                for delivery in generator.by_ref().take(50) {
                    sender.send(&delivery).expect("sent");
                    sent += 1;
                }
                sender.poll();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (sender, sent)
        });
        Load { stop, task }
    }

    /// Ends it, and gives how many records were sent and acknowledged.
    pub async fn end(self) -> usize {
        self.stop.cancel();
        let (sender, sent) = self.task.await.expect("the load");
        sender.flush().expect("acknowledged");
        sent
    }
}
