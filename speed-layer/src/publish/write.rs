//! Sends what a pass changes to Redis: to one server many names a command, to a cluster, where names lie apart, one.
//!
//! Each value is replaced as a whole and each set in one step, so that no reader sees a mixture; names one after the other.

use super::changes::{Changes, Ranking};
use crate::redis::Redis;
use ::redis::{Cmd, RedisResult, Value, cmd};
use futures::{StreamExt as _, stream};
use shared_model::failpoint;

/// How many names a command has.
const NAMES: usize = 1_000;
/// How many members a command changes, but for a set that has more.
const MEMBERS: usize = 1_000;
/// How many commands are under way at once: others that wait for an answer from the same server wait for few large ones.
const ABREAST: [usize; 2] = [4, 256];

/// Sends all of it. What was done before an error isn't known.
pub(crate) async fn send(redis: &Redis, changes: &Changes) -> RedisResult<()> {
    metrics::counter!("tidemark_speed_published_total").increment(changes.len() as u64);
    let is_apart = redis.is_cluster();
    let names = if is_apart { 1 } else { NAMES };
    let puts = (0..changes.puts.len()).step_by(2 * names).map(|from| put(changes, from, 2 * names));
    let drops = (0..changes.drops.len()).step_by(names).map(|from| unlink(changes, from, names));
    let commands = puts.chain(drops).chain(rankings(&changes.rankings, is_apart));
    let sent = stream::iter(commands).map(|command| {
        let redis = redis.clone();
        async move {
            failpoint::hit("speed.publish.before");
            let answer = redis.ask::<Value>(&command).await;
            failpoint::hit("speed.publish.after");
            answer
        }
    });
    let mut sent = sent.buffer_unordered(ABREAST[usize::from(is_apart)]);
    while let Some(answer) = sent.next().await {
        answer?;
    }
    Ok(())
}

fn put(changes: &Changes, from: usize, count: usize) -> Cmd {
    let to = changes.puts.len().min(from + count);
    let mut command = cmd(if to - from == 2 { "SET" } else { "MSET" });
    (from..to).for_each(|at| _ = command.arg(changes.puts.get(at)));
    command
}

fn unlink(changes: &Changes, from: usize, count: usize) -> Cmd {
    let mut command = cmd("UNLINK");
    (from..changes.drops.len().min(from + count)).for_each(|at| _ = command.arg(changes.drops.get(at)));
    command
}

/// The calls that change sets.
fn rankings(rankings: &[Ranking], is_apart: bool) -> impl Iterator<Item = Cmd> {
    let mut rest = rankings;
    std::iter::from_fn(move || {
        let mut members = 0;
        let fits = rest.iter().take_while(|ranking| {
            let fits = members == 0 || members < MEMBERS && !is_apart;
            members += ranking.put.len() + ranking.gone.len();
            fits
        });
        let (some, others) = rest.split_at(fits.count());
        rest = others;
        (!some.is_empty()).then(|| call(some))
    })
}

fn call(rankings: &[Ranking]) -> Cmd {
    let mut call = cmd("FCALL");
    call.arg("tm1_ranks").arg(rankings.len());
    rankings.iter().for_each(|ranking| _ = call.arg(&ranking.name));
    for Ranking { anew, put, gone, .. } in rankings {
        call.arg(u8::from(*anew)).arg(gone.len()).arg(2 * put.len());
        gone.iter().for_each(|member| _ = call.arg(member));
        put.iter().for_each(|(member, count)| _ = call.arg(*count).arg(member));
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_changed_together_as_far_as_a_call_goes() {
        let ranking = |members: usize| Ranking {
            name: "a".into(),
            anew: true,
            put: (0..members).map(|n| (n.to_string(), 1)).collect(),
            gone: Vec::new(),
        };
        let all: Vec<Ranking> = [400, 700, 1, 5_000, 1].map(ranking).into();
        let sets = |is_apart| -> Vec<usize> {
            let sets =
                |call: Cmd| call.args_iter().filter(|arg| *arg == ::redis::Arg::Simple(&b"a"[..])).count();
            rankings(&all, is_apart).map(sets).collect()
        };
        assert_eq!(sets(false), [2, 2, 1]);
        assert_eq!(sets(true), [1; 5]);
    }
}
