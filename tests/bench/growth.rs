//! What answers cost where there is ten times as much, of keys, days or metrics, in servers of their own: against what they
//! cost as usual, in the same run.
//!
//! The keys that are asked about have as many records as usual, whatever grows.

use crate::Args;
use crate::figures::{line, median};
use crate::load::{Latency, Load};
use crate::requests::Requests;
use crate::world::{DAYS, Scale, USUAL, World};
use clap::ValueEnum;
use std::sync::Arc;
use std::time::Duration;

const TIMES: usize = 10;

/// What there is ten times as much of.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Growth {
    /// Ten times as many users, documents, displays and places, and as many records of each.
    Keys,
    /// 300 days, and as many records on each; asked about are the last 30 days, and all of them.
    Days,
    /// Ten of each metric, over the same records.
    Metrics,
}

impl Growth {
    fn scale(self) -> Scale {
        match self {
            Growth::Keys => Scale { keys: TIMES, ..USUAL },
            Growth::Days => Scale { days: TIMES, ..USUAL },
            Growth::Metrics => Scale { metrics: TIMES, ..USUAL },
        }
    }

    fn name(self) -> String {
        self.to_possible_value().expect("no growth is hidden").get_name().to_owned()
    }
}

/// What the answers to a question take, as each run gave it.
#[derive(Default)]
struct Cost {
    /// Answers for each CPU-second of the serving layer.
    per_serving: Vec<f64>,
    /// Milliseconds, at the low rate.
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Cost {
    async fn of(args: &Args, load: &Load, requests: &Arc<Requests>) -> anyhow::Result<Cost> {
        load.closed(requests, Duration::from_secs(1)).await?;
        let ask = requests.one_at_a_time().await?;
        let mut cost = Cost::default();
        for _ in 0..args.runs {
            cost.per_serving.push(load.closed(requests, load.time).await?.per_serving);
            let [taken] = load.in_turn([&ask], args.low_rate).await?;
            let latency = Latency::of(taken)?;
            cost.p50.push(latency.p50);
            cost.p99.push(latency.p99);
        }
        Ok(cost)
    }

    fn figures(&self) -> [(&'static str, &[f64], usize); 3] {
        [
            ("answers per CPU-second, serving", self.per_serving.as_slice(), 0),
            ("p50 at the low rate, ms", self.p50.as_slice(), 3),
            ("p99 at the low rate, ms", self.p99.as_slice(), 3),
        ]
    }

    fn print(&self) {
        self.figures().iter().for_each(|(name, runs, digits)| line(name, runs, *digits));
    }

    /// Prints it, and how many times as much it is as usual.
    fn print_beside(&self, usual: &Cost) {
        for ((name, runs, digits), (_, usual, _)) in self.figures().into_iter().zip(usual.figures()) {
            line(name, runs, digits);
            let usual = median(usual);
            let times: Vec<f64> = runs.iter().map(|run| run / usual).collect();
            line("  times as much as usual", &times, 2);
        }
    }
}

/// What is asked of every world.
const ASKED: [&str; 2] = ["live counter of one key", "merged query, one key over 30 days"];

/// What that costs as usual.
pub(crate) struct Usual([Cost; 2]);

/// Takes what is asked of every world at its cost in the usual one.
pub(crate) async fn usual(args: &Args, world: &World) -> anyhow::Result<Usual> {
    let (load, questions) = (Load::new(args, world), world.questions());
    let live = Cost::of(args, &load, &questions.live()).await?;
    let merged = Cost::of(args, &load, &questions.one_key(DAYS)).await?;
    for (name, cost) in ASKED.into_iter().zip([&live, &merged]) {
        println!("{name}, as usual:");
        cost.print();
    }
    Ok(Usual([live, merged]))
}

/// Takes the same where something has grown, and prints it beside.
pub(crate) async fn measure(
    args: &Args,
    growth: Growth,
    Usual([live, merged]): &Usual,
) -> anyhow::Result<()> {
    let grown = growth.name();
    println!("with ten times the {grown}:");
    let world = World::start(args, growth.scale()).await?;
    let (load, questions) = (Load::new(args, &world), world.questions());
    let mut asked = vec![(ASKED[0], questions.live(), live), (ASKED[1], questions.one_key(DAYS), merged)];
    if growth == Growth::Days {
        let name = "merged query, one key over 300 days, beside 30";
        asked.push((name, questions.one_key(world.days()), merged));
    }
    for (name, requests, usual) in asked {
        let cost = Cost::of(args, &load, &requests).await?;
        println!("{name}, ten times the {grown}:");
        cost.print_beside(usual);
    }
    world.end().await
}
