//! The laws that every aggregate's states keep, as property tests: what all of Tidemark rests on.
//!
//! [`cases`] draws an aggregate with values; each law takes such a case. A layer that folds or merges in a way of its
//! own holds it to the same cases.

use crate::aggregate::{Aggregate, State};
use crate::event::{FieldType, Value};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// An aggregate and the values of one cell's records.
#[derive(Debug, Clone)]
pub struct Case {
    /// What is computed.
    pub aggregate: Aggregate,
    /// One per record, of the aggregate's type, NULLs among them.
    pub values: Vec<Value>,
    /// The same values in another order, each with the part of the log that it is in.
    pub elsewhere: Vec<(usize, Value)>,
}

/// How many parts [`Case::elsewhere`] is split into.
pub const PARTS: usize = 5;

/// What a law says: nothing, or how it was broken.
pub type Holds = Result<(), TestCaseError>;

/// Any aggregate, of any type that it takes.
pub fn aggregates() -> impl Strategy<Value = Aggregate> {
    let number = || prop_oneof![Just(FieldType::Int), (0..10u8).prop_map(FieldType::Decimal)];
    let any =
        || prop_oneof![number(), Just(FieldType::Float), Just(FieldType::String), Just(FieldType::Bool)];
    let quantiles = || vec((0..=1000u32).prop_map(|q| f64::from(q) / 1000.0), 1..4);
    prop_oneof![
        1 => Just(Aggregate::Count),
        1 => number().prop_map(Aggregate::Sum),
        1 => any().prop_map(Aggregate::Min),
        1 => any().prop_map(Aggregate::Max),
        1 => number().prop_map(Aggregate::Mean),
        3 => Just(Aggregate::Distinct),
        1 => (1..20usize).prop_map(|k| Aggregate::TopK { k }),
        1 => (prop_oneof![number(), Just(FieldType::Float)], quantiles())
            .prop_map(|(ty, quantiles)| Aggregate::Quantile { ty, quantiles }),
        1 => (1..100i64).prop_map(|idle| Aggregate::Sessions { of: 0, idle }),
    ]
}

/// Values of a type, small ones that repeat as well as extremes, one in ten NULL.
pub fn values(ty: FieldType) -> impl Strategy<Value = Value> {
    let some = match ty {
        FieldType::String => prop_oneof![
            (0..1200u32).prop_map(|n| Value::str(&format!("user-{n}"))),
            ".{0,12}".prop_map(|text| Value::str(&text)),
        ]
        .boxed(),
        FieldType::Int | FieldType::Decimal(_) => {
            prop_oneof![(-600..600i64).prop_map(Value::Int), any::<i64>().prop_map(Value::Int)].boxed()
        }
        // -0 + 0 is 0: the one zero that a record can hold.
        FieldType::Float => prop_oneof![
            (-600..600i32).prop_map(|n| Value::Float(f64::from(n) / 8.0)),
            prop::num::f64::NORMAL.prop_map(|float| Value::Float(float + 0.0)),
        ]
        .boxed(),
        FieldType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
    };
    prop_oneof![9 => some, 1 => Just(Value::Null)]
}

/// Any aggregate with up to some hundred values, on both sides of where a distinct count becomes a sketch.
pub fn cases() -> impl Strategy<Value = Case> {
    let typed = aggregates().prop_flat_map(|aggregate| {
        let ty = match &aggregate {
            Aggregate::Count | Aggregate::Distinct | Aggregate::TopK { .. } => FieldType::String,
            Aggregate::Sum(ty) | Aggregate::Min(ty) | Aggregate::Max(ty) | Aggregate::Mean(ty) => *ty,
            Aggregate::Quantile { ty, .. } => *ty,
            Aggregate::Sessions { .. } => FieldType::Int,
        };
        let most: usize = if aggregate == Aggregate::Distinct { 1200 } else { 60 };
        (Just(aggregate), (0..=most).prop_flat_map(move |length| vec(values(ty), length)))
    });
    let placed = typed.prop_flat_map(|(aggregate, values)| {
        let shuffled = Just(values.clone()).prop_shuffle();
        let parts = vec(0..PARTS, values.len());
        (Just(aggregate), Just(values), shuffled, parts)
    });
    placed.prop_map(|(aggregate, values, shuffled, parts)| Case {
        aggregate,
        values,
        elsewhere: parts.into_iter().zip(shuffled).collect(),
    })
}

/// The naive fold of values.
pub fn fold<'a>(aggregate: &Aggregate, values: impl IntoIterator<Item = &'a Value>) -> State {
    let mut state = State::empty(aggregate);
    values.into_iter().for_each(|value| state.add(value));
    state
}

/// The canonical bytes.
pub fn bytes(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.encode(&mut bytes);
    bytes
}

fn merged(left: &State, right: &State) -> Result<State, TestCaseError> {
    let mut both = left.clone();
    both.merge(right).map_err(|error| TestCaseError::fail(error.to_string()))?;
    Ok(both)
}

impl Case {
    fn parts(&self) -> Vec<State> {
        let part = |part| self.elsewhere.iter().filter(move |(of, _)| *of == part).map(|(_, value)| value);
        (0..PARTS).map(|number| fold(&self.aggregate, part(number))).collect()
    }
}

/// (a + b) + c = a + (b + c).
pub fn merge_is_associative(case: &Case) -> Holds {
    let parts = case.parts();
    let left = merged(&merged(&parts[0], &parts[1])?, &parts[2])?;
    let right = merged(&parts[0], &merged(&parts[1], &parts[2])?)?;
    prop_assert_eq!(&left, &right);
    prop_assert_eq!(bytes(&left), bytes(&right));
    Ok(())
}

/// a + b = b + a.
pub fn merge_is_commutative(case: &Case) -> Holds {
    let parts = case.parts();
    let (left, right) = (merged(&parts[0], &parts[1])?, merged(&parts[1], &parts[0])?);
    prop_assert_eq!(&left, &right);
    prop_assert_eq!(bytes(&left), bytes(&right));
    Ok(())
}

/// a + empty = empty + a = a.
pub fn the_empty_state_changes_nothing(case: &Case) -> Holds {
    let (state, empty) = (fold(&case.aggregate, &case.values), State::empty(&case.aggregate));
    prop_assert_eq!(&merged(&state, &empty)?, &state);
    prop_assert_eq!(&merged(&empty, &state)?, &state);
    Ok(())
}

/// The same values in any order, split into any parts, merged in any order, give the same state and bytes.
pub fn any_order_and_grouping_give_one_state(case: &Case) -> Holds {
    let whole = fold(&case.aggregate, &case.values);
    let in_another_order = fold(&case.aggregate, case.elsewhere.iter().map(|(_, value)| value));
    let parts = case.parts();
    let forwards = parts.iter().try_fold(State::empty(&case.aggregate), |all, part| merged(&all, part))?;
    let backwards =
        parts.iter().rev().try_fold(State::empty(&case.aggregate), |all, part| merged(&all, part))?;
    for other in [in_another_order, forwards, backwards] {
        prop_assert_eq!(&other, &whole);
        prop_assert_eq!(bytes(&other), bytes(&whole));
        prop_assert_eq!(other.finish(&case.aggregate), whole.finish(&case.aggregate));
    }
    Ok(())
}

/// A merge goes on as if all records had been added to one state.
pub fn adding_after_a_merge_is_adding(case: &Case) -> Holds {
    let (first, second) = case.values.split_at(case.values.len() / 2);
    let mut state = merged(&State::empty(&case.aggregate), &fold(&case.aggregate, first))?;
    second.iter().for_each(|value| state.add(value));
    prop_assert_eq!(state, fold(&case.aggregate, &case.values));
    Ok(())
}

/// Bytes read back to the same state, and end where the state ends.
pub fn bytes_round_trip(case: &Case) -> Holds {
    let state = fold(&case.aggregate, &case.values);
    let mut stored = bytes(&state);
    stored.extend_from_slice(b"what follows");
    let mut input = &stored[..];
    prop_assert_eq!(State::decode(&case.aggregate, &mut input), Ok(state));
    prop_assert_eq!(input, b"what follows");
    Ok(())
}

/// Columns read back to the same state, with and without those that are for people.
pub fn columns_round_trip(case: &Case) -> Holds {
    let (aggregate, state) = (&case.aggregate, fold(&case.aggregate, &case.values));
    let mut columns = state.to_columns(aggregate);
    let types: Vec<_> = aggregate.columns().into_iter().map(|(_, ty)| ty).collect();
    prop_assert_eq!(columns.iter().map(|column| column.ty()).collect::<Vec<_>>(), types);
    prop_assert_eq!(State::from_columns(aggregate, columns.clone()), Ok(state.clone()));
    columns.truncate(aggregate.state_columns().len());
    prop_assert_eq!(State::from_columns(aggregate, columns), Ok(state));
    Ok(())
}

/// Bytes of whatever content are a state's canonical bytes or an error, never a panic; what they give can be used.
pub fn hostile_bytes_are_refused_or_canonical(aggregate: &Aggregate, hostile: &[u8]) -> Holds {
    let mut input = hostile;
    if let Ok(mut state) = State::decode(aggregate, &mut input) {
        prop_assert_eq!(&bytes(&state)[..], &hostile[..hostile.len() - input.len()]);
        let _ = state.finish(aggregate);
        let _ = state.to_columns(aggregate);
        [Value::Null, Value::Int(i64::MIN), Value::str("x")].iter().for_each(|value| state.add(value));
        // Two states at their bounds may not be mergeable; that is said, too.
        let _ = state.clone().merge(&state);
    }
    Ok(())
}

/// All laws of a case, the bytes of its state with one bit turned among them.
pub fn all(case: &Case, bit: usize) -> Holds {
    merge_is_associative(case)?;
    merge_is_commutative(case)?;
    the_empty_state_changes_nothing(case)?;
    any_order_and_grouping_give_one_state(case)?;
    adding_after_a_merge_is_adding(case)?;
    bytes_round_trip(case)?;
    columns_round_trip(case)?;
    let mut bytes = bytes(&fold(&case.aggregate, &case.values));
    let bit = bit % (8 * bytes.len());
    bytes[bit / 8] ^= 1 << (bit % 8);
    hostile_bytes_are_refused_or_canonical(&case.aggregate, &bytes)?;
    bytes.truncate(bit / 8);
    hostile_bytes_are_refused_or_canonical(&case.aggregate, &bytes)
}
