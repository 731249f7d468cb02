//! A steady stream of records beside a test.

use crate::events::town;
use crate::stack::Stack;
use simulator::generate::{Generator, Options};
use simulator::replay::Sender;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Records that are sent until it is ended.
pub struct Load {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<(Sender, usize)>,
}

impl Load {
    /// Starts one of some thousand a second, with repeats, disorder and malformed ones.
    pub fn start(stack: &Stack, seed: u64) -> Load {
        let span = 40 * 86_400_000;
        let options = Options { span, near_repeats: 0.05, malformed: 0.001, ..town(1_000_000) };
        Load::of(stack, Generator::new(options, seed), 1_000)
    }

    /// Starts one of what a generator gives, at so many records a second.
    pub fn of(stack: &Stack, mut generator: Generator, per_second: usize) -> Load {
        let (kafka, stop) = (stack.kafka.bootstrap(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let sender = Sender::connect(&kafka, &[], || 1_700_000_000_000).expect("a producer");
            let mut sent = 0;
            while !stopped.is_cancelled() {
                for _ in 0..per_second / 20 {
                    let delivery = generator.next().expect("a generator that outlasts the test");
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
