//! Sends what a pass changes to Redis: to one server many names a command, to a cluster, where names lie apart, one.
//!
//! Each value is replaced as a whole and each set in one step, so that no reader sees a mixture; names one after the other.

use super::changes::{Changes, Ranking, Texts};
use crate::redis::Redis;
use ::redis::{Cmd, RedisResult, Value, cmd};
use futures::{StreamExt as _, stream};
use shared_model::failpoint;
use std::ops::Range;

/// How many names a command has.
const NAMES: usize = 1_000;
/// How many members a command changes, but for a set that has more.
const MEMBERS: usize = 1_000;
/// How many commands are under way at once, to one server and to a cluster: Redis has work until more is sent, however busy
/// the processors are. Others have connections of their own, which Redis looks at between two commands.
const ABREAST: [usize; 2] = [12, 256];

/// Sends all of it. What was done before an error isn't known.
pub(crate) async fn send(redis: &Redis, changes: &Changes) -> RedisResult<()> {
    metrics::counter!("tidemark_speed_published_total").increment(changes.len() as u64);
    let is_apart = redis.is_cluster();
    let names = if is_apart { 1 } else { NAMES };
    let puts = (0..changes.puts.len()).step_by(2 * names).map(|from| put(&changes.puts, from, 2 * names));
    let drops = (0..changes.drops.len()).step_by(names).map(|from| unlink(&changes.drops, from, names));
    let commands = puts.chain(drops).chain(rankings(changes, is_apart));
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

fn put(puts: &Texts, from: usize, count: usize) -> Cmd {
    let to = puts.len().min(from + count);
    command(if to - from == 2 { "SET" } else { "MSET" }, puts, from..to)
}

fn unlink(drops: &Texts, from: usize, count: usize) -> Cmd {
    command("UNLINK", drops, from..drops.len().min(from + count))
}

/// A command with texts as they come.
fn command(name: &str, texts: &Texts, numbers: Range<usize>) -> Cmd {
    let mut command = Cmd::with_capacity(1 + numbers.len(), name.len() + texts.bytes(numbers.clone()));
    command.arg(name);
    numbers.for_each(|number| _ = command.arg(texts.get(number)));
    command
}

/// The calls that change sets.
fn rankings(changes: &Changes, is_apart: bool) -> impl Iterator<Item = Cmd> {
    let mut rest = &changes.rankings[..];
    std::iter::from_fn(move || {
        let mut members = 0;
        let fits = rest.iter().take_while(|ranking| {
            let fits = members == 0 || members < MEMBERS && !is_apart;
            members += ranking.len();
            fits
        });
        let (some, others) = rest.split_at(fits.count());
        rest = others;
        (!some.is_empty()).then(|| call(some, &changes.members))
    })
}

fn call(rankings: &[Ranking], texts: &Texts) -> Cmd {
    let mut call = cmd("FCALL");
    call.arg("tm1_ranks").arg(rankings.len());
    rankings.iter().for_each(|ranking| _ = call.arg(texts.get(ranking.first)));
    for ranking in rankings {
        let &Ranking { anew, first, put, end } = ranking;
        call.arg(u8::from(anew)).arg(ranking.gone()).arg(end - put);
        (first + 1..end).for_each(|number| _ = call.arg(texts.get(number)));
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_changed_together_as_far_as_a_call_goes() {
        let mut all = Changes::default();
        for members in [400, 700, 1, 5_000, 1] {
            let first = all.members.len();
            all.members.push("a");
            for member in 0..members {
                all.members.push("1");
                all.members.push(&format!("m{member}"));
            }
            let (put, end) = (first + 1, all.members.len());
            all.rankings.push(Ranking { anew: true, first, put, end });
        }
        let sets = |is_apart| -> Vec<usize> {
            let sets =
                |call: Cmd| call.args_iter().filter(|arg| *arg == ::redis::Arg::Simple(&b"a"[..])).count();
            rankings(&all, is_apart).map(sets).collect()
        };
        assert_eq!(sets(false), [2, 2, 1]);
        assert_eq!(sets(true), [1; 5]);
    }

    #[test]
    fn a_call_has_for_each_set_what_goes_and_what_comes() {
        let mut texts = Texts::default();
        ["a", "x", "y", "3", "z", "b", "1", "x"].into_iter().for_each(|text| texts.push(text));
        let sets = [
            Ranking { anew: false, first: 0, put: 3, end: 5 },
            Ranking { anew: true, first: 5, put: 6, end: 8 },
        ];
        let mut expected = cmd("FCALL");
        "tm1_ranks 2 a b 0 2 2 x y 3 z 1 0 2 1 x".split(' ').for_each(|arg| _ = expected.arg(arg));
        assert_eq!(call(&sets, &texts).get_packed_command(), expected.get_packed_command());
        assert_eq!(sets.map(|set| set.len()), [3, 1]);
        assert_eq!([0..2, 2..8].map(|numbers| texts.bytes(numbers)), [2, 6]);
        let mut expected = cmd("MSET");
        expected.arg("y").arg("3");
        assert_eq!(command("MSET", &texts, 2..4).get_packed_command(), expected.get_packed_command());
    }
}
