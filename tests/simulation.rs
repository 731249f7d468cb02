//! The layers' own decisions under a scheduler that does its worst, in one thread, from a seed.
//!
//! Actors: speed processes (claim, read, dedup, fold, fenced flush), batch runs (seal, decide the days, compute, flip)
//! and readers (answer, merge), over a log, a Redis, a ledger and an archive in memory. The scheduler picks who moves
//! next; between any two effects of an actor it may be dropped, frozen or overtaken. Every answer that any reader
//! gets is judged; once quiet, all must be complete and equal to the naive fold.
//!
//! `TIDEMARK_SEED=n` replays a seed, `TIDEMARK_SEEDS=10000` runs so many. A failure prints its seed, the fewest moves
//! after which it still fails, and the last steps.

#[path = "simulation/batch.rs"]
mod batch;
#[path = "simulation/fact.rs"]
mod fact;
#[path = "simulation/log.rs"]
mod log;
#[path = "simulation/mishaps.rs"]
mod mishaps;
#[path = "simulation/quiet.rs"]
mod quiet;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/reader.rs"]
mod reader;
#[path = "simulation/scheduler.rs"]
mod scheduler;
#[path = "simulation/speed.rs"]
mod speed;
#[path = "simulation/tally.rs"]
mod tally;
#[path = "simulation/world.rs"]
mod world;

use scheduler::{MOVES, play};
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use tally::Tally;
use tidemark_tests::number;
use world::Sabotage;

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;
/// Seeds within which what is built in must be caught; the rarest take a few hundred.
const SABOTAGED: u64 = 2_000;

/// Plays a seed; what it did, or why it failed with the last steps.
fn attempt(seed: u64, moves: usize, sabotage: Option<Sabotage>) -> Result<Tally, String> {
    let mut scheduler = play(seed);
    scheduler.world.state().sabotage = sabotage;
    PLAYING.set(true);
    let done = catch_unwind(AssertUnwindSafe(|| scheduler.run(moves)));
    PLAYING.set(false);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("{}{}", scheduler.world.trace(), text.unwrap_or_default())
    })
}

/// The fewest moves after which a seed fails.
fn fewest(seed: u64) -> usize {
    let (mut passes, mut fails) = (0, MOVES);
    while fails - passes > 1 {
        let middle = (passes + fails) / 2;
        if attempt(seed, middle, None).is_ok() { passes = middle } else { fails = middle }
    }
    fails
}

/// Plays seeds, as many at once as the machine has cores, up to the first that fails.
fn play_all(seeds: Range<u64>, sabotage: Option<Sabotage>) -> Result<Tally, u64> {
    let (next, total) = (AtomicU64::new(seeds.start), Mutex::new((Tally::default(), None::<u64>)));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let failed = total.lock().expect("no panic comes this far").1.is_some();
            if seed >= seeds.end || failed {
                return;
            }
            let played = attempt(seed, MOVES, sabotage);
            let mut total = total.lock().expect("no panic comes this far");
            match played {
                Ok(tally) => total.0 += tally,
                Err(_) => total.1 = Some(total.1.map_or(seed, |failed| failed.min(seed))),
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    let (tally, failed) = total.into_inner().expect("no panic comes this far");
    failed.map_or(Ok(tally), Err)
}

/// What a seed's failure has to say is told by its own report. That a world can be set up at all is no matter of chance.
fn silence() {
    static ONCE: Once = Once::new();
    drop(play(0));
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !PLAYING.get() {
                loud(panic);
            }
        }));
    });
}

thread_local! {
    /// Whether this thread plays a seed.
    static PLAYING: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn whatever_happens_complete_answers_are_exact() {
    let seeds = match number("TIDEMARK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDEMARK_SEEDS").unwrap_or(SEEDS),
    };
    let (begun, count) = (std::time::Instant::now(), seeds.end - seeds.start);
    silence();
    let played = play_all(seeds, None);
    let report = played.as_ref().err().map(|&seed| {
        let moves = fewest(seed);
        let shown =
            attempt(seed, moves, None).err().unwrap_or_else(|| "it passed when tried again".to_owned());
        format!("TIDEMARK_SEED={seed} fails after {moves} moves:\n{shown}")
    });
    match (played, report) {
        (Ok(total), _) => println!("{count} seeds in {:.1?}: {total}", begun.elapsed()),
        (Err(seed), report) => panic!("{}", report.unwrap_or_else(|| format!("TIDEMARK_SEED={seed} fails"))),
    }
}

/// That seeds pass means something only if they would not with a fault built in.
#[test]
fn the_simulation_catches_what_is_built_in() {
    let built_in = [
        Sabotage::LooksClaimed,
        Sabotage::FenceIgnored,
        Sabotage::WriteTorn,
        Sabotage::DedupForgotten,
        Sabotage::RecordSkipped,
        Sabotage::CutsMoved,
        Sabotage::ArchiveSkips,
        Sabotage::HorizonUnsaid,
    ];
    silence();
    for sabotage in built_in {
        let caught = play_all(0..SABOTAGED, Some(sabotage));
        assert!(caught.is_err(), "{sabotage:?} was not caught by {SABOTAGED} seeds");
        println!("{sabotage:?}: caught by seed {}", caught.err().unwrap_or_default());
    }
}
