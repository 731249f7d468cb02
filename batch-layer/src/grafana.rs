//! A Grafana dashboard made from a catalog: how the layers are, and each metric and formula, live and as the batch view has
//! them.
//!
//! Each panel asks what is right of its metric: counts and sums add up over keys and time, a mean is sum by count where these
//! are kept, and what doesn't add up is shown as it is. One text box for each key column filters every panel that has it.

use crate::replace::names::quote;
use serde_json::{Value as Json, json};
use shared_model::aggregate::Aggregate;
use shared_model::catalog::Catalog;
use shared_model::event::FieldType;
use shared_model::metric::{Formula, KeyColumn, Metric};
use shared_model::time::Grain;
use std::collections::BTreeSet;

/// The data sources' uids, as `infra/grafana/provisioning/datasources` names them.
const MERGED: (&str, &str) = ("grafana-postgresql-datasource", "tidemark-merged");
const BATCH_VIEW: (&str, &str) = ("grafana-postgresql-datasource", "tidemark-batch");
const LAYERS: (&str, &str) = ("prometheus", "tidemark-layers");

/// What is shown of the layers: title, unit, and what is asked of Prometheus.
const OF_LAYERS: [(&str, &str, &str); 6] = [
    ("Records read", "cps", "sum(rate(tidemark_speed_records_total[1m]))"),
    ("Records not read yet", "short", "sum(tidemark_speed_lag_records)"),
    ("Records refused", "cps", "sum by (topic) (rate(tidemark_speed_rejects_total[5m]))"),
    ("Requests", "reqps", "sum by (status) (rate(tidemark_serving_requests_total[1m]))"),
    (
        "Requests, 99 % within",
        "s",
        "histogram_quantile(0.99, sum by (le) (rate(tidemark_serving_request_seconds_bucket[5m])))",
    ),
    ("Unexplained error of the last audit", "percentunit", "max(tidemark_audit_error)"),
];

/// Panels, three in a line.
#[derive(Default)]
struct Panels {
    list: Vec<Json>,
    /// Where the next one goes.
    at: (u32, u32),
}

/// Whose tables are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Views {
    /// The serving layer's, which merges both views: values are finished.
    Merged,
    /// Postgres': values are as they are kept, decimals in units of their last place, a mean as its sum and count.
    Batch,
}

/// What a panel shows of a metric.
enum Shown {
    /// Values over time.
    Series(String),
    /// Rows.
    Table(String),
}

/// The dashboard, as JSON for Grafana's provisioning or import.
pub(crate) fn dashboard(catalog: &Catalog) -> Json {
    let mut panels = Panels::default();
    panels.row("The layers");
    for (title, unit, expression) in OF_LAYERS {
        let target = json!({ "refId": "A", "datasource": source(LAYERS), "expr": expression });
        panels.add(
            json!({ "type": "timeseries", "title": title, "datasource": source(LAYERS), "targets": [target],
                           "fieldConfig": { "defaults": { "unit": unit, "min": 0 }, "overrides": [] } }),
        );
    }
    let sections = [
        ("Live: both views merged, by SQL (serve --sql-listen)", Views::Merged),
        ("The batch view, up to its last run", Views::Batch),
    ];
    for (title, views) in sections {
        panels.row(title);
        for metric in &catalog.metrics {
            panels.of(views, &metric.name, &about(metric), metric.grain, &of_metric(metric, views));
        }
        for formula in &catalog.formulas {
            if let Some(shown) = of_formula(catalog, formula, views) {
                panels.of(views, &formula.name, &formula.description, formula.grain, &shown);
            }
        }
    }
    json!({
        "uid": "tidemark", "title": "Tidemark", "tags": ["tidemark"], "schemaVersion": 41, "editable": true,
        "timezone": "browser", "refresh": "30s", "time": { "from": "now-24h", "to": "now" },
        "templating": { "list": text_boxes(catalog) }, "panels": panels.list,
    })
}

impl Panels {
    fn row(&mut self, title: &str) {
        if self.at.0 > 0 {
            self.at = (0, self.at.1 + 8);
        }
        let place = json!({ "h": 1, "w": 24, "x": 0, "y": self.at.1 });
        let id = self.list.len() + 1;
        self.list.push(json!({ "id": id, "type": "row", "title": title, "gridPos": place, "panels": [] }));
        self.at.1 += 1;
    }

    fn add(&mut self, mut panel: Json) {
        let (x, y) = self.at;
        panel["id"] = json!(self.list.len() + 1);
        panel["gridPos"] = json!({ "h": 8, "w": 8, "x": x, "y": y });
        self.list.push(panel);
        self.at = if x < 16 { (x + 8, y) } else { (0, y + 8) };
    }

    fn of(&mut self, views: Views, name: &str, about: &str, grain: Grain, shown: &Shown) {
        let asked = source(if views == Views::Merged { MERGED } else { BATCH_VIEW });
        let (kind, format, sql) = match shown {
            Shown::Series(sql) => ("timeseries", "time_series", sql),
            Shown::Table(sql) => ("table", "table", sql),
        };
        let target = json!({ "refId": "A", "datasource": asked, "format": format, "rawQuery": true,
                             "editorMode": "code", "rawSql": sql });
        self.add(json!({ "type": kind, "title": name, "description": about, "datasource": asked,
                         // No narrower than a bucket.
                         "interval": format!("{}ms", grain.width()), "targets": [target] }));
    }
}

fn source((kind, uid): (&str, &str)) -> Json {
    json!({ "type": kind, "uid": uid })
}

fn about(metric: &Metric) -> String {
    let unit = if metric.unit.is_empty() { String::new() } else { format!(" Unit: {}.", metric.unit) };
    format!("{}.{unit}", metric.description.trim_end_matches('.'))
}

/// One for each key column of the catalog; empty: everything.
fn text_boxes(catalog: &Catalog) -> Vec<Json> {
    let keys = catalog.metrics.iter().flat_map(|metric| metric.key_columns());
    let names: BTreeSet<&String> = keys.map(|key| &key.name).collect();
    let text_box = |name| {
        json!({ "type": "textbox", "name": name, "label": name, "query": "",
                "current": { "text": "", "value": "" } })
    };
    names.into_iter().map(text_box).collect()
}

/// Where rows come from: the dashboard's span, and what its text boxes say of the keys.
fn from<'a>(view: &str, keys: impl Iterator<Item = &'a KeyColumn>) -> String {
    let filter = |key: &KeyColumn| {
        let (name, column) = (&key.name, quote(&key.name));
        format!(" and (${{{name}:sqlstring}} = '' or {column}::text = ${{{name}:sqlstring}})")
    };
    let filters: String = keys.map(filter).collect();
    format!("from metrics.{} where $__timeFilter(bucket){filters}", quote(view))
}

/// Values added up over keys and time: by whole multiples of the grain, so that each point has as many buckets.
fn series(values: &str, grain: Grain, from: &str, views: Views) -> Shown {
    let width = grain.width();
    let widths = format!("ceil($__interval_ms / {width}.0)");
    let time = match views {
        Views::Batch => format!("date_bin({widths} * interval '{width} milliseconds', bucket, 'epoch')"),
        Views::Merged => {
            let seconds = format!("({widths} * {})", width as f64 / 1_000.0);
            format!("to_timestamp(floor(extract(epoch from bucket) / {seconds}) * {seconds})")
        }
    };
    Shown::Series(format!("select {time} as \"time\", {values} {from} group by 1 order by 1"))
}

/// The keys with the greatest values of a column that can't be added up over buckets, each by its greatest.
fn most_in_a_bucket(column: &str, keys: &str, from: &str) -> Shown {
    Shown::Table(format!(
        "select {keys}, max({column}) as \"most in a bucket\" {from} group by {keys} \
         order by max({column}) desc, {keys} limit 20"
    ))
}

fn of_metric(metric: &Metric, views: Views) -> Shown {
    let (name, from) = (quote(&metric.name), from(&metric.name, metric.key_columns()));
    let listed = metric.key_columns().map(|key| quote(&key.name)).collect::<Vec<_>>().join(", ");
    let quantiles = || {
        let columns = metric.aggregate.columns().into_iter().skip(metric.aggregate.state_columns().len());
        columns.map(|(name, _)| quote(name)).collect::<Vec<_>>().join(", ")
    };
    let series = |values: &str| series(&format!("{values} as {name}"), metric.grain, &from, views);
    match &metric.aggregate {
        Aggregate::Count => series("sum(value)"),
        Aggregate::Sum(ty) => series(&scaled("sum(value)", *ty, views)),
        // A finished mean no longer tells of how many values it is.
        Aggregate::Mean(_) if views == Views::Merged => newest(metric, "value", &listed, &from),
        Aggregate::Mean(ty) => series(&scaled("sum(sum) / nullif(sum(count), 0)", *ty, views)),
        Aggregate::Min(ty) | Aggregate::Max(ty) => {
            let extremum = if matches!(metric.aggregate, Aggregate::Min(_)) { "min" } else { "max" };
            match ty {
                FieldType::String | FieldType::Bool => {
                    let keys: String = metric.key_columns().map(|key| quote(&key.name) + ", ").collect();
                    Shown::Table(format!("select bucket, {keys}value {from} order by bucket desc limit 20"))
                }
                _ => series(&scaled(&format!("{extremum}(value)"), *ty, views)),
            }
        }
        Aggregate::TopK { .. } => Shown::Table(format!(
            "select {listed}, sum(value) as value {from} group by {listed} order by value desc, {listed} limit 20"
        )),
        Aggregate::Distinct if metric.by.is_empty() => {
            newest(metric, &format!("estimate as {name}"), &listed, &from)
        }
        // Estimates of several buckets can't be added.
        Aggregate::Distinct => most_in_a_bucket("estimate", &listed, &from),
        // Nor can sessions, of which one may lie in two buckets.
        Aggregate::Sessions { .. } => most_in_a_bucket("sessions", &listed, &from),
        Aggregate::Quantile { .. } => newest(metric, &quantiles(), &listed, &from),
    }
}

/// Values that don't add up: without keys each bucket's, else the newest of each key.
fn newest(metric: &Metric, values: &str, keys: &str, from: &str) -> Shown {
    if metric.by.is_empty() {
        return Shown::Series(format!("select bucket as \"time\", {values} {from} order by 1"));
    }
    Shown::Table(format!(
        "select distinct on ({keys}) {keys}, bucket, {values} {from} order by {keys}, bucket desc limit 20"
    ))
}

/// A value that is kept in units of the last decimal place.
fn scaled(value: &str, ty: FieldType, views: Views) -> String {
    match ty {
        FieldType::Decimal(scale) if views == Views::Batch => {
            format!("({value}) / 1{}.0", "0".repeat(usize::from(scale)))
        }
        _ => value.to_owned(),
    }
}

/// A formula's columns that add up; `None` where none does.
fn of_formula(catalog: &Catalog, formula: &Formula, views: Views) -> Option<Shown> {
    let adds_up = |metric: &String| {
        let aggregate = catalog.metric(metric).map(|metric| &metric.aggregate);
        matches!(aggregate, Some(Aggregate::Count | Aggregate::TopK { .. } | Aggregate::Sum(FieldType::Int)))
    };
    let columns = formula.columns.iter().filter(|(_, metric)| adds_up(metric));
    let sums: Vec<String> = columns.map(|(name, _)| format!("sum({0}) as {0}", quote(name))).collect();
    let from = from(&formula.name, formula.by.iter());
    (!sums.is_empty()).then(|| series(&sums.join(", "), formula.grain, &from, views))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::catalog::OUTBRAIN;

    /// The dashboard that compose provisions is the shipped catalog's.
    #[test]
    fn the_shipped_dashboard() {
        let catalog = Catalog::from_toml(OUTBRAIN).expect("shipped");
        let found = serde_json::to_string_pretty(&dashboard(&catalog)).expect("JSON") + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/grafana/dashboards/tidemark.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &found).expect("written");
        }
        let golden = std::fs::read_to_string(path).expect("read");
        assert!(
            found == golden,
            "{path} is no longer what is made: write it anew with UPDATE_GOLDEN=1, and review what has changed"
        );
    }

    #[test]
    fn panels_stand_side_by_side() {
        let catalog = Catalog::from_toml(OUTBRAIN).expect("shipped");
        let dashboard = dashboard(&catalog);
        let panels = dashboard["panels"].as_array().expect("panels");
        let mut cells = BTreeSet::new();
        for panel in panels {
            let of = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
            assert!(of("x") + of("w") <= 24);
            for (x, y) in
                (of("x")..of("x") + of("w")).flat_map(|x| (of("y")..of("y") + of("h")).map(move |y| (x, y)))
            {
                assert!(cells.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
        let titles: BTreeSet<&str> = panels.iter().filter_map(|panel| panel["title"].as_str()).collect();
        let named = catalog.metrics.iter().map(|metric| metric.name.as_str());
        assert!(named.chain(["features_20m"]).all(|name| titles.contains(name)), "{titles:?}");
    }
}
