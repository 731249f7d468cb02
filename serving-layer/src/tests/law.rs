//! The law of answers: wherever the tidemark cuts the log, both views merged answer as the batch view of all would.

use super::world::{Event, World, fixed, span};
use crate::answer::{Views, answer};
use crate::merge::Rows;
use crate::query::Query;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

pub(crate) fn queries() -> Vec<Json> {
    vec![
        json!({ "metrics": ["user_view_cnt"] }),
        json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "granularity": "1h" }),
        json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"],
                "filters": [{ "dimension": "uuid", "value": "u1" }], "order": [{ "by": "user_view_cnt", "desc": true }] }),
        json!({ "metrics": ["user_view_cnt", "user_click_cnt"], "granularity": "day" }),
        json!({ "metrics": ["features_20m"], "group_by": ["uuid"], "granularity": "grain" }),
        json!({ "metrics": ["doc_sum", "doc_mean", "doc_max", "geo_min", "doc_spread"], "group_by": ["uuid"] }),
        json!({ "metrics": ["active_user"], "granularity": "day" }),
        json!({ "metrics": ["geo_top"], "k": 2 }),
        json!({ "metrics": ["geo_top_doc"], "group_by": ["geo_location"], "granularity": "day" }),
        json!({ "metrics": ["geo_top_doc"], "filters": [{ "dimension": "geo_location", "op": "is_null" }] }),
        json!({ "metrics": ["doc_cnt"], "group_by": ["document_id"], "filters": [
                { "dimension": "document_id", "op": "in", "values": [1, 2, 3] },
                { "dimension": "document_id", "op": "!=", "value": 2 }] }),
    ]
}

fn ask(views: &Views, query: &Query) -> Rows {
    let answered = futures::executor::block_on(answer(views, query)).unwrap();
    assert_eq!(answered.coverage.reasons(), Vec::<String>::new());
    answered.rows
}

fn event() -> impl Strategy<Value = Event> {
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
        assert_eq!(row.values, [shared_model::aggregate::Finished::Int(naive as i64)], "{:?}", row.key);
    }
    assert_eq!(rows.total, 5);
}
