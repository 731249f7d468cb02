//! Live streams with every aggregate, on real servers and real processes: equal to the oracle on both sides of the
//! tidemark and across it, and moved on by ticks when all is silent.

use local::probe::Serving;
use serde_json::{Value, json};
use tidemark_tests::grafana;
use tidemark_tests::redis_client::{self, Connection, connect};
use tidemark_tests::shop::CATALOG;
use tidemark_tests::shop::ask::{Parts, Query, check, check_live, time};
use tidemark_tests::shop::events::{Record, records};
use tidemark_tests::shop::metrics::{metric, metrics};
use tidemark_tests::shop::oracle::Oracle;
use tidemark_tests::stack::Stack;
use tidemark_tests::{now, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const SEED: u64 = 31;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Roll-ups over keys and time, filters, several metrics side by side, and a formula.
fn questions() -> Vec<Query> {
    type Filters<'a> = &'a [(&'static str, &'static str, Value)];
    let ask =
        |metrics: &[&'static str], group_by: &[&'static str], granularity, filters: Filters<'_>| Query {
            metrics: metrics.to_vec(),
            group_by: group_by.to_vec(),
            granularity,
            filters: filters.to_vec(),
            ..Query::default()
        };
    let (twenty, hour, day) = (Some(("20m", 20 * MINUTE)), Some(("1h", HOUR)), Some(("day", DAY)));
    let null = Value::Null;
    vec![
        ask(&["order_cnt"], &[], None, &[]),
        ask(&["order_cnt"], &["country"], hour, &[]),
        ask(&["order_cnt"], &["size", "country"], day, &[("city", "like", json!("b%"))]),
        ask(&["order_cnt"], &["city", "size"], hour, &[("country", "is_null", null.clone())]),
        ask(
            &["order_cnt"],
            &["country"],
            twenty,
            &[("country", "in", json!(["DE", "FR"])), ("size", "!=", json!("one"))],
        ),
        ask(&["bundle_cnt"], &[], day, &[("article", "is_not_null", null.clone())]),
        ask(&["odd_cnt"], &["channel"], day, &[("gift", "=", json!(true))]),
        ask(&["quantity_sum"], &[], hour, &[("article", ">", json!(10))]),
        ask(&["revenue"], &[], day, &[("country", "=", json!(""))]),
        ask(&["weight_min"], &[], None, &[]),
        ask(&["weight_max"], &["gift"], day, &[("gift", "is_not_null", null)]),
        ask(&["note_min"], &[], hour, &[]),
        ask(&["price_max"], &["channel"], hour, &[("channel", "in", json!(["none", "%"]))]),
        ask(&["quantity_mean"], &[], None, &[]),
        ask(&["price_mean"], &["country"], day, &[]),
        ask(&["country_customers"], &[], day, &[]),
        ask(&["country_customers"], &["country"], day, &[]),
        ask(&["country_top_article"], &[], hour, &[]),
        Query {
            k: Some(5),
            ..ask(&["country_top_article"], &["country"], day, &[("article", "between", json!([2, 40]))])
        },
        ask(&["top_channel"], &[], None, &[]),
        ask(&["weight_quantiles"], &[], day, &[]),
        ask(&["quantity_quantiles"], &["country"], hour, &[]),
        ask(&["price_quantiles"], &[], None, &[]),
        ask(&["order_cnt", "revenue", "weight_max", "price_mean"], &["country"], day, &[]),
        Query { formula: Some("balance"), ..ask(&["revenue", "refund"], &["country"], hour, &[]) },
        Query {
            formula: Some("balance"),
            ..ask(&["revenue", "refund"], &[], day, &[("country", "!=", json!("DE"))])
        },
    ]
}

/// Holds every metric, key and bucket, every question and every sliding counter against the oracle.
async fn compare(stack: &Stack, serving: &Serving, now: i64, when: &str) -> (Oracle, Vec<Parts>) {
    let oracle = Oracle::of(&stack.probe);
    let mut parts = Vec::new();
    for metric in metrics() {
        parts.push(check(serving, &oracle, now, &Query::whole(&metric), when).await);
    }
    for question in questions() {
        check(serving, &oracle, now, &question, when).await;
    }
    let ticks = stack.probe.ticks().expect("the log's ticks");
    let end = oracle.window_end(&ticks, stack.catalog.layout.pane);
    for metric in metrics().iter().filter(|metric| metric.live.is_some()) {
        let (found, _) = check_live(serving, &oracle, metric, when).await;
        assert_eq!(found, end, "{when}: the end of the window of {}", metric.name);
    }
    (oracle, parts)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_aggregate_equals_the_oracle_in_realtime_across_the_seam_and_in_batch() {
    let stack = Stack::with_catalog(LAYERS, 2, CATALOG).await;
    let (speed, process, serving) = stack.layers().await;
    for part in 0..3 {
        let now = now();
        println!("seed {SEED}, part {part}, now {now}");
        stack.send_records(&records(SEED, part, now, 1_500));
        stack.settle().await;
        let (_, parts) = compare(&stack, &serving, now, &format!("part {part}, before the run")).await;
        assert!(parts.iter().all(|parts| parts.realtime > 0), "part {part} is in realtime: {parts:?}");
        assert!(
            parts.iter().all(|parts| (parts.batch > 0) == (part > 0)),
            "the seam, part {part}: {parts:?}"
        );
        stack.verify_groups(&format!("part {part}")).await;

        wait_for("all below the tidemark", async || {
            stack.batch(&["run"]).await;
            stack.settle().await;
            let oracle = Oracle::of(&stack.probe);
            let parts = check(&serving, &oracle, now, &Query::whole(&metric("order_cnt")), "a run").await;
            if parts.realtime == 0 { Ok(()) } else { Err(format!("{parts:?}")) }
        })
        .await;
        let (oracle, parts) = compare(&stack, &serving, now, &format!("part {part}, after the run")).await;
        assert!(parts.iter().all(|parts| parts.batch > 0 && parts.realtime == 0), "part {part}: {parts:?}");
        assert!(oracle.refused > 30, "the generator made {} records to refuse", oracle.refused);
        wait_for("the dead letters", async || {
            let found = stack.dead_letters()?;
            if found == oracle.refused { Ok(()) } else { Err(format!("{found} of {}", oracle.refused)) }
        })
        .await;
    }
    assert_eq!(speed.stop().await, 0, "the speed layer stops cleanly");
    assert_eq!(process.stop().await, 0, "the serving layer stops cleanly");
    let pool = sqlx::PgPool::connect(&stack.database).await.expect("postgres");
    let panels = grafana::rows(&stack, &pool, "").await;
    assert!(panels.len() >= metrics().len() && panels.values().all(|rows| *rows > 0), "{panels:?}");
}

/// The value of a plain key: a string, or a sorted set's best.
async fn plain(redis: &mut Connection, key: &str) -> Option<String> {
    let kind: String = redis_client::ask(redis, &["TYPE", key]).await;
    match kind.as_str() {
        "none" => None,
        "string" => Some(redis_client::ask(redis, &["GET", key]).await),
        _ => {
            let best: Vec<String> =
                redis_client::ask(redis, &["ZREVRANGE", key, "0", "0", "WITHSCORES"]).await;
            Some(best.join(" "))
        }
    }
}

/// Waits until the plain keys are as expected.
async fn plains(redis: &mut Connection, expected: &[(&str, Option<&str>)]) {
    wait_for("the plain keys", async || {
        for (key, value) in expected {
            let found = plain(redis, key).await;
            if found.as_deref() != *value {
                return Err(format!("{key} is {found:?} instead of {value:?}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_silence_ticks_empty_the_windows_and_idle_partitions_hold_nothing_back() {
    let stack = Stack::with_catalog(LAYERS, 3, CATALOG).await;
    let (_speed, _process, serving) = stack.layers().await;
    let mut redis = connect(&stack.redis.url()).await;

    // One key for all, hence one partition of three in two topics; the third topic has nothing at all.
    let sent = now();
    let record = |topic, value: Value| Record { topic, key: "1".to_owned(), value: value.to_string().into() };
    let ping = json!({ "seconds": sent / 1_000 - 1_700_000_000, "kind": "up" });
    let order = json!({ "order_id": 1, "at": sent, "customer": "c1", "note": "sale" });
    stack.send_records(&[
        record("shop-pings", ping.clone()),
        record("shop-pings", ping),
        record("shop-orders", order),
    ]);
    stack.settle().await;
    let oracle = Oracle::of(&stack.probe);
    // No tick comes while no archiver runs, so the window stays at the newest event however long this takes.
    for name in ["ping_cnt", "top_channel", "customers"] {
        assert_eq!(check_live(&serving, &oracle, &metric(name), "in the window").await.1, 1, "{name}");
    }
    let all =
        [("ping_cnt_10s:up", Some("2")), ("top_channel_10s", Some("sale 1")), ("customers_5m", Some("1"))];
    plains(&mut redis, &all).await;

    let archiver = stack.batch_process(&["schedule", "--every", "500ms"]);
    wait_for("the window moving past the events", async || {
        assert_eq!(archiver.exited(), None, "the batch layer ended:\n{}", archiver.logged());
        let answer = serving.live("ping_cnt_10s", &[("kind", "up".to_owned())]).await;
        let answer = answer.map_err(|error| format!("{error:#}"))?;
        assert_eq!(answer["complete"], true, "{answer}");
        if answer["value"] == json!(0) { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    // The windows of 10 s have passed, those of 5 minutes have not.
    plains(&mut redis, &[("ping_cnt_10s:up", None), ("top_channel_10s", None), ("customers_5m", Some("1"))])
        .await;
    assert_eq!(archiver.stop().await, 0, "the batch layer stops cleanly");
    stack.settle().await;
    silent(&stack, &serving, sent).await;
}

/// With the archiver stopped nothing moves, and all can be held against the log.
async fn silent(stack: &Stack, serving: &Serving, sent: i64) {
    let oracle = Oracle::of(&stack.probe);
    let ticks = stack.probe.ticks().expect("the log's ticks");
    let end = oracle.window_end(&ticks, stack.catalog.layout.pane);
    assert!(end > sent + 10_000, "the windows have moved on: {end} after {sent}");
    for metric in metrics().iter().filter(|metric| metric.live.is_some()) {
        let (found, alive) = check_live(serving, &oracle, metric, "in silence").await;
        let (width, _) = metric.live.expect("filtered");
        if found > i64::MIN {
            assert_eq!(found, end, "the end of the window of {}", metric.name);
            assert_eq!(alive > 0, width > 10_000, "{}", metric.name);
        }
    }
    let query = json!({
        "metrics": ["ping_cnt"], "group_by": ["kind"], "from": sent.div_euclid(DAY) * DAY - DAY,
        "to": sent.div_euclid(DAY) * DAY + 2 * DAY, "strict": true,
    });
    wait_for("every partition reaching past the last event", async || {
        let answer = serving.query(&query).await.map_err(|error| format!("{error:#}"))?;
        assert_eq!(answer["rows"][0]["values"]["ping_cnt"], 2, "{answer}");
        assert_eq!(answer["tidemark"]["held"], json!({}), "{answer}");
        let cuts = answer["tidemark"]["cuts"].as_object().expect("cuts");
        let moved = cuts.len() == 3 && cuts.values().all(|cut| cut.as_i64() > Some(0));
        let reached = oracle.facts.iter().all(|fact| time(&answer, "as_of") > fact.append_time);
        if moved && reached { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
}
