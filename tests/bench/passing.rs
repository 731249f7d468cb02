//! What is left in Redis when the windows of the records have passed and the tidemark too: as much as before they came.
//!
//! Panes go by event time, of which later records come; view cells with their epochs, which go once two runs of the batch
//! layer have moved the tidemark past them. At the start and in the end some other records are in the window.

use crate::footprint::slices;
use crate::{Args, END, HOUR, MB, Mode, START, answers, caught_up, epochs, fill, peer, workers};
use anyhow::ensure;
use local::layers::Layer;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use shared_model::time::DAY;
use std::time::Duration;
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;

const WINDOW: i64 = 300_000;
/// The answers of so many keys a metric are held against the records.
const SAMPLE: usize = 100;
/// What a group's header may take beside 5 % of the start: it names times and offsets that have more digits by then, in
/// Redis' next size of allocation.
const HEADER: f64 = 512.0;

/// Has the records come and pass; fails where more is left than was there before, and 5 %.
pub(crate) async fn measure(args: &Args, mode: Mode) -> anyhow::Result<()> {
    // Epochs that are soon over: runs are waited for.
    let catalog = mode.catalog(peer::USUAL.metrics, &args.pane);
    let catalog = catalog.replace("epoch = \"10m\"", "epoch = \"10s\"");
    let stack = peer::started(&args.layers, &catalog, args.partitions).await?;
    // What Redis keeps beside data and yet counts as such: histograms of each kind of command, and slow commands.
    for (name, value) in [("latency-tracking", "no"), ("slowlog-max-len", "0")] {
        let _: Vec<()> = stack.redis.ask_each(&["CONFIG", "SET", name, value]).await;
    }
    let workers = workers(&stack, args, &["--epoch-grace", "1s"]);
    pass(&stack, &workers, START - HOUR).await?;
    let start = dropped(&stack, START - HOUR).await;

    let (totals, _) = fill(&stack, args, "events", END).await?;
    caught_up(&stack, &workers).await?;
    answers::check(&stack, &totals, Some(SAMPLE)).await?;
    let full = stack.redis.dataset().await as f64;
    ensure!(full > 2.0 * start, "{full} bytes after the records, {start} before: they are too few to see");

    // Of another day: runs that take these in compute none of the records again.
    let later = START + DAY;
    send(&stack, later)?;
    caught_up(&stack, &workers).await?;
    panes_passed(&stack, later).await;
    let epochs = stack.redis.dataset().await as f64;
    pass(&stack, &workers, later + 2 * WINDOW).await?;
    let end = dropped(&stack, later + 2 * WINDOW).await;
    answers::check(&stack, &totals, Some(SAMPLE)).await?;
    let groups = args.partitions as f64 * f64::from(stack.catalog.layout.groups);
    println!(
        "{}: {:.2} MB in redis at the start, {:.1} with the records, {:.1} when their windows have passed (view cells, which \
         wait for a run), {:.2} after two runs: {:.3} times the start",
        mode.name(),
        start / MB,
        full / MB,
        epochs / MB,
        end / MB,
        end / start
    );
    let allowed = 1.05 * start + HEADER * groups;
    ensure!(
        end <= allowed,
        "{end} bytes are left, {start} were there at the start: at most {allowed:.0} may be"
    );
    for worker in workers {
        worker.stop().await;
    }
    Ok(())
}

/// Sends some records from an event time on, and has a run move the tidemark past them: twice, since epochs are kept down to
/// the tidemark before the last.
async fn pass(stack: &Stack, workers: &[Layer], at: i64) -> anyhow::Result<()> {
    for step in 0..2 {
        send(stack, at + step * 2_000)?;
        caught_up(stack, workers).await?;
        let ends = epochs::over(stack).await?;
        epochs::run(stack, &ends).await?;
    }
    caught_up(stack, workers).await
}

/// Sends as many records of each partition as it takes for a leap of event time to be believed, of keys that no other
/// records have.
fn send(stack: &Stack, at: i64) -> anyhow::Result<()> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", stack.kafka.bootstrap()).create()?;
    for partition in stack.probe.partitions()? {
        for time in (0..10).map(|n| at + 100 * n) {
            let record = format!(
                r#"{{"event_type":"view","uuid":"passing-{}","document_id":0,"display_id":0,"ad_id":1,"platform":1,"geo":"US","ts":{time}}}"#,
                partition.partition
            );
            let record: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to("events").partition(partition.partition).payload(record.as_bytes());
            producer.send(record).map_err(|(error, _)| error)?;
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

/// Waits until no pane is left from before the window that ends at an event time.
async fn panes_passed(stack: &Stack, at: i64) {
    wait_for("the panes before the window gone", async || {
        let (panes, _) = slices(stack).await.map_err(|error| format!("{error:#}"))?;
        let old = panes.iter().filter(|start| **start < at - WINDOW).count();
        if old == 0 { Ok(()) } else { Err(format!("{old} panes are left")) }
    })
    .await;
}

/// Waits until what the tidemark and the window have passed is gone; gives the bytes that are left.
async fn dropped(stack: &Stack, at: i64) -> f64 {
    panes_passed(stack, at).await;
    wait_for("the epochs below the tidemark before the last gone", async || {
        let (_, epochs) = slices(stack).await.map_err(|error| format!("{error:#}"))?;
        if epochs.len() <= 2 { Ok(()) } else { Err(format!("epochs {epochs:?}")) }
    })
    .await;
    stack.redis.dataset().await as f64
}
