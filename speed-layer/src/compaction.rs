//! Which segments of a slice to merge: a pure choice that bounds how many there are and how often bytes are rewritten.
//!
//! Segments of like size are merged, small ones eight at a time, large ones sixteen (each byte is rewritten about log8 of
//! the slice's size over the size of a flush, or less); the segments of an epoch that is over are merged into one, once.

use shared_model::view::Slice;
use std::collections::BTreeMap;

/// The segments of one slice: number to stored length in bytes.
pub(crate) type Segments = BTreeMap<u64, usize>;

/// How many segments of one small size are merged.
const FAN: usize = 8;
/// How many of a large one, each of which costs little to keep and much to rewrite.
const LARGE_FAN: usize = 16;
/// The first size class that is large: 32 KiB.
const LARGE: u32 = 3;

/// The segments to merge next, if any.
pub(crate) fn choose(slice: Slice, segments: &Segments, open_epoch: i64) -> Option<Vec<u64>> {
    let over = matches!(slice, Slice::Epoch(epoch) if epoch < open_epoch);
    if over && segments.len() > 1 {
        return Some(segments.keys().copied().collect());
    }
    if segments.len() < FAN {
        return None;
    }
    let mut levels: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (&seq, &length) in segments {
        levels.entry(level(length)).or_default().push(seq);
    }
    let fan = |level| if level < LARGE { FAN } else { LARGE_FAN };
    levels.into_iter().find(|(level, seqs)| seqs.len() >= fan(*level)).map(|(_, seqs)| seqs)
}

/// The size class: below 512 bytes, 4 KiB, 32 KiB, ...
fn level(length: usize) -> u32 {
    (usize::BITS - (length >> 9).leading_zeros()).div_ceil(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_sizes_merge_by_eight_and_an_epoch_that_is_over_into_one() {
        let small: Segments = (0..8).map(|seq| (seq, 100)).collect();
        assert_eq!(choose(Slice::Epoch(5), &small, 5), Some((0..8).collect()));
        let mixed: Segments = (0..8).map(|seq| (seq, 100 << (seq * 2))).collect();
        assert_eq!(choose(Slice::Epoch(5), &mixed, 5), None);
        assert_eq!(choose(Slice::Pane(0), &mixed, 9), None);
        assert_eq!(choose(Slice::Epoch(5), &mixed, 6), Some((0..8).collect()));
        assert_eq!(choose(Slice::Epoch(5), &[(3, 10)].into(), 6), None);
        assert_eq!([0, 511, 512, 4095, 4096, 32767, 32768].map(level), [0, 0, 1, 1, 2, 2, LARGE]);
    }

    #[test]
    fn large_ones_merge_by_sixteen() {
        let large = |count: u64| -> Segments { (0..count).map(|seq| (seq, 32 << 10)).collect() };
        assert_eq!(choose(Slice::Epoch(5), &large(15), 5), None);
        assert_eq!(choose(Slice::Epoch(5), &large(16), 5), Some((0..16).collect()));
    }

    #[test]
    fn bytes_are_rewritten_a_logarithmic_number_of_times() {
        // Most often: by levels of 2, 16, 128 kB and 2 MB; by those of 60 and 960 kB.
        for (flushes, size, times) in [(2_400u64, 2_000, 3), (250, 60_000, 1)] {
            let (mut segments, mut written) = (Segments::new(), 0);
            for flush in 0..flushes {
                segments.insert(flush * 2, size);
                if let Some(chosen) = choose(Slice::Epoch(0), &segments, 0) {
                    let merged: usize = chosen.iter().map(|seq| segments.remove(seq).expect("chosen")).sum();
                    written += merged;
                    segments.insert(flush * 2 + 1, merged);
                }
                assert!(segments.len() < 40);
            }
            assert!(written <= flushes as usize * size * times, "{written}");
        }
    }
}
