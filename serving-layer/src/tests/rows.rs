//! Laws of what happens to rows after everything is merged: pages, `having`, `fill` and what is compared.

use super::law::{ask, count, event};
use super::world::{Event, World, span, with};
use crate::answer::Views;
use crate::finish::{Row, Rows};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use shared_model::aggregate::Finished;
use shared_model::event::Value;
use shared_model::time::Millis;
use std::collections::{BTreeMap, BTreeSet};

fn answered(world: &World, views: &Views, request: &Json) -> Rows {
    ask(views, &world.query(request.clone()))
}

fn by_place(rows: &Rows) -> BTreeMap<(Millis, Vec<Value>), Vec<Finished>> {
    rows.rows.iter().map(|row| ((row.bucket, row.key.clone()), row.values.clone())).collect()
}

/// Questions about both days.
fn questions() -> impl Strategy<Value = Json> {
    let questions = [
        json!({ "metrics": ["user_view_cnt"], "group_by": ["uuid"], "granularity": "6h",
                "order": [{ "by": "user_view_cnt", "desc": true }] }),
        json!({ "metrics": ["doc_sum", "doc_mean"], "group_by": ["uuid"], "granularity": "day",
                "order": [{ "by": "doc_mean" }] }),
        json!({ "metrics": ["features_20m"], "group_by": ["uuid"], "granularity": "12h", "compare": "previous_period",
                "order": [{ "by": "previous.views", "desc": true }, { "by": "clicks" }] }),
        json!({ "metrics": ["active_user"], "granularity": "hour", "fill": true }),
        json!({ "metrics": ["doc_cnt"], "group_by": ["document_id"], "granularity": "day", "fill": true,
                "order": [{ "by": "doc_cnt" }], "having": [{ "column": "doc_cnt", "op": "<", "value": 3 }] }),
    ];
    proptest::sample::select(questions.map(span).to_vec())
}

/// June has no 31st: beside the one of July there is nothing to count, beside the 30th nothing was counted.
#[test]
fn where_nothing_is_compared_there_is_no_value() {
    let of_july = |day: Millis| Event {
        click: true,
        partition: 0,
        time: (15 + day) * 86_400_000,
        user: 1,
        document: 1,
        geo: None,
        pause: 1,
    };
    let question = json!({
        "metrics": ["doc_cnt", { "name": "half", "formula": "doc_cnt / 2" }], "from": "2016-07-30", "to": "2016-08-01",
        "granularity": "day", "compare": "previous_month", "order": [{ "by": "previous.doc_cnt" }],
    });
    let (zero, null) = (vec![Finished::Int(0); 2], vec![Finished::Null(()); 2]);
    for (events, fill) in [(vec![of_july(30), of_july(31)], false), (vec![], true)] {
        let world = World::new(&events);
        let (views, ..) = world.views(30, 30);
        let question = with(&question, &json!({ "fill": fill }));
        let previous = |more: Json| {
            let rows = answered(&world, &views, &with(&question, &more)).rows;
            rows.into_iter().map(|row| row.previous).collect::<Vec<_>>()
        };
        assert_eq!(previous(json!({})), [null.clone(), zero.clone()]);
        let none = json!({ "having": [{ "column": "previous.doc_cnt", "op": "<", "value": 1 }] });
        assert_eq!(previous(none), std::slice::from_ref(&zero));
        let null_alone = json!({ "having": [{ "column": "previous.half", "op": "is_null" }] });
        assert_eq!(previous(null_alone), std::slice::from_ref(&null));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_pages_of_an_answer_are_the_answer(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        question in questions(),
        size in 1..9usize,
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let whole = answered(&world, &views, &question);
        let mut paged: Vec<Row> = Vec::new();
        loop {
            let page = with(&question, &json!({ "limit": size, "offset": paged.len() }));
            let page = answered(&world, &views, &page);
            prop_assert_eq!(page.total, whole.rows.len());
            if page.rows.is_empty() {
                break;
            }
            paged.extend(page.rows);
        }
        prop_assert_eq!(paged, whole.rows);
    }

    #[test]
    fn having_keeps_the_rows_whose_values_pass(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        least in 0..6i64,
        mean in 0..40i64,
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let question = json!({ "metrics": ["doc_sum", "doc_mean", "geo_min"], "group_by": ["uuid"],
                               "from": "2016-06-15", "to": "2016-06-17", "granularity": "day" });
        let mean = mean as f64 / 10.0;
        let having = json!({ "or": [
            { "column": "doc_sum", "op": ">=", "value": least },
            { "and": [{ "column": "doc_mean", "op": "<", "value": mean }, { "column": "geo_min", "op": "like", "value": "US%" }] },
        ] });
        let kept = answered(&world, &views, &with(&question, &json!({ "having": having })));
        let passes = |row: &&Row| {
            let (sum, of_mean) = (&row.values[0], &row.values[1]);
            matches!(sum, Finished::Int(sum) if *sum >= least)
                || matches!(of_mean, Finished::Float(found) if *found < mean) && row.values[2] != Finished::Null(())
        };
        let all = answered(&world, &views, &question);
        prop_assert_eq!(kept.rows, all.rows.iter().filter(passes).cloned().collect::<Vec<_>>());
    }

    #[test]
    fn filled_each_key_has_each_bucket_once(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        group_by in proptest::sample::select(vec![json!([]), json!(["document_id"])]),
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let question = json!({ "metrics": ["doc_cnt"], "group_by": group_by, "granularity": "6h",
                               "from": "2016-06-15", "to": "2016-06-17" });
        let rows = answered(&world, &views, &question);
        let filled = answered(&world, &views, &with(&question, &json!({ "fill": true })));
        let mut keys: BTreeSet<_> = rows.rows.iter().map(|row| row.key.clone()).collect();
        if group_by == json!([]) {
            keys.insert(Vec::new());
        }
        prop_assert_eq!(filled.rows.len(), keys.len() * 8);
        let (rows, filled) = (by_place(&rows), by_place(&filled));
        prop_assert_eq!(filled.len(), keys.len() * 8, "no row comes twice");
        let zero = vec![Finished::Int(0)];
        for (place, values) in &filled {
            prop_assert_eq!(rows.get(place).unwrap_or(&zero), values);
        }
        prop_assert!(rows.keys().all(|place| filled.contains_key(place)));
    }

    /// In a zone whose clock doesn't change meanwhile, what is compared is the answer to the same query about the
    /// earlier period; in every zone nothing of that period is lost.
    #[test]
    fn what_is_compared_is_a_query_of_its_own(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        zone in proptest::sample::select(vec!["UTC", "Asia/Kathmandu", "America/St_Johns"]),
        (granularity, compare) in proptest::sample::select(vec![
            ("hour", "previous_day"), ("none", "previous_day"), ("6h", "previous_period"), ("day", "previous_day"),
        ]),
        rolling in proptest::sample::select(vec![Json::Null, json!("day"), json!("30 hours")]),
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let question = |from: &str, to: &str| json!({
            "metrics": ["doc_cnt"], "group_by": ["document_id"], "granularity": granularity, "time_zone": zone,
            "from": from, "to": to, "rolling": rolling,
        });
        let own = question("2016-06-16", "2016-06-17");
        let compared = answered(&world, &views, &with(&own, &json!({ "compare": compare })));
        let (own, earlier) = (answered(&world, &views, &own), question("2016-06-15", "2016-06-16"));
        let earlier = answered(&world, &views, &earlier);
        let day = 86_400_000;
        let (own, earlier) = (by_place(&own), by_place(&earlier));
        let zero = vec![Finished::Int(0)];
        for row in &compared.rows {
            let place = (row.bucket, row.key.clone());
            prop_assert_eq!(own.get(&place).unwrap_or(&zero), &row.values);
            let place = (row.bucket - day, row.key.clone());
            prop_assert_eq!(earlier.get(&place).unwrap_or(&zero), &row.previous);
            prop_assert!(row.values != zero || row.previous != zero, "a row of nothing");
        }
        let total = |of: &dyn Fn(&Row) -> Row| compared.rows.iter().map(|row| count(&of(row))).sum::<i64>();
        let sum = |of: &BTreeMap<_, Vec<Finished>>| {
            of.values().map(|values| if let Finished::Int(count) = values[0] { count } else { 0 }).sum::<i64>()
        };
        prop_assert_eq!(total(&Row::clone), sum(&own));
        prop_assert_eq!(total(&|row| Row { values: row.previous.clone(), ..row.clone() }), sum(&earlier));
    }

    /// What a bucket's window holds is what a query over that window alone answers, and no key is left out.
    #[test]
    fn a_rolling_value_is_that_of_its_window_alone(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        zone in proptest::sample::select(vec!["UTC", "Asia/Tokyo", "America/New_York"]),
        rolling in proptest::sample::select(vec![
            json!({ "rolling": "day" }), json!({ "rolling": "30 hours" }), json!({ "cumulative": true }),
        ]),
        metric in proptest::sample::select(vec![
            json!({ "metrics": ["doc_cnt"], "group_by": ["document_id"] }),
            json!({ "metrics": ["active_user"] }),
            json!({ "metrics": ["geo_top_doc"], "group_by": ["geo_location"], "k": 2 }),
        ]),
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let metric = with(&metric, &json!({ "time_zone": zone }));
        let asked = json!({ "from": "2016-06-15", "to": "2016-06-16", "granularity": "6h" });
        let query = world.query(with(&with(&metric, &asked), &rolling));
        let rolled = ask(&views, &query).rows;
        let windows = &query.rolling.as_ref().unwrap().windows;
        prop_assert_eq!(windows.len(), 4);
        let mut expected = Vec::new();
        for (bucket, window) in windows {
            let of_window = with(&metric, &json!({ "from": window.start, "to": window.end }));
            let rows = answered(&world, &views, &of_window).rows.into_iter();
            let counted = |row: &Row| row.values[0] != Finished::Int(0);
            expected.extend(rows.filter(counted).map(|row| Row { bucket: *bucket, ..row }));
        }
        prop_assert_eq!(rolled, expected);
    }

    /// A formula is computed of each row's finished values, and sorts, sifts and fills like any of them.
    #[test]
    fn a_formula_is_computed_of_finished_values(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let share = "case when clicks + views = 0 then null else cast(clicks as float) / (clicks + views) end";
        let question = json!({
            "metrics": ["features_20m", { "name": "share", "formula": share }, { "name": "half", "formula": "views / 2" }],
            "group_by": ["uuid"], "granularity": "day", "from": "2016-06-15", "to": "2016-06-17", "fill": true,
            "compare": "previous_day", "order": [{ "by": "share", "desc": true }],
            "having": [{ "column": "half", "op": "<", "value": 2 }],
        });
        let rows = answered(&world, &views, &question).rows;
        let expected = |values: &[Finished]| match *values {
            [Finished::Int(clicks), Finished::Int(views), ..] => {
                let all = clicks + views;
                let share = if all == 0 { Finished::Null(()) } else { Finished::Float(clicks as f64 / all as f64) };
                vec![share, Finished::Int(views / 2)]
            }
            _ => vec![],
        };
        for row in &rows {
            prop_assert_eq!(&row.values[2..], expected(&row.values), "{:?}", row);
            prop_assert_eq!(&row.previous[2..], expected(&row.previous), "{:?}", row);
            prop_assert!(matches!(row.values[3], Finished::Int(half) if half < 2));
        }
        let share = |row: &Row| if let Finished::Float(share) = row.values[2] { share } else { -1.0 };
        prop_assert!(rows.is_sorted_by(|a, b| share(a) >= share(b)));
    }

    /// A share is of all rows of the bucket, whatever of them is shown; the best of each group are its first rows.
    #[test]
    fn shares_add_up_and_the_best_of_each_group_are_its_first(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
        best in 1..4usize,
        by in proptest::sample::select(vec![vec!["bucket"], vec!["uuid"], vec!["bucket", "uuid"]]),
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let question = json!({
            "metrics": ["user_view_cnt", { "name": "share", "share_of": "user_view_cnt" }], "group_by": ["uuid"],
            "granularity": "day", "from": "2016-06-15", "to": "2016-06-17", "compare": "previous_day",
            "order": [{ "by": "user_view_cnt", "desc": true }],
        });
        let all = answered(&world, &views, &question).rows;
        for values in [|row: &Row| row.values.clone(), |row: &Row| row.previous.clone()] {
            let mut sums: BTreeMap<Millis, i64> = BTreeMap::new();
            let int = |values: &[Finished]| if let Finished::Int(count) = values[0] { count } else { 0 };
            all.iter().for_each(|row| *sums.entry(row.bucket).or_default() += int(&values(row)));
            for row in &all {
                let (of, sum) = (values(row), sums[&row.bucket]);
                let expected = match int(&of) {
                    _ if sum == 0 => Finished::Null(()),
                    count => Finished::Float(count as f64 / sum as f64),
                };
                prop_assert_eq!(&of[1], &expected);
            }
        }
        let limited = json!({ "limit_by": { "columns": by, "limit": best } });
        let found = answered(&world, &views, &with(&question, &limited));
        let group = |row: &Row| {
            (by.contains(&"bucket").then_some(row.bucket), by.contains(&"uuid").then(|| row.key.clone()))
        };
        let mut seen: BTreeMap<_, usize> = BTreeMap::new();
        let first = |row: &&Row| {
            let seen = seen.entry(group(row)).or_default();
            *seen += 1;
            *seen <= best
        };
        prop_assert_eq!(found.total, found.rows.len());
        prop_assert_eq!(found.rows, all.iter().filter(first).cloned().collect::<Vec<_>>());
    }

    #[test]
    fn a_ranked_item_is_compared_with_its_own_count(
        events in proptest::collection::vec(event(), 0..60),
        cut in 0..30i64,
    ) {
        let world = World::new(&events);
        let (views, ..) = world.views(cut, cut);
        let question = |from: &str, to: &str| json!({ "metrics": ["geo_top"], "from": from, "to": to });
        let own = with(&question("2016-06-16", "2016-06-17"), &json!({ "k": 2, "compare": "previous_day" }));
        let all = answered(&world, &views, &with(&question("2016-06-15", "2016-06-16"), &json!({ "k": 1_000 })));
        let counts: BTreeMap<Value, i64> =
            all.rows.iter().map(|row| (row.ranked.clone().unwrap().1, count(row))).collect();
        for row in answered(&world, &views, &own).rows {
            let then = counts.get(&row.ranked.unwrap().1).copied().unwrap_or(0);
            prop_assert_eq!(row.previous, vec![Finished::Int(then)]);
        }
    }
}
