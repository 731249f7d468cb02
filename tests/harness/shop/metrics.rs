//! What the shop's metrics mean, written down a second time: plain functions over an event, nothing parsed.

use super::oracle::Fact;
use serde_json::{Value, json};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// A value of an event.
pub type Of = fn(&Fact) -> Value;

/// What is computed over events.
#[derive(Debug, Clone, Copy)]
pub enum Compute {
    /// How many.
    Count,
    /// Of a whole number divided by 10^scale.
    Sum(Of, u32),
    /// The least; numbers are divided by 10^scale.
    Min(Of, u32),
    /// The greatest.
    Max(Of, u32),
    /// The mean.
    Mean(Of, u32),
    /// How many different ones.
    Distinct(Of),
    /// The most frequent ones: how many, the column's name, the item.
    TopK(usize, &'static str, Of),
    /// Quantiles.
    Quantile(Of, u32, &'static [f64]),
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its streams.
    pub streams: &'static [&'static str],
    /// Its key.
    pub by: &'static [(&'static str, Of)],
    /// Which events count.
    pub counts: fn(&Fact) -> bool,
    /// What is computed.
    pub compute: Compute,
    /// Its sliding window and live name, if it has one.
    pub live: Option<(i64, &'static str)>,
    /// Its grain.
    pub grain: i64,
}

/// All of the catalog's.
pub fn metrics() -> Vec<Metric> {
    use Compute::*;
    const ORDERS: &[&str] = &["orders"];
    const BOTH: &[&str] = &["orders", "returns"];
    let metric = |name, streams, by, compute, live, grain| {
        let live = match live {
            "" => None,
            live => Some((window(live), live)),
        };
        Metric { name, streams, by, counts: |_| true, compute, live, grain }
    };
    let price: Of = |fact| fact.get("price");
    let weight: Of = |fact| fact.get("weight");
    let quantity: Of = |fact| fact.get("quantity");
    vec![
        metric("order_cnt", ORDERS, &[COUNTRY, CITY, SIZE], Count, "order_cnt_5m", 5 * MINUTE),
        Metric {
            counts: |fact| {
                let note = fact.get("note");
                fact.get("gift") == json!(true)
                    && fact.get("quantity").as_i64().is_some_and(|quantity| quantity >= 2)
                    && note.as_str().is_some_and(|note| note.contains('a'))
            },
            ..metric("bundle_cnt", ORDERS, &[ARTICLE], Count, "bundle_cnt_10m", 20 * MINUTE)
        },
        Metric {
            counts: |fact| {
                fact.get("quantity").as_i64().is_some_and(|quantity| (2..=5).contains(&quantity))
                    || [json!("sale"), json!("swap")].contains(&fact.get("note"))
                    || fact.get("shop").is_null()
            },
            ..metric("odd_cnt", ORDERS, &[GIFT, CHANNEL], Count, "", HOUR)
        },
        metric("quantity_sum", ORDERS, &[ARTICLE], Sum(thrice_less_one, 0), "quantity_sum_1m", 20 * MINUTE),
        metric("revenue", ORDERS, &[COUNTRY], Sum(price, 2), "revenue_5m", HOUR),
        metric("refund", &["returns"], &[COUNTRY], Sum(price, 2), "refund_5m", HOUR),
        metric("weight_min", ORDERS, &[CITY], Min(weight, 0), "weight_min_5m", HOUR),
        metric("weight_max", ORDERS, &[COUNTRY, GIFT], Max(weight, 0), "weight_max_5m", DAY),
        metric("note_min", ORDERS, &[COUNTRY], Min(|fact| fact.get("note"), 0), "note_min_5m", 5 * MINUTE),
        metric("price_max", BOTH, &[CHANNEL], Max(price, 2), "price_max_5m", 20 * MINUTE),
        metric("quantity_mean", ORDERS, &[GIFT], Mean(quantity, 0), "quantity_mean_5m", DAY),
        metric("price_mean", BOTH, &[CHANNEL, COUNTRY], Mean(price, 2), "price_mean_5m", 20 * MINUTE),
        metric("customers", BOTH, &[], Distinct(|fact| fact.get("customer")), "customers_5m", DAY),
        metric(
            "country_customers",
            ORDERS,
            &[COUNTRY],
            Distinct(upper_customer),
            "country_customers_5m",
            HOUR,
        ),
        Metric {
            counts: |fact| fact.get("quantity").as_i64().is_some_and(|quantity| quantity > 0),
            ..metric(
                "country_top_article",
                ORDERS,
                &[COUNTRY],
                TopK(3, "article", |fact| fact.get("article")),
                "country_top_article_5m",
                20 * MINUTE,
            )
        },
        metric("top_channel", BOTH, &[], TopK(4, "channel", CHANNEL.1), "top_channel_10s", HOUR),
        metric(
            "weight_quantiles",
            ORDERS,
            &[SIZE],
            Quantile(weight, 0, &[0.0, 0.25, 0.5, 0.9, 1.0]),
            "weight_quantiles_5m",
            HOUR,
        ),
        metric(
            "price_quantiles",
            BOTH,
            &[],
            Quantile(price, 2, &[0.5, 0.95, 0.99]),
            "price_quantiles_5m",
            DAY,
        ),
        metric(
            "quantity_quantiles",
            ORDERS,
            &[COUNTRY, CITY],
            Quantile(quantity, 0, &[0.5, 0.99]),
            "",
            5 * MINUTE,
        ),
        metric(
            "ping_cnt",
            &["pings"],
            &[("kind", |fact| fact.get("kind"))],
            Count,
            "ping_cnt_10s",
            5 * MINUTE,
        ),
    ]
}

/// The metric of a name.
pub fn metric(name: &str) -> Metric {
    metrics().into_iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no metric {name}"))
}

fn window(live: &str) -> i64 {
    match live.rsplit_once('_').expect("a live name ends with its window").1 {
        "10s" => 10_000,
        "1m" => MINUTE,
        "5m" => 5 * MINUTE,
        _ => 10 * MINUTE,
    }
}

const COUNTRY: (&str, Of) = ("country", |fact| shop_part(fact, 0));
const CITY: (&str, Of) = ("city", |fact| match shop_part(fact, 1) {
    Value::String(city) => json!(city.to_lowercase()),
    _ => Value::Null,
});
const SIZE: (&str, Of) = ("size", |fact| {
    json!(match fact.get("quantity").as_i64() {
        Some(8..) => "bulk",
        Some(2..) => "several",
        Some(1) => "one",
        _ => "other",
    })
});
const CHANNEL: (&str, Of) = ("channel", |fact| match fact.get("note") {
    Value::Null => json!("none"),
    note => note,
});
const ARTICLE: (&str, Of) = ("article", |fact| fact.get("article"));
const GIFT: (&str, Of) = ("gift", |fact| fact.get("gift"));

fn shop_part(fact: &Fact, part: usize) -> Value {
    match fact.get("shop").as_str() {
        Some(shop) => json!(shop.split('/').nth(part).unwrap_or("")),
        None => Value::Null,
    }
}

fn thrice_less_one(fact: &Fact) -> Value {
    fact.get("quantity").as_i64().map_or(Value::Null, |quantity| json!(quantity * 3 - 1))
}

fn upper_customer(fact: &Fact) -> Value {
    fact.get("customer").as_str().map_or(Value::Null, |customer| json!(customer.to_uppercase()))
}
