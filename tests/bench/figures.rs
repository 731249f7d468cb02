//! Prints figures: the median of some runs, with the least and the greatest.

/// One figure, as each run gave it.
pub(crate) fn line(name: &str, runs: &[f64], digits: usize) {
    let sorted = sorted(runs);
    let (median, min, max) = (median(runs), sorted[0], sorted[sorted.len() - 1]);
    println!("  {name:<44} {median:>12.digits$} ({min:.digits$} to {max:.digits$})");
}

/// The one in the middle.
pub(crate) fn median(runs: &[f64]) -> f64 {
    sorted(runs)[runs.len() / 2]
}

fn sorted(runs: &[f64]) -> Vec<f64> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}
