//! What a run costs by how many days are dirty, all of an archive, one or none, and how much of the archive's files it
//! reads.
//!
//! Files are of one day each, and a dirty day is computed whole: what a run can pass over are the files of other days, and
//! the columns that none of its metrics uses. That holds for an archive on this machine; from elsewhere a dirty day's
//! files are fetched whole, to be proven by their checksums.
//!
//! What is read of the archive's files is told apart from all that the process reads from the disk (see `disk.rs`), which
//! is also what it has spilled.

use crate::days::{Day, Days, Run, length};
use crate::figures::Figures;
use crate::{Args, disk};
use anyhow::ensure;

/// The metric that uses the fewest columns.
const NARROW: &str = "display_day";

/// Measures runs over so many days, over which the records are spread evenly.
pub(crate) async fn measure(args: &Args, count: u64) -> anyhow::Result<()> {
    let mut days = Days::start(args).await?;
    let day = |number| Day { number, rows: args.rows / count, skewed: false };
    let all: Vec<Day> = (0..count).map(day).collect();
    for day in &all {
        days.bring(*day).await?;
    }
    let mut figures = Figures::default();
    for round in 1..=args.runs {
        days.renew(round);
        let whole = cold(&days, days.run(&["run"], all.len())).await?;
        ensure!(
            whole.run.read > 0.0,
            "nothing was read: the folder for temporary files (TMPDIR) isn't on a disk"
        );
        check(&days, &all).await?;
        let narrow = cold(&days, days.recompute(&all, &["--metric", NARROW])).await?;
        let late = Day { rows: all[0].rows / 1_000 + u64::from(round), ..all[0] };
        days.bring(late).await?;
        let one = cold(&days, days.run(&["run"], 1)).await?;
        check(&days, &all[..1]).await?;
        let none = cold(&days, days.run(&["run"], 0)).await?;
        println!("  round {round}:");
        note(&mut figures, "all days dirty", &whole, &whole);
        note(&mut figures, &format!("{NARROW} alone of all days"), &narrow, &whole);
        note(&mut figures, "one day dirty", &one, &whole);
        note(&mut figures, "no day dirty", &none, &whole);
    }
    figures.print();
    Ok(())
}

/// What was done with nothing of the archive in memory.
struct Cold {
    run: Run,
    /// What was read of the archive's files, in MB.
    read: f64,
    /// Their length, in MB.
    length: f64,
}

async fn cold(days: &Days, run: impl Future<Output = anyhow::Result<Run>>) -> anyhow::Result<Cold> {
    let files = days.archive().await?;
    disk::forget(&files)?;
    let kept = disk::held(&files)?;
    let run = run.await?;
    Ok(Cold { run, read: disk::held(&files)? - kept, length: length(&files)? })
}

async fn check(days: &Days, of: &[Day]) -> anyhow::Result<()> {
    for day in of {
        days.check(*day, &days.reference(*day).await?).await?;
    }
    Ok(())
}

/// Prints what something took, and notes it beside what all days took.
fn note(figures: &mut Figures, name: &str, took: &Cold, whole: &Cold) {
    let Cold { run, read, length } = took;
    println!(
        "    {name}: {:.1} s, {:.1} CPU-s, {read:.1} of {length:.1} MB of the archive read, {:.1} MB in all",
        run.seconds, run.cpu, run.read
    );
    let all = [
        ("s", run.seconds),
        ("s / all days dirty", run.seconds / whole.run.seconds),
        ("CPU-s / all days dirty", run.cpu / whole.run.cpu),
        ("MB of the archive read", *read),
        ("MB of the archive read / its MB", read / length),
        ("MB read in all", run.read),
    ];
    all.into_iter().for_each(|(what, figure)| figures.add(&format!("{name}: {what}"), figure, 2));
}
