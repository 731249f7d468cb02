//! Kills at every named failpoint, before and after each external effect of the speed layer, the archive and the batch
//! layer: whatever the order, once quiet every answer equals the oracle.
//!
//! The long form: `TIDEMARK_KILLS=1000 cargo test --workspace --test processes kills -- --nocapture`; a printed seed is given back
//! by `TIDEMARK_SEED`.

use local::layers::Layer;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use simulator::generate::{Generator, Options};
use std::path::Path;
use tidemark_tests::load::Load;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::{number, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const PARTITIONS: i32 = 2;

/// The points that are named in a layer's sources.
fn points(layer: &str) -> Vec<String> {
    fn search(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the tree") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                search(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                let named = text.split("failpoint::hit(\"").skip(1);
                found.extend(named.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    let mut found = Vec::new();
    search(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(layer).join("src"), &mut found);
    found.sort();
    found.dedup();
    // Reached only where Redis is full, or has lost what a local copy has: `redis_faults` kills there.
    let elsewhere = ["speed.trim", "speed.put", "speed.restore"];
    found.retain(|point| !elsewhere.iter().any(|prefix| point.starts_with(prefix)));
    found
}

/// A point at which a process is to die.
struct Death {
    point: String,
    /// At which time that it comes by there.
    hit: u32,
    /// Whether it must come by there: each point has one such death.
    must: bool,
}

/// Every point once at its first hit, those first that only an empty server reaches; then points and hits at random, as
/// long as there are to be more.
fn deaths(points: &[String], first: &[&str], mut rng: StdRng) -> impl Iterator<Item = Death> {
    let must = |point: &str| Death { point: point.to_owned(), hit: 1, must: true };
    let often: Vec<String> =
        points.iter().filter(|point| !first.contains(&point.as_str())).cloned().collect();
    let begin: Vec<Death> = first.iter().copied().chain(often.iter().map(String::as_str)).map(must).collect();
    let random = move || {
        let point = often[rng.random_range(0..often.len())].clone();
        let most = match point.split_once('.').map(|(_, rest)| rest) {
            Some(rest) if rest.starts_with("flush") => 60,
            // Values and top-k are commands of their own already in a first pass.
            Some(rest) if rest.starts_with("publish") => 2,
            // Once at a start.
            Some(rest) if rest.starts_with("library") => 1,
            _ => 4,
        };
        // Mostly the first: many points are come by once or twice in a run, and a run that comes through is no kill.
        let hit = if most > 4 {
            rng.random_range(1..=most)
        } else {
            most.min([1, 1, 1, 1, 2, 3, 4][rng.random_range(0..7)])
        };
        Death { point, hit, must: false }
    };
    begin.into_iter().chain(std::iter::repeat_with(random))
}

/// Waits for the end of a process that is to die at a point, and says whether it did.
async fn dies(layer: &Layer, at: &str) -> bool {
    wait_for(&format!("the end at {at}"), async || layer.exited().ok_or_else(|| layer.logged())).await == -1
}

fn progress(layer: &str, number: usize, of: usize) {
    if number > 0 && number.is_multiple_of(50) {
        println!("{layer}: {number} of {of}");
    }
}

fn armed(point: &str, hit: u32) -> [(String, String); 1] {
    [("TIDEMARK_FAILPOINT".to_owned(), format!("{point}:{hit}"))]
}

/// The speed layer: started and killed, over and over. Owns its partitions without a group, whose members would have
/// to be timed out first.
async fn kill_speed(stack: &Stack, deaths: impl Iterator<Item = Death>, kills: usize) {
    let partitions: Vec<String> =
        stack.probe.partitions().expect("partitions").iter().map(ToString::to_string).collect();
    let partitions = partitions.join(",");
    let command = ["run", "--flush-interval", "20ms", "--epoch-grace", "1s", "--assign", &partitions];
    for (number, Death { point, hit, .. }) in deaths.take(kills).enumerate() {
        progress("speed layer", number, kills);
        if point.starts_with("speed.reset") || point.starts_with("speed.lease") {
            // Groups are emptied where they are built anew; the last worker's lease would have to run out.
            stack.redis.empty().await;
        }
        let connections = ["catalog", "kafka", "redis", "postgres"];
        let speed = stack.process_in("speed-layer", &command, &connections, &armed(&point, hit));
        let at = format!("{point}:{hit}");
        assert!(dies(&speed, &at).await, "the worker ended otherwise than at {at}:\n{}", speed.logged());
    }
}

/// The archive and the batch layer: run and killed so many times. A run that comes through below the hit wanted is no
/// kill.
async fn kill_batch(stack: &Stack, deaths: &mut impl Iterator<Item = Death>, kills: usize) {
    let mut killed = 0;
    while killed < kills {
        let Death { point, hit, must } = deaths.next().expect("deaths never end");
        let command: &[&str] = match point.as_str() {
            // A run that publishes nothing closes its own record.
            "batch.close.before" | "batch.close.after" => {
                &["backfill", "--from", "2016-09-14", "--to", "2016-09-14"]
            }
            "batch.delete.before" | "batch.delete.after" => {
                let probes = Path::new(&stack.archive["file://".len()..]).join("probe");
                std::fs::create_dir_all(&probes).expect("a folder of the archive");
                std::fs::write(probes.join("orphan"), "left behind").expect("an orphan");
                &["sweep", "--older-than", "0s"]
            }
            _ => &["run", "--version-grace", "0s", "--compaction-grace", "0s"],
        };
        let (connections, at) = (["catalog", "kafka", "postgres", "archive"], format!("{point}:{hit}"));
        // The first runs have nothing to retire, and too few files of a day to rewrite: they don't come by there.
        let runs = if must { 20 } else { 1 };
        let mut died = false;
        for _ in 0..runs {
            let batch = stack.process_in("batch-layer", command, &connections, &armed(&point, hit));
            died = dies(&batch, &at).await;
            assert!(died || batch.exited() == Some(0), "at {at}:\n{}", batch.logged());
            if died {
                break;
            }
        }
        assert!(died || !must, "{at} was not come by");
        if died {
            killed += 1;
            progress("archive and batch layer", killed, kills);
        }
    }
}

/// What comes while processes are killed.
fn options() -> Options {
    Options {
        // At 100 a second enough for the whole of the long form; on so many days that what a run computes, all files of a
        // day, stays small beside the kill.
        records: 600_000,
        span: 64 * 86_400_000,
        users: 100,
        documents: 50,
        displays: 60,
        geos: 10,
        near_repeats: 0.05,
        disorder: 0.2,
        late: 0.01,
        late_max: 600_000,
        malformed: 0.02,
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_every_failpoint_lose_and_double_nothing() {
    let (kills, seed) =
        (number("TIDEMARK_KILLS").unwrap_or(50) as usize, number("TIDEMARK_SEED").unwrap_or(71));
    println!("{kills} kills, seed {seed} (TIDEMARK_KILLS, TIDEMARK_SEED)");
    let text = outbrain().replace("message_key = \"uuid\"", "message_key = \"uuid\"\nfacts = true");
    // The bounds of believable event times reach as far as the records do.
    let text = text.replace("to = \"2016-07-01\"", "to = \"2016-09-15\"");
    let stack = Stack::with_catalog(LAYERS, PARTITIONS, &text).await;

    let (speed, batch) = (points("speed-layer"), points("batch-layer"));
    assert!(speed.len() > 15 && batch.len() > 20, "{speed:?} {batch:?}");
    // On an empty database, with nothing in the log: every partition needs a tick.
    let begins = [
        "migrate.before",
        "migrate.after",
        "initialise.before",
        "initialise.after",
        "tick.before",
        "tick.after",
    ];
    let begins = begins.map(|point| format!("batch.{point}"));
    let begins: Vec<&str> = begins.iter().map(String::as_str).collect();
    let mut batch_deaths = deaths(&batch, &begins, StdRng::seed_from_u64(seed));
    let first = ["speed.topics.before", "speed.topics.after"];
    let speed_deaths = deaths(&speed, &first, StdRng::seed_from_u64(seed + 1));
    // Each point at least once.
    let (by_speed, by_batch) = ((kills - kills / 2).max(speed.len()), (kills / 2).max(batch.len()));

    // Nothing is there yet: the first tidemark is written in spite of kills.
    kill_batch(&stack, &mut batch_deaths, begins.len()).await;
    stack.batch(&["run"]).await;
    let load = Load::of(&stack, Generator::new(options(), seed), 100);
    let rest = by_batch - begins.len();
    tokio::join!(kill_speed(&stack, speed_deaths, by_speed), kill_batch(&stack, &mut batch_deaths, rest));
    let sent = load.end().await;

    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    stack.settle().await;
    stack.verify_groups("after the kills").await;
    let oracle = stack.oracle();
    stack.compare(&serving, &oracle, "after the kills").await;
    stack.batch(&["run"]).await;
    stack.settle().await;
    stack.compare(&serving, &oracle, "after the kills and a run").await;
    println!(
        "{} kills ({by_speed} of the speed layer, the others of archive and batch) at {} points while {sent} records \
         came: 0 lost, 0 doubled over {} distinct events",
        by_speed + by_batch,
        speed.len() + batch.len(),
        oracle.facts().len()
    );
}
