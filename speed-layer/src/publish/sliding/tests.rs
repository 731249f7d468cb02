//! Windows that move on over segments that come, merge and go hold what a naive fold over the segments gives.

use super::*;
use crate::live::naive::{Live, Names, Published};
use crate::live::published_metrics;
use proptest::prelude::*;
use shared_model::catalog::Catalog;
use shared_model::event::Value;
use shared_model::view::{self, CellId, Cells};

const CATALOG: &str = r#"
[layout]
epoch = "1s"
groups = 1
pane = "1s"

[streams.views]
topic = "views"
event_time = { field = "at", unit = "ms" }
identity = ["who", "at"]
message_key = "who"
bounds = { from = "1970-01-01", to = "1970-01-03" }
lateness = "1s"
fields = { who = "string", what = "int", at = "int" }

[metrics.by_user]
stream = "views"
by = ["who"]
aggregate = "count"
window = "5s"
grain = "5m"
publish = true

[metrics.total]
stream = "views"
aggregate = "count"
window = "2s"
grain = "5m"
publish = true

[metrics.top_what]
stream = "views"
aggregate = "top_k"
item = "what"
k = 2
window = "3s"
grain = "1h"
publish = true

[metrics.user_top_what]
stream = "views"
by = ["who"]
aggregate = "top_k"
item = "what"
k = 3
window = "5s"
grain = "1h"
publish = true

[metrics.users]
stream = "views"
by = ["what"]
aggregate = "distinct"
value = "who"
window = "4s"
grain = "1d"
publish = true

[metrics.sum_what]
stream = "views"
by = ["who"]
aggregate = "sum"
value = "what"
window = "5s"
grain = "1d"
publish = true
"#;

const PANE: Millis = 1_000;

/// A metric, a user, an item, and how often: one cell.
type Drawn = (usize, u8, i64, u8);

#[derive(Debug, Clone)]
enum Step {
    /// A segment comes.
    Come(u32, i64, Vec<Drawn>),
    /// All that a partition has of a pane, and some cells more, become one segment.
    Merge(u32, i64, Vec<Drawn>),
    /// A partition's group is built anew.
    Anew(u32, i64, Vec<Drawn>),
    /// Windows move on by so many panes.
    Pass(i64),
}

/// Steps with segments of fewer than so many cells.
fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let cells = move || proptest::collection::vec((0usize..6, 0u8..3, 0i64..50, 1u8..5), 0..most);
    let place = || (0u32..3, -6i64..4);
    let step = prop_oneof![
        6 => (place(), cells()).prop_map(|((source, pane), cells)| Step::Come(source, pane, cells)),
        2 => (place(), cells()).prop_map(|((source, pane), cells)| Step::Merge(source, pane, cells)),
        1 => (place(), cells()).prop_map(|((source, pane), cells)| Step::Anew(source, pane, cells)),
        5 => prop_oneof![Just(0i64), Just(1), Just(1), 0i64..9].prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..40)
}

struct Play {
    metrics: Vec<Arc<Metric>>,
    sliding: Sliding,
    segments: BTreeMap<SegmentId, Vec<u8>>,
    end: Millis,
    seq: u64,
    published: Names,
}

impl Play {
    fn new() -> Play {
        let catalog = Catalog::from_toml(CATALOG).expect("the catalog is valid");
        let metrics = published_metrics(&catalog);
        assert_eq!(metrics.len(), 6);
        let (sliding, segments) = (Sliding::new(&metrics, PANE), BTreeMap::new());
        Play { metrics, sliding, segments, end: 20 * PANE, seq: 0, published: Names::new() }
    }

    fn packed(&self, pane: Millis, drawn: &[Drawn]) -> Vec<u8> {
        let mut cells = Cells::new();
        for &(metric, who, what, times) in drawn {
            let metric = &self.metrics[metric];
            let (who, what) = (Value::str(&format!("u{who}")), Value::Int(what));
            let mut key = Vec::new();
            for column in metric.key_columns() {
                if column.name == "who" { who.encode(&mut key) } else { what.encode(&mut key) }
            }
            let id = CellId { version: metric.version, key: key.into(), bucket: pane };
            let state = cells.entry(id).or_insert_with(|| State::empty(&metric.aggregate));
            let value = if metric.aggregate == Aggregate::Distinct { &who } else { &what };
            (0..times).for_each(|_| state.add(value));
        }
        view::pack(&cells)
    }

    fn merged(&self, parts: &[&[u8]]) -> Vec<u8> {
        let merged = view::merge(parts, |version| {
            let metric = self.metrics.iter().find(|metric| metric.version == version)?;
            Some(&metric.aggregate)
        });
        merged.expect("segments")
    }

    fn come(&mut self, source: u32, pane: Millis, segment: Vec<u8>) {
        self.seq += 1;
        let id = SegmentId { pane, source, seq: self.seq };
        self.sliding.add(id, segment.clone()).expect("a segment");
        self.segments.insert(id, segment);
    }

    fn go(&mut self, goes: impl Fn(&SegmentId) -> bool) -> Vec<Vec<u8>> {
        let ids: Vec<SegmentId> = self.segments.keys().copied().filter(goes).collect();
        let gone = |id: SegmentId| {
            self.sliding.remove(id);
            self.segments.remove(&id).expect("it is there")
        };
        ids.into_iter().map(gone).collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Come(source, pane, cells) => {
                let pane = self.end + pane * PANE;
                let segment = self.packed(pane, &cells);
                self.come(source, pane, segment);
            }
            Step::Merge(source, pane, cells) => {
                let pane = self.end + pane * PANE;
                let mut parts = self.go(|id| id.source == source && id.pane == pane);
                parts.push(self.packed(pane, &cells));
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                let merged = self.merged(&parts);
                self.come(source, pane, merged);
            }
            Step::Anew(source, pane, cells) => {
                self.go(|id| id.source == source);
                let pane = self.end + pane * PANE;
                let segment = self.packed(pane, &cells);
                self.come(source, pane, segment);
            }
            Step::Pass(panes) => self.pass(panes),
        }
    }

    fn pass(&mut self, panes: i64) {
        self.end += panes * PANE;
        let mut changes = Changes::default();
        self.sliding.advance(self.end, &mut changes).expect("a pass");
        self.apply(&changes);
        let mut naive = Live::ending_at(&self.metrics, self.end);
        for (id, segment) in &self.segments {
            naive.merge(id.pane, segment).expect("a segment");
        }
        assert_eq!(self.published, naive.finish().expect("names"), "at {}", self.end);
    }

    fn apply(&mut self, changes: &Changes) {
        for name in (0..changes.drops.len()).map(|at| changes.drops.get(at)) {
            assert!(self.published.remove(name).is_some(), "{name} goes and wasn't there");
        }
        for at in (0..changes.puts.len()).step_by(2) {
            let (name, text) = (changes.puts.get(at).to_owned(), changes.puts.get(at + 1).to_owned());
            let before = self.published.insert(name.clone(), Published::Text(text.clone()));
            assert_ne!(before, Some(Published::Text(text)), "{name} is written as it was");
        }
        for ranking in &changes.rankings {
            let text = |at| changes.members.get(at).to_owned();
            let name = text(ranking.first);
            assert_eq!(ranking.anew, !self.published.contains_key(&name), "{name}");
            let empty = || Published::Ranked(BTreeMap::new());
            let set = self.published.entry(name.clone()).or_insert_with(empty);
            let Published::Ranked(items) = set else { panic!("{name} is of a text") };
            for item in (ranking.first + 1..ranking.put).map(text) {
                assert!(items.remove(&item).is_some(), "{item} goes and wasn't there: {name}");
            }
            for at in (ranking.put..ranking.end).step_by(2) {
                let (count, item) = (text(at).parse().expect("a count"), text(at + 1));
                let before = items.insert(item.clone(), count);
                assert_ne!(before, Some(count), "{item} is written as it was: {name}");
            }
        }
    }
}

fn play_to_the_end(steps: Vec<Step>) {
    let mut play = Play::new();
    steps.into_iter().for_each(|step| play.step(step));
    play.pass(1);
    // All that is left slides out.
    play.pass(30);
    assert!(play.published.is_empty());
    assert_eq!(play.sliding.next(), None);
}

/// Those that have no room where most counts are kept.
#[test]
fn large_counts_come_and_go() {
    let mut play = Play::new();
    let pane = play.end;
    let drawn: Vec<Drawn> = (0..6).map(|metric| (metric, 1, 7, 4)).collect();
    let small = play.packed(pane, &drawn);
    let large = (0..32).fold(small.clone(), |half, _| play.merged(&[&half[..], &half[..]]));
    play.come(0, pane, small);
    play.come(1, pane, large);
    play.pass(1);
    let count = Published::Text(((4u64 << 32) + 4).to_string());
    assert!(play.published.values().any(|value| *value == count));
    // What is small stays when what is large goes.
    play.go(|id| id.source == 1);
    (0..9).for_each(|_| play.pass(1));
    assert!(play.published.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Of sets with many items, which have floors.
    #[test]
    fn what_is_published_of_large_sets_is_the_naive_fold_of_the_window(steps in steps(400)) {
        play_to_the_end(steps);
    }
}

proptest! {
    #[test]
    fn what_is_published_is_the_naive_fold_of_the_window(steps in steps(60)) {
        play_to_the_end(steps);
    }

    /// Ends that [`Sliding::next`] passes over change nothing.
    #[test]
    fn between_two_ends_at_which_something_may_change_nothing_does(steps in steps(60)) {
        let mut play = Play::new();
        steps.into_iter().for_each(|step| play.step(step));
        play.pass(0);
        while let Some(next) = play.sliding.next() {
            prop_assert!(next > play.end);
            while play.end + PANE < next {
                let before = play.published.clone();
                play.pass(1);
                prop_assert_eq!(&play.published, &before);
            }
            play.pass(1);
        }
        prop_assert!(play.published.is_empty());
    }

    #[test]
    fn hostile_segments_never_panic(
        bytes: Vec<u8>,
        at: prop::sample::Index,
        cells in proptest::collection::vec((0usize..6, 0u8..3, 0i64..50, 1u8..5), 1..20),
    ) {
        let play = Play::new();
        let mut segment = play.packed(play.end, &cells);
        let at = at.index(segment.len());
        segment[at] ^= 0x41;
        // After an error what is held is of no use.
        for (seq, segment) in (1..).zip([bytes, segment]) {
            let mut sliding = Sliding::new(&play.metrics, PANE);
            let taken = sliding.add(SegmentId { pane: play.end, source: 0, seq }, segment);
            let moved = taken.and_then(|()| sliding.advance(play.end + PANE, &mut Changes::default()));
            let _ = moved.and_then(|()| sliding.advance(play.end + 40 * PANE, &mut Changes::default()));
        }
    }
}
