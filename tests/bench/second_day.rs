//! What a second day costs beside the first one, in the same archive and in turns: a day of which one key has half, or one
//! of many times the records within the same memory.

use crate::Args;
use crate::days::{Day, Days, Run};
use crate::figures::Figures;

/// Measures both days, and the second one's cost for a record as a ratio against the first one's.
pub(crate) async fn measure(args: &Args, second: Day) -> anyhow::Result<()> {
    let days = Days::start(args).await?;
    let both = [Day { number: 0, rows: args.rows, skewed: false }, second];
    let mut figures = Figures::default();
    for day in both {
        days.bring(day).await?;
        let run = days.run(&["run"], 1).await?;
        let rows = days.check(day, &days.reference(day).await?).await?;
        println!("  {}: {}, loaded {rows} rows in {:.1} s", day.date(), shown(&run), run.loaded);
        figures.add(&peak(day), run.peak, 0);
    }
    for round in 1..=args.runs {
        let runs = [days.recompute(&both[..1], &[]).await?, days.recompute(&both[1..], &[]).await?];
        for (day, run) in both.iter().zip(&runs) {
            println!("  run {round}, {}: {}", day.date(), shown(run));
            figures.add(&format!("{}: computed, s", day.date()), run.computed, 2);
            figures.add(&peak(*day), run.peak, 0);
        }
        let [first, second] = &runs;
        let records = both[1].rows as f64 / both[0].rows as f64;
        let ratio = |of: fn(&Run) -> f64| of(second) / of(first) / records;
        figures.add("second day / first, s a record", ratio(|run: &Run| run.computed), 2);
        figures.add("second day / first, CPU-s a record", ratio(|run: &Run| run.cpu), 2);
    }
    figures.print();
    Ok(())
}

fn shown(run: &Run) -> String {
    format!("computed {:.1} s ({:.1} CPU-s, {:.0} MB)", run.computed, run.cpu, run.peak)
}

/// The name of the figure of a day's runs, the one that loaded it too.
fn peak(day: Day) -> String {
    format!("{}: peak memory, MB", day.date())
}
