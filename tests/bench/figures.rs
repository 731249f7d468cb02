//! Prints figures: the median of some runs, with the least and the greatest.

/// One figure, as each run gave it.
pub(crate) fn line(name: &str, runs: &[f64], digits: usize) {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (median, min, max) = (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]);
    println!("  {name:<44} {median:>12.digits$} ({min:.digits$} to {max:.digits$})");
}
