//! Segments round-trip whatever their cells, and hostile ones are refused.

use super::segment::{SEGMENT_VERSION, compare};
use super::*;
use crate::aggregate::Aggregate;
use crate::laws;
use proptest::prelude::*;

/// A metric version for each aggregate, and cells of them.
fn segments() -> impl Strategy<Value = (BTreeMap<MetricVersion, Aggregate>, Cells)> {
    // Some begin alike, as far as is looked at first.
    let end = || prop::collection::vec(prop::sample::select(vec![0u8, 7]), 0..4);
    let alike = move || end().prop_map(|end| [vec![7; 15], end].concat());
    let key = move || prop_oneof![prop::collection::vec(any::<u8>(), 0..6), alike()];
    // Many cells have the bucket of the one before.
    let bucket = prop_oneof![-1i64..1, any::<i64>()];
    let cases = prop::collection::vec(
        (any::<u64>(), laws::cases(), prop::collection::vec((key(), bucket), 0..4)),
        0..4,
    );
    cases.prop_map(|drawn| {
        let (mut aggregates, mut cells) = (BTreeMap::new(), Cells::new());
        for (version, case, ids) in drawn {
            let version = MetricVersion(version);
            let state = laws::fold(&case.aggregate, &case.values);
            let id = |(key, bucket): (Vec<u8>, Millis)| CellId { version, key: key.into(), bucket };
            cells.extend(ids.into_iter().map(|drawn| (id(drawn), state.clone())));
            aggregates.insert(version, case.aggregate);
        }
        (aggregates, cells)
    })
}

fn unpacked(bytes: &[u8], aggregates: &BTreeMap<MetricVersion, Aggregate>) -> Result<Cells, CodecError> {
    let mut cells = Cells::new();
    unpack(
        bytes,
        |version| aggregates.get(&version),
        |version, key, bucket, state| {
            cells.insert(CellId { version, key: key.into(), bucket }, state);
            Ok(())
        },
    )?;
    Ok(cells)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn segments_round_trip((aggregates, cells) in segments()) {
        prop_assert_eq!(unpacked(&pack(&cells), &aggregates), Ok(cells));
    }

    /// Cells dealt out to five segments, some to several, and merged from their bytes.
    #[test]
    fn merging_bytes_is_merging_cells(
        (aggregates, cells) in segments(),
        deal in prop::collection::vec(1u8..32, 16),
    ) {
        let mut dealt: [Cells; 5] = std::array::from_fn(|_| Cells::new());
        let mut expected = Cells::new();
        for ((id, state), to) in cells.iter().zip(deal.iter().cycle()) {
            for (_, into) in (0..).zip(&mut dealt).filter(|(segment, _)| to >> segment & 1 == 1) {
                into.insert(id.clone(), state.clone());
                match expected.get_mut(id) {
                    Some(sum) => sum.merge(state).unwrap(),
                    None => _ = expected.insert(id.clone(), state.clone()),
                }
            }
        }
        let packed = dealt.each_ref().map(pack);
        let merged = merge(&packed.each_ref().map(Vec::as_slice), |version| aggregates.get(&version));
        prop_assert_eq!(merged, Ok(pack(&expected)));
    }

    /// Of keys that begin alike, some of them as far as is looked at first.
    #[test]
    fn names_order_as_their_keys_and_buckets(
        begin in prop::collection::vec(any::<u8>(), 0..18),
        ends in prop::array::uniform2(prop::collection::vec(0u8..2, 0..4)),
        buckets in prop::array::uniform2(0i64..2),
    ) {
        let [key, other] = ends.map(|end| [&begin[..], &end[..]].concat());
        let filled = |key: &[u8]| std::array::from_fn::<u8, 16, _>(|at| key.get(at).copied().unwrap_or(0));
        prop_assert_eq!(key_begin(&key), u128::from_be_bytes(filled(&key)));
        let name = |key, bucket| (key_begin(key), key, bucket);
        let found = compare(name(&key, buckets[0]), name(&other, buckets[1]));
        prop_assert_eq!(found, (&key, buckets[0]).cmp(&(&other, buckets[1])));
    }

    #[test]
    fn unknown_versions_are_passed_over((mut aggregates, mut cells) in segments()) {
        let bytes = pack(&cells);
        if let Some((version, _)) = aggregates.pop_first() {
            cells.retain(|id, _| id.version != version);
        }
        prop_assert_eq!(unpacked(&bytes, &aggregates), Ok(cells));
    }

    #[test]
    fn a_turned_bit_or_a_cut_never_panics((aggregates, cells) in segments(), at: prop::sample::Index, bit in 0..8) {
        let mut bytes = pack(&cells);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let _ = unpacked(&bytes, &aggregates);
        let _ = unpacked(&bytes[..at], &aggregates);
        let _ = merge(&[&pack(&cells), &bytes, &bytes[..at]], |version| aggregates.get(&version));
    }

    #[test]
    fn hostile_bytes_never_panic(aggregate in laws::aggregates(), mut bytes: Vec<u8>) {
        let every_version = |_| Some(&aggregate);
        let _ = unpack(&bytes, every_version, |_, _, _, _| Ok(()));
        bytes.insert(0, SEGMENT_VERSION);
        let _ = merge(&[&bytes, &bytes], every_version);
        let _ = unpack(&bytes, every_version, |_, _, _, _| Ok(()));
        let _ = Header::from_json(&bytes);
    }
}

/// Counts and lengths that promise more than there is are refused before anything is allocated for them.
#[test]
fn promises_of_much_are_not_believed() {
    let aggregate = Aggregate::Distinct;
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let version = [0; 8];
    let refused = |parts: &[&[u8]]| {
        let bytes = [&[SEGMENT_VERSION], parts.concat().as_slice()].concat();
        assert!(unpack(&bytes, |_| Some(&aggregate), |_, _, _, _| Ok(())).is_err(), "{bytes:x?}");
    };
    refused(&[&version, &huge, &huge]);
    refused(&[&version, &huge, &[0]]);
    refused(&[&version, &[1], &[10], &huge, &[0]]);
    // A cell with an empty key in bucket 0 and a distinct state of very many items.
    refused(&[&version, &[1], &[13], &[0, 0, 0x16, 0], &huge]);
}

#[test]
fn segment_fields_are_parsed_as_they_are_named() {
    for slice in [Slice::Epoch(-3), Slice::Epoch(2_443_110), Slice::Pane(0), Slice::Pane(1_465_876_800_000)] {
        assert_eq!(parse_segment_field(&segment_field(slice, 17)), Some((slice, 17)));
    }
    for field in ["", "h", "f", "o", "e1", "e:1", "x1:1", "e1:-1", "é1:1", "p1:2:3"] {
        assert_eq!(parse_segment_field(field), None, "{field}");
    }
}

#[test]
fn groups_are_even_and_within_range() {
    let mut sizes = [0u32; 7];
    (0..7000u32).for_each(|n| sizes[group_of(&n.to_be_bytes(), 7) as usize] += 1);
    assert!(sizes.iter().all(|size| (850..1150).contains(size)), "{sizes:?}");
}

#[test]
fn a_newer_header_is_refused() {
    let newer =
        br#"{"v":2,"incarnation":1,"to":0,"clock":0,"trusted":null,"watermark":null,"panes_from":null,
        "cuts":[],"metrics":{},"seq":0}"#;
    assert!(Header::from_json(newer).is_err());
}
