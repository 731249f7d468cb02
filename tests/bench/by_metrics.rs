//! What a record costs by how many metrics there are: a part of the peer's, all of them, and copies under other names.
//!
//! Runs are in turns over the same log, so that what else the machine does falls on all.

use crate::figures::{Figures, median};
use crate::{Args, END, Mode, answers, catch_up, fill, peer};

/// Measures catching up with as many metrics as the arguments name, and prints what each further one costs.
pub(crate) async fn measure(args: &Args, mode: Mode) -> anyhow::Result<()> {
    let mut counts: Vec<usize> = args.metrics.iter().map(|&count| count as usize).collect();
    counts.sort_unstable();
    counts.dedup();
    let most = counts.last().copied().unwrap_or(peer::USUAL.metrics);
    let mut stack = peer::started(&args.layers, &mode.catalog(most, &args.pane), args.partitions).await?;
    let (totals, window) = fill(&stack, args, "events", END).await?;
    let published = mode.is_plain().then_some(&window);
    let (mut figures, mut costs) = (Figures::default(), vec![Vec::new(); counts.len()]);
    for number in 0..args.runs {
        for (&count, costs) in counts.iter().zip(&mut costs) {
            stack.rewrite_catalog(&mode.catalog(count, &args.pane));
            let run = catch_up(&stack, args, published).await?;
            answers::check(&stack, &totals, None).await?;
            println!("  {}, run {}, {count} metrics: {:.1} s", mode.name(), number + 1, run.seconds);
            let records = args.records as f64;
            figures.add(&format!("{count} metrics: records/s"), records / run.seconds, 0);
            figures.add(
                &format!("{count} metrics: CPU us per record, worker"),
                1e6 * run.cpu[0] / records,
                3,
            );
            figures.add(&format!("{count} metrics: CPU us per record, all"), run.for_each(args.records), 3);
            costs.push(run.for_each(args.records));
        }
    }
    println!("{}:", mode.name());
    figures.print();
    let costs: Vec<(f64, f64)> =
        counts.iter().zip(&costs).map(|(&count, costs)| (count as f64, median(costs))).collect();
    for pair in costs.windows(2) {
        let ((fewer, less), (more, dearer)) = (pair[0], pair[1]);
        let each = (dearer - less) / (more - fewer);
        println!("  from {fewer} to {more} metrics: {each:.3} CPU us per record for each further one");
    }
    if costs.len() > 1 {
        let (slope, alone) = line(&costs);
        println!(
            "  over all of them: {slope:.3} CPU us per record and metric, beside {alone:.3} for the record"
        );
    }
    Ok(())
}

/// The slope of the straight line nearest to some points (least squares), and where it begins.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let many = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / many;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let slope = together / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
    (slope, y - slope * x)
}
