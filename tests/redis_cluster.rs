//! A Redis Cluster of three masters: slots migrate while groups are written, no node is to be found for a while, and
//! a master fails over to a replica that is behind. Each group is somewhere as a whole, and all is equal to the oracle in the end.

use local::layers::Layer;
use local::servers::{Redis, RedisOptions};
use local::{compare, probe::Serving};
use redis::aio::MultiplexedConnection;
use shared_model::view;
use simulator::generate::{Delivery, Generator, Options};
use std::time::Instant;
use tidemark_tests::events::town;
use tidemark_tests::redis_client::{ask, connect_one};
use tidemark_tests::redis_servers::Topology;
use tidemark_tests::stack::{Servers, Stack, found, free_port, outbrain};
use tidemark_tests::wait_for;

/// Where nobody listens.
const NOWHERE: u16 = 1;
const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

fn deliveries(records: u64, seed: u64) -> Vec<Delivery> {
    let options = Options { near_repeats: 0.05, malformed: 0.002, ..town(records) };
    Generator::new(options, seed).collect()
}

/// Waits until the answers equal the oracle of all that the log holds.
async fn equal(stack: &Stack, speed: &Layer, serving: &Serving, what: &str) {
    let oracle = stack.oracle();
    wait_for(&format!("the answers equalling the oracle {what}"), async || {
        let grain = |name: &str| stack.catalog.metric(name).expect("shipped").grain.width();
        let compared = compare::all(serving, &oracle, grain).await.map_err(|error| format!("{error:#}"))?;
        if compared.iter().all(compare::Comparison::is_right) {
            Ok(())
        } else {
            Err(format!("{}\n{}", compare::table(&compared), speed.logged()))
        }
    })
    .await;
    stack.verify_groups(what).await;
}

/// The id of the master of a slot, as a node knows it.
async fn master_of(node: &mut MultiplexedConnection, slot: u16) -> String {
    let nodes: String = ask(node, &["CLUSTER", "NODES"]).await;
    let serves = |words: &[&str]| {
        words[8..].iter().filter(|range| !range.starts_with('[')).any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse().unwrap_or(1)..=last.parse().unwrap_or(0)).contains(&slot)
        })
    };
    let lines = nodes.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let words = lines.into_iter().find(|words| words[2].contains("master") && serves(words));
    words.unwrap_or_else(|| panic!("nobody serves slot {slot}:\n{nodes}"))[0].to_owned()
}

fn port_of(url: &str) -> &str {
    url.rsplit_once(':').expect("a port").1
}

/// Moves a slot with its keys, one by one, and waits until all nodes know of it. They learn it from the new master's
/// gossip alone: where they were told, and their own gossip crossed, two could name each other for ever, and no client
/// could write there.
async fn migrate(urls: &[String], slot: u16) {
    let mut nodes = Vec::new();
    for url in urls {
        let mut node = connect_one(url).await;
        let id: String = ask(&mut node, &["CLUSTER", "MYID"]).await;
        nodes.push((id, port_of(url), node));
    }
    let from_id = master_of(&mut nodes[0].2, slot).await;
    let at = nodes.iter().position(|(id, ..)| *id == from_id).expect("a master");
    let (_, _, mut from) = nodes.swap_remove(at);
    let (to_id, to_port, mut to) = nodes.swap_remove(0);
    let name = slot.to_string();
    let () = ask(&mut to, &["CLUSTER", "SETSLOT", &name, "IMPORTING", &from_id]).await;
    let () = ask(&mut from, &["CLUSTER", "SETSLOT", &name, "MIGRATING", &to_id]).await;
    loop {
        let keys: Vec<String> = ask(&mut from, &["CLUSTER", "GETKEYSINSLOT", &name, "1"]).await;
        let Some(key) = keys.first() else { break };
        let () = ask(&mut from, &["MIGRATE", "127.0.0.1", to_port, key, "0", "5000"]).await;
    }
    let () = ask(&mut to, &["CLUSTER", "SETSLOT", &name, "NODE", &to_id]).await;
    wait_for("all nodes knowing where the slot is", async || {
        for url in urls {
            let id = master_of(&mut connect_one(url).await, slot).await;
            if id != to_id {
                return Err(format!("{url} places slot {slot} at {id}, not at {to_id}"));
            }
        }
        Ok(())
    })
    .await;
}

/// Has every node name this port to clients, or its own again, and waits until all name all so.
async fn announce(urls: &[String], port: Option<u16>) {
    for url in urls {
        let port = port.unwrap_or(0).to_string();
        let () = ask(&mut connect_one(url).await, &["CONFIG", "SET", "cluster-announce-port", &port]).await;
    }
    wait_for("all nodes naming the ports", async || {
        for url in urls {
            let nodes: String = ask(&mut connect_one(url).await, &["CLUSTER", "NODES"]).await;
            let named = |url: &&String| {
                nodes
                    .contains(&format!(":{}@", port.map_or(port_of(url).to_owned(), |port| port.to_string())))
            };
            let others = |url: &&String| port.is_some() && nodes.contains(&format!(":{}@", port_of(url)));
            if !urls.iter().all(|url| named(&url)) || urls.iter().any(|url| others(&url)) {
                return Err(nodes);
            }
        }
        Ok(())
    })
    .await;
}

/// An offset of the replication that a node knows.
async fn replicated(node: &mut MultiplexedConnection, name: &str) -> i64 {
    let info: String = ask(node, &["INFO", "replication"]).await;
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
    info.lines().find_map(of).unwrap_or_else(|| panic!("{name} in {info}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_migrate_and_a_master_fails_over_under_load() {
    let folder = local::servers::scratch().expect("a folder");
    let setting = |name: &str, value: String| (name.to_owned(), value);
    // A replica may be as far behind as it likes.
    let settings = [
        setting("cluster-node-timeout", "2000".into()),
        setting("cluster-replica-validity-factor", "0".into()),
    ];
    let options = RedisOptions { settings: settings.into(), ..RedisOptions::default() };
    let servers = Servers { redis: options.clone(), topology: Topology::Cluster, ..Servers::default() };
    let mut stack = Stack::with_servers(LAYERS, 2, &outbrain(), servers).await;
    let urls = stack.redis.urls();
    stack.probe.redis = urls[0].clone();
    let (speed, _process, serving) = stack.layers().await;
    let all = deliveries(15_000, 61);
    let parts: Vec<_> = all.chunks(all.len().div_ceil(5)).collect();
    stack.send(parts[0]);
    equal(&stack, &speed, &serving, "at first").await;

    // The slots of half of all groups move while they are written.
    let groups = stack.catalog.layout.groups;
    let mut redis = connect_one(&urls[0]).await;
    let begun = Instant::now();
    let mut moved = 0;
    let kafka = stack.kafka.bootstrap();
    let load: Vec<Delivery> = parts[1].to_vec();
    let sending = tokio::spawn(async move {
        let sender =
            simulator::replay::Sender::connect(&kafka, &[], || 1_700_000_000_000).expect("a producer");
        for part in load.chunks(100) {
            part.iter().for_each(|delivery| sender.send(delivery).expect("sent"));
            sender.poll();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        sender
    });
    for tp in stack.probe.partitions().expect("partitions") {
        for group in (0..groups).step_by(2) {
            let key = view::group_key(&tp, group, groups);
            let slot: u16 = ask(&mut redis, &["CLUSTER", "KEYSLOT", &key]).await;
            migrate(&urls, slot).await;
            moved += 1;
        }
    }
    let took = begun.elapsed();
    sending.await.expect("sent").flush().expect("acknowledged");
    equal(&stack, &speed, &serving, "after slots migrated").await;
    println!("{moved} slots migrated in {took:.1?} while their groups were written: equal");

    // All nodes name an address where nobody is, as when all are away at the moment that a client asks for the slots. A
    // client that was sent there by a slot that moved never comes back by itself.
    let said = speed.logged().len();
    announce(&urls, Some(NOWHERE)).await;
    let tp = &stack.probe.partitions().expect("partitions")[0];
    let slot: u16 = ask(&mut redis, &["CLUSTER", "KEYSLOT", &view::group_key(tp, 1, groups)]).await;
    migrate(&urls, slot).await;
    stack.send(parts[2]);
    wait_for("the worker finding no node", async || {
        let log = speed.logged();
        if log.get(said..).is_some_and(|since| since.contains("No connections found")) {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    announce(&urls, None).await;
    let begun = Instant::now();
    equal(&stack, &speed, &serving, "after no node was to be found").await;
    println!("no node found, then all again: equal after {:.1?}", begun.elapsed());

    // A replica of the first master takes over when it is killed; the worker knows only addresses of nodes.
    stack.batch(&["run"]).await;
    let bus = free_port();
    let mut settings = options.settings.clone();
    settings.extend([setting("cluster-enabled", "yes".into()), setting("cluster-port", bus.to_string())]);
    let replica =
        Redis::start(&found().await, &folder.path().join("replica"), RedisOptions { settings, ..options })
            .await
            .expect("a replica");
    let first: String = ask(&mut redis, &["CLUSTER", "MYID"]).await;
    let mut its = connect_one(&replica.url()).await;
    let (port, second) = (replica.port().to_string(), urls[1].clone());
    let () = ask(&mut redis, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus.to_string()]).await;
    wait_for("the replica knowing its master", async || {
        let nodes: String = ask(&mut its, &["CLUSTER", "NODES"]).await;
        if nodes.contains(&first) && nodes.lines().count() == 4 { Ok(()) } else { Err(nodes) }
    })
    .await;
    let () = ask(&mut its, &["CLUSTER", "REPLICATE", &first]).await;
    wait_for("the replica having what its master has", async || {
        let info: String = ask(&mut its, &["INFO", "replication"]).await;
        if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
    })
    .await;
    wait_for("all nodes knowing the replica", async || {
        for url in &urls {
            let nodes: String = ask(&mut connect_one(url).await, &["CLUSTER", "NODES"]).await;
            let line =
                nodes.lines().find(|line| line.contains(&format!(":{port}@"))).unwrap_or_default().to_owned();
            if !line.contains("slave") || !line.contains("connected") {
                return Err(nodes);
            }
        }
        Ok(())
    })
    .await;
    // It loses its master, which goes on; what comes now the replica will never have.
    let () = ask(&mut its, &["CONFIG", "SET", "masteruser", "nobody"]).await;
    let () = ask(&mut its, &["CONFIG", "SET", "masterauth", "nothing"]).await;
    let _: i64 = ask(&mut redis, &["CLIENT", "KILL", "TYPE", "replica"]).await;
    wait_for("the replica without its master", async || {
        let info: String = ask(&mut its, &["INFO", "replication"]).await;
        if info.contains("master_link_status:down") { Ok(()) } else { Err(info) }
    })
    .await;
    stack.send(parts[3]);
    stack.settle().await;
    let written = replicated(&mut redis, "master_repl_offset").await;
    let behind = written - replicated(&mut its, "slave_repl_offset").await;
    assert!(behind > 0, "the master has written nothing since");
    // The probe and the layers' seed address must outlive the first node.
    stack.probe.redis = second.clone();
    drop(redis);
    stack.redis.masters_mut()[0].kill();
    let begun = Instant::now();
    let mut other = connect_one(&second).await;
    wait_for("the replica being master", async || {
        let nodes: String = ask(&mut other, &["CLUSTER", "NODES"]).await;
        let line =
            nodes.lines().find(|line| line.contains(&format!(":{port}@"))).unwrap_or_default().to_owned();
        if line.contains("master") { Ok(()) } else { Err(nodes) }
    })
    .await;
    let failed_over = begun.elapsed();
    stack.send(parts[4]);
    equal(&stack, &speed, &serving, "after a failover").await;
    assert_eq!(speed.exited(), None);
    println!(
        "a master killed: its replica, {behind} bytes behind, took over after {failed_over:.1?}, equal after {:.1?}",
        begun.elapsed()
    );
}
