//! The items counted most often.
//!
//! A top-k keeps one exact count per item (the item is one more key column of its cells), so it merges exactly; ranking
//! is this one pure function over the merged counts, used by all that serve a top-k.

/// The `k` items with the highest counts, highest first; ties by item, ascending. Each item comes at most once in
/// `items` (merge its counts first); one whose count is 0 has slid out of the window and is not ranked.
pub fn rank<I: Ord>(items: impl IntoIterator<Item = (I, u64)>, k: usize) -> Vec<(I, u64)> {
    let mut ranked: Vec<(I, u64)> = items.into_iter().filter(|(_, count)| *count > 0).collect();
    let by_rank = |(a, left): &(I, u64), (b, right): &(I, u64)| right.cmp(left).then_with(|| a.cmp(b));
    if k < ranked.len() {
        // Only the winners need sorting; a select is linear.
        ranked.select_nth_unstable_by(k, by_rank);
        ranked.truncate(k);
    }
    ranked.sort_unstable_by(by_rank);
    ranked
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn ranks_by_count_then_item() {
        let check = |items: &[(&'static str, u64)], k, expected: &[(&'static str, u64)]| {
            let mut reversed = items.to_vec();
            reversed.reverse();
            assert_eq!(rank(items.iter().copied(), k), expected);
            assert_eq!(rank(reversed, k), expected);
        };
        check(&[], 3, &[]);
        check(&[("a", 1)], 0, &[]);
        check(&[("b", 2), ("a", 2), ("c", 9), ("d", 0)], 2, &[("c", 9), ("a", 2)]);
        check(&[("b", 2), ("a", 2), ("c", 9), ("d", 0)], 9, &[("c", 9), ("a", 2), ("b", 2)]);
    }
}
