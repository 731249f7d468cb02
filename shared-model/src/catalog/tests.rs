//! Tests of whole catalogs: the shipped one, every fault with its place, versions, hostile input.

use super::*;
use crate::event::{self, Value};
use crate::offsets::TopicPartition;
use proptest::prelude::*;

#[test]
fn the_shipped_catalog_is_valid_and_is_the_designs_table() {
    let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
    let shown = |metric: &Arc<Metric>| {
        let streams: Vec<_> = metric.bindings.iter().map(|binding| binding.stream.as_str()).collect();
        let by: Vec<_> = metric.by.iter().map(|by| by.name.as_str()).collect();
        let of = metric.item.as_ref().map(|item| item.name.clone()).unwrap_or_default();
        let live = metric.live_name.clone().unwrap_or_default();
        format!("{live} | {} | {} | {:?} {of}", streams.join("+"), by.join(","), metric.aggregate)
    };
    let found: Vec<_> = catalog.metrics.iter().map(shown).collect();
    let expected = [
        "active_user_5m | events+page_views |  | Distinct ",
        "display_cnt_5m | events | display_id | Count ",
        "doc_cnt_5m | events | document_id | Count ",
        "geo_top_5m | events+page_views |  | TopK { k: 10 } geo_location",
        "geo_top_display_5m | events | geo_location | TopK { k: 10 } display_id",
        "geo_top_doc_5m | events | geo_location | TopK { k: 10 } document_id",
        "user_click_cnt_5m | events | uuid | Count ",
        "user_view_cnt_5m | page_views | uuid | Count ",
    ];
    assert_eq!(found, expected);
    let formula = catalog.formula("features_20m").expect("shipped");
    let column = |name: &str, metric: &str| (name.to_owned(), metric.to_owned());
    assert_eq!(formula.columns, [column("clicks", "user_click_cnt"), column("views", "user_view_cnt")]);
    assert_eq!(formula.grain.width(), 1_200_000);
    let views = catalog.stream_of_topic("page_views").expect("shipped");
    assert_eq!(views.fields[0].name, "uuid", "fields are in the catalog's order");
    assert_eq!(views.event_time.to_millis(0), Some(1_465_876_799_998));
}

/// The shipped catalog with texts replaced, as `(line number, fault)` lines without the file's name.
fn faults(replacements: &[(&str, &str)]) -> Vec<String> {
    match Catalog::from_toml(&altered(replacements)) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.to_string().lines().map(|line| line.replace("catalog.toml:", "")).collect(),
    }
}

fn altered(replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(SMALL.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not in the catalog");
        text.replacen(from, to, 1)
    })
}

const SMALL: &str = r#"[layout]
pane = "10s"
[streams.views]
topic = "views"
event_time = { field = "timestamp" }
identity = ["uuid", "timestamp"]
message_key = "uuid"
bounds = { past = "30d", future = "5m" }
fields = { uuid = "string", timestamp = "int", geo = "string", price = "decimal(2)", score = "float", platform = "int", arrived = "append_time" }
[streams.views.dimensions]
country = "split_part(geo, '>', 1)"
[streams.clicks]
topic = "clicks"
event_time = { field = "timestamp", unit = "s" }
fields = { uuid = "string", timestamp = "int", geo = "int" }
[metrics.view_cnt]
stream = "views"
by = ["uuid"]
filter = "platform = 1"
aggregate = "count"
window = "5m"
grain = "20m"
[metrics.spent]
stream = "views"
by = ["uuid"]
aggregate = "sum"
value = "price"
grain = "20m"
[metrics.top]
streams = ["views", "clicks"]
aggregate = "top_k"
item = "uuid"
grain = "1h"
[formulas.features]
columns = { views = "view_cnt", money = "spent" }
"#;

#[test]
fn every_fault_has_its_line_and_a_remedy() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "pane = \"10s\"",
            "pane = \"7s\"",
            &[
                "2: layout.pane: a pane of 7s does not divide a day",
                "21: metrics.view_cnt.window: 5m is no multiple of the pane, 7s",
            ],
        ),
        (
            "window = \"5m\"",
            "window = \"5m\"\ntags = [\"public\", \"For all\"]",
            &[
                "22: metrics.view_cnt.tags: \"For all\" is no name; a small letter, then small letters, digits or '_', 40 at most",
            ],
        ),
        ("pane = \"10s\"", "pane = 10", &["2: layout.pane: invalid type: integer \"10\", expected a string"]),
        (
            "pane",
            "pain",
            &[
                "2: layout.pain: unknown key \"pain\", expected one of \"epoch\", \"groups\", \"pane\"; did you mean \"pane\"?",
            ],
        ),
        (
            "[layout]",
            "[layoud]",
            &[
                "1: layoud: unknown key \"layoud\", expected one of \"layout\", \"streams\", \"metrics\", \"formulas\"; did you mean \"layout\"?",
            ],
        ),
        ("[layout]", "[layout", &["1: not valid TOML: unclosed table, expected `]`"]),
        ("topic = \"views\"", "", &["3: streams.views: topic is missing; add topic = \"...\""]),
        (
            "topic = \"clicks\"",
            "topic = \"views\"",
            &[
                "4: streams.views.topic: topic \"views\" is that of stream \"clicks\" already; a topic is one stream",
            ],
        ),
        (
            "topic = \"views\"",
            "topic = \"a b\"",
            &["4: streams.views.topic: \"a b\" is no topic; 1 to 236 letters, digits, '.', '_' or '-'"],
        ),
        (
            "{ field = \"timestamp\" }",
            "{ field = \"geo\" }",
            &[
                "5: streams.views.event_time.field: field \"geo\" is string; an event time is an int",
                "6: streams.views.identity: must contain the event time \"geo\": copies of an event have one event time; or leave identity out",
            ],
        ),
        (
            "{ field = \"timestamp\" }",
            "{ feild = \"timestamp\" }",
            &[
                "5: streams.views.event_time.feild: unknown key \"feild\", expected one of \"field\", \"unit\", \"offset\"; did you mean \"field\"?",
            ],
        ),
        (
            "unit = \"s\"",
            "unit = \"sec\"",
            &[
                "14: streams.clicks.event_time.unit: unknown word \"sec\", expected one of \"s\", \"ms\", \"us\"",
            ],
        ),
        (
            "[\"uuid\", \"timestamp\"]",
            "[\"uuidd\", \"timestamp\"]",
            &["6: streams.views.identity: unknown field \"uuidd\" of stream views; did you mean \"uuid\"?"],
        ),
        (
            "message_key = \"uuid\"",
            "message_key = \"geo\"",
            &[
                "7: streams.views.message_key: \"geo\" is not in identity: repeats of an event must meet in one partition",
            ],
        ),
        (
            "past = \"30d\"",
            "past = \"30d\", from = \"2016-06-13\"",
            &["8: streams.views.bounds: has both kinds; use { past, future } or { from, to }"],
        ),
        (
            "past = \"30d\", future = \"5m\"",
            "from = \"2016-06-13\"",
            &["8: streams.views.bounds.to: to is missing; fixed bounds are { from, to }"],
        ),
        (
            "past = \"30d\", future = \"5m\"",
            "from = \"2016-06-13\", to = \"1999-01-01\"",
            &["8: streams.views.bounds: from is not before to"],
        ),
        (
            "past = \"30d\", future = \"5m\"",
            "from = \"1970-01-01\", to = \"2100-01-01\"",
            &["8: streams.views.bounds: spans more than 3660d, and each day may have to be computed"],
        ),
        (
            "past = \"30d\"",
            "past = \"a month\"",
            &[
                "8: streams.views.bounds.past: \"a month\" is no duration; write a whole number and ms, s, m, h or d, like \"20m\"",
            ],
        ),
        (
            "platform = \"int\"",
            "platform = \"integer\"",
            &[
                "9: streams.views.fields.platform: unknown type \"integer\"; types are string, int, float, bool, decimal(n) with n up to 18, and append_time",
            ],
        ),
        (
            "identity = [\"uuid\", \"timestamp\"]",
            "identity = [\"uuid\", \"timestamp\", \"arrived\"]",
            &[
                "6: streams.views.identity: field \"arrived\" is an append time, in which copies of an event differ",
            ],
        ),
        (
            "platform = \"int\"",
            "platform = \"append_time\", Platform = \"int\"",
            &["9: streams.views.fields.Platform: differs from field \"platform\" by capitals only"],
        ),
        (
            "platform = \"int\"",
            "platform = \"int\", UUID = \"int\"",
            &["9: streams.views.fields.UUID: differs from field \"uuid\" by capitals only"],
        ),
        (
            "platform = \"int\"",
            "platform = \"int\", _x = \"int\"",
            &[
                "9: streams.views.fields._x: a field's name is a letter, then letters, digits or '_', 40 at most",
            ],
        ),
        (
            "split_part(geo, '>', 1)",
            "split_part(goe, '>', 1)",
            &[
                "11: streams.views.dimensions.country: unknown field \"goe\" of stream views; did you mean \"geo\"?",
            ],
        ),
        (
            "country = ",
            "c2 = \"lower(country)\"\ncountry = ",
            &[
                "11: streams.views.dimensions.c2: \"country\" is a dimension, and a dimension can't refer to another; write it out",
            ],
        ),
        (
            "country = ",
            "bucket = ",
            &[
                "11: streams.views.dimensions.bucket: the name \"bucket\" is reserved: the views have a column of this name",
            ],
        ),
        (
            "[metrics.view_cnt]",
            "[metrics.View]",
            &[
                "16: metrics.View: \"View\" is no name; a small letter, then small letters, digits or '_', 40 at most",
                "35: formulas.features.columns.views: unknown metric \"view_cnt\"",
            ],
        ),
        (
            "stream = \"views\"",
            "stream = \"view\"",
            &["17: metrics.view_cnt.stream: unknown stream \"view\"; did you mean \"views\"?"],
        ),
        (
            "stream = \"views\"",
            "stream = \"views\"\nstreams = [\"views\"]",
            &["18: metrics.view_cnt.streams: give stream or streams, not both"],
        ),
        (
            "stream = \"views\"",
            "",
            &[
                "16: metrics.view_cnt: stream is missing; add the stream that feeds it, like stream = \"page_views\"",
            ],
        ),
        (
            "by = [\"uuid\"]",
            "by = [\"uuidd\"]",
            &["18: metrics.view_cnt.by: unknown field \"uuidd\" of stream views; did you mean \"uuid\"?"],
        ),
        ("by = [\"uuid\"]", "by = [\"uuid\", \"uuid\"]", &["18: metrics.view_cnt.by: names \"uuid\" twice"]),
        (
            "by = [\"uuid\"]",
            "by = [\"price\"]",
            &["18: metrics.view_cnt.by: \"price\" is decimal(2); a key is string, int or bool"],
        ),
        (
            "platform = 1",
            "platform",
            &["19: metrics.view_cnt.filter: is int; a filter is bool, like platform = 1"],
        ),
        (
            "platform = 1",
            "platform == 1 and",
            &["19: metrics.view_cnt.filter: not a valid expression: expected an expression, found: EOF"],
        ),
        (
            "aggregate = \"count\"",
            "aggregate = \"cuont\"",
            &[
                "20: metrics.view_cnt.aggregate: unknown word \"cuont\", expected one of \"count\", \"sum\", \"min\", \"max\", \"mean\", \"distinct\", \"top_k\", \"quantile\", \"sessions\"; did you mean \"count\"?",
            ],
        ),
        (
            "aggregate = \"count\"",
            "aggregate = \"distinct\"",
            &["16: metrics.view_cnt: value is missing; this aggregate is taken of it"],
        ),
        (
            "aggregate = \"count\"",
            "aggregate = \"count\"\nk = 3",
            &["21: metrics.view_cnt.k: k does not go with this aggregate; take it out"],
        ),
        (
            "aggregate = \"count\"",
            "aggregate = \"quantile\"\nvalue = \"score\"\nquantiles = [0.5, 1.5]",
            &["22: metrics.view_cnt.quantiles: 1.5 is not within 0 and 1"],
        ),
        (
            "aggregate = \"count\"",
            "aggregate = \"sessions\"",
            &["16: metrics.view_cnt: of is missing; this aggregate is taken of it"],
        ),
        (
            "aggregate = \"count\"",
            "aggregate = \"sessions\"\nof = \"nobody\"\nvalue = \"score\"",
            &[
                "21: metrics.view_cnt.of: \"nobody\" is no column of by; add it there: sessions are each one's own",
                "22: metrics.view_cnt.value: value does not go with this aggregate; take it out",
            ],
        ),
        (
            "window = \"5m\"",
            "window = \"5m5s\"",
            &[
                "21: metrics.view_cnt.window: \"5m5s\" is no duration; write a whole number and ms, s, m, h or d, like \"20m\"",
            ],
        ),
        (
            "window = \"5m\"",
            "publish = true",
            &["21: metrics.view_cnt.publish: there is nothing to publish without a window"],
        ),
        (
            "grain = \"20m\"",
            "grain = \"7h\"",
            &["22: metrics.view_cnt.grain: 7h does not divide a day; take 5m, 20m, 1h or 1d, for example"],
        ),
        (
            "grain = \"20m\"",
            "grain = \"5m\"",
            &["35: formulas.features.columns.money: metric spent has grain 20m, metric view_cnt has 5m"],
        ),
        (
            "value = \"price\"",
            "value = \"score\"",
            &[
                "27: metrics.spent.value: is float; a sum is of int or decimal: sums of floats depend on their order",
            ],
        ),
        (
            "value = \"price\"",
            "value = \"price * 2\"",
            &["27: metrics.spent.value: * does not take decimal(2): a decimal can only be used by itself"],
        ),
        (
            "item = \"uuid\"",
            "item = \"geo\"",
            &["32: metrics.top.item: \"geo\" is int in stream clicks and string in stream views"],
        ),
        (
            "item = \"uuid\"",
            "item = \"country\"",
            &["32: metrics.top.item: unknown field \"country\" of stream clicks"],
        ),
        (
            "[metrics.top]",
            "[metrics.view_cnt_5m]",
            &[
                "21: metrics.view_cnt.window: its live name \"view_cnt_5m\" is the name of a metric or formula",
            ],
        ),
        (
            "[formulas.features]",
            "[formulas.top]",
            &["34: formulas.top: there is a metric named \"top\" already"],
        ),
        (
            "money = \"spent\"",
            "money = \"spend\"",
            &["35: formulas.features.columns.money: unknown metric \"spend\"; did you mean \"spent\"?"],
        ),
        (
            "money = \"spent\"",
            "money = \"top\"",
            &["35: formulas.features.columns.money: metric top has no single number as its value"],
        ),
        (
            "money = ",
            "uuid = ",
            &["35: formulas.features.columns.uuid: \"uuid\" is a column of the key already"],
        ),
    ];
    assert_eq!(faults(&[]), Vec::<String>::new());
    let mut wrong = String::new();
    for (from, to, expected) in cases {
        let found = faults(&[(from, to)]);
        if found != *expected {
            wrong += &format!("{from} -> {to}\n  found    {found:#?}\n  expected {expected:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn faults_are_reported_all_together() {
    let found = faults(&[
        ("pane = \"10s\"", "pane = 10\ngroups = \"x\""),
        ("identity = [\"uuid\"", "identity = [\"uid\""),
        ("platform = 1", "platform = 'web'"),
        ("aggregate = \"sum\"", "agregate = \"sum\""),
        ("grain = \"1h\"", "grain = \"1 hour\""),
    ]);
    let lines: Vec<_> = found.iter().map(|fault| fault.split(':').next().unwrap_or("")).collect();
    assert_eq!(lines, ["2", "3", "7", "27", "34"], "{found:#?}");
}

fn version(replacements: &[(&str, &str)], metric: &str) -> String {
    let catalog = Catalog::from_toml(&altered(replacements)).unwrap_or_else(|faults| panic!("{faults}"));
    catalog.metric(metric).expect("in the catalog").version.to_string()
}

#[test]
fn versions_change_exactly_when_values_can() {
    let filter = ("platform = 1", "platform = 1");
    let same: &[(&str, &str)] = &[
        ("window = \"5m\"", "window = \"10m\""),
        (
            "window = \"5m\"",
            "window = \"5m\"\npublish = true\ndescription = \"x\"\nowner = \"y\"\nunit = \"z\"\ntags = [\"t\"]",
        ),
        ("pane = \"10s\"", "pane = \"20s\"\nepoch = \"1h\"\ngroups = 4"),
        ("platform = 1", "( platform=1 ) -- the web"),
        (
            "message_key = \"uuid\"",
            "message_key = \"uuid\"\nlateness = \"1h\"\ndedup_horizon = 5\nfacts = true",
        ),
        ("message_key = \"uuid\"", ""),
        ("[\"uuid\", \"timestamp\"]", "[\"timestamp\", \"uuid\"]"),
        ("uuid = \"string\", timestamp = \"int\", geo", "timestamp = \"int\", uuid = \"string\", geo"),
        ("split_part(geo, '>', 1)", "split_part(geo, '>', 2)"),
        ("past = \"30d\"", "past = \"720h\""),
        ("topic = \"clicks\"", "topic = \"taps\""),
        ("aggregate = \"sum\"", "aggregate = \"max\""),
    ];
    let other: &[(&str, &str)] = &[
        ("platform = 1", "platform = 2"),
        ("filter = \"platform = 1\"", ""),
        ("by = [\"uuid\"]", "by = [\"uuid\", \"geo\"]"),
        ("aggregate = \"count\"", "aggregate = \"distinct\"\nvalue = \"geo\""),
        ("grain = \"20m\"\n[metrics.spent]", "grain = \"1h\"\n[metrics.spent]"),
        ("topic = \"views\"", "topic = \"seen\""),
        ("past = \"30d\"", "past = \"31d\""),
        ("platform = \"int\"", "platform = \"int\", more = \"string\""),
        ("score = \"float\"", "score = \"int\""),
        ("[\"uuid\", \"timestamp\"]", "[\"uuid\", \"geo\", \"timestamp\"]"),
        ("{ field = \"timestamp\" }", "{ field = \"timestamp\", offset = 1 }"),
        ("{ field = \"timestamp\" }", "{ field = \"timestamp\", unit = \"us\" }"),
        ("message_key = \"uuid\"", "message_key = \"uuid\"\nmax_record_bytes = 999"),
        ("message_key = \"uuid\"", "message_key = \"uuid\"\nmax_text_bytes = 999"),
    ];
    // The formula compares grains and is not what this is about.
    let formula = ("[formulas.features]\ncolumns = { views = \"view_cnt\", money = \"spent\" }", "");
    let before = version(&[filter, formula], "view_cnt");
    for change in same {
        assert_eq!(version(&[*change, formula], "view_cnt"), before, "{change:?}");
    }
    for change in other {
        assert_ne!(version(&[*change, formula], "view_cnt"), before, "{change:?}");
    }
    let used = ("by = [\"uuid\"]", "by = [\"country\"]");
    let by_country = version(&[used, formula], "view_cnt");
    let redefined = ("split_part(geo, '>', 1)", "split_part(geo, '>', 2)");
    assert_ne!(
        version(&[used, redefined, formula], "view_cnt"),
        by_country,
        "a dimension counts where it is used"
    );
}

#[test]
fn the_versions_of_the_shipped_catalog_are_pinned() {
    let catalog = Catalog::from_toml(OUTBRAIN).unwrap_or_else(|faults| panic!("{faults}"));
    let found: Vec<_> =
        catalog.metrics.iter().map(|metric| format!("{} {}", metric.name, metric.version)).collect();
    let expected = [
        "active_user 897ddf0d0a634f47",
        "display_cnt 061a887649dfb705",
        "doc_cnt aa29610561ff2dea",
        "geo_top 095e3affe4472b2d",
        "geo_top_display 25aad032ac8d3426",
        "geo_top_doc b28e8f0d8061cafe",
        "user_click_cnt f75669648357cedc",
        "user_view_cnt 0f963f3bc728402e",
    ];
    assert_eq!(found, expected);
}

#[test]
fn an_append_time_is_the_brokers_whatever_the_record_says() {
    let catalog = Catalog::from_toml(SMALL).unwrap_or_else(|faults| panic!("{faults}"));
    let views = catalog.stream("views").expect("a stream");
    let (tp, append) = (TopicPartition::new("views", 0), 1_700_000_000_000);
    let record = format!(r#"{{"uuid":"u","timestamp":{append},"arrived":"never"}}"#);
    let event = event::decode(views, &tp, 0, append, Some(record.as_bytes())).expect("a valid record");
    assert_eq!(event.values.last(), Some(&Value::Int(append)));
    let mut values = event.values;
    values.truncate(views.recorded);
    let imported = event::from_values(views, &tp, 0, None, values).expect("a valid row");
    assert_eq!(imported.values.last(), Some(&Value::Null));
}

#[test]
fn a_catalog_has_a_longest_length() {
    let padded = |length: usize| format!("{SMALL}#{}", "x".repeat(length - SMALL.len() - 1));
    assert!(Catalog::from_toml(&padded(MAX_CATALOG_BYTES)).is_ok());
    let refused = Catalog::from_toml(&padded(MAX_CATALOG_BYTES + 1)).unwrap_err().to_string();
    assert!(refused.contains("1048577 bytes are more than a catalog may have"), "{refused}");
}

#[test]
fn the_committed_schema_is_current() {
    let committed = include_str!("../../../infra/catalog/catalog.schema.json");
    assert!(
        json_schema() == committed,
        "regenerate it: cargo run -p shared-model --example schema > infra/catalog/catalog.schema.json"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_catalog_gives_faults_and_no_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[a-z0-9\"={}\\[\\].,'\n -]{0,8}"), 1..4)
    ) {
        let mut text = SMALL.to_owned();
        for (at, length, put) in cuts {
            let at = at.index(text.len());
            let end = (at + length).min(text.len());
            text.replace_range(at..end, &put);
        }
        if let Err(faults) = Catalog::from_toml(&text) {
            let lines = text.lines().count().max(1);
            prop_assert!(!faults.faults.is_empty());
            prop_assert!(faults.faults.iter().all(|fault| (1..=lines + 1).contains(&fault.line)), "{faults}");
        }
    }

    #[test]
    fn any_text_gives_faults_and_no_panic(text: String) {
        let _ = Catalog::from_toml(&text);
    }
}
