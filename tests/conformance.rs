//! Redis in memory, on which the simulation stands, does what the real one's function library does: the same answers
//! and the same groups, whatever calls come in whatever order.

use local::install::{self, Installing, Need};
use local::servers::{Redis, RedisOptions, scratch};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value, cmd};
use speed_layer::twin::{Call, LIBRARY, MemoryRedis, Reply};
use std::collections::BTreeMap;
use tokio::runtime::Runtime;

const KEYS: [&str; 2] = ["tm1:{a/0/0of2}", "tm1:{a/0/1of2}"];

/// Calls over few keys, tokens, fences and fields, so that they often meet.
fn call() -> impl Strategy<Value = Call> {
    let key = || prop::sample::select(&KEYS[..]).prop_map(str::to_owned);
    let token = || prop::sample::select(&["x", "y"][..]).prop_map(str::to_owned);
    let fence = || prop::sample::select(&["1:0:1", "1:5:2", "1:9:3"][..]).prop_map(str::to_owned);
    let expected = || prop::sample::select(&["", "1:0:1", "1:5:2", "lost"][..]).prop_map(str::to_owned);
    let field = || prop::sample::select(&["e1:1", "e1:2", "p0:1", "p5:2"][..]).prop_map(str::to_owned);
    let bytes = || vec(any::<u8>(), 0..4);
    prop_oneof![
        2 => (key(), token()).prop_map(|(key, token)| Call::Claim { key, token }),
        1 => (key(), token()).prop_map(|(key, token)| Call::Reset { key, token }),
        6 => (key(), token(), expected(), fence(), vec((field(), bytes()), 0..3), vec(field(), 0..2)).prop_map(
            |(key, token, expected, fence, fields, deletes)| {
                let header = format!("header of {fence}");
                Call::Flush { key, token, expected, fence, header, fields, deletes }
            }
        ),
        1 => (key(), vec(field(), 1..3)).prop_map(|(key, fields)| Call::Segments { key, fields }),
    ]
}

/// The command that a call is.
fn command(call: &Call) -> Cmd {
    let function = |name: &str, key: &str| {
        let mut call = cmd("FCALL");
        call.arg(name).arg(1).arg(key);
        call
    };
    match call {
        Call::Claim { key, token } => function("tm1_claim", key).arg(token).clone(),
        Call::Reset { key, token } => function("tm1_reset", key).arg(token).clone(),
        Call::Flush { key, token, expected, fence, header, fields, deletes } => {
            let mut call =
                function(if fields.is_empty() && deletes.len() == 1 { "tm1_trim" } else { "tm1_flush" }, key);
            call.arg(token).arg(expected).arg(fence).arg(header).arg(fields.len());
            fields.iter().for_each(|(field, bytes)| _ = call.arg(field).arg(&bytes[..]));
            call.arg(deletes);
            call
        }
        Call::Segments { key, fields } => cmd("HMGET").arg(key).arg(fields).clone(),
        Call::Mark { .. } => unreachable!("not among the calls drawn"),
    }
}

async fn ask(redis: &mut MultiplexedConnection, call: &Call) -> Reply {
    let value: Value =
        command(call).query_async(redis).await.unwrap_or_else(|error| panic!("{call:?}: {error}"));
    match call {
        Call::Claim { .. } => {
            type Claimed = (Option<Vec<u8>>, Option<String>, Vec<Value>);
            let (header, fence, fields): Claimed = redis::from_redis_value(value).expect("a claim's answer");
            let pair = |pair: &[Value]| {
                let field = redis::from_redis_value(pair[0].clone()).expect("a field");
                (field, redis::from_redis_value(pair[1].clone()).expect("its length"))
            };
            let mut fields: Vec<(String, usize)> = fields.chunks(2).map(pair).collect();
            fields.sort();
            Reply::Claimed(header, fence, fields)
        }
        Call::Segments { .. } => {
            let values: Vec<Option<Vec<u8>>> = redis::from_redis_value(value).expect("values");
            Reply::Values(values.into_iter().collect())
        }
        _ => {
            let said: String = redis::from_redis_value(value).expect("a text");
            let known = ["OK", "DONE", "OWNER", "FENCE"].into_iter().find(|known| *known == said);
            Reply::Said(known.unwrap_or_else(|| panic!("{call:?}: {said}")))
        }
    }
}

#[test]
fn redis_in_memory_answers_as_the_function_library_does() {
    let runtime = Runtime::new().expect("a runtime");
    let found = install::ensure(&[Need::Redis], Installing::Yes, &mut |_| {}).expect("redis");
    let folder = scratch().expect("a temporary folder");
    let redis =
        runtime.block_on(Redis::start(&found, folder.path(), RedisOptions::default())).expect("redis");
    let client = redis::Client::open(redis.url()).expect("its url");
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).expect("a connection");
    let loaded = runtime
        .block_on(cmd("FUNCTION").arg("LOAD").arg(LIBRARY).query_async::<Value>(&mut connection.clone()));
    loaded.expect("the function library");
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) };
    let ran = TestRunner::new(config).run(&vec(call(), 1..40), |calls| {
        let mut memory = MemoryRedis::default();
        runtime.block_on(async {
            let emptied: Value = cmd("FLUSHALL").query_async(&mut connection.clone()).await.expect("emptied");
            drop(emptied);
            for call in &calls {
                assert_eq!(memory.call(call), ask(&mut connection.clone(), call).await, "{call:?}");
            }
            for key in KEYS {
                let there: BTreeMap<String, Vec<u8>> =
                    cmd("HGETALL").arg(key).query_async(&mut connection.clone()).await.expect("a hash");
                assert_eq!(memory.fields(key).cloned().unwrap_or_default(), there, "{key}");
            }
        });
        Ok(())
    });
    ran.unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn a_lease_has_one_holder_who_is_told_once_that_another_has_written() {
    let runtime = Runtime::new().expect("a runtime");
    let found = install::ensure(&[Need::Redis], Installing::Yes, &mut |_| {}).expect("redis");
    let folder = scratch().expect("a temporary folder");
    let redis =
        runtime.block_on(Redis::start(&found, folder.path(), RedisOptions::default())).expect("redis");
    let client = redis::Client::open(redis.url()).expect("its url");
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).expect("a connection");
    let loaded = runtime
        .block_on(cmd("FUNCTION").arg("LOAD").arg(LIBRARY).query_async::<Value>(&mut connection.clone()));
    loaded.expect("the function library");
    let asks = [
        ("a", 0, 2, "nobody had it"),
        ("a", 0, 1, "it is renewed"),
        ("b", 0, 0, "it is another's"),
        ("a", 0, 1, "which says nothing of writes"),
        ("b", 1, 0, "it is another's"),
        ("b", 1, 0, "however often that is said"),
        ("c", 0, 0, "nobody takes it meanwhile"),
        ("a", 0, 2, "another has written"),
        ("a", 0, 1, "once"),
    ];
    for (token, written, expected, why) in asks {
        let mut lease = cmd("FCALL");
        lease.arg("tm1_lease").arg(1).arg("tm1:publisher").arg(token).arg(600_000).arg(written);
        let said = runtime.block_on(lease.query_async::<i64>(&mut connection.clone())).expect("an answer");
        assert_eq!(said, expected, "{token}: {why}");
    }
}
