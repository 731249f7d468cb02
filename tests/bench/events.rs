//! The records of the benches, those of the peer's generator in shape and distribution: clicks and views as JSON of
//! about 148 bytes, keys by Zipf, nearly in order.
//!
//! A seed gives the same records on every machine; what they add up to is counted while they are made.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::HashMap;
use std::io::Write as _;

/// Documents, displays, users and places to draw from, as usual.
const DOCUMENTS: usize = 100_000;
const DISPLAYS: usize = 200_000;
const USERS: usize = 1_000_000;
const GEOS: usize = 2_000;

/// What all records add up to, by a naive fold.
pub(crate) struct Totals {
    /// Clicks and views of each user.
    pub(crate) users: Vec<[u32; 2]>,
    /// Events of each document.
    pub(crate) documents: Vec<u32>,
    /// Events of each display.
    pub(crate) displays: Vec<u32>,
    /// Events of each document in each place.
    pub(crate) geo_documents: HashMap<(u32, u32), u32>,
}

/// Which records are made.
#[derive(Clone, Copy)]
pub(crate) struct Records {
    /// How many.
    pub(crate) count: u64,
    /// The event time at which they begin.
    pub(crate) start: i64,
    /// The milliseconds of event time over which they are spread evenly.
    pub(crate) length: i64,
    /// Of how many partitions.
    pub(crate) partitions: u64,
    /// How many times as many documents, displays, users and places there are to draw from as usual.
    pub(crate) keys: usize,
    /// The same records for the same seed.
    pub(crate) seed: u64,
}

/// Draws ranks below `n` with probability proportional to (rank + 1)^-exponent, by the cumulated weights.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(n: usize, exponent: f64) -> Zipf {
        let mut total = 0.0;
        let cumulated = (1..=n).map(|rank| {
            total += (rank as f64).powf(-exponent);
            total
        });
        Zipf(cumulated.collect())
    }

    fn draw(&self, random: &mut SmallRng) -> usize {
        let target = random.random::<f64>() * self.0[self.0.len() - 1];
        self.0.partition_point(|&end| end <= target).min(self.0.len() - 1)
    }
}

/// A user's id as the records have it.
pub(crate) fn uuid(user: usize) -> String {
    format!("{:016x}", mix(user as u64))
}

/// A place as the records have it.
pub(crate) fn geo(place: usize) -> String {
    const COUNTRIES: [&str; 8] = ["US", "US", "US", "GB", "CA", "AU", "IN", "DE"];
    let bits = mix(place as u64 * 31 + 7);
    let letter = |shift: u32| char::from(b'A' + (bits >> shift & 15) as u8);
    format!("{}>{}{}>{}", COUNTRIES[bits as usize & 7], letter(8), letter(16), 500 + place)
}

/// Mixes 64 bits (the finalizer of SplitMix64).
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Makes records and hands on each with its partition; a user's are all in one.
pub(crate) fn generate(records: Records, mut each: impl FnMut(i32, &[u8])) -> Totals {
    let many = |usual: usize| usual * records.keys;
    let (users, documents) = (Zipf::new(many(USERS), 0.9), Zipf::new(many(DOCUMENTS), 1.0));
    let (displays, geos) = (Zipf::new(many(DISPLAYS), 0.8), Zipf::new(many(GEOS), 1.0));
    let (uuids, places): (Vec<String>, Vec<String>) =
        ((0..many(USERS)).map(uuid).collect(), (0..many(GEOS)).map(geo).collect());
    let mut totals = Totals {
        users: vec![[0; 2]; many(USERS)],
        documents: vec![0; many(DOCUMENTS) + 1],
        displays: vec![0; many(DISPLAYS) + 1],
        geo_documents: HashMap::new(),
    };
    let mut random = SmallRng::seed_from_u64(records.seed);
    let mut record = Vec::new();
    for n in 0..records.count {
        let (user, click) = (users.draw(&mut random), random.random_ratio(1, 10));
        let (document, display) = (1 + documents.draw(&mut random), 1 + displays.draw(&mut random));
        let (ad, platform) = (random.random_range(1..=500_000), random.random_range(1..=3));
        let place = geos.draw(&mut random);
        // One in a thousand comes 30 to 120 s after its event time; the others by an exponential delay, below 30 s.
        let delay = if random.random_ratio(1, 1_000) {
            random.random_range(30_000.0..120_000.0)
        } else {
            (-4_000.0 * (1.0 - random.random::<f64>()).ln()).min(29_900.0)
        };
        let time = records.start + (n as f64 * records.length as f64 / records.count as f64 - delay) as i64;
        record.clear();
        let (kind, uuid, geo) = (if click { "click" } else { "view" }, &uuids[user], &places[place]);
        write!(
            record,
            r#"{{"event_type":"{kind}","uuid":"{uuid}","document_id":{document},"display_id":{display},"ad_id":{ad},"platform":{platform},"geo":"{geo}","ts":{time}}}"#
        )
        .expect("a Vec takes all");
        totals.users[user][usize::from(!click)] += 1;
        totals.documents[document] += 1;
        totals.displays[display] += 1;
        *totals.geo_documents.entry((place as u32, document as u32)).or_default() += 1;
        each((mix(user as u64) % records.partitions) as i32, &record);
    }
    totals
}
