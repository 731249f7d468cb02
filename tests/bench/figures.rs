//! Prints figures: the median of some runs, with the least and the greatest.

/// What runs gave, by what it is, in the order in which it first came.
#[derive(Default)]
pub(crate) struct Figures(Vec<Figure>);

struct Figure {
    name: String,
    /// So many are printed behind the point.
    digits: usize,
    runs: Vec<f64>,
}

impl Figures {
    /// Adds what a run gave.
    pub(crate) fn add(&mut self, name: &str, figure: f64, digits: usize) {
        match self.0.iter_mut().find(|known| known.name == name) {
            Some(known) => known.runs.push(figure),
            None => self.0.push(Figure { name: name.to_owned(), digits, runs: vec![figure] }),
        }
    }

    pub(crate) fn print(&self) {
        self.0.iter().for_each(|figure| line(&figure.name, &figure.runs, figure.digits));
    }
}

/// One figure, as each run gave it.
pub(crate) fn line(name: &str, runs: &[f64], digits: usize) {
    let sorted = sorted(runs);
    let (median, min, max) = (median(runs), sorted[0], sorted[sorted.len() - 1]);
    println!("  {name:<48} {median:>12.digits$} ({min:.digits$} to {max:.digits$})");
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
