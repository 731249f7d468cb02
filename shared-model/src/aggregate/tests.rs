//! Every aggregate under the laws, and its finished values and columns by example.

use super::*;
use crate::laws;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::time::{Duration, Instant};

proptest! {
    #[test]
    fn every_aggregate_keeps_the_laws(case in laws::cases(), bit: usize) {
        laws::all(&case, bit)?;
    }

    #[test]
    fn hostile_bytes_never_panic(aggregate in laws::aggregates(), tag in 0..8u8, mut bytes: Vec<u8>) {
        laws::hostile_bytes_are_refused_or_canonical(&aggregate, &bytes)?;
        // Behind a first byte that is right, they come further.
        bytes.insert(0, STATE_VERSION << 4 | tag);
        laws::hostile_bytes_are_refused_or_canonical(&aggregate, &bytes)?;
    }
}

/// The laws say something of sketches only if cases reach them, by adding as well as by merging exact parts.
#[test]
fn cases_are_on_both_sides_of_the_exact_limit() {
    let mut runner = TestRunner::deterministic();
    let (mut exact, mut sketches) = (0, 0);
    for _ in 0..256 {
        let case = laws::cases().new_tree(&mut runner).expect("nothing is filtered").current();
        match laws::fold(&case.aggregate, &case.values) {
            State::Distinct(distinct) if distinct.is_exact() => exact += 1,
            State::Distinct(_) => sketches += 1,
            _ => {}
        }
    }
    assert!(exact > 10 && sketches > 10, "{exact} exact, {sketches} sketches");
}

fn ints(values: &[i64]) -> Vec<Value> {
    values.iter().copied().map(Value::Int).collect()
}

#[test]
fn finished_values() {
    let check = |aggregate: Aggregate, values: &[Value], expected: Finished| {
        assert_eq!(
            laws::fold(&aggregate, values).finish(&aggregate),
            expected,
            "{aggregate:?} of {values:?}"
        );
    };
    let decimal = FieldType::Decimal(2);
    let null = || Finished::Null(());
    check(Aggregate::Count, &[Value::Null, Value::Int(3)], Finished::Int(2));
    check(Aggregate::TopK { k: 3 }, &[Value::Null], Finished::Int(1));
    check(Aggregate::Sum(FieldType::Int), &ints(&[1, -5]), Finished::Int(-4));
    check(Aggregate::Sum(FieldType::Int), &[Value::Null], null());
    check(Aggregate::Sum(FieldType::Int), &ints(&[i64::MAX, i64::MAX]), Finished::Float(2f64.powi(64)));
    check(Aggregate::Sum(decimal), &ints(&[199, 1]), Finished::Float(2.0));
    check(Aggregate::Min(FieldType::Int), &ints(&[4, -2, 9]), Finished::Int(-2));
    check(Aggregate::Min(decimal), &ints(&[410]), Finished::Float(4.1));
    check(
        Aggregate::Min(FieldType::Bool),
        &[Value::Bool(true), Value::Bool(false)],
        Finished::Text("false".into()),
    );
    check(
        Aggregate::Max(FieldType::String),
        &[Value::str("a"), Value::Null, Value::str("b")],
        Finished::Text("b".into()),
    );
    check(Aggregate::Max(FieldType::Float), &[], null());
    check(Aggregate::Mean(FieldType::Int), &ints(&[1, 2]), Finished::Float(1.5));
    check(Aggregate::Mean(decimal), &ints(&[100, 200]), Finished::Float(1.5));
    check(Aggregate::Mean(FieldType::Int), &[Value::Null], null());
    check(
        Aggregate::Distinct,
        &[Value::Null, Value::str(""), Value::str("a"), Value::str("a")],
        Finished::Int(2),
    );
    let median = |ty| Aggregate::Quantile { ty, quantiles: vec![0.5, 1.0] };
    check(median(FieldType::Int), &[], Finished::List(vec![None, None]));
    check(median(FieldType::Int), &ints(&[0, 0, 64]), Finished::List(vec![Some(0.0), Some(64.5)]));
    check(median(decimal), &ints(&[-6400]), Finished::List(vec![Some(-64.32); 2]));
}

#[test]
fn columns_name_their_types() {
    let check = |aggregate: Aggregate, expected: &[(&str, ColumnType)], of_state: usize| {
        assert_eq!(aggregate.columns(), expected);
        assert_eq!(aggregate.state_columns(), expected[..of_state]);
    };
    use ColumnType::{BigInt, Bool, Bytes, Double, Numeric, Text};
    check(Aggregate::Count, &[("value", BigInt)], 1);
    check(Aggregate::TopK { k: 10 }, &[("value", BigInt)], 1);
    check(Aggregate::Sum(FieldType::Decimal(2)), &[("value", Numeric)], 1);
    check(Aggregate::Min(FieldType::Bool), &[("value", Bool)], 1);
    check(Aggregate::Max(FieldType::String), &[("value", Text)], 1);
    check(Aggregate::Max(FieldType::Decimal(2)), &[("value", BigInt)], 1);
    check(Aggregate::Min(FieldType::Float), &[("value", Double)], 1);
    check(Aggregate::Mean(FieldType::Int), &[("sum", Numeric), ("count", BigInt), ("value", Double)], 2);
    check(Aggregate::Distinct, &[("state", Bytes), ("sketch", Bytes), ("estimate", BigInt)], 1);
    let quantile = Aggregate::Quantile { ty: FieldType::Float, quantiles: vec![0.5, 0.999] };
    check(quantile, &[("state", Bytes), ("p50", Double), ("p99_9", Double)], 1);
}

#[test]
fn forged_states_are_refused() {
    let check = |aggregate: Aggregate, bytes: &[u8]| {
        assert!(State::decode(&aggregate, &mut &bytes[..]).is_err(), "{aggregate:?} from {bytes:x?}");
    };
    // Of another kind, of a newer version, cut off.
    check(Aggregate::Count, &[0x12, 0]);
    check(Aggregate::Count, &[0x21, 1]);
    check(Aggregate::Count, &[0x11]);
    // 2^63.
    check(Aggregate::Count, &[0x11, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]);
    // Of another type than the metric's.
    check(Aggregate::Min(FieldType::String), &[0x13, 3, 2]);
    // Items twice, descending; no register set; one beyond 6 bits.
    let items = |items: [u64; 2]| [&[0x16, 0, 2][..], &items.map(u64::to_be_bytes).concat()].concat();
    check(Aggregate::Distinct, &items([1 << 26, 1 << 26]));
    check(Aggregate::Distinct, &items([2 << 26, 1 << 26]));
    check(Aggregate::Distinct, &items([1, 1 << 26]));
    check(Aggregate::Distinct, &[&[0x16, 1][..], &[0; 4096]].concat());
    check(Aggregate::Distinct, &[&[0x16, 1][..], &[64; 4096]].concat());
    // A bucket twice, and an empty one.
    let quantile = Aggregate::Quantile { ty: FieldType::Int, quantiles: vec![0.5] };
    check(quantile.clone(), &[0x17, 2, 0, 1, 0, 1]);
    check(quantile, &[0x17, 1, 0, 0]);
}

#[test]
fn states_of_different_kinds_do_not_merge() {
    let mut count = State::Count(1);
    assert!(count.merge(&State::Sum(Some(1))).is_err());
    assert!(count.merge(&State::Count(count::LIMIT)).is_err());
    assert_eq!(count, State::Count(1));
}

/// Figures for people: `cargo test -p shared-model timing -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn timing() {
    let report = |what: &str, rounds: u32, taken: Duration| {
        eprintln!("{what:<40} {:>9.1} ns", taken.as_nanos() as f64 / f64::from(rounds));
    };
    let users: Vec<Value> = (0..100_000).map(|n| Value::str(&format!("{n:032x}"))).collect();
    let time = |what: &str, rounds: u32, step: &mut dyn FnMut(usize)| {
        let start = Instant::now();
        (0..rounds as usize).for_each(step);
        report(what, rounds, start.elapsed());
    };
    let mut bytes = Vec::new();
    let mut count = State::Count(0);
    time("count add", 10_000_000, &mut |_| std::hint::black_box(&mut count).add(&Value::Null));
    time("count merge", 10_000_000, &mut |_| {
        std::hint::black_box(&mut count).merge(&State::Count(3)).expect("below the limit");
    });
    time("count encode", 1_000_000, &mut |_| {
        bytes.clear();
        count.encode(std::hint::black_box(&mut bytes));
    });
    for distinct in [10, 384, 100_000] {
        let mut state = State::empty(&Aggregate::Distinct);
        time(&format!("distinct add, {distinct} users"), 1_000_000, &mut |n| state.add(&users[n % distinct]));
        let other = laws::fold(&Aggregate::Distinct, &users[..distinct]);
        let rounds = 20_000;
        time(&format!("distinct merge, {distinct} users"), rounds, &mut |_| {
            std::hint::black_box(&mut state).merge(&other).expect("of one kind");
        });
        time(&format!("distinct encode, {distinct} users"), rounds, &mut |_| {
            bytes.clear();
            state.encode(&mut bytes);
        });
        time(&format!("distinct decode, {distinct} users"), rounds, &mut |_| {
            State::decode(&Aggregate::Distinct, &mut &bytes[..]).expect("just written");
        });
        time(&format!("distinct finish, {distinct} users"), 2_000, &mut |_| {
            std::hint::black_box(state.finish(&Aggregate::Distinct));
        });
    }
}
