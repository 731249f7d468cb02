//! Which files of a stream's event day to rewrite as one: a pure choice that bounds how many there are and how often bytes
//! are rewritten.
//!
//! The smallest files are taken, as many as it needs, and more until what comes of them is at least twice as long as the
//! longest of them: a byte is rewritten only into a file of at least twice the length, so at most log2 of the day's length
//! over the smallest file's many times. Where each file is longer than all smaller ones together no such number may be
//! there; then as many are taken as must be, which are a small part of the day.
//!
//! Of a day of large files no more go at once than a run may rewrite: what is left of them is the next run's.

/// So many files of a stream and event day are let stand.
pub(crate) const MOST: usize = 24;
/// So many are left at most once they are too many, so that the next few don't make them so again.
const LEFT: usize = 16;

/// The files to rewrite as one, by their place in `lengths` (in bytes), ascending by length; none where there are few.
pub(crate) fn choose(lengths: &[u64]) -> Option<Vec<usize>> {
    if lengths.len() <= MOST {
        return None;
    }
    let mut places: Vec<usize> = (0..lengths.len()).collect();
    places.sort_by_key(|&place| (lengths[place], place));
    // The one that is written stands in their stead.
    let least = places.len() - LEFT + 1;
    let mut together = 0_u64;
    let enough = places.iter().enumerate().position(|(taken, &place)| {
        together = together.saturating_add(lengths[place]);
        taken + 1 >= least && together >= lengths[place].saturating_mul(2)
    });
    places.truncate(enough.map_or(least, |at| at + 1));
    Some(places)
}

/// The first of the chosen files, as many as have at most so many bytes together; but two, or nothing would come of them.
pub(crate) fn within(mut chosen: Vec<usize>, lengths: &[u64], bytes: u64) -> Vec<usize> {
    let mut together = 0_u64;
    let fits = |place: &&usize| {
        together = together.saturating_add(lengths[**place]);
        together <= bytes
    };
    let fitting = chosen.iter().take_while(fits).count();
    chosen.truncate(fitting.max(2));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn few_files_stay_and_of_many_the_smallest_go() {
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[5; MOST]), None);
        assert_eq!(choose(&[5; MOST + 1]), Some((0..10).collect()));
        // Two large ones, wherever they stand.
        let mut lengths = vec![5; MOST + 6];
        (lengths[0], lengths[9]) = (10_000, 7_000);
        let chosen = choose(&lengths).expect("too many");
        assert_eq!(chosen.len(), MOST + 6 - LEFT + 1);
        assert!(!chosen.contains(&0) && !chosen.contains(&9));
        // One small file beside many large ones: what is rewritten doubles.
        let mut lengths = vec![1_000; MOST + 1];
        lengths[7] = 1;
        let chosen = choose(&lengths).expect("too many");
        assert_eq!(chosen[0], 7);
        // Each longer than all before it: no more than must be.
        let lengths: Vec<u64> = (0..MOST as u32 + 1).map(|at| 3_u64.pow(at)).collect();
        assert_eq!(choose(&lengths), Some((0..10).collect()));
    }

    #[test]
    fn of_those_that_are_chosen_only_the_first_go_that_are_not_too_long_together() {
        let lengths = [30, 10, 20, 1, 40];
        let taken = |bytes| within(vec![3, 1, 2, 0, 4], &lengths, bytes);
        assert_eq!(taken(u64::MAX), [3, 1, 2, 0, 4]);
        assert_eq!(taken(101), [3, 1, 2, 0, 4]);
        assert_eq!(taken(100), [3, 1, 2, 0]);
        assert_eq!(taken(31), [3, 1, 2]);
        assert_eq!(taken(30), [3, 1]);
        // Two, however long they are.
        assert_eq!(taken(0), [3, 1]);
        assert_eq!(within(vec![1, 0], &[u64::MAX, u64::MAX - 1], 5), [1, 0]);
    }

    /// A file of a day that is followed: its length, and of each of its bytes how often it was rewritten, at most.
    #[derive(Clone, Copy)]
    struct Followed {
        length: u64,
        rewritten: u32,
    }

    /// Runs bring files; gives how often a byte was rewritten at most, and all bytes that were.
    fn follow(runs: &[Vec<u64>]) -> (u32, u64) {
        let (mut files, mut bytes): (Vec<Followed>, u64) = (Vec::new(), 0);
        for run in runs {
            files.extend(run.iter().map(|&length| Followed { length, rewritten: 0 }));
            let lengths: Vec<u64> = files.iter().map(|file| file.length).collect();
            if let Some(mut chosen) = choose(&lengths) {
                chosen.sort_unstable_by(|a, b| b.cmp(a));
                let gone: Vec<Followed> = chosen.into_iter().map(|place| files.swap_remove(place)).collect();
                let length = gone.iter().map(|file| file.length).sum();
                let rewritten = gone.iter().map(|file| file.rewritten).max().unwrap_or(0) + 1;
                files.push(Followed { length, rewritten });
                bytes += length;
            }
            assert!(files.len() <= MOST, "{} files after a run", files.len());
        }
        (files.iter().map(|file| file.rewritten).max().unwrap_or(0), bytes)
    }

    #[test]
    fn a_day_of_epochs_is_rewritten_few_times() {
        // Ten minutes an epoch, four partitions.
        let runs = vec![vec![20_000; 4]; 144];
        let (most, bytes) = follow(&runs);
        assert!(most <= 8, "{most} times");
        assert!(bytes <= 4 * 576 * 20_000, "{bytes} bytes");
        // A day of large files that gets late records: none is rewritten again and again.
        let whole = vec![vec![400_000_000; MOST]];
        let late = vec![vec![2_000]; 2_000];
        let (most, bytes) = follow(&[whole, late].concat());
        assert!(most <= 8, "{most} times");
        assert!(bytes <= MOST as u64 * 400_000_000, "{bytes} bytes");
    }

    proptest! {
        #[test]
        fn what_is_chosen_leaves_few_and_is_the_smallest(lengths in prop::collection::vec(0..1_000_000u64, 0..200)) {
            let Some(chosen) = choose(&lengths) else {
                prop_assert!(lengths.len() <= MOST);
                return Ok(());
            };
            let distinct: std::collections::BTreeSet<usize> = chosen.iter().copied().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
            prop_assert!(chosen.len() >= 2);
            prop_assert!(lengths.len() - chosen.len() < LEFT);
            let longest = chosen.iter().map(|&place| lengths[place]).max().unwrap_or(0);
            let mut others = (0..lengths.len()).filter(|place| !distinct.contains(place));
            prop_assert!(others.all(|place| lengths[place] >= longest));
            prop_assert_eq!(choose(&lengths), Some(chosen));
        }

        /// The bound of the module's first lines, for lengths among which none is longer than all others together by
        /// far: a file doubles with each rewriting.
        #[test]
        fn a_byte_is_rewritten_a_logarithmic_number_of_times(
            runs in prop::collection::vec(prop::collection::vec(1_000..8_000u64, 1..40), 1..300),
        ) {
            let (most, bytes) = follow(&runs);
            let all: u64 = runs.iter().flatten().sum();
            let bound = (all / 1_000).max(2).ilog2() + 1;
            prop_assert!(most <= bound, "{} times, {} at most", most, bound);
            prop_assert!(bytes <= all * u64::from(bound));
        }
    }
}
