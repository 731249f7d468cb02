//! The query surface on real servers and real processes, across the seam: every answer held against a naive fold of the
//! log's distinct events, by clocks and calendars of its own.

use chrono::{DateTime, Datelike, TimeZone, Timelike, Weekday};
use chrono_tz::Tz;
use local::probe::Serving;
use serde_json::{Value, json};
use sqlx::Executor;
use std::collections::{BTreeMap, BTreeSet};
use tidemark_tests::shop::CATALOG;
use tidemark_tests::shop::ask::finish;
use tidemark_tests::shop::events::records;
use tidemark_tests::shop::metrics::metric;
use tidemark_tests::shop::oracle::{Fact, Oracle};
use tidemark_tests::stack::Stack;
use tidemark_tests::{now, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const SEED: u64 = 47;
const DAY: i64 = 86_400_000;

/// A row by its bucket's start, ms since 1970, and its key.
type Place = (i64, Vec<String>);

/// The start of the hour, day, week or month that a zone's clock shows.
fn start(zone: Tz, granularity: &str, time: i64) -> i64 {
    let at = zone.timestamp_millis_opt(time).single().expect("a time of the calendar");
    let date = at.date_naive();
    let date = match granularity {
        // No zone asked for here changes its clock by less than an hour.
        "hour" => {
            return time - i64::from(at.minute() * 60_000 + at.second() * 1_000) - time.rem_euclid(1_000);
        }
        "day" => date,
        "week" => date.week(Weekday::Mon).first_day(),
        _ => date.with_day(1).expect("a first day"),
    };
    let midnight = date.and_hms_opt(0, 0, 0).expect("a midnight");
    zone.from_local_datetime(&midnight).earliest().expect("one that is there").timestamp_millis()
}

/// A metric by a zone's clock, of the events that pass.
fn naive(
    oracle: &Oracle,
    name: &str,
    group_by: &[&str],
    zone: Tz,
    granularity: &str,
    passes: &dyn Fn(&Fact) -> bool,
) -> BTreeMap<Place, Value> {
    let metric = metric(name);
    let column = |name: &&str| metric.by.iter().find(|(column, _)| column == name).expect("a column").1;
    let mut groups: BTreeMap<Place, Vec<&Fact>> = BTreeMap::new();
    for fact in oracle.facts.iter().filter(|fact| metric.streams.contains(&fact.stream)) {
        if (metric.counts)(fact) && passes(fact) {
            let key = group_by.iter().map(|name| column(name)(fact).to_string()).collect();
            groups.entry((start(zone, granularity, fact.time), key)).or_default().push(fact);
        }
    }
    groups.into_iter().map(|(place, facts)| (place, finish(metric.compute, &facts))).collect()
}

fn bucket(row: &Value) -> i64 {
    let text = row["bucket"].as_str().unwrap_or_else(|| panic!("{row}"));
    DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis()
}

/// The rows of an answer that is complete.
fn rows<'a>(answer: &'a Value, of: &str) -> &'a Vec<Value> {
    assert_eq!(answer["complete"], true, "{of}: {answer}");
    answer["rows"].as_array().unwrap_or_else(|| panic!("{of}: {answer}"))
}

fn found(answer: &Value, group_by: &[&str], name: &str, of: &str) -> BTreeMap<Place, Value> {
    let key = |row: &Value| group_by.iter().map(|name| row["key"][*name].to_string()).collect();
    let row = |row: &Value| ((bucket(row), key(row)), row["values"][name].clone());
    let all: BTreeMap<_, _> = rows(answer, of).iter().map(row).collect();
    assert_eq!(all.len(), rows(answer, of).len(), "a row came twice: {of}");
    all
}

fn same(found: &BTreeMap<Place, Value>, expected: &BTreeMap<Place, Value>, of: &str) {
    let near = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * b.abs(),
        _ => a == b,
    };
    let places: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let differs = |place: &&Place| match (found.get(*place), expected.get(*place)) {
        (Some(found), Some(expected)) => !near(found, expected),
        _ => true,
    };
    let wrong: Vec<_> = places.into_iter().filter(differs).take(5).collect();
    let told: Vec<_> = wrong.iter().map(|place| (place, found.get(*place), expected.get(*place))).collect();
    assert!(!expected.is_empty() && wrong.is_empty(), "{of}: {told:#?}");
}

/// A log of which a part is below the tidemark and a part above, and all of it readable.
struct Shop {
    stack: Stack,
    serving: Serving,
    /// A span of whole days in every zone that holds all events, ms since 1970.
    span: (i64, i64),
    now: i64,
    /// What keeps running.
    _layers: [local::layers::Layer; 2],
}

impl Shop {
    async fn open() -> Shop {
        let stack = Stack::with_catalog(LAYERS, 2, CATALOG).await;
        stack.batch(&["run"]).await;
        let speed = stack.speed();
        // Longer than any test waits: no statement ends by itself.
        let (process, serving) = stack.serving_with(&["--time-limit", "1h"]).await;
        let now = now();
        println!("seed {SEED}, now {now}");
        stack.send_records(&records(SEED, 0, now, 1_200));
        stack.settle().await;
        stack.run_past_the_end().await;
        stack.send_records(&records(SEED, 1, now, 800));
        stack.settle().await;
        let today = now.div_euclid(DAY) * DAY;
        let span = (today - 5 * DAY, today + 3 * DAY);
        Shop { stack, serving, span, now, _layers: [speed, process] }
    }

    async fn ask(&self, request: Value) -> Value {
        let mut request = request;
        for (name, value) in
            [("from", json!(self.span.0)), ("to", json!(self.span.1)), ("strict", json!(true))]
        {
            if request.get(name).is_none() && request.get("time_range").is_none() {
                request[name] = value;
            }
        }
        self.serving.query(&request).await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    async fn refused(&self, request: Value) -> String {
        let answer = self.serving.query(&request).await;
        format!("{:#}", answer.expect_err("it must be refused"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_query_surface_equals_the_oracle_across_the_seam() {
    let shop = Shop::open().await;
    let oracle = Oracle::of(&shop.stack.probe);
    any_zone(&shop, &oracle).await;
    filter_trees(&shop, &oracle).await;
    ranges_and_comparisons(&shop, &oracle).await;
    pages_and_having(&shop, &oracle).await;
    a_dashboard(&shop, &oracle).await;
    as_text(&shop).await;
    as_of_runs(&shop, &oracle).await;
    a_client_that_leaves(&shop).await;
    pages_as_of_a_time(&shop).await;
}

/// Zones of whole, half and quarter hours, from the same stored rows; what a grain makes impossible is refused by its
/// name.
async fn any_zone(shop: &Shop, oracle: &Oracle) {
    for zone in [Tz::UTC, Tz::America__New_York, Tz::Asia__Kolkata, Tz::Asia__Kathmandu, Tz::Pacific__Chatham]
    {
        for granularity in ["hour", "day", "week", "month"] {
            let of = format!("{granularity} in {zone}");
            for (name, group_by) in [("order_cnt", &["country"][..]), ("note_min", &[][..])] {
                let asked = json!({ "metrics": [name], "group_by": group_by, "granularity": granularity,
                                    "time_zone": zone.name(), "limit": 100_000 });
                let answer = shop.ask(asked).await;
                let parts = &answer["parts"];
                assert!(parts["batch"]["rows"].as_u64() > Some(0), "{of}: {parts}");
                assert!(parts["realtime"]["cells"].as_u64() > Some(0), "{of}: {parts}");
                let expected = naive(oracle, name, group_by, zone, granularity, &|_| true);
                same(&found(&answer, group_by, name, &of), &expected, &of);
            }
        }
    }
    // A year has both changes of the clocks, and months of every length.
    for (zone, granularity) in
        [(Tz::America__New_York, "day"), (Tz::America__St_Johns, "hour"), (Tz::Europe__Berlin, "month")]
    {
        let of = format!("a year of {granularity}s in {zone}");
        let days = if granularity == "hour" { 300 } else { 365 };
        let asked = json!({ "metrics": ["order_cnt"], "group_by": ["size"], "granularity": granularity,
                            "time_zone": zone.name(), "from": shop.span.0 - days * DAY, "limit": 100_000 });
        let expected = naive(oracle, "order_cnt", &["size"], zone, granularity, &|_| true);
        same(&found(&shop.ask(asked).await, &["size"], "order_cnt", &of), &expected, &of);
    }
    let refused = shop
        .refused(json!({ "metrics": ["price_mean"], "time_range": "today", "granularity": "hour",
                                       "time_zone": "Asia/Kathmandu" }));
    let refused = refused.await;
    assert!(refused.contains("422") && refused.contains("is no multiple of the grain, 20m"), "{refused}");
}

async fn filter_trees(shop: &Shop, oracle: &Oracle) {
    let text = |fact: &Fact, name: &str| {
        let column = metric("order_cnt").by.iter().find(|(column, _)| *column == name).expect("a column").1;
        column(fact).as_str().map(str::to_owned)
    };
    type Passes<'a> = &'a dyn Fn(&Fact) -> bool;
    let test =
        |dimension: &str, op: &str, value: Value| json!({ "dimension": dimension, "op": op, "value": value });
    // Of NULL no comparison is true, nor is its negation.
    let cases: [(Value, Passes<'_>); 4] = [
        (
            json!({ "or": [test("country", "=", json!("DE")), test("size", "in", json!(["bulk", "one"]))] }),
            &|fact| {
                text(fact, "country").is_some_and(|country| country == "DE")
                    || text(fact, "size").is_some_and(|size| size == "bulk" || size == "one")
            },
        ),
        (json!({ "not": test("country", "like", json!("%R")) }), &|fact| {
            text(fact, "country").is_some_and(|country| !country.ends_with('R'))
        }),
        (
            json!([{ "not": { "or": [test("city", "<", json!("m")), test("country", "=", json!("US"))] } },
                   test("size", "!=", json!("other"))]),
            &|fact| {
                text(fact, "city").is_some_and(|city| city.as_str() >= "m")
                    && text(fact, "country").is_some_and(|country| country != "US")
                    && text(fact, "size").is_some_and(|size| size != "other")
            },
        ),
        (
            json!({ "or": [{ "dimension": "city", "op": "is_null" },
                           { "and": [test("city", "between", json!(["b", "l"])), test("country", ">=", json!("E"))] }] }),
            &|fact| match text(fact, "city") {
                None => true,
                Some(city) => {
                    ("b"..="l").contains(&city.as_str())
                        && text(fact, "country").is_some_and(|country| country.as_str() >= "E")
                }
            },
        ),
    ];
    for (filters, passes) in cases {
        let of = filters.to_string();
        let asked = json!({ "metrics": ["order_cnt"], "group_by": ["country", "size"], "granularity": "day",
                            "filters": filters });
        let expected = naive(oracle, "order_cnt", &["country", "size"], Tz::UTC, "day", passes);
        same(&found(&shop.ask(asked).await, &["country", "size"], "order_cnt", &of), &expected, &of);
    }
}

/// Yesterday beside the day before it, by the clock of a zone, and every hour there.
async fn ranges_and_comparisons(shop: &Shop, oracle: &Oracle) {
    let zone = Tz::Asia__Kolkata;
    let asked = json!({ "metrics": ["order_cnt"], "time_range": "yesterday", "now": shop.now, "time_zone": zone.name(),
                        "granularity": "hour", "fill": true, "compare": "previous_day", "strict": true });
    let answer = shop.ask(asked).await;
    let hours = naive(oracle, "order_cnt", &[], zone, "hour", &|_| true);
    let count = |hour: i64| hours.get(&(hour, Vec::new())).cloned().unwrap_or(json!(0));
    // This zone's clock never changes.
    let midnight = start(zone, "day", shop.now) - DAY;
    let rows = rows(&answer, "yesterday");
    assert_eq!(rows.len(), 24, "{answer}");
    for (hour, row) in (0..).zip(rows) {
        let at = midnight + hour * 3_600_000;
        assert_eq!(bucket(row), at);
        let (value, previous) = (&row["values"]["order_cnt"], &row["previous"]["order_cnt"]);
        assert_eq!((value, previous), (&count(at), &count(at - DAY)), "{row}");
    }
    let sum = |of: &str| rows.iter().filter_map(|row| row[of]["order_cnt"].as_i64()).sum::<i64>();
    assert!(sum("values") > 20 && sum("previous") > 20, "{answer}");
}

/// Pages concatenated are the whole answer, sorted, and of it what `having` keeps.
async fn pages_and_having(shop: &Shop, oracle: &Oracle) {
    let asked = json!({ "metrics": ["order_cnt"], "group_by": ["country", "city", "size"], "granularity": "day",
                        "having": [{ "column": "order_cnt", "op": ">", "value": 3 }],
                        "order": [{ "by": "order_cnt", "desc": true }] });
    let mut all = naive(oracle, "order_cnt", &["country", "city", "size"], Tz::UTC, "day", &|_| true);
    all.retain(|_, count| count.as_i64() > Some(3));
    let (mut paged, mut counts) = (BTreeMap::new(), Vec::new());
    loop {
        let mut page = asked.clone();
        (page["limit"], page["offset"]) = (json!(7), json!(paged.len()));
        let answer = shop.ask(page).await;
        assert_eq!(answer["total_rows"], all.len(), "{answer}");
        let page = found(&answer, &["country", "city", "size"], "order_cnt", "a page");
        if page.is_empty() {
            break;
        }
        counts.extend(rows(&answer, "a page").iter().filter_map(|row| row["values"]["order_cnt"].as_i64()));
        let before = paged.len();
        paged.extend(page.clone());
        assert_eq!(paged.len(), before + page.len(), "no row is on two pages");
    }
    same(&paged, &all, "all pages");
    assert!(counts.is_sorted_by(|a, b| a >= b) && counts.len() > 14, "{counts:?}");
}

async fn a_dashboard(shop: &Shop, oracle: &Oracle) {
    let asked = json!({
        "from": shop.span.0, "to": shop.span.1, "time_zone": "Asia/Kolkata", "strict": true,
        "filters": [{ "dimension": "country", "op": "in", "values": ["DE", "US"] }],
        "queries": {
            "total": { "metrics": ["order_cnt"] },
            "days": { "metrics": ["order_cnt"], "granularity": "day" },
            "countries": { "metrics": ["order_cnt"], "group_by": ["country"] },
            "bulk": { "metrics": ["order_cnt"], "filters": [{ "dimension": "size", "value": "bulk" }] },
        },
    });
    let answer = shop.serving.query(&asked).await.unwrap_or_else(|error| panic!("{error:#}"));
    let generation = &answer["tidemark"];
    let sum = |name: &str| {
        let answer = &answer["answers"][name];
        assert_eq!(&answer["tidemark"]["generation"], generation);
        rows(answer, name).iter().filter_map(|row| row["values"]["order_cnt"].as_i64()).sum::<i64>()
    };
    let country = |fact: &Fact| (metric("order_cnt").by[0].1)(fact);
    let orders = oracle.facts.iter().filter(|fact| fact.stream == "orders");
    let wanted: Vec<&Fact> =
        orders.filter(|fact| [json!("DE"), json!("US")].contains(&country(fact))).collect();
    let expected = wanted.len() as i64;
    assert!(expected > 100);
    assert_eq!((sum("total"), sum("days"), sum("countries")), (expected, expected, expected));
    let bulk = wanted.iter().filter(|fact| fact.get("quantity").as_i64() >= Some(8)).count() as i64;
    assert_eq!(sum("bulk"), bulk);
}

/// CSV and NDJSON say what JSON says, compressed too.
async fn as_text(shop: &Shop) {
    let asked = json!({ "metrics": ["revenue", "weight_max"], "group_by": ["country"], "granularity": "day",
                        "from": shop.span.0, "to": shop.span.1 });
    let answer = shop.ask(asked.clone()).await;
    let http = reqwest::Client::new();
    let send = async |accept: &str, encoding: &str| {
        let request = http.post(format!("{}/api/v1/query", shop.serving.url)).json(&asked);
        let request = request.header("accept", accept).header("accept-encoding", encoding);
        let reply = request.send().await.expect("an answer").error_for_status().expect("a good one");
        let headers = reply.headers().clone();
        let body = reply.bytes().await.expect("its body").to_vec();
        (headers, body)
    };
    let (headers, plain) = send("text/csv", "identity").await;
    assert!(headers["x-complete"] == "true" && headers.contains_key("x-query-id"), "{headers:?}");
    let (headers, packed) = send("text/csv", "gzip").await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).expect("gzip");
    assert_eq!(unpacked, plain);
    let text = String::from_utf8(plain).expect("a text");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(r#""bucket","country","revenue","weight_max""#));
    let plain = |value: &Value| if value.is_null() { String::new() } else { value.to_string() };
    for row in rows(&answer, "csv") {
        let values = ["revenue", "weight_max"].map(|name| plain(&row["values"][name]));
        let line = format!(
            "{},{},{}",
            row["bucket"].as_str().expect("a bucket"),
            plain(&row["key"]["country"]),
            values.join(",")
        );
        assert_eq!(lines.next(), Some(&line[..]));
    }
    assert_eq!(lines.next(), None);
    let (_, lines) = send("application/x-ndjson", "identity").await;
    let lines = String::from_utf8(lines).expect("a text");
    let mut lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    assert_eq!(lines.next().expect("an envelope")["envelope"]["complete"], true);
    assert_eq!(&lines.collect::<Vec<_>>(), rows(&answer, "ndjson"));
}

/// Runs answer what they left, whatever came later.
async fn as_of_runs(shop: &Shop, oracle: &Oracle) {
    let asked = json!({ "metrics": ["order_cnt"], "granularity": "day" });
    let (all, first) = (shop.ask(asked.clone()).await, shop.ask(asked.clone()).await["run"].clone());
    let expected = naive(oracle, "order_cnt", &[], Tz::UTC, "day", &|_| true);
    same(&found(&all, &[], "order_cnt", "all"), &expected, "all");
    let at = async |run: &Value| {
        let mut asked = asked.clone();
        asked["at_run"] = run.clone();
        let answer = shop.ask(asked).await;
        assert_eq!((&answer["run"], &answer["parts"]["realtime"]["cells"]), (run, &json!(0)), "{answer}");
        found(&answer, &[], "order_cnt", "as of a run")
    };
    let before = at(&first).await;
    shop.stack.run_past_the_end().await;
    let second = shop.ask(asked.clone()).await["run"].clone();
    assert_ne!(first, second);
    assert_eq!(at(&first).await, before);
    same(&at(&second).await, &expected, "as of the second run");
    let sum = |of: &BTreeMap<Place, Value>| of.values().filter_map(Value::as_i64).sum::<i64>();
    assert!(0 < sum(&before) && sum(&before) < sum(&expected), "{before:?}");
    let refused =
        shop.refused(json!({ "metrics": ["order_cnt"], "time_range": "today", "at_run": 9_999 })).await;
    assert!(refused.contains("run_not_available"), "{refused}");
}

/// As of a time the pages are those of one answer, whatever comes meanwhile, until the tidemark has passed it.
async fn pages_as_of_a_time(shop: &Shop) {
    let asked = json!({ "metrics": ["order_cnt"], "group_by": ["country", "size"], "granularity": "day" });
    let mut sent = 1;
    // A partition that the last run left behind the others must pass them first.
    let newest = wait_for("an epoch above the tidemark", async || {
        sent += 1;
        shop.stack.send_records(&records(SEED, sent, shop.now, 100));
        shop.stack.settle().await;
        let newest = shop.ask(asked.clone()).await;
        let mut as_of = asked.clone();
        (as_of["as_of"], as_of["time_range"]) = (newest["as_of"].clone(), json!("today"));
        let answered = shop.serving.query(&as_of).await;
        answered.map(|_| newest).map_err(|error| format!("{error:#}"))
    })
    .await;
    let page = async |offset: usize, limit: usize| {
        let mut page = asked.clone();
        (page["as_of"], page["offset"], page["limit"]) =
            (newest["as_of"].clone(), json!(offset), json!(limit));
        shop.ask(page).await
    };
    let whole = page(0, 1_000).await;
    let mut paged = Vec::new();
    for part in sent + 1.. {
        let next = page(paged.len(), 20).await;
        let (of, rows) = (format!("part {part}"), rows(&next, "a page"));
        assert_eq!((&next["as_of"], next["final"].as_bool()), (&whole["as_of"], Some(false)), "{of}");
        if rows.is_empty() {
            break;
        }
        paged.extend(rows.clone());
        shop.stack.send_records(&records(SEED, part, shop.now, 50));
        shop.stack.settle().await;
    }
    assert_eq!(&paged, rows(&whole, "whole"));
    assert_ne!(rows(&shop.ask(asked.clone()).await, "now"), &paged);
    shop.stack.run_past_the_end().await;
    let mut passed = asked.clone();
    (passed["as_of"], passed["time_range"]) = (newest["as_of"].clone(), json!("today"));
    let refused = shop.refused(passed).await;
    assert!(refused.contains("as_of_not_available"), "{refused}");
}

/// A statement that waits for a lock is given up when nobody waits for its answer any more.
async fn a_client_that_leaves(shop: &Shop) {
    let pool = sqlx::PgPool::connect(&shop.stack.database).await.expect("the database");
    let mut lock = pool.begin().await.expect("a transaction");
    lock.execute("lock table tidemark.live_version in access exclusive mode").await.expect("a lock");
    let waiting = async || {
        let sql = "select count(*) from pg_stat_activity where application_name = 'tidemark-serving'
                   and wait_event_type = 'Lock'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.map_err(|error| error.to_string())
    };
    let (from, to) = shop.span;
    let (serving, asked) =
        (shop.serving.clone(), json!({ "metrics": ["order_cnt"], "from": from, "to": to }));
    let client = tokio::spawn(async move { serving.query(&asked).await });
    let becomes = async |expected: i64, what: &str| {
        wait_for(what, async || match waiting().await? {
            found if found == expected => Ok(()),
            found => Err(format!("{found} statements wait")),
        })
        .await;
    };
    becomes(1, "a statement that waits for the lock").await;
    client.abort();
    becomes(0, "the statement given up").await;
    lock.rollback().await.expect("the lock's end");
    shop.ask(json!({ "metrics": ["order_cnt"] })).await;
}
