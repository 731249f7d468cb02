//! Redis at fault: answers lost, data gone or rolled back, a replica promoted, memory full, single groups lost. Groups
//! are whole or lost as a whole, what is lost is replayed, and no answer that says it is complete is ever short.

use local::layers::Layer;
use local::probe::{Probe, Serving};
use local::servers::{Redis, RedisOptions};
use shared_model::view;
use simulator::generate::{Delivery, Generator, Options};
use std::path::Path;
use std::time::{Duration, Instant};
use tidemark_tests::events::town;
use tidemark_tests::proxy::Proxy;
use tidemark_tests::redis_client::{ask, connect, connect_one};
use tidemark_tests::redis_servers::Topology;
use tidemark_tests::stack::{SPEED, Servers, Stack, found, outbrain};
use tidemark_tests::watch::Watch;
use tidemark_tests::{number, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

fn options(records: u64) -> Options {
    Options { near_repeats: 0.05, late: 0.01, malformed: 0.002, ..town(records) }
}

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    Generator::new(options(records), seed).collect()
}

/// A worker whose Redis is somewhere else than the stack's.
fn speed_at(stack: &Stack, redis: &str) -> Layer {
    let command = [&SPEED[..], &["--redis", redis]].concat();
    stack.process("speed-layer", &command, &["catalog", "kafka", "postgres"])
}

/// What a worker answers to a GET.
async fn get(layer: &Layer, path: &str) -> Result<(u16, String), String> {
    assert_eq!(layer.exited(), None, "the worker ended:\n{}", layer.logged());
    let log = layer.logged();
    let (_, url) = log.rsplit_once("listening on ").ok_or("not listening")?;
    let url = format!("{}{path}", url.split_whitespace().next().unwrap_or_default());
    let answer = reqwest::get(&url).await.map_err(|error| error.to_string())?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await.map_err(|error| error.to_string())?))
}

/// Waits until a worker is not ready because of `why`.
async fn unready(layer: &Layer, why: &str) {
    wait_for(&format!("the worker saying {why:?}"), async || {
        let (status, text) = get(layer, "/readyz").await?;
        if status == 503 && text.contains(why) { Ok(()) } else { Err(format!("{status}: {text}")) }
    })
    .await;
}

/// Waits until all is there again, and says what it took since `begun`.
async fn equal_again(stack: &Stack, serving: &Serving, begun: Instant, what: &str) -> Duration {
    stack.settle().await;
    let took = begun.elapsed();
    stack.verify_groups(what).await;
    stack.compare(serving, &stack.oracle(), what).await;
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_lost_after_the_function_ran_double_nothing() {
    let seed = number("TIDEMARK_SEED").unwrap_or(41);
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let proxies = stack.redis.behind_proxies(seed).await;
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let speed = speed_at(&stack, &urls.join(","));
    let (_process, serving) = stack.serving().await;
    proxies.iter().for_each(|proxy| proxy.lose(300));
    let begun = Instant::now();
    for part in deliveries(20_000, seed).chunks(1_000) {
        stack.send(part);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stack.settle().await;
    // A Cluster's other clients were led to the proxies too, and are to be answered now.
    proxies.iter().for_each(|proxy| proxy.lose(0));
    let losses: u64 = proxies.iter().map(Proxy::losses).sum();
    assert!(losses > 10, "seed {seed}: only {losses} answers were lost");
    let took = equal_again(&stack, &serving, begun, &format!("with answers lost, seed {seed}")).await;
    assert_eq!(speed.exited(), None);
    println!("{losses} answers lost after the function ran (seed {seed}), in {took:.1?}: 0 doubled");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_rolled_back_or_restarted_is_exact_again() {
    let mut stack = Stack::start(LAYERS, 2).await;
    let config: Vec<Vec<String>> = stack.redis.ask_each(&["CONFIG", "GET", "dir"]).await;
    let dumps: Vec<_> = config.iter().map(|dir| Path::new(&dir[1]).join("dump.rdb")).collect();
    let (speed, _process, serving) = stack.layers().await;
    let all = deliveries(12_000, 42);
    let parts: Vec<_> = all.chunks(all.len() / 6).collect();
    let watch = Watch::start(&serving);
    stack.send(parts[0]);
    stack.settle().await;
    stack.batch(&["run"]).await;
    stack.send(parts[1]);
    stack.settle().await;

    // The tidemark below the snapshot: groups go on from where they were. Then above it: they are built anew.
    for (round, moves) in [(2, false), (3, true)] {
        let _: Vec<()> = stack.redis.ask_each(&["SAVE"]).await;
        for dump in &dumps {
            std::fs::copy(dump, dump.with_extension("old")).expect("a copy of the snapshot");
        }
        stack.send(parts[round]);
        stack.settle().await;
        if moves {
            stack.batch(&["run"]).await;
        }
        stack.redis.kill();
        for dump in &dumps {
            std::fs::rename(dump.with_extension("old"), dump).expect("the old snapshot back");
        }
        let begun = Instant::now();
        stack.redis.restart().await.expect("redis");
        let took = equal_again(&stack, &serving, begun, "rolled back to an older snapshot").await;
        println!(
            "rolled back to an older snapshot, the tidemark {}: equal after {took:.1?}",
            if moves { "above it" } else { "below it" }
        );
    }

    // Restarted without anything kept.
    stack.send(parts[4]);
    stack.redis.kill();
    dumps.iter().for_each(|dump| std::fs::remove_file(dump).expect("the snapshot gone"));
    let begun = Instant::now();
    stack.redis.restart().await.expect("redis");
    let took = equal_again(&stack, &serving, begun, "restarted without persistence").await;
    println!("restarted without persistence: equal after {took:.1?}");

    // Restarted with all that its append-only file has, killed as a machine would be.
    let _: Vec<()> = stack.redis.ask_each(&["CONFIG", "SET", "appendonly", "yes"]).await;
    wait_for("the append-only file written", async || {
        let infos: Vec<String> = stack.redis.ask_each(&["INFO", "persistence"]).await;
        let written =
            |info: &String| info.contains("aof_enabled:1") && info.contains("aof_rewrite_in_progress:0");
        if infos.iter().all(written) { Ok(()) } else { Err(infos.join("\n")) }
    })
    .await;
    let _: Vec<()> = stack.redis.ask_each(&["CONFIG", "SET", "save", ""]).await;
    let _: Vec<()> = stack.redis.ask_each(&["SAVE"]).await;
    stack.send(parts[5]);
    stack.redis.kill();
    let begun = Instant::now();
    stack.redis.restart().await.expect("redis");
    let took = equal_again(&stack, &serving, begun, "restarted with a snapshot").await;
    println!("restarted with its last snapshot: equal after {took:.1?}");
    let (complete, incomplete) = watch.end(&stack.probe).await;
    assert!(complete > 0);
    assert_eq!(speed.exited(), None);
    println!(
        "{complete} answers said complete meanwhile, none was short; {incomplete} said that they are not"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_behind_is_promoted() {
    let servers = Servers { topology: Topology::Server, ..Servers::default() };
    let mut stack = Stack::with_servers(LAYERS, 2, &outbrain(), servers).await;
    let folder = local::servers::scratch().expect("a folder");
    let port = stack.redis.masters()[0].port();
    let master = format!("127.0.0.1 {port}");
    let options = RedisOptions { settings: vec![("replicaof".into(), master)], ..RedisOptions::default() };
    let replica =
        Redis::start(&found().await, &folder.path().join("replica"), options).await.expect("a replica");
    let proxy = Proxy::start(port, 0).await;
    stack.batch(&["run"]).await;
    let speed = speed_at(&stack, &proxy.url());
    stack.probe.redis = proxy.url();
    let (_process, serving) = stack.serving().await;
    let watch = Watch::start(&serving);
    let all = deliveries(9_000, 43);
    let parts: Vec<_> = all.chunks(all.len().div_ceil(3)).collect();
    stack.send(parts[0]);
    stack.settle().await;
    let mut its = connect_one(&replica.url()).await;
    wait_for("the replica having what its master has", async || {
        let info: String = ask(&mut its, &["INFO", "replication"]).await;
        if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
    })
    .await;
    let groups = |headers: &local::probe::Headers| headers.values().map(|header| header.to).sum::<i64>();
    let now = groups(&stack.probe.headers().await.expect("headers"));
    let at_replica = Probe { redis: replica.url(), ..stack.probe.clone() };
    wait_for("the replica having the groups", async || {
        let has = groups(&at_replica.headers().await.map_err(|error| format!("{error:#}"))?);
        if has >= now { Ok(()) } else { Err(format!("{has} of {now}")) }
    })
    .await;
    // It loses its master, which goes on; what comes now the replica will never have.
    let () = ask(&mut its, &["REPLICAOF", "127.0.0.1", "1"]).await;
    stack.send(parts[1]);
    stack.settle().await;
    stack.redis.kill();
    let begun = Instant::now();
    proxy.lead_to(replica.port());
    unready(&speed, "redis is a read-only replica").await;
    stack.send(parts[2]);
    let () = ask(&mut its, &["REPLICAOF", "NO", "ONE"]).await;
    let took = equal_again(&stack, &serving, begun, "after a replica that was behind was promoted").await;
    let (complete, incomplete) = watch.end(&stack.probe).await;
    println!(
        "a replica {} records behind promoted: READONLY said on /readyz, equal after {took:.1?}; {complete} answers said \
         complete meanwhile, none was short; {incomplete} said that they are not",
        parts[1].len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_pauses_and_goes_on() {
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let partitions: Vec<String> =
        stack.probe.partitions().expect("partitions").iter().map(|tp| tp.to_string()).collect();
    let command = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--flush-interval",
        "50ms",
        "--epoch-grace",
        "100ms",
        "--assign",
        &partitions.join(","),
    ];
    let connections = ["catalog", "kafka", "redis", "postgres"];
    let start = |point: &str| {
        let armed = [("TIDEMARK_FAILPOINT".to_owned(), format!("{point}:1"))];
        stack.process_in("speed-layer", &command, &connections, &armed)
    };
    let (_process, serving) = stack.serving().await;
    // As dense as 24,000 in an hour, and as many as it takes.
    let day = Options { span: 24 * 3_600_000, ..options(24 * 24_000) };
    let mut records = Generator::new(day, 44);
    let mut next = || stack.send(&records.by_ref().take(3_000).collect::<Vec<_>>());
    let limit = async |part: u64, beyond: u64| {
        for mut redis in stack.redis.connections().await {
            let info: String = ask(&mut redis, &["INFO", "memory"]).await;
            let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("memory used");
            let bytes = used.trim().parse::<u64>().expect("a number") / part + beyond;
            let () = ask(&mut redis, &["CONFIG", "SET", "maxmemory", &bytes.to_string()]).await;
        }
    };
    let unlimited = async || {
        let _: Vec<()> = stack.redis.ask_each(&["CONFIG", "SET", "maxmemory", "0"]).await;
    };
    // What has expired, at the latest when the tidemark moves past what waits, makes room. The worker is killed before
    // and after it deletes that, then not at all: then it goes on by itself.
    for point in ["speed.trim.before", "speed.trim.after", "none"] {
        let speed = start(point);
        next();
        stack.settle().await;
        // Room for connections beside data, where what was deleted is to be enough.
        limit(1, if point == "none" { 64 << 10 } else { 0 }).await;
        next();
        // What lies below the tidemark before the last is let go of.
        let mut runs = 0;
        let done = wait_for(&format!("room made, or the end at {point}"), async || {
            stack.batch(&["run"]).await;
            runs += 1;
            let lag = stack.probe.lag(&stack.probe.ends().expect("ends")).await.expect("lag");
            match speed.exited() {
                Some(code) => Ok(code),
                None if lag == 0 && point == "none" => Ok(0),
                // It had room for all of that: what a server uses beside data comes and goes, and a run frees some.
                // From what is used now on it has none.
                None if lag == 0 => {
                    limit(1, 0).await;
                    next();
                    Err(format!("room for all after {runs} runs"))
                }
                None => Err(format!("{lag} records behind after {runs} runs:\n{}", speed.logged())),
            }
        })
        .await;
        assert_eq!(done, if point == "none" { 0 } else { -1 }, "{}", speed.logged());
        stack.verify_groups(point).await;
        unlimited().await;
    }
    // Much too full for that: not ready and counted, also when started so, until there is memory again.
    let speed = start("none");
    next();
    stack.settle().await;
    limit(2, 0).await;
    next();
    unready(&speed, "out of memory").await;
    let (_, metrics) = get(&speed, "/metrics").await.expect("metrics");
    let refusals = |line: &str| line.starts_with("tidemark_speed_refusals_total") && line.contains("full");
    assert!(metrics.lines().any(refusals), "refusals are counted:\n{metrics}");
    stack.verify_groups("while redis is full").await;
    drop(speed);
    let speed = start("none");
    unready(&speed, "out of memory").await;
    stack.verify_groups("while redis is full").await;
    let begun = Instant::now();
    unlimited().await;
    let took = equal_again(&stack, &serving, begun, "after memory was freed").await;
    println!(
        "redis full: not ready, counted, never a part of a flush; equal {took:.1?} after memory was freed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_group_deleted_or_restored_alone_is_noticed_and_rebuilt() {
    let stack = Stack::start(LAYERS, 2).await;
    let mut redis = connect(&stack.redis.url()).await;
    let (speed, _process, serving) = stack.layers().await;
    let all = deliveries(9_000, 45);
    let parts: Vec<_> = all.chunks(all.len().div_ceil(3)).collect();
    stack.send(parts[0]);
    stack.settle().await;
    let watch = Watch::start(&serving);
    let tp = stack.probe.partitions().expect("partitions")[2].clone();
    let key = |group| view::group_key(&tp, group, stack.catalog.layout.groups);
    let old: Vec<u8> = ask(&mut redis, &["DUMP", &key(1)]).await;
    for moves in [false, true] {
        if moves {
            stack.batch(&["run"]).await;
        }
        stack.send(parts[1 + usize::from(moves)]);
        stack.settle().await;
        let begun = Instant::now();
        let gone: i64 = ask(&mut redis, &["DEL", &key(0)]).await;
        assert_eq!(gone, 1);
        let took = equal_again(&stack, &serving, begun, "one group deleted").await;
        println!("one group deleted: equal after {took:.1?}");
        let begun = Instant::now();
        let mut restore = redis::cmd("RESTORE");
        let () = restore
            .arg(key(1))
            .arg(0)
            .arg(&old)
            .arg("REPLACE")
            .query_async(&mut redis)
            .await
            .expect("restored");
        let took = equal_again(&stack, &serving, begun, "one group restored from an old snapshot").await;
        println!(
            "one group restored from an old snapshot, the tidemark {}: equal after {took:.1?}",
            if moves { "above it" } else { "below it" }
        );
    }
    let (complete, incomplete) = watch.end(&stack.probe).await;
    assert_eq!(speed.exited(), None);
    println!(
        "{complete} answers said complete meanwhile, none was short; {incomplete} said that they are not"
    );
}

/// The sum of a counter or gauge over all its labels, as a worker tells it.
async fn metric(layer: &Layer, name: &str) -> Result<f64, String> {
    let (_, text) = get(layer, "/metrics").await?;
    let of = |line: &str| line.strip_prefix(name)?.rsplit_once(' ')?.1.parse::<f64>().ok();
    let found: Vec<f64> = text.lines().filter_map(of).collect();
    if found.is_empty() { Err(format!("no {name}:\n{text}")) } else { Ok(found.iter().sum()) }
}

/// How many groups a worker has put back, and how many it has built anew.
async fn put_back_and_rebuilt(layer: &Layer) -> (f64, f64) {
    let of = async |name: &str| metric(layer, name).await.expect("a counter of a worker that has claimed");
    (of("tidemark_speed_put_back_total").await, of("tidemark_speed_rebuilds_total").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_loses_is_put_back_from_the_local_copy() {
    let stack = Stack::start(LAYERS, 2).await;
    stack.batch(&["run"]).await;
    let folders = local::servers::scratch().expect("a folder");
    let folder = |name: &str| folders.path().join(name);
    let partitions = stack.probe.partitions().expect("partitions");
    let groups = partitions.len() as f64 * f64::from(stack.catalog.layout.groups);
    let assigned = partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let start = |copies: &Path, point: &str| {
        let copies = copies.display().to_string();
        let own = ["--assign", &assigned, "--local-copy", &copies];
        let armed = [("TIDEMARK_FAILPOINT".to_owned(), point.to_owned())];
        let connections = ["catalog", "kafka", "redis", "postgres"];
        stack.process_in("speed-layer", &[&SPEED[..], &own].concat(), &connections, &armed)
    };
    let whole = async |speed: &Layer| {
        wait_for("a whole copy", async || {
            let has = metric(speed, "tidemark_speed_local_copy_groups").await?;
            if has >= groups { Ok(()) } else { Err(format!("it has {has} groups of {groups}")) }
        })
        .await;
    };
    let all = deliveries(12_000, 46);
    let mut parts = all.chunks(all.len().div_ceil(7));
    let mut next = || stack.send(parts.next().expect("a part"));
    let (_process, serving) = stack.serving().await;
    let watch = Watch::start(&serving);
    let copies = folder("copies");
    let speed = start(&copies, "none:1");
    next();
    stack.settle().await;
    stack.batch(&["run"]).await;
    next();
    stack.settle().await;
    let before = put_back_and_rebuilt(&speed).await;
    assert_eq!(before, (0.0, groups), "all were built once");

    // All that Redis had, then one group.
    let begun = Instant::now();
    stack.redis.empty().await;
    let took = equal_again(&stack, &serving, begun, "redis emptied under a worker with a copy").await;
    assert_eq!(put_back_and_rebuilt(&speed).await, (groups, groups), "{}", speed.logged());
    println!("redis emptied: {groups} groups put back from the local copy, equal after {took:.1?}");
    let mut redis = connect(&stack.redis.url()).await;
    let key = view::group_key(&partitions[1], 3, stack.catalog.layout.groups);
    let gone: i64 = ask(&mut redis, &["DEL", &key]).await;
    assert_eq!(gone, 1);
    equal_again(&stack, &serving, begun, "one group deleted").await;
    assert_eq!(put_back_and_rebuilt(&speed).await, (groups + 1.0, groups));

    // Worker and Redis gone at once; and again while groups are put back.
    next();
    stack.settle().await;
    whole(&speed).await;
    drop(speed);
    stack.redis.empty().await;
    for point in
        ["speed.put.before:2", "speed.put.after:2", "speed.restore.before:1", "speed.restore.after:1"]
    {
        let dying = start(&copies, point);
        let died =
            wait_for(&format!("the end at {point}"), async || dying.exited().ok_or_else(|| dying.logged()))
                .await;
        assert_eq!(died, -1, "{}", dying.logged());
    }
    let speed = start(&copies, "none:1");
    equal_again(&stack, &serving, begun, "worker and redis gone at once").await;
    let (put_back, rebuilt) = put_back_and_rebuilt(&speed).await;
    assert!(put_back > 0.0 && rebuilt == 0.0, "{put_back} put back, {rebuilt} built anew");
    whole(&speed).await;
    drop(speed);

    // A worker that has no copy yet makes one of what Redis has.
    let moved = folder("moved");
    let speed = start(&moved, "none:1");
    whole(&speed).await;
    drop(speed);
    stack.redis.empty().await;
    let speed = start(&moved, "none:1");
    equal_again(&stack, &serving, begun, "put back from a copy of what was in redis").await;
    assert_eq!(put_back_and_rebuilt(&speed).await, (groups, 0.0));
    whole(&speed).await;
    drop(speed);

    // The first copy is older by now: what has come since is replayed on top of it.
    let speed = start(&moved, "none:1");
    next();
    stack.settle().await;
    drop(speed);
    stack.redis.empty().await;
    let speed = start(&copies, "none:1");
    equal_again(&stack, &serving, begun, "put back from an older copy").await;
    assert_eq!(put_back_and_rebuilt(&speed).await, (groups, 0.0));
    whole(&speed).await;
    drop(speed);

    // Built anew by a worker with another folder, then lost again under one whose copy is of what was there before.
    stack.redis.empty().await;
    let speed = start(&folder("third"), "none:1");
    next();
    stack.settle().await;
    assert_eq!(put_back_and_rebuilt(&speed).await, (0.0, groups));
    drop(speed);
    let speed = start(&copies, "none:1");
    whole(&speed).await;
    stack.redis.empty().await;
    equal_again(&stack, &serving, begun, "put back after it was built anew elsewhere").await;
    assert_eq!(put_back_and_rebuilt(&speed).await, (groups, 0.0));
    drop(speed);

    // Damaged files: what is left of them, or the log.
    stack.redis.empty().await;
    for folder in std::fs::read_dir(&copies).expect("the copies") {
        for entry in std::fs::read_dir(folder.expect("a partition's").path()).expect("its copies") {
            let file = std::fs::File::options().write(true).open(entry.expect("an entry").path());
            let file = file.expect("a copy");
            file.set_len(file.metadata().expect("its size").len() / 2).expect("cut in half");
        }
    }
    let speed = start(&copies, "none:1");
    equal_again(&stack, &serving, begun, "put back from damaged copies").await;
    let (put_back, rebuilt) = put_back_and_rebuilt(&speed).await;
    assert_eq!(put_back + rebuilt, groups, "{}", speed.logged());
    drop(speed);

    // A copy from before the tidemark is of no use.
    next();
    let speed = start(&copies, "none:1");
    stack.settle().await;
    stack.run_past_the_end().await;
    stack.settle().await;
    drop(speed);
    stack.redis.empty().await;
    let speed = start(&moved, "none:1");
    equal_again(&stack, &serving, begun, "with a copy from before the tidemark").await;
    assert_eq!(put_back_and_rebuilt(&speed).await, (0.0, groups));
    let (complete, incomplete) = watch.end(&stack.probe).await;
    println!(
        "{complete} answers said complete meanwhile, none was short; {incomplete} said that they are not"
    );
}
