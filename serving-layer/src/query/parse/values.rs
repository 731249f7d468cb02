//! The value columns of an answer, by the names that order and `having` know them by.

use crate::query::OrderBy;

/// The value columns of an answer, by name.
pub(super) struct Values {
    pub(super) names: Vec<String>,
    /// Whether those of the period that is compared with are there too, as `previous.<name>`.
    pub(super) compared: bool,
}

impl Values {
    pub(super) fn find(&self, name: &str) -> Option<OrderBy> {
        let place = |name: &str| self.names.iter().position(|own| own == name);
        match name.strip_prefix(PREVIOUS).filter(|_| self.compared) {
            Some(name) => place(name).map(OrderBy::Previous),
            None => place(name).map(OrderBy::Value),
        }
    }

    /// The place of a value column among the request's.
    pub(super) fn place(&self, column: OrderBy) -> Option<usize> {
        match column {
            OrderBy::Value(place) | OrderBy::Previous(place) => Some(place),
            _ => None,
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let previous = self.names.iter().filter(|_| self.compared).map(|name| format!("{PREVIOUS}{name}"));
        self.names.iter().cloned().chain(previous).collect()
    }
}

/// What comes before the name of a value column of the period that is compared with.
const PREVIOUS: &str = "previous.";
