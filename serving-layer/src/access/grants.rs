//! What a key may read, and of what it is an admin: metrics by name or by the catalog's tags, and rows.
//!
//! It is stored as JSON and resolved against the catalog that is served, so that a metric which the catalog gains later is
//! there for the keys that its tags or `*` name, and for no other.

use super::rows::RowFilter;
use serde::{Deserialize, Serialize};
use shared_model::catalog::Catalog;
use shared_model::metric::Metric;
use std::collections::BTreeSet;

/// What a key may do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// What it may query.
    pub read: Scope,
    /// Of what it may see how it is, too: the audits; of everything, the process' own figures.
    pub admin: Scope,
    /// Which rows it may see. A metric whose key doesn't have these columns is none that it may read.
    pub rows: RowFilter,
}

/// A set of metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// All that there are.
    pub all: bool,
    /// By name.
    pub metrics: BTreeSet<String>,
    /// By tag: those that have one of these.
    pub tags: BTreeSet<String>,
}

impl Scope {
    /// Reads a list as the command line writes it: `*`, `tag:<tag>`, or the name of a metric.
    ///
    /// # Errors
    /// Every word that means nothing in the catalog, with what there is.
    pub fn parse(words: &[String], catalog: &Catalog) -> Result<Scope, Vec<String>> {
        let (mut scope, mut faults) = (Scope::default(), Vec::new());
        let tags: BTreeSet<&String> = catalog.metrics.iter().flat_map(|metric| &metric.tags).collect();
        for word in words {
            match (word.as_str(), word.strip_prefix("tag:")) {
                ("*", _) => scope.all = true,
                (_, Some(tag)) if tags.iter().any(|known| *known == tag) => {
                    scope.tags.insert(tag.to_owned());
                }
                (_, Some(tag)) => {
                    faults.push(format!("no metric of the catalog has the tag {tag:?}; there are {tags:?}"))
                }
                (name, None) if catalog.metric(name).is_some() => {
                    scope.metrics.insert(name.to_owned());
                }
                (name, None) => {
                    let known: Vec<&str> =
                        catalog.metrics.iter().map(|metric| metric.name.as_str()).collect();
                    faults.push(format!(
                        "{name:?} is no metric of the catalog, nor * or tag:<tag>; there are {}",
                        known.join(", ")
                    ));
                }
            }
        }
        if faults.is_empty() { Ok(scope) } else { Err(faults) }
    }

    /// Whether a metric is one of them.
    pub fn has(&self, metric: &Metric) -> bool {
        self.all
            || self.metrics.contains(&metric.name)
            || metric.tags.iter().any(|tag| self.tags.contains(tag))
    }
}

impl Grants {
    /// Whether a metric may be queried.
    pub fn reads(&self, metric: &Metric) -> bool {
        (self.read.has(metric) || self.admin.has(metric)) && self.rows.fits(metric)
    }

    /// Whether the key is an admin of a metric. One that sees some rows alone is admin of nothing: audits are of all rows.
    pub fn administers(&self, metric: &Metric) -> bool {
        self.rows.is_empty() && self.admin.has(metric)
    }

    /// Whether it is an admin of everything.
    pub fn administers_all(&self) -> bool {
        self.rows.is_empty() && self.admin.all
    }

    /// The catalog with what may be queried alone; a formula where all of its metrics may.
    pub fn restricted(&self, catalog: &Catalog) -> Catalog {
        let mut restricted = catalog.clone();
        restricted.metrics.retain(|metric| self.reads(metric));
        let reads = |name: &String| catalog.metric(name).is_some_and(|metric| self.reads(metric));
        restricted.formulas.retain(|formula| formula.columns.iter().all(|(_, metric)| reads(metric)));
        restricted
    }
}
