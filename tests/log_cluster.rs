//! Two brokers: leaders that die, stop or stand still under load, leaders whose clocks are wrong, and records that a
//! topic doesn't admit.

use local::layers::Layer;
use rdkafka::producer::Producer as _;
use rustix::process::{Pid, Signal, kill_process};
use shared_model::offsets::TopicPartition;
use shared_model::tidemark::Cut;
use simulator::generate::{Delivery, Generator, Options};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tidemark_tests::brokers::{FIRST, Pair, SECOND};
use tidemark_tests::events::{total, town};
use tidemark_tests::kafka;
use tidemark_tests::load::Load;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::{now, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const EPOCH: i64 = 1_000;
const DAY: i64 = 86_400_000;

/// Waits until the realtime view has what lies in the log by now, and says how long that took.
async fn caught_up(stack: &Stack, speed: &Layer) -> Duration {
    let begun = Instant::now();
    // A leader that is new says nothing of its log's end at first.
    let ends =
        wait_for("the log's ends", async || stack.probe.ends().map_err(|error| format!("{error:#}"))).await;
    wait_for("the realtime view reaching them", async || match stack.probe.lag(&ends).await {
        Ok(0) => Ok(()),
        Ok(lag) => Err(format!("{lag} records behind; the worker says\n{}", speed.logged())),
        Err(error) => Err(format!("{error:#}")),
    })
    .await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_die_stop_or_stand_still_under_load_cost_nothing() {
    let (both, alone) = ([SECOND, FIRST], [FIRST, FIRST]);
    let mut pair = Pair::start(LAYERS, &outbrain(), &both).await;
    let (speed, _process, serving) = pair.stack.layers().await;
    let load = Load::start(&pair.stack, 81);
    let (mut moves, mut longest) = (0, Duration::ZERO);
    for fault in ["killed", "stopped", "frozen"] {
        caught_up(&pair.stack, &speed).await;
        let pid = Pid::from_raw(pair.second.pid().expect("a running broker") as i32).expect("a process id");
        let begun = Instant::now();
        match fault {
            "killed" => pair.second.kill(),
            "stopped" => pair.second.stop().await,
            _ => kill_process(pid, Signal::STOP).expect("stopped"),
        }
        for topic in ["page_views", "events"] {
            pair.led(topic, &alone).await;
        }
        // Nobody is told; all find the new leader.
        caught_up(&pair.stack, &speed).await;
        let (away, begun) = (begun.elapsed(), Instant::now());
        pair.stack.batch(&["run"]).await;
        if fault == "frozen" {
            kill_process(pid, Signal::CONT).expect("resumed");
        } else {
            pair.second.restart().await.expect("the second broker again");
        }
        for topic in ["page_views", "events"] {
            pair.led(topic, &both).await;
        }
        caught_up(&pair.stack, &speed).await;
        let back = begun.elapsed();
        println!("a leader {fault}: caught up {away:?} after that, and {back:?} after a run and its return");
        pair.stack.batch(&["run"]).await;
        (moves, longest) = (moves + 2, longest.max(away));
    }
    let sent = load.end().await;
    pair.stack.settle().await;
    let oracle = pair.stack.oracle();
    pair.stack.compare(&serving, &oracle, "after the leaders moved").await;
    pair.stack.run_past_the_end().await;
    pair.stack.settle().await;
    pair.stack.compare(&serving, &oracle, "after a run").await;
    pair.stack.verify_groups("after the leaders moved").await;
    println!(
        "{moves} moves of two partitions' leader while {sent} records came, caught up within {longest:?} each: 0 lost, \
         0 doubled over {} distinct events",
        oracle.facts().len()
    );
}

/// Holds each cut of the tidemark against the log: the first record whose clock, the running maximum of append times,
/// has reached the epoch. Gives why partitions are held.
async fn check_cuts(stack: &Stack) -> BTreeMap<TopicPartition, String> {
    let (tidemark, times) = (stack.tidemark().await, stack.probe.append_times().expect("the log"));
    for (tp, Cut { epoch, offset, .. }) in &tidemark.cuts {
        let mut clock = 0;
        let mut reached = times.get(tp).into_iter().flatten().filter(|(_, time)| {
            clock = clock.max(*time);
            clock >= epoch * EPOCH
        });
        assert_eq!(reached.next().map(|(offset, _)| offset), Some(offset), "{tp}: the cut of epoch {epoch}");
    }
    tidemark.held
}

/// Sends page views and clicks to the first two of four partitions; the others stay idle.
fn send(stack: &Stack, seed: u64) {
    let options = Options { near_repeats: 0.05, late: 0.01, malformed: 0.005, ..town(2_000) };
    let all: Vec<Delivery> = Generator::new(options, seed).collect();
    let producer = kafka::producer(stack, &[]);
    for delivery in &all {
        let partition = i32::from(delivery.key.bytes().last().is_some_and(|byte| byte % 2 == 1));
        kafka::put(&producer, delivery.stream, partition, &delivery.key, &delivery.value);
    }
    producer.flush(Duration::from_secs(60)).expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_with_clocks_that_are_wrong_cut_by_records_of_the_log_alone() {
    // The second broker leads one partition with records, and one without, of each topic.
    let leaders = [SECOND, FIRST, SECOND, FIRST];
    let mut pair = Pair::start(LAYERS, &outbrain(), &leaders).await;
    let (speed, _process, serving) = pair.stack.layers().await;
    // With its topics of dead letters, which need both brokers to be made.
    caught_up(&pair.stack, &speed).await;
    let phases = [(-90_000, "90 s slow"), (0, "right"), (DAY, "a day ahead"), (0, "right again")];
    for (seed, (wrong_by, name)) in (91..).zip(phases) {
        pair.restart_second(wrong_by, &leaders).await;
        let begun = now();
        let stack = &pair.stack;
        send(stack, seed);
        caught_up(stack, &speed).await;
        stack.compare(&serving, &stack.oracle(), &format!("sent while a clock is {name}")).await;
        let runs = if wrong_by == 0 { 1 } else { 2 };
        for run in 0..runs {
            stack.batch(&["run", "--patience", "3s"]).await;
            caught_up(stack, &speed).await;
            let held = check_cuts(stack).await;
            let slow: Vec<_> = held.iter().filter(|(tp, _)| tp.partition % 2 == 0).collect();
            assert_eq!(held.len(), slow.len(), "a clock {name} holds back others: {held:?}");
            if wrong_by < 0 {
                let behind = |(_, reason): &&(&TopicPartition, &String)| reason.contains("clock is");
                assert_eq!(slow.iter().filter(behind).count(), 4, "the slow clocks are named: {held:?}");
            }
            stack.becomes(&serving, &stack.oracle(), &format!("run {run} while a clock is {name}")).await;
        }
        stack.verify_groups(&format!("while a clock is {name}")).await;
        let answer = serving.query(&total("user_view_cnt")).await.expect("an answer");
        let as_of = chrono::DateTime::parse_from_rfc3339(answer["as_of"].as_str().expect("as_of"));
        let as_of = as_of.expect("a time").timestamp_millis();
        let mut times = stack.probe.append_times().expect("the log");
        times.retain(|tp, _| &*tp.topic == "page_views");
        let slowest = times.values().filter_map(|times| times.iter().map(|(_, time)| *time).max()).min();
        assert!(
            Some(as_of) <= slowest,
            "as_of {as_of} is beyond the slowest clock, {slowest:?}, with one {name}"
        );
        let age = now() - as_of;
        assert_eq!(
            as_of < begun,
            wrong_by < 0,
            "as_of follows the slow clocks alone: {age} ms, a clock {name}"
        );
        println!("a clock {name}: as_of is {age} ms old; {} from the batch view", answer["parts"]["batch"]);
    }
    // The clocks of the partitions that were a day ahead don't go back; with their leader gone the other goes on.
    pair.second.kill();
    for topic in ["page_views", "events"] {
        pair.led(topic, &[FIRST; 4]).await;
    }
    let stack = &pair.stack;
    send(stack, 99);
    caught_up(stack, &speed).await;
    stack.batch(&["run", "--patience", "3s"]).await;
    caught_up(stack, &speed).await;
    check_cuts(stack).await;
    let oracle = stack.oracle();
    stack.becomes(&serving, &oracle, "led by a right clock below those of the log").await;
    stack.verify_groups("led by a right clock below those of the log").await;
    println!(
        "5 leaders' clocks over 8 partitions: cuts by records alone, {} distinct events, all answers equal \
              the oracle's",
        oracle.facts().len()
    );
}
