//! Faults of the log on a real broker: open and aborted transactions, partitions that are added, topics that are
//! deleted and made anew, a log whose head is gone, a broker that is away.
//!
//! Whatever happens to the log is noticed: an answer that says it is complete equals the oracle of what the log held.

use local::compare;
use local::oracle::Oracle;
use local::probe::Serving;
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use simulator::generate::{Delivery, Generator, Options};
use std::time::Duration;
use tidemark_tests::events::{total, town};
use tidemark_tests::kafka;
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;
use tidemark_tests::watch::Watch;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const SOON: Duration = Duration::from_secs(20);

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    let options = Options { near_repeats: 0.03, late: 0.01, malformed: 0.005, ..town(records) };
    Generator::new(options, seed).collect()
}

/// A producer in a transaction that has been begun.
fn begun(stack: &Stack, id: &str) -> BaseProducer {
    let producer = kafka::producer(stack, &[("transactional.id", id)]);
    producer.init_transactions(SOON).expect("a transactional id");
    producer.begin_transaction().expect("a transaction");
    producer
}

/// Page views of which none is a repeat, so that they may lie in a partition that isn't their key's.
fn in_one_partition(records: u64, seed: u64) -> Vec<Delivery> {
    let options =
        Options { records, near_repeats: 0.0, far_repeats: 0.0, malformed: 0.0, ..Options::default() };
    Generator::new(options, seed).filter(|delivery| delivery.stream == "page_views").collect()
}

fn write(producer: &BaseProducer, deliveries: &[Delivery]) {
    for delivery in deliveries {
        kafka::put(producer, delivery.stream, 0, &delivery.key, &delivery.value);
    }
    producer.flush(SOON).expect("acknowledged");
}

/// All reasons that answers give for not being complete.
async fn doubts(stack: &Stack, serving: &Serving, oracle: &Oracle) -> String {
    let grain = |name: &str| stack.catalog.metric(name).expect("a shipped metric").grain.width();
    let compared = compare::all(serving, oracle, grain).await.expect("answers");
    compared.iter().flat_map(|metric| metric.incomplete_because.clone()).collect::<Vec<_>>().join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_transaction_count_when_it_is_committed_and_never_when_it_is_aborted() {
    let stack = Stack::start(LAYERS, 2).await;
    let (_speed, _process, serving) = stack.layers().await;
    let all = deliveries(4_000, 21);
    let (before, after) = all.split_at(2_000);
    stack.send(before);
    let transaction = begun(&stack, "open");
    write(&transaction, &in_one_partition(1_000, 24));
    // Appended behind the open transaction: nobody may read on to here before it ends.
    let (hidden, after) = after.split_at(1_000);
    stack.send(hidden);
    // Once an epoch has ended that the others can close and this one can't.
    wait_for("the partition being held and named", async || {
        stack.batch(&["run", "--patience", "2s"]).await;
        let held = stack.tidemark().await.held;
        let named = held.values().any(|reason| reason.contains("open transaction"));
        if named { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
    stack.becomes(&serving, &stack.oracle(), "answers while a transaction is open over a boundary").await;
    transaction.commit_transaction(SOON).expect("committed");
    stack.send(after);
    stack.settle().await;
    let oracle = stack.oracle();
    stack.compare(&serving, &oracle, "after the commit").await;
    // Aborted records and the markers of both stay in the log's offsets, and are no gap.
    let aborted = begun(&stack, "aborted");
    write(&aborted, &in_one_partition(1_000, 22));
    aborted.abort_transaction(SOON).expect("aborted");
    stack.send(&deliveries(500, 23));
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after an abort").await;
    stack.batch(&["run"]).await;
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a run over both").await;
    stack.verify_groups("after transactions").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_added_is_read_from_its_start() {
    let stack = Stack::start(LAYERS, 1).await;
    let (_speed, _process, serving) = stack.layers().await;
    stack.send(&deliveries(2_000, 31));
    stack.settle().await;
    stack.batch(&["run"]).await;
    let (admin, watch) = (kafka::admin(&stack), Watch::start(&serving));
    for topic in ["page_views", "events"] {
        let grown = admin.create_partitions(&[NewPartitions::new(topic, 3)], &AdminOptions::new()).await;
        grown.expect("partitions").into_iter().for_each(|result| drop(result.expect("grown")));
    }
    // A copy that goes by the old number of partitions, and one by the new, lie in two of them, and count twice until a run.
    wait_for("the broker telling of the new partitions", async || match stack.probe.partitions() {
        Ok(told) if told.len() == 6 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // A steady load, so that the old partitions are read on while nobody has been given the new ones yet.
    for part in deliveries(3_000, 32).chunks(100) {
        stack.send(part);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stack.settle().await;
    let (complete, not) = watch.end(&stack.probe).await;
    println!("while partitions were added: {complete} answers complete, {not} not, none short");
    assert!(complete > 0);
    stack.compare(&serving, &stack.oracle(), "before a run knows of the new partitions").await;
    stack.batch(&["run"]).await;
    stack.send(&deliveries(1_000, 33));
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a run over the new partitions").await;
    stack.verify_groups("with the new partitions").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_head_is_gone_before_it_was_read_is_a_gap_and_no_answer_is_complete() {
    let stack = Stack::start(LAYERS, 1).await;
    stack.batch(&["run"]).await;
    stack.send(&deliveries(3_000, 41));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("page_views", 0, Offset::Offset(700)).expect("an offset");
    kafka::admin(&stack).delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    let mut speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    stack.settle().await;
    // What is left of the log.
    let oracle = stack.oracle();
    let realtime = doubts(&stack, &serving, &oracle).await;
    assert!(realtime.contains("lost offsets 0 to 700"), "{realtime}");
    stack.batch(&["run"]).await;
    stack.settle().await;
    let batch = doubts(&stack, &serving, &oracle).await;
    assert!(batch.contains("offsets 0 to 700"), "{batch}");
    speed.restart().expect("restarted");
    stack.settle().await;
    let restarted = doubts(&stack, &serving, &oracle).await;
    assert!(restarted.contains("offsets 0 to 700"), "{restarted}");
    // Metrics of the other topic alone are whole.
    let clicks = serving.query(&total("user_click_cnt")).await.expect("an answer");
    assert_eq!((&clicks["complete"], &clicks["dedup_horizon"]["events"]), (&true.into(), &1_000_000.into()));
    // A repeat of a record that is gone can't be recognised, and the answer says how far back one was.
    let views = serving.query(&total("user_view_cnt")).await.expect("an answer");
    let recognised = views["dedup_horizon"]["page_views"].as_i64().expect("a horizon");
    assert!(recognised < 3_000, "{views}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_deleted_and_made_anew_is_noticed_and_its_records_are_never_mixed_with_the_old() {
    let stack = Stack::start(LAYERS, 1).await;
    let (mut speed, _process, serving) = stack.layers().await;
    stack.send(&deliveries(2_000, 51));
    stack.settle().await;
    stack.run_past_the_end().await;
    stack.settle().await;
    let oracle = stack.oracle();
    stack.compare(&serving, &oracle, "before").await;
    kafka::delete(&stack, "page_views").await;
    wait_for("the topic made anew", async || {
        let made = stack.kafka.create_topic("page_views", 1, &[]).await;
        if made.map_err(|error| format!("{error:#}"))? { Ok(()) } else { Err("still there".to_owned()) }
    })
    .await;
    // More than the old log had, so that its end lies in the middle of the new one.
    stack.send(&deliveries(6_000, 52));
    wait_for("the speed layer to notice", async || {
        let log = speed.logged();
        if log.contains("deleted and made anew") { Ok(()) } else { Err(log) }
    })
    .await;
    wait_for("the archive refusing the new log", async || {
        stack.batch(&["run", "--patience", "2s"]).await;
        let held = stack.tidemark().await.held;
        let refused = held.values().any(|reason| reason.contains("made anew"));
        if refused { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
    speed.restart().expect("restarted");
    wait_for("the restarted worker to notice", async || {
        let log = speed.logged();
        let seen = log.rsplit("listening on").next().unwrap_or_default().contains("made anew");
        if seen { Ok(()) } else { Err(log) }
    })
    .await;
    // Page views are those of the old log, whole up to where it was read; not one of the new log is among them.
    let grain = |name: &str| stack.catalog.metric(name).expect("a shipped metric").grain.width();
    let compared = compare::all(&serving, &oracle, grain).await.expect("answers");
    let views = compared.iter().find(|metric| metric.metric == "user_view_cnt").expect("compared");
    assert!(views.wrong.is_empty(), "{:?}", views.wrong);
    assert!(views.incomplete_because.iter().any(|why| why.contains("made anew")), "{views:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_on_which_exactness_cant_be_kept_are_refused_with_the_command_that_alters_them() {
    let stack = Stack::start(LAYERS, 1).await;
    let alter = async |settings: &[(&str, &str)]| kafka::alter(&stack, "events", settings).await;
    for (setting, value, remedy) in [
        ("message.timestamp.type", "CreateTime", "message.timestamp.type=LogAppendTime"),
        ("cleanup.policy", "compact", "cleanup.policy=delete"),
    ] {
        alter(&[("message.timestamp.type", "LogAppendTime"), (setting, value)]).await;
        let run = stack.batch_process(&["run"]);
        assert_ne!(run.ended().await, 0);
        assert!(run.logged().contains(remedy), "{}", run.logged());
        alter(&[("message.timestamp.type", "LogAppendTime")]).await;
        stack.batch(&["run"]).await;
        alter(&[("message.timestamp.type", "LogAppendTime"), (setting, value)]).await;
        let speed = stack.speed();
        assert_ne!(speed.ended().await, 0);
        assert!(speed.logged().contains(remedy), "{}", speed.logged());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_stamped_by_its_producers_for_a_while_is_answered_exactly() {
    let stack = Stack::start(LAYERS, 1).await;
    let stamp = async |by: &str| kafka::alter(&stack, "page_views", &[("message.timestamp.type", by)]).await;
    let parts: Vec<Vec<Delivery>> = (61..65).map(|seed| deliveries(1_000, seed)).collect();
    // The producers' own times are of 2023: no clock may go by them.
    stamp("CreateTime").await;
    stack.send(&parts[0]);
    stamp("LogAppendTime").await;
    let (_speed, _process, serving) = stack.layers().await;
    stack.send(&parts[1]);
    // A worker refuses to start on such a topic: it is to be at work when its stamps change.
    stack.settle().await;
    stamp("CreateTime").await;
    stack.send(&parts[2]);
    stamp("LogAppendTime").await;
    stack.send(&parts[3]);
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "in the realtime view").await;
    stack.batch(&["run"]).await;
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a run").await;
    stack.verify_groups("with records of both kinds").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back_costs_nothing() {
    let mut stack = Stack::start(LAYERS, 2).await;
    let (_speed, _process, serving) = stack.layers().await;
    let all = deliveries(6_000, 71);
    for part in all.chunks(2_000) {
        stack.send(part);
        stack.kafka.kill();
        // What was read is answered while the broker is away.
        serving.query(&total("user_view_cnt")).await.expect("an answer without a broker");
        let run = stack.batch_process(&["run", "--patience", "1s"]);
        assert_ne!(run.ended().await, 0, "a run without a broker fails:\n{}", run.logged());
        stack.kafka.restart().await.expect("kafka again");
    }
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after three kills of the broker").await;
    stack.batch(&["run"]).await;
    stack.settle().await;
    stack.compare(&serving, &stack.oracle(), "after a run").await;
}
