//! The site's catalog and the analyses in `infra/analyses`, as they stand there, on real servers across the seam: each
//! equals a naive fold of the log's distinct views, which derives service, source and places in its own way.

use local::oracle::Logged;
use local::probe::Serving;
use serde_json::{Value, json};
use shared_model::catalog::SITE;
use simulator::generate::{Data, Generator, Options};
use std::collections::{BTreeMap, BTreeSet};
use tidemark_tests::now;
use tidemark_tests::stack::{LAYOUT, Stack};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const SEED: u64 = 61;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Nepal's clock is ahead of UTC by as much, the whole year.
const KATHMANDU: i64 = 5 * HOUR + 45 * MINUTE;
/// The most that a distinct count may be off beyond its exact size, and a quantile: what the README states.
const DISTINCT_BOUND: f64 = 0.049;
const QUANTILE_BOUND: f64 = 0.008;
const EXACT_DISTINCT: usize = 384;

/// One distinct view.
#[derive(Debug)]
struct View {
    time: i64,
    arrived: i64,
    visitor: Option<String>,
    page: String,
    service: &'static str,
    source: &'static str,
    place: [Option<String>; 3],
    failed: bool,
}

/// A record as the catalog means it, with its identity; `None` where it must be refused.
fn parse(record: &Logged) -> Option<(String, View)> {
    let Value::Object(raw) = serde_json::from_slice(&record.value).ok()? else { return None };
    let get = |name: &str| raw.get(name).filter(|value| !value.is_null());
    let text = |name: &str| match get(name) {
        None => Some(None),
        Some(value) => Some(Some(value.as_str()?.to_owned())),
    };
    let int = |name: &str| match get(name) {
        None => Some(None),
        Some(value) => Some(Some(value.as_i64().filter(|_| !value.is_f64())?)),
    };
    let (time, id, visitor) = (int("at")??, text("view_id")?, text("visitor")?);
    let (url, referrer, geo) =
        (text("url")?.expect("each has one"), text("referrer")?, text("geo_location")?);
    let (status, _, _) = (int("status")?, int("platform")?, int("load_ms")?);
    if !(record.append_time - 30 * DAY..record.append_time + 5 * MINUTE).contains(&time) {
        return None;
    }
    let (page, _) = url.split_once('?').unwrap_or((&url, ""));
    let (host, path) = page.trim_start_matches("https://").split_once('/').expect("a path");
    let service = match (host, path.split('/').next().expect("one part")) {
        ("api.example.org", _) => "api",
        ("blog.example.org", _) => "blog",
        (_, "") => "home",
        (_, "product" | "category") => "catalogue",
        (_, "search") => "search",
        (_, "cart" | "checkout") => "checkout",
        _ => "other",
    };
    let source = match referrer.as_deref().map(|referrer| referrer.split('/').nth(2).expect("a host")) {
        None => "direct",
        Some(host) if host.ends_with(".example.org") => "internal",
        Some("www.google.com" | "duckduckgo.com" | "www.bing.com") => "search",
        Some("www.facebook.com" | "t.co" | "www.reddit.com") => "social",
        Some(_) => "referral",
    };
    let part = |at: usize| geo.as_ref().map(|geo| geo.split('>').nth(at).unwrap_or("").to_owned());
    let view = View {
        time,
        arrived: record.append_time,
        page: page.to_owned(),
        service,
        source,
        place: [part(0), part(1), part(2)],
        failed: status >= Some(500),
        visitor: visitor.clone(),
    };
    Some((format!("{id:?} {time} {visitor:?}"), view))
}

/// The distinct views of a log, and how many records must be refused.
fn fold(stack: &Stack) -> (Vec<View>, usize) {
    let (mut seen, mut views, mut refused) = (BTreeSet::new(), Vec::new(), 0);
    let take = |record: Logged| match parse(&record) {
        None => refused += 1,
        Some((identity, view)) => views.extend(seen.insert(identity).then_some(view)),
    };
    stack.probe.read_log(&BTreeMap::new(), take).expect("the log");
    (views, refused)
}

/// Rows by bucket and what tells them apart within it.
type Rows = BTreeMap<(i64, Key), Value>;

/// The values of key and item, ordered by their columns' names; `None` is NULL.
type Key = Vec<Option<String>>;

/// A complete answer's rows, by their key and item, and its span.
fn rows(answer: &Value, name: &str) -> (Rows, [i64; 2]) {
    assert_eq!(answer["complete"], true, "{answer}");
    let time = |value: &Value| {
        let text = value.as_str().unwrap_or_else(|| panic!("a time in {answer}"));
        chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis()
    };
    let mut rows = Rows::new();
    for row in answer["rows"].as_array().expect("rows") {
        let parts = ["key", "item"].map(|part| row[part].as_object().cloned().unwrap_or_default());
        let key = parts
            .into_iter()
            .flat_map(|part| part.into_iter().map(|(_, value)| local::compare::text(&value)))
            .collect();
        let twice = rows.insert((time(&row["bucket"]), key), row["values"][name].clone());
        assert!(twice.is_none(), "a row came twice: {row}");
    }
    (rows, [time(&answer["from"]), time(&answer["to"])])
}

/// What is computed over the views of a row.
type Finish<'a> = &'a dyn Fn(&[&View]) -> Value;

/// The views of a span, by bucket and key.
fn naive(
    views: &[View],
    span: [i64; 2],
    bucket: impl Fn(i64) -> i64,
    key: impl Fn(&View) -> Key,
    finish: Finish<'_>,
) -> Rows {
    let mut groups: BTreeMap<(i64, Key), Vec<&View>> = BTreeMap::new();
    for view in views.iter().filter(|view| (span[0]..span[1]).contains(&view.time)) {
        groups.entry((bucket(view.time), key(view))).or_default().push(view);
    }
    groups.into_iter().map(|(place, views)| (place, finish(&views))).collect()
}

fn count(views: &[&View]) -> Value {
    json!(views.len())
}

fn same(found: &Rows, expected: &Rows, near: impl Fn(&Value, &Value) -> bool, of: &str) {
    let places: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let wrong = places.into_iter().filter(|place| match (found.get(*place), expected.get(*place)) {
        (Some(found), Some(expected)) => !near(found, expected),
        _ => true,
    });
    let told: Vec<_> = wrong.take(5).map(|place| (place, found.get(place), expected.get(place))).collect();
    assert!(!expected.is_empty() && told.is_empty(), "{of}: of {}: {told:#?}", expected.len());
}

fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() <= 1e-12 * b.abs())
}

/// The most frequent pages of each bucket: ties fall to the page.
fn ranked(views: &[View], span: [i64; 2], bucket: impl Fn(i64) -> i64, k: usize) -> Rows {
    let counts = naive(views, span, bucket, |view| vec![Some(view.page.clone())], &count);
    let mut of_bucket: BTreeMap<i64, Vec<(i64, Key)>> = BTreeMap::new();
    for ((bucket, page), count) in counts {
        of_bucket.entry(bucket).or_default().push((-count.as_i64().expect("a count"), page));
    }
    let first = |(bucket, mut pages): (i64, Vec<(i64, Key)>)| {
        pages.sort();
        pages.into_iter().take(k).map(move |(count, page)| ((bucket, page), json!(-count)))
    };
    of_bucket.into_iter().flat_map(first).collect()
}

/// A metric of the test's own, exact: of a repeated view the first delivery's append time counts.
const ARRIVALS: &str = "
[metrics.arrivals]
stream = \"site_views\"
by = [\"service\"]
aggregate = \"sum\"
value = \"arrived\"
grain = \"1h\"
";

struct Site {
    stack: Stack,
    serving: Serving,
    now: i64,
}

impl Site {
    /// An analysis as it stands in its file, asked as of the test's present.
    async fn ask(&self, file: &str) -> Value {
        let path = format!("{}/../infra/analyses/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut request: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        if let Some(queries) = request.get_mut("queries").and_then(Value::as_object_mut)
            && queries.values().any(|query| query.get("time_range").is_some())
        {
            queries.values_mut().for_each(|query| query["now"] = json!(self.now));
        } else {
            request["now"] = json!(self.now);
        }
        self.serving.query(&request).await.unwrap_or_else(|error| panic!("{file}: {error:#}"))
    }

    async fn all(&self, when: &str) {
        let (views, _) = fold(&self.stack);
        self.counts(&views, when).await;
        self.tops(&views, when).await;
        self.sketches(&views, when).await;
    }

    async fn counts(&self, views: &[View], when: &str) {
        let of = |what: &str| format!("{what}, {when}");
        let none = |_: &View| vec![];

        let (found, span) = rows(&self.ask("views_per_minute").await, "service_view_cnt");
        assert_eq!(span[1] - span[0], HOUR);
        let minute = |time: i64| time.div_euclid(MINUTE) * MINUTE;
        let mut expected = naive(views, span, minute, none, &count);
        for start in (span[0]..span[1]).step_by(MINUTE as usize) {
            expected.entry((start, vec![])).or_insert(json!(0));
        }
        same(&found, &expected, equal, &of("views per minute"));

        let places = self.ask("views_by_place").await;
        let in_us = |view: &View| view.place[0].as_deref() == Some("US");
        for name in ["country", "state", "dma"] {
            let (found, span) = rows(&places["answers"][name], "view_cnt");
            let whole = |_: i64| span[0];
            let mut expected = match name {
                "country" => naive(views, span, whole, |view| vec![view.place[0].clone()], &count),
                "state" => {
                    let key = |view: &View| view.place[..2].to_vec();
                    naive(views, span, whole, key, &count)
                }
                _ => {
                    let passes = |views: &[&View]| json!(views.iter().filter(|view| in_us(view)).count());
                    naive(views, span, whole, |view| vec![view.place[2].clone()], &passes)
                }
            };
            expected.retain(|_, count| *count != json!(0));
            same(&found, &expected, equal, &of(name));
        }

        let (found, span) = rows(&self.ask("traffic_sources").await, "share");
        let all = views.iter().filter(|view| (span[0]..span[1]).contains(&view.time)).count() as f64;
        let share = |views: &[&View]| json!(views.len() as f64 / all);
        let expected = naive(views, span, |_| span[0], |view| vec![Some(view.source.to_owned())], &share);
        assert_eq!(expected.len(), 5);
        same(&found, &expected, equal, &of("traffic sources"));

        let (found, span) = rows(&self.ask("heat_map").await, "view_cnt");
        let hour = |time: i64| (time + KATHMANDU).div_euclid(HOUR) * HOUR - KATHMANDU;
        same(&found, &naive(views, span, hour, none, &count), equal, &of("heat map"));

        let (found, span) = rows(&self.ask("service_health").await, "error_rate");
        let failed = |views: &[&View]| views.iter().filter(|view| view.failed).count() as f64;
        let rate = |views: &[&View]| json!(failed(views) / views.len() as f64);
        let expected = naive(views, span, |_| span[0], |view| vec![Some(view.service.to_owned())], &rate);
        same(&found, &expected, equal, &of("error rate"));

        self.sessions(views, when).await;
        let pages = self.ask("services_and_pages").await;
        let (found, span) = rows(&pages["answers"]["services"], "page_view_cnt");
        let expected = naive(views, span, |_| span[0], |view| vec![Some(view.service.to_owned())], &count);
        same(&found, &expected, equal, &of("services"));
        let (found, span) = rows(&pages["answers"]["pages"], "page_view_cnt");
        // Keys come by name: page, service. Ties fall to the key as it is grouped by: service, page.
        let key = |view: &View| vec![Some(view.page.clone()), Some(view.service.to_owned())];
        let mut best: BTreeMap<Option<String>, Vec<(i64, Key)>> = BTreeMap::new();
        for ((_, key), count) in naive(views, span, |_| span[0], key, &count) {
            best.entry(key[1].clone()).or_default().push((-count.as_i64().expect("a count"), key));
        }
        let three = |mut pages: Vec<(i64, Key)>| {
            pages.sort();
            pages.into_iter().take(3).map(|(count, key)| ((span[0], key), json!(-count)))
        };
        let expected = best.into_values().flat_map(three).collect();
        same(&found, &expected, equal, &of("pages"));
    }

    async fn sessions(&self, views: &[View], when: &str) {
        let answers = self.ask("sessions").await["answers"].clone();
        let number = |views: &[&View]| {
            let mut times: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
            for view in views {
                view.visitor.iter().for_each(|visitor| times.entry(visitor).or_default().push(view.time));
            }
            let of_one = |times: &mut Vec<i64>| {
                times.sort_unstable();
                times.chunk_by(|a, b| b - a <= 30 * MINUTE).count()
            };
            times.values_mut().map(of_one).sum::<usize>()
        };
        let count = |views: &[&View]| json!(number(views));
        let each = |views: &[&View]| {
            json!(views.iter().filter(|view| view.visitor.is_some()).count() as f64 / number(views) as f64)
        };
        let (found, span) = rows(&answers["all"], "session_cnt");
        let of = |what: &str| format!("{what}, {when}");
        same(&found, &naive(views, span, |_| span[0], |_| vec![], &count), equal, &of("sessions"));
        let (found, _) = rows(&answers["all"], "views_per_session");
        same(&found, &naive(views, span, |_| span[0], |_| vec![], &each), equal, &of("views per session"));

        let (found, span) = rows(&answers["by_service"], "session_cnt");
        let bucket = |time: i64| time.div_euclid(6 * HOUR) * 6 * HOUR;
        let mut expected = naive(views, span, bucket, |view| vec![Some(view.service.to_owned())], &count);
        expected.retain(|_, count| *count != json!(0));
        same(&found, &expected, equal, &of("sessions by service"));

        let (found, span) = rows(&answers["weekly"], "session_cnt");
        let mut expected = Rows::new();
        for start in (span[0].div_euclid(DAY) * DAY..span[1]).step_by(DAY as usize) {
            let end = (start + DAY).min(span[1]);
            expected.extend(naive(views, [end - 7 * DAY, end], |_| start, |_| vec![], &count));
        }
        same(&found, &expected, equal, &of("weekly sessions"));

        let (found, span) = rows(&self.ask("retention").await, "session_cnt");
        let day = |time: i64| time.div_euclid(DAY) * DAY;
        let mut days: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
        for view in views.iter().filter(|view| (span[0]..span[1]).contains(&view.time)) {
            let visitors = days.entry(day(view.time)).or_default();
            visitors.extend(view.visitor.as_deref());
        }
        let mut expected = Rows::new();
        for (start, visitors) in &days {
            let again = |behind: i64| match start + behind * DAY {
                later if later >= span[1] => Value::Null,
                later => json!(days.get(&later).map_or(0, |came| visitors.intersection(came).count()) as f64),
            };
            expected.insert((*start, vec![]), (0..=7).map(again).collect());
        }
        assert!(expected.len() >= 8 && expected.values().any(|row| row[1].as_f64() > Some(0.0)));
        same(&found, &expected, equal, &of("retention"));
    }

    async fn tops(&self, views: &[View], when: &str) {
        let (found, span) = rows(&self.ask("top_pages").await, "top_page");
        assert_eq!(span[1] - span[0], 6 * HOUR);
        same(&found, &ranked(views, span, |_| span[0], 10), equal, &format!("top pages, {when}"));
        let (found, span) = rows(&self.ask("hourly_top_pages").await, "top_page");
        let hour = |time: i64| time.div_euclid(HOUR) * HOUR;
        same(&found, &ranked(views, span, hour, 20), equal, &format!("hourly top pages, {when}"));
    }

    async fn sketches(&self, views: &[View], when: &str) {
        let exact = json!({ "metrics": ["arrivals"], "group_by": ["service"], "granularity": "hour",
                            "time_range": "last 8 days", "now": self.now, "limit": 100_000 });
        let answer = self.serving.query(&exact).await.unwrap_or_else(|error| panic!("{error:#}"));
        let (found, span) = rows(&answer, "arrivals");
        let arrivals = |views: &[&View]| json!(views.iter().map(|view| view.arrived).sum::<i64>());
        let hour = |time: i64| time.div_euclid(HOUR) * HOUR;
        let expected = naive(views, span, hour, |view| vec![Some(view.service.to_owned())], &arrivals);
        same(&found, &expected, |a, b| a == b, &format!("the first delivery's append time, {when}"));

        let (found, span) = rows(&self.ask("delay").await, "delay");
        let hour = |time: i64| time.div_euclid(HOUR) * HOUR;
        let quantiles = |views: &[&View]| {
            let mut delays: Vec<i64> = views.iter().map(|view| view.arrived - view.time).collect();
            delays.sort_unstable();
            json!([0.5, 0.9, 0.99].map(|q| delays[(q * (delays.len() - 1) as f64) as usize]))
        };
        let near = |found: &Value, expected: &Value| {
            let lists = found.as_array().zip(expected.as_array()).expect("lists");
            let close = |(found, expected): (&Value, &Value)| {
                let (found, expected) =
                    (found.as_f64().expect("a delay"), expected.as_f64().expect("a delay"));
                (found - expected).abs() <= QUANTILE_BOUND * expected.abs()
            };
            lists.0.len() == 3 && lists.0.iter().zip(lists.1).all(close)
        };
        same(&found, &naive(views, span, hour, |_| vec![], &quantiles), near, &format!("delay, {when}"));

        let distinct = |views: &[&View]| {
            json!(views.iter().filter_map(|view| view.visitor.as_deref()).collect::<BTreeSet<_>>().len())
        };
        let near = |found: &Value, expected: &Value| match expected.as_u64().expect("a count") {
            count if count > EXACT_DISTINCT as u64 => {
                let off = found.as_f64().expect("an estimate") - count as f64;
                off.abs() <= DISTINCT_BOUND * count as f64
            }
            _ => found == expected,
        };
        let (found, span) = rows(&self.ask("weekly_active").await, "visitors");
        let mut expected = Rows::new();
        for start in (span[0].div_euclid(DAY) * DAY..span[1]).step_by(DAY as usize) {
            let end = (start + DAY).min(span[1]);
            expected.extend(naive(views, [end - 7 * DAY, end], |_| start, |_| vec![], &distinct));
        }
        same(&found, &expected, near, &format!("weekly active visitors, {when}"));

        let active = self.ask("active_visitors").await;
        for (name, days) in [("day", 1), ("week", 7), ("month", 30)] {
            let (found, span) = rows(&active["answers"][name], "visitors");
            assert_eq!(span[1] - span[0], days * DAY, "{name}");
            let expected = naive(views, span, |_| span[0], |_| vec![], &distinct);
            same(&found, &expected, near, &format!("active visitors of a {name}, {when}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_analyses_of_the_site_equal_the_oracle_across_the_seam() {
    let catalog = local::stack::with_layout(&format!("{SITE}{ARRIVALS}"), LAYOUT);
    // What comes first is archived by a catalog that doesn't know of append times yet.
    let (without, _) = SITE.split_once("[metrics.delay]").expect("the metric of append times");
    let without = without.replace(", arrived = \"append_time\"", "");
    let without = local::stack::with_layout(&without, LAYOUT);
    let mut stack = Stack::with_catalog(LAYERS, 2, &without).await;
    stack.batch(&["run"]).await;
    let (now, span) = (now(), 8 * DAY);
    println!("seed {SEED}, now {now}");
    let options = Options {
        data: Data::Site,
        records: 8_000,
        start: now - span,
        span,
        users: 900,
        documents: 80,
        geos: 40,
        late: 0.01,
        late_max: 6 * HOUR,
        near_repeats: 0.03,
        malformed: 0.01,
        ..Options::default()
    };
    let all: Vec<_> = Generator::new(options, SEED).collect();
    // The second half of the day that the analyses look at is above the tidemark.
    let (first, second) = all.split_at(all.len() * 15 / 16);
    stack.send(first);
    stack.run_past_the_end().await;
    stack.rewrite_catalog(&catalog);
    let day =
        |time: i64| chrono::DateTime::from_timestamp_millis(time).expect("a time").date_naive().to_string();
    stack.batch(&["backfill", "--from", &day(now - span - DAY), "--to", &day(now)]).await;
    let _speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    stack.send(second);
    stack.settle().await;
    let (_, refused) = fold(&stack);
    assert!(refused > 20, "{refused} records must be refused");
    let site = Site { stack, serving, now };
    let parts = site.ask("views_by_place").await["answers"]["country"]["parts"].clone();
    assert!(parts["batch"]["rows"].as_u64() > Some(0), "{parts}");
    assert!(parts["realtime"]["cells"].as_u64() > Some(0), "{parts}");
    site.all("across the tidemark").await;
    site.stack.verify_groups("across the tidemark").await;
    site.stack.run_past_the_end().await;
    site.stack.settle().await;
    site.all("after a run").await;
}
