//! The law of answers: wherever the tidemark cuts the log, both views merged answer as the batch view of all would.

use super::world::{EPOCH, Event, START, World, fixed, span};
use crate::answer::{Views, answer};
use crate::finish::{Row, Rows};
use crate::query::{At, Query};
use chrono::{Datelike, NaiveDateTime, TimeZone, Timelike, Weekday};
use chrono_tz::Tz;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use shared_model::aggregate::Finished;
use std::collections::BTreeMap;

pub(crate) fn queries() -> Vec<Json> {
    vec![
        json!({ "metrics": ["user_view_cnt"] }),
        json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "granularity": "1h" }),
        json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"],
                "filters": [{ "dimension": "uuid", "value": "u1" }], "order": [{ "by": "user_view_cnt", "desc": true }] }),
        json!({ "metrics": ["user_view_cnt", "user_click_cnt"], "granularity": "day" }),
        json!({ "metrics": ["features_20m"], "group_by": ["uuid"], "granularity": "grain" }),
        json!({ "metrics": ["doc_sum", "doc_mean", "doc_max", "geo_min", "doc_spread"], "group_by": ["uuid"] }),
        json!({ "metrics": ["doc_sum", "doc_mean", "doc_max"], "granularity": "1h",
                "filters": [{ "dimension": "uuid", "value": "u1" }] }),
        json!({ "metrics": ["active_user"], "granularity": "day" }),
        json!({ "metrics": ["geo_top"], "k": 2 }),
        json!({ "metrics": ["geo_top"], "k": 2, "granularity": "12h", "rolling": "36 hours" }),
        json!({ "metrics": ["active_user"], "granularity": "6h", "rolling": "day" }),
        json!({ "metrics": ["features_20m"], "group_by": ["uuid"], "granularity": "1h", "cumulative": true }),
        json!({ "metrics": ["doc_cnt", "active_user"], "cumulative": true }),
        json!({ "metrics": ["geo_top_doc"], "group_by": ["geo_location"], "granularity": "day" }),
        json!({ "metrics": ["session_cnt", "user_view_cnt"], "granularity": "12h" }),
        json!({ "metrics": ["session_cnt", "active_user"], "granularity": "6h", "rolling": "day" }),
        json!({ "metrics": ["session_cnt"], "group_by": ["uuid"], "granularity": "day", "retention": 1 }),
        json!({ "metrics": ["session_cnt"], "granularity": "12h", "retention": 3 }),
        json!({ "metrics": ["geo_top_doc"], "filters": [{ "dimension": "geo_location", "op": "is_null" }] }),
        json!({ "metrics": ["doc_cnt"], "group_by": ["document_id"], "filters": [
                { "dimension": "document_id", "op": "in", "values": [1, 2, 3] },
                { "dimension": "document_id", "op": "!=", "value": 2 }] }),
        json!({ "metrics": ["geo_top_doc"], "granularity": "day", "filters": { "or": [
                { "not": { "dimension": "geo_location", "op": "like", "value": "US>1%" } },
                { "and": [{ "dimension": "document_id", "op": "between", "values": [1, 3] },
                          { "not": { "dimension": "geo_location", "op": "is_null" } }] }] } }),
    ]
}

pub(crate) fn ask(views: &Views, query: &Query) -> Rows {
    ask_at(views, query, At::Now)
}

fn ask_at(views: &Views, query: &Query, at: At) -> Rows {
    let asked = answer(views, std::slice::from_ref(query), at);
    let answered = futures::executor::block_on(asked).unwrap().remove(0);
    assert_eq!(answered.coverage.reasons(), Vec::<String>::new());
    answered.rows
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let parts = (
        any::<bool>(),
        0..2i32,
        0..172_800_000i64,
        0..4i64,
        0..5i64,
        proptest::option::of(0..3i64),
        0..9_000i64,
    );
    parts.prop_map(|(click, partition, time, user, document, geo, pause)| Event {
        click,
        partition,
        time,
        user,
        document,
        geo,
        pause,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What was appended before a boundary is the same whether it lies below the tidemark or above.
    #[test]
    fn as_of_a_boundary_any_cut_below_it_gives_the_same_answer(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        more in 0..30i64,
        late in 0..EPOCH,
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let (then, ..) = world.views(cut + more, cut + more);
        for request in queries() {
            let query = world.query(span(request.clone()));
            let found = ask_at(&views, &query, At::Time((cut + more) * EPOCH + late));
            prop_assert_eq!(found, ask_at(&then, &query, At::Run(1)), "{}", request);
        }
    }

    #[test]
    fn any_cut_gives_the_answer_of_all(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        kept in 0..30i64,
    ) {
        let world = World::new(&events);
        let (merged, ..) = world.views(kept.min(cut), cut);
        let (all, ..) = world.views(1_000, 1_000);
        for request in queries() {
            let query = world.query(span(request.clone()));
            prop_assert_eq!(ask(&merged, &query), ask(&all, &query), "{}", request);
        }
    }
}

/// A test on one of a click's two columns, and what SQL says of it.
type Judged = (Json, fn(&Event, i64) -> Option<bool>, i64);

fn judged() -> impl Strategy<Value = Judged> {
    fn geo(op: &'static str, said: fn(&Event, i64) -> Option<bool>) -> impl Strategy<Value = Judged> {
        (0..3i64).prop_map(move |geo| {
            let mut test = json!({ "dimension": "geo_location", "op": op });
            if !op.starts_with("is") {
                test["value"] = json!(format!("US>{geo}"));
            }
            (test, said, geo)
        })
    }
    let document = (0..5i64).prop_map(|document| -> Judged {
        let test = json!({ "dimension": "document_id", "op": "<", "value": document });
        (test, |event, document| Some(event.document < document), document)
    });
    prop_oneof![
        document,
        geo("=", |event, geo| Some(event.geo? == geo)),
        geo("!=", |event, geo| Some(event.geo? != geo)),
        geo(">=", |event, geo| Some(event.geo? >= geo)),
        geo("is_null", |event, _| Some(event.geo.is_none())),
        geo("is_not_null", |event, _| Some(event.geo.is_some())),
    ]
}

/// A tree of tests.
#[derive(Debug, Clone)]
enum Tree {
    Test(Judged),
    And(Vec<Tree>),
    Or(Vec<Tree>),
    Not(Box<Tree>),
}

impl Tree {
    fn any() -> impl Strategy<Value = Tree> {
        judged().prop_map(Tree::Test).prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 1..4).prop_map(Tree::And),
                proptest::collection::vec(inner.clone(), 1..4).prop_map(Tree::Or),
                inner.prop_map(|inner| Tree::Not(Box::new(inner))),
            ]
        })
    }

    fn json(&self) -> Json {
        let list = |parts: &[Tree]| parts.iter().map(Tree::json).collect::<Vec<_>>();
        match self {
            Tree::Test((test, ..)) => test.clone(),
            Tree::And(parts) => json!({ "and": list(parts) }),
            Tree::Or(parts) => json!({ "or": list(parts) }),
            Tree::Not(inner) => json!({ "not": inner.json() }),
        }
    }

    /// As SQL defines it: false decides an `and`, true an `or`, else NULL does.
    fn says(&self, event: &Event) -> Option<bool> {
        let all = |parts: &[Tree]| parts.iter().map(|part| part.says(event)).collect::<Vec<_>>();
        let joined = |said: Vec<Option<bool>>, decides: bool| match said {
            said if said.contains(&Some(decides)) => Some(decides),
            said if said.contains(&None) => None,
            _ => Some(!decides),
        };
        match self {
            Tree::Test((_, said, with)) => said(event, *with),
            Tree::And(parts) => joined(all(parts), false),
            Tree::Or(parts) => joined(all(parts), true),
            Tree::Not(inner) => inner.says(event).map(|said| !said),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_tree_of_filters_leaves_what_sql_says_is_true(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        tree in Tree::any(),
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let asked = json!({ "metrics": ["geo_top_doc"], "k": 1_000, "filters": tree.json() });
        let rows = ask(&views, &world.query(span(asked)));
        let found: i64 = rows.rows.iter().map(count).sum();
        let naive = events.iter().filter(|event| event.click && tree.says(event) == Some(true)).count();
        prop_assert_eq!(found, naive as i64);
    }
}

pub(crate) fn count(row: &Row) -> i64 {
    match row.values[0] {
        Finished::Int(count) => count,
        ref other => panic!("{other:?} is no count"),
    }
}

/// What a zone's clock shows at an event: the start of its hour, day, week or month.
fn shown(zone: Tz, granularity: &str, event: &Event) -> NaiveDateTime {
    let at = zone.timestamp_millis_opt(START + event.time).unwrap().naive_local();
    let date = at.date();
    match granularity {
        "hour" => date.and_hms_opt(at.time().hour(), 0, 0),
        "day" => date.and_hms_opt(0, 0, 0),
        "week" => date.week(Weekday::Mon).first_day().and_hms_opt(0, 0, 0),
        _ => date.with_day(1).unwrap().and_hms_opt(0, 0, 0),
    }
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// From one set of stored rows, every zone's hours, days, weeks and months are what its own clock and calendar say
    /// of each event by itself.
    #[test]
    fn a_roll_up_in_any_zone_is_the_naive_count_by_its_clock(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        zone in proptest::sample::select(&chrono_tz::TZ_VARIANTS[..]),
    ) {
        let (views, ..) = World::new(&events).views(cut, cut);
        for granularity in ["hour", "day", "week", "month"] {
            let query = World::new(&[]).query(span(json!({
                "metrics": ["doc_cnt"], "granularity": granularity, "time_zone": zone.name(),
            })));
            let mut naive: BTreeMap<NaiveDateTime, i64> = BTreeMap::new();
            for event in events.iter().filter(|event| event.click) {
                *naive.entry(shown(zone, granularity, event)).or_default() += 1;
            }
            let wall = |row: &Row| zone.timestamp_millis_opt(row.bucket).unwrap().naive_local();
            let found: BTreeMap<_, _> =
                ask(&views, &query).rows.iter().map(|row| (wall(row), count(row))).collect();
            prop_assert_eq!(found, naive, "{} in {}", granularity, zone);
        }
    }
}

#[test]
fn the_answer_of_all_is_the_naive_count() {
    let events = fixed();
    let world = World::new(&events);
    let (views, ..) = world.views(1, 3);
    let query = world.query(span(json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"] })));
    let rows = ask(&views, &query);
    for row in &rows.rows {
        let naive =
            events.iter().filter(|e| !e.click && row.key[0].to_string() == format!("u{}", e.user)).count();
        assert_eq!(row.values, [Finished::Int(naive as i64)], "{:?}", row.key);
    }
    assert_eq!(rows.total, 5);
}
