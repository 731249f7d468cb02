//! The generator's promises: the same bytes for a seed, rates as asked, order as asked.

use super::*;
use shared_model::catalog::{Catalog, SITE};
use shared_model::event::{self, Value};
use shared_model::offsets::TopicPartition;
use std::collections::{BTreeSet, HashMap, HashSet};

fn rich(records: u64) -> Options {
    Options {
        records,
        near_repeats: 0.05,
        far_repeats: 0.02,
        far_distance: 2_000,
        late: 0.01,
        malformed: 0.01,
        nulls: 0.1,
        future: 3,
        ..Options::default()
    }
}

fn hash(deliveries: impl Iterator<Item = Delivery>) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for delivery in deliveries {
        hash.update(delivery.stream.as_bytes());
        hash.update(&delivery.event_time.to_be_bytes());
        hash.update(delivery.key.as_bytes());
        hash.update(&delivery.value);
    }
    hash.digest()
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    // A change of this hash changes the data of every seed: say so in the commit.
    assert_eq!(hash(Generator::new(rich(20_000), 1).take(10_000)), 10809352315885440758, "golden");
    assert_ne!(hash(Generator::new(rich(500), 1)), hash(Generator::new(rich(500), 2)));
}

#[test]
fn rates_are_as_asked() {
    let records = 40_000;
    let mut kinds: HashMap<&str, u64> = HashMap::new();
    let (mut disordered, mut late, mut clicks, mut nulls) = (0u64, 0u64, 0u64, 0u64);
    for delivery in Generator::new(rich(records), 3) {
        let name = match delivery.kind {
            Kind::Distinct => "distinct",
            Kind::Repeat => "repeat",
            Kind::Malformed(_) => "malformed",
            Kind::Future => "future",
        };
        *kinds.entry(name).or_default() += 1;
        if delivery.kind == Kind::Distinct {
            let behind = delivery.moment - delivery.event_time;
            assert!(behind <= 2 * 86_400_000, "{behind}");
            late += u64::from(behind > 20_000);
            disordered += u64::from(behind > 0 && behind <= 20_000);
            clicks += u64::from(delivery.stream == "events");
            let value: serde_json::Value = serde_json::from_slice(&delivery.value).expect("JSON");
            nulls += u64::from(value.get("platform").is_none_or(serde_json::Value::is_null));
        }
    }
    let close = |found: u64, expected: f64| {
        assert!((found as f64 - expected).abs() < 6.0 * expected.sqrt(), "{found}, not about {expected}");
    };
    let n = records as f64;
    assert_eq!(kinds["distinct"], records);
    assert_eq!(kinds["future"], 3);
    // Far repeats that would come after the end are left out: 3,000 deliveries of the 40,000, on average.
    close(kinds["repeat"], n * 0.05 + (n - 3_000.0) * 0.02);
    close(kinds["malformed"], n * 0.01);
    close(late, n * 0.01);
    close(disordered, n * 0.1 * 0.99);
    close(clicks, n * 0.25);
    close(nulls, n * 0.1);
}

#[test]
fn repeats_equal_their_event_and_come_near_or_far() {
    let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
    let (mut near, mut far) = (0, 0);
    for (at, delivery) in Generator::new(Options { near_distance: 100, ..rich(20_000) }, 4).enumerate() {
        match delivery.kind {
            Kind::Distinct => {
                seen.insert(delivery.value, at);
            }
            Kind::Repeat => match at - seen[&delivery.value] {
                // A few others may be due at the same place.
                1..=130 => near += 1,
                2_000..=4_200 => far += 1,
                distance => panic!("a repeat after {distance} deliveries"),
            },
            _ => {}
        }
    }
    assert!(near > 500 && far > 200, "{near} near, {far} far");
}

#[test]
fn malformed_records_are_refused_in_every_form_and_csv_has_the_same_lines() {
    let options = Options { malformed: 0.2, ..rich(5_000) };
    let deliveries: Vec<Delivery> = Generator::new(options.clone(), 5).collect();
    let catalog = crate::prepare::tests::catalog();
    for (at, delivery) in deliveries.iter().enumerate() {
        let stream = catalog.stream(delivery.stream).expect("a shipped stream");
        let tp = TopicPartition { topic: stream.topic.clone(), partition: 0 };
        let decoded = event::decode(stream, &tp, at as i64, 0, Some(&delivery.value));
        match delivery.kind {
            Kind::Malformed(_) => assert!(decoded.is_err(), "{delivery:?}"),
            _ => assert_eq!(decoded.map(|event| event.time), Ok(delivery.event_time), "{delivery:?}"),
        }
    }
    let mut files = [Vec::new(), Vec::new()];
    let lines = Generator::new(options, 5).write_csv(&mut files, |_| true).expect("written");
    assert_eq!(lines.iter().sum::<u64>(), deliveries.len() as u64);
    let [views, clicks] = files;
    assert!(views.starts_with(b"uuid,document_id,timestamp,platform,geo_location,traffic_source\n"));
    assert!(clicks.starts_with(b"display_id,uuid,document_id,timestamp,platform,geo_location\n"));
    assert!(views.windows(3).any(|part| part == b",\\N"));
}

#[test]
fn a_sites_views_are_what_its_catalog_says_and_malformed_ones_are_refused() {
    let options = Options { data: Data::Site, malformed: 0.1, nulls: 0.1, ..rich(5_000) };
    let catalog = Catalog::from_toml(SITE).unwrap_or_else(|faults| panic!("{faults}"));
    let stream = catalog.stream("site_views").expect("its stream");
    let tp = TopicPartition { topic: stream.topic.clone(), partition: 0 };
    let carried: Vec<&str> = stream.recorded().iter().map(|field| field.name.as_str()).collect();
    assert_eq!(carried, Stream::SiteViews.columns());
    let dimension = |name: &str| {
        let found = stream.dimensions.iter().find(|dimension| dimension.name == name);
        &found.expect("a dimension").expression
    };
    let mut seen: HashMap<String, HashSet<String>> = HashMap::new();
    let deliveries: Vec<Delivery> = Generator::new(options.clone(), 5).collect();
    for (at, delivery) in deliveries.iter().enumerate() {
        let append = delivery.event_time + 1_234;
        let decoded = event::decode(stream, &tp, at as i64, append, Some(&delivery.value));
        if let Kind::Malformed(_) = delivery.kind {
            assert!(decoded.is_err(), "{delivery:?}");
            continue;
        }
        let event = decoded.unwrap_or_else(|reject| panic!("{reject}: {delivery:?}"));
        assert_eq!(event.time, delivery.event_time);
        assert_eq!(event.values.last(), Some(&Value::Int(append)), "the append time is a field");
        for name in ["service", "source"] {
            let value = dimension(name).evaluate(&event.values);
            seen.entry(name.to_owned()).or_default().insert(value.to_string());
        }
    }
    let all = |name: &str| {
        seen[name]
            .iter()
            .map(String::as_str)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(all("service"), "api blog catalogue checkout home other search");
    assert_eq!(all("source"), "direct internal referral search social");
    let mut files = [Vec::new()];
    let lines = Generator::new(options, 5).write_csv(&mut files, |_| true).expect("written");
    assert_eq!(lines, [deliveries.len() as u64]);
    assert!(files[0].starts_with(b"view_id,at,visitor,url,referrer,geo_location,platform,status,load_ms\n"));
}

#[test]
fn the_waiting_is_bounded() {
    let options = Options { records: 600_000, span: 3_600_000, late: 1.0, ..Options::default() };
    let mut generator = Generator::new(options, 6);
    let mut most = 0;
    while generator.next().is_some() {
        most = most.max(generator.held.len());
    }
    assert!((MOST_WAITING..=MOST_WAITING + 1).contains(&most), "{most}");
}
