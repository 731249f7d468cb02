//! Distinct counts against the DataSketches crate. `tests/golden.rs` holds them to sketches that the C++ library wrote.

use super::*;
use datasketches::hash::value::raw_bytes;
use datasketches::hll::{HllSketch, HllType, HllUnion};

fn users(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("user-{n}"))
}

fn of_users(count: usize) -> Distinct {
    let mut state = Distinct::default();
    users(count).for_each(|user| state.add(&Value::str(&user)));
    state
}

#[test]
fn the_form_depends_on_the_number_of_values_alone() {
    for (count, exact) in [(0, true), (1, true), (EXACT_LIMIT, true), (EXACT_LIMIT + 1, false), (5000, false)]
    {
        let mut state = of_users(count);
        assert_eq!(state.is_exact(), exact);
        assert_eq!(state.error_bound() == 0.0, exact);
        let once = state.clone();
        state.merge(&of_users(count));
        assert_eq!(state, once);
    }
}

#[test]
fn estimates_are_within_the_bound() {
    for count in [1, 100, 384, 385, 500, 1000, 3000, 10_000, 50_000, 200_000] {
        let state = of_users(count);
        let error = (state.estimate() as f64 - count as f64).abs() / count as f64;
        assert!(error <= state.error_bound(), "{state:?} of {count}");
    }
}

/// The library's own sketch of the same values, and ours read by it, are one sketch.
#[test]
fn the_library_reads_and_merges_our_sketches() {
    for count in [0, 1, 7, 8, 24, 25, 48, 96, 192, 193, 384, 385, 1000, 20_000] {
        let state = of_users(count);
        let ours = HllSketch::deserialize(&state.to_datasketches()).expect("standard bytes");
        let mut theirs = HllSketch::new(LG_REGISTERS, HllType::Hll8).unwrap();
        users(count).for_each(|user| theirs.update(raw_bytes::from_string(user)));
        assert_eq!(ours.composite_estimate(), theirs.composite_estimate(), "{count}");
        assert!((ours.estimate() - state.estimate() as f64).abs() <= 0.5, "{count}");

        let mut union = HllUnion::new(LG_REGISTERS).unwrap();
        union.update(&theirs);
        let alone = union.to_sketch(HllType::Hll8).composite_estimate();
        union.update(&ours);
        assert_eq!(
            union.to_sketch(HllType::Hll8).composite_estimate(),
            alone,
            "{count}: a union with itself"
        );
    }
}
